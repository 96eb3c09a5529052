//! Job specs: task groups and the constraints and policies they share.

use std::collections::BTreeMap;

use super::device::DeviceAmount;
use super::id::JobId;
use super::interval::IntervalSet;
use super::limit::{LEASE_MS_DEFAULT, NODE_LOSSES_DEFAULT};
use super::region::RegionCode;
use super::resource::Resources;

/// Labels of an object, sorted by key.
pub type Labels = BTreeMap<String, String>;

/// A job as submitted, validated, with its defaults filled in. It does not depend on the kind of backend,
/// except through [`Run::Pod`]. Bounds are in [`limit`](super::limit).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSpec {
    /// A name for people, in any script, at most [`DISPLAY_NAME_LEN_MAX`](super::limit::DISPLAY_NAME_LEN_MAX) bytes;
    /// may be empty. Not unique.
    pub display_name: String,
    pub labels: Labels,
    /// Jobs of higher priority go first within their queue's share; at most
    /// [`PRIORITY_MAX`](super::limit::PRIORITY_MAX) above or below 0.
    pub priority: i32,
    /// At least one, at most [`GROUPS_PER_JOB_MAX`](super::limit::GROUPS_PER_JOB_MAX).
    pub groups: Vec<TaskGroup>,
    /// All tasks of all groups form one gang.
    pub gang_job: bool,
    pub constraints: Constraints,
    pub retry: RetryPolicy,
    pub on_pool_lost: OnPoolLost,
    /// The lost attempt may still run while its replacement runs. A job with `Requeue` can then use pools
    /// without leases as well.
    pub may_overlap: bool,
    /// How long an attempt may go on, and its unit is not requeued, while its pool has no contact with the broker:
    /// [`LEASE_MS_MIN`](super::limit::LEASE_MS_MIN) to [`LEASE_MS_MAX`](super::limit::LEASE_MS_MAX). 0 for jobs that
    /// are not requeued, until the queue's default is filled in, and in old journals: see [`Self::lease_ms`].
    pub lease_ms: u64,
    pub on_unit_failure: OnUnitFailure,
    /// Run-time limit of one attempt; 0 until the queue's default is filled in.
    pub max_run_ms: u64,
    /// Time from an attempt's order until all of its tasks must run, or it ends as `StartFailed`; 0 sets no
    /// limit.
    pub start_limit_ms: u64,
    /// Time from the termination signal to the kill signal.
    pub grace_ms: u64,
    /// Jobs that must end before this one starts.
    pub depends_on: Vec<Dependency>,
    /// Features that the broker must support: a broker that lacks one rejects the job. No feature is defined
    /// yet.
    pub required_features: Vec<String>,
}

impl JobSpec {
    /// The lease of the job's attempts, in milliseconds; `None` if its units wait for a lost pool.
    pub fn lease_ms(&self) -> Option<u64> {
        let lease_ms = if self.lease_ms == 0 { LEASE_MS_DEFAULT } else { self.lease_ms };
        (self.on_pool_lost == OnPoolLost::Requeue).then_some(lease_ms)
    }
}

/// `count` equal tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskGroup {
    /// A DNS label, unique within the job.
    pub name: String,
    /// 1 to [`TASKS_PER_GROUP_MAX`](super::limit::TASKS_PER_GROUP_MAX).
    pub count: u32,
    /// The tasks start and end together. Without it, each task is a unit of its own, unless the whole job is
    /// a gang.
    pub gang: bool,
    pub request: TaskRequest,
    pub run: Run,
    /// Behaviour in pools that simulate tasks. `None` excludes these pools, unless the job names them.
    pub simulate: Option<Simulate>,
    /// Which tasks of a larger group these are; `None` if they are all. Its length is `count`.
    pub selection: Option<Selection>,
}

/// Some tasks of a larger group, such as those that are run once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// At most [`INDEX_RANGES_MAX`](super::limit::INDEX_RANGES_MAX) ranges.
    pub indices: IntervalSet,
    /// How many tasks the larger group has: more than the largest index.
    pub of: u32,
}

impl TaskGroup {
    /// Returns the index with which a task's program finds its part of the work.
    pub fn index_of(&self, task: u32) -> u32 {
        self.selection.as_ref().and_then(|selection| selection.indices.nth(task)).unwrap_or(task)
    }

    /// Returns each task with its index, in ascending order of both.
    pub fn tasks_with_indices(&self) -> impl Iterator<Item = (u32, u32)> {
        let whole = if self.selection.is_some() { 0..0 } else { 0..self.count };
        let selected = self.selection.iter().flat_map(|selection| selection.indices.iter());
        (0..self.count).zip(selected.chain(whole))
    }

