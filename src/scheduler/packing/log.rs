//! The change log of the buckets: which have a new lowest node, of all nodes or of a pool. Rankings read it
//! when they are queried.
//!
//! A bucket has at most one entry, its latest, and none while it is empty. Most buckets that occur between
//! two queries of a demand are empty again by the second one, so a ranking that is rarely queried skips them
//! without reading them.

use std::collections::VecDeque;

use super::bucket::Bounds;
use super::bucket::BucketId;
use crate::model::id::NodeRef;

/// Entries in the log: so many for each bucket with nodes, and at least [`LEN_MIN`]. A ranking that has
/// missed some reads all buckets instead.
const LEN_PER_BUCKET: usize = 8;
const LEN_MIN: usize = 4_096;

/// A bucket with nodes, with its bounds, which reject it without reading it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LiveBucket {
    pub(super) id: BucketId,
    pub(super) bounds: Bounds,
}

/// A bucket that has a new lowest node.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogEntry {
    pub(super) live: LiveBucket,
    /// The lowest of its nodes. If it has left the bucket since, the lowest is now a higher one: a lower one
    /// would have made a new entry.
    pub(super) lowest: NodeRef,
}

/// Marks an entry whose bucket has a later entry, or is empty.
const ERASED: BucketId = BucketId(u32::MAX);

#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<LogEntry>,
    /// The number of the latest entry; the first one has number 1.
    end: u64,
}

/// The number of a bucket's entry in the log; 0 if it has none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LogPosition(u64);

impl Log {
    /// Appends an entry, erases the bucket's earlier one, and returns the new position.
    pub(super) fn push(&mut self, entry: LogEntry, earlier: LogPosition, live_count: usize) -> LogPosition {
        self.erase(earlier);
        self.entries.push_back(entry);
        self.end += 1;
        while self.entries.len() > (live_count * LEN_PER_BUCKET).max(LEN_MIN) {
            self.entries.pop_front();
        }
        LogPosition(self.end)
    }

    /// Erases an entry, if it is still in the log.
    pub(super) fn erase(&mut self, position: LogPosition) {
        let Some(from_end) = self.end.checked_sub(position.0).map(|count| count as usize + 1) else { return };
        if let Some(at) = self.entries.len().checked_sub(from_end) {
            self.entries[at].live.id = ERASED;
        }
    }

    /// Returns the number of the latest entry: the cursor of a reader that has read all.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Returns the entries after number `read`, without erased ones; `None` if some of them are no longer in
    /// the log.
    pub(super) fn since(&self, read: u64) -> Option<impl Iterator<Item = &LogEntry>> {
        let count = self.end.checked_sub(read)? as usize;
        let from = self.entries.len().checked_sub(count)?;
        Some(self.entries.range(from..).filter(|entry| entry.live.id != ERASED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{NodeId, PoolId};
    use crate::scheduler::packing::bucket::{Bucket, ClassRef};

    fn entry(id: u32) -> LogEntry {
        let nothing = Bucket {
            class: ClassRef::new(Default::default()),
            free: Default::default(),
            devices: Vec::new(),
        };
        let live = LiveBucket { id: BucketId(id), bounds: Bounds::of_bucket(&nothing) };
        LogEntry { live, lowest: NodeRef { pool: PoolId(0), node: NodeId(id) } }
    }

    fn since(log: &Log, read: u64) -> Option<Vec<u32>> {
        Some(log.since(read)?.map(|entry| entry.live.id.0).collect())
    }

    #[test]
    fn bucket_has_only_its_latest_entry_and_none_while_it_is_empty() {
        let mut log = Log::default();
        let mut positions: Vec<LogPosition> =
            (0..4).map(|id| log.push(entry(id), LogPosition::default(), 1)).collect();
        assert_eq!(since(&log, 2), Some(vec![2, 3]));
        positions[2] = log.push(entry(2), positions[2], 1);
        log.erase(positions[1]);
        assert_eq!(since(&log, 0), Some(vec![0, 3, 2]));
        log.push(entry(1), positions[1], 1);
        assert_eq!(since(&log, 0), Some(vec![0, 3, 2, 1]));
        assert_eq!(since(&log, log.end()), Some(Vec::new()));
    }

    #[test]
    fn reader_that_has_missed_entries_gets_none() {
        let mut log = Log::default();
        let first = log.push(entry(0), LogPosition::default(), 1);
        for id in 1..=LEN_MIN as u32 {
            log.push(entry(id), LogPosition::default(), 1);
        }
        assert_eq!(since(&log, 0), None);
        assert_eq!(since(&log, 1).map(|ids| ids.len()), Some(LEN_MIN));
        // An entry that is no longer in the log can't be erased, and no other entry is erased instead.
        log.erase(first);
        assert_eq!(since(&log, 1).map(|ids| ids.len()), Some(LEN_MIN));
    }
}
