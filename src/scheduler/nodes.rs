//! Converts the nodes of open pools to the packer's form, for the index, for samples and for what-if copies.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Scheduler;
use super::blocked::FreedCapacity;
use super::packing::bucket::ClassRef;
use super::packing::policy::Scorer;
use super::packing::profile::SAMPLE_NODES_MAX;
use super::packing::{Device, Node, Packer};
use crate::model::demand::NodeClass;
use crate::model::id::{NodeRef, PoolId};
use crate::model::pool::{Capabilities, Device as SpecDevice};
use crate::model::region::RegionCode;
use crate::state::State;
use crate::state::pool::{Node as StateNode, Pool};

/// The properties of a pool that apply to all of its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PoolTraits {
    pub(super) open: bool,
    region: RegionCode,
    capabilities: Capabilities,
}

/// Each pool's traits at its latest change.
pub(super) type Pools = BTreeMap<PoolId, PoolTraits>;

impl Scheduler {
    /// Updates a pool and, if its traits changed, all of its nodes. Only the nodes of an open pool are
    /// packed.
    pub(super) fn fold_pool(&mut self, state: &State, id: PoolId) {
        let Some(pool) = state.pool(id) else {
            self.pools.remove(&id);
            return self.packer.remove_pool(id);
        };
        let spec = &pool.spec;
        let traits =
            PoolTraits { open: pool.is_open(), region: spec.region, capabilities: spec.capabilities };
        let old = self.pools.insert(id, traits.clone());
        if old.as_ref() == Some(&traits) {
            return;
        }
        self.packer.set_pool(id, &pool.spec.name);
        for node in pool.nodes.values() {
            let at = NodeRef { pool: id, node: node.id };
            self.set_node(state, at);
        }
        if traits.open && old.is_none_or(|old| !old.open) {
            self.blocked.note_freed(FreedCapacity::Pool(id));
        }
    }

    /// Updates a node from the state. Returns whether something may fit it now that did not fit before.
    pub(super) fn set_node(&mut self, state: &State, at: NodeRef) -> bool {
        let open = state.pool(at.pool).filter(|pool| pool.is_open());
        let node = state.node(at).filter(|node| node.is_open());
        let (Some(pool), Some(node)) = (open, node) else {
            self.packer.remove(at);
            self.reserved.remove(at);
            return false;
        };
        // The class and the devices rarely change: a node shares them with its earlier version.
        let old = self.packer_of(at).node(at).map(|old| (old.class.clone(), old.devices.clone()));
        let class = old.as_ref().map(|(class, _)| class).filter(|class| is_class(class, pool, node));
        let class = class.cloned().unwrap_or_else(|| self.class(pool, node));
        let same = |devices: &&Arc<[Device]>| devices.iter().copied().eq(devices_of(node));
        let devices = old.as_ref().map(|(_, devices)| devices).filter(same).cloned();
        let device_free = (0..node.spec.devices.len()).map(|index| node.device_free(index)).collect();
        let devices = devices.unwrap_or_else(|| devices_of(node).collect());
        self.packer_of(at).set(at, Node { class, free: node.free(), devices, device_free })
    }

    /// Returns a node that takes work, reserved or not.
    pub(super) fn node(&self, at: NodeRef) -> Option<&Node> {
        self.packer.node(at).or_else(|| self.reserved.packer.node(at))
    }

    /// The packer that a node belongs to.
    pub(super) fn packer_of(&mut self, at: NodeRef) -> &mut Packer {
        if self.reserved.contains(at) { &mut self.reserved.packer } else { &mut self.packer }
    }

    fn class(&mut self, pool: &Pool, node: &StateNode) -> ClassRef {
        let class = ClassRef::new(class_of(pool, node));
        if let Some(shared) = self.node_classes.get(&class) {
            return shared.clone();
        }
        // Labels that change all the time must not fill the memory.
        if self.node_classes.len() >= CLASSES_MAX {
            self.node_classes.clear();
        }
        self.node_classes.insert(class.clone());
        class
    }
}

/// Distinct node classes that are shared between equal nodes: more than any cluster has.
const CLASSES_MAX: usize = 65_536;

/// A node's class.
pub(super) fn class_of(pool: &Pool, node: &StateNode) -> NodeClass {
    NodeClass {
        region: pool.spec.region,
        capabilities: pool.spec.capabilities,
        labels: node.spec.labels.clone(),
        taints: node.spec.taints.clone(),
    }
}

pub(super) fn is_class(class: &NodeClass, pool: &Pool, node: &StateNode) -> bool {
    class.region == pool.spec.region
        && class.capabilities == pool.spec.capabilities
        && class.labels == node.spec.labels
        && class.taints == node.spec.taints
}

