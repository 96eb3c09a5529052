//! Job specs.

use super::{Invalid, other};
use crate::api::proto::v1;
use crate::model::device::DeviceAmount;
use crate::model::id::JobId;
use crate::model::interval::IntervalSet;
use crate::model::limit::{INDEX_RANGES_MAX, POD_SPEC_LEN_MAX};
use crate::model::region::RegionCode;
use crate::model::resource::Resources;
use crate::model::spec::{
    Constraints, Dependency, DependencyCondition, DeviceRequest, EnvValue, EnvVar, JobSpec, NodeLosses,
    OnPoolLost, OnUnitFailure, Program, RetryOn, RetryPolicy, Run, Selection, Simulate, TaskGroup,
    TaskRequest, Toleration,
};
use crate::model::validate::Violations;

/// Time between SIGTERM and SIGKILL if the spec sets none.
const GRACE_MS_DEFAULT: u64 = 10_000;

/// Converts a spec. Violations name its fields under `path`. The kernel checks the values later.
///
/// # Errors
/// The fields that the model can't represent: unknown enum values, missing alternatives.
pub fn job_spec(path: &str, message: &v1::JobSpec) -> Result<JobSpec, Invalid> {
    let mut out = Violations::default();
    let spec = read_job_spec(path, message, &mut out);
    out.finish().map(|()| spec)
}

/// Converts a spec like [`job_spec`]. Fields that the model can't represent become violations, and have some valid value
/// in the result, so that the others can be checked at the same time.
pub fn read_job_spec(path: &str, message: &v1::JobSpec, out: &mut Violations) -> JobSpec {
    let groups = message.groups.iter().enumerate();
    let groups = groups.map(|(index, group)| task_group(&format!("{path}.groups[{index}]"), group, out));
    let groups = groups.collect();
    let none = v1::Constraints::default();
    let constraints = message.constraints.as_ref().unwrap_or(&none);
    let on_pool_lost = match message.on_pool_lost() {
        v1::OnPoolLost::Unspecified | v1::OnPoolLost::Wait => OnPoolLost::Wait,
        v1::OnPoolLost::Requeue => OnPoolLost::Requeue,
    };
    check_enum::<v1::OnPoolLost>(&format!("{path}.on_pool_lost"), message.on_pool_lost, out);
    let max_failed = message.on_unit_failure.as_ref().and_then(|policy| policy.max_failed);
    JobSpec {
        display_name: message.display_name.clone(),
        labels: message.labels.clone(),
        priority: message.priority,
        groups,
        gang_job: message.gang_job,
        constraints: read_constraints(&format!("{path}.constraints"), constraints, out),
        retry: retry(&format!("{path}.retry"), message.retry.as_ref(), out),
        on_pool_lost,
        may_overlap: message.may_overlap,
        lease_ms: message.lease_ms,
        on_unit_failure: match max_failed {
            Some(0) => OnUnitFailure::FailJob,
            max_failed => OnUnitFailure::Continue { max_failed: max_failed.unwrap_or(u32::MAX) },
        },
        max_run_ms: message.max_run_ms,
        start_limit_ms: message.start_limit_ms,
        grace_ms: message.grace_ms.unwrap_or(GRACE_MS_DEFAULT),
        depends_on: message
            .depends_on
            .iter()
            .enumerate()
            .map(|(index, edge)| dependency(&format!("{path}.depends_on[{index}]"), edge, out))
            .collect(),
        required_features: message.required_features.clone(),
    }
}

fn check_enum<E: TryFrom<i32>>(field: &str, value: i32, out: &mut Violations) {
    if E::try_from(value).is_err() {
        out.push(field, format!("{value} is not a value of this enum"));
    }
}

fn dependency(path: &str, edge: &v1::Dependency, out: &mut Violations) -> Dependency {
    check_enum::<v1::DependencyCondition>(&format!("{path}.condition"), edge.condition, out);
    let condition = match edge.condition() {
        v1::DependencyCondition::Unspecified | v1::DependencyCondition::Succeeded => {
            DependencyCondition::Succeeded
        }
        v1::DependencyCondition::Any => DependencyCondition::Any,
        v1::DependencyCondition::Failed => DependencyCondition::Failed,
    };
    Dependency { job: JobId(edge.job_id), condition }
}

