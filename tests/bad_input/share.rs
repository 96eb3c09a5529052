//! Clients that exceed their share of the broker, and other clients beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tonic::{Code, Request};
use weir::api::proto::v1;
use weir::api::proto::v1::job_service_client::JobServiceClient;
use weir::api::retry::retry_delay;

use crate::fake::{Broker, waiting_job};
use crate::support::Home;
use crate::support::disk::FaultyDisk;
use crate::{job, raw};

/// Concurrent requests of the flooding client.
const IN_FLIGHT: usize = 900;
/// Jobs in each of them.
const BATCH: usize = 50;
/// Time of 99 of 100 submits of another client meanwhile, on cores that also run builds. Without a share of
/// its own that client would wait behind all requests of the flood.
const SUBMIT_MAX: Duration = Duration::from_secs(4);

/// A submit of jobs that no pool can run.
fn batch(jobs: usize) -> v1::SubmitRequest {
    let mut request = job::valid();
    let spec = request.jobs[0].spec.as_mut().expect("a spec");
    spec.constraints = Some(v1::Constraints { pools: vec!["nowhere".to_owned()], ..Default::default() });
    request.jobs = vec![request.jobs[0].clone(); jobs];
    request
}

/// Measurements of a flood and of another client beside it.
struct Flooded {
    /// Times of the flood's accepted submits.
    own: Vec<Duration>,
    refused: u64,
    /// Times of the other client's submits.
    others: Vec<Duration>,
}

impl Flooded {
    fn print(&self) {
        println!(
            "beside {} submits of {BATCH} jobs accepted (p50 {:?}) and {} refused: {} submits, p50 {:?}, p99 {:?}",
            self.own.len(),
            percentile(&self.own, 50),
            self.refused,
            self.others.len(),
            percentile(&self.others, 50),
            percentile(&self.others, 99)
        );
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100) - 1]
}

/// For the duration `lasts`, one client floods the broker and another submits one job after the other.
async fn flood(broker: &Broker, lasts: Duration) -> Flooded {
    let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let channel = raw::channel(broker).await;
    let mut flood = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let mut jobs = JobServiceClient::new(channel.clone());
        let token = format!("Bearer {}", broker.token);
        let (stop, refused) = (stop.clone(), refused.clone());
        flood.spawn(async move {
            let mut took = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let mut request = Request::new(batch(BATCH));
                request.metadata_mut().insert("authorization", token.parse().expect("a header"));
                let sent_at = Instant::now();
                match jobs.submit(request).await {
                    Ok(_) => took.push(sent_at.elapsed()),
                    Err(status) => {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                        let wait = retry_delay(&status).expect("a retry delay");
                        refused.fetch_add(1, Ordering::Relaxed);
                        // Less than the delay, so that it still floods, but enough to leave the test's own
                        // processors free.
                        tokio::time::sleep(wait / 4).await;
                    }
                }
            }
            took
        });
    }
    let client = broker.client();
    let (started, mut others) = (Instant::now(), Vec::new());
    while started.elapsed() < lasts {
        let sent_at = Instant::now();
        client.jobs().submit(batch(1)).await.expect("the other client's job is accepted");
        others.push(sent_at.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    let mut own: Vec<Duration> = flood.join_all().await.into_iter().flatten().collect();
    own.sort_unstable();
    others.sort_unstable();
    let flooded = Flooded { own, refused: refused.load(Ordering::Relaxed), others };
    flooded.print();
    flooded
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_submits_delays_no_other_client() {
    let broker = Broker::start();
    let flooded = flood(&broker, Duration::from_millis(1_500)).await;
    assert!(!flooded.own.is_empty(), "the flood gets its share");
    let p99 = percentile(&flooded.others, 99);
    assert!(p99 < SUBMIT_MAX, "another client's submits took up to {p99:?}");
    broker.check_health(&broker.client()).await;
}

/// A slow disk is the bottleneck, so that the flood exceeds its share even from a slow client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_that_fills_its_share_is_refused_and_waits_longer_than_others() {
    let mut home = Home::new();
    let test = "flood_that_fills_its_share_is_refused_and_waits_longer_than_others";
    let Some(disk) = FaultyDisk::prepare(test, home.path()) else { return };
    home.env = disk.env().to_vec();
    let broker = Broker::in_home(home, "server", &[]);
    disk.slow_syncs(true);
    let flooded = flood(&broker, Duration::from_secs(4)).await;
    disk.slow_syncs(false);
    assert!(flooded.refused > 0, "{IN_FLIGHT} concurrent requests exceed any share");
    let (own, others) = (percentile(&flooded.own, 50), percentile(&flooded.others, 50));
    assert!(others < own, "others wait {others:?}, the flood itself {own:?}");
    broker.check_health(&broker.client()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_with_one_request_at_a_time_are_never_refused() {
    let broker = Broker::start();
    let mut clients = JoinSet::new();
    for number in 0..64 {
        let channel = raw::channel(&broker).await;
        let token = format!("Bearer {}", broker.token);
        clients.spawn(async move {
            let mut jobs = JobServiceClient::new(channel);
            for _ in 0..if number < 4 { 20 } else { 40 } {
                // A few send large batches.
                let mut request = Request::new(batch(if number < 4 { 100 } else { 1 }));
                request.metadata_mut().insert("authorization", token.parse().expect("a header"));
                jobs.submit(request).await.expect("within its share");
            }
        });
    }
    clients.join_all().await;
    broker.check_health(&broker.client()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_above_its_rate_is_refused_and_weir_clients_retry_after_the_delay() {
    let broker = Broker::in_home(Home::new(), "server", &["--mutations-per-second", "20"]);
    let mut jobs = JobServiceClient::new(raw::channel(&broker).await);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..60 {
        let mut request = Request::new(batch(1));
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {}", broker.token).parse().expect("a header"));
        match jobs.submit(request).await {
            Ok(_) => accepted += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                assert!(status.message().contains("exceeds 20 mutations per second"), "{status:?}");
                assert!(
                    retry_delay(&status).is_some_and(|wait| wait <= Duration::from_secs(1)),
                    "{status:?}"
                );
                refused += 1;
            }
        }
    }
    assert!((20..60).contains(&accepted) && refused > 0, "{accepted} accepted, {refused} refused");
    // The Rust client and the command line retry after the delay, and all their requests succeed.
    let client = broker.client();
    let started = Instant::now();
    for number in 0..30 {
        waiting_job(&client, &format!("retried-{number}")).await;
    }
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?} for 30 at 20 a second", started.elapsed());
    let queues: Vec<String> = (0..25).map(|n| format!("- name: q{n}\n")).collect();
    let file = broker.home.path().join("queues.yaml");
    std::fs::write(&file, format!("queues:\n{}", queues.concat())).expect("a file");
    let (code, stdout, stderr) = broker.home.run(&["apply", file.to_str().expect("a plain path")]);
    assert_eq!((code, stdout.lines().count()), (0, 25), "{stderr}");
    broker.check_health(&client).await;
}
