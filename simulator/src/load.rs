//! Real traces against a running broker: its nodes as simulated pools, its tasks as jobs.
//!
//! Durations are divided by the speed-up. Arrivals are compressed apart from them, until the GPU
//! time asked for is the given share of what the cluster has while tasks arrive: played at its own
//! pace the trace never fills the cluster.

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
use weir::telemetry::PoolHealth;

use crate::traces::openb::{self, Task};

/// Plays a trace against a running broker.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  weir dev &\n  cargo run --release -p simulator -- load --nodes openb_node_list_gpu_node.csv --pods openb_pod_list_default.csv"
)]
pub struct Load {
    #[command(flatten)]
    connect: Connect,
    /// Nodes: sn, cpu_milli, memory_mib, gpu, model.
    #[arg(long)]
    nodes: PathBuf,
    /// Tasks: the openb columns.
    #[arg(long)]
    pods: PathBuf,
    /// GPU time asked for while tasks arrive, as a share of what there is.
    #[arg(long, default_value_t = 1.2)]
    offered_load: f64,
    /// Divides every duration; absent: the longest task takes a minute.
    #[arg(long)]
    speedup: Option<f64>,
    /// Longer tasks are cut to so many seconds of the trace's time; 0 cuts none.
    ///
    /// Half of the openb tasks run for eight minutes, one for five months: uncut, whatever is
    /// fast enough to see the long ones end makes the others vanish at once.
    #[arg(long, default_value_t = 14_400)]
    cut: u64,
    /// Plays the trace so often: one pass of openb asks for no more GPUs in all than there are.
    #[arg(long, default_value_t = 3)]
    passes: u32,
}

/// The provinces that the nodes are split over.
const REGIONS: [&str; 5] = ["CN-CQ", "CN-XJ", "CN-GZ", "CN-SC", "CN-QH"];
/// The longest task's time where no speed-up is named.
const LONGEST: Duration = Duration::from_secs(60);
/// Jobs in one request.
const BATCH: usize = 200;
const SAMPLE: Duration = Duration::from_millis(500);

impl Load {
    /// Plays the trace and prints the summary.
    ///
    /// # Errors
    /// Files that can't be read, a broker that can't be reached, jobs that were lost.
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
        let watched = watch(&client, &pools, &run, tasks.len(), &bar).await?;
        let ids = submitter.await??;
        bar.finish_and_clear();
        summary(&client, &ids, &watched, started.elapsed()).await
    }
}

