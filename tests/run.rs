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
    let mut command = home.weir(&["run", "--pool", "local", "--cpus", "900", "--", "true"]);
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

/// What did not run must not seem to have succeeded.
#[test]
fn simulated_pools_take_only_jobs_that_ask_for_them() {
    let (home, _dev) = dev();
    // The region has a real pool and a simulated one, the other only a simulated one.
    assert_eq!(home.run(&["run", "--region", "CN-CQ", "--", "sh", "-c", "exit 3"]).0, 3);
    let (code, job, errors) =
        home.run(&["run", "--detach", "--region", "CN-XJ", "--name", "real", "--", "true"]);
    assert_eq!((code, job.as_str()), (0, "job/real\n"), "{errors}");
    let (_, why, _) = home.run(&["why", "job/real"]);
    assert!(why.lines().any(|line| line.contains("xj-ascend") && line.contains("PoolSimulated")), "{why}");
    assert_eq!(home.run(&["run", "--pool", "xj-ascend", "--", "sh", "-c", "exit 3"]).0, 0);
    let spec = home.path().join("partly.yaml");
    let group = "{cpus: 1, memory: 64Mi, command: [sh, -c, 'exit 3']";
    let text = format!(
        "name: partly\nconstraints: {{regions: [CN-XJ]}}\ngang_job: true\ngroups:\n\
         - {group}, name: a, simulate: {{duration: 1s}}}}\n- {group}, name: b}}\n"
    );
    std::fs::write(&spec, text).unwrap();
    assert_eq!(home.run(&["submit", spec.to_str().unwrap()]).0, 0);
    let (_, why, _) = home.run(&["why", "job/partly"]);
    assert!(why.lines().any(|line| line.contains("xj-ascend") && line.contains("PoolSimulated")), "{why}");
}

#[test]
fn every_example_is_accepted() {
    let (home, _dev) = dev();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let names =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<String> = names.filter(|name| name.ends_with(".yaml")).collect();
    // The example of a dependency names job 1.
    files.sort_by_key(|name| (name != "array.yaml", name.clone()));
    assert!(files.len() >= 10, "{files:?}");
    for file in files {
        let path = folder.join(&file);
        let (code, _, errors) = home.run(&["submit", path.to_str().unwrap()]);
        assert_eq!((code, errors.as_str()), (0, ""), "{file}");
    }
}
