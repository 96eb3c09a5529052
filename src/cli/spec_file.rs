//! Job files: YAML or JSON with one job or several, parsed strictly into API messages.

use std::collections::BTreeMap;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::input::{Text, read_documents, strict};
use super::quantity;
use crate::api::proto::v1;

/// A job in a job file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobFile {
    #[serde(default)]
    name: String,
    #[serde(default)]
    queue: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    groups: Vec<GroupFile>,
    #[serde(default)]
    gang_job: bool,
    constraints: Option<ConstraintsFile>,
    retry: Option<RetryFile>,
    #[serde(default)]
    on_pool_lost: OnPoolLostFile,
    #[serde(default)]
    may_overlap: bool,
    lease: Option<String>,
    max_failed: Option<u32>,
    max_run: Option<String>,
    start_limit: Option<String>,
    grace: Option<String>,
    #[serde(default)]
    depends_on: Vec<DependencyFile>,
    #[serde(default)]
    required_features: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupFile {
    #[serde(default)]
    name: String,
    count: Option<u32>,
    #[serde(default)]
    gang: bool,
    cpus: Option<Text>,
    memory: Option<Text>,
    storage: Option<Text>,
    /// `MODEL:COUNT`, as on the command line.
    devices: Option<String>,
    #[serde(default)]
    other: BTreeMap<String, u64>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, EnvFile>,
    #[serde(default)]
    workdir: String,
    image: Option<String>,
    /// A Kubernetes `PodSpec`.
    pod: Option<serde_json::Map<String, serde_json::Value>>,
    simulate: Option<SimulateFile>,
    /// `0,3,7-9`.
    indices: Option<Text>,
    index_count: Option<u32>,
}

#[derive(Debug)]
enum EnvFile {
    Value(String),
    From(ValueFromFile),
}

impl<'de> Deserialize<'de> for EnvFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EnvVisitor)
    }
}

struct EnvVisitor;

