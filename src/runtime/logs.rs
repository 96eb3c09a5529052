//! Questions for pieces of output, on their way to agents and back.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::model::id::AttemptId;

/// One of a task's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A piece of output that is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    pub attempt: AttemptId,
    /// The task by its place in the unit.
    pub task: u32,
    pub stream: Stream,
    pub offset: u64,
    pub bytes_max: u32,
}

/// A piece of output.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Where the data really starts.
    pub offset: u64,
    pub data: Vec<u8>,
    /// Length of the stream so far.
    pub end: u64,
    /// Nothing will be added.
    pub complete: bool,
    pub error: String,
}

/// An ask with where its answer goes.
pub type Asked = (Ask, oneshot::Sender<Part>);

/// Asks that wait for one agent: a slow agent holds up its own readers, not memory.
const ASKS_MAX: usize = 256;

/// The agents that serve logs, by pool.
#[derive(Debug, Default)]
pub struct LogRouter {
    pools: Mutex<BTreeMap<String, mpsc::Sender<Asked>>>,
}

impl LogRouter {
    /// An agent is ready to serve its pool's logs; the last one to say so does.
    pub fn serve(&self, pool: &str) -> mpsc::Receiver<Asked> {
        let (sender, receiver) = mpsc::channel(ASKS_MAX);
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).insert(pool.to_owned(), sender);
        receiver
    }

    /// Asks a pool's agent. `None` if there is none, or it went away.
    pub async fn ask(&self, pool: &str, ask: Ask) -> Option<Part> {
        let sender = self.pools.lock().unwrap_or_else(PoisonError::into_inner).get(pool).cloned()?;
        let (answer, answered) = oneshot::channel();
        sender.send((ask, answer)).await.ok()?;
        answered.await.ok()
    }
}
