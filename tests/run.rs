//! `weir run` behaves like a local command: its output and exit codes.

mod support;

use std::process::Stdio;
use std::time::Duration;

use support::{Home, until};

/// Starts `weir dev` and waits until this machine's pool is ready.
fn dev() -> (Home, support::Process) {
    let mut home = Home::new();
    let dev = home.start_broker("dev");
    until("this machine's pool is ready", Duration::from_secs(30), || {
        home.run(&["get", "pools"]).1.lines().any(|line| line.starts_with("local") && line.contains("READY"))
    });
    (home, dev)
}

#[test]
fn run_exits_with_the_commands_code_or_prints_the_failure() {
    let (home, _dev) = dev();
    let check = |arguments: &[&str], code: i32, output: &str, errors: &str| {
        let (found, printed, reported) = home.run(&[&["run"], arguments].concat());
        assert_eq!((found, printed.as_str(), reported.as_str()), (code, output, errors), "{arguments:?}");
    };
    check(&["--", "sh", "-c", "echo hello from $WEIR_REGION"], 0, "hello from CN-CQ\n", "");
    check(&["--", "sh", "-c", "exit 7"], 7, "", "");
    check(&["--", "no-such-program"], 127, "", "weir: no-such-program: no such program in PATH\n");
    check(&["--max-run", "1s", "--", "sleep", "60"], 124, "", "weir: TimedOut: ran longer than 1000 ms\n");
}

/// What `run` can't forward or print in full is never a success.
#[test]
fn run_fails_where_input_is_ignored_or_output_is_lost() {
    let (home, _dev) = dev();
    let run = |stdin: Stdio, script: &str| {
        let mut command = home.weir(&["run", "--pool", "local", "--", "sh", "-c", script]);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("weir run")
    };
    let input = home.path().join("input");
    std::fs::write(&input, "0123456789").expect("a file");
    let refused = run(std::fs::File::open(&input).expect("a file").into(), "cat").wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125), "{errors}");
    assert!(errors.contains("standard input holds 10 bytes"), "{errors}");
    // Input that comes later, by a pipe that was empty when the command started.
    let mut child = run(Stdio::piped(), "echo began; sleep 1");
    std::io::Write::write_all(child.stdin.as_mut().expect("a pipe"), b"late").expect("a write");
    let ended = child.wait_with_output().expect("its output");
    assert_eq!(ended.status.code(), Some(125), "{}", String::from_utf8_lossy(&ended.stderr));
    // An open pipe without data, as many programs give to their children, is no input.
    let mut child = run(Stdio::piped(), "echo fine");
    let held = child.stdin.take();
    let ended = child.wait_with_output().expect("its output");
    drop(held);
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    // A pipe in the place of the task's output: no reader waits for it. A task without namespaces could put it there.
    let attempts = home.data().join("pools/local/supervisor/attempts");
    let stored = || {
        let folders = std::fs::read_dir(&attempts).expect("attempts").flatten();
        folders.map(|folder| folder.path().join("0.stdout")).collect::<Vec<_>>()
    };
    let earlier = stored();
    let running = run(Stdio::null(), "sleep 2");
    let mut new = Vec::new();
    until("the task runs", Duration::from_secs(60), || {
        new = stored().into_iter().filter(|file| !earlier.contains(file) && file.exists()).collect();
        !new.is_empty()
    });
    std::fs::remove_file(&new[0]).expect("the output");
    assert!(std::process::Command::new("mkfifo").arg(&new[0]).status().expect("mkfifo").success());
    let replaced = running.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&replaced.stderr).into_owned();
    assert_eq!(replaced.status.code(), Some(125), "{errors}");
    assert!(errors.contains("the task has replaced the file of its output"), "{errors}");
    // More output than a pool stores, faster than it is read.
    let ended = run(Stdio::null(), "head -c 100000000 /dev/zero").wait_with_output().expect("its output");
    let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
    let complete = ended.stdout.len() == 100_000_000;
    let reported = errors.contains("bytes were not stored") && errors.contains("its output is not complete");
    assert_eq!(
        (ended.status.code(), reported),
        if complete { (Some(0), false) } else { (Some(125), true) },
        "{errors}"
    );
}

