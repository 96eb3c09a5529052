//! The clock: the wall clock at start plus the boot clock since. It is never stepped.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::model::time::Timestamp;

/// Milliseconds of the boot clock, which goes on while the machine sleeps.
pub fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.cast_unsigned() * 1_000 + time.tv_nsec.cast_unsigned() / 1_000_000
}

/// Processor time that the calling thread has had.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned() as u32)
}

/// A clock that starts at the wall clock and then never steps.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Wall clock less boot clock, at start.
    offset_ms: u64,
}

impl Clock {
    /// Reads both clocks once.
    pub fn start() -> Self {
        let wall_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Self { offset_ms: wall_ms.saturating_sub(boot_ms()) }
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.offset_ms + boot_ms())
    }

    /// This clock's time on the boot clock, in milliseconds.
    pub fn to_boot_ms(&self, at: Timestamp) -> u64 {
        at.0.saturating_sub(self.offset_ms)
    }
}
