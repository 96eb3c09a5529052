//! Job files read into messages of the API, with everything that is wrong in them.

use serde_json::Value;

use super::{
    ConditionFile, ConstraintsFile, EnvFile, GroupFile, JobFile, OnPoolLostFile, RetryFile, RetryOnFile,
    SecretFile, TolerationFile, in_file,
};
use crate::api::convert::read_job_spec;
use crate::api::proto::v1;
use crate::cli::input::{Positions, Problem, Problems, Text, joined, read_documents};
use crate::cli::quantity;
use crate::model::validate::{self, Violation, Violations, quote};

/// A job of a file.
#[derive(Debug)]
pub struct FileJob {
    pub submission: v1::Submission,
    /// Dependencies on jobs by name, of this file or submitted before.
    pub after: Vec<NamedDependency>,
    place: Place,
}

/// A dependency on a job that the file names.
#[derive(Debug)]
pub struct NamedDependency {
    /// The field in its job, for errors: `depends_on[0].job`.
    pub field: String,
    /// `NAME`, `QUEUE/NAME` or either after `job/`.
    pub job: String,
    pub condition: i32,
}

/// Where a job is in its file.
#[derive(Clone, Debug)]
struct Place {
    /// The YAML document, from 0.
    document: usize,
    /// The path in the document: `jobs[3]`, `[3]`, or empty.
    within: String,
    /// The path in errors: `jobs[3]`, counted over all documents, or empty if there is one job only.
    shown: String,
}

/// The jobs of a file.
#[derive(Debug)]
pub struct JobsFile {
    text: String,
    pub jobs: Vec<FileJob>,
}

impl JobsFile {
    /// A problem of a field of a job, with its position in the file. The field may be written as the API's.
    pub fn located(&self, job: &FileJob, field: &str, message: &str) -> Vec<Problem> {
        let mut problems = Problems::default();
        problems.push(&joined(&job.place.shown, &field_of(&job.submission, field)), message);
        located(problems, &self.text, std::slice::from_ref(&job.place))
    }
}

/// Parses the jobs of a file: one job, a list of jobs, or `jobs:` with a list, in one or several YAML
/// documents. Checks everything that can be checked without a broker.
///
/// # Errors
/// All problems of the file, up to one screen.
pub fn read_jobs(text: &str) -> Result<JobsFile, Vec<Problem>> {
    let whole = |message: String| vec![Problem::of_file(message)];
    let values = jobs_of(read_documents(text).map_err(whole)?).map_err(whole)?;
    if values.is_empty() {
        return Err(whole("the file contains no job".to_owned()));
    }
    let single = values.len() == 1;
    let (mut problems, mut jobs, mut places) =
        (Problems::default(), Vec::with_capacity(values.len()), Vec::new());
    for (index, (document, within, value)) in values.into_iter().enumerate() {
        let shown = if single { String::new() } else { format!("jobs[{index}]") };
        let place = Place { document, within, shown };
        places.push(place.clone());
        jobs.extend(read_job(value, place, &mut problems));
        if problems.is_full() {
            break;
        }
    }
    if problems.is_empty() {
        return Ok(JobsFile { text: text.to_owned(), jobs });
    }
    Err(located(problems, text, &places))
}

/// The jobs in documents, each with its document and its path there.
fn jobs_of(documents: Vec<Value>) -> Result<Vec<(usize, String, Value)>, String> {
    let mut jobs = Vec::new();
    let mut add = |document: usize, prefix: &str, list: Vec<Value>| {
        let element = |(index, value)| (document, format!("{prefix}[{index}]"), value);
        jobs.extend(list.into_iter().enumerate().map(element));
    };
    let mut singles = Vec::new();
    for (document, value) in documents.into_iter().enumerate() {
        match value {
            Value::Array(list) => add(document, "", list),
            Value::Object(mut map) if map.contains_key("jobs") => {
                let jobs = map.shift_remove("jobs");
                if let Some(other) = map.keys().next() {
                    let rule = "stands alone in its document: write what all jobs share in each of them";
                    return Err(format!("jobs: {rule}, not {} beside it", quote(other)));
                }
                match jobs {
                    Some(Value::Array(list)) => add(document, "jobs", list),
                    _ => return Err("jobs: is not a list".to_owned()),
                }
            }
            Value::Null => {}
            other => singles.push((document, String::new(), other)),
        }
    }
    jobs.extend(singles);
    // In the order of the file.
    jobs.sort_by_key(|(document, ..)| *document);
    Ok(jobs)
}

