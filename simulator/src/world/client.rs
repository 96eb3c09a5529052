//! Clients: they submit, cancel, configure, ask, repeat what was not answered, and make mistakes.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use weir::broker::{CallId, Input, JobFilter, JobRef, Query};
use weir::model::device::DeviceAmount;
use weir::model::exchange::{FromAgent, Hello, Part};
use weir::model::id::{
    AttemptId, Epoch, InstanceId, JobId, JournalId, NodeId, PoolId, QueueId, ReservationId, Revision,
};
use weir::model::link::Link;
use weir::model::pool::DrainMode;
use weir::model::price::{PriceSchedule, Rate};
use weir::model::queue::default_settings;
use weir::model::region::RegionCode;
use weir::model::reservation::Reservation;
use weir::model::resource::{ResourceKind, Resources};
use weir::model::spec::{
    Dependency, DependencyCondition, DeviceRequest, JobSpec, OnPoolLost, OnUnitFailure, RetryOn, RetryPolicy,
    Simulate, minimal,
};
use weir::model::time::Timestamp;
use weir::state::command::{Command, Request, Submission};
use weir::state::decide::Reply;
use weir::state::job::Principal;
use weir::state::rejection::Rejection;
use weir::state::token::RequestToken;

use super::{Event, World, split};

/// A client with what it remembers.
pub(crate) struct Client {
    rng: StdRng,
    next_call: u64,
    next_token: u64,
    /// Requests without an answer, to be repeated with the same token.
    open: BTreeMap<CallId, (Request, u64)>,
    pub(crate) acknowledged: BTreeSet<JobId>,
    pub(crate) abandoned: BTreeSet<AttemptId>,
    acts: u32,
}

impl Client {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: split(seed, 4),
            next_call: 0,
            next_token: 0,
            open: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            abandoned: BTreeSet::new(),
            acts: 0,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }
}

/// Acts of one seed's client while faults last.
const ACTS: u32 = 160;

impl World {
    pub(crate) fn client_act(&mut self) -> Result<(), String> {
        let now = self.now;
        let stale: Vec<CallId> =
            self.client.open.iter().filter(|(_, (_, at))| now - at > 3_000).map(|(call, _)| *call).collect();
        for call in stale {
            if let Some((request, _)) = self.client.open.remove(&call) {
                self.send(request)?;
            }
        }
        if self.faulty() && self.client.acts < ACTS {
            self.client.acts += 1;
            match self.client.rng.random_range(0..20) {
                0..10 => self.submit()?,
                10..12 => self.cancel()?,
                12 if self.client.rng.random_bool(0.4) => self.trade()?,
                12 => self.configure()?,
                13..15 => self.operate()?,
                15..17 => self.ask()?,
                _ => self.err()?,
            }
        }
        if !self.faulty() {
            self.reopen()?;
        }
        let ms = self.client.rng.random_range(200..2_500);
        self.at(ms, Event::Client);
        Ok(())
    }

    fn send(&mut self, request: Request) -> Result<(), String> {
        self.client.next_call += 1;
        let call = CallId(self.client.next_call);
        self.client.open.insert(call, (request.clone(), self.now));
        self.broker_step(Input::Request { call, request })
    }

    fn command(&mut self, command: Command) -> Result<(), String> {
        self.client.next_token += 1;
        let principal = Principal::Anonymous;
        let text = format!("token-{}", self.client.next_token);
        let token = Some(RequestToken::new(&principal, "", &text, format!("{command:?}").as_bytes()));
        self.send(Request { principal, token, command })
    }

    pub(crate) fn client_reply(&mut self, call: CallId, result: Result<Reply, Rejection>) {
        if self.client.open.remove(&call).is_none() {
            return;
        }
        match result {
            Ok(Reply::Submitted { first, count }) => {
                self.client.acknowledged.extend((0..u64::from(count)).map(|index| JobId(first.0 + index)));
            }
            Ok(_) => {}
            Err(rejection) => self.counts.rejection(&rejection),
        }
    }

