//! The client's side of a channel: errors name the broker's address, and a broker that asks to be
//! left alone for a while is.

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

/// Requests of this service are streams, which go out while they are answered: what has gone can't
/// be sent again. Nor is it ever asked to be.
const STREAMED: &str = "/weir.v1.AgentService/";
/// How long a call is repeated at the most: whoever waits for longer should be told.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest wait between two tries: the first is what the broker asks for, each next is twice the
/// one before.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// A channel that waits as it is asked to.
#[derive(Clone, Debug)]
pub struct Patient {
    channel: Channel,
    address: Arc<str>,
}

impl Patient {
    /// Speaks through `channel` to the broker at `address`.
    pub(super) fn new(channel: Channel, address: &str) -> Self {
        Self { channel, address: address.into() }
    }
}

impl Service<Request<Body>> for Patient {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.channel.poll_ready(context).map_err(|error| broken(&self.address, error))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready is taken; its clone has yet to become so.
        let clone = self.channel.clone();
        let (mut channel, address) = (std::mem::replace(&mut self.channel, clone), self.address.clone());
        if request.uri().path().starts_with(STREAMED) {
            let answer = channel.call(request);
            return Box::pin(async move { answer.await.map_err(|error| broken(&address, error)) });
        }
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let message = body.collect().await?.to_bytes();
            let (deadline, mut tries) = (Instant::now() + PATIENCE, 0);
            loop {
                let request = Request::from_parts(head.clone(), Body::new(Full::new(message.clone())));
                let answer = channel.call(request).await.map_err(|error| broken(&address, error))?;
                let Some(asked) = asked_to_wait(answer.headers()) else { return Ok(answer) };
                let until = Instant::now() + spread((asked * (1 << tries.min(8))).min(WAIT_MAX));
                if until > deadline {
                    return Ok(answer);
                }
                tries += 1;
                tokio::time::sleep_until(until).await;
                let ready = std::future::poll_fn(|context| channel.poll_ready(context)).await;
                ready.map_err(|error| broken(&address, error))?;
            }
        })
    }
}

/// The connection's own error, with whose connection it is. Its source tells it from what a broker
/// says.
fn broken(address: &str, error: tonic::transport::Error) -> Status {
    let cause = Status::from_error(Box::new(error));
    let mut status = Status::new(cause.code(), format!("{address}: {}", cause.message()));
    status.set_source(Arc::new(cause));
    status
}

/// How long a refusal asks to wait, if it is one that passes with time.
fn asked_to_wait(headers: &HeaderMap) -> Option<Duration> {
    // Most answers are none: don't take them apart.
    if headers.get("grpc-status")?.as_bytes() != b"8" {
        return None;
    }
    Status::from_header_map(headers).and_then(|status| retry_delay(&status))
}

/// What a `RESOURCE_EXHAUSTED` says of when to try again; nothing, if waiting won't help.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    let retry = (status.code() == Code::ResourceExhausted).then(|| status.get_details_retry_info())?;
    retry?.retry_delay
}

/// The wait and up to half of it again: those that were refused together must not come back so.
pub fn spread(wait: Duration) -> Duration {
    let half = u64::try_from(wait.as_micros() / 2).unwrap_or(u64::MAX);
    wait + Duration::from_micros(rand::random_range(0..=half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_spread_over_half_of_themselves() {
        let wait = Duration::from_millis(100);
        let waits: Vec<Duration> = (0..200).map(|_| spread(wait)).collect();
        assert!(waits.iter().all(|it| (wait..=wait * 3 / 2).contains(it)), "{waits:?}");
        let early = waits.iter().filter(|it| **it < wait * 5 / 4).count();
        assert!((50..150).contains(&early), "{early} of 200 in the first half");
    }
}
