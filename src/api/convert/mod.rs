//! The only conversion between the protocol's types and the model's.

mod agent;
mod event;
mod spec;
mod view;

pub use agent::{from_agent, hello, sync_request, sync_response, to_agent};
pub(crate) use agent::{hello_message, parse};
pub use event::{Place, Subject, event_kind, event_message, job_of, parse_event_kind, queue_of};
pub use spec::{dependency_message, job_spec, read_job_spec, spec_message};
pub use view::{
    attempt_message, check_unit_state, defrag_message, free_block_message, job_message, limits, node_message,
    output_time_message, parse_phase, pool_message, principal, queue_message, queue_spec, resources_message,
    units_message, why_message,
};

use crate::model::region::{ParseRegionError, RegionCode};
use crate::model::resource::Resources;
use crate::model::validate::{Violation, Violations, quote};

use super::proto::v1;

/// A message that can't be converted: its invalid fields, each with the reason.
pub type Invalid = Vec<Violation>;

/// An error with one violation.
pub(crate) fn invalid(field: &str, description: impl Into<String>) -> Invalid {
    let mut out = Violations::default();
    out.push(field, description);
    out.finish().err().unwrap_or_default()
}

/// Converts a region code.
pub(crate) fn region(field: &str, text: &str) -> Result<RegionCode, Invalid> {
    RegionCode::parse(text).map_err(|_| invalid(field, format!("{} {}", quote(text), ParseRegionError::RULE)))
}

/// Converts amounts. Entries of zero are dropped.
pub(crate) fn resources(message: &v1::Resources) -> Resources {
    Resources {
        cpu_millis: message.cpu_millis,
        memory_bytes: message.memory_bytes,
        storage_bytes: message.storage_bytes,
        device_millis: message.device_millis,
        other: other(&message.other),
    }
}

#[allow(clippy::box_collection)] // The model's type: almost always `None`, which takes one word.
pub(crate) fn other(
    map: &std::collections::BTreeMap<String, u64>,
) -> Option<Box<std::collections::BTreeMap<Box<str>, u64>>> {
    let nonzero: std::collections::BTreeMap<Box<str>, u64> = map
        .iter()
        .filter(|(_, amount)| **amount > 0)
        .map(|(name, amount)| (name.as_str().into(), *amount))
        .collect();
    (!nonzero.is_empty()).then(|| Box::new(nonzero))
}
