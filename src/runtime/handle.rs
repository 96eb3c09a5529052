//! Access to the running broker for the API's handlers: calls become messages to its event loop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};

use super::archive::SharedArchive;
use super::error::{CallError, causes};
use super::logs::LogRouter;
use super::watch::Watchers;
use crate::broker::{AnyAnswer, AnyQuery, Query, SessionId};
pub use crate::journal::{Archive, EndPlace, EventPage, FinishedJobs};
use crate::journal::{Error, Journal};
use crate::model::exchange::{FromAgent, ToAgent};
use crate::model::id::Revision;
use crate::state::command::Request;
use crate::state::decide::Reply;
use crate::state::rejection::Rejection;
use crate::telemetry::broker::BrokerMetrics;

/// Inputs queued for the state machine. Beyond that callers wait.
const INPUTS_MAX: usize = 8_192;
/// Messages queued for one agent's connection. A slower agent is disconnected and synchronises again.
const TO_AGENT_MAX: usize = 4_096;

/// The channel to a caller that waits for its reply.
pub(super) type ReplySender<T> = oneshot::Sender<Result<T, CallError>>;

pub(super) enum Message {
    Request(Request, ReplySender<(Reply, Revision)>),
    Query(Box<dyn AnyQuery>, ReplySender<(Revision, AnyAnswer)>),
    Open(SessionId, mpsc::Sender<ToAgent>),
    FromAgent(SessionId, FromAgent),
    Gone(SessionId),
    Stop,
}

/// Access to the running broker, for the API's handlers. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inputs: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    watchers: Mutex<Arc<Watchers>>,
    logs: LogRouter,
    archive: Arc<SharedArchive>,
    next_session: AtomicU64,
    write_error: watch::Sender<Option<String>>,
    metrics: BrokerMetrics,
}

impl Shared {
    /// Replaces the recent changes, for a broker that begins again.
    pub(super) fn set_watchers(&self, watchers: Arc<Watchers>) {
        *self.watchers.lock().unwrap_or_else(PoisonError::into_inner) = watchers;
    }

    /// Publishes that the journal can't be written, or with `None` that it can, and logs it if it is new.
    pub(super) fn set_write_error(&self, error: Option<&Error>) {
        let text = error.map(|error| causes(error));
        match text {
            text if !self.replace_write_error(text.as_ref()) => {}
            Some(error) => tracing::error!(error, "the journal can't be written: only reads are answered"),
            None => tracing::info!("the journal can be written again"),
        }
    }

    /// Publishes that the journal must not be written, because it is an old copy, and logs it if it is new.
    pub(super) fn set_outdated(&self, why: &Rejection) {
        let text = why.to_string();
        if self.replace_write_error(Some(&text)) {
            tracing::error!("{text}");
        }
    }

    /// Returns whether the error is another than before.
    fn replace_write_error(&self, error: Option<&String>) -> bool {
        self.write_error.send_if_modified(|last| {
            let changed = last.as_ref() != error;
            *last = error.cloned();
            self.metrics.set_writable(error.is_none());
            changed
        })
    }

    /// What the broker counts.
    pub(super) fn metrics(&self) -> &BrokerMetrics {
        &self.metrics
    }

    /// Why the journal can't be written.
    pub(super) fn write_error(&self) -> CallError {
        match &*self.write_error.borrow() {
            Some(error) => CallError::ReadOnly(error.clone()),
            None => CallError::Unavailable,
        }
    }
}

impl Handle {
    /// A handle of a broker that will take the messages of the receiver.
    ///
    /// # Errors
    /// If the journal's archive can't be opened.
    pub(super) fn new(
        journal: &dyn Journal,
        durable: Revision,
    ) -> Result<(Self, Arc<Shared>, mpsc::Receiver<Message>), Error> {
        let shared = Arc::new(Shared {
            watchers: Mutex::new(Arc::new(Watchers::new(durable))),
            logs: LogRouter::default(),
            archive: SharedArchive::open(journal)?,
            next_session: AtomicU64::new(1),
            write_error: watch::Sender::new(None),
            metrics: BrokerMetrics::new(),
        });
        let (inputs, incoming) = mpsc::channel(INPUTS_MAX);
        Ok((Self { inputs, shared: shared.clone() }, shared, incoming))
    }

