//! Attempts: their phases, outcomes, placements, and what agents report of them.

use super::device::DeviceShare;
use super::id::{AttemptId, NodeId, Revision};
use super::time::Timestamp;

/// Where a live attempt stands. Its capacity is held until it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The broker has decided; the agent has not confirmed.
    Ordered,
    /// The backend has it, but not all tasks run.
    Starting,
    Running,
    /// Told to stop; something may be left.
    Stopping,
}

/// Why an attempt was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopReason {
    /// A user cancelled the job.
    Cancelled,
    /// Longer than its run-time limit.
    TimedOut,
    /// Its pool or node is being drained.
    Drained,
    /// Another unit of the job failed for good.
    JobFailed,
    /// A gang that didn't start whole in time.
    StartLimit,
    /// An admin gave it up.
    Abandoned,
    /// The broker does not know it as alive.
    Orphaned,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub kind: OutcomeKind,
    /// Of the first task that failed, else 0.
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    /// What happened, in a few words; may be empty. At most `MESSAGE_LEN_MAX` bytes.
    pub message: String,
}

impl Outcome {
    /// An outcome without an exit status.
    pub fn plain(kind: OutcomeKind, message: &str) -> Self {
        Self { kind, exit_code: None, signal: None, message: message.to_owned() }
    }
}

/// Kinds of outcome. The names are stable codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutcomeKind {
    Succeeded,
    /// A task exited with another code than 0, or by a signal.
    Failed,
    OutOfMemory,
    TimedOut,
    Cancelled,
    StartFailed,
    Preempted,
    Drained,
    NodeLost,
    /// The backend no longer knows it, and nobody saw it end.
    Vanished,
    /// The pool fell silent, and the attempt's lease has surely ended.
    LeaseEnded,
    /// An admin gave it up; it may still run.
    Abandoned,
    /// Its order came too late to be started.
    NotStarted,
}

impl OutcomeKind {
    /// Every kind, in order.
    pub const ALL: [Self; 13] = [
        Self::Succeeded,
        Self::Failed,
        Self::OutOfMemory,
        Self::TimedOut,
        Self::Cancelled,
        Self::StartFailed,
        Self::Preempted,
        Self::Drained,
        Self::NodeLost,
        Self::Vanished,
        Self::LeaseEnded,
        Self::Abandoned,
        Self::NotStarted,
    ];

    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::OutOfMemory => "OutOfMemory",
            Self::TimedOut => "TimedOut",
            Self::Cancelled => "Cancelled",
            Self::StartFailed => "StartFailed",
            Self::Preempted => "Preempted",
            Self::Drained => "Drained",
            Self::NodeLost => "NodeLost",
            Self::Vanished => "Vanished",
            Self::LeaseEnded => "LeaseEnded",
            Self::Abandoned => "Abandoned",
            Self::NotStarted => "NotStarted",
        }
    }

    /// The next try had better go elsewhere: what was only taken away says nothing of the node.
    pub fn blames_node(self) -> bool {
        match self {
            Self::Failed
            | Self::OutOfMemory
            | Self::TimedOut
            | Self::StartFailed
            | Self::NodeLost
            | Self::Vanished
            | Self::LeaseEnded
            | Self::Abandoned => true,
            Self::Succeeded | Self::Cancelled | Self::Preempted | Self::Drained | Self::NotStarted => false,
        }
    }

    /// The node could not do its part, whatever the job's program is like.
    pub fn is_node_fault(self) -> bool {
        matches!(self, Self::StartFailed | Self::NodeLost | Self::Vanished)
    }

    /// The program ran to an end of its own: the node does its part.
    pub fn proves_node(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::OutOfMemory | Self::TimedOut)
    }

    /// What it means, in one sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Succeeded => "every task exited with code 0",
            Self::Failed => "a task exited with another code than 0, or by a signal",
            Self::OutOfMemory => "a task used more memory than it asked for and was killed",
            Self::TimedOut => "it ran longer than its max_run",
            Self::Cancelled => "its job was cancelled, or failed elsewhere",
            Self::StartFailed => "the backend could not start it, or a gang did not start whole in time",
            Self::Preempted => "it made room for a more important job",
            Self::Drained => "its pool or node was drained",
            Self::NodeLost => "its node is gone",
            Self::Vanished => "the backend no longer knows it and nobody saw it end",
            Self::LeaseEnded => "its pool fell silent and its lease has surely ended",
            Self::Abandoned => "an admin gave it up; it may still run",
            Self::NotStarted => "its order came too late to be started",
        }
    }

    /// Evictions are nobody's fault: they don't use up `max_attempts`, and are always retried.
    pub fn is_eviction(self) -> bool {
        matches!(self, Self::Preempted | Self::Drained | Self::NodeLost | Self::NotStarted)
    }

    /// Nobody knows how it ended: retried only if the job says so.
    pub fn is_unknown(self) -> bool {
        matches!(self, Self::Vanished | Self::LeaseEnded | Self::Abandoned)
    }
}

/// A task of an attempt on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub group: u16,
    /// The task's index within its group.
    pub task: u32,
    pub node: NodeId,
    pub devices: Vec<DeviceShare>,
}

/// What an agent says of one attempt of its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptReport {
    pub attempt: AttemptId,
    /// The broker's revision that ordered it; 0 if the agent found it without its order. Above the
    /// broker's own it was ordered by another history of the journal.
    pub ordered_revision: Revision,
    pub status: AttemptStatus,
}

/// How an attempt stands at its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptStatus {
    Starting,
    Running {
        started_at: Timestamp,
    },
    /// Nothing is left of it.
    Ended {
        started_at: Option<Timestamp>,
        ended_at: Timestamp,
        outcome: Outcome,
    },
}
