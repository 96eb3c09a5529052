//! From submit to placed on a cluster that is nearly full, before a long queue that doesn't fit.
//!
//! 1,213 nodes of eight devices in five simulated pools; nine in ten devices taken, so that no node
//! has more than one left; 100,000 jobs of 64 shapes that want two to eight wait. Then 2,000 jobs a
//! second ask for one device each, for 50 ms. What is measured is what a client sees: from its call
//! until its watch tells that the job has an attempt.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use weir::api::agent::Dialer;
use weir::api::client::Client;
use weir::api::proto::v1;
use weir::clock::Clock;
use weir::model::exchange::Hello;
use weir::model::id::InstanceId;
use weir::model::pool::{Capabilities, PoolSpec};
use weir::model::region::RegionCode;
use weir::pools::PoolBackend;
use weir::pools::simulated::{NodeKind, Settings, Simulated, fleet};

use super::support::Home;
use super::{disk, quantile, row};

const NODES: [u32; 5] = [243, 243, 243, 242, 242];
const WAITING: usize = 100_000;
const RATE: u64 = 2_000;
const SECONDS: u64 = 10;

pub fn run() {
    let mut home = Home::new();
    let _broker = home.start_broker("server");
    disk(&home);
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut micros = runtime.block_on(async {
        let client = Client::new(&home.address, Some(&token)).expect("a client");
        for (index, nodes) in NODES.into_iter().enumerate() {
            start_pool(&client, index, nodes);
        }
        let from_revision = fill(&client).await;
        measure(&client, from_revision).await
    });
    micros.sort_unstable();
    let ms = |thousandths| quantile(&micros, thousandths) as f64 / 1_000.0;
    row(
        "submit to placed, 2,000 jobs/s, 1,213 nodes 90 % full, 100,000 waiting jobs that don't fit",
        &format!(
            "{} jobs: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms",
            micros.len(),
            ms(500),
            ms(900),
            ms(990)
        ),
    );
}

fn start_pool(client: &Client, index: usize, count: u32) {
    let clock = Clock::start();
    let name = format!("pool-{index}");
    let capabilities = Capabilities { processes: true, leases: true, ..Capabilities::default() };
    let region = ["CN-CQ", "CN-XJ", "CN-GZ", "CN-SC", "CN-QH"][index];
    let pool = PoolSpec {
        name: name.clone(),
        region: RegionCode::parse(region).expect("a known region"),
        backend: "simulated".to_owned(),
        labels: Default::default(),
        capabilities,
        notes: Vec::new(),
    };
    let kind = NodeKind {
        count,
        prefix: "gpu".to_owned(),
        cpus: 96,
        memory_gib: 768,
        device: "A100-80G".to_owned(),
        devices: 8,
    };
    let hello = Hello { pool, instance: InstanceId(index as u128 + 1), key: [index as u8; 16], seen: None };
    let settings = Settings { pool: name, nodes: fleet(&[kind]), state: None, speedup_millis: 1_000 };
    let backend = Simulated::new(settings, clock);
    let dialer = Dialer { client: client.clone(), hello: hello.clone(), logs: backend.logs() };
    tokio::spawn(weir::runtime::agent::run(hello, backend, dialer, clock, |_| {}, std::future::pending()));
}

fn job(prefix: &str, devices: u32, cpu_millis: u64, duration_ms: u64) -> v1::Submission {
    let amount = v1::device_request::Amount::Count(devices);
    let resources = v1::TaskResources {
        cpu_millis,
        memory_bytes: 1 << 30,
        devices: Some(v1::DeviceRequest { models: Vec::new(), amount: Some(amount) }),
        ..v1::TaskResources::default()
    };
    let program = v1::Program { command: vec!["task".to_owned()], ..v1::Program::default() };
    let group = v1::TaskGroup {
        resources: Some(resources),
        run: Some(v1::task_group::Run::Process(program)),
        simulate: Some(v1::Simulate { duration_ms, exit_code: 0 }),
        ..v1::TaskGroup::default()
    };
    let spec = v1::JobSpec { groups: vec![group], ..v1::JobSpec::default() };
    v1::Submission { name_prefix: prefix.to_owned(), spec: Some(spec), ..v1::Submission::default() }
}