    /// Decides a request. Returns its reply when its events are durable, with a revision that includes them.
    ///
    /// # Errors
    /// The rejection, or [`CallError::ReadOnly`] or [`CallError::Unavailable`] if the outcome is unknown.
    pub async fn request(&self, request: Request) -> Result<(Reply, Revision), CallError> {
        let (sender, receiver) = oneshot::channel();
        self.inputs.send(Message::Request(request, sender)).await.map_err(|_| CallError::Unavailable)?;
        receiver.await.map_err(|_| CallError::Unavailable)?
    }

    /// Answers a query from durable events, with the revision that the answer is of.
    ///
    /// # Errors
    /// [`CallError::Unavailable`].
    pub async fn query<Q: Query>(&self, query: Q) -> Result<(Revision, Q::Answer), CallError> {
        let (sender, receiver) = oneshot::channel();
        let message = Message::Query(Box::new(query), sender);
        self.inputs.send(message).await.map_err(|_| CallError::Unavailable)?;
        let (revision, answer) = receiver.await.map_err(|_| CallError::Unavailable)??;
        // A query's answer has its own type, see `AnyQuery`.
        answer.downcast().map(|answer| (revision, *answer)).map_err(|_| CallError::Unavailable)
    }

    /// Looks up single jobs in the archive, on a thread for blocking calls. They don't wait behind pages.
    ///
    /// # Errors
    /// - [`CallError::Damaged`] if the rows that are asked for are damaged.
    /// - [`CallError::Unavailable`] if the archive can't be read. The log has the cause.
    pub async fn archive<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Archive) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, CallError> {
        self.shared.archive.read(&self.shared.archive.lookups, read).await
    }

    /// Reads a page of the archive, on a thread for blocking calls, one page at a time.
    ///
    /// # Errors
    /// As [`Self::archive`].
    pub async fn archive_page<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Archive) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, CallError> {
        self.shared.archive.read(&self.shared.archive.pages, read).await
    }

    /// Opens a session for an agent's connection. The receiver yields the messages for the agent, and ends
    /// with the session.
    pub async fn open_session(&self) -> (SessionId, mpsc::Receiver<ToAgent>) {
        let number = self.shared.next_session.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel(TO_AGENT_MAX);
        // If the broker has stopped, the receiver ends at once.
        let _ = self.inputs.send(Message::Open(SessionId(number), sender)).await;
        (SessionId(number), receiver)
    }

    /// Passes a message from the agent to the broker.
    pub async fn from_agent(&self, session: SessionId, message: FromAgent) {
        let _ = self.inputs.send(Message::FromAgent(session, message)).await;
    }

    /// Ends the session after the agent's connection is lost.
    pub async fn agent_gone(&self, session: SessionId) {
        let _ = self.inputs.send(Message::Gone(session)).await;
    }

    /// The recent changes, for watches.
    pub fn watchers(&self) -> Arc<Watchers> {
        self.shared.watchers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows why the journal can't be written now; `None` if it can.
    pub fn write_error(&self) -> watch::Receiver<Option<String>> {
        self.shared.write_error.subscribe()
    }

    /// What the broker counts.
    pub fn metrics(&self) -> &BrokerMetrics {
        &self.shared.metrics
    }

    /// The router of log reads.
    pub fn logs(&self) -> &LogRouter {
        &self.shared.logs
    }

    /// Stops the broker after all decided events are durable.
    pub async fn stop(&self) {
        let _ = self.inputs.send(Message::Stop).await;
    }
}