fn task_group(path: &str, group: &v1::TaskGroup, out: &mut Violations) -> TaskGroup {
    let none = v1::TaskResources::default();
    let requested = group.resources.as_ref().unwrap_or(&none);
    let resources = Resources {
        cpu_millis: requested.cpu_millis,
        memory_bytes: requested.memory_bytes,
        storage_bytes: requested.storage_bytes,
        device_millis: 0,
        other: other(&requested.other),
    };
    let devices = requested.devices.as_ref().map(|devices| {
        let amount = match devices.amount {
            Some(v1::device_request::Amount::Count(count)) => DeviceAmount::Whole(count),
            Some(v1::device_request::Amount::Millis(millis)) => DeviceAmount::Fraction(millis),
            None => {
                out.push(format!("{path}.resources.devices"), "set count or millis");
                DeviceAmount::Whole(1)
            }
        };
        let mut models = devices.models.clone();
        models.sort_unstable();
        models.dedup();
        DeviceRequest { models, amount }
    });
    let run = match &group.run {
        Some(v1::task_group::Run::Process(program)) => {
            Run::Process(read_program(&format!("{path}.process"), program, out))
        }
        Some(v1::task_group::Run::Container(container)) => {
            let none = v1::Program::default();
            let program = container.program.as_ref().unwrap_or(&none);
            let program = read_program(&format!("{path}.container.program"), program, out);
            Run::Container { image: container.image.clone(), program }
        }
        Some(v1::task_group::Run::Pod(pod)) => {
            let field = format!("{path}.pod.spec_json");
            match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&pod.spec_json) {
                // The model's own check reports an empty or too long text.
                _ if pod.spec_json.is_empty() || pod.spec_json.len() > POD_SPEC_LEN_MAX => {}
                Ok(_) => {}
                Err(error) => out.push(field, format!("not a JSON object: {error}")),
            }
            Run::Pod { spec: pod.spec_json.clone() }
        }
        None => {
            out.push(path, "set what to run: process, container or pod");
            Run::Process(Program { command: vec![String::from("true")], ..Program::default() })
        }
    };
    let selection = read_selection(path, group, out);
    let selected = selection.as_ref().map(|selection| selection.indices.len());
    let simulate = group.simulate.as_ref().map(|simulate| {
        out.range(&format!("{path}.simulate.exit_code"), simulate.exit_code, 0, 255);
        Simulate {
            duration_ms: simulate.duration_ms,
            exit_code: u8::try_from(simulate.exit_code).unwrap_or_default(),
        }
    });
    TaskGroup {
        name: if group.name.is_empty() { "main".to_owned() } else { group.name.clone() },
        count: group.count.unwrap_or(selected.unwrap_or(1)),
        gang: group.gang,
        request: TaskRequest { resources, devices },
        run,
        simulate,
        selection,
    }
}

fn read_selection(path: &str, group: &v1::TaskGroup, out: &mut Violations) -> Option<Selection> {
    let field = format!("{path}.indices");
    if group.indices.is_empty() {
        if group.index_count.is_some() {
            out.push(format!("{path}.index_count"), "needs indices");
        }
        return None;
    }
    let parts = group.indices.bytes().filter(|byte| *byte == b',').count() + 1;
    if parts > INDEX_RANGES_MAX {
        out.push(field, format!("{parts} ranges, at most {INDEX_RANGES_MAX} are allowed"));
        return None;
    }
    let indices = IntervalSet::parse(&group.indices).map_err(|error| out.push(field, error)).ok()?;
    let past = indices.intervals().last().map_or(0, |[_, end]| *end);
    Some(Selection { of: group.index_count.unwrap_or(past), indices })
}

