//! Simulated disk of the journal: durable batches, a torn batch, snapshots, and a replica of the durable
//! state.

use std::collections::BTreeSet;
use std::sync::Arc;
use weir::model::mutant::Mutant;

use weir::model::id::{AttemptId, NodeRef, Revision, Term};
use weir::model::resource::Resources;
use weir::state::State;
use weir::state::apply::{Applied, ArchiveRow};
use weir::state::event::{Event, EventRecord, OrderedAttempt};
use weir::state::record;
use weir::state::snapshot::Object;

use super::counts::Counts;
use super::history::History;
use super::schedule::PendingAppend;

/// The journal's durable contents, which survive broker crashes.
#[derive(Default)]
pub(crate) struct SimJournal {
    pub(crate) term: Term,
    batches: Vec<(Revision, Arc<[u8]>)>,
    /// A part of a batch after the last whole one.
    torn: Option<Vec<u8>>,
    /// The latest complete snapshot, in chunks.
    snapshot: Option<(Revision, Vec<Vec<u8>>)>,
    /// Chunks of the snapshot in progress.
    partial: Vec<Vec<u8>>,
    /// State after the durable events: what a recovery must yield.
    pub(crate) replica: State,
    /// The same events, checked by a second and simpler implementation of the rules.
    pub(crate) history: History,
    /// Attempts that have ended.
    attempts: BTreeSet<AttemptId>,
    digest: u64,
}

/// An append in progress.
pub(crate) struct Writing {
    pub(crate) term: Term,
    pub(crate) after: Revision,
    pub(crate) events: Vec<EventRecord>,
    pub(crate) archive: Vec<ArchiveRow>,
}

/// Result of an append.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Through(Revision),
    /// A later term has begun.
    Deposed,
}

impl SimJournal {
    /// Makes a batch durable unless its writer is deposed.
    ///
    /// # Errors
    /// The violated invariant, as for the other methods.
    pub(crate) fn append(&mut self, batch: Writing, counts: &mut Counts) -> Result<Written, String> {
        if batch.term < self.term && !Mutant::AppendWhenDeposed.is_on() {
            return Ok(Written::Deposed);
        }
        if batch.term > self.term {
            return Err(format!("term {} appends in term {}", batch.term, self.term));
        }
        if batch.after != self.replica.revision() {
            let end = self.replica.revision();
            return Err(format!("an append after {}, the journal ends at {end}", batch.after));
        }
        if batch.events.is_empty() {
            return Ok(Written::Through(batch.after));
        }
        let bytes = record::encode_events(&batch.events);
        for byte in &bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        // Decode the bytes, so that each seed tests the round trip of the encoding.
        let events = record::decode_events(&bytes).map_err(|error| error.to_string())?;
        events.iter().for_each(|event| counts.event(&event.event));
        let archive = self.apply(&events)?;
        if archive != batch.archive {
            return Err("the archive rows of an append are not those of its events".to_owned());
        }
        let revision = self.replica.revision();
        self.batches.push((revision, bytes.into()));
        Ok(Written::Through(revision))
    }

    /// Applies durable events to the replica and the history; returns the archive rows of the events.
    fn apply(&mut self, events: &[EventRecord]) -> Result<Vec<ArchiveRow>, String> {
        let mut applied = Applied::default();
        for event in events {
            self.history.apply(event)?;
            self.replica.apply(event, &mut applied);
            if let Event::AttemptOrdered { order } = &event.event {
                self.check_order(order)?;
            }
        }
        for row in &applied.archive {
            if let ArchiveRow::Attempt(attempt) = row
                && !self.attempts.insert(attempt.attempt.id(self.replica.journal()))
            {
                return Err(format!("an attempt of {:?} ends twice", attempt.attempt.unit));
            }
        }
        Ok(applied.archive)
    }

    /// Checks that an order exceeds neither the reported capacity of its nodes nor the limit of a queue.
    fn check_order(&self, order: &OrderedAttempt) -> Result<(), String> {
        if order.after.is_some() {
            return Ok(());
        }
        for placement in &order.placements {
            let at = NodeRef { pool: order.pool, node: placement.node };
            let Some(node) = self.replica.node(at) else {
                return Err(format!("{:?} is ordered onto an unknown node", order.unit));
            };
            let total = node.total();
            let device = |index: usize| {
                node.spec.devices.get(index).filter(|device| device.healthy).map_or(0, |device| device.millis)
            };
            // Other devices may have broken while they were held.
            let mut ordered = placement.devices.iter().map(|share| usize::from(share.index));
            let exceeds = ordered.any(|index| node.committed_devices[index] > device(index));
            let devices = total.device_millis.max(node.committed.device_millis);
            let fits = node.committed.fits(&Resources { device_millis: devices, ..total.clone() });
            if node.gone || exceeds || !fits {
                let (name, committed) = (&node.spec.name, &node.committed);
                return Err(format!("{:?} brings node {name} to {committed:?} of {total:?}", order.unit));
            }
        }
        let Some(job) = self.replica.job(order.unit.job) else { return Ok(()) };
        for queue in self.replica.queue_path(job.queue) {
            if let Some(excess) = queue.spec.limit.first_excess(&queue.usage) {
                let name = &queue.spec.name;
                return Err(format!("{:?} brings queue {name} beyond its limit: {excess:?}", order.unit));
            }
        }
        Ok(())
    }

