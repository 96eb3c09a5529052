//! Pools fall silent: READY, SUSPECT, UNREACHABLE, LOST, by time alone.

use super::Broker;
use crate::model::exchange::RefusedCode;
use crate::model::id::PoolId;
use crate::model::mutant::Mutant;
use crate::model::pool::Reach;
use crate::model::time::Timestamp;
use crate::state::command::Command;
use crate::state::job::Principal;

/// With so many pools silent, and more than half of all, the fault is likely the broker's own
/// network: leases are not ended.
const BRAKE_POOLS: usize = 3;

impl Broker {
    /// Counts every pool's silence from now.
    pub(super) fn restart_silence(&mut self) {
        let pools: Vec<PoolId> = self.state.pools().map(|pool| pool.id).collect();
        self.silence.clear();
        self.heard.clear();
        self.leases_kept = self.now.plus_ms(self.state.settings().lost_ms);
        for pool in pools {
            self.note_heard(pool);
        }
    }

    /// A pool's agent has spoken.
    pub(super) fn note_heard(&mut self, pool: PoolId) {
        if let Some(before) = self.heard.insert(pool, self.now) {
            self.silence.retain_not(before, pool, self.state.settings());
        }
        self.expect(pool);
    }

    /// Notes when a pool's silence next means something.
    fn expect(&mut self, pool: PoolId) {
        let settings = *self.state.settings();
        let Some(heard) = self.heard.get(&pool).copied() else { return };
        let thresholds = [settings.suspect_ms, settings.unreachable_ms, settings.lost_ms];
        let next = thresholds.into_iter().map(|ms| heard.plus_ms(ms)).find(|at| *at > self.now);
        self.silence.extend(next.map(|at| (at, pool)));
    }

    /// Moves pools whose silence has passed a threshold.
    pub(super) fn watch_silence(&mut self) {
        while let Some((at, pool)) = self.silence.first().copied().filter(|(at, _)| *at <= self.now) {
            self.silence.remove(&(at, pool));
            let silent_ms = self.heard.get(&pool).map_or(0, |heard| self.now.ms_since(*heard));
            let settings = self.state.settings();
            let early = Mutant::LoseEarly.is_on();
            let lost_ms = if early { settings.unreachable_ms } else { settings.lost_ms };
            let reach = if silent_ms >= lost_ms {
                Reach::Lost
            } else if silent_ms >= settings.unreachable_ms {
                Reach::Unreachable
            } else if silent_ms >= settings.suspect_ms {
                Reach::Suspect
            } else {
                Reach::Ready
            };
            let worse = self.state.pool(pool).is_some_and(|pool| reach > pool.reach);
            if worse {
                let _ = self.command(Principal::System, Command::ChangeReach { pool, reach });
            }
            // What a lost pool runs may have been given up meanwhile: if it comes back, both sides
            // must exchange full sets again.
            if reach == Reach::Lost
                && let Some(session) = self.speakers.get(&pool).copied()
            {
                self.refuse(session, RefusedCode::Superseded, "silent for too long");
            }
            self.expect(pool);
        }
    }

    /// No lease is ended: too many pools are silent at once, or we have not listened for long enough
    /// ourselves. A pool that was lost before our turn may have been served since, by a broker on an
    /// older copy of the journal.
    pub(super) fn brake(&self) -> bool {
        if self.now < self.leases_kept {
            return true;
        }
        let pools = self.state.pools();
        let (silent, all) = pools
            .fold((0, 0), |(silent, all), pool| (silent + usize::from(pool.reach != Reach::Ready), all + 1));
        silent >= BRAKE_POOLS && silent * 2 > all
    }
}

/// Removal of a pool's pending threshold without searching for it.
trait Thresholds {
    fn retain_not(&mut self, heard: Timestamp, pool: PoolId, settings: &crate::state::event::Settings);
}

impl Thresholds for std::collections::BTreeSet<(Timestamp, PoolId)> {
    fn retain_not(&mut self, heard: Timestamp, pool: PoolId, settings: &crate::state::event::Settings) {
        for ms in [settings.suspect_ms, settings.unreachable_ms, settings.lost_ms] {
            self.remove(&(heard.plus_ms(ms), pool));
        }
    }
}
