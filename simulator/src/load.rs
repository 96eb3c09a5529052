//! Plays a real trace against a running broker: the trace's nodes become simulated pools, its tasks jobs.
//!
//! Durations are divided by the speed-up. Arrivals are compressed separately, until the requested GPU time is
//! the given share of the GPU time that the cluster has during the arrivals. At its recorded arrival times
//! the trace never fills the cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use weir::api::agent::Dialer;
use weir::api::client::Client;
use weir::api::proto::v1;
use weir::cli::{Connect, new_token};
use weir::clock::Clock;
use weir::model::exchange::Hello;
use weir::model::id::InstanceId;
use weir::model::pool::{Capabilities, NodeSpec, PoolSpec};
use weir::model::region::RegionCode;
use weir::pools::PoolBackend;
use weir::pools::simulated::{Settings, Simulated};
use weir::telemetry::agent::PoolHealth;

use crate::traces::openb::{self, Task};

/// Plays a real trace against a running broker.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  weir dev &\n  cargo run --release -p simulator -- load --nodes openb_node_list_gpu_node.csv --pods openb_pod_list_default.csv"
)]
pub struct Load {
    #[command(flatten)]
    connect: Connect,
    /// CSV of nodes with the columns sn, cpu_milli, memory_mib, gpu and model.
    #[arg(long, value_name = "FILE")]
    nodes: PathBuf,
    /// CSV of tasks with the columns of the openb trace.
    #[arg(long, value_name = "FILE")]
    pods: PathBuf,
    /// GPU time requested by the tasks, divided by the GPU time of the cluster during the arrivals.
    #[arg(long, value_name = "RATIO", default_value_t = 1.2)]
    offered_load: f64,
    /// Factor by which every duration is divided, at least 1. Default: the longest task takes 60 s.
    #[arg(long, value_name = "FACTOR")]
    speedup: Option<f64>,
    /// Longest duration of a task, in seconds of the trace's time; longer tasks are cut to it. 0 cuts none.
    ///
    /// Half of the openb tasks run for eight minutes, one for five months. Without a cut, a speed-up at which
    /// the longest tasks end makes all others end at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 14_400)]
    cut: u64,
    /// Number of times that the trace is played, one pass after another. One pass of openb requests no more
    /// GPUs in total than its nodes have.
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    passes: u32,
}

/// Regions that the nodes are distributed over, one pool each.
const REGIONS: [&str; 5] = ["CN-CQ", "CN-XJ", "CN-GZ", "CN-SC", "CN-QH"];
/// Duration of the longest task unless `--speedup` is given.
const LONGEST: Duration = Duration::from_secs(60);
/// Most jobs in one submit request.
const BATCH: usize = 200;
/// Interval between two samples of the pools and the waiting jobs.
const SAMPLE: Duration = Duration::from_millis(500);

impl Load {
    /// Plays the trace and prints the summary.
    ///
    /// # Errors
    /// - A file can't be read.
    /// - The broker can't be reached, or doesn't accept the pools within 30 s.
    /// - A job did not succeed.
    pub fn run(self) -> anyhow::Result<()> {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(self.play())
    }

