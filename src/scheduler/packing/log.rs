//! Which buckets have got a new lowest node lately, of all or of a pool: what rankings read when they are
//! asked.
//!
//! A bucket stands in the log once, at its latest, and not at all while it is empty. So a ranking that is
//! asked rarely passes over what came up and was gone since, without a look at it: that is the most.

use std::collections::VecDeque;

use super::bucket::Outline;
use super::buckets::BucketId;
use crate::model::id::NodeRef;

/// Entries kept, for each bucket with nodes and at the least: a ranking that has missed some looks at all
/// buckets instead.
const LEN_PER_BUCKET: usize = 8;
const LEN_MIN: usize = 4_096;

/// A bucket with nodes, and what is known of it without a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    pub(super) id: BucketId,
    pub(super) outline: Outline,
}

/// A bucket that has got a new lowest node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted {
    pub(super) live: Live,
    /// The lowest of all. If it has left since, the lowest is a higher one: a lower one would be noted.
    pub(super) lowest: NodeRef,
}

/// In place of a bucket that stands further on, or is empty.
const GONE: BucketId = BucketId(u32::MAX);

#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<Noted>,
    /// The number of the latest entry; the first one's is 1.
    end: u64,
}

/// Where a bucket stands in the log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry(u64);

impl Log {
    /// Notes a bucket, which stands here so far; tells where it stands now.
    pub(super) fn push(&mut self, noted: Noted, so_far: Entry, live_count: usize) -> Entry {
        self.erase(so_far);
        self.entries.push_back(noted);
        self.end += 1;
        while self.entries.len() > (live_count * LEN_PER_BUCKET).max(LEN_MIN) {
            self.entries.pop_front();
        }
        Entry(self.end)
    }

    /// A bucket that stands here is empty.
    pub(super) fn erase(&mut self, entry: Entry) {
        let Some(from_end) = self.end.checked_sub(entry.0).map(|count| count as usize + 1) else { return };
        if let Some(at) = self.entries.len().checked_sub(from_end) {
            self.entries[at].live.id = GONE;
        }
    }

    /// As far as one has read who has read all.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Buckets noted after the first `read` entries, if none of those is lost.
    pub(super) fn since(&self, read: u64) -> Option<impl Iterator<Item = &Noted>> {
        let count = self.end.checked_sub(read)? as usize;
        let from = self.entries.len().checked_sub(count)?;
        Some(self.entries.range(from..).filter(|noted| noted.live.id != GONE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{NodeId, PoolId};
    use crate::scheduler::packing::bucket::{Bucket, ClassRef};

    fn noted(id: u32) -> Noted {
        let nothing = Bucket {
            class: ClassRef::new(Default::default()),
            free: Default::default(),
            devices: Vec::new(),
        };
        let live = Live { id: BucketId(id), outline: Outline::of_bucket(&nothing) };
        Noted { live, lowest: NodeRef { pool: PoolId(0), node: NodeId(id) } }
    }

    fn since(log: &Log, read: u64) -> Option<Vec<u32>> {
        Some(log.since(read)?.map(|noted| noted.live.id.0).collect())
    }

    #[test]
    fn a_bucket_is_told_once_at_its_latest_and_not_when_it_is_empty() {
        let mut log = Log::default();
        let mut entries: Vec<Entry> = (0..4).map(|id| log.push(noted(id), Entry::default(), 1)).collect();
        assert_eq!(since(&log, 2), Some(vec![2, 3]));
        entries[2] = log.push(noted(2), entries[2], 1);
        log.erase(entries[1]);
        assert_eq!(since(&log, 0), Some(vec![0, 3, 2]));
        log.push(noted(1), entries[1], 1);
        assert_eq!(since(&log, 0), Some(vec![0, 3, 2, 1]));
        assert_eq!(since(&log, log.end()), Some(Vec::new()));
    }

    #[test]
    fn whoever_has_missed_something_is_told_that() {
        let mut log = Log::default();
        let first = log.push(noted(0), Entry::default(), 1);
        for id in 1..=LEN_MIN as u32 {
            log.push(noted(id), Entry::default(), 1);
        }
        assert_eq!(since(&log, 0), None);
        assert_eq!(since(&log, 1).map(|ids| ids.len()), Some(LEN_MIN));
        // What is lost can't be erased, and nothing else is.
        log.erase(first);
        assert_eq!(since(&log, 1).map(|ids| ids.len()), Some(LEN_MIN));
    }
}
