//! Watches of jobs.

use std::collections::BTreeSet;

use tonic::Status;

use super::Watched;
use crate::api::convert;
use crate::api::job::Jobs;
use crate::api::page::fill_message;
use crate::api::proto::v1;
use crate::api::response_stream::{MessagePermit, ResponseSender};
use crate::broker::query::{GetStatus, JobFilter, JobPage, ListJobs};
use crate::model::change::Change;
use crate::model::id::{JobId, Revision};
use crate::model::limit::{CHUNK_BYTES_MAX, PAGE_MAX};
use crate::runtime::handle::{Archive, EndPlace};
use crate::state::view::JobView;

/// Watches all live jobs, or one job.
pub(in crate::api) struct JobWatch {
    pub(in crate::api) jobs: Jobs,
    pub(in crate::api) only: Option<JobId>,
}

impl Watched for JobWatch {
    type Message = v1::WatchJobsResponse;

    async fn list(&self, seen: Revision, sender: &ResponseSender<Self::Message>) -> Result<Revision, Status> {
        let permit = sender.reserve().await?;
        // Each page is read at a later revision. Changes since the first page are sent again.
        let (first, _) = self.jobs.broker.query(GetStatus).await?;
        if let Some(id) = self.only {
            let job = self.jobs.find_id(id).await?;
            send_jobs(&[job], Some(first), Revision(0), true, permit, sender).await?;
            return Ok(first);
        }
        if seen > Revision(0) {
            self.list_ended(seen, sender).await?;
        }
        let (mut before, mut permit) = (JobId(u64::MAX), permit);
        loop {
            let list = ListJobs { filter: JobFilter::default(), before, limit: PAGE_MAX };
            let (_, JobPage { jobs, next }) = self.jobs.broker.query(list).await?;
            send_jobs(&jobs, next.is_none().then_some(first), Revision(0), true, permit, sender).await?;
            let Some(next) = next else { return Ok(first) };
            (before, permit) = (next, sender.reserve().await?);
        }
    }

    async fn changed(
        &self,
        changes: BTreeSet<Change>,
        reached: Revision,
        through: Revision,
        sender: &ResponseSender<Self::Message>,
    ) -> Result<Revision, Status> {
        let changed = changes.into_iter().filter_map(|change| match change {
            Change::Job(id) if self.only.is_none_or(|only| only == id) => Some(id),
            _ => None,
        });
        let changed: Vec<JobId> = changed.collect();
        for (index, ids) in changed.chunks(PAGE_MAX).enumerate() {
            let permit = sender.reserve().await?;
            let jobs = self.jobs.find_all(ids).await?;
            let last = (index + 1) * PAGE_MAX >= changed.len();
            send_jobs(&jobs, last.then_some(through), reached, false, permit, sender).await?;
        }
        Ok(through)
    }
}

impl JobWatch {
    /// Sends the jobs that have ended since a revision, the last to end first: they are in no list of live jobs.
    async fn list_ended(
        &self,
        seen: Revision,
        sender: &ResponseSender<v1::WatchJobsResponse>,
    ) -> Result<(), Status> {
        let mut place = None::<EndPlace>;
        loop {
            let permit = sender.reserve().await?;
            let read = move |archive: &mut dyn Archive| archive.last_ended(place, PAGE_MAX);
            let jobs = self.jobs.broker.archive_page(read).await?;
            let new: Vec<JobView> =
                jobs.iter().filter(|job| job.revision > seen).map(|job| job.view()).collect();
            if !new.is_empty() {
                send_jobs(&new, None, Revision(0), true, permit, sender).await?;
            }
            // Jobs of one instant are in the order of their ids, not of their ends. If a page of several instants has no new
            // job, all that follow ended before.
            let (first, last) = (jobs.first(), jobs.last());
            let is_older = new.is_empty() && first.map(|job| job.ended_at) != last.map(|job| job.ended_at);
            place = match last {
                Some(last) if jobs.len() == PAGE_MAX && !is_older => Some((last.ended_at, last.job.id)),
                _ => return Ok(()),
            };
        }
    }
}

/// Sends jobs in messages of bounded size, under `permit` and further ones. The last message carries
/// `through`, if it completes that revision; the messages before it carry `before`.
async fn send_jobs(
    jobs: &[JobView],
    through: Option<Revision>,
    before: Revision,
    relisted: bool,
    mut permit: MessagePermit,
    sender: &ResponseSender<v1::WatchJobsResponse>,
) -> Result<(), Status> {
    let mut rest = jobs;
    loop {
        let messages = fill_message(rest.iter().map(convert::job_message), CHUNK_BYTES_MAX);
        rest = &rest[messages.len()..];
        let revision = through.filter(|_| rest.is_empty()).unwrap_or(before);
        let message = v1::WatchJobsResponse { jobs: messages, revision: revision.0, relisted };
        sender.send(permit, message).await?;
        if rest.is_empty() {
            return Ok(());
        }
        permit = sender.reserve().await?;
    }
}