/// Gives problems their positions in the file.
fn located(problems: Problems, text: &str, places: &[Place]) -> Vec<Problem> {
    let positions = Positions::of(text);
    problems.located(|field| {
        let place = places.iter().find(|place| field.starts_with(&place.shown))?;
        positions.find(place.document, &joined(&place.within, &field[place.shown.len()..]))
    })
}

/// The path of a field in the file, for its path in the API.
fn field_of(submission: &v1::Submission, path: &str) -> String {
    in_file(path, |group, number| {
        let group = submission.spec.as_ref()?.groups.get(group)?;
        let program = match group.run.as_ref()? {
            v1::task_group::Run::Process(program) => Some(program),
            v1::task_group::Run::Container(container) => container.program.as_ref(),
            v1::task_group::Run::Pod(_) => None,
        };
        Some(program?.env.get(number)?.name.clone())
    })
}

/// Reads one job. Problems are added under the path that is shown of it.
fn read_job(value: Value, place: Place, problems: &mut Problems) -> Option<FileJob> {
    if value.get("apiVersion").is_some() && value.get("kind").is_some() {
        let text = "is a Kubernetes manifest: Weir's job files are simpler, see `weir explain job` and \
                    docs/guide/coming-from.md; a PodSpec can be used as groups[].pod";
        problems.push(&joined(&place.shown, "apiVersion"), text);
        return None;
    }
    let file: JobFile = problems.read(&place.shown, value)?;
    let (submission, after) = submission(file, &place.shown, problems);
    let mut out = Violations::default();
    let spec = read_job_spec("spec", submission.spec.as_ref()?, &mut out);
    validate::job_spec("spec", &spec, &mut out);
    if !submission.name.is_empty() {
        out.job_name("name", &submission.name);
    }
    for Violation { field, description } in out.finish().err().unwrap_or_default() {
        problems.push(&joined(&place.shown, &field_of(&submission, &field)), description);
    }
    Some(FileJob { submission, after, place })
}

/// The parsed value of a field; a value that can't be parsed is a problem, and left out.
fn parsed<T: Default>(problems: &mut Problems, field: &str, read: Result<T, String>) -> T {
    read.unwrap_or_else(|message| {
        problems.push(field, message);
        T::default()
    })
}

fn time(problems: &mut Problems, field: &str, text: Option<&String>) -> u64 {
    text.map_or(0, |text| parsed(problems, field, quantity::duration_ms(text)))
}