    fn submit(&mut self) -> Result<(), String> {
        let count = self.client.rng.random_range(1..5);
        let live: Vec<JobId> =
            self.broker.iter().flat_map(|broker| broker.state().jobs_from(JobId(0))).map(|j| j.id).collect();
        let rng = &mut self.client.rng;
        let queue = if rng.random_bool(0.2) { "team" } else { "" };
        let jobs = (0..count).map(|_| {
            let name_prefix = ["train", "eval", ""][rng.random_range(0..3)].to_owned();
            Submission {
                name: String::new(),
                name_prefix,
                queue: queue.to_owned(),
                spec: random_spec(rng, &live),
            }
        });
        let mut jobs: Vec<Submission> = jobs.collect();
        if rng.random_bool(0.1) {
            jobs.push(Submission {
                name: String::new(),
                name_prefix: "burst".to_owned(),
                queue: queue.to_owned(),
                spec: burst_spec(rng),
            });
        }
        self.command(Command::Submit { jobs })
    }

    fn cancel(&mut self) -> Result<(), String> {
        let known: Vec<JobId> = self.client.acknowledged.iter().copied().collect();
        if known.is_empty() {
            return Ok(());
        }
        let job = known[self.client.rng.random_range(0..known.len())];
        self.command(Command::Cancel { jobs: vec![job] })
    }

    fn configure(&mut self) -> Result<(), String> {
        let mut spec = default_settings("team");
        let create = self.client.rng.random_bool(0.5);
        spec.limit.device_millis = self.client.rng.random_bool(0.5).then_some(6_000);
        spec.weight = self.client.rng.random_range(1..4);
        if create {
            self.command(Command::CreateQueue { spec })
        } else {
            let based_on = Revision(if self.client.rng.random_bool(0.3) { 3 } else { 0 });
            self.command(Command::UpdateQueue { spec, based_on })
        }
    }

    /// Prices, links and reservations.
    fn trade(&mut self) -> Result<(), String> {
        let rng = &mut self.client.rng;
        let (pool, ms) = (PoolId(rng.random_range(1..6)), rng.random_range(0..60_000));
        let from = Timestamp(self.now + ms);
        let command = match rng.random_range(0..4) {
            0 => {
                let micros_per_hour = rng.random_range(0..5_000_000);
                let (model, kind) = (String::new(), ResourceKind::Device);
                let rate = Rate { kind, model, micros_per_hour, from_minute: 0, to_minute: 1_440 };
                let schedule = PriceSchedule { currency: "CNY".to_owned(), rates: vec![rate] };
                Command::SetPrices { pool, valid_from: from, schedule }
            }
            1 => {
                let regions = ["CN-CQ", "CN-XJ", "CN-GZ"].map(|r| RegionCode::parse(r).unwrap_or_default());
                let ends = (regions[rng.random_range(0..3)], regions[rng.random_range(0..3)]);
                let (bandwidth_bits_per_s, round_trip_micros) = (10_000_000_000, rng.random_range(0..90_000));
                let link = Link { ends, bandwidth_bits_per_s, round_trip_micros, micros_per_gb: 20_000 };
                Command::SetLink { link }
            }
            2 => {
                let amounts = Resources { device_millis: 8_000, ..Resources::default() };
                let until = Timestamp(from.0 + rng.random_range(0..90_000));
                let (id, queue) = (ReservationId(0), QueueId(1));
                let pool = rng.random_bool(0.5).then_some(pool);
                let models = Vec::new();
                let reservation = Reservation { id, queue, pool, amounts, models, from, until };
                Command::Reserve { reservation }
            }
            _ => Command::EndReservation { reservation: ReservationId(rng.random_range(1..4)) },
        };
        self.command(command)
    }

    fn operate(&mut self) -> Result<(), String> {
        let pool = PoolId(self.client.rng.random_range(1..5));
        let cordoned = self.client.rng.random_bool(0.3);
        let deadline_ms = self.client.rng.random_range(0..20_000);
        match self.client.rng.random_range(0..5) {
            0 => self.command(Command::CordonPool { pool, cordoned }),
            1 => self.command(Command::DrainPool { pool, mode: DrainMode::Wait, deadline_ms }),
            2 => self.command(Command::DrainPool { pool, mode: DrainMode::Evict, deadline_ms: 0 }),
            3 => {
                let node = NodeId(self.client.rng.random_range(1..4));
                self.command(Command::CordonNode { pool, node, cordoned })
            }
            _ => {
                let silent = self.broker.iter().flat_map(|broker| {
                    let state = broker.state();
                    let lost = |attempt: &&weir::state::live::Attempt| {
                        state
                            .pool(attempt.pool)
                            .is_some_and(|pool| pool.reach > weir::model::pool::Reach::Suspect)
                    };
                    state.attempts().filter(lost).map(|a| a.id(state.journal())).collect::<Vec<_>>()
                });
                let Some(attempt) = silent.take(1).next() else { return Ok(()) };
                self.client.abandoned.insert(attempt);
                self.command(Command::Abandon { attempt })
            }
        }
    }

