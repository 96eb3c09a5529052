//! Jobs that are changed, held, released and cancelled in part.

use super::*;
use std::os::unix::fs::PermissionsExt;

use weir::api::client::Client;
use weir::api::proto::v1;

fn job(home: &Home, name: &str) -> serde_json::Value {
    let (code, json, errors) = home.run(&["get", name, "-o", "json"]);
    assert_eq!(code, 0, "{errors}");
    serde_json::from_str(&json).expect("JSON")
}

#[test]
fn held_job_starts_once_it_is_released() {
    let (home, _dev) = dev();
    let file = home.path().join("held.yaml");
    let text = "name: later\nlabels: {team: vision}\nconstraints: {pools: [local]}\ngroups: [{cpus: 100m, command: ['true']}]\n";
    std::fs::write(&file, text).expect("a file");
    assert_eq!(home.run(&["submit", "--hold", file.to_str().expect("a path")]).0, 0);
    let (_, table, _) = home.run(&["get", "jobs"]);
    assert!(table.contains("PENDING,HELD"), "{table}");
    let (_, why, _) = home.run(&["why", "job/later"]);
    assert!(why.contains("Held") && why.contains("held until `weir release` releases it"), "{why}");
    // What a user typed twice by mistake changes nothing.
    for _ in 0..2 {
        assert_eq!(
            home.run(&["hold", "-l", "team=vision"]),
            (0, "job/later held\n".to_owned(), String::new())
        );
    }
    assert_eq!(home.run(&["release", "job/later"]).1, "job/later released\n");
    assert_eq!(home.run(&["wait", "job/later"]).0, 0);
    let (code, _, errors) = home.run(&["hold", "job/later"]);
    assert_eq!((code, errors.as_str()), (0, "job/later had ended before\n"));
    let (code, _, errors) = home.run(&["edit", "job/later", "--priority", "1"]);
    assert_eq!(code, 4, "{errors}");
}

#[test]
fn job_is_edited_by_flags_and_in_an_editor() {
    let (home, _dev) = dev();
    let submitted = home.run(&[
        "run",
        "-d",
        "--allow-pending",
        "--name",
        "waits",
        "--cpus",
        "1000",
        "--label",
        "a=1",
        "--",
        "true",
    ]);
    assert_eq!(submitted.0, 0, "{}", submitted.2);
    let edited = home.run(&[
        "edit",
        "job/waits",
        "--priority",
        "-5",
        "--max-run",
        "90m",
        "--label",
        "b=2",
        "--remove-label",
        "a",
    ]);
    assert_eq!(edited, (0, "job/waits updated\n".to_owned(), String::new()));
    let now = job(&home, "job/waits");
    assert_eq!((&now["priority"], &now["max_run"]), (&serde_json::json!(-5), &serde_json::json!("1h30m")));
    assert_eq!(now["labels"], serde_json::json!({"b": "2"}));
    let with_editor = |script: &str| {
        let editor = home.path().join("editor");
        std::fs::write(&editor, format!("#!/bin/sh\n{script}\n")).expect("a script");
        std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        let output = home
            .weir(&["edit", "job/waits"])
            .env("EDITOR", &editor)
            .env_remove("VISUAL")
            .env("TMPDIR", home.path())
            .output()
            .expect("weir");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, printed, errors) =
        with_editor("sed -i -e 's/priority: -5/priority: 7/' -e 's/held: false/held: true/' \"$1\"");
    assert_eq!((code, printed.as_str()), (Some(0), "job/waits updated\n"), "{errors}");
    let now = job(&home, "job/waits");
    assert_eq!((&now["priority"], &now["status"]["held"]), (&serde_json::json!(7), &serde_json::json!(true)));
    assert_eq!(with_editor("true").1, "job/waits unchanged\n");
    // What was written is not lost where it is not valid.
    let (code, _, errors) = with_editor("echo 'prority: 8' >>\"$1\"");
    assert_eq!(code, Some(8), "{errors}");
    assert!(
        errors.contains(":7:1: prority: unknown field \"prority\", did you mean \"priority\"?"),
        "{errors}"
    );
    assert!(errors.contains("hint: what you wrote is in "), "{errors}");
    let (code, _, errors) = with_editor("sed -i 's/priority: 7/priority: 1000001/' \"$1\"");
    assert_eq!((code, errors.contains("priority: 1000001 is not within")), (Some(8), true), "{errors}");
    let (_, written) = errors.trim().rsplit_once(" is in ").expect("where it is");
    assert!(std::fs::read_to_string(written).expect("a file").contains("priority: 1000001"));
    let (code, _, errors) = with_editor("exit 3");
    assert!(code == Some(1) && errors.contains("ended with exit status: 3"), "{errors}");
    let (code, _, errors) = home.run(&["edit", "job/waits", "--priority", "1000001"]);
    assert_eq!((code, errors.contains("priority: 1000001 is not within")), (8, true), "{errors}");
}

