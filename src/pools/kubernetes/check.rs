//! `weir agent check`: tests each thing that an agent needs of a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};

use super::cluster::{Cluster, causes, config, error_text};
use super::lock::{Holder, Lock};
use super::nodes::Facts;
use super::requests::Amounts;
use super::{Settings, names};
use crate::clock::Clock;
use crate::pools::check::Finding;

/// The longest time of one call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Nodes per page of a list.
const PAGE_SIZE: u32 = 500;

/// A permission that an agent needs: verb, group, resource, subresource.
type Right = (&'static str, &'static str, &'static str, &'static str);

/// Needed in the whole cluster.
const OF_CLUSTER: [Right; 4] = [
    ("list", "", "nodes", ""),
    ("watch", "", "nodes", ""),
    ("list", "", "pods", ""),
    ("watch", "", "pods", ""),
];
/// Needed in each namespace that may hold the pool's pods.
const OF_NAMESPACE: [Right; 6] = [
    ("create", "", "pods", ""),
    ("get", "", "pods", ""),
    ("patch", "", "pods", ""),
    ("delete", "", "pods", ""),
    ("get", "", "pods", "log"),
    ("create", "", "services", ""),
];
/// Needed in the agent's own namespace.
const OF_LOCK: [Right; 3] = [
    ("get", "coordination.k8s.io", "leases", ""),
    ("create", "coordination.k8s.io", "leases", ""),
    ("update", "coordination.k8s.io", "leases", ""),
];

async fn answer<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
        Ok(done) => done.map_err(|error| error_text(&error)),
        Err(_) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
    }
}

/// Tests everything that the pool's agent needs of its cluster. Changes nothing there.
///
/// Stops at the first finding without which the others can't be tested: credentials, then the API server.
pub async fn check(settings: &Settings) -> Vec<Finding> {
    let mut found = Vec::new();
    let configured = config(settings).await;
    let address = configured.as_ref().map(|config| config.cluster_url.to_string());
    found.push(Finding::of("credentials", address.map_err(Clone::clone)));
    let Ok(configured) = configured else { return found };
    let client = match Client::try_from(configured) {
        Ok(client) => client,
        Err(error) => {
            found.push(Finding::of("api server", Err(causes(&error))));
            return found;
        }
    };
    let version = answer(client.apiserver_version()).await;
    let reached = version.is_ok();
    found.push(Finding::of(
        "api server",
        version.map(|version| format!("Kubernetes {}", version.git_version)),
    ));
    if !reached {
        return found;
    }
    found.push(Finding::of("rights", rights(settings, &client).await));
    for namespace in settings.namespaces() {
        found.push(Finding::of(
            &format!("namespace {namespace}"),
            try_pod(settings, &client, namespace).await,
        ));
    }
    found.push(Finding::of("lock", lock(settings).await));
    match nodes(settings, &client).await {
        Ok(mut more) => found.append(&mut more),
        Err(why) => found.push(Finding::of("nodes", Err(why))),
    }
    if settings.process_image.is_none() {
        let detail = "jobs that are commands are refused: process_image is not set";
        found.push(Finding::limited("commands", detail.to_owned()));
    }
    found
}

