//! Lives of an agent's backend: begun, used, and killed between any two calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use weir::agent::{ObservedAttempt, StartRequest};
use weir::clock::Clock;
use weir::model::attempt::{AttemptStatus, Outcome, OutcomeKind, StopReason};
use weir::model::exchange::{StartOrder, Stop, TaskStart};
use weir::model::id::{AttemptId, JobId, JournalId, Revision};
use weir::model::pool::NodeSpec;
use weir::model::spec::{self, JobSpec};
use weir::model::time::Timestamp;
use weir::pools::{Event, PoolBackend};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// One life of an agent, as far as its backend goes.
pub struct Life<B> {
    // Before the runtime: what it owns may need it to end.
    backend: B,
    runtime: Option<Runtime>,
    events: mpsc::UnboundedReceiver<Event>,
    pub nodes: Vec<NodeSpec>,
    pub found: Vec<ObservedAttempt>,
    /// All that was told of attempts, in order.
    pub told: Vec<(AttemptId, AttemptStatus)>,
    pub gone: bool,
    /// What it works with answers.
    pub answered: bool,
    pub clock: Clock,
}

impl<B: PoolBackend> Life<B> {
    /// Begins one: opens the backend and hears what there is.
    pub fn begin(backend: impl FnOnce(Clock) -> B) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let clock = Clock::start();
        let (sender, events) = mpsc::unbounded_channel();
        let (backend, opened) = runtime.block_on(async {
            let mut backend = backend(clock);
            let opened = tokio::time::timeout(PATIENCE, backend.open(sender)).await.expect("opened in time");
            // As the agent does when its broker has let it in.
            backend.serves(journal());
            (backend, opened.expect("the backend opens"))
        });
        Self {
            backend,
            runtime: Some(runtime),
            events,
            nodes: opened.nodes,
            found: opened.attempts,
            told: Vec::new(),
            gone: false,
            answered: true,
            clock,
        }
    }

    /// Ends it as a kill would: whatever it was doing stops where it is.
    pub fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }

    /// Calls the backend, as the agent's loop does.
    pub fn call(&mut self, call: impl FnOnce(&mut B)) {
        let _within = self.runtime.as_ref().map(Runtime::enter);
        call(&mut self.backend);
    }

    pub fn launch(&mut self, launch: &StartRequest) {
        let launch = launch.clone();
        self.call(|backend| backend.start(launch));
    }

    pub fn stop(&mut self, attempt: AttemptId) {
        let stop = Stop { attempt, reason: StopReason::Cancelled, grace_ms: 1_000 };
        self.call(|backend| backend.stop(stop));
    }

    pub fn forget(&mut self, attempt: AttemptId) {
        self.call(|backend| backend.forget(attempt));
    }

    /// Takes in what was told until `is` holds.
    pub fn hear(&mut self, what: &str, mut is: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Ok(event) = self.events.try_recv() {
                match event {
                    Event::StatusChanged { attempt, status } => self.told.push((attempt, status)),
                    Event::NodesChanged { nodes, removed } => {
                        self.nodes.retain(|node| {
                            !removed.contains(&node.name) && !nodes.iter().any(|new| new.name == node.name)
                        });
                        self.nodes.extend(nodes);
                    }
                    Event::Answers(answers) => self.answered = answers,
                    Event::Gone => self.gone = true,
                }
            }
            if is(self) {
                return;
            }
            assert!(Instant::now() < deadline, "not in time: {what}; told: {:?}", self.told);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What was last told of an attempt, in this life or found at its beginning.
    pub fn status(&self, attempt: AttemptId) -> Option<AttemptStatus> {
        let told = self.told.iter().rfind(|(other, _)| *other == attempt).map(|(_, status)| status.clone());
        told.or_else(|| {
            self.found.iter().find(|seen| seen.attempt == attempt).map(|seen| seen.status.clone())
        })
    }

    pub fn until_running(&mut self, attempt: AttemptId) {
        self.hear("it runs", |life| matches!(life.status(attempt), Some(AttemptStatus::Running { .. })));
    }

    pub fn until_ended(&mut self, attempt: AttemptId) -> Outcome {
        let mut ended = None;
        self.hear("it ends", |life| {
            ended = match life.status(attempt) {
                Some(AttemptStatus::Ended { outcome, .. }) => Some(outcome),
                _ => None,
            };
            ended.is_some()
        });
        ended.expect("heard")
    }

    /// An order for one unit of such a job on the pool's first node.
    pub fn order(&self, job: u64, change: impl FnOnce(&mut JobSpec)) -> StartRequest {
        order_on(self.clock.now(), &self.nodes[0].name, job, change)
    }
}

/// The broker's.
fn journal() -> JournalId {
    JournalId::from_random(0x1234_5678_9abc)
}

/// An order that may be started within the next minute.
pub fn order_on(now: Timestamp, node: &str, job: u64, change: impl FnOnce(&mut JobSpec)) -> StartRequest {
    let mut spec = spec::minimal();
    spec.groups[0].request.resources.cpu_millis = 100;
    spec.groups[0].request.resources.memory_bytes = 16 << 20;
    spec.max_run_ms = 3_600_000;
    spec.grace_ms = 1_000;
    change(&mut spec);
    let attempt = AttemptId { journal: journal(), job: JobId(job), unit: 0, number: 1 };
    let task = |task| TaskStart { group: 0, task, node: node.to_owned(), devices: Vec::new() };
    let start_by = Timestamp(now.0 + 60_000);
    let tasks =
        if spec.groups[0].gang { (0..spec.groups[0].count).map(task).collect() } else { vec![task(0)] };
    let order = StartOrder {
        attempt,
        revision: Revision(40 + job),
        high_water: None,
        spec: Default::default(),
        job_name: format!("job-{job}"),
        queue: "default".to_owned(),
        start_by,
        started: false,
        after: None,
        tasks,
    };
    StartRequest { order, spec: Arc::new(spec), start_by, leased: false }
}

/// Asserts how something ended.
pub fn assert_kind(outcome: &Outcome, kind: OutcomeKind) {
    assert_eq!(outcome.kind, kind, "{outcome:?}");
}
