//! Memory use of tasks by `/proc`, where the kernel doesn't enforce their limits.

use std::collections::BTreeMap;

use super::attempt::TrackedAttempt;
use super::process::{self, Stat};

/// How many parents of a process are followed: deeper processes are not counted.
const DEPTH_MAX: usize = 64;

/// A task that uses more memory than it requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Excess {
    pub(super) attempt: String,
    pub(super) rank: usize,
    pub(super) used_bytes: u64,
    pub(super) limit_bytes: u64,
}

/// Finds the tasks that use more memory than they requested, among attempts that are not over.
pub(super) fn excesses(attempts: &BTreeMap<String, TrackedAttempt>) -> Vec<Excess> {
    let mut limits = BTreeMap::new();
    for (name, attempt) in attempts.iter().filter(|(_, attempt)| !attempt.is_over()) {
        for rank in 0..attempt.request.tasks.len() {
            let limit_bytes = attempt.request.group_of(rank).map_or(0, |group| group.memory_max_bytes);
            if limit_bytes > 0 {
                limits.insert((name.clone(), rank), limit_bytes);
            }
        }
    }
    if limits.is_empty() {
        return Vec::new();
    }
    let used = used_bytes(attempts);
    let over = limits.into_iter().filter_map(|((attempt, rank), limit_bytes)| {
        let used_bytes = used.get(&(attempt.clone(), rank)).copied().filter(|used| *used > limit_bytes)?;
        Some(Excess { attempt, rank, used_bytes, limit_bytes })
    });
    over.collect()
}

/// Sums the resident memory of each task's processes, by attempt and rank.
fn used_bytes(attempts: &BTreeMap<String, TrackedAttempt>) -> BTreeMap<(String, usize), u64> {
    let page = rustix::param::page_size() as u64;
    let (mut used, mut mains) = (BTreeMap::new(), BTreeMap::new());
    for (name, attempt) in attempts {
        for task in attempt.tasks() {
            let owner = (name.clone(), task.rank());
            match task.group() {
                Some(group) => {
                    let pages = group.pids().into_iter().filter_map(process::stat).map(|s| s.resident_pages);
                    used.insert(owner, pages.sum::<u64>() * page);
                }
                None => {
                    mains.insert(task.pid(), owner);
                }
            }
        }
    }
    if mains.is_empty() {
        return used;
    }
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let all: BTreeMap<i32, Stat> = process::all().into_iter().map(|stat| (stat.pid, stat)).collect();
    for stat in all.values().filter(|stat| stat.resident_pages > 0) {
        if let Some(owner) = owner(stat, &all, &mains, own) {
            *used.entry(owner).or_default() += stat.resident_pages * page;
        }
    }
    used
}

/// Finds the task that a process belongs to: by its process group, its ancestors, or, if those have ended,
/// its environment.
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
