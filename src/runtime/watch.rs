//! What has changed lately, for watchers that come and go.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::model::change::Change;
use crate::model::id::Revision;
use crate::model::limit::WATCH_BACKLOG_MAX;

/// Durable changes, newest last; old ones are dropped.
#[derive(Debug)]
pub struct Watchers {
    backlog: Mutex<Backlog>,
    latest: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct Backlog {
    changes: VecDeque<(Revision, Change)>,
    /// Everything after this is in `changes`.
    floor: Revision,
}

/// What a watcher missed.
#[derive(Debug, PartialEq, Eq)]
pub enum Missed {
    /// These things changed, each named once.
    Changes(BTreeSet<Change>),
    /// Too long ago to tell.
    Unknown,
}

impl Watchers {
    /// Knows of nothing before `floor`.
    pub fn new(floor: Revision) -> Self {
        let backlog = Backlog { changes: VecDeque::new(), floor };
        Self { backlog: Mutex::new(backlog), latest: watch::Sender::new(floor) }
    }

    /// Takes in changes that have become durable, up to `through`.
    pub fn push(&self, changes: Vec<(Revision, Change)>, through: Revision) {
        let mut backlog = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        backlog.changes.extend(changes);
        while backlog.changes.len() > WATCH_BACKLOG_MAX {
            if let Some((revision, _)) = backlog.changes.pop_front() {
                backlog.floor = revision;
            }
        }
        drop(backlog);
        self.latest.send_replace(through);
    }

    /// Tells when there is something new.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.latest.subscribe()
    }

    /// What changed after `from`.
    pub fn since(&self, from: Revision) -> Missed {
        let backlog = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        if from < backlog.floor {
            return Missed::Unknown;
        }
        let start = backlog.changes.partition_point(|(revision, _)| *revision <= from);
        Missed::Changes(backlog.changes.range(start..).map(|(_, change)| *change).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::JobId;

    #[test]
    fn watcher_gets_what_it_missed_or_is_told_that_it_is_unknown() {
        let watchers = Watchers::new(Revision(10));
        watchers.push(
            vec![(Revision(11), Change::Job(JobId(1))), (Revision(12), Change::Job(JobId(2)))],
            Revision(12),
        );
        assert_eq!(watchers.since(Revision(9)), Missed::Unknown);
        assert_eq!(watchers.since(Revision(11)), Missed::Changes([Change::Job(JobId(2))].into()));
        assert_eq!(watchers.since(Revision(12)), Missed::Changes(BTreeSet::new()));
    }
}
