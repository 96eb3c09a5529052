//! One agent beside a Kubernetes cluster of 5,000 nodes, on which 50,000 pods run that are not Weir's.
//!
//! Against a real etcd and API server (built by `tests/real/kubernetes/build`), in a release build, it measures:
//!
//! - the time from the agent's start to the full inventory at its broker, and the agent's memory then;
//! - the agent's CPU time while nothing changes;
//! - the time from a broker's decision to its pod being created, at 100 jobs a second, from the broker's time of the
//!   order to the API server's audit record of the creation;
//! - the same for pods that kube-scheduler alone binds, in the same run: from the API server's audit record of the
//!   creation to that of the binding.
//!
//! No kubelet is simulated: the nodes are created with the condition `Ready`, and pods never start.
//!
//!     cargo bench --bench kubernetes
//!     NODES=500 PODS=5000 cargo bench --bench kubernetes

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::iter;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::jiff;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use support::kubernetes::ControlPlane;
use support::{Home, until};
use weir::api::client::Client as Broker;
use weir::api::proto::v1;

/// Deadline of every wait.
const TIMEOUT: Duration = Duration::from_secs(1_200);
/// Pods in each of the two comparisons.
const COMPARED_PODS: usize = 2_000;
/// Pods per second.
const RATE: u32 = 100;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object")
}

fn node(index: usize) -> Node {
    let amounts = json!({"cpu": "96", "memory": "768Gi", "pods": "110", "nvidia.com/gpu": "8"});
    object(json!({
        "metadata": {"name": format!("n-{index}"), "labels": {
            "kubernetes.io/hostname": format!("n-{index}"), "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": format!("z-{}", index % 3), "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}},
        "status": {"capacity": amounts, "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": null, "lastTransitionTime": null}]}
    }))
}

fn pod(name: &str, node: Option<String>) -> Pod {
    object(json!({
        "metadata": {"name": name, "labels": {"app": "other"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i", "command": ["hang"],
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}]}
    }))
}

/// The value below which `percent` of the sorted values lie.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

fn print_quantiles(what: &str, mut ms: Vec<f64>) {
    ms.sort_by(f64::total_cmp);
    let [p50, p99, longest] = [50, 99, 100].map(|percent| percentile(&ms, percent));
    println!(
        "{what:<58} {:>6} pods   p50 {p50:>7.1} ms   p99 {p99:>8.1} ms   longest {longest:>8.1} ms",
        ms.len()
    );
}

/// The creations in the API server's audit log, by name and whether it is a binding: when the request arrived and
/// when it was done, in milliseconds since 1970.
fn audit_log(plane: &ControlPlane) -> BTreeMap<(String, bool), (f64, f64)> {
    let log = std::fs::read_to_string(plane.path("audit.log")).expect("the audit log");
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ms = |value: &Value| {
        let at: jiff::Timestamp = value.as_str().and_then(|text| text.parse().ok()).expect("a time");
        at.as_microsecond() as f64 / 1_000.0
    };
    let created = events.filter(|event| event["responseStatus"]["code"] == 201);
    let entry = |event: Value| {
        let name = event["objectRef"]["name"].as_str().unwrap_or_default().to_owned();
        let binding = event["objectRef"]["subresource"] == "binding";
        ((name, binding), (ms(&event["requestReceivedTimestamp"]), ms(&event["stageTimestamp"])))
    };
    created.map(entry).collect()
}

/// User and system time of a process, in seconds.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 2..].split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("ticks") + fields[12].parse::<u64>().expect("ticks");
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn status_mib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") / 1_024
}

async fn create_all<K>(api: &Api<K>, objects: impl Iterator<Item = K>)
where
    K: kube::Resource + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let parameters = PostParams::default();
    let create = |object: K| async {
        let object = object;
        api.create(&parameters, &object).await.expect("created");
    };
    iter(objects).map(create).buffer_unordered(48).for_each(|()| async {}).await;
}

async fn fill(plane: &ControlPlane, nodes: usize, pods: usize) -> Client {
    let file = kube::config::Kubeconfig::read_from(plane.kubeconfig()).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(file, &Default::default()).await.expect("a configuration");
    let client = Client::try_from(config).expect("a client");
    for name in ["others", "jobs"] {
        let namespace: Namespace = object(json!({"metadata": {"name": name}}));
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await.expect("a namespace");
        let account: ServiceAccount = object(json!({"metadata": {"name": "default"}}));
        Api::namespaced(client.clone(), name)
            .create(&PostParams::default(), &account)
            .await
            .expect("an account");
    }
    create_all(&Api::all(client.clone()), (0..nodes).map(node)).await;
    // The API server taints a new node as not ready. No controller runs here that would remove the taint.
    let all: Api<Node> = Api::all(client.clone());
    let remove_taint = |index: usize| {
        let all = all.clone();
        async move {
            let patch = Patch::Merge(json!({"spec": {"taints": null}}));
            all.patch(&format!("n-{index}"), &PatchParams::default(), &patch).await.expect("patched");
        }
    };
    iter(0..nodes).map(remove_taint).buffer_unordered(48).for_each(|()| async {}).await;
    let others = (0..pods).map(|index| pod(&format!("other-{index}"), Some(format!("n-{}", index % nodes))));
    create_all(&Api::namespaced(client.clone(), "others"), others).await;
    client
}

