//! The Kubernetes backend, against a real control plane. kwok simulates the kubelets.

mod faults;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir::clock::Clock;
use weir::model::attempt::OutcomeKind;
use weir::model::id::AttemptId;
use weir::model::region::RegionCode;
use weir::model::spec::{Program, Run};
use weir::model::time::Timestamp;
use weir::pools::kubernetes::{Binding, Kubernetes, LOG_MAX_BYTES, Settings};
use weir::pools::{PoolBackend, Stream};

use super::conformance::{self, Bench};
use super::life::{Life, TIMEOUT, assert_kind};
use super::support::kubernetes::ControlPlane;
use super::support::until;

struct ClusterBench {
    plane: Arc<ControlPlane>,
    pool: &'static str,
    state: tempfile::TempDir,
    binding: Binding,
}

impl ClusterBench {
    fn new(plane: Arc<ControlPlane>, pool: &'static str) -> Self {
        plane.make_pool(pool, 2, r#"cpu: "8", memory: 32Gi, "nvidia.com/gpu": "4""#);
        let state = tempfile::Builder::new().prefix("weir").tempdir_in("/tmp").expect("a temp folder");
        Self { plane, pool, state, binding: Binding::Direct }
    }

    fn settings(&self) -> Settings {
        Settings {
            pool: self.pool.to_owned(),
            region: RegionCode::default(),
            state: self.state.path().to_owned(),
            holder: "agent".to_owned(),
            kubeconfig: Some(self.plane.kubeconfig()),
            context: None,
            namespace: self.pool.to_owned(),
            queues: BTreeMap::new(),
            nodes: format!("pool={}", self.pool),
            binding: self.binding.clone(),
            process_image: None,
            service_account: None,
            image_pull_secrets: Vec::new(),
            start_timeout_ms: 2_000,
            devices: BTreeMap::from([("nvidia.com/gpu".to_owned(), "A10".to_owned())]),
            log_max_bytes: LOG_MAX_BYTES,
        }
    }

    fn life(&self) -> Life<Kubernetes> {
        Life::begin(|clock| self.backend(clock))
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.plane.kubectl(&[&["-n", self.pool], arguments].concat())
    }
}

fn simulated(command: &[&str]) -> Run {
    let command = command.iter().map(|part| (*part).to_owned()).collect();
    Run::Container { image: "simulated".to_owned(), program: Program { command, ..Program::default() } }
}

impl Bench for ClusterBench {
    type Backend = Kubernetes;

    fn backend(&self, clock: Clock) -> Kubernetes {
        Kubernetes::new(self.settings(), clock)
    }

    fn run(&self, ms: u64, code: u8) -> Run {
        if ms > 60_000 {
            simulated(&["hang"])
        } else {
            simulated(&["play", &format!("{ms}ms"), &code.to_string()])
        }
    }

    /// Each created pod is one run.
    fn runs(&self, attempt: AttemptId) -> Option<usize> {
        let of_attempt = format!("weir-{attempt}-");
        Some(self.plane.created_pods(self.pool).iter().filter(|name| name.starts_with(&of_attempt)).count())
    }

