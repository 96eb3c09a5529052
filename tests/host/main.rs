//! The host pool's supervisor on real processes: gangs, limits, leftovers, kills, output.

#[path = "../support/mod.rs"]
mod support;

mod files;
mod isolation;
mod stops;

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use serde_json::{Value, json};
use support::disk::skip;
use support::supervisor::{
    Ended, NO_GROUPS, ROOT_GROUP, Supervisor, TIMEOUT, Task, is_alive, namespaces_work,
};
use support::{Home, until};
use weir::clock::Clock;
use weir::model::id::AttemptId;
use weir::model::region::RegionCode;
use weir::pools::host::isolation::{Mode, RunAs};
use weir::pools::host::{Host, Settings};
use weir::pools::{LogPart, PoolBackend, ReadLogs, Stream};

/// Runs a check without control groups and with them, and each without namespaces and with them.
fn in_every_way(check: impl Fn(Supervisor)) {
    for parent in [NO_GROUPS, ROOT_GROUP] {
        check(Supervisor::start(&["--cgroup-parent", parent]));
        if namespaces_work() {
            check(Supervisor::start(&["--cgroup-parent", parent]).isolated());
        }
    }
}

fn ended(kind: &str, exit_code: Option<i64>, signal: Option<i64>, message: &str) -> Ended {
    Ended { kind: kind.to_owned(), exit_code, signal, message: message.to_owned() }
}

/// The agent's reader of output.
fn logs(supervisor: &Supervisor) -> std::sync::Arc<dyn ReadLogs> {
    let settings = Settings {
        program: support::WEIR.into(),
        pool: "local".to_owned(),
        region: RegionCode::default(),
        state: supervisor.scratch().to_owned(),
        cpus: None,
        memory_bytes: None,
        devices: Vec::new(),
        cgroup_parent: None,
        log_max_bytes: 0,
        processes_max: 0,
        isolation: Mode::IfPossible,
        run_as: RunAs::Agent,
        hidden: Vec::new(),
    };
    Host::new(settings, Clock::start()).logs()
}

fn read(supervisor: &Supervisor, task: u32, stream: Stream) -> String {
    let attempt = supervisor.attempt().parse().expect("an attempt");
    let part = logs(supervisor).read(attempt, task, stream, 0, 1 << 20).expect("output");
    String::from_utf8_lossy(&part.data).into_owned()
}

#[test]
fn a_gang_succeeds_when_all_its_tasks_have_and_each_has_its_own_output() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        let script = "echo out $WEIR_GANG_RANK; echo err $WEIR_GANG_RANK >&2; pwd >&2";
        supervisor
            .start_attempt(&attempt, &[Task::script(script), Task::script(script), Task::script("exit 0")]);
        assert_eq!(supervisor.ended(&attempt), ended("succeeded", Some(0), None, ""));
        assert_eq!(read(&supervisor, 0, Stream::Stdout), "out 0\n");
        assert_eq!(read(&supervisor, 1, Stream::Stdout), "out 1\n");
        assert_eq!(read(&supervisor, 2, Stream::Stdout), "");
        let errors = [0, 1].map(|task| read(&supervisor, task, Stream::Stderr));
        assert!(errors[0].starts_with("err 0\n") && errors[1].starts_with("err 1\n"), "{errors:?}");
        assert_ne!(errors[0].lines().nth(1), errors[1].lines().nth(1), "each task has a directory");
        supervisor.send(&json!({ "forget": { "attempt": attempt } }));
        until("the attempt is moved to the logs", TIMEOUT, || {
            supervisor.state().join("logs").join(&attempt).is_dir()
        });
        assert_eq!(read(&supervisor, 1, Stream::Stdout), "out 1\n");
    });
}

