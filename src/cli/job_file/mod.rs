//! Job files: what fields they have. The comments of the fields are what `weir explain` and the reference print.

mod field;
mod read;
mod write;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

pub use field::{as_flag, in_file};
pub use read::{FileJob, JobsFile, NamedDependency, read_jobs};
pub use write::{devices_text, job_value};

use super::input::{Text, is_default};
use super::reference::{Bytes, Cpus, Devices, Duration, Indices};

/// A job: one or more groups of equal tasks, with what they share.
///
/// A file contains one job, a list of jobs, `jobs:` with a list, or several YAML documents.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "job")]
pub struct JobFile {
    /// Name, unique among the live jobs of the queue: 1 to 63 lower-case letters, digits and inner hyphens, not only
    /// digits. Default: `job-` and a number.
    #[serde(skip_serializing_if = "is_default")]
    name: String,
    /// A name for people, in any script, such as `气象预报`: one line of up to 240 bytes. Default: none.
    #[serde(skip_serializing_if = "is_default")]
    display_name: String,
    /// Path of the queue whose limits count, such as `research/vision`. Default: `--queue`, else `default`.
    #[serde(skip_serializing_if = "is_default")]
    queue: String,
    /// Up to 64 labels, for selection: `weir get jobs -l team=vision`.
    #[serde(skip_serializing_if = "is_default")]
    labels: BTreeMap<String, String>,
    /// The job of the larger priority starts first, whichever queue it is in: -1,000,000 to 1,000,000. Default: 0.
    #[serde(skip_serializing_if = "is_default")]
    priority: i32,
    /// What runs: 1 to 16 groups of equal tasks. Required.
    groups: Vec<GroupFile>,
    /// All groups together start and end as one gang, up to 4,096 tasks.
    #[serde(skip_serializing_if = "is_default")]
    gang_job: bool,
    /// Where the job may run.
    #[serde(skip_serializing_if = "is_default")]
    constraints: Option<ConstraintsFile>,
    /// What is repeated. Default: nothing.
    #[serde(skip_serializing_if = "is_default")]
    retry: Option<RetryFile>,
    /// When the pool has no contact: wait for it, or start elsewhere once the lease is over. Default: `wait`.
    #[serde(skip_serializing_if = "is_default")]
    on_pool_lost: OnPoolLostFile,
    /// With `on_pool_lost: requeue`: the lost attempt may run on while its successor runs. Pools without leases can take
    /// the job then.
    #[serde(skip_serializing_if = "is_default")]
    may_overlap: bool,
    /// With `on_pool_lost: requeue`: how long tasks run on without contact, 20 s to 24 h. Default: that of the queue,
    /// else 5 minutes.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Duration>")]
    lease: Option<String>,
    /// The rest is cancelled once more tasks than this have failed for good; 0: at the first. A job of which any task
    /// failed for good ends FAILED. Default: no limit.
    #[serde(skip_serializing_if = "is_default")]
    max_failed: Option<u32>,
    /// Longest run of one attempt, up to 366 days; then it ends as `TimedOut`. Default: that of the queue, initially
    /// 24 hours.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Duration>")]
    max_run: Option<String>,
    /// A gang that isn't running as a whole within this time ends as `StartFailed`. Default: no limit.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Duration>")]
    start_limit: Option<String>,
    /// From SIGTERM to SIGKILL when an attempt is stopped, up to 1 hour. Default: 10 seconds.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Duration>")]
    grace: Option<String>,
    /// Up to 64 jobs that must have ended before this one starts.
    #[serde(skip_serializing_if = "is_default")]
    depends_on: Vec<DependencyFile>,
    /// Features that broker and agent must support. None is defined yet.
    #[serde(skip_serializing_if = "is_default")]
    required_features: Vec<String>,
    /// Ignored: what `weir get -o yaml` prints can be submitted again.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    status: Option<IgnoredAny>,
}

/// Equal tasks. Resources are those of one task, and its limits where the pool enforces them.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "group")]
struct GroupFile {
    /// Name, unique within the job: for environment variables and messages. Default: `main`.
    #[serde(skip_serializing_if = "is_default")]
    name: String,
    /// Number of tasks, 1 to 1,000,000; `WEIR_TASK_INDEX` is 0 to `count` - 1. Default: 1.
    #[serde(skip_serializing_if = "is_default")]
    count: Option<u32>,
    /// The tasks start together or not at all, and end together; up to 4,096.
    #[serde(skip_serializing_if = "is_default")]
    gang: bool,
    /// CPUs, up to 1,000. Default: 0, no limit. A task must ask for CPUs, memory or devices.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Cpus>")]
    cpus: Option<Text>,
    /// Memory, from 1Mi; 0 is no limit. Default: 128Mi, as of `weir run`; of a pod, that of its containers.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Bytes>")]
    memory: Option<Text>,
    /// Storage on the node. Default: 0.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Bytes>")]
    storage: Option<Text>,
    /// Accelerators, up to 64. Default: none.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Devices>")]
    devices: Option<String>,
    /// Amounts of further resources by the name that nodes report, such as `rdma/hca`.
    #[serde(skip_serializing_if = "is_default")]
    other: BTreeMap<String, u64>,
    /// Program and arguments. Required, unless there is an image or a pod.
    #[serde(skip_serializing_if = "is_default")]
    command: Vec<String>,
    /// Arguments that are appended to `command`.
    #[serde(skip_serializing_if = "is_default")]
    args: Vec<String>,
    /// Environment variables by name: a text, or `value_from: {secret: NAME, key: KEY}`, which only Kubernetes pools
    /// resolve.
    #[serde(skip_serializing_if = "is_default")]
    env: BTreeMap<String, EnvFile>,
    /// Directory to start in, an absolute path. Default: a new directory.
    #[serde(skip_serializing_if = "is_default")]
    workdir: String,
    /// Image of a container to run in: Kubernetes pools only.
    #[serde(skip_serializing_if = "is_default")]
    image: Option<String>,
    /// A Kubernetes PodSpec in place of `command` and `image`: Kubernetes pools only.
    #[serde(skip_serializing_if = "is_default")]
    pod: Option<serde_json::Map<String, serde_json::Value>>,
    /// How the task appears to run in a simulated pool. Such a pool takes only jobs whose groups all have this, or that
    /// name the pool.
    #[serde(skip_serializing_if = "is_default")]
    simulate: Option<SimulateFile>,
    /// Only these tasks of a larger group. Default: all.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Indices>")]
    indices: Option<Text>,
    /// Tasks of the larger group, for `WEIR_TASK_COUNT`. Default: the largest index + 1.
    #[serde(skip_serializing_if = "is_default")]
    index_count: Option<u32>,
}

