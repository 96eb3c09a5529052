//! `weir why`: explains why a job is waiting.

use std::collections::BTreeMap;

use super::exit::NEVER_FITS;
use super::job_text::{contact_text, state_text};
use super::output::{Format, age, print, print_value};
use super::{Connect, Failure};
use crate::api::proto::v1;
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
            Format::Json | Format::Yaml => print_value(self.output, &why)?,
            Format::Table | Format::Wide | Format::Name => print(&why_text(&why))?,
        }
        let never =
            |group: &v1::GroupWhy| group.pools.iter().all(|pool| pool.permanence() == v1::Permanence::Never);
        Ok(if why.groups.iter().any(never) { NEVER_FITS } else { 0 })
    }
}

fn why_text(why: &v1::WhyResponse) -> String {
    let job = why.job.clone().unwrap_or_default();
    let state = state_text(&job);
    let mut out = format!("job/{}   queue {}   {state} {}", job.name, job.queue, age(job.submitted_unix_ms));
    if why.position > 0 && !why.groups.is_empty() {
        out.push_str(&format!("   position {} of {}", why.position, why.waiting));
    }
    out.push('\n');
    for contact in &job.pools_not_ready {
        out.push_str(&format!("{}\n", contact_text(contact)));
    }
    if why.groups.is_empty() && why.reasons.is_empty() {
        out.push_str("no unit of the job is waiting\n");
    }
    for reason in &why.reasons {
        out.push_str(&format!("{:<12}  {}\n", reason.code, escape(&reason.message)));
    }
    for group in &why.groups {
        out.push_str(&format!(
            "group {}: {} waiting, {} pools considered\n",
            group.group,
            group.waiting,
            group.pools.len()
        ));
        let mut by_code: BTreeMap<(i32, &str), Vec<(&str, &str)>> = BTreeMap::new();
        for pool in &group.pools {
            let reason = pool.reason.as_ref();
            let code = reason.map_or("", |reason| reason.code.as_str());
            let message = reason.map_or("", |reason| reason.message.as_str());
            by_code.entry((pool.permanence, code)).or_default().push((&pool.pool, message));
        }
        for ((permanence, code), pools) in by_code {
            let permanence = match v1::Permanence::try_from(permanence).unwrap_or_default() {
                v1::Permanence::Unspecified => "unknown",
                v1::Permanence::Never => "never",
                v1::Permanence::Closed => "closed",
                v1::Permanence::Busy => "busy",
                v1::Permanence::Fits => "fits",
            };
            let mut shown: Vec<String> = pools
                .iter()
                .take(POOLS_SHOWN)
                .map(|(pool, message)| format!("{pool}: {}", escape(message)))
                .collect();
            if pools.len() > POOLS_SHOWN {
                shown.push(format!("and {} more", pools.len() - POOLS_SHOWN));
            }
            out.push_str(&format!("{:>4}  {permanence:<7} {code:<20} {}\n", pools.len(), shown.join("; ")));
        }
        if !group.would_help.is_empty() {
            out.push_str(&format!("Would start now with: {}\n", escape(&group.would_help.join(", or "))));
        }
    }
    out
}