fn submission(file: JobFile, path: &str, problems: &mut Problems) -> (v1::Submission, Vec<NamedDependency>) {
    let constraints = file.constraints.unwrap_or_default();
    let (mut depends_on, mut after) = (Vec::new(), Vec::new());
    for (index, edge) in file.depends_on.into_iter().enumerate() {
        let condition = match edge.condition {
            ConditionFile::Any => v1::DependencyCondition::Any as i32,
            ConditionFile::Succeeded => v1::DependencyCondition::Succeeded as i32,
            ConditionFile::Failed => v1::DependencyCondition::Failed as i32,
        };
        match edge.job.0.parse() {
            Ok(job_id) => depends_on.push(v1::Dependency { job_id, condition, ..v1::Dependency::default() }),
            Err(_) => {
                let field = format!("depends_on[{index}].job");
                after.push(NamedDependency { field, job: edge.job.0, condition });
            }
        }
    }
    let groups = file.groups.into_iter().enumerate();
    let groups =
        groups.map(|(index, group)| task_group(group, &joined(path, &format!("groups[{index}]")), problems));
    let groups = groups.collect();
    let max_run = file.max_run.as_ref().map(|text| quantity::run_time_ms(text)).transpose();
    let max_run_ms = parsed(problems, &joined(path, "max_run"), max_run).unwrap_or(0);
    let mut duration =
        |field: &str, text: &Option<String>| time(problems, &joined(path, field), text.as_ref());
    let spec = v1::JobSpec {
        display_name: file.display_name,
        labels: file.labels,
        priority: file.priority,
        groups,
        gang_job: file.gang_job,
        on_pool_lost: match file.on_pool_lost {
            OnPoolLostFile::Wait => v1::OnPoolLost::Wait as i32,
            OnPoolLostFile::Requeue => v1::OnPoolLost::Requeue as i32,
        },
        may_overlap: file.may_overlap,
        lease_ms: duration("lease", &file.lease),
        on_unit_failure: Some(v1::OnUnitFailure { max_failed: file.max_failed }),
        max_run_ms,
        start_limit_ms: duration("start_limit", &file.start_limit),
        grace_ms: file.grace.is_some().then(|| duration("grace", &file.grace)),
        depends_on,
        required_features: file.required_features,
        constraints: Some(constraints_message(constraints)),
        retry: file.retry.map(|retry| retry_message(retry, &joined(path, "retry"), problems)),
    };
    let submission =
        v1::Submission { name: file.name, queue: file.queue, spec: Some(spec), ..v1::Submission::default() };
    (submission, after)
}

fn constraints_message(file: ConstraintsFile) -> v1::Constraints {
    let toleration = |TolerationFile { key, value }| v1::Toleration { key, value };
    v1::Constraints {
        regions_allowed: file.regions,
        regions_denied: file.regions_denied,
        pools: file.pools,
        node_labels: file.node_labels,
        tolerations: file.tolerations.into_iter().map(toleration).collect(),
        real_only: file.real_only,
    }
}

fn retry_message(file: RetryFile, path: &str, problems: &mut Problems) -> v1::RetryPolicy {
    let on = |on: RetryOnFile| match on {
        RetryOnFile::Failed => v1::RetryOn::Failed as i32,
        RetryOnFile::TimedOut => v1::RetryOn::TimedOut as i32,
        RetryOnFile::StartFailed => v1::RetryOn::StartFailed as i32,
        RetryOnFile::Unknown => v1::RetryOn::Unknown as i32,
    };
    v1::RetryPolicy {
        max_attempts: file.max_attempts,
        on: file.on.into_iter().map(on).collect(),
        backoff_ms: time(problems, &joined(path, "backoff"), file.backoff.as_ref()),
        backoff_max_ms: time(problems, &joined(path, "backoff_max"), file.backoff_max.as_ref()),
        max_node_losses: file.max_node_losses,
    }
}

