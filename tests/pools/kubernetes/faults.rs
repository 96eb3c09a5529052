//! An API server that is away, refuses, or has forgotten: nothing is lost and nothing is done twice.

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
use super::super::life::{Life, PATIENCE, assert_kind};
use super::super::support::kubernetes::ControlPlane;
use super::super::support::proxy::{LinkCondition, Proxy};
use super::super::support::{Process, until};
use super::{ClusterBench, played};

impl ClusterBench {
    /// A life that reaches the cluster by another kubeconfig.
    fn life_with(&self, kubeconfig: PathBuf) -> Life<Kubernetes> {
        let settings = Settings { kubeconfig: Some(kubeconfig), ..self.settings() };
        Life::begin(|clock| Kubernetes::new(settings, clock))
    }

    /// Nothing ran twice, and nothing is left once it is forgotten.
    fn done(&self, mut life: Life<Kubernetes>, launches: &[&StartRequest]) {
        for launch in launches {
            assert_eq!(self.runs(launch.order.attempt), Some(1), "{}", launch.order.attempt);
            life.forget(launch.order.attempt);
        }
        until("nothing is left", PATIENCE, || {
            self.kubectl(&["get", "pods", "-l", "weir.dev/attempt", "-o", "name"]).is_empty()
        });
        life.kill();
    }
}

/// An order that may be started for some minutes yet.
fn order(life: &Life<Kubernetes>, job: u64, command: &[&str]) -> StartRequest {
    let mut launch = life.order(job, |spec| spec.groups[0].run = played(command));
    launch.start_by = Timestamp(launch.start_by.0 + 240_000);
    launch.order.start_by = launch.start_by;
    launch
}

/// Each waits for a minute that somebody else takes: side by side they cost one.
#[test]
fn faults_that_last_a_minute() {
    let all: [fn(); 3] = [
        a_node_that_is_deleted_takes_its_tasks_with_it,
        an_api_server_that_is_away_for_a_minute_costs_nothing,
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
    let launch = life.order(1, |spec| spec.groups[0].run = played(&["hang"]));
    life.launch(&launch);
    life.until_running(launch.order.attempt);
    bench.plane.kubectl(&["delete", "node", &launch.order.tasks[0].node]);
    // The cluster waits a minute before it gives up the pods of a node that is gone.
    let outcome = life.until_ended(launch.order.attempt);
    assert_kind(&outcome, OutcomeKind::NodeLost);
    assert!(outcome.message.contains("DeletionByPodGC"), "{outcome:?}");
    life.kill();
}

fn an_api_server_that_is_away_for_a_minute_costs_nothing() {
    let test = "an_api_server_that_is_away_for_a_minute_costs_nothing";
    let Some(plane) = ControlPlane::start(test).map(Arc::new) else { return };
    let bench = ClusterBench::new(plane, "away");
    let mut life = bench.life();
    let runs = order(&life, 1, &["play", "2s", "0"]);
    life.launch(&runs);
    life.until_running(runs.order.attempt);
    let stopped = order(&life, 2, &["hang"]);
    life.launch(&stopped);
    life.until_running(stopped.order.attempt);
    bench.plane.stop_api();
    // Both are asked for while nobody answers, and done when somebody does.
    let launched = order(&life, 3, &["play", "100ms", "0"]);
    life.launch(&launched);
    life.stop(stopped.order.attempt);
    life.hear("that nobody answers", |life| !life.answered);
    std::thread::sleep(Duration::from_secs(40));
    bench.plane.start_api();
    life.hear("an answer", |life| life.answered);
    assert_kind(&life.until_ended(runs.order.attempt), OutcomeKind::Succeeded);
    assert_kind(&life.until_ended(stopped.order.attempt), OutcomeKind::Cancelled);
    assert_kind(&life.until_ended(launched.order.attempt), OutcomeKind::Succeeded);
    bench.done(life, &[&runs, &stopped, &launched]);
}

#[test]
fn what_passed_while_history_was_compacted_is_found_by_listing() {
    let test = "what_passed_while_history_was_compacted_is_found_by_listing";
    let Some(plane) = ControlPlane::start(test).map(Arc::new) else { return };
    let bench = ClusterBench::new(plane.clone(), "compacted");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let proxy = runtime.block_on(Proxy::start(plane.api_address()));
    let mut life = bench.life_with(plane.kubeconfig_at("by-proxy", proxy.address));
    let ends = order(&life, 1, &["play", "3s", "0"]);
    let removed = order(&life, 2, &["hang"]);
    for launch in [&ends, &removed] {
        life.launch(launch);
        life.until_running(launch.order.attempt);
    }
    // For `done` below: what is compacted is in nobody's record.
    assert_eq!((bench.runs(ends.order.attempt), bench.runs(removed.order.attempt)), (Some(1), Some(1)));
    let list: Value =
        serde_json::from_str(&bench.kubectl(&["get", "--raw", "/api/v1/pods"])).expect("a list");
    let seen = list["metadata"]["resourceVersion"].as_str().expect("a version");
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
    until("it has ended", PATIENCE, || {
        bench.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.phase}"]).contains("Succeeded")
    });
    plane.compact();
    // Its memory of what was goes with it.
    plane.stop_api();
    plane.start_api();
    let since = format!("/api/v1/pods?watch=1&timeoutSeconds=1&resourceVersion={seen}");
    let expired = plane.kubectl(&["get", "--raw", &since]);
    assert!(expired.contains("410"), "{expired}");
    proxy.heal(true);
    assert_kind(&life.until_ended(ends.order.attempt), OutcomeKind::Succeeded);
    assert_kind(&life.until_ended(removed.order.attempt), OutcomeKind::Vanished);
    life.hear("one node is gone, and the other has less", |life| {
        life.nodes.len() == 1 && life.nodes[0].allocatable.cpu_millis == 6_000
    });
    life.kill();
}

