//! The beginning of a writer's turn: is the journal the newest, and who is still to be heard?

use super::{Broker, Effect};
use crate::model::attempt::AttemptReport;
use crate::model::exchange::ToAgent;
use crate::model::id::Revision;
use crate::model::mutant::Mutant;
use crate::model::pool::Reach;
use crate::model::stamp::Stamp;
use crate::model::time::Timestamp;

impl Broker {
    /// Gives the word that the journal has come to a revision.
    pub(super) fn stamp(&self, revision: Revision) -> Option<Stamp> {
        self.state.key().map(|key| key.stamp(self.state.journal(), self.turn, revision))
    }

    /// The stamp was given for a part of the journal that this one lacks: the disk is an old one.
    ///
    /// A turn that this journal knows must have ended here where the next one began. One that it
    /// doesn't know was written to another copy: to a newer one, if that was longer than this one was
    /// when it was opened.
    pub(super) fn is_missing(&self, stamp: &Stamp) -> bool {
        let beyond = match self.state.turn_end(stamp.turn) {
            Some(end) => end.is_some_and(|end| stamp.revision >= end),
            None => stamp.revision > self.recovered,
        };
        beyond
            && stamp.journal == self.state.journal()
            && !Mutant::TrustOldDisk.is_on()
            && self.state.key().is_some_and(|key| key.verifies(stamp))
    }

    /// The disk is an old one: what is decided, but not said, stays unsaid.
    pub(super) fn turn_read_only(&mut self, seen: Revision) {
        self.outdated = Some(self.outdated.unwrap_or_default().max(seen));
        self.held.retain(|(_, effect)| {
            let Effect::Direct { message, .. } = effect else { return true };
            !matches!(message, ToAgent::Orders { .. } | ToAgent::Stops { .. })
        });
    }

    /// An attempt of this journal's that it never ordered. Either the journal is an older copy, and
    /// the agent has forgotten its stamps; or the agent lies. The work is left alone and its pool
    /// gets no more, but nobody else's work stops for one agent's word.
    pub(super) fn is_unknown_work(&self, report: &AttemptReport) -> bool {
        let attempt = report.attempt;
        attempt.journal == self.state.journal()
            && (report.ordered_revision > self.state.revision()
                || attempt.job >= self.state.next_job()
                || (report.ordered_revision > self.recovered && self.state.never_ordered(attempt)))
    }

    /// Begins to wait for the pools that were there in the turn before: until they have told what
    /// they run, a journal that is an older copy would start the same work once more, or have an agent
    /// start it that was away when it was ordered.
    pub(super) fn await_pools(&mut self) {
        let there = self.state.pools().filter(|pool| pool.reach < Reach::Lost);
        self.awaited = there.map(|pool| pool.id).collect();
        self.awaited_until = self.now.plus_ms(self.state.settings().unreachable_ms);
    }

    /// Some pool is still to be heard before anything is started.
    pub(super) fn is_awaiting(&mut self) -> bool {
        if self.now >= self.awaited_until || Mutant::WaitForNobody.is_on() {
            self.awaited.clear();
        }
        !self.awaited.is_empty()
    }

    /// How many pools are still to be heard, and until when at the latest.
    pub(super) fn awaits(&self) -> Option<(u64, Timestamp)> {
        let pools = self.awaited.len() as u64;
        (pools > 0 && self.now < self.awaited_until).then_some((pools, self.awaited_until))
    }
}