    fn unstartable(&self) -> Option<Run> {
        Some(simulated(&["refuse"]))
    }
}

#[test]
fn a_cluster_conforms() {
    let Some(plane) = ControlPlane::shared("a_cluster_conforms") else { return };
    conformance::run_all(&ClusterBench::new(plane, "conforms"));
}

#[test]
fn a_cluster_conforms_where_its_scheduler_binds() {
    let Some(plane) = ControlPlane::shared("a_cluster_conforms_where_its_scheduler_binds") else { return };
    let mut bench = ClusterBench::new(plane, "scheduled");
    bench.binding = Binding::Scheduler("default-scheduler".to_owned());
    conformance::run_all(&bench);
}

#[test]
fn capacity_that_other_pods_hold_is_not_offered() {
    let Some(plane) = ControlPlane::shared("capacity_that_other_pods_hold_is_not_offered") else { return };
    let bench = ClusterBench::new(plane, "shared");
    let mut life = bench.life();
    let free = |life: &Life<Kubernetes>| {
        let node = life.nodes.iter().find(|node| node.name == "shared-0").expect("the node");
        let healthy = node.devices.iter().filter(|device| device.healthy).count();
        (node.allocatable.cpu_millis, healthy, node.cordoned)
    };
    assert_eq!(free(&life), (8_000, 4, false));
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shared}
spec:
  nodeName: shared-0
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: i, command: [hang], resources: {requests: {cpu: 2500m}, limits: {"nvidia.com/gpu": 1}}}
"#;
    bench.plane.apply(pod);
    life.wait_for("another pod is counted", |life| free(life) == (5_500, 3, false));
    bench.kubectl(&["delete", "pod", "other", "--wait=false"]);
    life.wait_for("its resources are free again", |life| free(life) == (8_000, 4, false));
    // A pod that has the pool's label but was created by hand is load.
    let copy = pod.replace("name: other, ", "name: copy, labels: {weir.dev/pool: shared}, ");
    bench.plane.apply(&copy);
    life.wait_for("a copy is counted", |life| free(life) == (5_500, 3, false));
    life.kill();
    let mut life = bench.life();
    life.wait_for("a new agent counts it, too", |life| free(life) == (5_500, 3, false));
    bench.kubectl(&["delete", "pod", "copy", "--wait=false"]);
    life.wait_for("its resources are free again", |life| free(life) == (8_000, 4, false));
    bench.plane.kubectl(&["cordon", "shared-0"]);
    life.wait_for("a cordon is reported", |life| free(life).2);
    bench.plane.kubectl(&["uncordon", "shared-0"]);
    life.wait_for("it is open again", |life| !free(life).2);
    let ready = |status: &str| {
        let conditions =
            format!(r#"{{"status": {{"conditions": [{{"type": "Ready", "status": "{status}"}}]}}}}"#);
        bench.plane.kubectl(&["patch", "node", "shared-0", "--subresource=status", "-p", &conditions]);
    };
    bench.plane.kubectl(&["annotate", "node", "shared-0", "weir.test/not-ready=true"]);
    ready("Unknown");
    life.wait_for("a node that is not ready is closed", |life| free(life).2);
    bench.plane.kubectl(&["annotate", "node", "shared-0", "weir.test/not-ready-"]);
    life.wait_for("one that is ready again is open", |life| !free(life).2);
    let shrunk = r#"{"status": {"allocatable": {"cpu": "3", "nvidia.com/gpu": "2"}}}"#;
    bench.plane.kubectl(&["patch", "node", "shared-0", "--subresource=status", "-p", shrunk]);
    life.wait_for("a smaller node is reported", |life| free(life) == (3_000, 2, false));
    bench.plane.kubectl(&["delete", "node", "shared-1"]);
    life.wait_for("a deleted node is reported", |life| life.nodes.len() == 1);
    life.kill();
}

#[test]
fn resources_that_a_cluster_adds_to_a_pod_are_not_offered() {
    let Some(plane) = ControlPlane::shared("resources_that_a_cluster_adds_to_a_pod_are_not_offered") else {
        return;
    };
    let bench = ClusterBench::new(plane, "added");
    // As with pods in virtual machines: admission adds the virtual machine's own overhead.
    let class = "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: added}\nhandler: added\n\
                 overhead: {podFixed: {cpu: 250m}}\n";
    bench.plane.apply(class);
    let mut life = bench.life();
    let cpus = |life: &Life<Kubernetes>| {
        let mut cpus: Vec<u64> = life.nodes.iter().map(|node| node.allocatable.cpu_millis).collect();
        cpus.sort_unstable();
        cpus
    };
    let text = r#"{"runtimeClassName": "added", "containers": [{"name": "task", "image": "i", "command": ["hang"]}]}"#;
    let start = life.order(1, |spec| spec.groups[0].run = Run::Pod { spec: text.to_owned() });
    life.start(&start);
    life.until_running(start.order.attempt);
    life.wait_for("the overhead is taken off the node", |life| cpus(life) == [7_750, 8_000]);
    life.kill();
    let mut life = bench.life();
    life.until_running(start.order.attempt);
    life.wait_for("a new agent counts it, too", |life| cpus(life) == [7_750, 8_000]);
    life.stop(start.order.attempt);
    life.until_ended(start.order.attempt);
    life.wait_for("it is free again", |life| cpus(life) == [8_000, 8_000]);
    life.kill();
}

