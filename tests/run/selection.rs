//! Jobs that are selected and counted by what they have in common.

use super::*;

#[test]
fn jobs_are_listed_counted_and_cancelled_by_what_they_have_in_common() {
    let (home, _dev) = dev();
    let file = home.path().join("queues.yaml");
    std::fs::write(&file, "queues:\n- name: team\n- name: team/vision\n").expect("a file");
    assert_eq!(home.run(&["apply", file.to_str().expect("a path")]).0, 0);
    let run = |queue: &str, label: &str, script: &str| {
        let arguments = ["-q", queue, "run", "--pool", "local", "--label", label, "--", "sh", "-c", script];
        home.run(&arguments).0
    };
    assert_eq!(run("default", "team=vision", "exit 3"), 3);
    assert_eq!(run("default", "team=speech", "exit 0"), 0);
    assert_eq!(run("team", "owner=a", "exit 0"), 0);
    let waits = [
        "-q",
        "team/vision",
        "run",
        "--detach",
        "--pool",
        "xj-ascend",
        "--cpus",
        "1000",
        "--allow-pending",
        "--name",
    ];
    for name in ["waits-1", "waits-2"] {
        assert_eq!(home.run(&[&waits[..], &[name, "--", "true"]].concat()).0, 0);
    }
    let names = |arguments: &[&str]| {
        let (code, names, errors) = home.run(&[&["get", "jobs", "-o", "name"], arguments].concat());
        assert_eq!(code, 0, "{arguments:?}: {errors}");
        names
    };
    for (arguments, expected) in [
        (&["-l", "team!=vision", "--state", "succeeded"][..], "job/team/sh-3\njob/sh-2\n"),
        (&["-l", "team in (vision,speech)", "--all"], "job/sh-2\njob/sh-1\n"),
        (&["-l", "!team", "--all", "--limit", "1"], "job/team/vision/waits-2\n"),
        (&["-l", "owner", "--all"], "job/team/sh-3\n"),
        (&["--outcome", "Failed", "--all"], "job/sh-1\n"),
        (&["--queue", "team", "--all"], "job/team/sh-3\n"),
        (
            &["--queue", "team", "--subtree", "--name-prefix", "waits"],
            "job/team/vision/waits-2\njob/team/vision/waits-1\n",
        ),
        (&["--pool", "local", "--ended-since", "1h"], "job/team/sh-3\njob/sh-2\njob/sh-1\n"),
        (&["--region", "重庆", "--phase", "failed"], "job/sh-1\n"),
        (&["--region", "CN-XJ", "--all"], ""),
        (&["--submitted-by", "another", "--all"], ""),
    ] {
        assert_eq!(names(arguments), expected, "{arguments:?}");
    }
    let (code, counts, _) = home.run(&["count", "jobs", "--all", "--by", "queue,state", "-o", "json"]);
    let counts: serde_json::Value = serde_json::from_str(&counts).expect("JSON");
    let expected = serde_json::json!([
        {"queue": "default", "state": "FAILED", "jobs": 1},
        {"queue": "default", "state": "SUCCEEDED", "jobs": 1},
        {"queue": "team", "state": "SUCCEEDED", "jobs": 1},
        {"queue": "team/vision", "state": "PENDING", "jobs": 2},
    ]);
    assert_eq!((code, counts), (0, expected));
    let table = home.run(&["count", "jobs", "--all", "--by", "pool,label:team"]).1;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let expected = [
        vec!["POOL", "TEAM", "JOBS"],
        vec!["-", "-", "2"],
        vec!["local", "-", "1"],
        vec!["local", "speech", "1"],
        vec!["local", "vision", "1"],
    ];
    assert_eq!(rows, expected);
    // A pool comes with its own region only.
    let (_, places, _) = home.run(&["count", "jobs", "--all", "--by", "pool,region"]);
    let rows: Vec<Vec<&str>> = places.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [vec!["-", "-", "2"], vec!["local", "CN-CQ", "3"]]);
    for (arguments, expected) in [
        (&["get", "jobs", "--pool", "nope"][..], "--pool: pool \"nope\" does not exist"),
        (
            &["count", "jobs", "--outcome", "Faild"],
            "--outcome: \"Faild\" is not the code of a failure: use Failed",
        ),
        (&["cancel", "--queue", "team", "--region", "Mars"], "--region: \"Mars\" is not a region"),
    ] {
        let (code, _, errors) = home.run(arguments);
        assert!(code == 8 && errors.contains(expected), "{arguments:?}: {code} {errors}");
    }
    let (code, cancelled, _) = home.run(&["cancel", "-q", "team", "--subtree", "--state", "pending"]);
    assert_eq!((code, cancelled.lines().count()), (0, 2), "{cancelled}");
    assert_eq!(names(&["--state", "cancelled"]), "job/team/vision/waits-2\njob/team/vision/waits-1\n");
}

