//! Memory use of tasks by `/proc`, where the kernel doesn't enforce their limits.

use std::collections::{BTreeMap, BTreeSet};

use super::attempt::TrackedAttempt;
use super::process::{self, Stat};

/// How many parents of a process are followed: deeper processes are not counted.
const DEPTH_MAX: usize = 64;

/// How often the memory of a task must be found to be too much.
const LOOKS: usize = 2;

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
    let used = processes(attempts);
    let page = rustix::param::page_size() as u64;
    let over = limits.into_iter().filter_map(|((attempt, rank), limit_bytes)| {
        let processes = used.get(&(attempt.clone(), rank))?;
        let resident = processes.iter().map(|stat| stat.resident_pages).sum::<u64>() * page;
        // What several processes share is resident in each of them. Counting it once takes longer, so that is done
        // only if it matters.
        let mut used_bytes = resident;
        // Processes that end while the others are read make the shares of those larger, so one look may find too much.
        for _ in 0..LOOKS {
            if used_bytes <= limit_bytes {
                return None;
            }
            used_bytes = shared_once(processes, page);
        }
        (used_bytes > limit_bytes).then_some(Excess { attempt, rank, used_bytes, limit_bytes })
    });
    over.collect()
}

/// Sums the memory of processes, in which each page counts by the share of each process that has it. Of a process whose
/// shares can't be read, all counts that is resident now: nothing if it has ended.
fn shared_once(processes: &[Stat], page: u64) -> u64 {
    let resident = |pid| process::stat(pid).map_or(0, |stat| stat.resident_pages * page);
    let of = |stat: &Stat| process::proportional_bytes(stat.pid).unwrap_or_else(|| resident(stat.pid));
    processes.iter().map(of).sum()
}

/// The processes of each task, by attempt and rank, without its shim and the first process of its namespaces: their memory
/// is Weir's, not the job's.
fn processes(attempts: &BTreeMap<String, TrackedAttempt>) -> BTreeMap<(String, usize), Vec<Stat>> {
    let (mut found, mut mains) = (BTreeMap::<_, Vec<Stat>>::new(), BTreeMap::new());
    let mut shims = BTreeSet::new();
    for (name, attempt) in attempts {
        for task in attempt.tasks() {
            let owner = (name.clone(), task.rank());
            if attempt.request.isolation.is_some() {
                shims.insert(task.pid());
            }
            match task.group() {
                Some(group) => {
                    let stats = group.pids().into_iter().filter_map(process::stat);
                    found.insert(owner, stats.filter(|stat| !shims.contains(&stat.parent)).collect());
                }
                None => {
                    mains.insert(task.pid(), owner);
                }
            }
        }
    }
    if mains.is_empty() {
        return found;
    }
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let all: BTreeMap<i32, Stat> = process::all().into_iter().map(|stat| (stat.pid, stat)).collect();
    let is_weirs = |stat: &Stat| shims.contains(&stat.pid) || shims.contains(&stat.parent);
    for stat in all.values().filter(|stat| stat.resident_pages > 0 && !is_weirs(stat)) {
        if let Some(owner) = owner(stat, &all, &mains, own) {
            found.entry(owner).or_default().push(*stat);
        }
    }
    found
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
            return process::owner_of(at.pid).map(|owner| (owner.attempt, owner.rank));
        }
        at = all.get(&at.parent)?;
    }
    None
}
