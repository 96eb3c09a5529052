//! `weir why`: explains why a job is waiting.

use std::collections::BTreeMap;

use super::connect::job_name;
use super::exit::NEVER_FITS;
use super::job_text::{contact_text, localized_state_text};
use super::language::{self, reason_text, text};
use super::output::{Format, age, hanging, padded, print, print_value, value_of};
use super::{Connect, Failure};
use crate::api::proto::v1;
use crate::model::language::Language;
use crate::model::text::escape;

/// Explain why a job is waiting.
///
/// Prints the reason per pool, and which change would let the job start now.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir why job/train-7\n  weir why job/vision/train-7     a job of queue vision\n  weir why job/train-7 -o json\n\nEach reason is one of: never (needs another job spec or another pool), closed (an admin or an agent must\nact), busy (running work must end first), fits (the pool has capacity; the job is queued behind others).\nExit code 11: no pool can ever run one of the task groups."
)]
pub struct Why {
    /// job/NAME, job/QUEUE/NAME or the id.
    job: String,
    /// Output format: json and yaml list every pool with its reason.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Pools listed per reason.
const POOLS_SHOWN: usize = 4;

impl Why {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let request = v1::WhyRequest { job: Some(connect.job_ref(&self.job)?) };
        let why = client.jobs().why(request).await?.into_inner();
        match self.output {
            Format::Json | Format::Yaml => print_value(self.output, value_of(&why)?)?,
            Format::Table | Format::Wide | Format::Name => print(&why_text(&why))?,
        }
        let never =
            |group: &v1::GroupWhy| group.pools.iter().all(|pool| pool.permanence() == v1::Permanence::Never);
        Ok(if why.groups.iter().any(never) { NEVER_FITS } else { 0 })
    }
}

/// Returns whether a unit needs more than its queue may ever use.
fn exceeds_limit(reason: &v1::Reason) -> bool {
    let amount = |name: &str| reason.parameters.get(name)?.parse::<u64>().ok();
    reason.code == "QueueLimit" && amount("needed") > amount("limit")
}

fn why_text(why: &v1::WhyResponse) -> String {
    let job = why.job.clone().unwrap_or_default();
    let (state, queue) = (localized_state_text(&job), text("queue", "队列"));
    let name = job.spec.as_ref().map_or("", |spec| spec.display_name.as_str());
    let shown = if name.is_empty() { String::new() } else { format!(" ({})", escape(name)) };
    let mut out = format!(
        "{}{shown}   {queue} {}   {state} {}",
        job_name(&job.queue, &job.name),
        job.queue,
        age(job.submitted_unix_ms)
    );
    // A job that waits for another one is not in the order of those that wait for pools.
    if (1..=why.waiting).contains(&why.position) && !why.groups.is_empty() {
        let (position, waiting) = (why.position, why.waiting);
        out.push_str(&match language::current() {
            Language::English => format!("   position {position} of {waiting}"),
            Language::Chinese => format!("   排在第 {position} 位，共 {waiting} 个"),
        });
    }
    out.push('\n');
    for contact in &job.pools_not_ready {
        out.push_str(&format!("{}\n", contact_text(contact)));
    }
    if why.groups.is_empty() && why.reasons.is_empty() {
        out.push_str(text("no unit of the job is waiting\n", "作业没有正在等待的单元\n"));
    }
    for reason in &why.reasons {
        let mut message = reason_text(reason);
        if exceeds_limit(reason) {
            message.push_str(text(
                "; one unit alone exceeds the limit, so it waits until the limit is raised",
                "；仅这一个单元就超出上限，提高上限之前会一直等待",
            ));
        }
        out.push_str(&hanging(&format!("{:<12}  ", reason.code), &escape(&message)));
    }
    for group in &why.groups {
        let (name, waiting, pools) = (&group.group, group.waiting, group.pools.len());
        out.push_str(&match language::current() {
            Language::English => format!("group {name}: {waiting} waiting, {pools} pools considered\n"),
            Language::Chinese => format!("任务组 {name}：{waiting} 个单元在等待，检查了 {pools} 个算力池\n"),
        });
        let mut by_code: BTreeMap<(i32, &str), Vec<(&str, String)>> = BTreeMap::new();
        for pool in &group.pools {
            let reason = pool.reason.as_ref();
            let code = reason.map_or("", |reason| reason.code.as_str());
            let message = reason.map(reason_text).unwrap_or_default();
            by_code.entry((pool.permanence, code)).or_default().push((&pool.pool, message));
        }
        for ((permanence, code), pools) in by_code {
            let permanence = match v1::Permanence::try_from(permanence).unwrap_or_default() {
                v1::Permanence::Unspecified => text("unknown", "未知"),
                v1::Permanence::Never => text("never", "不可能"),
                v1::Permanence::Closed => text("closed", "暂停"),
                v1::Permanence::Busy => text("busy", "繁忙"),
                v1::Permanence::Fits => text("fits", "可运行"),
            };
            let mut shown: Vec<String> = pools
                .iter()
                .take(POOLS_SHOWN)
                .map(|(pool, message)| format!("{pool}: {}", escape(message)))
                .collect();
            if pools.len() > POOLS_SHOWN {
                let more = pools.len() - POOLS_SHOWN;
                shown.push(match language::current() {
                    Language::English => format!("and {more} more"),
                    Language::Chinese => format!("另有 {more} 个"),
                });
            }
            let start = format!("{:>4}  {} {code:<20} ", pools.len(), padded(permanence, 7));
            out.push_str(&hanging(&start, &shown.join(text("; ", "；"))));
        }
        if !group.would_help.is_empty() {
            let help: Vec<String> = group.would_help.iter().map(reason_text).collect();
            let start = text("Would start now with: ", "这样修改即可立即启动：");
            out.push_str(&hanging(start, &escape(&help.join(text(", or ", "，或 ")))));
        }
    }
    out
}
