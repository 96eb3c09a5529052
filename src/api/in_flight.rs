//! Counts the requests that a connection has in flight: one that has none for a while may give way to a new client.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::{Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::connection::{ConnectionInfo, InFlight};

/// Counts the requests of every connection, from their arrival until their response has been handed to the transport.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlightLayer;

impl<S> Layer<S> for InFlightLayer {
    type Service = InFlightService<S>;

    fn layer(&self, inner: S) -> InFlightService<S> {
        InFlightService(inner)
    }
}

/// A service whose requests are counted.
#[derive(Clone, Debug)]
pub(super) struct InFlightService<S>(S);

impl<S> Service<Request<Body>> for InFlightService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let in_flight = request.extensions().get::<ConnectionInfo>().map(ConnectionInfo::begin_request);
        let response = self.0.call(request);
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
