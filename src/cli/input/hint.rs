//! Errors about fields in plain words, with what was probably meant.

use crate::model::suggest::{nearest, question};
use crate::model::validate::quote;

/// Replaces the parser's words for types, of which some are names in this program. `field` is the path of the value.
pub(super) fn in_plain_words(field: &str, message: &str) -> String {
    let Some((before, expected)) = message.split_once(", expected ") else { return message.to_owned() };
    let name = field.rsplit('.').next().unwrap_or(field);
    if expected == "a string" && DURATIONS.contains(&name) {
        return format!("{before}, expected a duration: write 90s, 5m or 1h30m");
    }
    if expected == "a string" && name == "devices" {
        return format!("{before}, expected a request: write MODEL:COUNT, or any:COUNT for any model");
    }
    let name_end = expected.find(|c: char| !c.is_alphanumeric() && c != ' ').unwrap_or(expected.len());
    let (name, rest) = expected.split_at(name_end);
    let plain = match name {
        "a string" => "a text: write it in quotes",
        "a sequence" => "a list: [a, b]",
        "a map" => "fields: {name: value}",
        "u64" => "a whole number, not negative",
        "u32" | "u16" => "a whole number, not negative",
        "i32" => "a whole number",
        "f64" => "a number",
        _ if name.starts_with("struct ") => "fields: {name: value}",
        _ => name,
    };
    format!("{before}, expected {plain}{rest}")
}

/// Fields that are durations.
const DURATIONS: [&str; 8] =
    ["max_run", "lease", "start_limit", "grace", "backoff", "backoff_max", "duration", "deadline"];

/// Replaces serde's list of expected names by the most similar one, if one is similar.
pub(super) fn with_suggestion(message: &str) -> String {
    let ticked: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (Some(wrong), true) = (ticked.first(), message.starts_with("unknown ")) else {
        return message.to_owned();
    };
    let known = &ticked[1..];
    let what = message.split('`').next().unwrap_or_default().trim();
    let lower = wrong.to_ascii_lowercase();
    // What belongs into files of another kind.
    if ["groups", "command"].contains(&lower.as_str()) && known.contains(&"weight") {
        return format!("{what} {}; `weir apply` takes queues, `weir submit` takes jobs", quote(wrong));
    }
    if ["queues", "weight", "guarantee", "limit"].contains(&lower.as_str()) && known.contains(&"groups") {
        return format!("{what} {}; `weir submit` takes jobs, `weir apply` takes queues", quote(wrong));
    }
    let synonym = SYNONYMS.iter().find(|(words, _)| words.contains(&lower.as_str())).map(|(_, field)| *field);
    let meant = synonym.unwrap_or(wrong);
    let place = PLACES.iter().find(|(fields, place, _)| fields.contains(&meant) && known.contains(place));
    let near = match (synonym.filter(|field| known.contains(field)), place) {
        (Some(field), _) => vec![field],
        (None, Some((_, _, place))) => {
            let hint = synonym.map_or_else(|| ".".to_owned(), |field| question(&[field]));
            return format!("{what} {} here{hint} Write it in {place}.", quote(wrong));
        }
        (None, None) => match nearest(wrong, known.iter().copied()) {
            near if near.is_empty() => misspelt_synonym(&lower, known).into_iter().collect(),
            near => near,
        },
    };
    if near.is_empty() {
        return format!("{what} {}; expected one of {}", quote(wrong), known.join(", "));
    }
    let example = EXAMPLES.iter().find(|(field, _)| near == [*field]);
    let example = example.map_or_else(String::new, |(_, example)| format!(" Write {example}."));
    format!("{what} {}{}{example}", quote(wrong), question(&near))
}

/// Those of `known` that were probably meant by `wrong`: what other systems call `wrong` comes first.
pub(in crate::cli) fn meant<'a>(wrong: &str, known: &[&'a str]) -> Vec<&'a str> {
    let lower = wrong.to_ascii_lowercase();
    let synonym = SYNONYMS.iter().find(|(words, _)| words.contains(&lower.as_str())).map(|(_, field)| *field);
    match known.iter().find(|field| Some(**field) == synonym) {
        Some(field) => vec![field],
        None => nearest(wrong, known.iter().copied()),
    }
}

/// The field of a misspelt word of another system, if it is one of `known`.
fn misspelt_synonym(word: &str, known: &[&str]) -> Option<&'static str> {
    let words = SYNONYMS.iter().flat_map(|(words, _)| *words).copied();
    let near = nearest(word, words).first().copied()?;
    let (_, field) = SYNONYMS.iter().find(|(words, _)| words.contains(&near))?;
    known.contains(field).then_some(*field)
}

/// Fields that belong into another one of a job file, the name of that, and where to write them.
const PLACES: &[(&[&str], &str, &str)] = &[
    (
        &[
            "cpus",
            "memory",
            "storage",
            "devices",
            "other",
            "command",
            "args",
            "env",
            "workdir",
            "image",
            "pod",
            "simulate",
            "count",
            "gang",
            "indices",
            "index_count",
        ],
        "groups",
        "an entry of groups",
    ),
    (
        &["regions", "regions_denied", "pools", "node_labels", "tolerations", "real_only"],
        "constraints",
        "constraints",
    ),
    (&["max_attempts", "backoff", "backoff_max", "max_node_losses"], "retry", "retry"),
    // Entries of groups are recognised by `command`.
    (
        &[
            "queue",
            "labels",
            "priority",
            "gang_job",
            "constraints",
            "retry",
            "on_pool_lost",
            "lease",
            "max_failed",
            "max_run",
            "start_limit",
            "grace",
            "depends_on",
        ],
        "command",
        "the job, beside groups",
    ),
];

/// What other systems call a field, in lower case.
const SYNONYMS: &[(&[&str], &str)] = &[
    (
        &["gpu", "gpus", "gres", "npu", "npus", "dcu", "mlu", "accelerator", "accelerators", "device"],
        "devices",
    ),
    (&["cpu", "cores", "vcpu", "vcpus", "cpus_per_task"], "cpus"),
    (&["mem", "ram", "memory_mb", "memory_mib"], "memory"),
    (&["disk", "ephemeral_disk", "ephemeral_storage", "tmp"], "storage"),
    (&["cmd", "entrypoint", "run", "script"], "command"),
    (&["environment", "envs", "export"], "env"),
    (&["working_dir", "workingdir", "chdir", "cwd"], "workdir"),
    (&["replicas", "array", "ntasks", "parallelism", "completions", "tasks"], "count"),
    (&["partition", "account", "project", "queue_name", "namespace"], "queue"),
    (&["retries", "backofflimit", "restart", "requeue"], "retry"),
    (&["timeout", "time", "time_limit", "walltime", "activedeadlineseconds", "max_runtime"], "max_run"),
    (&["dependency", "dependencies", "after", "needs"], "depends_on"),
    (&["task_groups", "taskgroups", "steps", "containers"], "groups"),
    (&["terminationgraceperiodseconds", "kill_timeout", "grace_period"], "grace"),
    (&["job_name", "jobname"], "name"),
    (&["region", "datacenters", "datacenter"], "regions"),
    (&["node_selector", "nodeselector"], "node_labels"),
];

/// How a field is written that other systems write in another form.
const EXAMPLES: &[(&str, &str)] = &[("devices", "devices: MODEL:COUNT, such as devices: A100-80G:2")];
