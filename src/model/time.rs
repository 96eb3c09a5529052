//! Instants. The kernel reads no clock: every instant comes with an input.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

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

/// The last millisecond of the year 9999.
const YEAR_9999_ENDS: u64 = 253_402_300_799_999;

/// RFC 3339 in UTC to the second, for messages.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ..=YEAR_9999_ENDS => {
                humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(self.0)).fmt(f)
            }
            _ => f.write_str("never"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Timestamp, YEAR_9999_ENDS};

    #[test]
    fn instants_are_printed_in_utc() {
        let printed = |ms| Timestamp(ms).to_string();
        assert_eq!(printed(0), "1970-01-01T00:00:00Z");
        assert_eq!(printed(1_795_983_219_690), "2026-11-29T20:13:39Z");
        assert_eq!(printed(YEAR_9999_ENDS), "9999-12-31T23:59:59Z");
        assert_eq!(printed(YEAR_9999_ENDS + 1), "never");
        assert_eq!(Timestamp::NEVER.to_string(), "never");
    }
}