    /// After the faults everything is opened again, so that all jobs can end.
    fn reopen(&mut self) -> Result<(), String> {
        let Some(broker) = &self.broker else { return Ok(()) };
        let state = broker.state();
        let mut commands = Vec::new();
        for pool in state.pools() {
            if pool.cordoned || pool.drain.is_some() {
                commands.push(Command::CordonPool { pool: pool.id, cordoned: false });
            }
            let cordoned = pool.nodes.values().filter(|node| node.cordoned);
            commands.extend(cordoned.map(|node| Command::CordonNode {
                pool: pool.id,
                node: node.id,
                cordoned: false,
            }));
        }
        if let Some(queue) = state.queue_named("team").filter(|queue| queue.spec.limit != Default::default())
        {
            let mut spec = queue.spec.clone();
            spec.limit = Default::default();
            commands.push(Command::UpdateQueue { spec, based_on: Revision(0) });
        }
        commands.into_iter().try_for_each(|command| self.command(command))
    }

    fn ask(&mut self) -> Result<(), String> {
        let jobs: Vec<JobId> = self.client.acknowledged.iter().copied().collect();
        let job = if jobs.is_empty() { JobId(1) } else { jobs[self.client.rng.random_range(0..jobs.len())] };
        let query = match self.client.rng.random_range(0..4) {
            0 => Query::Why(JobRef::Id(job)),
            1 => Query::Jobs { filter: JobFilter::default(), before: JobId(u64::MAX), limit: 10 },
            2 => Query::Pools,
            _ => Query::Job(JobRef::Id(job)),
        };
        self.client.next_call += 1;
        let call = CallId(self.client.next_call);
        self.broker_step(Input::Query { call, query })
    }

    /// A mistake, or malice: nothing may come of it.
    fn err(&mut self) -> Result<(), String> {
        let mut spec = minimal();
        let submission = |name: &str, spec: JobSpec| Submission {
            name: name.to_owned(),
            name_prefix: String::new(),
            queue: String::new(),
            spec,
        };
        match self.client.rng.random_range(0..10) {
            9 => {
                let principal = Principal::Anonymous;
                // Of the year 2022, as its first digits say.
                let text = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
                let token = Some(RequestToken::new(&principal, "", text, b"late"));
                let command = Command::Submit { jobs: vec![submission("", spec)] };
                self.send(Request { principal, token, command })
            }
            0 => {
                spec.groups[0].count = 0;
                self.command(Command::Submit { jobs: vec![submission("", spec)] })
            }
            1 => {
                spec.groups[0].simulate = Some(Simulate { duration_ms: 30_000, exit_code: 0 });
                self.command(Command::Submit {
                    jobs: vec![submission("twin", spec.clone()), submission("twin", spec)],
                })
            }
            2 => {
                spec.depends_on =
                    vec![Dependency { job: JobId(999_999), condition: DependencyCondition::Any }];
                self.command(Command::Submit { jobs: vec![submission("", spec)] })
            }
            3 => {
                let spec = default_settings("nowhere");
                self.command(Command::UpdateQueue { spec, based_on: Revision(0) })
            }
            4 => {
                let principal = Principal::Anonymous;
                let token = Some(RequestToken::new(&principal, "", "token-1", b"something else"));
                let command = Command::Cancel { jobs: Vec::new() };
                self.send(Request { principal, token, command })
            }
            5 => {
                // Before the rightful agent has bound the name, whoever comes first gets it.
                if self.journal.replica.pool_named("pool-0").is_none() {
                    return Ok(());
                }
                let mut hello: Hello = self.agents[0].hello.clone();
                hello.instance = InstanceId(u128::from(self.client.rng.next_u64()));
                let session = self.network.next_session(0);
                self.broker_step(Input::FromAgent { session, message: FromAgent::Hello(hello) })
            }
            6 => {
                let Some(session) = self.agents[0].session else { return Ok(()) };
                let message = FromAgent::Observed {
                    epoch: Epoch(0),
                    part: Part::Delta,
                    reports: vec![self.foreign_report()],
                };
                self.broker_step(Input::FromAgent { session, message })
            }
            7 => {
                // Its pool answers: there is nothing to give up.
                let Some(broker) = &self.broker else { return Ok(()) };
                let heard = |attempt: &&weir::state::live::Attempt| {
                    let pool = broker.state().pool(attempt.pool);
                    pool.is_some_and(|pool| pool.reach == weir::model::pool::Reach::Ready)
                };
                let state = broker.state();
                let Some(attempt) = state.attempts().find(heard).map(|attempt| attempt.id(state.journal()))
                else {
                    return Ok(());
                };
                self.command(Command::Abandon { attempt })
            }
            _ => {
                let report = self.foreign_report();
                let pool = PoolId(1);
                let epoch = self.broker.as_ref().and_then(|b| b.state().pool(pool)).map(|pool| pool.epoch);
                self.command(Command::ReportAttempt { pool, epoch: epoch.unwrap_or_default(), report })
            }
        }
    }

