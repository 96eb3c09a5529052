//! Streams of answers, and what a reader that doesn't read makes the broker keep of them.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::rate::Identity;

/// What a method that streams answers with.
pub(super) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Messages of one stream that wait for a slow reader; it waits then, not the broker.
const STREAM_MAX: usize = 4;

/// Where one stream's messages go in.
pub(super) struct Outlet<T> {
    sender: mpsc::Sender<Queued<T>>,
    room: Arc<Semaphore>,
}

/// A message on its way, with the room that it takes.
struct Queued<T> {
    message: Result<T, Status>,
    _room: Option<OwnedSemaphorePermit>,
}

/// Room for one message among those of all the client's streams.
pub(super) struct Room(OwnedSemaphorePermit);

/// A stream to this client: where messages go in, and where they come out.
pub(super) fn outlet<T: Send + 'static>(identity: &Identity) -> (Outlet<T>, Streamed<T>) {
    let (sender, receiver) = mpsc::channel(STREAM_MAX);
    let messages = ReceiverStream::new(receiver).map(|queued: Queued<T>| queued.message);
    (Outlet { sender, room: identity.stream_room() }, Box::pin(messages))
}

impl<T> Outlet<T> {
    /// Waits for room. To be asked for before a message is made: a thousand streams that nobody reads
    /// must not each hold one.
    ///
    /// # Errors
    /// If the reader goes away.
    pub(super) async fn room(&self) -> Result<Room, Status> {
        let gone = || Status::cancelled("the reader is gone");
        tokio::select! {
            room = self.room.clone().acquire_owned() => room.map(Room).map_err(|_| gone()),
            () = self.sender.closed() => Err(gone()),
        }
    }

    /// Sends a message in the room that was made for it.
    ///
    /// # Errors
    /// If the reader is gone.
    pub(super) async fn send(&self, room: Room, message: T) -> Result<(), Status> {
        let queued = Queued { message: Ok(message), _room: Some(room.0) };
        self.sender.send(queued).await.map_err(|_| Status::cancelled("the reader is gone"))
    }

    /// Ends the stream with an error, if anyone listens.
    pub(super) async fn fail(&self, status: Status) {
        let _ = self.sender.send(Queued { message: Err(status), _room: None }).await;
    }

    /// Ends when the reader has gone away.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }

    /// The reader has gone away.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
