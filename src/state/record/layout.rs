//! The layouts: which fields of which type, in which order, under which tag.

use super::codec::{Corrupt, Input, Record, record_enum, record_newtype, record_struct};
use crate::model::attempt::{Outcome, OutcomeKind, Phase, Placement, StopReason};
use crate::model::demand::{Demand, DeviceDemand, ProfileEntry, WorkloadProfile};
use crate::model::device::{DeviceAmount, DeviceModel, DeviceModelId, DeviceShare};
use crate::model::high_water::JournalKey;
use crate::model::id::{
    Epoch, InstanceId, JobId, JournalId, NodeId, NodeRef, PoolId, QueueId, ReservationId, Revision, SpecId,
    Term, UnitId,
};
use crate::model::interval::IntervalSet;
use crate::model::link::Link;
use crate::model::pool::{Capabilities, Connectivity, Device, Drain, DrainMode, NodeSpec, PoolSpec};
use crate::model::price::{Price, PriceSchedule, Rate};
use crate::model::queue::{Limits, QueueSpec};
use crate::model::region::{Region, RegionCode};
use crate::model::reservation::Reservation;
use crate::model::resource::{ResourceKind, Resources};
use crate::model::shape::{Needs, Shape};
use crate::model::spec::{
    Constraints, Dependency, DependencyCondition, DeviceRequest, EnvValue, EnvVar, JobSpec, OnPoolLost,
    OnUnitFailure, Program, RetryOn, RetryPolicy, Run, Simulate, Taint, TaskGroup, TaskRequest, Toleration,
};
use crate::model::time::Timestamp;
use crate::state::Queue;
use crate::state::apply::{ArchiveRow, FinishedAttempt, FinishedJob};
use crate::state::class::ShapeDigest;
use crate::state::event::{EndedAttempt, Event, EventRecord, NextTry, OrderedAttempt, Settings};
use crate::state::job::{Closing, Job, JobEnd, Principal, Progress, Tried};
use crate::state::live::Attempt;
use crate::state::pool::{FailureTracker, Node, Pool};
use crate::state::snapshot::{Head, Object};
use crate::state::token::{TokenEntry, TokenKey, TokenReply};

record_newtype!(
    Revision,
    Term,
    Epoch,
    JobId,
    PoolId,
    NodeId,
    QueueId,
    SpecId,
    InstanceId,
    Timestamp,
    TokenKey,
    ShapeDigest,
    ReservationId,
    JournalKey,
    DeviceModelId
);

impl Record for JournalId {
    fn put(&self, out: &mut Vec<u8>) {
        self.get().put(out);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        Ok(Self::from_random(u64::get(input)?))
    }
}

impl Record for RegionCode {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_str().to_owned().put(out);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        let text = String::get(input)?;
        if text.is_empty() {
            return Ok(Self::default());
        }
        Self::parse(&text).map_err(|_| input.corrupt("region", text.len() as u64))
    }
}

impl Record for IntervalSet {
    fn put(&self, out: &mut Vec<u8>) {
        let intervals = self.intervals();
        (intervals.len() as u64).put(out);
        for [start, end] in intervals {
            start.put(out);
            (end - start).put(out);
        }
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        let count = u64::get(input)?;
        let mut intervals = Vec::new();
        for _ in 0..count {
            let (start, len) = (u32::get(input)?, u32::get(input)?);
            let end = start.checked_add(len).ok_or_else(|| input.corrupt("interval", u64::from(start)))?;
            intervals.push([start, end]);
        }
        Ok(Self::from_intervals(intervals))
    }
}

record_struct!(UnitId { job, unit });
record_struct!(NodeRef { pool, node });
record_struct!(Resources { cpu_millis, memory_bytes, storage_bytes, device_millis, other });
record_struct!(Limits { cpu_millis, memory_bytes, storage_bytes, device_millis });
record_struct!(Region { code, gbt2260, name });
record_struct!(DeviceModel { name, maker, memory_bytes, resource, visible_devices });
record_enum!(DeviceAmount { 1 => Whole(count), 2 => Fraction(millis) });
record_struct!(DeviceShare { index, millis });
record_struct!(DeviceRequest { models, amount });
record_struct!(TaskRequest { resources, devices });

