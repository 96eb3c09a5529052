//! Attempts: their phases, outcomes and placements, and the reports of agents on them.

use super::device::DeviceShare;
use super::id::{AttemptId, NodeId, Revision};
use super::language::Text;
use super::time::Timestamp;

/// Phase of a live attempt, in order. An attempt holds its capacity until it has ended, except while it is
/// queued behind another attempt's claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The start order is in the journal; the agent has not confirmed it.
    Ordered,
    /// The backend has accepted it, but not all tasks run.
    Starting,
    /// All tasks run.
    Running,
    /// A stop was requested; tasks may still run.
    Stopping,
}

/// Why the broker requested an attempt to stop. Its name is that of the API, such as `Drained`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, strum::IntoStaticStr)]
pub enum StopReason {
    /// A user cancelled the job.
    Cancelled,
    /// It exceeded its run-time limit.
    TimedOut,
    /// Its pool or node is being drained.
    Drained,
    /// Another unit of the job failed finally.
    JobFailed,
    /// Not all of its tasks ran within the job's `start_limit_ms`.
    StartLimit,
    /// An admin abandoned it.
    Abandoned,
    /// The broker has no such live attempt.
    Orphaned,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub kind: OutcomeKind,
    /// Exit code of the first task that failed, else 0; `None` if no exit status is available.
    pub exit_code: Option<i32>,
    /// Number of the signal that ended the first task that failed; `None` if it exited.
    pub signal: Option<i32>,
    /// Short explanation; may be empty. At most [`MESSAGE_LEN_MAX`](super::limit::MESSAGE_LEN_MAX) bytes.
    pub message: String,
    /// The pool only simulates tasks: no program ran. The broker sets it, whatever an agent reports.
    pub simulated: bool,
    /// The backend blames the node, not the job. Only its word counts towards a quarantine: what a user can cause
    /// must not close a node to others.
    pub node_fault: bool,
}

impl Outcome {
    /// Makes an outcome without an exit status that the backend blames on the node.
    pub fn of_node(kind: OutcomeKind, message: &str) -> Self {
        Self { node_fault: true, ..Self::plain(kind, message) }
    }

    /// Makes an outcome without an exit status.
    pub fn plain(kind: OutcomeKind, message: &str) -> Self {
        Self {
            kind,
            exit_code: None,
            signal: None,
            message: message.to_owned(),
            simulated: false,
            node_fault: false,
        }
    }
}

/// Message of an outcome whose task may have lost some of its output.
pub const OUTPUT_MAY_BE_LOST: &str = "the disk for its output was full: some of it may be lost";

/// Kinds of outcome, each with a stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutcomeKind {
    /// Every task exited with code 0.
    Succeeded,
    /// A task exited with a code other than 0, or a signal ended it.
    Failed,
    /// A task exceeded its memory and was killed.
    OutOfMemory,
    /// The attempt exceeded its run-time limit.
    TimedOut,
    /// A user cancelled the job, or another unit of the job failed.
    Cancelled,
    /// The backend could not start it, or not all tasks of the gang ran in time.
    StartFailed,
    /// Stopped in favour of a job of higher priority.
    Preempted,
    /// Stopped because its pool or node was drained.
    Drained,
    /// Its node was removed or failed.
    NodeLost,
    /// The backend has no record of it any more; how it ended is unknown.
    Vanished,
    /// The attempt's lease expired while its pool had no contact with the broker.
    LeaseEnded,
    /// An admin abandoned it; it may still run.
    Abandoned,
    /// Nothing was started: the order came too late, its claim did not become free in time, or its node
    /// accepted no more work.
    NotStarted,
}

impl OutcomeKind {
    /// Every kind, in the order of declaration.
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

    /// Returns the stable code.
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

    /// True if the next attempt of the unit should avoid the node. False if the attempt was only stopped or
    /// never started: that is no evidence against the node.
    pub fn retry_avoids_node(self) -> bool {
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

    /// True if the program ran until it ended or hit a limit: the node works.
    pub fn proves_node_works(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::OutOfMemory | Self::TimedOut)
    }

