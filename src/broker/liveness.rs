//! Pools fall silent: READY, SUSPECT, UNREACHABLE, LOST, by time alone.

use super::Broker;
use crate::model::exchange::RefusedCode;
use crate::model::id::PoolId;
use crate::model::mutant::Mutant;
use crate::model::pool::Connectivity;
use crate::model::time::Timestamp;
use crate::state::command::Command;
use crate::state::job::Principal;

/// With so many pools silent, and more than half of all, the fault is likely the broker's own
/// network: leases are not ended.
const CIRCUIT_BREAKER_POOLS_MIN: usize = 3;

impl Broker {
    /// Counts every pool's silence from now.
    pub(super) fn reset_heartbeats(&mut self) {
        let pools: Vec<PoolId> = self.state.pools().map(|pool| pool.id).collect();
        self.heartbeat_deadlines.clear();
        self.last_heartbeat.clear();
        self.lease_expiry_floor = self.now.plus_ms(self.state.settings().lost_ms);
        for pool in pools {
            self.note_heartbeat(pool);
        }
    }

    /// A pool's agent has spoken.
    pub(super) fn note_heartbeat(&mut self, pool: PoolId) {
        if let Some(before) = self.last_heartbeat.insert(pool, self.now) {
            self.heartbeat_deadlines.retain_not(before, pool, self.state.settings());
        }
        self.expect(pool);
    }

    /// Notes when a pool's silence next means something.
    fn expect(&mut self, pool: PoolId) {
        let settings = *self.state.settings();
        let Some(last_heartbeat) = self.last_heartbeat.get(&pool).copied() else { return };
        let thresholds = [settings.suspect_ms, settings.unreachable_ms, settings.lost_ms];
        let next = thresholds.into_iter().map(|ms| last_heartbeat.plus_ms(ms)).find(|at| *at > self.now);
        self.heartbeat_deadlines.extend(next.map(|at| (at, pool)));
    }

    /// Moves pools whose silence has passed a threshold.
    pub(super) fn check_heartbeats(&mut self) {
        while let Some((at, pool)) =
            self.heartbeat_deadlines.first().copied().filter(|(at, _)| *at <= self.now)
        {
            self.heartbeat_deadlines.remove(&(at, pool));
            let silent_ms =
                self.last_heartbeat.get(&pool).map_or(0, |last_heartbeat| self.now.ms_since(*last_heartbeat));
            let settings = self.state.settings();
            let early = Mutant::LoseEarly.is_on();
            let lost_ms = if early { settings.unreachable_ms } else { settings.lost_ms };
            let connectivity = if silent_ms >= lost_ms {
                Connectivity::Lost
            } else if silent_ms >= settings.unreachable_ms {
                Connectivity::Unreachable
            } else if silent_ms >= settings.suspect_ms {
                Connectivity::Suspect
            } else {
                Connectivity::Ready
            };
            let worse = self.state.pool(pool).is_some_and(|pool| connectivity > pool.connectivity);
            if worse {
                let _ = self.command(Principal::System, Command::ChangeConnectivity { pool, connectivity });
            }
            // What a lost pool runs may have been given up meanwhile: if it comes back, both sides
            // must exchange full sets again.
            if connectivity == Connectivity::Lost
                && let Some(session) = self.active_sessions.get(&pool).copied()
            {
                self.refuse(session, RefusedCode::Superseded, "silent for too long");
            }
            self.expect(pool);
        }
    }

    /// No lease is ended: too many pools are silent at once, or we have not listened for long enough
    /// ourselves. A pool that was lost before our turn may have been served since, by a broker on an
    /// older copy of the journal.
    pub(super) fn is_circuit_open(&self) -> bool {
        if self.now < self.lease_expiry_floor {
            return true;
        }
        let pools = self.state.pools();
        let (silent, all) = pools.fold((0, 0), |(silent, all), pool| {
            (silent + usize::from(pool.connectivity != Connectivity::Ready), all + 1)
        });
        silent >= CIRCUIT_BREAKER_POOLS_MIN && silent * 2 > all
    }
}

/// Removal of a pool's pending threshold without searching for it.
trait Thresholds {
    fn retain_not(
        &mut self,
        last_heartbeat: Timestamp,
        pool: PoolId,
        settings: &crate::state::event::Settings,
    );
}

impl Thresholds for std::collections::BTreeSet<(Timestamp, PoolId)> {
    fn retain_not(
        &mut self,
        last_heartbeat: Timestamp,
        pool: PoolId,
        settings: &crate::state::event::Settings,
    ) {
        for ms in [settings.suspect_ms, settings.unreachable_ms, settings.lost_ms] {
            self.remove(&(last_heartbeat.plus_ms(ms), pool));
        }
    }
}
