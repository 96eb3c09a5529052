//! `weir get`: lists of jobs, attempts, pools, nodes and queues.

mod list;
mod row;
mod watch;

use serde::Serialize;

use super::exit::{INVALID, NOT_FOUND, USAGE};
use super::job_list::{JobFilter, Selection, find_job};
use super::kind::Kind;
use super::output::{Format, report};
use super::{Connect, Failure};
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::validate::quote;
use list::{List, Listed};
use row::JobColumns;
pub(super) use row::{node_state, pool_state};

/// List jobs, attempts, pools, nodes or queues.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir get jobs\n  weir get jobs --state failed --since 1d\n  weir get attempts job/train-7 --failed\n  weir get jobs -w\n  weir get jobs --all -l team=vision -o wide\n  weir get job/train-7 -o yaml      a file that can be submitted again\n  weir get nodes --pool gz-nvidia\n\nWithout --queue, or with the default queue, jobs of all queues are listed.\nUNITS is succeeded/total; CPUS, MEMORY and DEVICES of pools and nodes are allocated/total, of queues with\nthose below them used/limit. In a wide list of nodes, STRANDED is the number\nof free devices that no waiting task can use; - if that is not known, as while nothing waits."
)]
pub struct Get {
    /// Type: jobs (j), attempts (at), pools (po), nodes (no), queues (qu); or TYPE/NAME.
    what: String,
    /// Name of one object of the type; of attempts, the job: job/NAME, job/QUEUE/NAME or the id.
    name: Option<String>,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    /// Print changes as they happen, after the current list.
    #[arg(long, short)]
    watch: bool,
    /// Include jobs that have ended.
    #[arg(long, short)]
    all: bool,
    /// List jobs of all queues.
    #[arg(long, short = 'A')]
    all_queues: bool,
    #[command(flatten)]
    selection: Selection,
    /// Only nodes of this pool, or jobs that run, or ran, in these pools, comma-separated.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pool: Vec<String>,
    /// Only attempts of units that ended for good otherwise than by success.
    #[arg(long)]
    failed: bool,
    /// Maximum number of jobs, attempts or nodes listed, the newest jobs first. Default: all.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl Get {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let of_job = self.name.is_some() && Kind::parse(&self.what) == Some(Kind::Attempts);
        let (kind, name) = match self.what.split_once('/').filter(|_| !of_job) {
            Some((kind, name)) => (kind, Some(name.to_owned())),
            None => (self.what.as_str(), self.name.clone()),
        };
        if let Some(second) = self.name.as_ref().filter(|_| !of_job && self.what.contains('/')) {
            let message =
                format!("{} would be ignored: name one object, or list and filter them", quote(second));
            return Err(Failure::new(USAGE, message));
        }
        let rule = "is not a type: use jobs, attempts, pools, nodes or queues";
        let kind =
            Kind::parse(kind).ok_or_else(|| Failure::new(INVALID, format!("{} {rule}", quote(kind))))?;
        self.check_flags(kind, name.is_some())?;
        let client = connect.client()?;
        let wide = self.output == Format::Wide;
        let which = if name.is_some() { Listed::One } else { Listed::Many };
        match (kind, name) {
            (Kind::Jobs, name) => self.jobs(&client, connect, name).await,
            (Kind::Attempts, Some(job)) => {
                let job = find_job(&client, connect.job_ref(&job)?).await?;
                let none = if self.failed { "no failed units" } else { "no attempts yet" };
                let read = async || self.list_attempts(&client, job.id).await;
                self.show(&list::attempts(wide), Listed::Many, Some(none), read).await
            }
            (Kind::Attempts, None) => Err(Failure::new(USAGE, "name the job: weir get attempts job/NAME")),
            (Kind::Pools, name) => {
                let read = async || list_pools(&client, name.as_deref()).await;
                self.show(&list::pools(wide), which, None, read).await
            }
            (Kind::Nodes, name) => {
                // Nodes of several pools may have one name.
                let read = async || self.list_nodes(&client, name.as_deref()).await;
                self.show(&list::nodes(wide), Listed::Many, None, read).await
            }
            (Kind::Queues, name) => {
                let read = async || list_queues(&client, name.as_deref()).await;
                self.show(&list::queues(), which, None, read).await
            }
        }
    }

    /// Refuses a flag that this list would ignore.
    fn check_flags(&self, kind: Kind, named: bool) -> Result<(), Failure> {
        let jobs = kind == Kind::Jobs && !named;
        let (nodes, attempts) = (kind == Kind::Nodes, kind == Kind::Attempts);
        let flags = [
            ("--all", self.all, jobs, "a list of jobs"),
            ("--all-queues", self.all_queues, jobs, "a list of jobs"),
            (
                "--limit",
                self.limit.is_some(),
                (jobs || nodes && !named || attempts) && !self.watch,
                "a list of jobs, attempts or nodes without --watch",
            ),
            ("--pool", !self.pool.is_empty(), nodes || jobs, "lists of jobs and nodes"),
            ("--pool with several names", self.pool.len() > 1, jobs, "a list of jobs"),
            ("--failed", self.failed, attempts, "attempts"),
        ];
        let selected = self.selection.first_set().map(|flag| (flag, true, jobs, "a list of jobs"));
        let watched = self.selection.not_watched().filter(|_| self.watch);
        let watched = watched.map(|flag| (flag, true, false, "a list of jobs without --watch"));
        match flags
            .into_iter()
            .chain(selected)
            .chain(watched)
            .find(|(_, is_set, applies, _)| *is_set && !applies)
        {
            Some((flag, _, _, what)) => Err(Failure::new(USAGE, format!("{flag} applies only to {what}"))),
            None => Ok(()),
        }
    }

    /// Prints a list once or for as long as it is watched. `none` is reported in place of a table without rows.
    async fn show<T: Serialize + 'static>(
        &self,
        list: &List<T>,
        which: Listed,
        none: Option<&str>,
        mut read: impl AsyncFnMut() -> Result<Vec<T>, Failure>,
    ) -> Result<u8, Failure> {
        if self.watch {
            return watch::objects(self.output, list, read).await;
        }
        list.print(self.output, &read().await?, which, none)?;
        Ok(0)
    }

    async fn jobs(&self, client: &Client, connect: &Connect, name: Option<String>) -> Result<u8, Failure> {
        let ended = self.selection.names_ended();
        let list = list::jobs(JobColumns {
            wide: self.output == Format::Wide,
            // A watch goes on until they have ended.
            ended: self.all || ended || name.is_some() || self.watch,
        });
        if let Some(name) = name {
            let job = find_job(client, connect.job_ref(&format!("job/{name}"))?).await?;
            if self.watch {
                let only = v1::JobRef { id: job.id, ..v1::JobRef::default() };
                return watch::jobs(client, self.output, &list, Some(only), None).await;
            }
            list.print(self.output, &[job], Listed::One, None)?;
            return Ok(0);
        }
        let queue = if self.all_queues { "" } else { &connect.queue };
        let filter = self.selection.filter(queue, &self.pool, self.all)?;
        if self.watch {
            // A watch of a queue that does not exist would print nothing for ever.
            let queue = JobFilter { message: filter.message.clone() };
            queue.list(client, v1::JobView::Name, Some(1)).await?;
            return watch::jobs(client, self.output, &list, None, Some(filter)).await;
        }
        // What a table has is not in the spec.
        let view = match self.output {
            Format::Table => v1::JobView::Basic,
            Format::Name => v1::JobView::Name,
            Format::Wide | Format::Json | Format::Yaml => v1::JobView::Full,
        };
        let (mut jobs, more) = filter.list(client, view, self.limit).await?;
        self.cut(&mut jobs, more);
        if matches!(self.output, Format::Json | Format::Yaml) {
            // A file that is submitted again has jobs before those that depend on them.
            jobs.sort_unstable_by_key(|job| job.id);
        }
        let selected = self.selection.first_set().is_some() || !self.pool.is_empty();
        let none = match (self.all || ended, selected) {
            (true, _) => "no such jobs",
            (false, true) => "no such active jobs; use --all to include ended jobs",
            (false, false) => "no active jobs; use --all to include ended jobs",
        };
        list.print(self.output, &jobs, Listed::Many, Some(none))?;
        Ok(0)
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

    /// Cuts a list to `--limit`, and reports on standard error if anything is missing then.
    fn cut<T>(&self, list: &mut Vec<T>, more: bool) {
        let Some(limit) = self.limit else { return };
        if more || list.len() > limit {
            report(&format!("only the first {limit} are listed, because of --limit; there are more"));
        }
        list.truncate(limit);
    }

    async fn list_nodes(&self, client: &Client, name: Option<&str>) -> Result<Vec<v1::Node>, Failure> {
        let (mut nodes, more) =
            list_nodes(client, self.pool.first().map(String::as_str), name, self.limit).await?;
        self.cut(&mut nodes, more);
        Ok(nodes)
    }
}

