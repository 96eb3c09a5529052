//! Backends: what runs attempts. Each keeps its own memory of them, and outlives its agent or
//! adopts after a restart.

pub mod check;
pub mod host;
pub mod kubernetes;
mod retention;
mod saved;
pub mod simulated;

use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::agent::{ObservedAttempt, StartRequest};
use crate::model::attempt::AttemptStatus;
use crate::model::exchange::Stop;
use crate::model::id::{AttemptId, JournalId};
use crate::model::pool::NodeSpec;
use crate::model::time::Timestamp;

/// What a backend tells of itself when it is opened.
#[derive(Debug, Default)]
pub struct InitialSync {
    pub nodes: Vec<NodeSpec>,
    pub attempts: Vec<ObservedAttempt>,
    /// What it can't enforce or promise.
    pub notes: Vec<String>,
}

/// What a backend tells later.
#[derive(Debug)]
pub enum Event {
    StatusChanged {
        attempt: AttemptId,
        status: AttemptStatus,
    },
    NodesChanged {
        nodes: Vec<NodeSpec>,
        removed: Vec<String>,
    },
    /// Whether what the backend works with answers: while it doesn't, orders wait.
    Answers(bool),
    /// The backend is gone: the agent must open it anew.
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

/// A pool's backend. Its methods don't block: what comes of them is told as events, in order
/// for each attempt.
pub trait PoolBackend: Send {
    /// Takes the backend's lock and tells everything that is there.
    fn open(
        &mut self,
        events: mpsc::UnboundedSender<Event>,
    ) -> impl Future<Output = Result<InitialSync, Error>> + Send;

    /// A broker has let the pool in, and this is its journal: what runs for other journals is load like
    /// anybody's.
    fn serves(&mut self, _journal: JournalId) {}

    /// Creates an attempt unless it is there; never after its start-by time.
    fn start(&mut self, start: StartRequest);

    /// Ends an attempt: politely, then hard after its grace.
    fn stop(&mut self, stop: Stop);

    /// The outcome is durable at the broker: what is left of the attempt may go.
    fn forget(&mut self, attempt: AttemptId);

    /// Attempts with a lease may go on until then, also told in milliseconds of the boot clock.
    fn renew(&mut self, until: Timestamp, until_boot_ms: u64);

    /// Reads output, on a thread that may block.
    fn logs(&self) -> Arc<dyn ReadLogs>;
}

/// A stream of a task's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A piece of output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPart {
    /// Where the data really starts: later than asked if the middle was not kept.
    pub offset: u64,
    pub data: Vec<u8>,
    /// Length of the stream so far.
    pub end: u64,
    /// Nothing will be added.
    pub complete: bool,
}

/// Reads what tasks have written.
pub trait ReadLogs: Send + Sync {
    /// Reads at most `bytes_max` bytes from `offset` on.
    ///
    /// # Errors
    /// If the attempt is not known here, or its output can't be read.
    fn read(
        &self,
        attempt: AttemptId,
        task: u32,
        stream: Stream,
        offset: u64,
        bytes_max: usize,
    ) -> std::io::Result<LogPart>;
}