    async fn play(self) -> anyhow::Result<()> {
        let nodes = openb::read_nodes(&self.nodes)?;
        let once = openb::read_tasks(&self.pods)?;
        let tasks = openb::repeat(&once, self.passes, self.cut);
        let gpus: f64 = nodes.iter().map(|node| node.devices.len() as f64).sum();
        let longest = tasks.iter().map(|task| task.duration_s).max().unwrap_or(1).max(1);
        let speedup = self.speedup.unwrap_or(longest as f64 / LONGEST.as_secs_f64()).max(1.0);
        let gpu_seconds: f64 = tasks.iter().map(|task| task.gpus() * task.duration_s as f64).sum();
        let span_s = gpu_seconds / (self.offered_load.max(0.01) * gpus) / speedup;
        println!(
            "{} nodes, {gpus} GPUs; {} tasks; durations divided by {speedup:.0}, arrivals within {span_s:.1} s",
            nodes.len(),
            tasks.len()
        );
        let client = self.connect.client().map_err(|failure| anyhow::anyhow!(failure.message))?;
        let run = format!("{:08x}", rand::random::<u32>());
        let pools = start_pools(&client, nodes, &run).await?;
        let started = Instant::now();
        let bar = ProgressBar::new(tasks.len() as u64);
        bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} ended, {msg}")?);
        let submitter =
            tokio::spawn(submit(client.clone(), jobs(&tasks, &pools, &run, speedup), span_s, started));
        let observed = watch(&client, &pools, &run, tasks.len(), &bar).await?;
        let (ids, took_s) = submitter.await??;
        bar.finish_and_clear();
        if took_s > span_s * (1.0 + LATE_MAX) {
            println!(
                "too slow: the arrivals took {took_s:.1} s instead of {span_s:.1} s, so the offered load was {:.2}, not {:.2}",
                self.offered_load * span_s / took_s,
                self.offered_load
            );
        }
        summary(&client, &ids, &observed, started.elapsed()).await
    }
}

