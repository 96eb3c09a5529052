//! What fits on a node, how well, and on which of its devices. Integers only.

use std::sync::Arc;

use crate::model::device::{DeviceAmount, DeviceModelId, DeviceShare};
use crate::model::limit::DEVICE_MILLIS;
use crate::model::resource::Resources;
use crate::model::spec::{Constraints, Labels, Taint, TaskRequest, Toleration};
use crate::state::State;
use crate::state::pool::Node;

/// What one task asks of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Demand {
    pub(super) resources: Resources,
    /// Allowed models, sorted and none for any, and how much.
    pub(super) devices: Option<(Option<Vec<DeviceModelId>>, DeviceAmount)>,
    pub(super) node_labels: Labels,
    pub(super) tolerations: Vec<Toleration>,
}

impl Demand {
    pub(super) fn new(state: &State, request: &TaskRequest, constraints: &Constraints) -> Self {
        let devices = request.devices.as_ref().map(|devices| {
            let mut models: Vec<_> =
                devices.models.iter().filter_map(|name| state.model_named(name)).collect();
            models.sort_unstable();
            ((!devices.models.is_empty()).then_some(models), devices.amount)
        });
        Self {
            resources: request.resources.clone(),
            devices,
            node_labels: constraints.node_labels.clone(),
            tolerations: constraints.tolerations.clone(),
        }
    }

    pub(super) fn allows(&self, model: DeviceModelId) -> bool {
        match &self.devices {
            Some((Some(models), _)) => models.binary_search(&model).is_ok(),
            Some((None, _)) => true,
            None => false,
        }
    }

    /// Labels and taints let the task onto nodes of this class.
    pub(super) fn admits(&self, class: &NodeClass) -> bool {
        self.node_labels.iter().all(|(key, value)| class.labels.get(key) == Some(value))
            && self.tolerates(class)
    }

    pub(super) fn tolerates(&self, class: &NodeClass) -> bool {
        class.taints.iter().all(|taint| self.tolerations.iter().any(|toleration| toleration.tolerates(taint)))
    }
}

/// What never changes as work comes and goes on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeClass {
    pub(super) labels: Labels,
    pub(super) taints: Vec<Taint>,
}

/// Nodes that are alike: of one class, with the same free capacity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bucket {
    pub(super) free: Resources,
    /// Free thousandths of each device, by model, sorted: which device is which doesn't matter.
    pub(super) devices: Vec<(DeviceModelId, u32)>,
    pub(super) class: Arc<NodeClass>,
}

/// How badly a task fits: smaller is better. What would be left on the started device, then free
/// device thousandths on the node, then free CPU and memory, 4 GiB counted as much as a core.
pub(super) type Score = (u32, u64, u64);

/// Scores a task on a node of `bucket`; `None` if it doesn't fit.
pub(super) fn score(demand: &Demand, bucket: &Bucket) -> Option<Score> {
    if !demand.resources.fits(&bucket.free) || !demand.admits(&bucket.class) {
        return None;
    }
    let free_devices: u64 = bucket.devices.iter().map(|(_, free)| u64::from(*free)).sum();
    let (sliver, left) = match &demand.devices {
        None => (0, free_devices),
        Some((_, DeviceAmount::Whole(count))) => {
            whole_model(demand, &bucket.devices, *count)?;
            (0, free_devices - u64::from(*count) * u64::from(DEVICE_MILLIS))
        }
        Some((_, DeviceAmount::Fraction(millis))) => {
            let fitting =
                bucket.devices.iter().filter(|(model, free)| demand.allows(*model) && free >= millis);
            let tightest = fitting.map(|(_, free)| *free).min()?;
            (tightest - millis, free_devices - u64::from(*millis))
        }
    };
    let cpu_left = bucket.free.cpu_millis - demand.resources.cpu_millis;
    let memory_left = (bucket.free.memory_bytes - demand.resources.memory_bytes) >> 22;
    Some((sliver, left, cpu_left + memory_left))
}

/// The first model, in the catalogue's order, of which a node has `count` untouched devices.
fn whole_model(demand: &Demand, devices: &[(DeviceModelId, u32)], count: u32) -> Option<DeviceModelId> {
    let mut at = 0;
    while let Some((model, _)) = devices.get(at).copied() {
        let same = devices[at..].iter().take_while(|(other, _)| *other == model).count();
        let untouched = devices[at..at + same].iter().filter(|(_, free)| *free == DEVICE_MILLIS).count();
        if demand.allows(model) && untouched >= count as usize {
            return Some(model);
        }
        at += same;
    }
    None
}

/// Chooses a task's devices on a node whose free thousandths per device are `free`.
///
/// Whole devices come from one topology group where one has enough; a fraction goes to the
/// device that it fills best.
pub(super) fn choose_devices(demand: &Demand, node: &Node, free: &[u32]) -> Option<Vec<DeviceShare>> {
    let Some((_, amount)) = &demand.devices else { return Some(Vec::new()) };
    let allowed = |index: &usize| node.models.get(*index).is_some_and(|model| demand.allows(*model));
    match amount {
        DeviceAmount::Fraction(millis) => {
            let fitting = (0..free.len()).filter(|index| allowed(index) && free[*index] >= *millis);
            let index = fitting.min_by_key(|index| (free[*index], *index))?;
            Some(vec![DeviceShare { index: index as u16, millis: *millis }])
        }
        DeviceAmount::Whole(count) => {
            let count = *count as usize;
            let mut sorted: Vec<(DeviceModelId, u32)> =
                node.models.iter().copied().zip(free.iter().copied()).collect();
            sorted.sort_unstable();
            let model = whole_model(demand, &sorted, count as u32)?;
            let mut untouched: Vec<usize> = (0..free.len())
                .filter(|index| node.models[*index] == model && free[*index] == DEVICE_MILLIS)
                .collect();
            let group =
                |index: &usize| node.spec.devices.get(*index).map_or(0, |device| device.topology_group);
            // The group that is just large enough first, then whatever comes next to it.
            let size = |wanted: u16| untouched.iter().filter(|index| group(index) == wanted).count();
            let keys: Vec<_> = untouched
                .iter()
                .map(|index| {
                    let size = size(group(index));
                    (size < count, size, group(index), *index)
                })
                .collect();
            let mut order: Vec<_> = keys.into_iter().collect();
            order.sort_unstable();
            untouched = order.into_iter().map(|(_, _, _, index)| index).take(count).collect();
            let share = |index: usize| DeviceShare { index: index as u16, millis: DEVICE_MILLIS };
            Some(untouched.into_iter().map(share).collect())
        }
    }
}