fn read_program(path: &str, program: &v1::Program, out: &mut Violations) -> Program {
    let var = |(index, var): (usize, &v1::EnvVar)| {
        let value = match &var.source {
            Some(v1::env_var::Source::Value(value)) => EnvValue::Plain(value.clone()),
            Some(v1::env_var::Source::ValueFrom(secret)) => {
                EnvValue::Secret { name: secret.name.clone(), key: secret.key.clone() }
            }
            None => {
                out.push(format!("{path}.env[{index}]"), "set value or value_from");
                EnvValue::Plain(String::new())
            }
        };
        EnvVar { name: var.name.clone(), value }
    };
    Program {
        command: program.command.clone(),
        args: program.args.clone(),
        env: program.env.iter().enumerate().map(var).collect(),
        workdir: program.workdir.clone(),
    }
}

fn read_constraints(path: &str, message: &v1::Constraints, out: &mut Violations) -> Constraints {
    let mut regions = |field: &str, list: &[String]| -> Vec<RegionCode> {
        let mut codes = Vec::new();
        for (index, text) in list.iter().enumerate() {
            match super::region(&format!("{path}.{field}[{index}]"), text) {
                Ok(code) => codes.push(code),
                Err(violations) => out.extend(violations),
            }
        }
        codes.sort_unstable();
        codes.dedup();
        codes
    };
    let mut pools = message.pools.clone();
    pools.sort_unstable();
    pools.dedup();
    let toleration = |t: &v1::Toleration| Toleration { key: t.key.clone(), value: t.value.clone() };
    Constraints {
        regions_allowed: regions("regions_allowed", &message.regions_allowed),
        regions_denied: regions("regions_denied", &message.regions_denied),
        pools,
        node_labels: message.node_labels.clone(),
        tolerations: message.tolerations.iter().map(toleration).collect(),
        real_only: message.real_only,
    }
}

fn retry(path: &str, message: Option<&v1::RetryPolicy>, out: &mut Violations) -> RetryPolicy {
    let none = v1::RetryPolicy::default();
    let message = message.unwrap_or(&none);
    let max_attempts = message.max_attempts.unwrap_or(1);
    let mut on = Vec::new();
    for (index, value) in message.on.iter().enumerate() {
        let field = format!("{path}.on[{index}]");
        match v1::RetryOn::try_from(*value) {
            Ok(v1::RetryOn::Failed) => on.push(RetryOn::Failed),
            Ok(v1::RetryOn::TimedOut) => on.push(RetryOn::TimedOut),
            Ok(v1::RetryOn::StartFailed) => on.push(RetryOn::StartFailed),
            Ok(v1::RetryOn::Unknown) => on.push(RetryOn::Unknown),
            Ok(v1::RetryOn::Unspecified) | Err(_) => {
                out.push(field, format!("{value} is not an outcome to retry on"));
            }
        }
    }
    if on.is_empty() && max_attempts > 1 {
        on = vec![RetryOn::Failed, RetryOn::TimedOut, RetryOn::StartFailed, RetryOn::Unknown];
    }
    on.sort_unstable();
    on.dedup();
    RetryPolicy {
        max_attempts,
        on,
        backoff_ms: message.backoff_ms,
        backoff_max_ms: message.backoff_max_ms,
        max_node_losses: message.max_node_losses.map_or_else(NodeLosses::default, NodeLosses),
    }
}

