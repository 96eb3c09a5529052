//! `weir logs`: prints the output of a task.

use super::output::report;
use super::{Connect, Failure, follow};
use crate::api::proto::v1;

/// Print the output of a job.
///
/// Prints standard output and standard error of one task.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir logs job/train-7\n  weir logs -f job/train-7 --unit 3\n  weir logs job/train-7 --attempt 1     the output of the first attempt"
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
    /// Attempt of the unit, from 1; 0 is the latest.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "follow")]
    attempt: u32,
}

impl Logs {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let job = super::job_list::find_job(&client, connect.job_ref(&self.job)?).await?;
        let at = v1::JobRef { id: job.id, ..v1::JobRef::default() };
        let unit = self.unit.unwrap_or_else(|| default_unit(&job));
        if self.follow {
            follow::follow(&client, at, unit, self.task).await?;
            return Ok(0);
        }
        let request = v1::LogsRequest {
            job: Some(at),
            unit,
            task: self.task,
            attempt: self.attempt,
            ..v1::LogsRequest::default()
        };
        let mut parts = client.jobs().logs(request).await?.into_inner();
        let (mut offsets, mut attempt) = ([0; 2], String::new());
        while let Some(part) = parts.message().await? {
            if follow::print_part(&part, &mut offsets, &mut attempt)?.is_none() {
                break;
            }
        }
        Ok(0)
    }
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
