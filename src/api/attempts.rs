//! Pages of a job's attempts, live and ended.

use tonic::Status;

use super::job::Jobs;
use super::page::Place;
use crate::broker::query::{GetStatus, ListAttempts, ListFailedUnits};
use crate::model::id::{JobId, JournalId};
use crate::state::view::{AttemptView, JobView, failed_units_from};

/// A page of attempts; where the next one begins, if there is one.
type Page = (Vec<AttemptView>, Option<Place>);

/// Attempts of one unit that are read at once: few units have more.
const ATTEMPTS_READ: usize = 8;

impl Jobs {
    /// A job's live and ended attempts after a place, by unit and number.
    pub(super) async fn attempts(&self, job: &JobView, after: Place, limit: usize) -> Result<Page, Status> {
        let id = job.id;
        // One more than asked for shows whether another page follows.
        let query = ListAttempts { job: id, after: after.0.checked_sub(1), limit: limit + 2 };
        let (_, live) = self.broker.query(query).await?;
        let journal = self.journal().await?;
        let ended = self.broker.archive_page(move |archive| archive.attempts(id, after, limit + 1));
        let ended = ended.await?;
        let mut all: Vec<AttemptView> = ended.iter().map(|attempt| attempt.view(journal)).collect();
        let place = |attempt: &AttemptView| (attempt.id.unit, attempt.id.number);
        // One that ended between the two reads is in both.
        let fresh = live
            .into_iter()
            .filter(|live| place(live) > after && !all.iter().any(|other| other.id == live.id));
        let fresh: Vec<AttemptView> = fresh.collect();
        all.extend(fresh);
        all.sort_by_key(place);
        let more = all.len() > limit;
        all.truncate(limit);
        let next = all.last().map(place).filter(|_| more);
        Ok((all, next))
    }

    /// The attempts of a job's failed units from a unit on, all of a unit on one page. A page ends after the
    /// unit with which it reaches the limit.
    pub(super) async fn failed_attempts(
        &self,
        job: &JobView,
        from: u32,
        limit: usize,
    ) -> Result<Page, Status> {
        let id = job.id;
        let units = self.failed_units(job, from, limit + 1).await?;
        let journal = self.journal().await?;
        let read = self.broker.archive_page(move |archive| {
            let (mut attempts, mut next) = (Vec::new(), None);
            for unit in units {
                if attempts.len() >= limit {
                    next = Some((unit, 0));
                    break;
                }
                let mut after = (unit, 0);
                loop {
                    let read = archive.attempts(id, after, ATTEMPTS_READ)?;
                    let full = read.len() == ATTEMPTS_READ;
                    let before = attempts.len();
                    attempts.extend(read.into_iter().take_while(|attempt| attempt.attempt.unit.unit == unit));
                    if !full || attempts.len() - before < ATTEMPTS_READ {
                        break;
                    }
                    after.1 = attempts.last().map_or(0, |last| last.attempt.number);
                }
            }
            Ok((attempts, next))
        });
        let (attempts, next) = read.await?;
        Ok((attempts.iter().map(|attempt| attempt.view(journal)).collect(), next))
    }

    async fn failed_units(&self, job: &JobView, from: u32, limit: usize) -> Result<Vec<u32>, Status> {
        let id: JobId = job.id;
        if let (_, Some(units)) = self.broker.query(ListFailedUnits { job: id, from, limit }).await? {
            return Ok(units);
        }
        let ended = self.broker.archive(move |archive| archive.job(id)).await?;
        Ok(ended.map_or_else(Vec::new, |ended| failed_units_from(&ended.job.groups, from, limit)))
    }

    /// The id of the broker's journal, with which the ids of attempts begin.
    pub(super) async fn journal(&self) -> Result<JournalId, Status> {
        let (_, status) = self.broker.query(GetStatus).await?;
        Ok(status.journal)
    }
}