fn main() {
    // Only `cargo bench` passes `--bench`. `cargo test --benches` must run nothing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let Some(plane) = ControlPlane::start_with("the benchmark", &["kube-scheduler", "audit"]).map(Arc::new)
    else {
        return;
    };
    let (nodes, pods) = (number("NODES", 5_000), number("PODS", 50_000));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let began = Instant::now();
    let client = runtime.block_on(fill(&plane, nodes, pods));
    println!("{nodes} nodes and {pods} other pods, created in {:.0} s", began.elapsed().as_secs_f64());

    let mut home = Home::new();
    let _broker = home.start_broker("server");
    let (file, state, token) =
        (home.path().join("cluster.toml"), home.path().join("cluster"), home.data().join("token"));
    let text = format!(
        "name = \"cluster\"\nregion = \"CN-GZ\"\nserver = \"{}\"\ntoken_file = {token:?}\nstate = {state:?}\n\
         [kubernetes]\nkubeconfig = {:?}\nnamespace = \"jobs\"\n",
        home.address,
        plane.kubeconfig()
    );
    std::fs::write(&file, text).expect("the agent's file");
    let began = Instant::now();
    let agent = home.start(&["agent", file.to_str().expect("a plain path")]);
    let broker = runtime.block_on(async {
        let token = std::fs::read_to_string(&token).expect("the token");
        Broker::new(&home.address, Some(&token)).expect("a client")
    });
    let is_complete = || {
        let request = v1::GetPoolRequest { name: "cluster".to_owned() };
        let answer = runtime.block_on(async { broker.pools().get_pool(request).await });
        answer
            .ok()
            .and_then(|answer| answer.into_inner().pool)
            .is_some_and(|pool| pool.nodes as usize == nodes)
    };
    until(&format!("the inventory is complete: {}", home.log()), TIMEOUT, is_complete);
    println!("{:<58} {:.1} s", "from the agent's start to the full inventory", began.elapsed().as_secs_f64());
    let pid = agent.0.id();
    // Lets the memory of the initial lists be freed: the figure is that of an idle agent.
    std::thread::sleep(Duration::from_secs(10));
    println!(
        "{:<58} {} MiB now, {} MiB at most",
        "the agent's memory",
        status_mib(pid, "VmRSS:"),
        status_mib(pid, "VmHWM:")
    );
    let (before, seconds) = (cpu_seconds(pid), 30.0);
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let used = cpu_seconds(pid) - before;
    println!(
        "{:<58} {:.2} % of one core",
        "the agent's CPU time while nothing changes",
        100.0 * used / seconds
    );

    through_weir(&runtime, &broker, &plane);
    println!("{:<58} {} MiB at most", "the agent's memory after that", status_mib(pid, "VmHWM:"));
    drop(agent);
    through_scheduler(&runtime, &client, &plane);
}

fn submission(index: usize) -> v1::Submission {
    let program = v1::Program { command: vec!["hang".to_owned()], ..Default::default() };
    let container = v1::Container { image: "i".to_owned(), program: Some(program) };
    let resources = v1::TaskResources { cpu_millis: 500, memory_bytes: 1 << 30, ..Default::default() };
    let group = v1::TaskGroup {
        resources: Some(resources),
        run: Some(v1::task_group::Run::Container(container)),
        ..Default::default()
    };
    let spec = v1::JobSpec { groups: vec![group], ..Default::default() };
    v1::Submission { name: format!("bench-{index}"), spec: Some(spec), ..Default::default() }
}

fn through_weir(runtime: &tokio::runtime::Runtime, broker: &Broker, plane: &ControlPlane) {
    let ids: Vec<u64> = runtime.block_on(async {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
        let mut ids = Vec::new();
        for index in 0..COMPARED_PODS {
            tick.tick().await;
            let request = v1::SubmitRequest {
                token: format!("bench-{index}"),
                jobs: vec![submission(index)],
                allow_pending: true,
            };
            let answer = broker.jobs().submit(request).await.expect("acknowledged").into_inner();
            ids.extend(answer.jobs.iter().map(|job| job.id));
        }
        ids
    });
    // A pod exists before the API server has written its audit record.
    let created = || audit_log(plane).keys().filter(|(name, _)| name.starts_with("weir-")).count();
    until("all pods are created", TIMEOUT, || created() >= COMPARED_PODS);
    let audit_log = audit_log(plane);
    let ms = ids.iter().map(|id| {
        let job = Some(v1::JobRef { id: *id, ..Default::default() });
        let request = v1::GetJobRequest { job, with_attempts: true };
        let answer =
            runtime.block_on(async { broker.jobs().get_job(request).await }).expect("a job").into_inner();
        let made = answer.attempts.iter().find_map(|attempt| {
            Some((attempt, audit_log.get(&(format!("weir-{}-0", attempt.id), false))?.1))
        });
        let (attempt, done) =
            made.unwrap_or_else(|| panic!("no pod of {:?} is in the audit log", answer.attempts));
        done - attempt.ordered_unix_ms as f64
    });
    print_quantiles("from a broker's decision to the pod created, bound", ms.collect());
}

fn through_scheduler(runtime: &tokio::runtime::Runtime, client: &Client, plane: &ControlPlane) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "jobs");
    runtime.block_on(async {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
        let mut calls = tokio::task::JoinSet::new();
        for index in 0..COMPARED_PODS {
            tick.tick().await;
            let pods = pods.clone();
            calls.spawn(async move {
                let pod = pod(&format!("scheduled-{index}"), None);
                pods.create(&PostParams::default(), &pod).await.expect("created");
            });
        }
        while calls.join_next().await.is_some() {}
    });
    let bound = || {
        audit_log(plane).keys().filter(|(name, binding)| *binding && name.starts_with("scheduled-")).count()
    };
    until("all pods are bound", TIMEOUT, || bound() == COMPARED_PODS);
    let audit_log = audit_log(plane);
    let ms = (0..COMPARED_PODS).map(|index| {
        let name = format!("scheduled-{index}");
        audit_log[&(name.clone(), true)].1 - audit_log[&(name, false)].1
    });
    print_quantiles("from a pod created to bound, by kube-scheduler alone", ms.collect());
}
