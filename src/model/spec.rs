//! What a user asks for: task groups and the constraints they share.

use std::collections::BTreeMap;

use super::device::DeviceAmount;
use super::id::JobId;
use super::region::RegionCode;
use super::resource::Resources;

/// Labels of an object, in the keys' order.
pub type Labels = BTreeMap<String, String>;

/// A job as submitted, checked and with its defaults filled in. Backend-neutral.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSpec {
    pub labels: Labels,
    /// Larger goes first within the queue's share.
    pub priority: i32,
    /// At least one.
    pub groups: Vec<TaskGroup>,
    /// All groups together are one unit.
    pub gang_job: bool,
    pub constraints: Constraints,
    pub retry: RetryPolicy,
    pub on_pool_lost: OnPoolLost,
    /// A lost attempt may run on while its successor runs: frees the job from pools with leases.
    pub may_overlap: bool,
    pub on_unit_failure: OnUnitFailure,
    /// Longest run of one attempt; 0 until the queue's default is filled in.
    pub max_run_ms: u64,
    /// A gang that isn't all running within this fails to launch.
    pub start_limit_ms: u64,
    /// From the polite signal to the hard one.
    pub grace_ms: u64,
    pub depends_on: Vec<Dependency>,
    /// Features a broker and an agent must know; whoever doesn't refuses.
    pub required_features: Vec<String>,
}

/// `count` equal tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskGroup {
    pub name: String,
    /// 1 to [`TASKS_PER_GROUP_MAX`](super::limit::TASKS_PER_GROUP_MAX).
    pub count: u32,
    /// The tasks start and end together.
    pub gang: bool,
    pub request: TaskRequest,
    pub run: Run,
    /// How the task behaves where running is only simulated.
    pub simulate: Option<Simulate>,
}

/// What one task needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskRequest {
    /// CPU, memory, storage and other kinds; `device_millis` stays 0 here.
    pub resources: Resources,
    pub devices: Option<DeviceRequest>,
}

impl TaskRequest {
    /// All of it as one vector, devices of any model in thousandths.
    pub fn total(&self) -> Resources {
        let device_millis = self.devices.as_ref().map_or(0, |devices| devices.amount.millis());
        Resources { device_millis, ..self.resources.clone() }
    }
}

/// Devices of one of several models.
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
    /// Kubernetes' own description of a pod, in JSON, for pools that are clusters. What Weir must own of
    /// it, such as its node and its resources, is Weir's.
    Pod { spec: String },
}

/// What a native description says in its own words.
static UNKNOWN: Program =
    Program { command: Vec::new(), args: Vec::new(), env: Vec::new(), workdir: String::new() };

impl Run {
    /// The command and its surroundings; empty where a native description has its own.
    pub fn program(&self) -> &Program {
        match self {
            Self::Process(program) | Self::Container { program, .. } => program,
            Self::Pod { .. } => &UNKNOWN,
        }
    }
}

/// A command with its arguments and surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Empty only in containers: then the image's own.
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub env: Vec<EnvVar>,
    /// Absolute; empty means a fresh directory of the attempt's.
    pub workdir: String,
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvVar {
    pub name: String,
    pub value: EnvValue,
}

/// A plain value, or where the pool finds a secret. A secret's value never enters Weir's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvValue {
    Plain(String),
    Secret { name: String, key: String },
}

/// Behaviour of a task in a simulated pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simulate {
    pub duration_ms: u64,
    pub exit_code: u8,
}

/// Where a job may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Constraints {
    /// Sorted; empty means all.
    pub regions_allowed: Vec<RegionCode>,
    /// Sorted.
    pub regions_denied: Vec<RegionCode>,
    /// Names of pools, sorted; empty means all.
    pub pools: Vec<String>,
    /// Labels a node must carry.
    pub node_labels: Labels,
    pub tolerations: Vec<Toleration>,
    /// Only pools that truly run their tasks.
    pub real_only: bool,
}

/// Lets a job onto nodes that carry a matching taint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Toleration {
    /// Empty matches every taint.
    pub key: String,
    /// `None` matches every value.
    pub value: Option<String>,
}

/// Keeps jobs off a node unless they tolerate it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Taint {
    pub key: String,
    pub value: String,
}

impl Toleration {
    /// Tells whether this lets a job onto a node with `taint`.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.key.is_empty() || self.key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
    }
}

/// When a unit is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries that may fail before the unit does; evictions don't count.
    pub max_attempts: u32,
    /// Outcomes that are worth another try; evictions always are.
    pub on: Vec<RetryOn>,
    /// Wait before the second try; doubles with each further one.
    pub backoff_ms: u64,
    pub backoff_max_ms: u64,
}

/// Kinds of outcome that a job may ask to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryOn {
    Failed,
    TimedOut,
    StartFailed,
    Unknown,
}

/// What happens to attempts in a pool that has fallen silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnPoolLost {
    /// It may well still be running: wait for a report, or for an admin's `abandon`.
    #[default]
    Wait,
    /// Run it elsewhere once its lease has surely ended.
    Requeue,
}

/// What one unit's final failure means for its job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnitFailure {
    #[default]
    FailJob,
    /// Go on with the other units while no more than this many failed.
    Continue { max_failed: u32 },
}

/// An edge to a job that must end first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dependency {
    pub job: JobId,
    pub condition: DependencyCondition,
}

/// How the other job must have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DependencyCondition {
    Any,
    Succeeded,
    Failed,
}

impl JobSpec {
    /// Units of the whole job.
    pub fn unit_count(&self) -> u32 {
        if self.gang_job { 1 } else { self.groups.iter().map(TaskGroup::unit_count).sum() }
    }

    /// Tasks of the whole job.
    pub fn task_count(&self) -> u32 {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// The class of units that `unit` belongs to: its group's index, or 0 for a whole-job gang.
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

    /// The number of the first unit of group `group`.
    pub fn first_unit(&self, group: usize) -> u32 {
        if self.gang_job { 0 } else { self.groups[..group].iter().map(TaskGroup::unit_count).sum() }
    }

    /// How many sets of units the job has: one per group, or one in all for a whole-job gang.
    pub fn unit_group_count(&self) -> usize {
        if self.gang_job { 1 } else { self.groups.len() }
    }

    /// The tasks of a unit as (group, index in group), in order.
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
    /// Units of this group on its own: one if it is a gang.
    pub fn unit_count(&self) -> u32 {
        if self.gang { 1 } else { self.count }
    }
}

/// A command that does nothing, one CPU and 64 MiB: a base for tests and generators.
pub fn minimal() -> JobSpec {
    let resources = Resources { cpu_millis: 1_000, memory_bytes: 64 << 20, ..Resources::default() };
    JobSpec {
        labels: Labels::new(),
        priority: 0,
        groups: vec![TaskGroup {
            name: "main".to_owned(),
            count: 1,
            gang: false,
            request: TaskRequest { resources, devices: None },
            run: Run::Process(Program { command: vec!["true".to_owned()], ..Program::default() }),
            simulate: None,
        }],
        gang_job: false,
        constraints: Constraints::default(),
        retry: RetryPolicy { max_attempts: 1, on: Vec::new(), backoff_ms: 0, backoff_max_ms: 0 },
        on_pool_lost: OnPoolLost::Wait,
        may_overlap: false,
        on_unit_failure: OnUnitFailure::FailJob,
        max_run_ms: 0,
        start_limit_ms: 0,
        grace_ms: 10_000,
        depends_on: Vec::new(),
        required_features: Vec::new(),
    }
}
