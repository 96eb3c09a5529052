//! Agents that violate the protocol, flood the broker, or claim another pool. The normal pool beside them
//! is not affected.

use tonic::{Code, Status};
use weir::api::client::Client;
use weir::api::proto::v1;
use weir::api::proto::v1::attempt_report::Status as Reported;
use weir::api::proto::v1::sync_request::Body;
use weir::api::proto::v1::sync_response::Body as Answer;

use crate::fake::{Agent, Broker, hello, node};
use crate::job;
use crate::table::{Call, Case, invalid, refused};

/// Sends `frame` in a session and returns the refusal, if any. A frame other than a hello follows a valid
/// hello. Its number and epoch are filled in where they are 0.
pub async fn refusal(client: &Client, mut frame: v1::SyncRequest) -> Result<(), Status> {
    let mut agent = match &frame.body {
        Some(Body::Hello(_)) => Agent::open(client).await,
        _ => Agent::connect(client, hello("rogue", 9)).await,
    };
    let now = agent.epoch;
    match &mut frame.body {
        Some(Body::Inventory(message)) if message.epoch == 0 => message.epoch = now,
        Some(Body::Observed(message)) if message.epoch == 0 => message.epoch = now,
        Some(Body::Hello(_) | Body::Inventory(_) | Body::Observed(_) | Body::Heartbeat(_)) | None => {}
    }
    if frame.number == 0 {
        agent.number += 1;
        frame.number = agent.number;
    }
    let number = frame.number;
    agent.send_frame(frame).await;
    let heartbeat = Body::Heartbeat(v1::Heartbeat { epoch: now.max(1), sequence: 77 });
    agent.send_frame(v1::SyncRequest { number: number + 1, body: Some(heartbeat) }).await;
    loop {
        match agent.receive().await {
            Ok(Answer::Refused(refused)) => {
                let code = match refused.code.as_str() {
                    "PoolClaimed" => Code::AlreadyExists,
                    "InvalidPool" | "ProtocolError" => Code::InvalidArgument,
                    "Superseded" => Code::FailedPrecondition,
                    _ => Code::Unavailable,
                };
                return Err(Status::new(code, refused.message));
            }
            Ok(Answer::HeartbeatAnswer(_)) => return Ok(()),
            Ok(_) => {}
            Err(Some(status)) => return Err(status),
            Err(None) => return Err(Status::unknown("the session ended without a status")),
        }
    }
}

fn frame(body: Body) -> Call {
    Call::Sync(v1::SyncRequest { number: 0, body: Some(body) })
}

fn changed_hello(change: impl FnOnce(&mut v1::Hello)) -> Call {
    let mut message = hello("rogue", 9);
    change(&mut message);
    frame(Body::Hello(message))
}

fn declaration(change: impl FnOnce(&mut v1::PoolDeclaration)) -> Call {
    changed_hello(|hello| change(hello.pool.as_mut().expect("a pool")))
}

fn inventory(nodes: Vec<v1::Node>) -> Call {
    let part = v1::Part::FullEnd as i32;
    frame(Body::Inventory(v1::Inventory { epoch: 0, part, nodes, removed: Vec::new() }))
}

fn one_node(change: impl FnOnce(&mut v1::Node)) -> Call {
    let mut changed = node("n1");
    change(&mut changed);
    inventory(vec![changed])
}

fn total(change: impl FnOnce(&mut v1::Resources)) -> Call {
    one_node(|node| change(node.total.get_or_insert_default()))
}

fn device(change: impl FnOnce(&mut v1::Device)) -> Call {
    let mut changed = v1::Device { model: "T4".to_owned(), healthy: true, ..Default::default() };
    change(&mut changed);
    one_node(|node| node.devices = vec![changed])
}

fn observed(reports: Vec<v1::AttemptReport>) -> Call {
    frame(Body::Observed(v1::Observed { epoch: 0, part: v1::Part::Delta as i32, reports }))
}

fn report(attempt: &str, status: Option<Reported>) -> v1::AttemptReport {
    v1::AttemptReport { attempt: attempt.to_owned(), ordered_revision: 0, status }
}

fn succeeded() -> Option<Reported> {
    let outcome = Some(v1::Outcome { code: "Succeeded".to_owned(), ..Default::default() });
    Some(Reported::Ended(v1::Ended { outcome, ..Default::default() }))
}

/// Bad values of every field that agents send.
pub fn cases() -> Vec<Case> {
    let mut all = hello_cases();
    all.extend(node_cases());
    all.extend(report_cases());
    all
}

