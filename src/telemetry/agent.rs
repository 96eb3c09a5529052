//! Health and metrics of a running agent.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{defined, process};
use crate::model::attempt::OutcomeKind;

/// Health and counters of one pool's agent. Updated by the agent's loop, read by its web server.
#[derive(Debug)]
pub struct PoolHealth {
    pub pool: String,
    connected: AtomicBool,
    synced: IntGauge,
    answering: IntGauge,
    connection: IntGauge,
    nodes: IntGauge,
    sessions: IntCounter,
    starts: IntCounter,
    stops: IntCounter,
    ended: IntCounterVec,
}

impl PoolHealth {
    /// The health of a pool whose backend is not open yet: all flags are false, all counts 0.
    pub fn new(pool: &str) -> Self {
        let of = |name: &str, help: &str| Opts::new(name, help).const_label("pool", pool);
        let gauge = |name: &str, help: &str| defined(IntGauge::with_opts(of(name, help)));
        let counter = |name: &str, help: &str| defined(IntCounter::with_opts(of(name, help)));
        let ended = of("weir_agent_ended_total", "Attempts that ended, by outcome.");
        let ended = defined(IntCounterVec::new(ended, &["outcome"]));
        for kind in OutcomeKind::ALL {
            ended.with_label_values(&[kind.code()]);
        }
        Self {
            pool: pool.to_owned(),
            connected: AtomicBool::new(false),
            synced: gauge(
                "weir_agent_synced",
                "Whether the pool's backend has reported all its nodes and attempts.",
            ),
            answering: gauge(
                "weir_agent_answering",
                "Whether the system behind the backend, such as an API server, responds.",
            ),
            connection: gauge("weir_agent_connected", "Whether the session with the broker is up."),
            nodes: gauge("weir_agent_nodes", "Nodes of the pool."),
            sessions: counter("weir_agent_sessions_total", "Sessions with the broker that came up."),
            starts: counter("weir_agent_starts_total", "Attempts passed to the backend to start."),
            stops: counter("weir_agent_stops_total", "Attempts that the backend was requested to stop."),
            ended,
        }
    }

    /// Records whether the backend is open and has reported its nodes and attempts.
    pub fn set_synced(&self, synced: bool) {
        self.synced.set(i64::from(synced));
    }

    /// Records whether the system behind the backend responds.
    pub fn set_answering(&self, answering: bool) {
        self.answering.set(i64::from(answering));
    }

    /// Records whether the session with the broker is up. Each change to `true` counts as a session.
    pub fn set_connected(&self, connected: bool) {
        if !self.connected.swap(connected, Ordering::Relaxed) && connected {
            self.sessions.inc();
        }
        self.connection.set(i64::from(connected));
    }

    /// Records the number of the pool's nodes.
    pub fn set_nodes(&self, nodes: usize) {
        self.nodes.set(nodes as i64);
    }

    /// Counts an attempt passed to the backend to start.
    pub fn count_start(&self) {
        self.starts.inc();
    }

    /// Counts a request to the backend to stop an attempt.
    pub fn count_stop(&self) {
        self.stops.inc();
    }

    /// Counts an attempt that the backend reported as ended.
    pub fn count_end(&self, kind: OutcomeKind) {
        self.ended.with_label_values(&[kind.code()]).inc();
    }

    /// True if the pool can start attempts. Running attempts don't need it.
    pub fn is_ready(&self) -> bool {
        [&self.synced, &self.answering, &self.connection].iter().all(|flag| flag.get() == 1)
    }

    fn register(&self, registry: &Registry) {
        let gauges = [&self.synced, &self.answering, &self.connection, &self.nodes];
        let counters = [&self.sessions, &self.starts, &self.stops];
        let gauges = gauges.map(|gauge| Box::new(gauge.clone()) as Box<dyn Collector>);
        let counters = counters.map(|counter| Box::new(counter.clone()) as Box<dyn Collector>);
        for metric in gauges.into_iter().chain(counters).chain([Box::new(self.ended.clone()) as _]) {
            defined(registry.register(metric));
        }
    }
}

/// The metrics of an agent's pools, which have different names, and of its process.
pub fn families<'a>(pools: impl Iterator<Item = &'a PoolHealth>) -> Vec<MetricFamily> {
    let registry = Registry::new();
    pools.for_each(|pool| pool.register(&registry));
    process::register(&registry);
    registry.gather()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pool_has_a_line_of_each_metric() {
        let (a, b) = (PoolHealth::new("a"), PoolHealth::new("b"));
        a.set_synced(true);
        a.set_connected(true);
        a.set_connected(true);
        a.count_end(OutcomeKind::Failed);
        assert!(!a.is_ready() && !b.is_ready());
        a.set_answering(true);
        assert!(a.is_ready() && !b.is_ready());
        let text = super::super::text(&families([&a, &b].into_iter()));
        for line in [
            "weir_agent_sessions_total{pool=\"a\"} 1",
            "weir_agent_answering{pool=\"a\"} 1",
            "weir_agent_connected{pool=\"b\"} 0",
            "weir_agent_ended_total{outcome=\"Failed\",pool=\"a\"} 1",
            "weir_agent_ended_total{outcome=\"Failed\",pool=\"b\"} 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
