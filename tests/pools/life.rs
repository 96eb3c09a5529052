//! Lives of an agent's backend: a test begins one, calls the backend, and kills it between any two calls.

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

/// Deadline of every wait: generous, for a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(90);

/// The backend in one run of an agent, from its start to its kill.
pub struct Life<B> {
    // Before the runtime, because fields drop in this order: dropping the backend may need the runtime.
    backend: B,
    runtime: Option<Runtime>,
    events: mpsc::UnboundedReceiver<Event>,
    pub nodes: Vec<NodeSpec>,
    /// The attempts that existed when the backend was opened.
    pub found: Vec<ObservedAttempt>,
    /// All status changes that the backend reported, in order.
    pub reports: Vec<(AttemptId, AttemptStatus)>,
    /// The backend reported its end.
    pub gone: bool,
    /// The system behind the backend answers, by the last report.
    pub answered: bool,
    pub clock: Clock,
}

impl<B: PoolBackend> Life<B> {
    /// Begins a life: opens the backend and stores what exists there.
    pub fn begin(backend: impl FnOnce(Clock) -> B) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let clock = Clock::start();
        let (sender, events) = mpsc::unbounded_channel();
        let (backend, opened) = runtime.block_on(async {
            let mut backend = backend(clock);
            let opened = tokio::time::timeout(TIMEOUT, backend.open(sender)).await.expect("opened in time");
            // As the agent does when its broker has accepted it.
            backend.serves(journal());
            (backend, opened.expect("the backend opens"))
        });
        Self {
            backend,
            runtime: Some(runtime),
            events,
            nodes: opened.nodes,
            found: opened.attempts,
            reports: Vec::new(),
            gone: false,
            answered: true,
            clock,
        }
    }

    /// Ends the life as a kill would: calls that are in progress stop where they are.
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

    pub fn start(&mut self, start: &StartRequest) {
        let start = start.clone();
        self.call(|backend| backend.start(start));
    }

    pub fn stop(&mut self, attempt: AttemptId) {
        let stop = Stop { attempt, reason: StopReason::Cancelled, grace_ms: 1_000 };
        self.call(|backend| backend.stop(stop));
    }

    pub fn forget(&mut self, attempt: AttemptId) {
        self.call(|backend| backend.forget(attempt));
    }

    /// Receives events until `is` holds.
    pub fn wait_for(&mut self, what: &str, mut is: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            while let Ok(event) = self.events.try_recv() {
                match event {
                    Event::StatusChanged { attempt, status } => self.reports.push((attempt, status)),
                    Event::NodesChanged { nodes, removed } => {
                        self.nodes.retain(|node| {
                            !removed.contains(&node.name) && !nodes.iter().any(|new| new.name == node.name)
                        });
                        self.nodes.extend(nodes);
                    }
                    Event::Answers(answers) => self.answered = answers,
                    Event::Working(_) => {}
                    Event::Gone => self.gone = true,
                }
            }
            if is(self) {
                return;
            }
            assert!(Instant::now() < deadline, "not in time: {what}; reports: {:?}", self.reports);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The last reported status of an attempt, or else that at the beginning of this life.
    pub fn status(&self, attempt: AttemptId) -> Option<AttemptStatus> {
        let last =
            self.reports.iter().rfind(|(other, _)| *other == attempt).map(|(_, status)| status.clone());
        last.or_else(|| {
            self.found.iter().find(|found| found.attempt == attempt).map(|found| found.status.clone())
        })
    }

    pub fn until_running(&mut self, attempt: AttemptId) {
        self.wait_for("it runs", |life| matches!(life.status(attempt), Some(AttemptStatus::Running { .. })));
    }

    pub fn until_ended(&mut self, attempt: AttemptId) -> Outcome {
        let mut ended = None;
        self.wait_for("it ends", |life| {
            ended = match life.status(attempt) {
                Some(AttemptStatus::Ended { outcome, .. }) => Some(outcome),
                _ => None,
            };
            ended.is_some()
        });
        ended.expect("an outcome")
    }

    /// A start request for one unit of a job on the pool's first node; `change` alters the job's spec.
    pub fn order(&self, job: u64, change: impl FnOnce(&mut JobSpec)) -> StartRequest {
        order_on(self.clock.now(), &self.nodes[0].name, job, change)
    }
}

/// The journal of the broker in whose name the tests act.
fn journal() -> JournalId {
    JournalId::from_random(0x1234_5678_9abc)
}

/// A start request whose start-by time is a minute after `now`.
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
    StartRequest { order, spec: Arc::new(spec), start_by, lease_ms: None }
}

/// Asserts the kind of an outcome, and shows all of it if it differs.
pub fn assert_kind(outcome: &Outcome, kind: OutcomeKind) {
    assert_eq!(outcome.kind, kind, "{outcome:?}");
}
