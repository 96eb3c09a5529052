//! Clocks of machines: each one drifts, and after a restart it may show another time.

use weir::model::time::Timestamp;

/// The wall clock at virtual time 0: a plausible one.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// Drift within this, in millionths: leases allow for 1 % between two machines.
pub(crate) const DRIFT_PPM_MAX: i64 = 4_900;
const MILLION: i128 = 1_000_000;

/// Shows a machine's own time for the world's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// World time from which on this holds.
    from: u64,
    /// What the clock showed then.
    shown: u64,
    drift_ppm: i64,
}

impl Clock {
    /// A clock that is `offset_ms` off at world time `now`.
    pub(crate) fn new(now: u64, offset_ms: i64, drift_ppm: i64) -> Self {
        Self { from: now, shown: (EPOCH_MS + now).saturating_add_signed(offset_ms), drift_ppm }
    }

    /// What it shows at world time `now`.
    pub(crate) fn at(&self, now: u64) -> Timestamp {
        let since = i128::from(now.saturating_sub(self.from));
        let shown = i128::from(self.shown) + since * (MILLION + i128::from(self.drift_ppm)) / MILLION;
        Timestamp(u64::try_from(shown).unwrap_or(u64::MAX))
    }

    /// The first world time at which it shows `at` or later.
    pub(crate) fn world_at(&self, at: Timestamp) -> u64 {
        let ahead = i128::from(at.0.saturating_sub(self.shown));
        let rate = MILLION + i128::from(self.drift_ppm);
        let since = (ahead * MILLION + rate - 1) / rate;
        u64::try_from(i128::from(self.from) + since).unwrap_or(u64::MAX)
    }

    /// From now on it runs `jump_ms` ahead of itself and with another drift.
    pub(crate) fn disturb(&mut self, now: u64, jump_ms: u64, drift_ppm: i64) {
        let shown = self.at(now).0 + jump_ms;
        *self = Self { from: now, shown, drift_ppm };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn world_time_of_an_instant_is_the_first_that_shows_it() {
        for drift_ppm in [-4_900, 0, 3, 4_900] {
            let mut clock = Clock::new(1_000, -700, drift_ppm);
            clock.disturb(5_000, 250, drift_ppm);
            for later in [0, 1, 7, 20_000, 3_600_000] {
                let at = clock.at(5_000).plus_ms(later);
                let world = clock.world_at(at);
                assert!(clock.at(world) >= at, "{drift_ppm} {later}");
                assert!(world == 5_000 || clock.at(world - 1) < at, "{drift_ppm} {later}");
            }
        }
    }
}
