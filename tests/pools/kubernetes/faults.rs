//! Faults of the API server: outages, refusals, a compacted history. Nothing is lost and nothing is done twice.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use weir::agent::StartRequest;
use weir::model::attempt::OutcomeKind;
use weir::model::time::Timestamp;
use weir::pools::kubernetes::{Kubernetes, Settings};

use super::super::conformance::Bench;
use super::super::life::{Life, TIMEOUT, assert_kind};
use super::super::support::kubernetes::ControlPlane;
use super::super::support::proxy::{LinkCondition, Proxy};
use super::super::support::{Process, until};
use super::{ClusterBench, simulated};

impl ClusterBench {
    /// A life that reaches the cluster through another kubeconfig.
    fn life_with(&self, kubeconfig: PathBuf) -> Life<Kubernetes> {
        let settings = Settings { kubeconfig: Some(kubeconfig), ..self.settings() };
        Life::begin(|clock| Kubernetes::new(settings, clock))
    }

    /// Asserts that each attempt ran once, and that nothing is left once all are forgotten.
    fn assert_ran_once(&self, mut life: Life<Kubernetes>, starts: &[&StartRequest]) {
        for start in starts {
            assert_eq!(self.runs(start.order.attempt), Some(1), "{}", start.order.attempt);
            life.forget(start.order.attempt);
        }
        until("nothing is left", TIMEOUT, || {
            self.kubectl(&["get", "pods", "-l", "weir.dev/attempt", "-o", "name"]).is_empty()
        });
        life.kill();
    }
}

/// A start request whose start-by time is five minutes away.
fn order(life: &Life<Kubernetes>, job: u64, command: &[&str]) -> StartRequest {
    let mut start = life.order(job, |spec| spec.groups[0].run = simulated(command));
    start.start_by = Timestamp(start.start_by.0 + 240_000);
    start.order.start_by = start.start_by;
    start
}

/// Each of these tests waits about a minute for a timeout of the cluster or of the client library, so they run
/// concurrently.
#[test]
fn faults_that_last_a_minute() {
    let all: [fn(); 3] = [
        a_node_that_is_deleted_takes_its_tasks_with_it,
        an_api_servers_outage_of_a_minute_loses_nothing,
        a_token_that_has_expired_is_read_again,
    ];
    std::thread::scope(|scope| {
        for test in all {
            scope.spawn(test);
        }
    });
}

fn a_node_that_is_deleted_takes_its_tasks_with_it() {
    let Some(plane) = ControlPlane::shared("a_node_that_is_deleted_takes_its_tasks_with_it") else { return };
    let bench = ClusterBench::new(plane, "lost");
    let mut life = bench.life();
    let start = life.order(1, |spec| spec.groups[0].run = simulated(&["hang"]));
    life.start(&start);
    life.until_running(start.order.attempt);
    bench.plane.kubectl(&["delete", "node", &start.order.tasks[0].node]);
    // The cluster waits a minute before it deletes the pods of a deleted node.
    let outcome = life.until_ended(start.order.attempt);
    assert_kind(&outcome, OutcomeKind::NodeLost);
    assert!(outcome.message.contains("DeletionByPodGC"), "{outcome:?}");
    life.kill();
}

/// How long the API server stays away after the agent has noticed: longer than the lock lasts, and than a call
/// may take.
const OUTAGE: Duration = Duration::from_secs(40);

fn an_api_servers_outage_of_a_minute_loses_nothing() {
    let test = "an_api_servers_outage_of_a_minute_loses_nothing";
    let Some(plane) = ControlPlane::start(test).map(Arc::new) else { return };
    let bench = ClusterBench::new(plane, "outage");
    let mut life = bench.life();
    let runs = order(&life, 1, &["play", "2s", "0"]);
    life.start(&runs);
    life.until_running(runs.order.attempt);
    let stopped = order(&life, 2, &["hang"]);
    life.start(&stopped);
    life.until_running(stopped.order.attempt);
    bench.plane.stop_api();
    // A start and a stop are ordered during the outage, and carried out after it.
    let started = order(&life, 3, &["play", "100ms", "0"]);
    life.start(&started);
    life.stop(stopped.order.attempt);
    life.wait_for("the outage is reported", |life| !life.answered);
    // The length of the fault, not a wait for a condition.
    std::thread::sleep(OUTAGE);
    bench.plane.start_api();
    life.wait_for("the end of the outage is reported", |life| life.answered);
    assert_kind(&life.until_ended(runs.order.attempt), OutcomeKind::Succeeded);
    assert_kind(&life.until_ended(stopped.order.attempt), OutcomeKind::Cancelled);
    assert_kind(&life.until_ended(started.order.attempt), OutcomeKind::Succeeded);
    bench.assert_ran_once(life, &[&runs, &stopped, &started]);
}

