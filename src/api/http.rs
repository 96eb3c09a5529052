//! What the API's port serves to plain HTTP clients: health, readiness and metrics.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::Request;
use tonic::body::Body;
use tower::ServiceExt;

use super::middleware::{Inner, Middleware, ResponseFuture};
use crate::broker::query::{GetStatus, ListPools, ListQueues};
use crate::runtime::error::CallError;
use crate::runtime::handle::Handle;
use crate::telemetry;
use crate::telemetry::broker::{Figures, PoolFigures};

/// Paths that need no token: a probe should need none, and what they return is no secret.
pub(super) const WITHOUT_TOKEN: [&str; 2] = ["/healthz", "/readyz"];
/// Path that needs the token.
const METRICS: &str = "/metrics";

/// True for a path that plain HTTP clients ask for.
pub(super) fn is_plain(path: &str) -> bool {
    path == METRICS || WITHOUT_TOKEN.contains(&path)
}

/// Answers plain HTTP requests; all others go on to gRPC, whose layers would refuse these.
#[derive(Clone, Debug)]
pub(super) struct PlainHttp(Router);

impl PlainHttp {
    pub(super) fn new(broker: Handle) -> Self {
        let router = Router::new()
            .route(WITHOUT_TOKEN[0], get(async || "ok\n"))
            .route(WITHOUT_TOKEN[1], get(ready))
            .route(METRICS, get(metrics));
        Self(router.with_state(broker))
    }
}

impl Middleware for PlainHttp {
    fn handle<S: Inner>(&self, inner: &mut S, request: Request<Body>) -> ResponseFuture<S::Error> {
        if !is_plain(request.uri().path()) {
            return Box::pin(inner.call(request));
        }
        let answer = self.0.clone().oneshot(request);
        Box::pin(async move {
            let response = answer.await.unwrap_or_else(|never| match never {});
            Ok(response.map(Body::new))
        })
    }
}

/// 200 while the journal can be written, else 503 with the reason.
async fn ready(State(broker): State<Handle>) -> (StatusCode, String) {
    match &*broker.write_error().borrow() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {error}\n")),
    }
}

async fn metrics(State(broker): State<Handle>) -> Response {
    match figures(&broker).await {
        Ok(figures) => {
            let text = telemetry::text(&broker.metrics().families(&figures));
            ([(CONTENT_TYPE, telemetry::CONTENT_TYPE)], text).into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the broker does not answer now\n").into_response(),
    }
}

/// Reads what there is now.
async fn figures(broker: &Handle) -> Result<Figures, CallError> {
    let figures = Figures::new();
    let (revision, status) = broker.query(GetStatus).await?;
    let (_, pools) = broker.query(ListPools).await?;
    let (_, queues) = broker.query(ListQueues).await?;
    figures.set_journal(revision.0, status.term.0);
    figures.set_memory(status.memory_bytes, status.memory_max);
    for (kind, count) in [
        ("jobs", status.jobs),
        ("attempts", status.attempts),
        ("waiting_classes", status.classes),
        ("request_tokens", status.tokens),
        ("pools", pools.len() as u64),
        ("queues", queues.len() as u64),
    ] {
        figures.set_objects(kind, count);
    }
    for (index, view) in pools.iter().enumerate() {
        let pool = &view.pool;
        figures.add_pool(
            index,
            &PoolFigures {
                name: &pool.spec.name,
                region: &pool.spec.region.to_string(),
                connectivity: pool.connectivity,
                is_open: pool.is_open(),
                nodes: view.nodes,
                attempts: view.attempts,
                total: &pool.total,
                committed: &pool.committed,
            },
        );
    }
    for (index, view) in queues.iter().enumerate() {
        let queue = &view.queue;
        figures.add_queue(index, &queue.spec.name, queue.jobs, &queue.usage, &queue.spec.limit);
    }
    Ok(figures)
}
