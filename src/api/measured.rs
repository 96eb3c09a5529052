//! Measures calls: how long each takes until its response begins, by method and code.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Request, Response};
use tonic::Code;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::telemetry::broker::BrokerMetrics;

/// Measures the calls of a service.
#[derive(Clone, Debug)]
pub(super) struct MeasuredLayer(pub(super) BrokerMetrics);

impl<S> Layer<S> for MeasuredLayer {
    type Service = MeasuredService<S>;

    fn layer(&self, inner: S) -> MeasuredService<S> {
        MeasuredService { inner, metrics: self.0.clone() }
    }
}

/// A service whose calls are measured.
#[derive(Clone, Debug)]
pub(super) struct MeasuredService<S> {
    inner: S,
    metrics: BrokerMetrics,
}

impl<S> Service<Request<Body>> for MeasuredService<S>
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
        let call = Call::begin(self.metrics.clone(), request.uri().path());
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            call.end(&response);
            Ok(response)
        })
    }
}

/// A call until its response begins. One whose client has gone before counts as cancelled.
struct Call {
    metrics: BrokerMetrics,
    /// `Submit` of `/weir.v1.JobService/Submit`.
    method: String,
    code: Code,
    began: Instant,
}

impl Call {
    fn begin(metrics: BrokerMetrics, path: &str) -> Self {
        metrics.begin_rpc();
        let method = path.strip_prefix("/weir.v1.").and_then(|rest| rest.split_once('/'));
        let method = method.map_or("other", |(_, method)| method).to_owned();
        Self { metrics, method, code: Code::Cancelled, began: Instant::now() }
    }

    fn end(mut self, response: &Response<Body>) {
        // An error has its code in the header; a response that begins well has none there. Other failures than those of gRPC
        // come from before the methods are looked up.
        let code = response.headers().get("grpc-status");
        let code = code.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
        self.code = if response.status().is_success() { code } else { Code::Unimplemented };
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // A method that does not exist is any text that a client sends.
        let known = self.code != Code::Unimplemented;
        let method = if known { self.method.as_str() } else { "other" };
        self.metrics.end_rpc(method, &format!("{:?}", self.code), self.began.elapsed());
    }
}
