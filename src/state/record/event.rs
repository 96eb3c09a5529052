//! Translation of events.

use super::translate::{Translate, get, put};
use super::{Error, proto};
use crate::model::id::{JobId, Revision, UnitId};
use crate::state::event::{Event, EventRecord, OrderedAttempt};
use crate::state::job::Principal;
use proto::event::Body;

/// Events whose fields are their message's: `name in the message: name in the event`. The others follow
/// in the form of match arms, once for each direction.
macro_rules! events {
    (
        $($variant:ident { $($wire:ident: $field:ident $([$kind:ident])?),* }),* ;
        to { $($event:pat => $message:expr,)* }
        from { $($body:pat => $value:expr,)* }
    ) => {
        fn to_body(event: &Event) -> Body {
            match event {
                $(Event::$variant { $($field),* } => {
                    Body::$variant(proto::$variant { $($wire: put!($field $(, $kind)?)),* })
                })*
                $($event => $message,)*
            }
        }

        fn from_body(body: Body) -> Result<Event, Error> {
            Ok(match body {
                $(Body::$variant(proto::$variant { $($wire),* }) => {
                    Event::$variant { $($field: get!($wire, stringify!($wire) $(, $kind)?)),* }
                })*
                $($body => $value,)*
            })
        }
    };
}

events! {
    JournalCreated { journal: journal },
    TermStarted { term: term },
    SettingsChanged { settings: settings [required] },
    RegionsAdded { regions: regions },
    DeviceModelsAdded { models: models },
    QueueCreated { queue: queue, spec: spec [required] },
    QueueUpdated { queue: queue, spec: spec [required] },
    QueueDeleted { queue: queue, name: name },
    SpecAdded { spec: spec, body: body [required] },
    JobSubmitted { job: job, name: name, queue: queue, spec: spec },
    TokenUsed { key: key, entry: entry [required] },
    TokensExpired { count: count },
    JobUpdated { job: job, spec: spec, held: held },
    UnitsCancelled { job: job, units: units [required] },
    JobClosing { job: job, why: why, reason: reason },
    JobEnded { job: job, end: end },
    RoundPlanned { policy: policy, version: version, based_on: based_on, budget: budget, cursor: cursor },
    PoolRegistered { pool: pool, spec: spec [required], instance: instance, key_digest: key_digest },
    PoolUpdated { pool: pool, spec: spec [required] },
    PoolDeleted { pool: pool, name: name },
    SessionOpened { pool: pool, epoch: epoch },
    PoolConnectivityChanged { pool: pool, connectivity: connectivity },
    PoolCordoned { pool: pool, cordoned: cordoned },
    PoolDrainChanged { pool: pool, drain: drain },
    NodeReported { pool: pool, node: node, spec: spec [required] },
    NodeRemoved { pool: pool, node: node, name: name },
    NodeCordoned { pool: pool, node: node, cordoned: cordoned },
    NodeQuarantined { pool: pool, node: node, until_unix_ms: until },
    NodeReleased { pool: pool, node: node },
    PricesSet { price: price [required] },
    LinkSet { link: link [required] },
    ReservationMade { reservation: reservation [required] },
    ReservationEnded { reservation: reservation },
    KeyDrawn { key: key },
    WriterSessionStarted { writer_session: writer_session },
    WorkloadProfileUpdated { profile: profile [required] };
    to {
        Event::AttemptOrdered { order } => Body::AttemptOrdered(order.to_message()),
        Event::AttemptStarting { unit: UnitId { job, unit } } => {
            Body::AttemptStarting(proto::AttemptStarting { job: job.0, unit: *unit })
        },
        Event::AttemptRunning { unit: UnitId { job, unit }, started_at } => {
            Body::AttemptRunning(proto::AttemptRunning { job: job.0, unit: *unit, started_unix_ms: started_at.0 })
        },
        Event::AttemptStopping { unit: UnitId { job, unit }, reason } => {
            Body::AttemptStopping(proto::AttemptStopping { job: job.0, unit: *unit, reason: put!(reason) })
        },
        Event::AttemptEnded { unit: UnitId { job, unit }, ended } => {
            Body::AttemptEnded(proto::AttemptEnded { job: job.0, unit: *unit, end: put!(ended, required) })
        },
        Event::UnitReleased { unit: UnitId { job, unit } } => {
            Body::UnitReleased(proto::UnitReleased { job: job.0, unit: *unit })
        },
        Event::WorkloadProfileConfirmed => Body::WorkloadProfileConfirmed(proto::WorkloadProfileConfirmed {}),
    }
    from {
        Body::AttemptOrdered(order) => Event::AttemptOrdered { order: Translate::from_message(order)? },
        Body::AttemptStarting(proto::AttemptStarting { job, unit }) => {
            Event::AttemptStarting { unit: unit_id(job, unit) }
        },
        Body::AttemptRunning(proto::AttemptRunning { job, unit, started_unix_ms }) => {
            let started_at = get!(started_unix_ms, "started_unix_ms");
            Event::AttemptRunning { unit: unit_id(job, unit), started_at }
        },
        Body::AttemptStopping(proto::AttemptStopping { job, unit, reason }) => {
            Event::AttemptStopping { unit: unit_id(job, unit), reason: get!(reason, "reason") }
        },
        Body::AttemptEnded(proto::AttemptEnded { job, unit, end }) => {
            Event::AttemptEnded { unit: unit_id(job, unit), ended: get!(end, "end", required) }
        },
        Body::UnitReleased(proto::UnitReleased { job, unit }) => Event::UnitReleased { unit: unit_id(job, unit) },
        Body::WorkloadProfileConfirmed(proto::WorkloadProfileConfirmed {}) => Event::WorkloadProfileConfirmed,
    }
}

