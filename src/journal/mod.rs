//! Journals, which make events durable. All implementations pass one conformance suite.

mod error;
pub mod memory;
pub mod sqlite;

#[cfg(test)]
mod conformance;

pub use error::Error;

use crate::model::id::{JobId, Revision, Term};
use crate::model::time::Timestamp;
use crate::state::apply::{ArchiveRow, FinishedAttempt, FinishedJob};
use crate::state::event::EventRecord;
use crate::state::job_filter::JobFilter;

/// Events that become durable together, with the rows that they move to the archive.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The writer's term.
    pub term: Term,
    /// The revision before the first event: the end of the journal, as far as the writer has recorded it.
    pub after: Revision,
    /// With consecutive revisions; may be empty.
    pub events: Vec<EventRecord>,
    /// Jobs and attempts that ended with these events.
    pub archive: Vec<ArchiveRow>,
}

/// A chunk of a snapshot of the state.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The revision of the state in the snapshot.
    pub revision: Revision,
    /// Numbers the chunks of one snapshot from 0.
    pub index: u32,
    /// True for the last chunk, which completes the snapshot.
    pub last: bool,
    /// Objects, encoded by `state::record`.
    pub bytes: Vec<u8>,
}

/// A totally ordered log of events with one writer, its snapshots and its archive.
///
/// After any error of [`append`](Journal::append) the writer must drop its state and reopen the journal,
/// because it is unknown whether the batch is durable.
pub trait Journal: Send {
    /// Begins a new term and returns it: one more than the last. Writers of earlier terms are deposed.
    ///
    /// # Errors
    /// [`Error::Io`] if the term can't be made durable.
    fn begin_term(&mut self) -> Result<Term, Error>;

    /// Passes the newest complete snapshot to `visit`, chunk by chunk, then the batches of events after it.
    ///
    /// The first batch may begin before the snapshot's revision: the caller skips the events that the
    /// snapshot includes.
    ///
    /// # Errors
    /// [`Error::Io`] if the journal can't be read.
    fn load(&mut self, visit: &mut dyn FnMut(Loaded)) -> Result<(), Error>;

    /// Makes a batch durable, completely or not at all. A batch without events only checks that the term is
    /// current.
    ///
    /// # Errors
    /// - [`Error::Deposed`] if a higher term has begun.
    /// - [`Error::Misplaced`] if the journal doesn't end at `after`.
    /// - [`Error::Io`] if the disk failed; it is unknown whether the batch is durable.
    fn append(&mut self, batch: &Batch) -> Result<(), Error>;

    /// Stores a chunk of a snapshot. Chunks must be written in order. The last one completes the snapshot,
    /// and the events up to its revision can then be pruned. Until then the previous snapshot remains the
    /// newest.
    ///
    /// # Errors
    /// - [`Error::Deposed`] if a higher term has begun.
    /// - [`Error::Io`] if the disk failed.
    fn write_chunk(&mut self, term: Term, chunk: &Chunk) -> Result<(), Error>;

    /// Removes some of the older snapshots that the newest one covers, and some of the events that it covers and that
    /// `retained` does not. Returns whether more is left.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk failed.
    fn prune(&mut self, retained: RetainedEvents) -> Result<bool, Error>;

    /// Removes some of the jobs that ended before `before` from the archive, with their attempts. Returns whether more
    /// are left. Takes some milliseconds.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk failed.
    fn prune_archive(&mut self, before: Timestamp) -> Result<bool, Error>;

    /// Opens a reader of the archive, which can move to another thread.
    ///
    /// # Errors
    /// [`Error::Io`] if the archive can't be opened.
    fn archive(&self) -> Result<Box<dyn Archive>, Error>;
}

/// Which events stay readable although a snapshot covers them. By default none do.
#[derive(Clone, Copy, Debug, Default)]
pub struct RetainedEvents {
    /// Those that happened then or later.
    pub from: Option<Timestamp>,
    /// At most so many of them.
    pub max: u64,
}

