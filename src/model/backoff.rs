//! Exponential backoff: how long to wait before a repetition.

use std::time::Duration;

/// Waits that double, from a first up to a longest one. The caller sleeps, and adds jitter where many may wait.
///
/// ```
/// use std::time::Duration;
/// use weir::model::backoff::Backoff;
///
/// let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(70));
/// let waits: Vec<u128> = (0..4).map(|_| backoff.next_wait().as_millis()).collect();
/// assert_eq!(waits, [20, 40, 70, 70]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    /// Waits since the last reset.
    waits: u32,
}

impl Backoff {
    /// Begins with `first`. A `longest` below it counts as `first`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, waits: 0 }
    }

    /// The next wait: `first`, then each time twice the one before, at most `longest`.
    pub fn next_wait(&mut self) -> Duration {
        let wait = doubled(self.first, self.waits, self.longest);
        self.waits = self.waits.saturating_add(1);
        wait
    }

    /// Begins again with `first`: the last repetition succeeded.
    pub const fn reset(&mut self) {
        self.waits = 0;
    }

    /// Goes on with `longest`: repeating soon would not help.
    pub const fn skip_to_longest(&mut self) {
        self.waits = u32::MAX;
    }
}

/// `first`, doubled `times` times; at most `longest`, but at least `first`.
pub fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    let factor = 1u32.checked_shl(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest.max(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_never_overflow_and_begin_again_after_a_reset() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, longest);
        assert_eq!(backoff.next_wait(), first);
        backoff.skip_to_longest();
        assert_eq!([backoff.next_wait(), backoff.next_wait()], [longest; 2]);
        backoff.reset();
        assert_eq!([backoff.next_wait(), backoff.next_wait()], [first, first * 2]);
        assert_eq!(doubled(Duration::MAX / 2, 40, Duration::MAX), Duration::MAX);
        assert_eq!(doubled(first, 3, Duration::ZERO), first, "a longest wait below the first");
    }
}
