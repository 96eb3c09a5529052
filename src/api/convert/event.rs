//! Messages of events.

use super::view::{connectivity_message, drain_message, outcome_message, phase_message, principal_text};
use super::{Invalid, invalid};
use crate::api::proto::v1;
use crate::model::id::{AttemptId, JobId};
use crate::state::event::{Event, EventRecord, NextTry};
use crate::state::view::{JobPhase, JobView};

/// Where an event happened; what does not apply is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub pool: String,
    pub node: String,
    /// Number 0 if the attempt is no longer known.
    pub attempt: Option<AttemptId>,
}

/// What an event is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// `None` also if the job is no longer in the archive.
    pub job: Option<&'a JobView>,
    pub place: &'a Place,
}

/// The kind of an event; `None` for those by which the broker works and which mean nothing to others.
pub fn event_kind(event: &Event) -> Option<v1::EventKind> {
    Some(match event {
        Event::JobSubmitted { .. } => v1::EventKind::JobSubmitted,
        Event::JobUpdated { .. } => v1::EventKind::JobUpdated,
        Event::UnitsCancelled { .. } => v1::EventKind::UnitsCancelled,
        Event::JobClosing { .. } => v1::EventKind::JobClosing,
        Event::JobEnded { .. } => v1::EventKind::JobEnded,
        Event::AttemptOrdered { .. } => v1::EventKind::AttemptOrdered,
        Event::AttemptStarting { .. } => v1::EventKind::AttemptStarting,
        Event::AttemptRunning { .. } => v1::EventKind::AttemptRunning,
        Event::AttemptStopping { .. } => v1::EventKind::AttemptStopping,
        Event::AttemptEnded { .. } => v1::EventKind::AttemptEnded,
        Event::QueueCreated { .. } => v1::EventKind::QueueCreated,
        Event::QueueUpdated { .. } => v1::EventKind::QueueUpdated,
        Event::QueueDeleted { .. } => v1::EventKind::QueueDeleted,
        Event::PoolRegistered { .. } => v1::EventKind::PoolRegistered,
        Event::PoolUpdated { .. } => v1::EventKind::PoolUpdated,
        Event::PoolDeleted { .. } => v1::EventKind::PoolDeleted,
        Event::SessionOpened { .. } => v1::EventKind::PoolConnected,
        Event::PoolConnectivityChanged { .. } => v1::EventKind::PoolConnectivityChanged,
        Event::PoolCordoned { cordoned: true, .. } => v1::EventKind::PoolCordoned,
        Event::PoolCordoned { cordoned: false, .. } => v1::EventKind::PoolUncordoned,
        Event::PoolDrainChanged { .. } => v1::EventKind::PoolDrainChanged,
        Event::NodeReported { .. } => v1::EventKind::NodeReported,
        Event::NodeRemoved { .. } => v1::EventKind::NodeRemoved,
        Event::NodeCordoned { cordoned: true, .. } => v1::EventKind::NodeCordoned,
        Event::NodeCordoned { cordoned: false, .. } => v1::EventKind::NodeUncordoned,
        Event::NodeQuarantined { .. } => v1::EventKind::NodeQuarantined,
        Event::NodeReleased { .. } => v1::EventKind::NodeReleased,
        Event::JournalCreated { .. }
        | Event::TermStarted { .. }
        | Event::SettingsChanged { .. }
        | Event::RegionsAdded { .. }
        | Event::DeviceModelsAdded { .. }
        | Event::SpecAdded { .. }
        | Event::TokenUsed { .. }
        | Event::TokensExpired { .. }
        | Event::RoundPlanned { .. }
        | Event::UnitReleased { .. }
        | Event::PricesSet { .. }
        | Event::LinkSet { .. }
        | Event::ReservationMade { .. }
        | Event::ReservationEnded { .. }
        | Event::KeyDrawn { .. }
        | Event::WriterSessionStarted { .. }
        | Event::WorkloadProfileUpdated { .. }
        | Event::WorkloadProfileConfirmed => return None,
    })
}

