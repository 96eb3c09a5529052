//! Places the tasks of a gang in one pool, all or none.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::bucket::BucketId;
use super::policy::{Score, Scorer};
use super::ranking::ScoringContext;
use super::{DemandId, Packer, Place, Undo};
use crate::model::demand::Demand;
use crate::model::id::{NodeRef, PoolId};
use crate::model::resource::Resources;

/// Nodes of a pool, and tasks of a gang, up to which the gang is tried by best fit: some milliseconds.
const BEST_FIT_MAX: u64 = 1_024;

/// Returns whether a gang is worth placing by best fit in a copy of a pool. Tasks of one kind are not: as many
/// of them fit in any order.
pub fn may_try_by_best_fit(nodes: u64, gang: &[(Arc<Demand>, u32)]) -> bool {
    let tasks = gang.iter().map(|(_, count)| u64::from(*count)).sum();
    gang.len() > 1 && nodes.max(tasks) <= BEST_FIT_MAX
}

/// How far the placement of a gang came.
#[derive(Debug)]
pub struct GangShortage {
    /// The index of the demand whose next task fits no node.
    pub lacking: usize,
    /// The number of tasks placed of each demand.
    pub placed: Vec<usize>,
}

impl Packer {
    /// Returns whether the nodes of a pool together have `total` CPU and devices free: a cheap check before a
    /// gang is placed task by task.
    pub fn may_hold(&self, pool: PoolId, total: &Resources) -> bool {
        let Some(counts) = self.bucket_counts.get(&pool) else { return false };
        let (mut cpu, mut devices) = (0u64, 0u64);
        for (id, count) in counts {
            let bucket = &self.buckets.slot(*id).bucket;
            cpu = cpu.saturating_add(bucket.free.cpu_millis.saturating_mul(u64::from(*count)));
            devices = devices.saturating_add(bucket.device_free().saturating_mul(u64::from(*count)));
        }
        total.cpu_millis <= cpu && total.device_millis <= devices
    }

    /// Returns the best node of one pool for a task, with its score; `avoid` is excluded.
    pub fn best_in(
        &mut self,
        pool: PoolId,
        id: DemandId,
        avoid: Option<NodeRef>,
    ) -> Option<(Score, NodeRef)> {
        let ids: Vec<BucketId> = self.bucket_counts.get(&pool)?.keys().copied().collect();
        self.work += ids.len() as u32;
        ids.into_iter()
            .filter_map(|bucket| self.candidate_in(pool, id, bucket, avoid))
            .min()
            .map(|(score, node, _)| (score, node))
    }

    /// Places the tasks of a gang in one pool, all or none: the given number of each demand. The places are in
    /// the order of `tasks`.
    ///
    /// The policy may spread tasks of one kind over the nodes that another kind needs. Where it finds no
    /// places, best fit is tried, by which `why` answers too: a gang that `why` calls fitting starts.
    pub fn place_in(
        &mut self,
        pool: PoolId,
        tasks: &[(DemandId, u32)],
        avoid: Option<NodeRef>,
    ) -> Option<Vec<Place>> {
        if let Ok(places) = self.place_or_shortage(pool, tasks, avoid) {
            return Some(places);
        }
        if matches!(self.scorer, Scorer::BestFit) {
            return None;
        }
        let asked =
            tasks.iter().map(|(id, count)| (self.demand_by_id(*id).clone(), *count)).collect::<Vec<_>>();
        let mut copy = self.best_fit_copy(pool, &asked, avoid)?;
        let tasks: Vec<_> = asked.iter().map(|(demand, count)| (copy.demand(demand, None), *count)).collect();
        let places = copy.place_or_shortage(pool, &tasks, None);
        self.work += copy.nodes.len() as u32 + copy.take_work();
        let places = places.ok()?;
        for place in &places {
            self.set(place.node, copy.nodes.get(&place.node)?.node.clone());
        }
        Some(places)
    }

