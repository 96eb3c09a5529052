//! What falls due by itself, found in bounded portions and decided like any command.

use std::collections::BTreeSet;

use super::Decision;
use crate::model::attempt::{OutcomeKind, Phase, StopReason};
use crate::model::id::{JobId, NodeRef, PoolId, UnitId};
use crate::model::limit::TOKEN_RETENTION_MS;
use crate::model::pool::{Connectivity, Drain, DrainMode};
use crate::model::time::Timestamp;
use crate::state::State;
use crate::state::command::DueAction;
use crate::state::event::{Event, lease_surely_over_ms};
use crate::state::index::timers::Timer;
use crate::state::job::Closing;
use crate::state::rejection::Rejection;

/// Due actions of one step: the rest waits for the next.
pub const DUE_ACTIONS_MAX: usize = 256;

impl State {
    /// What is due at `now`, at most [`DUE_ACTIONS_MAX`] actions. `silent_ms` is for how long a pool has been silent,
    /// as far as that ends leases. No request token is removed before `token_expiry_floor`.
    pub fn due_actions(
        &self,
        now: Timestamp,
        silent_ms: impl Fn(PoolId) -> u64,
        token_expiry_floor: Timestamp,
    ) -> Vec<DueAction> {
        let mut due_actions = Vec::new();
        if self.next_token().is_some_and(|at| at.max(token_expiry_floor) <= now) {
            due_actions.push(DueAction::ExpireTokens { count: 1_024 });
        }
        for timer in self.due_timers(now).take(DUE_ACTIONS_MAX) {
            match timer {
                Timer::Release(unit) => due_actions.push(DueAction::Release(unit)),
                Timer::EndRun(unit) => due_actions.push(DueAction::EndRun(unit)),
                Timer::EndStart(unit) => due_actions.push(DueAction::EndStart(unit)),
                Timer::ReleaseNode(at) => due_actions.push(DueAction::ReleaseNode(at)),
                Timer::EndReservation(id) => due_actions.push(DueAction::EndReservation(id)),
                Timer::Drain(pool) => due_actions.push(DueAction::BeginEviction(pool)),
            }
        }
        let index = &self.index;
        due_actions.extend(
            index
                .dependents
                .failed
                .iter()
                .take(DUE_ACTIONS_MAX)
                .map(|job| DueAction::Close(*job, Closing::Failed)),
        );
        for job in index.stops.closing.iter().take(DUE_ACTIONS_MAX) {
            let units = index
                .stops
                .stoppable
                .range(UnitId { job: *job, unit: 0 }..=UnitId { job: *job, unit: u32::MAX });
            due_actions.extend(
                units
                    .take(DUE_ACTIONS_MAX.saturating_sub(due_actions.len()))
                    .map(|unit| DueAction::StopClosing(*unit)),
            );
        }
        for pool in &index.stops.evicting {
            let left = DUE_ACTIONS_MAX.saturating_sub(due_actions.len());
            due_actions
                .extend(units_in(&index.stops.stoppable_in, *pool).take(left).map(DueAction::StopDraining));
        }
        for pool in &index.stops.lost {
            let left = DUE_ACTIONS_MAX.saturating_sub(due_actions.len());
            let silent_ms = silent_ms(*pool);
            let over = index
                .stops
                .requeueable_in(*pool)
                .take_while(|(lease_ms, _)| lease_surely_over_ms(*lease_ms) <= silent_ms);
            due_actions.extend(over.take(left).map(|(_, unit)| DueAction::EndLease { unit, silent_ms }));
        }
        due_actions.truncate(DUE_ACTIONS_MAX);
        due_actions
    }

    pub(super) fn decide_due_action(
        &self,
        now: Timestamp,
        due_action: DueAction,
    ) -> Result<Decision, Rejection> {
        let outdated = Err(Rejection::Outdated { what: "the due action" });
        let events = match due_action {
            DueAction::ExpireTokens { count } => {
                let old = |at: &Timestamp| at.plus_ms(TOKEN_RETENTION_MS) <= now;
                let count = self.tokens.count_older(count, old);
                if count == 0 { Vec::new() } else { vec![Event::TokensExpired { count }] }
            }
            DueAction::Release(unit) => vec![Event::UnitReleased { unit }],
            DueAction::EndRun(unit) => self.stop(unit, StopReason::TimedOut),
            DueAction::EndStart(unit) => self.stop(unit, StopReason::StartLimit),
            DueAction::StopClosing(unit) => {
                let closing = self.job(unit.job).and_then(|job| job.closing);
                let reason = match closing {
                    Some(Closing::Failed) => StopReason::JobFailed,
                    Some(Closing::Cancelled) | None => StopReason::Cancelled,
                };
                self.stop(unit, reason)
            }
            DueAction::BeginEviction(pool) => {
                let drain = Some(Drain { mode: DrainMode::Evict, deadline: None });
                vec![Event::PoolDrainChanged { pool, drain }]
            }
            DueAction::StopDraining(unit) => self.stop(unit, StopReason::Drained),
            DueAction::EndLease { unit, silent_ms } => {
                let pool = self.attempt(unit).and_then(|attempt| self.pool(attempt.pool));
                let lost = pool.is_some_and(|pool| pool.connectivity == Connectivity::Lost);
                let lease_ms = self.requeue_lease_ms(unit);
                if !lost || lease_ms.is_none_or(|lease_ms| lease_surely_over_ms(lease_ms) > silent_ms) {
                    return outdated;
                }
                self.end_unasked(now, unit, OutcomeKind::LeaseEnded, "its pool fell silent")
            }
            DueAction::ReleaseNode(NodeRef { pool, node }) => vec![Event::NodeReleased { pool, node }],
            DueAction::EndReservation(id) => return self.decide_end_reservation(id),
            DueAction::Close(id, why) => {
                let Some(job) = self.job(id).filter(|job| job.closing.is_none()) else { return outdated };
                let mut events = Vec::new();
                self.close(job, why, "", job.live(), &mut events);
                events
            }
        };
        Ok(Decision::done(events))
    }

    fn stop(&self, unit: UnitId, reason: StopReason) -> Vec<Event> {
        let stoppable = self.attempt(unit).is_some_and(|attempt| attempt.phase != Phase::Stopping);
        stoppable.then_some(Event::AttemptStopping { unit, reason }).into_iter().collect()
    }
}

fn units_in(set: &BTreeSet<(PoolId, UnitId)>, pool: PoolId) -> impl Iterator<Item = UnitId> {
    let first = (pool, UnitId { job: JobId(0), unit: 0 });
    set.range(first..).take_while(move |(other, _)| *other == pool).map(|(_, unit)| *unit)
}
