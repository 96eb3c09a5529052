//! Generated fleets: so many nodes of a kind.

use crate::model::limit::DEVICE_MILLIS;
use crate::model::pool::{Device, NodeSpec};
use crate::model::resource::Resources;

/// Nodes that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeKind {
    pub count: u32,
    /// What the nodes' names begin with.
    pub prefix: String,
    pub cpus: u64,
    pub memory_gib: u64,
    /// A device model; empty means none.
    pub device: String,
    pub devices: u16,
}

/// The nodes of a fleet, in order.
pub fn fleet(kinds: &[NodeKind]) -> Vec<NodeSpec> {
    kinds.iter().flat_map(|kind| (0..kind.count).map(move |number| node(kind, number))).collect()
}

fn node(kind: &NodeKind, number: u32) -> NodeSpec {
    let known = crate::model::device::built_in().find(|model| model.name == kind.device);
    let device = |slot: u16| Device {
        model: kind.device.clone(),
        memory_bytes: known.as_ref().map_or(0, |model| model.memory_bytes),
        healthy: true,
        millis: DEVICE_MILLIS,
        // Four to a switch or socket, as in most eight-device machines.
        topology_group: slot / 4,
        profiles: Vec::new(),
    };
    NodeSpec {
        name: format!("{}-{number:04}", kind.prefix),
        labels: Default::default(),
        taints: Vec::new(),
        cordoned: false,
        allocatable: Resources {
            cpu_millis: kind.cpus * 1_000,
            memory_bytes: kind.memory_gib << 30,
            ..Resources::default()
        },
        devices: (0..kind.devices).map(device).collect(),
    }
}
