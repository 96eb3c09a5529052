//! Messages of the sessions between agents and the broker.

use std::sync::Arc;

use super::{Invalid, invalid, job_spec, resources, spec_message};
use crate::api::proto::v1;
use crate::model::attempt::{AttemptReport, AttemptStatus, Outcome, OutcomeKind, StopReason};
use crate::model::device::DeviceShare;
use crate::model::exchange::{
    Accepted, FromAgent, Hello, Inventory, Part, RefusedCode, StartOrder, Stop, TaskStart, ToAgent,
};
use crate::model::high_water::HighWaterMark;
use crate::model::id::{AttemptId, Epoch, InstanceId, ParseIdError, Revision, SpecId, Term};
use crate::model::limit::{DEVICE_MILLIS, ENTRIES_PER_MESSAGE_MAX};
use crate::model::pool::{Capabilities, Device, NodeSpec, PoolSpec};
use crate::model::resource::Resources;
use crate::model::spec::Taint;
use crate::model::time::Timestamp;
use crate::model::validate::quote;

use super::view::{outcome_message, shares_message};

/// Parses an id. The error quotes an invalid one in shortened form.
pub(crate) fn parse<T: std::str::FromStr<Err = ParseIdError>>(field: &str, text: &str) -> Result<T, Invalid> {
    text.parse().map_err(|error: ParseIdError| {
        invalid(field, format!("{} is not {}", quote(&error.text), error.expected))
    })
}

fn bytes_16(field: &str, bytes: &[u8]) -> Result<[u8; 16], Invalid> {
    bytes.try_into().map_err(|_| invalid(field, format!("{} bytes, 16 are required", bytes.len())))
}

/// Converts a message from an agent.
///
/// # Errors
/// The invalid fields.
pub fn from_agent(body: v1::sync_request::Body) -> Result<FromAgent, Invalid> {
    Ok(match body {
        v1::sync_request::Body::Hello(message) => FromAgent::Hello(hello(&message)?),
        v1::sync_request::Body::Inventory(message) => {
            entries("inventory.nodes", message.nodes.len())?;
            entries("inventory.removed", message.removed.len())?;
            let nodes = message.nodes.iter().enumerate();
            let nodes = nodes.map(|(index, read)| node(&format!("inventory.nodes[{index}]"), read));
            FromAgent::Inventory(Inventory {
                epoch: Epoch(message.epoch),
                part: part("inventory.part", message.part)?,
                nodes: nodes.collect::<Result<_, _>>()?,
                removed: message.removed,
            })
        }
        v1::sync_request::Body::Observed(message) => {
            entries("observed.reports", message.reports.len())?;
            let reports = message.reports.into_iter().enumerate();
            let reports = reports.map(|(index, read)| report(&format!("observed.reports[{index}]"), read));
            FromAgent::Observed {
                epoch: Epoch(message.epoch),
                part: part("observed.part", message.part)?,
                reports: reports.collect::<Result<_, _>>()?,
            }
        }
        v1::sync_request::Body::Heartbeat(message) => {
            FromAgent::Heartbeat { epoch: Epoch(message.epoch), sequence: message.sequence }
        }
    })
}

/// Checks the length of a list: each message must be a short step for the broker.
fn entries(field: &str, len: usize) -> Result<(), Invalid> {
    if len > ENTRIES_PER_MESSAGE_MAX {
        let description = format!("{len} entries, at most {ENTRIES_PER_MESSAGE_MAX} are allowed");
        return Err(invalid(field, description));
    }
    Ok(())
}

/// Converts a hello, the first message of a session.
///
/// # Errors
/// The invalid fields.
pub fn hello(message: &v1::Hello) -> Result<Hello, Invalid> {
    let pool = message.pool.as_ref().ok_or_else(|| invalid("hello.pool", "is missing"))?;
    let region = super::region("hello.pool.region", &pool.region)?;
    Ok(Hello {
        pool: PoolSpec {
            name: pool.name.clone(),
            region,
            backend: pool.backend.clone(),
            labels: pool.labels.clone(),
            capabilities: Capabilities {
                real: pool.real,
                processes: pool.processes,
                containers: pool.containers,
                pods: pool.pods,
                leases: pool.leases,
                secrets: pool.secrets,
                whole_devices_only: pool.whole_devices_only,
            },
            notes: pool.notes.clone(),
        },
        instance: InstanceId(u128::from_be_bytes(bytes_16("hello.instance", &message.instance)?)),
        key: bytes_16("hello.key", &message.key)?,
        last_epoch: message.last_epoch.map(Epoch),
        high_water: message
            .high_water
            .as_ref()
            .map(|given| high_water("hello.high_water", given))
            .transpose()?,
    })
}

