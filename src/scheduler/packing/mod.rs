//! Packing: chooses the node and the devices of a task so that the cluster takes the most work.
//!
//! Nodes with the same class, the same free resources and the same free part of each device form a *bucket*.
//! Each demand has a ranking of the buckets that it fits. A query brings the ranking up to date with the
//! buckets that changed since the last one; a placement changes two buckets, whatever the size of the
//! cluster. A policy's value of a bucket is computed once and cached.
//!
//! The node with the least score is chosen, and of equal scores the lowest [`NodeRef`]. The choice depends on
//! nothing but the nodes and the policy: an incrementally updated index chooses as a rebuilt one does, and no
//! cached value or evicted bucket changes a result.
//!
//! `README.md` has the flow, the role of each file and the invariants. [`overflow`] is Weir's own policy,
//! [`fgd`] the best published one.

pub mod bucket;
mod buckets;
pub mod fgd;
mod fits;
mod gang;
mod log;
pub mod overflow;
pub mod policy;
pub mod profile;
pub mod random;
mod ranking;
mod stratified;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

pub use gang::{GangShortage, may_try_by_best_fit};

use bucket::{Bucket, BucketId, ClassRef, DeviceChoice, DeviceFree};
use buckets::Buckets;
use policy::{Score, Scorer};
use random::Random;
use ranking::{NamedPools, Ranking, ScoringContext};
use values::Values;

use crate::model::demand::Demand;
use crate::model::device::{DeviceAmount, DeviceModelId, DeviceShare};
use crate::model::id::{NodeRef, PoolId};
use crate::model::limit::DEVICE_MILLIS;
use crate::model::mutant::Mutant;
use crate::model::resource::Resources;

/// Demands that have a ranking at a time; the least recently used one is replaced.
const RANKINGS_MAX: usize = 1_024;

/// A node that takes work.
#[derive(Clone, Debug)]
pub struct Node {
    pub class: ClassRef,
    /// Free capacity, without devices.
    pub free: Resources,
    pub devices: Arc<[Device]>,
    /// Free thousandths of each device.
    pub device_free: Vec<u32>,
}

/// The properties of a device that never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    pub model: DeviceModelId,
    /// Devices of one group are close to each other.
    pub topology_group: u16,
}

/// A packer's id of a demand. It becomes invalid when the ranking of the demand is replaced;
/// [`Packer::demand`] then returns a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemandId {
    at: u32,
    generation: u32,
}

/// The node and the devices chosen for a task, with their score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub node: NodeRef,
    pub devices: Vec<DeviceShare>,
    pub score: Score,
}

/// The free capacity of nodes before tentative placements, in the order of these; [`Packer::undo`] restores
/// it.
#[derive(Debug, Default)]
pub struct Undo(Vec<(NodeRef, Resources, Vec<u32>)>);

/// An index over nodes that finds the best node for a task and applies tentative placements.
#[derive(Debug)]
pub struct Packer {
    scorer: Scorer,
    nodes: FxHashMap<NodeRef, PackedNode>,
    /// Pools by name, for demands that name pools.
    pools: BTreeMap<String, PoolId>,
    /// The buckets of each pool's nodes, with the number of nodes of that pool.
    bucket_counts: FxHashMap<PoolId, FxHashMap<BucketId, u32>>,
    buckets: Buckets,
    values: Values,
    ids: FxHashMap<Arc<Demand>, u32>,
    rankings: Vec<RankingSlot>,
    random: Random,
    clock: u64,
    /// Buckets compared since the last [`Packer::take_work`], or equivalent work.
    work: u32,
}

#[derive(Debug)]
struct PackedNode {
    node: Node,
    bucket: BucketId,
}

#[derive(Debug)]
struct RankingSlot {
    ranking: Ranking,
    generation: u32,
    used_at: u64,
}

impl Packer {
    /// Creates a packer without nodes.
    pub fn new(scorer: Scorer) -> Self {
        let seed = if let Scorer::Random { seed } = scorer { seed } else { 0 };
        Self {
            scorer,
            nodes: FxHashMap::default(),
            pools: BTreeMap::new(),
            bucket_counts: FxHashMap::default(),
            buckets: Buckets::default(),
            values: Values::default(),
            ids: FxHashMap::default(),
            rankings: Vec::new(),
            random: Random::new(seed),
            clock: 0,
            work: 0,
        }
    }

    /// Replaces the policy, or its profile. All cached values and scores are dropped.
    pub fn set_scorer(&mut self, scorer: Scorer) {
        self.scorer = scorer;
        self.values.clear();
        self.rankings.iter_mut().for_each(|slot| slot.ranking.clear());
    }

    /// Returns the policy.
    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    /// Returns whether the policy's costs of different demands can be compared, because they measure the same
    /// loss.
    pub fn compares_costs(&self) -> bool {
        matches!(self.scorer, Scorer::Overflow(_))
    }

