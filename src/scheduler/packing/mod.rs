//! Packing: which node a task goes to, so that most work fits.
//!
//! Nodes that are alike (class, free capacity, what is free of each device) form a *bucket*. Each
//! demand keeps a ranking of the buckets it fits, and reads what has changed since it was last asked:
//! a placement touches two buckets, whatever the size of the cluster. What a policy makes of a bucket
//! is found out once and kept.
//!
//! The choice is that of the node with the least score, and of those with equal scores the lowest: it
//! depends on the nodes as they are and on the policy, on nothing else. So an index that was kept
//! chooses as a rebuilt one does, and what was kept or forgotten changes no result.
//!
//! `bucket` says what fits and what would be left, `policy` how well. The index are `buckets`, `log` (which
//! of them have changed), and for each demand its `ranking` and `fits`. [`overflow`] is Weir's own policy,
//! [`fgd`] the best one published.

pub mod bucket;
mod buckets;
mod draw;
pub mod fgd;
mod fits;
mod log;
pub mod mix;
pub mod overflow;
pub mod policy;
pub mod random;
mod ranking;
#[cfg(test)]
mod tests;
mod values;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use bucket::{Bucket, ClassRef, DeviceChoice, DeviceRoom};
use buckets::{BucketId, Buckets};
use policy::{Score, Scorer};
use random::Random;
use ranking::{Mind, Named, Ranking};
use values::Values;

use crate::model::demand::Demand;
use crate::model::device::{DeviceAmount, DeviceModelId, DeviceShare};
use crate::model::id::{NodeRef, PoolId};
use crate::model::limit::DEVICE_MILLIS;
use crate::model::mutant::Mutant;
use crate::model::resource::Resources;

/// Demands that are ranked at a time; the longest unused gives way.
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

/// What never changes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    pub model: DeviceModelId,
    /// Devices of one group are close to each other.
    pub topology_group: u16,
}

/// A demand's number with a packer. It may come to mean another one when the demand has long not been
/// asked for: [`Packer::demand`] sees to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemandId {
    at: u32,
    generation: u32,
}

/// Where a task goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub node: NodeRef,
    pub devices: Vec<DeviceShare>,
    pub score: Score,
}

/// What was free of nodes before placements, to be put back in reverse.
#[derive(Debug, Default)]
pub struct Undo(Vec<(NodeRef, Resources, Vec<u32>)>);

/// Nodes, and where on them tasks would go.
#[derive(Debug)]
pub struct Packer {
    scorer: Scorer,
    nodes: FxHashMap<NodeRef, Kept>,
    /// Pools with nodes here, by name, for demands that name pools.
    pools: BTreeMap<String, PoolId>,
    /// The buckets of each pool's nodes, with how many are in them.
    parts: FxHashMap<PoolId, FxHashMap<BucketId, u32>>,
    buckets: Buckets,
    values: Values,
    ids: FxHashMap<Arc<Demand>, u32>,
    rankings: Vec<Ranked>,
    random: Random,
    clock: u64,
    /// Buckets looked at since it was last asked, or as much work.
    work: u32,
}

#[derive(Debug)]
struct Kept {
    node: Node,
    bucket: BucketId,
}

#[derive(Debug)]
struct Ranked {
    ranking: Ranking,
    generation: u32,
    used_at: u64,
}

impl Packer {
    /// A packer without nodes.
    pub fn new(scorer: Scorer) -> Self {
        let seed = if let Scorer::Random { seed } = scorer { seed } else { 0 };
        Self {
            scorer,
            nodes: FxHashMap::default(),
            pools: BTreeMap::new(),
            parts: FxHashMap::default(),
            buckets: Buckets::default(),
            values: Values::default(),
            ids: FxHashMap::default(),
            rankings: Vec::new(),
            random: Random::new(seed),
            clock: 0,
            work: 0,
        }
    }

    /// Goes on by another policy, or by what the policy has learned since.
    pub fn set_scorer(&mut self, scorer: Scorer) {
        self.scorer = scorer;
        self.values.clear();
        self.rankings.iter_mut().for_each(|ranked| ranked.ranking.clear());
    }

