//! Metrics of a broker: what happens is counted as it happens, what there is is read when it is asked for.

use std::time::Duration;

use prometheus::proto::MetricFamily;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use strum::VariantNames;

use super::{process, registered};
use crate::model::attempt::OutcomeKind;
use crate::model::pool::Connectivity;
use crate::model::queue::Limits;
use crate::model::resource::{ResourceKind, Resources};
use crate::model::time::Timestamp;
use crate::state::State;
use crate::state::event::{Event, EventRecord};
use crate::state::job::JobEnd;
use crate::state::rejection::Rejection;

/// Objects of one kind that have lines of their own; of more only their number is reported.
pub const OBJECTS_MAX: usize = 1_000;

/// Upper bounds of histograms of work inside of the broker: 50 µs to 3.3 s.
const SHORT_S: [f64; 9] = [5e-5, 2e-4, 8e-4, 3.2e-3, 1.28e-2, 5.12e-2, 0.2, 0.8, 3.3];
/// Upper bounds of histograms of what users wait for: 1 s to a week.
const LONG_S: [f64; 11] =
    [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 172_800.0, 604_800.0];

/// What a broker counts. Cheap to clone: all clones count together.
#[derive(Clone, Debug)]
pub struct BrokerMetrics {
    registry: Registry,
    /// By kind of input.
    step_seconds: HistogramVec,
    append_seconds: Histogram,
    append_events: Histogram,
    events: IntCounterVec,
    rejections: IntCounterVec,
    jobs_ended: IntCounterVec,
    attempts_ended: IntCounterVec,
    wait_seconds: Histogram,
    run_seconds: Histogram,
    rpc_seconds: HistogramVec,
    rpcs_in_flight: IntGauge,
    writable: IntGauge,
}