    /// Sets a pool's name, for demands that name pools.
    pub fn set_pool(&mut self, id: PoolId, name: &str) {
        self.pools.insert(name.to_owned(), id);
    }

    /// Removes a pool; its nodes are removed one by one.
    pub fn remove_pool(&mut self, id: PoolId) {
        self.pools.retain(|_, other| *other != id);
        self.bucket_counts.remove(&id);
    }

    /// Inserts or replaces a node. Returns whether something may fit it now that did not fit before.
    pub fn set(&mut self, at: NodeRef, node: Node) -> bool {
        let bucket = node.bucket();
        let old = self.nodes.get(&at).map(|packed| self.buckets.slot(packed.bucket).bucket.clone());
        if old.as_deref() == Some(&bucket) {
            // Equal devices may have swapped what is free.
            if let Some(packed) = self.nodes.get_mut(&at) {
                packed.node = node;
            }
            return false;
        }
        let may_fit_more = old.is_none_or(|old| may_fit_more(&old, &bucket));
        let id = self.buckets.intern(bucket);
        if let Some(packed) = self.nodes.insert(at, PackedNode { node, bucket: id }) {
            self.leave_bucket(packed.bucket, at);
        }
        self.join_bucket(id, at);
        self.evict();
        may_fit_more
    }

    /// Removes a node; a node that is not there is ignored.
    pub fn remove(&mut self, at: NodeRef) {
        if let Some(packed) = self.nodes.remove(&at) {
            self.leave_bucket(packed.bucket, at);
        }
    }

    /// Returns a node with its free capacity after all placements so far.
    pub fn node(&self, at: NodeRef) -> Option<&Node> {
        self.nodes.get(&at).map(|packed| &packed.node)
    }

