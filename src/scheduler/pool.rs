//! One pool's nodes, alike ones together, ranked per demand. A placement touches two buckets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fit::{Bucket, Demand, NodeClass, Score, choose_devices, score};
use crate::model::device::DeviceShare;
use crate::model::id::{NodeId, NodeRef, PoolId};
use crate::model::mutant::Mutant;
use crate::model::resource::Resources;
use crate::state::State;
use crate::state::pool::{Node, Pool};

/// Demands that a pool keeps rankings for; the longest unused goes first.
const RANKINGS_MAX: usize = 512;

/// The nodes of one pool that take work.
#[derive(Debug, Default)]
pub(super) struct PoolIndex {
    /// The pool takes new work.
    pub(super) open: bool,
    nodes: BTreeMap<NodeId, Entry>,
    buckets: BTreeMap<Arc<Bucket>, BTreeSet<NodeId>>,
    classes: BTreeSet<Arc<NodeClass>>,
    /// Buckets in the order they came up; each ranking has read it up to its cursor.
    log: Vec<Arc<Bucket>>,
    rankings: BTreeMap<Arc<Demand>, Ranking>,
    clock: u64,
}

/// A node as the plan sees it: what the state says less what the plan has taken.
#[derive(Clone, Debug)]
struct Entry {
    bucket: Arc<Bucket>,
    /// Free thousandths per device, in the node's order.
    device_free: Vec<u32>,
}

/// Buckets that one demand fits, best first. Some may be gone: they are dropped when met.
#[derive(Debug, Default)]
struct Ranking {
    cursor: usize,
    ranked: BTreeSet<(Score, Arc<Bucket>)>,
    used_at: u64,
}

/// What a tentative placement changed, to be put back in reverse.
#[derive(Debug, Default)]
pub(super) struct Undo(Vec<(NodeId, Entry)>);

impl PoolIndex {
    /// The index of a pool as it would be if all its nodes were `empty` and took work, or of those
    /// that do as they are. To try placements on that are never made.
    pub(super) fn sketch(pool: &Pool, empty: bool) -> Self {
        let mut index = Self::default();
        for node in pool.nodes.values().filter(|node| if empty { !node.gone } else { node.is_open() }) {
            let device = |at: usize| match (empty, node.spec.devices[at].healthy) {
                (false, _) => node.device_free(at),
                (true, true) => node.spec.devices[at].millis,
                (true, false) => 0,
            };
            let device_free: Vec<u32> = (0..node.spec.devices.len()).map(device).collect();
            let free = if empty { node.spec.allocatable.clone() } else { node.free() };
            let class = index.class(node);
            let entry = index.entry(node, free, device_free, class);
            index.put(node.id, entry);
        }
        index
    }

    /// Takes a node as the state has it; tells whether it has more free than before.
    pub(super) fn set_node(&mut self, state: &State, at: NodeRef) -> bool {
        let node = state.node(at).filter(|node| node.is_open());
        let Some(node) = node else {
            self.remove(at.node);
            return false;
        };
        let device_free: Vec<u32> =
            (0..node.spec.devices.len()).map(|index| node.device_free(index)).collect();
        let class = self.class(node);
        let entry = self.entry(node, node.free(), device_free, class);
        let gained = match self.nodes.get(&at.node) {
            None => true,
            Some(kept) if kept.bucket == entry.bucket => return false,
            Some(kept) => gains(&kept.bucket, &entry.bucket),
        };
        self.put(at.node, entry);
        gained
    }

    fn class(&mut self, node: &Node) -> Arc<NodeClass> {
        let class = NodeClass { labels: node.spec.labels.clone(), taints: node.spec.taints.clone() };
        if let Some(kept) = self.classes.get(&class) {
            return kept.clone();
        }
        let class = Arc::new(class);
        self.classes.insert(class.clone());
        class
    }

    fn entry(&self, node: &Node, free: Resources, device_free: Vec<u32>, class: Arc<NodeClass>) -> Entry {
        let mut devices: Vec<_> = node.models.iter().copied().zip(device_free.iter().copied()).collect();
        devices.sort_unstable();
        let bucket = Bucket { free, devices, class };
        let kept = self.buckets.get_key_value(&bucket).map(|(kept, _)| kept.clone());
        Entry { bucket: kept.unwrap_or_else(|| Arc::new(bucket)), device_free }
    }

    fn put(&mut self, id: NodeId, entry: Entry) {
        self.remove(id);
        if !self.buckets.contains_key(&entry.bucket) {
            self.log.push(entry.bucket.clone());
        }
        self.buckets.entry(entry.bucket.clone()).or_default().insert(id);
        self.nodes.insert(id, entry);
        if self.log.len() > 4 * self.buckets.len() + 1_024 {
            self.compact();
        }
    }

    fn remove(&mut self, id: NodeId) {
        let Some(entry) = self.nodes.remove(&id) else { return };
        if let Some(members) = self.buckets.get_mut(&entry.bucket) {
            members.remove(&id);
            if members.is_empty() {
                self.buckets.remove(&entry.bucket);
            }
        }
    }

