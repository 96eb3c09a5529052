//! What falls due by itself, found in bounded portions and decided like any command.

use std::collections::BTreeSet;

use super::Decision;
use crate::model::attempt::{OutcomeKind, Phase, StopReason};
use crate::model::id::{JobId, NodeRef, PoolId, UnitId};
use crate::model::limit::TOKEN_RETENTION_MS;
use crate::model::pool::{Drain, DrainMode, Reach};
use crate::model::time::Timestamp;
use crate::state::command::Chore;
use crate::state::event::Event;
use crate::state::job::Closing;
use crate::state::rejection::Rejection;
use crate::state::{State, Timer};

/// Chores of one step: the rest waits for the next.
pub const CHORES_MAX: usize = 256;

impl State {
    /// The next chores that are due at `now`, at most [`CHORES_MAX`]. `brake` holds back the ends
    /// of leases: too many pools are silent at once to be their fault. Until `tokens_kept` no request
    /// token is forgotten.
    pub fn chores(&self, now: Timestamp, brake: bool, tokens_kept: Timestamp) -> Vec<Chore> {
        let mut chores = Vec::new();
        if self.next_token().is_some_and(|at| at.max(tokens_kept) <= now) {
            chores.push(Chore::ExpireTokens { count: 1_024 });
        }
        for timer in self.due_timers(now).take(CHORES_MAX) {
            match timer {
                Timer::Release(unit) => chores.push(Chore::Release(unit)),
                Timer::EndRun(unit) => chores.push(Chore::EndRun(unit)),
                Timer::EndStart(unit) => chores.push(Chore::EndStart(unit)),
                Timer::Readmit(at) => chores.push(Chore::Readmit(at)),
                Timer::EndReservation(id) => chores.push(Chore::EndReservation(id)),
                Timer::Drain(pool) => chores.push(Chore::BeginEviction(pool)),
            }
        }
        let derived = &self.derived;
        chores.extend(derived.doomed.iter().take(CHORES_MAX).map(|job| Chore::Close(*job, Closing::Failed)));
        for job in derived.closing.iter().take(CHORES_MAX) {
            let units =
                derived.stoppable.range(UnitId { job: *job, unit: 0 }..=UnitId { job: *job, unit: u32::MAX });
            chores.extend(
                units.take(CHORES_MAX.saturating_sub(chores.len())).map(|unit| Chore::StopClosing(*unit)),
            );
        }
        for pool in &derived.evicting {
            let room = CHORES_MAX.saturating_sub(chores.len());
            chores.extend(units_in(&derived.stoppable_in, *pool).take(room).map(Chore::StopDraining));
        }
        for pool in derived.lost.iter().filter(|_| !brake) {
            let room = CHORES_MAX.saturating_sub(chores.len());
            chores.extend(units_in(&derived.requeueable, *pool).take(room).map(Chore::EndLease));
        }
        chores.truncate(CHORES_MAX);
        chores
    }

    pub(super) fn decide_chore(&self, now: Timestamp, chore: Chore) -> Result<Decision, Rejection> {
        let outdated = Err(Rejection::Outdated { what: "the chore" });
        let events = match chore {
            Chore::ExpireTokens { count } => {
                let old = |at: &Timestamp| at.plus_ms(TOKEN_RETENTION_MS) <= now;
                let count = self.tokens.count_older(count, old);
                if count == 0 { Vec::new() } else { vec![Event::TokensExpired { count }] }
            }
            Chore::Release(unit) => vec![Event::UnitReleased { unit }],
            Chore::EndRun(unit) => self.stop(unit, StopReason::TimedOut),
            Chore::EndStart(unit) => self.stop(unit, StopReason::StartLimit),
            Chore::StopClosing(unit) => {
                let closing = self.job(unit.job).and_then(|job| job.closing);
                let reason = match closing {
                    Some(Closing::Failed) => StopReason::JobFailed,
                    Some(Closing::Cancelled) | None => StopReason::Cancelled,
                };
                self.stop(unit, reason)
            }
            Chore::BeginEviction(pool) => {
                let drain = Some(Drain { mode: DrainMode::Evict, deadline: None });
                vec![Event::PoolDrainChanged { pool, drain }]
            }
            Chore::StopDraining(unit) => self.stop(unit, StopReason::Drained),
            Chore::EndLease(unit) => {
                let lost = self.attempt(unit).and_then(|attempt| self.pool(attempt.pool));
                if lost.is_none_or(|pool| pool.reach != Reach::Lost) || !self.may_requeue(unit) {
                    return outdated;
                }
                self.end_unasked(now, unit, OutcomeKind::LeaseEnded, "its pool fell silent")
            }
            Chore::Readmit(NodeRef { pool, node }) => vec![Event::NodeReadmitted { pool, node }],
            Chore::EndReservation(id) => return self.decide_end_reservation(id),
            Chore::Close(id, why) => {
                let Some(job) = self.job(id).filter(|job| job.closing.is_none()) else { return outdated };
                let mut events = Vec::new();
                self.close(job, why, job.live(), &mut events);
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