    /// The policy.
    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    /// Costs of different demands can be compared: they are the same kind of loss.
    pub fn compares_costs(&self) -> bool {
        matches!(self.scorer, Scorer::Overflow(_))
    }

    /// Tells a pool's name.
    pub fn set_pool(&mut self, id: PoolId, name: &str) {
        self.pools.insert(name.to_owned(), id);
    }

    /// Takes a node as it is; tells whether something may fit it now that didn't before.
    pub fn set(&mut self, at: NodeRef, node: Node) -> bool {
        let bucket = node.bucket();
        let old = self.nodes.get(&at).map(|kept| self.buckets.slot(kept.bucket).bucket.clone());
        if old.as_deref() == Some(&bucket) {
            // What is free may have changed places among devices that are alike.
            if let Some(kept) = self.nodes.get_mut(&at) {
                kept.node = node;
            }
            return false;
        }
        let gained = old.is_none_or(|old| gains(&old, &bucket));
        let id = self.buckets.intern(bucket);
        if let Some(kept) = self.nodes.insert(at, Kept { node, bucket: id }) {
            self.leave(kept.bucket, at);
        }
        self.arrive(id, at);
        self.evict();
        gained
    }

    /// Takes a node out.
    pub fn remove(&mut self, at: NodeRef) {
        if let Some(kept) = self.nodes.remove(&at) {
            self.leave(kept.bucket, at);
        }
    }

    /// A node that takes work.
    pub fn node(&self, at: NodeRef) -> Option<&Node> {
        self.nodes.get(&at).map(|kept| &kept.node)
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// All nodes, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeRef, &Node)> {
        self.nodes.iter().map(|(at, kept)| (*at, &kept.node))
    }

    /// Each node with its bucket, in no order.
    pub fn buckets_of_nodes(&self) -> impl Iterator<Item = (NodeRef, Arc<Bucket>)> {
        self.nodes.iter().map(|(at, kept)| (*at, self.buckets.slot(kept.bucket).bucket.clone()))
    }

    /// A pool's nodes, with how many are alike.
    pub fn buckets_in(&self, pool: PoolId) -> impl Iterator<Item = (&Bucket, u32)> {
        let part = self.parts.get(&pool).into_iter().flatten();
        part.map(|(id, count)| (&*self.buckets.slot(*id).bucket, *count))
    }

    /// The nodes of a pool have so much free together: what asks for more needs no closer look.
    pub fn may_hold(&self, pool: PoolId, total: &Resources) -> bool {
        let Some(part) = self.parts.get(&pool) else { return false };
        let (mut cpu, mut devices) = (0u64, 0u64);
        for (id, count) in part {
            let bucket = &self.buckets.slot(*id).bucket;
            cpu = cpu.saturating_add(bucket.free.cpu_millis.saturating_mul(u64::from(*count)));
            devices = devices.saturating_add(bucket.device_free().saturating_mul(u64::from(*count)));
        }
        total.cpu_millis <= cpu && total.device_millis <= devices
    }

    /// Free device thousandths of all nodes.
    pub fn device_free(&self) -> u64 {
        let live = self.buckets.live().iter().map(|live| self.buckets.slot(live.id));
        live.map(|slot| slot.bucket.device_free() * slot.nodes.len() as u64).sum()
    }

    /// Buckets looked at since this was last asked, or as much work.
    pub fn take_work(&mut self) -> u32 {
        std::mem::take(&mut self.work)
    }

    /// The number of a demand; `last` is what it was before, if anything. It holds until so many other
    /// demands have been asked for as are ranked at a time.
    pub fn demand(&mut self, demand: &Arc<Demand>, last: Option<DemandId>) -> DemandId {
        let is_it = |id: &DemandId| self.rankings[id.at as usize].generation == id.generation;
        let at = match last.filter(is_it) {
            Some(id) => id.at,
            None => match self.ids.get(demand) {
                Some(at) => *at,
                None => self.new_ranking(demand),
            },
        };
        self.clock += 1;
        let ranked = &mut self.rankings[at as usize];
        ranked.used_at = self.clock;
        DemandId { at, generation: ranked.generation }
    }

