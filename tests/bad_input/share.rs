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
use crate::{job, raw};

/// Requests that the flooding client has under way at once.
const IN_FLIGHT: usize = 900;
/// Jobs in each of them.
const BATCH: usize = 50;
/// In which 99 of 100 submits of others are done meanwhile, on a busy machine of two cores.
const SUBMITTED_WITHIN: Duration = Duration::from_secs(1);

/// Jobs that fit nowhere.
fn batch(jobs: usize) -> v1::SubmitRequest {
    let mut request = job::valid();
    let spec = request.jobs[0].spec.as_mut().expect("a spec");
    spec.constraints = Some(v1::Constraints { pools: vec!["nowhere".to_owned()], ..Default::default() });
    request.jobs = vec![request.jobs[0].clone(); jobs];
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_submits_fills_only_its_own_share() {
    let broker = Broker::start();
    let (stop, taken, refused) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let channel = raw::channel(&broker).await;
    let mut flood = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let mut jobs = JobServiceClient::new(channel.clone());
        let token = format!("Bearer {}", broker.token);
        let (stop, taken, refused) = (stop.clone(), taken.clone(), refused.clone());
        flood.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut request = Request::new(batch(BATCH));
                request.metadata_mut().insert("authorization", token.parse().expect("a header"));
                match jobs.submit(request).await {
                    Ok(_) => drop(taken.fetch_add(1, Ordering::Relaxed)),
                    Err(status) => {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                        let wait = retry_delay(&status).expect("when to come again");
                        refused.fetch_add(1, Ordering::Relaxed);
                        // It could come again at once; the test's own processors are not to be what gives in.
                        tokio::time::sleep(wait / 4).await;
                    }
                }
            }
        });
    }
    let client = broker.client();
    let (started, mut took) = (Instant::now(), Vec::new());
    while started.elapsed() < Duration::from_millis(1_500) {
        let asked = Instant::now();
        client.jobs().submit(batch(1)).await.expect("another client's job is taken");
        took.push(asked.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    flood.join_all().await;
    took.sort_unstable();
    let p99 = took[(took.len() * 99).div_ceil(100) - 1];
    let (taken, refused) = (taken.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    println!(
        "beside {taken} submits of {BATCH} jobs taken and {refused} refused: {} submits, p50 {:?}, p99 {p99:?}",
        took.len(),
        took[took.len() / 2]
    );
    assert!(p99 < SUBMITTED_WITHIN, "another client's submits took up to {p99:?}");
    assert!(taken > 0, "the flood has its share too");
    assert!(refused > 0, "{IN_FLIGHT} requests at once are above any share");
    broker.is_well(&client).await;
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
    let mut home = crate::support::Home::new();
    let process = home.start_broker_with("server", &["--mutations-per-second", "20"]);
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let broker = Broker { home, process, token };
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
