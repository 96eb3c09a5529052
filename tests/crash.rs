//! Crashes of real processes: every acknowledged job must run exactly once.
//!
//! `cargo test` runs a short version, `WEIR_CRASH=full cargo test --release --test crash` the full one: 500
//! jobs, the broker killed 20 times and the agent 10 times.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::disk::{FaultyDisk, Tmpfs};
use support::{Home, Process, http_get, supervisor_of, until};
use weir::api::client::Client;
use weir::api::proto::v1;

struct Scale {
    jobs: usize,
    broker_kills: usize,
    agent_kills: usize,
}

fn scale() -> Scale {
    if std::env::var("WEIR_CRASH").is_ok_and(|value| value == "full") {
        Scale { jobs: 500, broker_kills: 20, agent_kills: 10 }
    } else {
        Scale { jobs: 80, broker_kills: 6, agent_kills: 3 }
    }
}

fn submission(index: usize, file: &std::path::Path) -> v1::Submission {
    let script = format!("echo $WEIR_ATTEMPT_ID >> {}; sleep 0.2", file.display());
    let command = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let group = v1::TaskGroup {
        resources: Some(v1::TaskResources {
            cpu_millis: 1_000,
            memory_bytes: 32 << 20,
            ..Default::default()
        }),
        run: Some(v1::task_group::Run::Process(v1::Program { command, ..Default::default() })),
        ..Default::default()
    };
    let constraints = v1::Constraints { pools: vec!["local".to_owned()], ..Default::default() };
    let spec = v1::JobSpec { groups: vec![group], constraints: Some(constraints), ..Default::default() };
    v1::Submission { name: format!("crash-{index}"), spec: Some(spec), ..Default::default() }
}

