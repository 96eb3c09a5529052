//! Events into the state, into the next batch, and out once they are durable.

use super::{Broker, Effect};
use crate::model::change::Change;
use crate::model::id::Revision;
use crate::model::mutant::Mutant;
use crate::state::apply::{Applied, ArchiveRow};
use crate::state::event::{Event, EventRecord};
use crate::state::job::Principal;

/// Events in one append: bounds how long a commit takes.
const APPEND_MAX: usize = 8_192;

impl Broker {
    /// Applies events and puts them into the next batch; tells agents what concerns them.
    pub(super) fn commit(&mut self, principal: &Principal, events: Vec<Event>) {
        for event in events {
            let revision = self.state.revision().next();
            let record = EventRecord { revision, at: self.now, principal: principal.clone(), event };
            let mut applied = Applied::default();
            if self.policy.uses_profile()
                && let Event::AttemptEnded { unit, .. } = &record.event
            {
                self.scheduler.depart(self.state.attempt(*unit).map_or(0, |at| at.placements.len() as u64));
            }
            self.state.apply(&record, &mut applied);
            self.scheduler.fold(&self.state, &applied.changes);
            if self.policy.uses_profile()
                && let Event::JobSubmitted { job, .. } = &record.event
            {
                self.scheduler.arrive(&self.state, *job);
            }
            self.route(&record);
            self.note(revision, applied);
            self.pending.push(record);
            self.snapshot.events_since += 1;
        }
    }

    fn note(&mut self, revision: Revision, applied: Applied) {
        for row in applied.archive {
            if let ArchiveRow::Job(job) = &row {
                self.ended.insert(job.job.id, job.clone());
            }
            self.pending_archive.push(row);
        }
        for change in applied.changes {
            match change {
                Change::Job(_) | Change::Pool(_) | Change::Queue(_) | Change::Node(_) => {
                    self.pending_changes.push((revision, change));
                }
                Change::UsageFell(_)
                | Change::Class(_)
                | Change::ClaimReusable(_)
                | Change::WorkloadProfile => {}
            }
        }
    }

    /// Holds an effect until everything applied so far is durable.
    pub(super) fn hold(&mut self, effect: Effect) {
        self.held.push_back((self.state.revision(), effect));
    }

    /// Holds an effect until the journal has been asked once more whose turn it is: for what rests
    /// on being the writer, not on an event of its own.
    pub(super) fn hold_unconfirmed(&mut self, effect: Effect) {
        if Mutant::AnswerHeartbeatUnconfirmed.is_on() {
            return self.hold(effect);
        }
        self.unconfirmed.push((self.state.revision(), effect));
    }

    /// The journal has answered: what waited for that is held like all else.
    pub(super) fn confirm_held(&mut self) {
        for (revision, effect) in std::mem::take(&mut self.confirming) {
            let at = self.held.partition_point(|(other, _)| *other <= revision);
            self.held.insert(at, (revision, effect));
        }
    }

    /// Starts the next append unless one is under way.
    pub(super) fn append_next(&mut self) {
        if self.in_flight || (self.pending.is_empty() && self.unconfirmed.is_empty()) {
            return;
        }
        self.confirming = std::mem::take(&mut self.unconfirmed);
        let rest = self.pending.split_off(self.pending.len().min(APPEND_MAX));
        let events = std::mem::replace(&mut self.pending, rest);
        // Archive rows carry their revision and are written with the event that made them.
        let last = events.last().map_or(self.durable, |event| event.revision);
        let split = self.pending_archive.partition_point(|row| row_revision(row) <= last);
        let rest = self.pending_archive.split_off(split);
        let archive = std::mem::replace(&mut self.pending_archive, rest);
        let split = self.pending_changes.partition_point(|(revision, _)| *revision <= last);
        let rest = self.pending_changes.split_off(split);
        let mut changes = std::mem::replace(&mut self.pending_changes, rest);
        changes.dedup_by(|later, earlier| later.1 == earlier.1 && later.0 == earlier.0);
        if !events.is_empty() {
            let at = self.held.partition_point(|(revision, _)| *revision <= last);
            self.held.insert(at, (last, Effect::Notify { changes }));
        }
        self.in_flight = true;
        self.out.push(Effect::Append { after: self.durable, events, archive });
    }

    /// Lets out what has become durable.
    pub(super) fn release(&mut self) {
        let durable = |revision: &Revision| *revision <= self.durable || Mutant::AnswerBeforeDurable.is_on();
        while self.held.front().is_some_and(|(revision, _)| durable(revision)) {
            self.out.extend(self.held.pop_front().map(|(_, effect)| effect));
        }
    }
}

fn row_revision(row: &ArchiveRow) -> Revision {
    match row {
        ArchiveRow::Job(job) => job.revision,
        ArchiveRow::Attempt(attempt) => attempt.revision,
    }
}
