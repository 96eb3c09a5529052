//! Conformance of the simulated backend: no task runs, and all other rules must hold.

use weir::clock::Clock;
use weir::model::id::AttemptId;
use weir::model::spec::{JobSpec, Program, Run, Simulate};
use weir::pools::simulated::{NodeKind, Settings, Simulated, fleet};

use super::conformance::{self, Bench};

struct SimulatedBench {
    state: tempfile::TempDir,
}

impl Bench for SimulatedBench {
    type Backend = Simulated;

    fn backend(&self, clock: Clock) -> Simulated {
        let kind = NodeKind {
            count: 2,
            prefix: "node".to_owned(),
            cpus: 8,
            memory_gib: 32,
            device: String::new(),
            devices: 0,
        };
        let settings = Settings {
            pool: "sim".to_owned(),
            nodes: fleet(&[kind]),
            state: Some(self.state.path().to_owned()),
            speedup_millis: 1_000,
        };
        Simulated::new(settings, clock)
    }

    fn run(&self, _ms: u64, _code: u8) -> Run {
        Run::Process(Program { command: vec!["true".to_owned()], ..Program::default() })
    }

    fn simulate(&self, spec: &mut JobSpec, ms: u64, code: u8) {
        spec.groups[0].simulate = Some(Simulate { duration_ms: ms, exit_code: code });
    }

    fn runs(&self, _attempt: AttemptId) -> Option<usize> {
        None
    }

    fn unstartable(&self) -> Option<Run> {
        None
    }
}

#[test]
fn a_simulated_pool_conforms() {
    let state = tempfile::Builder::new().prefix("weir").tempdir_in("/tmp").expect("a temp folder");
    conformance::run_all(&SimulatedBench { state });
}