#[test]
fn the_first_task_that_fails_ends_its_gang_and_is_named() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        let lasting = format!("{}; exec sleep 1000", supervisor.note_pid("lasting"));
        let stubborn =
            format!("trap '' TERM; {}; while :; do sleep 1; done", supervisor.note_pid("stubborn"));
        let go = supervisor.scratch().join("go");
        let failing = format!("while [ ! -e {} ]; do sleep 0.05; done; exit 3", go.display());
        let tasks = [Task::script(&lasting), Task::script(&failing), Task::script(&stubborn)];
        supervisor.start_attempt_with(&attempt, &tasks, json!({ "grace_ms": 300 }));
        let pids = [supervisor.pid("lasting"), supervisor.pid("stubborn")];
        std::fs::write(go, "").expect("a file");
        let expected = ended("failed", Some(3), None, "task 1 of 3: exit code 3");
        assert_eq!(supervisor.ended(&attempt), expected);
        assert_eq!(pids.map(is_alive), [false, false], "an attempt ends when nothing of it is left");
    });
}

#[test]
fn a_gang_of_which_one_task_does_not_start_is_stopped() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let attempt = supervisor.attempt();
    let lasting = Task::script("exec sleep 1000");
    let missing = Task::command(&["/nowhere/to/be/found"]);
    supervisor.start_attempt(&attempt, &[lasting, missing, Task::script("exec sleep 1000")]);
    let message = "task 1 of 3: /nowhere/to/be/found: no such file";
    assert_eq!(supervisor.ended(&attempt), ended("failed", Some(127), None, message));
    let third = supervisor.state().join("attempts").join(&attempt).join("2.stdout");
    assert_eq!(std::fs::metadata(third).expect("a file").len(), 0, "the third was never started");
}

#[test]
fn a_command_that_can_not_run_has_the_exit_code_of_a_shell_and_a_reason() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        let text = supervisor.scratch().join("text");
        std::fs::write(&text, "exit 4\n").expect("a file");
        let path = text.to_str().expect("a plain path").to_owned();
        for (index, (command, code, message)) in [
            ("no-such-program", 127, "no-such-program: no such program in PATH".to_owned()),
            ("./no-such-file", 127, "./no-such-file: no such file".to_owned()),
            (path.as_str(), 126, format!("{path}: can't be executed")),
        ]
        .into_iter()
        .enumerate()
        {
            let attempt = format!("{attempt}{index}");
            supervisor.start_attempt(&attempt, &[Task::command(&[command])]);
            assert_eq!(supervisor.ended(&attempt), ended("failed", Some(code), None, &message));
            let directory = supervisor.state().join("attempts").join(&attempt);
            for stream in ["0.stdout", "0.stderr"] {
                let found = std::fs::metadata(directory.join(stream)).expect("a file of output");
                assert_eq!((found.len(), found.permissions().readonly()), (0, true), "empty and complete");
            }
        }
        // A script without a `#!` line is run by a shell.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&text, mode).expect("a mode");
        supervisor.start_attempt(&attempt, &[Task::command(&[&path])]);
        assert_eq!(supervisor.ended(&attempt), ended("failed", Some(4), None, ""));
    });
}

#[test]
fn a_gang_is_adopted_whole_when_its_supervisor_is_killed() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        let lasting = |name: &str| format!("{}; exec sleep 1000", supervisor.note_pid(name));
        let tasks = [lasting("a"), lasting("b")].map(|script| Task::script(&script));
        supervisor.start_attempt(&attempt, &tasks);
        let pids = [supervisor.pid("a"), supervisor.pid("b")];
        supervisor.replace();
        assert!(supervisor.running(&attempt).get("running").is_some());
        assert_eq!(pids.map(is_alive), [true, true], "a supervisor's end is not its tasks'");
        // A request for an attempt that the supervisor adopted starts nothing.
        supervisor.start_attempt(
            &attempt,
            &[Task::script(&format!("{}; sleep 1000", supervisor.note_pid("twice")))],
        );
        supervisor.stop(&attempt, 500);
        assert_eq!(supervisor.ended(&attempt).kind, "cancelled");
        assert_eq!(pids.map(is_alive), [false, false]);
        assert!(!supervisor.scratch().join("twice").exists());
    });
}

