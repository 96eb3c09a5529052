//! Output and working directories of tasks: what they may replace, fill and leave behind.

use std::process::Stdio;
use std::time::Duration;

use super::support::disk::{DeadDisk, Tmpfs};
use super::*;

/// What a task puts in the place of its output is neither waited for nor followed. In namespaces of its own it can't see
/// the file.
#[test]
fn a_task_that_replaces_its_output_stops_nobody_and_reads_nothing_foreign() {
    for parent in [NO_GROUPS, ROOT_GROUP] {
        let mut supervisor = Supervisor::start(&["--cgroup-parent", parent]);
        let (pool, secret) = (supervisor.attempt(), supervisor.scratch().join("secret"));
        std::fs::write(&secret, "secret\n").expect("a file");
        let link = format!("ln -s {}", secret.display());
        for (name, replace) in [(1, "mkfifo"), (2, link.as_str()), (3, "mkdir"), (4, "ln -s /dev/zero")] {
            let attempt = format!("{pool}{name}");
            let script = format!("cd ..; rm 0.stdout; {replace} 0.stdout; sleep 0.5; exit 127");
            supervisor.start_attempt(&attempt, &[Task::script(&script)]);
            let ended = supervisor.ended(&attempt);
            assert_eq!((ended.kind.as_str(), ended.exit_code), ("failed", Some(127)), "{replace}: {ended:?}");
            let id: AttemptId = attempt.parse().expect("an attempt");
            let part = logs(&supervisor).read(id, 0, Stream::Stdout, 0, 1 << 20);
            let error = part.expect_err("no output of the task").to_string();
            assert!(error.contains("the task has replaced the file of its output"), "{replace}: {error}");
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&secret).expect("a file").permissions(),
        );
        assert_eq!(mode & 0o222, 0o200, "its mode is not changed");
    }
}

#[test]
fn a_reader_gets_no_zeros_that_the_task_did_not_write() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let attempt = supervisor.attempt();
    // An odd bound, so that the edges of the hole fall within blocks.
    let fields = json!({ "log_max_bytes": 300_003, "max_run_ms": 60_000 });
    let script = "i=0; while [ $i -lt 60 ]; do seq 100000 105000; i=$((i+1)); done";
    supervisor.start_attempt_with(&attempt, &[Task::script(script)], fields);
    supervisor.running(&attempt);
    let reader = logs(&supervisor);
    let id: AttemptId = attempt.parse().expect("an attempt");
    let while_it_runs = std::thread::spawn(move || read_whole(&*reader, id));
    assert_eq!(supervisor.ended(&attempt).kind, "succeeded");
    let afterwards = read_whole(&*logs(&supervisor), id);
    for parts in [while_it_runs.join().expect("a reader"), afterwards.clone()] {
        let zeros = parts.iter().flat_map(|part| &part.data).filter(|byte| **byte == 0).count();
        assert_eq!(zeros, 0);
    }
    // Beginning and end are exact to the byte, and the jump is where the record has it.
    let end = afterwards.last().expect("a part").end;
    let stored: usize = afterwards.iter().map(|part| part.data.len()).sum();
    assert_eq!(stored as u64, 2 * (150_001 / 2));
    let jump = afterwards.windows(2).find(|pair| pair[1].offset > pair[0].offset + pair[0].data.len() as u64);
    assert_eq!(jump.expect("a jump")[1].offset, end - 150_001 / 2);
}

#[test]
fn the_disk_use_of_a_task_that_prints_without_end_is_bounded() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let attempt = supervisor.attempt();
    supervisor.start_attempt(&attempt, &[Task::command(&["yes"])]);
    let file = supervisor.state().join("attempts").join(&attempt).join("0.stdout");
    until("it has printed a lot", TIMEOUT, || file.metadata().is_ok_and(|found| found.len() > 256 << 20));
    supervisor.stop(&attempt, 0);
    assert_eq!(supervisor.ended(&attempt).kind, "cancelled");
    let found = file.metadata().expect("the output");
    assert!(found.blocks() * 512 <= (1 << 19) + (64 << 10), "{} blocks are held", found.blocks());
}

