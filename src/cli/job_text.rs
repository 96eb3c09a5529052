//! What is printed about jobs and their attempts, the same in every command.

use super::connect::job_name;
use super::language;
use super::output::{age, time};
use crate::api::proto::{name_of, v1};
use crate::model::language::Language;
use crate::model::text::escape;

/// What a job depends on: `job/NAME`, or its number where its name is not stored any more.
pub fn dependency_name(edge: &v1::Dependency) -> String {
    match edge.name.is_empty() {
        true => format!("job {}", edge.job_id),
        false => job_name(&edge.queue, &edge.name),
    }
}

/// The phase of a job as in [`state_text`], in the language of this process.
pub fn localized_state_text(job: &v1::Job) -> String {
    if language::current() == Language::English {
        return state_text(job);
    }
    let phase = match job.phase() {
        v1::JobPhase::Unspecified => "未知",
        v1::JobPhase::Pending => "等待",
        v1::JobPhase::Running => "运行",
        v1::JobPhase::Cancelling => "正在取消",
        v1::JobPhase::Failing => "正在失败",
        v1::JobPhase::Succeeded => "成功",
        v1::JobPhase::Failed => "失败",
        v1::JobPhase::Cancelled => "已取消",
    };
    let held = if job.held { "（暂停调度）" } else { "" };
    format!("{phase}{}{held}{}", doubt(job), if job.simulated { "（模拟）" } else { "" })
}

/// The phase of a job, in a sentence, with whether the job was simulated.
pub fn state_text(job: &v1::Job) -> String {
    let phase = name_of::<v1::JobPhase>(job.phase).to_lowercase();
    let held = if job.held { " (held)" } else { "" };
    format!("{phase}{}{held}{}", doubt(job), if job.simulated { " (simulated)" } else { "" })
}

/// A question mark where the pools of a job's attempts are not READY: its state may have changed unseen.
pub fn doubt(job: &v1::Job) -> &'static str {
    if job.pools_not_ready.is_empty() { "" } else { "?" }
}

/// That a pool is not READY, since when, and what that means for a job's attempts there.
pub fn contact_text(contact: &v1::PoolContact) -> String {
    let (state, pool) = (name_of::<v1::Connectivity>(contact.connectivity), escape(&contact.pool));
    let since = contact.since_unix_ms.map(|at| (time(at), age(at)));
    match (language::current(), since) {
        (Language::English, since) => {
            let since = since.map_or_else(String::new, |(at, age)| format!(" since {at} ({age} ago)"));
            format!("pool {pool} is {state}{since}: whether its attempts still run is unknown")
        }
        (Language::Chinese, since) => {
            let since = since.map_or_else(String::new, |(at, age)| format!("自 {at} 起（{age} 前）"));
            format!("算力池 {pool} {since}处于 {state} 状态：不知道它的尝试是否仍在运行")
        }
    }
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

/// An outcome, in the language of this process: `Failed, exit code 3: text`.
pub fn outcome_text(outcome: &v1::Outcome) -> String {
    let chinese = language::current() == Language::Chinese;
    let simulated = if chinese { "模拟的 " } else { "Simulated " };
    let mut text = format!("{}{}", if outcome.simulated { simulated } else { "" }, outcome.code);
    match (outcome.signal, outcome.exit_code) {
        (Some(signal), _) if chinese => text.push_str(&format!("，信号 {signal}")),
        (Some(signal), _) => text.push_str(&format!(", signal {signal}")),
        (None, Some(code)) if chinese => text.push_str(&format!("，退出码 {code}")),
        (None, Some(code)) => text.push_str(&format!(", exit code {code}")),
        (None, None) => {}
    }
    if !outcome.message.is_empty() {
        text.push_str(&format!(": {}", language::translated(&outcome.message)));
    }
    text
}