async fn submit(client: &Client, jobs: Vec<v1::Submission>) -> v1::SubmitResponse {
    let token = weir::cli::new_token();
    client.jobs().submit(v1::SubmitRequest { token, jobs }).await.expect("jobs are taken").into_inner()
}

/// Devices in use, over all pools.
async fn devices_used(client: &Client) -> u64 {
    let pools = client.pools().list_pools(v1::ListPoolsRequest {}).await.expect("pools").into_inner().pools;
    pools.iter().map(|pool| pool.committed.as_ref().map_or(0, |held| held.device_millis) / 1_000).sum()
}

async fn until_used(client: &Client, devices: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while devices_used(client).await < devices {
        assert!(Instant::now() < deadline, "the cluster does not fill");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the revision from which on to watch.
async fn fill(client: &Client) -> u64 {
    let nodes: u64 = NODES.iter().map(|count| u64::from(*count)).sum();
    let hour = 3_600_000;
    let mut jobs = vec![job("fill", 7, 7_000, hour); nodes as usize];
    while !jobs.is_empty() {
        let rest = jobs.split_off(jobs.len().min(500));
        submit(client, jobs).await;
        jobs = rest;
    }
    until_used(client, nodes * 7).await;
    let more = nodes * 8 * 9 / 10 - nodes * 7;
    submit(client, vec![job("fill", 1, 1_000, hour); more as usize]).await;
    until_used(client, nodes * 7 + more).await;
    for batch in 0..WAITING / 500 {
        let shape =
            |index: usize| job("wait", 2 + (index % 7) as u32, 1_000 + 100 * (index % 64) as u64, hour);
        submit(client, (0..500).map(|index| shape(batch * 500 + index)).collect()).await;
    }
    submit(client, vec![job("wait", 8, 1_000, hour)]).await.revision
}

async fn measure(client: &Client, from_revision: u64) -> Vec<u64> {
    let request = v1::WatchJobsRequest { from_revision, ..v1::WatchJobsRequest::default() };
    let mut watch = client.jobs().watch_jobs(request).await.expect("a watch").into_inner();
    let started = Instant::now();
    let sender = client.clone();
    let submitter = tokio::spawn(async move {
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..RATE * SECONDS {
            let due = started + Duration::from_micros(number * 1_000_000 / RATE);
            tokio::time::sleep_until(due.into()).await;
            let client = sender.clone();
            calls.spawn(async move {
                let sent = Instant::now();
                let reply = submit(&client, vec![job("quick", 1, 1_000, 50)]).await;
                reply.jobs.into_iter().map(|job| (job.id, sent)).collect::<Vec<_>>()
            });
        }
        calls.join_all().await.concat()
    });
    let (mut placed, wanted) = (HashMap::new(), (RATE * SECONDS) as usize);
    let deadline = started + Duration::from_secs(SECONDS + 30);
    while placed.len() < wanted && Instant::now() < deadline {
        let message = tokio::time::timeout(Duration::from_secs(5), watch.message()).await;
        let Ok(Ok(Some(change))) = message else { break };
        for job in change.jobs.iter().filter(|job| job.name.starts_with("quick-")) {
            if job.phase() != v1::JobPhase::Pending {
                placed.entry(job.id).or_insert_with(Instant::now);
            }
        }
    }
    let sent = submitter.await.expect("the submitter ends");
    let latency = |(id, sent): &(u64, Instant)| {
        Some(placed.get(id)?.saturating_duration_since(*sent).as_micros() as u64)
    };
    sent.iter().filter_map(latency).collect()
}