    /// Copies the nodes of one pool, without `avoid`, into a packer that places by best fit. `None` if that
    /// can't help, because all tasks of the gang are equal, or if it would take more than a few milliseconds.
    pub fn best_fit_copy(
        &self,
        pool: PoolId,
        gang: &[(Arc<Demand>, u32)],
        avoid: Option<NodeRef>,
    ) -> Option<Self> {
        let counts = self.bucket_counts.get(&pool)?;
        let nodes = counts.values().map(|nodes| u64::from(*nodes)).sum();
        if !may_try_by_best_fit(nodes, gang) {
            return None;
        }
        let mut copy = Self::new(Scorer::BestFit);
        let nodes = counts.keys().flat_map(|id| self.buckets.slot(*id).nodes_in(pool));
        for at in nodes.filter(|at| Some(*at) != avoid) {
            copy.set(at, self.nodes.get(&at)?.node.clone());
        }
        Some(copy)
    }

    fn demand_by_id(&self, id: DemandId) -> &Arc<Demand> {
        &self.rankings[id.at as usize].ranking.demand
    }

    /// Places the tasks of a gang in one pool by the policy, in the order of `tasks`; places none of them if
    /// one does not fit after the others.
    pub fn place_or_shortage(
        &mut self,
        pool: PoolId,
        tasks: &[(DemandId, u32)],
        avoid: Option<NodeRef>,
    ) -> Result<Vec<Place>, GangShortage> {
        let mut undo = Undo::default();
        // The largest first: small tasks fit into what large tasks leave, and the reverse is not so.
        let mut order: Vec<usize> = (0..tasks.len()).collect();
        order.sort_by_key(|at| {
            let demand = self.demand_by_id(tasks[*at].0);
            let asked = &demand.resources;
            Reverse((demand.device_millis(), asked.cpu_millis, asked.memory_bytes))
        });
        let mut placed = vec![Vec::new(); tasks.len()];
        for at in order {
            let (id, count) = tasks[at];
            if self.place_equal_tasks(pool, id, count, avoid, &mut placed[at], &mut undo).is_none() {
                self.undo(undo);
                return Err(GangShortage { lacking: at, placed: placed.iter().map(Vec::len).collect() });
            }
        }
        let places = placed.into_iter().flatten().collect();
        self.evict();
        Ok(places)
    }

    /// Places `count` tasks of one demand in a pool. On `None` some are placed: the caller reverts them.
    fn place_equal_tasks(
        &mut self,
        pool: PoolId,
        id: DemandId,
        count: u32,
        avoid: Option<NodeRef>,
        places: &mut Vec<Place>,
        undo: &mut Undo,
    ) -> Option<()> {
        let ids: Vec<BucketId> = self.bucket_counts.get(&pool)?.keys().copied().collect();
        self.work += ids.len() as u32;
        let candidates = ids.into_iter().filter_map(|bucket| self.candidate_in(pool, id, bucket, avoid));
        let mut candidates: BinaryHeap<_> = candidates.map(Reverse).collect();
        for _ in 0..count {
            let Reverse((score, node, bucket)) = candidates.pop()?;
            self.work += 4;
            places.push(Place { node, devices: self.take(id, node, undo)?, score });
            let next = self.nodes.get(&node)?.bucket;
            let changed =
                [bucket, next].into_iter().filter_map(|bucket| self.candidate_in(pool, id, bucket, avoid));
            let changed: Vec<_> = changed.map(Reverse).collect();
            // A bucket may get a second candidate. The first that is popped is the valid one: afterwards its
            // node has another bucket, and the loop below drops the second.
            candidates.extend(changed);
            while let Some(Reverse((_, node, bucket))) = candidates.peek()
                && self.nodes.get(node).is_none_or(|packed| packed.bucket != *bucket)
            {
                candidates.pop();
            }
        }
        Some(())
    }

    /// The candidate of a bucket for a demand in one pool: its lowest node there.
    fn candidate_in(
        &mut self,
        pool: PoolId,
        id: DemandId,
        bucket: BucketId,
        avoid: Option<NodeRef>,
    ) -> Option<(Score, NodeRef, BucketId)> {
        let Self { rankings, buckets, scorer, values, .. } = self;
        let mut context = ScoringContext { scorer, values };
        let score = rankings[id.at as usize].ranking.score_of(bucket, buckets, &mut context)?;
        let node = buckets.slot(bucket).nodes_in(pool).find(|node| Some(*node) != avoid)?;
        Some((score, node, bucket))
    }
}
