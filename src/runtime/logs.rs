//! Routes reads of task output to the agents that store it, and their responses back.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::model::id::AttemptId;
use crate::model::time::Timestamp;

/// One of a task's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A read of one chunk of output.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    pub attempt: AttemptId,
    /// Index of the task in its unit.
    pub task: u32,
    pub stream: Stream,
    /// Byte offset in the stream.
    pub offset: u64,
    pub bytes_max: u32,
    /// Begin with what was written from then on, in place of the offset.
    pub since: Option<Timestamp>,
    /// Also read when the data was written.
    pub with_times: bool,
}

/// A chunk of output, as the agent returned it.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    /// Offset of the data: after the requested one if that part of the stream was not stored, before it if
    /// it is beyond the end.
    pub offset: u64,
    pub data: Vec<u8>,
    /// Length of the stream so far, in bytes.
    pub end: u64,
    /// True if the stream will not grow.
    pub complete: bool,
    /// Why there is no data; empty if the read succeeded.
    pub error: String,
    /// The pool stores when this output was written; false if the request was not about times.
    pub timed: bool,
    /// The pieces that the data belongs to: where each ends, and the time by which it was written.
    pub times: Vec<(u64, Timestamp)>,
}

/// A read with the channel for its response.
pub type PendingRead = (ReadRequest, oneshot::Sender<Chunk>);

/// Reads queued for one agent. A slow agent delays its own readers instead of filling memory.
const READS_MAX: usize = 256;

/// The agents that serve logs, by pool.
#[derive(Debug, Default)]
pub struct LogRouter {
    pools: Mutex<BTreeMap<String, mpsc::Sender<PendingRead>>>,
}

impl LogRouter {
    /// Registers an agent for the logs of its pool, in place of an earlier one, and returns the reads that
    /// it must serve.
    pub fn serve(&self, pool: &str) -> mpsc::Receiver<PendingRead> {
        let (sender, receiver) = mpsc::channel(READS_MAX);
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).insert(pool.to_owned(), sender);
        receiver
    }

    /// Reads a chunk from the pool's agent. `None` if no agent is registered, or it disconnects.
    pub async fn read(&self, pool: &str, request: ReadRequest) -> Option<Chunk> {
        let sender = self.pools.lock().unwrap_or_else(PoisonError::into_inner).get(pool).cloned()?;
        let (respond, response) = oneshot::channel();
        sender.send((request, respond)).await.ok()?;
        response.await.ok()
    }
}
