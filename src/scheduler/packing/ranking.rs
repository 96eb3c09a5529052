//! One demand's ranking of the buckets that it fits, brought up to date when it is queried.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::bucket::{Bounds, BucketId};
use super::buckets::{Buckets, Slot};
use super::fits::{Fit, Fits};
use super::log::{LiveBucket, LogEntry};
use super::policy::{Score, Scorer};
use super::values::Values;
use crate::model::demand::Demand;
use crate::model::id::{NodeRef, PoolId};

/// An entry of the heap: the best score first, and of equal scores the lowest node, so that the choice
/// depends on nothing but the nodes.
type Candidate = Reverse<(Score, NodeRef, BucketId)>;

/// Size of the heap below which stale candidates are not removed.
const HEAP_MIN: usize = 1_024;

/// Erased log entries that are skipped in the time that it takes to compare one bucket.
const SKIPPED_PER_WORK: u64 = 16;

#[derive(Debug)]
pub(super) struct Ranking {
    pub(super) demand: Arc<Demand>,
    bounds: Bounds,
    fits: Fits,
    heap: BinaryHeap<Candidate>,
    /// Size of the heap beyond which stale candidates are removed.
    heap_max: usize,
    /// The number of the last log entry that was read; 0 if none was.
    cursor: u64,
}

/// What a score is computed with: the policy and its cached values.
pub(super) struct ScoringContext<'a> {
    pub(super) scorer: &'a Scorer,
    pub(super) values: &'a mut Values,
}

/// The pools that a demand is restricted to; `None` if it names no pools.
pub(super) struct NamedPools(Option<Vec<PoolId>>);

impl NamedPools {
    pub(super) fn new(demand: &Demand, pools: &BTreeMap<String, PoolId>) -> Self {
        let names = &demand.constraints.pools;
        let ids = || names.iter().filter_map(|name| pools.get(name).copied()).collect();
        Self((!names.is_empty()).then(ids))
    }

    fn names_pools(&self) -> bool {
        self.0.is_some()
    }

    /// The lowest node of a bucket that the demand may use.
    fn first(&self, slot: &Slot) -> Option<NodeRef> {
        let Some(pools) = &self.0 else { return slot.nodes.first().copied() };
        pools.iter().filter_map(|pool| slot.nodes_in(*pool).next()).min()
    }

    /// Returns whether the demand may use a node, by its pool.
    pub(super) fn allows(&self, node: NodeRef) -> bool {
        self.0.as_ref().is_none_or(|pools| pools.contains(&node.pool))
    }
}

impl Ranking {
    pub(super) fn new(demand: Arc<Demand>) -> Self {
        Self {
            bounds: Bounds::of_demand(&demand),
            demand,
            fits: Fits::default(),
            heap: BinaryHeap::new(),
            heap_max: HEAP_MIN,
            cursor: 0,
        }
    }

    /// Drops all that depends on the policy.
    pub(super) fn clear(&mut self) {
        self.fits.forget_scores();
        self.heap.clear();
        self.cursor = 0;
    }

    /// Drops evicted buckets, whose ids will be reused.
    pub(super) fn forget(&mut self, ids: &[BucketId]) {
        self.fits.forget(ids);
    }

    /// Adds the buckets that changed since the last call. Returns the work of that in compared buckets.
    pub(super) fn refresh(
        &mut self,
        buckets: &Buckets,
        context: &mut ScoringContext<'_>,
        named: &NamedPools,
    ) -> u32 {
        let fresh = self.cursor == 0;
        // Erased entries cost little each, but there may be very many.
        let mut work = ((buckets.log().end() - self.cursor) / SKIPPED_PER_WORK) as u32;
        match buckets.log().since(self.cursor).filter(|_| !fresh) {
            Some(entries) => {
                for LogEntry { live, lowest } in entries {
                    work += 1;
                    self.add_candidate(live, Some(*lowest), buckets, context, named);
                }
            }
            None => {
                work = 0;
                self.heap.clear();
                self.fits.forget_keys();
                for live in buckets.live() {
                    work += 1;
                    self.add_candidate(live, None, buckets, context, named);
                }
            }
        }
        self.cursor = buckets.log().end();
        if self.heap.len() > self.heap_max {
            self.compact(buckets);
        }
        work
    }

