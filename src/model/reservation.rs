//! Reservations: capacity promised to a queue over an interval.

use super::id::{PoolId, QueueId, ReservationId};
use super::resource::Resources;
use super::time::Timestamp;

/// Capacity set aside for a queue from one instant to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub id: ReservationId,
    pub queue: QueueId,
    /// The pool that must provide the capacity; `None` allows any pool.
    pub pool: Option<PoolId>,
    /// The reserved amounts; `device_millis` counts thousandths of devices of `models`.
    pub amounts: Resources,
    /// Alternative device models, sorted; empty allows any model.
    pub models: Vec<String>,
    /// First instant of the reservation.
    pub from: Timestamp,
    /// End, exclusive; later than `from`. The reservation then expires without a command.
    pub until: Timestamp,
}
