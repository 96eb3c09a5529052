//! Builds the pods of an attempt, and a gang's service, from the start order.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Container, EnvVar, EnvVarSource, LocalObjectReference, Node, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, ResourceRequirements, SecretKeySelector,
    SecurityContext, Service, ServiceSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use serde_json::Value;

use super::requests::{Amounts, of_pod};
use super::{Binding, Settings, names, quantity};
use crate::agent::StartRequest;
use crate::model::device::DeviceAmount;
use crate::model::exchange::{StartOrder, TaskStart};
use crate::model::id::AttemptId;
use crate::model::spec::{self, EnvValue, JobSpec, Program, Run, TaskGroup};

/// Builds the pods of an attempt, by rank. `resource` returns the resource by which a node's device is requested;
/// `None` if the node has no device of that index.
///
/// # Errors
/// A message for the job's owner, if this pool can't run the job.
pub(super) fn pods(
    settings: &Settings,
    start: &StartRequest,
    resource: impl Fn(&str, u16) -> Option<String>,
) -> Result<Vec<Pod>, String> {
    let order = &start.order;
    if order.tasks.is_empty() {
        return Err("the order has no tasks".to_owned());
    }
    let tasks = order.tasks.iter().enumerate();
    tasks.map(|(rank, task)| pod(settings, start, rank, task, &resource)).collect()
}

/// True if the attempt's tasks start and end together. Also true of a gang of one.
pub(super) fn is_gang(order: &StartOrder, spec: &JobSpec) -> bool {
    let first = order.tasks.first().and_then(|task| spec.groups.get(usize::from(task.group)));
    spec.gang_job || first.is_some_and(|group| group.gang)
}

fn pod(
    settings: &Settings,
    start: &StartRequest,
    rank: usize,
    task: &TaskStart,
    resource: &impl Fn(&str, u16) -> Option<String>,
) -> Result<Pod, String> {
    let (order, spec) = (&start.order, &*start.spec);
    let group =
        spec.groups.get(usize::from(task.group)).ok_or("its spec has no group for one of its tasks")?;
    let namespace = settings.namespace_of(&order.queue);
    let gang = is_gang(order, spec);
    let mut pod_spec = match (&group.run, &settings.process_image) {
        (Run::Container { image, program }, _) => plain_spec(image, program),
        (Run::Process(program), Some(image)) => plain_spec(image, program),
        (Run::Process(_), None) => {
            return Err("this pool runs containers only: process_image is not set in its file".to_owned());
        }
        (Run::Pod { spec }, _) => native_spec(spec)?,
    };
    let main = main_container(&pod_spec)?;
    let mut requested = resources(group, task, resource)?;
    let allocated = requested.clone();
    default_requests_to_limits(&mut pod_spec, main);
    subtract_other_containers(&mut requested, &pod_spec, main)?;
    let own = env(settings, order, group, rank, task, gang.then_some(namespace));
    for (index, container) in pod_spec.containers.iter_mut().enumerate() {
        let theirs = container.env.take().unwrap_or_default();
        container.env = Some(own.iter().cloned().chain(theirs).collect());
        if index == main {
            let requests = Some(requested.clone());
            container.resources = Some(ResourceRequirements {
                requests,
                limits: Some(requested.clone()),
                ..Default::default()
            });
        }
    }
    set_placement_and_limits(&mut pod_spec, settings, start, rank, task);
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(names::pod(order.attempt, rank)),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels(settings, order, rank)),
            annotations: Some(annotations(start, task, &allocated)),
            ..ObjectMeta::default()
        },
        spec: Some(pod_spec),
        status: None,
    };
    let total = of_pod(&pod);
    if let Some((name, total, allocated)) = total.first_beyond(&Amounts::read(&allocated)) {
        return Err(format!("its pod requests {total} of {name} in total, more than the task's {allocated}"));
    }
    Ok(pod)
}