#[test]
fn an_api_server_that_sends_everybody_away_is_asked_again() {
    let Some(plane) = ControlPlane::shared("an_api_server_that_sends_everybody_away_is_asked_again") else {
        return;
    };
    let bench = ClusterBench::new(plane.clone(), "throttled");
    let kubeconfig = plane.account("throttled", "busy");
    let mut life = bench.life_with(kubeconfig.clone());
    // Its requests get one seat, and the one that has it waits for a webhook that never answers: the
    // others are sent away with 429 and a Retry-After until the webhook's time is over.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}/", silent.local_addr().expect("its address"));
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
    until("the webhook is asked", PATIENCE, || {
        plane.try_kubectl(&[&create[..], &["--dry-run=server", "--request-timeout=1s"]].concat()).is_err()
    });
    plane.apply(one_seat);
    let requests = |which: &str| {
        let metrics = plane.kubectl(&["get", "--raw", "/metrics"]);
        let start = format!("apiserver_flowcontrol_{which}_requests_total{{");
        let lines = metrics.lines().filter(|line| line.starts_with(&start) && line.contains("\"one-seat\""));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    until("the agent has one seat", PATIENCE, || requests("dispatched") > 0.0);
    let launch = order(&life, 1, &["play", "100ms", "0"]);
    std::thread::scope(|scope| {
        let seated = scope.spawn(|| plane.kubectl_as(&kubeconfig, &create, ""));
        until("the agent is sent away", PATIENCE, || requests("rejected") > 0.0);
        let before = requests("rejected");
        life.launch(&launch);
        until("and again", PATIENCE, || requests("rejected") > before + 1.0);
        assert_eq!(bench.runs(launch.order.attempt), Some(0));
        assert!(!seated.is_finished());
        assert_kind(&life.until_ended(launch.order.attempt), OutcomeKind::Succeeded);
        seated.join().expect("it returns").expect("it gets its turn");
    });
    bench.done(life, &[&launch]);
}

fn a_token_that_has_expired_is_read_again() {
    let Some(plane) = ControlPlane::shared("a_token_that_has_expired_is_read_again") else { return };
    let bench = ClusterBench::new(plane.clone(), "renewed");
    let kubeconfig = plane.account("renewed", "guest");
    let mut life = bench.life_with(kubeconfig.clone());
    let runs = order(&life, 1, &["play", "1s", "0"]);
    life.launch(&runs);
    life.until_running(runs.order.attempt);
    // Tokens of an account that is gone are worth nothing, as are those whose time is over.
    bench.kubectl(&["delete", "serviceaccount", "guest"]);
    until("the token is refused", PATIENCE, || {
        let answer = plane.kubectl_as(&kubeconfig, &["get", "nodes"], "");
        answer.is_err_and(|error| error.contains("Unauthorized"))
    });
    let launch = order(&life, 2, &["play", "100ms", "0"]);
    life.launch(&launch);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(bench.runs(launch.order.attempt), Some(0));
    plane.account("renewed", "guest");
    for launch in [&runs, &launch] {
        assert_kind(&life.until_ended(launch.order.attempt), OutcomeKind::Succeeded);
    }
    bench.done(life, &[&runs, &launch]);
}

#[test]
fn a_webhook_that_is_silent_is_waited_for_and_one_that_refuses_is_believed() {
    let test = "a_webhook_that_is_silent_is_waited_for_and_one_that_refuses_is_believed";
    let Some(plane) = ControlPlane::shared(test) else { return };
    let bench = ClusterBench::new(plane.clone(), "hooked");
    let mut life = bench.life();
    let server = Webhook::start(&plane);
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
    until("it is asked", PATIENCE, || {
        try_by_hand().is_err_and(|error| error.contains("failed calling webhook"))
    });
    let launch = order(&life, 1, &["hang"]);
    life.launch(&launch);
    std::thread::sleep(Duration::from_secs(3));
    assert!(!matches!(
        life.status(launch.order.attempt),
        Some(weir::model::attempt::AttemptStatus::Ended { .. })
    ));
    let answering = server.answer("no GPUs on Fridays");
    let outcome = life.until_ended(launch.order.attempt);
    assert_kind(&outcome, OutcomeKind::StartFailed);
    assert!(outcome.message.contains("no GPUs on Fridays"), "{outcome:?}");
    assert_eq!(bench.runs(launch.order.attempt), Some(0));
    plane.kubectl(&["delete", "validatingwebhookconfiguration", "refuse"]);
    drop(answering);
    life.kill();
}

/// A webhook that is asked before such objects are made in a namespace.
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

/// A server of TLS by openssl, for one connection after the other.
struct Webhook {
    port: u16,
    certificate: PathBuf,
    key: PathBuf,
}

impl Webhook {
    /// Takes a port; nobody listens there yet.
    fn start(plane: &ControlPlane) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        Self { port, certificate: plane.path("certs/apiserver.crt"), key: plane.path("certs/apiserver.key") }
    }

    /// Answers each review with a refusal, until what it returns is dropped.
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

/// The body of an HTTP request; `None` at the end.
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
