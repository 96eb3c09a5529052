//! Measures calls: how long each takes until its response begins, by method and code.

use std::time::Instant;

use http::{Request, Response};
use tonic::Code;
use tonic::body::Body;

use super::connect::ErrorCode;
use super::middleware::{Inner, Middleware, ResponseFuture};
use crate::telemetry::broker::BrokerMetrics;

/// Measures the calls of a service.
#[derive(Clone, Debug)]
pub(super) struct Measure(pub(super) BrokerMetrics);

impl Middleware for Measure {
    fn handle<S: Inner>(&self, inner: &mut S, request: Request<Body>) -> ResponseFuture<S::Error> {
        let call = Call::begin(self.0.clone(), request.uri().path());
        let response = inner.call(request);
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
        if let Some(ErrorCode(code)) = response.extensions().get() {
            self.code = *code;
            return;
        }
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
