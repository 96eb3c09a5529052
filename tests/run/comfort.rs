//! What makes daily use easy: what is printed can be used again, in the user's language, and shells complete names.

use super::*;

/// Submits a file with this text.
pub fn submit(home: &Home, text: &str) -> (i32, String, String) {
    let spec = home.path().join("given.yaml");
    std::fs::write(&spec, text).expect("a file");
    home.run(&["submit", "--allow-pending", spec.to_str().expect("a plain path")])
}

#[test]
fn printed_jobs_and_queues_can_be_given_back() {
    let (home, _dev) = dev();
    let text = "name: again\nlabels: {team: vision}\nmax_failed: 0\nmax_run: 90m\nretry: {max_attempts: 3, backoff: 1s}\n\
                constraints: {pools: [local]}\ngroups:\n- {cpus: 500m, memory: 96Mi, env: {A: '1', B: 'x: y'}, command: [sh, -c, 'echo \"$A $B\"']}\n";
    assert_eq!(submit(&home, text).0, 0);
    assert_eq!(home.run(&["wait", "job/again"]).0, 0);
    let (_, first, _) = home.run(&["get", "job/again", "-o", "yaml"]);
    let (code, _, errors) = submit(&home, &first);
    assert_eq!(code, 0, "{errors}\n{first}");
    assert_eq!(home.run(&["wait", "job/again"]).0, 0);
    let (_, second, _) = home.run(&["get", "job/again", "-o", "yaml"]);
    let spec = |printed: &str| printed.split("status:").next().expect("a part").to_owned();
    assert_eq!(spec(&first), spec(&second));
    assert_eq!(home.run(&["logs", "job/again"]).1, "1 x: y\n");
    let id = |printed: &str| printed.lines().find(|line| line.trim().starts_with("id: ")).map(str::to_owned);
    assert_ne!(id(&first), id(&second));
    // Times are there for programs and for people.
    assert!(first.contains("submitted_unix_ms: ") && first.contains("submitted_at: \"20"), "{first}");
    let queues = home.path().join("queues.yaml");
    let path = queues.to_str().expect("a plain path");
    std::fs::write(
        &queues,
        "queues: [{name: a, limit: {cpus: 1.5, memory: 3Gi}, lease: 90s}, {name: a/b}]\n",
    )
    .unwrap();
    assert_eq!(home.run(&["apply", path]).0, 0);
    std::fs::write(&queues, home.run(&["get", "queues", "-o", "yaml"]).1).unwrap();
    let (code, printed, errors) = home.run(&["apply", path]);
    assert_eq!(
        (code, printed.as_str()),
        (0, "queue/default unchanged\nqueue/a unchanged\nqueue/a/b unchanged\n"),
        "{errors}"
    );
}

/// Large files are submitted in batches: what was submitted before an error is named.
#[test]
fn an_error_in_a_later_batch_names_what_was_submitted() {
    let (home, _dev) = dev();
    let job = |index: usize| format!("- {{name: j{index}, groups: [{{cpus: 900, command: [a]}}]}}\n");
    let last = "- {name: last, queue: nowhere, groups: [{cpus: 900, command: [a]}]}\n";
    let text: String = (0..600).map(job).collect::<String>() + last;
    let (code, printed, errors) = submit(&home, &text);
    assert_eq!((code, printed.lines().count()), (8, 500), "{errors}");
    assert!(errors.contains("the first 500 of 601 jobs of the file were submitted"), "{errors}");
}

/// A name that is given twice is found before anything is submitted.
#[test]
fn a_name_is_used_once_in_a_file() {
    let (home, _dev) = dev();
    let job = |name: &str| format!("- {{name: {name}, groups: [{{cpus: 1, command: [a]}}]}}\n");
    let (code, printed, errors) = submit(&home, &[job("a"), job("b"), job("a")].concat());
    assert!(code == 8 && printed.is_empty(), "{code} {printed}");
    assert!(errors.contains("given.yaml:1:4: jobs[0].name: \"a\" is used again further down"), "{errors}");
}

