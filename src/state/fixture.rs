//! A small world for tests: a state, its clock, and short ways to give it commands. It takes no
//! decision of its own: the test chooses where a unit goes.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::State;
use super::apply::{Applied, ArchiveRow, FinishedJob};
use super::command::{Command, JobChange, Request, Submission};
use super::decide::Reply;
use super::event::EventRecord;
use super::job::{JobEnd, Principal};
use super::rejection::Rejection;
use super::token::RequestToken;
use crate::model::attempt::{AttemptReport, AttemptStatus, Outcome, OutcomeKind, Placement};
use crate::model::change::Change;
use crate::model::device::{DeviceAmount, DeviceShare};
use crate::model::exchange::{Hello, Inventory, Part};
use crate::model::high_water::JournalKey;
use crate::model::id::{InstanceId, JobId, JournalId, NodeId, PoolId, Revision, Term, UnitId};
use crate::model::interval::IntervalSet;
use crate::model::limit::DEVICE_MILLIS;
use crate::model::plan::Start;
use crate::model::pool::{Capabilities, Connectivity, Device, DrainMode, NodeSpec, PoolSpec};
use crate::model::queue::default_settings;
use crate::model::region::RegionCode;
use crate::model::resource::Resources;
use crate::model::spec::{DeviceRequest, JobSpec, OnPoolLost, OnUnitFailure, RetryOn, RetryPolicy, minimal};
use crate::model::time::Timestamp;

/// A state with all that its events led to.
#[derive(Default)]
pub(crate) struct Fixture {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    pub(crate) events: Vec<EventRecord>,
    pub(crate) changes: Vec<Change>,
    pub(crate) archive: Vec<ArchiveRow>,
}

impl Fixture {
    /// The beginning of a journal, in term 1.
    pub(crate) fn new() -> Self {
        Self::resume(State::default(), Term(1))
    }

    /// Goes on from a recovered state, in a term of its own.
    pub(crate) fn resume(state: State, term: Term) -> Self {
        let now = state.now().max(Timestamp(1_700_000_000_000));
        let mut fixture = Self { state, now, ..Self::default() };
        fixture.must(Command::StartTerm {
            journal: JournalId::from_random(42),
            key: JournalKey::from_random(42),
            writer_session: term.0,
            term,
        });
        fixture
    }

    pub(crate) fn request(&mut self, request: &Request) -> Result<Reply, Rejection> {
        let decision = self.state.decide(self.now, request)?;
        for event in decision.events {
            let revision = self.state.revision().next();
            let record = EventRecord { revision, at: self.now, principal: request.principal.clone(), event };
            let mut applied = Applied::default();
            self.state.apply(&record, &mut applied);
            self.events.push(record);
            self.changes.extend(applied.changes);
            self.archive.extend(applied.archive);
        }
        Ok(decision.reply)
    }

    pub(crate) fn command(&mut self, command: Command) -> Result<Reply, Rejection> {
        self.request(&Request { principal: Principal::Anonymous, token: None, command })
    }

    pub(crate) fn must(&mut self, command: Command) -> Reply {
        let text = format!("{command:?}");
        self.command(command).unwrap_or_else(|rejection| panic!("{text}: {rejection}"))
    }

    /// A ready pool with these nodes, numbered from 1.
    pub(crate) fn pool(&mut self, name: &str, region: &str, nodes: Vec<NodeSpec>) -> PoolId {
        let capabilities = Capabilities {
            real: true,
            processes: true,
            containers: true,
            pods: false,
            leases: true,
            secrets: true,
            whole_devices_only: false,
        };
        let spec = PoolSpec {
            name: name.to_owned(),
            region: RegionCode::parse(region).unwrap(),
            backend: "simulated".to_owned(),
            labels: Default::default(),
            capabilities,
            notes: Vec::new(),
        };
        let hello =
            Hello { pool: spec, instance: InstanceId(7), key: [7; 16], last_epoch: None, high_water: None };
        let Reply::Session { pool, epoch } = self.must(Command::OpenSession { hello }) else {
            panic!("no session")
        };
        let inventory = Inventory { epoch, part: Part::FullEnd, nodes, removed: Vec::new() };
        self.must(Command::ReportNodes { pool, inventory });
        self.must(Command::ChangeConnectivity { pool, connectivity: Connectivity::Ready });
        pool
    }

