//! `weir plan defrag` on a pool with fragmented free devices.

mod support;

use std::time::Duration;

use support::{Home, until};

/// Submits a job of one task that requests `devices` in a pool of three nodes with eight devices each.
fn submit(home: &Home, name: &str, devices: u32, labels: &str) {
    let file = home.path().join(format!("{name}.yaml"));
    let text = format!(
        "name: {name}\nlabels: {{{labels}}}\ngroups:\n- name: main\n  cpus: 8\n  memory: 16Gi\n  \
         devices: 'A100-80G:{devices}'\n  command: ['true']\n  simulate: {{duration: 3000s}}\n\
         constraints: {{pools: [gz-nvidia]}}\n"
    );
    std::fs::write(&file, text).expect("a job's file");
    let (code, _, errors) = home.run(&["submit", &file.display().to_string()]);
    assert_eq!(code, 0, "{errors}");
}

/// Waits until the list of jobs contains the job in this state.
fn wait_for(home: &Home, job: &str, state: &str) {
    until(&format!("{job} is {state}"), Duration::from_secs(30), || {
        let jobs = home.run(&["get", "jobs", "--all"]).1;
        jobs.lines().any(|line| line.split_whitespace().next() == Some(job) && line.contains(state))
    });
}

#[test]
fn plan_lists_the_move_that_lets_a_large_job_start_and_does_not_execute_it() {
    let mut home = Home::new();
    let _dev = home.start_broker("dev");
    until("the pool is ready", Duration::from_secs(30), || {
        home.run(&["get", "pools"])
            .1
            .lines()
            .any(|line| line.starts_with("gz-nvidia") && line.contains("READY"))
    });
    // Submitted one by one, so that in the end each of the three nodes runs one task of one device.
    for (name, devices, labels) in [
        ("large-1", 7, ""),
        ("large-2", 7, ""),
        ("spot-1", 1, "preemptible: 'true'"),
        ("fixed", 1, ""),
        ("spot-2", 1, "class: 'spot'"),
    ] {
        submit(&home, name, devices, labels);
        wait_for(&home, name, "RUNNING");
    }
    assert_eq!(home.run(&["cancel", "job/large-1"]).0, 0);
    wait_for(&home, "large-1", "CANCELLED");
    submit(&home, "train", 8, "");
    let plan = |arguments: &[&str]| home.run(&[&["plan", "defrag"], arguments].concat());
    let mut printed = String::new();
    until("the job waits", Duration::from_secs(30), || {
        printed = plan(&["pool/gz-nvidia"]).1;
        printed.contains(" 1 waiting ")
    });
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(
        lines[0],
        "pool/gz-nvidia   1 waiting   1 running can be moved   1 move to start 1 task with 8 devices"
    );
    assert_eq!(lines[1], "   1  start  job/train (queue default): 8 on dgx-0000");
    assert!(
        lines[2].starts_with("       move  job/spot-1 (queue default): 1 from dgx-0000 to dgx-0002, loses "),
        "{printed}"
    );
    // With another label the other task is moved, to the node of the first, and loses no progress.
    let (code, json, _) =
        plan(&["gz-nvidia", "--preemptible", "no=one", "--checkpointed", "class=spot", "-o", "json"]);
    let moved =
        &serde_json::from_str::<serde_json::Value>(&json).expect("JSON")["gz-nvidia"]["steps"][0]["moves"][0];
    assert_eq!(
        (code, moved["job_name"].as_str(), moved["lost_ms"].as_u64()),
        (0, Some("spot-2"), Some(0)),
        "{json}"
    );
    assert_eq!(
        (moved["from_node"].as_str(), moved["to_node"].as_str()),
        (Some("dgx-0002"), Some("dgx-0000"))
    );
    let none = plan(&["gz-nvidia", "--preemptible", "no=one"]).1;
    assert!(none.ends_with("no running job has such a label\n"), "{none}");
    let others = plan(&[]).1;
    assert!(
        others.contains(
            "pool/qh-cpu   0 waiting   0 running can be moved   no task is waiting for its devices\n"
        )
    );
    let (code, _, errors) = plan(&["nowhere"]);
    assert_eq!((code, errors.as_str()), (3, "error: pool \"nowhere\" does not exist\n"));
    let (code, _, errors) = plan(&["--preemptible", "a=b", "--preemptible", "a=c"]);
    assert_eq!(code, 8, "{errors}");
    assert!(errors.contains("\"a=c\": this key is given twice"), "{errors}");
    // The plan was not executed.
    for job in ["spot-1", "spot-2", "fixed", "large-2"] {
        wait_for(&home, job, "RUNNING");
    }
    wait_for(&home, "train", "PENDING");
}