#[test]
fn reasons_and_codes_are_printed_in_the_users_language() {
    let (home, _dev) = dev();
    let text = "name: large\ngroups: [{cpus: 900, command: ['true']}]\n";
    assert_eq!(submit(&home, text).0, 0);
    let (code, why, _) = home.run(&["why", "job/large", "--lang", "zh"]);
    assert_eq!(code, 11);
    assert!(why.contains("任务组 main：1 个单元在等待") && why.contains("单个任务需要 900 核 CPU"), "{why}");
    let by_locale = home.weir(&["why", "job/large"]).env("LC_ALL", "zh_CN.UTF-8").output().expect("weir");
    assert_eq!(String::from_utf8_lossy(&by_locale.stdout), why);
    let by_variable =
        home.weir(&["why", "job/large"]).env("WEIR_LANG", "zh_CN.UTF-8").output().expect("weir");
    assert_eq!(String::from_utf8_lossy(&by_variable.stdout), why);
    let english = home.weir(&["why", "job/large"]).env("LC_ALL", "C.UTF-8").output().expect("weir");
    assert!(String::from_utf8_lossy(&english.stdout).contains("900 CPUs needed by one task"));
    let (code, _, errors) = home.run(&["get", "job/nope", "--lang", "zh"]);
    assert_eq!((code, errors.as_str()), (3, "错误：作业 \"nope\" 不存在\n"));
    let (code, _, errors) = home.run(&["delete", "pool/local", "--lang", "zh"]);
    assert_eq!(
        (code, errors.as_str()),
        (4, "错误：算力池 \"local\" 仍在使用：它的代理已连接；请停止代理，再等 15 秒\n")
    );
    assert!(home.run(&["explain", "tasktoolarge", "--lang", "zh"]).1.contains("减少每个任务的请求"));
    // JSON has the numbers, whatever the language.
    let (_, json, _) = home.run(&["why", "job/large", "-o", "json", "--lang", "zh"]);
    assert!(json.contains("\"needed\": \"900000\"") && json.contains("900 CPUs needed"), "{json}");
}

/// Whatever goes wrong: each line that is printed about it has Chinese text, beside what the user typed.
#[test]
fn errors_hints_and_descriptions_are_printed_in_the_users_language() {
    let (home, _dev) = dev();
    let is_chinese = |line: &str| line.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
    let file = home.path().join("wrong.yaml");
    let text = "name: '359'\ngroups:\n- {name: A, gpu: 1, memory: 4096, count: 0, command: [true]}\npriority: x\nwalltime: 1h\n";
    std::fs::write(&file, text).expect("a file");
    let file = file.to_str().expect("a path in UTF-8");
    let wrong: &[&[&str]] = &[
        &["submit", file],
        &["run", "--cpus", "x", "--", "true"],
        &["run", "--device", "H999:1", "--", "true"],
        &["run", "--region", "Mars", "--", "true"],
        &["run", "--cpus", "100000", "--", "true"],
        &["get", "pods"],
        &["get", "jobs", "-l", "a==b=c"],
        &["get", "jobs", "--queue", "none"],
        &["get", "nodes", "--all"],
        &["squeue"],
        &["cancel"],
        &["cancel", "job/none"],
        &["logs", "job/none"],
        &["delete", "job/x"],
        &["describe", "attempt/x"],
        &["explain", "job.groups.gpu"],
        &["--server", "127.0.0.1:1", "get", "jobs"],
    ];
    for words in wrong {
        let (code, printed, errors) = home.run(&[&["--lang", "zh"], *words].concat());
        assert!(code != 0 && printed.is_empty(), "{words:?}: {code} {printed}");
        let lines = errors.lines().filter(|line| !line.is_empty());
        let english: Vec<&str> = lines.filter(|line| !is_chinese(line)).collect();
        assert_eq!(english, [""; 0], "{words:?}");
    }
    let (_, _, errors) = home.run(&["run", "--lang", "zh", "--cpus", "100000", "--", "true"]);
    assert_eq!(errors, "错误：--cpus: 100000 CPUs 不在 0 CPUs 和 1000 CPUs 之间\n");
    assert_eq!(submit(&home, "name: large\ngroups: [{cpus: 900, command: ['true']}]\n").0, 0);
    let (_, described, _) = home.run(&["describe", "job/large", "--lang", "zh"]);
    assert!(described.contains("状态        等待\n"), "{described}");
    assert!(described.contains("单元        共 1 个：成功 0，失败 0，运行 0，等待 1\n"), "{described}");
    let (_, done, _) = home.run(&["cancel", "job/large", "--lang", "zh"]);
    assert_eq!(done, "job/large 已取消\n");
}