#[test]
fn tasks_that_were_started_but_not_recorded_are_adopted() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        let lasting = |name: &str| format!("{}; exec sleep 1000", supervisor.note_pid(name));
        supervisor.start_attempt(&attempt, &["a", "b"].map(|name| Task::script(&lasting(name))));
        let pids = [supervisor.pid("a"), supervisor.pid("b")];
        supervisor.replace_after(|state| {
            // As after a kill between the start of the tasks and its record in the journal.
            let journal = state.join("journal");
            let text = std::fs::read_to_string(&journal).expect("the journal");
            let others = text.lines().filter(|line| !line.starts_with("{\"started\""));
            let others: String = others.map(|line| format!("{line}\n")).collect();
            std::fs::write(&journal, others).expect("free space");
        });
        assert!(supervisor.running(&attempt).get("running").is_some());
        supervisor.stop(&attempt, 500);
        assert_eq!(supervisor.ended(&attempt).kind, "cancelled");
        assert_eq!(pids.map(is_alive), [false, false]);
    });
}

/// A program that is loaded into everything which has the job's environment would otherwise escape the control group,
/// or break what starts the task.
#[test]
fn the_environment_of_a_job_reaches_its_program_alone() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        let log = supervisor.scratch().join("loaded");
        let env = json!([
            ["LD_DEBUG", "files"],
            ["LD_DEBUG_OUTPUT", log.display().to_string()],
            ["ODD", "a=b\n c"],
            ["PATH", "/usr/bin:/bin"],
            ["PATH", "/bin:/usr/bin"],
        ]);
        // The files are closed when the program runs: it can't report the failure of its own start.
        let script = "echo \"$ODD|$PATH\"; ls -l /proc/self/fd | grep memfd; cat; exit 127";
        supervisor.start_attempt_with(&attempt, &[Task::script(script)], json!({ "env": env }));
        assert_eq!(supervisor.ended(&attempt), ended("failed", Some(127), None, ""));
        assert_eq!(read(&supervisor, 0, Stream::Stdout), "a=b\n c|/bin:/usr/bin\n");
        let loaded = std::fs::read_dir(supervisor.scratch()).expect("the folder").flatten();
        let loaded = loaded.filter(|entry| entry.file_name().to_string_lossy().starts_with("loaded."));
        let texts: Vec<String> =
            loaded.map(|entry| std::fs::read_to_string(entry.path()).expect("a log")).collect();
        let initialized = |program: &str| texts.iter().any(|text| text.contains(program));
        assert!(initialized("initialize program: sh\n"), "the program has the environment: {texts:?}");
        assert!(!initialized("initialize program: weir\n"), "the shim has it, too");
    });
}

#[test]
fn what_a_lost_or_damaged_journal_no_longer_names_runs_no_more() {
    let flip = |text: &str| text.replacen("\"ordered\"", "\"ordereD\"", 1);
    let swap = |text: &str| text.replacen("sleep 1000", "sleep 9000", 1);
    let lose = |_: &str| String::new();
    let damages: [&dyn Fn(&str) -> String; 3] = [&flip, &swap, &lose];
    for damage in damages {
        in_every_way(|mut supervisor| {
            let attempt = supervisor.attempt();
            let script = format!("{}; setsid sleep 1000 & exec sleep 1000", supervisor.note_pid("main"));
            supervisor.start_attempt(&attempt, &[Task::script(&script)]);
            let pid = supervisor.pid("main");
            supervisor.replace_after(|state| {
                let journal = state.join("journal");
                let text = std::fs::read_to_string(&journal).expect("the journal");
                assert_ne!(damage(&text), text);
                std::fs::write(&journal, damage(&text)).expect("free space");
            });
            // The agent reports it as vanished, and it may be started again: here or elsewhere, but alone.
            assert!(!is_alive(pid));
            supervisor.start_attempt(
                &attempt,
                &[Task::script(&format!("{}; exec sleep 1000", supervisor.note_pid("again")))],
            );
            assert!(is_alive(supervisor.pid("again")));
            supervisor.stop(&attempt, 0);
            assert_eq!(supervisor.ended(&attempt).kind, "cancelled");
        });
    }
}

