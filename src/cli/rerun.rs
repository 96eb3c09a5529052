//! `weir rerun`: runs the failed tasks of an ended job once more.

use super::connect::{RETRY_TIMEOUT, job_name, new_token, with_retries};
use super::job_text::dependency_name;
use super::output::{print, report};
use super::{Connect, Failure};
use crate::api::proto::v1;

/// Run the tasks of an ended job that did not succeed once more, as a new job.
///
/// These are the tasks that failed, were stopped or never started. Each gets the WEIR_TASK_INDEX that it had, and
/// WEIR_TASK_COUNT of the first job. Gangs run whole. Jobs that the ended job depended on and that still run are waited
/// for; a dependency that can't be met any more is reported and left out.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir rerun job/sweep-7\n  weir rerun job/sweep-7 --name sweep-7-again\n\nTo run chosen tasks of a job, select them in the job file:\n  groups:\n  - indices: 0,3,7-9\n    index_count: 1000"
)]
pub struct Rerun {
    /// Ended job: job/NAME, job/QUEUE/NAME or the id.
    job: String,
    /// Name of the new job. Default: the name of the ended job, `-rerun` and a number.
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Accept the job even if no pool can run it now, and wait for one that can.
    #[arg(long)]
    allow_pending: bool,
}

impl Rerun {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let job = connect.job_ref(&self.job)?;
        let (token, allow_pending) = (new_token(), self.allow_pending);
        let request = v1::RerunRequest { token, job: Some(job), name: self.name, allow_pending };
        let call = || async { client.jobs().rerun(request.clone()).await };
        let reply = with_retries(RETRY_TIMEOUT, call).await?.into_inner();
        let units = if reply.units == 1 { "1 unit".to_owned() } else { format!("{} units", reply.units) };
        report(&format!("{units} of {} run again", self.job));
        for edge in &reply.without {
            report(&format!(
                "without its dependency on {}, which can't be met any more",
                dependency_name(edge)
            ));
        }
        let found = v1::GetJobRequest {
            job: Some(v1::JobRef { id: reply.id, ..v1::JobRef::default() }),
            with_attempts: false,
        };
        let call = || async { client.jobs().get_job(found.clone()).await };
        let queue = with_retries(RETRY_TIMEOUT, call).await?.into_inner().job.unwrap_or_default().queue;
        print(&format!("{}\n", job_name(&queue, &reply.name)))?;
        Ok(0)
    }
}