fn task_group(file: GroupFile, path: &str, problems: &mut Problems) -> v1::TaskGroup {
    let mut amount = |field: &str, text: &Option<Text>, read: fn(&str) -> Result<u64, String>| {
        text.as_ref().map_or(0, |text| parsed(problems, &joined(path, field), read(&text.0)))
    };
    // A pod's memory is that of its containers.
    let memory_default = if file.pod.is_some() { 0 } else { quantity::MEMORY_DEFAULT };
    let (cpu_millis, memory_bytes, storage_bytes) = (
        amount("cpus", &file.cpus, quantity::cpus),
        file.memory.as_ref().map_or(memory_default, |_| amount("memory", &file.memory, quantity::memory)),
        amount("storage", &file.storage, quantity::bytes),
    );
    let devices = file.devices.as_ref().map(|text| quantity::devices(text)).transpose();
    let resources = v1::TaskResources {
        cpu_millis,
        memory_bytes,
        storage_bytes,
        devices: parsed(problems, &joined(path, "devices"), devices),
        other: file.other.clone(),
    };
    if file.indices.as_ref().is_some_and(|indices| indices.0.trim().is_empty()) {
        problems.push(&joined(path, "indices"), "is empty: leave it out to run all tasks");
    }
    let simulate = file.simulate.as_ref().map(|simulate| v1::Simulate {
        duration_ms: time(problems, &joined(path, "simulate.duration"), Some(&simulate.duration)),
        exit_code: simulate.exit_code,
    });
    v1::TaskGroup {
        name: file.name.clone(),
        count: file.count,
        gang: file.gang,
        resources: Some(resources),
        simulate,
        indices: file.indices.as_ref().map_or_else(String::new, |text| text.0.clone()),
        index_count: file.index_count,
        run: Some(run(file, path, problems)),
    }
}