#[test]
fn shells_are_offered_what_the_broker_knows() {
    let (home, _dev) = dev();
    assert_eq!(submit(&home, "name: waits\ngroups: [{cpus: 900, command: ['true']}]\n").0, 0);
    let offered = |words: &[&str]| {
        let mut command = home.weir(&[&["--", "weir"], words].concat());
        command
            .env("COMPLETE", "bash")
            .env("_CLAP_IFS", "\n")
            .env("_CLAP_COMPLETE_INDEX", words.len().to_string());
        let output = command.output().expect("weir");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(offered(&["why", "job/"]), ["job/waits"]);
    assert_eq!(offered(&["cordon", "gz"]), ["gz-nvidia"]);
    assert_eq!(offered(&["get", "pools", "gz"]), ["gz-nvidia"]);
    assert_eq!(offered(&["describe", "queue", "def"]), ["default"]);
    assert_eq!(offered(&["run", "--device", "Ascend"]), ["Ascend910B3"]);
    assert_eq!(offered(&["describe", "queue/"]), ["queue/default"]);
    assert_eq!(offered(&["run", "--queue", "d"]), ["default"]);
    assert_eq!(offered(&["delete", "queue/"]), ["queue/default"]);
    assert_eq!(offered(&["explain", "NodeFrag"]), ["NodeFragmentation"]);
    assert_eq!(offered(&["explain", "job.groups.dev"]), ["job.groups.devices"]);
    assert_eq!(offered(&["get", "jobs", "--state", "failed,succ"]), ["failed,succeeded"]);
    assert!(offered(&["describe", "node/"]).contains(&"node/dgx-0001".to_owned()));
    assert!(offered(&["get", "--s"]).contains(&"--since".to_owned()));
    let script = home.run(&["completion", "bash"]).1;
    assert!(script.contains("COMPLETE=\"bash\"") && script.contains("complete -o"), "{script}");
}

#[test]
fn history_is_selected_by_state_and_shows_how_jobs_ended() {
    let (home, _dev) = dev();
    for (name, script) in [("good", "exit 0"), ("bad", "exit 3")] {
        home.run(&["run", "-d", "--name", name, "--pool", "local", "--", "sh", "-c", script]);
        home.run(&["wait", &format!("job/{name}")]);
    }
    assert_eq!(submit(&home, "name: waits\ngroups: [{cpus: 900, command: ['true']}]\n").0, 0);
    let names = |arguments: &[&str]| {
        let (code, text, errors) = home.run(&[&["get", "jobs", "-o", "name"], arguments].concat());
        assert_eq!(code, 0, "{errors}");
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&["--state", "failed"]), ["job/bad"]);
    assert_eq!(names(&["--state", "succeeded,pending"]), ["job/waits", "job/good"]);
    assert_eq!(names(&["--all", "--since", "1h"]).len(), 3);
    let (_, table, _) = home.run(&["get", "jobs", "--state", "failed"]);
    let row: Vec<&str> = table.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!((row[0], row[4], row[6]), ("bad", "local", "Failed:3"), "{table}");
    let (code, _, errors) = home.run(&["get", "jobs", "--state", "broken"]);
    assert_eq!((code, errors.contains("use pending, running")), (2, true), "{errors}");
    let (code, _, errors) = home.run(&["get", "pools", "--state", "failed"]);
    assert_eq!((code, errors.contains("--state applies only to a list of jobs")), (2, true), "{errors}");
}

#[test]
fn every_kind_of_object_is_described() {
    let (home, _dev) = dev();
    let text = "name: shown\nlabels: {team: vision}\nconstraints: {regions: [Chongqing], pools: [local]}\nretry: {max_attempts: 2}\n\
                groups:\n- {cpus: 1, memory: 64Mi, env: {TOKEN: hidden}, command: [sh, -c, 'sleep 60', 'a b']}\n";
    assert_eq!(submit(&home, text).0, 0);
    until("the job runs", Duration::from_secs(30), || home.run(&["get", "job/shown"]).1.contains("RUNNING"));
    let described = |what: &str| {
        let (code, text, errors) = home.run(&["describe", what]);
        assert_eq!(code, 0, "{what}: {errors}");
        text
    };
    let job = described("job/shown");
    for part in ["sh -c 'sleep 60' 'a b'", "TOKEN", "team=vision", "CN-CQ", "up to 2 attempts", "grace 10s"] {
        assert!(job.contains(part), "{part}: {job}");
    }
    assert!(!job.contains("hidden"), "values of variables may be secrets: {job}");
    let attempt = home.run(&["get", "attempts", "job/shown", "-o", "name"]).1.trim().to_owned();
    assert!(attempt.starts_with("attempt/"), "{attempt}");
    assert!(described(&attempt).contains("job/shown"));
    let node = home.run(&["get", "nodes", "--pool", "local", "-o", "name"]).1.trim().to_owned();
    assert!(described(&node).contains("1 of"), "{}", described(&node));
    assert!(described("node/dgx-0000").contains("A100-80G"));
    assert!(described("queue/default").contains("1 live, 1 units started"));
    let (_, json, _) = home.run(&["describe", "job/shown", "-o", "json"]);
    assert!(json.contains("\"attempts\"") && json.contains(attempt.trim_start_matches("attempt/")), "{json}");
    for (what, code) in
        [("attempt/x", 8), ("attempt/aaaaaaaaab-1-0-1", 3), ("node/none", 3), ("queue/none", 3)]
    {
        let (found, _, errors) = home.run(&["describe", what]);
        assert_eq!(found, code, "{what}: {errors}");
    }
    // What would be ignored is refused.
    for arguments in
        [&["describe", "nodes"][..], &["get", "job/shown", "job/x"], &["describe", "job/shown", "job/x"]]
    {
        assert_eq!(home.run(arguments).0, 2, "{arguments:?}");
    }
    home.run(&["cancel", "job/shown"]);
}
