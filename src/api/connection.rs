//! Connections: how many may be open, and which one gives way to a new client if there are no more.
//!
//! A port that every local user can reach must not run out of file descriptors because some of them
//! open connections and send nothing. HTTP/2's own keep-alive ends the connections of clients that are
//! gone, not of those that only wait. What gives way is the oldest connection without authentication, then the one
//! that has been without a request for the longest time: its client opens another when it needs one. A client that
//! holds a request open on each of its connections can still use them all up, until clients have names.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::admission::Identity;
use crate::model::limit::CONNECTIONS_MAX;

/// Wait after the system failed to accept: it is short of file descriptors or memory, usually briefly.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Bytes read from one connection before the other connections' tasks run. Frames are small: a larger
/// budget would admit so many that processing them delays other clients noticeably.
const READ_BUDGET_BYTES: usize = 32 * 1024;

/// File descriptors that stay free for the journal and everything else that is not a connection.
const OTHER_FILES: usize = 128;

/// Fewest connections that a broker is of use with: a few agents, with two each, and some users.
const CONNECTIONS_MIN: usize = 64;

/// How many connections may be open: [`CONNECTIONS_MAX`], or fewer where the system's limit on file
/// descriptors is lower.
///
/// # Errors
/// If the limit leaves fewer than 64.
pub fn connections_max() -> Result<usize, String> {
    // The soft limit is not raised to the hard one: tasks inherit it, so the broker must not change it.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let connections = CONNECTIONS_MAX.min(files.saturating_sub(OTHER_FILES));
    if connections < CONNECTIONS_MIN {
        let needed = OTHER_FILES + CONNECTIONS_MIN;
        return Err(format!(
            "the limit of open files is {files}, a broker needs at least {needed}: raise it with `ulimit -n`"
        ));
    }
    if connections < CONNECTIONS_MAX {
        tracing::warn!(
            connections,
            files,
            "the limit of open files allows fewer connections than {CONNECTIONS_MAX}"
        );
    }
    Ok(connections)
}

/// The client of a connection and whether it is authenticated. Each request carries it as an extension.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionInfo(Arc<AuthState>);

#[derive(Debug)]
struct AuthState {
    authenticated: AtomicBool,
    identity: Identity,
    in_flight: Mutex<Requests>,
}

/// The requests of a connection.
#[derive(Clone, Copy, Debug)]
struct Requests {
    count: usize,
    /// When the last one ended, or the connection was opened.
    idle_since: Instant,
}

impl Default for AuthState {
    fn default() -> Self {
        let in_flight = Mutex::new(Requests { count: 0, idle_since: Instant::now() });
        Self { authenticated: AtomicBool::new(false), identity: Identity::default(), in_flight }
    }
}

/// A request in flight, until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight(ConnectionInfo);

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut requests = self.0.requests();
        *requests = Requests { count: requests.count - 1, idle_since: Instant::now() };
    }
}

impl ConnectionInfo {
    /// Marks the connection as authenticated: it need not do so in time, and gives way only without a request.
    pub(super) fn set_authenticated(&self) {
        self.0.authenticated.store(true, Ordering::Relaxed);
    }

    /// The client that the connection's requests are charged to.
    pub(super) fn identity(&self) -> Identity {
        self.0.identity.clone()
    }

    /// Counts a request until the value is dropped.
    pub(super) fn begin_request(&self) -> InFlight {
        self.requests().count += 1;
        InFlight(self.clone())
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.0.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when the connection has no request in flight; `None` while it has one.
    fn idle_since(&self) -> Option<Instant> {
        let requests = *self.requests();
        (requests.count == 0).then_some(requests.idle_since)
    }

    fn is_authenticated(&self) -> bool {
        self.0.authenticated.load(Ordering::Relaxed)
    }
}

/// The sender of a request.
pub(super) fn identity_of<T>(request: &tonic::Request<T>) -> Identity {
    request.extensions().get::<ConnectionInfo>().map(ConnectionInfo::identity).unwrap_or_default()
}

/// A client's connection. It counts against the limit until it is dropped.
pub(super) struct Connection {
    stream: TcpStream,
    info: ConnectionInfo,
    /// Ends the connection unless it authenticates; `None` once it is authenticated.
    auth_deadline: Option<Pin<Box<Sleep>>>,
    /// Ends the connection in favour of a new one.
    evicted: Option<oneshot::Receiver<()>>,
    /// Bytes read since the connection last yielded.
    read_bytes: usize,
    _counted: OwnedSemaphorePermit,
}

/// How long a connection must have been without a request to give way: longer than a client needs between two.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// The open connections, oldest first.
#[derive(Default)]
struct Open(VecDeque<(ConnectionInfo, oneshot::Sender<()>)>);

impl Open {
    fn add(&mut self, info: ConnectionInfo, evict: oneshot::Sender<()>, connections_max: usize) {
        if self.0.len() >= 2 * connections_max {
            self.0.retain(|(_, evict)| !evict.is_closed());
        }
        self.0.push_back((info, evict));
    }