    /// Returns into how many parts the work is divided.
    pub fn index_count(&self) -> u32 {
        self.selection.as_ref().map_or(self.count, |selection| selection.of)
    }
}

/// The resources that one task requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskRequest {
    /// CPU, memory, storage and other kinds; `device_millis` is 0.
    pub resources: Resources,
    /// `None` if the task needs no device.
    pub devices: Option<DeviceRequest>,
}

impl TaskRequest {
    /// Returns the whole request as one vector, with the devices in `device_millis`.
    pub fn total(&self) -> Resources {
        let device_millis = self.devices.as_ref().map_or(0, |devices| devices.amount.millis());
        Resources { device_millis, ..self.resources.clone() }
    }
}

/// A request for devices of one of several models.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceRequest {
    /// Alternatives, sorted; empty means any model.
    pub models: Vec<String>,
    pub amount: DeviceAmount,
}

/// What a task runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// A command on the node itself.
    Process(Program),
    /// A container, for pools that run images.
    Container { image: String, program: Program },
    /// A native Kubernetes PodSpec in JSON, for pools that are clusters. Weir overwrites the fields that it
    /// must control, such as the node and the resources.
    Pod { spec: String },
}

/// The program of a pod spec, whose containers have their own.
static NO_PROGRAM: Program =
    Program { command: Vec::new(), args: Vec::new(), env: Vec::new(), workdir: String::new() };

impl Run {
    /// Returns the command with its environment; an empty program for [`Run::Pod`].
    pub fn program(&self) -> &Program {
        match self {
            Self::Process(program) | Self::Container { program, .. } => program,
            Self::Pod { .. } => &NO_PROGRAM,
        }
    }
}

/// A command with its arguments, environment and working directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// The executable and its first arguments. Empty only for containers: the image's own entry point.
    pub command: Vec<String>,
    /// Further arguments; alone, with an empty `command`, they replace those of the image.
    pub args: Vec<String>,
    pub env: Vec<EnvVar>,
    /// Absolute path; empty means a new directory for the attempt.
    pub workdir: String,
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvVar {
    pub name: String,
    pub value: EnvValue,
}

/// The value of an environment variable. A secret's value never enters Weir's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvValue {
    Plain(String),
    /// A reference that the pool resolves: the entry `key` of the secret `name`.
    Secret {
        name: String,
        key: String,
    },
}

/// Behaviour of a task in a pool that simulates tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simulate {
    pub duration_ms: u64,
    pub exit_code: u8,
}

/// Where a job may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Constraints {
    /// Sorted; empty allows all.
    pub regions_allowed: Vec<RegionCode>,
    /// Sorted, disjoint from the allowed ones.
    pub regions_denied: Vec<RegionCode>,
    /// Names of allowed pools, sorted; empty allows all.
    pub pools: Vec<String>,
    /// Labels that a node must have.
    pub node_labels: Labels,
    pub tolerations: Vec<Toleration>,
    /// Excludes pools that simulate tasks, also those in `pools`.
    pub real_only: bool,
}

/// Allows a job on nodes with a matching taint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Toleration {
    /// Empty matches every taint.
    pub key: String,
    /// `None` matches every value.
    pub value: Option<String>,
}

/// Excludes jobs from a node unless they tolerate it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Taint {
    pub key: String,
    pub value: String,
}

impl Toleration {
    /// True if this toleration matches `taint`.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.key.is_empty() || self.key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
    }
}

/// When a unit gets another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failed attempts after which the unit fails, 1 to [`ATTEMPTS_MAX`](super::limit::ATTEMPTS_MAX);
    /// evictions don't count.
    pub max_attempts: u32,
    /// Outcomes that are retried; evictions always are.
    pub on: Vec<RetryOn>,
    /// Wait before the second attempt; doubles with each further one.
    pub backoff_ms: u64,
    /// Longest wait; a value below `backoff_ms` counts as `backoff_ms`.
    pub backoff_max_ms: u64,
    /// Attempts of a unit that may end with their node or lease; with one more the unit fails. At most
    /// [`NODE_LOSSES_MAX`](super::limit::NODE_LOSSES_MAX).
    pub max_node_losses: NodeLosses,
}

/// A number of attempts that ended with their node or lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeLosses(pub u32);

impl Default for NodeLosses {
    fn default() -> Self {
        Self(NODE_LOSSES_DEFAULT)
    }
}