    /// Handles a crash of the writer of `term` with an append in progress. `cut` selects the length of a torn
    /// batch. The append of a deposed writer is lost and does not affect its successor's.
    pub(crate) fn lose_writer(
        &mut self,
        term: Term,
        writing: Option<Writing>,
        pending: PendingAppend,
        cut: u64,
        counts: &mut Counts,
    ) -> Result<(), String> {
        if term < self.term {
            return Ok(());
        }
        self.partial.clear();
        let Some(batch) = writing.filter(|batch| !batch.events.is_empty()) else {
            return Ok(());
        };
        match pending {
            PendingAppend::Lost => {}
            PendingAppend::Durable => {
                self.append(batch, counts)?;
            }
            PendingAppend::Torn => {
                let mut bytes = record::encode_events(&batch.events);
                bytes.truncate(1 + cut as usize % (bytes.len() - 1));
                self.torn = Some(bytes);
            }
        }
        Ok(())
    }

    /// Writes a chunk of a snapshot; the last one replaces the previous snapshot. A deposed writer's is
    /// ignored.
    pub(crate) fn write_chunk(
        &mut self,
        term: Term,
        (revision, index, last): (Revision, u32, bool),
        objects: &[Object],
    ) -> Result<(), String> {
        if term < self.term {
            return Ok(());
        }
        if revision > self.replica.revision() {
            return Err(format!(
                "a snapshot of revision {revision} beyond the durable {}",
                self.replica.revision()
            ));
        }
        if index == 0 {
            self.partial.clear();
        }
        if self.partial.len() != index as usize {
            return Err(format!("chunk {index} of a snapshot with {} written chunks", self.partial.len()));
        }
        self.partial.push(record::encode_objects(objects));
        if last {
            self.snapshot = Some((revision, std::mem::take(&mut self.partial)));
        }
        Ok(())
    }

    /// Recovers the state as a new writer does, and compares it with the replica.
    pub(crate) fn recover(&mut self) -> Result<State, String> {
        if let Some(torn) = self.torn.take()
            && let Ok(events) = record::decode_events(&torn)
        {
            return Err(format!("a torn batch decodes to {} whole events", events.len()));
        }
        let state = self.load()?;
        if sorted(state.objects()) != sorted(self.replica.objects()) {
            return Err("snapshot and later events differ from a full replay".to_owned());
        }
        Ok(state)
    }

    /// Begins a new term, which deposes the current writer.
    pub(crate) fn begin_term(&mut self) -> Term {
        self.partial.clear();
        self.term = Term(self.term.0 + 1);
        self.term
    }

    fn load(&self) -> Result<State, String> {
        let corrupt = |error: record::Error| error.to_string();
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
                // A snapshot may end in the middle of a batch.
                let loaded = state.revision();
                for event in record::decode_events(bytes).map_err(corrupt)? {
                    if event.revision > loaded {
                        state.apply(&event, &mut Applied::default());
                    }
                }
            }
        }
        Ok(state)
    }

    /// A copy without the newest batches, at least one; `None` if four batches or fewer would remain.
    pub(crate) fn stale_copy(&self, missing_permille: u32) -> Result<Option<Self>, String> {
        let missing = (self.batches.len() * missing_permille as usize / 1_000).max(1);
        // The first batches create the journal.
        let Some(remaining) = self.batches.len().checked_sub(missing).filter(|count| *count > 4) else {
            return Ok(None);
        };
        let mut copy = Self { batches: self.batches[..remaining].to_vec(), ..Self::default() };
        for (_, bytes) in &self.batches[..remaining] {
            copy.apply(&record::decode_events(bytes).map_err(|error| error.to_string())?)?;
        }
        copy.term = copy.replica.term();
        let end = copy.replica.revision();
        copy.snapshot = self.snapshot.clone().filter(|(revision, _)| *revision <= end);
        Ok(Some(copy))
    }

    /// FNV-1a digest of all appended bytes, without the offset basis.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }
}

/// Encoded objects in a canonical order: a snapshot may have them in any.
fn sorted(objects: Vec<Object>) -> Vec<Vec<u8>> {
    let mut bytes: Vec<Vec<u8>> =
        objects.iter().map(|object| record::encode_objects(std::slice::from_ref(object))).collect();
    bytes.sort_unstable();
    bytes
}
