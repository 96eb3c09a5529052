//! What `weir describe` prints of a queue.

use super::{push_field, push_text};
use crate::api::proto::v1;
use crate::cli::output::{bytes, thousandths};
use crate::model::amount;

/// The queue with its limits, those of the queues above it, and its jobs.
pub(super) fn queue_text(queue: &v1::Queue, all: &[v1::Queue], jobs: &[v1::Job]) -> String {
    let mut out = String::new();
    push_field(&mut out, "queue", &queue.name);
    let above = |other: &&v1::Queue| {
        queue.name.strip_prefix(&other.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut bounding: Vec<&v1::Queue> = all.iter().filter(above).collect();
    bounding.sort_by_key(|queue| std::cmp::Reverse(queue.name.len()));
    for one in bounding {
        let of = if one.name == queue.name { String::new() } else { format!(" in {}", one.name) };
        for line in use_lines(one) {
            push_text(&mut out, "use", &format!("{line}{of}"));
        }
    }
    let below: Vec<&str> = all
        .iter()
        .filter(|other| other.name.strip_prefix(&queue.name).is_some_and(|rest| rest.starts_with('/')))
        .map(|other| other.name.as_str())
        .collect();
    if !below.is_empty() {
        push_field(&mut out, "below", &below.join(", "));
    }
    push_text(
        &mut out,
        "max run",
        &format!("{} for jobs that set none", amount::duration(queue.max_run_ms_default)),
    );
    push_text(
        &mut out,
        "lease",
        &format!("{} for jobs that set none", amount::duration(queue.lease_ms_default)),
    );
    if queue.weight > 1 {
        push_text(&mut out, "weight", &format!("{}, without an effect yet", queue.weight));
    }
    let units = |count: fn(&v1::UnitCounts) -> u32| {
        jobs.iter().filter_map(|job| job.units.as_ref()).map(|units| u64::from(count(units))).sum::<u64>()
    };
    let (waiting, running) = (units(|units| units.waiting + units.backing_off), units(|units| units.live));
    let text = format!("{} live, {running} units started, {waiting} units waiting", jobs.len());
    push_text(&mut out, "jobs", &text);
    out
}

/// The use of each kind that is used or limited.
fn use_lines(queue: &v1::Queue) -> Vec<String> {
    let (usage, limit) = (queue.usage.clone().unwrap_or_default(), queue.limit.unwrap_or_default());
    let line = |name: &str, used: u64, limit: Option<u64>, show: fn(u64) -> String| {
        let of = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("limit {}", show(limit)));
        (used > 0 || limit.is_some()).then(|| format!("{} {name}, {of}", show(used)))
    };
    let lines = [
        line("CPUs", usage.cpu_millis, limit.cpu_millis, thousandths),
        line("memory", usage.memory_bytes, limit.memory_bytes, bytes),
        line("storage", usage.storage_bytes, limit.storage_bytes, bytes),
        line("devices", usage.device_millis, limit.device_millis, thousandths),
    ];
    lines.into_iter().flatten().collect()
}