#[test]
fn a_forgotten_attempt_is_not_reported_after_the_journal_was_compacted() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let attempt = supervisor.attempt();
    supervisor.start_attempt(&attempt, &[Task::script("exit 3")]);
    assert_eq!(supervisor.ended(&attempt).exit_code, Some(3));
    // Long requests, so that the journal passes the length at which it is compacted.
    let long = format!(": {}", "x".repeat(100_000));
    for number in 0..60 {
        let attempt = format!("{attempt}{number}");
        supervisor.start_attempt(&attempt, &[Task::script(&long)]);
        assert_eq!(supervisor.ended(&attempt).kind, "succeeded");
        supervisor.send(&json!({ "forget": { "attempt": attempt } }));
    }
    let attempts = supervisor.state().join("attempts");
    let forgotten = || std::fs::read_dir(&attempts).is_ok_and(|list| list.count() == 1);
    until("all but the first are forgotten", TIMEOUT, forgotten);
    let journal = supervisor.state().join("journal");
    let is_short = || journal.metadata().is_ok_and(|found| found.len() < 4 << 20);
    until("the journal is compacted", TIMEOUT, is_short);
    supervisor.replace();
    assert_eq!(supervisor.ended(&attempt).exit_code, Some(3));
    assert_eq!(supervisor.reported(), [attempt]);
}

#[test]
fn an_exit_code_survives_a_kill_of_the_supervisor() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        supervisor.start_attempt(&attempt, &[Task::script("exit 7")]);
        let expected = supervisor.ended(&attempt);
        supervisor.replace();
        assert_eq!(supervisor.ended(&attempt), expected);
        assert_eq!(expected.exit_code, Some(7));
    });
}

#[test]
fn an_orphan_without_its_environment_is_found_and_killed() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        let note = supervisor.note_pid("orphan");
        // In a session of its own, orphaned, and without the variable that names its attempt.
        let script =
            format!("env -i setsid sh -c '{note}; trap \"\" TERM; while :; do sleep 1; done' & wait");
        let orphan = format!("( {script} ) & sleep 1000");
        supervisor.start_attempt(&attempt, &[Task::script(&orphan)]);
        let pid = supervisor.pid("orphan");
        assert!(is_alive(pid));
        supervisor.stop(&attempt, 200);
        assert_eq!(supervisor.ended(&attempt).kind, "cancelled");
        assert!(!is_alive(pid), "no process of a job outlives its cancellation");
    });
}

/// The wall clock may be set, forward or back, while the agent's clock goes on.
#[test]
fn whether_an_order_is_late_does_not_depend_on_the_wall_clock() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let [fits, late] = ["a", "b"].map(|name| format!("{}{name}", supervisor.attempt()));
    let boot_ms = |uptime: &str| {
        uptime.split('.').next().and_then(|text| text.parse::<u64>().ok()).expect("seconds") * 1_000
    };
    let now = boot_ms(&std::fs::read_to_string("/proc/uptime").expect("the uptime"));
    let by_wall_clock =
        |start_by: u64, boot: u64| json!({ "start_by_unix_ms": start_by, "start_by_boot_ms": boot });
    supervisor.start_attempt_with(&fits, &[Task::command(&["true"])], by_wall_clock(1, now + 600_000));
    assert_eq!(supervisor.ended(&fits).kind, "succeeded", "as if the wall clock were far ahead");
    supervisor.start_attempt_with(&late, &[Task::command(&["true"])], by_wall_clock(u64::MAX, 1));
    assert_eq!(supervisor.ended(&late).kind, "not_started", "as if the wall clock were far behind");
}

