//! The agent's step machine alone, input by input.

use std::sync::Arc;

use super::{Agent, Effect, Input};
use crate::model::attempt::AttemptStatus;
use crate::model::exchange::{Accepted, FromAgent, Hello, Part, StartOrder, ToAgent};
use crate::model::id::{AttemptId, Epoch, InstanceId, JobId, JournalId, Revision, SpecId, Term};
use crate::model::pool::{Capabilities, PoolSpec};
use crate::model::region::RegionCode;
use crate::model::spec::minimal;
use crate::model::time::Timestamp;

const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn step(agent: &mut Agent, input: Input) -> Vec<Effect> {
    agent.step(NOW, input)
}

/// Begins a session and returns the attempts in its full set.
fn begin_session(agent: &mut Agent) -> Vec<AttemptId> {
    step(agent, Input::Connected);
    let accepted = Accepted {
        journal: JournalId::from_random(42),
        term: Term(1),
        epoch: Epoch(1),
        now: NOW,
        heartbeat_ms: 1_000,
        high_water: None,
    };
    let effects = step(agent, Input::FromBroker(ToAgent::Accepted(accepted)));
    let reported = effects.into_iter().filter_map(|effect| match effect {
        Effect::Send(FromAgent::Observed { reports, .. }) => Some(reports),
        _ => None,
    });
    reported.flatten().map(|report| report.attempt).collect()
}

#[test]
fn start_that_the_backend_has_not_confirmed_is_not_reported() {
    let pool = PoolSpec {
        name: "p".into(),
        region: RegionCode::parse("CN-CQ").unwrap(),
        backend: "simulated".into(),
        labels: Default::default(),
        capabilities: Capabilities::default(),
        notes: Vec::new(),
    };
    let hello = Hello { pool, instance: InstanceId(7), key: [7; 16], last_epoch: None, high_water: None };
    let mut agent = Agent::new(hello, NOW);
    step(&mut agent, Input::InitialSync { nodes: Vec::new(), attempts: Vec::new() });
    assert_eq!(begin_session(&mut agent), []);
    let attempt = AttemptId { journal: JournalId::from_random(42), job: JobId(1), unit: 0, number: 1 };
    let order = StartOrder {
        attempt,
        revision: Revision(9),
        high_water: None,
        spec: SpecId([1; 16]),
        job_name: "job".into(),
        queue: "default".into(),
        start_by: NOW.plus_ms(60_000),
        started: false,
        after: None,
        tasks: Vec::new(),
    };
    let specs = vec![(SpecId([1; 16]), Arc::new(minimal()))];
    let orders = ToAgent::Orders { term: Term(1), part: Part::FullEnd, specs, orders: vec![order] };
    let effects = step(&mut agent, Input::FromBroker(orders));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Start(_))));
    // If the agent reported it and died, the backend might have no record of a start that the broker counts
    // on.
    step(&mut agent, Input::Disconnected);
    agent.step(NOW.plus_ms(60_000), Input::Wake);
    assert_eq!(begin_session(&mut agent), []);
    step(&mut agent, Input::StatusChanged { attempt, status: AttemptStatus::Starting });
    step(&mut agent, Input::Disconnected);
    agent.step(NOW.plus_ms(120_000), Input::Wake);
    assert_eq!(begin_session(&mut agent), [attempt]);
}
