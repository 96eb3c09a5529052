//! Conversion of a start order into the request that the agent sends to the supervisor.

use super::process::{ATTEMPT_VARIABLE, RANK_VARIABLE};
use super::protocol;
use crate::agent::StartRequest;
use crate::clock::Clock;
use crate::model::device::{self, DeviceShare};
use crate::model::exchange::TaskStart;
use crate::model::region::RegionCode;
use crate::model::spec::{EnvValue, Run, TaskGroup};
use crate::pools::host::HostDevice;

/// The address at which the members of a gang reach each other. All of them are on this machine.
/// The loopback address is right on every machine; its host name may resolve to anything.
const MEMBER_ADDRESS: &str = "127.0.0.1";

/// The pool that runs the attempt.
pub(super) struct Pool<'a> {
    pub(super) name: &'a str,
    pub(super) region: RegionCode,
    /// The node's devices, in the order of its declaration.
    pub(super) devices: &'a [HostDevice],
    pub(super) log_max_bytes: u64,
    pub(super) processes_max: u64,
    pub(super) isolation: Option<&'a protocol::Isolation>,
}

/// Makes the request that starts an attempt.
///
/// # Errors
/// If this pool can't run the attempt: the reason, in words for the job's owner.
pub(super) fn start_request(
    pool: &Pool<'_>,
    start: &StartRequest,
    clock: Clock,
) -> Result<protocol::StartAttempt, String> {
    let order = &start.order;
    let groups = start.spec.groups.iter().map(group_start).collect::<Result<_, _>>()?;
    let mut env = vec![
        ("WEIR_JOB".to_owned(), order.job_name.clone()),
        (ATTEMPT_VARIABLE.to_owned(), order.attempt.to_string()),
        ("WEIR_REGION".to_owned(), pool.region.to_string()),
        ("WEIR_POOL".to_owned(), pool.name.to_owned()),
    ];
    let size = order.tasks.len();
    let first = order.tasks.first().ok_or("the order names no task")?;
    // A gang of one task has these variables, too: its program may read the gang's size.
    if start.spec.gang_job || start.spec.groups.get(usize::from(first.group)).is_some_and(|g| g.gang) {
        env.push(("WEIR_GANG_SIZE".to_owned(), size.to_string()));
        env.push(("WEIR_GANG_ADDRESSES".to_owned(), vec![MEMBER_ADDRESS; size].join(",")));
    } else if size != 1 {
        return Err("the order names several tasks of a group that is not a gang".to_owned());
    }
    let gang = env.len() > 4;
    let mut tasks = Vec::new();
    for (rank, task) in order.tasks.iter().enumerate() {
        let group =
            start.spec.groups.get(usize::from(task.group)).ok_or("the job spec lacks the group of a task")?;
        let mut own = task_env(group, task, pool.devices);
        if gang {
            own.push((RANK_VARIABLE.to_owned(), rank.to_string()));
        }
        tasks.push(protocol::TaskStart { group: usize::from(task.group), env: own });
    }
    Ok(protocol::StartAttempt {
        attempt: order.attempt.to_string(),
        revision: order.revision.0,
        high_water: order.high_water.map_or_else(String::new, |high_water| high_water.to_string()),
        start_by_unix_ms: start.start_by.0,
        start_by_boot_ms: Some(clock.to_boot_ms(start.start_by)),
        leased: start.lease_ms.is_some(),
        lease_ms: start.lease_ms.unwrap_or(0),
        env,
        groups,
        tasks,
        max_run_ms: start.spec.max_run_ms,
        grace_ms: start.spec.grace_ms,
        log_max_bytes: pool.log_max_bytes,
        processes_max: pool.processes_max,
        isolation: pool.isolation.cloned(),
    })
}

fn group_start(group: &TaskGroup) -> Result<protocol::GroupStart, String> {
    let Run::Process(program) = &group.run else {
        return Err("this pool does not run containers".to_owned());
    };
    let mut env = Vec::new();
    for var in &program.env {
        match &var.value {
            EnvValue::Plain(value) => env.push((var.name.clone(), value.clone())),
            EnvValue::Secret { name, .. } => {
                return Err(format!("this pool does not resolve secrets: {name}"));
            }
        }
    }
    Ok(protocol::GroupStart {
        command: program.command.iter().chain(&program.args).cloned().collect(),
        env,
        workdir: (!program.workdir.is_empty()).then(|| program.workdir.clone()),
        memory_max_bytes: group.request.resources.memory_bytes,
        cpu_max_millis: group.request.resources.cpu_millis,
    })
}

fn task_env(group: &TaskGroup, task: &TaskStart, devices: &[HostDevice]) -> Vec<(String, String)> {
    let mut env = vec![
        ("WEIR_TASK_GROUP".to_owned(), group.name.clone()),
        ("WEIR_TASK_INDEX".to_owned(), group.index_of(task.task).to_string()),
        ("WEIR_TASK_COUNT".to_owned(), group.index_count().to_string()),
        ("WEIR_NODE".to_owned(), task.node.clone()),
    ];
    env.extend(device_env(devices, &task.devices));
    env
}

