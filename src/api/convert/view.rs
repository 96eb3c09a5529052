//! Messages of the read methods: jobs, attempts, pools, nodes, queues, reasons.

use std::collections::BTreeMap;

use super::{Invalid, invalid, resources};
use crate::api::proto::v1;
use crate::broker::query::{FreeBlock, JobWhy, NodeView, PoolView, QueueView, defrag};
use crate::model::attempt::{Outcome, OutcomeKind, Phase};
use crate::model::device::DeviceShare;
use crate::model::id::{NodeId, Revision};
use crate::model::language::Parameter;
use crate::model::pool::{Connectivity, Device, Drain, DrainMode};
use crate::model::queue::{Limits, QueueSpec, default_settings};
use crate::model::reason::Permanence;
use crate::model::resource::Resources;
use crate::model::time::Timestamp;
use crate::state::job::Principal;
use crate::state::pool::Pool;
use crate::state::units::{UnitState, Units};
use crate::state::view::{AttemptPhase, AttemptView, FailedUnits, JobPhase, JobView, PoolContact};

/// Converts amounts to their message.
pub fn resources_message(resources: &Resources) -> v1::Resources {
    v1::Resources {
        cpu_millis: resources.cpu_millis,
        memory_bytes: resources.memory_bytes,
        storage_bytes: resources.storage_bytes,
        device_millis: resources.device_millis,
        other: other_message(resources),
    }
}

pub(super) fn other_message(resources: &Resources) -> BTreeMap<String, u64> {
    let other = resources.other.iter().flat_map(|map| map.iter());
    other.map(|(name, amount)| (name.to_string(), *amount)).collect()
}

pub(super) fn outcome_message(outcome: &Outcome) -> v1::Outcome {
    v1::Outcome {
        code: outcome.kind.code().to_owned(),
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        message: outcome.message.clone(),
        simulated: outcome.simulated,
        node_fault: outcome.node_fault,
    }
}

/// Converts a defragmentation plan, made from the pool's state at `revision`, to its message.
pub fn defrag_message(
    found: &defrag::Inventory,
    plan: &defrag::Plan,
    revision: Revision,
) -> v1::PlanDefragResponse {
    let node = |id: &NodeId| found.nodes.get(id).cloned().unwrap_or_default();
    let moved = |one: &defrag::Move| {
        let (moving, running) = (&found.running[one.running], &found.pool.running[one.running]);
        v1::DefragMove {
            attempt: moving.attempt.to_string(),
            job_name: moving.job.name.clone(),
            job_id: moving.job.id.0,
            queue: moving.job.queue.clone(),
            from_node: node(&running.node),
            to_node: one.to.as_ref().map(|(to, _)| node(to)).unwrap_or_default(),
            device_millis: running.demand.device_millis(),
            lost_ms: moving.lost_ms,
        }
    };
    let mut to_start = vec![0; found.waiting.len()];
    let mut step = |step: &defrag::Step| {
        let job = found.job_to_place(step.waiting, to_start[step.waiting]);
        to_start[step.waiting] += 1;
        v1::DefragStep {
            job_name: job.map(|job| job.name.clone()).unwrap_or_default(),
            job_id: job.map_or(0, |job| job.id.0),
            queue: job.map(|job| job.queue.clone()).unwrap_or_default(),
            device_millis: found.pool.waiting[step.waiting].demand.device_millis(),
            node: node(&step.node),
            moves: step.moves.iter().map(moved).collect(),
        }
    };
    v1::PlanDefragResponse {
        steps: plan.steps.iter().map(&mut step).collect(),
        cut: plan.is_cut,
        movable: found.running.len() as u32,
        waiting: found.pool.waiting.iter().map(|waiting| u64::from(waiting.count)).sum(),
        revision: revision.0,
    }
}

/// A principal as text.
pub(super) fn principal_text(principal: &Principal) -> String {
    match principal {
        Principal::System => "system".to_owned(),
        Principal::Anonymous => "anonymous".to_owned(),
        Principal::Agent(pool) => format!("agent/{pool}"),
        Principal::User(name) => name.to_string(),
    }
}

/// The principal that jobs name so in their `submitted_by`.
pub fn principal(text: &str) -> Principal {
    match text {
        "system" => Principal::System,
        "anonymous" => Principal::Anonymous,
        text => match text.strip_prefix("agent/") {
            Some(pool) => Principal::Agent(pool.into()),
            None => Principal::User(text.into()),
        },
    }
}

