//! Pools whose agent is gone, or whose agent's state folder was copied.

mod support;

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::{Home, until};

/// Until a pool counts as LOST, three quarters of a minute at most, and room for a busy machine.
const LOST: Duration = Duration::from_secs(120);

#[test]
fn a_lost_pool_shows_in_every_view_of_its_jobs_and_is_back_with_its_agent() {
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    let mut agent = home.start_agent(4);
    let go = home.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.1; done; exit 3", go.display());
    let spec = home.path().join("job.yaml");
    let text = format!(
        "name: lasting\non_pool_lost: wait\ngroups:\n- {{cpus: 1, memory: 64Mi, command: [sh, -c, '{script}']}}\n"
    );
    std::fs::write(&spec, text).expect("a file");
    let (code, _, error) = home.run(&["submit", spec.to_str().expect("a plain path")]);
    assert_eq!(code, 0, "{error}");
    let views = [&["get", "jobs"][..], &["describe", "job/lasting"], &["why", "job/lasting"]];
    let view = |at: usize| home.run(views[at]).1;
    until("the job runs", LOST, || view(0).contains(" RUNNING "));
    let mut run = home.weir(&["run", "--name", "own", "--", "sh", "-c", &script]);
    let errors = home.path().join("run.errors");
    let to_file = std::fs::File::create(&errors).expect("a file");
    let mut run = run.stdout(Stdio::null()).stderr(to_file).spawn().expect("weir run");
    let printed = || std::fs::read_to_string(&errors).unwrap_or_default();
    until("weir run's job runs", LOST, || home.run(&["get", "job/own"]).1.contains(" RUNNING "));
    agent.kill();
    until("the pool is lost", LOST, || view(1).contains("pool local is LOST since "));
    assert!(view(0).contains(" RUNNING? "), "{}", view(0));
    let nodes = home.run(&["get", "nodes"]).1;
    assert!(nodes.contains(" LOST ") && !nodes.contains(" READY "), "{nodes}");
    assert!(view(1).contains("RUNNING?") && view(1).contains("whether its attempts still run is unknown"));
    assert!(view(2).contains("running?") && view(2).contains("pool local is LOST since "), "{}", view(2));
    let (_, json, _) = home.run(&["get", "job/lasting", "-o", "json"]);
    assert!(json.contains("\"pools_not_ready\"") && json.contains("LOST"), "{json}");
    let (_, pool, _) = home.run(&["describe", "pool/local"]);
    assert!(
        pool.contains("LOST") && pool.lines().any(|line| line.trim_start().starts_with("since")),
        "{pool}"
    );
    let _agent = home.start_agent(4);
    until("the pool is back", LOST, || !view(1).contains("is LOST since "));
    assert!(view(0).contains(" RUNNING "), "{}", view(0));
    assert!(printed().contains("weir: job/own: pool local is "), "{}", printed());
    until("`run` prints that the pool is back", LOST, || {
        printed().contains("pool local is in contact again")
    });
    std::fs::write(&go, "").expect("a file");
    // The job of `run` has a lease: it may have been started again, and ends likewise.
    assert_eq!(run.wait().expect("its status").code(), Some(3), "{}", printed());
    let log = home.log();
    for change in
        ["the pool is registered", "the pool is UNREACHABLE", "the pool is LOST", "the pool is READY"]
    {
        assert!(log.contains(change), "{change}: {log}");
    }
}

#[test]
fn a_copy_of_a_state_folder_is_refused_and_what_the_original_runs_runs_on() {
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    let mut agent = home.start_agent(4);
    let ready = || home.run(&["get", "pools"]).1.contains(" READY ");
    until("the pool is ready", LOST, ready);
    agent.kill();
    let (original, copy) = (home.path().join("local"), home.path().join("copy"));
    copy_identity(&original, &copy);
    let agent = home.start_agent(4);
    let spec = home.path().join("job.yaml");
    std::fs::write(&spec, "name: lasting\ngroups: [{cpus: 1, memory: 64Mi, command: [sleep, '600']}]\n")
        .expect("a file");
    let (code, _, error) = home.run(&["submit", spec.to_str().expect("a plain path")]);
    assert_eq!(code, 0, "{error}");
    let running = || home.run(&["get", "job/lasting"]).1.contains(" RUNNING ");
    until("the job runs", LOST, running);
    let text = std::fs::read_to_string(home.path().join("local.toml")).expect("the agent's file");
    let file = home.path().join("copy.toml");
    std::fs::write(
        &file,
        text.replace(original.to_str().expect("a plain path"), copy.to_str().expect("a plain path")),
    )
    .expect("the copy's file");
    let start_copy = || home.start(&["agent", file.to_str().expect("a plain path")]);
    let refusals = || home.log().matches("from another copy of this agent's state folder").count();
    let beside = start_copy();
    until("the copy is refused twice", LOST, || refusals() >= 2);
    assert!(running(), "{}", home.log());
    // Nor is it accepted when the original is away.
    drop(agent);
    let before = refusals();
    until("the copy is refused without the original", LOST, || refusals() >= before + 2);
    drop(beside);
    let _agent = home.start_agent(4);
    until("the original is back with its job", LOST, || ready() && running());
    let (_, attempts, _) = home.run(&["get", "attempts", "job/lasting"]);
    assert_eq!(attempts.lines().count(), 2, "one attempt and the heading: {attempts}");
    home.run(&["cancel", "job/lasting"]);
    assert_eq!(home.run(&["wait", "--timeout", "60s", "job/lasting"]).0, 12, "{}", home.log());
}