#[test]
fn run_prints_the_output_of_every_attempt_of_a_retried_command() {
    let (home, _dev) = dev();
    let attempt_folder = home.path().join("attempt");
    let script = format!(
        "if mkdir {0}.1 2>/dev/null; then echo one; exit 3; fi; \
         if mkdir {0}.2 2>/dev/null; then echo two; exit 4; fi; echo three",
        attempt_folder.display()
    );
    let (code, printed, errors) = home.run(&["run", "--attempts", "3", "--", "sh", "-c", &script]);
    assert_eq!((code, printed.as_str()), (0, "one\ntwo\nthree\n"), "{errors}");
    assert_eq!(
        errors,
        "weir: attempt 1 ended; continuing with attempt 2\nweir: attempt 2 ended; continuing with attempt 3\n"
    );
}

#[test]
fn run_cancels_its_job_at_sigterm_and_waits_for_it() {
    let (home, _dev) = dev();
    let script = "trap 'echo cleaned; exit 9' TERM; echo up; while :; do sleep 0.05; done";
    let mut command = home.weir(&["run", "--", "sh", "-c", script]);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("weir run");
    let mut out = std::io::BufReader::new(run.stdout.take().expect("its output"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).expect("a line");
    assert_eq!(line, "up\n");
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut out, &mut rest).expect("the rest");
    assert_eq!((rest.as_str(), run.wait().expect("an end").code()), ("cleaned\n", Some(130)));
}

