//! Connections: how many there may be, and how long one may stay without showing the token.
//!
//! A port that every local user can reach must not run out of files because some of them open it
//! and sit. HTTP/2's own keep-alive ends clients that are gone, not those that only wait.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::rate::Identity;
use crate::model::limit::CONNECTIONS_MAX;

/// Wait after the system refused to accept: it is short of files or memory, not for long.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// Bytes that are read of one connection before the others have their turn. Frames are small: what a
/// flood of them fits into more would hold up everybody for longer than they should notice.
const TURN_BYTES: usize = 32 * 1024;

/// Files that stay free for the journal and what else is not a connection.
const OTHER_FILES: usize = 128;

/// How many connections there may be: as many as the limit allows and the system has files for.
pub(super) fn most() -> usize {
    // Not raised to the hard limit: what tasks inherit is not the broker's to change.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    CONNECTIONS_MAX.min(files.saturating_sub(OTHER_FILES)).max(1)
}

/// Who is at a connection's other end, and whether the token has been shown there.
#[derive(Clone, Debug, Default)]
pub(super) struct Admission(Arc<Standing>);

#[derive(Debug, Default)]
struct Standing {
    granted: AtomicBool,
    identity: Identity,
}

impl Admission {
    /// The client knows the token: its connection may stay.
    pub(super) fn grant(&self) {
        self.0.granted.store(true, Ordering::Relaxed);
    }

    /// Whose share the connection's requests take from.
    pub(super) fn identity(&self) -> Identity {
        self.0.identity.clone()
    }

    fn is_granted(&self) -> bool {
        self.0.granted.load(Ordering::Relaxed)
    }
}

/// A client's connection, which counts against the limit while it lives.
pub(super) struct Connection {
    stream: TcpStream,
    admission: Admission,
    /// What ends it while the token has not been shown; `None` once it has been.
    probation: Option<Probation>,
    /// Bytes read since others had their turn.
    turn_bytes: usize,
    _counted: OwnedSemaphorePermit,
}

/// The time until which the token must have been shown, and whether the place is needed before.
struct Probation {
    deadline: Pin<Box<Sleep>>,
    dismissed: Option<oneshot::Receiver<()>>,
}

/// Connections without the token, oldest first: those whose places others may have.
#[derive(Default)]
struct Strangers(VecDeque<(Admission, oneshot::Sender<()>)>);

impl Strangers {
    fn add(&mut self, admission: Admission, dismiss: oneshot::Sender<()>, most: usize) {
        if self.0.len() >= 2 * most {
            self.0.retain(|(admission, dismiss)| !admission.is_granted() && !dismiss.is_closed());
        }
        self.0.push_back((admission, dismiss));
    }

    /// Ends the oldest, if there is one: whoever knows the token has shown it since.
    fn dismiss_oldest(&mut self) {
        while let Some((admission, dismiss)) = self.0.pop_front() {
            if !admission.is_granted() && dismiss.send(()).is_ok() {
                return;
            }
        }
    }
}

