//! The demo of `weir dev`: jobs of a production trace on six pools, which are overloaded for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tonic::Code;

use super::connect::new_token;
use super::job_wait::has_ended;
use super::language::reason_text;
use super::output::{is_terminal, print, print_raw, sanitised, table};
use super::{Failure, input, job_file};
use crate::api::client::Client;
use crate::api::proto::v1;

/// The jobs. The file names their source.
const JOBS: &str = include_str!("openb.yaml");
/// Interval between two tables on a terminal.
const TABLE_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between two lines where standard output is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// Label with a random value per demo, which selects the jobs of this one.
const LABEL: &str = "demo";
/// The jobs that the demo leaves.
const WAITING: &str = include_str!("waiting.yaml");

/// Runs the demo until its last job has ended; with `leaves_waiting` two more jobs remain, one of which waits.
///
/// # Errors
/// If the broker rejects a request or is unavailable.
pub(super) async fn run(client: &Client, leaves_waiting: bool) -> Result<(), Failure> {
    let jobs = job_file::read_jobs(JOBS).map_err(|problems| input::failure("the demo's jobs", &problems))?;
    let mut jobs: Vec<_> = jobs.jobs.into_iter().map(|job| job.submission).collect();
    let demo_id = format!("{:08x}", rand::random::<u32>());
    let mut arrivals = Vec::new();
    for job in &mut jobs {
        let spec = job.spec.get_or_insert_default();
        let arrival = spec.labels.remove("arrival-ms").and_then(|text| text.parse().ok()).unwrap_or(0);
        spec.labels.insert(LABEL.to_owned(), demo_id.clone());
        arrivals.push(Duration::from_millis(arrival));
        // Names are unique among active jobs, and the demo may be started twice.
        job.name = format!("{}-{}", job.name, &demo_id[..4]);
    }
    wait_for_pools(client).await?;
    print(&format!(
        "demo: {} tasks of a production GPU cluster (Alibaba openb), a month compressed to seconds\n",
        jobs.len()
    ))?;
    let started = Instant::now();
    let (mut next, mut printed) = (0, Instant::now() - LINE_INTERVAL);
    let mut lines = 0;
    loop {
        let due = arrivals[next..].iter().take_while(|at| **at <= started.elapsed()).count();
        if due > 0 {
            let request = v1::SubmitRequest {
                token: new_token(),
                jobs: jobs[next..next + due].to_vec(),
                allow_pending: true,
            };
            client.jobs().submit(request).await?;
            next += due;
        }
        let interval = if is_terminal() { TABLE_INTERVAL } else { LINE_INTERVAL };
        if printed.elapsed() >= interval {
            printed = Instant::now();
            let all = list(client, &demo_id).await?;
            lines = print_status(client, &all, jobs.len(), started.elapsed(), lines).await?;
            if next == jobs.len() && all.iter().all(has_ended) {
                summary(client, &all, started.elapsed()).await?;
                print(&format!("to see them: weir get jobs --all -l {LABEL}={demo_id}\n"))?;
                return if leaves_waiting { leave_waiting(client).await } else { Ok(()) };
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Leaves a job that waits, so that there is something to ask `weir why` about. A job of an earlier demo may still wait.
async fn leave_waiting(client: &Client) -> Result<(), Failure> {
    let jobs =
        job_file::read_jobs(WAITING).map_err(|problems| input::failure("the demo's jobs", &problems))?;
    for job in jobs.jobs {
        let request =
            v1::SubmitRequest { token: new_token(), jobs: vec![job.submission], allow_pending: true };
        match client.jobs().submit(request).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            outcome => drop(outcome?),
        }
    }
    print("job/train-7 waits: ask `weir why job/train-7`; Ctrl-C ends the broker\n")
}

async fn wait_for_pools(client: &Client) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let pools = client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools;
        let ready = pools.iter().filter(|pool| pool.connectivity() == v1::Connectivity::Ready).count();
        if ready >= 6 || Instant::now() > deadline {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn list(client: &Client, demo_id: &str) -> Result<Vec<v1::Job>, Failure> {
    let mut request = v1::ListJobsRequest {
        filter: Some(v1::JobFilter {
            labels: vec![v1::LabelRequirement::equal(LABEL, demo_id)],
            with_ended: true,
            ..v1::JobFilter::default()
        }),
        page_size: 1_000,
        ..v1::ListJobsRequest::default()
    };
    let mut jobs = Vec::new();
    loop {
        let page = client.jobs().list_jobs(request.clone()).await?.into_inner();
        jobs.extend(page.jobs);
        if page.next_page_token.is_empty() {
            return Ok(jobs);
        }
        request.page_token = page.next_page_token;
    }
}

/// Prints the state of jobs and pools, on a terminal over the previous `lines` lines. Returns the number of
/// lines.
async fn print_status(
    client: &Client,
    jobs: &[v1::Job],
    all: usize,
    after: Duration,
    lines: usize,
) -> Result<usize, Failure> {
    let mut pools = client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools;
    pools.sort_by(|left, right| (&left.region, &left.name).cmp(&(&right.region, &right.name)));
    let waiting: Vec<&v1::Job> = jobs.iter().filter(|job| job.phase() == v1::JobPhase::Pending).collect();
    let ended = jobs.iter().filter(|job| has_ended(job)).count();
    let running = jobs.len() - ended - waiting.len();
    let why = wait_reason(client, waiting.last().copied()).await;
    let head = format!(
        "{:>5.1}s  {all} jobs: {ended} ended, {running} running, {} waiting{why}",
        after.as_secs_f64(),
        waiting.len()
    );
    if !is_terminal() {
        let held: Vec<String> =
            pools.iter().map(|pool| format!("{} {} {}", pool.region, pool.name, pool.attempts)).collect();
        print(&format!("{head}\n        running: {}\n", held.join(", ")))?;
        return Ok(0);
    }
    let heading = ["REGION", "POOL", "RUNNING", "CPU%", "DEVICE%"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for pool in &pools {
        let (total, held) =
            (pool.total.clone().unwrap_or_default(), pool.committed.clone().unwrap_or_default());
        let share = |held: u64, total: u64| {
            (held * 100).checked_div(total).map_or_else(String::new, |share| share.to_string())
        };
        rows.push(vec![
            pool.region.clone(),
            pool.name.clone(),
            pool.attempts.to_string(),
            share(held.cpu_millis, total.cpu_millis),
            share(held.device_millis, total.device_millis),
        ]);
    }
    let text = format!("{}\x1b[K\n{}", sanitised(&head), table(&rows));
    let up = if lines > 0 { format!("\x1b[{lines}A\x1b[J") } else { String::new() };
    print_raw(&format!("{up}{text}"))?;
    Ok(text.lines().count())
}

/// The most frequent reason why pools are too busy for a waiting job, with an example. Empty if there is
/// none.
async fn wait_reason(client: &Client, job: Option<&v1::Job>) -> String {
    let Some(job) = job else { return String::new() };
    let request = v1::WhyRequest { job: Some(v1::JobRef { id: job.id, ..v1::JobRef::default() }) };
    let Ok(why) = client.jobs().why(request).await else { return String::new() };
    let why = why.into_inner();
    let busy = why
        .groups
        .iter()
        .flat_map(|group| &group.pools)
        .filter(|pool| pool.permanence() == v1::Permanence::Busy);
    let mut counts: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for pool in busy {
        let reason = pool.reason.clone().unwrap_or_default();
        let entry = counts.entry(reason.code.clone()).or_default();
        entry.0 += 1;
        entry.1 = format!("{}: {}", pool.pool, reason_text(&reason));
    }
    let most = counts.into_iter().max_by_key(|(_, (count, _))| *count);
    most.map_or_else(String::new, |(code, (count, example))| format!(" ({code} in {count} pools; {example})"))
}

async fn summary(client: &Client, jobs: &[v1::Job], after: Duration) -> Result<(), Failure> {
    let mut regions: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut waits = Vec::new();
    for job in jobs {
        let at = Some(v1::JobRef { id: job.id, ..v1::JobRef::default() });
        let full =
            client.jobs().get_job(v1::GetJobRequest { job: at, with_attempts: true }).await?.into_inner();
        for attempt in &full.attempts {
            *regions.entry((attempt.region.clone(), attempt.pool.clone())).or_default() += 1;
            waits.push(attempt.ordered_unix_ms.saturating_sub(job.submitted_unix_ms));
        }
    }
    waits.sort_unstable();
    let at = |thousandth: usize| {
        waits.get(waits.len().saturating_sub(1) * thousandth / 1_000).copied().unwrap_or(0)
    };
    let succeeded = jobs.iter().filter(|job| job.phase() == v1::JobPhase::Succeeded);
    let (succeeded, simulated) = (succeeded.clone().count(), succeeded.filter(|job| job.simulated).count());
    let mut text = format!(
        "\nall {} jobs have ended after {:.1} s: {succeeded} succeeded, {simulated} of them simulated\ntime to start: p50 {} ms, p99 {} ms, max {} ms\n",
        jobs.len(),
        after.as_secs_f64(),
        at(500),
        at(990),
        at(1_000),
    );
    let mut rows = vec![["REGION", "POOL", "STARTED"].map(str::to_owned).to_vec()];
    rows.extend(regions.into_iter().map(|((region, pool), count)| vec![region, pool, count.to_string()]));
    text.push_str(&table(&rows));
    print(&text)
}
