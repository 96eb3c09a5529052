//! The journal's disk: what is durable, what is being written, and a second state that follows it.

use std::collections::{BTreeMap, BTreeSet};

use weir::model::id::{AttemptId, JobId, Revision, Term};
use weir::state::State;
use weir::state::apply::{Applied, ArchiveRow};
use weir::state::event::EventRecord;
use weir::state::job::JobEnd;
use weir::state::record;
use weir::state::snapshot::Object;

use super::Counts;

/// What survives the broker.
#[derive(Default)]
pub(crate) struct SimJournal {
    term: Term,
    batches: Vec<(Revision, Vec<u8>)>,
    snapshot: Option<(Revision, Vec<Vec<u8>>)>,
    partial: Vec<Vec<u8>>,
    writing: Option<(Vec<EventRecord>, Vec<ArchiveRow>)>,
    /// Follows the durable events: what a recovery would find.
    pub(crate) replica: State,
    /// Finished jobs in the archive.
    pub(crate) ended: BTreeMap<JobId, JobEnd>,
    pub(crate) attempts: BTreeSet<AttemptId>,
    digest: u64,
}

impl SimJournal {
    pub(crate) fn begin_append(
        &mut self,
        term: Term,
        after: Revision,
        events: Vec<EventRecord>,
        archive: Vec<ArchiveRow>,
    ) -> Result<(), String> {
        if term != self.term {
            return Err(format!("term {term} appends in term {}", self.term));
        }
        if after != self.replica.revision() {
            return Err(format!("an append after {after}, the journal ends at {}", self.replica.revision()));
        }
        if self.writing.replace((events, archive)).is_some() {
            return Err("two appends at once".to_owned());
        }
        Ok(())
    }

    pub(crate) fn finish_append(&mut self, counts: &mut Counts) -> Result<Revision, String> {
        let Some((events, archive)) = self.writing.take() else {
            return Err("no append is under way".to_owned());
        };
        let bytes = record::encode_events(&events);
        // The record's round trip is part of every seed.
        let events = record::decode_events(&bytes).map_err(|error| error.to_string())?;
        let mut applied = Applied::default();
        for event in &events {
            counts.event(&event.event);
            self.replica.apply(event, &mut applied);
        }
        if applied.archive != archive {
            return Err("the archive rows of an append are not those of its events".to_owned());
        }
        for byte in &bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        for row in archive {
            match row {
                ArchiveRow::Job(job) => {
                    if self.ended.insert(job.job.id, job.end).is_some() {
                        return Err(format!("job {} ends twice", job.job.id));
                    }
                }
                ArchiveRow::Attempt(attempt) => {
                    if !self.attempts.insert(attempt.attempt.id(self.replica.journal())) {
                        return Err(format!("an attempt of {:?} ends twice", attempt.attempt.unit));
                    }
                }
            }
        }
        let revision = self.replica.revision();
        self.batches.push((revision, bytes));
        Ok(revision)
    }

    /// The writer is gone. What it was writing got there whole, or not at all.
    pub(crate) fn crash(&mut self, kept: bool, counts: &mut Counts) {
        if kept && self.writing.is_some() {
            // A violation here shows as one of the next append.
            let _ = self.finish_append(counts);
        }
        self.writing = None;
        self.partial.clear();
    }

    pub(crate) fn write_chunk(
        &mut self,
        revision: Revision,
        index: u32,
        last: bool,
        objects: &[Object],
    ) -> Result<(), String> {
        if revision > self.replica.revision() {
            return Err(format!("a snapshot of {revision}, durable is {}", self.replica.revision()));
        }
        if index == 0 {
            self.partial.clear();
        }
        self.partial.push(record::encode_objects(objects));
        if last {
            self.snapshot = Some((revision, std::mem::take(&mut self.partial)));
        }
        Ok(())
    }

    /// Builds the state as a new writer would, and takes the next term.
    pub(crate) fn recover(&mut self) -> Result<(State, Term), String> {
        let corrupt = |error: record::Corrupt| error.to_string();
        let (mut state, mut from) = (State::default(), Revision(0));
        if let Some((revision, chunks)) = &self.snapshot {
            let mut objects = Vec::new();
            for chunk in chunks {
                objects.extend(record::decode_objects(chunk).map_err(corrupt)?);
            }
            (state, from) = (State::from_objects(objects), *revision);
        }
        for (last, bytes) in &self.batches {
            if *last > from {
                // A snapshot may show a revision in the middle of a batch.
                let shown = state.revision();
                for event in record::decode_events(bytes).map_err(corrupt)? {
                    if event.revision > shown {
                        state.apply(&event, &mut Applied::default());
                    }
                }
            }
        }
        if sorted(state.objects()) != sorted(self.replica.objects()) {
            return Err("snapshot and tail differ from a full replay".to_owned());
        }
        self.term = Term(self.term.0 + 1);
        Ok((state, self.term))
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }
}

/// Objects as comparable text: their order in a snapshot is its own affair.
fn sorted(objects: Vec<Object>) -> Vec<Vec<u8>> {
    let mut bytes: Vec<Vec<u8>> =
        objects.iter().map(|object| record::encode_objects(std::slice::from_ref(object))).collect();
    bytes.sort_unstable();
    bytes
}
