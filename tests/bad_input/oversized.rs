//! Oversized requests: millions of entries, messages that expand in memory, gangs that fit no pool.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tonic::Code;
use weir::api::proto::v1;

use crate::fake::{Agent, Broker};
use crate::{job, raw};

/// A length-delimited field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// A submit of one job whose spec is these bytes.
fn submit(spec: &[u8]) -> Vec<u8> {
    field(2, &field(4, spec))
}

const SUBMIT: &str = "/weir.v1.JobService/Submit";
/// The error for too many entries.
const ENTRIES: &str = "the request has more than 100000 messages and list entries";
/// Time in which a request is refused, on a busy machine.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn millions_of_entries_are_refused_in_time_with_the_limit() {
    let broker = Broker::start();
    let labels = |count: usize| {
        let label = |n: usize| field(1, &[field(1, format!("{n:x}").as_bytes()), field(2, b"")].concat());
        submit(&(0..count).flat_map(label).collect::<Vec<u8>>())
    };
    // As many as fit: two bytes each, which become some hundred in memory.
    let bytes_max = (4 << 20) - 32;
    let empty = |number: u8| [number << 3 | 2, 0].repeat(bytes_max / 2);
    let group = |inner: Vec<u8>| submit(&field(3, &inner));
    let rows: Vec<(&str, &str, Vec<u8>, Code, &str)> = vec![
        ("labels", SUBMIT, labels(1_000_000), Code::OutOfRange, "the limit is: 4194304"),
        ("labels that fit", SUBMIT, labels(300_000), Code::InvalidArgument, ENTRIES),
        ("fewer labels", SUBMIT, labels(90_000), Code::InvalidArgument, "90000 entries, at most 64"),
        ("jobs", SUBMIT, empty(2), Code::InvalidArgument, ENTRIES),
        ("groups", SUBMIT, submit(&empty(3)), Code::InvalidArgument, ENTRIES),
        ("dependencies", SUBMIT, submit(&empty(13)), Code::InvalidArgument, ENTRIES),
        ("environment", SUBMIT, group(field(5, &empty(3))), Code::InvalidArgument, ENTRIES),
        ("arguments", SUBMIT, group(field(5, &empty(2))), Code::InvalidArgument, ENTRIES),
        ("jobs to cancel", "/weir.v1.JobService/Cancel", empty(2), Code::InvalidArgument, ENTRIES),
        ("nodes", "/weir.v1.AgentService/Sync", field(3, &empty(3)), Code::InvalidArgument, ENTRIES),
        (
            "as many groups as allowed",
            SUBMIT,
            submit(&[3 << 3 | 2, 0].repeat(99_998)),
            Code::InvalidArgument,
            "",
        ),
    ];
    let client = broker.client();
    for (what, method, bytes, code, expected) in rows {
        let before = broker.resident_bytes();
        let sent_at = Instant::now();
        let mut calls = JoinSet::new();
        let status = {
            for _ in 0..3 {
                let (call, address, token) =
                    (bytes.clone(), broker.home.address.clone(), broker.token.clone());
                calls.spawn(async move { raw::call_at(&address, &token, method, call).await });
            }
            let status = raw::call(&broker, method, bytes).await.expect_err(what);
            calls.join_all().await;
            status
        };
        let took = sent_at.elapsed();
        let peak = broker.peak_bytes().saturating_sub(before);
        println!("{what}: refused in {took:?}, memory at most +{} MiB", peak >> 20);
        assert_eq!(status.code(), code, "{what}: {status:?}");
        assert!(status.message().contains(expected), "{what}: {status:?}");
        assert!(took < REFUSED_WITHIN, "{what}: {took:?}");
        assert!(peak < 256 << 20, "{what}: the broker used {peak} bytes more than before");
        broker.check_health(&client).await;
    }
}

#[tokio::test]
async fn nested_messages_are_decoded_to_a_bounded_depth() {
    let broker = Broker::start();
    let client = broker.client();
    let nested = |levels: usize| (0..levels).fold(b"\x08\x01".to_vec(), |inner, _| field(1, &inner));
    // No message type of weir.v1 contains itself: deeper bytes are a string, or unknown fields.
    for levels in [64, 65, 1_000] {
        let status = raw::call(&broker, SUBMIT, submit(&field(3, &nested(levels)))).await;
        let status = status.expect_err("nothing that can run");
        assert_eq!(status.code(), Code::InvalidArgument, "{levels} levels: {status:?}");
    }
    // Groups, which protobuf nests by tags only.
    for levels in [64, 200, 100_000] {
        let groups = [vec![0x7b; levels], vec![0x7c; levels]].concat();
        let status = raw::call(&broker, SUBMIT, groups).await.expect_err("no jobs");
        assert_eq!(status.code(), Code::InvalidArgument, "{levels} groups: {status:?}");
    }
    broker.check_health(&client).await;
}

#[tokio::test]
async fn gang_that_fits_no_pool_waits_with_the_right_reason() {
    let broker = Broker::start();
    let client = broker.client();
    let agent = Agent::ready(&client, "normal", 1).await;
    // The pool's one node has 64 CPUs and 64 GiB.
    let group = |tasks: u32, cpu_millis: u64, memory_bytes: u64| {
        let mut request = job::valid();
        let group = &mut request.jobs[0].spec.as_mut().expect("a spec").groups[0];
        (group.gang, group.count) = (true, Some(tasks));
        group.resources = Some(v1::TaskResources { cpu_millis, memory_bytes, ..Default::default() });
        request
    };
    let rows = [
        (group(4_096, 1_000_000, 1 << 50), "TaskTooLarge"),
        (group(1, 64_001, 1), "TaskTooLarge"),
        (group(1, 1, (64 << 30) + 1), "TaskTooLarge"),
        (group(65, 1_000, 1), "PoolTooSmall"),
        (group(4_096, 1_000, 1), "PoolTooSmall"),
        (group(2, 64_000, 1), "PoolTooSmall"),
    ];
    for (request, code) in rows {
        let shown = format!("{:?}", request.jobs[0].spec.as_ref().expect("a spec").groups[0]);
        let job = client.jobs().submit(request).await.expect("it waits").into_inner().jobs.remove(0);
        let at = Some(v1::JobRef { id: job.id, ..Default::default() });
        let why = client.jobs().why(v1::WhyRequest { job: at }).await.expect("a reason").into_inner();
        let pool = &why.groups[0].pools[0];
        let found = pool.reason.as_ref().map(|reason| reason.code.as_str());
        assert_eq!((found, pool.permanence()), (Some(code), v1::Permanence::Never), "{shown}: {why:?}");
        let (exit, stdout, stderr) = broker.home.run(&["why", &job.name]);
        assert_eq!(exit, 11, "{stdout}{stderr}");
        assert!(stdout.contains("never") && stdout.contains(code), "{stdout}");
    }
    // Sums above 2^64 are refused: they can't be counted.
    let status = client.jobs().submit(group(4_096, 1, 1 << 50)).await;
    status.expect("2^62 bytes can be counted");
    let mut twice = group(4_096, 1, 1 << 50);
    let groups = &mut twice.jobs[0].spec.as_mut().expect("a spec").groups;
    *groups = (0..8).map(|n| v1::TaskGroup { name: format!("g{n}"), ..groups[0].clone() }).collect();
    let status = client.jobs().submit(twice).await.expect_err("2^65 bytes can't");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("add up to more than 2^64-1"), "{status:?}");
    agent.check_session(&client).await;
    broker.check_health(&client).await;
}
