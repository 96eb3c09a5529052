//! `weir wait`: waits for jobs to end.

use std::time::Duration;

use super::exit::{JOB_FAILED, TIMED_OUT};
use super::output::report;
use super::{Connect, Failure, quantity, run};
use crate::api::proto::{name_of, v1};

/// Wait for jobs to end.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir wait job/a job/b\n  weir wait --timeout 10m $(weir submit jobs.yaml)\n\nExit codes: 0 if all jobs succeeded, 12 if one failed or was cancelled, 124 if the timeout expired."
)]
pub struct Wait {
    /// Jobs to wait for: job/NAME, job/QUEUE/NAME or the id.
    #[arg(required = true)]
    jobs: Vec<String>,
    /// Maximum time to wait: 90s, 5m, 1h30m. Default: no limit.
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration_ms)]
    timeout: Option<u64>,
}

impl Wait {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let all = async {
            let mut failed = false;
            for text in &self.jobs {
                let job = run::ended(&client, &connect.job_ref(text)?).await?;
                let succeeded = job.phase() == v1::JobPhase::Succeeded;
                failed |= !succeeded;
                if !succeeded {
                    report(&format!(
                        "job/{} {}",
                        job.name,
                        name_of::<v1::JobPhase>(job.phase).to_lowercase()
                    ));
                }
            }
            Ok(if failed { JOB_FAILED } else { 0 })
        };
        match self.timeout {
            None => all.await,
            Some(ms) => tokio::time::timeout(Duration::from_millis(ms), all)
                .await
                .unwrap_or_else(|_| Err(Failure::new(TIMED_OUT, "timeout: not all jobs have ended"))),
        }
    }
}
