//! What a running agent tells of itself: whether it is well, and numbers for Prometheus.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::model::attempt::OutcomeKind;

/// The vital signs of one pool's agent.
#[derive(Debug, Default)]
pub struct PoolHealth {
    pub pool: String,
    /// Its backend has told all that is there.
    opened: AtomicBool,
    /// What its backend works with answers.
    answering: AtomicBool,
    /// Its session with the broker stands.
    connected: AtomicBool,
    nodes: AtomicU64,
    sessions: AtomicU64,
    launches: AtomicU64,
    stops: AtomicU64,
    ended: [AtomicU64; OutcomeKind::ALL.len()],
}

impl PoolHealth {
    /// Those of a pool that is yet to be opened.
    pub fn new(pool: &str) -> Self {
        Self { pool: pool.to_owned(), ..Self::default() }
    }

    /// Its backend was opened, or is gone.
    pub fn set_opened(&self, opened: bool) {
        self.opened.store(opened, Ordering::Relaxed);
    }

    /// Whether what the backend works with answers.
    pub fn set_answering(&self, answering: bool) {
        self.answering.store(answering, Ordering::Relaxed);
    }

    /// Whether the session with the broker stands. A new one is counted.
    pub fn set_connected(&self, connected: bool) {
        if !self.connected.swap(connected, Ordering::Relaxed) && connected {
            self.sessions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many nodes the pool has.
    pub fn set_nodes(&self, nodes: usize) {
        self.nodes.store(nodes as u64, Ordering::Relaxed);
    }

    /// An attempt was given to the backend.
    pub fn count_start(&self) {
        self.launches.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt was told to stop.
    pub fn count_stop(&self) {
        self.stops.fetch_add(1, Ordering::Relaxed);
    }

    /// The backend told of an end.
    pub fn count_end(&self, kind: OutcomeKind) {
        if let Some(at) = OutcomeKind::ALL.iter().position(|other| *other == kind) {
            self.ended[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The pool takes work: what runs in it lives on without that.
    pub fn is_ready(&self) -> bool {
        [&self.opened, &self.answering, &self.connected].iter().all(|sign| sign.load(Ordering::Relaxed))
    }
}

/// A family of metrics: name, type, what it is, its value for a pool.
type Family = (&'static str, &'static str, &'static str, fn(&PoolHealth) -> u64);

const FAMILIES: [Family; 7] = [
    ("weir_agent_synced", "gauge", "Whether the pool's backend has told all that is there.", |pool_health| {
        u64::from(pool_health.opened.load(Ordering::Relaxed))
    }),
    (
        "weir_agent_answering",
        "gauge",
        "Whether what the backend works with, as an API server, answers.",
        |pool_health| u64::from(pool_health.answering.load(Ordering::Relaxed)),
    ),
    ("weir_agent_connected", "gauge", "Whether the session with the broker stands.", |pool_health| {
        u64::from(pool_health.connected.load(Ordering::Relaxed))
    }),
    ("weir_agent_nodes", "gauge", "Nodes that the pool offers.", |pool_health| {
        pool_health.nodes.load(Ordering::Relaxed)
    }),
    ("weir_agent_sessions_total", "counter", "Sessions with the broker that stood.", |pool_health| {
        pool_health.sessions.load(Ordering::Relaxed)
    }),
    ("weir_agent_starts_total", "counter", "Attempts given to the backend.", |pool_health| {
        pool_health.launches.load(Ordering::Relaxed)
    }),
    ("weir_agent_stops_total", "counter", "Attempts told to stop.", |pool_health| {
        pool_health.stops.load(Ordering::Relaxed)
    }),
];

/// The metrics of an agent's pools, as Prometheus reads them:
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
        let _ = write!(text, "# HELP {name} Resident memory.\n# TYPE {name} gauge\n{name} {bytes}\n");
    }
    text
}

/// From `/proc/self/statm`, see proc(5); `None` where there is none.
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
        a.set_opened(true);
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
