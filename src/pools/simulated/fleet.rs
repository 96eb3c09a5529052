//! Generated fleets: a number of equal nodes per kind.

use crate::model::limit::DEVICE_MILLIS;
use crate::model::pool::{Device, NodeSpec};
use crate::model::resource::Resources;

/// A number of equal nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeKind {
    pub count: u32,
    /// The nodes are named `PREFIX-0000`, `PREFIX-0001` and so on.
    pub prefix: String,
    pub cpus: u64,
    pub memory_gib: u64,
    /// The model of the devices; empty means no devices.
    pub device: String,
    /// Devices per node.
    pub devices: u16,
}

/// Generates the nodes of a fleet, in the order of its kinds.
pub fn fleet(kinds: &[NodeKind]) -> Vec<NodeSpec> {
    kinds.iter().flat_map(|kind| (0..kind.count).map(move |number| node(kind, number))).collect()
}

fn node(kind: &NodeKind, number: u32) -> NodeSpec {
    let model = crate::model::device::built_in().find(|model| model.name == kind.device);
    let device = |slot: u16| Device {
        model: kind.device.clone(),
        memory_bytes: model.as_ref().map_or(0, |model| model.memory_bytes),
        healthy: true,
        millis: DEVICE_MILLIS,
        // Four devices per switch or socket, as in most machines with eight.
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