/// The value of an environment variable: a text, or a reference to a secret.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "env")]
enum EnvFile {
    Value(String),
    From(ValueFromFile),
}

impl<'de> Deserialize<'de> for EnvFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EnvVisitor)
    }
}

struct EnvVisitor;

impl<'de> Visitor<'de> for EnvVisitor {
    type Value = EnvFile;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a text (write it in quotes) or value_from")
    }

    fn visit_str<E>(self, value: &str) -> Result<EnvFile, E> {
        Ok(EnvFile::Value(value.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EnvFile, A::Error> {
        ValueFromFile::deserialize(MapAccessDeserializer::new(map)).map(EnvFile::From)
    }
}

/// Where the pool finds the value.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "value_from")]
struct ValueFromFile {
    /// A secret of the pool; its value never enters Weir. Required.
    value_from: SecretFile,
}

/// An entry of a secret.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "secret")]
struct SecretFile {
    /// Name of the secret. Required.
    secret: String,
    /// The entry of the secret. Required.
    key: String,
}

/// How a task appears to run in a simulated pool.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "simulate")]
struct SimulateFile {
    /// How long the task appears to run. Required.
    #[schemars(with = "Duration")]
    duration: String,
    /// Exit code that it appears to have, 0 to 255. Default: 0.
    #[serde(default, skip_serializing_if = "is_default")]
    exit_code: u32,
}

/// Where a job may run. A pool must satisfy all of this; `weir why JOB` lists each pool that doesn't.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "constraints")]
struct ConstraintsFile {
    /// Allowed regions: codes of ISO 3166-2 (`CN-CQ`) or GB/T 2260 (`500000`), or names (`Chongqing`, `重庆`). Default:
    /// all.
    #[serde(skip_serializing_if = "is_default")]
    regions: Vec<String>,
    /// Regions that are not allowed, written as those of `regions`.
    #[serde(skip_serializing_if = "is_default")]
    regions_denied: Vec<String>,
    /// Names of allowed pools. Default: all.
    #[serde(skip_serializing_if = "is_default")]
    pools: Vec<String>,
    /// Labels that the node must have.
    #[serde(skip_serializing_if = "is_default")]
    node_labels: BTreeMap<String, String>,
    /// Nodes with these taints are allowed, too.
    #[serde(skip_serializing_if = "is_default")]
    tolerations: Vec<TolerationFile>,
    /// No simulated pools, also where `pools` names one.
    #[serde(skip_serializing_if = "is_default")]
    real_only: bool,
}

/// Taints of nodes that the job accepts.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "toleration")]
struct TolerationFile {
    /// The taint's key. Default: any taint.
    #[serde(skip_serializing_if = "is_default")]
    key: String,
    /// The taint's value. Default: any value.
    #[serde(skip_serializing_if = "is_default")]
    value: Option<String>,
}

/// What is repeated. Evictions and lost nodes don't count as attempts.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "retry")]
struct RetryFile {
    /// Attempts of a task, 1 to 100. Default: 1.
    #[serde(skip_serializing_if = "is_default")]
    max_attempts: Option<u32>,
    /// After which ends another attempt is made. Default: all of these.
    #[serde(skip_serializing_if = "is_default")]
    on: Vec<RetryOnFile>,
    /// Wait before the second attempt; doubles with each further one. Default: 0.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Duration>")]
    backoff: Option<String>,
    /// Longest such wait. Default: 0, no limit.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "Option<Duration>")]
    backoff_max: Option<String>,
    /// Attempts that may end with a lost node or lease, 0 to 1,000; with one more the task fails. Default: 3.
    #[serde(skip_serializing_if = "is_default")]
    max_node_losses: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum RetryOnFile {
    Failed,
    TimedOut,
    StartFailed,
    Unknown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum OnPoolLostFile {
    #[default]
    Wait,
    Requeue,
}

/// Another job that must have ended.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "dependency")]
struct DependencyFile {
    /// The other job: NAME, QUEUE/NAME or its id. It comes before in this file, or was submitted earlier. A name means
    /// the job that has it now. Required.
    job: Text,
    /// How the other job must end. If it ends otherwise, this one fails and names it. Default: `succeeded`.
    #[serde(default, skip_serializing_if = "is_default")]
    condition: ConditionFile,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum ConditionFile {
    Any,
    #[default]
    Succeeded,
    Failed,
}