    /// Returns the meaning, one clause.
    pub fn meaning(self) -> Text {
        match self {
            Self::Succeeded => Text::new("every task exited with code 0", "所有任务都以 0 退出"),
            Self::Failed => Text::new(
                "a task exited with a code other than 0, or a signal ended it",
                "有任务以非 0 退出，或被信号终止",
            ),
            Self::OutOfMemory => Text::new(
                "a task used more memory than it requested and was killed",
                "有任务使用的内存超出请求而被终止",
            ),
            Self::TimedOut => Text::new("it ran longer than its `max_run`", "运行时间超过 `max_run`"),
            Self::Cancelled => Text::new(
                "its job or unit was cancelled, a job that it depends on ended otherwise than it asks, or another unit of \
                 the job failed",
                "作业或单元被取消，所依赖的作业没有按条件结束，或作业的另一个单元失败",
            ),
            Self::StartFailed => Text::new(
                "the backend could not start it, or not all tasks of the gang ran in time",
                "后端无法启动它，或成组任务（gang）没有按时全部启动",
            ),
            Self::Preempted => Text::new(
                "it was stopped in favour of a job of higher priority",
                "为优先级更高的作业让出资源",
            ),
            Self::Drained => Text::new("its pool or node was drained", "其算力池或节点被排空"),
            Self::NodeLost => Text::new("its node failed or was removed", "其节点故障或被移除"),
            Self::Vanished => Text::new(
                "the backend has no record of it any more; how it ended is unknown",
                "后端已没有它的记录；无法得知如何结束",
            ),
            Self::LeaseEnded => Text::new(
                "its lease expired while its pool had no contact with the broker",
                "算力池与调度服务失联期间租约到期",
            ),
            Self::Abandoned => {
                Text::new("an admin abandoned it; it may still run", "管理员放弃了它；它可能仍在运行")
            }
            Self::NotStarted => Text::new(
                "nothing was started: the order came too late, or the node accepted no more work",
                "没有启动任何任务：指令到达过晚，或节点不再接受任务",
            ),
        }
    }

    /// True if the attempt was evicted, a fault neither of the job nor of its program: it is always retried
    /// and does not count towards `max_attempts`.
    pub fn is_eviction(self) -> bool {
        matches!(self, Self::Preempted | Self::Drained | Self::NodeLost | Self::NotStarted)
    }

    /// True if the attempt ended with its node or its lease: it may have taken the machine down itself.
    pub fn is_node_loss(self) -> bool {
        matches!(self, Self::NodeLost | Self::LeaseEnded)
    }

    /// True if it is unknown how the attempt ended, and whether it has.
    pub fn is_unknown(self) -> bool {
        matches!(self, Self::Vanished | Self::LeaseEnded | Self::Abandoned)
    }
}

/// A task of an attempt on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Index of the task group within the job.
    pub group: u16,
    /// The task's index within its group.
    pub task: u32,
    pub node: NodeId,
    /// Empty if the task uses no device.
    pub devices: Vec<DeviceShare>,
}

/// An agent's report on one attempt of its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptReport {
    pub attempt: AttemptId,
    /// The journal's revision that ordered the attempt; 0 if the agent found it without its order. A revision
    /// above the broker's own means that another copy of the journal ordered it.
    pub ordered_revision: Revision,
    pub status: AttemptStatus,
}

/// Status of an attempt at its backend. Times are on the agent's clock; in an [`AttemptReport`], on the
/// broker's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptStatus {
    /// The backend has accepted it, but not all tasks run.
    Starting,
    /// All tasks run.
    Running { started_at: Timestamp },
    /// All tasks have ended and hold no capacity.
    Ended {
        /// `None` if it never ran.
        started_at: Option<Timestamp>,
        ended_at: Timestamp,
        outcome: Outcome,
    },
}
