//! Memory that tasks hold, counted from outside, where the kernel doesn't enforce a limit.

use std::collections::BTreeMap;

use super::attempt::TrackedAttempt;
use super::process::{self, Stat};

/// How many parents are followed: deeper trees are counted without their deepest.
const DEPTH_MAX: usize = 64;

/// A task that holds more than it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Excess {
    pub(super) attempt: String,
    pub(super) rank: usize,
    pub(super) held_bytes: u64,
    pub(super) most_bytes: u64,
}

/// Finds the tasks that hold more memory than they asked for.
pub(super) fn excesses(attempts: &BTreeMap<String, TrackedAttempt>) -> Vec<Excess> {
    let mut limits = BTreeMap::new();
    for (name, attempt) in attempts.iter().filter(|(_, attempt)| !attempt.is_over()) {
        for rank in 0..attempt.launch.tasks.len() {
            let most_bytes = attempt.launch.group_of(rank).map_or(0, |group| group.memory_max_bytes);
            if most_bytes > 0 {
                limits.insert((name.clone(), rank), most_bytes);
            }
        }
    }
    if limits.is_empty() {
        return Vec::new();
    }
    let held = held_bytes(attempts);
    let over = limits.into_iter().filter_map(|((attempt, rank), most_bytes)| {
        let held_bytes = held.get(&(attempt.clone(), rank)).copied().filter(|held| *held > most_bytes)?;
        Some(Excess { attempt, rank, held_bytes, most_bytes })
    });
    over.collect()
}

fn held_bytes(attempts: &BTreeMap<String, TrackedAttempt>) -> BTreeMap<(String, usize), u64> {
    let page = rustix::param::page_size() as u64;
    let (mut held, mut mains) = (BTreeMap::new(), BTreeMap::new());
    for (name, attempt) in attempts {
        for task in attempt.tasks() {
            let owner = (name.clone(), task.rank());
            match task.group() {
                Some(group) => {
                    let pages = group.pids().into_iter().filter_map(process::stat).map(|s| s.resident_pages);
                    held.insert(owner, pages.sum::<u64>() * page);
                }
                None => {
                    mains.insert(task.pid(), owner);
                }
            }
        }
    }
    if mains.is_empty() {
        return held;
    }
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let all: BTreeMap<i32, Stat> = process::all().into_iter().map(|stat| (stat.pid, stat)).collect();
    for stat in all.values().filter(|stat| stat.resident_pages > 0) {
        if let Some(owner) = owner(stat, &all, &mains, own) {
            *held.entry(owner).or_default() += stat.resident_pages * page;
        }
    }
    held
}

/// The task that a process belongs to: by its group, its ancestors, or, if those are gone, its
/// environment.
fn owner(
    stat: &Stat,
    all: &BTreeMap<i32, Stat>,
    mains: &BTreeMap<i32, (String, usize)>,
    own: i32,
) -> Option<(String, usize)> {
    let mut at = stat;
    for _ in 0..DEPTH_MAX {
        if let Some(owner) = mains.get(&at.group).or_else(|| mains.get(&at.pid)) {
            return Some(owner.clone());
        }
        if at.parent == own {
            return process::owner_of(at.pid);
        }
        at = all.get(&at.parent)?;
    }
    None
}