fn high_water(path: &str, message: &v1::HighWaterMark) -> Result<HighWaterMark, Invalid> {
    Ok(HighWaterMark {
        revision: Revision(message.revision),
        journal: parse(&format!("{path}.journal"), &message.journal)?,
        writer_session: message.writer_session,
        proof: bytes_16(&format!("{path}.proof"), &message.proof)?,
    })
}

fn high_water_message(high_water: &HighWaterMark) -> v1::HighWaterMark {
    let (journal, proof) = (high_water.journal.to_string(), high_water.proof.to_vec());
    v1::HighWaterMark {
        journal,
        writer_session: high_water.writer_session,
        revision: high_water.revision.0,
        proof,
    }
}

fn part(field: &str, value: i32) -> Result<Part, Invalid> {
    match v1::Part::try_from(value).unwrap_or_default() {
        v1::Part::Unspecified => {
            Err(invalid(field, format!("{value} is not a part: use DELTA, FULL_MORE or FULL_END")))
        }
        v1::Part::Delta => Ok(Part::Delta),
        v1::Part::FullMore => Ok(Part::FullMore),
        v1::Part::FullEnd => Ok(Part::FullEnd),
    }
}

fn part_message(part: Part) -> i32 {
    match part {
        Part::Delta => v1::Part::Delta as i32,
        Part::FullMore => v1::Part::FullMore as i32,
        Part::FullEnd => v1::Part::FullEnd as i32,
    }
}

fn node(path: &str, message: &v1::Node) -> Result<NodeSpec, Invalid> {
    let device = |(index, device): (usize, &v1::Device)| {
        let group = u16::try_from(device.topology_group).map_err(|_| {
            let description = format!("{} is not within 0 and 65535", device.topology_group);
            invalid(&format!("{path}.devices[{index}].topology_group"), description)
        })?;
        Ok(Device {
            model: device.model.clone(),
            memory_bytes: device.memory_bytes,
            healthy: device.healthy,
            millis: device.millis.unwrap_or(DEVICE_MILLIS),
            topology_group: group,
            profiles: device.profiles.clone(),
        })
    };
    let mut taints: Vec<Taint> =
        message.taints.iter().map(|t| Taint { key: t.key.clone(), value: t.value.clone() }).collect();
    taints.sort_unstable();
    let allocatable = message.total.as_ref().map(resources).unwrap_or_default();
    Ok(NodeSpec {
        name: message.name.clone(),
        labels: message.labels.clone(),
        taints,
        cordoned: message.cordoned,
        allocatable: Resources { device_millis: 0, ..allocatable },
        devices: message.devices.iter().enumerate().map(device).collect::<Result<_, Invalid>>()?,
    })
}

fn report(path: &str, message: v1::AttemptReport) -> Result<AttemptReport, Invalid> {
    let status = match message.status {
        Some(v1::attempt_report::Status::Starting(_)) => AttemptStatus::Starting,
        Some(v1::attempt_report::Status::Running(running)) => {
            AttemptStatus::Running { started_at: Timestamp(running.started_unix_ms) }
        }
        Some(v1::attempt_report::Status::Ended(ended)) => {
            let outcome = format!("{path}.ended.outcome");
            let ended_as = ended.outcome.ok_or_else(|| invalid(&outcome, "is missing"))?;
            AttemptStatus::Ended {
                started_at: ended.started_unix_ms.map(Timestamp),
                ended_at: Timestamp(ended.ended_unix_ms),
                outcome: read_outcome(&outcome, ended_as)?,
            }
        }
        None => return Err(invalid(path, "set starting, running or ended")),
    };
    Ok(AttemptReport {
        attempt: parse::<AttemptId>(&format!("{path}.attempt"), &message.attempt)?,
        ordered_revision: Revision(message.ordered_revision),
        status,
    })
}

