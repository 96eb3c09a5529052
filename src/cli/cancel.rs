//! `weir cancel`: cancels jobs, or units of a job.

use super::connect::{RETRY_TIMEOUT, job_name, new_token, with_retries};
use super::exit::USAGE;
use super::job_list::Targets;
use super::job_wait::has_ended;
use super::output::{announce, report};
use super::{Connect, Failure};
use crate::api::proto::v1;
use crate::model::interval::IntervalSet;
use crate::model::limit::JOBS_PER_SUBMIT_MAX;
use crate::model::text::escape;

/// Cancel jobs, or units of a job.
///
/// Running tasks get SIGTERM, and SIGKILL after the grace period of their job. Jobs that have ended are not
/// changed.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir cancel job/train-7 job/train-8 --reason 'wrong data'\n  weir cancel -l team=vision --dry-run\n  weir cancel --all --queue research       all jobs of one queue\n  weir cancel --all                        all jobs of all queues\n  weir cancel job/sweep --unit 3,17-20     only these tasks of an array"
)]
pub struct Cancel {
    #[command(flatten)]
    targets: Targets,
    /// Only these units of one job: 3 or 0,3,7-9. The job goes on with the others, and does not succeed.
    #[arg(long, value_name = "UNITS", value_parser = IntervalSet::parse)]
    unit: Option<IntervalSet>,
    /// Why, for those who look at the job.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Names of jobs that do not exist are no error.
    #[arg(long)]
    ignore_missing: bool,
    /// Print what would be cancelled, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Cancel {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        if self.unit.is_some() && (self.targets.jobs.len() != 1 || !self.reason.is_empty()) {
            return Err(Failure::new(USAGE, "--unit is of one job: name one, without --reason"));
        }
        let client = connect.client()?;
        let (jobs, missing) = self.targets.find(&client, connect).await?;
        // By number: another job may have the name by now.
        let (ended, live): (Vec<_>, Vec<_>) = jobs.into_iter().partition(has_ended);
        for job in &ended {
            report(&format!("{} had ended before", job_name(&job.queue, &job.name)));
        }
        let range = |[first, end]: &[u32; 2]| v1::UnitRange { first: *first, last: end - 1 };
        let units = self.unit.iter().flat_map(|units| units.intervals()).map(range).collect::<Vec<_>>();
        for batch in live.chunks(JOBS_PER_SUBMIT_MAX) {
            let reference = |job: &v1::Job| v1::JobRef { id: job.id, ..v1::JobRef::default() };
            let request = v1::CancelRequest {
                token: new_token(),
                jobs: batch.iter().map(reference).collect(),
                units: units.clone(),
                reason: self.reason.clone(),
                dry_run: self.dry_run,
                ..v1::CancelRequest::default()
            };
            with_retries(RETRY_TIMEOUT, || async { client.jobs().cancel(request.clone()).await }).await?;
            batch.iter().try_for_each(|job| announce(&self.done(job)))?;
        }
        match missing {
            Some(missing) if !self.ignore_missing => Err(missing),
            Some(missing) => {
                report(&missing.message);
                Ok(0)
            }
            None => Ok(0),
        }
    }

    /// What was done to a job, or would be.
    fn done(&self, job: &v1::Job) -> String {
        let name = job_name(&job.queue, &job.name);
        let what = match &self.unit {
            None => name,
            Some(units) => format!("units {units} of {name}"),
        };
        match job.pools_not_ready.first() {
            _ if self.dry_run => format!("{what} would be cancelled"),
            None if self.unit.is_none() && job.units.is_some_and(|units| units.live > 0) => {
                format!("{what} cancelling: its tasks are being stopped")
            }
            None => format!("{what} cancelled"),
            // What runs there can not be stopped now, so the job has not ended.
            Some(pool) => format!("{what} will be cancelled once pool {} answers", escape(&pool.pool)),
        }
    }
}
