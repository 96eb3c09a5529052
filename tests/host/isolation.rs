//! What tasks in namespaces of their own can't see and can't do.

use super::*;

/// A supervisor whose tasks have namespaces, and run as another user if this test runs as root. `None` where no
/// namespaces are allowed.
fn isolated(parent: &str) -> Option<Supervisor> {
    let supervisor = Supervisor::start(&["--cgroup-parent", parent]);
    namespaces_work().then(|| supervisor.isolated_as(unprivileged()))
}

/// The user `nobody`, if this process may become it.
fn unprivileged() -> Value {
    if !rustix::process::geteuid().is_root() {
        return Value::Null;
    }
    json!({ "name": "nobody", "home": "/nonexistent", "uid": 65_534, "gid": 65_534, "groups": [65_534] })
}

/// Runs a script as the only task of an attempt. Returns how it ended, and both its streams.
fn output_of(supervisor: &mut Supervisor, script: &str) -> (Ended, String, String) {
    let attempt = supervisor.attempt();
    supervisor.start_attempt(&attempt, &[Task::script(script)]);
    let ended = supervisor.ended(&attempt);
    (ended, read(supervisor, 0, Stream::Stdout), read(supervisor, 0, Stream::Stderr))
}

#[test]
fn a_task_sees_and_stops_only_its_own_processes() {
    let Some(mut supervisor) = isolated(NO_GROUPS) else { return };
    let other = format!("{}-other", supervisor.attempt());
    let secret = json!([{ "command": ["sleep", "1000"], "env": [["SECRET", "hush"]], "workdir": null,
        "memory_max_bytes": 0, "cpu_max_millis": 0 }]);
    supervisor.start_attempt_with(&other, &[Task::command(&["sleep", "1000"])], json!({ "groups": secret }));
    supervisor.running(&other);
    let script = "cat /proc/*/environ | tr '\\0' '\\n' | grep -c SECRET; kill -KILL -1; kill -KILL 1; \
                  kill -STOP $PPID; ls -d /proc/[0-9]* | wc -l";
    let (ended, found, errors) = output_of(&mut supervisor, script);
    assert_eq!(ended, super::ended("succeeded", Some(0), None, ""), "{errors}");
    let counts: Vec<u32> = found.lines().map(|line| line.parse().expect("a number")).collect();
    // Its shell, the shell's two children, and the first process of the namespace.
    assert!(counts[0] == 0 && counts[1] <= 4, "{found} {errors}");
    supervisor.stop(&other, 0);
    assert_eq!(supervisor.ended(&other).kind, "cancelled");
}

#[test]
fn a_task_sees_nothing_of_the_supervisors_folder_but_its_own_directory() {
    let Some(mut supervisor) = isolated(NO_GROUPS) else { return };
    // Else the folders above are closed for the task's user anyway.
    std::fs::set_permissions(supervisor.scratch(), std::fs::Permissions::from_mode(0o755))
        .expect("its own folder");
    let state = supervisor.state();
    std::fs::write(state.join("key"), "secret").expect("a file");
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o755)).expect("its own folder");
    let state = state.display();
    let script = format!(
        "cat {state}/key {state}/journal; find {state} -type f; ls {state}/attempts; touch own {state}/new; \
         umount {state}; umount -l {state}; unshare -Urm umount {state}; unshare -Urm umount -l {state}; \
         unshare -Urmpf --mount-proc umount {state}; nsenter -t 1 -m umount {state}; mv {state} {state}2; \
         find {state}/ -type f; cd ..; cd ..; cd ..; find . -name journal; cat /proc/1/root{state}/key"
    );
    let (_, found, errors) = output_of(&mut supervisor, &script);
    let attempt = supervisor.attempt();
    let own = format!("{state}/attempts/{attempt}/0.work/own");
    assert_eq!(found.lines().collect::<Vec<_>>(), [attempt.as_str(), own.as_str()], "{errors}");
    assert_eq!(std::fs::read_to_string(supervisor.state().join("key")).expect("the file"), "secret");
}

/// The first process of the namespace belongs to the task's user, who may open what it has open.
#[test]
fn a_task_can_not_open_the_file_of_its_shims_report() {
    let Some(supervisor) = isolated(NO_GROUPS) else { return };
    let mut supervisor = supervisor.isolated_as(Value::Null);
    let (_, found, errors) = output_of(&mut supervisor, "for fd in /proc/1/fd/*; do readlink $fd; done");
    assert!(found.contains("/dev/null") && !found.contains("memfd"), "{found} {errors}");
}

