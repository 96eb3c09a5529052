//! Waits for jobs to end, and reports lost pools meanwhile.

use std::time::Duration;

use super::Failure;
use super::connect::{RETRY_TIMEOUT, with_retries};
use super::job_text::contact_text;
use super::output::report;
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::backoff::Backoff;
use crate::model::text::escape;

/// Fetches a job; repeats the call while the broker is unavailable.
pub async fn current(client: &Client, at: v1::JobRef) -> Result<v1::Job, Failure> {
    let request = v1::GetJobRequest { job: Some(at), with_attempts: false };
    let call = || async { client.jobs().get_job(request.clone()).await };
    Ok(with_retries(RETRY_TIMEOUT, call).await?.into_inner().job.unwrap_or_default())
}

/// Waits until a job has ended; each time that it is looked at, `observe` is called.
pub async fn ended(
    client: &Client,
    at: &v1::JobRef,
    mut observe: impl FnMut(&v1::Job),
) -> Result<v1::Job, Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(250));
    loop {
        let job = current(client, at.clone()).await?;
        observe(&job);
        if has_ended(&job) {
            return Ok(job);
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// True if the job is in a final phase.
pub fn has_ended(job: &v1::Job) -> bool {
    matches!(job.phase(), v1::JobPhase::Succeeded | v1::JobPhase::Failed | v1::JobPhase::Cancelled)
}

/// The pools of a job that were UNREACHABLE or LOST when it was last looked at. A pool that is SUSPECT is mostly
/// back a moment later.
#[derive(Default)]
pub struct Contact(Vec<String>);

impl Contact {
    /// Reports which of the job's pools are lost or back since the last call.
    pub fn update(&mut self, job: &v1::Job) {
        let is_lost = |contact: &&v1::PoolContact| contact.connectivity() != v1::Connectivity::Suspect;
        let lost: Vec<&v1::PoolContact> = job.pools_not_ready.iter().filter(is_lost).collect();
        for contact in lost.iter().filter(|contact| !self.0.contains(&contact.pool)) {
            report(&format!("weir: job/{}: {}", escape(&job.name), contact_text(contact)));
        }
        let names: Vec<String> = lost.iter().map(|contact| contact.pool.clone()).collect();
        for pool in self.0.iter().filter(|pool| !names.contains(pool) && !has_ended(job)) {
            let (job, pool) = (escape(&job.name), escape(pool));
            report(&format!("weir: job/{job}: pool {pool} is in contact again, or no longer runs the job"));
        }
        self.0 = names;
    }
}
