//! What `weir describe` prints of a job.

use super::attempt::devices_text;
use super::{pairs, push_field, push_given, push_text};
use crate::api::proto::{name_of, v1};
use crate::cli::job_file::devices_text as request_text;
use crate::cli::job_text::{
    contact_text, dependency_name, failed_units_text, localized_state_text, outcome_text,
};
use crate::cli::language::{label, translated_value};
use crate::cli::output::{bytes, shell_words, span, thousandths, time};
use crate::model::amount;
use crate::model::text::escape;

pub(super) fn job_text(job: &v1::Job, attempts: &[v1::Attempt]) -> String {
    let spec = job.spec.clone().unwrap_or_default();
    let mut out = String::new();
    push_field(&mut out, "job", &format!("{} (id {}, queue {})", job.name, job.id, job.queue));
    push_given(&mut out, "name", &spec.display_name);
    push_field(&mut out, "state", &localized_state_text(job).to_uppercase());
    for contact in &job.pools_not_ready {
        push_field(&mut out, "contact", &contact_text(contact));
    }
    push_text(&mut out, "units", &units_text(job));
    if let Some(failure) = &job.failure {
        push_field(&mut out, "failure", &outcome_text(failure));
    }
    for failed in &job.failed_units {
        push_text(&mut out, "ended", &failed_units_text(failed));
    }
    push_given(&mut out, "labels", &pairs(&spec.labels));
    push_field(&mut out, "priority", &spec.priority.to_string());
    for group in &spec.groups {
        push_group(&mut out, group);
    }
    push_policies(&mut out, &spec);
    push_timeline(&mut out, job, attempts);
    if job.units.unwrap_or_default().waiting > 0 && job.ended_unix_ms.is_none() {
        let name = crate::cli::connect::job_name(&job.queue, &job.name);
        out.push_str(&format!("\n{}\n", translated_value(&format!("why it waits: weir why {name}"))));
    }
    out
}

fn units_text(job: &v1::Job) -> String {
    let units = job.units.unwrap_or_default();
    let (done, waiting) = (units.succeeded, units.waiting + units.backing_off);
    match job.phase() {
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
    }
}

fn push_group(out: &mut String, group: &v1::TaskGroup) {
    push_text(out, "group", &format!("{}: {}", group.name, group_text(group)));
    let program = match &group.run {
        Some(v1::task_group::Run::Process(program)) => Some(program),
        Some(v1::task_group::Run::Container(container)) => {
            push_field(out, "  image", &container.image);
            container.program.as_ref()
        }
        Some(v1::task_group::Run::Pod(_)) => {
            push_text(out, "  pod", "a Kubernetes PodSpec: -o yaml shows it");
            None
        }
        None => None,
    };
    if let Some(program) = program {
        let words: Vec<&str> = program.command.iter().chain(&program.args).map(String::as_str).collect();
        push_given(out, "  command", &shell_words(&words));
        // Values may be secrets of the user.
        let names: Vec<&str> = program.env.iter().map(|var| var.name.as_str()).collect();
        push_given(out, "  env", &names.join(", "));
        push_given(out, "  workdir", &program.workdir);
    }
    if let Some(simulate) = &group.simulate {
        let text = format!("{}, exit code {}", amount::duration(simulate.duration_ms), simulate.exit_code);
        push_text(out, "  simulate", &text);
    }
}