/// All pools, or the one with this name.
pub(super) async fn list_pools(client: &Client, name: Option<&str>) -> Result<Vec<v1::Pool>, Failure> {
    let mut pools = client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools;
    pools.retain(|pool| name.is_none_or(|name| pool.name == name));
    found(pools, "pool", name)
}

/// All queues, or the one with this name.
pub(super) async fn list_queues(client: &Client, name: Option<&str>) -> Result<Vec<v1::Queue>, Failure> {
    let mut queues = client.queues().list_queues(v1::ListQueuesRequest {}).await?.into_inner().queues;
    queues.retain(|queue| name.is_none_or(|name| queue.name == name));
    found(queues, "queue", name)
}

/// The nodes of a pool, or of all, those with this name if one is given; and whether there are more than `limit`.
pub(super) async fn list_nodes(
    client: &Client,
    pool: Option<&str>,
    name: Option<&str>,
    limit: Option<usize>,
) -> Result<(Vec<v1::Node>, bool), Failure> {
    let pools = match pool {
        Some(pool) => vec![pool.to_owned()],
        None => list_pools(client, None).await?.into_iter().map(|pool| pool.name).collect(),
    };
    let (mut nodes, mut more) = (Vec::new(), false);
    for pool in pools {
        let mut request = v1::ListNodesRequest { pool, page_size: 500, page_token: String::new() };
        while !more {
            let page = client.pools().list_nodes(request.clone()).await?.into_inner();
            let named = |node: &v1::Node| name.is_none_or(|name| node.name == *name);
            nodes.extend(page.nodes.into_iter().filter(named));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
            more = limit.is_some_and(|limit| nodes.len() > limit);
        }
    }
    Ok((found(nodes, "node", name)?, more))
}

/// Refuses a list that lacks the only object that it should have.
fn found<T>(list: Vec<T>, kind: &str, name: Option<&str>) -> Result<Vec<T>, Failure> {
    match name.filter(|_| list.is_empty()) {
        Some(name) => Err(Failure::new(NOT_FOUND, format!("{kind} {} does not exist", quote(name)))),
        None => Ok(list),
    }
}
