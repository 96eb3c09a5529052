//! What is printed about jobs and their attempts, the same in every command.

use super::connect::job_name;
use super::output::{age, time};
use crate::api::proto::{name_of, v1};
use crate::model::text::escape;

/// What a job depends on: `job/NAME`, or its number where its name is not stored any more.
pub fn dependency_name(edge: &v1::Dependency) -> String {
    match edge.name.is_empty() {
        true => format!("job {}", edge.job_id),
        false => job_name(&edge.queue, &edge.name),
    }
}

/// The phase of a job, in a sentence, with whether the job was simulated.
pub fn state_text(job: &v1::Job) -> String {
    let phase = name_of::<v1::JobPhase>(job.phase).to_lowercase();
    format!("{phase}{}{}", doubt(job), if job.simulated { " (simulated)" } else { "" })
}

/// A question mark where the pools of a job's attempts are not READY: its state may have changed unseen.
pub fn doubt(job: &v1::Job) -> &'static str {
    if job.pools_not_ready.is_empty() { "" } else { "?" }
}

/// That a pool is not READY, since when, and what that means for a job's attempts there.
pub fn contact_text(contact: &v1::PoolContact) -> String {
    let state = name_of::<v1::Connectivity>(contact.connectivity);
    let since =
        contact.since_unix_ms.map_or_else(String::new, |at| format!(" since {} ({} ago)", time(at), age(at)));
    format!("pool {} is {state}{since}: whether its attempts still run is unknown", escape(&contact.pool))
}

/// How many units ended with an outcome, and which: `3 Failed: units 3, 17-18`.
pub fn failed_units_text(failed: &v1::FailedUnits) -> String {
    let range = |range: &v1::UnitRange| match range.first == range.last {
        true => range.first.to_string(),
        false => format!("{}-{}", range.first, range.last),
    };
    let ranges: Vec<String> = failed.ranges.iter().map(range).collect();
    let more = if failed.more { ", …; `weir get attempts JOB --failed` lists all" } else { "" };
    format!("{} {}: units {}{more}", failed.count, failed.code, ranges.join(", "))
}

/// An outcome: `Failed, exit code 3: text`.
pub fn outcome_text(outcome: &v1::Outcome) -> String {
    let mut text = format!("{}{}", if outcome.simulated { "Simulated " } else { "" }, outcome.code);
    if let Some(signal) = outcome.signal {
        text.push_str(&format!(", signal {signal}"));
    } else if let Some(code) = outcome.exit_code {
        text.push_str(&format!(", exit code {code}"));
    }
    if !outcome.message.is_empty() {
        text.push_str(&format!(": {}", outcome.message));
    }
    text
}
