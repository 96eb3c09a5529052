//! Wall clocks of the hosts: each has its own offset and drift, and a restart may change both.

use weir::model::time::Timestamp;

/// Wall-clock time at virtual time 0, for a clock without offset.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// Largest drift, in millionths. Leases tolerate 1 % between two hosts.
pub(crate) const DRIFT_PPM_MAX: i64 = 4_900;
const MILLION: i128 = 1_000_000;

/// Maps virtual time to a host's wall-clock time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Virtual time of the latest change of offset or drift.
    from: u64,
    /// Wall-clock time at `from`.
    shown: u64,
    drift_ppm: i64,
}

impl Clock {
    /// A clock with an offset of `offset_ms` at virtual time `now`.
    pub(crate) fn new(now: u64, offset_ms: i64, drift_ppm: i64) -> Self {
        Self { from: now, shown: (EPOCH_MS + now).saturating_add_signed(offset_ms), drift_ppm }
    }

    /// Wall-clock time at virtual time `now`.
    pub(crate) fn at(&self, now: u64) -> Timestamp {
        let since = i128::from(now.saturating_sub(self.from));
        let shown = i128::from(self.shown) + since * (MILLION + i128::from(self.drift_ppm)) / MILLION;
        Timestamp(u64::try_from(shown).unwrap_or(u64::MAX))
    }

    /// The first virtual time at which the clock shows `at` or later.
    pub(crate) fn virtual_at(&self, at: Timestamp) -> u64 {
        let ahead = i128::from(at.0.saturating_sub(self.shown));
        let rate = MILLION + i128::from(self.drift_ppm);
        let since = (ahead * MILLION + rate - 1) / rate;
        u64::try_from(i128::from(self.from) + since).unwrap_or(u64::MAX)
    }

    /// Moves the clock ahead by `jump_ms` and sets its drift.
    pub(crate) fn disturb(&mut self, now: u64, jump_ms: u64, drift_ppm: i64) {
        let shown = self.at(now).0 + jump_ms;
        *self = Self { from: now, shown, drift_ppm };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_of_an_instant_is_the_first_at_which_the_clock_shows_it() {
        for drift_ppm in [-4_900, 0, 3, 4_900] {
            let mut clock = Clock::new(1_000, -700, drift_ppm);
            clock.disturb(5_000, 250, drift_ppm);
            for later in [0, 1, 7, 20_000, 3_600_000] {
                let at = clock.at(5_000).plus_ms(later);
                let now = clock.virtual_at(at);
                assert!(clock.at(now) >= at, "{drift_ppm} {later}");
                assert!(now == 5_000 || clock.at(now - 1) < at, "{drift_ppm} {later}");
            }
        }
    }
}
