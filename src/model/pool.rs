//! Pools, their nodes and devices, as agents report them.

use super::region::RegionCode;
use super::resource::Resources;
use super::spec::{Labels, Taint};

/// What an agent declares of its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// A DNS label, unique in the broker.
    pub name: String,
    pub region: RegionCode,
    /// `host`, `simulated`, `kubernetes`, …
    pub backend: String,
    pub labels: Labels,
    pub capabilities: Capabilities,
    /// What the pool can't enforce or promise, in plain words, for `weir describe pool`.
    pub notes: Vec<String>,
}

/// What a pool can do with a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// Its tasks truly run.
    pub real: bool,
    pub processes: bool,
    pub containers: bool,
    /// It takes Kubernetes' own descriptions of pods.
    pub pods: bool,
    /// Something that outlives the agent stops attempts whose lease ended.
    pub leases: bool,
    /// It can resolve secrets that environment values refer to.
    pub secrets: bool,
    /// It gives out no parts of devices.
    pub whole_devices_only: bool,
}

/// How far a pool's silence has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Connectivity {
    /// Its agent is heard and has told all of its nodes.
    Ready,
    /// A few heartbeats are missing: no new orders.
    Suspect,
    Unreachable,
    /// Silent for long; jobs that ask for it have been requeued.
    #[default]
    Lost,
}

/// An admin's wish to empty a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    pub mode: DrainMode,
    /// When what still runs is evicted; `None` waits for ever.
    pub deadline: Option<super::time::Timestamp>,
}

/// What a drain does with running attempts before its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainMode {
    Wait,
    Evict,
}

/// One machine of a pool as its agent reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Unique in the pool: DNS labels joined by dots.
    pub name: String,
    pub labels: Labels,
    /// Sorted.
    pub taints: Vec<Taint>,
    /// The backend itself takes no new work there.
    pub cordoned: bool,
    /// What Weir may use; `device_millis` stays 0: the devices say it.
    pub allocatable: Resources,
    pub devices: Vec<Device>,
}

/// One accelerator of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its model's name.
    pub model: String,
    pub memory_bytes: u64,
    pub healthy: bool,
    /// Thousandths that Weir may use, at most 1,000.
    pub millis: u32,
    /// Devices of one group are linked closely: a NUMA node, an NVLink island.
    pub topology_group: u16,
    /// Slice profiles that the device offers, such as `1g.10gb`.
    pub profiles: Vec<String>,
}
