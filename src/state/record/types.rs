//! Translation of the types that records share: specs, pools, nodes, prices, outcomes, placements.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::translate::{Translate, get, message, message_enum, put};
use super::{Error, proto};
use crate::model::attempt::{Outcome, OutcomeKind, Phase, Placement, StopReason};
use crate::model::demand::{Demand, DeviceDemand, ProfileEntry, WorkloadProfile};
use crate::model::device::{DeviceAmount, DeviceModel, DeviceModelId, DeviceShare};
use crate::model::id::{NodeRef, UnitId};
use crate::model::link::Link;
use crate::model::pool::{Capabilities, Connectivity, Device, Drain, DrainMode, NodeSpec, PoolSpec};
use crate::model::price::{Price, PriceSchedule, Rate};
use crate::model::queue::{Limits, QueueSpec};
use crate::model::region::Region;
use crate::model::reservation::Reservation;
use crate::model::resource::{ResourceKind, Resources};
use crate::model::shape::{Needs, Shape};
use crate::model::spec::{
    Constraints, Dependency, DependencyCondition, DeviceRequest, EnvValue, EnvVar, JobSpec, NodeLosses,
    OnPoolLost, OnUnitFailure, Program, RetryOn, RetryPolicy, Run, Selection, Simulate, Taint, TaskGroup,
    TaskRequest, Toleration,
};
use crate::state::event::{EndedAttempt, NextTry, Settings};
use crate::state::job::{Closing, JobEnd, Principal};
use crate::state::token::{TokenEntry, TokenReply};
use crate::state::workload::Workload;

message_enum!(RetryOn { Failed, TimedOut, StartFailed, Unknown });
message_enum!(OnPoolLost { Wait, Requeue });
message_enum!(DependencyCondition { Any, Succeeded, Failed });
message_enum!(Connectivity { Ready, Suspect, Unreachable, Lost });
message_enum!(DrainMode { Wait, Evict });
message_enum!(Phase { Ordered, Starting, Running, Stopping });
message_enum!(StopReason { Cancelled, TimedOut, Drained, JobFailed, StartLimit, Abandoned, Orphaned });
message_enum!(OutcomeKind {
    Succeeded,
    Failed,
    OutOfMemory,
    TimedOut,
    Cancelled,
    StartFailed,
    Preempted,
    Drained,
    NodeLost,
    Vanished,
    LeaseEnded,
    Abandoned,
    NotStarted,
});
message_enum!(Closing { Cancelled, Failed });
message_enum!(JobEnd { Succeeded, Failed, Cancelled });

message!(UnitId as UnitRef { job: job, unit: unit });
message!(NodeRef as NodeRef { pool: pool, node: node });
message!(Limits as Limits {
    cpu_millis: cpu_millis,
    memory_bytes: memory_bytes,
    storage_bytes: storage_bytes,
    device_millis: device_millis,
});
message!(Settings as Settings {
    heartbeat_ms: heartbeat_ms,
    suspect_ms: suspect_ms,
    unreachable_ms: unreachable_ms,
    lost_ms: lost_ms,
    lease_ms: lease_ms,
    start_by_ms: start_by_ms,
});
message!(Region as Region { code: code, gbt2260: gbt2260, name: name });
message!(DeviceModel as DeviceModel {
    name: name,
    maker: maker,
    memory_bytes: memory_bytes,
    resource: resource,
    visible_devices: visible_devices,
});
message!(QueueSpec as QueueSpec {
    name: name,
    weight: weight,
    guarantee: guarantee [default],
    limit: limit [default],
    max_run_ms_default: max_run_ms_default,
    lease_ms_default: lease_ms_default,
});

message!(DeviceRequest as DeviceRequest { models: models, amount: amount [required] });
message!(TaskRequest as TaskRequest { resources: resources [default], devices: devices });
message!(Toleration as Toleration { key: key, value: value });
message!(Taint as Taint { key: key, value: value });
message!(Constraints as Constraints {
    regions_allowed: regions_allowed,
    regions_denied: regions_denied,
    pools: pools,
    node_labels: node_labels,
    tolerations: tolerations,
    real_only: real_only,
});
message!(Program as Program { command: command, args: args, env: env, workdir: workdir });
message!(Simulate as Simulate { duration_ms: duration_ms, exit_code: exit_code });
message!(RetryPolicy as RetryPolicy {
    max_attempts: max_attempts,
    on: on,
    backoff_ms: backoff_ms,
    backoff_max_ms: backoff_max_ms,
    max_node_losses: max_node_losses,
});

