//! Instants. The kernel reads no clock: every instant comes with an input.

use std::fmt;

/// Milliseconds since the Unix epoch, on a clock that never steps back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Later than every other instant: a deadline that never passes.
    pub const NEVER: Self = Self(u64::MAX);

    /// Returns this instant plus `ms` milliseconds; [`NEVER`](Self::NEVER) instead of an overflow.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Returns the milliseconds from `earlier` until this instant; 0 if `earlier` is later.
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
