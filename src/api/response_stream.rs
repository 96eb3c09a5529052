//! Response streams, with a bound on what the broker buffers for a client that doesn't read.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::admission::Identity;

/// The response of a method that streams.
pub(super) type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Messages that one stream buffers for a slow reader; after that the sending task waits, the broker
/// does not.
const STREAM_MAX: usize = 4;

/// The sending end of one response stream.
pub(super) struct ResponseSender<T> {
    sender: mpsc::Sender<Queued<T>>,
    permits: Arc<Semaphore>,
}

impl<T> Clone for ResponseSender<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), permits: self.permits.clone() }
    }
}

/// A buffered message with the permit that it holds until it is read.
struct Queued<T> {
    message: Result<T, Status>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Permission to buffer one message, out of those that all streams of the client share.
pub(super) struct MessagePermit(OwnedSemaphorePermit);

/// Opens a stream to this client.
pub(super) fn response_stream<T: Send + 'static>(
    identity: &Identity,
) -> (ResponseSender<T>, ResponseStream<T>) {
    let (sender, receiver) = mpsc::channel(STREAM_MAX);
    let messages = ReceiverStream::new(receiver).map(|queued: Queued<T>| queued.message);
    (ResponseSender { sender, permits: identity.stream_permits() }, Box::pin(messages))
}

/// Opens a stream to this client, of what `send` sends and then of the error that it returns, if any.
pub(super) fn spawn_response<T: Send + 'static, F>(
    identity: &Identity,
    send: impl FnOnce(ResponseSender<T>) -> F,
) -> ResponseStream<T>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, stream) = response_stream(identity);
    let sending = send(sender.clone());
    tokio::spawn(async move {
        if let Err(status) = sending.await {
            sender.fail(status).await;
        }
    });
    stream
}

impl<T> ResponseSender<T> {
    /// Waits until a message may be buffered. Call it before the message is built: a thousand unread
    /// streams must not hold a message each.
    ///
    /// # Errors
    /// `CANCELLED` if the client closes the stream.
    pub(super) async fn reserve(&self) -> Result<MessagePermit, Status> {
        tokio::select! {
            permit = self.permits.clone().acquire_owned() => {
                permit.map(MessagePermit).map_err(|_| stream_closed())
            }
            () = self.sender.closed() => Err(stream_closed()),
        }
    }

    /// Sends a message under its permit.
    ///
    /// # Errors
    /// `CANCELLED` if the client has closed the stream.
    pub(super) async fn send(&self, permit: MessagePermit, message: T) -> Result<(), Status> {
        let queued = Queued { message: Ok(message), _permit: Some(permit.0) };
        self.sender.send(queued).await.map_err(|_| stream_closed())
    }

    /// Ends the stream with an error; does nothing if the client has closed it.
    pub(super) async fn fail(&self, status: Status) {
        let _ = self.sender.send(Queued { message: Err(status), _permit: None }).await;
    }

    /// Waits until the client closes the stream.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }

    /// True once the client has closed the stream.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

fn stream_closed() -> Status {
    Status::cancelled("the client closed the stream")
}