fn push_policies(out: &mut String, spec: &v1::JobSpec) {
    let constraints = spec.constraints.clone().unwrap_or_default();
    let list = |out: &mut String, key: &str, list: &[String]| push_given(out, key, &list.join(", "));
    list(out, "regions", &constraints.regions_allowed);
    list(out, "not in", &constraints.regions_denied);
    list(out, "pools", &constraints.pools);
    push_given(out, "node labels", &pairs(&constraints.node_labels));
    for toleration in &constraints.tolerations {
        let key = if toleration.key.is_empty() { "any taint" } else { &toleration.key };
        let value = toleration.value.as_ref().map_or_else(String::new, |value| format!("={value}"));
        push_text(out, "tolerates", &format!("{key}{value}"));
    }
    if constraints.real_only {
        push_text(out, "pools", "no simulated ones");
    }
    let retry = spec.retry.clone().unwrap_or_default();
    if retry.max_attempts.unwrap_or(1) > 1 {
        let on: Vec<&str> = retry.on.iter().map(|on| name_of::<v1::RetryOn>(*on)).collect();
        let mut text = format!(
            "up to {} attempts, on {}",
            retry.max_attempts.unwrap_or(1),
            on.join(", ").to_lowercase()
        );
        if retry.backoff_ms > 0 {
            text.push_str(&format!("; wait from {}", amount::duration(retry.backoff_ms)));
        }
        if retry.backoff_max_ms > 0 {
            text.push_str(&format!(" to {}", amount::duration(retry.backoff_max_ms)));
        }
        push_text(out, "retry", &text);
    }
    if spec.on_pool_lost() == v1::OnPoolLost::Requeue {
        let overlap = if spec.may_overlap { ", may overlap" } else { "" };
        push_text(out, "pool lost", &format!("requeue after {}{overlap}", amount::duration(spec.lease_ms)));
    }
    if let Some(max) = spec.on_unit_failure.and_then(|policy| policy.max_failed) {
        push_field(out, "max failed", &max.to_string());
    }
    push_text(
        out,
        "max run",
        &format!(
            "{}, grace {}",
            amount::duration(spec.max_run_ms),
            amount::duration(spec.grace_ms.unwrap_or(10_000))
        ),
    );
    if spec.start_limit_ms > 0 {
        push_field(out, "start limit", &amount::duration(spec.start_limit_ms));
    }
    for edge in &spec.depends_on {
        let how = match edge.condition() {
            v1::DependencyCondition::Unspecified | v1::DependencyCondition::Succeeded => "has succeeded",
            v1::DependencyCondition::Failed => "has failed",
            v1::DependencyCondition::Any => "has ended",
        };
        push_text(out, "after", &format!("starts once {} {how}", escape(&dependency_name(edge))));
    }
}

fn push_timeline(out: &mut String, job: &v1::Job, attempts: &[v1::Attempt]) {
    out.push_str(&format!("\n{}\n", label("timeline")));
    let mut events = vec![(job.submitted_unix_ms, format!("submitted by {}", job.submitted_by))];
    for attempt in attempts {
        let first = attempt.placements.first();
        let node = first.map_or("", |placement| placement.node.as_str());
        let devices = first.map(|placement| devices_text(&placement.devices)).unwrap_or_default();
        let more = match attempt.placements.len() {
            0 | 1 => String::new(),
            tasks => format!(", and {} more tasks", tasks - 1),
        };
        events.push((
            attempt.ordered_unix_ms,
            format!(
                "{} ordered: {} in {}, node {node}{devices}{more}",
                attempt.id, attempt.pool, attempt.region
            ),
        ));
        if let Some(at) = attempt.started_unix_ms {
            events.push((at, format!("{} running", attempt.id)));
        }
        if let (Some(at), Some(outcome)) = (attempt.ended_unix_ms, &attempt.outcome) {
            events.push((at, format!("{} {}", attempt.id, outcome_text(outcome))));
        }
    }
    if let Some(at) = job.ended_unix_ms {
        events.push((at, format!("job {}", localized_state_text(job))));
    }
    events.sort_by_key(|(at, _)| *at);
    for (at, what) in events {
        let after = span(at.saturating_sub(job.submitted_unix_ms));
        out.push_str(&format!("  {}  +{after:<7} {}\n", time(at), escape(&translated_value(&what))));
    }
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
/// devices A100-80G:2`.
fn group_text(group: &v1::TaskGroup) -> String {
    let asked = group.resources.clone().unwrap_or_default();
    let mut each = Vec::new();
    if asked.cpu_millis > 0 {
        each.push(format!("{} CPUs", thousandths(asked.cpu_millis)));
    }
    if asked.memory_bytes > 0 {
        each.push(bytes(asked.memory_bytes));
    }
    if asked.storage_bytes > 0 {
        each.push(format!("{} storage", bytes(asked.storage_bytes)));
    }
    each.extend(asked.devices.as_ref().map(|devices| format!("devices {}", request_text(devices))));
    each.extend(asked.other.iter().map(|(kind, amount)| format!("{amount} {kind}")));
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
