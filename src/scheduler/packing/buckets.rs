//! The table of buckets: each kept once, numbered, with the nodes that are in it now.
//!
//! Buckets without nodes stay for a while: the same ones come up again and again, and what was
//! found out about them is still true. The longest empty go first when there are too many.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::bucket::Bucket;
use crate::model::id::{NodeId, NodeRef, PoolId};

/// Empty buckets remembered, at the most. A cluster of a thousand nodes comes by as many in a busy
/// hour; with all that is known about them they take a few hundred bytes each.
const EMPTY_MAX: usize = 1 << 17;

/// A bucket's number, reused after it has been forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BucketId(pub(super) u32);

/// A number that tells when it has come to mean another bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) id: BucketId,
    generation: u32,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) bucket: Arc<Bucket>,
    pub(super) nodes: BTreeSet<NodeRef>,
    generation: u32,
    /// Its place among those with nodes.
    live_at: u32,
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
    live: Vec<BucketId>,
    /// Those that were empty once, the longest ago first. Some have nodes again.
    empty: VecDeque<BucketId>,
    unused: Vec<BucketId>,
    empty_max: usize,
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            ids: FxHashMap::default(),
            slots: Vec::new(),
            live: Vec::new(),
            empty: VecDeque::new(),
            unused: Vec::new(),
            empty_max: EMPTY_MAX,
        }
    }
}

impl Buckets {
    #[cfg(test)]
    pub(super) fn set_empty_max(&mut self, empty_max: usize) {
        self.empty_max = empty_max;
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
                    generation: 0,
                    live_at: 0,
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

    fn slot_mut(&mut self, id: BucketId) -> &mut Slot {
        &mut self.slots[id.0 as usize]
    }

    pub(super) fn known(&self, id: BucketId) -> Known {
        Known { id, generation: self.slot(id).generation }
    }

    /// The bucket is still the one that was known.
    pub(super) fn is_known(&self, known: Known) -> bool {
        self.slot(known.id).generation == known.generation
    }

    /// Buckets with nodes.
    pub(super) fn live(&self) -> &[BucketId] {
        &self.live
    }

    /// Numbers given so far.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn put(&mut self, id: BucketId, node: NodeRef) {
        let live_at = self.live.len() as u32;
        let slot = self.slot_mut(id);
        if slot.nodes.is_empty() {
            slot.live_at = live_at;
            self.live.push(id);
        }
        self.slot_mut(id).nodes.insert(node);
    }

    pub(super) fn remove(&mut self, id: BucketId, node: NodeRef) {
        let slot = self.slot_mut(id);
        slot.nodes.remove(&node);
        if !slot.nodes.is_empty() {
            return;
        }
        let at = slot.live_at as usize;
        self.live.swap_remove(at);
        if let Some(moved) = self.live.get(at).copied() {
            self.slot_mut(moved).live_at = at as u32;
        }
        self.queue(id);
    }

    fn queue(&mut self, id: BucketId) {
        self.slot_mut(id).queued += 1;
        self.empty.push_back(id);
    }

    /// Forgets the bucket that has been empty for longest, if there are too many, and tells which.
    pub(super) fn evict(&mut self) -> Option<BucketId> {
        while self.empty.len() > self.empty_max {
            let id = self.empty.pop_front()?;
            let slot = self.slot_mut(id);
            slot.queued -= 1;
            // It was filled since, or emptied once more and stands further back, too.
            if slot.nodes.is_empty() && slot.queued == 0 {
                slot.generation += 1;
                let bucket = slot.bucket.clone();
                self.ids.remove(&bucket);
                self.unused.push(id);
                return Some(id);
            }
        }
        None
    }
}
