//! Jobs written as job files, so that what `weir get -o yaml` prints can be submitted again.

use serde_json::Value;

use super::{
    ConditionFile, ConstraintsFile, DependencyFile, EnvFile, GroupFile, JobFile, OnPoolLostFile, RetryFile,
    RetryOnFile, SecretFile, SimulateFile, TolerationFile, ValueFromFile,
};
use crate::api::proto::v1;
use crate::cli::Failure;
use crate::cli::input::{Text, is_default};
use crate::cli::output::value_of;
use crate::model::amount::{bytes, duration, thousandths};

/// A duration, unless it is zero, which stands for an absent one.
fn time(ms: u64) -> Option<String> {
    (ms > 0).then(|| duration(ms))
}

/// A job as JSON or YAML: its file, and its state as `status`.
///
/// # Errors
/// If a value can't be represented in JSON.
pub fn job_value(job: &v1::Job) -> Result<Value, Failure> {
    let mut value = value_of(&job_file(job))?;
    let mut status = value_of(&v1::Job { spec: None, ..job.clone() })?;
    if let (Some(value), Some(status)) = (value.as_object_mut(), status.as_object_mut()) {
        for in_file in ["name", "queue", "spec"] {
            status.shift_remove(in_file);
        }
        value.insert("status".to_owned(), std::mem::take(status).into());
    }
    Ok(value)
}

/// The job file of a job. Fields that the broker has filled in with the defaults of all jobs are left out.
fn job_file(job: &v1::Job) -> JobFile {
    let spec = job.spec.clone().unwrap_or_default();
    JobFile {
        name: job.name.clone(),
        display_name: spec.display_name,
        queue: job.queue.clone(),
        labels: spec.labels,
        priority: spec.priority,
        groups: spec.groups.into_iter().map(group_file).collect(),
        gang_job: spec.gang_job,
        constraints: spec.constraints.map(constraints_file).filter(|file| !is_default(file)),
        retry: spec.retry.map(retry_file).filter(|file| !is_default(file)),
        on_pool_lost: match v1::OnPoolLost::try_from(spec.on_pool_lost).unwrap_or_default() {
            v1::OnPoolLost::Unspecified | v1::OnPoolLost::Wait => OnPoolLostFile::Wait,
            v1::OnPoolLost::Requeue => OnPoolLostFile::Requeue,
        },
        may_overlap: spec.may_overlap,
        lease: time(spec.lease_ms),
        max_failed: spec.on_unit_failure.and_then(|policy| policy.max_failed),
        max_run: time(spec.max_run_ms),
        start_limit: time(spec.start_limit_ms),
        grace: spec.grace_ms.filter(|ms| *ms != 10_000).map(duration),
        depends_on: spec.depends_on.iter().map(|edge| dependency_file(&job.queue, edge)).collect(),
        required_features: spec.required_features,
        status: None,
    }
}

/// A dependency of a job in `queue`: by name, which is right also where the other job is submitted again.
fn dependency_file(queue: &str, edge: &v1::Dependency) -> DependencyFile {
    let condition = match edge.condition() {
        v1::DependencyCondition::Unspecified | v1::DependencyCondition::Succeeded => ConditionFile::Succeeded,
        v1::DependencyCondition::Any => ConditionFile::Any,
        v1::DependencyCondition::Failed => ConditionFile::Failed,
    };
    let job = match (edge.name.is_empty(), edge.queue == queue) {
        (true, _) => edge.job_id.to_string(),
        (false, true) => edge.name.clone(),
        (false, false) => format!("job/{}/{}", edge.queue, edge.name),
    };
    DependencyFile { job: Text(job), condition }
}

fn constraints_file(message: v1::Constraints) -> ConstraintsFile {
    let toleration = |v1::Toleration { key, value }| TolerationFile { key, value };
    ConstraintsFile {
        regions: message.regions_allowed,
        regions_denied: message.regions_denied,
        pools: message.pools,
        node_labels: message.node_labels,
        tolerations: message.tolerations.into_iter().map(toleration).collect(),
        real_only: message.real_only,
    }
}

