//! Reservations: capacity promised to a queue over an interval.

use super::id::{PoolId, QueueId, ReservationId};
use super::resource::Resources;
use super::time::Timestamp;

/// Capacity that a queue may count on from one instant to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub id: ReservationId,
    pub queue: QueueId,
    /// `None`: wherever it fits.
    pub pool: Option<PoolId>,
    /// Devices in thousandths, of `models`.
    pub amounts: Resources,
    /// Alternatives, sorted; empty means any.
    pub models: Vec<String>,
    pub from: Timestamp,
    /// Later than `from`; it ends by itself then.
    pub until: Timestamp,
}