/// Converts a spec to its message.
pub fn spec_message(spec: &JobSpec) -> v1::JobSpec {
    let regions = |codes: &[RegionCode]| codes.iter().map(ToString::to_string).collect();
    let constraints = &spec.constraints;
    let toleration = |t: &Toleration| v1::Toleration { key: t.key.clone(), value: t.value.clone() };
    let retry_on = |on: &RetryOn| match on {
        RetryOn::Failed => v1::RetryOn::Failed as i32,
        RetryOn::TimedOut => v1::RetryOn::TimedOut as i32,
        RetryOn::StartFailed => v1::RetryOn::StartFailed as i32,
        RetryOn::Unknown => v1::RetryOn::Unknown as i32,
    };
    let max_failed = match spec.on_unit_failure {
        OnUnitFailure::FailJob => Some(0),
        OnUnitFailure::Continue { max_failed: u32::MAX } => None,
        OnUnitFailure::Continue { max_failed } => Some(max_failed),
    };
    v1::JobSpec {
        display_name: spec.display_name.clone(),
        labels: spec.labels.clone(),
        priority: spec.priority,
        groups: spec.groups.iter().map(group_message).collect(),
        gang_job: spec.gang_job,
        constraints: Some(v1::Constraints {
            regions_allowed: regions(&constraints.regions_allowed),
            regions_denied: regions(&constraints.regions_denied),
            pools: constraints.pools.clone(),
            node_labels: constraints.node_labels.clone(),
            tolerations: constraints.tolerations.iter().map(toleration).collect(),
            real_only: constraints.real_only,
        }),
        retry: Some(v1::RetryPolicy {
            max_attempts: Some(spec.retry.max_attempts),
            on: spec.retry.on.iter().map(retry_on).collect(),
            backoff_ms: spec.retry.backoff_ms,
            backoff_max_ms: spec.retry.backoff_max_ms,
            max_node_losses: Some(spec.retry.max_node_losses.0),
        }),
        on_pool_lost: match spec.on_pool_lost {
            OnPoolLost::Wait => v1::OnPoolLost::Wait as i32,
            OnPoolLost::Requeue => v1::OnPoolLost::Requeue as i32,
        },
        may_overlap: spec.may_overlap,
        lease_ms: spec.lease_ms,
        on_unit_failure: Some(v1::OnUnitFailure { max_failed }),
        max_run_ms: spec.max_run_ms,
        start_limit_ms: spec.start_limit_ms,
        grace_ms: Some(spec.grace_ms),
        depends_on: spec.depends_on.iter().map(dependency_message).collect(),
        required_features: spec.required_features.clone(),
    }
}

/// A dependency without the name of its job.
pub fn dependency_message(edge: &Dependency) -> v1::Dependency {
    v1::Dependency {
        job_id: edge.job.0,
        condition: match edge.condition {
            DependencyCondition::Any => v1::DependencyCondition::Any as i32,
            DependencyCondition::Succeeded => v1::DependencyCondition::Succeeded as i32,
            DependencyCondition::Failed => v1::DependencyCondition::Failed as i32,
        },
        ..v1::Dependency::default()
    }
}

fn group_message(group: &TaskGroup) -> v1::TaskGroup {
    let request = &group.request;
    let devices = request.devices.as_ref().map(|devices| v1::DeviceRequest {
        models: devices.models.clone(),
        amount: Some(match devices.amount {
            DeviceAmount::Whole(count) => v1::device_request::Amount::Count(count),
            DeviceAmount::Fraction(millis) => v1::device_request::Amount::Millis(millis),
        }),
    });
    let run = match &group.run {
        Run::Process(program) => v1::task_group::Run::Process(program_message(program)),
        Run::Container { image, program } => v1::task_group::Run::Container(v1::Container {
            image: image.clone(),
            program: Some(program_message(program)),
        }),
        Run::Pod { spec } => v1::task_group::Run::Pod(v1::KubernetesPod { spec_json: spec.clone() }),
    };
    let selection = group.selection.as_ref();
    v1::TaskGroup {
        name: group.name.clone(),
        count: Some(group.count),
        gang: group.gang,
        resources: Some(v1::TaskResources {
            cpu_millis: request.resources.cpu_millis,
            memory_bytes: request.resources.memory_bytes,
            storage_bytes: request.resources.storage_bytes,
            devices,
            other: super::view::other_message(&request.resources),
        }),
        run: Some(run),
        simulate: group
            .simulate
            .map(|s| v1::Simulate { duration_ms: s.duration_ms, exit_code: u32::from(s.exit_code) }),
        indices: selection.map_or_else(String::new, |selection| selection.indices.to_string()),
        index_count: selection.map(|selection| selection.of),
    }
}

fn program_message(program: &Program) -> v1::Program {
    let var = |var: &EnvVar| v1::EnvVar {
        name: var.name.clone(),
        source: Some(match &var.value {
            EnvValue::Plain(value) => v1::env_var::Source::Value(value.clone()),
            EnvValue::Secret { name, key } => {
                v1::env_var::Source::ValueFrom(v1::SecretRef { name: name.clone(), key: key.clone() })
            }
        }),
    };
    v1::Program {
        command: program.command.clone(),
        args: program.args.clone(),
        env: program.env.iter().map(var).collect(),
        workdir: program.workdir.clone(),
    }
}