    pub(crate) fn submit(&mut self, submission: Submission) -> JobId {
        let Reply::Submitted { first, count: 1 } = self.must(Command::Submit { jobs: vec![submission] })
        else {
            panic!("not one job")
        };
        first
    }

    pub(crate) fn submit_spec(&mut self, spec: JobSpec) -> JobId {
        self.submit(submission("", "", spec))
    }

    /// Starts a unit with all of its tasks on one node, and on the devices given to each.
    pub(crate) fn start_on(
        &mut self,
        unit: UnitId,
        pool: PoolId,
        node: NodeId,
        devices: &[DeviceShare],
    ) -> Result<Reply, Rejection> {
        let spec = self.state.job(unit.job).and_then(|job| self.state.spec(job.spec)).unwrap().spec.clone();
        let place = |(group, task)| Placement { group, task, node, devices: devices.to_vec() };
        let placements = spec.tasks_of_unit(unit.unit).into_iter().map(place).collect();
        self.command(Command::Start { start: Start { unit, pool, placements, after: None } })
    }

    pub(crate) fn must_start(&mut self, unit: UnitId, pool: PoolId) {
        self.start_on(unit, pool, NodeId(1), &[]).unwrap();
    }

    pub(crate) fn report(&mut self, unit: UnitId, status: AttemptStatus) -> Reply {
        let attempt = self.state.attempt(unit).unwrap().clone();
        let report = AttemptReport {
            attempt: attempt.id(self.state.journal()),
            ordered_revision: attempt.ordered_revision,
            status,
        };
        let epoch = self.state.pool(attempt.pool).unwrap().epoch;
        self.must(Command::ReportAttempt { pool: attempt.pool, epoch, report })
    }

    pub(crate) fn end(&mut self, unit: UnitId, kind: OutcomeKind) {
        self.end_with(unit, Outcome::plain(kind, "as the test chose"));
    }

    /// Ends an attempt with this outcome.
    pub(crate) fn end_with(&mut self, unit: UnitId, outcome: Outcome) {
        let (started_at, ended_at) = (Some(self.now), self.now);
        self.report(unit, AttemptStatus::Ended { started_at, ended_at, outcome });
    }

