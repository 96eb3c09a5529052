//! One demand's ranking of the buckets that it fits, brought up to date when it is asked.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::bucket::Outline;
use super::buckets::{BucketId, Buckets, Slot};
use super::fits::{Fit, Fits};
use super::log::{Live, Noted};
use super::policy::{Score, Scorer};
use super::values::Values;
use crate::model::demand::Demand;
use crate::model::id::{NodeRef, PoolId};

/// What the heap holds: the best score first, and of one score the lowest node. So the choice depends on
/// nothing but the nodes themselves.
type Candidate = Reverse<(Score, NodeRef, BucketId)>;

/// Candidates that are kept without asking whether they still are some.
const HEAP_MIN: usize = 1_024;

/// Entries of the log that are passed over in the time of one look.
const PASSED_PER_WORK: u64 = 16;

#[derive(Debug)]
pub(super) struct Ranking {
    pub(super) demand: Arc<Demand>,
    outline: Outline,
    fits: Fits,
    heap: BinaryHeap<Candidate>,
    /// When the heap has grown to this, what is no longer true goes.
    heap_max: usize,
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
            fits: Fits::default(),
            heap: BinaryHeap::new(),
            heap_max: HEAP_MIN,
            cursor: 0,
        }
    }

    /// Forgets all that the policy made of it.
    pub(super) fn clear(&mut self) {
        self.fits.forget_scores();
        self.heap.clear();
        self.cursor = 0;
    }

    /// These buckets' numbers are to mean others.
    pub(super) fn forget(&mut self, ids: &[BucketId]) {
        self.fits.forget(ids);
    }

    /// Takes in what has changed since it was last asked; tells how much work that was.
    pub(super) fn refresh(&mut self, buckets: &Buckets, mind: &mut Mind<'_>, named: &Named) -> u32 {
        let fresh = self.cursor == 0;
        // What is passed over costs little, but may be a great many.
        let mut work = ((buckets.log().end() - self.cursor) / PASSED_PER_WORK) as u32;
        match buckets.log().since(self.cursor).filter(|_| !fresh) {
            Some(all) => {
                for Noted { live, lowest } in all {
                    work += 1;
                    self.offer_first(live, Some(*lowest), buckets, mind, named);
                }
            }
            None => {
                work = 0;
                self.heap.clear();
                self.fits.forget_keys();
                for live in buckets.live() {
                    work += 1;
                    self.offer_first(live, None, buckets, mind, named);
                }
            }
        }
        self.cursor = buckets.log().end();
        if self.heap.len() > self.heap_max {
            self.compact(buckets);
        }
        work
    }

    /// Has a bucket with nodes under the lowest of those that may be used, or a lower one: `lowest` is one
    /// that is known without a look at them.
    fn offer_first(
        &mut self,
        live: &Live,
        lowest: Option<NodeRef>,
        buckets: &Buckets,
        mind: &mut Mind<'_>,
        named: &Named,
    ) {
        let id = live.id;
        if !live.outline.may_hold(self.outline) {
            return;
        }
        let lowest = lowest.filter(|_| !named.names_pools());
        // In most buckets a demand that names pools finds no node of theirs, sooner than whether it fits.
        let Some(node) = lowest.or_else(|| named.first(buckets.slot(id))) else { return };
        let Some(fit) = self.look(id, buckets, mind) else { return };
        if fit.key.is_none_or(|key| node < key) {
            fit.key = Some(node);
            let entry = Reverse((fit.score, node, id));
            self.heap.push(entry);
        }
    }

    /// How the demand fits a bucket, found out if need be.
    fn look(&mut self, id: BucketId, buckets: &Buckets, mind: &mut Mind<'_>) -> Option<&mut Fit> {
        if self.fits.is_unfit(id) {
            return None;
        }
        if self.fits.get(id).is_none() {
            let found = mind.scorer.fit(&self.demand, id, &buckets.slot(id).bucket, mind.values);
            let fit = found.map(|(score, choice)| Fit { score, choice, next: None, key: None });
            return self.fits.insert(id, fit);
        }
        self.fits.get_mut(id)
    }

    /// How well the demand fits a bucket, found out if need be.
    pub(super) fn score_of(&mut self, id: BucketId, buckets: &Buckets, mind: &mut Mind<'_>) -> Option<Score> {
        self.look(id, buckets, mind).map(|fit| fit.score)
    }

    /// The fit of a bucket that has been looked at.
    pub(super) fn fit(&self, id: BucketId) -> Option<&Fit> {
        self.fits.get(id)
    }

    pub(super) fn fit_mut(&mut self, id: BucketId) -> Option<&mut Fit> {
        self.fits.get_mut(id)
    }

    /// The best node, once refreshed.
    pub(super) fn best(&mut self, buckets: &Buckets, named: &Named) -> Option<(Score, NodeRef, BucketId)> {
        while let Some(mut top) = self.heap.peek_mut() {
            let Reverse((score, node, id)) = *top;
            let slot = buckets.slot(id);
            let fit = self.fits.get_mut(id).filter(|fit| fit.key == Some(node) && fit.score == score);
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

    /// The best node, not counting `avoid`.
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

    /// Candidates, true or not.
    #[cfg(test)]
    pub(super) fn candidates(&self) -> usize {
        self.heap.len()
    }

    /// Drops what is no longer true.
    fn compact(&mut self, buckets: &Buckets) {
        let mut candidates = std::mem::take(&mut self.heap).into_vec();
        candidates.retain(|Reverse((score, node, id))| {
            let fit = self.fits.get_mut(*id).filter(|fit| fit.key == Some(*node) && fit.score == *score);
            let Some(fit) = fit else { return false };
            let is_live = !buckets.slot(*id).nodes.is_empty();
            if !is_live {
                fit.key = None;
            }
            is_live
        });
        // A bucket whose lower nodes come and go may be there many times under the one that stays.
        if candidates.len() > buckets.live().len() {
            candidates.sort_unstable();
            candidates.dedup();
        }
        self.heap_max = 2 * candidates.len() + HEAP_MIN;
        self.heap = candidates.into();
    }
}
