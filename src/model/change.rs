//! What an applied event altered, for components that maintain an index and for watchers.

use super::id::{JobId, NodeRef, PoolId, QueueId};
use super::shape::ClassKey;

/// One alteration of the state. It names what changed, not the new value: read that from the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// A job was added, made progress, or ended.
    Job(JobId),
    /// A pool's settings or state changed.
    Pool(PoolId),
    /// A node was added, altered or removed, or the capacity committed on it changed.
    Node(NodeRef),
    /// A queue's settings changed.
    Queue(QueueId),
    /// A queue's usage decreased.
    UsageFell(QueueId),
    /// A class gained or lost waiting units.
    Class(ClassKey),
    /// The workload profile was replaced.
    WorkloadProfile,
    /// A claim of this class can take one more successor: a waiting unit may be queued behind a live attempt
    /// of the class.
    ClaimReusable(ClassKey),
}
