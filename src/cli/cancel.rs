//! `weir cancel`: cancels jobs.

use super::connect::{RETRY_TIMEOUT, job_name, new_token, with_retries};
use super::job_list::{JobFilter, find_job_with_retries};
use super::job_wait::has_ended;
use super::output::{print, report};
use super::{Connect, Failure};
use crate::api::proto::v1;
use crate::model::limit::JOBS_PER_SUBMIT_MAX;
use crate::model::text::escape;

/// Cancel jobs.
///
/// Running tasks get SIGTERM, and SIGKILL after the grace period of their job. Jobs that have ended are not
/// changed.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir cancel job/train-7 job/train-8\n  weir cancel -l team=vision\n  weir cancel --all --queue research       all jobs of one queue\n  weir cancel --all                        all jobs of all queues"
)]
pub struct Cancel {
    /// Jobs to cancel: job/NAME, job/QUEUE/NAME or the id.
    #[arg(required_unless_present_any = ["label", "all"], conflicts_with_all = ["label", "all"])]
    jobs: Vec<String>,
    /// All jobs with these labels, separated by commas; with --queue, those of that queue. May be repeated: jobs must
    /// have all labels.
    #[arg(long, short, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// All jobs; with --queue, those of that queue.
    #[arg(long)]
    all: bool,
}

impl Cancel {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let mut jobs = Vec::new();
        if self.jobs.is_empty() {
            jobs = JobFilter::of(&connect.queue, &self.label)?.list(&client, false, None).await?.0;
            if jobs.is_empty() {
                report("no such job waits or runs");
                connect.warn_if_read_only().await;
            }
        }
        for text in &self.jobs {
            jobs.push(find_job_with_retries(&client, connect.job_ref(text)?).await?);
        }
        // By number: another job may have the name by now.
        let (ended, live): (Vec<_>, Vec<_>) = jobs.into_iter().partition(has_ended);
        for job in &ended {
            report(&format!("{} had ended before", job_name(&job.queue, &job.name)));
        }
        for batch in live.chunks(JOBS_PER_SUBMIT_MAX) {
            let reference = |job: &v1::Job| v1::JobRef { id: job.id, ..v1::JobRef::default() };
            let request =
                v1::CancelRequest { token: new_token(), jobs: batch.iter().map(reference).collect() };
            with_retries(RETRY_TIMEOUT, || async { client.jobs().cancel(request.clone()).await }).await?;
            let lines = batch.iter().map(|job| {
                let name = job_name(&job.queue, &job.name);
                match job.pools_not_ready.first() {
                    None => format!("{name} cancelled\n"),
                    // What runs there can not be stopped now, so the job has not ended.
                    Some(pool) => {
                        format!("{name} will be cancelled once pool {} answers\n", escape(&pool.pool))
                    }
                }
            });
            print(&lines.collect::<String>())?;
        }
        Ok(0)
    }
}
