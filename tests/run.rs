//! `weir run` is like a local command: what it prints, and the code that it exits with.

mod support;

use std::process::Stdio;
use std::time::Duration;

use support::{Home, until};

/// A broker with this machine's pool, ready.
fn dev() -> (Home, support::Process) {
    let mut home = Home::new();
    let dev = home.start_broker("dev");
    until("this machine's pool is ready", Duration::from_secs(30), || {
        home.run(&["get", "pools"]).1.lines().any(|line| line.starts_with("local") && line.contains("READY"))
    });
    (home, dev)
}

#[test]
fn run_exits_with_the_commands_code_or_says_what_kept_it_from_one() {
    let (home, _dev) = dev();
    let check = |arguments: &[&str], code: i32, out: &str, said: &str| {
        let (found, printed, error) = home.run(&[&["run"], arguments].concat());
        assert_eq!((found, printed.as_str(), error.as_str()), (code, out, said), "{arguments:?}");
    };
    check(&["--", "sh", "-c", "echo hello from $WEIR_REGION"], 0, "hello from CN-CQ\n", "");
    check(&["--", "sh", "-c", "exit 7"], 7, "", "");
    check(&["--", "no-such-program"], 127, "", "weir: no-such-program: no such program in PATH\n");
    check(&["--max-run", "1s", "--", "sleep", "60"], 124, "", "weir: TimedOut: ran longer than 1000 ms\n");
}

#[test]
fn run_shows_every_attempt_of_a_command_that_is_tried_again() {
    let (home, _dev) = dev();
    let tried = home.path().join("tried");
    let script = format!(
        "if mkdir {0}.1 2>/dev/null; then echo one; exit 3; fi; \
         if mkdir {0}.2 2>/dev/null; then echo two; exit 4; fi; echo three",
        tried.display()
    );
    let (code, printed, said) = home.run(&["run", "--attempts", "3", "--", "sh", "-c", &script]);
    assert_eq!((code, printed.as_str()), (0, "one\ntwo\nthree\n"), "{said}");
    assert_eq!(
        said,
        "weir: attempt 1 is over; this is attempt 2\nweir: attempt 2 is over; this is attempt 3\n"
    );
}

#[test]
fn run_that_is_told_to_end_cancels_its_job_and_waits_for_it() {
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
fn run_that_waits_says_why() {
    let (home, _dev) = dev();
    let mut command = home.weir(&["run", "--pool", "local", "--cpus", "900", "--", "true"]);
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("weir run");
    let mut said = std::io::BufReader::new(run.stderr.take().expect("its errors"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).expect("a line");
    let expected = "fits into no pool, and waits for one (local: 900 CPUs needed by one task";
    assert!(line.contains(expected), "{line}");
    run.kill().expect("it waits");
    run.wait().expect("an end");
}

#[test]
fn job_of_another_queue_is_found_by_the_name_that_is_printed() {
    let (home, _dev) = dev();
    let file = home.path().join("queues.yaml");
    std::fs::write(&file, "queues: [{name: cq}, {name: cq/yubei}]\n").expect("a file");
    let file = file.display().to_string();
    let (code, _, said) = home.run(&["apply", "-f", &file]);
    assert_eq!(code, 0, "{said}");
    let (code, printed, said) =
        home.run(&["run", "--detach", "-q", "cq/yubei", "--name", "far", "--", "true"]);
    assert_eq!((code, printed.as_str()), (0, "job/cq/yubei/far\n"), "{said}");
    let (code, _, said) = home.run(&["wait", printed.trim()]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(home.run(&["describe", printed.trim()]).0, 0);
}
