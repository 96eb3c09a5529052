//! `weir describe`: the details of a job or pool.

use super::exit::INVALID;
use super::get::pool_state;
use super::job_text::{contact_text, failed_units_text, outcome_text, state_text};
use super::output::{age, bytes, print, report, span, thousandths, time};
use super::{Connect, Failure};
use crate::api::proto::v1;
use crate::model::text::escape;

/// Show the details of a job or pool.
///
/// A job: its task groups, attempts and a timeline. A pool: its state, allocation and free devices.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir describe job/train-7\n  weir describe job/vision/train-7       a job of queue vision\n  weir describe pool/xj-ascend"
)]
pub struct Describe {
    /// job/NAME, job/QUEUE/NAME, pool/NAME, or TYPE followed by NAME. A name without a type is a job.
    what: String,
    /// Name of the object, if only its type is given before.
    name: Option<String>,
}

impl Describe {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let (kind, name) = match (self.what.split_once('/'), self.name) {
            (Some((kind, name)), _) => (kind.to_owned(), name.to_owned()),
            (None, Some(name)) => (self.what, name),
            (None, None) => ("job".to_owned(), self.what),
        };
        match kind.as_str() {
            "job" | "jobs" | "j" => {
                let request = v1::GetJobRequest {
                    job: Some(connect.job_ref(&format!("job/{name}"))?),
                    with_attempts: true,
                };
                let response = client.jobs().get_job(request).await?.into_inner();
                let job = response.job.unwrap_or_default();
                print(&job_text(&job, &response.attempts))?;
                if response.more_attempts {
                    let shown = response.attempts.len();
                    report(&format!(
                        "only the first {shown} attempts are shown; `weir get attempts job/{}` lists all",
                        escape(&job.name)
                    ));
                }
            }
            "pool" | "pools" | "po" => {
                let response = client.pools().get_pool(v1::GetPoolRequest { name }).await?.into_inner();
                print(&pool_text(&response.pool.unwrap_or_default(), &response.free_blocks))?;
            }
            other => {
                return Err(Failure::new(
                    INVALID,
                    format!("{other:?} can't be described: use job/NAME or pool/NAME"),
                ));
            }
        }
        Ok(0)
    }
}

fn push_field(out: &mut String, key: &str, value: &str) {
    out.push_str(&format!("{key:<12}{}\n", escape(value)));
}

fn job_text(job: &v1::Job, attempts: &[v1::Attempt]) -> String {
    let (spec, units) = (job.spec.clone().unwrap_or_default(), job.units.unwrap_or_default());
    let mut out = String::new();
    push_field(&mut out, "job", &format!("{} (id {}, queue {})", job.name, job.id, job.queue));
    push_field(&mut out, "state", &state_text(job).to_uppercase());
    for contact in &job.pools_not_ready {
        push_field(&mut out, "contact", &contact_text(contact));
    }
    let (done, waiting) = (units.succeeded, units.waiting + units.backing_off);
    let counts = match job.phase() {
        v1::JobPhase::Cancelled => {
            format!("{done} of {} succeeded, {} stopped, {waiting} never started", units.total, units.failed)
        }
        v1::JobPhase::Failed => {
            format!(
                "{done} of {} succeeded, {} failed or stopped, {waiting} never started",
                units.total, units.failed
            )
        }
        _ => format!(
            "{done} of {} succeeded, {} failed, {} running, {waiting} waiting",
            units.total, units.failed, units.running
        ),
    };
    push_field(&mut out, "units", &counts);
    push_field(&mut out, "priority", &spec.priority.to_string());
    for group in &spec.groups {
        push_field(&mut out, "group", &format!("{}: {}", group.name, group_text(group)));
    }
    if let Some(failure) = &job.failure {
        push_field(&mut out, "failure", &outcome_text(failure));
    }
    for failed in &job.failed_units {
        push_field(&mut out, "ended", &failed_units_text(failed));
    }
    out.push_str("\ntimeline\n");
    let mut events = vec![(job.submitted_unix_ms, format!("submitted by {}", job.submitted_by))];
    for attempt in attempts {
        let node = attempt.placements.first().map(|p| p.node.as_str()).unwrap_or_default();
        events.push((
            attempt.ordered_unix_ms,
            format!("{} ordered: {} in {}, node {node}", attempt.id, attempt.pool, attempt.region),
        ));
        if let Some(at) = attempt.started_unix_ms {
            events.push((at, format!("{} running", attempt.id)));
        }
        if let (Some(at), Some(outcome)) = (attempt.ended_unix_ms, &attempt.outcome) {
            events.push((at, format!("{} {}", attempt.id, outcome_text(outcome))));
        }
    }
    if let Some(at) = job.ended_unix_ms {
        events.push((at, format!("job {}", state_text(job))));
    }
    events.sort_by_key(|(at, _)| *at);
    for (at, what) in events {
        let after = span(at.saturating_sub(job.submitted_unix_ms));
        out.push_str(&format!("  {}  +{after:<7} {}\n", time(at), escape(&what)));
    }
    out
}