#[test]
fn on_a_full_disk_a_start_is_refused_and_starts_nothing() {
    let folder = tempfile::Builder::new().prefix("weir").tempdir_in("/tmp").expect("a temp folder");
    let mount = |arguments: &[&str]| {
        std::process::Command::new("mount")
            .args(arguments)
            .arg(folder.path())
            .status()
            .is_ok_and(|s| s.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=256k", "tmpfs"]) {
        assert!(std::env::var_os("WEIR_REQUIRE_REAL").is_none(), "no tmpfs can be mounted");
        let line = "SKIPPED: on_a_full_disk_a_start_is_refused_and_starts_nothing: no tmpfs\n";
        return std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("standard error");
    }
    let path = folder.path().to_owned();
    let mut supervisor = Supervisor::start_in(folder, &["--cgroup-parent", NO_GROUPS]);
    let attempt = supervisor.attempt();
    supervisor.start_attempt(&format!("{attempt}0"), &[Task::script("exec sleep 1000")]);
    supervisor.running(&format!("{attempt}0"));
    let full = std::fs::write(path.join("full"), vec![1; 1 << 20]);
    assert!(full.is_err(), "the disk is not full");
    supervisor.start_attempt(&attempt, &[Task::script(&"echo; ".repeat(2_000))]);
    let failed = supervisor.ended(&attempt);
    assert_eq!(failed.kind, "not_started", "{failed:?}");
    assert!(failed.message.contains("the disk of the pool is full"), "{failed:?}");
    // An end that can't be written is reported, and written when the disk has space again.
    supervisor.stop(&format!("{attempt}0"), 0);
    assert_eq!(supervisor.ended(&format!("{attempt}0")).kind, "cancelled");
    std::fs::remove_file(path.join("full")).expect("the file");
    let journal = supervisor.state().join("journal");
    let written = || std::fs::read_to_string(&journal).is_ok_and(|text| text.contains("cancelled"));
    until("the end is written", TIMEOUT, written);
    supervisor.replace();
    assert_eq!(supervisor.ended(&format!("{attempt}0")).kind, "cancelled");
    drop(supervisor);
    let unmounted = std::process::Command::new("umount").arg("-l").arg(&path).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    let _ = std::fs::remove_dir(&path);
}

/// What a task links or mounts into its directory belongs to somebody else.
#[test]
fn cleaning_removes_a_tasks_files_and_follows_neither_links_nor_mounts() {
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let [foreign, beside] = ["foreign", "beside"].map(|name| supervisor.scratch().join(name));
    for folder in [&foreign, &beside] {
        std::fs::create_dir(folder).expect("a folder");
        std::fs::write(folder.join("data"), "precious").expect("a file");
    }
    let (at, link) = (foreign.display(), beside.display());
    let attempt = supervisor.attempt();
    let mounts =
        format!("mkdir m own own/deep; touch own/deep/file; mount --bind {at} m || exit 9; ln -s {at} l");
    // The second task puts a link in the place of its directory.
    let replaces = format!("W=$PWD; cd ..; rm -r $W; ln -s {link} $W");
    supervisor.start_attempt(&attempt, &[Task::script(&mounts), Task::script(&replaces)]);
    let ended = supervisor.ended(&attempt);
    if ended.exit_code == Some(9) {
        let why = "a task can't mount a folder";
        assert!(std::env::var_os("WEIR_REQUIRE_REAL").is_none(), "{why}");
        return eprintln!("SKIPPED cleaning_removes_a_tasks_files: {why}");
    }
    assert_eq!(ended.kind, "succeeded", "{ended:?}");
    supervisor.send(&json!({ "forget": { "attempt": attempt } }));
    let output = supervisor.state().join("logs").join(&attempt);
    until("the task's own files are removed", TIMEOUT, || {
        output.is_dir() && !output.join("0.work/own").exists()
    });
    until("the link is removed", TIMEOUT, || std::fs::symlink_metadata(output.join("1.work")).is_err());
    let unmounted = std::process::Command::new("umount").arg("-l").arg(output.join("0.work/m")).status();
    for folder in [&foreign, &beside] {
        let data = std::fs::read_to_string(folder.join("data"));
        assert_eq!(data.ok().as_deref(), Some("precious"), "{}", folder.display());
    }
    assert!(unmounted.is_ok_and(|status| status.success()), "it was still mounted");
}

/// A full disk of the pool is the node's trouble: work waits or is repeated, and no job fails for it.
#[test]
fn a_full_disk_of_the_pool_closes_its_node_and_fails_no_job() {
    let name = "a_full_disk_of_the_pool_closes_its_node_and_fails_no_job";
    let mut home = Home::new();
    let state = home.path().join("local");
    std::fs::create_dir(&state).expect("a folder");
    let Some(disk) = Tmpfs::mount(name, &state, "12m,mode=700") else { return };
    let broker = home.start_broker("server");
    let agent = home.start_agent(4);
    let (filler, ran, go) = (disk.path().join("filler"), home.path().join("ran"), home.path().join("go"));
    let script = format!(
        "echo x >> {}; while [ ! -e {} ]; do sleep 0.05; done; echo output || exit 3",
        ran.display(),
        go.display()
    );
    let text = |name: &str, script: &str| {
        format!("name: {name}\ngroups:\n- {{cpus: 1, memory: 64Mi, command: [sh, -c, '{script}']}}\n")
    };
    let submit = |name: &str, script: &str| {
        let file = home.path().join("job.yaml");
        std::fs::write(&file, text(name, script)).expect("a file");
        let (code, _, errors) =
            home.run(&["submit", file.to_str().expect("a plain path"), "--allow-pending"]);
        assert_eq!(code, 0, "{errors}");
    };
    submit("before", &script);
    until("the job runs", Duration::from_secs(60), || ran.exists());
    // This one succeeds though its output can't be written.
    let script = format!("while [ ! -e {} ]; do sleep 0.05; done; echo output; true", go.display());
    let mut quiet = home.weir(&["run", "--name", "quiet", "--", "sh", "-c", &script]);
    let quiet = quiet.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("weir run");
    until("the other job runs", Duration::from_secs(60), || {
        home.run(&["get", "job/quiet"]).1.contains(" RUNNING ")
    });
    let mut file = std::fs::File::create(&filler).expect("a file");
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    drop(file);
    std::fs::write(&go, "").expect("a flag");
    until("the node is closed", Duration::from_secs(60), || {
        home.log().contains("the disk is full: the node takes no new work")
    });
    submit("during", "true");
    until("the new job waits for the node", Duration::from_secs(60), || {
        let (_, why, _) = home.run(&["why", "job/during"]);
        why.contains("cordoned") || why.contains("waits until 20")
    });
    std::fs::remove_file(&filler).expect("the filler");
    for job in ["job/before", "job/during"] {
        let (code, out, errors) = home.run(&["wait", job, "--timeout", "120s"]);
        assert_eq!(code, 0, "{job}: {out}{errors}");
    }
    let (_, view, _) = home.run(&["describe", "job/before"]);
    assert!(view.contains("exit code 3, and the disk for its output was full"), "{view}");
    assert_eq!(std::fs::read_to_string(&ran).expect("a file"), "x\nx\n", "{view}");
    let quiet = quiet.wait_with_output().expect("its end");
    let errors = String::from_utf8_lossy(&quiet.stderr);
    assert!(quiet.status.code() == Some(125) && errors.contains("some of it may be lost"), "{errors}");
    let (_, view, _) = home.run(&["describe", "job/quiet"]);
    assert!(view.contains("SUCCEEDED") && view.contains("some of it may be lost"), "{view}");
    // The supervisor is found by its folder on the disk.
    drop((agent, broker, home, disk));
}

/// A dead file system delays the tasks that need it, and no others.
#[test]
fn a_task_on_a_dead_file_system_stops_no_other_task() {
    let name = "a_task_on_a_dead_file_system_stops_no_other_task";
    let dead = tempfile::tempdir().expect("a folder");
    let Some(_disk) = DeadDisk::mount(name, dead.path()) else { return };
    let below = dead.path().join("below").display().to_string();
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let name = |suffix: &str, supervisor: &Supervisor| format!("{}{suffix}", supervisor.attempt());
    let [directory, program, own_path, stopped] =
        ["a", "b", "c", "d"].map(|suffix| name(suffix, &supervisor));
    let group = |command: &str, workdir: Option<&str>, path: Option<&str>| {
        let env: Vec<[&str; 2]> = path.map(|path| ["PATH", path]).into_iter().collect();
        json!({ "groups": [{
            "command": [command], "env": env, "workdir": workdir, "memory_max_bytes": 0, "cpu_max_millis": 0
        }] })
    };
    let task = || [Task::command(&["true"])];
    supervisor.start_attempt_with(&directory, &task(), group("true", Some(&below), None));
    supervisor.start_attempt_with(&program, &task(), group(&below, None, None));
    supervisor.start_attempt_with(&own_path, &task(), group("program", None, Some(&below)));
    supervisor.start_attempt_with(&stopped, &task(), group("true", Some(&below), None));
    let other = name("e", &supervisor);
    supervisor.start_attempt(&other, &task());
    assert_eq!(supervisor.ended(&other).kind, "succeeded");
    supervisor.stop(&stopped, 0);
    assert_eq!(supervisor.ended(&stopped).kind, "cancelled");
    for attempt in [directory, program, own_path] {
        let ended = supervisor.ended(&attempt);
        assert_eq!((ended.kind.as_str(), ended.exit_code), ("failed", Some(126)), "{ended:?}");
        assert!(ended.message.contains("does not answer within 10 s"), "{ended:?}");
    }
}

/// Nothing starts late, also if it was its file system that was slow.
#[test]
fn a_task_whose_file_system_answers_too_late_is_not_started() {
    let name = "a_task_whose_file_system_answers_too_late_is_not_started";
    let dead = tempfile::tempdir().expect("a folder");
    let Some(disk) = DeadDisk::mount(name, dead.path()) else { return };
    let mut supervisor = Supervisor::start(&["--cgroup-parent", NO_GROUPS]);
    let attempt = supervisor.attempt();
    let uptime_ms = || {
        let text = std::fs::read_to_string("/proc/uptime").expect("the uptime");
        let seconds: f64 = text.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds");
        (seconds * 1_000.0) as u64
    };
    let start_by = uptime_ms() + 2_000;
    let fields = json!({ "start_by_boot_ms": start_by, "groups": [{
        "command": ["true"], "env": [], "workdir": dead.path().join("below"),
        "memory_max_bytes": 0, "cpu_max_millis": 0
    }] });
    supervisor.start_attempt_with(&attempt, &[Task::command(&["true"])], fields);
    until("the order is late", TIMEOUT, || uptime_ms() > start_by + 100);
    drop(disk);
    let ended = supervisor.ended(&attempt);
    assert_eq!((ended.kind.as_str(), ended.message.as_str()), ("not_started", "the order came too late"));
}