#[test]
fn each_external_end_has_its_outcome() {
    let Some(plane) = ControlPlane::shared("each_external_end_has_its_outcome") else { return };
    let bench = ClusterBench::new(plane, "ends");
    let mut life = bench.life();
    let start = |life: &mut Life<Kubernetes>, job: u64, command: &[&str]| {
        let start = life.order(job, |spec| spec.groups[0].run = simulated(command));
        life.start(&start);
        (start.order.attempt, format!("weir-{}-0", start.order.attempt))
    };
    let (deleted, pod) = start(&mut life, 1, &["hang"]);
    life.until_running(deleted);
    bench.kubectl(&["delete", "pod", &pod, "--wait=false"]);
    assert_kind(&life.until_ended(deleted), OutcomeKind::Drained);
    let (forced, pod) = start(&mut life, 2, &["hang"]);
    life.until_running(forced);
    bench.kubectl(&["delete", "pod", &pod, "--force", "--grace-period=0"]);
    assert_kind(&life.until_ended(forced), OutcomeKind::Vanished);
    let (evicted, pod) = start(&mut life, 3, &["hang"]);
    life.until_running(evicted);
    let eviction = format!(
        r#"{{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {{"name": "{pod}", "namespace": "ends"}}}}"#
    );
    let path = format!("/api/v1/namespaces/ends/pods/{pod}/eviction");
    let done =
        bench.plane.kubectl_as(&bench.plane.kubeconfig(), &["create", "--raw", &path, "-f", "-"], &eviction);
    done.expect("evicted");
    let outcome = life.until_ended(evicted);
    assert_kind(&outcome, OutcomeKind::Drained);
    assert!(outcome.message.contains("EvictionByEvictionAPI"), "{outcome:?}");
    let (oom, _) = start(&mut life, 4, &["play", "100ms", "137"]);
    assert_kind(&life.until_ended(oom), OutcomeKind::OutOfMemory);
    let (pull, _) = start(&mut life, 5, &["pull"]);
    let outcome = life.until_ended(pull);
    assert_kind(&outcome, OutcomeKind::StartFailed);
    assert!(outcome.message.contains("ImagePullBackOff"), "{outcome:?}");
    life.kill();
}

#[test]
fn a_start_beyond_a_nodes_pod_limit_is_rejected_and_closes_the_node() {
    let Some(plane) =
        ControlPlane::shared("a_start_beyond_a_nodes_pod_limit_is_rejected_and_closes_the_node")
    else {
        return;
    };
    let bench = ClusterBench::new(plane, "limited");
    let few = r#"{"status": {"allocatable": {"pods": "2"}}}"#;
    bench.plane.kubectl(&["patch", "node", "limited-0", "--subresource=status", "-p", few]);
    let mut life = bench.life();
    let closed = |life: &Life<Kubernetes>| {
        life.nodes.iter().filter(|node| node.cordoned).map(|node| node.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(closed(&life), [""; 0]);
    // One planning round may start more pods on a node than its limit allows.
    let starts: Vec<_> = (1..=3)
        .map(|job| {
            let start = life.order(job, |spec| spec.groups[0].run = simulated(&["hang"]));
            life.start(&start);
            start.order.attempt
        })
        .collect();
    let outcome = life.until_ended(starts[2]);
    assert_kind(&outcome, OutcomeKind::NotStarted);
    assert_eq!(closed(&life), ["limited-0"], "the closed node is reported before the rejection");
    assert_eq!(bench.runs(starts[2]), Some(0));
    starts[..2].iter().for_each(|attempt| life.until_running(*attempt));
    // The same if only its kubelet detects the lack of capacity.
    let mut start = life.order(4, |spec| spec.groups[0].run = simulated(&["out-of-pods"]));
    start.order.tasks[0].node = "limited-1".to_owned();
    life.start(&start);
    let outcome = life.until_ended(start.order.attempt);
    assert_kind(&outcome, OutcomeKind::NotStarted);
    assert!(outcome.message.contains("OutOfpods"), "{outcome:?}");
    assert_eq!(closed(&life).len(), 2);
    life.kill();
}

#[test]
fn a_task_ends_with_its_main_container_and_its_helpers_are_stopped() {
    let test = "a_task_ends_with_its_main_container_and_its_helpers_are_stopped";
    let Some(plane) = ControlPlane::shared(test) else { return };
    let bench = ClusterBench::new(plane, "helpers");
    let mut life = bench.life();
    for (job, code, kind) in [(1, "0", OutcomeKind::Succeeded), (2, "3", OutcomeKind::Failed)] {
        let text = format!(
            r#"{{"containers": [{{"name": "task", "image": "i", "command": ["linger", "{code}"]}},
            {{"name": "helper", "image": "i", "resources": {{"requests": {{"cpu": "10m"}}}}}}]}}"#
        );
        let start = life.order(job, |spec| spec.groups[0].run = Run::Pod { spec: text });
        life.start(&start);
        let outcome = life.until_ended(start.order.attempt);
        assert_kind(&outcome, kind);
        assert_eq!(outcome.exit_code.map(|code| code.to_string()).as_deref(), Some(code));
    }
    life.kill();
}