/// A valid journal id.
const JOURNAL: &str = "aaaaaaaaaa";

/// A high-water mark with a proof of this many bytes.
fn high_water(journal: &str, proof: usize) -> Option<v1::HighWaterMark> {
    Some(v1::HighWaterMark {
        journal: journal.to_owned(),
        writer_session: 1,
        revision: u64::MAX,
        proof: vec![0; proof],
    })
}

fn hello_cases() -> Vec<Case> {
    let mut all = Vec::new();
    let serve = |hello: v1::Hello| {
        Call::ServeLogs(v1::ServeLogsRequest { body: Some(v1::serve_logs_request::Body::Hello(hello)) })
    };
    let long = "n".repeat(1 << 20);
    for name in ["", "A", "a\u{202e}", "a\u{0}", &long] {
        all.push(invalid(declaration(|p| p.name = name.to_owned()), "hello.pool.name", "is not 1 to 63"));
        all.push(invalid(
            declaration(|p| p.backend = name.to_owned()),
            "hello.pool.backend",
            "is not 1 to 63",
        ));
        let key = name.to_owned() + " ";
        let labels = declaration(|p| drop(p.labels.insert(key, String::new())));
        all.push(invalid(labels, "hello.pool.labels", "is not letters"));
        all.push(invalid(
            declaration(|p| p.region = name.to_owned()),
            "hello.pool.region",
            "is not a region",
        ));
    }
    let note = |text: String| declaration(|p| p.notes = vec![text]);
    let missing = hello("missing", 8);
    let mut stolen = hello("normal", 1);
    stolen.key = vec![2; 16];
    let with = |change: fn(&mut v1::Hello)| {
        let mut message = hello("normal", 1);
        change(&mut message);
        message
    };
    all.extend([
        invalid(Call::Sync(v1::SyncRequest { number: 0, body: None }), "body", "set hello, inventory"),
        invalid(
            Call::Sync(v1::SyncRequest { number: 5, body: Some(Body::Heartbeat(v1::Heartbeat::default())) }),
            "number",
            "5 leaves a gap after the last frame",
        ),
        invalid(changed_hello(|h| h.pool = None), "hello.pool", "is missing"),
        invalid(
            changed_hello(|h| h.last_epoch = Some(u64::MAX)),
            "hello.last_epoch",
            "is not within 0 and 4611686018427387904",
        ),
        invalid(changed_hello(|h| h.instance.clear()), "hello.instance", "0 bytes, 16 are required"),
        invalid(changed_hello(|h| h.key = vec![0; 1 << 20]), "hello.key", "1048576 bytes, 16 are required"),
        invalid(
            changed_hello(|h| h.high_water = high_water("x", 16)),
            "hello.high_water.journal",
            "\"x\" is not a journal id",
        ),
        invalid(
            changed_hello(|h| h.high_water = high_water(JOURNAL, 3)),
            "hello.high_water.proof",
            "3 bytes, 16 are required",
        ),
        invalid(
            serve(with(|h| h.high_water = high_water("x", 16))),
            "hello.high_water.journal",
            "is not a journal id",
        ),
        invalid(
            serve(with(|h| h.high_water = high_water(JOURNAL, 0))),
            "hello.high_water.proof",
            "0 bytes, 16 are required",
        ),
        invalid(declaration(|p| p.region = "CN-CX".to_owned()), "hello.pool.region", "CN-CX does not exist"),
        invalid(note("x".repeat(3 << 20)), "hello.pool.notes", "3145728 bytes, at most 1024"),
        invalid(note("a\u{202e}b".to_owned()), "hello.pool.notes", "contains control or invisible"),
        invalid(declaration(|p| p.notes = vec![String::new(); 65]), "hello.pool.notes", "65 entries"),
        refused(
            changed_hello(|h| *h = hello("normal", 3)),
            "hello.instance",
            Code::AlreadyExists,
            "pool \"normal\" belongs to another agent",
        ),
        refused(
            frame(Body::Hello(stolen.clone())),
            "hello.key",
            Code::AlreadyExists,
            "pool \"normal\" belongs to another agent",
        ),
        // The stream of logs is bound to the pool's agent like its session.
        refused(serve(stolen), "hello.key", Code::AlreadyExists, "\"normal\" belongs to another agent"),
        refused(
            serve(with(|h| h.last_epoch = Some(1 << 40))),
            "hello.last_epoch",
            Code::FailedPrecondition,
            "pool \"normal\" is spoken for in epoch",
        ),
        refused(serve(hello("normal", 3)), "hello.instance", Code::AlreadyExists, "belongs to another"),
        refused(serve(missing), "hello.pool.name", Code::NotFound, "pool \"missing\" does not exist"),
        invalid(serve(with(|h| h.key.clear())), "hello.key", "0 bytes, 16 are required"),
        invalid(serve(with(|h| h.instance.clear())), "hello.instance", "0 bytes, 16 are required"),
        invalid(
            serve(with(|h| h.pool.as_mut().expect("a pool").region = "x".to_owned())),
            "hello.pool.region",
            "\"x\" is not a region",
        ),
        invalid(Call::ServeLogs(v1::ServeLogsRequest::default()), "hello", "first message must be a hello"),
    ]);
    all
}