#[test]
fn changes_in_a_compacted_history_are_found_by_listing() {
    let test = "changes_in_a_compacted_history_are_found_by_listing";
    let Some(plane) = ControlPlane::start(test).map(Arc::new) else { return };
    let bench = ClusterBench::new(plane.clone(), "compacted");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let proxy = runtime.block_on(Proxy::start(plane.api_address()));
    let mut life = bench.life_with(plane.kubeconfig_at("by-proxy", proxy.address));
    let ends = order(&life, 1, &["play", "3s", "0"]);
    let removed = order(&life, 2, &["hang"]);
    for start in [&ends, &removed] {
        life.start(start);
        life.until_running(start.order.attempt);
    }
    // Counted now: the counts come from etcd's history, which is compacted below.
    assert_eq!((bench.runs(ends.order.attempt), bench.runs(removed.order.attempt)), (Some(1), Some(1)));
    let list: Value =
        serde_json::from_str(&bench.kubectl(&["get", "--raw", "/api/v1/pods"])).expect("a list");
    let listed_version = list["metadata"]["resourceVersion"].as_str().expect("a version");
    proxy.set(LinkCondition::Cut { up: true, down: true });
    bench.kubectl(&[
        "delete",
        "pod",
        &format!("weir-{}-0", removed.order.attempt),
        "--force",
        "--grace-period=0",
    ]);
    bench.plane.kubectl(&["delete", "node", "compacted-1"]);
    bench.plane.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: compacted}\n\
         spec: {nodeName: compacted-0, containers: [{name: c, image: i, command: [hang], resources: {requests: {cpu: 2}}}]}\n",
    );
    until("it has ended", TIMEOUT, || {
        bench.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.phase}"]).contains("Succeeded")
    });
    plane.compact();
    // The restart clears the API server's watch cache, which would still serve the history.
    plane.stop_api();
    plane.start_api();
    let since = format!("/api/v1/pods?watch=1&timeoutSeconds=1&resourceVersion={listed_version}");
    let expired = plane.kubectl(&["get", "--raw", &since]);
    assert!(expired.contains("410"), "{expired}");
    proxy.heal(true);
    assert_kind(&life.until_ended(ends.order.attempt), OutcomeKind::Succeeded);
    assert_kind(&life.until_ended(removed.order.attempt), OutcomeKind::Vanished);
    life.wait_for("one node is removed, and the other has less capacity", |life| {
        life.nodes.len() == 1 && life.nodes[0].allocatable.cpu_millis == 6_000
    });
    life.kill();
}

#[test]
fn a_throttled_request_is_repeated() {
    let Some(plane) = ControlPlane::shared("a_throttled_request_is_repeated") else {
        return;
    };
    let bench = ClusterBench::new(plane.clone(), "throttled");
    let kubeconfig = plane.account("throttled", "busy");
    let mut life = bench.life_with(kubeconfig.clone());
    // The account's requests share one seat, and the request that has it waits for a webhook that never answers.
    // The others get 429 with a Retry-After until the webhook times out.
    let unresponsive = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}/", unresponsive.local_addr().expect("its address"));
    let one_seat = r#"
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: {name: one-seat}
spec: {type: Limited, limited: {nominalConcurrencyShares: 0, borrowingLimitPercent: 0, limitResponse: {type: Reject}}}
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: {name: one-seat}
spec:
  matchingPrecedence: 10
  priorityLevelConfiguration: {name: one-seat}
  rules:
  - subjects: [{kind: ServiceAccount, serviceAccount: {name: busy, namespace: throttled}}]
    resourceRules: [{apiGroups: ["*"], resources: ["*"], verbs: ["*"], namespaces: ["*"], clusterScope: true}]
