//! What tasks demand, which pools and nodes can satisfy it, and the profile of the demands to expect.

use std::sync::Arc;

use super::device::{DeviceAmount, DeviceModelId};
use super::pool::Capabilities;
use super::reason::PoolReason;
use super::region::RegionCode;
use super::resource::Resources;
use super::shape::Needs;
use super::spec::{Constraints, Labels, Taint};

/// What one task demands of a node. The packer treats tasks of one demand alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Demand {
    /// CPU, memory, storage and other kinds; `device_millis` is 0.
    pub resources: Resources,
    /// `None` if the task needs no device.
    pub devices: Option<DeviceDemand>,
    pub constraints: Constraints,
    pub needs: Needs,
}

/// The devices that a task demands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceDemand {
    /// Allowed models, sorted; `None` allows any.
    pub models: Option<Vec<DeviceModelId>>,
    pub amount: DeviceAmount,
}

impl DeviceDemand {
    /// True if a device of this model is acceptable.
    pub fn allows(&self, model: DeviceModelId) -> bool {
        self.models.as_ref().is_none_or(|models| models.binary_search(&model).is_ok())
    }
}

impl Demand {
    /// Returns the demanded devices in thousandths.
    pub fn device_millis(&self) -> u64 {
        self.devices.as_ref().map_or(0, |devices| devices.amount.millis())
    }

    /// True if a device of this model is acceptable; false for every model if no device is demanded.
    pub fn allows(&self, model: DeviceModelId) -> bool {
        self.devices.as_ref().is_some_and(|devices| devices.allows(model))
    }

    /// True if nodes of this class may run the task. Leaves out `constraints.pools`: a class has no pool
    /// name.
    pub fn admits(&self, class: &NodeClass) -> bool {
        exclusion(&self.constraints, self.needs, None, class.region, class.capabilities).is_none()
            && self.constraints.node_labels.iter().all(|(key, value)| class.labels.get(key) == Some(value))
            && self.tolerates(class)
    }

    /// True if the task tolerates every taint of the class.
    pub fn tolerates(&self, class: &NodeClass) -> bool {
        let tolerated =
            |taint: &Taint| self.constraints.tolerations.iter().any(|toleration| toleration.tolerates(taint));
        class.taints.iter().all(tolerated)
    }
}

/// Returns why a pool can't run a task whatever capacity its nodes have; `None` if it can.
///
/// Without a `name`, `constraints.pools` is not checked.
pub fn exclusion(
    constraints: &Constraints,
    needs: Needs,
    name: Option<&str>,
    region: RegionCode,
    capabilities: Capabilities,
) -> Option<PoolReason> {
    let allowed = &constraints.regions_allowed;
    if constraints.regions_denied.contains(&region) || !(allowed.is_empty() || allowed.contains(&region)) {
        return Some(PoolReason::RegionNotAllowed { region });
    }
    let is_named =
        |name: &str| constraints.pools.is_empty() || constraints.pools.iter().any(|pool| pool == name);
    if name.is_some_and(|name| !is_named(name)) {
        return Some(PoolReason::PoolNotAllowed);
    }
    if constraints.real_only && !capabilities.real {
        return Some(PoolReason::PoolSimulated);
    }
    if needs.processes && !capabilities.processes {
        return Some(PoolReason::RunUnsupported { needs: "processes" });
    }
    if needs.containers && !capabilities.containers {
        return Some(PoolReason::RunUnsupported { needs: "containers" });
    }
    if needs.pods && !capabilities.pods {
        return Some(PoolReason::RunUnsupported { needs: "native Kubernetes pods" });
    }
    if needs.leases && !capabilities.leases {
        return Some(PoolReason::LeaseUnsupported);
    }
    if needs.secrets && !capabilities.secrets {
        return Some(PoolReason::SecretsUnsupported);
    }
    if needs.shares && capabilities.whole_devices_only {
        return Some(PoolReason::SharesUnsupported);
    }
    None
}

/// The properties of a node and its pool that don't depend on the work that runs there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeClass {
    pub region: RegionCode,
    pub capabilities: Capabilities,
    pub labels: Labels,
    pub taints: Vec<Taint>,
}

/// The mix of demands to expect, measured from the tasks that have arrived. Empty until enough have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadProfile {
    /// Tasks that had arrived when the profile was made.
    pub arrivals: u64,
    /// Tasks that ended while a hundred arrived; at most 100.
    pub turnover_percent: u32,
    /// At most [`PROFILE_ENTRIES_MAX`](super::limit::PROFILE_ENTRIES_MAX), one per demand.
    pub entries: Vec<ProfileEntry>,
}

/// One demand of a workload profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileEntry {
    pub demand: Arc<Demand>,
    /// How often the demand arrives, relative to the other entries; recent arrivals count more.
    pub weight: u64,
    /// How often the demand overflows, that is, finds no free capacity in a full cluster, relative to the
    /// other entries.
    pub overflow: u64,
}
