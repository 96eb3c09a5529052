//! The table of buckets: each is stored once, under an id, with the nodes that are in it now.
//!
//! Buckets without nodes stay for a while: the same ones occur again and again, and what is cached about them
//! is still true. When there are too many, those that have been empty for longest are evicted.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::bucket::{Bounds, Bucket, BucketId};
use super::log::{LiveBucket, Log, LogEntry, LogPosition};
use crate::model::id::{NodeId, NodeRef, PoolId};

/// How many empty buckets are stored, at most; a bucket that was emptied several times counts as often.
#[derive(Clone, Copy, Debug)]
struct EmptyMax {
    /// The bound in small clusters.
    least: usize,
    per_node: usize,
    /// Evicted at once: some milliseconds of work, as each of up to a thousand rankings drops each of them.
    at_a_time: usize,
}

/// As many buckets as the nodes pass through while a cluster fills, and no fewer than a thousand nodes pass
/// through in a busy hour. With all that is cached about it, a bucket takes a few hundred bytes where most
/// fit few demands.
const EMPTY_MAX: EmptyMax = EmptyMax { least: 1 << 17, per_node: 12, at_a_time: 1_024 };

/// A bucket id with its generation: detects that the id was reused for another bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BucketRef {
    pub(super) id: BucketId,
    /// Never zero, so that an `Option` of it takes no more memory: there are millions.
    generation: NonZeroU32,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) bucket: Arc<Bucket>,
    pub(super) nodes: BTreeSet<NodeRef>,
    generation: NonZeroU32,
    /// Its index in `Buckets::live`, while it has nodes.
    live_at: u32,
    /// Its position in the log.
    log_position: LogPosition,
    /// How often it is in `Buckets::empty`.
    queued: u32,
}

impl Slot {
    /// Returns the nodes of one pool, the lowest first.
    pub(super) fn nodes_in(&self, pool: PoolId) -> impl Iterator<Item = NodeRef> {
        let all = NodeRef { pool, node: NodeId(0) }..=NodeRef { pool, node: NodeId(u32::MAX) };
        self.nodes.range(all).copied()
    }
}

#[derive(Debug)]
pub(super) struct Buckets {
    ids: FxHashMap<Arc<Bucket>, BucketId>,
    slots: Vec<Slot>,
    /// Buckets with nodes, in no order.
    live: Vec<LiveBucket>,
    log: Log,
    /// Buckets in the order in which they became empty. Some have nodes again.
    empty: VecDeque<BucketId>,
    /// Ids of evicted buckets, to be reused from the end.
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

    /// Returns the id of a bucket and inserts the bucket if it is new.
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
                    log_position: LogPosition::default(),
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

    /// Returns a reference that stays comparable after the id is reused.
    pub(super) fn reference(&self, id: BucketId) -> BucketRef {
        BucketRef { id, generation: self.slot(id).generation }
    }

    /// Returns whether the id still stands for the same bucket.
    pub(super) fn is_current(&self, reference: BucketRef) -> bool {
        self.slot(reference.id).generation == reference.generation
    }

    /// Returns the buckets with nodes, in no order.
    pub(super) fn live(&self) -> &[LiveBucket] {
        &self.live
    }

    /// Ids given so far.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    /// Adds a node to a bucket.
    pub(super) fn put(&mut self, id: BucketId, node: NodeRef) {
        let Self { slots, live, log, .. } = self;
        let slot = &mut slots[id.0 as usize];
        let first = slot.nodes.first().copied();
        if first.is_none() {
            slot.live_at = live.len() as u32;
            live.push(LiveBucket { id, bounds: Bounds::of_bucket(&slot.bucket) });
        }
        slot.nodes.insert(node);
        // A node of another pool may be the lowest one for a demand that names pools.
        if first.is_none_or(|first| node < first || node.pool != first.pool) {
            let lowest = first.map_or(node, |first| first.min(node));
            let entry = LogEntry { live: live[slot.live_at as usize], lowest };
            slot.log_position = log.push(entry, slot.log_position, live.len());
        }
    }

    /// Removes a node from a bucket.
    pub(super) fn remove(&mut self, id: BucketId, node: NodeRef) {
        let Self { slots, live, log, .. } = self;
        let slot = &mut slots[id.0 as usize];
        slot.nodes.remove(&node);
        if !slot.nodes.is_empty() {
            return;
        }
        log.erase(slot.log_position);
        let at = slot.live_at as usize;
        live.swap_remove(at);
        if let Some(moved) = live.get(at).copied() {
            slots[moved.id.0 as usize].live_at = at as u32;
        }
        self.queue(id);
    }

    /// Queues an empty bucket for eviction.
    fn queue(&mut self, id: BucketId) {
        self.slots[id.0 as usize].queued += 1;
        self.empty.push_back(id);
    }

    /// Evicts the buckets that have been empty for longest, if there are too many, and returns their ids. It
    /// evicts many at a time, because the caller has to drop them from each ranking.
    pub(super) fn evict(&mut self, node_count: usize) -> Vec<BucketId> {
        let mut evicted = Vec::new();
        let EmptyMax { least, per_node, at_a_time } = self.empty_max;
        if self.empty.len() < least.max(node_count * per_node) + at_a_time {
            return evicted;
        }
        for id in self.empty.drain(..at_a_time) {
            let slot = &mut self.slots[id.0 as usize];
            slot.queued -= 1;
            // Otherwise it has nodes again, or became empty again later and is queued for that, too.
            if slot.nodes.is_empty() && slot.queued == 0 {
                slot.generation = slot.generation.saturating_add(1);
                self.ids.remove(&slot.bucket);
                evicted.push(id);
            }
        }
        // So that ids given at the same time are neighbours, as `fits` expects.
        evicted.sort_unstable_by_key(|id| std::cmp::Reverse(*id));
        self.unused.extend(&evicted);
        evicted
    }
}
