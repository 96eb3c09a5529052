//! Stops: their grace, their signals and the outcome.

use super::*;

#[test]
fn a_stop_right_after_the_start_leaves_nothing() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        for number in 0..10 {
            let attempt = format!("{attempt}{number}");
            supervisor
                .start_attempt(&attempt, &[Task::script("exec sleep 1000"), Task::script("exec sleep 1000")]);
            supervisor.stop(&attempt, 0);
            let ended = supervisor.ended(&attempt);
            assert_eq!((ended.kind.as_str(), ended.signal), ("cancelled", Some(9)), "{ended:?}");
        }
    });
}

#[test]
fn a_task_that_ignores_sigterm_is_killed_after_its_grace() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        let script = format!("trap '' TERM; {}; while :; do sleep 1; done", supervisor.note_pid("pid"));
        supervisor.start_attempt_with(
            &attempt,
            &[Task::script(&script)],
            json!({ "max_run_ms": 3_000, "grace_ms": 200 }),
        );
        let ended = supervisor.ended(&attempt);
        assert_eq!((ended.kind.as_str(), ended.signal), ("timed_out", Some(9)));
        assert!(!is_alive(supervisor.pid("pid")));
    });
}

/// A program that saves its work when it is stopped: for `seconds`, then it exits with 0. It counts how often
/// it is stopped, and notes its pid by the name of [`saving_name`] once a stop would reach it.
fn saving(supervisor: &Supervisor, seconds: u32) -> String {
    let [stops, saved] = ["stops", "saved"].map(|name| supervisor.scratch().join(name));
    let (stops, saved) = (stops.display(), saved.display());
    let save = format!("echo stop >>{stops}; sleep {seconds} & wait $!; echo saved >{saved}; exit 0");
    let note = supervisor.note_pid(&saving_name("$WEIR_ATTEMPT_ID", "$WEIR_GANG_RANK"));
    format!("trap '{save}' TERM; {note}; while :; do sleep 0.05; done")
}

fn saving_name(attempt: &str, rank: &str) -> String {
    format!("saving-{attempt}-{rank}")
}

/// The boot clock, on a machine that has not been suspended.
fn boot_ms() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").expect("the uptime");
    let seconds: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds");
    (seconds * 1_000.0) as u64
}

#[test]
fn a_program_that_saves_and_exits_with_0_when_it_is_stopped_has_not_succeeded() {
    in_every_way(|mut supervisor| {
        let names = ["stopped", "too-long", "unleased"].map(|name| format!("{}{name}", supervisor.attempt()));
        let [stopped, too_long, unleased] = &names;
        supervisor.send(&json!({ "renew": { "from_boot_ms": boot_ms() } }));
        let script = saving(&supervisor, 0);
        let grace_ms = 60_000;
        for (name, fields) in [
            (stopped, json!({ "grace_ms": grace_ms })),
            (too_long, json!({ "grace_ms": grace_ms, "max_run_ms": 4_000 })),
            (unleased, json!({ "grace_ms": grace_ms, "leased": true, "lease_ms": 4_000 })),
        ] {
            supervisor.start_attempt_with(name, &[Task::script(&script), Task::script(&script)], fields);
        }
        for rank in ["0", "1"] {
            supervisor.file(&saving_name(stopped, rank));
        }
        supervisor.stop(stopped, grace_ms);
        for (name, kind) in [(stopped, "cancelled"), (too_long, "timed_out"), (unleased, "lease_ended")] {
            let ended = supervisor.ended(name);
            assert_eq!((ended.kind.as_str(), ended.exit_code), (kind, Some(0)), "{name}: {ended:?}");
        }
    });
}

#[test]
fn the_grace_of_a_stop_counts_from_its_request_behind_a_shell_that_ends_first() {
    in_every_way(|mut supervisor| {
        let attempt = supervisor.attempt();
        let program = supervisor.scratch().join("program");
        // Longer than leftovers are waited for that nothing stopped.
        std::fs::write(&program, saving(&supervisor, 4)).expect("a script");
        let script = format!("sh {}; echo done", program.display());
        supervisor.start_attempt(&attempt, &[Task::script(&script)]);
        let pid = supervisor.pid(&saving_name(&attempt, "0"));
        supervisor.stop(&attempt, 60_000);
        let ended = supervisor.ended(&attempt);
        assert_eq!((ended.kind.as_str(), ended.signal), ("cancelled", Some(15)), "{ended:?}");
        assert_eq!(supervisor.file("saved"), "saved", "the program had its whole grace");
        assert_eq!(supervisor.file("stops"), "stop", "a program is sent one SIGTERM");
        assert!(!is_alive(pid));
    });
}

#[test]
fn the_end_of_a_lease_ends_attempts_that_need_it() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let attempt = supervisor.attempt();
    supervisor.send(&json!({ "renew": { "from_boot_ms": boot_ms() } }));
    let leased = |lease_ms: u64| json!({ "leased": true, "lease_ms": lease_ms });
    let longer = format!("{attempt}-longer");
    supervisor.start_attempt_with(&attempt, &[Task::script("exec sleep 1000")], leased(1_500));
    supervisor.start_attempt_with(&longer, &[Task::script("exec sleep 1000")], leased(600_000));
    assert!(supervisor.running(&attempt).get("running").is_some());
    assert_eq!(supervisor.ended(&attempt).kind, "lease_ended");
    supervisor.start_attempt_with(&format!("{attempt}0"), &[Task::command(&["true"])], leased(1_500));
    assert_eq!(supervisor.ended(&format!("{attempt}0")).kind, "not_started");
    assert!(supervisor.running(&longer).get("running").is_some(), "its own lease lasts");
}
