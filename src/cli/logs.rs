//! `weir logs`: prints the output of a task.

use super::{Connect, Failure, run};
use crate::api::proto::v1;

/// Print the output of a job.
///
/// Prints standard output and standard error of one task, by default the first.
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
    /// Unit number, from 0: the index of an independent task in the job, or of a gang.
    #[arg(long, value_name = "N", default_value_t = 0)]
    unit: u32,
    /// Rank of a task in its gang, from 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    task: u32,
    /// Attempt of the unit, from 1; 0 is the latest. Ignored with --follow.
    #[arg(long, value_name = "N", default_value_t = 0)]
    attempt: u32,
}

impl Logs {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let job = super::get::find_job(&client, connect.job_ref(&self.job)?).await?;
        let at = v1::JobRef { id: job.id, ..v1::JobRef::default() };
        if self.follow {
            run::follow(&client, at, self.unit, self.task).await?;
            return Ok(0);
        }
        let request = v1::LogsRequest {
            job: Some(at),
            unit: self.unit,
            task: self.task,
            attempt: self.attempt,
            ..v1::LogsRequest::default()
        };
        let mut parts = client.jobs().logs(request).await?.into_inner();
        let (mut offsets, mut attempt) = ([0; 2], String::new());
        while let Some(part) = parts.message().await? {
            run::print_part(&part, &mut offsets, &mut attempt)?;
        }
        Ok(0)
    }
}
