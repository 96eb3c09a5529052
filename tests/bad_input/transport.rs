//! The port: authentication, size limits, and clients that stop reading or writing halfway.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};
use weir::api::client::Client;
use weir::api::proto::v1;

use crate::fake::{Agent, Broker, TIMEOUT};
use crate::{job, raw};

/// Lists the pools with these headers.
async fn list_pools(
    broker: &Broker,
    origin: Option<&str>,
    headers: &[(&'static str, &str)],
) -> Result<(), Status> {
    let url = format!("http://{}", broker.home.address);
    let mut endpoint = tonic::transport::Endpoint::from_shared(url).expect("a url");
    if let Some(origin) = origin {
        endpoint = endpoint.origin(origin.parse().expect("a url"));
    }
    let channel = endpoint.connect().await.expect("a connection");
    let mut request = Request::new(v1::ListPoolsRequest {});
    for (name, value) in headers {
        request.metadata_mut().append(*name, value.parse().expect("a header"));
    }
    v1::pool_service_client::PoolServiceClient::new(channel).list_pools(request).await.map(drop)
}

#[tokio::test]
async fn only_requests_with_the_token_are_served() {
    let broker = Broker::start();
    let right = format!("Bearer {}", broker.token);
    let (lower, longer) = (broker.token.to_uppercase(), format!("{right}0"));
    let wrong: [(&str, &str); 7] = [
        ("", "missing token"),
        ("Bearer", "missing token"),
        ("Basic dXNlcjpwYXNz", "missing token"),
        ("Bearer ", "invalid token"),
        ("Bearer 0123", "invalid token"),
        (&longer, "invalid token"),
        (&format!("Bearer {lower} "), "invalid token"),
    ];
    for (header, expected) in wrong {
        let status = list_pools(&broker, None, &[("authorization", header)]).await.expect_err(header);
        assert_eq!(status.code(), Code::Unauthenticated, "{header:?}: {status:?}");
        assert!(status.message().contains(expected), "{header:?}: {status:?}");
    }
    let status = list_pools(&broker, None, &[]).await.expect_err("no token");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    list_pools(&broker, None, &[("authorization", &right)]).await.expect("the right one");
}

#[tokio::test]
async fn foreign_hosts_and_web_pages_are_refused_even_with_the_token() {
    let broker = Broker::start();
    let right = format!("Bearer {}", broker.token);
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "user@127.0.0.1"] {
        let origin = format!("http://{host}:7411");
        let status = list_pools(&broker, Some(&origin), &[("authorization", &right)]).await.expect_err(host);
        assert_eq!(status.code(), Code::PermissionDenied, "{host}: {status:?}");
        assert!(status.message().contains("is not a loopback address: use 127.0.0.1"), "{host}: {status:?}");
    }
    for page in ["http://evil.example", "null", "https://localhost.evil.example:7411"] {
        let headers = [("authorization", right.as_str()), ("origin", page)];
        let status = list_pools(&broker, None, &headers).await.expect_err(page);
        assert_eq!(status.code(), Code::PermissionDenied, "{page}: {status:?}");
        assert!(status.message().contains("foreign web pages"), "{page}: {status:?}");
    }
    for page in ["http://localhost:3000", "http://127.0.0.1:7411"] {
        let headers = [("authorization", right.as_str()), ("origin", page)];
        list_pools(&broker, Some("http://localhost:9"), &headers).await.expect(page);
    }
}

#[tokio::test]
async fn health_needs_no_token_and_reflection_does() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let broker = Broker::start();
    let mut health = HealthClient::new(raw::channel(&broker).await);
    for service in ["", "weir.v1.JobService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.expect("health").into_inner();
        assert_eq!(answer.status(), tonic_health::ServingStatus::Serving.into(), "{service:?}");
    }
    let unknown = HealthCheckRequest { service: "nope".to_owned() };
    assert_eq!(health.check(unknown).await.expect_err("no service").code(), Code::NotFound);
    let list = || {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        Request::new(tokio_stream::once(ServerReflectionRequest { host: String::new(), message_request }))
    };
    let mut reflection = ServerReflectionClient::new(raw::channel(&broker).await);
    let status = reflection.server_reflection_info(list()).await.expect_err("no token");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let mut with_token = list();
    let token = format!("Bearer {}", broker.token).parse().expect("a header");
    with_token.metadata_mut().insert("authorization", token);
    let mut answers = reflection.server_reflection_info(with_token).await.expect("an answer").into_inner();
    let answer = answers.message().await.expect("a message").expect("services");
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("instead of services: {answer:?}");
    };
    let mut names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
    names.sort();
    let ours = ["weir.v1.AgentService", "weir.v1.JobService", "weir.v1.PoolService", "weir.v1.QueueService"];
    assert!(ours.iter().all(|name| names.iter().any(|found| found == name)), "{names:?}");
}

