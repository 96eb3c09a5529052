//! What capacity costs: schedules in integer micro-currency, by pool, each version kept.

use super::id::PoolId;
use super::resource::ResourceKind;
use super::time::Timestamp;

/// Prices of one pool from an instant on, until the next version's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    pub pool: PoolId,
    pub valid_from: Timestamp,
    /// Counts the pool's prices from 1: the ledger names it with each amount.
    pub version: u32,
    pub schedule: PriceSchedule,
}

/// The rates that hold together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceSchedule {
    /// ISO 4217, three capital letters: `CNY`.
    pub currency: String,
    /// The first that fits holds; what none fits is free.
    pub rates: Vec<Rate>,
}

/// The price of one kind of resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    pub kind: ResourceKind,
    /// Of devices: only this model; empty means any.
    pub model: String,
    /// Millionths of the currency for one core, one GiB, one device, or one unit, for an hour.
    pub micros_per_hour: u64,
    /// Minutes of the day in UTC, from inclusive, to exclusive; 0 and 1,440 are the whole day. One
    /// that ends before it begins spans midnight.
    pub from_minute: u16,
    pub to_minute: u16,
}