"#;
    let slow = webhook("slow", "configmaps", &json!({ "url": url }), "throttled", "Ignore", 30);
    plane.apply(&slow.to_string());
    let create = ["-n", "throttled", "create", "configmap", "slow"];
    until("the webhook is called", TIMEOUT, || {
        plane.try_kubectl(&[&create[..], &["--dry-run=server", "--request-timeout=1s"]].concat()).is_err()
    });
    plane.apply(one_seat);
    let requests =
        |which: &str| metric(&plane, &format!("apiserver_flowcontrol_{which}_requests_total"), "one-seat");
    until("the agent has one seat", TIMEOUT, || requests("dispatched") > 0.0);
    let start = order(&life, 1, &["play", "100ms", "0"]);
    std::thread::scope(|scope| {
        let seated = scope.spawn(|| plane.kubectl_as(&kubeconfig, &create, ""));
        until("a request of the agent is rejected", TIMEOUT, || requests("rejected") > 0.0);
        let before = requests("rejected");
        life.start(&start);
        until("it is rejected again", TIMEOUT, || requests("rejected") > before + 1.0);
        assert_eq!(bench.runs(start.order.attempt), Some(0));
        assert!(!seated.is_finished());
        assert_kind(&life.until_ended(start.order.attempt), OutcomeKind::Succeeded);
        seated.join().expect("it returns").expect("it is created once the webhook has timed out");
    });
    bench.assert_ran_once(life, &[&start]);
}

fn a_token_that_has_expired_is_read_again() {
    let Some(plane) = ControlPlane::shared("a_token_that_has_expired_is_read_again") else { return };
    let bench = ClusterBench::new(plane.clone(), "renewed");
    let kubeconfig = plane.account("renewed", "guest");
    let mut life = bench.life_with(kubeconfig.clone());
    let runs = order(&life, 1, &["play", "1s", "0"]);
    life.start(&runs);
    life.until_running(runs.order.attempt);
    // A deleted account's tokens are invalid, like expired ones.
    bench.kubectl(&["delete", "serviceaccount", "guest"]);
    until("the token is refused", TIMEOUT, || {
        let answer = plane.kubectl_as(&kubeconfig, &["get", "nodes"], "");
        answer.is_err_and(|error| error.contains("Unauthorized"))
    });
    let start = order(&life, 2, &["play", "100ms", "0"]);
    life.start(&start);
    life.wait_for("its calls are refused", |life| !life.answered);
    assert_eq!(bench.runs(start.order.attempt), Some(0));
    plane.account("renewed", "guest");
    for start in [&runs, &start] {
        assert_kind(&life.until_ended(start.order.attempt), OutcomeKind::Succeeded);
    }
    bench.assert_ran_once(life, &[&runs, &start]);
}

