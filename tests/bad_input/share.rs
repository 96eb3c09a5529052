//! Clients that send more than their share, and others beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tonic::{Code, Request};
use weir::api::patience::retry_delay;
use weir::api::proto::v1;
use weir::api::proto::v1::job_service_client::JobServiceClient;

use crate::fake::{Broker, waiting_job};
use crate::support::Home;
use crate::support::disk::FaultyDisk;
use crate::{job, raw};

/// Requests that the flooding client has under way at once.
const IN_FLIGHT: usize = 900;
/// Jobs in each of them.
const BATCH: usize = 50;
/// In which 99 of 100 submits of others are done meanwhile, on cores that others build on. Without their own
/// share they would stand behind all that the flood has under way.
const SUBMITTED_WITHIN: Duration = Duration::from_secs(4);

/// Jobs that fit nowhere.
fn batch(jobs: usize) -> v1::SubmitRequest {
    let mut request = job::valid();
    let spec = request.jobs[0].spec.as_mut().expect("a spec");
    spec.constraints = Some(v1::Constraints { pools: vec!["nowhere".to_owned()], ..Default::default() });
    request.jobs = vec![request.jobs[0].clone(); jobs];
    request
}

/// What a flood came to, and what it was to another client beside it.
struct Flooded {
    /// How long the flood's own submits took, those that were taken.
    own: Vec<Duration>,
    refused: u64,
    /// How long another client's took.
    others: Vec<Duration>,
}

impl Flooded {
    fn say(&self) {
        println!(
            "beside {} submits of {BATCH} jobs taken (p50 {:?}) and {} refused: {} submits, p50 {:?}, p99 {:?}",
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

/// One client sends more than it waits for, another one job after the other, for so long.
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
                let asked = Instant::now();
                match jobs.submit(request).await {
                    Ok(_) => took.push(asked.elapsed()),
                    Err(status) => {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                        let wait = retry_delay(&status).expect("when to come again");
                        refused.fetch_add(1, Ordering::Relaxed);
                        // It could come again at once; the test's own processors are not to be what gives in.
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
        let asked = Instant::now();
        client.jobs().submit(batch(1)).await.expect("another client's job is taken");
        others.push(asked.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    let mut own: Vec<Duration> = flood.join_all().await.into_iter().flatten().collect();
    own.sort_unstable();
    others.sort_unstable();
    let flooded = Flooded { own, refused: refused.load(Ordering::Relaxed), others };
    flooded.say();
    flooded
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_submits_holds_up_nobody() {
    let broker = Broker::start();
    let flooded = flood(&broker, Duration::from_millis(1_500)).await;
    assert!(!flooded.own.is_empty(), "the flood has its share too");
    let p99 = percentile(&flooded.others, 99);
    assert!(p99 < SUBMITTED_WITHIN, "another client's submits took up to {p99:?}");
    broker.is_well(&broker.client()).await;
}

/// The disk is what gives in, so that the flood fills the broker however fast its client is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_that_fills_its_share_is_refused_and_waits_longer_than_others() {
    let mut home = Home::new();
    let test = "flood_that_fills_its_share_is_refused_and_waits_longer_than_others";
    let Some(disk) = FaultyDisk::prepare(test, home.path()) else { return };
    home.env = disk.env().to_vec();
    let broker = Broker::at(home, "server", &[]);
    disk.slow_syncs(true);
    let flooded = flood(&broker, Duration::from_secs(4)).await;
    disk.slow_syncs(false);
    assert!(flooded.refused > 0, "{IN_FLIGHT} requests at once are above any share");
    let (own, others) = (percentile(&flooded.own, 50), percentile(&flooded.others, 50));
    assert!(others < own, "others wait {others:?}, the flood itself {own:?}");
    broker.is_well(&broker.client()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_that_wait_for_their_answers_are_never_refused() {
    let broker = Broker::start();
    let mut clients = JoinSet::new();
    for number in 0..64 {
        let channel = raw::channel(&broker).await;
        let token = format!("Bearer {}", broker.token);
        clients.spawn(async move {
            let mut jobs = JobServiceClient::new(channel);
            for _ in 0..if number < 4 { 20 } else { 40 } {
                // A few send in bulk.
                let mut request = Request::new(batch(if number < 4 { 100 } else { 1 }));
                request.metadata_mut().insert("authorization", token.parse().expect("a header"));
                jobs.submit(request).await.expect("within its share");
            }
        });
    }
    clients.join_all().await;
    broker.is_well(&broker.client()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_above_its_rate_is_told_so_and_ours_wait_as_they_are_told() {
    let broker = Broker::at(Home::new(), "server", &["--mutations-per-second", "20"]);
    let mut jobs = JobServiceClient::new(raw::channel(&broker).await);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..60 {
        let mut request = Request::new(batch(1));
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {}", broker.token).parse().expect("a header"));
        match jobs.submit(request).await {
            Ok(_) => taken += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                assert!(status.message().contains("more than 20 mutations a second"), "{status:?}");
                assert!(
                    retry_delay(&status).is_some_and(|wait| wait <= Duration::from_secs(1)),
                    "{status:?}"
                );
                refused += 1;
            }
        }
    }
    assert!((20..60).contains(&taken) && refused > 0, "{taken} taken, {refused} refused");
    // The Rust client and the command line come again when they are told to, and get it all done.
    let client = broker.client();
    let started = Instant::now();
    for number in 0..30 {
        waiting_job(&client, &format!("patient-{number}")).await;
    }
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?} for 30 at 20 a second", started.elapsed());
    let queues: Vec<String> = (0..25).map(|n| format!("- name: q{n}\n")).collect();
    let file = broker.home.path().join("queues.yaml");
    std::fs::write(&file, format!("queues:\n{}", queues.concat())).expect("a file");
    let (code, printed, said) = broker.home.run(&["apply", file.to_str().expect("a plain path")]);
    assert_eq!((code, printed.lines().count()), (0, 25), "{said}");
    broker.is_well(&client).await;
}