#[tokio::test]
async fn message_of_five_megabytes_is_refused_with_the_limit() {
    let broker = Broker::start();
    let client = broker.client();
    let before = broker.resident_bytes();
    for _ in 0..20 {
        let mut request = job::valid();
        request.jobs[0].name = "n".repeat(5_000_000);
        let status = client.jobs().submit(request).await.expect_err("too long");
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
        assert!(status.message().contains("the limit is: 4194304"), "{status:?}");
    }
    // A compressed message could expand to any size.
    let mut compressed = v1::pool_service_client::PoolServiceClient::new(raw::channel(&broker).await);
    let mut request = Request::new(v1::ListPoolsRequest {});
    let token = format!("Bearer {}", broker.token).parse().expect("a header");
    request.metadata_mut().insert("authorization", token);
    request.metadata_mut().insert("grpc-encoding", "gzip".parse().expect("a header"));
    let status = compressed.list_pools(request).await.expect_err("compression is not supported");
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    broker.check_health(&client).await;
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "the broker uses {grown} bytes more than before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_concurrent_requests_all_get_a_response() {
    let broker = Broker::start();
    let clients: Vec<Client> = (0..8).map(|_| broker.client()).collect();
    let before = broker.resident_bytes();
    let mut requests = JoinSet::new();
    for number in 0..10_000 {
        let client = clients[number % clients.len()].clone();
        requests.spawn(async move {
            let request = v1::GetPoolRequest { name: format!("nope-{number}") };
            client.pools().get_pool(request).await.expect_err("no such pool").code()
        });
    }
    let codes = tokio::time::timeout(TIMEOUT, requests.join_all()).await.expect("answers in time");
    assert!(codes.iter().all(|code| *code == Code::NotFound));
    broker.check_health(&clients[0]).await;
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "the broker uses {grown} bytes more than before");
}

#[tokio::test]
async fn unread_watches_take_bounded_memory_and_delay_no_other_client() {
    let broker = Broker::start();
    let client = broker.client();
    let before = broker.resident_bytes();
    let watcher = broker.client();
    let mut watches = Vec::new();
    for _ in 0..50 {
        let mut jobs = watcher.jobs();
        let watch = jobs.watch_jobs(v1::WatchJobsRequest::default()).await;
        watches.push(watch.expect("a watch").into_inner());
    }
    // 16 MB of changes, which would be 800 MB if they were buffered for each watch.
    for number in 0..160 {
        let mut request = job::valid();
        request.jobs[0].name = format!("large-{number}");
        let spec = request.jobs[0].spec.as_mut().expect("a spec");
        let Some(v1::task_group::Run::Process(program)) = &mut spec.groups[0].run else {
            panic!("a process")
        };
        program.args = vec![format!("{number}{}", "x".repeat(100_000))];
        client.jobs().submit(request).await.expect("accepted");
    }
    broker.check_health(&client).await;
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "the broker uses {grown} bytes more than before");
    // A watch that starts to read gets all changes, once the others no longer fill their shared connection.
    let mut watch = watches.pop().expect("a watch");
    watches.clear();
    let mut found = std::collections::BTreeSet::new();
    while found.len() < 160 {
        let message = watch.message().await.expect("a message").expect("changes");
        found.extend(message.jobs.into_iter().map(|job| job.id));
    }
}

/// The beginning of an HTTP/2 connection: the preface and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