#[test]
fn units_are_cancelled_alone_and_a_reason_is_shown() {
    let (home, _dev) = dev();
    let array = home.run(&[
        "run",
        "-d",
        "--name",
        "sweep",
        "--pool",
        "local",
        "--cpus",
        "100m",
        "--count",
        "4",
        "--",
        "sh",
        "-c",
        "test $WEIR_TASK_INDEX != 1 || sleep 600",
    ]);
    assert_eq!(array.0, 0, "{}", array.2);
    let cancelled = home.run(&["cancel", "job/sweep", "--unit", "1"]);
    assert_eq!(cancelled, (0, "units 1 of job/sweep cancelled\n".to_owned(), String::new()));
    assert_eq!(home.run(&["wait", "job/sweep"]).0, 12, "one of its units did not succeed");
    let ended = job(&home, "job/sweep");
    assert_eq!(ended["status"]["units"]["succeeded"], serde_json::json!(3), "{ended}");
    let (code, _, errors) = home.run(&["cancel", "job/sweep", "--unit", "4"]);
    assert_eq!(code, 0, "it has ended: {errors}");
    let waits =
        home.run(&["run", "-d", "--allow-pending", "--name", "waits", "--cpus", "1000", "--", "true"]);
    assert_eq!(waits.0, 0, "{}", waits.2);
    let (code, _, errors) = home.run(&["cancel", "job/waits", "--unit", "1"]);
    assert_eq!((code, errors.contains("units: 1 is not within 0 and 0")), (8, true), "{errors}");
    assert_eq!(home.run(&["cancel", "job/waits", "--dry-run"]).1, "job/waits would be cancelled\n");
    assert_eq!(job(&home, "job/waits")["status"]["phase"], serde_json::json!("PENDING"));
    let (code, printed, errors) =
        home.run(&["cancel", "--ignore-missing", "--reason", "wrong data", "job/none", "job/waits"]);
    assert_eq!((code, printed.as_str()), (0, "job/waits cancelled\n"), "{errors}");
    let (_, text, _) = home.run(&["describe", "job/waits"]);
    assert!(text.contains("Cancelled: wrong data"), "{text}");
    // A name that is wrong does not keep the others from being cancelled.
    let last = home.run(&["run", "-d", "--allow-pending", "--name", "last", "--cpus", "1000", "--", "true"]);
    assert_eq!(last.0, 0, "{}", last.2);
    let (code, printed, errors) = home.run(&["cancel", "job/none", "job/last", "job/neither"]);
    assert_eq!((code, printed.as_str()), (3, "job/last cancelled\n"), "{errors}");
    assert!(
        errors.contains("\"none\" does not exist") && errors.contains("\"neither\" does not"),
        "{errors}"
    );
}

/// A client of the API cancels by a filter in one request, which says what it did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filter_cancels_every_job_that_it_selects() {
    let (home, _dev) = dev();
    let token = std::fs::read_to_string(home.data().join("token")).expect("a token");
    let client = Client::new(&home.address, Some(token.trim())).expect("a client");
    let spec = v1::JobSpec {
        labels: [("team".to_owned(), "vision".to_owned())].into(),
        groups: vec![v1::TaskGroup {
            resources: Some(v1::TaskResources { cpu_millis: 900_000, ..Default::default() }),
            run: Some(v1::task_group::Run::Process(v1::Program {
                command: vec!["true".to_owned()],
                ..Default::default()
            })),
            ..Default::default()
        }],
        ..Default::default()
    };
    for _ in 0..3 {
        let jobs = vec![v1::Submission { spec: Some(spec.clone()), ..Default::default() }; 700];
        let request = v1::SubmitRequest { jobs, allow_pending: true, ..Default::default() };
        client.jobs().submit(request).await.expect("accepted");
    }
    let label = v1::LabelRequirement::equal("team", "vision");
    let filter = v1::JobFilter { labels: vec![label], ..Default::default() };
    let request = v1::CancelRequest { filter: Some(filter), dry_run: true, ..Default::default() };
    let would = client.jobs().cancel(request.clone()).await.expect("a dry run").into_inner();
    assert_eq!((would.count, would.jobs.len()), (2_100, 1_000));
    let request = v1::CancelRequest { dry_run: false, ..request };
    let done = client.jobs().cancel(request.clone()).await.expect("cancelled").into_inner();
    assert_eq!((done.count, done.jobs.len()), (2_100, 1_000));
    let again = client.jobs().cancel(request).await.expect("nothing left").into_inner();
    assert_eq!(again.count, 0);
}
