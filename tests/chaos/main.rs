//! Fault injection on real processes: acknowledged jobs must end, and nothing may run twice.
//!
//! Brokers, agents and supervisors are killed, paused and terminated; links are slow, cut, half-open or
//! reset; the broker's disk is full, read-only, or fails to sync. Meanwhile clients submit, cancel and read.
//! Then all faults are healed, every job must end, and the lines that the tasks wrote are checked.
//!
//! `cargo test` does three short runs at once. Other runs:
//!
//!     WEIR_CHAOS=600 cargo test --release --test chaos             for 600 seconds, from a new seed
//!     WEIR_CHAOS_SEED=17 …                                         short or long runs from this seed
//!     WEIR_CHAOS_SEED=disk-17-34 cargo test --test chaos           one run, as printed by a failure

mod checker;
mod clients;
mod commands;
mod history;
mod managed;
mod run;
mod schedule;
#[path = "../support/mod.rs"]
mod support;
mod testbed;
mod work;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use schedule::{Profile, Seed};
use work::Expected;

/// Duration of the faults of a short run, in seconds: long enough to lose a pool.
const SHORT_SECONDS: u64 = 35;
/// Duration of the faults of a long run, in seconds: every kind of fault occurs about twice.
const LONG_SECONDS: u64 = 100;
/// Long runs at the same time.
const AT_ONCE: u64 = 3;

/// Seed of the short runs if none is given.
const SHORT_SEED: u64 = 2;

/// The seeds of the short runs.
fn short(number: u64) -> [Seed; 3] {
    [Profile::PoolsLost, Profile::Disk, Profile::Crash].map(|profile| Seed {
        profile,
        number,
        seconds: SHORT_SECONDS,
    })
}

/// Runs all seeds at the same time. Returns the commands that repeat the failed runs.
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

/// Starts long runs until `seconds` have passed.
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
        assert!(failed.is_empty(), "repeat with:\n{}", failed.join("\n"));
    }
}

#[test]
fn acknowledged_jobs_end_and_nothing_runs_twice_during_faults() {
    let seed = std::env::var("WEIR_CHAOS_SEED").ok();
    let number = seed.as_ref().and_then(|seed| seed.parse().ok());
    let seconds = std::env::var("WEIR_CHAOS").ok().map(|text| text.parse().expect("a number of seconds"));
    if let Some(testbed) = seed.as_ref().filter(|_| number.is_none()) {
        let testbed: Seed =
            testbed.parse().expect("WEIR_CHAOS_SEED is a number, or a seed as printed by a failure");
        assert_eq!(run_all(&[testbed]), Vec::<String>::new());
    } else if let Some(seconds) = seconds {
        run_long(seconds, number.unwrap_or_else(|| rand::random::<u64>() % 1_000_000));
    } else {
        let failed = run_all(&short(number.unwrap_or(SHORT_SEED)));
        assert!(failed.is_empty(), "repeat with:\n{}", failed.join("\n"));
    }
}

#[test]
fn short_run_has_every_kind_of_fault_and_of_job() {
    let schedules = short(SHORT_SEED).into_iter().flat_map(schedule::generate);
    let kinds: BTreeSet<_> =
        schedules.flat_map(|(_, faults)| faults).map(|timed| timed.fault.kind()).collect();
    assert_eq!(kinds, BTreeSet::from(schedule::KINDS));
    let plans = short(SHORT_SEED).into_iter().flat_map(|seed| work::generate(seed, Path::new("/history")));
    let what = plans.map(|plan| (plan.expected, plan.requeues(), plan.spec.groups[0].gang)).collect();
    for expected in [Expected::Succeeds, Expected::Fails, Expected::IsCancelled] {
        let wanted = [(expected, false, false), (expected, true, false)];
        assert!(BTreeSet::from(wanted).is_subset(&what), "{wanted:?} is not in {what:?}");
    }
    assert!(
        what.contains(&(Expected::Succeeds, true, true)) && what.contains(&(Expected::Succeeds, false, true))
    );
}

#[test]
fn printed_seed_parses_back() {
    for seed in short(17) {
        assert_eq!(seed.to_string().parse(), Ok(seed));
    }
    for text in ["", "17", "disk-17", "flood-17-36", "disk-17-36-1", "disk--36"] {
        assert_eq!(text.parse::<Seed>(), Err(()), "{text}");
    }
}