impl Translate<Option<u32>> for NodeLosses {
    fn to_message(&self) -> Option<u32> {
        Some(self.0)
    }

    fn from_message(message: Option<u32>) -> Result<Self, Error> {
        Ok(message.map_or_else(Self::default, Self))
    }
}

message!(Dependency as Dependency { job: job, condition: condition });

message!(Capabilities as Capabilities {
    real: real,
    processes: processes,
    containers: containers,
    pods: pods,
    leases: leases,
    secrets: secrets,
    whole_devices_only: whole_devices_only,
});
message!(PoolSpec as PoolSpec {
    name: name,
    region: region,
    backend: backend,
    labels: labels,
    capabilities: capabilities [default],
    notes: notes,
});
message!(Drain as Drain { mode: mode, deadline_unix_ms: deadline });
message!(NodeSpec as NodeSpec {
    name: name,
    labels: labels,
    taints: taints,
    cordoned: cordoned,
    allocatable: allocatable [default],
    devices: devices,
});
message!(Device as Device {
    model: model,
    memory_bytes: memory_bytes,
    healthy: healthy,
    millis: millis,
    topology_group: topology_group,
    profiles: profiles,
});

message!(PriceSchedule as PriceSchedule { currency: currency, rates: rates });
message!(Price as Price {
    pool: pool,
    valid_from_unix_ms: valid_from,
    version: version,
    schedule: schedule [required],
});
message!(Reservation as Reservation {
    id: id,
    queue: queue,
    pool: pool,
    amounts: amounts [default],
    models: models,
    from_unix_ms: from,
    until_unix_ms: until,
});

message!(Outcome as Outcome {
    kind: kind,
    exit_code: exit_code,
    signal: signal,
    message: message,
    simulated: simulated,
    node_fault: node_fault,
});
message!(TokenEntry as TokenEntry { at_unix_ms: at, fingerprint: fingerprint, reply: reply [required] });

message!(Workload as Workload {
    demands: weights,
    arrivals: arrivals,
    recent_arrivals: recent_arrivals,
    recent_ends: recent_ends,
    next_check_at: next_check_at,
});

impl Translate<Vec<proto::WeightedDemand>> for BTreeMap<Arc<Demand>, u64> {
    fn to_message(&self) -> Vec<proto::WeightedDemand> {
        let weighted = |(demand, weight): (&Arc<Demand>, &u64)| proto::WeightedDemand {
            demand: put!(demand, required),
            weight: *weight,
        };
        self.iter().map(weighted).collect()
    }

    fn from_message(message: Vec<proto::WeightedDemand>) -> Result<Self, Error> {
        let weighted =
            |proto::WeightedDemand { demand, weight }| Ok((get!(demand, "demand", required), weight));
        message.into_iter().map(weighted).collect()
    }
}

message!(WorkloadProfile as WorkloadProfile {
    arrivals: arrivals,
    turnover_percent: turnover_percent,
    entries: entries,
});
message!(ProfileEntry as ProfileEntry { demand: demand [required], weight: weight, overflow: overflow });
message!(Demand as Demand {
    resources: resources [default],
    devices: devices,
    constraints: constraints [default],
    needs: needs [default],
});
message!(Needs as Needs {
    processes: processes,
    containers: containers,
    pods: pods,
    leases: leases,
    secrets: secrets,
    shares: shares,
});
message!(Shape as Shape { tasks: tasks, constraints: constraints [default], needs: needs [default] });

impl Translate<proto::ShapeTasks> for (TaskRequest, u32) {
    fn to_message(&self) -> proto::ShapeTasks {
        proto::ShapeTasks { request: Some(self.0.to_message()), count: self.1 }
    }

