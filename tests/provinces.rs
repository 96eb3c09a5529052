//! One broker with three pools: a real Kubernetes cluster, this host, and a simulated pool. All processes are
//! killed one after another, and every job must have run exactly once.
//!
//! The agent of the cluster has exactly the permissions of `manifests/`.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use support::kubernetes::ControlPlane;
use support::{Home, Process, until};

/// Time limit for all jobs to succeed and for the cluster to be clean.
const TIMEOUT: Duration = Duration::from_secs(240);
/// Jobs per pool.
const JOBS: usize = 100;

/// Applies the agent's manifests. Returns a kubeconfig with a token of the agent's service account.
fn apply_agent_manifests(plane: &ControlPlane) -> PathBuf {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests");
    plane.kubectl(&["apply", "-f", &format!("{manifests}/namespaces.yaml")]);
    plane.kubectl(&["apply", "-k", &format!("{manifests}/agent")]);
    let token = plane.kubectl(&["-n", "weir", "create", "token", "weir-agent", "--duration=2h"]);
    plane.kubeconfig_with("agent.kubeconfig", token.trim())
}

/// Writes the pool file of the cluster's agent.
fn write_cluster_file(home: &Home, plane: &ControlPlane) -> PathBuf {
    let kubeconfig = apply_agent_manifests(plane);
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

/// Writes the pool file of the simulated pool.
fn write_simulated_file(home: &Home) -> PathBuf {
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

/// Jobs of which each can run in one pool only, because of its region, its device model, or its kind of
/// program.
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

/// Number of jobs that have succeeded; 0 while the broker is unavailable.
fn succeeded(home: &Home) -> usize {
    let (_, jobs, _) = home.run(&["get", "jobs", "-a", "--limit", "1000"]);
    jobs.lines().filter(|line| line.contains(" SUCCEEDED")).count()
}

/// Waits until another job has succeeded, unless all have.
fn wait_for_progress(home: &Home) {
    let before = succeeded(home);
    until("another job has succeeded", TIMEOUT, || succeeded(home) > before.min(3 * JOBS - 1));
}

#[test]
fn jobs_in_three_pools_run_once_when_processes_are_killed() {
    let test = "jobs_in_three_pools_run_once_when_processes_are_killed";
    let Some(plane) = ControlPlane::start(test) else { return };
    plane.make_pool("gz", 4, r#"cpu: "8", memory: 32Gi"#);
    let mut home = Home::new();
    let mut broker = home.start_broker("server");
    let agent = write_cluster_file(&home, &plane);
    let mut cluster = start(&home, &agent);
    let mut host = home.start_agent(16);
    let _simulated = start(&home, &write_simulated_file(&home));
    let (ran, spec) = (home.path().join("ran"), home.path().join("jobs.yaml"));
    std::fs::write(&spec, jobs(&ran)).expect("the jobs");
    let (code, _, error) = home.run(&["submit", spec.to_str().expect("a plain path")]);
    assert_eq!(code, 0, "{error}");
    // An outage has a fixed length: there is no condition to wait for.
    let outage = |ms: u64| std::thread::park_timeout(Duration::from_millis(ms));
    until("jobs have succeeded", TIMEOUT, || succeeded(&home) >= JOBS / 10);
    broker.kill();
    broker = home.start_broker("server");
    wait_for_progress(&home);
    cluster.kill();
    outage(300);
    cluster = start(&home, &agent);
    wait_for_progress(&home);
    plane.stop_api();
    host.kill();
    outage(2_000);
    plane.start_api();
    host = home.start_agent(16);
    wait_for_progress(&home);
    broker.kill();
    broker = home.start_broker("server");
    wait_for_progress(&home);
    cluster.kill();
    host.kill();
    cluster = start(&home, &agent);
    host = home.start_agent(16);
    until(&format!("all jobs have ended; log: {}", home.path().display()), TIMEOUT, || {
        let (code, active, _) = home.run(&["get", "jobs"]);
        code == 0 && active.is_empty()
    });
    let (_, ended, _) = home.run(&["get", "jobs", "-a", "--limit", "1000"]);
    let failed: Vec<&str> = ended.lines().skip(1).filter(|line| !line.contains(" SUCCEEDED")).collect();
    assert!(failed.is_empty() && succeeded(&home) == 3 * JOBS, "{failed:#?}");
    let ran = std::fs::read_to_string(ran).expect("the file of the host's jobs");
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
    until("the cluster is clean", TIMEOUT, || {
        plane.kubectl(&["-n", "weir-jobs", "get", "pods", "-o", "name"]).is_empty()
    });
    drop((cluster, host, broker));
}

#[test]
fn the_agent_has_no_permissions_beyond_its_work() {
    let Some(plane) = ControlPlane::shared("the_agent_has_no_permissions_beyond_its_work") else { return };
    plane.make_pool("rights", 1, r#"cpu: "8", memory: 32Gi"#);
    let kubeconfig = apply_agent_manifests(&plane);
    plane.apply(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: weir-jobs}\nstringData: {key: value}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: default}\n\
         spec: {containers: [{name: c, image: i, command: [hang]}], serviceAccountName: default}\n",
    );
    let agent = |arguments: &[&str]| plane.kubectl_as(&kubeconfig, arguments, "");
    let denied = |arguments: &[&str]| {
        let error = agent(arguments).expect_err("a denied request");
        assert!(error.contains("Forbidden") || error.contains("forbidden"), "{arguments:?}: {error}");
    };
    denied(&["-n", "weir-jobs", "get", "secret", "s"]);
    denied(&["-n", "weir-jobs", "get", "secrets"]);
    denied(&["-n", "default", "logs", "other"]);
    denied(&["-n", "default", "get", "pod", "other"]);
    denied(&["-n", "default", "delete", "pod", "other"]);
    denied(&["create", "namespace", "more"]);
    denied(&["get", "configmaps", "-A"]);
    for asked in [
        &["-n", "weir-jobs", "auth", "can-i", "create", "pods", "--subresource=exec"][..],
        &["-n", "weir-jobs", "auth", "can-i", "update", "pods"],
        &["-n", "weir", "auth", "can-i", "create", "pods"],
    ] {
        let answer = agent(asked);
        assert!(answer.is_err(), "{asked:?}: {answer:?}");
    }
    // The permissions are sufficient for its work.
    assert!(agent(&["get", "nodes"]).is_ok() && agent(&["get", "pods", "-A"]).is_ok());
    let checked = check(&kubeconfig);
    assert!(checked.0 == 1, "only the broker is missing: {}", checked.1);
    let fails: Vec<&str> = checked.1.lines().filter(|line| line.contains(" FAILS ")).collect();
    assert!(fails.len() == 1 && fails[0].contains("broker"), "{}", checked.1);
}

/// Runs `weir agent check` for a pool with these permissions, without a broker. Returns exit code and output.
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
fn the_api_server_accepts_the_manifests() {
    let Some(plane) = ControlPlane::shared("the_api_server_accepts_the_manifests") else { return };
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests");
    // Namespaces first: a server-side dry run fails in a namespace that does not exist.
    plane.kubectl(&["apply", "-f", &format!("{manifests}/namespaces.yaml")]);
    let applied = plane.kubectl(&[
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
        assert!(applied.contains(object), "{object}: {applied}");
    }
    // Kustomize must have replaced the image by one with a tag.
    let rendered = plane.kubectl(&["kustomize", manifests]);
    assert!(!rendered.contains("image: weir\n"), "the image has a tag");
}
