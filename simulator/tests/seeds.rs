//! The simulator's seeds, as part of the ordinary tests: the promises hold, and the seeds are
//! hard enough to tell.

use simulator::sweep::{failure_line, sweep};
use simulator::world::{Schedule, World};

#[test]
fn two_hundred_seeds_keep_every_promise_and_reach_every_kind() {
    let totals =
        sweep(0, 200, || true).unwrap_or_else(|violation| panic!("{}", failure_line(&violation, "")));
    assert_eq!(totals.seeds, 200);
    assert_eq!(totals.counts.unreached(), Vec::<&str>::new());
    assert!(totals.inputs_min >= 1_000, "a seed has only {} inputs", totals.inputs_min);
    assert!(totals.crashes_min.iter().all(|crashes| *crashes >= 2), "crashes: {:?}", totals.crashes_min);
}

#[test]
fn seed_run_twice_gives_the_same_journal() {
    let run = |seed| World::run(seed, false).unwrap_or_else(|violation| panic!("{violation:?}"));
    let (first, second, other) = (run(11), run(11), run(12));
    assert_eq!(
        (first.digest, first.inputs, first.virtual_ms),
        (second.digest, second.inputs, second.virtual_ms)
    );
    assert_ne!(first.digest, other.digest);
}

#[test]
fn seed_without_its_faults_is_another_run_of_the_same_world() {
    let whole = World::schedule_of(11);
    let calm = Schedule { faults: Vec::new(), ..whole };
    let report = World::run_with(11, false, calm).unwrap_or_else(|violation| panic!("{violation:?}"));
    assert_eq!((report.broker_crashes, report.agent_crashes), (0, 0));
}
