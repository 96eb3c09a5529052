//! Health and metrics of a running agent, in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::model::attempt::OutcomeKind;

/// Health and counters of one pool's agent. Updated by the agent's loop, read by its web server.
#[derive(Debug, Default)]
pub struct PoolHealth {
    pub pool: String,
    /// The backend has reported all its nodes and attempts.
    synced: AtomicBool,
    /// The system behind the backend, such as an API server, responds.
    answering: AtomicBool,
    /// The session with the broker is up.
    connected: AtomicBool,
    nodes: AtomicU64,
    sessions: AtomicU64,
    starts: AtomicU64,
    stops: AtomicU64,
    ended: [AtomicU64; OutcomeKind::ALL.len()],
}

impl PoolHealth {
    /// The health of a pool whose backend is not open yet: all flags are false, all counts 0.
    pub fn new(pool: &str) -> Self {
        Self { pool: pool.to_owned(), ..Self::default() }
    }

    /// Records whether the backend is open and has reported its nodes and attempts.
    pub fn set_synced(&self, synced: bool) {
        self.synced.store(synced, Ordering::Relaxed);
    }

    /// Records whether the system behind the backend responds.
    pub fn set_answering(&self, answering: bool) {
        self.answering.store(answering, Ordering::Relaxed);
    }

    /// Records whether the session with the broker is up. Each change to `true` counts as a session.
    pub fn set_connected(&self, connected: bool) {
        if !self.connected.swap(connected, Ordering::Relaxed) && connected {
            self.sessions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records the number of the pool's nodes.
    pub fn set_nodes(&self, nodes: usize) {
        self.nodes.store(nodes as u64, Ordering::Relaxed);
    }

    /// Counts an attempt passed to the backend to start.
    pub fn count_start(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request to the backend to stop an attempt.
    pub fn count_stop(&self) {
        self.stops.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an attempt that the backend reported as ended.
    pub fn count_end(&self, kind: OutcomeKind) {
        if let Some(at) = OutcomeKind::ALL.iter().position(|other| *other == kind) {
            self.ended[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// True if the pool can start attempts. Running attempts don't need it.
    pub fn is_ready(&self) -> bool {
        [&self.synced, &self.answering, &self.connected].iter().all(|flag| flag.load(Ordering::Relaxed))
    }
}

/// A metric family: name, type, help text, and its value for a pool.
type Family = (&'static str, &'static str, &'static str, fn(&PoolHealth) -> u64);

const FAMILIES: [Family; 7] = [
    (
        "weir_agent_synced",
        "gauge",
        "Whether the pool's backend has reported all its nodes and attempts.",
        |pool_health| u64::from(pool_health.synced.load(Ordering::Relaxed)),
    ),
    (
        "weir_agent_answering",
        "gauge",
        "Whether the system behind the backend, such as an API server, responds.",
        |pool_health| u64::from(pool_health.answering.load(Ordering::Relaxed)),
    ),
    ("weir_agent_connected", "gauge", "Whether the session with the broker is up.", |pool_health| {
        u64::from(pool_health.connected.load(Ordering::Relaxed))
    }),
    ("weir_agent_nodes", "gauge", "Nodes of the pool.", |pool_health| {
        pool_health.nodes.load(Ordering::Relaxed)
    }),
    ("weir_agent_sessions_total", "counter", "Sessions with the broker that came up.", |pool_health| {
        pool_health.sessions.load(Ordering::Relaxed)
    }),
    ("weir_agent_starts_total", "counter", "Attempts passed to the backend to start.", |pool_health| {
        pool_health.starts.load(Ordering::Relaxed)
    }),
    (
        "weir_agent_stops_total",
        "counter",
        "Attempts that the backend was requested to stop.",
        |pool_health| pool_health.stops.load(Ordering::Relaxed),
    ),
];

/// The metrics of an agent's pools in Prometheus' text format:
/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
pub fn metrics<'a>(pools: impl Iterator<Item = &'a PoolHealth> + Clone) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in FAMILIES {
        // Writing to a string can't fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for pool_health in pools.clone() {
            let _ = writeln!(text, "{name}{{pool=\"{}\"}} {}", pool_health.pool, value(pool_health));
        }
    }
    let name = "weir_agent_ended_total";
    let _ = write!(text, "# HELP {name} Attempts that ended, by outcome.\n# TYPE {name} counter\n");
    for pool_health in pools {
        for (kind, count) in OutcomeKind::ALL.iter().zip(&pool_health.ended) {
            let (pool, code, count) = (&pool_health.pool, kind.code(), count.load(Ordering::Relaxed));
            let _ = writeln!(text, "{name}{{pool=\"{pool}\",outcome=\"{code}\"}} {count}");
        }
    }
    if let Some(bytes) = resident_bytes() {
        let name = "process_resident_memory_bytes";
        let _ =
            write!(text, "# HELP {name} Resident memory in bytes.\n# TYPE {name} gauge\n{name} {bytes}\n");
    }
    text
}

/// Resident memory of the process, from `/proc/self/statm`, see proc(5). `None` if it can't be read.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
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
        let text = metrics([&a, &b].into_iter());
        for line in [
            "weir_agent_sessions_total{pool=\"a\"} 1",
            "weir_agent_answering{pool=\"a\"} 1",
            "weir_agent_connected{pool=\"b\"} 0",
            "weir_agent_ended_total{pool=\"a\",outcome=\"Failed\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