fn read_outcome(path: &str, message: v1::Outcome) -> Result<Outcome, Invalid> {
    let kind = OutcomeKind::ALL.into_iter().find(|kind| kind.code() == message.code);
    let kind = kind.ok_or_else(|| {
        invalid(&format!("{path}.code"), format!("{} is not an outcome", quote(&message.code)))
    })?;
    Ok(Outcome {
        kind,
        exit_code: message.exit_code,
        signal: message.signal,
        message: message.message,
        simulated: message.simulated,
        node_fault: message.node_fault,
    })
}

/// Converts a message from an agent to its frame.
pub fn sync_request(number: u64, message: &FromAgent) -> v1::SyncRequest {
    let body = match message {
        FromAgent::Hello(hello) => v1::sync_request::Body::Hello(hello_message(hello)),
        FromAgent::Inventory(inventory) => v1::sync_request::Body::Inventory(v1::Inventory {
            epoch: inventory.epoch.0,
            part: part_message(inventory.part),
            nodes: inventory.nodes.iter().map(node_spec_message).collect(),
            removed: inventory.removed.clone(),
        }),
        FromAgent::Observed { epoch, part, reports } => v1::sync_request::Body::Observed(v1::Observed {
            epoch: epoch.0,
            part: part_message(*part),
            reports: reports.iter().map(report_message).collect(),
        }),
        FromAgent::Heartbeat { epoch, sequence } => {
            v1::sync_request::Body::Heartbeat(v1::Heartbeat { epoch: epoch.0, sequence: *sequence })
        }
    };
    v1::SyncRequest { number, body: Some(body) }
}

/// Converts a hello to its message.
pub(crate) fn hello_message(hello: &Hello) -> v1::Hello {
    let (pool, capabilities) = (&hello.pool, hello.pool.capabilities);
    v1::Hello {
        pool: Some(v1::PoolDeclaration {
            name: pool.name.clone(),
            region: pool.region.to_string(),
            backend: pool.backend.clone(),
            labels: pool.labels.clone(),
            real: capabilities.real,
            processes: capabilities.processes,
            containers: capabilities.containers,
            pods: capabilities.pods,
            leases: capabilities.leases,
            secrets: capabilities.secrets,
            whole_devices_only: capabilities.whole_devices_only,
            notes: pool.notes.clone(),
        }),
        instance: hello.instance.0.to_be_bytes().to_vec(),
        key: hello.key.to_vec(),
        last_epoch: hello.last_epoch.map(|epoch| epoch.0),
        high_water: hello.high_water.as_ref().map(high_water_message),
    }
}

fn node_spec_message(node: &NodeSpec) -> v1::Node {
    let device = |device: &Device| v1::Device {
        model: device.model.clone(),
        memory_bytes: device.memory_bytes,
        healthy: device.healthy,
        millis: Some(device.millis),
        topology_group: u32::from(device.topology_group),
        profiles: device.profiles.clone(),
        committed_millis: 0,
    };
    v1::Node {
        name: node.name.clone(),
        labels: node.labels.clone(),
        taints: node
            .taints
            .iter()
            .map(|t| v1::Taint { key: t.key.clone(), value: t.value.clone() })
            .collect(),
        cordoned: node.cordoned,
        total: Some(super::resources_message(&node.allocatable)),
        devices: node.devices.iter().map(device).collect(),
        ..v1::Node::default()
    }
}

fn report_message(report: &AttemptReport) -> v1::AttemptReport {
    let status = match &report.status {
        AttemptStatus::Starting => v1::attempt_report::Status::Starting(v1::Starting {}),
        AttemptStatus::Running { started_at } => {
            v1::attempt_report::Status::Running(v1::Running { started_unix_ms: started_at.0 })
        }
        AttemptStatus::Ended { started_at, ended_at, outcome } => {
            v1::attempt_report::Status::Ended(v1::Ended {
                started_unix_ms: started_at.map(|at| at.0),
                ended_unix_ms: ended_at.0,
                outcome: Some(outcome_message(outcome)),
            })
        }
    };
    v1::AttemptReport {
        attempt: report.attempt.to_string(),
        ordered_revision: report.ordered_revision.0,
        status: Some(status),
    }
}

