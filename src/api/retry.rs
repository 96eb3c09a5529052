//! The client's channel: its errors name the broker's address, and calls that the broker refuses with
//! a retry delay are repeated after it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::Service;

use crate::clock::spread;
use crate::model::backoff::doubled;

/// Requests of this service are streams, which are sent while the response arrives and so can't be
/// repeated. The broker never refuses them with a retry delay.
const STREAMED: &str = "/weir.v1.AgentService/";
/// How long a call is repeated at most. After that the caller gets the broker's error.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait between two attempts. The first wait is the broker's retry delay, each next one twice
/// the previous.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// A channel that repeats calls as the broker's retry delay asks.
#[derive(Clone, Debug)]
pub struct RetryChannel {
    channel: Channel,
    address: Arc<str>,
}

impl RetryChannel {
    /// Wraps a `channel` to the broker at `address`.
    pub(super) fn new(channel: Channel, address: &str) -> Self {
        Self { channel, address: address.into() }
    }
}

impl Service<Request<Body>> for RetryChannel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.channel.poll_ready(context).map_err(|error| transport_error(&self.address, error))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // This call takes the channel that was polled ready; the clone must be polled before the next.
        let clone = self.channel.clone();
        let (mut channel, address) = (std::mem::replace(&mut self.channel, clone), self.address.clone());
        if request.uri().path().starts_with(STREAMED) {
            let response = channel.call(request);
            return Box::pin(async move { response.await.map_err(|error| transport_error(&address, error)) });
        }
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let message = body.collect().await?.to_bytes();
            let (deadline, mut retries) = (Instant::now() + RETRY_TIMEOUT, 0);
            loop {
                let request = Request::from_parts(head.clone(), Body::new(Full::new(message.clone())));
                let response =
                    channel.call(request).await.map_err(|error| transport_error(&address, error))?;
                let Some(delay) = delay_of(response.headers()) else { return Ok(response) };
                let until = Instant::now() + spread(doubled(delay.min(WAIT_MAX), retries, WAIT_MAX));
                if until > deadline {
                    return Ok(response);
                }
                retries += 1;
                tokio::time::sleep_until(until).await;
                let ready = std::future::poll_fn(|context| channel.poll_ready(context)).await;
                ready.map_err(|error| transport_error(&address, error))?;
            }
        })
    }
}

/// An error of the connection to `address`. Its source distinguishes it from a status that the
/// broker sent.
fn transport_error(address: &str, error: tonic::transport::Error) -> Status {
    let cause = Status::from_error(Box::new(error));
    let mut status = Status::new(cause.code(), format!("{address}: {}", cause.message()));
    status.set_source(Arc::new(cause));
    status
}

/// The retry delay of a response; `None` if it carries none.
fn delay_of(headers: &HeaderMap) -> Option<Duration> {
    // Most responses are not RESOURCE_EXHAUSTED (8): avoid decoding their details.
    if headers.get("grpc-status")?.as_bytes() != b"8" {
        return None;
    }
    Status::from_header_map(headers).and_then(|status| retry_delay(&status))
}

/// The delay after which a `RESOURCE_EXHAUSTED` call may be repeated; `None` for other codes and if
/// waiting would not help.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    let retry = (status.code() == Code::ResourceExhausted).then(|| status.get_details_retry_info())?;
    retry?.retry_delay
}
