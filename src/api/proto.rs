//! The generated types and services of `weir.v1`.

use serde::Serializer;

/// Package `weir.v1`.
#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("weir.v1");
}

/// The compiled definitions, for reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// An enum of the protocol whose values have names.
pub(crate) trait Named: TryFrom<i32> {
    /// The value's name with the enum's own in front: `JOB_PHASE_PENDING`.
    fn full_name(&self) -> &'static str;
    /// What all names of the enum begin with: `JOB_PHASE_`.
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
    Permanence "PERMANENCE_", OnPoolLost "ON_POOL_LOST_", DependencyCondition "DEPENDENCY_CONDITION_", RetryOn "RETRY_ON_",
);

/// The short name of an enum's value: `PENDING`.
pub(crate) fn name_of<E: Named>(value: i32) -> &'static str {
    E::try_from(value).map_or("UNKNOWN", |value| value.full_name().trim_start_matches(E::PREFIX))
}

fn enum_name<E: Named, S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name_of::<E>(*value))
}

fn enum_names<E: Named, S: Serializer>(values: &[i32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|value| name_of::<E>(*value)))
}
