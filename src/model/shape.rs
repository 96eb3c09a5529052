//! Shapes: what scheduling needs to know of a unit, and no more. Units of one shape are alike.

use super::device::DeviceAmount;
use super::id::QueueId;
use super::resource::Resources;
use super::spec::{Constraints, EnvValue, JobSpec, OnPoolLost, Run, TaskRequest};

/// A shape's number in the running state. Recovery may number shapes anew: nothing that leaves
/// the kernel, and no order of decisions, may depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShapeId(pub u32);

/// Waiting units that are interchangeable but for their place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassKey {
    pub queue: QueueId,
    pub priority: i32,
    pub shape: ShapeId,
}

/// What a unit asks of a pool and its nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// Equal tasks with their number, in the order in which a unit lists its tasks.
    pub tasks: Vec<(TaskRequest, u32)>,
    pub constraints: Constraints,
    pub needs: Needs,
}

/// What a pool must be able to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needs {
    pub processes: bool,
    pub containers: bool,
    pub pods: bool,
    pub leases: bool,
    pub secrets: bool,
    /// Parts of devices.
    pub shares: bool,
}

impl Shape {
    /// The shape of the units of group `group`, or of the whole job if it is one gang.
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
        Self {
            tasks: groups.iter().map(|group| (group.request.clone(), count(group))).collect(),
            constraints: spec.constraints.clone(),
            needs,
        }
    }

    /// Tasks of one unit.
    pub fn task_count(&self) -> u32 {
        self.tasks.iter().map(|(_, count)| count).sum()
    }

    /// What one unit takes in all.
    pub fn total(&self) -> Resources {
        // Validation has checked these sums for every job that was let in.
        self.tasks
            .iter()
            .try_fold(Resources::default(), |sum, (request, count)| {
                sum.checked_add(&request.total().checked_mul(u64::from(*count))?)
            })
            .unwrap_or_default()
    }
}