#[test]
fn a_gangs_missing_service_is_created_by_the_next_agent() {
    let test = "a_gangs_missing_service_is_created_by_the_next_agent";
    let Some(plane) = ControlPlane::shared(test) else { return };
    let bench = ClusterBench::new(plane, "named");
    let mut life = bench.life();
    let start = life.order(1, |spec| {
        spec.groups[0].run = simulated(&["hang"]);
        spec.groups[0].gang = true;
        spec.groups[0].count = 2;
    });
    life.start(&start);
    life.until_running(start.order.attempt);
    let services = || bench.kubectl(&["get", "services", "-o", "name"]);
    until("it has a service", TIMEOUT, || !services().is_empty());
    life.kill();
    bench.kubectl(&["delete", "services", "--all"]);
    let life = bench.life();
    until("it has one again", TIMEOUT, || !services().is_empty());
    life.kill();
}

#[test]
fn pods_of_another_broker_are_not_ended() {
    let Some(plane) = ControlPlane::shared("pods_of_another_broker_are_not_ended") else { return };
    let bench = ClusterBench::new(plane, "others");
    // Half of a gang, as if its agent were still creating it. Of its own gangs, an agent ends such a half.
    let pod = |journal: &str| {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "weir-{journal}-1-0-1-0", "namespace": "others",
            "labels": {{"weir.dev/pool": "others", "weir.dev/attempt": "{journal}-1-0-1", "weir.dev/rank": "0"}},
            "annotations": {{"weir.dev/tasks": "2", "weir.dev/start-by": "99999999999999"}}}},
            "spec": {{"nodeName": "others-0", "restartPolicy": "Never", "containers": [{{"name": "task", "image": "i", "command": ["hang"]}}]}}}}"#
        )
    };
    let probe = bench.life();
    let own = probe.order(1, |_| {}).order.attempt.journal;
    probe.kill();
    let other = weir::model::id::JournalId::from_random(77);
    bench.plane.apply(&pod(&own.to_string()));
    bench.plane.apply(&pod(&other.to_string()));
    let phases = || bench.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.phase}"]);
    until("both run", TIMEOUT, || phases() == "Running Running");
    let mut life = bench.life();
    until("its own is ended", TIMEOUT, || phases().contains("Failed"));
    // A later attempt runs to its end: by then a stop of the other pod would have taken effect.
    let later = life.order(2, |spec| spec.groups[0].run = simulated(&["play", "100ms", "0"]));
    life.start(&later);
    assert_kind(&life.until_ended(later.order.attempt), OutcomeKind::Succeeded);
    let left =
        bench.kubectl(&["get", "pod", &format!("weir-{other}-1-0-1-0"), "-o", "jsonpath={.status.phase}"]);
    assert_eq!(left, "Running");
    life.kill();
}

#[test]
fn a_refused_gang_fails_at_once_with_the_clusters_message() {
    let Some(plane) = ControlPlane::shared("a_refused_gang_fails_at_once_with_the_clusters_message") else {
        return;
    };
    let bench = ClusterBench::new(plane, "refuses");
    let quota = "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: q, namespace: refuses}\nspec: {hard: {pods: \"1\"}}\n";
    bench.plane.apply(quota);
    until("the quota is counted", TIMEOUT, || {
        bench.kubectl(&["get", "resourcequota", "q", "-o", "jsonpath={.status.hard.pods}"]) == "1"
    });
    let mut life = bench.life();
    // A gang of two where the quota allows one pod: the pod that was created is removed.
    let gang = life.order(1, |spec| {
        spec.groups[0].run = simulated(&["hang"]);
        spec.groups[0].gang = true;
        spec.groups[0].count = 2;
    });
    life.start(&gang);
    let outcome = life.until_ended(gang.order.attempt);
    assert_kind(&outcome, OutcomeKind::StartFailed);
    assert!(outcome.message.contains("exceeded quota"), "{outcome:?}");
    life.forget(gang.order.attempt);
    until("nothing is left", TIMEOUT, || bench.kubectl(&["get", "pods,services", "-o", "name"]).is_empty());
    life.kill();
}

