//! One demand's ranking of the buckets that it fits, brought up to date when it is asked.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::bucket::{DeviceChoice, Outline};
use super::buckets::{BucketId, Buckets, Known, Slot};
use super::log::Live;
use super::policy::{Score, Scorer};
use super::values::Values;
use crate::model::demand::Demand;
use crate::model::id::{NodeRef, PoolId};

/// How a demand fits a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fit {
    pub(super) score: Score,
    pub(super) choice: DeviceChoice,
    /// What a node of the bucket would be after it.
    pub(super) next: Option<Known>,
    /// The node under which the bucket is in the heap.
    key: Option<NodeRef>,
}

/// What the heap holds: the best score first, and of one score the lowest node. So the choice depends on
/// nothing but the nodes themselves.
type Candidate = Reverse<(Score, NodeRef, BucketId)>;

#[derive(Debug)]
pub(super) struct Ranking {
    pub(super) demand: Arc<Demand>,
    outline: Outline,
    /// Buckets that the demand does not fit, a bit each. That is true by every policy, so a lesson costs no new
    /// look at them, and they are the most.
    unfit: Vec<u64>,
    /// Of buckets that it does fit.
    fits: FxHashMap<BucketId, Fit>,
    heap: BinaryHeap<Candidate>,
    /// How far it has read the log, as the log counts; 0 if nothing has been read.
    cursor: u64,
}

/// What to judge by.
pub(super) struct Mind<'a> {
    pub(super) scorer: &'a Scorer,
    pub(super) values: &'a mut Values,
}

/// The pools that a demand names, if it names any.
pub(super) struct Named(Option<Vec<PoolId>>);

impl Named {
    pub(super) fn new(demand: &Demand, pools: &BTreeMap<String, PoolId>) -> Self {
        let names = &demand.constraints.pools;
        let ids = || names.iter().filter_map(|name| pools.get(name).copied()).collect();
        Self((!names.is_empty()).then(ids))
    }

    fn names_pools(&self) -> bool {
        self.0.is_some()
    }

    /// The lowest node of a bucket that may be used.
    fn first(&self, slot: &Slot) -> Option<NodeRef> {
        let Some(pools) = &self.0 else { return slot.nodes.first().copied() };
        pools.iter().filter_map(|pool| slot.nodes_in(*pool).next()).min()
    }

    pub(super) fn allows(&self, node: NodeRef) -> bool {
        self.0.as_ref().is_none_or(|pools| pools.contains(&node.pool))
    }
}

impl Ranking {
    pub(super) fn new(demand: Arc<Demand>) -> Self {
        Self {
            outline: Outline::of_demand(&demand),
            demand,
            unfit: Vec::new(),
            fits: FxHashMap::default(),
            heap: BinaryHeap::new(),
            cursor: 0,
        }
    }

    /// Forgets all that the policy made of it.
    pub(super) fn clear(&mut self) {
        self.fits.clear();
        self.heap.clear();
        self.cursor = 0;
    }

    /// These buckets' numbers are to mean others.
    pub(super) fn forget(&mut self, ids: &[BucketId]) {
        for id in ids {
            self.fits.remove(id);
            if let Some(bits) = self.unfit.get_mut(id.0 as usize / 64) {
                *bits &= !(1 << (id.0 % 64));
            }
        }
    }

    /// Takes in what has changed since it was last asked; tells how much work that was.
    pub(super) fn refresh(&mut self, buckets: &Buckets, mind: &mut Mind<'_>, named: &Named) -> u32 {
        let fresh = self.cursor == 0;
        let mut work = 0;
        match buckets.log().since(self.cursor).filter(|_| !fresh) {
            Some(noted) => {
                for live in noted {
                    work += 1;
                    self.offer_first(live, buckets, mind, named);
                }
            }
            None => {
                self.heap.clear();
                self.fits.values_mut().for_each(|fit| fit.key = None);
                for live in buckets.live() {
                    work += 1;
                    self.offer_first(live, buckets, mind, named);
                }
            }
        }
        self.cursor = buckets.log().end();
        if self.heap.len() > 2 * buckets.live().len() + 1_024 {
            self.compact(buckets);
        }
        work
    }

    fn is_unfit(&self, id: BucketId) -> bool {
        self.unfit.get(id.0 as usize / 64).is_some_and(|bits| bits >> (id.0 % 64) & 1 == 1)
    }