#[test]
fn a_pool_that_fails_ends_no_other_pool_of_its_process_and_is_started_again() {
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    drop(home.start_agent(2));
    let first = home.path().join("local.toml");
    let text = std::fs::read_to_string(&first).expect("the agent's file");
    let (state, second) = (home.path().join("second"), home.path().join("second.toml"));
    let text = text.replace("\"local\"", "\"second\"");
    let text = text.replace(
        home.path().join("local").to_str().expect("a plain path"),
        state.to_str().expect("a plain path"),
    );
    std::fs::write(&second, text).expect("a file");
    // Where its state folder should be is a file.
    std::fs::write(&state, "").expect("a file");
    let files = [&first, &second].map(|file| file.to_str().expect("a plain path"));
    let mut agent = home.start(&["agent", files[0], files[1]]);
    until("the pool has failed twice", LOST, || home.log().matches("it is started again").count() >= 2);
    let (code, output, errors) = home.run(&["run", "--pool", "local", "--", "echo", "runs"]);
    assert_eq!((code, output.as_str()), (0, "runs\n"), "{errors}");
    assert!(agent.0.try_wait().expect("a state").is_none(), "{}", home.log());
    std::fs::remove_file(&state).expect("the file");
    until("the other pool runs commands", LOST, || {
        home.run(&["run", "--pool", "second", "--", "true"]).0 == 0
    });
}

#[test]
fn a_deleted_pool_is_gone_for_good_unless_its_agent_comes_back() {
    let mut home = Home::new();
    let mut broker = home.start_broker("server");
    let mut agent = home.start_agent(2);
    let ready = || home.run(&["get", "pools"]).1.contains(" READY ");
    until("the pool is ready", LOST, ready);
    let (code, _, error) = home.run(&["delete", "pool/local"]);
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("its agent is connected; stop the agent, then wait 15 s"), "{error}");
    agent.kill();
    until("the pool can be deleted", LOST, || {
        home.run(&["delete", "pool", "local"]).1 == "pool/local deleted\n"
    });
    let none = |home: &Home| home.run(&["get", "pools", "-o", "name"]).1.is_empty();
    assert!(none(&home));
    assert_eq!(home.run(&["delete", "pool/local"]).0, 3);
    assert_eq!(home.run(&["delete", "pool/local", "--ignore-not-found"]).0, 0);
    broker.kill();
    broker = home.start_broker("server");
    assert!(none(&home));
    let _agent = home.start_agent(2);
    let (code, output, errors) = home.run(&["run", "--allow-pending", "--", "echo", "runs"]);
    assert_eq!((code, output.as_str()), (0, "runs\n"), "{errors}");
    assert!(home.log().contains("the pool is deleted"), "{}", home.log());
    drop(broker);
}

#[test]
fn queues_are_deleted_from_below_and_other_types_have_their_own_verbs() {
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    let file = home.path().join("queues.yaml");
    std::fs::write(&file, "name: research\n---\nname: research/vision\n").expect("a file");
    let (code, _, error) = home.run(&["apply", file.to_str().expect("a plain path")]);
    assert_eq!(code, 0, "{error}");
    let (code, output, error) =
        home.run(&["delete", "queue/research", "queue/research/vision", "queue/nope"]);
    assert_eq!((code, output.as_str()), (4, "queue/research/vision deleted\n"), "{error}");
    assert!(error.contains("\"research/vision\" is below it; delete that first"), "{error}");
    assert!(error.contains("queue \"nope\" does not exist"), "{error}");
    assert_eq!(home.run(&["delete", "queue", "research"]).1, "queue/research deleted\n");
    let (code, _, error) = home.run(&["delete", "job/x"]);
    assert!(code == 8 && error.contains("`weir cancel job/NAME`"), "{code} {error}");
}

/// Copies what names an agent: the files of its state folder, as a machine's image would.
fn copy_identity(from: &Path, to: &Path) {
    std::fs::DirBuilder::new().mode(0o700).create(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("the state folder") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("its type").is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    }
}

