//! Journals: where events become durable. One conformance suite holds for all of them.

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

/// Events that become durable together, with what they move to the archive.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub term: Term,
    /// The revision before the first event: where the writer believes the journal ends.
    pub after: Revision,
    pub events: Vec<EventRecord>,
    pub archive: Vec<ArchiveRow>,
}

/// A chunk of a snapshot, as bytes of `state::record`.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The revision that the snapshot shows.
    pub revision: Revision,
    pub index: u32,
    pub last: bool,
    pub bytes: Vec<u8>,
}

/// A totally ordered log of events with one writer, its snapshots, and its archive.
///
/// After any error of [`append`](Journal::append) the writer must drop its state and reopen: what
/// happened to the batch is unknown.
pub trait Journal: Send {
    /// Takes the writer's turn: the term after every earlier one. Earlier writers are deposed.
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be made durable.
    fn claim(&mut self) -> Result<Term, Error>;

    /// Hands over the newest complete snapshot, chunk by chunk, then the events after it.
    ///
    /// The first batch may begin before the snapshot's revision: the caller skips what it has.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Record`].
    fn load(&mut self, visit: &mut dyn FnMut(Loaded)) -> Result<(), Error>;

    /// Makes a batch durable, whole or not at all. One without events only asks whether the turn lasts.
    ///
    /// # Errors
    /// - [`Error::Deposed`] if a higher term was claimed.
    /// - [`Error::Misplaced`] if the journal doesn't end at `after`.
    /// - [`Error::Io`] if the disk refused; whether the batch is durable is unknown.
    fn append(&mut self, batch: &Batch) -> Result<(), Error>;

    /// Stores a chunk; the last one makes its snapshot the newest, and what it covers may go.
    ///
    /// # Errors
    /// [`Error::Deposed`] or [`Error::Io`].
    fn write_chunk(&mut self, term: Term, chunk: &Chunk) -> Result<(), Error>;

    /// Removes some of what the newest snapshot covers; tells whether more is left.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn prune(&mut self) -> Result<bool, Error>;

    /// Opens a reader of the archive, for another thread.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn archive(&self) -> Result<Box<dyn Archive>, Error>;
}

/// What [`Journal::load`] hands over.
#[derive(Debug)]
pub enum Loaded {
    Chunk(Vec<u8>),
    Events(Vec<u8>),
}

/// Jobs and attempts that have ended.
pub trait Archive: Send {
    /// A finished job by number.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Record`], as for every method here.
    fn job(&mut self, id: JobId) -> Result<Option<FinishedJob>, Error>;

    /// The latest finished job of this name in this queue.
    ///
    /// # Errors
    /// As [`Archive::job`].
    fn job_named(&mut self, queue: &str, name: &str) -> Result<Option<FinishedJob>, Error>;

    /// Finished jobs with numbers below `before`, newest first, in one queue or all.
    ///
    /// # Errors
    /// As [`Archive::job`].
    fn jobs(&mut self, queue: Option<&str>, before: JobId, limit: usize) -> Result<Vec<FinishedJob>, Error>;

    /// Ended attempts of a job, by unit and number, after (unit, number) `after`.
    ///
    /// # Errors
    /// As [`Archive::job`].
    fn attempts(
        &mut self,
        job: JobId,
        after: (u32, u32),
        limit: usize,
    ) -> Result<Vec<FinishedAttempt>, Error>;

    /// How many jobs ended since, for summaries.
    ///
    /// # Errors
    /// As [`Archive::job`].
    fn count_ended_since(&mut self, at: Timestamp) -> Result<u64, Error>;
}
