//! What broker and agent tell each other over one session.
//!
//! A session's frames are numbered in each direction. Whoever sees a gap breaks the session;
//! after any break both sides exchange full sets again, so lost or repeated messages can't matter.

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
    Inventory(Inventory),
    /// Attempts as they stand at the backend.
    Observed {
        epoch: Epoch,
        part: Part,
        reports: Vec<AttemptReport>,
    },
    /// Renews the pool's leases once answered. `sequence` counts the session's heartbeats.
    Heartbeat {
        epoch: Epoch,
        sequence: u64,
    },
}

/// Who speaks, for which pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub pool: PoolSpec,
    pub instance: InstanceId,
    /// Proves the instance: the first one binds the pool's name.
    pub key: [u8; 16],
    /// The newest stamp that the agent was given, by whatever broker.
    pub high_water: Option<HighWaterMark>,
}

/// Nodes that are new or altered, and names of those that are gone.
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
    /// The full set's last chunk: what was in none of them is not there.
    FullEnd,
}

/// From broker to agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent {
    Accepted(Accepted),
    /// The session ends; the agent may try again later.
    Refused {
        code: RefusedCode,
        message: String,
    },
    /// Attempts that the pool should run. Specs come once per session, before the first order
    /// that needs them.
    Orders {
        term: Term,
        part: Part,
        specs: Vec<(SpecId, Arc<JobSpec>)>,
        orders: Vec<StartOrder>,
    },
    Stops {
        term: Term,
        stops: Vec<Stop>,
    },
    /// These outcomes are durable; the agent may forget the attempts.
    Acknowledged {
        attempts: Vec<AttemptId>,
    },
    /// The journal was asked after the heartbeat came in: the broker was its writer then.
    HeartbeatAnswer {
        term: Term,
        sequence: u64,
        /// The broker's clock when the heartbeat came in.
        now: Timestamp,
        high_water: Option<HighWaterMark>,
    },
}

/// The session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub journal: JournalId,
    pub term: Term,
    pub epoch: Epoch,
    /// The broker's clock: the agent reads every time in orders by it.
    pub now: Timestamp,
    pub heartbeat_ms: u64,
    /// How long an attempt with a lease may go on after the last answered heartbeat was sent.
    pub lease_ms: u64,
    pub high_water: Option<HighWaterMark>,
}

/// Why a session was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedCode {
    /// The pool's name is bound to another agent.
    PoolClaimed,
    /// The hello was not valid.
    InvalidPool,
    /// Another session speaks for the pool with a higher epoch.
    Superseded,
    /// The pool runs what this journal never ordered: it may be an older copy.
    UnknownWork,
    /// A frame was lost, or a message made no sense.
    ProtocolError,
    /// The broker can't write now.
    Unavailable,
}

impl RefusedCode {
    /// The stable code.
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

/// An attempt that the pool should run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartOrder {
    pub attempt: AttemptId,
    /// The revision that ordered it.
    pub revision: Revision,
    /// Of that revision; kept with the attempt by the pool's backend.
    pub high_water: Option<HighWaterMark>,
    pub spec: SpecId,
    pub job_name: String,
    pub queue: String,
    /// Never create after this.
    pub start_by: Timestamp,
    /// It was seen to start: adopt it or report it vanished, but don't create it.
    pub started: bool,
    /// An attempt of the same demand whose place this one takes the moment that one is gone.
    pub after: Option<AttemptId>,
    pub tasks: Vec<TaskStart>,
}

/// One task of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskStart {
    pub group: u16,
    pub task: u32,
    pub node: String,
    pub devices: Vec<DeviceShare>,
}

/// An attempt that must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub attempt: AttemptId,
    pub reason: StopReason,
    pub grace_ms: u64,
}

/// The specs that a session's broker has sent and its agent still holds.
///
/// Both ends apply the same rule to the same order of messages, so they agree without asking.
#[derive(Clone, Debug, Default)]
pub struct SpecWindow {
    order: VecDeque<SpecId>,
    held: BTreeSet<SpecId>,
}

impl SpecWindow {
    /// The spec is held.
    pub fn contains(&self, spec: SpecId) -> bool {
        self.held.contains(&spec)
    }

    /// Notes a spec; tells whether it was new, and which older one is forgotten for it.
    pub fn insert(&mut self, spec: SpecId) -> (bool, Option<SpecId>) {
        if !self.held.insert(spec) {
            return (false, None);
        }
        self.order.push_back(spec);
        let forgotten = (self.order.len() > SESSION_SPECS_MAX).then(|| self.order.pop_front()).flatten();
        if let Some(old) = &forgotten {
            self.held.remove(old);
        }
        (true, forgotten)
    }
}

/// What to do with a frame that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    Take,
    /// It was here before: drop it.
    Repeated,
    /// One before it is missing: the session must end.
    Gap,
}

/// Checks the numbers of a session's incoming frames, which count from 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inbox {
    last: u64,
}

impl Inbox {
    /// Judges the frame of this number.
    pub fn arrive(&mut self, number: u64) -> Arrival {
        if number <= self.last {
            return Arrival::Repeated;
        }
        if number > self.last + 1 {
            return Arrival::Gap;
        }
        self.last = number;
        Arrival::Take
    }
}
