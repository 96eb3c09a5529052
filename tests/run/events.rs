//! What happened, as `weir events` and its API report it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;

use tonic_types::StatusExt;
use weir::api::client::Client;
use weir::api::proto::v1;

use super::*;

/// Events as `weir events -o json` prints them.
fn events(home: &Home, arguments: &[&str]) -> Vec<serde_json::Value> {
    let (code, lines, errors) = home.run(&[&["events", "-o", "json"], arguments].concat());
    assert_eq!(code, 0, "{arguments:?}: {errors}");
    lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn kinds(events: &[serde_json::Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().expect("a kind")).collect()
}

#[test]
fn events_tell_the_whole_life_of_a_job_and_of_what_it_ran_on() {
    let (home, _dev) = dev();
    let file = home.path().join("queues.yaml");
    std::fs::write(&file, "queues:\n- name: team\n- name: team/vision\n").expect("a file");
    assert_eq!(home.run(&["apply", file.to_str().expect("a path")]).0, 0);
    let run = |queue: &str, name: &str, label: &str, script: &str| {
        let arguments =
            ["-q", queue, "run", "--pool", "local", "--name", name, "--label", label, "--attempts", "2"];
        home.run(&[&arguments[..], &["--", "sh", "-c", script]].concat()).0
    };
    let marker = home.path().join("second");
    let script = format!("if mkdir {} 2>/dev/null; then exit 3; fi", marker.display());
    assert_eq!(run("team/vision", "twice", "team=vision", &script), 0);
    assert_eq!(run("default", "fails", "team=speech", "exit 4"), 4);
    let life = events(&home, &["job/team/vision/twice"]);
    let attempt = ["ATTEMPT_ORDERED", "ATTEMPT_STARTING", "ATTEMPT_RUNNING", "ATTEMPT_ENDED"];
    let expected = [&["JOB_SUBMITTED"], &attempt[..], &attempt[..], &["JOB_ENDED"]].concat();
    // A pool may report that an attempt runs in the same message as that it has begun to.
    let found: Vec<&str> = kinds(&life).into_iter().filter(|kind| *kind != "ATTEMPT_STARTING").collect();
    let expected: Vec<&str> = expected.into_iter().filter(|kind| *kind != "ATTEMPT_STARTING").collect();
    assert_eq!(found, expected);
    for event in &life {
        assert_eq!(
            (&event["queue"], &event["job_name"]),
            (&"team/vision".into(), &"twice".into()),
            "{event}"
        );
        assert!(event["happened_at"].is_string() && event["happened_unix_ms"].is_u64(), "{event}");
        assert!(event["node"].is_null() && event["units"].is_null(), "only what it has: {event}");
    }
    let ended: Vec<&serde_json::Value> =
        life.iter().filter(|event| event["kind"] == "ATTEMPT_ENDED").collect();
    assert_eq!((&ended[0]["number"], &ended[1]["number"]), (&1.into(), &2.into()), "each names its attempt");
    assert_eq!(
        (&ended[0]["outcome"]["exit_code"], &ended[1]["outcome"]["exit_code"]),
        (&3.into(), &0.into())
    );
    assert!(ended[0]["retry_unix_ms"].as_u64().is_some() && ended[1]["retry_unix_ms"].is_null());
    let attempts =
        life.iter().filter(|event| event["kind"].as_str().is_some_and(|k| k.starts_with("ATTEMPT")));
    assert!(attempts.clone().all(|event| event["pool"] == "local" && event["unit"] == 0), "{life:?}");
    let names: BTreeSet<&str> = attempts.filter_map(|event| event["attempt"].as_str()).collect();
    assert_eq!(names.len(), 2, "{names:?}");

    // Also where the ends of attempts are not asked for.
    let running = events(&home, &["job/team/vision/twice", "--kind", "attempt_running"]);
    let numbers: Vec<&serde_json::Value> = running.iter().map(|event| &event["number"]).collect();
    assert_eq!(numbers, [1, 2]);

    let count = |arguments: &[&str]| events(&home, arguments).len();
    assert_eq!(count(&["--queue", "team", "--kind", "job_ended"]), 0, "not of the queues below it");
    assert_eq!(count(&["--queue", "team", "--subtree", "--kind", "job_ended"]), 1);
    assert_eq!(kinds(&events(&home, &["queue/team", "--subtree", "--kind", "queue"])), ["QUEUE_CREATED"; 2]);
    assert_eq!(count(&["-l", "team in (vision,speech)", "--kind", "job_ended"]), 2);
    assert_eq!(
        count(&["-l", "team=speech", "--kind", "job_ended", "--pool", "local"]),
        0,
        "a job has no pool"
    );
    assert_eq!(count(&["--pool", "local", "--kind", "attempt_ended"]), 4);
    assert_eq!(count(&["pool/xj-ascend", "--kind", "attempt"]), 0);
    let pool = events(&home, &["pool/xj-ascend", "--kind", "pool"]);
    assert_eq!(kinds(&pool)[..2], ["POOL_REGISTERED", "POOL_CONNECTED"]);
    assert_eq!(home.run(&["cordon", "xj-ascend"]).0, 0);
    let node = home.run(&["get", "nodes", "--pool", "local", "-o", "name"]).1;
    let node = node.trim().trim_start_matches("node/");
    assert_eq!(home.run(&["cordon", "local", "--node", node]).0, 0);
    let closed = events(&home, &["--kind", "pool_cordoned,node_cordoned"]);
    assert_eq!(kinds(&closed), ["POOL_CORDONED", "NODE_CORDONED"]);
    assert_eq!((&closed[1]["pool"], &closed[1]["node"]), (&"local".into(), &node.into()));
    assert_eq!(closed[0]["principal"], "anonymous");

    // What is deleted by now has its history.
    std::fs::write(&file, "queues:\n- name: gone\n").expect("a file");
    assert_eq!(home.run(&["apply", file.to_str().expect("a path")]).0, 0);
    assert_eq!(home.run(&["delete", "queue/gone"]).0, 0);
    assert_eq!(kinds(&events(&home, &["queue/gone"])), ["QUEUE_CREATED", "QUEUE_DELETED"]);

    // The last revision that was seen is where one goes on.
    let seen = closed[0]["revision"].as_u64().expect("a revision").to_string();
    let later = events(&home, &["--after", &seen, "--kind", "pool,node"]);
    assert_eq!(kinds(&later), ["NODE_CORDONED"]);
    assert_eq!(count(&["--since", "1d"]), count(&[]));
    let table = home.run(&["events", "job/fails", "-o", "wide"]).1;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["TIME", "KIND", "OBJECT", "UNIT", "POOL", "DETAIL", "REVISION", "BY"]);
    assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{table}");
    let ended = rows.iter().rfind(|row| row[1] == "ATTEMPT_ENDED").expect("its last attempt");
    assert_eq!(ended[2..6], ["job/fails", "0.2", "local", "Failed:4"]);
    for (arguments, code, expected) in [
        (&["events", "--kind", "job_started"][..], 2, "use job, attempt, pool, node, queue, job_submitted"),
        (&["events", "job/nope"], 3, "job \"nope\" does not exist"),
        (&["events", "pool/nope"], 8, "--pool: pool \"nope\" does not exist"),
        (&["events", "node/a"], 8, "has no events of its own: write job/NAME, pool/NAME or queue/NAME"),
        (&["events", "--subtree"], 2, "--subtree needs another queue"),
        (&["events", "--after", "99999999"], 8, "--after: 99999999 is beyond the journal's end"),
        (&["events", "--after", "1", "--since", "1h"], 2, "--since"),
    ] {
        let (found, _, errors) = home.run(arguments);
        assert!(found == code && errors.contains(expected), "{arguments:?}: {found} {errors}");
    }
}