/// Returns, for each maker of the node's devices, the variable that names the task's devices by the
/// maker's own numbering, or a value that hides all of them.
fn device_env(devices: &[HostDevice], shares: &[DeviceShare]) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let variables: Vec<&String> = devices.iter().map(|device| &device.variable).collect();
    for (index, variable) in variables.iter().enumerate() {
        if variables[..index].contains(variable) {
            continue;
        }
        // The tools of a maker number its own devices only.
        let of_maker = variables.iter().enumerate().filter(|(_, other)| *other == variable);
        let of_task = of_maker
            .enumerate()
            .filter(|(_, (place, _))| shares.iter().any(|share| usize::from(share.index) == *place));
        let of_task: Vec<String> = of_task.map(|(own, _)| own.to_string()).collect();
        let hidden = device::NO_DEVICE.to_owned();
        env.push((variable.to_string(), if of_task.is_empty() { hidden } else { of_task.join(",") }));
        if let Some((name, value)) = device::order_variable(variable) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::exchange::StartOrder;
    use crate::model::id::{AttemptId, JobId, JournalId, Revision};
    use crate::model::pool::Device;
    use crate::model::spec::{self, JobSpec, Program};
    use crate::model::time::Timestamp;

    fn devices(models: &[(&str, usize)]) -> Vec<HostDevice> {
        let device = |model: &str| HostDevice {
            device: Device {
                model: model.to_owned(),
                memory_bytes: 0,
                healthy: true,
                millis: 1_000,
                topology_group: 0,
                profiles: Vec::new(),
            },
            variable: device::built_in().find(|known| known.name == model).expect("a model").visible_devices,
        };
        models.iter().flat_map(|(model, count)| vec![device(model); *count]).collect()
    }

    fn shares(indices: &[u16]) -> Vec<DeviceShare> {
        indices.iter().map(|index| DeviceShare { index: *index, millis: 1_000 }).collect()
    }

    fn task(group: u16, task: u32, indices: &[u16]) -> TaskStart {
        TaskStart { group, task, node: "node".to_owned(), devices: shares(indices) }
    }

    fn request(spec: JobSpec, tasks: Vec<TaskStart>) -> Result<protocol::StartAttempt, String> {
        let attempt = AttemptId { journal: JournalId::from_random(1), job: JobId(2), unit: 0, number: 1 };
        let order = StartOrder {
            attempt,
            revision: Revision(1),
            high_water: None,
            spec: Default::default(),
            job_name: "job".to_owned(),
            queue: "main".to_owned(),
            start_by: Timestamp(1),
            started: false,
            after: None,
            tasks,
        };
        let start = StartRequest { order, spec: Arc::new(spec), start_by: Timestamp(1), lease_ms: None };
        let devices = devices(&[("A100-80G", 2), ("Ascend910B3", 2)]);
        let pool = Pool {
            name: "p",
            region: RegionCode::default(),
            devices: &devices,
            log_max_bytes: 1 << 20,
            processes_max: 9,
            isolation: None,
        };
        start_request(&pool, &start, Clock::start())
    }

    fn value<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
        env.iter().rev().find(|(set, _)| set == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn devices_are_numbered_per_maker_and_those_of_other_tasks_are_hidden() {
        let devices = devices(&[("T4", 1), ("Ascend910B3", 3), ("A10", 1)]);
        let check = |indices: &[u16], cuda: &str, ascend: &str| {
            let env = device_env(&devices, &shares(indices));
            let own = ["CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"].map(|name| value(&env, name));
            assert_eq!(own, [Some(cuda), Some(ascend)], "{indices:?}");
        };
        check(&[], "-1", "-1");
        check(&[0, 4], "0,1", "-1");
        check(&[4], "1", "-1");
        check(&[2, 3], "-1", "1,2");
        assert_eq!(device_env(&[], &[]), []);
    }

    #[test]
    fn a_gang_over_several_groups_runs_each_groups_command_in_rank_order() {
        let mut spec = spec::minimal();
        spec.gang_job = true;
        let mut second = spec.groups[0].clone();
        second.name = "worker".to_owned();
        second.count = 2;
        second.run = Run::Process(Program { command: vec!["false".to_owned()], ..Program::default() });
        spec.groups.push(second);
        let result = request(spec, vec![task(0, 0, &[0]), task(1, 0, &[3]), task(1, 1, &[])]);
        let request = result.expect("a request");
        assert_eq!(value(&request.env, "WEIR_GANG_SIZE"), Some("3"));
        assert_eq!(value(&request.env, "WEIR_GANG_ADDRESSES"), Some("127.0.0.1,127.0.0.1,127.0.0.1"));
        let command = |rank: usize| request.group_of(rank).map(|group| group.command[0].clone());
        assert_eq!([command(0), command(1), command(2)].map(Option::unwrap), ["true", "false", "false"]);
        let env = |rank: usize| {
            let names = [RANK_VARIABLE, "WEIR_TASK_GROUP", "WEIR_TASK_INDEX", "WEIR_TASK_COUNT"];
            let devices = ["CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"];
            let names = names.into_iter().chain(devices);
            names.map(|name| value(&request.tasks[rank].env, name).unwrap_or("")).collect::<Vec<_>>()
        };
        assert_eq!(env(0), ["0", "main", "0", "1", "0", "-1"]);
        assert_eq!(env(1), ["1", "worker", "0", "2", "-1", "1"]);
        assert_eq!(env(2), ["2", "worker", "1", "2", "-1", "-1"]);
    }

    #[test]
    fn a_task_outside_a_gang_has_no_gang_variables() {
        let request = request(spec::minimal(), vec![task(0, 0, &[])]).expect("a request");
        assert_eq!(value(&request.env, "WEIR_GANG_SIZE"), None);
        assert_eq!(value(&request.tasks[0].env, RANK_VARIABLE), None);
    }
}
