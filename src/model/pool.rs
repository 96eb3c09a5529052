//! Pools, their nodes and devices, as agents report them.

use super::region::RegionCode;
use super::resource::Resources;
use super::spec::{Labels, Taint};

/// What an agent declares about its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// A DNS label, unique within the broker.
    pub name: String,
    pub region: RegionCode,
    /// Kind of backend: `host`, `simulated`, `kubernetes`, …
    pub backend: String,
    pub labels: Labels,
    pub capabilities: Capabilities,
    /// What the pool can't enforce or guarantee, one sentence each, shown by `weir describe pool`.
    pub notes: Vec<String>,
}

/// What a pool can do with a job. All `false` by default: a pool that declares nothing takes no jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// Tasks are executed; `false` means that the pool only simulates them.
    pub real: bool,
    /// Runs commands on the node itself.
    pub processes: bool,
    /// Runs container images.
    pub containers: bool,
    /// Accepts native Kubernetes pod specs.
    pub pods: bool,
    /// A component that outlives the agent stops attempts whose lease has expired.
    pub leases: bool,
    /// Resolves secrets that environment values refer to.
    pub secrets: bool,
    /// Assigns whole devices only, no fractions.
    pub whole_devices_only: bool,
}

/// How long a pool's agent has sent no message, as a state; larger is worse. The thresholds are settings of
/// the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Connectivity {
    /// The agent is connected and has reported all of its nodes and attempts.
    Ready,
    /// A few heartbeats are missing: the pool gets no new orders.
    Suspect,
    /// The heartbeat timeout has passed: an admin may abandon the pool's attempts.
    Unreachable,
    /// The shortest leases have surely expired: each attempt of a job with `on_pool_lost: requeue` is requeued
    /// when its own has.
    #[default]
    Lost,
}

/// An admin's request to empty a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    pub mode: DrainMode,
    /// When attempts that still run are evicted; `None` waits without limit.
    pub deadline: Option<super::time::Timestamp>,
}

/// What a drain does with running attempts before its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainMode {
    /// Lets them run.
    Wait,
    /// Stops them at once.
    Evict,
}

/// One machine of a pool, as its agent reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Unique within the pool: DNS labels joined by dots.
    pub name: String,
    pub labels: Labels,
    /// Sorted. A job needs a toleration for each of them.
    pub taints: Vec<Taint>,
    /// The backend itself accepts no new work on the node.
    pub cordoned: bool,
    /// What Weir may use; `device_millis` is 0, because `devices` lists the devices one by one.
    pub allocatable: Resources,
    pub devices: Vec<Device>,
}

/// One accelerator of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The model's name, as in the device catalogue.
    pub model: String,
    /// 0 where it is unknown.
    pub memory_bytes: u64,
    /// An unhealthy device gets no new tasks.
    pub healthy: bool,
    /// Thousandths of the device that Weir may use, 1 to 1,000.
    pub millis: u32,
    /// Devices of one group have a fast interconnect: a NUMA node, an NVLink island.
    pub topology_group: u16,
    /// Slice profiles that the device offers, such as `1g.10gb`.
    pub profiles: Vec<String>,
}
