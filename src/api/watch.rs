//! Watches of jobs: a list, then the changes.

use std::collections::BTreeSet;

use tonic::Status;

use super::job::{Jobs, REOPEN_WAIT};
use super::page::fill_message;
use super::proto::v1;
use super::response_stream::{MessagePermit, ResponseSender};
use super::{convert, error};
use crate::broker::{Answer, JobFilter, Query};
use crate::model::change::Change;
use crate::model::id::{JobId, Revision};
use crate::model::limit::{CHUNK_BYTES_MAX, PAGE_MAX};
use crate::runtime::handle::Handle;
use crate::runtime::watch::Missed;
use crate::state::view::JobView;

impl Jobs {
    /// Sends the changes since `from`, then further changes until the client closes the stream. Starts with a
    /// list of all live jobs if `from` is 0 or too old.
    pub(super) async fn watch(
        &self,
        only: Option<JobId>,
        from: Revision,
        sender: ResponseSender<v1::WatchJobsResponse>,
    ) {
        let mut reached = match resume_revision(&self.broker, from).await {
            Ok(reached) => reached,
            Err(status) => return sender.fail(status).await,
        };
        loop {
            let watchers = self.broker.watchers();
            let mut updates = watchers.subscribe();
            let through = *updates.borrow_and_update();
            let missed = if reached == Revision(0) { Missed::Unknown } else { watchers.since(reached) };
            let sent = match missed {
                Missed::Unknown => self.send_list(only, &sender).await,
                Missed::Changes(changes) if through > reached => {
                    self.send_changes(only, changes, reached, through, &sender).await
                }
                Missed::Changes(_) => Ok(through.max(reached)),
            };
            match sent {
                Ok(revision) => reached = revision,
                Err(status) => return sender.fail(status).await,
            }
            tokio::select! {
                changed = updates.changed() => if changed.is_err() {
                    // The broker is reopening its journal, after which it has new watchers.
                    tokio::time::sleep(REOPEN_WAIT).await;
                },
                () = sender.closed() => return,
            }
        }
    }

    /// Sends all live jobs, or only the watched one. Returns the revision at which the list is complete.
    async fn send_list(
        &self,
        only: Option<JobId>,
        sender: &ResponseSender<v1::WatchJobsResponse>,
    ) -> Result<Revision, Status> {
        let (mut before, mut first) = (JobId(u64::MAX), None);
        loop {
            let permit = sender.reserve().await?;
            let (revision, jobs, next) = match only {
                Some(id) => {
                    let (revision, _) = self.broker.query(Query::Status).await.map_err(error::call)?;
                    let job = self.find_id(id).await?;
                    (revision, vec![job], None)
                }
                None => {
                    let query = Query::Jobs { filter: JobFilter::default(), before, limit: PAGE_MAX };
                    let (revision, answer) = self.broker.query(query).await.map_err(error::call)?;
                    let Answer::Jobs { jobs, next } = answer else {
                        return Err(Status::internal("unexpected answer to a query of jobs"));
                    };
                    (revision, jobs, next)
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

    async fn send_changes(
        &self,
        only: Option<JobId>,
        changes: BTreeSet<Change>,
        reached: Revision,
        through: Revision,
        sender: &ResponseSender<v1::WatchJobsResponse>,
    ) -> Result<Revision, Status> {
        let changed = changes.into_iter().filter_map(|change| match change {
            Change::Job(id) if only.is_none_or(|only| only == id) => Some(id),
            _ => None,
        });
        let changed: Vec<JobId> = changed.collect();
        for (index, ids) in changed.chunks(PAGE_MAX).enumerate() {
            let permit = sender.reserve().await?;
            let jobs = self.find_all(ids).await?;
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

/// The revision from which a watch resumes; 0 if it must start with a list.
pub(super) async fn resume_revision(broker: &Handle, from: Revision) -> Result<Revision, Status> {
    let (revision, _) = broker.query(Query::Status).await.map_err(error::call)?;
    // A revision in the future is of another journal: the changes since it are unknown.
    Ok(if from > revision { Revision(0) } else { from })
}