    /// Returns the number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Returns all nodes, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeRef, &Node)> {
        self.nodes.iter().map(|(at, packed)| (*at, &packed.node))
    }

    /// Returns each node with its bucket, in no order.
    pub fn buckets_of_nodes(&self) -> impl Iterator<Item = (NodeRef, Arc<Bucket>)> {
        self.nodes.iter().map(|(at, packed)| (*at, self.buckets.slot(packed.bucket).bucket.clone()))
    }

    /// Returns the buckets of a pool's nodes, each with the number of nodes, in no order.
    pub fn buckets_in(&self, pool: PoolId) -> impl Iterator<Item = (&Bucket, u32)> {
        let counts = self.bucket_counts.get(&pool).into_iter().flatten();
        counts.map(|(id, count)| (&*self.buckets.slot(*id).bucket, *count))
    }

    /// Returns the free device thousandths of all nodes.
    pub fn device_free(&self) -> u64 {
        let live = self.buckets.live().iter().map(|live| self.buckets.slot(live.id));
        live.map(|slot| slot.bucket.device_free() * slot.nodes.len() as u64).sum()
    }

    /// Returns and resets the number of buckets compared since the last call, equivalent work included.
    pub fn take_work(&mut self) -> u32 {
        std::mem::take(&mut self.work)
    }

    /// Returns the id of a demand; `last` is its previous id, if any, and saves a lookup while it is valid.
    /// The id stays valid while fewer than `RANKINGS_MAX` other demands are used.
    pub fn demand(&mut self, demand: &Arc<Demand>, last: Option<DemandId>) -> DemandId {
        let is_valid = |id: &DemandId| self.rankings[id.at as usize].generation == id.generation;
        let at = match last.filter(is_valid) {
            Some(id) => id.at,
            None => match self.ids.get(demand) {
                Some(at) => *at,
                None => self.new_ranking(demand),
            },
        };
        self.clock += 1;
        let slot = &mut self.rankings[at as usize];
        slot.used_at = self.clock;
        DemandId { at, generation: slot.generation }
    }

    fn new_ranking(&mut self, demand: &Arc<Demand>) -> u32 {
        let ranking = Ranking::new(demand.clone());
        let at = if self.rankings.len() < RANKINGS_MAX {
            self.rankings.push(RankingSlot { ranking, generation: 0, used_at: 0 });
            self.rankings.len() - 1
        } else {
            let oldest = self.rankings.iter().enumerate().min_by_key(|(_, slot)| slot.used_at);
            let at = oldest.map_or(0, |(at, _)| at);
            let slot = &mut self.rankings[at];
            self.ids.remove(&slot.ranking.demand);
            slot.ranking = ranking;
            slot.generation += 1;
            at
        };
        self.ids.insert(demand.clone(), at as u32);
        at as u32
    }

    /// Returns the best node for a task, with its score.
    pub fn best(&mut self, demand: &Arc<Demand>) -> Option<(Score, NodeRef)> {
        let id = self.demand(demand, None);
        self.best_of(id, None)
    }

    /// Returns the best node for a task, with its score; `avoid` is excluded.
    pub fn best_of(&mut self, id: DemandId, avoid: Option<NodeRef>) -> Option<(Score, NodeRef)> {
        if let Scorer::Random { .. } = self.scorer {
            return self.random_fit(id, avoid);
        }
        let Self { rankings, buckets, scorer, values, pools, .. } = self;
        let mut context = ScoringContext { scorer, values };
        let ranking = &mut rankings[id.at as usize].ranking;
        let named = NamedPools::new(&ranking.demand, pools);
        self.work += 1 + ranking.refresh(buckets, &mut context, &named);
        let best = match avoid {
            None => ranking.best(buckets, &named),
            Some(avoid) => ranking.best_except(avoid, buckets, &named),
        };
        self.evict();
        best.map(|(score, node, _)| (score, node))
    }

    /// Returns the cost of a placement without the contiguity value that it destroys.
    ///
    /// `at` and `score` are the best node of the demand and its score. Whether a placement breaks up a node
    /// decides between nodes, not between tasks. Under a policy whose costs can't be compared this is the
    /// plain cost.
    pub fn stranding_cost(&self, id: DemandId, at: NodeRef, score: Score) -> i64 {
        let Scorer::Overflow(overflow) = &self.scorer else { return score.cost };
        let ranking = &self.rankings[id.at as usize].ranking;
        let Some((packed, fit)) =
            self.nodes.get(&at).and_then(|packed| Some((packed, ranking.fit(packed.bucket)?)))
        else {
            return score.cost;
        };
        let bucket = &self.buckets.slot(packed.bucket).bucket;
        let after = bucket.after(&ranking.demand, fit.choice);
        score.cost - (overflow.contiguity_value(bucket) - overflow.contiguity_value(&after))
    }

    /// A node chosen at random, with equal chances, from those that fit.
    fn random_fit(&mut self, id: DemandId, avoid: Option<NodeRef>) -> Option<(Score, NodeRef)> {
        let demand = self.rankings[id.at as usize].ranking.demand.clone();
        let named = NamedPools::new(&demand, &self.pools);
        let mut fitting = Vec::new();
        for live in self.buckets.live() {
            let slot = self.buckets.slot(live.id);
            if slot.bucket.fits(&demand) {
                let nodes = slot.nodes.iter().filter(|node| named.allows(**node) && Some(**node) != avoid);
                fitting.extend(nodes.copied());
            }
        }
        // The buckets are in no order, and the choice must not depend on it.
        fitting.sort_unstable();
        let chosen = self.random.below(fitting.len() as u64);
        fitting.get(chosen as usize).map(|node| (Score::default(), *node))
    }

    /// Places a task on its best node; `None` if it fits none.
    pub fn place(&mut self, demand: &Arc<Demand>) -> Option<Place> {
        let id = self.demand(demand, None);
        self.place_of(id, None, &mut Undo::default())
    }

    /// Places a task on its best node other than `avoid`, and records in `undo` how to revert that.
    pub fn place_of(&mut self, id: DemandId, avoid: Option<NodeRef>, undo: &mut Undo) -> Option<Place> {
        let (score, node) = self.best_of(id, avoid)?;
        let devices = self.take(id, node, undo)?;
        Some(Place { node, devices, score })
    }

    /// Places a task on a given node, on the devices with the best score; `None` if it does not fit. Records
    /// in `undo` how to revert that.
    pub fn take(&mut self, id: DemandId, at: NodeRef, undo: &mut Undo) -> Option<Vec<DeviceShare>> {
        let packed = self.nodes.get(&at)?;
        let old = packed.bucket;
        let ranking = &self.rankings[id.at as usize].ranking;
        let demand = ranking.demand.clone();
        let cached = ranking.fit(old).map(|fit| (fit.choice, fit.next));
        let (choice, next) = match cached {
            Some(cached) => cached,
            None => {
                let bucket = &self.buckets.slot(old).bucket;
                (self.scorer.fit(&demand, old, bucket, &mut self.values)?.1, None)
            }
        };
        let next = match next.filter(|next| self.buckets.is_current(*next)) {
            Some(next) => next.id,
            None => {
                let after = self.buckets.slot(old).bucket.after(&demand, choice);
                let next = self.buckets.intern(after);
                let reference = self.buckets.reference(next);
                if let Some(fit) = self.rankings[id.at as usize].ranking.fit_mut(old) {
                    fit.next = Some(reference);
                }
                next
            }
        };
        let packed = self.nodes.get_mut(&at)?;
        let shares = shares_of(&demand, choice, &packed.node)?;
        let free = packed.node.free.checked_sub(&demand.resources)?;
        undo.0.push((at, std::mem::replace(&mut packed.node.free, free), packed.node.device_free.clone()));
        for share in &shares {
            packed.node.device_free[usize::from(share.index)] -= share.millis;
        }
        packed.bucket = next;
        self.leave_bucket(old, at);
        self.join_bucket(next, at);
        Some(shares)
    }

    /// Reverts tentative placements. Nodes that were removed meanwhile are skipped.
    pub fn undo(&mut self, undo: Undo) {
        let forgotten = usize::from(Mutant::ForgetLastUndo.is_on());
        for (at, free, device_free) in undo.0.into_iter().skip(forgotten).rev() {
            if let Some(packed) = self.nodes.get(&at) {
                let (class, devices) = (packed.node.class.clone(), packed.node.devices.clone());
                self.set(at, Node { class, free, devices, device_free });
            }
        }
    }

    /// Returns whether a task of this demand fits the node now. Pools that the demand names are not compared.
    pub fn fits(&self, demand: &Demand, at: NodeRef) -> bool {
        self.nodes.get(&at).is_some_and(|packed| self.buckets.slot(packed.bucket).bucket.fits(demand))
    }

    fn leave_bucket(&mut self, id: BucketId, at: NodeRef) {
        self.buckets.remove(id, at);
        if let Some(counts) = self.bucket_counts.get_mut(&at.pool)
            && let Some(count) = counts.get_mut(&id)
        {
            *count -= 1;
            if *count == 0 {
                counts.remove(&id);
            }
        }
    }

    fn join_bucket(&mut self, id: BucketId, at: NodeRef) {
        self.buckets.put(id, at);
        *self.bucket_counts.entry(at.pool).or_default().entry(id).or_default() += 1;
    }

    /// Evicts the buckets that have been empty for longest, if there are too many.
    fn evict(&mut self) {
        let evicted = self.buckets.evict(self.nodes.len());
        if evicted.is_empty() {
            return;
        }
        self.values.forget(&evicted);
        self.rankings.iter_mut().for_each(|slot| slot.ranking.forget(&evicted));
    }
}

