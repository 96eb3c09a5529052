//! Counts the requests that a connection has in flight: one that has none for a while may give way to a new client.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::Request;
use http_body::{Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::Status;
use tonic::body::Body;

use super::connection::{ConnectionInfo, InFlight};
use super::middleware::{Inner, Middleware, ResponseFuture};

/// Counts the requests of every connection, from their arrival until their response has been handed to the transport.
#[derive(Clone, Copy, Debug)]
pub(super) struct CountInFlight;

impl Middleware for CountInFlight {
    fn handle<S: Inner>(&self, inner: &mut S, request: Request<Body>) -> ResponseFuture<S::Error> {
        let in_flight = request.extensions().get::<ConnectionInfo>().map(ConnectionInfo::begin_request);
        let response = inner.call(request);
        Box::pin(
            async move { Ok(response.await?.map(|body| Body::new(Counted { body, _in_flight: in_flight }))) },
        )
    }
}

/// The body of a response whose request is in flight.
struct Counted {
    body: Body,
    _in_flight: Option<InFlight>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
