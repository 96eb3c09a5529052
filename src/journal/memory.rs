//! The reference implementation, for tests: a journal in memory, as simple as possible.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Archive, Batch, Chunk, EndPlace, Error, EventPage, FinishedJobs, Journal, Loaded, RetainedEvents,
};
use crate::model::id::{JobId, Revision, Term};
use crate::model::time::Timestamp;
use crate::state::apply::{ArchiveRow, FinishedAttempt, FinishedJob};
use crate::state::job_filter::JobFilter;
use crate::state::record;

/// The contents, shared by all handles.
#[derive(Default)]
struct Store {
    term: Term,
    /// The end of the journal.
    revision: Revision,
    batches: Vec<StoredBatch>,
    /// The newest complete snapshot: its revision and chunks.
    snapshot: Option<(Revision, Vec<Vec<u8>>)>,
    /// The snapshot that is being written.
    partial: (Revision, Vec<Vec<u8>>),
    jobs: BTreeMap<JobId, FinishedJob>,
    attempts: BTreeMap<(JobId, u32, u32), FinishedAttempt>,
}

struct StoredBatch {
    /// The revision and the time of its last event.
    last: Revision,
    at: Timestamp,
    bytes: Vec<u8>,
}

/// A handle to a journal in memory. Clones share the contents, as processes share a disk.
#[derive(Clone, Default)]
pub struct MemoryJournal {
    store: Arc<Mutex<Store>>,
}

impl MemoryJournal {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for MemoryJournal {
    fn begin_term(&mut self) -> Result<Term, Error> {
        let mut store = self.store();
        store.term = Term(store.term.0 + 1);
        Ok(store.term)
    }

    fn load(&mut self, visit: &mut dyn FnMut(Loaded)) -> Result<(), Error> {
        let store = self.store();
        let mut from = Revision(0);
        if let Some((revision, chunks)) = &store.snapshot {
            from = *revision;
            chunks.iter().for_each(|bytes| visit(Loaded::Chunk(bytes.clone())));
        }
        for batch in store.batches.iter().filter(|batch| batch.last > from) {
            visit(Loaded::Events(batch.bytes.clone()));
        }
        Ok(())
    }

    fn append(&mut self, batch: &Batch) -> Result<(), Error> {
        let mut store = self.store();
        if batch.term < store.term {
            return Err(Error::Deposed { term: batch.term, current: store.term });
        }
        if batch.after != store.revision {
            return Err(Error::Misplaced { after: batch.after, current: store.revision });
        }
        if let Some(last) = batch.events.last() {
            store.revision = last.revision;
            let bytes = record::encode_events(&batch.events);
            store.batches.push(StoredBatch { last: last.revision, at: last.at, bytes });
        }
        for row in &batch.archive {
            match row {
                ArchiveRow::Job(job) => {
                    store.jobs.insert(job.job.id, job.clone());
                }
                ArchiveRow::Attempt(attempt) => {
                    let unit = attempt.attempt.unit;
                    store.attempts.insert((unit.job, unit.unit, attempt.attempt.number), attempt.clone());
                }
            }
        }
        Ok(())
    }

    fn write_chunk(&mut self, term: Term, chunk: &Chunk) -> Result<(), Error> {
        let mut store = self.store();
        if term < store.term {
            return Err(Error::Deposed { term, current: store.term });
        }
        if chunk.index == 0 {
            store.partial = (chunk.revision, Vec::new());
        }
        store.partial.1.push(chunk.bytes.clone());
        if chunk.last {
            store.snapshot = Some(std::mem::take(&mut store.partial));
        }
        Ok(())
    }

    fn prune(&mut self, retained: RetainedEvents) -> Result<bool, Error> {
        let mut store = self.store();
        let end = store.revision;
        if let Some(covered) = store.snapshot.as_ref().map(|(revision, _)| *revision) {
            store.batches.retain(|batch| batch.last > covered || retained.has(batch.last, batch.at, end));
        }
        Ok(false)
    }

