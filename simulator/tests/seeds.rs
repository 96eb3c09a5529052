//! The simulator's seeds, as part of the ordinary tests: the promises hold, and the seeds are
//! hard enough to tell.

use simulator::sweep::sweep;
use simulator::world::World;

#[test]
fn two_hundred_seeds_keep_every_promise_and_reach_every_kind() {
    let totals = sweep(0, 200, || {}).unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(totals.seeds, 200);
    assert_eq!(totals.counts.unreached(), Vec::<&str>::new());
    assert!(totals.inputs_min >= 1_000, "a seed has only {} inputs", totals.inputs_min);
    assert!(totals.crashes_min.iter().all(|crashes| *crashes >= 2), "crashes: {:?}", totals.crashes_min);
}

#[test]
fn seed_run_twice_gives_the_same_journal() {
    let run = |seed| World::run(seed, false).unwrap_or_else(|violation| panic!("{violation}"));
    let (first, second, other) = (run(11), run(11), run(12));
    assert_eq!(
        (first.digest, first.inputs, first.virtual_ms),
        (second.digest, second.inputs, second.virtual_ms)
    );
    assert_ne!(first.digest, other.digest);
}
