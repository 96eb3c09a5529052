//! Durability: events go into the state and into the next batch, and effects leave once their events are
//! durable.

use std::collections::VecDeque;

use super::{Broker, Effect};
use crate::model::change::Change;
use crate::model::id::Revision;
use crate::model::mutant::Mutant;
use crate::state::apply::{Applied, ArchiveRow};
use crate::state::event::{Event, EventRecord};
use crate::state::job::Principal;

/// Events in one append: bounds how long a commit takes.
const APPEND_MAX: usize = 8_192;

/// What is not durable yet, and what waits for it.
#[derive(Debug)]
pub(super) struct Durability {
    /// The last durable revision.
    pub(super) durable: Revision,
    /// An append was handed out and has not been answered.
    pub(super) in_flight: bool,
    /// Applied, to go into the next batch.
    pub(super) pending: Vec<EventRecord>,
    pending_archive: Vec<ArchiveRow>,
    pending_changes: Vec<(Revision, Change)>,
    /// Effects by the revision that must be durable before they leave, in order.
    pub(super) awaiting: VecDeque<(Revision, Effect)>,
    /// Effects that wait until the journal has confirmed that this broker is still its writer: those that the
    /// append in flight confirms, and those that the next one will.
    pub(super) confirming: Vec<(Revision, Effect)>,
    pub(super) unconfirmed: Vec<(Revision, Effect)>,
}

impl Durability {
    /// Nothing is pending, and the journal ends at `durable`.
    pub(super) fn new(durable: Revision) -> Self {
        Self {
            durable,
            in_flight: false,
            pending: Vec::new(),
            pending_archive: Vec::new(),
            pending_changes: Vec::new(),
            awaiting: VecDeque::new(),
            confirming: Vec::new(),
            unconfirmed: Vec::new(),
        }
    }

    /// Drops the waiting effects that `drop` selects.
    pub(super) fn discard(&mut self, drop: impl Fn(&Effect) -> bool) {
        self.awaiting.retain(|(_, effect)| !drop(effect));
        self.unconfirmed.retain(|(_, effect)| !drop(effect));
        self.confirming.retain(|(_, effect)| !drop(effect));
    }
}

impl Broker {
    /// Applies events, adds them to the next batch, and sends agents what concerns them.
    pub(super) fn commit(&mut self, principal: &Principal, events: Vec<Event>) {
        for event in events {
            let revision = self.state.revision().next();
            let record = EventRecord { revision, at: self.now, principal: principal.clone(), event };
            let mut applied = Applied::default();
            self.state.apply(&record, &mut applied);
            self.scheduler.fold(&self.state, &applied.changes);
            self.route(&record);
            self.note(revision, applied);
            self.durability.pending.push(record);
            self.snapshot.events_since += 1;
        }
    }

    fn note(&mut self, revision: Revision, applied: Applied) {
        for row in applied.archive {
            if let ArchiveRow::Job(job) = &row {
                self.ended.insert(job.job.id, job.clone());
            }
            self.durability.pending_archive.push(row);
        }
        for change in applied.changes {
            match change {
                Change::Job(_) | Change::Pool(_) | Change::Queue(_) | Change::Node(_) => {
                    self.durability.pending_changes.push((revision, change));
                }
                Change::UsageFell(_)
                | Change::Class(_)
                | Change::ClaimReusable(_)
                | Change::WorkloadProfile => {}
            }
        }
    }

    /// Holds an effect until everything applied so far is durable.
    pub(super) fn hold_until_durable(&mut self, effect: Effect) {
        self.durability.awaiting.push_back((self.state.revision(), effect));
    }

    /// Holds an effect until the journal has confirmed that this broker is still its writer: for effects that
    /// depend on that, and not on an event of their own.
    pub(super) fn hold_until_confirmed(&mut self, effect: Effect) {
        if Mutant::AnswerHeartbeatUnconfirmed.is_on() {
            return self.hold_until_durable(effect);
        }
        self.durability.unconfirmed.push((self.state.revision(), effect));
    }

    /// The journal has answered an append: effects that waited for that now wait for their revision only.
    pub(super) fn release_confirmed(&mut self) {
        for (revision, effect) in std::mem::take(&mut self.durability.confirming) {
            let at = self.durability.awaiting.partition_point(|(other, _)| *other <= revision);
            self.durability.awaiting.insert(at, (revision, effect));
        }
    }

    /// Starts the next append unless one is under way.
    pub(super) fn append_next(&mut self) {
        if self.durability.in_flight
            || (self.durability.pending.is_empty() && self.durability.unconfirmed.is_empty())
        {
            return;
        }
        self.durability.confirming = std::mem::take(&mut self.durability.unconfirmed);
        let rest = self.durability.pending.split_off(self.durability.pending.len().min(APPEND_MAX));
        let events = std::mem::replace(&mut self.durability.pending, rest);
        // Archive rows carry their revision and are written with the event that made them.
        let last = events.last().map_or(self.durability.durable, |event| event.revision);
        let split = self.durability.pending_archive.partition_point(|row| row_revision(row) <= last);
        let rest = self.durability.pending_archive.split_off(split);
        let archive = std::mem::replace(&mut self.durability.pending_archive, rest);
        let split = self.durability.pending_changes.partition_point(|(revision, _)| *revision <= last);
        let rest = self.durability.pending_changes.split_off(split);
        let mut changes = std::mem::replace(&mut self.durability.pending_changes, rest);
        changes.dedup_by(|later, earlier| later.1 == earlier.1 && later.0 == earlier.0);
        if !events.is_empty() {
            let at = self.durability.awaiting.partition_point(|(revision, _)| *revision <= last);
            self.durability.awaiting.insert(at, (last, Effect::Notify { changes }));
        }
        self.durability.in_flight = true;
        self.out.push(Effect::Append { after: self.durability.durable, events, archive });
    }

    /// Emits the effects whose events have become durable.
    pub(super) fn release(&mut self) {
        let durable =
            |revision: &Revision| *revision <= self.durability.durable || Mutant::AnswerBeforeDurable.is_on();
        while self.durability.awaiting.front().is_some_and(|(revision, _)| durable(revision)) {
            self.out.extend(self.durability.awaiting.pop_front().map(|(_, effect)| effect));
        }
    }
}

fn row_revision(row: &ArchiveRow) -> Revision {
    match row {
        ArchiveRow::Job(job) => job.revision,
        ArchiveRow::Attempt(attempt) => attempt.revision,
    }
}
