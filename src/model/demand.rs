//! What tasks ask for, which pools and nodes would have them at all, and what is expected to come.

use std::sync::Arc;

use super::device::{DeviceAmount, DeviceModelId};
use super::pool::Capabilities;
use super::reason::PoolReason;
use super::region::RegionCode;
use super::resource::Resources;
use super::shape::Needs;
use super::spec::{Constraints, Labels, Taint};

/// What one task asks of a node. Tasks of one demand are alike to the packer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Demand {
    /// Without devices.
    pub resources: Resources,
    pub devices: Option<DeviceDemand>,
    pub constraints: Constraints,
    pub needs: Needs,
}

/// The devices that a task asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceDemand {
    /// Allowed models, sorted; `None` allows any.
    pub models: Option<Vec<DeviceModelId>>,
    pub amount: DeviceAmount,
}

impl DeviceDemand {
    /// A device of this model would do.
    pub fn allows(&self, model: DeviceModelId) -> bool {
        self.models.as_ref().is_none_or(|models| models.binary_search(&model).is_ok())
    }
}

impl Demand {
    /// Device thousandths asked for.
    pub fn device_millis(&self) -> u64 {
        self.devices.as_ref().map_or(0, |devices| devices.amount.millis())
    }

    /// A device of this model would do; none would if no device is asked for.
    pub fn allows(&self, model: DeviceModelId) -> bool {
        self.devices.as_ref().is_some_and(|devices| devices.allows(model))
    }

    /// Nodes of this class may take the task, if its pool's name may.
    pub fn admits(&self, class: &NodeClass) -> bool {
        exclusion(&self.constraints, self.needs, None, class.region, class.capabilities).is_none()
            && self.constraints.node_labels.iter().all(|(key, value)| class.labels.get(key) == Some(value))
            && self.tolerates(class)
    }

    /// The task tolerates every taint of the class.
    pub fn tolerates(&self, class: &NodeClass) -> bool {
        let tolerated =
            |taint: &Taint| self.constraints.tolerations.iter().any(|toleration| toleration.tolerates(taint));
        class.taints.iter().all(tolerated)
    }
}

/// Why a pool as such can't take a task, whatever its nodes hold. Without a `name` any would do.
pub fn exclusion(
    constraints: &Constraints,
    needs: Needs,
    name: Option<&str>,
    region: RegionCode,
    able: Capabilities,
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
    if constraints.real_only && !able.real {
        return Some(PoolReason::PoolSimulated);
    }
    if needs.processes && !able.processes {
        return Some(PoolReason::RunUnsupported { needs: "processes" });
    }
    if needs.containers && !able.containers {
        return Some(PoolReason::RunUnsupported { needs: "containers" });
    }
    if needs.pods && !able.pods {
        return Some(PoolReason::RunUnsupported { needs: "pods of Kubernetes' own" });
    }
    if needs.leases && !able.leases {
        return Some(PoolReason::LeaseUnsupported);
    }
    if needs.secrets && !able.secrets {
        return Some(PoolReason::SecretsUnsupported);
    }
    if needs.shares && able.whole_devices_only {
        return Some(PoolReason::SharesUnsupported);
    }
    None
}

/// What of a node and its pool never changes as work comes and goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeClass {
    pub region: RegionCode,
    pub capabilities: Capabilities,
    pub labels: Labels,
    pub taints: Vec<Taint>,
}

/// What has been learned of the tasks that come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadProfile {
    /// Tasks that had come by then.
    pub arrivals: u64,
    /// By demand.
    pub kinds: Vec<Expected>,
}

/// A kind of task that comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub demand: Arc<Demand>,
    /// How often, next to the others.
    pub weight: u64,
    /// How often it finds no room once the cluster is full, next to the others.
    pub overflow: u64,
}