fn node_cases() -> Vec<Case> {
    let at = |field: &str| format!("inventory.nodes[0].{field}");
    let taint = |key: &str, value: &str| {
        let taint = v1::Taint { key: key.to_owned(), value: value.to_owned() };
        one_node(|n| n.taints = vec![taint])
    };
    let old = v1::Inventory { epoch: 999_999, part: v1::Part::Delta as i32, ..Default::default() };
    let wrong_part = |part| frame(Body::Inventory(v1::Inventory { part, ..Default::default() }));
    let names = ["", "N1", "a b", "a\u{202e}", "a\u{0}b", &"n".repeat(1 << 20)];
    let mut all: Vec<Case> = names
        .iter()
        .map(|name| invalid(inventory(vec![node(name)]), &at("name"), "is not a host name"))
        .collect();
    let removed = vec![String::new(); 16_385];
    all.extend([
        refused(frame(Body::Inventory(old)), "inventory.epoch", Code::FailedPrecondition, "not 999999"),
        invalid(wrong_part(0), "inventory.part", "0 is not a part: use DELTA, FULL_MORE or FULL_END"),
        invalid(wrong_part(9), "inventory.part", "9 is not a part"),
        invalid(
            inventory(vec![v1::Node::default(); 16_385]),
            "inventory.nodes",
            "16385 entries, at most 16384",
        ),
        invalid(
            frame(Body::Inventory(v1::Inventory { part: 1, removed, ..Default::default() })),
            "inventory.removed",
            "16385 entries, at most 16384",
        ),
        invalid(inventory(vec![node("n1"), node("n1")]), "inventory.nodes", "node \"n1\" is named twice"),
        invalid(one_node(|n| drop(n.labels.insert("a b".into(), "".into()))), &at("labels"), "\"a b\"="),
        invalid(taint("", "x"), &at("taints.key"), "\"\" is not letters"),
        invalid(taint("a\u{202e}", "x"), &at("taints.key"), "\"a\\u{202e}\" is not letters"),
        invalid(taint("a", &"v".repeat(1 << 20)), &at("taints.value"), "is not letters"),
        invalid(one_node(|n| n.taints = vec![v1::Taint::default(); 65]), &at("taints"), "65 entries"),
        invalid(total(|t| t.cpu_millis = 10_000_001), &at("total.cpu_millis"), "10000001 is not within"),
        invalid(total(|t| t.cpu_millis = u64::MAX), &at("total.cpu_millis"), "18446744073709551615 is not"),
        invalid(total(|t| t.memory_bytes = u64::MAX), &at("total.memory_bytes"), "is not within"),
        invalid(total(|t| t.storage_bytes = u64::MAX), &at("total.storage_bytes"), "is not within"),
        invalid(
            total(|t| {
                t.other.insert("x".into(), u64::MAX);
            }),
            &at("total.other"),
            "of \"x\" is not",
        ),
        invalid(
            total(|t| {
                t.other.insert("\u{7}".into(), 1);
            }),
            &at("total.other"),
            "\"\\u{7}\" is not",
        ),
        invalid(
            one_node(|n| n.devices = vec![v1::Device { model: "T4".into(), ..Default::default() }; 257]),
            &at("devices"),
            "257 entries, at most 256",
        ),
        invalid(device(|d| d.model.clear()), &at("devices[0].model"), "\"\" is not letters"),
        invalid(device(|d| d.model = "T\u{202e}4".into()), &at("devices[0].model"), "\"T\\u{202e}4\" is not"),
        invalid(device(|d| d.memory_bytes = u64::MAX), &at("devices[0].memory_bytes"), "is not within"),
        invalid(device(|d| d.millis = Some(0)), &at("devices[0].millis"), "0 is not within 1 and 1000"),
        invalid(device(|d| d.millis = Some(1_001)), &at("devices[0].millis"), "1001 is not within 1"),
        invalid(
            device(|d| d.topology_group = 65_536),
            &at("devices[0].topology_group"),
            "65536 is not within",
        ),
        invalid(device(|d| d.profiles = vec!["a b".into()]), &at("devices[0].profiles"), "\"a b\" is not"),
        invalid(device(|d| d.profiles = vec!["a".into(); 65]), &at("devices[0].profiles"), "65 entries"),
        invalid(overflowing(), "inventory.nodes", "add up to more than 2^64-1"),
    ]);
    all
}

