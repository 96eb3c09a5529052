//! Output without end, and agents that answer for output what they like.

use std::os::unix::fs::MetadataExt;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use weir::api::client::Client;
use weir::api::proto::v1;
use weir::api::proto::v1::serve_logs_request::Body;
use weir::api::proto::v1::sync_response::Body as Answer;

use crate::fake::{Agent, Broker, PATIENCE, hello};
use crate::job;
use crate::support::{Home, until};

/// What an attempt may keep of its output.
const KEPT_BYTES: u64 = 64 << 20;
/// What `yes` may write between two looks at it, on a fast disk.
const SLACK_BYTES: u64 = 448 << 20;

/// Cancels the job whatever becomes of the test: it would outlive the broker and print on.
struct Ending<'a> {
    home: &'a Home,
    name: String,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.home.run(&["cancel", &self.name]);
        self.home.run(&["wait", "--timeout", "30s", &self.name]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn job_that_prints_without_end_fills_no_disk_and_can_be_read_and_cancelled() {
    let broker = Broker::of("dev");
    let client = broker.client();
    let mut request = job::valid();
    let spec = request.jobs[0].spec.as_mut().expect("a spec");
    spec.constraints = Some(v1::Constraints { pools: vec!["local".to_owned()], ..Default::default() });
    let Some(v1::task_group::Run::Process(program)) = &mut spec.groups[0].run else { panic!("a process") };
    program.command = vec!["yes".to_owned()];
    // Enough for the program itself: what goes above what it asked for is killed.
    spec.groups[0].resources.as_mut().expect("resources").memory_bytes = 64 << 20;
    let response = client.jobs().submit(request).await.expect("accepted").into_inner();
    let (id, name) = (response.jobs[0].id, response.jobs[0].name.clone());
    let _ending = Ending { home: &broker.home, name: name.clone() };
    let folder = broker.home.data().join("pools/local/supervisor");
    let output = || {
        let attempts = ["attempts", "logs"].map(|kept| std::fs::read_dir(folder.join(kept)));
        let found = attempts.into_iter().flatten().flatten().flatten();
        found.map(|attempt| attempt.path().join("0.stdout")).find_map(|path| std::fs::metadata(path).ok())
    };
    until("far more is printed than is kept", PATIENCE, || {
        output().is_some_and(|file| {
            let held = file.blocks() * 512;
            assert!(held < KEPT_BYTES + SLACK_BYTES, "{held} bytes are held on the disk");
            file.len() > KEPT_BYTES + 2 * SLACK_BYTES
        })
    });
    broker.is_well(&client).await;
    // Reading what there is comes to an end, though the job does not.
    let (code, printed, said) = broker.home.run(&["logs", &name]);
    assert_eq!(code, 0, "{said}");
    assert!(printed.len() as u64 <= KEPT_BYTES + SLACK_BYTES && printed.starts_with("y\ny\n"));
    let job = Some(v1::JobRef { id, ..Default::default() });
    let beyond = v1::LogsRequest {
        job: job.clone(),
        stdout_offset: u64::MAX,
        stderr_offset: u64::MAX,
        ..Default::default()
    };
    let mut parts = client.jobs().logs(beyond).await.expect("a stream").into_inner();
    assert_eq!(parts.message().await.expect("an end"), None);
    let (code, _, said) = broker.home.run(&["cancel", &name]);
    assert_eq!(code, 0, "{said}");
    let (code, _, said) = broker.home.run(&["wait", "--timeout", "60s", &name]);
    assert_eq!(code, 12, "{said}");
    broker.is_well(&client).await;
}

/// Serves a pool's output with what `answer` makes of each ask.
async fn serve(
    client: &Client,
    answer: fn(v1::ServeLogsResponse) -> v1::LogPart,
) -> tokio::task::JoinHandle<()> {
    let (sender, messages) = mpsc::channel(16);
    let first = v1::ServeLogsRequest { body: Some(Body::Hello(hello("liar", 1))) };
    sender.send(first).await.expect("room");
    let asks = client.agents().serve_logs(ReceiverStream::new(messages)).await.expect("its own logs");
    let mut asks = asks.into_inner();
    tokio::spawn(async move {
        while let Ok(Some(ask)) = asks.message().await {
            let part = answer(ask);
            // An answer to nothing first: it is nobody's.
            let orphan = v1::LogPart { request: u64::MAX, ..part.clone() };
            for part in [orphan, part] {
                if sender.send(v1::ServeLogsRequest { body: Some(Body::Part(part)) }).await.is_err() {
                    return;
                }
            }
        }
    })
}

#[tokio::test]
async fn agent_that_answers_nonsense_for_output_harms_its_own_readers_only() {
    let broker = Broker::start();
    let client = broker.client();
    let mut liar = Agent::ready(&client, "liar", 1).await;
    let response = client.jobs().submit(job::valid()).await.expect("accepted").into_inner();
    let id = response.jobs[0].id;
    liar.hear_until(|answer| {
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
    type Lie = fn(v1::ServeLogsResponse) -> v1::LogPart;
    let lies: [(&str, Lie); 2] = [
        ("beyond all numbers", |ask| v1::LogPart {
            request: ask.request,
            offset: u64::MAX,
            data: vec![b'x'; 2],
            ..Default::default()
        }),
        ("more than was asked", |ask| v1::LogPart {
            request: ask.request,
            offset: ask.offset,
            data: vec![b'x'; 1 << 20],
            end: u64::MAX,
            ..Default::default()
        }),
    ];
    for (what, lie) in lies {
        let serving = serve(&client, lie).await;
        let status = read().await.expect_err(what);
        assert_eq!(status.code(), Code::Unavailable, "{what}: {status:?}");
        serving.abort();
    }
    let before: Lie = |ask| v1::LogPart { request: ask.request, data: vec![b'x'; 2], ..Default::default() };
    let serving = serve(&client, before).await;
    assert_eq!(read().await.expect("nothing that was asked for"), 0);
    serving.abort();
    // An end that never comes: what there is ends all the same.
    let endless: Lie =
        |ask| v1::LogPart { request: ask.request, offset: ask.offset, end: u64::MAX, ..Default::default() };
    let serving = serve(&client, endless).await;
    assert_eq!(read().await.expect("nothing"), 0);
    serving.abort();
    // A message that is not the session's: the stream ends, and the next one is served.
    let hello_again: Lie =
        |ask| v1::LogPart { request: ask.request, error: "\u{202e}gone".to_owned(), ..Default::default() };
    let serving = serve(&client, hello_again).await;
    assert_eq!(read().await.expect("nothing yet"), 0);
    serving.abort();
    broker.is_well(&client).await;
    liar.check_heard(&client).await;
}