#[test]
fn one_agent_holds_a_pools_lock() {
    let Some(plane) = ControlPlane::shared("one_agent_holds_a_pools_lock") else { return };
    let bench = ClusterBench::new(plane, "locked");
    let mut first = bench.life();
    let second = std::thread::scope(|scope| {
        let other = || {
            Life::begin(|clock| {
                Kubernetes::new(Settings { holder: "another".to_owned(), ..bench.settings() }, clock)
            })
        };
        let began = std::time::Instant::now();
        let second = scope.spawn(other);
        let renewed_at =
            || bench.kubectl(&["get", "lease", "weir-agent-locked", "-o", "jsonpath={.spec.renewTime}"]);
        let before = renewed_at();
        until("the first one renews its lease", TIMEOUT, || renewed_at() != before);
        assert!(!second.is_finished(), "the first one holds the lock");
        // A killed agent does not release the lock: the lease must expire.
        let runtime_ends = std::mem::replace(&mut first.gone, true);
        assert!(!runtime_ends);
        first.kill();
        let second = second.join().expect("it acquires the lock");
        assert!(began.elapsed() > Duration::from_secs(15), "not before the lease has expired");
        second
    });
    second.kill();
}

#[test]
fn output_is_streamed_and_outlives_its_pod() {
    let Some(plane) = ControlPlane::shared("output_is_streamed_and_outlives_its_pod") else { return };
    let bench = ClusterBench::new(plane, "logs");
    let write = |second: u32, text: &str| {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.append(true).create(true).open(bench.plane.task_log()).expect("the log");
        let line = format!("2026-01-01T00:00:{second:02}Z stdout F {text}\n");
        std::io::Write::write_all(&mut file, line.as_bytes()).expect("written");
    };
    write(0, "first");
    let mut life = bench.life();
    let start = life.order(1, |spec| spec.groups[0].run = simulated(&["hang"]));
    let attempt = start.order.attempt;
    life.start(&start);
    life.until_running(attempt);
    let reader = |life: &mut Life<Kubernetes>| {
        let mut logs = None;
        life.call(|backend| logs = Some(backend.logs()));
        let logs = logs.expect("a reader");
        move |offset: u64| logs.read(attempt, 0, Stream::Stdout, offset, 1 << 16).expect("output")
    };
    let read = reader(&mut life);
    until("the first line is there", TIMEOUT, || read(0).data == b"first\n");
    write(0, "second");
    until("appended output is streamed", TIMEOUT, || read(6).data == b"second\n");
    assert!(!read(0).complete);
    // While no agent runs, the node rotates the log away.
    life.kill();
    std::fs::rename(bench.plane.task_log(), bench.plane.path("task.log.1")).expect("rotated");
    write(40, "third");
    let mut life = bench.life();
    life.until_running(attempt);
    let read = reader(&mut life);
    until("reading continues at the same offset", TIMEOUT, || read(13).data == b"third\n");
    life.stop(attempt);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Cancelled);
    write(59, "fourth");
    until("all of it is stored", TIMEOUT, || read(0).complete);
    let whole = read(0).data;
    assert!(whole.starts_with(b"first\nsecond\nthird\n"), "{:?}", String::from_utf8_lossy(&whole));
    life.forget(attempt);
    until("the pod is gone", TIMEOUT, || bench.kubectl(&["get", "pods", "-o", "name"]).is_empty());
    life.kill();
    let mut life = bench.life();
    life.call(|backend| {
        let part = backend.logs().read(attempt, 0, Stream::Stdout, 0, 1 << 16).expect("still stored");
        assert_eq!((part.data, part.complete), (whole, true));
        let times = backend.logs().times(attempt, 0, Stream::Stdout).expect("readable").expect("stored");
        let pieces = times.within(0..19).expect("times");
        let pieces: Vec<(u64, u64)> = pieces.iter().map(|piece| (piece.end, piece.at.0)).collect();
        // 2026-01-01T00:00:00Z.
        let begin = 1_767_225_600_000;
        assert_eq!(pieces, [(13, begin), (19, begin + 40_000)]);
        assert_eq!(times.since(Timestamp(begin + 1_000), 26).expect("an offset"), 13);
    });
    life.kill();
}
