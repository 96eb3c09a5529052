//! Attacks on the port beside a normal client: it gets its responses in time, the broker's memory stays
//! within bounds, and afterwards the broker works as before. `--nocapture` shows the figures.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use weir::api::client::Client;
use weir::api::proto::v1;

use crate::fake::{Broker, waiting_job};
use crate::wire::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, PRIORITY, RESET, SETTINGS,
    WINDOW_UPDATE, call_headers, flood, frame, literal, open_with,
};
use crate::{job, raw};

/// Duration of each attack.
const DURATION: Duration = Duration::from_millis(500);
/// Response time of 99 of 100 requests of the normal client meanwhile. A client that an attack blocks waits
/// until it ends. Measured: at most 0.15 s on idle cores, 1.6 s beside a build on both of them.
const RESPONSE_MAX: Duration = Duration::from_secs(4);
/// How much the broker's memory may grow during and after an attack.
const GROWTH_MAX: u64 = 128 << 20;
/// Connections of one attack.
const ATTACKERS: usize = 4;

/// Measurements of the normal client.
struct Figures {
    responses: Vec<Duration>,
    resident_max: u64,
}

/// Sends one request after the other for the duration of an attack.
async fn work(broker: &Broker, client: &Client) -> Figures {
    let started = Instant::now();
    let mut figures = Figures { responses: Vec::new(), resident_max: 0 };
    while started.elapsed() < DURATION {
        let sent_at = Instant::now();
        if figures.responses.len().is_multiple_of(2) {
            let mut request = job::valid();
            request.jobs[0].name_prefix = "normal".to_owned();
            client.jobs().submit(request).await.expect("a job is taken");
        } else {
            client.queues().list_queues(v1::ListQueuesRequest {}).await.expect("queues");
        }
        figures.responses.push(sent_at.elapsed());
        figures.resident_max = figures.resident_max.max(broker.resident_bytes());
        // A client with pauses, not a flood.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    figures.responses.sort_unstable();
    figures
}

/// Runs a normal client beside the attack, and checks its response times and the broker's memory.
pub async fn withstand(broker: &Broker, what: &str, attack: impl Future<Output = ()>) {
    let client = broker.client();
    broker.check_health(&client).await;
    let before = broker.resident_bytes();
    let figures = tokio::select! {
        figures = work(broker, &client) => figures,
        () = async { attack.await; std::future::pending::<()>().await } => unreachable!("an attack has no end"),
    };
    let at =
        |thousandths: usize| figures.responses[(figures.responses.len() * thousandths).div_ceil(1_000) - 1];
    let grown = figures.resident_max.saturating_sub(before);
    println!(
        "{what}: {} responses, p50 {:?}, p99 {:?}, worst {:?}, memory +{} MiB",
        figures.responses.len(),
        at(500),
        at(990),
        at(1_000),
        grown >> 20
    );
    assert!(at(990) < RESPONSE_MAX, "{what}: p99 is {:?}", at(990));
    assert!(grown < GROWTH_MAX, "{what}: the broker uses {grown} bytes more than before");
    // Connected and new clients are served.
    broker.check_health(&client).await;
    broker.check_health(&broker.client()).await;
}

/// Runs the attack on each of the attackers' connections.
async fn together<F: Future<Output = ()>>(attack: impl Fn() -> F) {
    join((0..ATTACKERS).map(|_| attack()).collect()).await;
}

/// Sends `bytes` one at a time on many connections, again and again.
async fn drip(broker: &Broker, beginning: &[u8], bytes: &[u8]) {
    use tokio::io::AsyncWriteExt;
    let mut streams: Vec<TcpStream> = Vec::new();
    for _ in 0..300 {
        streams.extend(open_with(broker, beginning).await);
    }
    for byte in bytes.iter().cycle() {
        for stream in &mut streams {
            // The broker may have closed some.
            let _ = stream.write_all(&[*byte]).await;
        }
        // The rate of the attack.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_senders_delay_no_other_client() {
    let broker = Broker::start();
    waiting_job(&broker.client(), "waits").await;
    let http1 = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n";
    withstand(&broker, "HTTP/1, headers byte by byte", drip(&broker, http1, b"X-A: b\r\n")).await;
    withstand(&broker, "HTTP/1, nothing after the method", drip(&broker, b"POST ", b"/")).await;
    withstand(&broker, "nothing at all", async {
        let mut streams = Vec::new();
        for _ in 0..1_000 {
            streams.extend(TcpStream::connect(&broker.home.address).await);
        }
        std::future::pending::<()>().await;
    })
    .await;
    withstand(&broker, "HTTP/2, nothing after the preface", drip(&broker, PREFACE, b"")).await;
    withstand(&broker, "HTTP/2, preface byte by byte", drip(&broker, b"", PREFACE)).await;
    // Headers whose end never comes, in one frame and in many.
    let begun = [PREFACE, &frame(HEADERS, 0, 1, &literal("a", "b"))].concat();
    withstand(&broker, "HTTP/2, headers without an end", drip(&broker, &begun, b"")).await;
    let long = [PREFACE, b"\x00\x3f\xff\x01\x00\x00\x00\x00\x01"].concat();
    withstand(&broker, "HTTP/2, headers byte by byte", drip(&broker, &long, b"\x00")).await;
    // A call with the length of its message, which then arrives a byte at a time.
    let headers = call_headers(&broker, "/weir.v1.JobService/Submit", &[]);
    let call = [PREFACE, &frame(HEADERS, END_HEADERS, 1, &headers), b"\x00\x10\x00\x00\x00\x00\x00\x00\x01"];
    let announced = [&call.concat()[..], b"\x00\x00\x3f\xff\xff"].concat();
    withstand(&broker, "HTTP/2, a message byte by byte", drip(&broker, &announced, b"\x0a")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_are_not_read_take_bounded_memory() {
    let broker = Broker::start();
    let client = broker.client();
    // A page of half a megabyte.
    for batch in 0..4 {
        let mut request = job::valid();
        let mut submission = request.jobs.pop().expect("a job");
        request.jobs = (0..100)
            .map(|index| {
                submission.name = format!("large-{batch}-{index}");
                if let Some(spec) = &mut submission.spec {
                    let label = |at: usize| (format!("label-{at}"), format!("{index}-{}", "x".repeat(50)));
                    spec.labels = (0..16).map(label).collect();
                }
                submission.clone()
            })
            .collect();
        client.jobs().submit(request).await.expect("jobs are taken");
    }
    // No stream has a window: nothing of any response can be sent.
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let headers = call_headers(&broker, "/weir.v1.JobService/ListJobs", &[]);
    // Jobs with their specs: `view` is FULL.
    let full = [0, 0, 0, 0, 2, 8 << 3, 3];
    let call =
        |id: u32| [frame(HEADERS, END_HEADERS, id, &headers), frame(DATA, END_STREAM, id, &full)].concat();
    let calls = |round: u32| match round {
        0 => no_window.clone(),
        _ => (0..50).flat_map(|n| call(2 * (50 * (round - 1) + n) + 1)).collect(),
    };
    withstand(&broker, "pages without a window", together(|| flood(&broker, calls))).await;
    // One byte of each.
    let byte = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]);
    let calls = |round: u32| match round {
        0 => byte.clone(),
        _ => (0..50).flat_map(|n| call(2 * (50 * (round - 1) + n) + 1)).collect(),
    };
    withstand(&broker, "pages with a window of a byte", together(|| flood(&broker, calls))).await;
    let request =
        v1::ListJobsRequest { page_size: 500, view: v1::JobView::Full.into(), ..Default::default() };
    let page = client.jobs().list_jobs(request).await.expect("a page").into_inner();
    assert!(page.jobs.len() >= 400, "{} jobs", page.jobs.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_delay_no_other_client() {
    let broker = Broker::start();
    let headers = call_headers(&broker, "/weir.v1.JobService/GetJob", &[]);
    let opened = |id: u32, flags: u8| frame(HEADERS, END_HEADERS | flags, id, &headers);
    let repeat = |bytes: Vec<u8>| move |_: u32| bytes.repeat(200);
    let cancel = 8u32.to_be_bytes();
    // CVE-2023-44487: streams that are opened and reset at once.
    let resets = |round: u32| -> Vec<u8> {
        let ids = (0..100).map(|n| 2 * (100 * round + n) + 1);
        ids.flat_map(|id| [opened(id, 0), frame(RESET, 0, id, &cancel)].concat()).collect()
    };
    withstand(&broker, "rapid reset", together(|| flood(&broker, resets))).await;
    // CVE-2025-8671: streams that the broker must reset itself, for a window that overflows.
    let overflows = |round: u32| -> Vec<u8> {
        let ids = (0..100).map(|n| 2 * (100 * round + n) + 1);
        ids.flat_map(|id| [opened(id, 0), frame(WINDOW_UPDATE, 0, id, &[0x7f, 255, 255, 255])].concat())
            .collect()
    };
    withstand(&broker, "made you reset", together(|| flood(&broker, overflows))).await;
    let requests = |round: u32| -> Vec<u8> {
        (0..100).flat_map(|n| opened(2 * (100 * round + n) + 1, END_STREAM)).collect()
    };
    withstand(&broker, "requests without a message", together(|| flood(&broker, requests))).await;
    let ping = frame(PING, 0, 0, &[7; 8]);
    withstand(&broker, "ping flood", together(|| flood(&broker, repeat(ping.clone())))).await;
    let settings = frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0x10, 0]);
    withstand(&broker, "settings flood", together(|| flood(&broker, repeat(settings.clone())))).await;
    let priority = frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]);
    withstand(&broker, "priority flood", together(|| flood(&broker, repeat(priority.clone())))).await;
    let window = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    withstand(&broker, "window flood", together(|| flood(&broker, repeat(window.clone())))).await;
    let endless = |content: &'static [u8]| {
        move |round: u32| match round {
            0 => frame(HEADERS, 0, 1, &literal("a", "b")),
            _ => frame(CONTINUATION, 0, 1, content).repeat(100),
        }
    };
    let some = b"\x00\x01c\x01d".repeat(1_000).leak();
    withstand(&broker, "continuation flood", together(|| flood(&broker, endless(some)))).await;
    withstand(&broker, "empty continuations", together(|| flood(&broker, endless(b"")))).await;
    let empty = |round: u32| match round {
        0 => opened(1, 0),
        _ => frame(DATA, 0, 1, b"").repeat(200),
    };
    withstand(&broker, "empty data", together(|| flood(&broker, empty))).await;
    // A long header that is sent once and then referenced thousands of times.
    let bomb = |round: u32| {
        let first = [b"\x40\x01x\x7e".as_slice(), &[b'y'; 126]].concat();
        let block = [first, vec![0xbe; 16_000]].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * round + 1, &block)
    };
    withstand(&broker, "header bomb", together(|| flood(&broker, bomb))).await;
}

