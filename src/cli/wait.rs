//! `weir wait`.

use std::time::Duration;

use super::exit::{JOB_FAILED, TIMED_OUT};
use super::output::tell;
use super::{Connect, Failure, quantity, run};
use crate::api::proto::{name_of, v1};

/// Waits until jobs have ended.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir wait job/a job/b\n  weir wait --timeout 10m $(weir submit jobs.yaml)\n\nExit code 12 if a job failed, 124 if the time was up."
)]
pub struct Wait {
    /// job/NAME, any number.
    #[arg(required = true)]
    jobs: Vec<String>,
    /// Give up after this.
    #[arg(long, value_parser = quantity::duration_ms)]
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
                    tell(&format!("job/{} {}", job.name, name_of::<v1::JobPhase>(job.phase).to_lowercase()));
                }
            }
            Ok(if failed { JOB_FAILED } else { 0 })
        };
        match self.timeout {
            None => all.await,
            Some(ms) => tokio::time::timeout(Duration::from_millis(ms), all)
                .await
                .unwrap_or_else(|_| Err(Failure::new(TIMED_OUT, "the jobs have not ended in time"))),
        }
    }
}
