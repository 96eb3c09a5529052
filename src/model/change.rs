//! What an applied event altered, for whoever keeps an index or watches.

use super::id::{JobId, NodeRef, PoolId, QueueId};
use super::shape::ClassKey;

/// One alteration of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// A job was added, went on, or ended.
    Job(JobId),
    /// A pool's own settings or state.
    Pool(PoolId),
    /// A node was added, altered or removed, or what is committed on it changed.
    Node(NodeRef),
    /// A queue's settings.
    Queue(QueueId),
    /// A queue holds less than before.
    UsageFell(QueueId),
    /// A class gained or lost waiting units.
    Class(ClassKey),
    /// What is expected to come.
    WorkloadProfile,
    /// A line of this class may take one more: units may wait behind running ones of their kind.
    Claim(ClassKey),
}