    /// Has a bucket with nodes under the lowest of those that may be used.
    fn offer_first(&mut self, live: &Live, buckets: &Buckets, mind: &mut Mind<'_>, named: &Named) {
        let (id, slot) = (live.id, buckets.slot(live.id));
        // In most buckets a demand that names pools finds no node of theirs, sooner than whether it fits.
        if !live.outline.may_hold(self.outline) || (named.names_pools() && named.first(slot).is_none()) {
            return;
        }
        let Some(fit) = self.look(id, buckets, mind) else { return };
        let Some(node) = named.first(slot) else { return };
        if fit.key.is_none_or(|key| node < key) {
            fit.key = Some(node);
            let entry = Reverse((fit.score, node, id));
            self.heap.push(entry);
        }
    }

    /// How the demand fits a bucket, found out if need be.
    fn look(&mut self, id: BucketId, buckets: &Buckets, mind: &mut Mind<'_>) -> Option<&mut Fit> {
        if self.is_unfit(id) {
            return None;
        }
        match self.fits.entry(id) {
            Entry::Occupied(fit) => Some(fit.into_mut()),
            Entry::Vacant(unknown) => {
                match mind.scorer.fit(&self.demand, &buckets.slot(id).bucket, mind.values) {
                    Some((score, choice)) => {
                        Some(unknown.insert(Fit { score, choice, next: None, key: None }))
                    }
                    None => {
                        let index = id.0 as usize;
                        if self.unfit.len() <= index / 64 {
                            self.unfit.resize(buckets.len().div_ceil(64), 0);
                        }
                        self.unfit[index / 64] |= 1 << (index % 64);
                        None
                    }
                }
            }
        }
    }

    /// How well the demand fits a bucket, found out if need be.
    pub(super) fn score_of(&mut self, id: BucketId, buckets: &Buckets, mind: &mut Mind<'_>) -> Option<Score> {
        self.look(id, buckets, mind).map(|fit| fit.score)
    }

    /// The fit of a bucket that has been looked at.
    pub(super) fn fit(&self, id: BucketId) -> Option<&Fit> {
        self.fits.get(&id)
    }

    pub(super) fn fit_mut(&mut self, id: BucketId) -> Option<&mut Fit> {
        self.fits.get_mut(&id)
    }

    /// The best node, once refreshed.
    pub(super) fn best(&mut self, buckets: &Buckets, named: &Named) -> Option<(Score, NodeRef, BucketId)> {
        while let Some(mut top) = self.heap.peek_mut() {
            let Reverse((score, node, id)) = *top;
            let slot = buckets.slot(id);
            let fit = self.fits.get_mut(&id).filter(|fit| fit.key == Some(node) && fit.score == score);
            let Some(fit) = fit else {
                PeekMut::pop(top);
                continue;
            };
            if slot.nodes.contains(&node) {
                return Some((score, node, id));
            }
            // It has left: the bucket goes on under its next node.
            fit.key = named.first(slot);
            match fit.key {
                Some(next) => *top = Reverse((score, next, id)),
                None => drop(PeekMut::pop(top)),
            }
        }
        None
    }

    /// The best node but one.
    pub(super) fn best_but(
        &mut self,
        avoid: NodeRef,
        buckets: &Buckets,
        named: &Named,
    ) -> Option<(Score, NodeRef, BucketId)> {
        let best = self.best(buckets, named)?;
        if best.1 != avoid {
            return Some(best);
        }
        let (score, _, id) = best;
        let nodes = &buckets.slot(id).nodes;
        let beside = nodes.iter().find(|node| **node != avoid && named.allows(**node));
        let beside = beside.map(|node| (score, *node, id));
        // A bucket may be there twice under one node.
        while self.heap.peek() == Some(&Reverse(best)) {
            self.heap.pop();
        }
        let other = self.best(buckets, named);
        self.heap.push(Reverse(best));
        beside.into_iter().chain(other).min()
    }

    /// Drops what is no longer true.
    fn compact(&mut self, buckets: &Buckets) {
        let entries = std::mem::take(&mut self.heap).into_vec();
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let Reverse((score, node, id)) = entry;
            let live = !buckets.slot(id).nodes.is_empty();
            match self.fit_mut(id) {
                Some(fit) if fit.key == Some(node) && fit.score == score && live => kept.push(entry),
                Some(fit) if fit.key == Some(node) => fit.key = None,
                _ => {}
            }
        }
        self.heap = kept.into();
    }
}
