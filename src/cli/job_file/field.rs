//! The fields of jobs as users write them, for errors of the broker, which name those of the API.

/// Fields of the API, and what the same is in a file. An empty name is a level that files don't have.
const NAMES: &[(&str, &str)] = &[
    ("spec", ""),
    ("resources", ""),
    ("process", ""),
    ("container", ""),
    ("program", ""),
    ("on_unit_failure", ""),
    ("spec_json", ""),
    ("millis", ""),
    ("models", ""),
    ("cpu_millis", "cpus"),
    ("memory_bytes", "memory"),
    ("storage_bytes", "storage"),
    ("device_millis", "devices"),
    ("regions_allowed", "regions"),
    ("job_id", "job"),
    ("duration_ms", "duration"),
    ("backoff_ms", "backoff"),
    ("backoff_max_ms", "backoff_max"),
    ("lease_ms", "lease"),
    ("lease_ms_default", "lease"),
    ("max_run_ms", "max_run"),
    ("max_run_ms_default", "max_run"),
    ("start_limit_ms", "start_limit"),
    ("grace_ms", "grace"),
];

/// The path of a field in a file, for its path in the API: `groups[0].cpus` for
/// `spec.groups[0].resources.cpu_millis`. `env_name` is the name of the variable with a number, of those of a group:
/// a file lists them by name.
pub fn in_file(path: &str, env_name: impl Fn(usize, usize) -> Option<String>) -> String {
    let (mut out, mut group) = (Vec::new(), 0);
    for segment in path.split('.') {
        let (name, index) = segment.split_once('[').map_or((segment, ""), |(name, index)| (name, index));
        let index = index.trim_end_matches(']');
        let number = index.parse::<usize>().unwrap_or_default();
        match name {
            "groups" => group = number,
            "env" if !index.is_empty() => {
                out.push(
                    env_name(group, number).map_or_else(|| "env".to_owned(), |name| format!("env.{name}")),
                );
                break;
            }
            _ => {}
        }
        // The number of devices is a part of `devices`, but a group has a count of its own.
        let of_devices = name == "count" && out.last().is_some_and(|last: &String| last == "devices");
        let renamed = NAMES.iter().find(|(theirs, _)| *theirs == name).map_or(name, |(_, ours)| ours);
        match (renamed, index) {
            _ if of_devices => {}
            ("", _) => {}
            (name, "") => out.push(name.to_owned()),
            (name, index) => out.push(format!("{name}[{index}]")),
        }
    }
    out.join(".")
}

/// The flag of `weir run` for a field of a file; the field itself if there is none.
pub fn as_flag(field: &str) -> String {
    let field = field.strip_prefix("groups[0].").unwrap_or(field);
    let name = field.split(['[', '.']).next().unwrap_or_default();
    let flag = match field {
        // The whole request.
        "groups[0]" => "",
        "retry.max_attempts" => "--attempts",
        _ if field.starts_with("constraints.regions") => "--region",
        _ if field.starts_with("constraints.pools") => "--pool",
        _ => match name {
            "name" => "--name",
            "queue" => "--queue",
            "cpus" => "--cpus",
            "memory" => "--memory",
            "devices" => "--device",
            "env" => "--env",
            "labels" => "--label",
            "priority" => "--priority",
            "workdir" => "--workdir",
            "max_run" => "--max-run",
            "depends_on" => "--after",
            "count" => "--count or --gang",
            "command" => "COMMAND",
            _ => field,
        },
    };
    flag.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named_as_users_write_them() {
        let env_name = |group: usize, number: usize| Some(format!("VAR_{group}_{number}"));
        for (path, file, flag) in [
            ("spec.groups[0].resources.cpu_millis", "groups[0].cpus", "--cpus"),
            ("spec.groups[0].resources.devices.count", "groups[0].devices", "--device"),
            ("spec.groups[0].count", "groups[0].count", "--count or --gang"),
            ("spec.groups[1].process.command[2]", "groups[1].command[2]", "groups[1].command[2]"),
            ("spec.groups[0].container.program.env[3].name", "groups[0].env.VAR_0_3", "--env"),
            ("spec.groups[0].pod.spec_json", "groups[0].pod", "pod"),
            ("spec.constraints.regions_allowed[1]", "constraints.regions[1]", "--region"),
            ("spec.on_unit_failure.max_failed", "max_failed", "max_failed"),
            ("spec.retry.backoff_max_ms", "retry.backoff_max", "retry.backoff_max"),
            ("spec.depends_on[0].job_id", "depends_on[0].job", "--after"),
            ("queue", "queue", "--queue"),
            ("limit.memory_bytes", "limit.memory", "limit.memory"),
        ] {
            let field = in_file(path, env_name);
            assert_eq!((field.as_str(), as_flag(&field).as_str()), (file, flag), "{path}");
        }
    }
}
