//! What capacity costs: price schedules per pool, in integer millionths of a currency. Every version is
//! retained.

use super::id::PoolId;
use super::resource::ResourceKind;
use super::time::Timestamp;

/// One version of a pool's prices, valid from an instant until the next version's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    pub pool: PoolId,
    pub valid_from: Timestamp,
    /// Numbers the pool's prices from 1. Each amount in the ledger names the version it was computed with.
    pub version: u32,
    pub schedule: PriceSchedule,
}

/// The rates of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceSchedule {
    /// ISO 4217, three capital letters: `CNY`.
    pub currency: String,
    /// The first matching rate applies; a resource without a matching rate is free. At most
    /// [`RATES_MAX`](super::limit::RATES_MAX).
    pub rates: Vec<Rate>,
}

/// The price of one kind of resource during a part of the day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    pub kind: ResourceKind,
    /// The device model that the rate applies to; empty means any. Only for devices.
    pub model: String,
    /// Millionths of the currency per hour, for one core, one GiB, one device, or one unit of another kind.
    /// At most [`MICROS_MAX`](super::limit::MICROS_MAX).
    pub micros_per_hour: u64,
    /// First minute of the day in UTC, inclusive, 0 to 1,439.
    pub from_minute: u16,
    /// Last minute of the day in UTC, exclusive, 1 to 1,440. 0 to 1,440 is the whole day; an end before the
    /// beginning spans midnight.
    pub to_minute: u16,
}
