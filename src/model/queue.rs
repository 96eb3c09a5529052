//! Queues: the tree of tenants, its weights, guarantees and limits.

use super::resource::{ResourceKind, Resources};

/// A queue's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// Path of DNS labels joined by `/`; the parent is the path without its last label.
    pub name: String,
    /// Share among siblings, 1 or more.
    pub weight: u32,
    /// What the queue is promised; other queues may borrow it.
    pub guarantee: Resources,
    /// What the queue may hold at once.
    pub limit: Limits,
    /// Longest run of attempts whose job names none.
    pub max_run_ms_default: u64,
}

/// Hard limits: of the kinds named, no more than this; other kinds are free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_millis: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub storage_bytes: Option<u64>,
    pub device_millis: Option<u64>,
}

impl Limits {
    /// The limited kinds with their limits.
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

    /// The first limited kind of which `amounts` holds too much.
    pub fn first_excess(&self, amounts: &Resources) -> Option<super::resource::Excess> {
        self.iter().find_map(|(kind, have)| {
            let needed = amounts.get(&kind);
            (needed > have).then_some(super::resource::Excess { kind, needed, have })
        })
    }
}

/// The queue of jobs that name none.
pub const DEFAULT_QUEUE: &str = "default";

/// Settings of a new queue that names nothing but itself.
pub fn default_settings(name: &str) -> QueueSpec {
    QueueSpec {
        name: name.to_owned(),
        weight: 1,
        guarantee: Resources::default(),
        limit: Limits::default(),
        // A day: long enough for most, short enough that forgotten work ends.
        max_run_ms_default: 24 * 3_600 * 1_000,
    }
}