    fn foreign_report(&self) -> weir::model::attempt::AttemptReport {
        weir::model::attempt::AttemptReport {
            attempt: AttemptId { journal: JournalId::from_random(7), job: JobId(1), unit: 0, number: 1 },
            ordered_revision: Revision(1),
            status: weir::model::attempt::AttemptStatus::Starting,
        }
    }
}

fn random_spec(rng: &mut StdRng, live: &[JobId]) -> JobSpec {
    let mut spec = minimal();
    let group = &mut spec.groups[0];
    group.request.resources.cpu_millis = [500, 1_000, 2_000, 8_000][rng.random_range(0..4)];
    if rng.random_bool(0.4) {
        let amount = if rng.random_bool(0.4) {
            DeviceAmount::Fraction(rng.random_range(1..1_000))
        } else {
            DeviceAmount::Whole(rng.random_range(1..5))
        };
        let models = if rng.random_bool(0.5) { vec!["A100-80G".to_owned()] } else { Vec::new() };
        group.request.devices = Some(DeviceRequest { models, amount });
    }
    group.count = if rng.random_bool(0.3) { rng.random_range(2..6) } else { 1 };
    group.gang = group.count > 1 && rng.random_bool(0.4);
    let exit_code = [0, 0, 0, 0, 0, 1, 137][rng.random_range(0..7)];
    group.simulate = Some(Simulate { duration_ms: rng.random_range(1..25_000), exit_code });
    spec.priority = rng.random_range(-1..3);
    if rng.random_bool(0.5) {
        let on = vec![RetryOn::Failed, RetryOn::TimedOut, RetryOn::LaunchFailed, RetryOn::Unknown];
        spec.retry =
            RetryPolicy { max_attempts: rng.random_range(1..4), on, backoff_ms: 500, backoff_max_ms: 5_000 };
    }
    if rng.random_bool(0.5) {
        spec.on_pool_lost = OnPoolLost::Requeue;
        spec.may_overlap = rng.random_bool(0.2);
    }
    if rng.random_bool(0.2) {
        spec.on_unit_failure = OnUnitFailure::Continue { max_failed: 1 };
    }
    if rng.random_bool(0.15) {
        spec.max_run_ms = rng.random_range(1..20_000);
    }
    if rng.random_bool(0.1) {
        spec.start_limit_ms = rng.random_range(1..400);
    }
    if rng.random_bool(0.15) && !live.is_empty() {
        let job = live[rng.random_range(0..live.len())];
        let condition = [DependencyCondition::Any, DependencyCondition::Succeeded][rng.random_range(0..2)];
        spec.depends_on = vec![Dependency { job, condition }];
    }
    if rng.random_bool(0.2) {
        spec.constraints.regions_denied = vec![RegionCode::parse("CN-XJ").unwrap_or_default()];
    }
    spec
}

/// Many short tasks that take whole nodes: they line up.
fn burst_spec(rng: &mut StdRng) -> JobSpec {
    let mut spec = minimal();
    let group = &mut spec.groups[0];
    group.request.resources.cpu_millis = 8_000;
    group.count = rng.random_range(5..40);
    group.simulate = Some(Simulate { duration_ms: rng.random_range(1..30), exit_code: 0 });
    spec.retry.on = vec![RetryOn::Unknown, RetryOn::LaunchFailed];
    spec.retry.max_attempts = 3;
    spec
}