/// A list is sorted by values, not by how they are printed, and has the columns that were asked for.
#[test]
fn lists_are_sorted_and_their_columns_chosen() {
    let (home, _dev) = dev();
    let file = home.path().join("jobs.yaml");
    let job = |(name, priority)| {
        format!("---\nname: {name}\npriority: {priority}\ngroups:\n- {{command: ['true'], cpus: 1}}\n")
    };
    std::fs::write(&file, [("b", 5), ("c", -3), ("a", 40)].map(job).concat()).expect("a file");
    let (code, _, errors) = home.run(&["submit", "--hold", file.to_str().expect("a path")]);
    assert_eq!(code, 0, "{errors}");
    let rows = |arguments: &[&str]| {
        let (code, table, errors) = home.run(&[&["get"], arguments].concat());
        assert_eq!(code, 0, "{arguments:?}: {errors}");
        let row = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        table.lines().map(row).collect::<Vec<_>>()
    };
    let columns = ["jobs", "--columns", "priority,name"];
    let sorted = |by: &str| rows(&[&columns[..], &["--sort", by]].concat());
    assert_eq!(rows(&columns), ["PRIORITY NAME", "40 a", "-3 c", "5 b"], "the newest first");
    assert_eq!(sorted("priority"), ["PRIORITY NAME", "-3 c", "5 b", "40 a"]);
    assert_eq!(sorted("-priority"), ["PRIORITY NAME", "40 a", "5 b", "-3 c"]);
    assert_eq!(sorted("submitted"), ["PRIORITY NAME", "5 b", "-3 c", "40 a"]);
    let lowest = ["jobs", "--sort", "priority", "--limit", "1", "-o", "name"];
    assert_eq!(rows(&lowest), ["job/c"], "the first of all in this order");
    assert_eq!(rows(&["pools", "--sort", "-name", "--columns", "name"])[..2], ["NAME", "xj-ascend"]);
    assert_eq!(rows(&["queue/default", "--columns", "weight"]), ["WEIGHT", "1"]);
    for (arguments, code, expected) in [
        (&["get", "jobs", "--sort", "size"][..], 2, "--sort \"size\": use submitted, started"),
        (&["get", "nodes", "--columns", "size"], 2, "--columns \"size\": use NAME, POOL"),
        (&["get", "jobs", "--sort", "name", "-w"], 2, "--sort applies only to a list without --watch"),
        (&["get", "jobs", "--columns", "name", "-o", "json"], 2, "--columns applies only to a table"),
        (&["get", "units"], 2, "name the job: weir get units job/NAME"),
        (&["get", "units/nope"], 3, "job \"nope\" does not exist"),
        (&["describe", "units/a"], 8, "can't be described"),
        (&["get", "node/nope"], 3, "node \"nope\" does not exist"),
        (&["get", "node/nope", "--pool", "local"], 3, "node \"nope\" does not exist"),
        (&["get", "node/nope", "--pool", "nope"], 3, "pool \"nope\" does not exist"),
        (&["get", "queue/nope"], 3, "queue \"nope\" does not exist"),
        (&["get", "pool/nope"], 3, "pool \"nope\" does not exist"),
    ] {
        let (found, _, errors) = home.run(arguments);
        assert!(found == code && errors.contains(expected), "{arguments:?}: {found} {errors}");
    }
}