#[test]
fn many_short_tasks_leave_no_zombie_and_no_directory() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        let count = 200;
        for number in 0..count {
            supervisor.start_attempt(&format!("{attempt}{number}"), &[Task::command(&["true"])]);
        }
        for number in 0..count {
            let attempt = format!("{attempt}{number}");
            assert_eq!(supervisor.ended(&attempt).kind, "succeeded");
            supervisor.send(&json!({ "forget": { "attempt": attempt } }));
        }
        until("all are forgotten", TIMEOUT, || {
            std::fs::read_dir(supervisor.state().join("attempts")).expect("a folder").count() == 0
        });
        let pid = supervisor.process();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        assert_eq!(children.unwrap_or_default(), "");
    });
}

/// Reads standard output from its beginning to its end, as `weir logs` does, and returns the parts.
fn read_whole(logs: &dyn ReadLogs, attempt: AttemptId) -> Vec<LogPart> {
    let (mut parts, mut offset) = (Vec::new(), 0);
    loop {
        let part = logs.read(attempt, 0, Stream::Stdout, offset, 64 << 10).expect("output");
        offset = part.offset + part.data.len() as u64;
        let done = part.complete && offset >= part.end;
        parts.push(part);
        if done {
            return parts;
        }
    }
}

/// The supervisor's control group, if the kernel enforces `what` in it. If not, reports on standard error
/// that `test` is skipped.
///
/// With `WEIR_REQUIRE_REAL=1` it panics instead, if this is root on a machine with version 2 only.
fn enforced(test: &str, supervisor: &Supervisor, what: &str) -> Option<PathBuf> {
    let why = supervisor.notes.iter().find(|note| note.to_lowercase().starts_with(what));
    let Some(why) = why else { return Some(supervisor.group()) };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let hybrid = mounts.lines().any(|line| line.contains(" - cgroup "));
    let read_only = mounts.lines().any(|line| line.contains(" - cgroup2 ") && line.contains(" ro,"));
    let root = std::fs::metadata("/proc/self").expect("this process").uid() == 0;
    let in_container = why.contains("holds other processes");
    let possible = root && !hybrid && !read_only && !in_container;
    assert!(!(possible && std::env::var_os("WEIR_REQUIRE_REAL").is_some()), "{test}: {why}");
    // This bypasses the test runner's capture: a test that did not run must be visible.
    let line = format!("SKIPPED: {test}: {why}\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("standard error");
    None
}

#[test]
fn the_kernel_enforces_a_tasks_cpu_limit() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", ROOT_GROUP]);
    let attempt = supervisor.attempt();
    let test = "the_kernel_enforces_a_tasks_cpu_limit";
    let Some(group) = enforced(test, &supervisor, "cpu limits") else { return };
    let busy = Task { cpu_max_millis: 100, ..Task::script("while :; do :; done") };
    supervisor.start_attempt(&attempt, &[busy, Task::script("exec sleep 1000")]);
    let task = group.join(&attempt).join("0");
    until("its limit is set", TIMEOUT, || {
        std::fs::read_to_string(task.join("cpu.max")).is_ok_and(|text| text == "10000 100000\n")
    });
    until("it is throttled", TIMEOUT, || {
        let stat = std::fs::read_to_string(task.join("cpu.stat")).unwrap_or_default();
        let throttled = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        throttled.is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count > 5))
    });
    supervisor.stop(&attempt, 0);
    assert_eq!(supervisor.ended(&attempt).kind, "cancelled");
    until("its group is removed", TIMEOUT, || !group.join(&attempt).exists());
}

