//! Connections: how many there may be, and how long one may stay without showing the token.
//!
//! A port that every local user can reach must not run out of files because some of them open it
//! and sit. HTTP/2's own keep-alive ends clients that are gone, not those that only wait.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::model::limit::CONNECTIONS_MAX;

/// Wait after the system refused to accept: it is short of files or memory, not for long.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// Files that stay free for the journal and what else is not a connection.
const OTHER_FILES: usize = 128;

/// How many connections there may be: as many as the limit allows and the system has files for.
pub(super) fn most() -> usize {
    // Not raised to the hard limit: what tasks inherit is not the broker's to change.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    CONNECTIONS_MAX.min(files.saturating_sub(OTHER_FILES)).max(1)
}

/// Set once a request with the token has come in on a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Admission(Arc<AtomicBool>);

impl Admission {
    /// The client knows the token: its connection may stay.
    pub(super) fn grant(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_granted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A client's connection, which counts against the limit while it lives.
pub(super) struct Connection {
    stream: TcpStream,
    admission: Admission,
    /// Until when the token must have been shown; `None` once it has been.
    deadline: Option<Pin<Box<Sleep>>>,
    _counted: OwnedSemaphorePermit,
}

/// Accepts connections, at most `most` at once; those without the token are closed after `patience`.
///
/// Beyond that clients wait in the listener's backlog, which costs the broker nothing.
pub(super) fn accept(
    listener: TcpListener,
    most: usize,
    patience: Duration,
) -> impl Stream<Item = io::Result<Connection>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let free = Arc::new(Semaphore::new(most));
    tokio::spawn(async move {
        // The semaphore is never closed.
        while let Ok(counted) = free.clone().acquire_owned().await {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    tokio::time::sleep(ACCEPT_WAIT).await;
                    continue;
                }
            };
            // Answers are small: waiting to fill a packet would cost each of them 40 ms.
            let _ = stream.set_nodelay(true);
            let deadline = Some(Box::pin(tokio::time::sleep(patience)));
            let admission = Admission::default();
            let connection = Connection { stream, admission, deadline, _counted: counted };
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
            self.deadline = None;
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the token was not shown")));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
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
        let _second = TcpStream::connect(address).await.expect("in the backlog");
        let mut next = Box::pin(incoming.next());
        tokio::task::yield_now().await;
        assert!(std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context).is_pending())).await);
        drop(held);
        assert!(next.await.is_some_and(|accepted| accepted.is_ok()));
    }
}