/// Stands the nodes up as one simulated pool per province.
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
        let hello =
            Hello { pool, instance: InstanceId(rand::random()), key: rand::random(), high_water: None };
        let settings = Settings { pool: name.clone(), nodes, state: None, speedup_millis: 1_000 };
        let backend = Simulated::new(settings, clock);
        let dialer = Dialer { client: client.clone(), hello: hello.clone(), logs: backend.logs() };
        tokio::spawn(weir::runtime::agent::run(
            hello,
            backend,
            dialer,
            clock,
            |_| {},
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
        anyhow::ensure!(Instant::now() < deadline, "the pools were not let in within 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A job with its arrival as a share of the span.
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

async fn submit(
    client: Client,
    jobs: Vec<(f64, v1::Submission)>,
    span_s: f64,
    started: Instant,
) -> anyhow::Result<Vec<u64>> {
    let (mut ids, mut next) = (Vec::new(), 0);
    while next < jobs.len() {
        let now = started.elapsed().as_secs_f64();
        let due = jobs[next..].iter().take(BATCH).take_while(|(at, _)| at * span_s <= now).count();
        if due == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        }
        let batch = jobs[next..next + due].iter().map(|(_, job)| job.clone()).collect();
        let request = v1::SubmitRequest { token: new_token(), jobs: batch };
        // The same token makes repeating harmless while the broker is away.
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
    Ok(ids)
}

/// What was seen while the trace played.
#[derive(Default)]
struct Watched {
    /// Allocated devices in percent, by region, one per sample.
    allocated: BTreeMap<String, Vec<u64>>,
    /// How often each reason was why the longest-waiting job waited, over pools and samples.
    reasons: BTreeMap<String, u64>,
    waiting_most: usize,
}

async fn watch(
    client: &Client,
    pools: &[String],
    run: &str,
    all: usize,
    bar: &ProgressBar,
) -> anyhow::Result<Watched> {
    let mut watched = Watched::default();
    loop {
        tokio::time::sleep(SAMPLE).await;
        let listed = client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools;
        for pool in listed.iter().filter(|pool| pools.contains(&pool.name)) {
            let (total, held) =
                (pool.total.clone().unwrap_or_default(), pool.committed.clone().unwrap_or_default());
            let percent = (held.device_millis * 100).checked_div(total.device_millis).unwrap_or(0);
            watched.allocated.entry(pool.region.clone()).or_default().push(percent);
        }
        let (mut live, mut waiting, mut token) = (0, Vec::new(), String::new());
        loop {
            let request = v1::ListJobsRequest {
                labels: BTreeMap::from([("load".to_owned(), run.to_owned())]),
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
        watched.waiting_most = watched.waiting_most.max(waiting.len());
        if let Some(oldest) = waiting.last() {
            let job = Some(v1::JobRef { id: *oldest, ..v1::JobRef::default() });
            // It may have been placed meanwhile: then there is nothing to explain.
            if let Ok(why) = client.jobs().why(v1::WhyRequest { job }).await {
                for pool in why.into_inner().groups.iter().flat_map(|group| &group.pools) {
                    if pool.permanence() == v1::Permanence::Busy {
                        let code = pool.reason.clone().unwrap_or_default().code;
                        *watched.reasons.entry(code).or_default() += 1;
                    }
                }
            }
        }
        bar.set_message(format!("{live} alive, {} waiting", waiting.len()));
        let ended = count_ended(client, run, all).await?;
        bar.set_position(ended as u64);
        if ended == all {
            return Ok(watched);
        }
    }
}

async fn count_ended(client: &Client, run: &str, all: usize) -> anyhow::Result<usize> {
    let (mut ended, mut seen, mut token) = (0, 0, String::new());
    loop {
        let request = v1::ListJobsRequest {
            labels: BTreeMap::from([("load".to_owned(), run.to_owned())]),
            with_ended: true,
            page_size: 1_000,
            page_token: token,
            ..v1::ListJobsRequest::default()
        };
        let page = client.jobs().list_jobs(request).await?.into_inner();
        seen += page.jobs.len();
        ended += page.jobs.iter().filter(|job| job.ended_unix_ms.is_some()).count();
        token = page.next_page_token;
        if token.is_empty() || seen >= all {
            return Ok(ended);
        }
    }
}

async fn summary(client: &Client, ids: &[u64], watched: &Watched, after: Duration) -> anyhow::Result<()> {
    let (mut succeeded, mut waits, mut placed) = (0, Vec::new(), BTreeMap::<String, usize>::new());
    for id in ids {
        let job = Some(v1::JobRef { id: *id, ..v1::JobRef::default() });
        let response =
            client.jobs().get_job(v1::GetJobRequest { job, with_attempts: true }).await?.into_inner();
        let job = response.job.unwrap_or_default();
        succeeded += usize::from(job.phase() == v1::JobPhase::Succeeded);
        for attempt in response.attempts {
            waits.push(attempt.ordered_unix_ms.saturating_sub(job.submitted_unix_ms));
            *placed.entry(attempt.region).or_default() += 1;
        }
    }
    waits.sort_unstable();
    let at =
        |share: f64| waits.get((waits.len().saturating_sub(1) as f64 * share) as usize).copied().unwrap_or(0);
    println!("{} jobs acknowledged, {succeeded} succeeded, after {:.1} s", ids.len(), after.as_secs_f64());
    println!(
        "submit to placed: p50 {} ms, p90 {} ms, p99 {} ms, longest {} ms; at most {} waited at once",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        watched.waiting_most
    );
    let reasons: Vec<String> =
        watched.reasons.iter().map(|(code, count)| format!("{code} {count}")).collect();
    println!("why the oldest waited (pools × samples): {}", reasons.join(", "));
    for (region, samples) in &watched.allocated {
        let mean = samples.iter().sum::<u64>() / samples.len().max(1) as u64;
        let most = samples.iter().max().copied().unwrap_or(0);
        let placed = placed.get(region).copied().unwrap_or(0);
        println!(
            "{region}  {placed:>5} placed, devices allocated: mean {mean} %, most {most} %  {}",
            sparkline(samples)
        );
    }
    anyhow::ensure!(succeeded == ids.len(), "{} jobs did not succeed", ids.len() - succeeded);
    Ok(())
}

/// Percents as bars, at most 40 of them.
fn sparkline(samples: &[u64]) -> String {
    let step = samples.len().div_ceil(40).max(1);
    let bar = |chunk: &[u64]| {
        let percent = chunk.iter().max().copied().unwrap_or(0).min(100);
        ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][(percent * 7 / 100) as usize]
    };
    samples.chunks(step).map(bar).collect()
}
