//! Queues: the tenant tree, its weights, guarantees and limits.

use super::limit::LEASE_MS_DEFAULT;
use super::resource::{ResourceKind, Resources};

/// A queue's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// Path of DNS labels joined by `/`, at most [`QUEUE_DEPTH_MAX`](super::limit::QUEUE_DEPTH_MAX) of them;
    /// the parent is the path without its last label.
    pub name: String,
    /// Relative share among sibling queues, 1 to 1,000,000.
    pub weight: u32,
    /// Amounts that the queue may always use; other queues may borrow what it leaves unused.
    pub guarantee: Resources,
    /// Largest amounts that the queue and its descendants may hold at once.
    pub limit: Limits,
    /// Run-time limit of attempts whose job sets none, in milliseconds; 1 to
    /// [`DURATION_MS_MAX`](super::limit::DURATION_MS_MAX).
    pub max_run_ms_default: u64,
    /// Lease of attempts whose job sets none, in milliseconds; bounds as for [`JobSpec::lease_ms`](super::spec::JobSpec::lease_ms).
    pub lease_ms_default: u64,
}

/// Hard limits per kind of resource; `None` leaves the kind unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_millis: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub storage_bytes: Option<u64>,
    /// Thousandths of devices, of any model.
    pub device_millis: Option<u64>,
}

impl Limits {
    /// Returns the limited kinds with their limits.
    pub fn iter(&self) -> impl Iterator<Item = (ResourceKind, u64)> {
        [
            (ResourceKind::Cpu, self.cpu_millis),
            (ResourceKind::Memory, self.memory_bytes),
            (ResourceKind::Storage, self.storage_bytes),
            (ResourceKind::Device, self.device_millis),
        ]
        .into_iter()
        .filter_map(|(kind, limit)| Some((kind, limit?)))
    }

    /// Returns the first limited kind that `amounts` exceeds; `None` if all limits hold.
    pub fn first_excess(&self, amounts: &Resources) -> Option<super::resource::Excess> {
        self.iter().find_map(|(kind, have)| {
            let needed = amounts.get(&kind);
            (needed > have).then_some(super::resource::Excess { kind, needed, have })
        })
    }
}

/// Name of the queue for jobs that name none.
pub const DEFAULT_QUEUE: &str = "default";

/// Returns the settings of a queue for which only the name was given: weight 1, no guarantee, no limit, and
/// a run-time limit of one day.
pub fn default_settings(name: &str) -> QueueSpec {
    QueueSpec {
        name: name.to_owned(),
        weight: 1,
        guarantee: Resources::default(),
        limit: Limits::default(),
        // A day: long enough for most jobs, short enough that forgotten work ends.
        max_run_ms_default: 24 * 3_600 * 1_000,
        lease_ms_default: LEASE_MS_DEFAULT,
    }
}