/// Nodes that are each within the limits, but whose sum overflows.
fn overflowing() -> Call {
    let large = |number: usize| {
        let mut large = node(&format!("n{number}"));
        large.total = Some(v1::Resources { storage_bytes: 1 << 54, ..Default::default() });
        large
    };
    inventory((0..1_025).map(large).collect())
}

fn report_cases() -> Vec<Case> {
    let at = |field: &str| format!("observed.reports[0].{field}");
    let ended = |outcome| Some(Reported::Ended(v1::Ended { outcome, ..Default::default() }));
    let foreign = "aaaaaaaaaa-1-0-1";
    let unknown = v1::Outcome { code: "Exploded\u{202e}".to_owned(), ..Default::default() };
    let old = v1::Observed { epoch: 999_999, part: v1::Part::Delta as i32, reports: Vec::new() };
    let beat = v1::Heartbeat { epoch: 999_999, sequence: 1 };
    let mut all = vec![
        refused(frame(Body::Observed(old)), "observed.epoch", Code::FailedPrecondition, "an older epoch"),
        refused(frame(Body::Heartbeat(beat)), "heartbeat.epoch", Code::FailedPrecondition, "an older epoch"),
        invalid(frame(Body::Observed(v1::Observed::default())), "observed.part", "0 is not a part"),
        invalid(observed(vec![v1::AttemptReport::default(); 16_385]), "observed.reports", "16385 entries"),
        invalid(
            observed(vec![report(foreign, None)]),
            "observed.reports[0]",
            "set starting, running or ended",
        ),
        invalid(observed(vec![report(foreign, ended(None))]), &at("ended.outcome"), "is missing"),
        invalid(
            observed(vec![report(foreign, ended(Some(unknown)))]),
            &at("ended.outcome.code"),
            "\"Exploded\\u{202e}\" is not an outcome",
        ),
    ];
    for attempt in ["", "1", "aaaaaaaaaa-1-0", "aaaaaaaaaa-+1-0-1", "\u{202e}", &"a".repeat(1 << 20)] {
        all.push(invalid(observed(vec![report(attempt, succeeded())]), &at("attempt"), "is not a"));
    }
    all
}

/// Submits a job and returns its id and the start order that the agent receives for it.
async fn ordered(client: &Client, agent: &mut Agent) -> (u64, v1::StartOrder) {
    let response = client.jobs().submit(job::valid()).await.expect("accepted").into_inner();
    let order = agent.receive_until(|answer| match answer {
        Answer::Orders(orders) => orders.orders.into_iter().next(),
        _ => None,
    });
    (response.jobs[0].id, order.await)
}

async fn phase(client: &Client, id: u64) -> v1::JobPhase {
    let job = Some(v1::JobRef { id, ..Default::default() });
    let request = v1::GetJobRequest { job, with_attempts: false };
    client.jobs().get_job(request).await.expect("the job").into_inner().job.expect("a job").phase()
}