/// Accepts connections, at most `most` at once; those without the token are closed after `patience`,
/// or when their places are needed.
///
/// Beyond that clients wait in the listener's backlog, which costs the broker nothing. Where the
/// system has fewer files than that, those who are connected are served on.
pub(super) fn accept(
    listener: TcpListener,
    most: usize,
    patience: Duration,
) -> impl Stream<Item = io::Result<Connection>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let free = Arc::new(Semaphore::new(most));
    tokio::spawn(async move {
        let (mut strangers, mut refused) = (Strangers::default(), false);
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                // The client's own doing.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    // Once for each stretch: ten a second would bury what matters.
                    if !std::mem::replace(&mut refused, true) {
                        tracing::warn!(%error, "connections can't be accepted; trying on");
                    }
                    strangers.dismiss_oldest();
                    tokio::time::sleep(ACCEPT_WAIT).await;
                    continue;
                }
            };
            if std::mem::take(&mut refused) {
                tracing::info!("connections are accepted again");
            }
            let counted = match free.clone().try_acquire_owned() {
                Ok(counted) => counted,
                Err(_) => {
                    strangers.dismiss_oldest();
                    // The semaphore is never closed.
                    let Ok(counted) = free.clone().acquire_owned().await else { return };
                    counted
                }
            };
            // Answers are small: waiting to fill a packet would cost each of them 40 ms.
            let _ = stream.set_nodelay(true);
            let (dismiss, dismissed) = oneshot::channel();
            let deadline = Box::pin(tokio::time::sleep(patience));
            let admission = Admission::default();
            strangers.add(admission.clone(), dismiss, most);
            let probation = Some(Probation { deadline, dismissed: Some(dismissed) });
            let connection = Connection { stream, admission, probation, turn_bytes: 0, _counted: counted };
            if sender.send(Ok(connection)).await.is_err() {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

impl Connected for Connection {
    type ConnectInfo = Admission;

    fn connect_info(&self) -> Admission {
        self.admission.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.admission.is_granted() {
            self.probation = None;
        }
        if let Some(Probation { deadline, dismissed }) = &mut self.probation {
            if deadline.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the token was not shown")));
            }
            match dismissed.as_mut().map(|it| Pin::new(it).poll(context)) {
                Some(Poll::Ready(Ok(()))) => {
                    let why = "its place is needed, and the token was not shown";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
                }
                // Nobody is accepted any more.
                Some(Poll::Ready(Err(_))) => *dismissed = None,
                Some(Poll::Pending) | None => {}
            }
        }
        if self.turn_bytes >= TURN_BYTES {
            self.turn_bytes = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.turn_bytes =
            if outcome.is_ready() { self.turn_bytes + buffer.filled().len() - before } else { 0 };
        outcome
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    use super::*;

    async fn listener() -> (TcpListener, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        (listener, address)
    }

    #[tokio::test]
    async fn connection_is_closed_unless_the_token_is_shown_in_time() {
        let (listener, address) = listener().await;
        let mut incoming = Box::pin(accept(listener, 4, Duration::from_millis(1)));
        let _silent = TcpStream::connect(address).await.expect("a connection");
        let mut connection = incoming.next().await.expect("one").expect("accepted");
        let error = connection.read_u8().await.expect_err("the time is up");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let mut known = TcpStream::connect(address).await.expect("a connection");
        let mut connection = incoming.next().await.expect("one").expect("accepted");
        connection.connect_info().grant();
        known.write_u8(7).await.expect("sent");
        assert_eq!(connection.read_u8().await.expect("it stays"), 7);
    }

    #[tokio::test]
    async fn request_with_the_token_admits_its_connection_and_one_without_does_not() {
        use crate::api::guard::Guard;
        use crate::api::proto::v1;
        let (listener, address) = listener().await;
        let (seen, mut admissions) = tokio::sync::mpsc::unbounded_channel();
        let incoming = accept(listener, 4, Duration::from_secs(60))
            .map(move |accepted| accepted.inspect(|connection| drop(seen.send(connection.connect_info()))));
        let (_, health) = tonic_health::server::health_reporter();
        let server = tonic::transport::Server::builder().layer(Guard::new("right")).add_service(health);
        let server = tokio::spawn(server.serve_with_incoming(incoming));
        for (token, granted) in [("Bearer right", true), ("Bearer wrong", false)] {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
            let channel = endpoint.expect("a url").connect().await.expect("a connection");
            let mut request = tonic::Request::new(v1::ListPoolsRequest {});
            request.metadata_mut().insert("authorization", token.parse().expect("a header"));
            let mut client = v1::pool_service_client::PoolServiceClient::new(channel);
            // There is no such service here: what counts is how far the request comes.
            client.list_pools(request).await.expect_err("refused, or not known");
            assert_eq!(admissions.recv().await.map(|it| it.is_granted()), Some(granted), "{token}");
        }
        server.abort();
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_until_one_ends() {
        let (listener, address) = listener().await;
        let mut incoming = Box::pin(accept(listener, 1, Duration::from_secs(60)));
        let _first = TcpStream::connect(address).await.expect("a connection");
        let held = incoming.next().await.expect("one").expect("accepted");
        held.connect_info().grant();
        let _second = TcpStream::connect(address).await.expect("in the backlog");
        let mut next = Box::pin(incoming.next());
        tokio::task::yield_now().await;
        assert!(std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context).is_pending())).await);
        drop(held);
        assert!(next.await.is_some_and(|accepted| accepted.is_ok()));
    }

    #[tokio::test]
    async fn connection_without_the_token_gives_its_place_to_the_next() {
        let (listener, address) = listener().await;
        let mut incoming = Box::pin(accept(listener, 2, Duration::from_secs(60)));
        let mut clients = Vec::new();
        let mut held = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(address).await.expect("a connection"));
            held.push(incoming.next().await.expect("one").expect("accepted"));
        }
        held[0].connect_info().grant();
        clients.push(TcpStream::connect(address).await.expect("in the backlog"));
        // The one that is known stays; of the strangers the oldest goes.
        let error = held[1].read_u8().await.expect_err("it is dismissed");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        drop(held.pop());
        incoming.next().await.expect("one").expect("accepted");
        clients[0].write_u8(7).await.expect("sent");
        assert_eq!(held[0].read_u8().await.expect("it stays"), 7);
    }
}