/// Sets the fields that Weir owns in every pod: where it runs, for how long, and with whose credentials.
fn set_placement_and_limits(
    pod_spec: &mut PodSpec,
    settings: &Settings,
    start: &StartRequest,
    rank: usize,
    task: &TaskStart,
) {
    let (order, spec) = (&start.order, &*start.spec);
    let direct = settings.binding == Binding::Direct;
    pod_spec.restart_policy = Some("Never".to_owned());
    pod_spec.node_name = direct.then(|| task.node.clone());
    pod_spec.node_selector = None;
    pod_spec.affinity = (!direct).then(|| on_node(&task.node));
    pod_spec.scheduler_name = match &settings.binding {
        Binding::Direct => None,
        Binding::Scheduler(name) => Some(name.clone()),
    };
    let tolerated = spec.constraints.tolerations.iter().map(toleration);
    pod_spec.tolerations.get_or_insert_default().extend(tolerated);
    if is_gang(order, spec) {
        pod_spec.hostname = Some(names::host(rank));
        pod_spec.subdomain = Some(names::service(order.attempt));
    }
    pod_spec.active_deadline_seconds = Some(seconds(spec.max_run_ms));
    pod_spec.termination_grace_period_seconds = Some(seconds(spec.grace_ms));
    if pod_spec.service_account_name.is_none() {
        pod_spec.service_account_name = settings.service_account.clone();
    }
    pod_spec.image_pull_secrets.get_or_insert_default().extend(secrets(settings));
}

/// Sets requests that are missing to their limits, as the API server would.
fn default_requests_to_limits(spec: &mut PodSpec, main: usize) {
    let others = spec.containers.iter_mut().enumerate().filter(|(index, _)| *index != main);
    let others = others.map(|(_, container)| &mut container.resources);
    let init = spec.init_containers.iter_mut().flatten().map(|container| &mut container.resources);
    for resources in others.chain(init).flatten().chain(spec.resources.as_mut()) {
        for (name, limit) in resources.limits.clone().unwrap_or_default() {
            resources.requests.get_or_insert_default().entry(name).or_insert(limit);
        }
    }
}