pub(super) fn phase_message(phase: JobPhase) -> v1::JobPhase {
    match phase {
        JobPhase::Pending => v1::JobPhase::Pending,
        JobPhase::Running => v1::JobPhase::Running,
        JobPhase::Cancelling => v1::JobPhase::Cancelling,
        JobPhase::Failing => v1::JobPhase::Failing,
        JobPhase::Succeeded => v1::JobPhase::Succeeded,
        JobPhase::Failed => v1::JobPhase::Failed,
        JobPhase::Cancelled => v1::JobPhase::Cancelled,
    }
}

/// Converts a job phase of a request.
///
/// # Errors
/// If `value` is unspecified or not of the enum.
pub fn parse_phase(field: &str, value: i32) -> Result<JobPhase, Invalid> {
    let unknown = || invalid(field, format!("{value} is not a job phase"));
    Ok(match v1::JobPhase::try_from(value).map_err(|_| unknown())? {
        v1::JobPhase::Unspecified => return Err(unknown()),
        v1::JobPhase::Pending => JobPhase::Pending,
        v1::JobPhase::Running => JobPhase::Running,
        v1::JobPhase::Cancelling => JobPhase::Cancelling,
        v1::JobPhase::Failing => JobPhase::Failing,
        v1::JobPhase::Succeeded => JobPhase::Succeeded,
        v1::JobPhase::Failed => JobPhase::Failed,
        v1::JobPhase::Cancelled => JobPhase::Cancelled,
    })
}

/// Converts a job to its message.
pub fn job_message(job: &JobView) -> v1::Job {
    let counts = job.counts;
    v1::Job {
        id: job.id.0,
        name: job.name.clone(),
        queue: job.queue.clone(),
        phase: phase_message(job.phase) as i32,
        spec: Some(super::spec_message(&job.spec)),
        submitted_unix_ms: job.submitted_at.0,
        submitted_by: principal_text(&job.submitted_by),
        started_unix_ms: job.started_at.map(|at| at.0),
        ended_unix_ms: job.ended_at.map(|at| at.0),
        revision: job.revision.0,
        units: Some(v1::UnitCounts {
            total: counts.total,
            waiting: counts.waiting,
            backing_off: counts.backing_off,
            live: counts.live,
            running: counts.running,
            succeeded: counts.succeeded,
            failed: counts.failed,
        }),
        failure: job.failure.as_ref().map(outcome_message),
        pools: job.pools.clone(),
        simulated: job.simulated,
        failed_units: job.failed_units.iter().map(failed_units_message).collect(),
        pools_not_ready: job.pools_not_ready.iter().map(contact_message).collect(),
        held: job.held,
    }
}

/// Converts an attempt to its message.
pub fn attempt_message(attempt: &AttemptView) -> v1::Attempt {
    let phase = match attempt.phase {
        AttemptPhase::Live(Phase::Ordered) => v1::AttemptPhase::Ordered,
        AttemptPhase::Live(Phase::Starting) => v1::AttemptPhase::Starting,
        AttemptPhase::Live(Phase::Running) => v1::AttemptPhase::Running,
        AttemptPhase::Live(Phase::Stopping) => v1::AttemptPhase::Stopping,
        AttemptPhase::Ended => v1::AttemptPhase::Ended,
    };
    let placements =
        attempt.placements.iter().zip(&attempt.nodes).map(|(placement, node)| v1::TaskPlacement {
            group: u32::from(placement.group),
            task: placement.task,
            node: node.clone(),
            devices: shares_message(&placement.devices),
        });
    v1::Attempt {
        id: attempt.id.to_string(),
        unit: attempt.id.unit,
        number: attempt.id.number,
        pool: attempt.pool.clone(),
        region: attempt.region.to_string(),
        phase: phase as i32,
        placements: placements.collect(),
        ordered_unix_ms: attempt.ordered_at.0,
        started_unix_ms: attempt.started_at.map(|at| at.0),
        ended_unix_ms: attempt.ended_at.map(|at| at.0),
        outcome: attempt.outcome.as_ref().map(outcome_message),
        revision: attempt.revision.0,
    }
}

pub(super) fn shares_message(shares: &[DeviceShare]) -> Vec<v1::DeviceShare> {
    shares
        .iter()
        .map(|share| v1::DeviceShare { index: u32::from(share.index), millis: share.millis })
        .collect()
}

