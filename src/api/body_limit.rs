//! Limits on request bodies: how much memory they may take, and which decoding errors are the client's.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use http_body::{Frame, SizeHint};
use prost::bytes::Bytes;
use prost_reflect::MethodDescriptor;
use tonic::body::Body;
use tonic::{Code, Status};

use super::admission::Identity;
use super::connection::ConnectionInfo;
use super::descriptor::methods;
use super::error;
use super::middleware::{Inner, Middleware, ResponseFuture};
use crate::model::limit::{ENTRY_BYTES, REQUEST_BYTES_FREE, REQUEST_BYTES_HELD_MAX};

tokio::task_local! {
    /// The memory that is charged to the request which this task handles.
    pub(super) static CHARGE: Arc<MemoryCharge>;
}

/// Retry delay for a client whose request exceeds the memory limits.
const MEMORY_RETRY: Duration = Duration::from_millis(500);

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

    /// Begins to charge a request to its client.
    pub(super) fn charge(&self, identity: Identity) -> Arc<MemoryCharge> {
        Arc::new(MemoryCharge {
            identity,
            total: self.total.clone(),
            all_max: self.all_max,
            bytes: AtomicUsize::new(0),
            charged: AtomicUsize::new(0),
        })
    }
}

impl Middleware for LimitBodies {
    fn handle<S: Inner>(&self, inner: &mut S, request: Request<Body>) -> ResponseFuture<S::Error> {
        // Messages of sessions are processed one at a time as they arrive, so only each of them counts, not their sum.
        let method = methods().get(request.uri().path());
        if method.is_some_and(MethodDescriptor::is_client_streaming) {
            return Box::pin(inner.call(request));
        }
        let identity = request.extensions().get::<ConnectionInfo>().map(ConnectionInfo::identity);
        let charge = self.charge(identity.unwrap_or_default());
        let request = request.map(|body| Body::new(LimitedBody { body, charge: charge.clone() }));
        // The handler holds the decoded message until the response begins, and with it the charge.
        let response = CHARGE.scope(charge, inner.call(request));
        Box::pin(async move { Ok(as_client_error(response.await?)) })
    }
}

/// Turns an error of the transport about an undecodable body into an invalid argument. The transport reports it as
/// `INTERNAL`, an error of the server, which would alert an operator to a client's bug. Weir's own internal errors carry
/// details.
fn as_client_error(mut response: Response<Body>) -> Response<Body> {
    let internal = response.headers().get("grpc-status").is_some_and(|code| code.as_bytes() == b"13");
    if internal && let Some(status) = Status::from_header_map(response.headers()) {
        response = decode_error(status).into_http();
    }
    response
}

/// The error of a received body as the client's, if it could not be decoded; every other error as it is.
pub(super) fn decode_error(status: Status) -> Status {
    let undecodable = status.code() == Code::Internal && status.details().is_empty();
    if undecodable { error::unreadable(status.message()) } else { status }
}

/// Memory charged to one request: its bytes as they arrive, and its entries before they are decoded. The first
/// [`REQUEST_BYTES_FREE`] bytes are free of charge: the limit on streams bounds the number of small requests.
#[derive(Debug)]
pub(super) struct MemoryCharge {
    identity: Identity,
    total: Arc<AtomicUsize>,
    /// Bound of `total`.
    all_max: usize,
    bytes: AtomicUsize,
    charged: AtomicUsize,
}

impl MemoryCharge {
    /// Charges the request for messages and list entries that are about to be decoded.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub(super) fn add_entries(&self, entries: usize) -> Result<(), Status> {
        self.add(ENTRY_BYTES * entries)
    }

    /// Charges the request for `bytes` more.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the client's or all requests then exceed their limit.
    pub(super) fn add(&self, bytes: usize) -> Result<(), Status> {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
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

/// A request body that is charged as it arrives.
struct LimitedBody {
    body: Body,
    charge: Arc<MemoryCharge>,
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
                self.charge.add(data.len())?;
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