fn pool_text(pool: &v1::Pool, free_blocks: &[v1::FreeBlock]) -> String {
    let (total, held) = (pool.total.clone().unwrap_or_default(), pool.committed.clone().unwrap_or_default());
    let mut out = String::new();
    push_field(&mut out, "pool", &pool.name);
    push_field(&mut out, "region", &pool.region);
    push_field(
        &mut out,
        "backend",
        &format!("{}{}", pool.backend, if pool.real { "" } else { " (simulated)" }),
    );
    push_field(
        &mut out,
        "state",
        &format!("{}{}", pool_state(pool), if pool.connected { "" } else { ", agent not connected" }),
    );
    if let Some(since) = pool.not_ready_since_unix_ms {
        push_field(&mut out, "since", &format!("{} ({} ago)", time(since), age(since)));
    }
    push_field(&mut out, "nodes", &pool.nodes.to_string());
    push_field(
        &mut out,
        "cpus",
        &format!("{} of {} allocated", thousandths(held.cpu_millis), thousandths(total.cpu_millis)),
    );
    push_field(
        &mut out,
        "memory",
        &format!("{} of {} allocated", bytes(held.memory_bytes), bytes(total.memory_bytes)),
    );
    push_field(
        &mut out,
        "devices",
        &format!("{} of {} allocated", thousandths(held.device_millis), thousandths(total.device_millis)),
    );
    for block in free_blocks {
        push_field(&mut out, "free", &block_text(block));
    }
    if free_blocks.is_empty() && total.device_millis > 0 {
        push_field(&mut out, "free", "no whole device on any node");
    }
    push_field(&mut out, "attempts", &pool.attempts.to_string());
    for (key, value) in &pool.labels {
        push_field(&mut out, "label", &format!("{key}={value}"));
    }
    for note in &pool.notes {
        push_field(&mut out, "note", note);
    }
    out
}

/// Formats free whole devices: `8 devices on one node: 12 nodes (A100-80G)`.
fn block_text(block: &v1::FreeBlock) -> String {
    let count = |count: u32, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let (devices, nodes) = (count(block.devices, "device"), count(block.nodes, "node"));
    format!("{devices} on one node: {nodes} ({})", block.model)
}

/// The first of many ranges of indices.
fn shortened(indices: &str) -> String {
    const LEN_MAX: usize = 200;
    match indices.get(..LEN_MAX) {
        Some(first) if indices.len() > LEN_MAX => {
            let whole = first.rsplit_once(',').map_or(first, |(whole, _)| whole);
            format!("{whole},… (JSON has all)")
        }
        Some(_) | None => indices.to_owned(),
    }
}

/// Formats the request of a task group without amounts of zero: `4 tasks in a gang, each 8 CPUs, 64Gi,
/// 2 devices A100-80G`.
fn group_text(group: &v1::TaskGroup) -> String {
    let asked = group.resources.clone().unwrap_or_default();
    let mut each = Vec::new();
    if asked.cpu_millis > 0 {
        each.push(format!("{} CPUs", thousandths(asked.cpu_millis)));
    }
    if asked.memory_bytes > 0 {
        each.push(bytes(asked.memory_bytes));
    }
    if let Some(devices) = &asked.devices {
        let amount = match devices.amount {
            Some(v1::device_request::Amount::Millis(millis)) => thousandths(u64::from(millis)),
            Some(v1::device_request::Amount::Count(count)) => count.to_string(),
            None => String::from("1"),
        };
        each.push(format!("{amount} devices {}", devices.models.join(" or ")).trim_end().to_owned());
    }
    let count = group.count.unwrap_or(1);
    let tasks = if count == 1 { "task" } else { "tasks" };
    let gang = if group.gang { " in a gang" } else { "" };
    let each = if each.is_empty() { String::new() } else { format!(", each {}", each.join(", ")) };
    let of = group.index_count.unwrap_or_default();
    let selected = match group.indices.as_str() {
        "" => String::new(),
        indices => format!(", indices {} of {of}", shortened(indices)),
    };
    format!("{count} {tasks}{gang}{each}{selected}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_of_a_pool_lists_its_free_blocks_or_that_it_has_none() {
        let total = v1::Resources { device_millis: 16_000, ..Default::default() };
        let pool = v1::Pool { total: Some(total), ..Default::default() };
        let block = |devices: u32, nodes: u32| v1::FreeBlock { model: "A100".to_owned(), devices, nodes };
        let free = |pool: &v1::Pool, blocks: &[v1::FreeBlock]| {
            let text = pool_text(pool, blocks);
            let lines = text.lines().filter_map(|line| line.strip_prefix("free"));
            lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        };
        let blocks = [block(8, 12), block(1, 1)];
        let listed = ["8 devices on one node: 12 nodes (A100)", "1 device on one node: 1 node (A100)"];
        assert_eq!(free(&pool, &blocks), listed);
        assert_eq!(free(&pool, &[]), ["no whole device on any node"]);
        assert_eq!(free(&v1::Pool::default(), &[]), [""; 0], "the pool has no devices");
    }
}