    fn new_ranking(&mut self, demand: &Arc<Demand>) -> u32 {
        let ranking = Ranking::new(demand.clone());
        let at = if self.rankings.len() < RANKINGS_MAX {
            self.rankings.push(Ranked { ranking, generation: 0, used_at: 0 });
            self.rankings.len() - 1
        } else {
            let oldest = self.rankings.iter().enumerate().min_by_key(|(_, ranked)| ranked.used_at);
            let at = oldest.map_or(0, |(at, _)| at);
            let ranked = &mut self.rankings[at];
            self.ids.remove(&ranked.ranking.demand);
            ranked.ranking = ranking;
            ranked.generation += 1;
            at
        };
        self.ids.insert(demand.clone(), at as u32);
        at as u32
    }

    /// The node that a task would go to.
    pub fn best(&mut self, demand: &Arc<Demand>) -> Option<(Score, NodeRef)> {
        let id = self.demand(demand, None);
        self.best_of(id, None)
    }

    /// The node that a task would go to, not counting `avoid`.
    pub fn best_of(&mut self, id: DemandId, avoid: Option<NodeRef>) -> Option<(Score, NodeRef)> {
        if let Scorer::Random { .. } = self.scorer {
            return self.any(id, avoid);
        }
        let Self { rankings, buckets, scorer, values, pools, .. } = self;
        let mut mind = Mind { scorer, values };
        let ranking = &mut rankings[id.at as usize].ranking;
        let named = Named::new(&ranking.demand, pools);
        self.work += 1 + ranking.refresh(buckets, &mut mind, &named);
        let best = match avoid {
            None => ranking.best(buckets, &named),
            Some(avoid) => ranking.best_but(avoid, buckets, &named),
        };
        self.evict();
        best.map(|(score, node, _)| (score, node))
    }

    /// What a task strands by itself where it would go, by a policy whose costs can be compared, with the
    /// node's score: that it breaks up a node decides where it goes, not whether it goes before others.
    pub fn strands(&self, id: DemandId, at: NodeRef, score: Score) -> i64 {
        let Scorer::Overflow(overflow) = &self.scorer else { return score.cost };
        let ranking = &self.rankings[id.at as usize].ranking;
        let Some((kept, fit)) = self.nodes.get(&at).and_then(|kept| Some((kept, ranking.fit(kept.bucket)?)))
        else {
            return score.cost;
        };
        let bucket = &self.buckets.slot(kept.bucket).bucket;
        let after = bucket.after(&ranking.demand, fit.choice);
        score.cost - (overflow.room(bucket) - overflow.room(&after))
    }

    /// Any node that fits, each as likely.
    fn any(&mut self, id: DemandId, avoid: Option<NodeRef>) -> Option<(Score, NodeRef)> {
        let demand = self.rankings[id.at as usize].ranking.demand.clone();
        let named = Named::new(&demand, &self.pools);
        let mut fitting = Vec::new();
        for live in self.buckets.live() {
            let slot = self.buckets.slot(live.id);
            if slot.bucket.fits(&demand) {
                let nodes = slot.nodes.iter().filter(|node| named.allows(**node) && Some(**node) != avoid);
                fitting.extend(nodes.copied());
            }
        }
        // The buckets stand in no order.
        fitting.sort_unstable();
        let chosen = self.random.below(fitting.len() as u64);
        fitting.get(chosen as usize).map(|node| (Score::default(), *node))
    }

    /// Places a task where it fits best.
    pub fn place(&mut self, demand: &Arc<Demand>) -> Option<Place> {
        let id = self.demand(demand, None);
        self.place_of(id, None, &mut Undo::default())
    }

    /// Places a task where it fits best but on `avoid`, noting how to take it back.
    pub fn place_of(&mut self, id: DemandId, avoid: Option<NodeRef>, undo: &mut Undo) -> Option<Place> {
        let (score, node) = self.best_of(id, avoid)?;
        let devices = self.take(id, node, undo)?;
        Some(Place { node, devices, score })
    }

