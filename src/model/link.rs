//! Links between regions: what moving data costs in time and money.

use super::region::RegionCode;

/// The network link between two regions; its figures hold in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The two regions, the smaller code first: one link per pair.
    pub ends: (RegionCode, RegionCode),
    /// 1 to [`LINK_BITS_PER_S_MAX`](super::limit::LINK_BITS_PER_S_MAX).
    pub bandwidth_bits_per_s: u64,
    /// 0 to [`LINK_ROUND_TRIP_MICROS_MAX`](super::limit::LINK_ROUND_TRIP_MICROS_MAX).
    pub round_trip_micros: u32,
    /// Price of transferring 10^9 bytes, in millionths of the currency; 0 is free. At most
    /// [`MICROS_MAX`](super::limit::MICROS_MAX).
    pub micros_per_gb: u64,
}
