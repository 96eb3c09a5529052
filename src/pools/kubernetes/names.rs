//! Names, labels and annotations of Weir's objects in a cluster.
//!
//! All names derive from attempt ids, so a repeated call meets the object that the first call created.

use crate::model::id::AttemptId;

/// Label: the pool that an object belongs to.
pub(super) const POOL: &str = "weir.dev/pool";
/// Label: the pod's attempt.
pub(super) const ATTEMPT: &str = "weir.dev/attempt";
/// Label: the task's rank, its index in its unit.
pub(super) const RANK: &str = "weir.dev/rank";
/// Label: the job's name.
pub(super) const JOB: &str = "weir.dev/job";
/// Label: the job's queue.
pub(super) const QUEUE: &str = "weir.dev/queue";
/// The recommended label for the program that manages an object, and its value.
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/>
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "weir");

/// Annotation: the revision that ordered the attempt.
pub(super) const REVISION: &str = "weir.dev/revision";
/// Annotation: the journal's high-water mark at that revision.
pub(super) const HIGH_WATER: &str = "weir.dev/high-water-mark";
/// Annotation: the attempt's start-by time, in milliseconds since 1970. No pod is created after it.
pub(super) const START_BY: &str = "weir.dev/start-by";
/// Annotation: how many tasks, and so pods, the attempt has.
pub(super) const TASKS: &str = "weir.dev/tasks";
/// Annotation: indices of the task's devices in its node's list, separated by commas.
pub(super) const DEVICES: &str = "weir.dev/devices";
/// Annotation: the resources allocated to the task, a JSON object by the cluster's resource names.
pub(super) const ALLOCATED: &str = "weir.dev/allocated";
/// Annotation: why the pod must stop: a code, then a space and a message.
pub(super) const STOP: &str = "weir.dev/stop";

/// The container that runs the task.
pub(super) const CONTAINER: &str = "task";

/// The pod of a task.
pub(super) fn pod(attempt: AttemptId, rank: usize) -> String {
    format!("weir-{attempt}-{rank}")
}

/// The headless service through which the members of a gang find each other.
pub(super) fn service(attempt: AttemptId) -> String {
    format!("weir-{attempt}")
}

/// A gang member's host name within its service.
pub(super) fn host(rank: usize) -> String {
    format!("rank-{rank}")
}

/// The lease of a pool's active agent.
pub(super) fn lease(pool: &str) -> String {
    format!("weir-agent-{pool}")
}

/// The DNS name of a gang member.
pub(super) fn address(attempt: AttemptId, rank: usize, namespace: &str) -> String {
    format!("{}.{}.{namespace}.svc", host(rank), service(attempt))
}