/// Starts one simulated pool per region, with an equal share of the nodes, and waits until all are ready.
async fn start_pools(client: &Client, nodes: Vec<NodeSpec>, run: &str) -> anyhow::Result<Vec<String>> {
    let (clock, mut names) = (Clock::start(), Vec::new());
    let mut shares: Vec<Vec<NodeSpec>> = vec![Vec::new(); REGIONS.len()];
    for (index, node) in nodes.into_iter().enumerate() {
        shares[index % REGIONS.len()].push(node);
    }
    for (region, nodes) in REGIONS.into_iter().zip(shares) {
        let name = format!("load-{run}-{}", region[3..].to_ascii_lowercase());
        let capabilities =
            Capabilities { processes: true, containers: true, leases: true, ..Capabilities::default() };
        let pool = PoolSpec {
            name: name.clone(),
            region: RegionCode::parse(region)?,
            backend: "simulated".to_owned(),
            labels: BTreeMap::from([("load".to_owned(), run.to_owned())]),
            capabilities,
            notes: Vec::new(),
        };
        let hello = Hello {
            pool,
            instance: InstanceId(rand::random()),
            key: rand::random(),
            last_epoch: None,
            high_water: None,
        };
        let settings = Settings { pool: name.clone(), nodes, state: None, speedup_millis: 1_000 };
        let backend = Simulated::new(settings, clock);
        let dialer = Dialer { client: client.clone(), hello: hello.clone(), logs: backend.logs() };
        tokio::spawn(weir::runtime::agent::run(
            hello,
            backend,
            dialer,
            clock,
            (),
            Arc::new(PoolHealth::new(&name)),
            std::future::pending(),
        ));
        names.push(name);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let pools = client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools;
        let ready = pools
            .iter()
            .filter(|pool| names.contains(&pool.name) && pool.connectivity() == v1::Connectivity::Ready);
        if ready.count() == names.len() {
            return Ok(names);
        }
        anyhow::ensure!(Instant::now() < deadline, "the pools were not ready within 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Jobs sorted by arrival, which is a fraction of the span of all arrivals.
fn jobs(tasks: &[Task], pools: &[String], run: &str, speedup: f64) -> Vec<(f64, v1::Submission)> {
    let last = tasks.iter().map(|task| task.created_s).max().unwrap_or(1).max(1) as f64;
    let job = |task: &Task| {
        let devices = task.gpu_count.checked_sub(1).map(|_| v1::DeviceRequest {
            models: task.models.clone(),
            amount: Some(if task.gpu_count == 1 && task.gpu_millis < 1_000 {
                v1::device_request::Amount::Millis(task.gpu_millis)
            } else {
                v1::device_request::Amount::Count(task.gpu_count)
            }),
        });
        let resources = v1::TaskResources {
            cpu_millis: task.cpu_millis,
            memory_bytes: task.memory_bytes,
            devices,
            ..v1::TaskResources::default()
        };
        let program = v1::Program { command: vec!["task".to_owned()], ..v1::Program::default() };
        let group = v1::TaskGroup {
            resources: Some(resources),
            run: Some(v1::task_group::Run::Process(program)),
            simulate: Some(v1::Simulate {
                duration_ms: (task.duration_s as f64 * 1_000.0 / speedup) as u64,
                exit_code: 0,
            }),
            ..v1::TaskGroup::default()
        };
        let spec = v1::JobSpec {
            labels: BTreeMap::from([("load".to_owned(), run.to_owned())]),
            groups: vec![group],
            constraints: Some(v1::Constraints { pools: pools.to_vec(), ..v1::Constraints::default() }),
            ..v1::JobSpec::default()
        };
        let name = format!("{}-{run}", task.name);
        (task.created_s as f64 / last, v1::Submission { name, spec: Some(spec), ..v1::Submission::default() })
    };
    let mut jobs: Vec<_> = tasks.iter().map(job).collect();
    jobs.sort_by(|left, right| left.0.total_cmp(&right.0));
    jobs
}

/// Submits each job when it is due. Returns their numbers, and how long that took in seconds: more than `span_s` if the
/// broker or this machine is too slow for the load.
async fn submit(
    client: Client,
    jobs: Vec<(f64, v1::Submission)>,
    span_s: f64,
    started: Instant,
) -> anyhow::Result<(Vec<u64>, f64)> {
    let (mut ids, mut next) = (Vec::new(), 0);
    while next < jobs.len() {
        let now = started.elapsed().as_secs_f64();
        let due = jobs[next..].iter().take(BATCH).take_while(|(at, _)| at * span_s <= now).count();
        if due == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        }
        let batch = jobs[next..next + due].iter().map(|(_, job)| job.clone()).collect();
        let request = v1::SubmitRequest { token: new_token(), jobs: batch, allow_pending: true };
        // The same token makes a retry idempotent while the broker is unavailable.
        loop {
            match client.jobs().submit(request.clone()).await {
                Ok(response) => {
                    ids.extend(response.into_inner().jobs.iter().map(|job| job.id));
                    break;
                }
                Err(status) if status.code() == tonic::Code::Unavailable => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
        next += due;
    }
    Ok((ids, started.elapsed().as_secs_f64()))
}

/// Share by which arrivals may be late before the offered load is reported as missed.
const LATE_MAX: f64 = 0.05;

/// Samples taken while the trace was played.
#[derive(Default)]
struct Observed {
    /// Allocated devices in percent, by region, one per sample.
    allocated: BTreeMap<String, Vec<u64>>,
    /// How often each reason code was given for the job that waited longest, summed over pools and samples.
    reasons: BTreeMap<String, u64>,
    waiting_max: usize,
}

async fn watch(
    client: &Client,
    pools: &[String],
    run: &str,
    all: usize,
    bar: &ProgressBar,
) -> anyhow::Result<Observed> {
    let mut observed = Observed::default();
    loop {
        tokio::time::sleep(SAMPLE).await;
        let listed = client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools;
        for pool in listed.iter().filter(|pool| pools.contains(&pool.name)) {
            let (total, committed) =
                (pool.total.clone().unwrap_or_default(), pool.committed.clone().unwrap_or_default());
            let percent = (committed.device_millis * 100).checked_div(total.device_millis).unwrap_or(0);
            observed.allocated.entry(pool.region.clone()).or_default().push(percent);
        }
        let (mut live, mut waiting, mut token) = (0, Vec::new(), String::new());
        loop {
            let request = v1::ListJobsRequest {
                filter: Some(v1::JobFilter {
                    labels: vec![v1::LabelRequirement::equal("load", run)],
                    ..v1::JobFilter::default()
                }),
                page_size: 1_000,
                page_token: token,
                ..v1::ListJobsRequest::default()
            };
            let page = client.jobs().list_jobs(request).await?.into_inner();
            live += page.jobs.len();
            waiting.extend(
                page.jobs.iter().filter(|job| job.phase() == v1::JobPhase::Pending).map(|job| job.id),
            );
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        observed.waiting_max = observed.waiting_max.max(waiting.len());
        if let Some(oldest) = waiting.last() {
            let job = Some(v1::JobRef { id: *oldest, ..v1::JobRef::default() });
            // The job may have started meanwhile: the request then fails, and the sample has no reason.
            if let Ok(why) = client.jobs().why(v1::WhyRequest { job }).await {
                for pool in why.into_inner().groups.iter().flat_map(|group| &group.pools) {
                    if pool.permanence() == v1::Permanence::Busy {
                        let code = pool.reason.clone().unwrap_or_default().code;
                        *observed.reasons.entry(code).or_default() += 1;
                    }
                }
            }
        }
        bar.set_message(format!("{live} live, {} waiting", waiting.len()));
        let ended = count_ended(client, run, all).await?;
        bar.set_position(ended as u64);
        if ended == all {
            return Ok(observed);
        }
    }
}

async fn count_ended(client: &Client, run: &str, all: usize) -> anyhow::Result<usize> {
    let (mut ended, mut listed, mut token) = (0, 0, String::new());
    loop {
        let request = v1::ListJobsRequest {
            filter: Some(v1::JobFilter {
                labels: vec![v1::LabelRequirement::equal("load", run)],
                with_ended: true,
                ..v1::JobFilter::default()
            }),
            page_size: 1_000,
            page_token: token,
            ..v1::ListJobsRequest::default()
        };
        let page = client.jobs().list_jobs(request).await?.into_inner();
        listed += page.jobs.len();
        ended += page.jobs.iter().filter(|job| job.ended_unix_ms.is_some()).count();
        token = page.next_page_token;
        if token.is_empty() || listed >= all {
            return Ok(ended);
        }
    }
}

async fn summary(client: &Client, ids: &[u64], observed: &Observed, after: Duration) -> anyhow::Result<()> {
    let (mut succeeded, mut waits, mut started) = (0, Vec::new(), BTreeMap::<String, usize>::new());
    for id in ids {
        let job = Some(v1::JobRef { id: *id, ..v1::JobRef::default() });
        let response =
            client.jobs().get_job(v1::GetJobRequest { job, with_attempts: true }).await?.into_inner();
        let job = response.job.unwrap_or_default();
        succeeded += usize::from(job.phase() == v1::JobPhase::Succeeded);
        for attempt in response.attempts {
            waits.push(attempt.ordered_unix_ms.saturating_sub(job.submitted_unix_ms));
            *started.entry(attempt.region).or_default() += 1;
        }
    }
    waits.sort_unstable();
    let at =
        |share: f64| waits.get((waits.len().saturating_sub(1) as f64 * share) as usize).copied().unwrap_or(0);
    println!("{} jobs acknowledged, {succeeded} succeeded, after {:.1} s", ids.len(), after.as_secs_f64());
    println!(
        "submit to start: p50 {} ms, p90 {} ms, p99 {} ms, longest {} ms; at most {} jobs waited at once",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        observed.waiting_max
    );
    let reasons: Vec<String> =
        observed.reasons.iter().map(|(code, count)| format!("{code} {count}")).collect();
    println!("reasons why the oldest job waited (pools × samples): {}", reasons.join(", "));
    for (region, samples) in &observed.allocated {
        let mean = samples.iter().sum::<u64>() / samples.len().max(1) as u64;
        let max = samples.iter().max().copied().unwrap_or(0);
        let started = started.get(region).copied().unwrap_or(0);
        println!(
            "{region}  {started:>5} started, devices allocated: mean {mean} %, max {max} %  {}",
            sparkline(samples)
        );
    }
    anyhow::ensure!(succeeded == ids.len(), "{} jobs did not succeed", ids.len() - succeeded);
    Ok(())
}

/// Percentages as at most 40 bars, each the maximum of its samples.
fn sparkline(samples: &[u64]) -> String {
    let step = samples.len().div_ceil(40).max(1);
    let bar = |chunk: &[u64]| {
        let percent = chunk.iter().max().copied().unwrap_or(0).min(100);
        ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][(percent * 7 / 100) as usize]
    };
    samples.chunks(step).map(bar).collect()
}
