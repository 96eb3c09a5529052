//! What a broker does in a writer session that has just begun.

use super::*;
use crate::model::attempt::AttemptStatus;
use crate::model::demand::{Demand, ProfileEntry};
use crate::model::exchange::{Hello, Inventory, Part};
use crate::model::id::{Epoch, InstanceId};
use crate::model::limit::{LEASE_MS_DEFAULT, LEASE_MS_MIN};
use crate::model::pool::Connectivity;
use crate::model::resource::Resources;
use crate::model::shape::Needs;
use crate::model::spec::{JobSpec, OnPoolLost, Run, minimal};
use crate::state::event::lease_surely_over_ms;
use crate::state::fixture::{Fixture, node_spec, submission, unit};
use crate::state::token::RequestToken;

const HOUR_MS: u64 = 3_600_000;

fn submit() -> Request {
    let principal = Principal::Anonymous;
    let token = Some(RequestToken::new(&principal, "", "nightly", b"body"));
    let jobs = vec![submission("nightly", "", minimal())];
    Request { principal, token, command: Command::Submit { jobs } }
}

/// Steps, with a disk that is always done at once; returns what was answered.
fn replies(broker: &mut Broker, now: Timestamp, input: Input) -> Vec<Result<Reply, Rejection>> {
    let effects = effects(broker, now, input).into_iter();
    effects
        .filter_map(|effect| if let Effect::Reply { result, .. } = effect { Some(result) } else { None })
        .collect()
}

/// The same; returns all that is to be done besides.
fn effects(broker: &mut Broker, now: Timestamp, input: Input) -> Vec<Effect> {
    let mut all = Vec::new();
    let mut inputs = std::collections::VecDeque::from([input]);
    while let Some(input) = inputs.pop_front() {
        for effect in broker.step(now, input) {
            match effect {
                Effect::Append { after, events, .. } => {
                    let through = events.last().map_or(after, |event| event.revision);
                    inputs.push_back(Input::Appended { through });
                }
                other => all.push(other),
            }
        }
    }
    all
}

fn restart(state: State, now: Timestamp) -> Broker {
    let random = Random { writer_session: 7, journal: 7, key: 7 };
    Broker::new(state, Term(2), random, now)
}

#[test]
fn token_outlives_a_restart_and_a_sleep_by_its_full_time() {
    let mut world = Fixture::new();
    let first = world.request(&submit());
    let mut now = world.now.plus_ms(HOUR_MS);
    let mut broker = restart(world.state, now);
    let ask = |broker: &mut Broker, now| {
        replies(broker, now, Input::Request { call: CallId(1), request: submit() })
    };
    replies(&mut broker, now, Input::Wake);
    assert_eq!(ask(&mut broker, now), std::slice::from_ref(&first), "after a restart");
    now = now.plus_ms(HOUR_MS);
    replies(&mut broker, now, Input::Wake);
    assert_eq!(ask(&mut broker, now), std::slice::from_ref(&first), "after a sleep");
    for _ in 0..TOKEN_RETENTION_MS / 1_000 {
        now = now.plus_ms(1_000);
        replies(&mut broker, now, Input::Wake);
    }
    let late = ask(&mut broker, now);
    assert!(matches!(late[..], [Err(Rejection::AlreadyExists { .. })]), "{late:?}");
}

/// Steps every second until the time has come.
fn pass(broker: &mut Broker, now: &mut Timestamp, until: Timestamp) {
    while *now < until {
        *now = now.plus_ms(1_000).min(until);
        replies(broker, *now, Input::Wake);
    }
}

#[test]
fn new_writer_session_ends_no_lease_before_it_has_listened_for_as_long_as_one_lasts() {
    let mut world = Fixture::new();
    let pool = world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 0)]);
    let job = world.submit_spec(JobSpec { on_pool_lost: OnPoolLost::Requeue, ..minimal() });
    world.must_start(unit(job, 0), pool);
    world.report(unit(job, 0), AttemptStatus::Running { started_at: world.now });
    world.must(Command::ChangeConnectivity { pool, connectivity: Connectivity::Lost });
    let over_ms = lease_surely_over_ms(LEASE_MS_DEFAULT);
    let began = world.now.plus_ms(HOUR_MS);
    let mut broker = restart(world.state, began);
    let mut now = began;
    pass(&mut broker, &mut now, began.plus_ms(over_ms - 1));
    assert!(broker.state().attempt(unit(job, 0)).is_some(), "its lease was ended early");
    pass(&mut broker, &mut now, began.plus_ms(over_ms + 1_000));
    assert!(broker.state().attempt(unit(job, 0)).is_none(), "its lease was never ended");
}

