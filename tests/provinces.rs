//! One broker, three provinces: a real Kubernetes cluster, this host, and a simulated pool. Everything
//! is killed in turn, and every job's effect is there once.
//!
//! The cluster's agent has the rights that `manifests/` ship, and no more.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use support::kubernetes::ControlPlane;
use support::{Home, Process, until};

const PATIENCE: Duration = Duration::from_secs(240);
/// In each province.
const JOBS: usize = 100;

/// The objects that ship, in the cluster; and a token of the agent's own account.
fn give_rights(plane: &ControlPlane) -> PathBuf {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests");
    plane.kubectl(&["apply", "-f", &format!("{manifests}/namespaces.yaml")]);
    plane.kubectl(&["apply", "-k", &format!("{manifests}/agent")]);
    let token = plane.kubectl(&["-n", "weir", "create", "token", "weir-agent", "--duration=2h"]);
    plane.kubeconfig_with("agent.kubeconfig", token.trim())
}

/// The cluster's agent, by its file.
fn describe_cluster(home: &Home, plane: &ControlPlane) -> PathBuf {
    let kubeconfig = give_rights(plane);
    let (file, state, token) =
        (home.path().join("cluster.toml"), home.path().join("cluster"), home.data().join("token"));
    let text = format!(
        "name = \"cluster\"\nregion = \"CN-GZ\"\nserver = \"{}\"\ntoken_file = {token:?}\nstate = {state:?}\n\
         [kubernetes]\nkubeconfig = {kubeconfig:?}\nnamespace = \"weir-jobs\"\n",
        home.address
    );
    std::fs::write(&file, text).expect("the agent's file");
    file
}

fn start(home: &Home, file: &std::path::Path) -> Process {
    home.start(&["agent", file.to_str().expect("a plain path")])
}

fn describe_simulated(home: &Home) -> PathBuf {
    let (file, state, token) =
        (home.path().join("sim.toml"), home.path().join("sim"), home.data().join("token"));
    let text = format!(
        "name = \"sim\"\nregion = \"CN-XJ\"\nserver = \"{}\"\ntoken_file = {token:?}\nstate = {state:?}\n\
         [simulated]\nnodes = [{{count = 4, prefix = \"npu\", cpus = 16, memory_gib = 64, device = \"Ascend910B3\", devices = 8}}]\n",
        home.address
    );
    std::fs::write(&file, text).expect("the agent's file");
    file
}

/// Jobs that only one province each can take, by region, by device, or by what they are.
fn jobs(ran: &std::path::Path) -> String {
    let mut text = String::new();
    for index in 0..JOBS {
        let script = format!("echo $WEIR_JOB >> {}; sleep 0.2", ran.display());
        text += &format!(
            "---\nname: here-{index}\nconstraints: {{regions: [CN-CQ], real_only: true}}\ngroups:\n- {{cpus: 1, memory: 32Mi, command: [sh, -c, '{script}']}}\n\
             ---\nname: there-{index}\nconstraints: {{regions: [CN-GZ]}}\ngroups:\n- {{cpus: 500m, memory: 64Mi, image: played, command: [play, 300ms, '0']}}\n\
             ---\nname: nowhere-{index}\ngroups:\n- {{cpus: 1, memory: 1Gi, devices: 'Ascend910B3:1', command: [train], simulate: {{duration: 300ms}}}}\n"
        );
    }
    text
}