impl<'de> Visitor<'de> for EnvVisitor {
    type Value = EnvFile;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string, quoted if it looks like another type, or value_from")
    }

    fn visit_str<E>(self, value: &str) -> Result<EnvFile, E> {
        Ok(EnvFile::Value(value.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EnvFile, A::Error> {
        ValueFromFile::deserialize(MapAccessDeserializer::new(map)).map(EnvFile::From)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueFromFile {
    value_from: SecretFile,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretFile {
    secret: String,
    key: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SimulateFile {
    duration: String,
    #[serde(default)]
    exit_code: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConstraintsFile {
    #[serde(default)]
    regions: Vec<String>,
    #[serde(default)]
    regions_denied: Vec<String>,
    #[serde(default)]
    pools: Vec<String>,
    #[serde(default)]
    node_labels: BTreeMap<String, String>,
    #[serde(default)]
    tolerations: Vec<TolerationFile>,
    #[serde(default)]
    real_only: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TolerationFile {
    #[serde(default)]
    key: String,
    value: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryFile {
    max_attempts: Option<u32>,
    #[serde(default)]
    on: Vec<RetryOnFile>,
    backoff: Option<String>,
    backoff_max: Option<String>,
    max_node_losses: Option<u32>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RetryOnFile {
    Failed,
    TimedOut,
    StartFailed,
    Unknown,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OnPoolLostFile {
    #[default]
    Wait,
    Requeue,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DependencyFile {
    /// Its name or id.
    job: Text,
    #[serde(default)]
    condition: ConditionFile,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ConditionFile {
    Any,
    #[default]
    Succeeded,
    Failed,
}

/// A job of a file.
#[derive(Debug)]
pub struct FileJob {
    pub submission: v1::Submission,
    /// Dependencies on jobs by name, of this file or submitted before.
    pub after: Vec<NamedDependency>,
}

/// A dependency on a job that the file names.
#[derive(Debug)]
pub struct NamedDependency {
    /// The field, for errors: `depends_on[0].job`.
    pub field: String,
    /// `NAME`, `QUEUE/NAME` or either after `job/`.
    pub job: String,
    pub condition: i32,
}

/// Parses the jobs of a file: one job, a list of jobs, or `jobs:` with a list, in one or several YAML
/// documents.
///
/// # Errors
/// A message with the position or field, and a suggestion for an unknown field.
pub fn read_jobs(text: &str) -> Result<Vec<FileJob>, String> {
    let documents: Vec<serde_json::Value> = read_documents(text)?;
    let mut files: Vec<serde_json::Value> = Vec::new();
    for document in documents {
        match document {
            serde_json::Value::Array(list) => files.extend(list),
            serde_json::Value::Object(mut map) if map.len() == 1 && map.contains_key("jobs") => {
                match map.remove("jobs") {
                    Some(serde_json::Value::Array(list)) => files.extend(list),
                    _ => return Err("jobs: is not a list".to_owned()),
                }
            }
            serde_json::Value::Null => {}
            other => files.push(other),
        }
    }
    if files.is_empty() {
        return Err("the file contains no job".to_owned());
    }
    let single = files.len() == 1;
    let read = |(index, value): (usize, serde_json::Value)| {
        let at = |message: String| if single { message } else { format!("jobs[{index}].{message}") };
        strict::<JobFile>(value).and_then(submission).map_err(at)
    };
    files.into_iter().enumerate().map(read).collect()
}

fn time(field: &str, text: Option<&String>) -> Result<u64, String> {
    text.map_or(Ok(0), |text| quantity::duration_ms(text).map_err(|error| format!("{field}: {error}")))
}

fn submission(file: JobFile) -> Result<FileJob, String> {
    let constraints = file.constraints.unwrap_or_default();
    let toleration = |t: TolerationFile| v1::Toleration { key: t.key, value: t.value };
    let (mut depends_on, mut after) = (Vec::new(), Vec::new());
    for (index, edge) in file.depends_on.into_iter().enumerate() {
        let condition = match edge.condition {
            ConditionFile::Any => v1::DependencyCondition::Any as i32,
            ConditionFile::Succeeded => v1::DependencyCondition::Succeeded as i32,
            ConditionFile::Failed => v1::DependencyCondition::Failed as i32,
        };
        match edge.job.0.parse() {
            Ok(job_id) => depends_on.push(v1::Dependency { job_id, condition }),
            Err(_) => {
                let field = format!("depends_on[{index}].job");
                after.push(NamedDependency { field, job: edge.job.0, condition });
            }
        }
    }
    let groups = file.groups.into_iter().enumerate();
    let groups =
        groups.map(|(index, group)| task_group(group).map_err(|error| format!("groups[{index}].{error}")));
    let spec = v1::JobSpec {
        labels: file.labels,
        priority: file.priority,
        groups: groups.collect::<Result<_, _>>()?,
        gang_job: file.gang_job,
        constraints: Some(v1::Constraints {
            regions_allowed: constraints.regions,
            regions_denied: constraints.regions_denied,
            pools: constraints.pools,
            node_labels: constraints.node_labels,
            tolerations: constraints.tolerations.into_iter().map(toleration).collect(),
            real_only: constraints.real_only,
        }),
        retry: file.retry.map(retry).transpose()?,
        on_pool_lost: match file.on_pool_lost {
            OnPoolLostFile::Wait => v1::OnPoolLost::Wait as i32,
            OnPoolLostFile::Requeue => v1::OnPoolLost::Requeue as i32,
        },
        may_overlap: file.may_overlap,
        lease_ms: time("lease", file.lease.as_ref())?,
        on_unit_failure: Some(v1::OnUnitFailure { max_failed: file.max_failed }),
        max_run_ms: time("max_run", file.max_run.as_ref())?,
        start_limit_ms: time("start_limit", file.start_limit.as_ref())?,
        grace_ms: file.grace.as_ref().map(|text| time("grace", Some(text))).transpose()?,
        depends_on,
        required_features: file.required_features,
    };
    let submission =
        v1::Submission { name: file.name, name_prefix: String::new(), queue: file.queue, spec: Some(spec) };
    Ok(FileJob { submission, after })
}

fn retry(file: RetryFile) -> Result<v1::RetryPolicy, String> {
    let on = |on: RetryOnFile| match on {
        RetryOnFile::Failed => v1::RetryOn::Failed as i32,
        RetryOnFile::TimedOut => v1::RetryOn::TimedOut as i32,
        RetryOnFile::StartFailed => v1::RetryOn::StartFailed as i32,
        RetryOnFile::Unknown => v1::RetryOn::Unknown as i32,
    };
    Ok(v1::RetryPolicy {
        max_attempts: file.max_attempts,
        on: file.on.into_iter().map(on).collect(),
        backoff_ms: time("retry.backoff", file.backoff.as_ref())?,
        backoff_max_ms: time("retry.backoff_max", file.backoff_max.as_ref())?,
        max_node_losses: file.max_node_losses,
    })
}

fn task_group(file: GroupFile) -> Result<v1::TaskGroup, String> {
    let amount = |field: &str, text: &Option<Text>, read: fn(&str) -> Result<u64, String>| {
        text.as_ref().map_or(Ok(0), |text| read(&text.0).map_err(|error| format!("{field}: {error}")))
    };
    let env = file.env.into_iter().map(|(name, value)| v1::EnvVar {
        name,
        source: Some(match value {
            EnvFile::Value(value) => v1::env_var::Source::Value(value),
            EnvFile::From(from) => {
                let SecretFile { secret, key } = from.value_from;
                v1::env_var::Source::ValueFrom(v1::SecretRef { name: secret, key })
            }
        }),
    });
    let program =
        v1::Program { command: file.command, args: file.args, env: env.collect(), workdir: file.workdir };
    let plain = !program.command.is_empty() || !program.args.is_empty() || !program.workdir.is_empty();
    let run = match file.image {
        image if file.pod.is_some() && (image.is_some() || plain || !program.env.is_empty()) => {
            return Err(
                "pod: defines its containers itself: remove image, command, args, env and workdir".to_owned()
            );
        }
        _ if file.pod.is_some() => {
            let spec_json = serde_json::to_string(&file.pod).map_err(|error| format!("pod: {error}"))?;
            v1::task_group::Run::Pod(v1::KubernetesPod { spec_json })
        }
        Some(image) => v1::task_group::Run::Container(v1::Container { image, program: Some(program) }),
        None => v1::task_group::Run::Process(program),
    };
    if file.indices.as_ref().is_some_and(|indices| indices.0.trim().is_empty()) {
        return Err("indices: is empty: leave it out to run all tasks".to_owned());
    }
    let devices = file.devices.map(|text| quantity::devices(&text)).transpose();
    let simulate = match file.simulate {
        Some(simulate) => Some(v1::Simulate {
            duration_ms: time("simulate.duration", Some(&simulate.duration))?,
            exit_code: simulate.exit_code,
        }),
        None => None,
    };
    Ok(v1::TaskGroup {
        name: file.name,
        count: file.count,
        gang: file.gang,
        resources: Some(v1::TaskResources {
            cpu_millis: amount("cpus", &file.cpus, quantity::cpus)?,
            memory_bytes: amount("memory", &file.memory, quantity::memory)?,
            storage_bytes: amount("storage", &file.storage, quantity::bytes)?,
            devices: devices.map_err(|error| format!("devices: {error}"))?,
            other: file.other,
        }),
        run: Some(run),
        simulate,
        indices: file.indices.map_or_else(String::new, |text| text.0),
        index_count: file.index_count,
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expect: Expect) {
        let read = read_jobs(text);
        let shown = read.map_or_else(|error| error, |jobs| format!("{} jobs", jobs.len()));
        expect.assert_eq(&shown);
    }

    #[test]
    fn job_files_are_parsed_strictly() {
        check("groups: [{cpus: 1, command: [\"true\"]}]", expect!["1 jobs"]);
        check("{\"groups\": [{\"cpus\": \"500m\", \"command\": [\"true\"]}]}", expect!["1 jobs"]);
        check("- {groups: []}\n- {groups: []}", expect!["2 jobs"]);
        check("priorty: 3", expect!["priorty: unknown field \"priorty\", did you mean \"priority\"?"]);
        check(
            "groups: [{cpsu: 1}]",
            expect!["groups[0].cpsu: unknown field \"cpsu\", did you mean \"cpus\"?"],
        );
        check(
            "groups: [{cpus: -1}]",
            expect![[r#"groups[0].cpus: "-1" is not an amount of CPUs: write 2, 1.5 or 500m"#]],
        );
        check(
            "max_run: soon",
            expect![[r#"max_run: "soon" is not a duration: expected number at 0; write 90s, 5m or 1h30m"#]],
        );
        check("", expect!["the file contains no job"]);
    }

    #[test]
    fn words_of_other_systems_and_fields_in_the_wrong_place_are_recognised() {
        check(
            "groups: [{gpu: 1}]",
            expect![[
                r#"groups[0].gpu: unknown field "gpu", did you mean "devices"? Write devices: MODEL:COUNT, such as devices: A100-80G:2."#
            ]],
        );
        check(
            "groups: [{gres: \"gpu:2\"}]",
            expect![[
                r#"groups[0].gres: unknown field "gres", did you mean "devices"? Write devices: MODEL:COUNT, such as devices: A100-80G:2."#
            ]],
        );
        check(
            "gpus: 1",
            expect![[
                r#"gpus: unknown field "gpus" here, did you mean "devices"? Write it in an entry of groups."#
            ]],
        );
        check(
            "command: [\"true\"]",
            expect![[r#"command: unknown field "command" here. Write it in an entry of groups."#]],
        );
        check(
            "replicas: 3",
            expect![[
                r#"replicas: unknown field "replicas" here, did you mean "count"? Write it in an entry of groups."#
            ]],
        );
        check(
            "partition: batch",
            expect![[r#"partition: unknown field "partition", did you mean "queue"?"#]],
        );
        check("walltime: 1h", expect![[r#"walltime: unknown field "walltime", did you mean "max_run"?"#]]);
        check("pools: [a]", expect![[r#"pools: unknown field "pools" here. Write it in constraints."#]]);
        check(
            "nonsense: 1",
            expect![[
                r#"nonsense: unknown field "nonsense"; expected one of name, queue, labels, priority, groups, gang_job, constraints, retry, on_pool_lost, may_overlap, lease, max_failed, max_run, start_limit, grace, depends_on, required_features"#
            ]],
        );
    }

    /// The parser lists the fields that it knows in its error about an unknown one.
    #[test]
    fn every_field_is_in_the_reference_and_in_an_example() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(root.join("docs/reference/job-file.md")).expect("the reference");
        let examples = std::fs::read_dir(root.join("examples")).expect("examples").flatten();
        let examples: String =
            examples.map(|file| std::fs::read_to_string(file.path()).expect("an example")).collect();
        let mut count = 0;
        for unknown in [
            "zzzzzzzz: 1",
            "groups: [{zzzzzzzz: 1}]",
            "constraints: {zzzzzzzz: 1}",
            "constraints: {tolerations: [{zzzzzzzz: 1}]}",
            "retry: {zzzzzzzz: 1}",
            "depends_on: [{zzzzzzzz: 1}]",
            "groups: [{simulate: {zzzzzzzz: 1}}]",
            "groups: [{env: {A: {value_from: {zzzzzzzz: 1}}}}]",
        ] {
            let error = read_jobs(unknown).map(|_| ()).expect_err("an unknown field");
            let fields = error.split_once("expected one of ").unwrap_or_else(|| panic!("{error}")).1;
            for field in fields.split(", ") {
                let in_page = ["`", " ", "{"].iter().any(|before| page.contains(&format!("{before}{field}")));
                assert!(in_page, "{unknown}: {field} is not in docs/reference/job-file.md");
                assert!(examples.contains(&format!("{field}:")), "{unknown}: {field} is in no example");
                count += 1;
            }
        }
        assert!(count > 45, "{count} fields");
    }

    #[test]
    fn alias_bomb_is_refused() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (previous, name) in "abcdefgh".chars().zip("bcdefghi".chars()) {
            let list = vec![format!("*{previous}"); 9].join(", ");
            text.push_str(&format!("{name}: &{name} [{list}]\n"));
        }
        assert!(read_jobs(&text).is_err());
    }
}