    /// Lets time pass and does what falls due, until nothing is.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        for _ in 0..1_000 {
            let due_actions = self.state.due_actions(self.now, |_| u64::MAX, Timestamp(0));
            if due_actions.is_empty() {
                return;
            }
            for due_action in due_actions {
                // One action may make the next one needless.
                let _outdated = self.command(Command::DueAction(due_action));
            }
        }
        panic!("due_actions never end");
    }

    /// How a job ended, if it did.
    pub(crate) fn ended(&self, job: JobId) -> Option<JobEnd> {
        self.finished(job).map(|finished| finished.end)
    }

    pub(crate) fn finished(&self, job: JobId) -> Option<&FinishedJob> {
        self.archive.iter().find_map(|row| match row {
            ArchiveRow::Job(finished) if finished.job.id == job => Some(finished),
            ArchiveRow::Job(_) | ArchiveRow::Attempt(_) => None,
        })
    }

    /// Does one thing at random: clients', agents' and admins' commands, and time. What the state
    /// refuses changes nothing and is part of the game.
    pub(crate) fn act(&mut self, rng: &mut StdRng) {
        let units: Vec<UnitId> = self.state.attempts().map(|attempt| attempt.unit).collect();
        let jobs: Vec<JobId> = self.state.jobs_from(JobId(0)).map(|job| job.id).collect();
        let pools: Vec<PoolId> = self.state.pools().map(|pool| pool.id).collect();
        match rng.random_range(0..12) {
            0..3 => {
                let principal = Principal::Anonymous;
                let token = Some(RequestToken::new(&principal, "", &rng.next_u64().to_string(), b"submit"));
                let queue = ["", "team", "team/a"][rng.random_range(0..3)];
                let jobs = vec![submission("", queue, random_spec(rng))];
                let _refused = self.request(&Request { principal, token, command: Command::Submit { jobs } });
            }
            3..6 => self.start_at_random(rng, &jobs, &pools),
            6..8 if !units.is_empty() => {
                let unit = units[rng.random_range(0..units.len())];
                let kinds = [OutcomeKind::Succeeded, OutcomeKind::Failed, OutcomeKind::NodeLost];
                match rng.random_range(0..4) {
                    0 => drop(self.report(unit, AttemptStatus::Starting)),
                    1 => drop(self.report(unit, AttemptStatus::Running { started_at: self.now })),
                    _ => self.end(unit, kinds[rng.random_range(0..kinds.len())]),
                }
            }
            8 if !jobs.is_empty() => {
                self.must(Command::Cancel {
                    jobs: vec![jobs[rng.random_range(0..jobs.len())]],
                    reason: String::new(),
                });
            }
            9 if rng.random_bool(0.5) && !jobs.is_empty() => {
                let job = jobs[rng.random_range(0..jobs.len())];
                let command = match rng.random_range(0..3) {
                    0 => {
                        let first = rng.random_range(0..3);
                        let units = IntervalSet::from_range(first, first + rng.random_range(1..4));
                        Command::CancelUnits { job, units }
                    }
                    _ => {
                        let change = JobChange {
                            priority: rng.random_bool(0.5).then(|| rng.random_range(-2..3)),
                            held: rng.random_bool(0.5).then(|| rng.random_bool(0.3)),
                            max_run_ms: rng.random_bool(0.2).then_some(7_000),
                            labels: [("k".to_owned(), rng.random_range(0..3).to_string())].into(),
                            labels_removed: Vec::new(),
                        };
                        Command::UpdateJob { job, based_on: Revision(0), change }
                    }
                };
                let _refused = self.command(command);
            }
            9 => self.change_pools(rng, &pools),
            10 => {
                let name = ["team", "team/a", "default"][rng.random_range(0..3)];
                if rng.random_bool(0.1) {
                    let _refused =
                        self.command(Command::DeleteQueue { name: name.to_owned(), based_on: Revision(0) });
                    return;
                }
                let mut spec = default_settings(name);
                spec.limit.cpu_millis = rng.random_bool(0.5).then_some(16_000);
                let _exists = self.command(Command::CreateQueue { spec: spec.clone() });
                let _refused = self.command(Command::UpdateQueue { spec, based_on: Revision(0) });
            }
            _ => {
                let ms = [0, 5, 700, 60_000][rng.random_range(0..4)];
                self.pass(ms);
            }
        }
    }

    fn start_at_random(&mut self, rng: &mut StdRng, jobs: &[JobId], pools: &[PoolId]) {
        if jobs.is_empty() || pools.is_empty() {
            return;
        }
        let job = jobs[rng.random_range(0..jobs.len())];
        let Some(unit) = self.state.job(job).and_then(|job| job.groups[0].waiting.first()) else { return };
        let pool = pools[rng.random_range(0..pools.len())];
        let spec = self.state.job(job).and_then(|job| self.state.spec(job.spec)).unwrap().spec.clone();
        let from = rng.random_range(0..4);
        let devices: Vec<DeviceShare> = match spec.groups[0].request.devices.as_ref().map(|d| d.amount) {
            None => Vec::new(),
            Some(DeviceAmount::Fraction(millis)) => vec![DeviceShare { index: from, millis }],
            Some(DeviceAmount::Whole(count)) => (0..count as u16)
                .map(|offset| DeviceShare { index: from + offset, millis: DEVICE_MILLIS })
                .collect(),
        };
        let _refused = self.start_on(UnitId { job, unit }, pool, NodeId(rng.random_range(1..4)), &devices);
    }

    fn change_pools(&mut self, rng: &mut StdRng, pools: &[PoolId]) {
        if pools.is_empty() {
            return;
        }
        let pool = pools[rng.random_range(0..pools.len())];
        let node = NodeId(rng.random_range(1..4));
        let cordoned = rng.random_bool(0.3);
        let epoch = self.state.pool(pool).unwrap().epoch;
        match rng.random_range(0..7) {
            0 => drop(self.command(Command::CordonPool { pool, cordoned })),
            1 => drop(self.command(Command::CordonNode { pool, node, cordoned })),
            2 => drop(self.command(Command::DrainPool { pool, mode: DrainMode::Wait, deadline_ms: 500 })),
            3 => drop(self.command(Command::ChangeConnectivity { pool, connectivity: Connectivity::Lost })),
            4 => {
                let nodes =
                    vec![node_spec(&format!("n{}", rng.random_range(1..6)), rng.random_range(1..33), 4)];
                let removed = vec![format!("n{}", rng.random_range(6..9))];
                let inventory = Inventory { epoch, part: Part::Delta, nodes, removed };
                let _refused = self.command(Command::ReportNodes { pool, inventory });
            }
            5 => {
                let name = self.state.pool(pool).unwrap().spec.name.clone();
                let deleted = self.command(Command::DeletePool { name: name.clone(), based_on: Revision(0) });
                if deleted.is_ok() && rng.random_bool(0.8) {
                    self.pool(&name, "CN-XJ", vec![node_spec("n1", 16, 4)]);
                }
            }
            _ => {
                let _refused =
                    self.command(Command::ChangeConnectivity { pool, connectivity: Connectivity::Ready });
                let _refused = self.command(Command::CordonPool { pool, cordoned: false });
            }
        }
    }
}

