//! What `weir describe` prints of an attempt.

use super::{push_field, push_text};
use crate::api::proto::{name_of, v1};
use crate::cli::connect::job_name;
use crate::cli::job_text::outcome_text;
use crate::cli::output::{now_ms, span, thousandths, time};

pub(super) fn attempt_text(attempt: &v1::Attempt, job: &v1::Job) -> String {
    let mut out = String::new();
    push_field(&mut out, "attempt", &attempt.id);
    push_field(&mut out, "job", &job_name(&job.queue, &job.name));
    push_text(&mut out, "pool", &format!("{} in {}", attempt.pool, attempt.region));
    push_field(&mut out, "state", name_of::<v1::AttemptPhase>(attempt.phase));
    push_field(&mut out, "ordered", &time(attempt.ordered_unix_ms));
    if let Some(at) = attempt.started_unix_ms {
        let ran = attempt.ended_unix_ms.unwrap_or_else(now_ms).saturating_sub(at);
        push_text(&mut out, "started", &format!("{}, {} ran", time(at), span(ran)));
    }
    if let Some(at) = attempt.ended_unix_ms {
        push_field(&mut out, "ended", &time(at));
    }
    if let Some(outcome) = &attempt.outcome {
        push_field(&mut out, "outcome", &outcome_text(outcome));
    }
    let groups = job.spec.as_ref().map_or(&[][..], |spec| &spec.groups);
    for placement in &attempt.placements {
        let group = groups.get(placement.group as usize).map_or("", |group| group.name.as_str());
        let devices = devices_text(&placement.devices);
        push_text(
            &mut out,
            "task",
            &format!("{} of {group}: node {}{devices}", placement.task, placement.node),
        );
    }
    out
}

/// The devices of a task: `, devices 0-3,6`, `, device 2 (0.5)`; empty without devices.
pub(super) fn devices_text(devices: &[v1::DeviceShare]) -> String {
    let part = devices.iter().find(|share| share.millis < 1_000);
    let mut ranges: Vec<[u32; 2]> = Vec::new();
    for share in devices {
        match ranges.last_mut() {
            Some([_, last]) if *last + 1 == share.index => *last = share.index,
            _ => ranges.push([share.index; 2]),
        }
    }
    let range =
        |[first, last]: &[u32; 2]| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let shown = ranges.iter().map(range).collect::<Vec<_>>().join(",");
    match (devices.len(), part) {
        (0, _) => String::new(),
        (_, Some(share)) => format!(", device {shown} ({})", thousandths(u64::from(share.millis))),
        (1, None) => format!(", device {shown}"),
        (_, None) => format!(", devices {shown}"),
    }
}
