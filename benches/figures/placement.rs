//! Latency from submit to start on a nearly full cluster with a long queue of jobs that don't fit.
//!
//! The cluster has 1,213 nodes of eight devices in five simulated pools (or 100,000 nodes in 1,000 pools).
//! Nine of ten devices are in use, so that no node has more than one free device. 100,000 (or 1,000,000)
//! waiting jobs of 64 shapes request two to eight devices each. Then 2,000 jobs per second arrive, each with
//! one device for 50 ms. A client measures the time from its submit call until its watch reports an attempt
//! of the job.

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
use super::{command, disk, quantile, row, status_kib};

/// Size of a cluster and of its queue.
struct Cluster {
    pools: usize,
    nodes: u32,
    waiting: usize,
}

/// Agents per connection. A connection allows a thousand streams, and each agent has two.
const POOLS_PER_CONNECTION: usize = 100;
/// Measured jobs per second.
const RATE: u64 = 2_000;
/// Length of the measured period.
const SECONDS: u64 = 10;
/// Steps of the broker longer than this are logged as long.
const LONG_STEP_MS: u64 = 20;

/// As many nodes as the openb trace has, in 5 pools, and 100,000 waiting jobs.
pub fn small() {
    run(&Cluster { pools: 5, nodes: 1_213, waiting: 100_000 });
}

/// 100,000 nodes in 1,000 pools, and 1,000,000 waiting jobs.
pub fn large() {
    run(&Cluster { pools: 1_000, nodes: 100_000, waiting: 1_000_000 });
}

fn run(cluster: &Cluster) {
    let mut home = Home::new();
    home.env.push(("WEIR_LOG", "warn,weir::runtime::broker=debug".into()));
    let broker = home.start_broker("server");
    disk(&home);
    let token = std::fs::read_to_string(home.data().join("token")).expect("the token");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (mut micros, long, last) = runtime.block_on(async {
        let client = Client::new(&home.address, Some(&token)).expect("a client");
        let mut connection = client.clone();
        for index in 0..cluster.pools {
            if index % POOLS_PER_CONNECTION == 0 {
                connection = Client::new(&home.address, Some(&token)).expect("a client");
            }
            // The first pools have one more node if the division leaves a remainder.
            let (all, pools) = (cluster.nodes as usize, cluster.pools);
            start_pool(&connection, index, (all / pools + usize::from(index < all % pools)) as u32);
        }
        let (from_revision, last) = fill(&client, cluster).await;
        let before = long_steps(&home);
        let micros = measure(&client, from_revision).await;
        (micros, long_steps(&home).split_off(before.len()), last)
    });
    micros.sort_unstable();
    let ms = |thousandths| quantile(&micros, thousandths) as f64 / 1_000.0;
    let Cluster { pools, nodes, waiting } = cluster;
    row(
        &format!(
            "submit to start, {RATE} jobs/s, {nodes} nodes in {pools} pools 90 % full, {waiting} waiting jobs that don't fit"
        ),
        &format!(
            "{} jobs: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms; {} steps longer than {LONG_STEP_MS} ms, the longest {} ms; {} MiB resident",
            micros.len(),
            ms(500),
            ms(900),
            ms(990),
            long.len(),
            long.iter().map(|step| step.took_ms).max().unwrap_or(0),
            status_kib(broker.0.id(), "VmRSS") >> 10,
        ),
    );
    command("`weir why` of a job that waits there, whole command, 101 times", 101, || {
        home.run(&["why", &format!("job/{last}")])
    });
    let filling = long_steps(&home);
    println!("steps longer than {LONG_STEP_MS} ms from start to end: {}", filling.len());
    for Step { took_ms, cpu_ms, input } in filling {
        println!("  {took_ms} ms, of which {cpu_ms} ms of processor time: {input}");
    }
}

/// A long step of the broker: all other inputs waited for it.
struct Step {
    took_ms: u64,
    /// CPU time of the step. Clients and pools share the processors, so it may be less than `took_ms`.
    cpu_ms: u64,
    input: String,
}

/// The long steps in the broker's log.
fn long_steps(home: &Home) -> Vec<Step> {
    let log = home.log();
    let field = |line: &str, name: &str| {
        let rest = line.split_once(&format!("{name}="))?.1;
        let end = if rest.starts_with('"') { '"' } else { ' ' };
        rest.trim_start_matches('"').split(end).next().map(str::to_owned)
    };
    let step = |line: &str| {
        let number = |name| field(line, name)?.trim().parse().ok();
        Some(Step { took_ms: number("took_ms")?, cpu_ms: number("cpu_ms")?, input: field(line, "input")? })
    };
    log.lines().filter(|line| line.contains("long step")).filter_map(step).collect()
}

