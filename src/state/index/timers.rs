//! What falls due, by when.

use std::collections::BTreeSet;

use crate::model::attempt::Phase;
use crate::model::id::{NodeRef, PoolId, ReservationId, UnitId};
use crate::model::time::Timestamp;
use crate::state::State;

/// Timers by when they fall due.
pub type Timers = BTreeSet<(Timestamp, Timer)>;

/// What falls due at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A unit's back-off ends.
    Release(UnitId),
    /// An attempt has run for as long as it may.
    EndRun(UnitId),
    /// An attempt should have started whole.
    EndStart(UnitId),
    /// A drain stops waiting.
    Drain(PoolId),
    /// A node's quarantine ends.
    ReleaseNode(NodeRef),
    EndReservation(ReservationId),
}

/// Computes the timers from the records.
pub fn rebuild(state: &State) -> Timers {
    let mut timers = Timers::new();
    for pool in state.pools.values() {
        timers.extend(pool.drain.and_then(|drain| drain.deadline).map(|at| (at, Timer::Drain(pool.id))));
        for node in pool.nodes.values() {
            let at = NodeRef { pool: pool.id, node: node.id };
            timers
                .extend(node.failure_tracker.quarantined_until.map(|until| (until, Timer::ReleaseNode(at))));
        }
    }
    for job in state.jobs.values() {
        for tried in job.groups.iter().flat_map(|group| &group.tried) {
            let unit = UnitId { job: job.id, unit: tried.unit };
            timers.extend(tried.not_before.map(|at| (at, Timer::Release(unit))));
        }
    }
    for attempt in state.attempts.values().filter(|attempt| attempt.phase != Phase::Stopping) {
        timers.insert((attempt.ends_by, Timer::EndRun(attempt.unit)));
        timers.extend(state.start_limit(attempt).map(|at| (at, Timer::EndStart(attempt.unit))));
    }
    let reservations = state.market.reservations.values();
    timers.extend(reservations.map(|entry| (entry.until, Timer::EndReservation(entry.id))));
    timers
}

impl State {
    /// What is due at `now`, in the order in which it fell due.
    pub(in crate::state) fn due_timers(&self, now: Timestamp) -> impl Iterator<Item = Timer> {
        self.index.timers.iter().take_while(move |(at, _)| *at <= now).map(|(_, timer)| *timer)
    }

    /// When the next timer falls due.
    pub fn next_timer(&self) -> Option<Timestamp> {
        self.index.timers.first().map(|(at, _)| *at)
    }
}