#[test]
fn each_attempt_is_requeued_when_its_own_lease_is_over() {
    let mut world = Fixture::new();
    let pool = world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 0)]);
    let spec = |lease_ms| JobSpec { on_pool_lost: OnPoolLost::Requeue, lease_ms, ..minimal() };
    let [short, long] = [LEASE_MS_MIN, 2 * LEASE_MS_DEFAULT].map(|lease_ms| {
        let job = world.submit_spec(spec(lease_ms));
        world.must_start(unit(job, 0), pool);
        unit(job, 0)
    });
    let began = world.now.plus_ms(HOUR_MS);
    let mut broker = restart(world.state, began);
    let (mut now, over) = (began, |lease_ms| began.plus_ms(lease_surely_over_ms(lease_ms)));
    let lives = |broker: &Broker, unit| broker.state().attempt(unit).is_some();
    pass(&mut broker, &mut now, over(LEASE_MS_MIN).plus_ms(1_000));
    assert!(!lives(&broker, short) && lives(&broker, long));
    pass(&mut broker, &mut now, Timestamp(over(2 * LEASE_MS_DEFAULT).0 - 1));
    assert!(lives(&broker, long), "its lease was ended early");
    pass(&mut broker, &mut now, over(2 * LEASE_MS_DEFAULT).plus_ms(1_000));
    assert!(!lives(&broker, long), "its lease was never ended");
}

#[test]
fn pools_that_were_given_up_long_ago_keep_no_lease_alive() {
    let ended_after = |given_up_for_ms| {
        let mut world = Fixture::new();
        let nodes = || vec![node_spec("n1", 8, 0)];
        let abandoned = ["a", "b", "c"].map(|name| world.pool(name, "CN-CQ", nodes()));
        let pool = world.pool("p", "CN-CQ", nodes());
        let job = world.submit_spec(JobSpec { on_pool_lost: OnPoolLost::Requeue, ..minimal() });
        world.must_start(unit(job, 0), pool);
        for pool in abandoned {
            world.must(Command::ChangeConnectivity { pool, connectivity: Connectivity::Lost });
        }
        let mut now = world.now.plus_ms(given_up_for_ms);
        let mut broker = restart(world.state, now);
        let over = now.plus_ms(lease_surely_over_ms(LEASE_MS_DEFAULT) + 1_000);
        pass(&mut broker, &mut now, over);
        broker.state().attempt(unit(job, 0)).is_none()
    };
    assert!(!ended_after(60_000), "most pools have fallen silent together");
    assert!(ended_after(2 * HOUR_MS), "the one pool that was alive has fallen silent");
}

