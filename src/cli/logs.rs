//! `weir logs`: prints the output of tasks.

use super::connect::job_name;
use super::exit::{CONFLICT, NOT_FOUND, USAGE};
use super::follow::{self, Task};
use super::output::{now_ms, report};
use super::{Connect, Failure, quantity};
use crate::api::client::Client;
use crate::api::proto::v1;

/// Print the output of a job.
///
/// Prints standard output and standard error of one task, or of all.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir logs job/train-7\n  weir logs -f job/train-7 --unit 3\n  weir logs job/train-7 --tail 20\n  weir logs job/train-7 --since 10m --timestamps\n  weir logs job/train-7 --all             each line with the unit that printed it\n  weir logs job/train-7 --attempt 1     the output of the first attempt"
)]
pub struct Logs {
    /// job/NAME, job/QUEUE/NAME or the id.
    job: String,
    /// Stream until the task has ended, across retries.
    #[arg(long, short)]
    follow: bool,
    /// Unit number, from 0: the index of an independent task in the job, or of a gang. Default: the first unit
    /// that failed, or else the first.
    #[arg(long, value_name = "N")]
    unit: Option<u32>,
    /// Rank of a task in its gang, from 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    task: u32,
    /// All tasks of the job; with --follow those of the first 64. Implies --prefix.
    #[arg(long, conflicts_with_all = ["unit", "task", "attempt"])]
    all: bool,
    /// Print [UNIT], or [UNIT.TASK] in a gang, before each line.
    #[arg(long)]
    prefix: bool,
    /// Only the last lines of each stream of a task.
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(u32).range(1..))]
    tail: Option<u32>,
    /// Only what was written in this time until now: 30s, 5m, 2h, 1d; by the clock of the pool's agent.
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration_ms)]
    since: Option<u64>,
    /// Print before each line when it was written, to the second.
    #[arg(long)]
    timestamps: bool,
    /// Attempt of the unit, from 1; 0 is the latest.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "follow")]
    attempt: u32,
}

/// Tasks whose output is followed at once: each takes a stream of the client's share.
const FOLLOWED_MAX: usize = 64;

impl Logs {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let job = super::job_list::find_job(&client, connect.job_ref(&self.job)?).await?;
        let at = v1::JobRef { id: job.id, ..v1::JobRef::default() };
        let now = now_ms();
        let of = |unit: u32, task: u32, is_gang: bool| Task {
            job: at.clone(),
            unit,
            task,
            tail_lines: self.tail.unwrap_or(0),
            since_unix_ms: self.since.map_or(0, |since| now.saturating_sub(since).max(1)),
            timestamps: self.timestamps,
            prefix: (self.prefix || self.all)
                .then(|| if is_gang { format!("[{unit}.{task}] ") } else { format!("[{unit}] ") }),
        };
        if self.all {
            let tasks = tasks_of(&job).map(|(unit, task, is_gang)| of(unit, task, is_gang));
            return if self.follow {
                follow_all(&client, tasks).await
            } else {
                print_all(&client, tasks).await
            };
        }
        let unit = self.unit.unwrap_or_else(|| default_unit(&job));
        let is_gang = tasks_of(&job).any(|(other, _, is_gang)| other == unit && is_gang);
        if self.task > 0 && !is_gang {
            let message =
                "--task is a rank in a gang, and this unit has one task; --unit selects a task of an array";
            return Err(Failure::new(USAGE, message));
        }
        let task = of(unit, self.task, is_gang);
        if self.follow {
            follow::follow(&client, &task).await?;
        } else {
            task.print(&client, self.attempt).await?;
            // A job without output and one that waits must not look alike.
            if follow::last_attempt(&client, &at, unit).await?.is_none() {
                let name = job_name(&job.queue, &job.name);
                report(&format!(
                    "unit {unit} of {name} has not started; `weir why {name}` explains a waiting job"
                ));
            }
        }
        Ok(0)
    }
}

/// Prints the output of tasks, one after the other. One that has none yet, or none any more, does not end the list.
async fn print_all(client: &Client, tasks: impl Iterator<Item = Task>) -> Result<u8, Failure> {
    let (mut missing, mut last) = (0, None);
    for task in tasks {
        match task.print(client, 0).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(failure) if [NOT_FOUND, CONFLICT].contains(&failure.code) => {
                missing += 1;
                last = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    match last {
        Some(failure) => {
            let message =
                format!("{missing} tasks have no such output, the last of them: {}", failure.message);
            Err(Failure { message, ..failure })
        }
        None => Ok(0),
    }
}

/// Prints the output of tasks while they run.
async fn follow_all(client: &Client, mut tasks: impl Iterator<Item = Task>) -> Result<u8, Failure> {
    let mut following = tokio::task::JoinSet::new();
    for task in tasks.by_ref().take(FOLLOWED_MAX) {
        let client = client.clone();
        following.spawn(async move { follow::follow(&client, &task).await });
    }
    if tasks.next().is_some() {
        report(&format!("only the first {FOLLOWED_MAX} tasks are followed; --unit N selects another"));
    }
    while let Some(followed) = following.join_next().await {
        // The reader of standard output has gone.
        if followed.map_err(anyhow::Error::from)??.is_none() {
            break;
        }
    }
    Ok(0)
}

/// The tasks of a job: unit, rank, and whether the unit is a gang.
fn tasks_of(job: &v1::Job) -> impl Iterator<Item = (u32, u32, bool)> {
    let spec = job.spec.clone().unwrap_or_default();
    let count = |group: &v1::TaskGroup| group.count.unwrap_or(1);
    // (units, tasks of each) by group.
    let groups: Vec<(u32, u32)> = if spec.gang_job {
        vec![(1, spec.groups.iter().map(count).sum())]
    } else {
        spec.groups
            .iter()
            .map(|group| if group.gang { (1, count(group)) } else { (count(group), 1) })
            .collect()
    };
    let mut first = 0;
    groups.into_iter().flat_map(move |(units, tasks)| {
        let from = first;
        first += units;
        (from..first).flat_map(move |unit| (0..tasks).map(move |task| (unit, task, tasks > 1)))
    })
}

/// The unit whose output is printed if none is named: the first that failed, or else the first. Reports which of
/// several it is.
fn default_unit(job: &v1::Job) -> u32 {
    // What was only stopped, because another unit failed or the job was cancelled, explains nothing.
    let (stopped, failed): (Vec<_>, Vec<_>) =
        job.failed_units.iter().partition(|units| units.code == "Cancelled");
    let first = |units: &[&v1::FailedUnits]| {
        units.iter().flat_map(|units| &units.ranges).map(|range| range.first).min()
    };
    let unit = first(&failed).or_else(|| first(&stopped));
    let total = job.units.map_or(0, |units| units.total);
    if total > 1 {
        let which = if unit.is_some() { ", the first that failed" } else { "" };
        report(&format!("unit {} of {total} (from 0){which}; --unit N selects another", unit.unwrap_or(0)));
    }
    unit.unwrap_or(0)
}