impl Default for BrokerMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl BrokerMetrics {
    /// Metrics of a broker that has just started.
    pub fn new() -> Self {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, bounds: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
            registered(&registry, Histogram::with_opts(options))
        };
        let counters = |name: &str, help: &str, label: &str, values: &[&str]| {
            let counters = registered(&registry, IntCounterVec::new(Opts::new(name, help), &[label]));
            // A rate needs the zero before the first event.
            for value in values {
                counters.with_label_values(&[value]);
            }
            counters
        };
        let histograms = |name: &str, help: &str, labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(SHORT_S.to_vec());
            registered(&registry, HistogramVec::new(options, labels))
        };
        let codes: Vec<&str> = Rejection::MANUAL.iter().map(|entry| entry.code).collect();
        let outcomes: Vec<&str> = OutcomeKind::ALL.iter().map(|kind| kind.code()).collect();
        let build = Opts::new("weir_build_info", "The version that runs; always 1.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        registered(&registry, IntGauge::with_opts(build)).set(1);
        let metrics = Self {
            step_seconds: histograms(
                "weir_step_seconds",
                "Time of one step of the broker, by its input. Steps follow each other: a long one delays all others.",
                &["input"],
            ),
            append_seconds: histogram(
                "weir_journal_append_seconds",
                "Time until a batch of events is durable.",
                &SHORT_S,
            ),
            append_events: histogram(
                "weir_journal_append_events",
                "Events in one batch.",
                &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0],
            ),
            events: counters(
                "weir_journal_events_total",
                "Durable events, by kind.",
                "kind",
                Event::VARIANTS,
            ),
            rejections: counters(
                "weir_rejections_total",
                "Requests that changed nothing, by code (see the reference of reasons).",
                "code",
                &codes,
            ),
            jobs_ended: counters(
                "weir_jobs_ended_total",
                "Jobs that have ended, by how.",
                "end",
                &["Succeeded", "Failed", "Cancelled"],
            ),
            attempts_ended: counters(
                "weir_attempts_ended_total",
                "Attempts that have ended, by outcome.",
                "outcome",
                &outcomes,
            ),
            wait_seconds: histogram(
                "weir_unit_wait_seconds",
                "From a job's submission until the first attempt of a unit of it is ordered.",
                &LONG_S,
            ),
            run_seconds: histogram(
                "weir_attempt_run_seconds",
                "From an attempt's start until its end.",
                &LONG_S,
            ),
            rpc_seconds: histograms(
                "weir_rpc_seconds",
                "From a call's arrival until its response begins, by method and gRPC code.",
                &["method", "code"],
            ),
            rpcs_in_flight: registered(
                &registry,
                IntGauge::with_opts(Opts::new("weir_rpcs_in_flight", "Calls whose response has not begun.")),
            ),
            writable: registered(
                &registry,
                IntGauge::with_opts(Opts::new(
                    "weir_journal_writable",
                    "Whether the journal can be written. If not, only reads are answered.",
                )),
            ),
            registry,
        };
        metrics.set_writable(true);
        metrics
    }

    /// Counts a step of the broker.
    pub fn count_step(&self, input: &str, took: Duration) {
        self.step_seconds.with_label_values(&[input]).observe(took.as_secs_f64());
    }

    /// Counts events that are about to become durable. `state` is the state after them.
    pub fn count_events(&self, state: &State, events: &[EventRecord]) {
        if !events.is_empty() {
            self.append_events.observe(events.len() as f64);
        }
        for EventRecord { event, at, .. } in events {
            self.events.with_label_values(&[<&str>::from(event)]).inc();
            match event {
                Event::JobEnded { end, .. } => {
                    let end = match end {
                        JobEnd::Succeeded => "Succeeded",
                        JobEnd::Failed => "Failed",
                        JobEnd::Cancelled => "Cancelled",
                    };
                    self.jobs_ended.with_label_values(&[end]).inc();
                }
                Event::AttemptOrdered { order } if order.number == 1 => {
                    // A job of short tasks may have ended already.
                    if let Some(job) = state.job(order.unit.job) {
                        self.wait_seconds.observe(seconds(job.submitted_at, *at));
                    }
                }
                Event::AttemptEnded { ended, .. } => {
                    self.attempts_ended.with_label_values(&[ended.outcome.kind.code()]).inc();
                    if let Some(started_at) = ended.started_at {
                        self.run_seconds.observe(seconds(started_at, ended.ended_at));
                    }
                }
                _ => {}
            }
        }
    }

    /// Counts a batch that has become durable.
    pub fn count_append(&self, took: Duration) {
        self.append_seconds.observe(took.as_secs_f64());
    }

    /// Counts a request that was refused.
    pub fn count_rejection(&self, rejection: &Rejection) {
        self.rejections.with_label_values(&[rejection.code()]).inc();
    }

    /// Records whether the journal can be written.
    pub fn set_writable(&self, writable: bool) {
        self.writable.set(i64::from(writable));
    }

    /// Counts a call until its response begins.
    pub fn begin_rpc(&self) {
        self.rpcs_in_flight.inc();
    }

    /// Counts a call whose response has begun, or whose client has gone.
    pub fn end_rpc(&self, method: &str, code: &str, took: Duration) {
        self.rpcs_in_flight.dec();
        self.rpc_seconds.with_label_values(&[method, code]).observe(took.as_secs_f64());
    }

    /// All metrics, by name: what was counted, and what there is.
    pub fn families(&self, figures: &Figures) -> Vec<MetricFamily> {
        let mut families = self.registry.gather();
        families.extend(figures.registry.gather());
        families.sort_by(|left, right| left.name().cmp(right.name()));
        families
    }
}

fn seconds(from: Timestamp, until: Timestamp) -> f64 {
    until.ms_since(from) as f64 / 1_000.0
}

/// What there is at one instant. Filled once and then read.
#[derive(Debug)]
pub struct Figures {
    registry: Registry,
    revision: IntGauge,
    term: IntGauge,
    objects: IntGaugeVec,
    memory: IntGaugeVec,
    pools: IntGaugeVec,
    pool_ready: IntGaugeVec,
    pool_open: IntGaugeVec,
    pool_nodes: IntGaugeVec,
    pool_attempts: IntGaugeVec,
    pool_capacity: GaugeVec,
    pool_committed: GaugeVec,
    queue_jobs: IntGaugeVec,
    queue_used: GaugeVec,
    queue_limit: GaugeVec,
    left_out: IntGaugeVec,
}

impl Default for Figures {
    fn default() -> Self {
        Self::new()
    }
}