#[test]
fn new_writer_session_orders_nothing_again_before_the_other_pools_report() {
    let mut world = Fixture::new();
    let (pool, _) = (
        world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 0)]),
        world.pool("q", "CN-CQ", vec![node_spec("n1", 8, 0)]),
    );
    let job = world.submit_spec(minimal());
    world.must_start(unit(job, 0), pool);
    let spec = world.state.pool(pool).unwrap().spec.clone();
    let unreachable_ms = world.state.settings().unreachable_ms;
    let mut now = world.now.plus_ms(HOUR_MS);
    let mut broker = restart(world.state, now);
    let session = SessionId(1);
    let mut ordered = |now, message| {
        let effects = effects(&mut broker, now, Input::FromAgent { session, message });
        let orders = |effect: &Effect| match effect {
            Effect::Direct { message: ToAgent::Orders { orders, .. }, .. } => orders.len(),
            _ => 0,
        };
        effects.iter().map(orders).sum::<usize>()
    };
    let hello =
        Hello { pool: spec, instance: InstanceId(7), key: [7; 16], last_epoch: None, high_water: None };
    assert_eq!(ordered(now, FromAgent::Hello(hello)), 0);
    let epoch = Epoch(2);
    let nodes = vec![node_spec("n1", 8, 0)];
    let inventory = Inventory { epoch, part: Part::FullEnd, nodes, removed: Vec::new() };
    assert_eq!(ordered(now, FromAgent::Inventory(inventory)), 0);
    assert_eq!(ordered(now, FromAgent::Observed { epoch, part: Part::FullEnd, reports: Vec::new() }), 0);
    // The other pool never reports.
    let mut sent_after_ms = 0;
    for sequence in 0..60 {
        now = now.plus_ms(1_000);
        if ordered(now, FromAgent::Heartbeat { epoch, sequence }) == 1 {
            sent_after_ms = now.ms_since(world.now.plus_ms(HOUR_MS));
            break;
        }
    }
    assert_eq!(sent_after_ms, unreachable_ms);
}

/// Entries of the workload profile a minute into a writer session of this policy, with one entry before.
fn profile_entries(policy: Policy) -> usize {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 0)]);
    let demand = Arc::new(Demand {
        resources: Resources::default(),
        devices: None,
        constraints: minimal().constraints,
        needs: Needs::default(),
    });
    let entries = vec![ProfileEntry { demand, weight: 1, overflow: 1 }];
    world.must(Command::UpdateWorkloadProfile {
        profile: Some(Arc::new(WorkloadProfile { arrivals: 16, turnover_percent: 100, entries })),
    });
    let mut now = world.now;
    let mut broker = restart(world.state, now);
    broker.set_policy(policy);
    replies(&mut broker, now, Input::Request { call: CallId(1), request: submit() });
    pass(&mut broker, &mut now, world.now.plus_ms(60_000));
    broker.state().profile().entries.len()
}

#[test]
fn profile_stays_with_a_policy_that_uses_it_and_is_removed_by_another() {
    let entries = [Policy::Overflow, Policy::Fgd, Policy::BestFit].map(profile_entries);
    assert_eq!(entries, [1, 1, 0]);
}

/// Submits one job of a spec with so many bytes of arguments.
fn submit_large(broker: &mut Broker, now: Timestamp, index: usize, bytes: usize) -> Result<Reply, Rejection> {
    let mut spec = minimal();
    let Run::Process(program) = &mut spec.groups[0].run else { panic!("another kind of program") };
    program.args = vec![format!("{index:0bytes$}")];
    let command = Command::Submit { jobs: vec![submission("", "", spec)] };
    let request = Request { principal: Principal::Anonymous, token: None, command };
    replies(broker, now, Input::Request { call: CallId(1), request }).remove(0)
}

/// At its memory budget a broker refuses more, serves what it has, and takes more as soon as jobs have ended.
#[test]
fn what_would_pass_the_memory_budget_is_refused_until_jobs_end() {
    let (world, max) = (Fixture::new(), 1 << 20);
    let now = world.now;
    let mut broker = restart(world.state, now);
    broker.set_memory_max(max);
    let accepted = (0..).take_while(|index| submit_large(&mut broker, now, *index, 10_000).is_ok()).count();
    assert!((70..95).contains(&accepted), "{accepted} jobs of about 11 kB in seven eighths of a megabyte");
    assert!(broker.state().memory_bytes() <= max);
    let refused = submit_large(&mut broker, now, 1_000, 10_000).unwrap_err();
    assert_eq!(refused.code(), "LimitReached");
    assert!(refused.to_string().contains("bytes of live jobs, pools and nodes"), "{refused}");
    let first = broker.state().jobs_from(JobId(0)).next().unwrap().id;
    let cancel = Command::Cancel { jobs: vec![first], reason: String::new() };
    let request = Request { principal: Principal::Anonymous, token: None, command: cancel };
    assert!(replies(&mut broker, now, Input::Request { call: CallId(1), request })[0].is_ok());
    assert!(submit_large(&mut broker, now, 1_001, 10_000).is_ok());
    broker.state().check().unwrap();
}