pub(super) fn connectivity_message(connectivity: Connectivity) -> v1::Connectivity {
    match connectivity {
        Connectivity::Ready => v1::Connectivity::Ready,
        Connectivity::Suspect => v1::Connectivity::Suspect,
        Connectivity::Unreachable => v1::Connectivity::Unreachable,
        Connectivity::Lost => v1::Connectivity::Lost,
    }
}

/// Converts a range of units to its message.
pub fn units_message(units: Units) -> v1::Units {
    let (state, outcome) = match units.state {
        UnitState::Waiting => (v1::UnitState::Waiting, ""),
        UnitState::BackingOff => (v1::UnitState::BackingOff, ""),
        UnitState::Live => (v1::UnitState::Live, ""),
        UnitState::Ended(OutcomeKind::Succeeded) => (v1::UnitState::Succeeded, OutcomeKind::Succeeded.code()),
        UnitState::Ended(kind) => (v1::UnitState::Failed, kind.code()),
        UnitState::Skipped => (v1::UnitState::Skipped, ""),
    };
    v1::Units { state: state.into(), first: units.first, last: units.last, outcome: outcome.to_owned() }
}

/// Checks that a number names a state of units.
///
/// # Errors
/// If it names none.
pub fn check_unit_state(field: &str, value: i32) -> Result<(), Invalid> {
    match v1::UnitState::try_from(value) {
        Ok(state) if state != v1::UnitState::Unspecified => Ok(()),
        _ => {
            let allowed =
                "use WAITING (1), BACKING_OFF (2), LIVE (3), SUCCEEDED (4), FAILED (5) or SKIPPED (6)";
            Err(invalid(field, format!("{value} is not a state of units: {allowed}")))
        }
    }
}

fn failed_units_message(units: &FailedUnits) -> v1::FailedUnits {
    let range = |[start, end]: &[u32; 2]| v1::UnitRange { first: *start, last: end - 1 };
    v1::FailedUnits {
        code: units.kind.code().to_owned(),
        count: units.count,
        ranges: units.first.iter().map(range).collect(),
        more: units.more,
    }
}

fn contact_message(contact: &PoolContact) -> v1::PoolContact {
    v1::PoolContact {
        pool: contact.pool.clone(),
        connectivity: connectivity_message(contact.connectivity) as i32,
        since_unix_ms: contact.since.map(|at| at.0),
    }
}

pub(super) fn drain_message(drain: Drain) -> v1::Drain {
    let mode = match drain.mode {
        DrainMode::Wait => v1::DrainMode::Wait,
        DrainMode::Evict => v1::DrainMode::Evict,
    };
    v1::Drain { mode: mode.into(), deadline_unix_ms: drain.deadline.map(|at| at.0) }
}

/// Converts a pool to its message.
pub fn pool_message(view: &PoolView) -> v1::Pool {
    let pool = &view.pool;
    let drain = pool.drain.map(drain_message);
    v1::Pool {
        name: pool.spec.name.clone(),
        region: pool.spec.region.to_string(),
        backend: pool.spec.backend.clone(),
        labels: pool.spec.labels.clone(),
        connectivity: connectivity_message(pool.connectivity) as i32,
        connected: view.connected,
        cordoned: pool.cordoned,
        drain,
        real: pool.spec.capabilities.real,
        notes: pool.spec.notes.clone(),
        nodes: view.nodes,
        attempts: view.attempts,
        total: Some(resources_message(&pool.total)),
        committed: Some(resources_message(&pool.committed)),
        registered_unix_ms: pool.registered_at.0,
        revision: pool.revision.0,
        not_ready_since_unix_ms: pool.not_ready_since.map(|at| at.0),
    }
}

/// Converts a block of free devices to its message.
pub fn free_block_message(block: FreeBlock) -> v1::FreeBlock {
    v1::FreeBlock { model: block.model, devices: block.devices, nodes: block.nodes }
}

