//! `weir bench`: an end-to-end load generator, hidden from the help. `docs/internals/performance.md` has its results.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::connect::new_token;
use super::output::print;
use super::{Connect, Failure};
use crate::api::client::Client;
use crate::api::proto::v1;

/// Measure the throughput of a running broker, or the commit latency of a disk.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir bench disk ~/.local/state/weir\n  weir bench submits --clients 8\n  weir bench submits --clients 4 --batch 100\n  weir bench finish --jobs 20000 --in-flight 64 --pool qh-cpu"
)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Measure the commit latency of a disk: append and sync 4 KiB.
    #[command(after_help = "Example:\n  weir bench disk ~/.local/state/weir")]
    Disk {
        /// Folder on the disk; a file is created in it and removed.
        folder: PathBuf,
    },
    /// Measure durable submits of jobs that fit no pool.
    #[command(after_help = "Example:\n  weir bench submits --clients 4 --batch 100")]
    Submits {
        /// Concurrent clients.
        #[arg(long, value_name = "N", default_value_t = 8)]
        clients: usize,
        /// Jobs per request, 1 to 1000.
        #[arg(long, value_name = "N", default_value_t = 1)]
        batch: usize,
        /// Duration in seconds.
        #[arg(long, value_name = "N", default_value_t = 5)]
        seconds: u64,
    },
    /// Measure one-task jobs from submit to end.
    #[command(after_help = "Example:\n  weir bench finish --jobs 20000 --in-flight 64 --pool qh-cpu")]
    Finish {
        /// Number of jobs.
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        jobs: u64,
        /// Maximum number of jobs that have not ended.
        #[arg(long, value_name = "N", default_value_t = 64)]
        in_flight: usize,
        /// Pool that runs the jobs.
        #[arg(long, value_name = "NAME")]
        pool: String,
    },
}

fn job(pool: &str, cpu_millis: u64) -> v1::Submission {
    let group = v1::TaskGroup {
        resources: Some(v1::TaskResources {
            cpu_millis,
            memory_bytes: 1 << 20,
            ..v1::TaskResources::default()
        }),
        run: Some(v1::task_group::Run::Process(v1::Program {
            command: vec!["true".to_owned()],
            ..v1::Program::default()
        })),
        simulate: Some(v1::Simulate { duration_ms: 0, exit_code: 0 }),
        ..v1::TaskGroup::default()
    };
    let pools = if pool.is_empty() { Vec::new() } else { vec![pool.to_owned()] };
    let constraints = Some(v1::Constraints { pools, ..v1::Constraints::default() });
    let spec = v1::JobSpec { groups: vec![group], constraints, ..v1::JobSpec::default() };
    v1::Submission { name_prefix: "bench".to_owned(), spec: Some(spec), ..v1::Submission::default() }
}

fn quantile(sorted: &[u128], thousandths: usize) -> u128 {
    sorted.get(sorted.len().saturating_sub(1) * thousandths / 1_000).copied().unwrap_or(0)
}

/// The disk's own commit: 4 KiB appended and synced, in microseconds, sorted.
fn commits(folder: &std::path::Path) -> std::io::Result<Vec<u128>> {
    let path = folder.join(".weir-bench");
    let mut file = std::fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let started = Instant::now();
        file.write_all(&[0; 4_096])?;
        file.sync_data()?;
        times.push(started.elapsed().as_micros());
    }
    times.sort_unstable();
    std::fs::remove_file(path)?;
    Ok(times)
}

impl Bench {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        match self.what {
            What::Disk { folder } => {
                let times = commits(&folder)?;
                let (half, most) = (quantile(&times, 500), quantile(&times, 990));
                print(&format!("p50 {half} µs, p99 {most} µs\n"))?;
                Ok(0)
            }
            What::Submits { clients, batch, seconds } => {
                submits(connect, clients, batch, Duration::from_secs(seconds)).await
            }
            What::Finish { jobs, in_flight, pool } => finish(connect, jobs, in_flight, &pool).await,
        }
    }
}

async fn submits(connect: &Connect, clients: usize, batch: usize, time: Duration) -> Result<u8, Failure> {
    let started = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let client = connect.client()?;
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            // 1,000 CPUs fit no node, so the jobs stay waiting.
            let jobs = vec![job("", 1_000_000); batch];
            while started.elapsed() < time {
                let request =
                    v1::SubmitRequest { token: new_token(), jobs: jobs.clone(), allow_pending: true };
                let sent = Instant::now();
                client.jobs().submit(request).await?;
                times.push(sent.elapsed().as_micros());
            }
            Ok::<_, tonic::Status>(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.map_err(anyhow::Error::from)??);
    }
    let seconds = started.elapsed().as_secs_f64();
    times.sort_unstable();
    let rate = times.len() as f64 / seconds;
    print(&format!(
        "{clients} clients, {batch} a request: {rate:.0} requests/s, {:.0} jobs/s, p50 {} µs, p99 {} µs\n",
        rate * batch as f64,
        quantile(&times, 500),
        quantile(&times, 990)
    ))?;
    Ok(0)
}

/// Submits a job for each that has ended, as a watch reports it, so that `in_flight` are active.
async fn finish(connect: &Connect, jobs: u64, in_flight: usize, pool: &str) -> Result<u8, Failure> {
    let client = connect.client()?;
    let mut watch = client.jobs().watch_jobs(v1::WatchJobsRequest::default()).await?.into_inner();
    let (ended, free) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Semaphore::new(in_flight)));
    let started = Instant::now();
    let submitter = tokio::spawn(submit_one_by_one(client, pool.to_owned(), jobs, free.clone()));
    let mut ended_ids = std::collections::BTreeSet::new();
    while ended.load(Ordering::Relaxed) < jobs {
        let Some(change) = watch.message().await? else { break };
        for job in
            change.jobs.iter().filter(|job| super::job_wait::has_ended(job) && job.name.starts_with("bench-"))
        {
            if ended_ids.insert(job.id) {
                ended.fetch_add(1, Ordering::Relaxed);
                free.add_permits(1);
            }
        }
    }
    submitter.await.map_err(anyhow::Error::from)??;
    let seconds = started.elapsed().as_secs_f64();
    print(&format!(
        "{jobs} jobs, {in_flight} in flight: {:.0} jobs/s from submit to end\n",
        jobs as f64 / seconds
    ))?;
    Ok(0)
}

async fn submit_one_by_one(
    client: Client,
    pool: String,
    jobs: u64,
    free: Arc<tokio::sync::Semaphore>,
) -> Result<(), tonic::Status> {
    let mut submitted = 0;
    while submitted < jobs {
        let Ok(permit) = free.acquire().await else { return Ok(()) };
        permit.forget();
        // Submit as many jobs as may be in flight in one request.
        let more = free.available_permits().min((jobs - submitted - 1) as usize);
        let more = free.try_acquire_many(more as u32).map_or(0, |permit| {
            permit.forget();
            more
        });
        let request = v1::SubmitRequest {
            token: new_token(),
            jobs: vec![job(&pool, 100); more + 1],
            allow_pending: true,
        };
        client.jobs().submit(request).await?;
        submitted += more as u64 + 1;
    }
    Ok(())
}