    fn from_message(message: proto::ShapeTasks) -> Result<Self, Error> {
        let proto::ShapeTasks { request, count } = message;
        Ok((get!(request, "request", required), count))
    }
}

impl Translate<proto::Resources> for Resources {
    fn to_message(&self) -> proto::Resources {
        let Self { cpu_millis, memory_bytes, storage_bytes, device_millis, other } = self;
        let other = other.iter().flat_map(|map| map.iter()).map(|(name, amount)| (name.to_string(), *amount));
        proto::Resources {
            cpu_millis: *cpu_millis,
            memory_bytes: *memory_bytes,
            storage_bytes: *storage_bytes,
            device_millis: *device_millis,
            other: other.collect(),
        }
    }

    fn from_message(message: proto::Resources) -> Result<Self, Error> {
        let proto::Resources { cpu_millis, memory_bytes, storage_bytes, device_millis, other } = message;
        let other = (!other.is_empty())
            .then(|| Box::new(other.into_iter().map(|(name, amount)| (name.into(), amount)).collect()));
        Ok(Self { cpu_millis, memory_bytes, storage_bytes, device_millis, other })
    }
}

impl Translate<proto::DeviceAmount> for DeviceAmount {
    fn to_message(&self) -> proto::DeviceAmount {
        use proto::device_amount::Amount;
        let amount = match self {
            Self::Whole(count) => Amount::Whole(*count),
            Self::Fraction(millis) => Amount::FractionMillis(*millis),
        };
        proto::DeviceAmount { amount: Some(amount) }
    }

    fn from_message(message: proto::DeviceAmount) -> Result<Self, Error> {
        use proto::device_amount::Amount;
        match message.amount {
            Some(Amount::Whole(count)) => Ok(Self::Whole(count)),
            Some(Amount::FractionMillis(millis)) => Ok(Self::Fraction(millis)),
            None => Err(Error::Missing { field: "amount of devices" }),
        }
    }
}

impl Translate<proto::DeviceDemand> for DeviceDemand {
    fn to_message(&self) -> proto::DeviceDemand {
        let models = self.models.iter().flatten().map(|model| u32::from(model.0)).collect();
        let any_model = self.models.is_none();
        proto::DeviceDemand { models, any_model, amount: Some(self.amount.to_message()) }
    }

    fn from_message(message: proto::DeviceDemand) -> Result<Self, Error> {
        let proto::DeviceDemand { models, any_model, amount } = message;
        let number = |number: &u32| u16::from_message(*number).map(DeviceModelId);
        let models = match any_model {
            true if models.is_empty() => None,
            true => return Err(Error::damaged("models beside any_model", models.len())),
            false => Some(models.iter().map(number).collect::<Result<_, _>>()?),
        };
        Ok(Self { models, amount: get!(amount, "amount", required) })
    }
}

impl Translate<proto::Placement> for Placement {
    fn to_message(&self) -> proto::Placement {
        let Self { group, task, node, devices } = self;
        proto::Placement {
            group: u32::from(*group),
            task: *task,
            node: node.0,
            device_indices: devices.iter().map(|share| u32::from(share.index)).collect(),
            device_millis: devices.iter().map(|share| share.millis).collect(),
        }
    }

    fn from_message(message: proto::Placement) -> Result<Self, Error> {
        let proto::Placement { group, task, node, device_indices, device_millis } = message;
        if device_indices.len() != device_millis.len() {
            return Err(Error::damaged("number of device_millis", device_millis.len()));
        }
        let share = |(index, millis): (&u32, &u32)| {
            Ok(DeviceShare { index: u16::from_message(*index)?, millis: *millis })
        };
        let devices = device_indices.iter().zip(&device_millis).map(share).collect::<Result<_, Error>>()?;
        Ok(Self { group: get!(group, "group"), task, node: get!(node, "node"), devices })
    }
}

impl Translate<proto::Principal> for Principal {
    fn to_message(&self) -> proto::Principal {
        use proto::principal::Kind;
        let kind = match self {
            Self::System => None,
            Self::Anonymous => Some(Kind::Anonymous(true)),
            Self::Agent(pool) => Some(Kind::Agent(pool.to_message())),
            Self::User(name) => Some(Kind::User(name.to_message())),
        };
        proto::Principal { kind }
    }