/// A flood of frames whose responses are never read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_responses_take_bounded_memory() {
    use tokio::io::AsyncWriteExt;
    let broker = Broker::start();
    let headers = call_headers(&broker, "/weir.v1.JobService/WatchJobs", &[]);
    let rows = [
        ("unread pings", frame(PING, 0, 0, &[7; 8])),
        ("unread settings", frame(SETTINGS, 0, 0, &[])),
        ("unread resets", frame(RESET, 0, 2_000_001, &[0; 4])),
    ];
    for (what, bytes) in rows {
        let bytes = bytes.repeat(1_000);
        let unread = || async {
            let Some(mut stream) = open_with(&broker, PREFACE).await else { return };
            while stream.write_all(&bytes).await.is_ok() {}
            std::future::pending().await
        };
        withstand(&broker, what, together(unread)).await;
    }
    // Watches that are never read.
    let watch = |id| {
        let message = b"\x00\x00\x00\x00\x00";
        [frame(HEADERS, END_HEADERS, id, &headers), frame(DATA, END_STREAM, id, message)].concat()
    };
    let watches: Vec<u8> = (0..500).flat_map(|n| watch(2 * n + 1)).collect();
    let unread = || async {
        let stream = open_with(&broker, &[PREFACE, &watches].concat()).await;
        std::future::pending::<()>().await;
        drop(stream);
    };
    withstand(&broker, "unread watches", together(unread)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_on_one_connection_take_little_memory() {
    let broker = Broker::start();
    let headers = call_headers(&broker, "/weir.v1.AgentService/Sync", &[]);
    let open: Vec<u8> = (0..10_000).flat_map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &headers)).collect();
    withstand(&broker, "ten thousand streams", async {
        let stream = open_with(&broker, &[PREFACE, &open].concat()).await;
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    // The same, repeated on new connections.
    let again = || flood(&broker, |round| if round == 0 { open.clone() } else { frame(PING, 0, 0, &[0; 8]) });
    withstand(&broker, "ten thousand streams, again", together(again)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incomplete_large_messages_take_bounded_memory() {
    let broker = Broker::start();
    let length = (4u32 << 20).to_be_bytes();
    let prefix = [&[0][..], &length].concat();
    let piece = vec![0x0a; 16_384];
    withstand(&broker, "messages of 4 MiB without their last byte", async {
        let stream = TcpStream::connect(&broker.home.address).await.expect("a connection");
        let (calls, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let sends = (0..256).map(|_| async {
            let request =
                http::Request::post(format!("http://{}/weir.v1.JobService/Submit", broker.home.address))
                    .header("content-type", "application/grpc")
                    .header("authorization", format!("Bearer {}", broker.token))
                    .body(())
                    .expect("a request");
            let mut calls = calls.clone().ready().await.expect("a stream");
            let (_, mut body) = calls.send_request(request, false).expect("a call");
            let _ = body.send_data(prefix.clone().into(), false);
            let mut left = (4 << 20) - 1;
            while left > 0 {
                body.reserve_capacity(piece.len().min(left));
                let capacity = std::future::poll_fn(|context| body.poll_capacity(context)).await;
                let Some(Ok(capacity)) = capacity else { return };
                let len = capacity.min(left).min(piece.len());
                if body.send_data(piece[..len].to_vec().into(), false).is_err() {
                    return;
                }
                left -= len;
            }
            std::future::pending().await
        });
        join(sends.collect()).await;
        connection.abort();
    })
    .await;
    // A compressed message could expand to any size: it is refused before it is decompressed.
    let headers = call_headers(&broker, "/weir.v1.JobService/Submit", &[("grpc-encoding", "gzip")]);
    let bomb = |round: u32| {
        let id = 2 * round + 1;
        let compressed = [b"\x01\x00\x00\x10\x00".as_slice(), &[0x1f, 0x8b, 8, 0], &[0; 4_092]].concat();
        [frame(HEADERS, END_HEADERS, id, &headers), frame(DATA, END_STREAM, id, &compressed)].concat()
    };
    withstand(&broker, "compression bombs", together(|| flood(&broker, bomb))).await;
    let status = raw::call(&broker, "/weir.v1.JobService/Submit", vec![]).await.expect_err("no jobs");
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
}

/// Runs all of these concurrently.
async fn join<F: Future<Output = ()>>(all: Vec<F>) {
    let mut all: Vec<_> = all.into_iter().map(|it| Some(Box::pin(it))).collect();
    std::future::poll_fn(|context| {
        for slot in &mut all {
            if slot.as_mut().is_some_and(|it| it.as_mut().poll(context).is_ready()) {
                *slot = None;
            }
        }
        match all.iter().any(Option::is_some) {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        }
    })
    .await;
}