async fn rights(settings: &Settings, client: &Client) -> Result<String, String> {
    let (mut missing, mut count) = (Vec::new(), 0);
    let cluster = OF_CLUSTER.iter().map(|right| (None, right));
    let namespaces = settings.namespaces();
    let in_each =
        namespaces.iter().flat_map(|namespace| OF_NAMESPACE.iter().map(|right| (Some(*namespace), right)));
    let lock = OF_LOCK.iter().map(|right| (Some(settings.namespace.as_str()), right));
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    for (namespace, (verb, group, resource, part)) in cluster.chain(in_each).chain(lock) {
        count += 1;
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let attributes = ResourceAttributes {
            verb: some(verb),
            group: some(group),
            resource: some(resource),
            subresource: some(part),
            namespace: namespace.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        let spec =
            SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let status = answer(reviews.create(&PostParams::default(), &review)).await?.status;
        if !status.is_some_and(|status| status.allowed) {
            let what = if part.is_empty() { (*resource).to_owned() } else { format!("{resource}/{part}") };
            let scope = namespace.map_or("in the whole cluster".to_owned(), |name| format!("in {name}"));
            missing.push(format!("{verb} {what} {scope}"));
        }
    }
    if missing.is_empty() {
        Ok(format!("all {count} permissions are granted"))
    } else {
        Err(format!("not allowed: {}; manifests/agent/rbac.yaml grants them", missing.join(", ")))
    }
}

/// Creates a pod as a dry run, which passes the API server's quotas, admission and webhooks.
async fn try_pod(settings: &Settings, client: &Client, namespace: &str) -> Result<String, String> {
    let image = settings.process_image.clone().unwrap_or_else(|| "busybox".to_owned());
    let container =
        Container { name: names::CONTAINER.to_owned(), image: Some(image), ..Container::default() };
    let pod = Pod {
        metadata: ObjectMeta { generate_name: Some("weir-check-".to_owned()), ..ObjectMeta::default() },
        spec: Some(PodSpec {
            containers: vec![container],
            restart_policy: Some("Never".to_owned()),
            service_account_name: settings.service_account.clone(),
            automount_service_account_token: Some(false),
            ..PodSpec::default()
        }),
        status: None,
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    answer(pods.create(&parameters, &pod)).await?;
    Ok("a pod would be accepted".to_owned())
}

async fn lock(settings: &Settings) -> Result<String, String> {
    let cluster = Cluster::connect(settings, Clock::start()).await?;
    let lock = Lock::new(&cluster, &settings.namespace, &settings.pool, &settings.holder);
    Ok(match tokio::time::timeout(ANSWER_TIMEOUT, lock.holder()).await {
        Err(_) => return Err("the API server does not answer".to_owned()),
        Ok(Ok(None)) => "free".to_owned(),
        Ok(Ok(Some(holder))) if holder.is_this => "held by this agent".to_owned(),
        Ok(Ok(Some(Holder { name, is_fresh: true, .. }))) => {
            return Err(format!("agent {name} holds it, and renews it"));
        }
        Ok(Ok(Some(Holder { name, .. }))) => format!("agent {name} held it last, and renews it no longer"),
        Ok(Err(error)) => return Err(error),
    })
}

async fn nodes(settings: &Settings, client: &Client) -> Result<Vec<Finding>, String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut parameters = ListParams::default().limit(PAGE_SIZE);
    if !settings.nodes.is_empty() {
        parameters = parameters.labels(&settings.nodes);
    }
    let (mut all, mut open, mut cpu_millis) = (0, 0, 0_u64);
    let (mut models, mut plain) = (BTreeMap::<String, usize>::new(), BTreeSet::new());
    loop {
        let page = answer(nodes.list(&parameters)).await?;
        for node in &page.items {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let spec =
                Facts::read(node, &settings.devices).spec(name, &Amounts::default(), &BTreeSet::new(), 0);
            all += 1;
            open += usize::from(!spec.cordoned);
            cpu_millis += spec.allocatable.cpu_millis;
            for device in &spec.devices {
                *models.entry(device.model.clone()).or_default() += 1;
            }
            let other = spec.allocatable.other.iter().flat_map(|other| other.keys());
            plain.extend(other.filter(|name| name.contains('/')).map(ToString::to_string));
        }
        parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if parameters.continue_token.is_none() {
            break;
        }
    }
    if all == 0 {
        return Err(format!("no node has the labels {:?}", settings.nodes));
    }
    let mut found = vec![Finding::of(
        "nodes",
        Ok(format!(
            "{all}, of which {open} are ready and schedulable; {} CPUs before subtracting other pods",
            cpu_millis / 1_000
        )),
    )];
    if !models.is_empty() {
        let models: Vec<String> = models.iter().map(|(model, count)| format!("{count} {model}")).collect();
        found.push(Finding::of("devices", Ok(models.join(", "))));
    }
    if !plain.is_empty() {
        let names: Vec<String> = plain.into_iter().collect();
        let detail = format!(
            "counted, but not as devices: {}; name their models in [kubernetes.devices]",
            names.join(", ")
        );
        found.push(Finding::limited("resources", detail));
    }
    Ok(found)
}