/// Submits jobs one by one, each with its own token. Repeats each submit until it is acknowledged.
async fn submit_all(address: String, token: String, jobs: usize, file: std::path::PathBuf) -> Vec<u64> {
    let client = Client::new(&address, Some(&token)).expect("a client");
    let mut acknowledged = Vec::new();
    for index in 0..jobs {
        let request = v1::SubmitRequest {
            token: format!("crash-{index}"),
            jobs: vec![submission(index, &file)],
            allow_pending: true,
        };
        loop {
            match client.jobs().submit(request.clone()).await {
                Ok(response) => {
                    acknowledged.extend(response.into_inner().jobs.iter().map(|job| job.id));
                    break;
                }
                Err(status) => {
                    let code = status.code();
                    let unavailable = [
                        tonic::Code::Unavailable,
                        tonic::Code::Unknown,
                        tonic::Code::Cancelled,
                        tonic::Code::Internal,
                    ];
                    assert!(unavailable.contains(&code), "submit {index}: {status}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
    acknowledged
}

/// Checks that every job succeeded, with exactly one successful attempt, and that the file of the jobs has
/// exactly one line per such attempt.
fn check(home: &Home, runtime: &tokio::runtime::Runtime, jobs: &[u64], file: &std::path::Path) {
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let client = runtime.block_on(async { Client::new(&home.address, Some(&token)).expect("a client") });
    let mut succeeded = BTreeMap::new();
    for id in jobs {
        let mut last = None;
        until(&format!("job {id} ends; log: {}", home.log()), Duration::from_secs(120), || {
            let job = Some(v1::JobRef { id: *id, ..Default::default() });
            let request = v1::GetJobRequest { job, with_attempts: true };
            let answer = runtime.block_on(async { client.jobs().get_job(request).await });
            let Ok(response) = answer else { return false };
            let response = response.into_inner();
            let job = response.job.clone().expect("a job");
            let ended = matches!(
                job.phase(),
                v1::JobPhase::Succeeded | v1::JobPhase::Failed | v1::JobPhase::Cancelled
            );
            last = Some(response);
            ended
        });
        let response = last.expect("an answer");
        let job = response.job.expect("a job");
        assert_eq!(job.phase(), v1::JobPhase::Succeeded, "{job:?} {:?}", response.attempts);
        let good =
            response.attempts.iter().filter(|a| a.outcome.as_ref().is_some_and(|o| o.code == "Succeeded"));
        let good: Vec<String> = good.map(|attempt| attempt.id.clone()).collect();
        assert_eq!(good.len(), 1, "job {id} has one successful attempt");
        succeeded.insert(good[0].clone(), *id);
    }
    let text = std::fs::read_to_string(file).expect("the jobs' file");
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    text.lines().for_each(|attempt| *times.entry(attempt).or_default() += 1);
    let twice: Vec<_> = times.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "attempts that ran twice: {twice:?}");
    let missing: Vec<_> = succeeded.keys().filter(|attempt| !times.contains_key(attempt.as_str())).collect();
    assert!(missing.is_empty(), "attempts that were reported as successful, but did not run: {missing:?}");
}

#[test]
fn every_acknowledged_job_runs_once_when_broker_and_agent_are_killed() {
    let (scale, mut rng) = (scale(), StdRng::seed_from_u64(3));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut home = Home::new();
    let mut broker = home.start_broker("server");
    let mut agent = home.start_agent(16);
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let file = home.path().join("ran");
    let submitting = runtime.spawn(submit_all(home.address.clone(), token, scale.jobs, file.clone()));
    let mut kills: Vec<bool> = std::iter::repeat_n(true, scale.broker_kills)
        .chain(std::iter::repeat_n(false, scale.agent_kills))
        .collect();
    for at in (1..kills.len()).rev() {
        kills.swap(at, rng.random_range(0..=at));
    }
    for broker_is_killed in kills {
        std::thread::park_timeout(Duration::from_millis(rng.random_range(100..700)));
        if broker_is_killed {
            broker.kill();
            broker = home.start_broker("server");
        } else {
            agent.kill();
            agent = home.start_agent(16);
        }
    }
    let jobs = runtime.block_on(submitting).expect("the submitter");
    assert_eq!(jobs.len(), scale.jobs);
    check(&home, &runtime, &jobs, &file);
    drop((agent, broker));
}

#[test]
fn every_acknowledged_job_runs_once_when_dev_is_killed() {
    let (scale, mut rng) = (scale(), StdRng::seed_from_u64(4));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut home = Home::new();
    let mut dev: Process = home.start_broker("dev");
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let file = home.path().join("ran");
    let submitting = runtime.spawn(submit_all(home.address.clone(), token, scale.jobs / 2, file.clone()));
    for _ in 0..scale.broker_kills {
        std::thread::park_timeout(Duration::from_millis(rng.random_range(200..900)));
        dev.kill();
        dev = home.start_broker("dev");
    }
    let jobs = runtime.block_on(submitting).expect("the submitter");
    check(&home, &runtime, &jobs, &file);
    drop(dev);
}

#[test]
fn run_continues_its_output_and_exits_with_the_commands_code_when_the_broker_is_killed() {
    let mut home = Home::new();
    let mut dev = home.start_broker("dev");
    let restarted = home.path().join("restarted");
    let script =
        format!("echo before; until [ -e {} ]; do sleep 0.05; done; echo after; exit 5", restarted.display());
    let mut run = home.weir(&["run", "--", "sh", "-c", &script]);
    let run = run
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("weir run");
    let folder = home.data().join("pools/local/supervisor/attempts");
    until("the command runs", Duration::from_secs(30), || {
        std::fs::read_dir(&folder).is_ok_and(|list| list.count() > 0)
    });
    dev.kill();
    let dev = home.start_broker("dev");
    std::fs::write(&restarted, "").expect("a file");
    let output = run.wait_with_output().expect("weir run ends");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "before\nafter\n", "{errors}");
    assert_eq!(output.status.code(), Some(5), "{errors}");
    drop(dev);
}

#[test]
fn broker_whose_disk_fails_to_sync_acknowledges_nothing_and_recovers_with_the_disk() {
    let name = "broker_whose_disk_fails_to_sync_acknowledges_nothing_and_recovers_with_the_disk";
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut home = Home::new();
    let Some(disk) = FaultyDisk::prepare(name, home.path()) else { return };
    home.env = disk.env().to_vec();
    let mut broker = home.start_broker("server");
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let address = home.address.clone();
    let submit = |index: usize| {
        let jobs = vec![submission(index, std::path::Path::new("/dev/null"))];
        let request = v1::SubmitRequest { token: format!("sync-{index}"), jobs, allow_pending: true };
        runtime.block_on(async {
            let client = Client::new(&address, Some(&token)).expect("a client");
            client.jobs().submit(request).await.map(|reply| reply.into_inner().jobs[0].id)
        })
    };
    let first = submit(1).expect("a disk without faults");
    disk.fail_syncs(true);
    assert_eq!(submit(2).expect_err("no sync succeeds").code(), tonic::Code::Unavailable);
    disk.fail_syncs(false);
    let mut second = None;
    until("the broker has opened its journal again", Duration::from_secs(30), || {
        second = submit(2).ok();
        second.is_some()
    });
    assert_eq!(submit(2).ok(), second, "the same token returns the same job");
    broker.kill();
    let broker = home.start_broker("server");
    let (code, list, errors) = home.run(&["get", "jobs", "-o", "name"]);
    assert_eq!((code, list.as_str()), (0, "job/crash-2\njob/crash-1\n"), "{errors}");
    assert!(second > Some(first));
    drop(broker);
}

/// A full disk refuses writes, and nothing else, also after a restart; space alone ends that.
#[test]
fn broker_on_a_full_disk_answers_reads_and_refuses_writes_with_the_reason() {
    let name = "broker_on_a_full_disk_answers_reads_and_refuses_writes_with_the_reason";
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut home = Home::new();
    std::fs::create_dir_all(home.data()).expect("a folder");
    let Some(disk) = Tmpfs::mount(name, &home.data(), "12m,mode=700") else { return };
    let mut broker = home.start_broker("server");
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let client = |home: &Home| Client::new(&home.address, Some(&token)).expect("a client");
    let submit = |home: &Home, index: usize| {
        let jobs = vec![submission(index, std::path::Path::new("/dev/null"))];
        let request = v1::SubmitRequest { token: format!("full-{index}"), jobs, allow_pending: true };
        runtime.block_on(async { client(home).jobs().submit(request).await.map(drop) })
    };
    submit(&home, 1).expect("there is space");
    let writes = |home: &Home| runtime.block_on(async { client(home).can_write().await }).expect("health");
    assert!(writes(&home));
    let filler = disk.path().join("filler");
    let mut file = std::fs::File::create(&filler).expect("a file");
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    drop(file);
    let mut refused = None;
    until("a write was refused", Duration::from_secs(30), || {
        refused = (2..200).find_map(|index| submit(&home, index).err());
        refused.is_some()
    });
    let check_reads = |home: &Home| {
        until("the broker reads", Duration::from_secs(30), || {
            let refused = submit(home, 200).expect_err("the disk is full");
            assert_eq!(refused.code(), tonic::Code::Unavailable);
            refused.message().contains("only reads until its journal can be written again: ")
        });
        assert!(!writes(home));
        let (code, why) = http_get(&home.address, "/readyz", "");
        assert!(code == 503 && why.starts_with("not ready: "), "{code} {why}");
        assert_eq!(http_get(&home.address, "/healthz", "").0, 200);
        let token = format!("Authorization: Bearer {}\r\n", token.trim());
        assert!(http_get(&home.address, "/metrics", &token).1.contains("weir_journal_writable 0\n"));
        for command in [&["get", "jobs"][..], &["describe", "job/crash-1"], &["get", "queues", "-o", "json"]]
        {
            let (code, list, errors) = home.run(command);
            assert!(code == 0 && !list.is_empty(), "{command:?}: {list}{errors}");
            assert!(errors.contains("warning: the broker is read-only: this is the last state"), "{errors}");
        }
    };
    check_reads(&home);
    broker.kill();
    let restarted = home.start_broker("server");
    check_reads(&home);
    std::fs::remove_file(filler).expect("the filler");
    until("the broker writes again", Duration::from_secs(30), || submit(&home, 200).is_ok());
    until("health reports it", Duration::from_secs(30), || writes(&home));
    assert_eq!(http_get(&home.address, "/readyz", "").0, 200);
    let (code, list, errors) = home.run(&["get", "jobs", "-o", "name"]);
    assert!(code == 0 && list.contains("crash-200") && errors.is_empty(), "{list}{errors}");
    drop(restarted);
}

#[test]
fn broker_whose_disk_fails_to_sync_ends_at_sigterm() {
    let name = "broker_whose_disk_fails_to_sync_ends_at_sigterm";
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut home = Home::new();
    let Some(disk) = FaultyDisk::prepare(name, home.path()) else { return };
    home.env = disk.env().to_vec();
    let mut broker = home.start_broker("server");
    disk.fail_syncs(true);
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let jobs = vec![submission(1, std::path::Path::new("/dev/null"))];
    let request = v1::SubmitRequest { token: "sync".to_owned(), jobs, allow_pending: true };
    let refused = runtime.block_on(async {
        let client = Client::new(&home.address, Some(&token)).expect("a client");
        client.jobs().submit(request).await.map(drop)
    });
    assert_eq!(refused.expect_err("no sync succeeds").code(), tonic::Code::Unavailable);
    until("the broker has tried to reopen the journal", Duration::from_secs(30), || {
        home.log().contains("only reads are answered")
    });
    let pid = rustix::process::Pid::from_child(&broker.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    until("the broker has ended", Duration::from_secs(30), || {
        broker.0.try_wait().is_ok_and(|ended| ended.is_some())
    });
}

#[test]
fn broker_whose_data_directory_is_moved_away_or_replaced_acknowledges_nothing() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for replaced in [false, true] {
        let mut home = Home::new();
        let mut broker = home.start_broker("server");
        let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
        let submit = |address: &str, index: usize| {
            let jobs = vec![submission(index, std::path::Path::new("/dev/null"))];
            let request = v1::SubmitRequest { token: format!("moved-{index}"), jobs, allow_pending: true };
            runtime.block_on(async {
                let client = Client::new(address, Some(&token)).expect("a client");
                client.jobs().submit(request).await.map(drop).map_err(|status| status.code())
            })
        };
        assert_eq!(submit(&home.address, 1), Ok(()));
        let moved = home.path().join("moved");
        std::fs::rename(home.data(), &moved).expect("a folder");
        if replaced {
            copy_journal(&moved, &home.data());
        }
        for index in 2..5 {
            assert_eq!(submit(&home.address, index), Err(tonic::Code::Unavailable));
            std::thread::sleep(Duration::from_millis(700));
        }
        assert!(home.log().contains("journal.sqlite was deleted or replaced"), "{}", home.log());
        assert_eq!(home.data().exists(), replaced, "the broker begins no journal by itself");
        let data = home.data();
        let second = ["server", "--data", data.to_str().expect("a plain path"), "--listen", "127.0.0.1:0"];
        let (code, _, errors) = home.run(&second);
        assert!(code == 1 && errors.contains("is in use by another weir, process"), "{code}: {errors}");
        broker.kill();
        let _ = std::fs::remove_dir_all(home.data());
        std::fs::rename(&moved, home.data()).expect("a folder");
        let _broker = home.start_broker("server");
        let (code, list, errors) = home.run(&["get", "jobs", "-o", "name"]);
        assert_eq!((code, list.as_str()), (0, "job/crash-1\n"), "{errors}");
    }
}

/// A copy that is taken while the broker runs has everything that was acknowledged, and only its owner can read it.
#[test]
fn backup_of_a_running_broker_is_whole_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let mut home = Home::new();
    let mut broker = home.start_broker("server");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let jobs = (0..50).map(|index| submission(index, std::path::Path::new("/dev/null"))).collect();
    let request = v1::SubmitRequest { token: "all".to_owned(), jobs, allow_pending: true };
    runtime.block_on(async {
        let client = Client::new(&home.address, Some(&token)).expect("a client");
        client.jobs().submit(request).await.expect("submitted");
    });
    let (data, copy) = (home.data(), home.path().join("copy.sqlite"));
    let [data, copy] = [&data, &copy].map(|path| path.to_str().expect("a plain path").to_owned());
    let (code, _, errors) = home.run(&["admin", "backup", "--data", &data, &copy]);
    assert_eq!(code, 0, "{errors}");
    let mode = std::fs::metadata(&copy).expect("the copy").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (code, _, errors) = home.run(&["admin", "backup", "--data", &data, &copy]);
    assert!(code == 1 && errors.contains("File exists"), "an existing file is not replaced: {errors}");
    broker.kill();
    for file in ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "journal.end"] {
        let _ = std::fs::remove_file(home.data().join(file));
    }
    std::fs::rename(&copy, home.data().join("journal.sqlite")).expect("the copy");
    let (code, verified, errors) = home.run(&["admin", "verify", "--data", &data]);
    assert!(code == 0 && verified.contains("no damage"), "{verified}{errors}");
    let _broker = home.start_broker("server");
    let (code, list, errors) = home.run(&["get", "jobs", "-o", "name"]);
    assert_eq!((code, list.lines().count()), (0, 50), "{errors}");
}

/// Copies the files of a journal from one folder to another and replaces those there.
fn copy_journal(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for file in ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "journal.end"] {
        let _ = std::fs::remove_file(to.join(file));
        if from.join(file).exists() {
            std::fs::copy(from.join(file), to.join(file)).expect("a copy");
        }
    }
}

