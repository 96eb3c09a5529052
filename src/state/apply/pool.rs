//! Folds what happens to pools and nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::Applied;
use crate::model::change::Change;
use crate::model::id::{Epoch, InstanceId, JobId, NodeId, NodeRef, PoolId};
use crate::model::limit::NODES_PER_POOL_MAX;
use crate::model::pool::{Connectivity, Drain, NodeSpec, PoolSpec};
use crate::model::resource::Resources;
use crate::model::time::Timestamp;
use crate::state::State;
use crate::state::index::memory;
use crate::state::index::timers::Timer;
use crate::state::pool::sum_of;
use crate::state::pool::{FailureTracker, Node, Pool};
use crate::state::snapshot::Key;

impl State {
    pub(super) fn register_pool(
        &mut self,
        id: PoolId,
        spec: &PoolSpec,
        instance: InstanceId,
        key_digest: [u8; 16],
        out: &mut Applied,
    ) {
        let pool = Pool {
            id,
            spec: spec.clone(),
            instance,
            key_digest,
            epoch: Epoch(0),
            served_epoch: Epoch(0),
            connectivity: Connectivity::Lost,
            not_ready_since: Some(self.now),
            cordoned: false,
            drain: None,
            registered_at: self.now,
            revision: self.revision,
            nodes: BTreeMap::new(),
            next_node: 1,
            cordoned_absent: BTreeSet::new(),
            node_names: BTreeMap::new(),
            attempts: BTreeSet::new(),
            total: Resources::default(),
            committed: Resources::default(),
        };
        self.touch(Key::Pool(id));
        self.index.names.pools.insert(spec.name.clone(), id);
        self.index.memory.change_pool(id, 0, memory::of_pool_spec(spec));
        let before = self.pools.insert(id, pool);
        assert!(before.is_none(), "pool {id} is registered twice");
        self.next.pool = self.next.pool.max(id.0 + 1);
        self.index.not_ready.insert(id);
        out.changes.push(Change::Pool(id));
    }

    pub(super) fn update_pool(&mut self, id: PoolId, spec: &PoolSpec, out: &mut Applied) {
        let before = self.pools.get(&id).map_or(0, |pool| memory::of_pool_spec(&pool.spec));
        self.index.memory.change_pool(id, before, memory::of_pool_spec(spec));
        self.change_pool(id, out, |pool| pool.spec = spec.clone());
    }

    /// Drops a pool with its nodes and prices. Its number is never given again.
    pub(super) fn delete_pool(&mut self, id: PoolId, out: &mut Applied) {
        self.change_drain(id, None, out);
        let Some(pool) = self.pools.get(&id) else { return };
        assert!(pool.attempts.is_empty(), "pool {id} is deleted with live attempts");
        let nodes: Vec<NodeId> = pool.nodes.keys().copied().collect();
        for node in nodes {
            let at = NodeRef { pool: id, node };
            self.forget_node(at);
            out.changes.push(Change::Node(at));
        }
        let prices: Vec<Timestamp> = self.prices_of(id).map(|price| price.valid_from).collect();
        for from in prices {
            self.touch(Key::Price((id, from)));
            self.market.prices.remove(&(id, from));
        }
        self.touch(Key::Pool(id));
        if let Some(pool) = self.pools.remove(&id) {
            self.index.names.pools.remove(&pool.spec.name);
        }
        self.index.not_ready.remove(&id);
        self.index.memory.remove_pool(id);
        out.changes.push(Change::Pool(id));
    }

    pub(super) fn change_pool(&mut self, id: PoolId, out: &mut Applied, change: impl FnOnce(&mut Pool)) {
        let revision = self.revision;
        let Some(pool) = self.pool_mut(id) else { panic!("pool {id} changes but is not registered") };
        change(pool);
        pool.revision = revision;
        self.reconcile_pool(id);
        out.changes.push(Change::Pool(id));
    }

    pub(super) fn change_connectivity(&mut self, id: PoolId, connectivity: Connectivity, out: &mut Applied) {
        let now = self.now;
        self.change_pool(id, out, |pool| {
            pool.connectivity = connectivity;
            if connectivity == Connectivity::Ready {
                pool.served_epoch = pool.epoch;
            }
            pool.not_ready_since =
                (connectivity != Connectivity::Ready).then(|| pool.not_ready_since.unwrap_or(now));
        });
        match connectivity {
            Connectivity::Ready => self.index.not_ready.remove(&id),
            Connectivity::Suspect | Connectivity::Unreachable | Connectivity::Lost => {
                self.index.not_ready.insert(id)
            }
        };
    }

    pub(super) fn change_drain(&mut self, id: PoolId, drain: Option<Drain>, out: &mut Applied) {
        let old = self.pools.get(&id).and_then(|pool| pool.drain?.deadline);
        if let Some(at) = old {
            self.index.timers.remove(&(at, Timer::Drain(id)));
        }
        if let Some(at) = drain.and_then(|drain| drain.deadline) {
            self.index.timers.insert((at, Timer::Drain(id)));
        }
        self.change_pool(id, out, |pool| pool.drain = drain);
    }