    /// Takes from a node what a task asks for, on the devices that suit the policy best; `None` if it
    /// doesn't fit.
    pub fn take(&mut self, id: DemandId, at: NodeRef, undo: &mut Undo) -> Option<Vec<DeviceShare>> {
        let kept = self.nodes.get(&at)?;
        let old = kept.bucket;
        let ranking = &self.rankings[id.at as usize].ranking;
        let demand = ranking.demand.clone();
        let known = ranking.fit(old).map(|fit| (fit.choice, fit.next));
        let (choice, next) = match known {
            Some(known) => known,
            None => {
                let bucket = &self.buckets.slot(old).bucket;
                (self.scorer.fit(&demand, old, bucket, &mut self.values)?.1, None)
            }
        };
        let next = match next.filter(|next| self.buckets.is_known(*next)) {
            Some(next) => next.id,
            None => {
                let after = self.buckets.slot(old).bucket.after(&demand, choice);
                let next = self.buckets.intern(after);
                let known = self.buckets.known(next);
                if let Some(fit) = self.rankings[id.at as usize].ranking.fit_mut(old) {
                    fit.next = Some(known);
                }
                next
            }
        };
        let kept = self.nodes.get_mut(&at)?;
        let shares = shares_of(&demand, choice, &kept.node)?;
        let free = kept.node.free.checked_sub(&demand.resources)?;
        undo.0.push((at, std::mem::replace(&mut kept.node.free, free), kept.node.device_free.clone()));
        for share in &shares {
            kept.node.device_free[usize::from(share.index)] -= share.millis;
        }
        kept.bucket = next;
        self.leave(old, at);
        self.arrive(next, at);
        Some(shares)
    }

    /// The node of a pool that a task would go to, not counting `avoid`.
    pub fn best_in(
        &mut self,
        pool: PoolId,
        id: DemandId,
        avoid: Option<NodeRef>,
    ) -> Option<(Score, NodeRef)> {
        let ids: Vec<BucketId> = self.parts.get(&pool)?.keys().copied().collect();
        self.work += ids.len() as u32;
        ids.into_iter()
            .filter_map(|bucket| self.offer_of(pool, id, bucket, avoid))
            .min()
            .map(|(score, node, _)| (score, node))
    }

    /// Places tasks side by side in one pool, all or none: so many of each demand, in this order.
    pub fn place_in(
        &mut self,
        pool: PoolId,
        tasks: &[(DemandId, u32)],
        avoid: Option<NodeRef>,
    ) -> Option<Vec<Place>> {
        let (mut places, mut undo) = (Vec::new(), Undo::default());
        for (id, count) in tasks {
            if self.place_alike(pool, *id, *count, avoid, &mut places, &mut undo).is_none() {
                self.undo(undo);
                return None;
            }
        }
        self.evict();
        Some(places)
    }

    fn place_alike(
        &mut self,
        pool: PoolId,
        id: DemandId,
        count: u32,
        avoid: Option<NodeRef>,
        places: &mut Vec<Place>,
        undo: &mut Undo,
    ) -> Option<()> {
        let ids: Vec<BucketId> = self.parts.get(&pool)?.keys().copied().collect();
        self.work += ids.len() as u32;
        let offers = ids.into_iter().filter_map(|bucket| self.offer_of(pool, id, bucket, avoid));
        let mut offers: BinaryHeap<_> = offers.map(Reverse).collect();
        for _ in 0..count {
            let Reverse((score, node, bucket)) = offers.pop()?;
            self.work += 4;
            places.push(Place { node, devices: self.take(id, node, undo)?, score });
            let next = self.nodes.get(&node)?.bucket;
            let changed =
                [bucket, next].into_iter().filter_map(|bucket| self.offer_of(pool, id, bucket, avoid));
            let changed: Vec<_> = changed.map(Reverse).collect();
            // A bucket that was there already gets a second entry: only the first that comes up holds.
            offers.extend(changed);
            while let Some(Reverse((_, node, bucket))) = offers.peek()
                && self.nodes.get(node).is_none_or(|kept| kept.bucket != *bucket)
            {
                offers.pop();
            }
        }
        Some(())
    }

