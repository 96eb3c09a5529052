//! The form of what stands between the transport and the services, so that each middleware is only what it does.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

/// What a request leads to.
pub(super) type ResponseFuture<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

/// The service behind a middleware.
pub(super) trait Inner:
    Service<Request<Body>, Response = Response<Body>, Error: Send + 'static, Future: Send + 'static>
{
}

impl<S> Inner for S where
    S: Service<Request<Body>, Response = Response<Body>, Error: Send + 'static, Future: Send + 'static>
{
}

/// Handles requests on their way to a service.
pub(super) trait Middleware: Clone {
    /// Handles one request; most go on to `inner`.
    fn handle<S: Inner>(&self, inner: &mut S, request: Request<Body>) -> ResponseFuture<S::Error>;
}

/// The layer that puts a middleware before a service.
#[derive(Clone, Debug)]
pub(super) struct Before<M>(pub(super) M);

impl<M: Middleware, S> Layer<S> for Before<M> {
    type Service = Layered<M, S>;

    fn layer(&self, inner: S) -> Layered<M, S> {
        Layered { middleware: self.0.clone(), inner }
    }
}

/// A service with a middleware before it.
#[derive(Clone, Debug)]
pub(super) struct Layered<M, S> {
    middleware: M,
    inner: S,
}

impl<M: Middleware, S: Inner> Service<Request<Body>> for Layered<M, S> {
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.middleware.handle(&mut self.inner, request)
    }
}
