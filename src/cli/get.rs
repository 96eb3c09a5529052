//! `weir get`: lists of jobs, pools, nodes and queues.

use super::connect::{RETRY_TIMEOUT, is_transient, job_name, with_retries};
use super::exit::{INVALID, NOT_FOUND, USAGE};
use super::job_file::{devices_text, job_value};
use super::job_list::{JobFilter, find_job};
use super::job_text::{doubt, outcome_text};
use super::output::{Format, age, bytes, now_ms, print, print_value, report, span, table, thousandths, time};
use super::queue_file::queue_value;
use super::{Connect, Failure};
use crate::api::client::Client;
use crate::api::proto::{name_of, v1};
use crate::model::validate::quote;

/// List jobs, pools, nodes or queues.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir get jobs\n  weir get attempts job/train-7 --failed\n  weir get jobs -w\n  weir get jobs --all -l team=vision -o wide\n  weir get job/train-7 -o yaml\n  weir get nodes --pool gz-nvidia\n\nWithout --queue, or with the default queue, jobs of all queues are listed.\nUNITS is succeeded/total; CPUS, MEMORY and DEVICES of pools and nodes are allocated/total;\nSTRANDED is the number of free devices that no waiting task can use."
)]
pub struct Get {
    /// Type: jobs (j), attempts (at), pools (po), nodes (no), queues (qu); or TYPE/NAME.
    what: String,
    /// Name of one object of the type; of attempts, the job: job/NAME, job/QUEUE/NAME or the id.
    name: Option<String>,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    /// Print changes as they happen, after the current list. Jobs only.
    #[arg(long, short)]
    watch: bool,
    /// Include jobs that have ended.
    #[arg(long, short)]
    all: bool,
    /// List jobs of all queues.
    #[arg(long, short = 'A')]
    all_queues: bool,
    /// Only jobs with these labels, separated by commas. May be repeated: jobs must have all labels.
    #[arg(long, short, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Only nodes of this pool.
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Only attempts of units that ended for good otherwise than by success.
    #[arg(long)]
    failed: bool,
    /// Maximum number of jobs, attempts or nodes listed, the newest jobs first. Default: all.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl Get {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let of_job = self.name.as_deref().is_some_and(|_| ATTEMPTS.contains(&self.what.as_str()));
        let (kind, name) = match self.what.split_once('/').filter(|_| !of_job) {
            Some((kind, name)) => (kind.to_owned(), Some(name.to_owned())),
            None => (self.what.clone(), self.name.clone()),
        };
        self.check_flags(&kind, name.is_some())?;
        let client = connect.client()?;
        match (kind.as_str(), name) {
            ("job" | "jobs" | "j", Some(name)) => {
                let job = find_job(&client, connect.job_ref(&format!("job/{name}"))?).await?;
                if self.watch {
                    let only = v1::JobRef { id: job.id, ..v1::JobRef::default() };
                    return self.watch_jobs(&client, Some(only), None).await;
                }
                self.show_jobs(&[job], true)
            }
            ("job" | "jobs" | "j", None) => {
                let filter = JobFilter::of(if self.all_queues { "" } else { &connect.queue }, &self.label)?;
                if self.watch {
                    // A watch of a queue that does not exist would print nothing for ever.
                    let queue = filter.queue.clone();
                    let one = v1::ListJobsRequest { queue, page_size: 1, ..v1::ListJobsRequest::default() };
                    client.jobs().list_jobs(one).await?;
                    return self.watch_jobs(&client, None, Some(filter)).await;
                }
                let jobs = self.list_jobs(&client, filter).await?;
                self.show_jobs(&jobs, false)
            }
            (kind, Some(job)) if ATTEMPTS.contains(&kind) => {
                let job = find_job(&client, connect.job_ref(&job)?).await?;
                let attempts = self.list_attempts(&client, job.id).await?;
                self.show_attempts(&attempts)
            }
            (kind, None) if ATTEMPTS.contains(&kind) => {
                Err(Failure::new(USAGE, "name the job: weir get attempts job/NAME"))
            }
            ("pool" | "pools" | "po", name) => self.pools(&client, name).await,
            ("node" | "nodes" | "no", name) => self.nodes(&client, name).await,
            ("queue" | "queues" | "qu", name) => self.queues(&client, name).await,
            (other, _) => Err(Failure::new(
                INVALID,
                format!("{} is not a type: use jobs, attempts, pools, nodes or queues", quote(other)),
            )),
        }
    }

    /// Refuses a flag that this list would ignore.
    fn check_flags(&self, kind: &str, named: bool) -> Result<(), Failure> {
        let jobs = JOBS.contains(&kind) && !named;
        let nodes = ["nodes", "node", "no"].contains(&kind);
        let attempts = ATTEMPTS.contains(&kind);
        let flags = [
            ("--label", !self.label.is_empty(), jobs, "a list of jobs"),
            ("--all", self.all, jobs, "a list of jobs"),
            ("--all-queues", self.all_queues, jobs, "a list of jobs"),
            (
                "--limit",
                self.limit.is_some(),
                jobs && !self.watch || nodes && !named || attempts,
                "a list of jobs, attempts or nodes",
            ),
            ("--pool", self.pool.is_some(), nodes, "nodes"),
            ("--failed", self.failed, attempts, "attempts"),
            ("--watch", self.watch, JOBS.contains(&kind), "jobs; `weir top` refreshes pools"),
        ];
        match flags.into_iter().find(|(_, is_set, applies, _)| *is_set && !applies) {
            Some((flag, _, _, what)) => Err(Failure::new(USAGE, format!("{flag} applies only to {what}"))),
            None => Ok(()),
        }
    }

    async fn list_jobs(&self, client: &Client, filter: JobFilter) -> Result<Vec<v1::Job>, Failure> {
        let (mut jobs, more) = filter.list(client, self.all, self.limit).await?;
        self.cut(&mut jobs, more);
        Ok(jobs)
    }

    async fn list_attempts(&self, client: &Client, job: u64) -> Result<Vec<v1::Attempt>, Failure> {
        let mut request = v1::ListAttemptsRequest {
            job: Some(v1::JobRef { id: job, ..v1::JobRef::default() }),
            failed_units: self.failed,
            page_size: 1_000,
            page_token: String::new(),
        };
        let mut attempts = Vec::new();
        loop {
            let page = client.jobs().list_attempts(request.clone()).await?.into_inner();
            attempts.extend(page.attempts);
            let is_last = page.next_page_token.is_empty();
            if is_last || self.limit.is_some_and(|limit| attempts.len() >= limit) {
                self.cut(&mut attempts, !is_last);
                return Ok(attempts);
            }
            request.page_token = page.next_page_token;
        }
    }

    fn show_attempts(&self, attempts: &[v1::Attempt]) -> Result<u8, Failure> {
        match self.output {
            Format::Table | Format::Wide => {
                if attempts.is_empty() {
                    report(if self.failed { "no failed units" } else { "no attempts yet" });
                    return Ok(0);
                }
                let heading = ["UNIT", "ATTEMPT", "POOL", "NODE", "STATE", "OUTCOME", "STARTED", "ELAPSED"];
                let mut rows = vec![heading.map(str::to_owned).to_vec()];
                rows.extend(attempts.iter().map(attempt_row));
                print(&table(&rows))?;
            }
            Format::Name => attempts.iter().try_for_each(|attempt| print(&format!("{}\n", attempt.id)))?,
            Format::Json | Format::Yaml => print_value(self.output, &attempts)?,
        }
        Ok(0)
    }

    /// Cuts a list to `--limit`, and reports on standard error if anything is missing then.
    fn cut<T>(&self, list: &mut Vec<T>, more: bool) {
        let Some(limit) = self.limit else { return };
        if more || list.len() > limit {
            report(&format!("only the first {limit} are listed, because of --limit; there are more"));
        }
        list.truncate(limit);
    }

    fn show_jobs(&self, jobs: &[v1::Job], single: bool) -> Result<u8, Failure> {
        match self.output {
            Format::Table | Format::Wide => {
                if jobs.is_empty() {
                    report(&format!(
                        "no {}",
                        if self.all { "jobs" } else { "active jobs; use --all to include ended jobs" }
                    ));
                    return Ok(0);
                }
                let wide = self.output == Format::Wide;
                let mut rows = vec![job_heading(wide)];
                rows.extend(jobs.iter().map(|job| job_row(job, wide)));
                print(&table(&rows))?;
            }
            Format::Name => {
                for job in jobs {
                    print(&format!("{}\n", job_name(&job.queue, &job.name)))?;
                }
            }
            Format::Json | Format::Yaml => {
                let values =
                    jobs.iter().map(job_value).collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::from)?;
                match values.first().filter(|_| single) {
                    Some(value) => print_value(self.output, value)?,
                    None => print_value(self.output, &values)?,
                }
            }
        }
        Ok(0)
    }

    async fn watch_jobs(
        &self,
        client: &Client,
        only: Option<v1::JobRef>,
        filter: Option<JobFilter>,
    ) -> Result<u8, Failure> {
        let selected = |job: &&v1::Job| filter.as_ref().is_none_or(|filter| filter.matches(job));
        let wide = self.output == Format::Wide;
        if matches!(self.output, Format::Table | Format::Wide) {
            print(&table(&[job_heading(wide)]))?;
        }
        let mut from_revision = 0;
        loop {
            let request = v1::WatchJobsRequest { job: only.clone(), from_revision };
            let call = || async { client.jobs().watch_jobs(request.clone()).await };
            let mut changes = with_retries(RETRY_TIMEOUT, call).await?.into_inner();
            loop {
                match changes.message().await {
                    Ok(Some(change)) => {
                        from_revision = change.revision;
                        for job in change.jobs.iter().filter(selected) {
                            match self.output {
                                Format::Table | Format::Wide => print(&table(&[job_row(job, wide)]))?,
                                Format::Name => print(&format!("{}\n", job_name(&job.queue, &job.name)))?,
                                Format::Json | Format::Yaml => {
                                    print_value(self.output, &job_value(job).map_err(anyhow::Error::from)?)?;
                                }
                            }
                        }
                    }
                    Ok(None) => break,
                    Err(status) if is_transient(&status) => break,
                    Err(status) => return Err(status.into()),
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }

    async fn pools(&self, client: &Client, name: Option<String>) -> Result<u8, Failure> {
        let mut pools = client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools;
        if let Some(name) = &name {
            pools.retain(|pool| pool.name == *name);
            if pools.is_empty() {
                return Err(Failure::new(NOT_FOUND, format!("pool {} does not exist", quote(name))));
            }
        }
        match self.output {
            Format::Table | Format::Wide => {
                let heading = [
                    "NAME", "REGION", "BACKEND", "STATE", "NODES", "CPUS", "MEMORY", "DEVICES", "ATTEMPTS",
                    "AGE",
                ];
                let mut rows = vec![heading.map(str::to_owned).to_vec()];
                rows.extend(pools.iter().map(pool_row));
                print(&table(&rows))?;
            }
            Format::Name => pools.iter().try_for_each(|pool| print(&format!("pool/{}\n", pool.name)))?,
            Format::Json | Format::Yaml if name.is_some() => print_value(self.output, &pools.first())?,
            Format::Json | Format::Yaml => print_value(self.output, &pools)?,
        }
        Ok(0)
    }

    async fn nodes(&self, client: &Client, name: Option<String>) -> Result<u8, Failure> {
        let pools = match &self.pool {
            Some(pool) => vec![pool.clone()],
            None => client
                .pools()
                .list_pools(v1::ListPoolsRequest {})
                .await?
                .into_inner()
                .pools
                .into_iter()
                .map(|p| p.name)
                .collect(),
        };
        let (mut nodes, mut more) = (Vec::new(), false);
        for pool in pools {
            let mut request = v1::ListNodesRequest { pool, page_size: 500, page_token: String::new() };
            while !more {
                let page = client.pools().list_nodes(request.clone()).await?.into_inner();
                let named = |node: &v1::Node| name.as_ref().is_none_or(|name| node.name == *name);
                nodes.extend(page.nodes.into_iter().filter(named));
                if page.next_page_token.is_empty() {
                    break;
                }
                request.page_token = page.next_page_token;
                more = self.limit.is_some_and(|limit| nodes.len() > limit);
            }
        }
        if let Some(name) = name.filter(|_| nodes.is_empty()) {
            return Err(Failure::new(NOT_FOUND, format!("node {} does not exist", quote(&name))));
        }
        self.cut(&mut nodes, more);
        match self.output {
            Format::Table | Format::Wide => {
                let heading =
                    ["NAME", "POOL", "STATE", "CPUS", "MEMORY", "DEVICES", "STRANDED", "MODEL", "TASKS"];
                let mut rows = vec![heading.map(str::to_owned).to_vec()];
                rows.extend(nodes.iter().map(node_row));
                print(&table(&rows))?;
            }
            Format::Name => nodes.iter().try_for_each(|node| print(&format!("node/{}\n", node.name)))?,
            Format::Json | Format::Yaml => print_value(self.output, &nodes)?,
        }
        Ok(0)
    }

    async fn queues(&self, client: &Client, name: Option<String>) -> Result<u8, Failure> {
        let mut queues = client.queues().list_queues(v1::ListQueuesRequest {}).await?.into_inner().queues;
        queues.retain(|queue| name.as_ref().is_none_or(|name| queue.name == *name));
        if let Some(name) = name.filter(|_| queues.is_empty()) {
            return Err(Failure::new(NOT_FOUND, format!("queue {} does not exist", quote(&name))));
        }
        match self.output {
            Format::Table | Format::Wide => {
                let heading = ["NAME", "WEIGHT", "JOBS", "CPUS", "MEMORY", "DEVICES"];
                let mut rows = vec![heading.map(str::to_owned).to_vec()];
                for queue in &queues {
                    let (usage, limit) =
                        (queue.usage.clone().unwrap_or_default(), queue.limit.unwrap_or_default());
                    let of = |used: String, limit: Option<String>| {
                        format!("{used}/{}", limit.unwrap_or_else(|| "∞".to_owned()))
                    };
                    rows.push(vec![
                        queue.name.clone(),
                        queue.weight.to_string(),
                        queue.jobs.to_string(),
                        of(thousandths(usage.cpu_millis), limit.cpu_millis.map(thousandths)),
                        of(bytes(usage.memory_bytes), limit.memory_bytes.map(bytes)),
                        of(thousandths(usage.device_millis), limit.device_millis.map(thousandths)),
                    ]);
                }
                print(&table(&rows))?;
            }
            Format::Name => queues.iter().try_for_each(|queue| print(&format!("queue/{}\n", queue.name)))?,
            Format::Json | Format::Yaml => {
                let values = queues
                    .iter()
                    .map(queue_value)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(anyhow::Error::from)?;
                print_value(self.output, &values)?;
            }
        }
        Ok(0)
    }
}

/// The names of the types whose lists differ from those of other types.
const JOBS: [&str; 3] = ["jobs", "job", "j"];
const ATTEMPTS: [&str; 3] = ["attempts", "attempt", "at"];

fn attempt_row(attempt: &v1::Attempt) -> Vec<String> {
    // JOURNAL-JOB-UNIT-NUMBER.
    let mut id = attempt.id.rsplit('-');
    let (number, unit) = (id.next().unwrap_or_default(), id.next().unwrap_or_default());
    let mut nodes: Vec<&str> = attempt.placements.iter().map(|placement| placement.node.as_str()).collect();
    nodes.dedup();
    let ran_ms =
        attempt.started_unix_ms.map(|at| attempt.ended_unix_ms.unwrap_or_else(now_ms).saturating_sub(at));
    vec![
        unit.to_owned(),
        number.to_owned(),
        attempt.pool.clone(),
        nodes.join(","),
        name_of::<v1::AttemptPhase>(attempt.phase).to_owned(),
        attempt.outcome.as_ref().map(outcome_text).unwrap_or_default(),
        attempt.started_unix_ms.map(time).unwrap_or_default(),
        ran_ms.map(span).unwrap_or_default(),
    ]
}

fn job_heading(wide: bool) -> Vec<String> {
    let mut heading = vec!["NAME", "QUEUE", "STATE", "UNITS", "POOL"];
    if wide {
        heading.extend(["PRIORITY", "CPUS", "DEVICES", "ID"]);
    }
    heading.push("AGE");
    heading.into_iter().map(str::to_owned).collect()
}

fn job_row(job: &v1::Job, wide: bool) -> Vec<String> {
    let units = job.units.unwrap_or_default();
    let mut row = vec![
        job.name.clone(),
        job.queue.clone(),
        format!(
            "{}{}{}",
            name_of::<v1::JobPhase>(job.phase),
            doubt(job),
            if job.simulated { ",SIMULATED" } else { "" }
        ),
        format!("{}/{}", units.succeeded, units.total),
        job.pools.join(","),
    ];
    if wide {
        let spec = job.spec.clone().unwrap_or_default();
        let first = spec.groups.first().and_then(|group| group.resources.clone()).unwrap_or_default();
        let devices = first.devices.as_ref().map(devices_text);
        row.extend([
            spec.priority.to_string(),
            thousandths(first.cpu_millis),
            devices.unwrap_or_default(),
            job.id.to_string(),
        ]);
    }
    row.push(age(job.submitted_unix_ms));
    row
}

/// Formats a pool's connectivity and scheduling state like kubectl: `READY,CORDONED`.
pub(super) fn pool_state(pool: &v1::Pool) -> String {
    let connectivity = name_of::<v1::Connectivity>(pool.connectivity);
    match (pool.drain.is_some(), pool.cordoned) {
        (true, _) => format!("{connectivity},DRAINING"),
        (false, true) => format!("{connectivity},CORDONED"),
        (false, false) => connectivity.to_owned(),
    }
}

fn pool_row(pool: &v1::Pool) -> Vec<String> {
    let (total, held) = (pool.total.clone().unwrap_or_default(), pool.committed.clone().unwrap_or_default());
    vec![
        pool.name.clone(),
        pool.region.clone(),
        pool.backend.clone(),
        pool_state(pool),
        pool.nodes.to_string(),
        format!("{}/{}", thousandths(held.cpu_millis), thousandths(total.cpu_millis)),
        format!("{}/{}", bytes(held.memory_bytes), bytes(total.memory_bytes)),
        format!("{}/{}", thousandths(held.device_millis), thousandths(total.device_millis)),
        pool.attempts.to_string(),
        age(pool.registered_unix_ms),
    ]
}

fn node_row(node: &v1::Node) -> Vec<String> {
    let (total, held) = (node.total.clone().unwrap_or_default(), node.committed.clone().unwrap_or_default());
    let state = match (node.gone, node.cordoned, node.quarantined_until_unix_ms) {
        (true, ..) => "GONE",
        (false, true, _) => "CORDONED",
        (false, false, Some(_)) => "QUARANTINED",
        (false, false, None) => "READY",
    };
    vec![
        node.name.clone(),
        node.pool.clone(),
        state.to_owned(),
        format!("{}/{}", thousandths(held.cpu_millis), thousandths(total.cpu_millis)),
        format!("{}/{}", bytes(held.memory_bytes), bytes(total.memory_bytes)),
        format!("{}/{}", thousandths(held.device_millis), thousandths(total.device_millis)),
        node.stranded_millis.map_or_else(|| "-".to_owned(), thousandths),
        node.devices.first().map(|device| device.model.clone()).unwrap_or_default(),
        node.tasks.to_string(),
    ]
}