/// Converts a message to an agent to its frame.
pub fn sync_response(number: u64, message: &ToAgent) -> v1::SyncResponse {
    let body = match message {
        ToAgent::Accepted(accepted) => v1::sync_response::Body::Accepted(v1::Accepted {
            journal: accepted.journal.to_string(),
            term: accepted.term.0,
            epoch: accepted.epoch.0,
            now_unix_ms: accepted.now.0,
            heartbeat_ms: accepted.heartbeat_ms,
            high_water: accepted.high_water.as_ref().map(high_water_message),
        }),
        ToAgent::Refused { code, message } => v1::sync_response::Body::Refused(v1::Refused {
            code: code.code().to_owned(),
            message: message.clone(),
        }),
        ToAgent::Orders { term, part, specs, orders } => v1::sync_response::Body::Orders(v1::Orders {
            term: term.0,
            part: part_message(*part),
            specs: specs
                .iter()
                .map(|(id, spec)| v1::SpecBody { id: id.0.to_vec(), spec: Some(spec_message(spec)) })
                .collect(),
            orders: orders.iter().map(order_message).collect(),
        }),
        ToAgent::Stops { term, stops } => {
            let stop = |stop: &Stop| v1::Stop {
                attempt: stop.attempt.to_string(),
                reason: stop_code(stop.reason).to_owned(),
                grace_ms: stop.grace_ms,
            };
            v1::sync_response::Body::Stops(v1::Stops {
                term: term.0,
                stops: stops.iter().map(stop).collect(),
            })
        }
        ToAgent::Acknowledged { attempts } => v1::sync_response::Body::Acknowledged(v1::Acknowledged {
            attempts: attempts.iter().map(ToString::to_string).collect(),
        }),
        ToAgent::HeartbeatAnswer { term, sequence, now, high_water } => {
            v1::sync_response::Body::HeartbeatAnswer(v1::HeartbeatAnswer {
                term: term.0,
                sequence: *sequence,
                now_unix_ms: now.0,
                high_water: high_water.as_ref().map(high_water_message),
            })
        }
    };
    v1::SyncResponse { number, body: Some(body) }
}

fn order_message(order: &StartOrder) -> v1::StartOrder {
    let task = |task: &TaskStart| v1::TaskPlacement {
        group: u32::from(task.group),
        task: task.task,
        node: task.node.clone(),
        devices: shares_message(&task.devices),
    };
    v1::StartOrder {
        attempt: order.attempt.to_string(),
        revision: order.revision.0,
        high_water: order.high_water.as_ref().map(high_water_message),
        spec_id: order.spec.0.to_vec(),
        job_name: order.job_name.clone(),
        queue: order.queue.clone(),
        start_by_unix_ms: order.start_by.0,
        started: order.started,
        after: order.after.map(|after| after.to_string()).unwrap_or_default(),
        tasks: order.tasks.iter().map(task).collect(),
    }
}

const STOP_REASONS: [(StopReason, &str); 7] = [
    (StopReason::Cancelled, "Cancelled"),
    (StopReason::TimedOut, "TimedOut"),
    (StopReason::Drained, "Drained"),
    (StopReason::JobFailed, "JobFailed"),
    (StopReason::StartLimit, "StartLimit"),
    (StopReason::Abandoned, "Abandoned"),
    (StopReason::Orphaned, "Orphaned"),
];

const REFUSAL_CODES: [RefusedCode; 6] = [
    RefusedCode::PoolClaimed,
    RefusedCode::InvalidPool,
    RefusedCode::Superseded,
    RefusedCode::UnknownWork,
    RefusedCode::ProtocolError,
    RefusedCode::Unavailable,
];

fn stop_code(reason: StopReason) -> &'static str {
    STOP_REASONS.iter().find(|(listed, _)| *listed == reason).map_or("Orphaned", |(_, code)| code)
}