impl Record for Needs {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { processes, containers, pods, leases, secrets, shares } = self;
        processes.put(out);
        put_bits([*containers, *pods, *shares], out);
        leases.put(out);
        secrets.put(out);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        let processes = bool::get(input)?;
        let [containers, pods, shares] = get_bits(input)?;
        let (leases, secrets) = (bool::get(input)?, bool::get(input)?);
        Ok(Self { processes, containers, pods, leases, secrets, shares })
    }
}

impl Record for Capabilities {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { real, processes, containers, pods, leases, secrets, whole_devices_only } = self;
        real.put(out);
        processes.put(out);
        put_bits([*containers, *pods, *whole_devices_only], out);
        leases.put(out);
        secrets.put(out);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        let (real, processes) = (bool::get(input)?, bool::get(input)?);
        let [containers, pods, whole_devices_only] = get_bits(input)?;
        let (leases, secrets) = (bool::get(input)?, bool::get(input)?);
        Ok(Self { real, processes, containers, pods, leases, secrets, whole_devices_only })
    }
}

/// Containers and what came later in one byte: older journals hold the first of them so.
fn put_bits([first, second, third]: [bool; 3], out: &mut Vec<u8>) {
    out.push(u8::from(first) | u8::from(second) << 1 | u8::from(third) << 2);
}

fn get_bits(input: &mut Input<'_>) -> Result<[bool; 3], Corrupt> {
    match u8::get(input)? {
        bits @ 0..=7 => Ok([bits & 1 > 0, bits & 2 > 0, bits & 4 > 0]),
        other => Err(input.corrupt("containers, pods and shares", u64::from(other))),
    }
}

record_struct!(Shape { tasks, constraints, needs });

record_struct!(JobSpec {
    labels,
    priority,
    groups,
    gang_job,
    constraints,
    retry,
    on_pool_lost,
    may_overlap,
    on_unit_failure,
    max_run_ms,
    start_limit_ms,
    grace_ms,
    depends_on,
    required_features,
});
record_struct!(TaskGroup { name, count, gang, request, run, simulate });
record_enum!(Run { 1 => Process(program), 2 => Container { image, program }, 3 => Pod { spec } });
record_struct!(Program { command, args, env, workdir });
record_struct!(EnvVar { name, value });
record_enum!(EnvValue { 1 => Plain(value), 2 => Secret { name, key } });
record_struct!(Simulate { duration_ms, exit_code });
record_struct!(Constraints { regions_allowed, regions_denied, pools, node_labels, tolerations, real_only });
record_struct!(Toleration { key, value });
record_struct!(Taint { key, value });
record_struct!(RetryPolicy { max_attempts, on, backoff_ms, backoff_max_ms });
record_enum!(RetryOn { 1 => Failed, 2 => TimedOut, 3 => StartFailed, 4 => Unknown });
record_enum!(OnPoolLost { 1 => Wait, 2 => Requeue });
record_enum!(OnUnitFailure { 1 => FailJob, 2 => Continue { max_failed } });
record_struct!(Dependency { job, condition });
record_enum!(DependencyCondition { 1 => Any, 2 => Succeeded, 3 => Failed });

record_struct!(PoolSpec { name, region, backend, labels, capabilities, notes });
record_enum!(Connectivity { 1 => Ready, 2 => Suspect, 3 => Unreachable, 4 => Lost });
record_struct!(Drain { mode, deadline });
record_enum!(DrainMode { 1 => Wait, 2 => Evict });
record_struct!(NodeSpec { name, labels, taints, cordoned, allocatable, devices });
record_struct!(Device { model, memory_bytes, healthy, millis, topology_group, profiles });
record_struct!(FailureTracker { faults, jobs, last_job, quarantines, quarantined_until });
record_enum!(ResourceKind { 1 => Cpu, 2 => Memory, 3 => Storage, 4 => Device, 5 => Other(name) });
record_struct!(Rate { kind, model, micros_per_hour, from_minute, to_minute });
record_struct!(PriceSchedule { currency, rates });
record_struct!(Price { pool, valid_from, version, schedule });
record_struct!(Link { ends, bandwidth_bits_per_s, round_trip_micros, micros_per_gb });
record_struct!(Reservation { id, queue, pool, amounts, models, from, until });
record_struct!(QueueSpec { name, weight, guarantee, limit, max_run_ms_default });