    /// Makes sure that a bucket that fits is in the heap, under the lowest node that the demand may use or a
    /// lower one. `lowest` is the lowest node of all, if the caller has it without reading the bucket.
    fn add_candidate(
        &mut self,
        live: &LiveBucket,
        lowest: Option<NodeRef>,
        buckets: &Buckets,
        context: &mut ScoringContext<'_>,
        named: &NamedPools,
    ) {
        let id = live.id;
        if !live.bounds.may_hold(self.bounds) {
            return;
        }
        let lowest = lowest.filter(|_| !named.names_pools());
        // Before the fit: most buckets have no node in the pools that a demand names, and that is found
        // faster.
        let Some(node) = lowest.or_else(|| named.first(buckets.slot(id))) else { return };
        let Some(fit) = self.cached_fit(id, buckets, context) else { return };
        if fit.key.is_none_or(|key| node < key) {
            fit.key = Some(node);
            let entry = Reverse((fit.score, node, id));
            self.heap.push(entry);
        }
    }

    /// How the demand fits a bucket, computed unless it is cached.
    fn cached_fit(
        &mut self,
        id: BucketId,
        buckets: &Buckets,
        context: &mut ScoringContext<'_>,
    ) -> Option<&mut Fit> {
        if self.fits.is_unfit(id) {
            return None;
        }
        if self.fits.get(id).is_none() {
            let computed = context.scorer.fit(&self.demand, id, &buckets.slot(id).bucket, context.values);
            let fit = computed.map(|(score, choice)| Fit { score, choice, next: None, key: None });
            return self.fits.insert(id, fit);
        }
        self.fits.get_mut(id)
    }

    /// Returns the score of a bucket, computed unless it is cached; `None` if the demand does not fit.
    pub(super) fn score_of(
        &mut self,
        id: BucketId,
        buckets: &Buckets,
        context: &mut ScoringContext<'_>,
    ) -> Option<Score> {
        self.cached_fit(id, buckets, context).map(|fit| fit.score)
    }

    /// Returns the cached fit of a bucket.
    pub(super) fn fit(&self, id: BucketId) -> Option<&Fit> {
        self.fits.get(id)
    }

    pub(super) fn fit_mut(&mut self, id: BucketId) -> Option<&mut Fit> {
        self.fits.get_mut(id)
    }

    /// Returns the best node. [`Self::refresh`] must have been called since the last change.
    pub(super) fn best(
        &mut self,
        buckets: &Buckets,
        named: &NamedPools,
    ) -> Option<(Score, NodeRef, BucketId)> {
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
            // The node has left the bucket: the bucket stays in the heap under its next node.
            fit.key = named.first(slot);
            match fit.key {
                Some(next) => *top = Reverse((score, next, id)),
                None => drop(PeekMut::pop(top)),
            }
        }
        None
    }

    /// Returns the best node other than `avoid`, as [`Self::best`] does.
    pub(super) fn best_except(
        &mut self,
        avoid: NodeRef,
        buckets: &Buckets,
        named: &NamedPools,
    ) -> Option<(Score, NodeRef, BucketId)> {
        let best = self.best(buckets, named)?;
        if best.1 != avoid {
            return Some(best);
        }
        let (score, _, id) = best;
        let nodes = &buckets.slot(id).nodes;
        let same_bucket = nodes.iter().find(|node| **node != avoid && named.allows(**node));
        let same_bucket = same_bucket.map(|node| (score, *node, id));
        // A bucket may be in the heap several times under one node.
        while self.heap.peek() == Some(&Reverse(best)) {
            self.heap.pop();
        }
        let other = self.best(buckets, named);
        self.heap.push(Reverse(best));
        same_bucket.into_iter().chain(other).min()
    }

    /// The number of candidates, stale ones included.
    #[cfg(test)]
    pub(super) fn candidates(&self) -> usize {
        self.heap.len()
    }

    /// Removes stale candidates from the heap.
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
        // If a bucket's lower nodes come and go, it is in the heap many times under the node that stays.
        if candidates.len() > buckets.live().len() {
            candidates.sort_unstable();
            candidates.dedup();
        }
        self.heap_max = 2 * candidates.len() + HEAP_MIN;
        self.heap = candidates.into();
    }
}