/// A job in a pool without isolation can stop the supervisor. The agent notices it.
#[test]
fn a_supervisor_that_was_stopped_is_continued() {
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    let _agent = home.start_agent_with(4, "isolation = \"none\"\n");
    let stop = "kill -STOP $PPID";
    let mut run = home.weir(&["run", "--", "sh", "-c", stop]);
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("weir run");
    let pool = || home.run(&["get", "pools"]).1;
    until("the pool is not READY", LOST, || pool().contains(" SUSPECT ") || pool().contains(" UNREACHABLE "));
    assert_eq!(run.wait().expect("its status").code(), Some(0));
    until("the pool is READY again", LOST, || pool().contains(" READY "));
    let (code, output, errors) = home.run(&["run", "--", "echo", "after"]);
    assert_eq!((code, output.as_str()), (0, "after\n"), "{errors}");
    assert!(home.log().contains("it may have been stopped, and is continued"), "{}", home.log());
}

/// What a pool's file leaves out: tasks are separated, and never root's.
#[test]
fn a_job_reads_no_secret_of_its_agent_and_runs_without_roots_rights() {
    if !support::supervisor::namespaces_work() {
        return;
    }
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    let _agent = home.start_agent_with(4, "isolation = \"required\"\n");
    let state = home.path().join("local");
    let script = format!(
        "id -u; cat {0}/key {0}/epoch {0}/supervisor/journal {1}; cat /proc/[0-9]*/environ | tr '\\0' '\\n' | \
         grep -c WEIR_SERVER; kill -STOP -1; true",
        state.display(),
        home.data().join("token").display(),
    );
    let (code, output, errors) = home.run(&["run", "--", "sh", "-c", &script]);
    let own = rustix::process::geteuid();
    let user = if own.is_root() { 65_534 } else { own.as_raw() };
    assert_eq!((code, output), (0, format!("{user}\n0\n")), "{errors}");
    let described = home.run(&["describe", "pool/local"]).1;
    assert!(described.contains("all tasks run as"), "{described}");
    let (code, _, errors) = home.run(&["run", "--", "true"]);
    assert_eq!(code, 0, "the supervisor works: {errors}");
}

#[test]
fn a_user_that_tasks_can_not_have_is_named_before_anything_runs() {
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    let mut agent = home.start_agent_with(4, "run_as = \"no-such-user\"\n");
    assert_eq!(agent.0.wait().expect("its status").code(), Some(1), "{}", home.log());
    assert!(home.log().contains("host.run_as: this machine has no user \"no-such-user\""), "{}", home.log());
    let mut agent = home.start_agent_with(4, "run_as = \"nobody\"\nisolation = \"none\"\n");
    assert_eq!(agent.0.wait().expect("its status").code(), Some(8), "{}", home.log());
    let message = "host.run_as: \"nobody\" needs namespaces, and host.isolation is \"none\"";
    assert!(home.log().contains(message), "{}", home.log());
}

/// Cordons and drains are the admin's, not the agent's: they outlive both processes, until they are taken back.
#[test]
fn what_an_admin_decided_outlives_a_kill_of_broker_and_agent() {
    let mut home = Home::new();
    let ran = |home: &Home, arguments: &[&str]| {
        let (code, output, errors) = home.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {errors}");
        output
    };
    let mut broker = home.start_broker("server");
    let mut agent = home.start_agent(4);
    until("the pool is READY", LOST, || home.run(&["get", "pools"]).1.contains(" READY "));
    let nodes = ran(&home, &["get", "nodes"]);
    let node = nodes.lines().nth(1).and_then(|row| row.split_whitespace().next()).expect("a node").to_owned();
    let decisions: [(&[&str], &[&str], &str, &str); 3] = [
        (&["cordon", "local", "--node", &node], &["uncordon", "local", "--node", &node], "nodes", "CORDONED"),
        (&["cordon", "local"], &["uncordon", "local"], "pools", "READY,CORDONED"),
        (&["drain", "local", "--deadline", "1h"], &["uncordon", "local"], "pools", "READY,DRAINING"),
    ];
    for (decision, undo, kind, state) in decisions {
        ran(&home, decision);
        for process in [&mut agent, &mut broker] {
            process.0.kill().expect("it is killed");
            process.0.wait().expect("it is waited for");
        }
        broker = home.start_broker("server");
        agent = home.start_agent(4);
        until(&format!("{decision:?} is in effect"), LOST, || {
            let pools = home.run(&["get", "pools"]).1;
            pools.contains(" READY") && home.run(&["get", kind]).1.contains(state)
        });
        ran(&home, undo);
        assert!(!ran(&home, &["get", kind]).contains(state));
    }
    let (code, output, errors) = home.run(&["run", "--", "echo", "again"]);
    assert_eq!((code, output.as_str()), (0, "again\n"), "{errors}");
}
