//! A million waiting jobs: memory, restart time, and the longest step while a snapshot is written.

use std::time::{Duration, Instant};

use weir::api::client::Client;
use weir::api::proto::v1;
use weir::broker::Random;
use weir::broker::{Broker, CallId, Effect, Input};
use weir::model::id::{Revision, Term};
use weir::model::spec::minimal;
use weir::model::time::Timestamp;
use weir::state::State;
use weir::state::command::{Command, Request, Submission};
use weir::state::job::Principal;

use super::support::Home;
use super::{disk, row, status_kib};

const JOBS: u64 = 1_000_000;
const BATCH: u64 = 1_000;

pub fn run() {
    processes();
    steps();
}

fn submission() -> v1::Submission {
    let resources =
        v1::TaskResources { cpu_millis: 1_000, memory_bytes: 1 << 30, ..v1::TaskResources::default() };
    let program = v1::Program { command: vec!["true".to_owned()], ..v1::Program::default() };
    let group = v1::TaskGroup {
        resources: Some(resources),
        run: Some(v1::task_group::Run::Process(program)),
        ..v1::TaskGroup::default()
    };
    let spec = v1::JobSpec { groups: vec![group], ..v1::JobSpec::default() };
    v1::Submission { name_prefix: "wait".to_owned(), spec: Some(spec), ..v1::Submission::default() }
}

/// Measures a broker process without pools, in which all jobs wait.
fn processes() {
    let mut home = Home::new();
    let mut broker = home.start_broker("server");
    disk(&home);
    let pid = broker.0.id();
    let before = status_kib(pid, "VmRSS");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    runtime.block_on(async {
        let client = Client::new(&home.address, Some(&token)).expect("a client");
        for batch in 0..JOBS / BATCH {
            let jobs = vec![submission(); BATCH as usize];
            let request = v1::SubmitRequest { token: format!("scale-{batch}"), jobs, allow_pending: true };
            client.jobs().submit(request).await.expect("jobs are accepted");
        }
    });
    let after = status_kib(pid, "VmRSS");
    let peak = status_kib(pid, "VmHWM");
    let per_job = |kib: u64| (kib.saturating_sub(before) * 1_024) as f64 / JOBS as f64;
    row(
        "memory per waiting one-task job, of 1,000,000, resident",
        &format!("{:.0} B, peak {:.0} B while snapshots are written", per_job(after), per_job(peak)),
    );
    broker.kill();
    let started = Instant::now();
    let broker = home.start_broker("server");
    let serving = loop {
        let (code, ..) = home.run(&["get", "jobs", "--limit", "1"]);
        if code == 0 {
            break started.elapsed();
        }
        assert!(started.elapsed() < Duration::from_secs(120), "the broker does not restart");
    };
    row(
        "restart after kill -9 with 1,000,000 waiting jobs, to the first response",
        &format!("{:.1} s, {} MiB resident", serving.as_secs_f64(), status_kib(broker.0.id(), "VmRSS") >> 10),
    );
}

/// The broker's state machine alone, with a journal that completes writes without delay.
struct Machine {
    broker: Broker,
    now: u64,
    calls: u64,
    chunks: u64,
    written: bool,
    appended: Option<Revision>,
    longest: Duration,
}

impl Machine {
    fn new() -> Self {
        let now = 1_700_000_000_000;
        let mut broker = Broker::new(
            State::default(),
            Term(1),
            Random { writer_session: 7, journal: 7, key: 7 },
            Timestamp(now),
        );
        broker.step(Timestamp(now), Input::Wake);
        let mut machine = Self {
            broker,
            now,
            calls: 0,
            chunks: 0,
            written: false,
            appended: None,
            longest: Duration::ZERO,
        };
        machine.appended = Some(machine.broker.state().revision());
        machine.complete_writes();
        machine
    }

    fn step(&mut self, input: Input) {
        let started = Instant::now();
        let effects = self.broker.step(Timestamp(self.now), input);
        self.longest = self.longest.max(started.elapsed());
        for effect in effects {
            match effect {
                Effect::Append { events, .. } => {
                    self.appended = events.last().map(|event| event.revision);
                }
                Effect::WriteChunk { .. } => {
                    self.chunks += 1;
                    self.written = true;
                }
                _ => {}
            }
        }
    }

    /// Reports all requested writes as complete, until none is left.
    fn complete_writes(&mut self) {
        loop {
            self.now += 1;
            if let Some(through) = self.appended.take() {
                self.step(Input::Appended { through });
            } else if std::mem::take(&mut self.written) {
                self.step(Input::ChunkWritten);
            } else {
                return;
            }
        }
    }

    fn submit(&mut self, count: u64) {
        self.calls += 1;
        let submission = Submission {
            name: String::new(),
            name_prefix: "wait".to_owned(),
            queue: String::new(),
            allow_pending: true,
            held: false,
            spec: minimal(),
        };
        let command = Command::Submit { jobs: vec![submission; count as usize] };
        let request = Request { principal: Principal::Anonymous, token: None, command };
        self.step(Input::Request { call: CallId(self.calls), request });
    }
}

/// Measures the longest step while a snapshot of a million jobs is written and single jobs are submitted.
fn steps() {
    let mut machine = Machine::new();
    while (machine.broker.state().job_count() as u64) < JOBS {
        machine.submit(BATCH);
        machine.complete_writes();
    }
    let without_snapshot = {
        machine.longest = Duration::ZERO;
        for _ in 0..1_000 {
            machine.submit(1);
            machine.complete_writes();
        }
        machine.longest
    };
    machine.broker.begin_snapshot();
    (machine.longest, machine.chunks) = (Duration::ZERO, 0);
    let started = Instant::now();
    while machine.broker.state().is_snapshotting() {
        machine.submit(1);
        if let Some(through) = machine.appended.take() {
            machine.step(Input::Appended { through });
        }
        if std::mem::take(&mut machine.written) {
            machine.step(Input::ChunkWritten);
        }
        machine.now += 1;
    }
    row(
        "longest step during a snapshot of 1,000,000 jobs",
        &format!(
            "{:.2} ms ({:.2} ms without one); {} chunks in {:.1} s",
            machine.longest.as_secs_f64() * 1_000.0,
            without_snapshot.as_secs_f64() * 1_000.0,
            machine.chunks,
            started.elapsed().as_secs_f64()
        ),
    );
}