fn start_pool(client: &Client, index: usize, count: u32) {
    let clock = Clock::start();
    let name = format!("pool-{index}");
    let capabilities = Capabilities { processes: true, leases: true, ..Capabilities::default() };
    let region = ["CN-CQ", "CN-XJ", "CN-GZ", "CN-SC", "CN-QH"][index % 5];
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
    let hello = Hello {
        pool,
        instance: InstanceId(index as u128 + 1),
        key: (index as u128).to_le_bytes(),
        last_epoch: None,
        high_water: None,
    };
    let settings = Settings { pool: name, nodes: fleet(&[kind]), state: None, speedup_millis: 1_000 };
    let backend = Simulated::new(settings, clock);
    let dialer = Dialer { client: client.clone(), hello: hello.clone(), logs: backend.logs() };
    let pool_health = std::sync::Arc::new(weir::telemetry::agent::PoolHealth::new("bench"));
    tokio::spawn(weir::runtime::agent::run(
        hello,
        backend,
        dialer,
        clock,
        (),
        pool_health,
        std::future::pending(),
    ));
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
    client
        .jobs()
        .submit(v1::SubmitRequest { token, jobs, allow_pending: true })
        .await
        .expect("jobs are accepted")
        .into_inner()
}

/// Devices in use in all pools.
async fn devices_used(client: &Client) -> u64 {
    let pools = client.pools().list_pools(v1::ListPoolsRequest {}).await.expect("pools").into_inner().pools;
    pools
        .iter()
        .map(|pool| pool.committed.as_ref().map_or(0, |committed| committed.device_millis) / 1_000)
        .sum()
}

/// Waits until at least `devices` devices are in use.
async fn until_used(client: &Client, devices: u64) {
    let deadline = Instant::now() + Duration::from_secs(600);
    while devices_used(client).await < devices {
        assert!(Instant::now() < deadline, "the cluster does not fill");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Fills the cluster and the queue. Returns the revision to watch from, and the name of the last waiting job.
async fn fill(client: &Client, cluster: &Cluster) -> (u64, String) {
    let nodes = u64::from(cluster.nodes);
    let hour = 3_600_000;
    let mut jobs = vec![job("fill", 7, 7_000, hour); nodes as usize];
    while !jobs.is_empty() {
        let rest = jobs.split_off(jobs.len().min(500));
        submit(client, jobs).await;
        jobs = rest;
    }
    until_used(client, nodes * 7).await;
    let more = nodes * 8 * 9 / 10 - nodes * 7;
    let mut jobs = vec![job("fill", 1, 1_000, hour); more as usize];
    while !jobs.is_empty() {
        let rest = jobs.split_off(jobs.len().min(500));
        submit(client, jobs).await;
        jobs = rest;
    }
    until_used(client, nodes * 7 + more).await;
    for batch in 0..cluster.waiting / 500 {
        let shape =
            |index: usize| job("wait", 2 + (index % 7) as u32, 1_000 + 100 * (index % 64) as u64, hour);
        submit(client, (0..500).map(|index| shape(batch * 500 + index)).collect()).await;
    }
    let reply = submit(client, vec![job("last", 8, 1_000, hour)]).await;
    (reply.revision, reply.jobs[0].name.clone())
}

/// Submits single jobs at the fixed rate. Returns the latency of each job that started, in microseconds.
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
    let (mut started_jobs, expected) = (HashMap::new(), (RATE * SECONDS) as usize);
    let deadline = started + Duration::from_secs(SECONDS + 30);
    while started_jobs.len() < expected && Instant::now() < deadline {
        let message = tokio::time::timeout(Duration::from_secs(5), watch.message()).await;
        let Ok(Ok(Some(change))) = message else { break };
        for job in change.jobs.iter().filter(|job| job.name.starts_with("quick-")) {
            if job.phase() != v1::JobPhase::Pending {
                started_jobs.entry(job.id).or_insert_with(Instant::now);
            }
        }
    }
    let sent = submitter.await.expect("the submitter ends");
    let latency = |(id, sent): &(u64, Instant)| {
        Some(started_jobs.get(id)?.saturating_duration_since(*sent).as_micros() as u64)
    };
    sent.iter().filter_map(latency).collect()
}
