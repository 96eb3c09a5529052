//! The journal's disk: what is durable, what is torn, and a second state that follows it.

use std::collections::BTreeSet;
use std::sync::Arc;
use weir::model::mutant::Mutant;

use weir::model::id::{AttemptId, NodeRef, Revision, Term};
use weir::state::State;
use weir::state::apply::{Applied, ArchiveRow};
use weir::state::event::{Event, EventRecord, OrderedAttempt};
use weir::state::record;
use weir::state::snapshot::Object;

use super::counts::Counts;
use super::history::History;
use super::schedule::Tail;

/// What survives brokers.
#[derive(Default)]
pub(crate) struct SimJournal {
    pub(crate) term: Term,
    batches: Vec<(Revision, Arc<[u8]>)>,
    /// A part of a batch behind the last whole one.
    torn: Option<Vec<u8>>,
    snapshot: Option<(Revision, Vec<Vec<u8>>)>,
    partial: Vec<Vec<u8>>,
    /// Follows the durable events: what a recovery would find.
    pub(crate) replica: State,
    /// The same events as a second, simpler reading of the rules has them.
    pub(crate) history: History,
    attempts: BTreeSet<AttemptId>,
    digest: u64,
}

/// A batch on its way to the disk.
pub(crate) struct Writing {
    pub(crate) term: Term,
    pub(crate) after: Revision,
    pub(crate) events: Vec<EventRecord>,
    pub(crate) archive: Vec<ArchiveRow>,
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Through(Revision),
    /// Another writer has taken its turn.
    Deposed,
}

impl SimJournal {
    /// Makes a batch durable unless its writer is deposed.
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
        // The record's round trip is part of every seed.
        let events = record::decode_events(&bytes).map_err(|error| error.to_string())?;
        events.iter().for_each(|event| counts.event(&event.event));
        let archive = self.follow(&events)?;
        if archive != batch.archive {
            return Err("the archive rows of an append are not those of its events".to_owned());
        }
        let revision = self.replica.revision();
        self.batches.push((revision, bytes.into()));
        Ok(Written::Through(revision))
    }

    /// Folds durable events into the replica and the history; returns what they archive.
    fn follow(&mut self, events: &[EventRecord]) -> Result<Vec<ArchiveRow>, String> {
        let mut applied = Applied::default();
        for event in events {
            self.history.take(event)?;
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

    /// No decision exceeds what is attested, nor what a queue may hold.
    fn check_order(&self, order: &OrderedAttempt) -> Result<(), String> {
        if order.after.is_some() {
            return Ok(());
        }
        for placement in &order.placements {
            let at = NodeRef { pool: order.pool, node: placement.node };
            let Some(node) = self.replica.node(at) else {
                return Err(format!("{:?} is ordered onto a node that is not there", order.unit));
            };
            let total = node.total();
            let device = |index: usize| {
                node.spec.devices.get(index).filter(|device| device.healthy).map_or(0, |device| device.millis)
            };
            let held = node.committed_devices.iter().enumerate();
            let too_much = held.into_iter().any(|(index, millis)| *millis > device(index));
            if node.gone || too_much || !node.committed.fits(&total) {
                let (name, held) = (&node.spec.name, &node.committed);
                return Err(format!("{:?} brings node {name} to {held:?} of {total:?}", order.unit));
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

    /// A writer is gone with a batch under way: `cut` says how much of a torn one is there. A deposed
    /// one leaves nothing, and takes nothing of its successor's along.
    pub(crate) fn lose_writer(
        &mut self,
        term: Term,
        writing: Option<Writing>,
        tail: Tail,
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
        match tail {
            Tail::Lost => {}
            Tail::Kept => {
                self.append(batch, counts)?;
            }
            Tail::Torn => {
                let mut bytes = record::encode_events(&batch.events);
                bytes.truncate(1 + cut as usize % (bytes.len() - 1));
                self.torn = Some(bytes);
            }
        }
        Ok(())
    }

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
            return Err(format!("a snapshot of {revision}, durable is {}", self.replica.revision()));
        }
        if index == 0 {
            self.partial.clear();
        }
        if self.partial.len() != index as usize {
            return Err(format!("chunk {index} of a snapshot of which {} are written", self.partial.len()));
        }
        self.partial.push(record::encode_objects(objects));
        if last {
            self.snapshot = Some((revision, std::mem::take(&mut self.partial)));
        }
        Ok(())
    }

    /// Builds the state as a new writer would.
    pub(crate) fn recover(&mut self) -> Result<State, String> {
        if let Some(torn) = self.torn.take()
            && let Ok(events) = record::decode_events(&torn)
        {
            return Err(format!("a torn batch reads as {} whole events", events.len()));
        }
        let state = self.load()?;
        if sorted(state.objects()) != sorted(self.replica.objects()) {
            return Err("snapshot and tail differ from a full replay".to_owned());
        }
        Ok(state)
    }

    /// Takes the writer's turn.
    pub(crate) fn claim(&mut self) -> Term {
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
                // A snapshot may show a revision in the middle of a batch.
                let shown = state.revision();
                for event in record::decode_events(bytes).map_err(corrupt)? {
                    if event.revision > shown {
                        state.apply(&event, &mut Applied::default());
                    }
                }
            }
        }
        Ok(state)
    }

    /// A copy as it was before the newest batches, at least one.
    pub(crate) fn older(&self, missing_permille: u32) -> Result<Option<Self>, String> {
        let missing = (self.batches.len() * missing_permille as usize / 1_000).max(1);
        // Without its first batches there would be no journal at all.
        let Some(kept) = self.batches.len().checked_sub(missing).filter(|kept| *kept > 4) else {
            return Ok(None);
        };
        let mut copy = Self { batches: self.batches[..kept].to_vec(), ..Self::default() };
        for (_, bytes) in &self.batches[..kept] {
            copy.follow(&record::decode_events(bytes).map_err(|error| error.to_string())?)?;
        }
        copy.term = copy.replica.term();
        let end = copy.replica.revision();
        copy.snapshot = self.snapshot.clone().filter(|(revision, _)| *revision <= end);
        Ok(Some(copy))
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
