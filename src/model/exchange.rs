//! The messages that broker and agent exchange in one session.
//!
//! Frames are numbered in each direction. A receiver that detects a gap ends the session. In every new
//! session both sides exchange full sets first, so lost or repeated messages cause no divergence.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::attempt::{AttemptReport, StopReason};
use super::device::DeviceShare;
use super::high_water::HighWaterMark;
use super::id::{AttemptId, Epoch, InstanceId, JournalId, Revision, SpecId, Term};
use super::limit::SESSION_SPECS_MAX;
use super::pool::{NodeSpec, PoolSpec};
use super::spec::JobSpec;
use super::time::Timestamp;

/// From agent to broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// The first message of every session.
    Hello(Hello),
    /// The pool's nodes.
    Inventory(Inventory),
    /// The status of attempts at the backend.
    Observed { epoch: Epoch, part: Part, reports: Vec<AttemptReport> },
    /// Renews the pool's leases once it is answered. `sequence` numbers the session's heartbeats from 1.
    Heartbeat { epoch: Epoch, sequence: u64 },
}

/// The identity of an agent and its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub pool: PoolSpec,
    pub instance: InstanceId,
    /// Secret that proves the instance. The first hello for a pool's name binds the name to it.
    pub key: [u8; 16],
    /// The pool's last session that this state folder knows of; `None` if it knows of none. A copy of the folder, such
    /// as one in a machine's image, knows an older one than the folder that has served the pool since.
    pub last_epoch: Option<Epoch>,
    /// The newest high-water mark that the agent has received from any broker; `None` if it has none.
    pub high_water: Option<HighWaterMark>,
}

/// Nodes that are new or altered, and the names of removed ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    pub epoch: Epoch,
    pub part: Part,
    pub nodes: Vec<NodeSpec>,
    pub removed: Vec<String>,
}

/// Which part of a set a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A change to the set that was exchanged before.
    Delta,
    /// A chunk of the full set; more follow.
    FullMore,
    /// The last chunk of the full set: what no chunk contained does not exist.
    FullEnd,
}

/// From broker to agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent {
    /// The session is established.
    Accepted(Accepted),
    /// The session is refused, or ends; the agent may reconnect later.
    Refused { code: RefusedCode, message: String },
    /// Attempts that the pool must run. Each spec is sent once per session, with the first order that needs
    /// it, unless it has left the [`SpecWindow`].
    Orders { term: Term, part: Part, specs: Vec<(SpecId, Arc<JobSpec>)>, orders: Vec<StartOrder> },
    /// Attempts that must end.
    Stops { term: Term, stops: Vec<Stop> },
    /// The outcomes of these attempts are durable: the agent may delete its records of them.
    Acknowledged { attempts: Vec<AttemptId> },
    /// Answers a heartbeat. The broker has confirmed with its journal, after it received the heartbeat, that
    /// it is still the writer.
    HeartbeatAnswer {
        term: Term,
        sequence: u64,
        /// The broker's clock when it received the heartbeat; 0 from a broker that does not send it.
        now: Timestamp,
        high_water: Option<HighWaterMark>,
    },
}

/// The broker's answer to a hello: the session is established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub journal: JournalId,
    pub term: Term,
    pub epoch: Epoch,
    /// The broker's clock. The agent uses it to convert the times in orders to its own clock.
    pub now: Timestamp,
    /// Interval at which the agent must send heartbeats.
    pub heartbeat_ms: u64,
    pub high_water: Option<HighWaterMark>,
}

/// Why a session was refused or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedCode {
    /// The pool's name is bound to another agent.
    PoolClaimed,
    /// The hello was not valid.
    InvalidPool,
    /// Another session of the pool is active, with a higher epoch.
    Superseded,
    /// The pool runs an attempt that this journal never ordered: the journal may be an older copy.
    UnknownWork,
    /// A frame was lost, or a message was not valid at this point.
    ProtocolError,
    /// The broker can't write its journal now.
    Unavailable,
}

impl RefusedCode {
    /// Returns the stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::PoolClaimed => "PoolClaimed",
            Self::InvalidPool => "InvalidPool",
            Self::Superseded => "Superseded",
            Self::UnknownWork => "UnknownWork",
            Self::ProtocolError => "ProtocolError",
            Self::Unavailable => "Unavailable",
        }
    }
}

/// An order to start an attempt. All times are on the broker's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartOrder {
    pub attempt: AttemptId,
    /// The revision of the journal that ordered it.
    pub revision: Revision,
    /// High-water mark of that revision. The backend stores it with the attempt.
    pub high_water: Option<HighWaterMark>,
    pub spec: SpecId,
    pub job_name: String,
    pub queue: String,
    /// The agent must not create the attempt after this instant.
    pub start_by: Timestamp,
    /// The broker has received a report that the attempt started: the agent adopts it or reports it as
    /// vanished, but never creates it.
    pub started: bool,
    /// The attempt that this one is queued behind (claim reuse): this one starts on its node and devices as
    /// soon as it has ended. `None` starts at once.
    pub after: Option<AttemptId>,
    pub tasks: Vec<TaskStart>,
}

/// One task of a start order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskStart {
    /// Index of the task group within the job.
    pub group: u16,
    /// Index of the task within its group.
    pub task: u32,
    /// Name of the node.
    pub node: String,
    /// Empty if the task uses no device.
    pub devices: Vec<DeviceShare>,
}

/// An attempt that must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub attempt: AttemptId,
    pub reason: StopReason,
    /// Time from the termination signal to the kill signal.
    pub grace_ms: u64,
}

/// The job specs of a session that the broker has sent and the agent still caches, at most
/// [`SESSION_SPECS_MAX`].
///
/// Both ends apply the same rule to the same sequence of messages, so their windows are equal without further
/// messages.
#[derive(Clone, Debug, Default)]
pub struct SpecWindow {
    /// Oldest first.
    order: VecDeque<SpecId>,
    cached: BTreeSet<SpecId>,
}

impl SpecWindow {
    /// True if the spec is cached.
    pub fn contains(&self, spec: SpecId) -> bool {
        self.cached.contains(&spec)
    }

    /// Adds a spec. Returns whether it was new, and the oldest spec if it was evicted for this one.
    pub fn insert(&mut self, spec: SpecId) -> (bool, Option<SpecId>) {
        if !self.cached.insert(spec) {
            return (false, None);
        }
        self.order.push_back(spec);
        let evicted = (self.order.len() > SESSION_SPECS_MAX).then(|| self.order.pop_front()).flatten();
        if let Some(old) = &evicted {
            self.cached.remove(old);
        }
        (true, evicted)
    }
}

/// The position of a received frame in the session's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameCheck {
    /// The next frame: process it.
    InOrder,
    /// Already received: discard it.
    Repeated,
    /// An earlier frame is missing: end the session.
    Gap,
}

/// Counts a session's received frames, which are numbered from 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameCounter {
    last: u64,
}

impl FrameCounter {
    /// Checks a received frame's number, and counts the frame if it is the next one.
    pub fn check(&mut self, number: u64) -> FrameCheck {
        if number <= self.last {
            return FrameCheck::Repeated;
        }
        if number > self.last + 1 {
            return FrameCheck::Gap;
        }
        self.last = number;
        FrameCheck::InOrder
    }
}