/// Kinds of outcome that a job can have retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryOn {
    /// A task failed or ran out of memory.
    Failed,
    /// The attempt exceeded its run-time limit.
    TimedOut,
    /// The attempt could not be started.
    StartFailed,
    /// How the attempt ended is unknown: it vanished, or an admin abandoned it.
    Unknown,
}

/// What happens to the attempts of a pool whose agent the broker has lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnPoolLost {
    /// The attempt may still run: the broker waits for a report, or until an admin abandons it.
    #[default]
    Wait,
    /// The unit is requeued once the attempt's lease has surely expired.
    Requeue,
}

/// The effect of one unit's final failure on its job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnitFailure {
    /// The other units are stopped.
    #[default]
    FailJob,
    /// The other units continue until more than `max_failed` units have failed. The job fails in either case.
    Continue { max_failed: u32 },
}

impl OnUnitFailure {
    /// How many units may end otherwise than by success before the others are stopped.
    pub fn failed_max(self) -> u32 {
        match self {
            Self::FailJob => 0,
            Self::Continue { max_failed } => max_failed,
        }
    }
}

/// A job that must end before the depending job starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dependency {
    pub job: JobId,
    pub condition: DependencyCondition,
}

/// How the other job must have ended. If it ends in another way, the depending job fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DependencyCondition {
    Any,
    Succeeded,
    Failed,
}

impl JobSpec {
    /// Returns the number of units of the job.
    pub fn unit_count(&self) -> u32 {
        if self.gang_job { 1 } else { self.groups.iter().map(TaskGroup::unit_count).sum() }
    }

    /// Returns the number of tasks of the job.
    pub fn task_count(&self) -> u32 {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// Returns the index of the group that `unit` belongs to; 0 for a job that is one gang, and the last
    /// group for a unit out of range.
    pub fn group_of_unit(&self, unit: u32) -> usize {
        if self.gang_job {
            return 0;
        }
        let mut first = 0;
        for (index, group) in self.groups.iter().enumerate() {
            first += group.unit_count();
            if unit < first {
                return index;
            }
        }
        self.groups.len().saturating_sub(1)
    }

    /// Returns the number of the first unit of group `group`.
    ///
    /// Panics if `group` is out of range.
    pub fn first_unit(&self, group: usize) -> u32 {
        if self.gang_job { 0 } else { self.groups[..group].iter().map(TaskGroup::unit_count).sum() }
    }

    /// Returns the number of groups of units: one per task group, or one for a job that is one gang.
    pub fn unit_group_count(&self) -> usize {
        if self.gang_job { 1 } else { self.groups.len() }
    }

    /// Returns the tasks of a unit as (group, index within the group), in order.
    pub fn tasks_of_unit(&self, unit: u32) -> Vec<(u16, u32)> {
        let whole = |group: usize| (0..self.groups[group].count).map(move |task| (group as u16, task));
        if self.gang_job {
            return (0..self.groups.len()).flat_map(whole).collect();
        }
        let group = self.group_of_unit(unit);
        if self.groups[group].gang {
            whole(group).collect()
        } else {
            vec![(group as u16, unit - self.first_unit(group))]
        }
    }
}

impl TaskGroup {
    /// Returns the number of units of this group: one if it is a gang, else one per task.
    pub fn unit_count(&self) -> u32 {
        if self.gang { 1 } else { self.count }
    }
}

/// Returns the spec of one task that does nothing, with one CPU and 64 MiB: a base for tests and generators.
pub fn minimal() -> JobSpec {
    let resources = Resources { cpu_millis: 1_000, memory_bytes: 64 << 20, ..Resources::default() };
    JobSpec {
        display_name: String::new(),
        labels: Labels::new(),
        priority: 0,
        groups: vec![TaskGroup {
            name: "main".to_owned(),
            count: 1,
            gang: false,
            request: TaskRequest { resources, devices: None },
            run: Run::Process(Program { command: vec!["true".to_owned()], ..Program::default() }),
            simulate: None,
            selection: None,
        }],
        gang_job: false,
        constraints: Constraints::default(),
        retry: RetryPolicy {
            max_attempts: 1,
            on: Vec::new(),
            backoff_ms: 0,
            backoff_max_ms: 0,
            max_node_losses: NodeLosses::default(),
        },
        on_pool_lost: OnPoolLost::Wait,
        may_overlap: false,
        lease_ms: 0,
        on_unit_failure: OnUnitFailure::FailJob,
        max_run_ms: 0,
        start_limit_ms: 0,
        grace_ms: 10_000,
        depends_on: Vec::new(),
        required_features: Vec::new(),
    }
}