    /// Shortens the log to the buckets there are. Rankings that had read it whole stay.
    fn compact(&mut self) {
        let end = self.log.len();
        self.log = self.buckets.keys().cloned().collect();
        let buckets = &self.buckets;
        for ranking in self.rankings.values_mut() {
            if ranking.cursor == end {
                ranking.ranked.retain(|(_, bucket)| buckets.contains_key(bucket));
                ranking.cursor = self.log.len();
            } else {
                *ranking = Ranking { used_at: ranking.used_at, ..Ranking::default() };
            }
        }
    }

    /// The demand's ranking, brought up to date; also the work that took.
    fn ranking(&mut self, demand: &Arc<Demand>) -> (&mut Ranking, u32) {
        self.clock += 1;
        if self.rankings.len() >= RANKINGS_MAX && !self.rankings.contains_key(demand) {
            let oldest = self.rankings.iter().min_by_key(|(_, ranking)| ranking.used_at);
            if let Some(oldest) = oldest.map(|(demand, _)| demand.clone()) {
                self.rankings.remove(&oldest);
            }
        }
        let ranking = self.rankings.entry(demand.clone()).or_default();
        ranking.used_at = self.clock;
        let unread = &self.log[ranking.cursor..];
        let work = unread.len() as u32;
        let fitting = unread.iter().filter_map(|bucket| Some((score(demand, bucket)?, bucket.clone())));
        ranking.ranked.extend(fitting);
        ranking.cursor = self.log.len();
        (ranking, work)
    }

    /// The score of the demand's best node other than `avoid`, and the work it took to tell.
    pub(super) fn best(&mut self, demand: &Arc<Demand>, avoid: Option<NodeId>) -> (Option<Score>, u32) {
        let (found, work) = self.find(demand, avoid);
        (found.map(|(score, _)| score), work)
    }

    fn find(&mut self, demand: &Arc<Demand>, avoid: Option<NodeId>) -> (Option<(Score, NodeId)>, u32) {
        let (_, mut work) = self.ranking(demand);
        let Some(ranking) = self.rankings.get_mut(demand) else { return (None, work) };
        let (mut found, mut gone) = (None, Vec::new());
        for key in &ranking.ranked {
            work += 1;
            let Some(members) = self.buckets.get(&key.1) else {
                gone.push(key.clone());
                continue;
            };
            found = members.iter().find(|node| Some(**node) != avoid).map(|node| (key.0, *node));
            if found.is_some() {
                break;
            }
        }
        for key in gone {
            ranking.ranked.remove(&key);
        }
        (found, work)
    }

    /// Takes the best node's capacity for a task, noting how to give it back.
    pub(super) fn take(
        &mut self,
        state: &State,
        pool: PoolId,
        demand: &Arc<Demand>,
        avoid: Option<NodeId>,
        undo: &mut Undo,
    ) -> Option<(NodeId, Vec<DeviceShare>)> {
        let (_, id) = self.find(demand, avoid).0?;
        let node = state.node(NodeRef { pool, node: id })?;
        let old = self.nodes.get(&id)?.clone();
        let mut device_free = old.device_free.clone();
        let shares = choose_devices(demand, node, &device_free)?;
        for share in &shares {
            device_free[usize::from(share.index)] -= share.millis;
        }
        let free = old.bucket.free.checked_sub(&demand.resources)?;
        let entry = self.entry(node, free, device_free, old.bucket.class.clone());
        self.put(id, entry);
        undo.0.push((id, old));
        Some((id, shares))
    }

    /// Gives back what was taken tentatively.
    pub(super) fn undo(&mut self, undo: Undo) {
        let forgotten = usize::from(Mutant::ForgetLastUndo.is_on());
        for (id, entry) in undo.0.into_iter().skip(forgotten).rev() {
            self.put(id, entry);
        }
    }

    /// A task of this demand fits on the node as it is.
    pub(super) fn fits_node(&self, demand: &Demand, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|entry| score(demand, &entry.bucket).is_some())
    }

    /// Free device thousandths and millicores of a node that takes work.
    pub(super) fn most_free(&self, node: NodeId) -> (u64, u64) {
        self.nodes.get(&node).map_or((0, 0), |entry| {
            let devices = entry.bucket.devices.iter().map(|(_, free)| u64::from(*free)).sum();
            (devices, entry.bucket.free.cpu_millis)
        })
    }

    /// What the index holds per node, for comparing a kept one with a rebuilt one.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (NodeId, &Bucket)> {
        self.nodes.iter().map(|(id, entry)| (*id, &*entry.bucket))
    }
}

/// Something that did not fit `old` may fit `new`.
fn gains(old: &Bucket, new: &Bucket) -> bool {
    // Both are sorted by model, then by what is free: pairwise no more means no more for anybody.
    let mut pairs = old.devices.iter().zip(&new.devices);
    !new.free.fits(&old.free)
        || old.class != new.class
        || old.devices.len() != new.devices.len()
        || pairs.any(|(old, new)| old.0 != new.0 || new.1 > old.1)
}
