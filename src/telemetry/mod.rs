//! Metrics of brokers and agents, in Prometheus' text format:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.

pub mod agent;
pub mod broker;
mod process;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Registry, TextEncoder};

/// The media type of [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// Encodes metric families as text.
pub fn text(families: &[MetricFamily]) -> String {
    TextEncoder::new().encode_to_string(families).unwrap_or_else(|error| {
        // Only a family without a name or a type can't be encoded.
        tracing::error!(%error, "metrics can't be encoded");
        String::new()
    })
}

/// A metric that was just defined.
///
/// # Panics
/// If its name or labels are invalid. They are constants: a test makes every metric.
fn defined<T>(metric: prometheus::Result<T>) -> T {
    metric.unwrap_or_else(|error| panic!("a metric is not valid: {error}"))
}

/// Registers a metric and returns it.
///
/// # Panics
/// As [`defined`], and if the registry has a metric of this name.
fn registered<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = defined(metric);
    defined(registry.register(Box::new(metric.clone())));
    metric
}