#[test]
fn run_prints_why_its_job_is_waiting() {
    let (home, _dev) = dev();
    let mut command =
        home.weir(&["run", "--allow-pending", "--pool", "local", "--cpus", "900", "--", "true"]);
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("weir run");
    let mut errors = std::io::BufReader::new(run.stderr.take().expect("its errors"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut errors, &mut line).expect("a line");
    let expected = "is waiting, but fits no current pool (local: 900 CPUs needed by one task";
    assert!(line.contains(expected), "{line}");
    run.kill().expect("a running process");
    run.wait().expect("an end");
}

#[test]
fn printed_name_of_a_job_in_another_queue_is_accepted_as_reference() {
    let (home, _dev) = dev();
    let file = home.path().join("queues.yaml");
    std::fs::write(&file, "queues: [{name: cq}, {name: cq/yubei}]\n").expect("a file");
    let file = file.display().to_string();
    let (code, _, errors) = home.run(&["apply", "-f", &file]);
    assert_eq!(code, 0, "{errors}");
    let (code, printed, errors) =
        home.run(&["run", "--detach", "-q", "cq/yubei", "--name", "far", "--", "true"]);
    assert_eq!((code, printed.as_str()), (0, "job/cq/yubei/far\n"), "{errors}");
    let (code, _, errors) = home.run(&["wait", printed.trim()]);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(home.run(&["describe", printed.trim()]).0, 0);
}

#[test]
fn apply_prints_what_it_changes() {
    let (home, _dev) = dev();
    let apply = |text: &str| {
        let file = home.path().join("queues.yaml");
        std::fs::write(&file, format!("queues:\n- {text}\n")).expect("a file");
        let (code, printed, notes) = home.run(&["apply", file.to_str().expect("a plain path")]);
        assert_eq!(code, 0, "{notes}");
        (printed, notes)
    };
    let limited = "{name: a, limit: {cpus: 8, memory: 2Gi}, max_run: 1h}";
    assert_eq!(apply(limited), ("queue/a created\n".to_owned(), String::new()));
    assert_eq!(apply(limited), ("queue/a unchanged\n".to_owned(), String::new()));
    let (printed, notes) = apply("{name: a, weight: 3, limit: {memory: 2049Mi}}");
    let changes = "limit.cpus 8 → none, limit.memory 2Gi → 2148532224, max_run 1h → 1day, weight 1 → 3";
    assert_eq!(printed, format!("queue/a updated: {changes}\n"));
    assert_eq!(notes, "queue/a: weight and guarantee are stored, but have no effect yet\n");
}

/// What did not run must not seem to have succeeded.
#[test]
fn simulated_pools_take_only_jobs_that_ask_for_them() {
    let (home, _dev) = dev();
    // The region has a real pool and a simulated one, the other only a simulated one.
    assert_eq!(home.run(&["run", "--region", "CN-CQ", "--", "sh", "-c", "exit 3"]).0, 3);
    let (code, job, errors) = home.run(&[
        "run",
        "--detach",
        "--allow-pending",
        "--region",
        "CN-XJ",
        "--name",
        "real",
        "--",
        "true",
    ]);
    assert_eq!((code, job.as_str()), (0, "job/real\n"), "{errors}");
    let (_, why, _) = home.run(&["why", "job/real"]);
    assert!(why.lines().any(|line| line.contains("xj-ascend") && line.contains("PoolSimulated")), "{why}");
    // Where a job names a simulated pool, every view shows that nothing ran.
    let named = ["run", "--pool", "xj-ascend", "--name", "named", "--", "sh", "-c", "exit 3"];
    let (code, _, errors) = home.run(&named);
    assert_eq!(code, 125, "{errors}");
    assert!(
        errors.contains("Simulated: the pool only simulates tasks, so the command did not run"),
        "{errors}"
    );
    let (code, _, errors) = home.run(&["wait", "job/named"]);
    assert_eq!((code, errors.as_str()), (13, "job/named succeeded (simulated)\n"));
    for (view, shown) in [
        (&["get", "job/named"][..], "SUCCEEDED,SIMULATED"),
        (&["get", "jobs", "--all"], "SUCCEEDED,SIMULATED"),
        (&["describe", "job/named"], "Simulated Succeeded, exit code 0"),
        (&["why", "job/named"], "succeeded (simulated)"),
        (&["get", "job/named", "-o", "json"], "\"simulated\": true"),
        (&["get", "job/named", "-o", "yaml"], "simulated: true"),
    ] {
        let (_, printed, _) = home.run(view);
        assert!(printed.contains(shown), "{view:?}: {printed}");
    }
    let asked = home.path().join("asked.yaml");
    let group = "{cpus: 1, memory: 64Mi, command: [train], simulate: {duration: 100ms}}";
    std::fs::write(&asked, format!("name: asked\nconstraints: {{regions: [CN-XJ]}}\ngroups:\n- {group}\n"))
        .unwrap();
    assert_eq!(home.run(&["submit", asked.to_str().unwrap()]).0, 0);
    let (code, _, errors) = home.run(&["wait", "job/asked"]);
    assert_eq!((code, errors.as_str()), (0, "job/asked succeeded (simulated)\n"), "it asked for simulation");
    let spec = home.path().join("partly.yaml");
    let group = "{cpus: 1, memory: 64Mi, command: [sh, -c, 'exit 3']";
    let text = format!(
        "name: partly\nconstraints: {{regions: [CN-XJ]}}\ngang_job: true\ngroups:\n\
         - {group}, name: a, simulate: {{duration: 1s}}}}\n- {group}, name: b}}\n"
    );
    std::fs::write(&spec, text).unwrap();
    assert_eq!(home.run(&["submit", "--allow-pending", spec.to_str().unwrap()]).0, 0);
    let (_, why, _) = home.run(&["why", "job/partly"]);
    assert!(why.lines().any(|line| line.contains("xj-ascend") && line.contains("PoolSimulated")), "{why}");
}

/// The tasks of an array are independent, a failed one can be found, and a job with failed tasks has not
/// succeeded.
#[test]
fn failed_tasks_of_an_array_are_listed_and_the_others_go_on() {
    let (home, _dev) = dev();
    let spec = home.path().join("array.yaml");
    let script = "case $WEIR_TASK_INDEX in 3|17|18) echo broken $WEIR_TASK_INDEX; exit 4;; esac";
    let group = format!("{{count: 40, cpus: 100m, memory: 16Mi, command: [sh, -c, '{script}']}}");
    let submit = |name: &str, more: &str| {
        std::fs::write(
            &spec,
            format!("name: {name}\n{more}constraints: {{pools: [local]}}\ngroups:\n- {group}\n"),
        )
        .unwrap();
        let (code, _, errors) = home.run(&["submit", spec.to_str().unwrap()]);
        assert_eq!(code, 0, "{errors}");
        home.run(&["wait", &format!("job/{name}")])
    };
    let failed = |code, errors: &str| assert_eq!((code, errors.contains(" failed")), (12, true), "{errors}");
    let (code, _, errors) = submit("array", "");
    failed(code, &errors);
    let (_, described, _) = home.run(&["describe", "job/array"]);
    assert!(described.contains("37 of 40 succeeded, 3 failed"), "{described}");
    assert!(described.contains("3 Failed: units 3, 17-18"), "{described}");
    let (_, listed, _) = home.run(&["get", "attempts", "job/array", "--failed"]);
    let units: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(units, ["3", "17", "18"], "{listed}");
    assert_eq!(home.run(&["get", "attempts", "array"]).1.lines().count(), 41);
    let (_, listed, notes) = home.run(&["get", "attempts/array", "--limit", "7"]);
    assert_eq!((listed.lines().count(), notes.contains("only the first 7 are listed")), (8, true), "{notes}");
    let (_, json, _) = home.run(&["get", "job/array", "-o", "json"]);
    assert!(json.contains("\"failed_units\"") && json.contains("\"first\": 17"), "{json}");
    let (_, output, notes) = home.run(&["logs", "job/array"]);
    assert_eq!((output.as_str(), notes.contains("unit 3 of 40")), ("broken 3\n", true), "{notes}");
    // A number of failures that it bears does not make it a success; beyond it the rest is cancelled.
    let (code, _, errors) = submit("tolerant", "max_failed: 10\n");
    failed(code, &errors);
    assert!(home.run(&["describe", "job/tolerant"]).1.contains("37 of 40 succeeded"));
    let (code, _, errors) = submit("strict", "max_failed: 0\n");
    failed(code, &errors);
    let run = ["run", "--count", "5", "--pool", "local", "--", "sh", "-c", "exit $WEIR_TASK_INDEX"];
    let (code, _, errors) = home.run(&run);
    assert!((1..5).contains(&code), "{code}: {errors}");
}

/// A job that waits for ever is refused, with each pool's reason, unless it is to wait for another pool.
#[test]
fn jobs_that_no_pool_can_ever_run_are_refused_at_submit() {
    let (home, _dev) = dev();
    // Other pools may still register at first.
    until("what never fits is refused", Duration::from_secs(60), || {
        home.run(&["run", "--detach", "--cpus", "1000", "--", "true"]).0 == 125
    });
    let group = "cpus: 1, memory: 64Mi, command: ['true'], simulate: {duration: 1s}";
    for (name, job, reason) in [
        (
            "cpus",
            "groups:\n- {cpus: 1000, memory: 1Gi, command: ['true'], simulate: {duration: 1s}}".to_owned(),
            "TaskTooLarge",
        ),
        ("pool", format!("constraints: {{pools: [nowhere]}}\ngroups:\n- {{{group}}}"), "PoolNotAllowed"),
        (
            "gang",
            format!("groups:\n- {{count: 4096, gang: true, devices: 'Ascend910B3:8', {group}}}"),
            "PoolTooSmall",
        ),
    ] {
        let spec = home.path().join(format!("{name}.yaml"));
        std::fs::write(&spec, format!("name: {name}\n{job}\n")).unwrap();
        let spec = spec.to_str().unwrap();
        let (code, printed, errors) = home.run(&["submit", spec]);
        assert_eq!((code, printed.as_str()), (11, ""), "{name}: {errors}");
        assert!(errors.contains("jobs[0].spec.groups[0]: no pool can ever run it: "), "{errors}");
        // Four of the six pools are named, in the order in which they registered.
        let named = ["xj-ascend: ", "gz-nvidia: ", "sc-nvidia: "].iter().any(|pool| errors.contains(pool));
        assert!(named && errors.contains("--allow-pending"), "{errors}");
        assert_eq!(home.run(&["get", &format!("job/{name}")]).0, 3, "it was not submitted");
        assert_eq!(home.run(&["submit", "--allow-pending", spec]).0, 0);
        let (code, why, _) = home.run(&["why", &format!("job/{name}")]);
        assert_eq!((code, why.contains(reason)), (11, true), "{why}");
    }
    let (code, _, errors) = home.run(&["run", "--cpus", "1000", "--", "true"]);
    assert_eq!((code, errors.contains("no pool can ever run it")), (125, true), "{errors}");
}

/// A job that ends because of another names it.
#[test]
fn dependent_of_a_failed_job_names_it() {
    let (home, _dev) = dev();
    let run = |arguments: &[&str]| home.run(&[&["run", "--detach", "--pool", "local"], arguments].concat());
    assert_eq!(run(&["--name", "first", "--", "sh", "-c", "sleep 2; exit 3"]).0, 0);
    let (_, first, _) = home.run(&["get", "job/first", "-o", "json"]);
    let id = first
        .lines()
        .find_map(|line| line.trim().strip_prefix("\"id\": "))
        .expect("an id")
        .trim_end_matches(',');
    let spec = home.path().join("second.yaml");
    let text = format!(
        "name: second\ndepends_on:\n- {{job: {id}}}\ngroups:\n- {{cpus: 1, memory: 64Mi, command: ['true']}}\n"
    );
    std::fs::write(&spec, text).unwrap();
    let (code, _, errors) = home.run(&["submit", spec.to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(home.run(&["wait", "job/second"]).0, 12);
    let (_, described, _) = home.run(&["describe", "job/second"]);
    assert!(described.contains(&format!("it depends on job {id}, which has failed")), "{described}");
}

#[test]
fn lists_and_filters_leave_nothing_out_in_silence() {
    let (home, _dev) = dev();
    let spec = home.path().join("many.yaml");
    let job = |name: &str, labels: &str| {
        let group = "{cpus: 1000, memory: 1Gi, command: ['true']}";
        format!("- {{name: {name}, labels: {{{labels}}}, groups: [{group}]}}\n")
    };
    let many: String = (0..1_203).map(|number| job(&format!("many-{number}"), "team: other")).collect();
    let last = job("both", "team: vision, stage: test") + &job("one", "team: vision");
    let all = format!("jobs:\n{many}{last}");
    std::fs::write(&spec, all).unwrap();
    let (code, _, errors) = home.run(&["submit", "--allow-pending", spec.to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    let names = |arguments: &[&str]| {
        let (code, text, notes) = home.run(&[&["get", "jobs", "-o", "name"], arguments].concat());
        assert_eq!(code, 0, "{notes}");
        (text.lines().map(str::to_owned).collect::<Vec<_>>(), notes)
    };
    let (listed, notes) = names(&[]);
    assert_eq!((listed.len(), notes.as_str()), (1_205, ""));
    let (listed, notes) = names(&["--limit", "3"]);
    assert_eq!(listed, ["job/one", "job/both", "job/many-1202"]);
    assert!(notes.contains("only the first 3 are listed"), "{notes}");
    assert_eq!(names(&["--limit", "1205"]).1, "");
    assert_eq!(names(&["-l", "team=vision,stage=test"]).0, ["job/both"]);
    assert_eq!(names(&["-l", "team=vision", "-l", "stage=test"]).0, ["job/both"]);
    let (nodes, notes) =
        (home.run(&["get", "nodes", "-o", "name"]).1, home.run(&["get", "nodes", "--limit", "1"]).2);
    let last = nodes.lines().last().expect("a node");
    assert!(notes.contains("only the first 1 are listed"), "{notes}");
    assert_eq!(home.run(&["get", last, "--limit", "1", "-o", "name"]).0, 2, "it is no list");
    assert_eq!(home.run(&["get", last, "-o", "name"]).1.trim(), last);
    // A watch begins with the list.
    let mut watch = home.weir(&["get", "jobs", "-w", "-l", "team=vision", "-o", "name"]);
    let mut watch = support::Process(watch.stdout(Stdio::piped()).spawn().expect("weir"));
    let mut watched = std::io::BufReader::new(watch.0.stdout.take().expect("its output"));
    let mut next = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut watched, &mut line).expect("a line");
        line
    };
    let mut found = [next(), next()];
    found.sort();
    assert_eq!(found, ["job/both\n", "job/one\n"]);
}

#[test]
fn every_example_is_accepted() {
    let (home, _dev) = dev();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let names =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<String> = names.filter(|name| name.ends_with(".yaml")).collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    for file in files {
        let path = folder.join(&file);
        // Some ask for what no pool of `weir dev` has.
        let (code, _, errors) = home.run(&["submit", "--allow-pending", path.to_str().unwrap()]);
        assert_eq!((code, errors.as_str()), (0, ""), "{file}");
    }
}

/// Of an array with failed tasks exactly these run again, each with its own index, as often as that is asked for.
#[test]
fn failed_tasks_run_again_with_the_indices_that_they_had() {
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    let _agent = home.start_agent(4);
    let (ran, mended) = (home.path().join("ran"), home.path().join("mended"));
    let script = format!(
        "echo $WEIR_TASK_INDEX/$WEIR_TASK_COUNT >> {}; case $WEIR_TASK_INDEX in 2|3|7) test -e {};; esac",
        ran.display(),
        mended.display()
    );
    let file = home.path().join("job.yaml");
    let text = format!(
        "name: sweep\ngroups:\n- {{count: 9, cpus: 100m, memory: 8Mi, command: [sh, -c, '{script}']}}\n"
    );
    std::fs::write(&file, text).expect("a file");
    assert_eq!(home.run(&["submit", file.to_str().expect("a plain path")]).0, 0);
    let (code, _, errors) = home.run(&["rerun", "job/sweep"]);
    assert!(code == 4 && errors.contains("job \"sweep\" has not ended"), "{code}: {errors}");
    assert_ne!(home.run(&["wait", "job/sweep", "--timeout", "60s"]).0, 0);
    std::fs::write(&ran, "").expect("a file");
    let (code, first, errors) = home.run(&["rerun", "job/sweep"]);
    assert!(code == 0 && errors.contains("3 units of job/sweep run again"), "{code}: {errors}");
    assert!(first.starts_with("job/sweep-rerun-"), "{first}");
    assert_ne!(home.run(&["wait", first.trim(), "--timeout", "60s"]).0, 0);
    let again = || {
        let mut lines: Vec<String> =
            std::fs::read_to_string(&ran).expect("a file").lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(again(), ["2/9", "3/9", "7/9"]);
    let (_, view, _) = home.run(&["describe", first.trim()]);
    assert!(view.contains("indices 2-3,7 of 9"), "{view}");
    std::fs::write(&mended, "").expect("a file");
    let (code, second, errors) = home.run(&["rerun", first.trim(), "--name", "last"]);
    assert_eq!((code, second.as_str()), (0, "job/last\n"), "{errors}");
    assert_eq!(home.run(&["wait", "job/last", "--timeout", "60s"]).0, 0);
    let (code, _, errors) = home.run(&["rerun", "job/last"]);
    assert!(code == 4 && errors.contains("every unit of job \"last\" succeeded"), "{code}: {errors}");
    // Tasks that were stopped, or that never started, did not succeed either.
    let pending = "name: pending\ngroups:\n- {count: 3, cpus: 1, memory: 8Mi, command: [sleep, '100']}\n";
    std::fs::write(&file, pending).expect("a file");
    assert_eq!(home.run(&["submit", file.to_str().expect("a plain path")]).0, 0);
    assert_eq!(home.run(&["cancel", "job/pending"]).0, 0);
    home.run(&["wait", "job/pending", "--timeout", "60s"]);
    let (code, again, errors) = home.run(&["rerun", "job/pending"]);
    assert!(code == 0 && errors.contains("3 units of job/pending run again"), "{code}: {errors}");
    assert_eq!(home.run(&["cancel", again.trim()]).0, 0);
    let (code, _, errors) = home.run(&["rerun", first.trim(), "--name", "no name"]);
    assert!(code == 8 && errors.starts_with("error: name: "), "{code}: {errors}");
}

/// A second broker is named, and clients go on with the first while it runs.
#[test]
fn a_broker_that_starts_takes_no_clients_of_one_that_runs() {
    let (home, _dev) = dev();
    let data = home.path().join("second");
    let second =
        home.start(&["server", "--data", data.to_str().expect("a plain path"), "--listen", "127.0.0.1:0"]);
    let endpoint = data.join("endpoint");
    until("the second broker listens", Duration::from_secs(60), || endpoint.exists());
    let own = home.address.replace("127.0.0.1", "localhost");
    let token = data.join("token");
    let other = std::fs::read_to_string(&endpoint).expect("an address");
    let pools = |arguments: &[&str]| {
        let output = home.weir(&[&["get", "pools"], arguments].concat()).env_remove("WEIR_SERVER").output();
        let output = output.expect("weir runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).contains("local"))
    };
    assert_eq!(pools(&[]), (Some(0), true), "the first is still the default");
    assert_eq!(pools(&["--server", &own]), (Some(0), true), "localhost has its token, too");
    let token_file = ["--server", &other, "--token-file", token.to_str().expect("a plain path")];
    assert_eq!(pools(&token_file), (Some(0), false));
    assert!(home.log().contains(&format!("clients on this machine use the broker at {}", home.address)));
    drop(second);
}

#[test]
fn verbs_of_other_systems_lead_to_ours() {
    let home = Home::new();
    for (verb, ours) in
        [("ps", "weir get jobs"), ("sbatch", "weir submit FILE"), ("scancel", "weir cancel job/NAME")]
    {
        let (code, _, errors) = home.run(&[verb]);
        assert!(code == 2 && errors.contains(&format!("for that, write: {ours}")), "{verb}: {code} {errors}");
    }
    let (code, _, errors) = home.run(&["nonsense"]);
    assert!(code == 2 && !errors.contains("for that, write"), "{errors}");
}

#[test]
fn a_pipeline_in_one_file_runs_in_the_order_of_its_names() {
    let (home, _dev) = dev();
    let done = home.path().join("done");
    let job = |name: &str, after: &str| {
        format!(
            "- name: {name}\n  {after}groups: [{{cpus: 100m, memory: 16Mi, command: [sh, -c, 'echo {name} >> {}']}}]\n",
            done.display()
        )
    };
    let on = |names: &str| format!("depends_on: [{names}]\n  ");
    let text = [
        job("prepare", ""),
        job("train", &on("{job: prepare}")),
        job("report", &on("{job: job/train}, {job: prepare}")),
    ];
    let file = home.path().join("pipeline.yaml");
    std::fs::write(&file, text.concat()).expect("a file");
    let (code, output, errors) = home.run(&["submit", file.to_str().expect("a plain path")]);
    assert_eq!((code, output.as_str()), (0, "job/prepare\njob/train\njob/report\n"), "{errors}");
    let script = format!("echo after >> {}", done.display());
    let (code, _, errors) =
        home.run(&["run", "--after", "report", "--pool", "local", "--", "sh", "-c", &script]);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(std::fs::read_to_string(&done).expect("a file"), "prepare\ntrain\nreport\nafter\n");
    std::fs::write(&file, [job("first", ""), job("lonely", &on("{job: nowhere}"))].concat()).expect("a file");
    let (code, _, errors) = home.run(&["submit", file.to_str().expect("a plain path")]);
    assert!(
        code == 3 && errors.contains("depends_on[0].job: job \"nowhere\" does not exist"),
        "{code} {errors}"
    );
    assert_eq!(home.run(&["describe", "job/first"]).0, 3, "nothing of the file is submitted");
}

#[test]
fn jobs_are_cancelled_by_label_by_queue_and_all_and_each_is_named() {
    let (home, _dev) = dev();
    let submit = |name: &str, label: &str| {
        let arguments =
            ["run", "--detach", "--name", name, "--label", label, "--pool", "local", "--", "sleep", "1000"];
        assert_eq!(home.run(&arguments).0, 0);
    };
    submit("a", "team=vision");
    submit("b", "team=vision");
    submit("c", "team=speech");
    let sorted = |(code, output, errors): (i32, String, String)| {
        let mut lines: Vec<String> = output.lines().map(str::to_owned).collect();
        lines.sort();
        (code, lines, errors)
    };
    let (code, lines, errors) = sorted(home.run(&["cancel", "-l", "team=vision"]));
    assert_eq!(
        (code, lines),
        (0, vec!["job/a cancelled".to_owned(), "job/b cancelled".to_owned()]),
        "{errors}"
    );
    until("two have ended", Duration::from_secs(60), || {
        home.run(&["get", "jobs", "-o", "name"]).1 == "job/c\n"
    });
    let (code, lines, errors) = sorted(home.run(&["cancel", "--all", "--queue", "nowhere"]));
    assert!(code == 8 && lines.is_empty(), "{code} {errors}");
    assert_eq!(home.run(&["cancel"]).0, 2, "all jobs only if that is asked for");
    let (code, lines, errors) = sorted(home.run(&["cancel", "--all"]));
    assert_eq!((code, lines), (0, vec!["job/c cancelled".to_owned()]), "{errors}");
    until("they have ended", Duration::from_secs(60), || {
        home.run(&["get", "jobs", "-o", "name"]).1.is_empty()
    });
    let (code, lines, errors) = sorted(home.run(&["cancel", "--all"]));
    assert!(code == 0 && lines.is_empty() && errors.contains("no such job waits or runs"), "{errors}");
    let (code, _, errors) = home.run(&["cancel", "job/a"]);
    assert!(code == 0 && errors.contains("job/a had ended before"), "{code} {errors}");
}

#[test]
fn run_ends_its_job_when_its_terminal_or_the_reader_of_its_output_is_gone() {
    let (home, _dev) = dev();
    let live = || home.run(&["get", "jobs", "-o", "name"]).1;
    // Until then the command has long waited for signals.
    let runs = || home.run(&["get", "jobs"]).1.contains("RUNNING");
    // One that prints, one that is silent.
    for script in ["while :; do echo line; sleep 0.1; done", "sleep 1000"] {
        let mut command = home.weir(&["run", "--pool", "local", "--", "sh", "-c", script]);
        let mut run = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("weir run");
        until("the job runs", Duration::from_secs(60), runs);
        drop(run.stdout.take());
        assert_eq!(run.wait().expect("its status").code(), Some(130), "{script}");
        assert_eq!(live(), "", "{script}");
    }
    // A test that was started by `nohup` ignores the signal, and so would its children.
    let mut run = hung_up(&home, "--default-signal=HUP", "1000");
    until("the job runs", Duration::from_secs(60), runs);
    hang_up(&run);
    assert_eq!(run.wait().expect("its status").code(), Some(130));
    assert_eq!(live(), "");
    // Who asks for it by `nohup` gets a job that goes on.
    let mut run = hung_up(&home, "--ignore-signal=HUP", "2");
    until("the job runs", Duration::from_secs(60), runs);
    hang_up(&run);
    assert_eq!(run.wait().expect("its status").code(), Some(0));
}

/// Starts a command that sleeps, by a `weir run` that gets SIGHUP as `env` sets it.
fn hung_up(home: &Home, signal: &str, seconds: &str) -> std::process::Child {
    let weir = home.weir(&["run", "--pool", "local", "--", "sleep", seconds]);
    let mut command = std::process::Command::new("env");
    command.arg(signal).arg(weir.get_program()).args(weir.get_args());
    command.envs(weir.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("weir run")
}

fn hang_up(run: &std::process::Child) {
    let pid = rustix::process::Pid::from_child(run);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("a signal");
}
