//! The rows of the tables of `weir get`.

use crate::api::proto::{name_of, v1};
use crate::cli::job_file::devices_text;
use crate::cli::job_text::doubt;
use crate::cli::output::{age, bytes, now_ms, span, thousandths, time};

/// Columns of the table of jobs.
#[derive(Clone, Copy)]
pub(super) struct JobColumns {
    /// Also what is asked for, and the id.
    pub(super) wide: bool,
    /// Also how jobs ended.
    pub(super) ended: bool,
}

impl JobColumns {
    pub(super) fn heading(self) -> Vec<String> {
        let mut heading = vec!["NAME", "QUEUE", "STATE", "UNITS", "POOL", "ELAPSED"];
        if self.ended {
            heading.push("OUTCOME");
        }
        if self.wide {
            heading.extend(["PRIORITY", "CPUS", "DEVICES", "ID", "DISPLAY_NAME"]);
        }
        heading.push("AGE");
        heading.into_iter().map(str::to_owned).collect()
    }

    pub(super) fn row(self, job: &v1::Job) -> Vec<String> {
        let units = job.units.unwrap_or_default();
        let phase = name_of::<v1::JobPhase>(job.phase);
        let simulated = if job.simulated { ",SIMULATED" } else { "" };
        let held = if job.held { ",HELD" } else { "" };
        let mut row = vec![
            job.name.clone(),
            job.queue.clone(),
            format!("{phase}{}{held}{simulated}", doubt(job)),
            format!("{}/{}", units.succeeded, units.total),
            job.pools.join(","),
            elapsed(job.started_unix_ms, job.ended_unix_ms),
        ];
        if self.ended {
            row.push(job.failure.as_ref().map(short_outcome).unwrap_or_default());
        }
        if self.wide {
            let spec = job.spec.clone().unwrap_or_default();
            let first = spec.groups.first().and_then(|group| group.resources.clone()).unwrap_or_default();
            row.extend([
                spec.priority.to_string(),
                thousandths(first.cpu_millis),
                first.devices.as_ref().map(devices_text).unwrap_or_default(),
                job.id.to_string(),
                spec.display_name,
            ]);
        }
        row.push(age(job.submitted_unix_ms));
        row
    }
}

/// How long something ran, or has run; empty if it never started.
fn elapsed(started_unix_ms: Option<u64>, ended_unix_ms: Option<u64>) -> String {
    elapsed_ms(started_unix_ms, ended_unix_ms).map(span).unwrap_or_default()
}

/// The same in milliseconds.
pub(super) fn elapsed_ms(started_unix_ms: Option<u64>, ended_unix_ms: Option<u64>) -> Option<u64> {
    started_unix_ms.map(|at| ended_unix_ms.unwrap_or_else(now_ms).saturating_sub(at))
}

/// An outcome without its message: `Failed:3`, `Failed:signal-9`, `TimedOut`.
pub(in crate::cli) fn short_outcome(outcome: &v1::Outcome) -> String {
    match (outcome.signal, outcome.exit_code) {
        (Some(signal), _) => format!("{}:signal-{signal}", outcome.code),
        (None, Some(code)) => format!("{}:{code}", outcome.code),
        (None, None) => outcome.code.clone(),
    }
}

/// The heading of attempts; in a wide list also their ids, which `describe` and `abandon` take.
pub(super) fn attempt_heading(wide: bool) -> Vec<String> {
    let heading = ["UNIT", "ATTEMPT", "POOL", "NODE", "STATE", "OUTCOME", "STARTED", "ELAPSED"];
    let id = wide.then_some("ID");
    heading.into_iter().chain(id).map(str::to_owned).collect()
}

pub(super) fn attempt(attempt: &v1::Attempt, wide: bool) -> Vec<String> {
    let mut nodes: Vec<&str> = attempt.placements.iter().map(|placement| placement.node.as_str()).collect();
    nodes.dedup();
    let mut row = vec![
        attempt.unit.to_string(),
        attempt.number.to_string(),
        attempt.pool.clone(),
        nodes.join(","),
        name_of::<v1::AttemptPhase>(attempt.phase).to_owned(),
        attempt.outcome.as_ref().map(short_outcome).unwrap_or_default(),
        attempt.started_unix_ms.map(time).unwrap_or_default(),
        elapsed(attempt.started_unix_ms, attempt.ended_unix_ms),
    ];
    row.extend(wide.then(|| attempt.id.clone()));
    row
}

pub(super) const UNITS_HEADING: &[&str] = &["UNITS", "COUNT", "STATE", "OUTCOME"];

pub(super) fn units(units: &v1::Units) -> Vec<String> {
    vec![
        unit_range(units.first, units.last),
        (u64::from(units.last) + 1).saturating_sub(units.first.into()).to_string(),
        name_of::<v1::UnitState>(units.state).to_owned(),
        units.outcome.clone(),
    ]
}

