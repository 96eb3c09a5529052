//! Recent durable changes, for watches that start or resume at any revision.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::model::change::Change;
use crate::model::id::Revision;
use crate::model::limit::WATCH_BACKLOG_MAX;

/// The recent durable changes, and a notification of new ones. Shared by all watches.
#[derive(Debug)]
pub struct Watchers {
    backlog: Mutex<Backlog>,
    latest: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct Backlog {
    /// Newest last, at most [`WATCH_BACKLOG_MAX`].
    changes: VecDeque<(Revision, Change)>,
    /// `changes` has everything after this revision.
    floor: Revision,
}

/// The changes since a revision.
#[derive(Debug, PartialEq, Eq)]
pub enum Missed {
    /// These objects changed, each listed once.
    Changes(BTreeSet<Change>),
    /// The revision is older than the backlog: the watch must start with a list.
    Unknown,
}

impl Watchers {
    /// An empty backlog that begins after `floor`.
    pub fn new(floor: Revision) -> Self {
        let backlog = Backlog { changes: VecDeque::new(), floor };
        Self { backlog: Mutex::new(backlog), latest: watch::Sender::new(floor) }
    }

    /// Adds changes that have become durable, up to `through`, and notifies subscribers. The oldest changes
    /// beyond [`WATCH_BACKLOG_MAX`] are dropped.
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

    /// A receiver of the latest durable revision. It ends when the broker reopens its journal.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.latest.subscribe()
    }

    /// The changes after `from`.
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
    fn changes_since_a_revision_are_unknown_before_the_backlog() {
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