fn retry_file(message: v1::RetryPolicy) -> RetryFile {
    let on = |on: v1::RetryOn| match on {
        v1::RetryOn::Failed => Some(RetryOnFile::Failed),
        v1::RetryOn::TimedOut => Some(RetryOnFile::TimedOut),
        v1::RetryOn::StartFailed => Some(RetryOnFile::StartFailed),
        v1::RetryOn::Unknown => Some(RetryOnFile::Unknown),
        v1::RetryOn::Unspecified => None,
    };
    let on: Vec<RetryOnFile> = message.on().filter_map(on).collect();
    RetryFile {
        // All is what an absent list means.
        on: if on.len() == 4 { Vec::new() } else { on },
        max_attempts: message.max_attempts.filter(|attempts| *attempts != 1),
        backoff: time(message.backoff_ms),
        backoff_max: time(message.backoff_max_ms),
        max_node_losses: message.max_node_losses.filter(|losses| *losses != 3),
    }
}

fn group_file(group: v1::TaskGroup) -> GroupFile {
    let resources = group.resources.unwrap_or_default();
    let amount = |amount: u64, show: fn(u64) -> String| (amount > 0).then(|| Text(show(amount)));
    let (pod, image, program) = match group.run {
        Some(v1::task_group::Run::Process(program)) => (None, None, program),
        Some(v1::task_group::Run::Container(container)) => {
            (None, Some(container.image), container.program.unwrap_or_default())
        }
        // The broker accepts only objects.
        Some(v1::task_group::Run::Pod(pod)) => {
            (serde_json::from_str(&pod.spec_json).ok(), None, v1::Program::default())
        }
        None => (None, None, v1::Program::default()),
    };
    let env = |var: v1::EnvVar| {
        let value = match var.source {
            Some(v1::env_var::Source::ValueFrom(v1::SecretRef { name, key })) => {
                EnvFile::From(ValueFromFile { value_from: SecretFile { secret: name, key } })
            }
            Some(v1::env_var::Source::Value(value)) => EnvFile::Value(value),
            None => EnvFile::Value(String::new()),
        };
        (var.name, value)
    };
    let selected = !group.indices.is_empty();
    GroupFile {
        name: if group.name == "main" { String::new() } else { group.name },
        count: group.count.filter(|count| *count != 1 && !selected),
        gang: group.gang,
        cpus: amount(resources.cpu_millis, thousandths),
        // What the file leaves out has the default.
        memory: if resources.memory_bytes == 0 && pod.is_none() {
            Some(Text("0".to_owned()))
        } else {
            amount(resources.memory_bytes, bytes)
        },
        storage: amount(resources.storage_bytes, bytes),
        devices: resources.devices.as_ref().map(devices_text),
        other: resources.other,
        command: program.command,
        args: program.args,
        env: program.env.into_iter().map(env).collect(),
        workdir: program.workdir,
        image,
        pod,
        simulate: group.simulate.map(|simulate| SimulateFile {
            duration: duration(simulate.duration_ms),
            exit_code: simulate.exit_code,
        }),
        indices: selected.then_some(Text(group.indices)),
        index_count: group.index_count,
    }
}

/// Devices as a file and the command line have them: `A100-80G|A800-80G:2`, `any:0.5`.
pub fn devices_text(devices: &v1::DeviceRequest) -> String {
    let models = if devices.models.is_empty() { "any".to_owned() } else { devices.models.join("|") };
    let amount = match devices.amount {
        Some(v1::device_request::Amount::Count(count)) => count.to_string(),
        Some(v1::device_request::Amount::Millis(millis)) => thousandths(u64::from(millis)),
        None => "1".to_owned(),
    };
    format!("{models}:{amount}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::convert::{job_spec, spec_message};
    use crate::cli::job_file::read_jobs;

    /// What the broker stores of a file and returns, printed as a file, is stored the same again.
    #[test]
    fn every_example_is_the_same_job_after_it_was_stored_printed_and_read_again() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let mut count = 0;
        for path in std::fs::read_dir(root).expect("examples").flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("an example");
            for job in read_jobs(&text).expect("jobs").jobs {
                let v1::Submission { name, queue, spec, .. } = job.submission;
                let stored = job_spec("spec", &spec.expect("a spec")).expect("a valid spec");
                let shown = v1::Job { name, queue, spec: Some(spec_message(&stored)), ..v1::Job::default() };
                let printed = serde_saphyr::to_string(&job_file(&shown)).expect("YAML");
                let again = read_jobs(&printed).unwrap_or_else(|problems| panic!("{printed}\n{problems:?}"));
                let again = again.jobs.into_iter().next().expect("a job").submission;
                assert_eq!((&again.name, &again.queue), (&shown.name, &shown.queue));
                let again = job_spec("spec", &again.spec.expect("a spec")).expect("a valid spec");
                assert_eq!(again, stored, "{}: {printed}", path.display());
                count += 1;
            }
        }
        assert!(count >= 12, "{count} jobs");
    }
}
