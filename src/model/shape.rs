//! Shapes: the part of a unit that scheduling depends on. Units of one shape are interchangeable.

use super::device::DeviceAmount;
use super::id::QueueId;
use super::resource::Resources;
use super::spec::{Constraints, EnvValue, JobSpec, OnPoolLost, Run, TaskRequest};

/// A shape's number in the running state. Recovery may renumber shapes: nothing that leaves the kernel, and
/// no order of decisions, may depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShapeId(pub u32);

/// What a shape is called where numbers don't last: the first 128 bits of its record's SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShapeDigest(pub [u8; 16]);

/// A class of waiting units that differ only in their position in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassKey {
    pub queue: QueueId,
    pub priority: i32,
    pub shape: ShapeId,
}

/// What a unit requires of a pool and its nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// Each kind of task with its count, in the order in which a unit lists its tasks.
    pub tasks: Vec<(TaskRequest, u32)>,
    pub constraints: Constraints,
    pub needs: Needs,
}

/// Capabilities that a pool must have, each matched against [`Capabilities`](super::pool::Capabilities).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needs {
    /// Runs a command on the node itself.
    pub processes: bool,
    /// Runs a container image.
    pub containers: bool,
    /// Accepts a native Kubernetes pod spec.
    pub pods: bool,
    /// Ends attempts whose lease has expired.
    pub leases: bool,
    /// Resolves secrets that environment values refer to.
    pub secrets: bool,
    /// Shares one device among several tasks.
    pub shares: bool,
}

impl Shape {
    /// Returns the shape of the units of group `group`, or of the whole job if the job is one gang.
    ///
    /// Panics if `group` is out of range.
    pub fn of(spec: &JobSpec, group: usize) -> Self {
        let groups = if spec.gang_job { &spec.groups[..] } else { &spec.groups[group..=group] };
        let mut needs = Needs {
            leases: spec.on_pool_lost == OnPoolLost::Requeue && !spec.may_overlap,
            ..Needs::default()
        };
        for group in groups {
            match &group.run {
                Run::Process(_) => needs.processes = true,
                Run::Container { .. } => needs.containers = true,
                Run::Pod { .. } => needs.pods = true,
            }
            let amount = group.request.devices.as_ref().map(|devices| devices.amount);
            needs.shares |= matches!(amount, Some(DeviceAmount::Fraction(_)));
            let secret = |var: &super::spec::EnvVar| matches!(var.value, EnvValue::Secret { .. });
            needs.secrets |= group.run.program().env.iter().any(secret);
        }
        let count = |group: &super::spec::TaskGroup| {
            if spec.gang_job || group.gang { group.count } else { 1 }
        };
        let mut constraints = spec.constraints.clone();
        // Otherwise work that was meant to run would seem to have succeeded.
        constraints.real_only |=
            constraints.pools.is_empty() && groups.iter().any(|group| group.simulate.is_none());
        Self {
            tasks: groups.iter().map(|group| (group.request.clone(), count(group))).collect(),
            constraints,
            needs,
        }
    }

    /// Returns the number of tasks of one unit.
    pub fn task_count(&self) -> u32 {
        self.tasks.iter().map(|(_, count)| count).sum()
    }

    /// Returns the resources of one unit, all tasks together.
    pub fn total(&self) -> Resources {
        // Validation has checked these sums for every accepted job: the default is never returned.
        self.tasks
            .iter()
            .try_fold(Resources::default(), |sum, (request, count)| {
                sum.checked_add(&request.total().checked_mul(u64::from(*count))?)
            })
            .unwrap_or_default()
    }
}
