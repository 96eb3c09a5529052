//! Jobs of files and lists: what is submitted, refused, listed, run again and cancelled.

use super::*;

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
    let ranges = |arguments: &[&str]| {
        let (code, table, errors) = home.run(&[&["get", "units", "job/array"], arguments].concat());
        assert_eq!(code, 0, "{errors}");
        let row = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        table.lines().skip(1).map(row).collect::<Vec<_>>()
    };
    let succeeded = |units: &str| format!("{units} SUCCEEDED Succeeded");
    let failed_ranges = ["3 1 FAILED Failed", "17-18 2 FAILED Failed"].map(str::to_owned);
    let [first, second] = failed_ranges.clone();
    let all = [succeeded("0-2 3"), first, succeeded("4-16 13"), second, succeeded("19-39 21")];
    assert_eq!(ranges(&[]), all);
    assert_eq!(ranges(&["--failed"]), failed_ranges);
    let [.., largest] = &all;
    assert_eq!(ranges(&["--sort", "-count", "--limit", "1"]), std::slice::from_ref(largest));
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
        assert!(errors.contains(":3: groups[0]: no pool can ever run it: "), "{errors}");
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
    assert!(described.contains("it depends on job/default/first, which has failed"), "{described}");
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
fn dependencies_are_shown_by_name_and_a_printed_chain_is_one_when_submitted_again() {
    let (home, _dev) = dev();
    let file = home.path().join("chain.yaml");
    let path = file.to_str().expect("a plain path");
    let first = "- name: first\n  groups: [{cpus: 100m, memory: 16Mi, command: [sleep, '1000']}]\n";
    let second = "- name: second\n  depends_on: [{job: first}]\n  groups: [{cpus: 100m, memory: 16Mi, command: ['true']}]\n";
    std::fs::write(&file, [first, second].concat()).expect("a file");
    assert_eq!(home.run(&["submit", path]).0, 0);
    let shown = |arguments: &[&str], what: &str| {
        let output = home.run(arguments).1;
        assert!(output.contains(what), "{arguments:?}: {output}");
    };
    shown(&["describe", "job/second"], "starts once job/first has succeeded");
    shown(&["why", "job/second"], "waits for job/default/first to end");
    shown(&["get", "job/second", "-o", "yaml"], "- job: first\n");
    // A job that still waits for another waits for it again.
    assert_eq!(home.run(&["cancel", "job/second"]).0, 0);
    let (code, again, errors) = home.run(&["rerun", "job/second"]);
    assert!(code == 0 && !errors.contains("dependency"), "{code}: {errors}");
    shown(&["describe", again.trim()], "starts once job/first has succeeded");
    assert_eq!(home.run(&["cancel", again.trim()]).0, 0);
    let chain = home.run(&["get", "job/first", "-o", "yaml"]).1;
    let printed = home.run(&["get", "jobs", "--all", "-o", "yaml"]).1;
    assert!(chain.contains("name: first") && printed.find("name: first") < printed.find("name: second"));
    assert_eq!(home.run(&["cancel", "job/first"]).0, 0);
    // What it waited for has ended otherwise: that is reported, not left out in silence.
    let (code, alone, errors) = home.run(&["rerun", "job/second"]);
    assert_eq!(code, 0, "{errors}");
    assert!(errors.contains("without its dependency on job/first, which can't be met any more"), "{errors}");
    assert_eq!(home.run(&["wait", alone.trim(), "--timeout", "60s"]).0, 0);
    std::fs::write(&file, printed).expect("a file");
    let (code, output, errors) = home.run(&["submit", path]);
    assert_eq!(code, 0, "{errors}");
    assert!(output.starts_with("job/first\njob/second\n"), "{output}");
    shown(&["why", "job/second"], "waits for job/default/first to end");
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
        // Those of which something runs already are only being cancelled.
        let plain = |line: &str| line.replace("cancelling: its tasks are being stopped", "cancelled");
        let mut lines: Vec<String> = output.lines().map(plain).collect();
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