/// Converts a message from the broker.
///
/// # Errors
/// The invalid fields.
pub fn to_agent(body: v1::sync_response::Body) -> Result<ToAgent, Invalid> {
    Ok(match body {
        v1::sync_response::Body::Accepted(accepted) => ToAgent::Accepted(Accepted {
            journal: parse("accepted.journal", &accepted.journal)?,
            term: Term(accepted.term),
            epoch: Epoch(accepted.epoch),
            now: Timestamp(accepted.now_unix_ms),
            heartbeat_ms: accepted.heartbeat_ms.max(1),
            high_water: accepted
                .high_water
                .as_ref()
                .map(|given| high_water("accepted.high_water", given))
                .transpose()?,
        }),
        v1::sync_response::Body::Refused(refused) => {
            let code = REFUSAL_CODES.into_iter().find(|code| code.code() == refused.code);
            // A newer broker may have further codes. They are treated as `Unavailable`.
            ToAgent::Refused { code: code.unwrap_or(RefusedCode::Unavailable), message: refused.message }
        }
        v1::sync_response::Body::Orders(orders) => {
            let mut specs = Vec::new();
            for body in orders.specs {
                let id = SpecId(bytes_16("specs.id", &body.id)?);
                let spec = body.spec.ok_or_else(|| invalid("specs.spec", "is missing"))?;
                specs.push((id, Arc::new(job_spec("specs.spec", &spec)?)));
            }
            let part = part("orders.part", orders.part)?;
            let orders_read = orders.orders.into_iter().map(order).collect::<Result<_, _>>()?;
            ToAgent::Orders { term: Term(orders.term), part, specs, orders: orders_read }
        }
        v1::sync_response::Body::Stops(stops) => {
            let mut list = Vec::new();
            for stop in stops.stops {
                let reason = STOP_REASONS
                    .iter()
                    .find(|(_, code)| *code == stop.reason)
                    .map_or(StopReason::Orphaned, |(r, _)| *r);
                list.push(Stop {
                    attempt: parse("stops.attempt", &stop.attempt)?,
                    reason,
                    grace_ms: stop.grace_ms,
                });
            }
            ToAgent::Stops { term: Term(stops.term), stops: list }
        }
        v1::sync_response::Body::Acknowledged(acknowledged) => {
            let attempts = acknowledged.attempts.iter().map(|text| parse("attempts", text));
            ToAgent::Acknowledged { attempts: attempts.collect::<Result<_, _>>()? }
        }
        v1::sync_response::Body::HeartbeatAnswer(answer) => {
            let given =
                answer.high_water.as_ref().map(|given| high_water("heartbeat_answer.high_water", given));
            let (term, high_water) = (Term(answer.term), given.transpose()?);
            let now = Timestamp(answer.now_unix_ms);
            ToAgent::HeartbeatAnswer { term, sequence: answer.sequence, now, high_water }
        }
    })
}

fn order(message: v1::StartOrder) -> Result<StartOrder, Invalid> {
    let share = |share: &v1::DeviceShare| {
        let index =
            u16::try_from(share.index).map_err(|_| invalid("devices.index", "is not within 0 and 65535"))?;
        Ok(DeviceShare { index, millis: share.millis })
    };
    let task = |task: v1::TaskPlacement| {
        let group =
            u16::try_from(task.group).map_err(|_| invalid("tasks.group", "is not within 0 and 65535"))?;
        let devices = task.devices.iter().map(share).collect::<Result<_, Invalid>>()?;
        Ok::<_, Invalid>(TaskStart { group, task: task.task, node: task.node, devices })
    };
    Ok(StartOrder {
        attempt: parse("orders.attempt", &message.attempt)?,
        revision: Revision(message.revision),
        high_water: message
            .high_water
            .as_ref()
            .map(|given| high_water("orders.high_water", given))
            .transpose()?,
        spec: SpecId(bytes_16("orders.spec_id", &message.spec_id)?),
        job_name: message.job_name,
        queue: message.queue,
        start_by: Timestamp(message.start_by_unix_ms),
        started: message.started,
        after: if message.after.is_empty() { None } else { Some(parse("orders.after", &message.after)?) },
        tasks: message.tasks.into_iter().map(task).collect::<Result<_, _>>()?,
    })
}