/// A job to be submitted, by name and queue.
pub(crate) fn submission(name: &str, queue: &str, spec: JobSpec) -> Submission {
    let (name, queue) = (name.to_owned(), queue.to_owned());
    Submission { name, name_prefix: String::new(), queue, allow_pending: true, held: false, spec }
}

/// A node of so many cores, 64 GiB, and so many A100.
pub(crate) fn node_spec(name: &str, cores: u64, devices: usize) -> NodeSpec {
    let device = |index: usize| Device {
        model: "A100-80G".to_owned(),
        memory_bytes: 80 << 30,
        healthy: true,
        millis: DEVICE_MILLIS,
        topology_group: (index / 4) as u16,
        profiles: Vec::new(),
    };
    NodeSpec {
        name: name.to_owned(),
        labels: Default::default(),
        taints: Vec::new(),
        cordoned: false,
        allocatable: Resources { cpu_millis: cores * 1_000, memory_bytes: 64 << 30, ..Resources::default() },
        devices: (0..devices).map(device).collect(),
    }
}

/// A job of `count` equal tasks of so many cores.
pub(crate) fn tasks(count: u32, cores: u64) -> JobSpec {
    let mut spec = minimal();
    spec.groups[0].count = count;
    spec.groups[0].request.resources.cpu_millis = cores * 1_000;
    spec
}

/// A job of one task that asks for devices of any model.
pub(crate) fn with_devices(amount: DeviceAmount) -> JobSpec {
    let mut spec = minimal();
    spec.groups[0].request.devices = Some(DeviceRequest { models: Vec::new(), amount });
    spec
}

pub(crate) fn unit(job: JobId, unit: u32) -> UnitId {
    UnitId { job, unit }
}

fn random_spec(rng: &mut StdRng) -> JobSpec {
    let mut spec = tasks(rng.random_range(1..5), rng.random_range(1..9));
    spec.groups[0].gang = rng.random_bool(0.3);
    spec.priority = rng.random_range(-1..2);
    spec.groups[0].request.devices = match rng.random_range(0..4) {
        0 => Some(DeviceAmount::Fraction(rng.random_range(1..999))),
        1 => Some(DeviceAmount::Whole(rng.random_range(1..4))),
        _ => None,
    }
    .map(|amount| DeviceRequest { models: vec!["A100-80G".to_owned()], amount });
    if rng.random_bool(0.5) {
        let on = vec![RetryOn::Failed, RetryOn::TimedOut];
        spec.retry =
            RetryPolicy { max_attempts: 3, on, backoff_ms: 500, backoff_max_ms: 5_000, ..spec.retry };
        spec.on_unit_failure = OnUnitFailure::Continue { max_failed: 1 };
        spec.on_pool_lost = OnPoolLost::Requeue;
    }
    spec
}