#[test]
fn the_kernel_enforces_limits_in_a_group_that_was_delegated_to_the_agent() {
    let test = "the_kernel_enforces_limits_in_a_group_that_was_delegated_to_the_agent";
    let probe = Supervisor::start(&["--cgroup-parent", ROOT_GROUP]);
    let Some(home) = enforced(test, &probe, "cpu limits") else { return };
    let delegated = home.with_file_name(format!("weir-test-{}", std::process::id()));
    std::fs::create_dir(&delegated).expect("a group");
    let mut supervisor = Supervisor::start_within(&delegated);
    assert_eq!(supervisor.notes, [""; 0], "it moved itself out of the group, so all limits are enforced");
    let attempt = supervisor.attempt();
    let limited = Task { cpu_max_millis: 500, ..Task::script("exec sleep 1000") };
    supervisor.start_attempt(&attempt, &[limited]);
    assert!(supervisor.running(&attempt).get("running").is_some());
    let group = supervisor.group().join(&attempt);
    assert!(group.starts_with(&delegated), "{}", group.display());
    assert_eq!(std::fs::read_to_string(group.join("cpu.max")).expect("a limit"), "50000 100000\n");
    // The next supervisor is started in another group, and finds this one.
    supervisor.replace();
    assert_eq!((supervisor.group().join(&attempt), supervisor.notes.len()), (group.clone(), 0));
    supervisor.stop(&attempt, 500);
    assert_eq!(supervisor.ended(&attempt).kind, "cancelled");
    until("its group is removed", TIMEOUT, || !group.exists());
    drop(supervisor);
    let below = std::fs::read_dir(&delegated).expect("the group").flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).for_each(|path| std::fs::remove_dir(path).expect("an empty group"));
    std::fs::remove_dir(&delegated).expect("an empty group");
}

#[test]
fn the_kernel_bounds_the_number_of_a_tasks_processes() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", ROOT_GROUP]);
    let attempt = supervisor.attempt();
    let test = "the_kernel_bounds_the_number_of_a_tasks_processes";
    if enforced(test, &supervisor, "the number of a task's processes").is_none() {
        return;
    }
    let count = "n=0; while [ $n -lt 40 ]; do sleep 1000 & n=$((n+1)); done; exit 7";
    supervisor.start_attempt_with(&attempt, &[Task::script(count)], json!({ "processes_max": 20 }));
    // The shell gives up when it can't make another process.
    let ended = supervisor.ended(&attempt);
    assert!(ended.kind == "failed" && ended.exit_code != Some(7), "{ended:?}");
}

/// Memory that a task's processes share counts once, however many they are.
#[test]
fn shared_memory_is_counted_once_where_the_kernel_does_not_count() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let attempt = supervisor.attempt();
    // They also end while they are looked at: such a process has 40 MiB resident when it is listed, and none afterwards.
    let script = "my $block = 'x' x (40 << 20); \
                  for (1..7) { if (!fork) { sleep 2; exit 0 } } \
                  1 while wait != -1; \
                  my $end = time + 3; \
                  while (time < $end) { \
                    for (1..7) { if (!fork) { select(undef, undef, undef, 0.02); exit 0 } } \
                    1 while wait != -1 \
                  }";
    // All eight have 40 MiB resident: 320 MiB, of which 40 exist.
    let task = Task { memory_max_bytes: 160 << 20, ..Task::command(&["perl", "-e", script]) };
    supervisor.start_attempt(&attempt, &[task]);
    let ended = supervisor.ended(&attempt);
    assert_eq!(ended.kind, "succeeded", "{ended:?}");
}

/// A task that allocates memory without end.
fn greedy() -> Task {
    let script = "x=0123456789abcdef; while :; do x=$x$x; done";
    Task { memory_max_bytes: 48 << 20, ..Task::script(script) }
}