#[test]
fn a_hidden_file_is_empty_and_one_that_does_not_exist_is_no_error() {
    let Some(mut supervisor) = isolated(NO_GROUPS) else { return };
    let token = supervisor.scratch().join("token");
    std::fs::write(&token, "secret").expect("a file");
    supervisor.hide(&[&token, &supervisor.scratch().join("absent")]);
    let (ended, found, errors) = output_of(&mut supervisor, &format!("cat {}; echo after", token.display()));
    assert_eq!((ended.kind.as_str(), found.as_str()), ("succeeded", "after\n"), "{errors}");
}

/// Without a control group, too.
#[test]
fn no_process_outlives_its_attempt_whatever_it_did_to_its_session_and_environment() {
    for parent in [NO_GROUPS, ROOT_GROUP] {
        let Some(mut supervisor) = isolated(parent) else { return };
        let lasting = format!("{}-lasting", supervisor.attempt());
        supervisor.start_attempt(&lasting, &[Task::command(&["sleep", "1000"])]);
        std::fs::set_permissions(supervisor.scratch(), std::fs::Permissions::from_mode(0o777))
            .expect("its own");
        let note = supervisor.note_pid("daemon");
        let daemon = supervisor.scratch().join("daemon.sh");
        std::fs::write(&daemon, format!("trap '' TERM HUP; {note}; while :; do sleep 1; done"))
            .expect("a file");
        let escape = format!("setsid env -i setsid /bin/sh {} &", daemon.display());
        let noted = supervisor.scratch().join("daemon");
        let script = format!("{escape} while [ ! -s {} ]; do sleep 0.02; done; exit 3", noted.display());
        let attempt = supervisor.attempt();
        supervisor.start_attempt(&attempt, &[Task::script(&script)]);
        let daemon = supervisor.pid("daemon");
        assert_eq!(supervisor.ended(&attempt).exit_code, Some(3));
        assert!(!is_alive(daemon), "with the control group {parent}");
        supervisor.stop(&lasting, 0);
        supervisor.ended(&lasting);
    }
}

#[test]
fn a_task_can_not_change_its_control_group() {
    let Some(supervisor) = isolated(ROOT_GROUP) else { return };
    let group = supervisor.group();
    // As root, if this test is: files are not what refuses it.
    let mut supervisor = supervisor.isolated_as(Value::Null);
    let script = format!("echo 0 > {}/cgroup.procs", group.parent().expect("a root").display());
    let (ended, _, errors) = output_of(&mut supervisor, &script);
    assert!(ended.exit_code != Some(0) && !errors.is_empty(), "{ended:?} {errors}");
}

#[test]
fn a_task_of_another_user_has_that_users_name_home_files_and_streams() {
    let user = unprivileged();
    if user.is_null() {
        return skip("tasks of another user", "only root can start them");
    }
    let Some(mut supervisor) = isolated(NO_GROUPS) else { return };
    let script = "id -u; id -g; id -G; echo $USER $HOME $PATH; echo again >> /dev/stdout; touch file; stat -c %u . file; \
                  cat /etc/shadow";
    let (_, found, errors) = output_of(&mut supervisor, script);
    let lines: Vec<&str> = found.lines().collect();
    let expected = [
        "65534",
        "65534",
        "65534",
        "nobody /nonexistent /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "again",
        "65534",
        "65534",
    ];
    assert_eq!(lines, expected, "{errors}");
    assert!(errors.contains("/etc/shadow: Permission denied"), "{errors}");
    let closed = supervisor.scratch().join("closed");
    std::fs::DirBuilder::new().mode(0o700).create(&closed).expect("a folder");
    let groups = json!([{ "command": ["true"], "env": [], "workdir": closed, "memory_max_bytes": 0,
        "cpu_max_millis": 0 }]);
    let attempt = format!("{}-closed", supervisor.attempt());
    supervisor.start_attempt_with(&attempt, &[Task::command(&["true"])], json!({ "groups": groups }));
    let message = format!("{}: Permission denied (os error 13)", closed.display());
    assert_eq!(supervisor.ended(&attempt), super::ended("failed", Some(126), None, &message));
}

#[test]
fn a_task_whose_supervisor_is_killed_at_its_start_runs_on() {
    if !namespaces_work() {
        return;
    }
    for number in 0..10 {
        let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]).isolated();
        let attempt = supervisor.attempt();
        let done = supervisor.scratch().join("done");
        supervisor
            .start_attempt(&attempt, &[Task::script(&format!("sleep 1; echo done > {}", done.display()))]);
        supervisor.running(&attempt);
        std::thread::sleep(std::time::Duration::from_millis(number));
        supervisor.replace();
        let ended = supervisor.ended(&attempt);
        assert!(done.exists(), "after {number} ms: {ended:?}");
    }
}