#[test]
fn broker_on_an_older_copy_of_its_journal_becomes_read_only_and_stops_no_attempt() {
    let mut home = Home::new();
    let mut broker = home.start_broker("server");
    let _agent = home.start_agent(4);
    let (ran, checked) = (home.path().join("ran"), home.path().join("checked"));
    let script = format!(
        "echo $WEIR_ATTEMPT_ID >> {0}; until [ -e {1} ]; do sleep 0.05; done; echo ended >> {0}",
        ran.display(),
        checked.display()
    );
    let written = |text: &str| std::fs::read_to_string(&ran).unwrap_or_default().matches(text).count();
    let submit = |home: &Home, name: &str| {
        let spec = format!("name: {name}\ngroups:\n- cpus: 1\n  command: [sh, -c, {script:?}]\n");
        let file = home.path().join(format!("{name}.yaml"));
        std::fs::write(&file, spec).expect("a job's file");
        home.run(&["submit", "-f", file.to_str().expect("a plain path")])
    };
    let (code, _, errors) = submit(&home, "before");
    assert_eq!(code, 0, "{errors}");
    until("the first job runs", Duration::from_secs(30), || written("-0-1") == 1);
    broker.kill();
    let (older, newer) = (home.path().join("older"), home.path().join("newer"));
    copy_journal(&home.data(), &older);
    broker = home.start_broker("server");
    assert_eq!(submit(&home, "after").0, 0);
    until("the second job runs", Duration::from_secs(30), || written("-0-1") == 2);
    broker.kill();
    copy_journal(&home.data(), &newer);

    copy_journal(&older, &home.data());
    broker = home.start_broker("server");
    until(
        "the broker rejects a submit because its journal is an older copy",
        Duration::from_secs(30),
        || {
            let (code, _, errors) = submit(&home, "rejected");
            code != 0 && errors.contains("read-only")
        },
    );
    // Every view of the old state warns that it is old.
    for read in [&["get", "jobs"][..], &["get", "pools"], &["describe", "job/before"]] {
        until("reads warn", Duration::from_secs(30), || {
            home.run(read).2.contains("warning: the broker is read-only")
        });
    }
    assert!(home.log().contains("restore the newer journal"), "{}", home.log());
    std::fs::write(&checked, "").expect("a file");
    until("both attempts have ended by themselves", Duration::from_secs(30), || written("ended") == 2);
    broker.kill();

    copy_journal(&newer, &home.data());
    let _broker = home.start_broker("server");
    for name in ["before", "after"] {
        let (code, _, errors) = home.run(&["wait", "--timeout", "30s", name]);
        assert_eq!(code, 0, "{name}: {errors}; log: {}", home.log());
    }
    assert_eq!((written("-0-1"), written("ended")), (2, 2), "each ran once, until its end");
}

