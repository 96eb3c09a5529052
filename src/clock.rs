//! The clock: the wall clock at start plus the boot clock's time since, so that it never steps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::model::time::Timestamp;

/// The boot clock (`CLOCK_BOOTTIME`) in milliseconds. It also counts while the machine is suspended.
pub fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.cast_unsigned() * 1_000 + time.tv_nsec.cast_unsigned() / 1_000_000
}

/// Processor time used by the calling thread.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned() as u32)
}

/// A clock that starts at the wall clock's time and never steps, whatever happens to the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Wall clock minus boot clock at start.
    offset_ms: u64,
}

impl Clock {
    /// Reads both clocks once.
    pub fn start() -> Self {
        let wall_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Self { offset_ms: wall_ms.saturating_sub(boot_ms()) }
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.offset_ms + boot_ms())
    }

    /// Converts a time of this clock to the boot clock, in milliseconds; 0 for a time before boot.
    pub fn to_boot_ms(&self, at: Timestamp) -> u64 {
        at.0.saturating_sub(self.offset_ms)
    }
}

/// Lengthens `wait` by a random part of up to half of it, so that clients refused at the same time
/// don't repeat at the same time.
pub fn spread(wait: Duration) -> Duration {
    let half = u64::try_from(wait.as_micros() / 2).unwrap_or(u64::MAX);
    wait + Duration::from_micros(rand::random_range(0..=half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_spread_over_half_of_their_length() {
        let wait = Duration::from_millis(100);
        let waits: Vec<Duration> = (0..200).map(|_| spread(wait)).collect();
        assert!(waits.iter().all(|it| (wait..=wait * 3 / 2).contains(it)), "{waits:?}");
        let early = waits.iter().filter(|it| **it < wait * 5 / 4).count();
        assert!((50..150).contains(&early), "{early} of 200 in the first half");
    }
}