#[tokio::test]
async fn only_the_pool_of_an_attempt_can_end_it() {
    let broker = Broker::start();
    let client = broker.client();
    let mut bystander = Agent::ready(&client, "normal", 1).await;
    let (id, order) = ordered(&client, &mut bystander).await;
    let mut rogue = Agent::connect(&client, hello("rogue", 9)).await;
    // The normal pool's attempt, as ended and as running, and an attempt that never existed.
    let running = Some(Reported::Running(v1::Running::default()));
    let later = order.attempt.replace("-0-1", "-0-7");
    rogue.send_reports(vec![report(&order.attempt, succeeded())], v1::Part::Delta).await;
    let reports = vec![report(&order.attempt, running.clone()), report(&later, running)];
    rogue.send_reports(reports, v1::Part::FullEnd).await;
    let orphans = rogue.receive_until(|answer| match answer {
        Answer::Stops(stops) => Some(stops.stops),
        _ => None,
    });
    let orphans: Vec<(String, String)> =
        orphans.await.into_iter().map(|stop| (stop.attempt, stop.reason)).collect();
    assert_eq!(orphans, [(order.attempt.clone(), "Orphaned".to_owned()), (later, "Orphaned".to_owned())]);
    assert_eq!(phase(&client, id).await, v1::JobPhase::Running);
    // An attempt of another journal does not exist in this one.
    rogue.send_reports(vec![report("aaaaaaaaaa-1-0-1", succeeded())], v1::Part::Delta).await;
    let (code, message) = rogue.receive_refusal().await;
    assert_eq!(code, "ProtocolError");
    assert!(message.contains("aaaaaaaaaa-1-0-1 is not live in this pool"), "{message}");
    // The attempt's own pool may end it.
    bystander.send_reports(vec![report(&order.attempt, succeeded())], v1::Part::Delta).await;
    bystander.receive_until(|answer| matches!(answer, Answer::Acknowledged(_)).then_some(())).await;
    assert_eq!(phase(&client, id).await, v1::JobPhase::Succeeded);
    bystander.check_session(&client).await;
    broker.check_health(&client).await;
}

#[tokio::test]
async fn older_epoch_is_refused_before_its_reports_are_read() {
    let broker = Broker::start();
    let client = broker.client();
    let mut old = Agent::ready(&client, "normal", 1).await;
    let mut new = Agent::connect(&client, hello("normal", 1)).await;
    assert!(new.epoch > old.epoch);
    let (code, message) = old.receive_refusal().await;
    assert_eq!((code.as_str(), message.as_str()), ("Superseded", "a newer session of the pool is active"));
    // A report that would make the broker read-only, as if its journal were an old copy. It is ignored
    // because of its epoch.
    let attempt = format!("{}-1-0-1", new.journal);
    let future = v1::AttemptReport { ordered_revision: u64::MAX, ..report(&attempt, succeeded()) };
    new.epoch = old.epoch;
    new.send_reports(vec![future], v1::Part::Delta).await;
    let (code, message) = new.receive_refusal().await;
    assert_eq!((code.as_str(), message.as_str()), ("Superseded", "an older epoch"));
    client.jobs().submit(job::valid()).await.expect("the broker still writes");
    broker.check_health(&client).await;
}

#[tokio::test]
async fn agent_that_claims_unknown_work_is_refused_and_the_broker_still_writes() {
    let broker = Broker::start();
    let client = broker.client();
    let mut bystander = Agent::ready(&client, "normal", 1).await;
    let journal = bystander.journal.clone();
    // A high-water mark that this journal did not issue proves nothing: the agent is accepted as if it had
    // sent none.
    let forged = v1::Hello { high_water: high_water(&journal, 16), ..hello("faulty", 2) };
    let mut faulty = Agent::connect(&client, forged).await;
    let attempt = format!("{journal}-7-0-1");
    let running = Some(Reported::Running(v1::Running::default()));
    let future = v1::AttemptReport { ordered_revision: u64::MAX, ..report(&attempt, running) };
    faulty.send_reports(vec![future], v1::Part::FullEnd).await;
    let (code, message) = faulty.receive_refusal().await;
    assert_eq!(code, "UnknownWork");
    assert_eq!(message, format!("attempt {attempt} was never ordered by this journal"));
    client.jobs().submit(job::valid()).await.expect("the broker still writes");
    bystander.heartbeat(1).await;
    broker.check_health(&client).await;
}

