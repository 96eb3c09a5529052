//! The table of buckets: each kept once, numbered, with the nodes that are in it now.
//!
//! Buckets without nodes stay for a while: the same ones come up again and again, and what was
//! found out about them is still true. The longest empty go first when there are too many.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::bucket::{Bucket, Outline};
use super::log::{Entry, Live, Log, Noted};
use crate::model::id::{NodeId, NodeRef, PoolId};

/// How many empty buckets are remembered, at the most; one that was emptied several times counts as often.
#[derive(Clone, Copy, Debug)]
struct EmptyMax {
    least: usize,
    per_node: usize,
    /// Forgotten at once: some milliseconds' work, as each of up to a thousand rankings looks for each.
    at_a_time: usize,
}

/// As many as nodes come by while a cluster fills, and no fewer than a thousand nodes come by in a busy
/// hour. With all that is known about them they take a few hundred bytes each, where most fit few demands.
const EMPTY_MAX: EmptyMax = EmptyMax { least: 1 << 17, per_node: 12, at_a_time: 1_024 };

/// A bucket's number, reused after it has been forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BucketId(pub(super) u32);

/// A number that tells when it has come to mean another bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) id: BucketId,
    /// Never zero, so that one that may not be known takes no more room: there are millions.
    generation: NonZeroU32,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) bucket: Arc<Bucket>,
    pub(super) nodes: BTreeSet<NodeRef>,
    generation: NonZeroU32,
    /// Its place among those with nodes.
    live_at: u32,
    /// Where it stands in the log.
    noted: Entry,
    /// Times it was put into the queue of empty ones and not taken out.
    queued: u32,
}

impl Slot {
    /// The nodes of one pool, the lowest first.
    pub(super) fn nodes_in(&self, pool: PoolId) -> impl Iterator<Item = NodeRef> {
        let all = NodeRef { pool, node: NodeId(0) }..=NodeRef { pool, node: NodeId(u32::MAX) };
        self.nodes.range(all).copied()
    }
}

#[derive(Debug)]
pub(super) struct Buckets {
    ids: FxHashMap<Arc<Bucket>, BucketId>,
    slots: Vec<Slot>,
    /// Those with nodes, in no order.
    live: Vec<Live>,
    log: Log,
    /// Those that were empty once, the longest ago first. Some have nodes again.
    empty: VecDeque<BucketId>,
    unused: Vec<BucketId>,
    empty_max: EmptyMax,
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            ids: FxHashMap::default(),
            slots: Vec::new(),
            live: Vec::new(),
            log: Log::default(),
            empty: VecDeque::new(),
            unused: Vec::new(),
            empty_max: EMPTY_MAX,
        }
    }
}

impl Buckets {
    #[cfg(test)]
    pub(super) fn set_empty_max(&mut self, least: usize) {
        self.empty_max = EmptyMax { least, per_node: 0, at_a_time: 2 };
    }

    /// The number of a bucket, which gets one if it has none.
    pub(super) fn intern(&mut self, bucket: Bucket) -> BucketId {
        if let Some(id) = self.ids.get(&bucket) {
            return *id;
        }
        let bucket = Arc::new(bucket);
        let id = match self.unused.pop() {
            Some(id) => {
                let slot = &mut self.slots[id.0 as usize];
                slot.bucket = bucket.clone();
                id
            }
            None => {
                let slot = Slot {
                    bucket: bucket.clone(),
                    nodes: BTreeSet::new(),
                    generation: NonZeroU32::MIN,
                    live_at: 0,
                    noted: Entry::default(),
                    queued: 0,
                };
                self.slots.push(slot);
                BucketId(self.slots.len() as u32 - 1)
            }
        };
        self.ids.insert(bucket, id);
        self.queue(id);
        id
    }

    pub(super) fn slot(&self, id: BucketId) -> &Slot {
        &self.slots[id.0 as usize]
    }

    pub(super) fn known(&self, id: BucketId) -> Known {
        Known { id, generation: self.slot(id).generation }
    }

    /// The bucket is still the one that was known.
    pub(super) fn is_known(&self, known: Known) -> bool {
        self.slot(known.id).generation == known.generation
    }

    /// Buckets with nodes.
    pub(super) fn live(&self) -> &[Live] {
        &self.live
    }

    /// Numbers given so far.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn put(&mut self, id: BucketId, node: NodeRef) {
        let Self { slots, live, log, .. } = self;
        let slot = &mut slots[id.0 as usize];
        let first = slot.nodes.first().copied();
        if first.is_none() {
            slot.live_at = live.len() as u32;
            live.push(Live { id, outline: Outline::of_bucket(&slot.bucket) });
        }
        slot.nodes.insert(node);
        // Of another pool it may be the lowest to a demand that names pools.
        if first.is_none_or(|first| node < first || node.pool != first.pool) {
            let lowest = first.map_or(node, |first| first.min(node));
            let noted = Noted { live: live[slot.live_at as usize], lowest };
            slot.noted = log.push(noted, slot.noted, live.len());
        }
    }

    pub(super) fn remove(&mut self, id: BucketId, node: NodeRef) {
        let Self { slots, live, log, .. } = self;
        let slot = &mut slots[id.0 as usize];
        slot.nodes.remove(&node);
        if !slot.nodes.is_empty() {
            return;
        }
        log.erase(slot.noted);
        let at = slot.live_at as usize;
        live.swap_remove(at);
        if let Some(moved) = live.get(at).copied() {
            slots[moved.id.0 as usize].live_at = at as u32;
        }
        self.queue(id);
    }

    fn queue(&mut self, id: BucketId) {
        self.slots[id.0 as usize].queued += 1;
        self.empty.push_back(id);
    }

    /// Forgets those that have been empty for longest, if there are too many, and tells which: many at a
    /// time, since each ranking is told.
    pub(super) fn evict(&mut self, node_count: usize) -> Vec<BucketId> {
        let mut evicted = Vec::new();
        let EmptyMax { least, per_node, at_a_time } = self.empty_max;
        if self.empty.len() < least.max(node_count * per_node) + at_a_time {
            return evicted;
        }
        for id in self.empty.drain(..at_a_time) {
            let slot = &mut self.slots[id.0 as usize];
            slot.queued -= 1;
            // It was filled since, or emptied once more and stands further back, too.
            if slot.nodes.is_empty() && slot.queued == 0 {
                slot.generation = slot.generation.saturating_add(1);
                self.ids.remove(&slot.bucket);
                evicted.push(id);
            }
        }
        // New ones get numbers that stand side by side.
        evicted.sort_unstable_by_key(|id| std::cmp::Reverse(*id));
        self.unused.extend(&evicted);
        evicted
    }
}
