//! Real processes among faults: what was acknowledged comes to its end, and nothing runs twice.
//!
//! Brokers, agents and supervisors are killed, paused and told to end; links are slow, cut, half-open
//! or reset; the broker's disk is full, read-only, or doesn't sync. Meanwhile clients submit, cancel
//! and read. Then all is well again, every job must end, and what the tasks wrote is checked.
//!
//! `cargo test` runs three short worlds at once. Others:
//!
//!     WEIR_CHAOS=600 cargo test --release --test chaos             for so many seconds, from a new seed
//!     WEIR_CHAOS_SEED=17 …                                         the short or the long run from this seed
//!     WEIR_CHAOS_SEED=disk-17-34 cargo test --test chaos           one world, as a failure names it

mod checker;
mod clients;
mod commands;
mod history;
mod keeper;
mod run;
mod schedule;
#[path = "../support/mod.rs"]
mod support;
mod work;
mod world;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use schedule::{Profile, Seed};
use work::Expected;

/// How long faults go on in a short run: as long as it takes to lose a pool.
const SHORT_SECONDS: u64 = 35;
/// The same in each world of a long run: two rounds of everything.
const LONG_SECONDS: u64 = 100;
/// Worlds at once in a long run.
const AT_ONCE: u64 = 3;

/// What a run without a seed of its own begins with.
const SHORT_SEED: u64 = 2;

/// The worlds of a short run.
fn short(number: u64) -> [Seed; 3] {
    [Profile::Silence, Profile::Disk, Profile::Crash].map(|profile| Seed {
        profile,
        number,
        seconds: SHORT_SECONDS,
    })
}

/// Runs worlds beside each other; tells how those failed that did.
fn run_all(seeds: &[Seed]) -> Vec<String> {
    let threads: Vec<_> = seeds
        .iter()
        .map(|seed| {
            let seed = *seed;
            (seed, std::thread::spawn(move || run::run(seed)))
        })
        .collect();
    let outcomes = threads.into_iter().map(|(seed, thread)| (seed, thread.join()));
    let failed = outcomes.filter_map(|(seed, outcome)| outcome.is_err().then_some(seed));
    failed.map(|seed| format!("WEIR_CHAOS_SEED={seed} cargo test --test chaos")).collect()
}

/// Worlds for so many seconds.
fn run_long(seconds: u64, first: u64) {
    let (begun, mut number) = (Instant::now(), first);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let of = |number: u64| {
            let profile = Profile::EACH[number as usize % Profile::EACH.len()];
            Seed { profile, number, seconds: LONG_SECONDS }
        };
        let seeds: Vec<Seed> = (number..number + AT_ONCE).map(of).collect();
        number += AT_ONCE;
        let failed = run_all(&seeds);
        assert!(failed.is_empty(), "again with:\n{}", failed.join("\n"));
    }
}

#[test]
fn acknowledged_jobs_end_and_nothing_runs_twice_though_everything_fails() {
    let seed = std::env::var("WEIR_CHAOS_SEED").ok();
    let number = seed.as_ref().and_then(|seed| seed.parse().ok());
    let seconds = std::env::var("WEIR_CHAOS").ok().map(|text| text.parse().expect("a number of seconds"));
    if let Some(world) = seed.as_ref().filter(|_| number.is_none()) {
        let world: Seed = world.parse().expect("WEIR_CHAOS_SEED is a number, or as a failure names it");
        assert_eq!(run_all(&[world]), Vec::<String>::new());
    } else if let Some(seconds) = seconds {
        run_long(seconds, number.unwrap_or_else(|| rand::random::<u64>() % 1_000_000));
    } else {
        let failed = run_all(&short(number.unwrap_or(SHORT_SEED)));
        assert!(failed.is_empty(), "again with:\n{}", failed.join("\n"));
    }
}

#[test]
fn short_run_has_every_kind_of_fault_and_of_job() {
    let drawn = short(SHORT_SEED).into_iter().flat_map(schedule::draw);
    let kinds: BTreeSet<_> = drawn
        .flat_map(|(_, writer_sessions)| writer_sessions)
        .map(|writer_session| writer_session.fault.kind())
        .collect();
    assert_eq!(kinds, BTreeSet::from(schedule::KINDS));
    let pieces = short(SHORT_SEED).into_iter().flat_map(|seed| work::draw(seed, Path::new("/history")));
    let what = pieces.map(|piece| (piece.expected, piece.requeues(), piece.spec.groups[0].gang)).collect();
    for expected in [Expected::Succeeds, Expected::Fails, Expected::IsCancelled] {
        let wanted = [(expected, false, false), (expected, true, false)];
        assert!(BTreeSet::from(wanted).is_subset(&what), "{wanted:?} is not in {what:?}");
    }
    assert!(
        what.contains(&(Expected::Succeeds, true, true)) && what.contains(&(Expected::Succeeds, false, true))
    );
}

#[test]
fn seed_is_read_as_it_is_written() {
    for seed in short(17) {
        assert_eq!(seed.to_string().parse(), Ok(seed));
    }
    for text in ["", "17", "disk-17", "flood-17-36", "disk-17-36-1", "disk--36"] {
        assert_eq!(text.parse::<Seed>(), Err(()), "{text}");
    }
}