/// A reader of events in a process of its own.
struct Reader {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Reader {
    fn start(home: &Home, after: u64) -> Self {
        let after = after.to_string();
        let arguments = ["events", "-f", "-o", "json", "--kind", "job", "--after", &after];
        let mut child =
            home.weir(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a reader");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// The next event: its revision, kind and job.
    fn next(&mut self) -> (u64, String, u64) {
        let line = self.lines.recv_timeout(Duration::from_secs(120)).expect("an event in time");
        let event: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
        let number = |field: &str| event[field].as_u64().expect("a number");
        (number("revision"), event["kind"].as_str().expect("a kind").to_owned(), number("job_id"))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Rounds of submits and jobs per round: `WEIR_EVENTS=full` with `cargo test --release --test run consumer` makes a million
/// events.
fn scale() -> (usize, usize) {
    if std::env::var("WEIR_EVENTS").is_ok_and(|value| value == "full") { (334, 1_000) } else { (30, 20) }
}

fn token(home: &Home) -> String {
    std::fs::read_to_string(home.data().join("token")).expect("the token")
}

/// So many jobs that wait.
fn waiting_jobs(count: usize, token: &str) -> v1::SubmitRequest {
    let command = vec!["true".to_owned()];
    let group = v1::TaskGroup {
        run: Some(v1::task_group::Run::Process(v1::Program { command, ..Default::default() })),
        resources: Some(v1::TaskResources { cpu_millis: 100, ..Default::default() }),
        ..Default::default()
    };
    let spec = v1::JobSpec { groups: vec![group], ..Default::default() };
    let job = v1::Submission { spec: Some(spec), ..Default::default() };
    v1::SubmitRequest { token: token.to_owned(), jobs: vec![job; count], allow_pending: true }
}

/// Repeats a call until the broker answers it.
async fn answered<T>(mut call: impl AsyncFnMut() -> Result<tonic::Response<T>, tonic::Status>) -> T {
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    loop {
        match call().await {
            Ok(response) => return response.into_inner(),
            Err(status) => assert!(std::time::Instant::now() < deadline, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Submits jobs and cancels them at once, round by round: three events of each.
async fn submit_and_cancel(client: Client, rounds: usize, jobs: usize) {
    for round in 0..rounds {
        let request = waiting_jobs(jobs, &format!("round-{round}"));
        answered(async || client.jobs().submit(request.clone()).await).await;
        let all = v1::CancelRequest { filter: Some(v1::JobFilter::default()), ..Default::default() };
        answered(async || client.jobs().cancel(all.clone()).await).await;
    }
}

/// A consumer that stores its cursor and is killed again and again, as the broker is, gets each event exactly once.
#[test]
fn consumer_that_is_killed_like_the_broker_gets_each_event_once() {
    let mut home = Home::new();
    let mut broker = home.start_broker("server");
    let (rounds, jobs) = scale();
    let (total, began) = (3 * rounds * jobs, std::time::Instant::now());
    let (address, token) = (home.address.clone(), token(&home));
    let producer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let client = Client::new(&address, Some(&token)).expect("a client");
            submit_and_cancel(client, rounds, jobs).await;
        });
    });
    let (mut seen, mut cursor, mut kills) = (Vec::with_capacity(total), 0, 0);
    while seen.len() < total {
        let mut reader = Reader::start(&home, cursor);
        // Killed after another number of events each time.
        for _ in 0..(jobs * (1 + 3 * (kills % 5))) {
            let event = reader.next();
            cursor = event.0;
            seen.push(event);
            if seen.len() == total {
                break;
            }
        }
        kills += 1;
        if kills % 4 == 0 {
            broker.kill();
            let data = home.data();
            let arguments = ["server", "--data", data.to_str().expect("a path"), "--listen", &home.address];
            broker = home.start(&arguments);
        }
    }
    println!(
        "{total} events in {:?}, the reader killed {kills} times, the broker {}",
        began.elapsed(),
        kills / 4
    );
    producer.join().expect("all is submitted and cancelled");
    assert!(kills >= 8, "killed {kills} times");
    assert!(seen.is_sorted_by(|a, b| a.0 < b.0), "in order, and none twice");
    for kind in ["JOB_SUBMITTED", "JOB_CLOSING", "JOB_ENDED"] {
        let of_kind: BTreeSet<u64> =
            seen.iter().filter(|(_, k, _)| k == kind).map(|(.., job)| *job).collect();
        assert_eq!(of_kind.len(), rounds * jobs, "{kind}");
    }
    assert_eq!(events(&home, &["--kind", "job"]).len(), total);
}

/// A cursor that is too old is refused, with where one can go on; it is never answered with what is left.
#[tokio::test]
async fn cursor_before_what_is_retained_is_refused_with_the_floor() {
    let mut home = Home::new();
    let _broker = home.start_broker_with("server", &["--events-max", "100"]);
    let client = Client::new(&home.address, Some(&token(&home))).expect("a client");
    let request = waiting_jobs(1_000, "");
    let stream = async |after| {
        let request = v1::StreamEventsRequest { after_revision: after, ..Default::default() };
        client.events().stream_events(request).await.map(tonic::Response::into_inner)
    };
    // Until a snapshot covers the first events, and they are removed: 200,000 events later.
    let mut rounds = 0;
    let refused = loop {
        client.jobs().submit(request.clone()).await.expect("accepted");
        let all = v1::CancelRequest { filter: Some(v1::JobFilter::default()), ..Default::default() };
        client.jobs().cancel(all).await.expect("cancelled");
        if let Err(status) = stream(Some(1)).await {
            break status;
        }
        rounds += 1;
        assert!(rounds < 1_000, "nothing was removed");
    };
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    let info = refused.get_details_error_info().expect("details");
    assert_eq!(info.reason, "Compacted");
    let floor: u64 = info.metadata["floor"].parse().expect("a revision");
    let first = async |after| {
        let mut events = stream(after).await.expect("events");
        events.message().await.expect("a message").expect("events").events[0].revision
    };
    // Batches go as a whole, and more may have gone since.
    let oldest = first(None).await;
    assert!(oldest > floor, "{oldest} is after {floor}");
    assert_eq!(first(Some(oldest - 1)).await, oldest);
    let (code, _, errors) = home.run(&["events", "--kind", "queue"]);
    assert!(code == 0 && errors.starts_with("events before "), "{code} {errors}");
    // What began after the floor lacks nothing.
    until("the last second is after the floor", Duration::from_secs(60), || {
        home.run(&["events", "--since", "1s"]).2.is_empty()
    });
    let (code, _, errors) = home.run(&["events", "--after", "1"]);
    assert_eq!(code, 8, "{errors}");
    assert!(errors.contains("events after revision 1 are no longer retained, only those after "), "{errors}");
}