#[test]
fn second_agent_of_a_state_folder_is_rejected_with_the_process_that_holds_it() {
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    let mut first = home.start_agent(4);
    let run = || home.run(&["run", "--pool", "local", "--", "true"]);
    until("the pool runs commands", Duration::from_secs(30), || run().0 == 0);
    let file = home.path().join("local.toml");
    let (code, printed, errors) = home.run(&["agent", file.to_str().expect("a plain path")]);
    let (folder, holder) = (home.path().join("local"), first.0.id());
    let expected = format!(
        "error: state folder {} is in use by another weir, process {holder}\nhint: each pool's agent needs a state folder of its own\n",
        folder.display()
    );
    assert_eq!((code, printed.as_str(), errors.as_str()), (4, "", expected.as_str()));
    // The lock ends with its process, so the next agent can start without a cleanup.
    first.kill();
    let _second = home.start_agent(4);
    until("the next agent's pool runs commands", Duration::from_secs(30), || run().0 == 0);
}

#[test]
fn agent_whose_supervisor_is_killed_continues_with_a_new_one() {
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    let mut agent = home.start_agent(4);
    let run = || home.run(&["run", "--pool", "local", "--", "true"]);
    until("the pool runs commands", Duration::from_secs(30), || run().0 == 0);
    // An agent whose folder knows of an earlier session.
    agent.kill();
    agent = home.start_agent(4);
    until("the pool runs commands again", Duration::from_secs(30), || run().0 == 0);
    let killed = supervisor_of(&home.path().join("local")).expect("a supervisor");
    rustix::process::kill_process(killed, rustix::process::Signal::KILL).expect("a signal");
    let (code, _, errors) = run();
    assert_eq!(code, 0, "{errors}; log: {}", home.log());
    assert_ne!(supervisor_of(&home.path().join("local")), Some(killed));
    assert!(agent.0.try_wait().expect("a state").is_none(), "the agent has ended: {}", home.log());
}
