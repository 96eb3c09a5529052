//! `weir logs`.

use super::{Connect, Failure, run};
use crate::api::proto::v1;

/// Prints a job's output.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weir logs job/train-7\n  weir logs -f job/train-7 --unit 3")]
pub struct Logs {
    /// job/NAME.
    job: String,
    /// Go on until the task has ended.
    #[arg(long, short)]
    follow: bool,
    /// The unit: a plain task's index in the job.
    #[arg(long, default_value_t = 0)]
    unit: u32,
    /// Task of a gang.
    #[arg(long, default_value_t = 0)]
    task: u32,
    /// The unit's attempt; the latest unless named.
    #[arg(long, default_value_t = 0)]
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