impl Node {
    /// Returns the free device thousandths of all devices together.
    pub fn free_millis(&self) -> u64 {
        self.device_free.iter().map(|free| u64::from(*free)).sum()
    }

    /// Returns the node's bucket: all that a score depends on.
    pub fn bucket(&self) -> Bucket {
        let both = self.devices.iter().zip(&self.device_free);
        let mut devices: Vec<DeviceFree> =
            both.map(|(device, free)| DeviceFree { model: device.model, free: *free }).collect();
        devices.sort_unstable();
        Bucket { class: self.class.clone(), free: self.free.clone(), devices }
    }
}

/// Returns whether something that did not fit `old` may fit `new`.
fn may_fit_more(old: &Bucket, new: &Bucket) -> bool {
    // Both are sorted by model, then by free thousandths: if no pair has more, nothing new fits.
    let mut pairs = old.devices.iter().zip(&new.devices);
    !new.free.fits(&old.free)
        || old.class != new.class
        || old.devices.len() != new.devices.len()
        || pairs.any(|(old, new)| old.model != new.model || new.free > old.free)
}

/// The devices by index that a choice stands for.
///
/// Of equal devices the first is taken. Whole devices are taken from one topology group where one has enough,
/// and from the smallest that has.
fn shares_of(demand: &Demand, choice: DeviceChoice, node: &Node) -> Option<Vec<DeviceShare>> {
    let amount = demand.devices.as_ref().map(|devices| devices.amount);
    let model = |at: usize| node.devices[at].model;
    match (choice, amount) {
        (DeviceChoice::None, None) => Some(Vec::new()),
        (DeviceChoice::Share(device), Some(DeviceAmount::Fraction(millis))) => {
            let equal = |at: &usize| model(*at) == device.model && node.device_free[*at] == device.free;
            let at = (0..node.devices.len()).find(equal)?;
            Some(vec![DeviceShare { index: at as u16, millis }])
        }
        (DeviceChoice::Whole(chosen_model), Some(DeviceAmount::Whole(count))) => {
            let count = count as usize;
            let is_untouched =
                |at: &usize| model(*at) == chosen_model && node.device_free[*at] == DEVICE_MILLIS;
            let untouched: Vec<usize> = (0..node.devices.len()).filter(is_untouched).collect();
            let group = |at: usize| node.devices[at].topology_group;
            let size = |at: usize| untouched.iter().filter(|other| group(**other) == group(at)).count();
            let mut order: Vec<_> =
                untouched.iter().map(|at| (size(*at) < count, size(*at), group(*at), *at)).collect();
            order.sort_unstable();
            let chosen: Vec<_> = order
                .into_iter()
                .take(count)
                .map(|(_, _, _, at)| DeviceShare { index: at as u16, millis: DEVICE_MILLIS })
                .collect();
            (chosen.len() == count).then_some(chosen)
        }
        _ => None,
    }
}
