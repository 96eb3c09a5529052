//! Processes that got away from their task's process group, where no control group holds them.
//!
//! One whose parent ended becomes the supervisor's child. Its environment names its attempt, unless
//! it was emptied: then it may be of any attempt that ran when it was first seen, and goes with the
//! last of them.

use std::collections::{BTreeMap, BTreeSet};

use super::attempt::TrackedAttempt;
use super::process;
use super::task::Task;

/// What is known of orphans.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// Those whose environment names their attempt.
    named: BTreeMap<String, Vec<i32>>,
    /// The others, by pid and start, with the attempts that they may be of.
    unnamed: BTreeMap<(i32, u64), BTreeSet<String>>,
}

impl Orphans {
    /// Looks at this process's children anew.
    pub(super) fn look(&mut self, attempts: &BTreeMap<String, TrackedAttempt>) {
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
            match process::owner_of(pid).filter(|(attempt, _)| attempts.contains_key(attempt)) {
                Some((attempt, _)) => self.named.entry(attempt).or_default().push(pid),
                None => {
                    let key = (pid, stat.started_ticks);
                    let known = self.unnamed.remove(&key);
                    let mut may_be = known.unwrap_or_else(|| attempts.keys().cloned().collect());
                    may_be.retain(|attempt| attempts.contains_key(attempt));
                    unnamed.insert(key, may_be);
                }
            }
        }
        self.unnamed = unnamed;
    }

    /// The orphans of an attempt, as of the last look.
    pub(super) fn of(&self, attempt: &str, adopted: bool) -> Vec<i32> {
        let mut pids = self.named.get(attempt).cloned().unwrap_or_default();
        let last = |may_be: &BTreeSet<String>| may_be.iter().all(|other| other == attempt);
        pids.extend(self.unnamed.iter().filter(|(_, may_be)| last(may_be)).map(|((pid, _), _)| *pid));
        if adopted {
            // Those of an earlier supervisor went to whoever adopts orphans of its own.
            let found = process::by_attempt().remove(attempt).unwrap_or_default();
            pids.extend(found.into_iter().map(|(stat, _)| stat.pid));
        }
        pids
    }
}
