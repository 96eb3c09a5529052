//! What Weir's objects in a cluster are called and carry.

use crate::model::id::AttemptId;

/// The pool that an object belongs to.
pub(super) const POOL: &str = "weir.dev/pool";
/// The attempt whose pod it is.
pub(super) const ATTEMPT: &str = "weir.dev/attempt";
/// The task's place in its unit.
pub(super) const RANK: &str = "weir.dev/rank";
/// The job's name.
pub(super) const JOB: &str = "weir.dev/job";
/// The job's queue.
pub(super) const QUEUE: &str = "weir.dev/queue";
/// Who made it, in the words that many tools know.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "weir");

/// Annotation: the revision that ordered the attempt.
pub(super) const REVISION: &str = "weir.dev/revision";
/// Annotation: the stamp of that revision.
pub(super) const STAMP: &str = "weir.dev/stamp";
/// Annotation: until when the attempt may be created, in milliseconds since 1970.
pub(super) const START_BY: &str = "weir.dev/start-by";
/// Annotation: how many pods the attempt has.
pub(super) const TASKS: &str = "weir.dev/tasks";
/// Annotation: places of the task's devices in its node's list.
pub(super) const DEVICES: &str = "weir.dev/devices";
/// Annotation: what the task was given of its node, by the cluster's names.
pub(super) const GIVEN: &str = "weir.dev/given";
/// Annotation: why the pod was told to stop: a code, and after a space a message.
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

/// A member's name within its service.
pub(super) fn host(rank: usize) -> String {
    format!("rank-{rank}")
}

/// The lease of the agent that speaks for a pool.
pub(super) fn lease(pool: &str) -> String {
    format!("weir-agent-{pool}")
}

/// Where a member of a gang is reached.
pub(super) fn address(attempt: AttemptId, rank: usize, namespace: &str) -> String {
    format!("{}.{}.{namespace}.svc", host(rank), service(attempt))
}
