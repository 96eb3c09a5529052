//! The beginning of a writer's turn: is the journal the newest, and who is still to be heard?

use super::Broker;
use crate::model::attempt::AttemptReport;
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

    /// The stamp was given for a part of the journal that was not there when this turn began: the
    /// disk is an old one.
    pub(super) fn is_missing(&self, stamp: &Stamp) -> bool {
        let ours = |stamp: &Stamp| stamp.journal == self.state.journal();
        ours(stamp)
            && !Mutant::TrustOldDisk.is_on()
            && stamp.turn != self.turn
            && stamp.revision > self.recovered
            && self.state.key().is_some_and(|key| key.verifies(stamp))
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
    /// they run, a journal that is an older copy would start the same work once more.
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