    pub(super) fn report_node(&mut self, pool_id: PoolId, id: NodeId, spec: &NodeSpec, out: &mut Applied) {
        let models =
            spec.devices.iter().map(|device| self.model_named(&device.model).unwrap_or_default()).collect();
        let (at, revision) = (NodeRef { pool: pool_id, node: id }, self.revision);
        self.touch(Key::Pool(pool_id));
        self.touch(Key::Node(at));
        let Some(pool) = self.pools.get_mut(&pool_id) else {
            panic!("node {} of an unknown pool", spec.name)
        };
        let before = counted(pool, id);
        let bytes = pool.nodes.get(&id).map_or(0, |node| memory::of_node(&node.spec));
        self.index.memory.change_pool(pool_id, bytes, memory::of_node(spec));
        match pool.nodes.get_mut(&id) {
            Some(node) => {
                node.spec = spec.clone();
                node.models = models;
                node.gone = false;
                node.revision = revision;
                node.fit_devices();
            }
            None => {
                let cordoned = pool.cordoned_absent.remove(&spec.name);
                pool.nodes.insert(id, Node { cordoned, ..Node::new(id, spec.clone(), models, revision) });
                pool.next_node = pool.next_node.max(id.0 + 1);
            }
        }
        pool.node_names.insert(spec.name.clone(), id);
        recount(pool, id, &before);
        out.changes.push(Change::Node(at));
    }

    pub(super) fn remove_node(&mut self, pool: PoolId, id: NodeId, out: &mut Applied) {
        let (at, revision) = (NodeRef { pool, node: id }, self.revision);
        self.touch(Key::Node(at));
        let Some(pool) = self.pools.get_mut(&pool) else {
            panic!("a node of unknown pool {pool} is removed")
        };
        let before = counted(pool, id);
        let Some(node) = pool.nodes.get_mut(&id) else { panic!("node {id} is removed but is not there") };
        node.gone = true;
        node.revision = revision;
        let idle = node.tasks == 0;
        recount(pool, id, &before);
        if idle {
            self.forget_node(at);
        }
        out.changes.push(Change::Node(at));
    }

    /// Drops a node that is gone and holds nothing any more.
    pub(super) fn forget_node(&mut self, at: NodeRef) {
        self.touch(Key::Pool(at.pool));
        self.touch(Key::Node(at));
        let Some(pool) = self.pools.get_mut(&at.pool) else { return };
        if let Some(node) = pool.nodes.remove(&at.node) {
            self.index.memory.change_pool(at.pool, memory::of_node(&node.spec), 0);
            pool.node_names.remove(&node.spec.name);
            if node.cordoned && pool.cordoned_absent.len() < NODES_PER_POOL_MAX {
                pool.cordoned_absent.insert(node.spec.name.clone());
            }
            if let Some(until) = node.failure_tracker.quarantined_until {
                self.index.timers.remove(&(until, Timer::ReleaseNode(at)));
            }
        }
    }

    pub(super) fn change_node(
        &mut self,
        pool: PoolId,
        id: NodeId,
        out: &mut Applied,
        change: impl FnOnce(&mut Node),
    ) {
        let (at, revision) = (NodeRef { pool, node: id }, self.revision);
        self.touch(Key::Node(at));
        if let Some(node) = self.pools.get_mut(&pool).and_then(|pool| pool.nodes.get_mut(&id)) {
            change(node);
            node.revision = revision;
        }
        out.changes.push(Change::Node(at));
    }

    pub(super) fn quarantine_node(&mut self, pool: PoolId, id: NodeId, until: Timestamp, out: &mut Applied) {
        self.index.timers.insert((until, Timer::ReleaseNode(NodeRef { pool, node: id })));
        self.change_node(pool, id, out, |node| {
            node.failure_tracker = node.failure_tracker.quarantined(until)
        });
    }

    pub(super) fn release_node(&mut self, pool: PoolId, id: NodeId, out: &mut Applied) {
        let at = NodeRef { pool, node: id };
        if let Some(until) = self.node(at).and_then(|node| node.failure_tracker.quarantined_until) {
            self.index.timers.remove(&(until, Timer::ReleaseNode(at)));
        }
        self.change_node(pool, id, out, |node| node.failure_tracker.quarantined_until = None);
    }

    /// Counts a fault of a node, or forgets them all when it has done its part.
    pub(super) fn note_node_health(&mut self, at: NodeRef, job: JobId, fault: bool) {
        let Some(failure_tracker) = self.node(at).map(|node| node.failure_tracker) else { return };
        let after = if fault {
            failure_tracker.after_fault(job)
        } else {
            FailureTracker {
                quarantined_until: failure_tracker.quarantined_until,
                ..FailureTracker::default()
            }
        };
        if after == failure_tracker {
            return;
        }
        self.touch(Key::Node(at));
        if let Some(node) = self.pools.get_mut(&at.pool).and_then(|pool| pool.nodes.get_mut(&at.node)) {
            node.failure_tracker = after;
        }
    }
}

/// What a node adds to its pool's total.
fn counted(pool: &Pool, id: NodeId) -> Resources {
    pool.nodes.get(&id).filter(|node| !node.gone).map(Node::total).unwrap_or_default()
}

/// Updates a pool's total after one node changed.
///
/// # Panics
/// If the totals don't add up: `decide` refuses inventories whose sum exceeds 64 bits.
fn recount(pool: &mut Pool, id: NodeId, before: &Resources) {
    let others = pool.total.checked_sub(before);
    let name = &pool.spec.name;
    let others = others.unwrap_or_else(|| panic!("the total of pool {name} lacks one of its nodes"));
    pool.total = sum_of(&others, &counted(pool, id));
}
