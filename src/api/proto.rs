//! The generated types and services of `weir.v1`.

use serde::Serializer;

/// Package `weir.v1`.
#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("weir.v1");
}

impl v1::LabelRequirement {
    /// Selects jobs whose label has this value.
    pub fn equal(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), operator: v1::LabelOperator::In.into(), values: vec![value.to_owned()] }
    }
}

/// The compiled definitions: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// An enum of the protocol whose values are printed by name.
pub(crate) trait Named: TryFrom<i32> {
    /// The value's full name, such as `JOB_PHASE_PENDING`.
    fn full_name(&self) -> &'static str;
    /// The prefix of all names of the enum, such as `JOB_PHASE_`.
    const PREFIX: &'static str;
}

macro_rules! named {
    ($($type:ident $prefix:literal),* $(,)?) => {$(
        impl Named for v1::$type {
            const PREFIX: &'static str = $prefix;

            fn full_name(&self) -> &'static str {
                self.as_str_name()
            }
        }
    )*};
}
named!(
    JobPhase "JOB_PHASE_", AttemptPhase "ATTEMPT_PHASE_", Connectivity "CONNECTIVITY_", DrainMode "DRAIN_MODE_",
    LogStream "LOG_STREAM_", Part "PART_", Permanence "PERMANENCE_", OnPoolLost "ON_POOL_LOST_",
    DependencyCondition "DEPENDENCY_CONDITION_", JobView "JOB_VIEW_", LabelOperator "LABEL_OPERATOR_",
    RetryOn "RETRY_ON_", UnitState "UNIT_STATE_", EventKind "EVENT_KIND_",
);

/// The short name of an enum's value, such as `PENDING`; `UNKNOWN` for a number without a name.
pub(crate) fn name_of<E: Named>(value: i32) -> &'static str {
    E::try_from(value).map_or("UNKNOWN", |value| value.full_name().trim_start_matches(E::PREFIX))
}

fn enum_name<E: Named, S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name_of::<E>(*value))
}

fn enum_names<E: Named, S: Serializer>(values: &[i32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|value| name_of::<E>(*value)))
}