/// Converts a node of `pool` to its message.
pub fn node_message(pool: &Pool, view: &NodeView) -> v1::Node {
    let node = &view.node;
    let device = |(index, device): (usize, &Device)| v1::Device {
        model: device.model.clone(),
        memory_bytes: device.memory_bytes,
        healthy: device.healthy,
        millis: Some(device.millis),
        topology_group: u32::from(device.topology_group),
        profiles: device.profiles.clone(),
        committed_millis: node.committed_devices.get(index).copied().unwrap_or_default(),
    };
    let taint = |t: &crate::model::spec::Taint| v1::Taint { key: t.key.clone(), value: t.value.clone() };
    v1::Node {
        name: node.spec.name.clone(),
        pool: pool.spec.name.clone(),
        labels: node.spec.labels.clone(),
        taints: node.spec.taints.iter().map(taint).collect(),
        cordoned: node.cordoned || node.spec.cordoned,
        gone: node.gone,
        total: Some(resources_message(&node.total())),
        committed: Some(resources_message(&node.committed)),
        devices: node.spec.devices.iter().enumerate().map(device).collect(),
        tasks: node.tasks,
        revision: node.revision.0,
        quarantined_until_unix_ms: node.failure_tracker.quarantined_until.map(|until| until.0),
        stranded_millis: view.stranded_millis,
        pool_connectivity: connectivity_message(pool.connectivity) as i32,
    }
}

/// Converts the limits of a queue.
pub fn limits(message: &v1::Limits) -> Limits {
    Limits {
        cpu_millis: message.cpu_millis,
        memory_bytes: message.memory_bytes,
        storage_bytes: message.storage_bytes,
        device_millis: message.device_millis,
    }
}

/// Converts a queue's settings. Defaults replace a weight, run time or lease of 0.
///
/// # Errors
/// If the request has no queue.
pub fn queue_spec(message: Option<&v1::Queue>) -> Result<QueueSpec, Invalid> {
    let message = message.ok_or_else(|| invalid("queue", "is missing"))?;
    let default = default_settings(&message.name);
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    Ok(QueueSpec {
        weight: if message.weight == 0 { default.weight } else { message.weight },
        guarantee: message.guarantee.as_ref().map(resources).unwrap_or_default(),
        limit: message.limit.as_ref().map(limits).unwrap_or_default(),
        max_run_ms_default: or(message.max_run_ms_default, default.max_run_ms_default),
        lease_ms_default: or(message.lease_ms_default, default.lease_ms_default),
        name: default.name,
    })
}

/// Converts a queue to its message.
pub fn queue_message(view: &QueueView) -> v1::Queue {
    let (queue, spec) = (&view.queue, &view.queue.spec);
    v1::Queue {
        name: spec.name.clone(),
        weight: spec.weight,
        guarantee: Some(resources_message(&spec.guarantee)),
        limit: Some(v1::Limits {
            cpu_millis: spec.limit.cpu_millis,
            memory_bytes: spec.limit.memory_bytes,
            storage_bytes: spec.limit.storage_bytes,
            device_millis: spec.limit.device_millis,
        }),
        max_run_ms_default: spec.max_run_ms_default,
        lease_ms_default: spec.lease_ms_default,
        usage: Some(resources_message(&queue.usage)),
        jobs: queue.jobs,
        revision: queue.revision.0,
    }
}

/// Converts the reasons why a job waits to their message.
pub fn why_message(why: &JobWhy) -> v1::WhyResponse {
    let reason = |code: &str, message: String, parameters: Vec<Parameter>| v1::Reason {
        code: code.to_owned(),
        message,
        parameters: parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    };
    let group = |group: &crate::broker::query::GroupWhy| {
        let pools = group.why.pools.iter().zip(&group.pool_names).map(|(pool, name)| v1::PoolReason {
            pool: name.clone(),
            permanence: match pool.reason.permanence() {
                Permanence::Never => v1::Permanence::Never as i32,
                Permanence::Closed => v1::Permanence::Closed as i32,
                Permanence::Busy => v1::Permanence::Busy as i32,
                Permanence::Fits => v1::Permanence::Fits as i32,
            },
            reason: Some(reason(pool.reason.code(), pool.reason.to_string(), pool.reason.parameters())),
        });
        v1::GroupWhy {
            group: group.name.clone(),
            waiting: group.waiting,
            pools: pools.collect(),
            would_help: {
                let help = group.why.would_help.iter();
                help.map(|help| reason(help.code(), help.to_string(), help.parameters())).collect()
            },
        }
    };
    v1::WhyResponse {
        job: Some(job_message(&why.job)),
        reasons: {
            let reasons = why.reasons.iter();
            reasons.map(|found| reason(found.code(), found.to_string(), found.parameters())).collect()
        },
        position: why.position,
        waiting: why.waiting,
        groups: why.groups.iter().map(group).collect(),
    }
}

/// A piece of output with its time.
pub fn output_time_message(end: u64, at: Timestamp) -> v1::OutputTime {
    v1::OutputTime { end, at_unix_ms: at.0 }
}
