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
use crate::state::view::JobView;

/// Watches all live jobs, or one job.
pub(in crate::api) struct JobWatch {
    pub(in crate::api) jobs: Jobs,
    pub(in crate::api) only: Option<JobId>,
}

impl Watched for JobWatch {
    type Message = v1::WatchJobsResponse;

    async fn list(&self, sender: &ResponseSender<Self::Message>) -> Result<Revision, Status> {
        let (mut before, mut first) = (JobId(u64::MAX), None);
        loop {
            let permit = sender.reserve().await?;
            let (revision, JobPage { jobs, next }) = match self.only {
                Some(id) => {
                    let (revision, _) = self.jobs.broker.query(GetStatus).await?;
                    (revision, JobPage { jobs: vec![self.jobs.find_id(id).await?], next: None })
                }
                None => {
                    let list = ListJobs { filter: JobFilter::default(), before, limit: PAGE_MAX };
                    self.jobs.broker.query(list).await?
                }
            };
            // Each page is read at a later revision. Changes since the first page are sent again.
            let revision = *first.get_or_insert(revision);
            send_jobs(&jobs, next.is_none().then_some(revision), Revision(0), true, permit, sender).await?;
            match next {
                Some(next) => before = next,
                None => return Ok(revision),
            }
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