    /// What a bucket offers to a demand in one pool: its lowest node there.
    fn offer_of(
        &mut self,
        pool: PoolId,
        id: DemandId,
        bucket: BucketId,
        avoid: Option<NodeRef>,
    ) -> Option<(Score, NodeRef, BucketId)> {
        let Self { rankings, buckets, scorer, values, .. } = self;
        let mut mind = Mind { scorer, values };
        let score = rankings[id.at as usize].ranking.score_of(bucket, buckets, &mut mind)?;
        let node = buckets.slot(bucket).nodes_in(pool).find(|node| Some(*node) != avoid)?;
        Some((score, node, bucket))
    }

    /// Takes back what was placed tentatively.
    pub fn undo(&mut self, undo: Undo) {
        let forgotten = usize::from(Mutant::ForgetLastUndo.is_on());
        for (at, free, device_free) in undo.0.into_iter().skip(forgotten).rev() {
            if let Some(kept) = self.nodes.get(&at) {
                let (class, devices) = (kept.node.class.clone(), kept.node.devices.clone());
                self.set(at, Node { class, free, devices, device_free });
            }
        }
    }

    /// A task of this demand fits on the node as it is.
    pub fn fits(&self, demand: &Demand, at: NodeRef) -> bool {
        self.nodes.get(&at).is_some_and(|kept| self.buckets.slot(kept.bucket).bucket.fits(demand))
    }

    fn leave(&mut self, id: BucketId, at: NodeRef) {
        self.buckets.remove(id, at);
        if let Some(part) = self.parts.get_mut(&at.pool)
            && let Some(count) = part.get_mut(&id)
        {
            *count -= 1;
            if *count == 0 {
                part.remove(&id);
            }
        }
    }

    fn arrive(&mut self, id: BucketId, at: NodeRef) {
        self.buckets.put(id, at);
        *self.parts.entry(at.pool).or_default().entry(id).or_default() += 1;
    }

    /// Forgets buckets that have long been empty, if there are too many.
    fn evict(&mut self) {
        let evicted = self.buckets.evict(self.nodes.len());
        if evicted.is_empty() {
            return;
        }
        self.values.forget(&evicted);
        self.rankings.iter_mut().for_each(|ranked| ranked.ranking.forget(&evicted));
    }
}

impl Node {
    /// Free device thousandths in all.
    pub fn free_millis(&self) -> u64 {
        self.device_free.iter().map(|free| u64::from(*free)).sum()
    }

    /// All that packing knows of it.
    pub fn bucket(&self) -> Bucket {
        let rooms = self.devices.iter().zip(&self.device_free);
        let mut devices: Vec<DeviceRoom> =
            rooms.map(|(device, free)| DeviceRoom { model: device.model, free: *free }).collect();
        devices.sort_unstable();
        Bucket { class: self.class.clone(), free: self.free.clone(), devices }
    }
}

/// Something that did not fit `old` may fit `new`.
fn gains(old: &Bucket, new: &Bucket) -> bool {
    // Both are sorted by model, then by what is free: pairwise no more means no more for anybody.
    let mut pairs = old.devices.iter().zip(&new.devices);
    !new.free.fits(&old.free)
        || old.class != new.class
        || old.devices.len() != new.devices.len()
        || pairs.any(|(old, new)| old.model != new.model || new.free > old.free)
}

/// The very devices that a choice stands for.
///
/// Of alike devices it is the first; whole devices come from one topology group where one has enough,
/// and from the one that is just large enough.
fn shares_of(demand: &Demand, choice: DeviceChoice, node: &Node) -> Option<Vec<DeviceShare>> {
    let amount = demand.devices.as_ref().map(|devices| devices.amount);
    let model = |at: usize| node.devices[at].model;
    match (choice, amount) {
        (DeviceChoice::None, None) => Some(Vec::new()),
        (DeviceChoice::Share(room), Some(DeviceAmount::Fraction(millis))) => {
            let alike = |at: &usize| model(*at) == room.model && node.device_free[*at] == room.free;
            let at = (0..node.devices.len()).find(alike)?;
            Some(vec![DeviceShare { index: at as u16, millis }])
        }
        (DeviceChoice::Whole(wanted), Some(DeviceAmount::Whole(count))) => {
            let count = count as usize;
            let is_untouched = |at: &usize| model(*at) == wanted && node.device_free[*at] == DEVICE_MILLIS;
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
