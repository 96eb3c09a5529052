//! Recovery: after a restart the broker finds out whether its journal is the newest copy, and waits for agents
//! to report before it schedules (recovery grace period).

use std::collections::BTreeSet;

use super::{Broker, Effect};
use crate::model::attempt::AttemptReport;
use crate::model::exchange::ToAgent;
use crate::model::high_water::HighWaterMark;
use crate::model::id::{PoolId, Revision};
use crate::model::limit::TOKEN_RETENTION_MS;
use crate::model::mutant::Mutant;
use crate::model::pool::Connectivity;
use crate::model::time::Timestamp;

/// What a writer session began with, and what it waits for.
#[derive(Debug)]
pub(super) struct Recovery {
    /// A random number that names this writer session in high-water marks.
    pub(super) writer_session: u64,
    /// Where the journal ended when this writer session began.
    pub(super) recovered: Revision,
    /// A revision that an agent has seen and this journal lacks: the journal is a stale copy, and nothing is
    /// written any more.
    pub(super) newer_revision: Option<Revision>,
    /// Pools that must report before anything is started, at the latest at `grace_until`.
    pub(super) unreported: BTreeSet<PoolId>,
    pub(super) grace_until: Timestamp,
    /// No request token is removed before. After a start or a pause the clock may show a much later time, while
    /// the clients that repeat their requests have waited only seconds.
    pub(super) token_expiry_floor: Timestamp,
}

impl Recovery {
    /// A writer session that starts at `now` on a journal that ends at `recovered`.
    pub(super) fn new(writer_session: u64, recovered: Revision, now: Timestamp) -> Self {
        Self {
            writer_session,
            recovered,
            newer_revision: None,
            unreported: BTreeSet::new(),
            grace_until: Timestamp::NEVER,
            token_expiry_floor: now.plus_ms(TOKEN_RETENTION_MS),
        }
    }
}

impl Broker {
    /// The high-water mark of a revision; `None` while the journal has no key.
    pub(super) fn high_water(&self, revision: Revision) -> Option<HighWaterMark> {
        self.state
            .key()
            .map(|key| key.high_water(self.state.journal(), self.recovery.writer_session, revision))
    }

    /// The mark was made for a part of the journal that this copy lacks: the copy is stale.
    ///
    /// A writer session that this journal contains must have ended here where the next one began. One that it
    /// does not contain was written to another copy: to a newer one, if that copy was longer than this one was
    /// when it was opened.
    pub(super) fn is_missing(&self, high_water: &HighWaterMark) -> bool {
        let beyond = match self.state.writer_session_end(high_water.writer_session) {
            Some(end) => end.is_some_and(|end| high_water.revision >= end),
            None => high_water.revision > self.recovery.recovered,
        };
        beyond
            && high_water.journal == self.state.journal()
            && !Mutant::TrustOldDisk.is_on()
            && self.state.key().is_some_and(|key| key.verifies(high_water))
    }

    /// Stops writing, because the journal is a stale copy. Orders that have not been sent are dropped.
    pub(super) fn become_read_only(&mut self, seen: Revision) {
        self.recovery.newer_revision = Some(self.recovery.newer_revision.unwrap_or_default().max(seen));
        self.durability.awaiting.retain(|(_, effect)| {
            let Effect::Direct { message, .. } = effect else { return true };
            !matches!(message, ToAgent::Orders { .. } | ToAgent::Stops { .. })
        });
    }

    /// The report is about an attempt that this journal never ordered. Either the journal is a stale copy and the
    /// agent has lost its high-water mark, or the agent's report is false. The attempt is left alone and its
    /// pool gets no more work, but one agent's report stops no other pool's work.
    pub(super) fn is_unknown_work(&self, report: &AttemptReport) -> bool {
        let attempt = report.attempt;
        attempt.journal == self.state.journal()
            && (report.ordered_revision > self.state.revision()
                || attempt.job >= self.state.next_job()
                || (report.ordered_revision > self.recovery.recovered && self.state.never_ordered(attempt)))
    }

    /// Begins to wait for the pools that were connected in the writer session before. Until they have reported
    /// what they run, a broker on a stale copy would start the same work again, or order an agent to start what
    /// was ordered while it was disconnected.
    pub(super) fn begin_recovery_grace(&mut self) {
        let there = self.state.pools().filter(|pool| pool.connectivity < Connectivity::Lost);
        self.recovery.unreported = there.map(|pool| pool.id).collect();
        self.recovery.grace_until = self.now.plus_ms(self.state.settings().unreachable_ms);
    }

    /// Some pool must still report before anything is started.
    pub(super) fn in_recovery_grace(&mut self) -> bool {
        if self.now >= self.recovery.grace_until || Mutant::SkipRecoveryGrace.is_on() {
            self.recovery.unreported.clear();
        }
        !self.recovery.unreported.is_empty()
    }

    /// How many pools must still report, and when the grace period ends at the latest; `None` after it.
    pub(super) fn recovery_grace(&self) -> Option<(u64, Timestamp)> {
        let pools = self.recovery.unreported.len() as u64;
        (pools > 0 && self.now < self.recovery.grace_until).then_some((pools, self.recovery.grace_until))
    }
}