/// The kind of this number.
///
/// # Errors
/// If there is none.
pub fn parse_event_kind(field: &str, value: i32) -> Result<v1::EventKind, Invalid> {
    match v1::EventKind::try_from(value) {
        Ok(kind) if kind != v1::EventKind::Unspecified => Ok(kind),
        _ => Err(invalid(field, format!("{value} is not a kind of event"))),
    }
}

/// The job of an event.
pub fn job_of(event: &Event) -> Option<JobId> {
    match event {
        Event::JobSubmitted { job, .. }
        | Event::JobUpdated { job, .. }
        | Event::UnitsCancelled { job, .. }
        | Event::JobClosing { job, .. }
        | Event::JobEnded { job, .. } => Some(*job),
        Event::AttemptOrdered { order } => Some(order.unit.job),
        Event::AttemptStarting { unit }
        | Event::AttemptRunning { unit, .. }
        | Event::AttemptStopping { unit, .. }
        | Event::AttemptEnded { unit, .. } => Some(unit.job),
        _ => None,
    }
}

/// The queue of an event that is about a queue itself.
pub fn queue_of(event: &Event) -> Option<&str> {
    match event {
        Event::QueueCreated { spec, .. } | Event::QueueUpdated { spec, .. } => Some(&spec.name),
        Event::QueueDeleted { name, .. } => Some(name),
        _ => None,
    }
}

/// Converts an event to its message.
pub fn event_message(record: &EventRecord, kind: v1::EventKind, subject: &Subject<'_>) -> v1::Event {
    let Subject { job, place } = subject;
    let mut message = v1::Event {
        revision: record.revision.0,
        happened_unix_ms: record.at.0,
        principal: principal_text(&record.principal),
        kind: kind.into(),
        queue: queue_of(&record.event).unwrap_or_default().to_owned(),
        job_id: job_of(&record.event).map_or(0, |job| job.0),
        pool: place.pool.clone(),
        node: place.node.clone(),
        ..v1::Event::default()
    };
    if let Some(job) = job {
        (message.queue, message.job_name) = (job.queue.clone(), job.name.clone());
    }
    if let Some(id) = place.attempt {
        (message.unit, message.number) = (id.unit, id.number);
        message.attempt = if id.number > 0 { id.to_string() } else { String::new() };
    }
    match &record.event {
        Event::JobSubmitted { name, .. } => message.job_name = name.to_string(),
        Event::JobUpdated { held, .. } => message.held = *held,
        Event::UnitsCancelled { units, .. } => {
            let range = |[start, end]: &[u32; 2]| v1::UnitRange { first: *start, last: end - 1 };
            message.units = units.intervals().iter().map(range).collect();
        }
        Event::JobClosing { reason, .. } => message.reason = reason.to_string(),
        Event::JobEnded { end, .. } => {
            message.job_phase = phase_message(JobPhase::from(*end)).into();
            message.outcome = job.and_then(|job| job.failure.as_ref()).map(outcome_message);
        }
        Event::AttemptStopping { reason, .. } => message.reason = <&str>::from(reason).to_owned(),
        Event::AttemptEnded { ended, .. } => {
            message.outcome = Some(outcome_message(&ended.outcome));
            message.retry_unix_ms = match ended.next {
                NextTry::Never => None,
                NextTry::Now => Some(record.at.0),
                NextTry::At(at) | NextTry::Later(at) => Some(at.0),
            };
        }
        Event::PoolConnectivityChanged { connectivity, .. } => {
            message.connectivity = connectivity_message(*connectivity).into();
        }
        Event::PoolDrainChanged { drain, .. } => message.drain = drain.map(drain_message),
        Event::NodeQuarantined { until, .. } => message.until_unix_ms = Some(until.0),
        _ => {}
    }
    message
}