/// The spec of a pod with one container that runs a program.
fn plain_spec(image: &str, program: &Program) -> PodSpec {
    let container = Container {
        name: names::CONTAINER.to_owned(),
        image: Some(image.to_owned()),
        command: (!program.command.is_empty()).then(|| program.command.iter().map(verbatim).collect()),
        args: (!program.args.is_empty()).then(|| program.args.iter().map(verbatim).collect()),
        working_dir: (!program.workdir.is_empty()).then(|| program.workdir.clone()),
        env: Some(program.env.iter().map(variable).collect()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    PodSpec {
        containers: vec![container],
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        ..PodSpec::default()
    }
}

/// Parses the PodSpec that a job brings.
fn native_spec(text: &str) -> Result<PodSpec, String> {
    let invalid = |error: serde_json::Error| format!("its pod is not a valid PodSpec: {error}");
    let spec: PodSpec = serde_json::from_str(text).map_err(invalid)?;
    // serde ignores unknown fields, so a misspelt one would have no effect and no error.
    let given: Value = serde_json::from_str(text).map_err(invalid)?;
    let parsed = serde_json::to_value(&spec).map_err(invalid)?;
    match first_unknown_field(&given, &parsed) {
        Some(field) => Err(format!("its pod has an unknown field: {field}")),
        None => Ok(spec),
    }
}

/// Returns the path of the first field of `given` that `parsed` lacks.
fn first_unknown_field(given: &Value, parsed: &Value) -> Option<String> {
    let below = |name: String, given: &Value, parsed: &Value| {
        let inner = first_unknown_field(given, parsed)?;
        let dot = if inner.starts_with('[') { "" } else { "." };
        Some(format!("{name}{dot}{inner}"))
    };
    match (given, parsed) {
        (Value::Object(given), Value::Object(parsed)) => given
            .iter()
            .filter(|(_, value)| !value.is_null())
            .find_map(|(name, value)| match parsed.get(name) {
                Some(parsed) => below(name.clone(), value, parsed),
                None => Some(name.clone()),
            }),
        (Value::Array(given), Value::Array(parsed)) => given
            .iter()
            .zip(parsed)
            .enumerate()
            .find_map(|(index, (given, parsed))| below(format!("[{index}]"), given, parsed)),
        _ => None,
    }
}

/// Index of the main container, which is the task: the one of that name, or the first.
fn main_container(spec: &PodSpec) -> Result<usize, String> {
    let named = spec.containers.iter().position(|container| container.name == names::CONTAINER);
    named.or((!spec.containers.is_empty()).then_some(0)).ok_or_else(|| "its pod has no containers".to_owned())
}

/// Subtracts from `requested` what the pod's other containers and sidecars request, so that the pod as a whole
/// requests what its task was allocated.
///
/// # Errors
/// A message for the job's owner, if they request more than that, or leave no CPU, memory or storage for the main
/// container.
fn subtract_other_containers(
    requested: &mut BTreeMap<String, Quantity>,
    spec: &PodSpec,
    main: usize,
) -> Result<(), String> {
    let others = spec.containers.iter().enumerate().filter(|(index, _)| *index != main);
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut sum = Amounts::default();
    for container in others.map(|(_, container)| container).chain(sidecars) {
        let requests = container.resources.as_ref().and_then(|all| all.requests.as_ref());
        sum.add(&requests.map(Amounts::read).unwrap_or_default());
    }
    let fixed = [
        ("cpu", sum.cpu_millis, "m"),
        ("memory", sum.memory_bytes, ""),
        ("ephemeral-storage", sum.storage_bytes, ""),
    ];
    let more = sum.other.iter().map(|(name, amount)| (&**name, *amount, ""));
    for (name, theirs, unit) in fixed.into_iter().chain(more).filter(|(_, theirs, _)| *theirs > 0) {
        let read = if name == "cpu" { quantity::millis } else { quantity::whole };
        let allocated = requested.get(name).and_then(|Quantity(text)| read(text)).unwrap_or(0);
        let left = allocated.checked_sub(theirs).ok_or_else(|| {
            format!("its pod's other containers request {theirs}{unit} of {name}, more than the task's {allocated}{unit}")
        })?;
        if left == 0 && fixed.iter().any(|(fixed, ..)| *fixed == name) {
            // The kubelet treats a limit of 0 as no limit.
            return Err(format!(
                "its pod's other containers request all of the task's {allocated}{unit} of {name}"
            ));
        }
        requested.insert(name.to_owned(), Quantity(format!("{left}{unit}")));
    }
    Ok(())
}

/// Escapes text so that the cluster passes it on unchanged: `$(NAME)` would be expanded, and `$$` shortened to `$`.
#[allow(clippy::ptr_arg)] // Mapped over lists of strings.
fn verbatim(text: &String) -> String {
    text.replace('$', "$$")
}

/// An environment variable from the job's spec.
fn variable(var: &spec::EnvVar) -> EnvVar {
    match &var.value {
        EnvValue::Plain(value) => plain_variable(&var.name, verbatim(value)),
        EnvValue::Secret { name, key } => EnvVar {
            name: var.name.clone(),
            value: None,
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: name.clone(),
                    key: key.clone(),
                    optional: Some(false),
                }),
                ..EnvVarSource::default()
            }),
        },
    }
}

fn plain_variable(name: &str, value: String) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value), value_from: None }
}

/// Whole seconds, rounded up, at least 1.
fn seconds(ms: u64) -> i64 {
    i64::from(i32::try_from(ms.div_ceil(1_000).max(1)).unwrap_or(i32::MAX))
}

fn secrets(settings: &Settings) -> Vec<LocalObjectReference> {
    let secret = |name: &String| LocalObjectReference { name: name.clone() };
    settings.image_pull_secrets.iter().map(secret).collect()
}

fn toleration(toleration: &spec::Toleration) -> Toleration {
    let operator = if toleration.key.is_empty() || toleration.value.is_none() { "Exists" } else { "Equal" };
    Toleration {
        key: (!toleration.key.is_empty()).then(|| toleration.key.clone()),
        operator: Some(operator.to_owned()),
        value: toleration.value.clone().filter(|_| operator == "Equal"),
        ..Toleration::default()
    }
}