#[test]
fn the_kernel_ends_a_task_that_uses_too_much_memory_and_its_gang() {
    for isolated in [false, true] {
        let mut supervisor = Supervisor::start(&["--cgroup-parent", ROOT_GROUP]);
        let attempt = supervisor.attempt();
        let test = "the_kernel_ends_a_task_that_uses_too_much_memory_and_its_gang";
        if enforced(test, &supervisor, "memory is watched").is_none() || isolated && !namespaces_work() {
            return;
        }
        if isolated {
            supervisor = supervisor.isolated();
        }
        // The memory of the shim, and of the first process of the namespaces, must not count against a small limit of
        // the task.
        let frugal = Task { memory_max_bytes: 1 << 20, ..Task::command(&["true"]) };
        supervisor.start_attempt(&format!("{attempt}0"), &[frugal]);
        assert_eq!(supervisor.ended(&format!("{attempt}0")).kind, "succeeded");
        supervisor.start_attempt(&attempt, &[Task::script("exec sleep 1000"), greedy()]);
        let message = "task 1 of 2: used more memory than was asked for";
        assert_eq!(supervisor.ended(&attempt), ended("out_of_memory", None, Some(9), message));
    }
}

#[test]
fn the_supervisor_ends_a_task_that_uses_too_much_memory_where_the_kernel_does_not() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let attempt = supervisor.attempt();
    let script =
        "( setsid sh -c 'x=0123456789abcdef; while [ ${#x} -lt 99999999 ]; do x=$x$x; done; sleep 1000' )";
    let escaped = Task { memory_max_bytes: 48 << 20, ..Task::script(script) };
    supervisor.start_attempt(&attempt, &[escaped]);
    let ended = supervisor.ended(&attempt);
    assert_eq!(ended.kind, "out_of_memory", "{ended:?}");
    assert!(
        supervisor.notes.iter().any(|note| note.starts_with("memory is watched")),
        "{:?}",
        supervisor.notes
    );
    assert!(supervisor.notes.iter().any(|note| note.starts_with("CPU limits are not enforced")));
}

#[test]
fn a_gang_with_devices_runs_through_a_broker_and_each_task_has_its_own_output() {
    let mut home = Home::new();
    let broker = home.start_broker("server");
    let devices = "[[host.devices]]\nmodel = \"A100-80G\"\ncount = 2\n";
    let agent = home.start_agent_with(4, devices);
    until("the pool is there", TIMEOUT, || home.run(&["get", "pool/local"]).0 == 0);
    let script = "echo $WEIR_GANG_RANK/$WEIR_GANG_SIZE at $WEIR_GANG_ADDRESSES sees $CUDA_VISIBLE_DEVICES";
    let mut arguments =
        vec!["run", "--name", "pair", "--gang", "2", "--pool", "local", "--device", "A100-80G:1"];
    arguments.extend(["--", "sh", "-c", script]);
    let (code, _, errors) = home.run(&arguments);
    assert_eq!(code, 0, "{errors} {}", home.log());
    let of_task = |task: &str| home.run(&["logs", "job/pair", "--task", task]).1;
    let mut outputs = [of_task("0"), of_task("1")].map(|line| {
        let (who, devices) = line.trim().split_once(" sees ").expect("devices").to_owned();
        (who.to_owned(), devices.to_owned())
    });
    assert_eq!(outputs[0].0, "0/2 at 127.0.0.1,127.0.0.1");
    assert_eq!(outputs[1].0, "1/2 at 127.0.0.1,127.0.0.1");
    outputs.sort_by(|left, right| left.1.cmp(&right.1));
    assert_eq!([outputs[0].1.as_str(), outputs[1].1.as_str()], ["0", "1"]);
    let none = home.run(&["run", "--pool", "local", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]);
    assert_eq!((none.0, none.1.as_str()), (0, "-1\n"), "{}", none.2);
    let failing = "[ $WEIR_GANG_RANK = 1 ] && exit 9; exec sleep 1000";
    let failed = home.run(&["run", "--gang", "2", "--pool", "local", "--", "sh", "-c", failing]);
    assert_eq!(failed.0, 9, "{}", failed.2);
    let described = home.run(&["describe", "pool/local"]).1;
    assert!(described.contains("a part of a device is counted, not enforced"), "{described}");
    drop((agent, broker));
}
