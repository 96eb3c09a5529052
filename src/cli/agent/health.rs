//! HTTP server of the agent: health, readiness and metrics.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use crate::cli::Failure;
use crate::telemetry::{self, agent::PoolHealth};

/// Time limit of a response.
const RESPONSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

type Pools = Arc<Vec<Arc<PoolHealth>>>;

/// Serves `/healthz`, `/readyz` and `/metrics` until the process ends. Returns the bound address.
///
/// # Errors
/// If the address can't be bound.
pub(super) async fn serve(address: &str, pools: Vec<Arc<PoolHealth>>) -> Result<SocketAddr, Failure> {
    let failed = |error: std::io::Error| Failure::new(1, format!("can't listen on {address}: {error}"));
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr()?;
    let router = axum::Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state(Arc::new(pools));
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(async move {
        // Tonic's server has timeouts; axum's leaves connections of slow clients open.
        let routes = tonic::service::Routes::from(router);
        let server = tonic::transport::Server::builder()
            .accept_http1(true)
            .timeout(RESPONSE_TIMEOUT)
            .add_routes(routes);
        if let Err(error) = server.serve_with_incoming(incoming).await {
            tracing::warn!(%error, "stopped serving health and metrics");
        }
    });
    Ok(bound)
}

async fn ready(State(pools): State<Pools>) -> (StatusCode, String) {
    let missing: Vec<&str> = pools
        .iter()
        .filter(|pool_health| !pool_health.is_ready())
        .map(|pool_health| pool_health.pool.as_str())
        .collect();
    if missing.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
    }
}

async fn metrics_text(State(pools): State<Pools>) -> ([(&'static str, &'static str); 1], String) {
    let families = telemetry::agent::families(pools.iter().map(|pool_health| &**pool_health));
    ([("content-type", telemetry::CONTENT_TYPE)], telemetry::text(&families))
}
