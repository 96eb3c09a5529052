//! `weir run` behaves like a local command: its output and exit codes.

#[path = "../support/mod.rs"]
mod support;

mod change;
mod comfort;
mod events;
mod http;
mod jobs;
mod json;
mod logs;
mod selection;
mod service;

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
    check(&["--max-run", "1s", "--", "sleep", "60"], 124, "", "weir: TimedOut: ran longer than 1s\n");
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
    let changes = "limit.cpus 8 → none, limit.memory 2Gi → 2049Mi, max_run 1h → 1d, weight 1 → 3";
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

/// A signal that comes while the broker is deciding about the job must not leave a job running without its client.
#[test]
fn run_cancels_its_job_when_it_is_interrupted_before_the_broker_answers() {
    let (home, dev) = dev();
    let dev = rustix::process::Pid::from_child(&dev.0);
    let signal = |pid, signal| rustix::process::kill_process(pid, signal).expect("a signal");
    let mut run = home.weir(&["run", "--", "sleep", "1000"]);
    signal(dev, rustix::process::Signal::STOP);
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("weir run");
    let pid = rustix::process::Pid::from_child(&run);
    until("run catches signals", Duration::from_secs(60), || catches_terminate(pid));
    signal(pid, rustix::process::Signal::TERM);
    // The signal arrives before the broker goes on.
    std::thread::sleep(Duration::from_millis(100));
    signal(dev, rustix::process::Signal::CONT);
    assert_eq!(run.wait().expect("its status").code(), Some(130));
    assert_eq!(home.run(&["get", "jobs", "-o", "name"]).1, "");
    assert!(home.run(&["get", "jobs", "--all"]).1.contains("CANCELLED"));
}

/// Returns whether a process handles SIGTERM itself.
fn catches_terminate(pid: rustix::process::Pid) -> bool {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
    let terminate = 1 << (rustix::process::Signal::TERM.as_raw() - 1);
    u64::from_str_radix(caught.trim(), 16).expect("a mask of signals") & terminate != 0
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
