//! The events of the simulation, and the inputs of its processes.

use weir::agent::{self, StartRequest};
use weir::broker::{AnyQuery, CallId, SessionId};
use weir::model::exchange::{FromAgent, ToAgent};
use weir::model::id::{AttemptId, Revision};
use weir::state::command::Request;
use weir::state::decide::Reply;
use weir::state::rejection::Rejection;

/// An event of the simulation.
#[derive(Debug)]
pub(crate) enum Event {
    /// A fault, by its number in the schedule.
    Fault(usize),
    /// An input of a broker process. A later incarnation of the process does not receive it.
    Broker {
        host: usize,
        incarnation: u32,
        what: BrokerEvent,
    },
    /// An input of an agent process.
    Agent {
        agent: usize,
        incarnation: u32,
        what: AgentEvent,
    },
    /// The disk has completed an append. A broker that has crashed since then is not notified.
    DiskDone {
        host: usize,
        incarnation: u32,
    },
    /// The next step of an attempt at a backend.
    Backend {
        agent: usize,
        attempt: AttemptId,
        step: Step,
    },
    /// A lease of a pool may have expired.
    LeaseCheck {
        agent: usize,
    },
    /// An agent tries to connect.
    Dial {
        agent: usize,
        incarnation: u32,
    },
    StartBroker {
        host: usize,
    },
    StartAgent {
        agent: usize,
    },
    ResumeBroker {
        host: usize,
    },
    ResumeAgent {
        agent: usize,
    },
    /// The admin replaces the stale copy by the newest journal.
    RestoreJournal,
    /// The fault phase ends.
    Heal,
    /// The client's next action.
    Act,
    /// A broker's reply reaches the client.
    Reply {
        call: CallId,
        result: Box<Result<Reply, Rejection>>,
    },
}

/// Input of an agent process.
#[derive(Debug)]
pub(crate) enum AgentEvent {
    /// A wake-up at this virtual time; only the latest requested one is valid.
    Wake {
        at: u64,
    },
    Connected {
        session: SessionId,
    },
    /// The connection attempt failed.
    Unreachable,
    Frame {
        session: SessionId,
        number: u64,
        message: Box<ToAgent>,
    },
    Disconnected {
        session: SessionId,
    },
    Input(Box<agent::Input>),
    /// The agent's request reaches its backend, after a short delay.
    BackendRequest(AttemptId, Box<Step>),
}

/// Input of a broker process.
#[derive(Debug)]
pub(crate) enum BrokerEvent {
    /// A wake-up at this virtual time; only the latest requested one is valid.
    Wake {
        at: u64,
    },
    Appended {
        through: Revision,
    },
    ChunkWritten,
    Request {
        call: CallId,
        request: Request,
    },
    Query {
        call: CallId,
        query: Box<dyn AnyQuery>,
    },
    Frame {
        session: SessionId,
        number: u64,
        message: Box<FromAgent>,
    },
    Disconnected {
        session: SessionId,
    },
}

/// Step of an attempt at a backend.
#[derive(Debug)]
pub(crate) enum Step {
    Create(Box<StartRequest>),
    Run,
    Finish,
    Stop,
    /// The attempt is lost: its node is lost, it vanishes, or it is preempted.
    Vanish,
}
