//! Pool backends: what runs the attempts of a pool.
//!
//! A backend stores its attempts outside the agent's process, so that a restarted agent adopts them
//! instead of starting them again. `README.md` beside this file has the duties of a backend and a
//! checklist for adding one.

pub mod check;
mod clean;
pub mod host;
pub mod kubernetes;
mod output_times;
mod retention;
pub mod simulated;

use std::future::Future;
use std::sync::Arc;

pub use output_times::{OutputTime, OutputTimes};
use tokio::sync::mpsc;

use crate::agent::{ObservedAttempt, StartRequest};
use crate::model::attempt::AttemptStatus;
use crate::model::exchange::Stop;
use crate::model::id::{AttemptId, JournalId};
use crate::model::pool::NodeSpec;
use crate::model::time::Timestamp;

/// Everything that a backend has when an agent opens it.
#[derive(Debug, Default)]
pub struct InitialSync {
    /// The nodes of the pool.
    pub nodes: Vec<NodeSpec>,
    /// The attempts at the backend: running ones, and ended ones that are not forgotten.
    pub attempts: Vec<ObservedAttempt>,
    /// What the backend can't enforce or promise, in words for operators and job owners.
    pub notes: Vec<String>,
}

/// A change that a backend reports after it was opened.
#[derive(Debug)]
pub enum Event {
    /// An attempt has this status now. The same status may be reported more than once.
    StatusChanged { attempt: AttemptId, status: AttemptStatus },
    /// Nodes that are new or changed, and the names of nodes that were removed.
    NodesChanged { nodes: Vec<NodeSpec>, removed: Vec<String> },
    /// Whether the system behind the backend answers, such as an API server. While it does not,
    /// orders wait in the backend.
    Answers(bool),
    /// Whether the backend itself makes progress. While it doesn't, the agent sends no heartbeats, so that the pool is
    /// not READY.
    Working(bool),
    /// The backend has ended: the agent must open it again.
    Gone,
}

/// Why a backend can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("pool {pool:?} can't be opened")]
    Open {
        pool: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the backend of pool {pool:?} is gone")]
    Gone { pool: String },
}

/// The backend of one pool.
///
/// Only `open` waits. The other methods return at once; the backend reports their effects as
/// [`Event`]s, in order for each attempt. Every call may be repeated without harm.
pub trait PoolBackend: Send {
    /// Takes the backend's lock, then returns all nodes and attempts that exist.
    ///
    /// Changes after this are sent to `events`. A backend value is opened once.
    ///
    /// # Errors
    /// - [`Error::Open`] if the system behind the backend can't be used.
    /// - [`Error::Gone`] if the value was opened before, or another agent took the lock meanwhile.
    fn open(
        &mut self,
        events: mpsc::UnboundedSender<Event>,
    ) -> impl Future<Output = Result<InitialSync, Error>> + Send;

    /// Names the journal of the broker that accepted the pool.
    ///
    /// Attempts of other journals use capacity like any foreign load. By default this does nothing.
    fn serves(&mut self, _journal: JournalId) {}

    /// Starts an attempt unless it exists; never after its start-by time.
    fn start(&mut self, start: StartRequest);

    /// Stops an attempt: SIGTERM or its equivalent, then SIGKILL after the grace period.
    fn stop(&mut self, stop: Stop);

    /// Removes what is left of an ended attempt: its outcome is durable at the broker.
    fn forget(&mut self, attempt: AttemptId);

    /// Lets attempts with a lease run for as long as it lasts from `from` on, which is `from_boot_ms` in
    /// milliseconds of the boot clock.
    fn renew(&mut self, from: Timestamp, from_boot_ms: u64);

    /// Returns a reader of task output. It is used on threads that may block.
    fn logs(&self) -> Arc<dyn ReadLogs>;
}

/// A stream of a task's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A part of a stream of output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPart {
    /// Where `data` begins in the stream, in bytes: later than requested if that part was dropped.
    pub offset: u64,
    pub data: Vec<u8>,
    /// Length of the stream so far, in bytes.
    pub end: u64,
    /// Nothing will be added to the stream.
    pub complete: bool,
}

/// Reads the output of tasks.
pub trait ReadLogs: Send + Sync {
    /// Reads at most `bytes_max` bytes from `offset` on.
    ///
    /// # Errors
    /// If no output of the attempt is stored, or it can't be read.
    fn read(
        &self,
        attempt: AttemptId,
        task: u32,
        stream: Stream,
        offset: u64,
        bytes_max: usize,
    ) -> std::io::Result<LogPart>;

    /// Returns when the output was written; `None` if that is not stored.
    ///
    /// # Errors
    /// If the times can't be read.
    fn times(&self, attempt: AttemptId, task: u32, stream: Stream) -> std::io::Result<Option<OutputTimes>>;
}
