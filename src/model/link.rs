//! Links between regions: what moving data costs in time and money.

use super::region::RegionCode;

/// The way between two regions, alike in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The smaller code first.
    pub ends: (RegionCode, RegionCode),
    pub bandwidth_bits_per_s: u64,
    pub round_trip_micros: u32,
    /// Millionths of the currency for 10^9 bytes.
    pub micros_per_gb: u64,
}
