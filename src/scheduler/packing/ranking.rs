//! One demand's ranking of the buckets that it fits, brought up to date when it is asked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::bucket::DeviceChoice;
use super::buckets::{BucketId, Buckets, Known, Slot};
use super::policy::{Score, Scorer};
use super::values::Values;
use crate::model::demand::Demand;
use crate::model::id::{NodeRef, PoolId};

/// Marks a bucket of which no fit is known.
const NONE: u32 = u32::MAX;

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

/// A heap's entry: the best score first, and of one score the lowest node. So the choice depends on
/// nothing but the nodes themselves.
type Entry = Reverse<(Score, NodeRef, BucketId)>;

#[derive(Debug)]
pub(super) struct Ranking {
    pub(super) demand: Arc<Demand>,
    /// Buckets that the demand does not fit, a bit each. That is true by every policy, so a lesson costs no new
    /// look at them, and they are the most.
    unfit: Vec<u64>,
    /// Per bucket: where its fit is.
    at: Vec<u32>,
    fits: Vec<Fit>,
    unused: Vec<u32>,
    heap: BinaryHeap<Entry>,
    /// How far it has read the log, as the log counts; 0 if nothing has been read.
    cursor: u64,
}

/// A node has come into a bucket.
pub(super) type Arrival = (BucketId, NodeRef);

/// The latest arrivals.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: std::collections::VecDeque<Arrival>,
    /// The number of the next entry.
    end: u64,
}

impl Log {
    pub(super) fn push(&mut self, arrival: Arrival, len_max: usize) {
        self.entries.push_back(arrival);
        self.end += 1;
        while self.entries.len() > len_max {
            self.entries.pop_front();
        }
    }

    /// Arrivals from `cursor` on, if there are no more than `most` and none is lost.
    fn since(&self, cursor: u64, most: usize) -> Option<impl Iterator<Item = &Arrival>> {
        let count = self.end.checked_sub(cursor)? as usize;
        (count <= most && count <= self.entries.len())
            .then(|| self.entries.range(self.entries.len() - count..))
    }
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