fn run(file: GroupFile, path: &str, problems: &mut Problems) -> v1::task_group::Run {
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
    match (file.pod, file.image) {
        (Some(pod), image) => {
            if image.is_some() || program != v1::Program::default() {
                problems.push(
                    &joined(path, "pod"),
                    "defines its containers itself: remove image, command, args, env and workdir",
                );
            }
            v1::task_group::Run::Pod(v1::KubernetesPod { spec_json: Value::Object(pod).to_string() })
        }
        (None, Some(image)) => {
            v1::task_group::Run::Container(v1::Container { image, program: Some(program) })
        }
        (None, None) => v1::task_group::Run::Process(program),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expect: Expect) {
        let lines =
            |problems: Vec<Problem>| problems.iter().map(|one| format!("{one}\n")).collect::<String>();
        let shown = read_jobs(text).map_or_else(lines, |jobs| format!("{} jobs\n", jobs.jobs.len()));
        expect.assert_eq(&shown);
    }

    #[test]
    fn job_files_are_parsed_strictly() {
        check(
            "groups: [{cpus: 1, command: [\"true\"]}]",
            expect![[r#"
            1 jobs
        "#]],
        );
        check(
            "{\"groups\": [{\"cpus\": \"500m\", \"command\": [\"true\"]}]}",
            expect![[r#"
            1 jobs
        "#]],
        );
        check(
            "- {groups: []}\n- {groups: []}",
            expect![[r#"
            1:4: jobs[0].groups: 0 task groups, at least 1 is needed
            2:4: jobs[1].groups: 0 task groups, at least 1 is needed
        "#]],
        );
        check(
            "priorty: 3",
            expect![[r#"
            groups: 0 task groups, at least 1 is needed
            1:1: priorty: unknown field "priorty", did you mean "priority"?
        "#]],
        );
        check(
            "groups: [{cpsu: 1}]",
            expect![[r#"
                1:10: groups[0].command: empty: set the program to run
                1:11: groups[0].cpsu: unknown field "cpsu", did you mean "cpus"?
            "#]],
        );
        check(
            "groups: [{cpus: -1}]",
            expect![[r#"
                1:10: groups[0].command: empty: set the program to run
                1:11: groups[0].cpus: "-1" is not an amount of CPUs: write 2, 1.5 or 500m
            "#]],
        );
        check(
            "max_run: soon",
            expect![[r#"
                groups: 0 task groups, at least 1 is needed
                1:1: max_run: "soon" is not a duration: expected number at 0; write 90s, 5m or 1h30m
            "#]],
        );
        check(
            "apiVersion: batch/v1\nkind: Job",
            expect![[r#"
            1:1: apiVersion: is a Kubernetes manifest: Weir's job files are simpler, see `weir explain job` and docs/guide/coming-from.md; a PodSpec can be used as groups[].pod
        "#]],
        );
        check(
            "name: a\nname: b",
            expect![[r#"
            2:1: "name" is given twice
        "#]],
        );
        check(
            "name: a\n\tqueue: b",
            expect![[r#"
            1:7: while scanning a plain scalar, found a tab
        "#]],
        );
        check(
            "{\"name\": \"a\",}",
            expect![[r#"
            1:14: trailing comma
        "#]],
        );
        check(
            "queue: a\njobs: []",
            expect![[r#"
            jobs: stands alone in its document: write what all jobs share in each of them, not "queue" beside it
        "#]],
        );
        check(
            "groups: [{constraints: {pools: [a]}, cpus: 1, command: [a]}]",
            expect![[r#"
            1:11: groups[0].constraints: unknown field "constraints" here. Write it in the job, beside groups.
        "#]],
        );
        check(
            "",
            expect![[r#"
            the file contains no job
        "#]],
        );
    }

    #[test]
    fn words_of_other_systems_and_fields_in_the_wrong_place_are_recognised() {
        check(
            "groups: [{gpu: 1}]",
            expect![[r#"
                1:10: groups[0].command: empty: set the program to run
                1:11: groups[0].gpu: unknown field "gpu", did you mean "devices"? Write devices: MODEL:COUNT, such as devices: A100-80G:2.
            "#]],
        );
        check(
            "groups: [{gres: \"gpu:2\"}]",
            expect![[r#"
                1:10: groups[0].command: empty: set the program to run
                1:11: groups[0].gres: unknown field "gres", did you mean "devices"? Write devices: MODEL:COUNT, such as devices: A100-80G:2.
            "#]],
        );
        check(
            "gpus: 1",
            expect![[r#"
                groups: 0 task groups, at least 1 is needed
                1:1: gpus: unknown field "gpus" here, did you mean "devices"? Write it in an entry of groups.
            "#]],
        );
        check(
            "command: [\"true\"]",
            expect![[r#"
                groups: 0 task groups, at least 1 is needed
                1:1: command: unknown field "command" here. Write it in an entry of groups.
            "#]],
        );
        check(
            "replicas: 3",
            expect![[r#"
                groups: 0 task groups, at least 1 is needed
                1:1: replicas: unknown field "replicas" here, did you mean "count"? Write it in an entry of groups.
            "#]],
        );
        check(
            "partition: batch",
            expect![[r#"
                groups: 0 task groups, at least 1 is needed
                1:1: partition: unknown field "partition", did you mean "queue"?
            "#]],
        );
        check(
            "groups: [{command: [x], enviroment: {}}]",
            expect![[r#"
                1:25: groups[0].enviroment: unknown field "enviroment", did you mean "env"?
            "#]],
        );
        check(
            "walltime: 1h",
            expect![[r#"
            groups: 0 task groups, at least 1 is needed
            1:1: walltime: unknown field "walltime", did you mean "max_run"?
        "#]],
        );
        check(
            "pools: [a]",
            expect![[r#"
            groups: 0 task groups, at least 1 is needed
            1:1: pools: unknown field "pools" here. Write it in constraints.
        "#]],
        );
        check(
            "nonsense: 1",
            expect![[r#"
                groups: 0 task groups, at least 1 is needed
                1:1: nonsense: unknown field "nonsense"; expected one of name, display_name, queue, labels, priority, groups, gang_job, constraints, retry, on_pool_lost, may_overlap, lease, max_failed, max_run, start_limit, grace, depends_on, required_features, status
            "#]],
        );
    }

    #[test]
    fn alias_bomb_is_refused() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (previous, name) in "abcdefgh".chars().zip("bcdefghi".chars()) {
            let list = vec![format!("*{previous}"); 9].join(", ");
            text.push_str(&format!("{name}: &{name} [{list}]\n"));
        }
        let error = format!("{:?}", read_jobs(&text).expect_err("too much"));
        assert!(error.contains("values: write several files"), "{error}");
    }
}