record_enum!(Phase { 1 => Ordered, 2 => Starting, 3 => Running, 4 => Stopping });
record_enum!(StopReason {
    1 => Cancelled, 2 => TimedOut, 3 => Drained, 4 => JobFailed, 5 => StartLimit, 6 => Abandoned, 7 => Orphaned,
});
record_enum!(OutcomeKind {
    1 => Succeeded, 2 => Failed, 3 => OutOfMemory, 4 => TimedOut, 5 => Cancelled, 6 => StartFailed, 7 => Preempted,
    8 => Drained, 9 => NodeLost, 10 => Vanished, 11 => LeaseEnded, 12 => Abandoned,
    13 => NotStarted,
});
record_struct!(DeviceDemand { models, amount });
record_struct!(Demand { resources, devices, constraints, needs });
record_struct!(ProfileEntry { demand, weight, overflow });
record_struct!(WorkloadProfile { arrivals, entries });
record_struct!(Outcome { kind, exit_code, signal, message });
record_struct!(Placement { group, task, node, devices });

record_enum!(Principal { 1 => System, 2 => Anonymous, 3 => Agent(pool), 4 => User(name) });
record_enum!(Closing { 1 => Cancelled, 2 => Failed });
record_enum!(JobEnd { 1 => Succeeded, 2 => Failed, 3 => Cancelled });
record_struct!(Progress { waiting, ended, tried, live, running });
record_struct!(Tried { unit, attempts, failures, not_before, avoid });
record_struct!(Job {
    id,
    name,
    queue,
    spec,
    submitted_at,
    submitted_by,
    started_at,
    revision,
    closing,
    pending_dependencies,
    dependency_failed,
    first_failure,
    groups,
});
record_struct!(Attempt {
    unit,
    number,
    failures,
    pool,
    phase,
    stop,
    ordered_at,
    ordered_revision,
    start_by,
    started_at,
    ends_by,
    leased,
    after,
    placements,
    revision,
});
record_enum!(TokenReply { 1 => Jobs { first, count }, 2 => Done });
record_struct!(TokenEntry { at, fingerprint, reply });

record_struct!(Settings { heartbeat_ms, suspect_ms, unreachable_ms, lost_ms, lease_ms, start_by_ms });
record_struct!(OrderedAttempt { unit, number, pool, start_by, ends_by, leased, after, placements });
record_struct!(EndedAttempt { started_at, ended_at, outcome, next });
record_enum!(NextTry { 1 => Never, 2 => Now, 3 => At(at) });
record_struct!(EventRecord { revision, at, principal, event });
record_enum!(Event {
    1 => JournalCreated { journal },
    2 => TermStarted { term },
    3 => SettingsChanged { settings },
    4 => RegionsAdded { regions },
    5 => DeviceModelsAdded { models },
    6 => QueueCreated { queue, spec },
    7 => QueueUpdated { queue, spec },
    8 => SpecAdded { spec, body },
    9 => JobSubmitted { job, name, queue, spec },
    10 => TokenUsed { key, entry },
    11 => TokensExpired { count },
    12 => JobClosing { job, why },
    13 => JobEnded { job, end },
    14 => RoundPlanned { policy, version, based_on, budget, cursor },
    15 => AttemptOrdered { order },
    16 => AttemptStarting { unit },
    17 => AttemptRunning { unit, started_at },
    18 => AttemptStopping { unit, reason },
    19 => AttemptEnded { unit, ended },
    20 => UnitReleased { unit },
    21 => PoolRegistered { pool, spec, instance, key_digest },
    22 => PoolUpdated { pool, spec },
    23 => SessionOpened { pool, epoch },
    24 => PoolConnectivityChanged { pool, connectivity },
    25 => PoolCordoned { pool, cordoned },
    26 => PoolDrainChanged { pool, drain },
    27 => NodeReported { pool, node, spec },
    28 => NodeRemoved { pool, node },
    29 => NodeCordoned { pool, node, cordoned },
    30 => NodeQuarantined { pool, node, until },
    31 => NodeReleased { pool, node },
    32 => PricesSet { price },
    33 => LinkSet { link },
    34 => ReservationMade { reservation },
    35 => ReservationEnded { reservation },
    36 => KeyDrawn { key },
    37 => WriterSessionStarted { writer_session },
    38 => WorkloadProfileUpdated { profile },
});

