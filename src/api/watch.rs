//! Watches of jobs: a list, then what changes.

use std::collections::BTreeSet;

use tonic::Status;

use super::job::{Jobs, REOPEN_WAIT};
use super::outlet::{Outlet, Room};
use super::page::one_message;
use super::proto::v1;
use super::{convert, error};
use crate::broker::{Answer, JobFilter, Query};
use crate::model::change::Change;
use crate::model::id::{JobId, Revision};
use crate::model::limit::{CHUNK_BYTES_MAX, PAGE_MAX};
use crate::runtime::broker::Handle;
use crate::runtime::watch::Missed;
use crate::state::view::JobView;

impl Jobs {
    /// Sends what has changed since `from`, and then what changes, until the watcher is gone.
    pub(super) async fn watch(
        &self,
        only: Option<JobId>,
        from: Revision,
        sender: Outlet<v1::WatchJobsResponse>,
    ) {
        let mut seen = match first_seen(&self.broker, from).await {
            Ok(seen) => seen,
            Err(status) => return sender.fail(status).await,
        };
        loop {
            let watchers = self.broker.watchers();
            let mut news = watchers.subscribe();
            let through = *news.borrow_and_update();
            let missed = if seen == Revision(0) { Missed::Unknown } else { watchers.since(seen) };
            let sent = match missed {
                Missed::Unknown => self.send_list(only, &sender).await,
                Missed::Changes(changes) if through > seen => {
                    self.send_changes(only, changes, seen, through, &sender).await
                }
                Missed::Changes(_) => Ok(through.max(seen)),
            };
            match sent {
                Ok(revision) => seen = revision,
                Err(status) => return sender.fail(status).await,
            }
            tokio::select! {
                changed = news.changed() => if changed.is_err() {
                    // The broker has reopened its journal: there are new watchers to ask.
                    tokio::time::sleep(REOPEN_WAIT).await;
                },
                () = sender.closed() => return,
            }
        }
    }

    /// Sends all live jobs, or the one that is watched.
    async fn send_list(
        &self,
        only: Option<JobId>,
        sender: &Outlet<v1::WatchJobsResponse>,
    ) -> Result<Revision, Status> {
        let (mut before, mut first) = (JobId(u64::MAX), None);
        loop {
            let room = sender.room().await?;
            let (revision, jobs, next) = match only {
                Some(id) => {
                    let (revision, _) = self.broker.query(Query::Status).await.map_err(error::call)?;
                    let job = self.find_id(id).await?;
                    (revision, vec![job], None)
                }
                None => {
                    let query = Query::Jobs { filter: JobFilter::default(), before, limit: PAGE_MAX };
                    let (revision, answer) = self.broker.query(query).await.map_err(error::call)?;
                    let Answer::Jobs { jobs, next } = answer else { return Err(Status::internal("no list")) };
                    (revision, jobs, next)
                }
            };
            // Pages rest on later and later revisions: what changed since the first comes again.
            let revision = *first.get_or_insert(revision);
            send_jobs(&jobs, next.is_none().then_some(revision), Revision(0), true, room, sender).await?;
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
        seen: Revision,
        through: Revision,
        sender: &Outlet<v1::WatchJobsResponse>,
    ) -> Result<Revision, Status> {
        let changed = changes.into_iter().filter_map(|change| match change {
            Change::Job(id) if only.is_none_or(|only| only == id) => Some(id),
            _ => None,
        });
        let changed: Vec<JobId> = changed.collect();
        for (index, ids) in changed.chunks(PAGE_MAX).enumerate() {
            let room = sender.room().await?;
            let jobs = self.find_all(ids).await?;
            let last = (index + 1) * PAGE_MAX >= changed.len();
            send_jobs(&jobs, last.then_some(through), seen, false, room, sender).await?;
        }
        Ok(through)
    }
}

/// Sends jobs in messages of bounded size. The last one says what is complete with it, if `through`
/// is known; those before say how far it was before them.
async fn send_jobs(
    jobs: &[JobView],
    through: Option<Revision>,
    before: Revision,
    relisted: bool,
    mut room: Room,
    sender: &Outlet<v1::WatchJobsResponse>,
) -> Result<(), Status> {
    let mut rest = jobs;
    loop {
        let messages = one_message(rest.iter().map(convert::job_message), CHUNK_BYTES_MAX);
        rest = &rest[messages.len()..];
        let revision = through.filter(|_| rest.is_empty()).unwrap_or(before);
        let message = v1::WatchJobsResponse { jobs: messages, revision: revision.0, relisted };
        sender.send(room, message).await?;
        if rest.is_empty() {
            return Ok(());
        }
        room = sender.room().await?;
    }
}

/// The revision that a watcher is taken to have seen; 0 if it must be told everything.
pub(super) async fn first_seen(broker: &Handle, from: Revision) -> Result<Revision, Status> {
    let (revision, _) = broker.query(Query::Status).await.map_err(error::call)?;
    // A revision that is still to come is of another journal: what came since is unknown.
    Ok(if from > revision { Revision(0) } else { from })
}