impl RetainedEvents {
    /// Returns whether a batch of events stays, which ends at `last` and happened at `at`, in a journal that ends at `end`.
    fn has(self, last: Revision, at: Timestamp, end: Revision) -> bool {
        last.0 > end.0.saturating_sub(self.max) && self.from.is_none_or(|from| at >= from)
    }
}

/// Events of a journal, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventPage {
    /// The oldest revision after which all events are retained.
    pub floor: Revision,
    /// Those after the revision that was asked for; none if that is before `floor`, or if there are no later ones.
    pub events: Vec<EventRecord>,
}

/// What [`Journal::load`] passes to its caller, encoded by `state::record`.
#[derive(Debug)]
pub enum Loaded {
    /// A chunk of the snapshot: objects.
    Chunk(Vec<u8>),
    /// A batch of events.
    Events(Vec<u8>),
}

/// Bytes of records after which a page of events ends: a few milliseconds of decoding.
const EVENT_PAGE_BYTES: usize = 128 * 1024;

/// A place in the order in which jobs ended: the instant, and the job's id among those of one instant.
pub type EndPlace = (Timestamp, JobId);

/// A page of finished jobs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FinishedJobs {
    pub jobs: Vec<FinishedJob>,
    /// Below which id the next page begins, if there is one.
    pub next: Option<JobId>,
}

/// A reader of the jobs and attempts that have ended, and of the events that are retained.
pub trait Archive: Send {
    /// Returns a finished job by its id; `None` if there is none.
    ///
    /// # Errors
    /// As for every method of this trait:
    /// - [`Error::Io`] if the archive can't be read.
    /// - [`Error::Record`] if a row can't be decoded.
    fn job(&mut self, id: JobId) -> Result<Option<FinishedJob>, Error>;

    /// Returns the finished job of this name in this queue that was submitted last; `None` if there is none.
    ///
    /// # Errors
    /// As [`Archive::job`].
    fn job_named(&mut self, queue: &str, name: &str) -> Result<Option<FinishedJob>, Error>;

    /// Returns at most `limit` finished jobs that a filter selects, with ids below `before`, highest id first. The work of
    /// one call is bounded: a page may have fewer jobs, or none, and still not be the last.
    ///
    /// # Errors
    /// As [`Archive::job`].
    fn jobs(&mut self, filter: &JobFilter, before: JobId, limit: usize) -> Result<FinishedJobs, Error>;

    /// Returns at most `limit` finished jobs that ended before `place`, the last to end first; `None` begins with the last
    /// of all. Events of later jobs have higher revisions.
    ///
    /// # Errors
    /// As [`Archive::job`].
    fn last_ended(&mut self, place: Option<EndPlace>, limit: usize) -> Result<Vec<FinishedJob>, Error>;

    /// Returns at most `limit` ended attempts of a job, by (unit, number), that come after `after`.
    ///
    /// # Errors
    /// As [`Archive::job`].
    fn attempts(
        &mut self,
        job: JobId,
        after: (u32, u32),
        limit: usize,
    ) -> Result<Vec<FinishedAttempt>, Error>;

    /// Returns the events after a revision, at least one if there is any, and further ones up to about
    /// `EVENT_PAGE_BYTES` of records.
    ///
    /// # Errors
    /// As [`Archive::job`], and [`Error::Damaged`] if events are missing.
    fn events(&mut self, after: Revision) -> Result<EventPage, Error>;

    /// Returns a revision after which all retained events are that happened at `at` or later, and few earlier ones.
    ///
    /// # Errors
    /// As [`Archive::job`].
    fn revision_before(&mut self, at: Timestamp) -> Result<Revision, Error>;

    /// Verifies that every row can be found: each read verifies the rows that it finds, and can't know of others. May
    /// take seconds for a million jobs.
    ///
    /// # Errors
    /// - [`Error::Damaged`] if rows may be missing from answers.
    /// - [`Error::Io`] if the archive can't be read.
    fn check(&mut self) -> Result<(), Error>;

    /// Returns the number of jobs that ended at `at` or later.
    ///
    /// # Errors
    /// As [`Archive::job`].
    fn count_ended_since(&mut self, at: Timestamp) -> Result<u64, Error>;
}