#[test]
fn jobs_spread_over_three_provinces_leave_their_effects_once_whatever_is_killed() {
    let test = "jobs_spread_over_three_provinces_leave_their_effects_once_whatever_is_killed";
    let Some(plane) = ControlPlane::start(test) else { return };
    plane.make_pool("gz", 4, r#"cpu: "8", memory: 32Gi"#);
    let mut home = Home::new();
    let mut broker = home.start_broker("server");
    let agent = describe_cluster(&home, &plane);
    let mut cluster = start(&home, &agent);
    let mut host = home.start_agent(16);
    let _simulated = start(&home, &describe_simulated(&home));
    let (ran, spec) = (home.path().join("ran"), home.path().join("jobs.yaml"));
    std::fs::write(&spec, jobs(&ran)).expect("the jobs");
    let (code, _, error) = home.run(&["submit", spec.to_str().expect("a plain path")]);
    assert_eq!(code, 0, "{error}");
    let pause = |ms: u64| std::thread::park_timeout(Duration::from_millis(ms));
    pause(1_000);
    broker.kill();
    broker = home.start_broker("server");
    pause(700);
    cluster.kill();
    pause(300);
    cluster = start(&home, &agent);
    pause(1_000);
    plane.stop_api();
    host.kill();
    pause(2_000);
    plane.start_api();
    host = home.start_agent(16);
    pause(500);
    broker.kill();
    broker = home.start_broker("server");
    pause(500);
    cluster.kill();
    host.kill();
    cluster = start(&home, &agent);
    host = home.start_agent(16);
    until(&format!("all jobs have succeeded; log: {}", home.path().display()), PATIENCE, || {
        let (_, jobs, _) = home.run(&["get", "jobs", "-a", "--limit", "1000"]);
        jobs.lines().filter(|line| line.contains(" SUCCEEDED ")).count() == 3 * JOBS
    });
    let ran = std::fs::read_to_string(ran).expect("what ran here");
    for index in 0..JOBS {
        let name = format!("here-{index}");
        assert_eq!(ran.lines().filter(|line| **line == name).count(), 1, "{name}");
    }
    // weir-JOURNAL-JOB-UNIT-NUMBER-RANK
    let mut pods: BTreeMap<String, usize> = BTreeMap::new();
    for name in plane.created_pods("weir-jobs").iter().filter(|name| name.starts_with("weir-")) {
        let job = name.split('-').nth(2).expect("a job's number").to_owned();
        *pods.entry(job).or_default() += 1;
    }
    let not_once: Vec<_> = pods.iter().filter(|(_, count)| **count != 1).collect();
    assert!(
        not_once.is_empty() && pods.len() == JOBS,
        "{} jobs had pods; not once: {not_once:?}",
        pods.len()
    );
    until("the cluster is clean", PATIENCE, || {
        plane.kubectl(&["-n", "weir-jobs", "get", "pods", "-o", "name"]).is_empty()
    });
    drop((cluster, host, broker));
}

#[test]
fn the_agents_rights_end_where_its_work_does() {
    let Some(plane) = ControlPlane::shared("the_agents_rights_end_where_its_work_does") else { return };
    plane.make_pool("rights", 1, r#"cpu: "8", memory: 32Gi"#);
    let kubeconfig = give_rights(&plane);
    plane.apply(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: weir-jobs}\nstringData: {key: value}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: default}\n\
         spec: {containers: [{name: c, image: i, command: [hang]}], serviceAccountName: default}\n",
    );
    let agent = |arguments: &[&str]| plane.kubectl_as(&kubeconfig, arguments, "");
    let refused = |arguments: &[&str]| {
        let error = agent(arguments).expect_err("it is refused");
        assert!(error.contains("Forbidden") || error.contains("forbidden"), "{arguments:?}: {error}");
    };
    refused(&["-n", "weir-jobs", "get", "secret", "s"]);
    refused(&["-n", "weir-jobs", "get", "secrets"]);
    refused(&["-n", "default", "logs", "other"]);
    refused(&["-n", "default", "get", "pod", "other"]);
    refused(&["-n", "default", "delete", "pod", "other"]);
    refused(&["create", "namespace", "more"]);
    refused(&["get", "configmaps", "-A"]);
    for asked in [
        &["-n", "weir-jobs", "auth", "can-i", "create", "pods", "--subresource=exec"][..],
        &["-n", "weir-jobs", "auth", "can-i", "update", "pods"],
        &["-n", "weir", "auth", "can-i", "create", "pods"],
    ] {
        let said = agent(asked);
        assert!(said.is_err(), "{asked:?}: {said:?}");
    }
    // And its work goes on within them.
    assert!(agent(&["get", "nodes"]).is_ok() && agent(&["get", "pods", "-A"]).is_ok());
    let checked = check(&kubeconfig);
    assert!(checked.0 == 1, "only the broker is missing: {}", checked.1);
    let fails: Vec<&str> = checked.1.lines().filter(|line| line.contains(" FAILS ")).collect();
    assert!(fails.len() == 1 && fails[0].contains("broker"), "{}", checked.1);
}

/// What `weir agent check` says of a pool with these rights, where no broker is.
fn check(kubeconfig: &std::path::Path) -> (i32, String) {
    let home = Home::new();
    let (file, state) = (home.path().join("cluster.toml"), home.path().join("cluster"));
    let text = format!(
        "name = \"cluster\"\nregion = \"CN-GZ\"\nserver = \"http://127.0.0.1:1\"\nstate = {state:?}\n\
         [kubernetes]\nkubeconfig = {kubeconfig:?}\nnamespace = \"weir-jobs\"\n"
    );
    std::fs::write(&file, text).expect("the agent's file");
    let (code, text, _) = home.run(&["agent", "check", file.to_str().expect("a plain path")]);
    (code, text)
}

#[test]
fn the_api_server_accepts_what_ships() {
    let Some(plane) = ControlPlane::shared("the_api_server_accepts_what_ships") else { return };
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests");
    // Namespaces first: nothing can be tried in one that is not there.
    plane.kubectl(&["apply", "-f", &format!("{manifests}/namespaces.yaml")]);
    let said = plane.kubectl(&[
        "apply",
        "--dry-run=server",
        "--validate=strict",
        "--warnings-as-errors",
        "-k",
        manifests,
    ]);
    for object in
        ["statefulset.apps/weir", "clusterrole.rbac.authorization.k8s.io/weir-agent", "networkpolicy"]
    {
        assert!(said.contains(object), "{object}: {said}");
    }
    // A pod as the broker's is made from it must pass the namespace's own rules.
    let rendered = plane.kubectl(&["kustomize", manifests]);
    assert!(!rendered.contains("image: weir\n"), "the image has a tag");
}
