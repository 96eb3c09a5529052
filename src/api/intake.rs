//! Requests as they come in: how many bytes of them are held, and whose fault it is that one can't
//! be read.

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
use tower::{Layer, Service};

use super::connection::Admission;
use super::error;
use super::rate::Identity;
use super::walk::Walk;
use crate::model::limit::{
    ENTRY_BYTES, REQUEST_BYTES_FREE, REQUEST_BYTES_HELD_MAX, REQUEST_ENTRIES_MAX, REQUESTS_BYTES_MAX,
};

/// Sessions of agents: their messages are worked on one after the other, as they come.
const STREAMED: &str = "/weir.v1.AgentService/";
/// Wait that is asked of a client whose requests would be held beside too many others.
const ROOM_WAIT: Duration = Duration::from_millis(500);
/// How the transport begins when what came in is no request. It calls that an error of the
/// server's, which would page an operator for a client's bug.
const UNREADABLE: [&str; 5] = [
    "failed to decode Protobuf message",
    "protocol error: received message",
    "Unexpected EOF decoding stream",
    "Missing request message",
    "Error decompressing",
];

/// Counts the bytes of requests and what they will become, so that no client makes the broker hold more
/// than its share.
///
/// Without it a connection's streams could each send all but the last byte of the longest request, and
/// one of four megabytes could become half a gigabyte.
#[derive(Clone, Debug, Default)]
pub(super) struct Intake {
    total: Arc<AtomicUsize>,
}

impl<S> Layer<S> for Intake {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting { inner, intake: self.clone() }
    }
}

/// A service whose requests are counted.
#[derive(Clone, Debug)]
pub(super) struct Counting<S> {
    inner: S,
    intake: Intake,
}

impl<S> Service<Request<Body>> for Counting<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let identity = request.extensions().get::<Admission>().map(Admission::identity);
        let streamed = request.uri().path().starts_with(STREAMED);
        let held = (!streamed).then(|| {
            Arc::new(Held {
                identity: identity.unwrap_or_default(),
                total: self.intake.total.clone(),
                counted: AtomicUsize::new(0),
            })
        });
        let walk = Walk::over(request.uri().path());
        let request = request.map(|body| Body::new(Counted { body, walk, bytes: 0, held: held.clone() }));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // What was read of it is held until here: by the message that was made of it.
            drop(held);
            Ok(blame_the_sender(answer))
        })
    }
}

/// What is no request is an invalid one.
fn blame_the_sender(mut answer: Response<Body>) -> Response<Body> {
    let internal = answer.headers().get("grpc-status").is_some_and(|code| code.as_bytes() == b"13");
    if internal
        && let Some(status) = Status::from_header_map(answer.headers())
        && let Some(readable) = readable(&status)
    {
        answer = readable.into_http();
    }
    answer
}

/// The status of a request that can't be read, said as the client's fault; `None` if it is none.
pub(super) fn readable(status: &Status) -> Option<Status> {
    let unreadable = UNREADABLE.iter().any(|begins| status.message().starts_with(begins));
    (status.code() == Code::Internal && unreadable).then(|| error::unreadable(status.message()))
}

/// What one request takes of its client's share. Small ones take nothing; they are as many as there
/// are streams.
#[derive(Debug)]
struct Held {
    identity: Identity,
    total: Arc<AtomicUsize>,
    counted: AtomicUsize,
}

impl Held {
    /// The request will become so many bytes.
    fn grow_to(&self, bytes: usize) -> Result<(), Status> {
        let counted = self.counted.load(Ordering::Relaxed);
        let more = bytes.saturating_sub(REQUEST_BYTES_FREE).saturating_sub(counted);
        if more == 0 {
            return Ok(());
        }
        self.counted.store(counted + more, Ordering::Relaxed);
        let own = self.identity.bytes().fetch_add(more, Ordering::Relaxed) + more;
        let all = self.total.fetch_add(more, Ordering::Relaxed) + more;
        if own > REQUEST_BYTES_HELD_MAX || all > REQUESTS_BYTES_MAX {
            return Err(error::too_many("too many large requests come in at once", ROOM_WAIT));
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let counted = self.counted.load(Ordering::Relaxed);
        self.identity.bytes().fetch_sub(counted, Ordering::Relaxed);
        self.total.fetch_sub(counted, Ordering::Relaxed);
    }
}

/// A request's body that is counted as it comes.
struct Counted {
    body: Body,
    walk: Option<Walk>,
    bytes: usize,
    /// Nothing, of a stream: its messages are worked on one after the other.
    held: Option<Arc<Held>>,
}

impl Counted {
    fn count(&mut self, data: &[u8]) -> Result<(), Status> {
        self.bytes += data.len();
        let mut entries = 0;
        if let Some(walk) = &mut self.walk {
            walk.take(data);
            entries = walk.entries();
        }
        if entries > REQUEST_ENTRIES_MAX {
            let message =
                format!("a request holds at most {REQUEST_ENTRIES_MAX} messages and entries of lists");
            return Err(error::unreadable(&message));
        }
        self.held.as_ref().map_or(Ok(()), |held| held.grow_to(self.bytes + ENTRY_BYTES * entries))
    }
}

impl http_body::Body for Counted {
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