    fn from_message(message: proto::Principal) -> Result<Self, Error> {
        use proto::principal::Kind;
        Ok(match message.kind {
            None => Self::System,
            Some(Kind::Anonymous(true)) => Self::Anonymous,
            Some(Kind::Anonymous(false)) => return Err(Error::damaged("anonymous", false)),
            Some(Kind::Agent(pool)) => Self::Agent(pool.into()),
            Some(Kind::User(name)) => Self::User(name.into()),
        })
    }
}

impl Translate<proto::EnvVar> for EnvVar {
    fn to_message(&self) -> proto::EnvVar {
        use proto::env_var::Value;
        let value = match &self.value {
            EnvValue::Plain(value) => Value::Plain(value.clone()),
            EnvValue::Secret { name, key } => {
                Value::Secret(proto::SecretRef { name: name.clone(), key: key.clone() })
            }
        };
        proto::EnvVar { name: self.name.clone(), value: Some(value) }
    }

    fn from_message(message: proto::EnvVar) -> Result<Self, Error> {
        use proto::env_var::Value;
        let value = match message.value {
            Some(Value::Plain(value)) => EnvValue::Plain(value),
            Some(Value::Secret(proto::SecretRef { name, key })) => EnvValue::Secret { name, key },
            None => return Err(Error::Missing { field: "value of an environment variable" }),
        };
        Ok(Self { name: message.name, value })
    }
}

impl Translate<proto::task_group::Run> for Run {
    fn to_message(&self) -> proto::task_group::Run {
        use proto::task_group::Run as Message;
        match self {
            Self::Process(program) => Message::Process(program.to_message()),
            Self::Container { image, program } => {
                let program = Some(program.to_message());
                Message::Container(proto::Container { image: image.clone(), program })
            }
            Self::Pod { spec } => Message::Pod(spec.clone()),
        }
    }

    fn from_message(message: proto::task_group::Run) -> Result<Self, Error> {
        use proto::task_group::Run as Message;
        Ok(match message {
            Message::Process(program) => Self::Process(Translate::from_message(program)?),
            Message::Container(proto::Container { image, program }) => {
                Self::Container { image, program: get!(program, "program", required) }
            }
            Message::Pod(spec) => Self::Pod { spec },
        })
    }
}

message!(TaskGroup as TaskGroup {
    name: name,
    count: count,
    gang: gang,
    request: request [default],
    run: run [required],
    simulate: simulate,
    selection: selection,
});

message!(Selection as Selection { indices: indices [default], of: of });

impl Translate<Option<u32>> for OnUnitFailure {
    fn to_message(&self) -> Option<u32> {
        match self {
            Self::FailJob => None,
            Self::Continue { max_failed } => Some(*max_failed),
        }
    }

    fn from_message(message: Option<u32>) -> Result<Self, Error> {
        Ok(message.map_or(Self::FailJob, |max_failed| Self::Continue { max_failed }))
    }
}

message!(JobSpec as JobSpec {
    labels: labels,
    priority: priority,
    groups: groups,
    gang_job: gang_job,
    constraints: constraints [default],
    retry: retry [required],
    on_pool_lost: on_pool_lost,
    may_overlap: may_overlap,
    max_failed: on_unit_failure,
    max_run_ms: max_run_ms,
    start_limit_ms: start_limit_ms,
    grace_ms: grace_ms,
    depends_on: depends_on,
    required_features: required_features,
    lease_ms: lease_ms,
    display_name: display_name,
});

impl Translate<proto::Link> for Link {
    fn to_message(&self) -> proto::Link {
        let Self { ends: (from, to), bandwidth_bits_per_s, round_trip_micros, micros_per_gb } = *self;
        let (from_region, to_region) = (from.to_message(), to.to_message());
        proto::Link { from_region, to_region, bandwidth_bits_per_s, round_trip_micros, micros_per_gb }
    }

