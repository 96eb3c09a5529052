//! Orphans: processes that left their task's process group, where no control group contains them.
//!
//! If the parent of such a process ends, the process becomes a child of the supervisor. Its environment
//! names its attempt. If the environment was cleared, the process may belong to any attempt that ran
//! when it was first observed; it is killed with the last of them.

use std::collections::{BTreeMap, BTreeSet};

use super::attempt::TrackedAttempt;
use super::process;
use super::task::Task;

/// The orphans at the last poll.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// Orphans whose environment names their attempt.
    named: BTreeMap<String, Vec<i32>>,
    /// The others, by pid and start time, with the attempts that they may belong to.
    unnamed: BTreeMap<(i32, u64), BTreeSet<String>>,
}

impl Orphans {
    /// Reads the children of this process again.
    pub(super) fn poll(&mut self, attempts: &BTreeMap<String, TrackedAttempt>) {
        self.named.clear();
        let children = process::own_children();
        if children.is_empty() {
            return self.unnamed.clear();
        }
        let tasks = attempts.values().flat_map(TrackedAttempt::tasks);
        let mains: BTreeSet<i32> = tasks.filter(|task| task.exit().is_none()).map(Task::pid).collect();
        let mut unnamed = BTreeMap::new();
        for pid in children.into_iter().filter(|pid| !mains.contains(pid)) {
            let Some(stat) = process::stat(pid).filter(|stat| !stat.dead) else { continue };
            match process::owner_of(pid).filter(|owner| attempts.contains_key(&owner.attempt)) {
                Some(owner) => self.named.entry(owner.attempt).or_default().push(pid),
                None => {
                    let key = (pid, stat.started_ticks);
                    let earlier = self.unnamed.remove(&key);
                    let mut candidates = earlier.unwrap_or_else(|| attempts.keys().cloned().collect());
                    candidates.retain(|attempt| attempts.contains_key(attempt));
                    unnamed.insert(key, candidates);
                }
            }
        }
        self.unnamed = unnamed;
    }

    /// Returns the pids of an attempt's orphans at the last poll.
    ///
    /// For an `adopted` attempt it also searches `/proc` now.
    pub(super) fn of(&self, attempt: &str, adopted: bool) -> Vec<i32> {
        let mut pids = self.named.get(attempt).cloned().unwrap_or_default();
        let last = |candidates: &BTreeSet<String>| candidates.iter().all(|other| other == attempt);
        let unnamed = self.unnamed.iter().filter(|(_, candidates)| last(candidates));
        pids.extend(unnamed.map(|((pid, _), _)| *pid));
        if adopted {
            // When the earlier supervisor ended, its orphans became children of another process, by
            // default of the system's first one.
            let found = process::by_attempt().remove(attempt).unwrap_or_default();
            pids.extend(found.into_iter().map(|(stat, _)| stat.pid));
        }
        pids
    }
}
