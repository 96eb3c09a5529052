//! Decides on what agents report of attempts.

use super::job::outcome_of_stop;
use super::{Decision, Ending, Reply};
use crate::model::attempt::{AttemptReport, AttemptStatus, Outcome, OutcomeKind, Phase};
use crate::model::id::{Epoch, NodeRef, PoolId, Revision, UnitId};
use crate::model::limit::MESSAGE_LEN_MAX;
use crate::model::mutant::Mutant;
use crate::model::text;
use crate::model::time::Timestamp;
use crate::state::State;
use crate::state::event::{EndedAttempt, Event, NextTry};
use crate::state::live::Attempt;
use crate::state::rejection::Rejection;

impl State {
    pub(super) fn decide_report(
        &self,
        now: Timestamp,
        pool_id: PoolId,
        epoch: Epoch,
        report: &AttemptReport,
    ) -> Result<Decision, Rejection> {
        let pool = self.pool_or_reject(pool_id)?;
        if epoch != pool.epoch && !Mutant::TakeOldEpochs.is_on() {
            let (pool, current) = (pool.spec.name.clone(), pool.epoch);
            return Err(Rejection::StaleEpoch { pool, current, epoch });
        }
        let id = report.attempt;
        let live = self.attempt(id.unit_id()).filter(|attempt| {
            id.journal == self.identity.journal && attempt.number == id.number && attempt.pool == pool_id
        });
        let Some(attempt) = live else {
            if id.journal != self.identity.journal || id.job.0 >= self.next.job {
                return Err(Rejection::UnknownAttempt { attempt: id.to_string() });
            }
            return Ok(Decision { events: Vec::new(), reply: Reply::Orphaned });
        };
        // While an older copy of the journal was in use, it gave this name to something else. An agent
        // that adopted what it found reports no revision.
        let other = report.ordered_revision != attempt.ordered_revision;
        if other && report.ordered_revision != Revision::default() && !Mutant::ObeyStaleIds.is_on() {
            return Ok(Decision { events: Vec::new(), reply: Reply::StaleId });
        }
        Ok(Decision::done(self.report_events(now, attempt, &report.status)))
    }

    fn report_events(&self, now: Timestamp, attempt: &Attempt, status: &AttemptStatus) -> Vec<Event> {
        let unit = attempt.unit;
        match status {
            AttemptStatus::Starting => match attempt.phase {
                Phase::Ordered => vec![Event::AttemptStarting { unit }],
                Phase::Starting | Phase::Running | Phase::Stopping => Vec::new(),
            },
            AttemptStatus::Running { started_at } => match attempt.phase {
                Phase::Ordered | Phase::Starting => {
                    // An agent's clock may be off: a start lies between its order and now.
                    let started_at = (*started_at).clamp(attempt.ordered_at, now.max(attempt.ordered_at));
                    vec![Event::AttemptRunning { unit, started_at }]
                }
                Phase::Running | Phase::Stopping => Vec::new(),
            },
            AttemptStatus::Ended { started_at, ended_at, outcome } => {
                let ended_at = (*ended_at).clamp(attempt.ordered_at, now.max(attempt.ordered_at));
                let started_at = started_at.map(|at| at.clamp(attempt.ordered_at, ended_at));
                let outcome = self.attributed(attempt, outcome);
                let next = self.next_try(now, unit, outcome.kind);
                let outcome = self.with_losses(attempt, outcome, next);
                let ended = EndedAttempt { started_at, ended_at, outcome, next };
                self.end_attempt_events(now, Ending { unit, ended })
            }
        }
    }

    /// Ends an attempt that can't be asked about.
    pub(super) fn end_unasked(
        &self,
        now: Timestamp,
        unit: UnitId,
        kind: OutcomeKind,
        message: &str,
    ) -> Vec<Event> {
        let Some(attempt) = self.attempt(unit) else { return Vec::new() };
        let next: NextTry = self.next_try(now, unit, kind);
        let outcome = Outcome { simulated: self.is_simulated(attempt), ..Outcome::plain(kind, message) };
        let outcome = self.with_losses(attempt, outcome, next);
        let ended = EndedAttempt { started_at: attempt.started_at, ended_at: now, outcome, next };
        self.end_attempt_events(now, Ending { unit, ended })
    }

    /// The outcome as the broker keeps it: what ended by a stop ended for the stop's reason, and whether it was
    /// simulated depends on the pool alone.
    fn attributed(&self, attempt: &Attempt, reported: &Outcome) -> Outcome {
        let mut outcome = Outcome { simulated: self.is_simulated(attempt), ..reported.clone() };
        text::truncate(&mut outcome.message, MESSAGE_LEN_MAX);
        if let Some(reason) = attempt.stop
            && !matches!(
                outcome.kind,
                OutcomeKind::Succeeded
                    | OutcomeKind::OutOfMemory
                    | OutcomeKind::TimedOut
                    | OutcomeKind::NodeLost
            )
        {
            outcome.kind = outcome_of_stop(reason);
        }
        outcome
    }

    /// Adds to the outcome of a unit that has lost its last permitted node how often and where it did.
    fn with_losses(&self, attempt: &Attempt, mut outcome: Outcome, next: NextTry) -> Outcome {
        let closing = self.job(attempt.unit.job).is_some_and(|job| job.closing.is_some());
        if next == NextTry::Never && outcome.kind.is_node_loss() && !closing {
            let at = attempt
                .placements
                .first()
                .map(|placement| NodeRef { pool: attempt.pool, node: placement.node });
            let node = at.and_then(|at| self.node(at)).map_or("", |node| node.spec.name.as_str());
            let colon = if outcome.message.is_empty() { "" } else { ": " };
            outcome.message = format!(
                "lost its node or lease {} times (retry.max_node_losses), last on node {node}; \
                 `weir get attempts` lists them{colon}{}",
                attempt.losses + 1,
                outcome.message
            );
            text::truncate(&mut outcome.message, MESSAGE_LEN_MAX);
        }
        outcome
    }

    fn is_simulated(&self, attempt: &Attempt) -> bool {
        self.pool(attempt.pool).is_some_and(|pool| !pool.spec.capabilities.real)
    }
}
