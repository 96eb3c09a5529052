//! Output without end, and agents that return invalid output.

use std::os::unix::fs::MetadataExt;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use weir::api::client::Client;
use weir::api::proto::v1;
use weir::api::proto::v1::serve_logs_request::Body;
use weir::api::proto::v1::sync_response::Body as Answer;

use crate::fake::{Agent, Broker, TIMEOUT, hello};
use crate::job;
use crate::support::{Home, until};

/// Output that is stored per attempt.
const STORED_BYTES: u64 = 64 << 20;
/// What `yes` may write between two checks by the supervisor, on a fast disk.
const SLACK_BYTES: u64 = 448 << 20;

/// Cancels the job even if the test fails: it would outlive the broker and continue to print.
struct CancelOnDrop<'a> {
    home: &'a Home,
    name: String,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.home.run(&["cancel", &self.name]);
        self.home.run(&["wait", "--timeout", "30s", &self.name]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_output_is_bounded_on_disk_and_its_job_can_be_read_and_cancelled() {
    let broker = Broker::with_command("dev");
    let client = broker.client();
    let mut request = job::valid();
    let spec = request.jobs[0].spec.as_mut().expect("a spec");
    spec.constraints = Some(v1::Constraints { pools: vec!["local".to_owned()], ..Default::default() });
    let Some(v1::task_group::Run::Process(program)) = &mut spec.groups[0].run else { panic!("a process") };
    program.command = vec!["yes".to_owned()];
    // Enough for the program itself: a task above its memory request is killed.
    spec.groups[0].resources.as_mut().expect("resources").memory_bytes = 64 << 20;
    let response = client.jobs().submit(request).await.expect("accepted").into_inner();
    let (id, name) = (response.jobs[0].id, response.jobs[0].name.clone());
    let _cancel = CancelOnDrop { home: &broker.home, name: name.clone() };
    let folder = broker.home.data().join("pools/local/supervisor");
    let output = || {
        let attempts = ["attempts", "logs"].map(|name| std::fs::read_dir(folder.join(name)));
        let found = attempts.into_iter().flatten().flatten().flatten();
        found.map(|attempt| attempt.path().join("0.stdout")).find_map(|path| std::fs::metadata(path).ok())
    };
    until("far more is printed than is stored", TIMEOUT, || {
        output().is_some_and(|file| {
            let used = file.blocks() * 512;
            assert!(used < STORED_BYTES + SLACK_BYTES, "{used} bytes are used on the disk");
            file.len() > STORED_BYTES + 2 * SLACK_BYTES
        })
    });
    broker.check_health(&client).await;
    // Reading the existing output ends, though the job does not.
    let (code, stdout, stderr) = broker.home.run(&["logs", &name]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.len() as u64 <= STORED_BYTES + SLACK_BYTES && stdout.starts_with("y\ny\n"));
    let job = Some(v1::JobRef { id, ..Default::default() });
    let beyond = v1::LogsRequest {
        job: job.clone(),
        stdout_offset: u64::MAX,
        stderr_offset: u64::MAX,
        ..Default::default()
    };
    let mut parts = client.jobs().logs(beyond).await.expect("a stream").into_inner();
    assert_eq!(parts.message().await.expect("an end"), None);
    let (code, _, stderr) = broker.home.run(&["cancel", &name]);
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = broker.home.run(&["wait", "--timeout", "60s", &name]);
    assert_eq!(code, 12, "{stderr}");
    broker.check_health(&client).await;
}

/// Serves a pool's output with the chunk that `respond` returns for each read.
async fn serve(
    client: &Client,
    respond: fn(v1::ServeLogsResponse) -> v1::LogPart,
) -> tokio::task::JoinHandle<()> {
    let (sender, messages) = mpsc::channel(16);
    let first = v1::ServeLogsRequest { body: Some(Body::Hello(hello("faulty", 1))) };
    sender.send(first).await.expect("an open channel");
    let reads = client.agents().serve_logs(ReceiverStream::new(messages)).await.expect("its own logs");
    let mut reads = reads.into_inner();
    tokio::spawn(async move {
        while let Ok(Some(read)) = reads.message().await {
            let part = respond(read);
            // First a response to a read that does not exist.
            let unrequested = v1::LogPart { request: u64::MAX, ..part.clone() };
            for part in [unrequested, part] {
                if sender.send(v1::ServeLogsRequest { body: Some(Body::Part(part)) }).await.is_err() {
                    return;
                }
            }
        }
    })
}

#[tokio::test]
async fn invalid_output_of_an_agent_affects_its_own_readers_only() {
    let broker = Broker::start();
    let client = broker.client();
    let mut faulty = Agent::ready(&client, "faulty", 1).await;
    let response = client.jobs().submit(job::valid()).await.expect("accepted").into_inner();
    let id = response.jobs[0].id;
    faulty
        .receive_until(|answer| {
            matches!(answer, Answer::Orders(orders) if !orders.orders.is_empty()).then_some(())
        })
        .await;
    let read = || async {
        let job = Some(v1::JobRef { id, ..Default::default() });
        let request = v1::LogsRequest { job, stdout_offset: 10, stderr_offset: 10, ..Default::default() };
        let mut parts = client.jobs().logs(request).await?.into_inner();
        let mut bytes = 0;
        while let Some(part) = parts.message().await? {
            bytes += part.data.len();
        }
        Ok::<usize, Status>(bytes)
    };
    type Respond = fn(v1::ServeLogsResponse) -> v1::LogPart;
    let invalid: [(&str, Respond); 3] = [
        ("an offset that overflows", |read| v1::LogPart {
            request: read.request,
            offset: u64::MAX,
            data: vec![b'x'; 2],
            ..Default::default()
        }),
        ("more than was requested", |read| v1::LogPart {
            request: read.request,
            offset: read.offset,
            data: vec![b'x'; 1 << 20],
            end: u64::MAX,
            ..Default::default()
        }),
        ("more times than a part has", |read| v1::LogPart {
            request: read.request,
            offset: read.offset,
            times: vec![v1::OutputTime::default(); 4_097],
            ..Default::default()
        }),
    ];
    for (what, respond) in invalid {
        let serving = serve(&client, respond).await;
        let status = read().await.expect_err(what);
        assert_eq!(status.code(), Code::Unavailable, "{what}: {status:?}");
        serving.abort();
    }
    let before: Respond =
        |read| v1::LogPart { request: read.request, data: vec![b'x'; 2], ..Default::default() };
    let serving = serve(&client, before).await;
    assert_eq!(read().await.expect("nothing at the requested offset"), 0);
    serving.abort();
    // An end that is never reached: the existing output still ends.
    let endless: Respond = |read| v1::LogPart {
        request: read.request,
        offset: read.offset,
        end: u64::MAX,
        ..Default::default()
    };
    let serving = serve(&client, endless).await;
    assert_eq!(read().await.expect("nothing"), 0);
    serving.abort();
    // An agent that stores no times, or is too old to know of them.
    let untimed: Respond = |read| v1::LogPart {
        request: read.request,
        offset: read.offset,
        data: vec![b'x'; 2],
        end: 12,
        complete: true,
        ..Default::default()
    };
    let serving = serve(&client, untimed).await;
    for (with_times, since_unix_ms) in [(true, 0), (false, 1)] {
        let job = Some(v1::JobRef { id, ..Default::default() });
        let request = v1::LogsRequest { job, with_times, since_unix_ms, ..Default::default() };
        let mut parts = client.jobs().logs(request).await.expect("a stream").into_inner();
        let status = parts.message().await.expect_err("no times");
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains("does not store when"), "{status:?}");
    }
    serving.abort();
    // An error with a bidirectional override.
    let error: Respond =
        |read| v1::LogPart { request: read.request, error: "\u{202e}gone".to_owned(), ..Default::default() };
    let serving = serve(&client, error).await;
    assert_eq!(read().await.expect("nothing yet"), 0);
    serving.abort();
    broker.check_health(&client).await;
    faulty.check_session(&client).await;
}