#[tokio::test]
async fn idle_connections_delay_no_other_client() {
    let broker = Broker::start();
    let client = broker.client();
    let agent = Agent::ready(&client, "normal", 1).await;
    let before = broker.resident_bytes();
    let beginnings: [&[u8]; 6] = [
        b"",
        b"P",
        &PREFACE[..20],
        PREFACE,
        // A HEADERS frame of 16 KiB whose content never arrives.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x3f\xff\x01\x00\x00\x00\x00\x01",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
    ];
    let mut idle = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(&broker.home.address).await.expect("a connection");
        // The broker may have closed it already.
        let _ = stream.write_all(beginnings[number % beginnings.len()]).await;
        idle.push(stream);
    }
    broker.check_health(&client).await;
    // A new client is served beside them.
    broker.check_health(&broker.client()).await;
    agent.check_session(&client).await;
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "the broker uses {grown} bytes more than before");
    drop(idle);
}

#[tokio::test]
async fn invalid_bytes_end_their_connection_only() {
    let broker = Broker::start();
    let client = broker.client();
    broker.check_health(&client).await;
    let frame = |kind: u8, flags: u8, stream: u32, content: &[u8]| {
        let mut bytes = (content.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(content);
        bytes
    };
    let after = |frames: Vec<Vec<u8>>| [PREFACE.to_vec(), frames.concat()].concat();
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("no HTTP/2 at all", vec![0x16; 4_096]),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_vec()),
        ("a frame above the negotiated size", after(vec![frame(0, 0, 1, &[0; 100_000])])),
        ("data for a stream that is not open", after(vec![frame(0, 0, 1, b"x")])),
        ("headers that don't decode", after(vec![frame(1, 5, 1, &[0xff; 64])])),
        ("settings of a wrong length", after(vec![frame(4, 0, 0, &[0; 5])])),
        ("a window that overflows", after(vec![frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])])),
        ("a continuation of nothing", after(vec![frame(9, 4, 1, &[0; 16])])),
        ("a push from a client", after(vec![frame(5, 4, 1, &[0; 16])])),
    ];
    for (what, bytes) in rows {
        let mut stream = TcpStream::connect(&broker.home.address).await.expect("a connection");
        // The broker may close the connection before all is written.
        let _ = stream.write_all(&bytes).await;
        let mut received = Vec::new();
        let closed = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut received)).await;
        assert!(closed.is_ok(), "{what}: the connection stays open");
    }
    // Streams that are opened and reset at once, in one write.
    let resets = (0..20_000u32).map(|n| {
        let (id, reason) = (2 * n + 1, 8u32.to_be_bytes());
        [frame(1, 4, id, &[0x82, 0x86, 0x84]), frame(3, 0, id, &reason)].concat()
    });
    let mut stream = TcpStream::connect(&broker.home.address).await.expect("a connection");
    let _ = stream.write_all(&after(resets.collect())).await;
    let mut received = Vec::new();
    let closed = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut received)).await;
    assert!(closed.is_ok(), "a flood of resets: the connection stays open");
    broker.check_health(&client).await;
}

#[tokio::test]
async fn half_sent_requests_delay_no_other_client() {
    let broker = Broker::start();
    let client = broker.client();
    let before = broker.resident_bytes();
    let agent = Agent::ready(&client, "normal", 1).await;
    // Sessions and log streams that never send their hello.
    let mut idle = Vec::new();
    let mut waiting = JoinSet::new();
    for _ in 0..200 {
        idle.push(Agent::open(&client).await);
        let mut agents = client.agents();
        waiting.spawn(async move {
            let never = tokio_stream::pending::<v1::ServeLogsRequest>();
            agents.serve_logs(never).await.map(drop)
        });
    }
    broker.check_health(&client).await;
    agent.check_session(&client).await;
    assert!(waiting.try_join_next().is_none(), "a stream without a hello stays open");
    waiting.abort_all();
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "the broker uses {grown} bytes more than before");
    drop(idle);
    tokio::time::timeout(Duration::from_secs(60), broker.check_health(&client)).await.expect("in time");
}
