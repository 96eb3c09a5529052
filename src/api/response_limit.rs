//! Limits on responses: how many are made at once, and how much memory those take that their clients don't read.
//!
//! A client may open a thousand streams, ask for a page in each, and grant none of them a window. Without a limit the
//! broker would hold all those pages for as long as the connection lasts.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use prost::bytes::Bytes;
use prost_reflect::MethodDescriptor;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;

use super::admission::Identity;
use super::connection::ConnectionInfo;
use super::descriptor::methods;
use super::error;
use super::middleware::{Inner, Middleware, ResponseFuture};
use crate::model::limit::{RESPONSE_BYTES_HELD_MAX, RESPONSES_AT_ONCE_MAX};

/// Bytes of one response that are not counted.
const FREE_BYTES: usize = 1_024;
/// Bytes handed to the transport at once. It asks for more when the client grants a window, and stores the rest of a
/// piece until then.
const PIECE_BYTES: usize = 8 * 1_024;
/// Time that a client has for reading a response.
const READ_MAX: Duration = Duration::from_secs(30);
/// Retry delay for a client that must read first.
const UNREAD_RETRY: Duration = Duration::from_secs(1);

/// Limits the responses of a service.
#[derive(Clone, Debug)]
pub(super) struct LimitResponses {
    /// Bytes of all unread responses.
    total: Arc<AtomicUsize>,
    /// Bound of `total`.
    all_max: usize,
    /// Responses that may be made at once.
    making: Arc<Semaphore>,
}

impl LimitResponses {
    /// Limits what all clients together leave unread to so many bytes.
    pub(super) fn new(all_max: usize) -> Self {
        let (total, making) = (Arc::default(), Arc::new(Semaphore::new(RESPONSES_AT_ONCE_MAX)));
        Self { total, all_max, making }
    }

    /// A body that counts until the client has read it. A large one is dropped after [`READ_MAX`].
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the client, or all clients, leave too much unread.
    pub(super) fn hold(
        &self,
        bytes: Bytes,
        trailers: Option<HeaderMap>,
        identity: Identity,
    ) -> Result<Body, Status> {
        Unread::new(bytes, trailers, identity, self.total.clone(), self.all_max).map(Body::new)
    }
}

impl Middleware for LimitResponses {
    fn handle<S: Inner>(&self, inner: &mut S, request: Request<Body>) -> ResponseFuture<S::Error> {
        let path = request.uri().path();
        // Messages of streams are counted one by one as they are made. The transport's own services have small responses.
        if methods().get(path).is_none_or(MethodDescriptor::is_server_streaming) {
            return Box::pin(inner.call(request));
        }
        // Pages are large, and counts take long. Other requests don't wait behind them.
        let method = path.rsplit('/').next().unwrap_or_default();
        let is_page = ["List", "Count"].iter().any(|kind| method.starts_with(kind));
        let identity = request.extensions().get::<ConnectionInfo>().map(ConnectionInfo::identity);
        let (identity, limit) = (identity.unwrap_or_default(), self.clone());
        let response = inner.call(request);
        Box::pin(async move {
            let own = identity.pages();
            // The semaphores are never closed.
            let _turn = if is_page { own.acquire().await.ok() } else { None };
            let _making = if is_page { limit.making.acquire().await.ok() } else { None };
            let (parts, body) = response.await?.into_parts();
            Ok(match body.collect().await {
                Ok(collected) => {
                    let trailers = collected.trailers().cloned();
                    match limit.hold(collected.to_bytes(), trailers, identity) {
                        Ok(unread) => Response::from_parts(parts, unread),
                        Err(status) => status.into_http(),
                    }
                }
                Err(status) => status.into_http(),
            })
        })
    }
}

/// A response that the client has not read.
struct Unread(Arc<Mutex<Option<Content>>>);

struct Content {
    bytes: Bytes,
    trailers: Option<HeaderMap>,
    _charge: Charge,
}

/// Bytes of memory that count until it is dropped.
struct Charge {
    bytes: usize,
    identity: Identity,
    total: Arc<AtomicUsize>,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.identity.unread_bytes().fetch_sub(self.bytes, Ordering::Relaxed);
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Unread {
    /// Counts a response. A large one is dropped after [`READ_MAX`]: the transport doesn't ask for the rest of a
    /// response while the client grants no window.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the client, or all clients, leave too much unread.
    fn new(
        bytes: Bytes,
        trailers: Option<HeaderMap>,
        identity: Identity,
        total: Arc<AtomicUsize>,
        all_max: usize,
    ) -> Result<Self, Status> {
        let counted = bytes.len().saturating_sub(FREE_BYTES);
        let own = identity.unread_bytes().fetch_add(counted, Ordering::Relaxed) + counted;
        let all = total.fetch_add(counted, Ordering::Relaxed) + counted;
        let charge = Charge { bytes: counted, identity, total };
        // One response is always allowed, whatever its size.
        for (which, held, most) in
            [("this client has", own, RESPONSE_BYTES_HELD_MAX), ("all clients have", all, all_max)]
        {
            if held > most && held > counted {
                let message = format!(
                    "{which} {} bytes of responses that were not read, at most {most} are allowed",
                    held - counted
                );
                return Err(error::too_many(&message, UNREAD_RETRY));
            }
        }
        let content = Arc::new(Mutex::new(Some(Content { bytes, trailers, _charge: charge })));
        if counted > 0 {
            tokio::spawn(drop_later(Arc::downgrade(&content)));
        }
        Ok(Self(content))
    }
}

async fn drop_later(content: Weak<Mutex<Option<Content>>>) {
    tokio::time::sleep(READ_MAX).await;
    if let Some(content) = content.upgrade() {
        content.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl http_body::Body for Unread {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(content) = held.as_mut() else {
            let message = format!("the response was not read within {} s", READ_MAX.as_secs());
            return Poll::Ready(Some(Err(Status::deadline_exceeded(message))));
        };
        if !content.bytes.is_empty() {
            let piece = content.bytes.split_to(content.bytes.len().min(PIECE_BYTES));
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        Poll::Ready(content.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().is_some_and(|content| content.bytes.is_empty() && content.trailers.is_none())
    }
}
