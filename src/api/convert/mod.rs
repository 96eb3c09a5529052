//! The one translator between the protocol's types and the model's.

mod agent;
mod spec;
mod view;

pub(crate) use agent::hello_message;
pub use agent::{from_agent, hello, sync_request, sync_response, to_agent};
pub use spec::{job_spec, spec_message};
pub use view::{
    attempt_message, job_message, limits, node_message, parse_phase, pool_message, queue_message, queue_spec,
    resources_message, why_message,
};

use crate::model::resource::Resources;
use crate::model::validate::{Violation, Violations};

use super::proto::v1;

/// A message that can't be read: which fields, and why.
pub type Invalid = Vec<Violation>;

/// One violation as a whole error.
pub(crate) fn invalid(field: &str, description: impl Into<String>) -> Invalid {
    let mut out = Violations::default();
    out.push(field, description);
    out.finish().err().unwrap_or_default()
}

/// Amounts as the model keeps them; zero entries are dropped.
pub(crate) fn resources(message: &v1::Resources) -> Resources {
    Resources {
        cpu_millis: message.cpu_millis,
        memory_bytes: message.memory_bytes,
        storage_bytes: message.storage_bytes,
        device_millis: message.device_millis,
        other: other(&message.other),
    }
}

#[allow(clippy::box_collection)] // What the model keeps: almost always `None`, and then one word.
pub(crate) fn other(
    map: &std::collections::BTreeMap<String, u64>,
) -> Option<Box<std::collections::BTreeMap<Box<str>, u64>>> {
    let kept: std::collections::BTreeMap<Box<str>, u64> = map
        .iter()
        .filter(|(_, amount)| **amount > 0)
        .map(|(name, amount)| (name.as_str().into(), *amount))
        .collect();
    (!kept.is_empty()).then(|| Box::new(kept))
}
