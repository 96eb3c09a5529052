//! Seeds of the simulator in the ordinary tests: no invariant is violated, and the seeds contain enough
//! faults and inputs for that to mean something.

use simulator::sweep::{failure_line, sweep};
use simulator::world::{Schedule, World};

#[test]
fn two_hundred_seeds_violate_no_invariant_and_reach_every_kind() {
    let totals =
        sweep(0, 200, || true).unwrap_or_else(|violation| panic!("{}", failure_line(&violation, "")));
    assert_eq!(totals.seeds, 200);
    assert_eq!(totals.counts.unreached(), Vec::<&str>::new());
    assert!(totals.inputs_min >= 1_000, "a seed has only {} inputs", totals.inputs_min);
    assert!(totals.crashes_min.iter().all(|crashes| *crashes >= 2), "crashes: {:?}", totals.crashes_min);
}

#[test]
fn seed_run_twice_writes_the_same_journal() {
    let run = |seed| World::run(seed, false).unwrap_or_else(|violation| panic!("{violation:?}"));
    let (first, second, other) = (run(11), run(11), run(12));
    assert_eq!(
        (first.digest, first.inputs, first.virtual_ms),
        (second.digest, second.inputs, second.virtual_ms)
    );
    assert_ne!(first.digest, other.digest);
}

#[test]
fn seed_without_its_faults_runs_the_same_environment_without_crashes() {
    let whole = World::schedule_of(11);
    let fault_free = Schedule { faults: Vec::new(), ..whole };
    let report = World::run_with(11, false, fault_free).unwrap_or_else(|violation| panic!("{violation:?}"));
    assert_eq!((report.broker_crashes, report.agent_crashes), (0, 0));
}