    fn is_anything(&self) -> bool {
        self.0.is_none()
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
            demand,
            unfit: Vec::new(),
            at: Vec::new(),
            fits: Vec::new(),
            unused: Vec::new(),
            heap: BinaryHeap::new(),
            cursor: 0,
        }
    }

    /// Forgets all that the policy made of it.
    pub(super) fn clear(&mut self) {
        let unfit = std::mem::take(&mut self.unfit);
        *self = Self { unfit, ..Self::new(self.demand.clone()) };
    }

    /// A bucket's number is to mean another one.
    pub(super) fn forget(&mut self, id: BucketId) {
        if let Some(at) = self.at.get_mut(id.0 as usize) {
            let old = std::mem::replace(at, NONE);
            if old != NONE {
                self.fits[old as usize].key = None;
                self.unused.push(old);
            }
        }
        if let Some(bits) = self.unfit.get_mut(id.0 as usize / 64) {
            *bits &= !(1 << (id.0 % 64));
        }
    }

    /// Takes in what has changed since it was last asked; tells how much work that was.
    pub(super) fn refresh(
        &mut self,
        buckets: &Buckets,
        mind: &mut Mind<'_>,
        log: &Log,
        named: &Named,
    ) -> u32 {
        let most = buckets.live().len();
        let fresh = self.cursor == 0;
        let mut work = 0;
        match log.since(self.cursor, most).filter(|_| !fresh) {
            Some(arrivals) => {
                for (id, node) in arrivals {
                    work += 1;
                    if self.may_lower(*id, *node)
                        && named.allows(*node)
                        && buckets.slot(*id).nodes.contains(node)
                    {
                        self.offer(*id, *node, buckets, mind);
                    }
                }
            }
            None => {
                self.heap.clear();
                self.fits.iter_mut().for_each(|fit| fit.key = None);
                for at in 0..most {
                    work += 1;
                    let id = buckets.live()[at];
                    // Whether the demand fits is known sooner than which node is the first.
                    if self.is_unfit(id) || (named.is_anything() && self.look(id, buckets, mind).is_none()) {
                        continue;
                    }
                    if let Some(node) = named.first(buckets.slot(id)) {
                        self.offer(id, node, buckets, mind);
                    }
                }
            }
        }
        self.cursor = log.end;
        if self.heap.len() > 2 * most + 1_024 {
            self.compact(buckets);
        }
        work
    }

    fn is_unfit(&self, id: BucketId) -> bool {
        self.unfit.get(id.0 as usize / 64).is_some_and(|bits| bits >> (id.0 % 64) & 1 == 1)
    }

    /// Where the fit of a bucket is, if one is known.
    fn at(&self, id: BucketId) -> Option<usize> {
        self.at.get(id.0 as usize).filter(|at| **at != NONE).map(|at| *at as usize)
    }

    /// An arrival of this node may make the bucket's key a lower one, as far as is known.
    fn may_lower(&self, id: BucketId, node: NodeRef) -> bool {
        let lowers = |at: usize| self.fits[at].key.is_none_or(|key| node < key);
        !self.is_unfit(id) && self.at(id).is_none_or(lowers)
    }

    fn offer(&mut self, id: BucketId, node: NodeRef, buckets: &Buckets, mind: &mut Mind<'_>) {
        let Some(at) = self.look(id, buckets, mind) else { return };
        let fit = &mut self.fits[at];
        if fit.key.is_none_or(|key| node < key) {
            fit.key = Some(node);
            self.heap.push(Reverse((fit.score, node, id)));
        }
    }

    /// Where the fit of a bucket is, found out if need be.
    fn look(&mut self, id: BucketId, buckets: &Buckets, mind: &mut Mind<'_>) -> Option<usize> {
        if self.is_unfit(id) {
            return None;
        }
        if let Some(at) = self.at(id) {
            return Some(at);
        }
        let (index, len) = (id.0 as usize, buckets.len());
        let Some((score, choice)) = mind.scorer.fit(&self.demand, &buckets.slot(id).bucket, mind.values)
        else {
            if self.unfit.len() <= index / 64 {
                self.unfit.resize(len.div_ceil(64), 0);
            }
            self.unfit[index / 64] |= 1 << (index % 64);
            return None;
        };
        let fit = Fit { score, choice, next: None, key: None };
        let at = match self.unused.pop() {
            Some(at) => {
                self.fits[at as usize] = fit;
                at
            }
            None => {
                self.fits.push(fit);
                self.fits.len() as u32 - 1
            }
        };
        if self.at.len() <= index {
            self.at.resize(len, NONE);
        }
        self.at[index] = at;
        Some(at as usize)
    }

    /// How well the demand fits a bucket, found out if need be.
    pub(super) fn score_of(&mut self, id: BucketId, buckets: &Buckets, mind: &mut Mind<'_>) -> Option<Score> {
        self.look(id, buckets, mind).map(|at| self.fits[at].score)
    }

    /// The fit of a bucket that has been looked at.
    pub(super) fn fit(&self, id: BucketId) -> Option<&Fit> {
        self.fits.get(self.at(id)?)
    }

    pub(super) fn fit_mut(&mut self, id: BucketId) -> Option<&mut Fit> {
        let at = self.at(id)?;
        self.fits.get_mut(at)
    }

    /// The best node, once refreshed.
    pub(super) fn best(&mut self, buckets: &Buckets, named: &Named) -> Option<(Score, NodeRef, BucketId)> {
        while let Some(Reverse((score, node, id))) = self.heap.peek().copied() {
            let slot = buckets.slot(id);
            let is_its_key = self.fit(id).is_some_and(|fit| fit.key == Some(node) && fit.score == score);
            if is_its_key && slot.nodes.contains(&node) {
                return Some((score, node, id));
            }
            self.heap.pop();
            if is_its_key {
                // It has left: the bucket goes on under its next node.
                let next = named.first(slot);
                if let Some(fit) = self.fit_mut(id) {
                    fit.key = next;
                }
                self.heap.extend(next.map(|next| Reverse((score, next, id))));
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