/// In these messages a unit is two fields instead of a message of its own: two bytes less per event.
fn unit_id(job: u64, unit: u32) -> UnitId {
    UnitId { job: JobId(job), unit }
}

impl Translate<proto::AttemptOrdered> for OrderedAttempt {
    fn to_message(&self) -> proto::AttemptOrdered {
        let Self { unit: UnitId { job, unit }, number, pool, start_by, ends_by, leased, after, placements } =
            self;
        proto::AttemptOrdered {
            job: job.0,
            unit: *unit,
            number: *number,
            pool: pool.0,
            start_by_unix_ms: start_by.0,
            ends_by_unix_ms: ends_by.0,
            leased: *leased,
            after: put!(after),
            placements: put!(placements),
        }
    }

    fn from_message(message: proto::AttemptOrdered) -> Result<Self, Error> {
        let proto::AttemptOrdered {
            job,
            unit,
            number,
            pool,
            start_by_unix_ms,
            ends_by_unix_ms,
            leased,
            after,
            placements,
        } = message;
        Ok(Self {
            unit: unit_id(job, unit),
            number,
            pool: get!(pool, "pool"),
            start_by: get!(start_by_unix_ms, "start_by_unix_ms"),
            ends_by: get!(ends_by_unix_ms, "ends_by_unix_ms"),
            leased,
            after: get!(after, "after"),
            placements: get!(placements, "placements"),
        })
    }
}

/// The event's message. Its revision is the batch's and the event's place in it.
impl EventRecord {
    pub(super) fn to_message(&self) -> proto::Event {
        let system = self.principal == Principal::System;
        proto::Event {
            at_unix_ms: self.at.0,
            principal: (!system).then(|| self.principal.to_message()),
            body: Some(to_body(&self.event)),
        }
    }
}

pub(super) fn from_message(revision: u64, message: proto::Event) -> Result<EventRecord, Error> {
    let proto::Event { at_unix_ms, principal, body } = message;
    Ok(EventRecord {
        revision: Revision(revision),
        at: get!(at_unix_ms, "at_unix_ms"),
        principal: get!(principal, "principal", default),
        event: from_body(body.ok_or_else(|| Error::unknown("kind of event", "none"))?)?,
    })
}