fn devices_of(node: &StateNode) -> impl Iterator<Item = Device> + '_ {
    let models = node.models.iter();
    models
        .zip(&node.spec.devices)
        .map(|(model, device)| Device { model: *model, topology_group: device.topology_group })
}

/// A sample of the open nodes of open pools, each as if it were empty: at most [`SAMPLE_NODES_MAX`], spread
/// evenly over all pools.
pub(super) fn sample(state: &State) -> Vec<Node> {
    let pools = || state.pools().filter(|pool| pool.is_open());
    let step = pools().map(|pool| pool.nodes.len()).sum::<usize>().div_ceil(SAMPLE_NODES_MAX).max(1);
    let (mut sample, mut passed, mut due) = (Vec::with_capacity(SAMPLE_NODES_MAX), 0, 0);
    for pool in pools() {
        let next = passed + pool.nodes.len();
        // Most nodes are skipped without a read, most pools without a walk: with 100,000 nodes, reading all
        // of them takes ten milliseconds.
        let mut numbered = (passed..).zip(pool.nodes.values());
        while due < next
            && let Some((at, node)) = numbered.find(|(at, node)| *at >= due && node.is_open())
        {
            sample.push(emptied_node(pool, node));
            due = (at / step + 1) * step;
        }
        passed = next;
    }
    sample
}

/// A node as if it were empty; unhealthy devices have nothing free.
pub(super) fn emptied(node: &StateNode, class: ClassRef, devices: Arc<[Device]>) -> Node {
    let whole = |device: &SpecDevice| device.millis * u32::from(device.healthy);
    let device_free = node.spec.devices.iter().map(whole).collect();
    Node { class, free: node.spec.allocatable.clone(), devices, device_free }
}

/// The same for a node of a pool, with a class of its own.
pub(super) fn emptied_node(pool: &Pool, node: &StateNode) -> Node {
    emptied(node, ClassRef::new(class_of(pool, node)), devices_of(node).collect())
}

/// A copy of one pool that places by best fit: its open nodes as they are, as if the pool were open.
pub(super) fn present_copy(pool: &Pool) -> Packer {
    let mut packer = Packer::new(Scorer::BestFit);
    for node in pool.nodes.values().filter(|node| node.is_open()) {
        let device_free = (0..node.spec.devices.len()).map(|index| node.device_free(index)).collect();
        let free = node.free();
        let present = Node { free, device_free, ..emptied_node(pool, node) };
        packer.set(NodeRef { pool: pool.id, node: node.id }, present);
    }
    packer
}

/// A copy of one pool that places by best fit: every node that is not gone, as if it were empty and open.
pub(super) fn emptied_copy(pool: &Pool) -> Packer {
    let mut packer = Packer::new(Scorer::BestFit);
    for node in pool.nodes.values().filter(|node| !node.gone) {
        packer.set(NodeRef { pool: pool.id, node: node.id }, emptied_node(pool, node));
    }
    packer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::NodeId;
    use crate::state::command::Command;
    use crate::state::fixture::{Fixture, node_spec};

    /// How many nodes of each pool are in the sample. Nodes of one pool have 4 cores, of the other 8.
    fn sampled(world: &Fixture) -> [usize; 2] {
        let sample = sample(&world.state);
        let of = |cores: u64| sample.iter().filter(|node| node.free.cpu_millis == 1_000 * cores).count();
        assert_eq!(of(4) + of(8), sample.len());
        [of(4), of(8)]
    }

    #[test]
    fn sample_is_spread_over_open_nodes() {
        let mut world = Fixture::new();
        let nodes = |cores, count| (0..count).map(|at| node_spec(&format!("n{at}"), cores, 0)).collect();
        world.pool("few", "CN-CQ", nodes(4, 10));
        let many = world.pool("many", "CN-CQ", nodes(8, 2 * SAMPLE_NODES_MAX));
        let [few, of_many] = sampled(&world);
        assert!(
            few == 4 && (SAMPLE_NODES_MAX * 2 / 3..=SAMPLE_NODES_MAX - few).contains(&of_many),
            "{few} {of_many}"
        );
        let ids: Vec<NodeId> = world.state.pool(many).unwrap().nodes.keys().copied().collect();
        for (at, node) in ids.iter().enumerate() {
            // All but every fifth.
            if at % 5 != 0 {
                world.must(Command::CordonNode { pool: many, node: *node, cordoned: true });
            }
        }
        let [few, of_many] = sampled(&world);
        let open = ids.len().div_ceil(5);
        assert!(few == 4 && (open * 2 / 3..=open).contains(&of_many), "{few} {of_many} of {open}");
        world.must(Command::CordonPool { pool: many, cordoned: true });
        assert_eq!(sampled(&world), [10, 0]);
    }
}