/// An API server that has just started also refuses this way, until it has read its roles.
#[test]
fn a_missing_permission_is_waited_for() {
    let parts = ["audit", "kube-controller-manager", "kube-scheduler", "kwok"];
    let plane = ControlPlane::start_with("a_missing_permission_is_waited_for", &parts);
    let Some(plane) = plane.map(Arc::new) else { return };
    let bench = ClusterBench::new(plane.clone(), "granted");
    let kubeconfig = plane.account("granted", "late");
    let mut life = bench.life_with(kubeconfig.clone());
    let stopped = order(&life, 1, &["hang"]);
    life.start(&stopped);
    life.until_running(stopped.order.attempt);
    plane.kubectl(&["delete", "clusterrolebinding", "late"]);
    until("the account has no permissions", TIMEOUT, || {
        let answer = plane.kubectl_as(&kubeconfig, &["get", "nodes"], "");
        answer.is_err_and(|error| error.contains("cannot list resource"))
    });
    let denials = || {
        let log = std::fs::read_to_string(plane.path("audit.log")).expect("an audit log");
        log.lines()
            .filter(|line| line.contains(r#""responseStatus":{"#) && line.contains(r#""code":403"#))
            .count()
    };
    let before = denials();
    let started = order(&life, 2, &["play", "100ms", "0"]);
    life.start(&started);
    life.stop(stopped.order.attempt);
    until("the creation is denied twice", TIMEOUT, || denials() >= before + 2);
    plane.account("granted", "late");
    assert_kind(&life.until_ended(started.order.attempt), OutcomeKind::Succeeded);
    assert_kind(&life.until_ended(stopped.order.attempt), OutcomeKind::Cancelled);
    bench.assert_ran_once(life, &[&stopped, &started]);
}

#[test]
fn an_unreachable_webhook_is_retried_and_a_refusal_is_final() {
    let test = "an_unreachable_webhook_is_retried_and_a_refusal_is_final";
    let Some(plane) = ControlPlane::shared(test) else { return };
    let bench = ClusterBench::new(plane.clone(), "hooked");
    let mut life = bench.life();
    let server = Webhook::new(&plane);
    let authority = std::fs::read(plane.path("certs/apiserver.crt")).expect("a certificate");
    let client = json!({
        "url": format!("https://127.0.0.1:{}/", server.port),
        "caBundle": ByteString(authority),
    });
    let refuse = webhook("refuse", "pods", &client, "hooked", "Fail", 1);
    plane.apply(&refuse.to_string());
    let try_by_hand = || {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {generateName: by-hand-, namespace: hooked}\n\
                   spec: {containers: [{name: c, image: i, command: [hang]}]}\n";
        plane.kubectl_as(&plane.kubeconfig(), &["create", "--dry-run=server", "-f", "-"], pod)
    };
    until("the webhook is called", TIMEOUT, || {
        try_by_hand().is_err_and(|error| error.contains("failed calling webhook"))
    });
    let failed_calls = || metric(&plane, "apiserver_admission_webhook_rejection_count", "refuse.weir.test");
    let before = failed_calls();
    let start = order(&life, 1, &["hang"]);
    life.start(&start);
    until("the agent's creation fails twice", TIMEOUT, || failed_calls() >= before + 2.0);
    assert!(!matches!(
        life.status(start.order.attempt),
        Some(weir::model::attempt::AttemptStatus::Ended { .. })
    ));
    let answering = server.answer("no GPUs on Fridays");
    let outcome = life.until_ended(start.order.attempt);
    assert_kind(&outcome, OutcomeKind::StartFailed);
    assert!(outcome.message.contains("no GPUs on Fridays"), "{outcome:?}");
    assert_eq!(bench.runs(start.order.attempt), Some(0));
    plane.kubectl(&["delete", "validatingwebhookconfiguration", "refuse"]);
    drop(answering);
    life.kill();
}

/// The sum of an API server's metric over all series that have a label of this value.
fn metric(plane: &ControlPlane, name: &str, label: &str) -> f64 {
    let metrics = plane.kubectl(&["get", "--raw", "/metrics"]);
    let (start, label) = (format!("{name}{{"), format!("\"{label}\""));
    let series = metrics.lines().filter(|line| line.starts_with(&start) && line.contains(&label));
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Configuration of a webhook that is called before objects of a resource are created in a namespace.
fn webhook(
    name: &str,
    resource: &str,
    client: &Value,
    namespace: &str,
    failing: &str,
    timeout_s: u32,
) -> Value {
    let rule = json!({ "apiGroups": [""], "apiVersions": ["v1"], "resources": [resource], "operations": ["CREATE"] });
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": name },
        "webhooks": [{
            "name": format!("{name}.weir.test"),
            "clientConfig": client,
            "rules": [rule],
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
            "failurePolicy": failing,
            "timeoutSeconds": timeout_s,
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }],
    })
}

/// A webhook's TLS server: `openssl s_server`, which serves one connection at a time.
struct Webhook {
    port: u16,
    certificate: PathBuf,
    key: PathBuf,
}

impl Webhook {
    /// Chooses a port. Nothing listens there before `answer`.
    fn new(plane: &ControlPlane) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        Self { port, certificate: plane.path("certs/apiserver.crt"), key: plane.path("certs/apiserver.key") }
    }

    /// Answers each review with a refusal, until the returned process is dropped.
    fn answer(&self, why: &'static str) -> Process {
        let mut command = Command::new("openssl");
        command.args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{}", self.port), "-cert"]);
        command.arg(&self.certificate).arg("-key").arg(&self.key);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = command.spawn().expect("openssl");
        let mut input = server.stdin.take().expect("its input");
        let mut output = std::io::BufReader::new(server.stdout.take().expect("its output"));
        std::thread::spawn(move || {
            while let Some(review) = read_body(&mut output) {
                let answer = json!({
                    "apiVersion": "admission.k8s.io/v1",
                    "kind": "AdmissionReview",
                    "response": {
                        "uid": review["request"]["uid"],
                        "allowed": false,
                        "status": { "code": 403, "message": why },
                    },
                })
                .to_string();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
                let text = format!("{head}Content-Length: {}\r\n\r\n{answer}", answer.len());
                if input.write_all(text.as_bytes()).is_err() {
                    return;
                }
            }
        });
        Process(server)
    }
}

/// Reads the body of an HTTP request; `None` at the end of the input.
fn read_body(input: &mut impl BufRead) -> Option<Value> {
    let (mut length, mut line) = (0, String::new());
    loop {
        line.clear();
        if input.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let header = line.trim_end().to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        } else if header.is_empty() && length > 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    Some(serde_json::from_slice(&body).expect("a review"))
}