/// Affinity to one node, by its name field. A label could be set by others.
fn on_node(node: &str) -> Affinity {
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![term],
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn labels(settings: &Settings, order: &StartOrder, rank: usize) -> BTreeMap<String, String> {
    let label = |name: &str, value: String| (name.to_owned(), value);
    BTreeMap::from([
        label(names::MANAGED_BY.0, names::MANAGED_BY.1.to_owned()),
        label(names::POOL, settings.pool.clone()),
        label(names::ATTEMPT, order.attempt.to_string()),
        label(names::RANK, rank.to_string()),
        label(names::JOB, order.job_name.clone()),
        label(names::QUEUE, queue_label(&order.queue)),
    ])
}

/// A queue's path as a valid label value: no slashes, at most 63 characters, ending with a letter or digit.
fn queue_label(path: &str) -> String {
    let label: String = path.replace('/', ".").chars().take(63).collect();
    label.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

fn annotations(
    start: &StartRequest,
    task: &TaskStart,
    allocated: &BTreeMap<String, Quantity>,
) -> BTreeMap<String, String> {
    let order = &start.order;
    let devices: Vec<String> = task.devices.iter().map(|share| share.index.to_string()).collect();
    let high_water = order.high_water.map_or_else(String::new, |high_water| high_water.to_string());
    let all = [
        (names::REVISION, order.revision.0.to_string()),
        (names::HIGH_WATER, high_water),
        (names::START_BY, start.start_by.0.to_string()),
        (names::TASKS, order.tasks.len().to_string()),
        (names::DEVICES, devices.join(",")),
        (names::ALLOCATED, serde_json::json!(allocated).to_string()),
    ];
    all.into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The task's resources by the cluster's names. They become both requests and limits.
///
/// # Errors
/// A message for the job's owner, if the job requests a part of a device or the node no longer has a device.
fn resources(
    group: &TaskGroup,
    task: &TaskStart,
    resource: &impl Fn(&str, u16) -> Option<String>,
) -> Result<BTreeMap<String, Quantity>, String> {
    let requested = &group.request.resources;
    let mut all = BTreeMap::new();
    let mut set = |name: &str, value: String| all.insert(name.to_owned(), Quantity(value));
    if requested.cpu_millis > 0 {
        set("cpu", format!("{}m", requested.cpu_millis));
    }
    if requested.memory_bytes > 0 {
        set("memory", requested.memory_bytes.to_string());
    }
    if requested.storage_bytes > 0 {
        set("ephemeral-storage", requested.storage_bytes.to_string());
    }
    for (name, amount) in requested.other.iter().flat_map(|other| other.iter()) {
        set(name, amount.to_string());
    }
    if let Some(DeviceAmount::Fraction(_)) = group.request.devices.as_ref().map(|devices| devices.amount) {
        return Err("this pool allocates whole devices only".to_owned());
    }
    let mut devices: BTreeMap<String, usize> = BTreeMap::new();
    for share in &task.devices {
        let name = resource(&task.node, share.index)
            .ok_or_else(|| format!("node {} no longer has device {}", task.node, share.index))?;
        *devices.entry(name).or_default() += 1;
    }
    for (name, count) in devices {
        set(&name, count.to_string());
    }
    Ok(all)
}

fn env(
    settings: &Settings,
    order: &StartOrder,
    group: &TaskGroup,
    rank: usize,
    task: &TaskStart,
    gang_in: Option<&str>,
) -> Vec<EnvVar> {
    let plain = plain_variable;
    let mut all = vec![
        plain("WEIR_JOB", order.job_name.clone()),
        plain("WEIR_ATTEMPT_ID", order.attempt.to_string()),
        plain("WEIR_TASK_GROUP", group.name.clone()),
        plain("WEIR_TASK_INDEX", group.index_of(task.task).to_string()),
        plain("WEIR_TASK_COUNT", group.index_count().to_string()),
        plain("WEIR_REGION", settings.region.to_string()),
        plain("WEIR_POOL", settings.pool.clone()),
        plain("WEIR_NODE", task.node.clone()),
    ];
    if let Some(namespace) = gang_in {
        let size = order.tasks.len();
        let addresses: Vec<String> =
            (0..size).map(|rank| names::address(order.attempt, rank, namespace)).collect();
        all.push(plain("WEIR_GANG_SIZE", size.to_string()));
        all.push(plain("WEIR_GANG_RANK", rank.to_string()));
        all.push(plain("WEIR_GANG_ADDRESSES", addresses.join(",")));
    }
    all
}

/// Builds the headless service through which a gang's members find each other. Its owner is the gang's first pod,
/// so the cluster deletes it with that pod, with or without a live agent.
pub(super) fn service(attempt: AttemptId, first: &Pod) -> Service {
    let labels = first.metadata.labels.clone().unwrap_or_default();
    let selector = BTreeMap::from([(names::ATTEMPT.to_owned(), attempt.to_string())]);
    Service {
        metadata: ObjectMeta {
            name: Some(names::service(attempt)),
            namespace: first.metadata.namespace.clone(),
            labels: Some(labels.into_iter().filter(|(name, _)| name != names::RANK).collect()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: first.metadata.name.clone().unwrap_or_default(),
                uid: first.metadata.uid.clone().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            selector: Some(selector),
            publish_not_ready_addresses: Some(true),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// A node's name. The API server guarantees that there is one.
pub(super) fn node_name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::device::DeviceShare;
    use crate::model::id::{JobId, JournalId, Revision};
    use crate::model::spec::{DeviceRequest, EnvVar as JobVar};
    use crate::model::time::Timestamp;

    fn start(change: impl Fn(&mut JobSpec)) -> StartRequest {
        let attempt = AttemptId { journal: JournalId::from_random(1), job: JobId(2), unit: 0, number: 1 };
        let mut spec = spec::minimal();
        let program = Program { command: vec!["train".to_owned()], ..Program::default() };
        spec.groups[0].run = Run::Container { image: "registry/train:1".to_owned(), program };
        spec.max_run_ms = 3_600_500;
        change(&mut spec);
        let shares = vec![DeviceShare { index: 1, millis: 1_000 }, DeviceShare { index: 3, millis: 1_000 }];
        let task =
            |task: u32| TaskStart { group: 0, task, node: "gpu-7".to_owned(), devices: shares.clone() };
        let order = StartOrder {
            attempt,
            revision: Revision(41),
            high_water: None,
            spec: Default::default(),
            job_name: "train".to_owned(),
            queue: "team-a".to_owned(),
            start_by: Timestamp(1),
            started: false,
            after: None,
            tasks: (0..spec.groups[0].count).map(task).collect(),
        };
        StartRequest { order, spec: Arc::new(spec), start_by: Timestamp(99), lease_ms: None }
    }

    fn made(settings: &Settings, start: &StartRequest) -> Result<Vec<Pod>, String> {
        pods(settings, start, |_, index| (index < 4).then(|| "nvidia.com/gpu".to_owned()))
    }

    fn value<'a>(pod: &'a Pod, name: &str) -> &'a EnvVar {
        let env = pod.spec.as_ref().expect("a spec").containers[0].env.as_ref().expect("variables");
        env.iter().rev().find(|var| var.name == name).expect("a variable")
    }

    #[test]
    fn a_task_becomes_a_pod_on_its_node() {
        let settings = Settings::for_tests();
        let start = start(|spec| {
            spec.groups[0].request.devices =
                Some(DeviceRequest { models: Vec::new(), amount: DeviceAmount::Whole(2) });
            spec.constraints.tolerations =
                vec![spec::Toleration { key: "dedicated".to_owned(), value: None }];
            spec.groups[0].run = Run::Container {
                image: "i".to_owned(),
                program: Program {
                    env: vec![
                        JobVar { name: "A".to_owned(), value: EnvValue::Plain("$(HOME)".to_owned()) },
                        JobVar {
                            name: "KEY".to_owned(),
                            value: EnvValue::Secret { name: "s".to_owned(), key: "k".to_owned() },
                        },
                    ],
                    ..Program::default()
                },
            };
        });
        let pods = made(&settings, &start).expect("pods");
        let pod = &pods[0];
        let spec = pod.spec.as_ref().expect("a spec");
        assert_eq!(pod.metadata.name, Some(names::pod(start.order.attempt, 0)));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("weir-team-a"));
        assert_eq!(
            (spec.node_name.as_deref(), spec.restart_policy.as_deref()),
            (Some("gpu-7"), Some("Never"))
        );
        assert_eq!((spec.active_deadline_seconds, spec.hostname.as_deref()), (Some(3_601), None));
        let limits =
            spec.containers[0].resources.as_ref().and_then(|all| all.limits.clone()).expect("limits");
        let limits: Vec<String> =
            limits.into_iter().map(|(name, amount)| format!("{name}={}", amount.0)).collect();
        assert_eq!(limits, ["cpu=1000m", "memory=67108864", "nvidia.com/gpu=2"]);
        assert_eq!(value(pod, "A").value.as_deref(), Some("$$(HOME)"));
        let secret = value(pod, "KEY").value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref());
        assert_eq!(secret.map(|secret| (secret.name.as_str(), secret.key.as_str())), Some(("s", "k")));
        let annotations = pod.metadata.annotations.as_ref().expect("annotations");
        assert_eq!(annotations.get(names::DEVICES).map(String::as_str), Some("1,3"));
        assert!(spec.tolerations.as_ref().is_some_and(|all| all[0].operator.as_deref() == Some("Exists")));
    }

    #[test]
    fn a_native_pod_retains_the_fields_that_weir_does_not_set() {
        let text = r#"{"containers": [
            {"name": "helper", "image": "h", "resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "16Mi"}}},
            {"name": "task", "image": "t", "env": [{"name": "A", "value": "$(B)"}], "resources": {"requests": {"cpu": "64"}}}],
            "nodeSelector": {"gone": "true"}, "restartPolicy": "Always", "nodeName": "other", "priorityClassName": "high",
            "volumes": [{"name": "v", "emptyDir": {}}]}"#;
        let pods = made(
            &Settings::for_tests(),
            &start(|spec| spec.groups[0].run = Run::Pod { spec: text.to_owned() }),
        );
        let pods = pods.expect("pods");
        let spec = pods[0].spec.as_ref().expect("a spec");
        assert_eq!(
            (spec.node_name.as_deref(), spec.restart_policy.as_deref()),
            (Some("gpu-7"), Some("Never"))
        );
        assert_eq!((spec.node_selector.as_ref(), spec.priority_class_name.as_deref()), (None, Some("high")));
        let requests = |index: usize| {
            let all = spec.containers[index]
                .resources
                .as_ref()
                .and_then(|all| all.requests.clone())
                .expect("requests");
            all.into_iter().map(|(name, amount)| format!("{name}={}", amount.0)).collect::<Vec<_>>()
        };
        assert_eq!(requests(0), ["cpu=250m", "memory=16Mi"]);
        // The task requests one CPU and 64 MiB in all.
        assert_eq!(requests(1), ["cpu=750m", "memory=50331648", "nvidia.com/gpu=2"]);
        let names: Vec<&str> = spec.containers[1]
            .env
            .iter()
            .flatten()
            .map(|var| var.name.as_str())
            .filter(|name| name.len() < 9)
            .collect();
        assert_eq!(names, ["WEIR_JOB", "A"]);
    }

    #[test]
    fn a_sidecar_is_counted_in_a_native_pods_total() {
        let text = r#"{"containers": [{"name": "task"}], "initContainers": [
            {"name": "helper", "restartPolicy": "Always", "resources": {"requests": {"cpu": "250m"}}},
            {"name": "first", "resources": {"requests": {"cpu": "750m"}}}]}"#;
        let start = start(|spec| spec.groups[0].run = Run::Pod { spec: text.to_owned() });
        let pods = made(&Settings::for_tests(), &start).expect("pods");
        let task = &pods[0].spec.as_ref().expect("a spec").containers[0];
        let requests = task.resources.as_ref().and_then(|all| all.requests.as_ref()).expect("requests");
        assert_eq!(requests["cpu"].0, "750m");
        assert_eq!(of_pod(&pods[0]).cpu_millis, 1_000);
    }

    #[test]
    fn a_native_pod_that_requests_more_than_its_task_is_refused() {
        let refused = |text: &str| {
            made(
                &Settings::for_tests(),
                &start(|spec| spec.groups[0].run = Run::Pod { spec: text.to_owned() }),
            )
            .expect_err("refused")
        };
        let more = refused(
            r#"{"containers": [{"name": "task"}, {"name": "b", "resources": {"requests": {"cpu": "2"}}}]}"#,
        );
        assert!(more.contains("request 2000m of cpu, more than the task's 1000m"), "{more}");
        let before = refused(
            r#"{"containers": [{"name": "task"}], "initContainers": [{"name": "a", "resources": {"limits": {"cpu": "3"}}}]}"#,
        );
        assert!(before.contains("requests 3000 of cpu in total, more than the task's 1000"), "{before}");
        let all = refused(
            r#"{"containers": [{"name": "task"}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}"#,
        );
        assert!(all.contains("request all of the task's 1000m of cpu"), "{all}");
        let typo = refused(r#"{"containers": [{"name": "a"}, {"name": "task", "volumMounts": []}]}"#);
        assert!(typo.ends_with("unknown field: containers[1].volumMounts"), "{typo}");
        assert!(refused(r#"{"containers": []}"#).contains("no containers"));
        assert!(refused(r#"{"containers": 3}"#).contains("not a valid PodSpec"));
    }

    #[test]
    fn a_queue_is_a_label_however_long_its_path() {
        assert_eq!(queue_label("team/a"), "team.a");
        let long = format!("{}/b", "a".repeat(62));
        assert_eq!(queue_label(&long), "a".repeat(62));
    }

    #[test]
    fn members_of_a_gang_get_each_others_addresses() {
        let start = start(|spec| {
            spec.groups[0].count = 2;
            spec.groups[0].gang = true;
        });
        let pods = made(&Settings::for_tests(), &start).expect("pods");
        let service = names::service(start.order.attempt);
        let addresses = format!("rank-0.{service}.weir-team-a.svc,rank-1.{service}.weir-team-a.svc");
        assert_eq!(value(&pods[1], "WEIR_GANG_ADDRESSES").value.as_deref(), Some(addresses.as_str()));
        assert_eq!(pods[1].spec.as_ref().and_then(|spec| spec.subdomain.clone()), Some(service));
        let found = super::service(start.order.attempt, &pods[0]);
        assert_eq!(
            found.metadata.owner_references.expect("an owner")[0].name,
            names::pod(start.order.attempt, 0)
        );
    }

    #[test]
    fn a_job_that_the_pool_cannot_run_is_refused_with_a_message() {
        let refused =
            |change: fn(&mut JobSpec)| made(&Settings::for_tests(), &start(change)).expect_err("refused");
        let process = refused(|spec| spec.groups[0].run = Run::Process(Program::default()));
        assert!(process.contains("process_image"), "{process}");
        let part = refused(|spec| {
            spec.groups[0].request.devices =
                Some(DeviceRequest { models: Vec::new(), amount: DeviceAmount::Fraction(500) });
        });
        assert!(part.contains("whole devices"), "{part}");
        let gone = pods(&Settings::for_tests(), &start(|_| {}), |_, _| None).expect_err("refused");
        assert!(gone.contains("gpu-7"), "{gone}");
    }

    #[test]
    fn a_pool_can_leave_the_binding_to_a_scheduler() {
        let settings =
            Settings { binding: Binding::Scheduler("volcano".to_owned()), ..Settings::for_tests() };
        let pods = made(&settings, &start(|_| {})).expect("pods");
        let spec = pods[0].spec.as_ref().expect("a spec");
        assert_eq!((spec.node_name.as_deref(), spec.scheduler_name.as_deref()), (None, Some("volcano")));
        assert!(serde_json::to_string(&spec.affinity).expect("JSON").contains("gpu-7"));
    }
}