impl Figures {
    /// Figures of nothing, with those of the process.
    pub fn new() -> Self {
        let registry = Registry::new();
        process::register(&registry);
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let amounts = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, GaugeVec::new(Opts::new(name, help), labels))
        };
        let gauge =
            |name: &str, help: &str| registered(&registry, IntGauge::with_opts(Opts::new(name, help)));
        let of_pool = ["pool", "resource"];
        let of_queue = ["queue", "resource"];
        Self {
            revision: gauge("weir_journal_revision", "The journal's last revision."),
            term: gauge("weir_journal_term", "The term of the broker that writes the journal."),
            objects: gauges(
                "weir_objects",
                "Objects in memory: live jobs and attempts, pools, queues, classes of waiting units, request tokens.",
                &["kind"],
            ),
            memory: gauges(
                "weir_memory_bytes",
                "Estimated memory of live jobs, pools and nodes, and what they may take.",
                &["what"],
            ),
            pools: gauges("weir_pools", "Pools by connectivity.", &["connectivity"]),
            pool_ready: gauges(
                "weir_pool_ready",
                "Whether the pool's agent is connected and has reported all it runs.",
                &["pool", "region"],
            ),
            pool_open: gauges(
                "weir_pool_open",
                "Whether the pool takes new work: it is ready, and neither cordoned nor draining.",
                &["pool"],
            ),
            pool_nodes: gauges("weir_pool_nodes", "Nodes of the pool.", &["pool"]),
            pool_attempts: gauges("weir_pool_attempts", "Live attempts in the pool.", &["pool"]),
            pool_capacity: amounts(
                "weir_pool_capacity",
                "What the pool's nodes have: CPUs, bytes of memory and storage, devices.",
                &of_pool,
            ),
            pool_committed: amounts(
                "weir_pool_committed",
                "What live attempts hold in the pool, in the units of weir_pool_capacity.",
                &of_pool,
            ),
            queue_jobs: gauges("weir_queue_jobs", "Live jobs of the queue itself.", &["queue"]),
            queue_used: amounts(
                "weir_queue_used",
                "What attempts of the queue and those below it hold, in the units of weir_pool_capacity.",
                &of_queue,
            ),
            queue_limit: amounts(
                "weir_queue_limit",
                "The queue's limits, in the units of weir_pool_capacity; no line for what is unlimited.",
                &of_queue,
            ),
            left_out: gauges(
                "weir_metrics_left_out",
                "Pools and queues beyond 1,000, which have no lines of their own.",
                &["kind"],
            ),
            registry,
        }
    }

    /// Sets the journal's last revision and the broker's term.
    pub fn set_journal(&self, revision: u64, term: u64) {
        self.revision.set(revision as i64);
        self.term.set(term as i64);
    }

    /// Sets the number of objects of a kind.
    pub fn set_objects(&self, kind: &str, count: u64) {
        self.objects.with_label_values(&[kind]).set(count as i64);
    }

    /// Sets the estimated memory and its bound, in bytes.
    pub fn set_memory(&self, used: u64, max: u64) {
        for (what, bytes) in [("used", used), ("max", max)] {
            self.memory.with_label_values(&[what]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Adds a pool, the `index`-th of all.
    pub fn add_pool(&self, index: usize, pool: &PoolFigures<'_>) {
        let connectivity = match pool.connectivity {
            Connectivity::Ready => "READY",
            Connectivity::Suspect => "SUSPECT",
            Connectivity::Unreachable => "UNREACHABLE",
            Connectivity::Lost => "LOST",
        };
        self.pools.with_label_values(&[connectivity]).inc();
        if self.is_left_out("pools", index) {
            return;
        }
        let name = &[pool.name];
        let is_ready = pool.connectivity == Connectivity::Ready;
        self.pool_ready.with_label_values(&[pool.name, pool.region]).set(i64::from(is_ready));
        self.pool_open.with_label_values(name).set(i64::from(pool.is_open));
        self.pool_nodes.with_label_values(name).set(i64::from(pool.nodes));
        self.pool_attempts.with_label_values(name).set(i64::from(pool.attempts));
        set_amounts(&self.pool_capacity, pool.name, &amounts(pool.total));
        set_amounts(&self.pool_committed, pool.name, &amounts(pool.committed));
    }

    /// Adds a queue, the `index`-th of all, with its live jobs, what it holds, and its limits.
    pub fn add_queue(&self, index: usize, name: &str, jobs: u64, used: &Resources, limit: &Limits) {
        if self.is_left_out("queues", index) {
            return;
        }
        self.queue_jobs.with_label_values(&[name]).set(jobs as i64);
        set_amounts(&self.queue_used, name, &amounts(used));
        let limited =
            limit.iter().filter_map(|(kind, amount)| Some((resource_of(&kind)?, in_units(&kind, amount))));
        set_amounts(&self.queue_limit, name, &limited.collect::<Vec<_>>());
    }

    /// True for an object that gets no lines of its own; it is counted.
    fn is_left_out(&self, kind: &str, index: usize) -> bool {
        let left_out = self.left_out.with_label_values(&[kind]);
        left_out.set((index + 1).saturating_sub(OBJECTS_MAX) as i64);
        index >= OBJECTS_MAX
    }
}

/// What is reported of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolFigures<'a> {
    pub name: &'a str,
    pub region: &'a str,
    pub connectivity: Connectivity,
    pub is_open: bool,
    pub nodes: u32,
    pub attempts: u32,
    pub total: &'a Resources,
    pub committed: &'a Resources,
}

/// The label of a kind of resource; `None` for kinds that users define, of which there may be any number.
fn resource_of(kind: &ResourceKind) -> Option<&'static str> {
    match kind {
        ResourceKind::Cpu => Some("cpus"),
        ResourceKind::Memory => Some("memory"),
        ResourceKind::Storage => Some("storage"),
        ResourceKind::Device => Some("devices"),
        ResourceKind::Other(_) => None,
    }
}

