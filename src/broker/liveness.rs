//! Liveness: a pool whose heartbeats are missing goes READY, SUSPECT, UNREACHABLE, LOST, by time alone.

use std::collections::{BTreeMap, BTreeSet};

use super::Broker;
use crate::model::exchange::RefusedCode;
use crate::model::id::PoolId;
use crate::model::pool::Connectivity;
use crate::model::time::Timestamp;
use crate::state::command::Command;
use crate::state::event::Settings;
use crate::state::job::Principal;
use crate::state::pool::Pool;

/// With so many pools without heartbeats, and more than half of all, the fault is likely the broker's own
/// network: the mass-failure circuit breaker opens, and no lease is ended.
const CIRCUIT_BREAKER_POOLS_MIN: usize = 3;
/// A pool that has been LOST for longer no longer counts for the circuit breaker.
const GIVEN_UP_MS: u64 = 3_600_000;

/// When each pool was last active, and what follows from that.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    last_heartbeat: BTreeMap<PoolId, Timestamp>,
    /// When a pool's missing heartbeats next change its connectivity.
    deadlines: BTreeSet<(Timestamp, PoolId)>,
}

impl Liveness {
    /// Removes a pool's deadline without searching for it.
    fn remove_deadline(&mut self, heartbeat: Timestamp, pool: PoolId, settings: &Settings) {
        for ms in [settings.suspect_ms, settings.unreachable_ms, settings.lost_ms] {
            self.deadlines.remove(&(heartbeat.plus_ms(ms), pool));
        }
    }

    /// The next deadline.
    pub(super) fn next_deadline(&self) -> Timestamp {
        self.deadlines.first().map_or(Timestamp::NEVER, |(at, _)| *at)
    }
}

impl Broker {
    /// Counts every pool's missing heartbeats from now on.
    pub(super) fn reset_heartbeats(&mut self) {
        let pools: Vec<PoolId> = self.state.pools().map(|pool| pool.id).collect();
        self.liveness.deadlines.clear();
        self.liveness.last_heartbeat.clear();
        for pool in pools {
            self.note_heartbeat(pool);
        }
    }

    /// A message of a pool's active agent has arrived.
    pub(super) fn note_heartbeat(&mut self, pool: PoolId) {
        if let Some(before) = self.liveness.last_heartbeat.insert(pool, self.now) {
            self.liveness.remove_deadline(before, pool, self.state.settings());
        }
        self.set_deadline(pool);
    }

    /// A pool is deleted: its heartbeats are no longer expected.
    pub(super) fn forget_heartbeats(&mut self, pool: PoolId) {
        if let Some(last) = self.liveness.last_heartbeat.remove(&pool) {
            self.liveness.remove_deadline(last, pool, self.state.settings());
        }
    }

    /// Sets the pool's next deadline.
    fn set_deadline(&mut self, pool: PoolId) {
        let settings = *self.state.settings();
        let Some(last_heartbeat) = self.liveness.last_heartbeat.get(&pool).copied() else { return };
        let thresholds = [settings.suspect_ms, settings.unreachable_ms, settings.lost_ms];
        let next = thresholds.into_iter().map(|ms| last_heartbeat.plus_ms(ms)).find(|at| *at > self.now);
        self.liveness.deadlines.extend(next.map(|at| (at, pool)));
    }

    /// Changes the connectivity of pools whose deadline has passed.
    pub(super) fn check_heartbeats(&mut self) {
        while let Some((at, pool)) =
            self.liveness.deadlines.first().copied().filter(|(at, _)| *at <= self.now)
        {
            self.liveness.deadlines.remove(&(at, pool));
            let missing_ms = self.silent_ms(pool);
            let settings = self.state.settings();
            let connectivity = if missing_ms >= settings.lost_ms {
                Connectivity::Lost
            } else if missing_ms >= settings.unreachable_ms {
                Connectivity::Unreachable
            } else if missing_ms >= settings.suspect_ms {
                Connectivity::Suspect
            } else {
                Connectivity::Ready
            };
            let worse = self.state.pool(pool).is_some_and(|pool| connectivity > pool.connectivity);
            if worse {
                let _ = self.command(Principal::System, Command::ChangeConnectivity { pool, connectivity });
            }
            // From here on what the pool runs may be requeued: if it comes back, both sides must exchange full sets
            // again.
            if connectivity == Connectivity::Lost
                && let Some(session) = self.sessions.active.get(&pool).copied()
            {
                self.refuse(session, RefusedCode::Superseded, "no heartbeat for too long");
            }
            self.set_deadline(pool);
        }
    }

    /// For how long a pool has been silent, while this writer session listened. What was before does not count:
    /// the pool may have been served by a broker on a stale copy of the journal.
    pub(super) fn silent_ms(&self, pool: PoolId) -> u64 {
        self.liveness.last_heartbeat.get(&pool).map_or(0, |last| self.now.ms_since(*last))
    }

    /// No lease may be ended: too many pools miss heartbeats at once. Pools that were given up long ago don't
    /// count: whatever the share of them, the next one that falls silent may be requeued.
    pub(super) fn is_circuit_open(&self) -> bool {
        let given_up = |pool: &Pool| {
            pool.connectivity == Connectivity::Lost
                && pool.not_ready_since.is_some_and(|since| self.now.ms_since(since) > GIVEN_UP_MS)
        };
        let pools = self.state.pools().filter(|pool| !given_up(pool));
        let (missing, all) = pools.fold((0, 0), |(missing, all), pool| {
            (missing + usize::from(pool.connectivity != Connectivity::Ready), all + 1)
        });
        missing >= CIRCUIT_BREAKER_POOLS_MIN && missing * 2 > all
    }
}