/// Units as `cancel --units` takes them.
pub(in crate::cli) fn unit_range(first: u32, last: u32) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// The heading of pools; in a wide list also what serves them, and how many nodes they have.
pub(super) fn pool_heading(wide: bool) -> Vec<String> {
    let heading = ["NAME", "REGION", "STATE", "CPUS", "MEMORY", "DEVICES", "ATTEMPTS"];
    let more: &[&str] = if wide { &["BACKEND", "NODES"] } else { &[] };
    heading.iter().chain(more).chain(&["AGE"]).map(|title| (*title).to_owned()).collect()
}

pub(super) fn pool(pool: &v1::Pool, wide: bool) -> Vec<String> {
    let (total, held) = (pool.total.clone().unwrap_or_default(), pool.committed.clone().unwrap_or_default());
    let mut row = vec![
        pool.name.clone(),
        pool.region.clone(),
        pool_state(pool),
        format!("{}/{}", thousandths(held.cpu_millis), thousandths(total.cpu_millis)),
        format!("{}/{}", bytes(held.memory_bytes), bytes(total.memory_bytes)),
        format!("{}/{}", thousandths(held.device_millis), thousandths(total.device_millis)),
        pool.attempts.to_string(),
    ];
    if wide {
        row.extend([pool.backend.clone(), pool.nodes.to_string()]);
    }
    row.push(age(pool.registered_unix_ms));
    row
}

/// Formats a pool's connectivity and scheduling state like kubectl: `READY,CORDONED`.
pub(in crate::cli) fn pool_state(pool: &v1::Pool) -> String {
    let connectivity = name_of::<v1::Connectivity>(pool.connectivity);
    match (pool.drain.is_some(), pool.cordoned) {
        (true, _) => format!("{connectivity},DRAINING"),
        (false, true) => format!("{connectivity},CORDONED"),
        (false, false) => connectivity.to_owned(),
    }
}

/// The heading of nodes; in a wide list also devices that no waiting task can use, and tasks.
pub(super) fn node_heading(wide: bool) -> Vec<String> {
    let heading = ["NAME", "POOL", "STATE", "CPUS", "MEMORY", "DEVICES", "MODEL"];
    let more: &[&str] = if wide { &["STRANDED", "TASKS"] } else { &[] };
    heading.iter().chain(more).map(|title| (*title).to_owned()).collect()
}

pub(super) fn node(node: &v1::Node, wide: bool) -> Vec<String> {
    let (total, held) = (node.total.clone().unwrap_or_default(), node.committed.clone().unwrap_or_default());
    let mut row = vec![
        node.name.clone(),
        node.pool.clone(),
        node_state(node).to_owned(),
        format!("{}/{}", thousandths(held.cpu_millis), thousandths(total.cpu_millis)),
        format!("{}/{}", bytes(held.memory_bytes), bytes(total.memory_bytes)),
        format!("{}/{}", thousandths(held.device_millis), thousandths(total.device_millis)),
        node.devices.first().map(|device| device.model.clone()).unwrap_or_default(),
    ];
    if wide {
        let stranded = node.stranded_millis.map_or_else(|| "-".to_owned(), thousandths);
        row.extend([stranded, node.tasks.to_string()]);
    }
    row
}

/// Whether a node takes work, and if not, why. The node of a pool that is not READY has the pool's state.
pub(in crate::cli) fn node_state(node: &v1::Node) -> &'static str {
    if !matches!(node.pool_connectivity(), v1::Connectivity::Ready | v1::Connectivity::Unspecified) {
        return name_of::<v1::Connectivity>(node.pool_connectivity);
    }
    match (node.gone, node.cordoned, node.quarantined_until_unix_ms) {
        (true, ..) => "GONE",
        (false, true, _) => "CORDONED",
        (false, false, Some(_)) => "QUARANTINED",
        (false, false, None) => "READY",
    }
}

pub(super) const QUEUE_HEADING: &[&str] = &["NAME", "WEIGHT", "JOBS", "CPUS", "MEMORY", "STORAGE", "DEVICES"];

pub(super) fn queue(queue: &v1::Queue) -> Vec<String> {
    let (usage, limit) = (queue.usage.clone().unwrap_or_default(), queue.limit.unwrap_or_default());
    let of = |used: u64, limit: Option<u64>, show: fn(u64) -> String| {
        format!("{}/{}", show(used), limit.map_or_else(|| "∞".to_owned(), show))
    };
    vec![
        queue.name.clone(),
        queue.weight.to_string(),
        queue.jobs.to_string(),
        of(usage.cpu_millis, limit.cpu_millis, thousandths),
        of(usage.memory_bytes, limit.memory_bytes, bytes),
        of(usage.storage_bytes, limit.storage_bytes, bytes),
        of(usage.device_millis, limit.device_millis, thousandths),
    ]
}