/// An amount in CPUs, bytes or devices.
fn in_units(kind: &ResourceKind, amount: u64) -> f64 {
    match kind {
        ResourceKind::Cpu | ResourceKind::Device => amount as f64 / 1_000.0,
        ResourceKind::Memory | ResourceKind::Storage | ResourceKind::Other(_) => amount as f64,
    }
}

fn amounts(resources: &Resources) -> Vec<(&'static str, f64)> {
    let kinds = [ResourceKind::Cpu, ResourceKind::Memory, ResourceKind::Storage, ResourceKind::Device];
    kinds.iter().filter_map(|kind| Some((resource_of(kind)?, in_units(kind, resources.get(kind))))).collect()
}

fn set_amounts(gauges: &GaugeVec, name: &str, amounts: &[(&'static str, f64)]) {
    for (resource, amount) in amounts {
        gauges.with_label_values(&[name, resource]).set(*amount);
    }
}

/// Every family with a line, for the reference.
#[cfg(test)]
pub fn sample() -> Vec<MetricFamily> {
    let (metrics, figures) = (BrokerMetrics::new(), Figures::new());
    metrics.count_step("request", Duration::ZERO);
    metrics.begin_rpc();
    metrics.end_rpc("Submit", "Ok", Duration::ZERO);
    figures.set_journal(1, 1);
    figures.set_objects("jobs", 1);
    figures.set_memory(1, 1);
    let amounts = Resources::default();
    let pool = PoolFigures {
        name: "local",
        region: "CN-CQ",
        connectivity: Connectivity::Ready,
        is_open: true,
        nodes: 1,
        attempts: 0,
        total: &amounts,
        committed: &amounts,
    };
    figures.add_pool(0, &pool);
    figures.add_queue(0, "default", 0, &amounts, &Limits { cpu_millis: Some(1), ..Limits::default() });
    metrics.families(&figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::queue::default_settings;

    /// Figures with as many pools and queues.
    fn figures(count: usize) -> Figures {
        let figures = Figures::new();
        let amounts = Resources { cpu_millis: 1_500, memory_bytes: 1 << 30, ..Resources::default() };
        let mut limit = default_settings("q").limit;
        limit.cpu_millis = Some(4_000);
        for index in 0..count {
            let name = format!("n{index}");
            let pool = PoolFigures {
                name: &name,
                region: "CN-CQ",
                connectivity: Connectivity::Ready,
                is_open: true,
                nodes: 3,
                attempts: 2,
                total: &amounts,
                committed: &amounts,
            };
            figures.add_pool(index, &pool);
            figures.add_queue(index, &name, 7, &amounts, &limit);
        }
        figures
    }

    #[test]
    fn amounts_are_in_the_units_of_the_help_texts() {
        let text = super::super::text(&BrokerMetrics::new().families(&figures(2)));
        for line in [
            "weir_pool_capacity{pool=\"n0\",resource=\"cpus\"} 1.5",
            "weir_pool_committed{pool=\"n1\",resource=\"memory\"} 1073741824",
            "weir_queue_limit{queue=\"n0\",resource=\"cpus\"} 4",
            "weir_pools{connectivity=\"READY\"} 2",
            "weir_rejections_total{code=\"InUse\"} 0",
            "weir_journal_events_total{kind=\"JobSubmitted\"} 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        assert!(!text.contains("weir_queue_limit{queue=\"n0\",resource=\"memory\"}"));
    }

    #[test]
    fn many_pools_and_queues_make_a_bounded_number_of_lines() {
        let text = super::super::text(&BrokerMetrics::new().families(&figures(OBJECTS_MAX + 5)));
        assert_eq!(text.lines().filter(|line| line.starts_with("weir_pool_nodes{")).count(), OBJECTS_MAX);
        assert!(text.contains("weir_pools{connectivity=\"READY\"} 1005"));
        assert!(text.contains("weir_metrics_left_out{kind=\"queues\"} 5"));
    }
}