    /// Closes the connection that can best be done without; none if all are in use.
    fn evict_one(&mut self) {
        self.0.retain(|(_, evict)| !evict.is_closed());
        let unauthenticated = self.0.iter().position(|(info, _)| !info.is_authenticated());
        let is_idle = |since: &Instant| since.elapsed() >= IDLE_MIN;
        let idle = self.0.iter().enumerate().filter_map(|(at, (info, _))| Some((info.idle_since()?, at)));
        let longest = || idle.filter(|(since, _)| is_idle(since)).min().map(|(_, at)| at);
        if let Some((_, evict)) = unauthenticated.or_else(longest).and_then(|at| self.0.remove(at)) {
            // If it has just ended by itself, there is room, too.
            let _ = evict.send(());
        }
    }
}

/// Accepts connections, at most `connections_max` at once. Those without authentication are closed after
/// `auth_timeout`, or earlier to make way for a new connection.
///
/// Further clients wait in the listener's backlog, which costs the broker nothing. If the system runs
/// out of file descriptors below the limit, established connections are still served.
pub(super) fn accept(
    listener: TcpListener,
    connections_max: usize,
    auth_timeout: Duration,
) -> impl Stream<Item = io::Result<Connection>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let free = Arc::new(Semaphore::new(connections_max));
    tokio::spawn(async move {
        let (mut open, mut failing) = (Open::default(), false);
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                // The client closed it before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    // Once per outage: ten lines a second would bury others.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "connections can't be accepted; retrying");
                    }
                    open.evict_one();
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            if std::mem::take(&mut failing) {
                tracing::info!("connections are accepted again");
            }
            let counted = match free.clone().try_acquire_owned() {
                Ok(counted) => counted,
                Err(_) => loop {
                    open.evict_one();
                    // The semaphore is never closed.
                    let freed = tokio::time::timeout(ACCEPT_RETRY, free.clone().acquire_owned());
                    if let Ok(Ok(counted)) = freed.await {
                        break counted;
                    }
                },
            };
            // Responses are small: waiting to fill a packet would delay each by 40 ms.
            let _ = stream.set_nodelay(true);
            let (evict, evicted) = oneshot::channel();
            let info = ConnectionInfo::default();
            open.add(info.clone(), evict, connections_max);
            let connection = Connection {
                stream,
                info,
                auth_deadline: Some(Box::pin(tokio::time::sleep(auth_timeout))),
                evicted: Some(evicted),
                read_bytes: 0,
                _counted: counted,
            };
            if sender.send(Ok(connection)).await.is_err() {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.info.is_authenticated() {
            self.auth_deadline = None;
        }
        if let Some(deadline) = &mut self.auth_deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            let message = "no request with the token before the authentication deadline";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
        }
        match self.evicted.as_mut().map(|evicted| Pin::new(evicted).poll(context)) {
            Some(Poll::Ready(Ok(()))) => {
                let message = "closed in favour of a new connection";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, message)));
            }
            // The accept loop has ended, so nothing evicts any more.
            Some(Poll::Ready(Err(_))) => self.evicted = None,
            Some(Poll::Pending) | None => {}
        }
        if self.read_bytes >= READ_BUDGET_BYTES {
            self.read_bytes = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.read_bytes =
            if outcome.is_ready() { self.read_bytes + buffer.filled().len() - before } else { 0 };
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
    async fn connection_is_closed_unless_it_authenticates_in_time() {
        let (listener, address) = listener().await;
        let mut incoming = Box::pin(accept(listener, 4, Duration::from_millis(1)));
        let _idle = TcpStream::connect(address).await.expect("a connection");
        let mut connection = incoming.next().await.expect("one").expect("accepted");
        let error = connection.read_u8().await.expect_err("past the deadline");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let mut client = TcpStream::connect(address).await.expect("a connection");
        let mut connection = incoming.next().await.expect("one").expect("accepted");
        connection.connect_info().set_authenticated();
        client.write_u8(7).await.expect("sent");
        assert_eq!(connection.read_u8().await.expect("still open"), 7);
    }

    #[tokio::test]
    async fn request_with_the_token_authenticates_its_connection_and_one_without_does_not() {
        use crate::api::auth::Auth;
        use crate::api::middleware::Before;
        use crate::api::proto::v1;
        let (listener, address) = listener().await;
        let (sender, mut infos) = tokio::sync::mpsc::unbounded_channel();
        let incoming = accept(listener, 4, Duration::from_secs(60))
            .map(move |accepted| accepted.inspect(|connection| drop(sender.send(connection.connect_info()))));
        let (_, health) = tonic_health::server::health_reporter();
        let server =
            tonic::transport::Server::builder().layer(Before(Auth::new("right"))).add_service(health);
        let server = tokio::spawn(server.serve_with_incoming(incoming));
        for (token, authenticated) in [("Bearer right", true), ("Bearer wrong", false)] {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
            let channel = endpoint.expect("a url").connect().await.expect("a connection");
            let mut request = tonic::Request::new(v1::ListPoolsRequest {});
            request.metadata_mut().insert("authorization", token.parse().expect("a header"));
            let mut client = v1::pool_service_client::PoolServiceClient::new(channel);
            // The server has no such service: only the authentication of the request matters.
            client.list_pools(request).await.expect_err("unauthenticated, or unimplemented");
            assert_eq!(infos.recv().await.map(|it| it.is_authenticated()), Some(authenticated), "{token}");
        }
        server.abort();
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_until_one_ends() {
        let (listener, address) = listener().await;
        let mut incoming = Box::pin(accept(listener, 1, Duration::from_secs(60)));
        let _first = TcpStream::connect(address).await.expect("a connection");
        let open = incoming.next().await.expect("one").expect("accepted");
        open.connect_info().set_authenticated();
        let _second = TcpStream::connect(address).await.expect("in the backlog");
        let _in_flight = open.connect_info().begin_request();
        let mut next = Box::pin(incoming.next());
        tokio::task::yield_now().await;
        assert!(std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context).is_pending())).await);
        drop(open);
        assert!(next.await.is_some_and(|accepted| accepted.is_ok()));
    }

    #[tokio::test]
    async fn new_connection_evicts_the_oldest_unauthenticated_one() {
        let (listener, address) = listener().await;
        let mut incoming = Box::pin(accept(listener, 2, Duration::from_secs(60)));
        let mut clients = Vec::new();
        let mut open = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(address).await.expect("a connection"));
            open.push(incoming.next().await.expect("one").expect("accepted"));
        }
        open[0].connect_info().set_authenticated();
        clients.push(TcpStream::connect(address).await.expect("in the backlog"));
        // The authenticated one stays open.
        let error = open[1].read_u8().await.expect_err("evicted");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        drop(open.pop());
        incoming.next().await.expect("one").expect("accepted");
        clients[0].write_u8(7).await.expect("sent");
        assert_eq!(open[0].read_u8().await.expect("still open"), 7);
    }

    #[tokio::test]
    async fn new_connection_evicts_the_one_that_is_idle_for_the_longest_time() {
        let (listener, address) = listener().await;
        let mut incoming = Box::pin(accept(listener, 3, Duration::from_secs(60)));
        let (mut clients, mut open) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.expect("a connection"));
            open.push(incoming.next().await.expect("one").expect("accepted"));
        }
        open.iter().for_each(|connection| connection.connect_info().set_authenticated());
        // The first has a request in flight, and the second had one after the third was opened.
        let _in_flight = open[0].connect_info().begin_request();
        drop(open[1].connect_info().begin_request());
        clients.push(TcpStream::connect(address).await.expect("in the backlog"));
        let error = open[2].read_u8().await.expect_err("evicted");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        drop(open.pop());
        incoming.next().await.expect("one").expect("accepted");
        for (client, connection) in clients.iter_mut().zip(&mut open) {
            client.write_u8(7).await.expect("sent");
            assert_eq!(connection.read_u8().await.expect("still open"), 7);
        }
    }
}