record_struct!(Head {
    journal,
    term,
    revision,
    now,
    settings,
    regions,
    models,
    next_job,
    next_pool,
    next_queue,
});
record_enum!(Object {
    1 => Head(head), 2 => Queue(queue), 3 => Spec(id, spec), 4 => Job(job), 5 => Attempt(attempt), 6 => Pool(pool),
    7 => Node(pool, node), 8 => Token(key, entry), 9 => RunTime(shape, micros),
    10 => FailureTracker(node, failure_tracker), 11 => Price(price), 12 => Link(link), 13 => Reservation(reservation),
    14 => Next { reservation }, 15 => Key(key), 16 => Turn { writer_session, begun },
    17 => WorkloadProfile(profile),
});
record_enum!(ArchiveRow { 1 => Job(job), 2 => Attempt(attempt) });
record_struct!(FinishedJob { job, queue, spec, end, ended_at, revision });
record_struct!(FinishedAttempt { attempt, pool, region, nodes, ended, revision });

/// Derived fields are not written; recovery rebuilds them.
impl Record for Queue {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { id, parent, spec, revision, usage: _, jobs: _ } = self;
        id.put(out);
        parent.put(out);
        spec.put(out);
        revision.put(out);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        Ok(Self {
            id: Record::get(input)?,
            parent: Record::get(input)?,
            spec: Record::get(input)?,
            revision: Record::get(input)?,
            usage: Resources::default(),
            jobs: 0,
        })
    }
}

impl Record for Pool {
    fn put(&self, out: &mut Vec<u8>) {
        self.id.put(out);
        self.spec.put(out);
        self.instance.put(out);
        self.key_digest.put(out);
        self.epoch.put(out);
        self.connectivity.put(out);
        self.cordoned.put(out);
        self.drain.put(out);
        self.registered_at.put(out);
        self.revision.put(out);
        self.next_node.put(out);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        Ok(Self {
            id: Record::get(input)?,
            spec: Record::get(input)?,
            instance: Record::get(input)?,
            key_digest: Record::get(input)?,
            epoch: Record::get(input)?,
            connectivity: Record::get(input)?,
            cordoned: Record::get(input)?,
            drain: Record::get(input)?,
            registered_at: Record::get(input)?,
            revision: Record::get(input)?,
            next_node: Record::get(input)?,
            nodes: Default::default(),
            node_names: Default::default(),
            attempts: Default::default(),
            total: Resources::default(),
            committed: Resources::default(),
        })
    }
}

impl Record for Node {
    fn put(&self, out: &mut Vec<u8>) {
        self.id.put(out);
        self.spec.put(out);
        self.cordoned.put(out);
        self.gone.put(out);
        self.revision.put(out);
    }

    fn get(input: &mut Input<'_>) -> Result<Self, Corrupt> {
        let (id, spec) = (Record::get(input)?, Record::get(input)?);
        let (cordoned, gone) = (Record::get(input)?, Record::get(input)?);
        let mut node = Self::new(id, spec, Vec::new(), Record::get(input)?);
        (node.cordoned, node.gone) = (cordoned, gone);
        Ok(node)
    }
}
