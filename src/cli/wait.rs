//! `weir wait`: waits for jobs to end.

use std::time::Duration;

use super::exit::{JOB_FAILED, SIMULATED, TIMED_OUT};
use super::job_text::localized_state_text;
use super::job_wait::{self, Contact};
use super::output::report;
use super::run::ran_nothing;
use super::{Connect, Failure, quantity};
use crate::api::proto::v1;
use crate::model::text::escape;

/// Wait for jobs to end.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir wait job/a job/b\n  weir wait --timeout 10m $(weir submit jobs.yaml)\n\nExit codes: 0 if all jobs succeeded, 12 if one failed or was cancelled, 13 if one succeeded only in a\nsimulated pool without `simulate` in its spec, 124 if the timeout expired."
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
            // By id from here on: once a job has ended, another may take its name.
            let mut jobs = Vec::new();
            for text in &self.jobs {
                let job = job_wait::current(&client, connect.job_ref(text)?).await?;
                jobs.push(v1::JobRef { id: job.id, ..v1::JobRef::default() });
            }
            let (mut failed, mut simulated) = (false, false);
            for at in &jobs {
                let mut contact = Contact::default();
                let job = job_wait::ended(&client, at, |job| contact.update(job)).await?;
                let succeeded = job.phase() == v1::JobPhase::Succeeded;
                failed |= !succeeded;
                simulated |= ran_nothing(&job);
                if !succeeded || job.simulated {
                    report(&format!("job/{} {}", escape(&job.name), localized_state_text(&job)));
                }
            }
            Ok(match (failed, simulated) {
                (true, _) => JOB_FAILED,
                (false, true) => SIMULATED,
                (false, false) => 0,
            })
        };
        match self.timeout {
            None => all.await,
            Some(ms) => tokio::time::timeout(Duration::from_millis(ms), all)
                .await
                .unwrap_or_else(|_| Err(Failure::new(TIMED_OUT, "timeout: not all jobs have ended"))),
        }
    }
}
