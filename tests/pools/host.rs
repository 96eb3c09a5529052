//! Conformance of the host backend: processes under a real supervisor.

use std::path::PathBuf;

use weir::clock::Clock;
use weir::model::id::AttemptId;
use weir::model::region::RegionCode;
use weir::model::spec::{Program, Run};
use weir::pools::host::isolation::{Mode, RunAs};
use weir::pools::host::{Host, LOG_MAX_BYTES, Settings};

use super::conformance::{self, Bench};
use super::support::{Home, WEIR, supervisor_of};

struct HostBench {
    home: Home,
}

impl HostBench {
    fn state(&self) -> PathBuf {
        // The folder in which a home searches for supervisors to end.
        self.home.path().join("local")
    }

    fn runs_file(&self) -> PathBuf {
        self.home.path().join("runs")
    }
}

impl Bench for HostBench {
    type Backend = Host;

    fn backend(&self, clock: Clock) -> Host {
        std::fs::create_dir_all(self.state()).expect("a state folder");
        let settings = Settings {
            program: WEIR.into(),
            pool: "local".to_owned(),
            region: RegionCode::default(),
            state: self.state(),
            cpus: Some(4),
            memory_bytes: Some(4 << 30),
            devices: Vec::new(),
            // A group that can't exist: the supervisors of other tests must not matter here.
            cgroup_parent: Some("/cgroup.procs/none".into()),
            log_max_bytes: LOG_MAX_BYTES,
            processes_max: 0,
            isolation: Mode::IfPossible,
            run_as: RunAs::Agent,
            hidden: Vec::new(),
        };
        Host::new(settings, clock)
    }

    fn run(&self, ms: u64, code: u8) -> Run {
        let (runs, seconds) = (self.runs_file().display().to_string(), ms as f64 / 1_000.0);
        let script = format!("echo $WEIR_ATTEMPT_ID >> {runs}; sleep {seconds} || exit 99; exit {code}");
        Run::Process(Program {
            command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
            ..Program::default()
        })
    }

    fn runs(&self, attempt: AttemptId) -> Option<usize> {
        let runs = std::fs::read_to_string(self.runs_file()).unwrap_or_default();
        Some(runs.lines().filter(|line| *line == attempt.to_string()).count())
    }

    /// A missing program ends with exit code 127, as in a shell: it is no failed start.
    fn unstartable(&self) -> Option<Run> {
        None
    }
}

#[test]
fn a_host_conforms() {
    let bench = HostBench { home: Home::new() };
    conformance::run_all(&bench);
}

#[test]
fn a_host_conforms_when_its_supervisor_is_killed() {
    use super::life::Life;
    use weir::model::attempt::OutcomeKind;

    let bench = HostBench { home: Home::new() };
    let mut life = Life::begin(|clock| bench.backend(clock));
    let start = life.order(1, |spec| spec.groups[0].run = bench.run(1_500, 0));
    let attempt = start.order.attempt;
    life.start(&start);
    life.until_running(attempt);
    let supervisor = supervisor_of(&bench.state()).expect("a supervisor");
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).expect("it is killed");
    life.wait_for("the backend is gone", |life| life.gone);
    life.kill();
    // A supervisor that adopts a task is not its parent: it observes the exit, but not the exit status.
    let mut life = Life::begin(|clock| bench.backend(clock));
    let kind = life.until_ended(attempt).kind;
    assert!(matches!(kind, OutcomeKind::Vanished | OutcomeKind::Succeeded), "{kind:?}");
    assert_eq!(bench.runs(attempt), Some(1));
    life.forget(attempt);
    life.kill();
}
