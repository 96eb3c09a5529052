//! Limits on request bodies: how much memory they may take, and which decoding errors are the client's.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use http_body::{Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::{Code, Status};

use super::admission::Identity;
use super::connection::ConnectionInfo;
use super::error;
use super::message_counter::MessageCounter;
use super::middleware::{Inner, Middleware, ResponseFuture};
use crate::model::limit::{ENTRY_BYTES, REQUEST_BYTES_FREE, REQUEST_BYTES_HELD_MAX, REQUEST_ENTRIES_MAX};

/// Agent sessions. Their messages are processed one at a time as they arrive, so only each message
/// counts, not their sum.
const STREAMED: &str = "/weir.v1.AgentService/";
/// Retry delay for a client whose request exceeds the memory limits.
const MEMORY_RETRY: Duration = Duration::from_millis(500);
/// How tonic's messages begin for a body that can't be decoded. Tonic reports these as `INTERNAL`,
/// an error of the server, which would alert an operator to a client's bug.
const DECODE_ERRORS: [&str; 5] = [
    "failed to decode Protobuf message",
    "protocol error: received message",
    "Unexpected EOF decoding stream",
    "Missing request message",
    "Error decompressing",
];

/// Limits the memory that request bodies take: received bytes plus an estimate of the decoded message.
///
/// Without it each stream of a connection could send all but the last byte of a request of maximum
/// size, and a request of four megabytes could decode to half a gigabyte.
#[derive(Clone, Debug)]
pub(super) struct LimitBodies {
    total: Arc<AtomicUsize>,
    /// Bytes that the requests of all clients may take.
    all_max: usize,
}

impl LimitBodies {
    /// Limits the requests of all clients together to so many bytes.
    pub(super) fn new(all_max: usize) -> Self {
        Self { total: Arc::default(), all_max }
    }
}

impl Middleware for LimitBodies {
    fn handle<S: Inner>(&self, inner: &mut S, request: Request<Body>) -> ResponseFuture<S::Error> {
        let identity = request.extensions().get::<ConnectionInfo>().map(ConnectionInfo::identity);
        let streamed = request.uri().path().starts_with(STREAMED);
        let charge = (!streamed).then(|| {
            Arc::new(MemoryCharge {
                identity: identity.unwrap_or_default(),
                total: self.total.clone(),
                all_max: self.all_max,
                charged: AtomicUsize::new(0),
            })
        });
        let counter = MessageCounter::for_method(request.uri().path());
        let request =
            request.map(|body| Body::new(LimitedBody { body, counter, bytes: 0, charge: charge.clone() }));
        let response = inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            // The handler holds the decoded message until here.
            drop(charge);
            Ok(as_client_error(response))
        })
    }
}

/// Turns an internal error about an undecodable body into an invalid argument.
fn as_client_error(mut response: Response<Body>) -> Response<Body> {
    let internal = response.headers().get("grpc-status").is_some_and(|code| code.as_bytes() == b"13");
    if internal
        && let Some(status) = Status::from_header_map(response.headers())
        && let Some(status) = decode_error(&status)
    {
        response = status.into_http();
    }
    response
}

/// The status of an undecodable body as a client error; `None` for every other status.
pub(super) fn decode_error(status: &Status) -> Option<Status> {
    let undecodable = DECODE_ERRORS.iter().any(|prefix| status.message().starts_with(prefix));
    (status.code() == Code::Internal && undecodable).then(|| error::unreadable(status.message()))
}

/// Memory charged to one request. The first [`REQUEST_BYTES_FREE`] bytes are free of charge: the limit
/// on streams bounds the number of small requests.
#[derive(Debug)]
struct MemoryCharge {
    identity: Identity,
    total: Arc<AtomicUsize>,
    /// Bound of `total`.
    all_max: usize,
    charged: AtomicUsize,
}

impl MemoryCharge {
    /// Charges the request for `bytes` in all.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the client's or all requests then exceed their limit.
    fn grow_to(&self, bytes: usize) -> Result<(), Status> {
        let charged = self.charged.load(Ordering::Relaxed);
        let more = bytes.saturating_sub(REQUEST_BYTES_FREE).saturating_sub(charged);
        if more == 0 {
            return Ok(());
        }
        self.charged.store(charged + more, Ordering::Relaxed);
        let own = self.identity.request_bytes().fetch_add(more, Ordering::Relaxed) + more;
        let all = self.total.fetch_add(more, Ordering::Relaxed) + more;
        if own > REQUEST_BYTES_HELD_MAX {
            return Err(too_large("requests of this client", own, REQUEST_BYTES_HELD_MAX));
        }
        if all > self.all_max {
            return Err(too_large("requests of all clients", all, self.all_max));
        }
        Ok(())
    }
}

fn too_large(which: &str, bytes: usize, bytes_max: usize) -> Status {
    let message =
        format!("large {which} would take {bytes} bytes of memory, at most {bytes_max} are allowed");
    error::too_many(&message, MEMORY_RETRY)
}

impl Drop for MemoryCharge {
    fn drop(&mut self) {
        let charged = self.charged.load(Ordering::Relaxed);
        self.identity.request_bytes().fetch_sub(charged, Ordering::Relaxed);
        self.total.fetch_sub(charged, Ordering::Relaxed);
    }
}

/// A request body that is counted as it arrives.
struct LimitedBody {
    body: Body,
    /// `None` for methods outside `weir.v1`.
    counter: Option<MessageCounter>,
    bytes: usize,
    /// `None` for streams, whose messages are processed one at a time.
    charge: Option<Arc<MemoryCharge>>,
}

impl LimitedBody {
    fn count(&mut self, data: &[u8]) -> Result<(), Status> {
        self.bytes += data.len();
        let mut entries = 0;
        if let Some(counter) = &mut self.counter {
            counter.feed(data);
            entries = counter.entries();
        }
        if entries > REQUEST_ENTRIES_MAX {
            let message =
                format!("the request has more than {REQUEST_ENTRIES_MAX} messages and list entries");
            return Err(error::unreadable(&message));
        }
        self.charge.as_ref().map_or(Ok(()), |charge| charge.grow_to(self.bytes + ENTRY_BYTES * entries))
    }
}

impl http_body::Body for LimitedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            let frame = frame?;
            if let Some(data) = frame.data_ref() {
                self.count(data)?;
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
