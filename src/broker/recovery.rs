//! The beginning of a writer's turn: is the journal the newest, and who is still to be heard?

use super::{Broker, Effect};
use crate::model::attempt::AttemptReport;
use crate::model::exchange::ToAgent;
use crate::model::high_water::HighWaterMark;
use crate::model::id::Revision;
use crate::model::mutant::Mutant;
use crate::model::pool::Connectivity;
use crate::model::time::Timestamp;

impl Broker {
    /// Gives the word that the journal has come to a revision.
    pub(super) fn high_water(&self, revision: Revision) -> Option<HighWaterMark> {
        self.state.key().map(|key| key.high_water(self.state.journal(), self.writer_session, revision))
    }

    /// The stamp was given for a part of the journal that this one lacks: the disk is an old one.
    ///
    /// A turn that this journal knows must have ended here where the next one began. One that it
    /// doesn't know was written to another copy: to a newer one, if that was longer than this one was
    /// when it was opened.
    pub(super) fn is_missing(&self, high_water: &HighWaterMark) -> bool {
        let beyond = match self.state.writer_session_end(high_water.writer_session) {
            Some(end) => end.is_some_and(|end| high_water.revision >= end),
            None => high_water.revision > self.recovered,
        };
        beyond
            && high_water.journal == self.state.journal()
            && !Mutant::TrustOldDisk.is_on()
            && self.state.key().is_some_and(|key| key.verifies(high_water))
    }

    /// The disk is an old one: what is decided, but not said, stays unsaid.
    pub(super) fn become_read_only(&mut self, seen: Revision) {
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
    pub(super) fn begin_recovery_grace(&mut self) {
        let there = self.state.pools().filter(|pool| pool.connectivity < Connectivity::Lost);
        self.unreported_pools = there.map(|pool| pool.id).collect();
        self.recovery_grace_until = self.now.plus_ms(self.state.settings().unreachable_ms);
    }

    /// Some pool is still to be heard before anything is started.
    pub(super) fn in_recovery_grace(&mut self) -> bool {
        if self.now >= self.recovery_grace_until || Mutant::SkipRecoveryGrace.is_on() {
            self.unreported_pools.clear();
        }
        !self.unreported_pools.is_empty()
    }

    /// How many pools are still to be heard, and until when at the latest.
    pub(super) fn recovery_grace(&self) -> Option<(u64, Timestamp)> {
        let pools = self.unreported_pools.len() as u64;
        (pools > 0 && self.now < self.recovery_grace_until).then_some((pools, self.recovery_grace_until))
    }
}