#[tokio::test]
async fn session_has_one_hello_as_its_first_message() {
    let broker = Broker::start();
    let client = broker.client();
    let bystander = Agent::ready(&client, "normal", 1).await;
    let mut early = Agent::open(&client).await;
    early.send(Body::Heartbeat(v1::Heartbeat::default())).await;
    let (code, message) = early.receive_refusal().await;
    assert_eq!((code.as_str(), message.as_str()), ("ProtocolError", "the first message must be a hello"));
    let mut twice = Agent::connect(&client, hello("twice", 2)).await;
    twice.send(Body::Hello(hello("twice", 2))).await;
    let (code, message) = twice.receive_refusal().await;
    assert_eq!((code.as_str(), message.as_str()), ("ProtocolError", "a second hello"));
    let mut unnumbered = Agent::open(&client).await;
    unnumbered.send_frame(v1::SyncRequest { number: 0, body: Some(Body::Hello(hello("zero", 3))) }).await;
    let (code, message) = unnumbered.receive_refusal().await;
    assert_eq!(code, "ProtocolError");
    assert_eq!(message, "number: 0, the frames of a session count from 1");
    let mut long = Agent::connect(&client, hello("long", 4)).await;
    let removed = vec!["x".repeat(5 << 20)];
    long.send(Body::Inventory(v1::Inventory { removed, ..Default::default() })).await;
    let (code, message) = long.receive_refusal().await;
    assert!(code == "OutOfRange" && message.contains("the limit is: 4194304"), "{code}: {message}");
    bystander.check_session(&client).await;
    broker.check_health(&client).await;
}

#[tokio::test]
async fn pool_with_too_many_nodes_is_refused() {
    let broker = Broker::start();
    let client = broker.client();
    let bystander = Agent::ready(&client, "normal", 1).await;
    let before = broker.resident_bytes();
    let mut large = Agent::connect(&client, hello("large", 2)).await;
    let names: Vec<v1::Node> =
        (0..100_001).map(|n| v1::Node { name: format!("n{n}"), ..Default::default() }).collect();
    for nodes in names.chunks(16_384) {
        large.send_nodes(nodes.to_vec(), v1::Part::FullMore).await;
    }
    let (code, message) = large.receive_refusal().await;
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("InvalidPool", "at most 100000 nodes in one pool are allowed")
    );
    bystander.check_session(&client).await;
    broker.check_health(&client).await;
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 512 << 20, "the broker uses {grown} bytes more than before");
}

#[tokio::test]
async fn flood_of_one_agent_does_not_affect_others() {
    let broker = Broker::start();
    let client = broker.client();
    let bystander = Agent::ready(&client, "normal", 1).await;
    let before = broker.resident_bytes();
    let flood = tokio::spawn({
        let client = broker.client();
        async move {
            let mut rogue = Agent::connect(&client, hello("rogue", 9)).await;
            for round in 0..200u64 {
                // It never reads the responses.
                for sequence in 0..50 {
                    let epoch = rogue.epoch;
                    rogue.send(Body::Heartbeat(v1::Heartbeat { epoch, sequence })).await;
                }
                let nodes = (0..50).map(|n| {
                    let mut changed = node(&format!("n{n}"));
                    changed.labels = [("round".to_owned(), round.to_string())].into();
                    changed
                });
                rogue.send_nodes(nodes.collect(), v1::Part::FullMore).await;
            }
        }
    });
    for _ in 0..10 {
        client.jobs().submit(job::valid()).await.expect("accepted beside the flood");
    }
    flood.await.expect("the flood is over");
    bystander.check_session(&client).await;
    broker.check_health(&client).await;
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "the broker uses {grown} bytes more than before");
}

#[tokio::test]
async fn orders_with_large_environments_are_sent_in_bounded_messages() {
    let broker = Broker::start();
    let client = broker.client();
    let mut first = Agent::ready(&client, "normal", 1).await;
    for number in 0..40 {
        let mut request = job::valid();
        let spec = request.jobs[0].spec.as_mut().expect("a spec");
        let Some(v1::task_group::Run::Process(program)) = &mut spec.groups[0].run else {
            panic!("a process")
        };
        program.env = (0..2)
            .map(|part| v1::EnvVar {
                name: format!("LARGE_{part}"),
                source: Some(v1::env_var::Source::Value(format!("{number}{}", "x".repeat(90_000)))),
            })
            .collect();
        client.jobs().submit(request).await.expect("accepted");
    }
    let mut received = 0;
    first
        .receive_until(|answer| match answer {
            Answer::Orders(orders) => {
                received += orders.orders.len();
                (received == 40).then_some(())
            }
            _ => None,
        })
        .await;
    let mut again = Agent::connect(&client, hello("normal", 1)).await;
    let (mut orders, mut largest) = (0, 0);
    again
        .receive_until(|answer| match answer {
            Answer::Orders(message) => {
                largest = largest.max(prost::Message::encoded_len(&message));
                orders += message.orders.len();
                (message.part() == v1::Part::FullEnd).then_some(())
            }
            _ => None,
        })
        .await;
    assert_eq!(orders, 40);
    assert!(largest <= 512 * 1024, "{largest} bytes in one message");
}