    fn prune_archive(&mut self, before: Timestamp) -> Result<bool, Error> {
        let mut guard = self.store();
        let store = &mut *guard;
        store.jobs.retain(|_, job| job.ended_at >= before);
        store.attempts.retain(|(job, ..), _| store.jobs.contains_key(job));
        Ok(false)
    }

    fn archive(&self) -> Result<Box<dyn Archive>, Error> {
        Ok(Box::new(self.clone()))
    }
}

impl Archive for MemoryJournal {
    fn job(&mut self, id: JobId) -> Result<Option<FinishedJob>, Error> {
        Ok(self.store().jobs.get(&id).cloned())
    }

    fn job_named(&mut self, queue: &str, name: &str) -> Result<Option<FinishedJob>, Error> {
        let store = self.store();
        let mut jobs = store.jobs.values().rev();
        Ok(jobs.find(|job| job.queue == queue && *job.job.name == *name).cloned())
    }

    fn jobs(&mut self, filter: &JobFilter, before: JobId, limit: usize) -> Result<FinishedJobs, Error> {
        let store = self.store();
        let was_there = |job: &FinishedJob| {
            let all = (job.job.id, 0, 0)..=(job.job.id, u32::MAX, u32::MAX);
            let any = |is_there: &dyn Fn(&FinishedAttempt) -> bool| {
                store.attempts.range(all.clone()).any(|(_, attempt)| is_there(attempt))
            };
            (filter.pools.is_empty() || any(&|attempt| filter.pools.contains(&attempt.pool)))
                && (filter.regions.is_empty() || any(&|attempt| filter.regions.contains(&attempt.region)))
        };
        let jobs = store.jobs.range(..before).rev().map(|(_, job)| job);
        let mut jobs = jobs.filter(|job| filter.matches_anywhere(&job.view()) && was_there(job));
        let page: Vec<FinishedJob> = jobs.by_ref().take(limit).cloned().collect();
        let next = page.last().map(|job| job.job.id).filter(|_| jobs.next().is_some());
        Ok(FinishedJobs { jobs: page, next })
    }

    fn last_ended(&mut self, place: Option<EndPlace>, limit: usize) -> Result<Vec<FinishedJob>, Error> {
        let store = self.store();
        let at = |job: &FinishedJob| (job.ended_at, job.job.id);
        let before = store.jobs.values().filter(|job| place.is_none_or(|place| at(job) < place));
        let mut jobs: Vec<FinishedJob> = before.cloned().collect();
        jobs.sort_unstable_by_key(|job| std::cmp::Reverse(at(job)));
        jobs.truncate(limit);
        Ok(jobs)
    }

    fn attempts(
        &mut self,
        job: JobId,
        after: (u32, u32),
        limit: usize,
    ) -> Result<Vec<FinishedAttempt>, Error> {
        let store = self.store();
        let from = std::ops::Bound::Excluded((job, after.0, after.1));
        let to = std::ops::Bound::Included((job, u32::MAX, u32::MAX));
        Ok(store.attempts.range((from, to)).take(limit).map(|(_, attempt)| attempt.clone()).collect())
    }

    fn events(&mut self, after: Revision) -> Result<EventPage, Error> {
        let store = self.store();
        let mut all = Vec::new();
        for batch in &store.batches {
            all.extend(record::decode_events(&batch.bytes)?);
        }
        let floor = all.first().map_or(store.revision, |event| Revision(event.revision.0 - 1));
        all.retain(|event| after >= floor && event.revision > after);
        Ok(EventPage { floor, events: all })
    }

    fn revision_before(&mut self, at: Timestamp) -> Result<Revision, Error> {
        let floor = self.events(Revision(u64::MAX))?.floor;
        let store = self.store();
        let older = store.batches.iter().take_while(|batch| batch.at < at);
        Ok(older.last().map_or(floor, |batch| batch.last))
    }

    fn check(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn count_ended_since(&mut self, at: Timestamp) -> Result<u64, Error> {
        Ok(self.store().jobs.values().filter(|job| job.ended_at >= at).count() as u64)
    }
}
