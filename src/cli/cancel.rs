//! `weir cancel`: cancels jobs.

use super::connect::{RETRY_TIMEOUT, job_name, new_token, with_retries};
use super::exit::USAGE;
use super::job_list::{Selection, find_job_with_retries};
use super::job_wait::has_ended;
use super::output::{announce, report};
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
    jobs: Vec<String>,
    /// All jobs; with --queue, those of that queue.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    selection: Selection,
}

impl Cancel {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let mut jobs = Vec::new();
        let selected_by = self.selection.first_set().or(self.all.then_some("--all"));
        match selected_by {
            Some(flag) if !self.jobs.is_empty() => {
                return Err(Failure::new(USAGE, format!("{flag} selects jobs: name none beside it")));
            }
            None if self.jobs.is_empty() => {
                let message =
                    "name jobs, or select them with --label, --state or another such flag, or --all";
                return Err(Failure::new(USAGE, message));
            }
            _ => {}
        }
        if self.jobs.is_empty() {
            let filter = self.selection.filter(&connect.queue, &[], false)?;
            jobs = filter.list(&client, v1::JobView::Basic, None).await?.0;
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
            for job in batch {
                let name = job_name(&job.queue, &job.name);
                announce(&match job.pools_not_ready.first() {
                    None => format!("{name} cancelled"),
                    // What runs there can not be stopped now, so the job has not ended.
                    Some(pool) => {
                        format!("{name} will be cancelled once pool {} answers", escape(&pool.pool))
                    }
                })?;
            }
        }
        Ok(0)
    }
}
