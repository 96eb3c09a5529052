//! `weir plan`: plans of admin operations, which are not executed.

use std::collections::BTreeMap;

use super::exit::INVALID;
use super::output::{Format, print, print_value, span, thousandths, value_of};
use super::{Connect, Failure};
use crate::api::proto::v1;
use crate::model::text::escape;

/// Plan admin operations without executing them, such as defragmentation.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  weir plan defrag pool/gz-nvidia")]
pub struct Plan {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Defrag(Defrag),
}

/// Plan which running tasks to move so that waiting tasks that need devices can start.
///
/// Only tasks of jobs with one of the given labels are moved, and only within their pool. Each step frees a
/// node for one waiting task and increases the number of allocated devices. The plan is not executed: to
/// carry out a step, cordon its node with `weir cordon`, then cancel or restart the tasks that the plan
/// moves.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir plan defrag\n  weir plan defrag pool/gz-nvidia --moves 20\n  weir plan defrag --preemptible class=spot --checkpointed framework=torch -o json"
)]
struct Defrag {
    /// Pools to plan for, pool/NAME or NAME. Default: all pools.
    pools: Vec<String>,
    /// Label of jobs whose tasks may be moved and then restart from the beginning. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", default_value = "preemptible=true")]
    preemptible: Vec<String>,
    /// Label of jobs whose tasks may be moved and then continue from their last checkpoint. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", default_value = "checkpointed=true")]
    checkpointed: Vec<String>,
    /// Maximum number of moves per pool, 1 to 10000.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    moves: u32,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Plan {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        match self.command {
            Command::Defrag(defrag) => defrag.run(connect).await,
        }
    }
}

impl Defrag {
    async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let preemptible = labels("--preemptible", &self.preemptible)?;
        let checkpointed = labels("--checkpointed", &self.checkpointed)?;
        let client = connect.client()?;
        let mut names: Vec<String> = self
            .pools
            .iter()
            .map(|text| text.rsplit_once('/').map_or(text.as_str(), |(_, name)| name).to_owned())
            .collect();
        if names.is_empty() {
            let pools = client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools;
            names = pools.into_iter().map(|pool| pool.name).collect();
        }
        let mut plans = BTreeMap::new();
        for pool in names {
            let request = v1::PlanDefragRequest {
                pool: pool.clone(),
                preemptible: preemptible.clone(),
                checkpointed: checkpointed.clone(),
                moves_max: self.moves,
            };
            plans.insert(pool, client.pools().plan_defrag(request).await?.into_inner());
        }
        match self.output {
            Format::Table | Format::Wide => {
                let text: String = plans.iter().map(|(pool, plan)| plan_text(pool, plan)).collect();
                print(if text.is_empty() { "no pools\n" } else { &text })?;
            }
            format => print_value(format, value_of(&plans)?)?,
        }
        Ok(0)
    }
}

pub(super) fn labels(flag: &str, texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let label = |text: &String| {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty())?;
        Some((key.to_owned(), value.to_owned()))
    };
    let mut all = BTreeMap::new();
    for text in texts {
        let invalid = |what: &str| Failure::new(INVALID, format!("{flag} {text:?}: {what}"));
        let (key, value) = label(text).ok_or_else(|| invalid("write KEY=VALUE"))?;
        if all.insert(key, value).is_some() {
            return Err(invalid("this key is given twice, but a label has one value"));
        }
    }
    Ok(all)
}

fn plan_text(pool: &str, plan: &v1::PlanDefragResponse) -> String {
    let moves: usize = plan.steps.iter().map(|step| step.moves.len()).sum();
    let mut out = format!(
        "pool/{}   {} waiting   {} running can be moved   ",
        escape(pool),
        plan.waiting,
        plan.movable
    );
    if plan.steps.is_empty() {
        out.push_str(match (plan.waiting, plan.movable) {
            (0, _) => "no task is waiting for its devices\n",
            (_, 0) => "no running job has such a label\n",
            _ => "no move would increase the number of allocated devices\n",
        });
        return out;
    }
    let millis = |step: &v1::DefragStep| step.device_millis;
    let devices = thousandths(plan.steps.iter().map(millis).sum());
    let tasks = plan.steps.len();
    let (of, task) = (if moves == 1 { "move" } else { "moves" }, if tasks == 1 { "task" } else { "tasks" });
    out.push_str(&format!("{moves} {of} to start {tasks} {task} with {devices} devices\n"));
    for (at, step) in plan.steps.iter().enumerate() {
        let asked = thousandths(step.device_millis);
        let (job, queue, node) = (escape(&step.job_name), escape(&step.queue), escape(&step.node));
        out.push_str(&format!("{:>4}  start  job/{job} (queue {queue}): {asked} on {node}\n", at + 1));
        for one in &step.moves {
            let to = if one.to_node.is_empty() {
                "back to the queue".to_owned()
            } else {
                format!("to {}", escape(&one.to_node))
            };
            out.push_str(&format!(
                "       move  job/{} (queue {}): {} from {} {to}, {}   {}\n",
                escape(&one.job_name),
                escape(&one.queue),
                thousandths(one.device_millis),
                escape(&one.from_node),
                if one.lost_ms == 0 {
                    "loses no progress".to_owned()
                } else {
                    format!("loses {}", span(one.lost_ms))
                },
                escape(&one.attempt),
            ));
        }
    }
    if plan.cut {
        out.push_str("      search time limit reached: more steps may exist\n");
    }
    out
}
