//! Free capacity as users read it: blocks of whole devices on one node, and the part that no waiting task can
//! use.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::nodes::class_of;
use super::packing::bucket::{Bucket, ClassRef, DeviceChoice, DeviceFree};
use crate::model::demand::Demand;
use crate::model::device::DeviceModelId;
use crate::model::limit::DEVICE_MILLIS;
use crate::state::State;
use crate::state::pool::{Node, Pool};

/// Kinds of waiting tasks that are compared with each node, so that a page of nodes is a short step: more
/// than most clusters have.
const KINDS_MAX: usize = 128;
/// Waiting classes that are searched for those kinds.
const CLASSES_MAX: usize = 4_096;

/// Nodes with equally many free whole devices of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeBlock {
    pub model: String,
    /// Free devices on each of the nodes, at least one.
    pub devices: u32,
    pub nodes: u32,
}

/// Returns the free whole devices of a pool's open nodes: by model name, the largest blocks first.
pub fn free_blocks(pool: &Pool) -> Vec<FreeBlock> {
    let mut blocks = BTreeMap::<(&str, Reverse<u32>), u32>::new();
    for node in pool.nodes.values().filter(|node| node.is_open()) {
        let mut free = BTreeMap::<&str, u32>::new();
        for (index, device) in node.spec.devices.iter().enumerate() {
            if node.device_free(index) == DEVICE_MILLIS {
                *free.entry(&device.model).or_default() += 1;
            }
        }
        for (model, devices) in free {
            *blocks.entry((model, Reverse(devices))).or_default() += 1;
        }
    }
    blocks
        .into_iter()
        .map(|((model, Reverse(devices)), nodes)| FreeBlock { model: model.to_owned(), devices, nodes })
        .collect()
}

/// The kinds of waiting tasks that ask for devices and may run in one pool.
pub struct Waiting {
    demands: Vec<Demand>,
}

impl Waiting {
    /// Collects the kinds from the first `CLASSES_MAX` waiting classes, until there are `KINDS_MAX`.
    pub fn for_pool(state: &State, pool: &Pool) -> Self {
        let (mut demands, mut seen) = (Vec::new(), BTreeSet::new());
        for class in state.classes().keys().take(CLASSES_MAX) {
            let Some(shape) = state.shape(class.shape).filter(|_| seen.insert(class.shape)) else { continue };
            if pool.exclusion(shape).is_some() {
                continue;
            }
            let asked = shape.tasks.iter().map(|(request, _)| state.demand_of(request, shape));
            demands.extend(asked.filter(|demand| demand.devices.is_some()));
            if demands.len() >= KINDS_MAX {
                break;
            }
        }
        Self { demands }
    }

    /// Returns the free device thousandths of a node that none of these tasks can use while the node is as it
    /// is; `None` if there are no such tasks or the node takes no work.
    pub fn stranded_millis(&self, pool: &Pool, node: &Node) -> Option<u64> {
        if self.demands.is_empty() || !pool.is_open() || !node.is_open() {
            return None;
        }
        let device_free = |(index, model): (usize, &DeviceModelId)| DeviceFree {
            model: *model,
            free: node.device_free(index),
        };
        let mut devices: Vec<DeviceFree> = node.models.iter().enumerate().map(device_free).collect();
        devices.sort_unstable();
        let bucket = Bucket { class: ClassRef::new(class_of(pool, node)), free: node.free(), devices };
        let mut useful = BTreeSet::new();
        for choice in self.demands.iter().flat_map(|demand| bucket.choices(demand)) {
            match choice {
                DeviceChoice::None => {}
                DeviceChoice::Share(device) => drop(useful.insert(device)),
                DeviceChoice::Whole(model) => drop(useful.insert(DeviceFree { model, free: DEVICE_MILLIS })),
            }
        }
        let stranded = bucket.devices.iter().filter(|device| !useful.contains(device));
        Some(stranded.map(|device| u64::from(device.free)).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::DeviceAmount;
    use crate::model::id::NodeId;
    use crate::scheduler::{Budget, Scheduler};
    use crate::state::command::Command;
    use crate::state::fixture::{Fixture, node_spec, with_devices};

    /// Starts all that fits.
    fn start_all(world: &mut Fixture) {
        let plan = Scheduler::rebuild(&world.state).plan(&world.state, Budget::default());
        for start in plan.starts {
            world.must(Command::Start { start });
        }
    }

    #[test]
    fn free_devices_are_counted_by_the_block_they_form() {
        let mut world = Fixture::new();
        let nodes = vec![
            node_spec("n1", 64, 8),
            node_spec("n2", 64, 8),
            node_spec("n3", 64, 8),
            node_spec("n4", 64, 0),
        ];
        let pool = world.pool("p", "CN-CQ", nodes);
        world.must(Command::CordonNode { pool, node: NodeId(3), cordoned: true });
        for amount in [DeviceAmount::Whole(3), DeviceAmount::Fraction(200)] {
            world.submit_spec(with_devices(amount));
        }
        start_all(&mut world);
        let pool = world.state.pool(pool).unwrap();
        let found: Vec<(u32, u32)> =
            free_blocks(pool).iter().map(|block| (block.devices, block.nodes)).collect();
        // On one node three devices and a part of a fourth are in use. The second is empty, the third
        // cordoned.
        assert_eq!(found, [(8, 1), (4, 1)]);
    }

    #[test]
    fn free_capacity_that_no_waiting_task_can_use_is_stranded() {
        let mut world = Fixture::new();
        let pool = world.pool("p", "CN-CQ", vec![node_spec("n1", 64, 2)]);
        let stranded = |world: &Fixture| {
            let pool = world.state.pool(pool).unwrap();
            Waiting::for_pool(&world.state, pool).stranded_millis(pool, &pool.nodes[&NodeId(1)])
        };
        assert_eq!(stranded(&world), None, "no task waits");
        world.submit_spec(with_devices(DeviceAmount::Fraction(700)));
        start_all(&mut world);
        world.submit_spec(with_devices(DeviceAmount::Whole(2)));
        assert_eq!(stranded(&world), Some(1_300), "the waiting task asks for two whole devices");
        world.submit_spec(with_devices(DeviceAmount::Fraction(400)));
        assert_eq!(stranded(&world), Some(300), "a task of 400 can use the untouched device");
        world.submit_spec(with_devices(DeviceAmount::Fraction(300)));
        assert_eq!(stranded(&world), Some(0));
        world.must(Command::CordonNode { pool, node: NodeId(1), cordoned: true });
        assert_eq!(stranded(&world), None, "it takes no work");
    }
}