    fn from_message(message: proto::Link) -> Result<Self, Error> {
        let proto::Link { from_region, to_region, bandwidth_bits_per_s, round_trip_micros, micros_per_gb } =
            message;
        let ends = (get!(from_region, "from_region"), get!(to_region, "to_region"));
        Ok(Self { ends, bandwidth_bits_per_s, round_trip_micros, micros_per_gb })
    }
}

impl Translate<proto::Rate> for Rate {
    fn to_message(&self) -> proto::Rate {
        let Self { kind, model, micros_per_hour, from_minute, to_minute } = self;
        let (kind, other) = match kind {
            ResourceKind::Cpu => (proto::ResourceKind::Cpu, String::new()),
            ResourceKind::Memory => (proto::ResourceKind::Memory, String::new()),
            ResourceKind::Storage => (proto::ResourceKind::Storage, String::new()),
            ResourceKind::Device => (proto::ResourceKind::Device, String::new()),
            ResourceKind::Other(name) => (proto::ResourceKind::Other, name.to_string()),
        };
        proto::Rate {
            kind: kind as i32,
            other,
            model: model.clone(),
            micros_per_hour: *micros_per_hour,
            from_minute: u32::from(*from_minute),
            to_minute: u32::from(*to_minute),
        }
    }

    fn from_message(message: proto::Rate) -> Result<Self, Error> {
        let proto::Rate { kind, other, model, micros_per_hour, from_minute, to_minute } = message;
        let kind = match proto::ResourceKind::try_from(kind) {
            Ok(proto::ResourceKind::Cpu) => ResourceKind::Cpu,
            Ok(proto::ResourceKind::Memory) => ResourceKind::Memory,
            Ok(proto::ResourceKind::Storage) => ResourceKind::Storage,
            Ok(proto::ResourceKind::Device) => ResourceKind::Device,
            Ok(proto::ResourceKind::Other) => ResourceKind::Other(other.into()),
            Ok(proto::ResourceKind::Unspecified) => return Err(Error::Missing { field: "kind of a rate" }),
            Err(_) => return Err(Error::unknown("kind of a rate", kind)),
        };
        let (from_minute, to_minute) = (get!(from_minute, "from_minute"), get!(to_minute, "to_minute"));
        Ok(Self { kind, model, micros_per_hour, from_minute, to_minute })
    }
}

impl Translate<proto::token_entry::Reply> for TokenReply {
    fn to_message(&self) -> proto::token_entry::Reply {
        use proto::token_entry::Reply;
        match self {
            Self::Jobs { first, count } => {
                Reply::Jobs(proto::SubmittedJobs { first: first.0, count: *count })
            }
            Self::Done => Reply::Done(true),
        }
    }

    fn from_message(message: proto::token_entry::Reply) -> Result<Self, Error> {
        use proto::token_entry::Reply;
        match message {
            Reply::Jobs(proto::SubmittedJobs { first, count }) => {
                Ok(Self::Jobs { first: get!(first, "first"), count })
            }
            Reply::Done(true) => Ok(Self::Done),
            Reply::Done(false) => Err(Error::damaged("done", false)),
        }
    }
}

message!(EndedAttempt as AttemptEnd {
    started_unix_ms: started_at,
    ended_unix_ms: ended_at,
    outcome: outcome [required],
    next: next [required],
});

impl Translate<proto::attempt_end::Next> for NextTry {
    fn to_message(&self) -> proto::attempt_end::Next {
        use proto::attempt_end::Next;
        match self {
            Self::Never => Next::Never(true),
            Self::Now => Next::Now(true),
            Self::At(at) => Next::AtUnixMs(at.0),
            Self::Later(at) => Next::LaterUnixMs(at.0),
        }
    }

    fn from_message(message: proto::attempt_end::Next) -> Result<Self, Error> {
        use proto::attempt_end::Next;
        match message {
            Next::Never(true) => Ok(Self::Never),
            Next::Now(true) => Ok(Self::Now),
            Next::AtUnixMs(at) => Ok(Self::At(get!(at, "at_unix_ms"))),
            Next::LaterUnixMs(at) => Ok(Self::Later(get!(at, "later_unix_ms"))),
            Next::Never(false) | Next::Now(false) => Err(Error::damaged("next", false)),
        }
    }
}
