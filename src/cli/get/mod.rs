//! `weir get`: lists of jobs, attempts, units, pools, nodes and queues.

mod key;
mod list;
mod order;
mod row;
mod watch;

use serde::Serialize;
use tonic::Code;

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
pub(super) use row::{node_state, pool_state, short_outcome, unit_range};

/// List jobs, attempts, units, pools, nodes or queues.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir get jobs\n  weir get jobs --state failed --since 1d\n  weir get attempts job/train-7 --failed\n  weir get units job/train-7\n  weir get jobs --sort -elapsed --columns name,state,elapsed,priority\n  weir get jobs -w\n  weir get jobs --all -l team=vision -o wide\n  weir get job/train-7 -o yaml      a file that can be submitted again\n  weir get nodes --pool gz-nvidia\n\nWithout --queue, or with the default queue, jobs of all queues are listed.\nUNITS is succeeded/total; CPUS, MEMORY and DEVICES of pools and nodes are allocated/total, of queues with\nthose below them used/limit. In a wide list of nodes, STRANDED is the number\nof free devices that no waiting task can use; - if that is not known, as while nothing waits."
)]
pub struct Get {
    /// Type: jobs (j), attempts (at), units (un), pools (po), nodes (no), queues (qu); or TYPE/NAME.
    what: String,
    /// Name of one object of the type; of attempts and units, the job: job/NAME, job/QUEUE/NAME or the id.
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
    /// Only units that ended for good otherwise than by success, or attempts of such units.
    #[arg(long)]
    failed: bool,
    /// Maximum number of jobs, attempts, units or nodes listed: the newest jobs, or the first in the order of --sort.
    /// Default: all.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Sort by this, or with a minus in front of it from high to low: name, state, …; of jobs also submitted, started,
    /// ended, elapsed, priority. A wrong one is answered with all.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    sort: Option<String>,
    /// Only these columns of a table, comma-separated, in this order. All are in the wide table.
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    columns: Vec<String>,
}

impl Get {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let of_job =
            self.name.is_some() && matches!(Kind::parse(&self.what), Some(Kind::Attempts | Kind::Units));
        let (kind, name) = match self.what.split_once('/').filter(|_| !of_job) {
            Some((kind, name)) => (kind, Some(name.to_owned())),
            None => (self.what.as_str(), self.name.clone()),
        };
        if let Some(second) = self.name.as_ref().filter(|_| !of_job && self.what.contains('/')) {
            let message =
                format!("{} would be ignored: name one object, or list and filter them", quote(second));
            return Err(Failure::new(USAGE, message));
        }
        let rule = "is not a type: use jobs, attempts, units, pools, nodes or queues";
        let kind =
            Kind::parse(kind).ok_or_else(|| Failure::new(INVALID, format!("{} {rule}", quote(kind))))?;
        self.check_flags(kind, name.is_some())?;
        let client = connect.client()?;
        // A column of a wide list can be chosen too.
        let wide = self.output == Format::Wide || !self.columns.is_empty();
        let which = if name.is_some() { Listed::One } else { Listed::Many };
        match (kind, name) {
            (Kind::Jobs, name) => self.jobs(&client, connect, name).await,
            (Kind::Attempts, Some(job)) => {
                let job = find_job(&client, connect.job_ref(&job)?).await?;
                let none = if self.failed { "no failed units" } else { "no attempts yet" };
                let read = async || self.list_attempts(&client, job.id).await;
                self.show(list::attempts(wide), Listed::Many, Some(none), read).await
            }
            (Kind::Attempts, None) => Err(Failure::new(USAGE, "name the job: weir get attempts job/NAME")),
            (Kind::Units, Some(job)) => {
                let job = find_job(&client, connect.job_ref(&job)?).await?;
                let read = async || self.list_units(&client, job.id).await;
                self.show(list::units(), Listed::Many, self.failed.then_some("no failed units"), read).await
            }
            (Kind::Units, None) => Err(Failure::new(USAGE, "name the job: weir get units job/NAME")),
            (Kind::Pools, name) => {
                let read = async || list_pools(&client, name.as_deref()).await;
                self.show(list::pools(wide), which, None, read).await
            }
            (Kind::Nodes, name) => {
                // Nodes of several pools may have one name.
                let read = async || self.list_nodes(&client, name.as_deref()).await;
                self.show(list::nodes(wide), Listed::Many, None, read).await
            }
            (Kind::Queues, name) => {
                let read = async || list_queues(&client, name.as_deref()).await;
                self.show(list::queues(), which, None, read).await
            }
        }
    }

    /// Refuses a flag that this list would ignore.
    fn check_flags(&self, kind: Kind, named: bool) -> Result<(), Failure> {
        let jobs = kind == Kind::Jobs && !named;
        let (nodes, attempts) = (kind == Kind::Nodes, matches!(kind, Kind::Attempts | Kind::Units));
        let flags = [
            ("--all", self.all, jobs, "a list of jobs"),
            ("--all-queues", self.all_queues, jobs, "a list of jobs"),
            (
                "--limit",
                self.limit.is_some(),
                (jobs || nodes && !named || attempts) && !self.watch,
                "a list of jobs, attempts, units or nodes without --watch",
            ),
            ("--sort", self.sort.is_some(), !self.watch, "a list without --watch"),
            (
                "--columns",
                !self.columns.is_empty(),
                matches!(self.output, Format::Table | Format::Wide),
                "a table",
            ),
            ("--pool", !self.pool.is_empty(), nodes || jobs, "lists of jobs and nodes"),
            ("--pool with several names", self.pool.len() > 1, jobs, "a list of jobs"),
            ("--failed", self.failed, attempts, "attempts and units"),
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
        list: List<T>,
        which: Listed,
        none: Option<&str>,
        mut read: impl AsyncFnMut() -> Result<(Vec<T>, bool), Failure>,
    ) -> Result<u8, Failure> {
        let list = list.with_columns(&self.columns)?;
        if self.watch {
            return watch::objects(self.output, &list, async || Ok(read().await?.0)).await;
        }
        // A wrong key is refused before anything is fetched.
        list.sort(self.sort.as_deref(), &mut [])?;
        let (mut objects, more) = read().await?;
        list.sort(self.sort.as_deref(), &mut objects)?;
        self.cut(&mut objects, more);
        list.print(self.output, &objects, which, none)?;
        Ok(0)
    }

    /// How many objects are fetched: of a sorted list all, since any of them may be the first.
    fn fetched(&self) -> Option<usize> {
        self.limit.filter(|_| self.sort.is_none())
    }

    async fn jobs(&self, client: &Client, connect: &Connect, name: Option<String>) -> Result<u8, Failure> {
        let ended = self.selection.names_ended();
        let chosen = !self.columns.is_empty();
        let list = list::jobs(JobColumns {
            wide: self.output == Format::Wide || chosen,
            // A watch goes on until they have ended.
            ended: self.all || ended || name.is_some() || self.watch || chosen,
        });
        let list = list.with_columns(&self.columns)?;
        list.sort(self.sort.as_deref(), &mut [])?;
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
        // What a table has by default is not in the spec.
        let view = match self.output {
            _ if chosen || self.sort.is_some() => v1::JobView::Full,
            Format::Table => v1::JobView::Basic,
            Format::Name => v1::JobView::Name,
            Format::Wide | Format::Json | Format::Yaml => v1::JobView::Full,
        };
        let (mut jobs, more) = filter.list(client, view, self.fetched()).await?;
        list.sort(self.sort.as_deref(), &mut jobs)?;
        self.cut(&mut jobs, more);
        if matches!(self.output, Format::Json | Format::Yaml) && self.sort.is_none() {
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

    /// A job's attempts, and whether there are more than are fetched.
    async fn list_attempts(&self, client: &Client, job: u64) -> Result<(Vec<v1::Attempt>, bool), Failure> {
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
            if is_last || self.fetched().is_some_and(|limit| attempts.len() >= limit) {
                return Ok((attempts, !is_last));
            }
            request.page_token = page.next_page_token;
        }
    }

    /// The ranges of a job's units, and whether there are more than are fetched.
    async fn list_units(&self, client: &Client, job: u64) -> Result<(Vec<v1::Units>, bool), Failure> {
        let failed = self.failed.then_some(v1::UnitState::Failed as i32);
        let mut request = v1::ListUnitsRequest {
            job: Some(v1::JobRef { id: job, ..v1::JobRef::default() }),
            states: failed.into_iter().collect(),
            page_size: 1_000,
            page_token: String::new(),
        };
        let mut units: Vec<v1::Units> = Vec::new();
        loop {
            let page = client.jobs().list_units(request.clone()).await?.into_inner();
            for range in page.units {
                // A page may end within a range.
                match units.last_mut() {
                    Some(last)
                        if last.last.checked_add(1) == Some(range.first)
                            && (last.state, &last.outcome) == (range.state, &range.outcome) =>
                    {
                        last.last = range.last;
                    }
                    _ => units.push(range),
                }
            }
            let is_last = page.next_page_token.is_empty();
            if is_last || self.fetched().is_some_and(|limit| units.len() >= limit) {
                return Ok((units, !is_last));
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

    async fn list_nodes(
        &self,
        client: &Client,
        name: Option<&str>,
    ) -> Result<(Vec<v1::Node>, bool), Failure> {
        let pool = self.pool.first().map(String::as_str);
        list_nodes(client, pool, name, self.fetched()).await
    }
}

/// All pools, or the one with this name.
async fn list_pools(client: &Client, name: Option<&str>) -> Result<(Vec<v1::Pool>, bool), Failure> {
    let pools = match name {
        Some(name) => {
            let request = v1::GetPoolRequest { name: name.to_owned() };
            client.pools().get_pool(request).await?.into_inner().pool.into_iter().collect()
        }
        None => all_pools(client).await?,
    };
    Ok((pools, false))
}

pub(super) async fn all_pools(client: &Client) -> Result<Vec<v1::Pool>, Failure> {
    Ok(client.pools().list_pools(v1::ListPoolsRequest {}).await?.into_inner().pools)
}

/// All queues, or the one with this name.
async fn list_queues(client: &Client, name: Option<&str>) -> Result<(Vec<v1::Queue>, bool), Failure> {
    let queues = match name {
        Some(name) => {
            let request = v1::GetQueueRequest { name: name.to_owned() };
            client.queues().get_queue(request).await?.into_inner().queue.into_iter().collect()
        }
        None => all_queues(client).await?,
    };
    Ok((queues, false))
}

pub(super) async fn all_queues(client: &Client) -> Result<Vec<v1::Queue>, Failure> {
    Ok(client.queues().list_queues(v1::ListQueuesRequest {}).await?.into_inner().queues)
}

/// The nodes of a pool, or of all, or those with this name if one is given; and whether there are more than `limit`.
pub(super) async fn list_nodes(
    client: &Client,
    pool: Option<&str>,
    name: Option<&str>,
    limit: Option<usize>,
) -> Result<(Vec<v1::Node>, bool), Failure> {
    let pools = match pool {
        Some(pool) => vec![pool.to_owned()],
        None => all_pools(client).await?.into_iter().map(|pool| pool.name).collect(),
    };
    if let Some(name) = name {
        return Ok((nodes_named(client, &pools, name).await?, false));
    }
    let (mut nodes, mut more) = (Vec::new(), false);
    for pool in pools {
        let mut request = v1::ListNodesRequest { pool, page_size: 500, page_token: String::new() };
        while !more {
            let page = client.pools().list_nodes(request.clone()).await?.into_inner();
            nodes.extend(page.nodes);
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
            more = limit.is_some_and(|limit| nodes.len() > limit);
        }
    }
    Ok((nodes, more))
}

/// The nodes of this name, of which each pool may have one.
async fn nodes_named(client: &Client, pools: &[String], name: &str) -> Result<Vec<v1::Node>, Failure> {
    let mut nodes = Vec::new();
    for pool in pools {
        let request = v1::GetNodeRequest { pool: pool.clone(), name: name.to_owned() };
        match client.pools().get_node(request).await {
            Ok(response) => nodes.extend(response.into_inner().node),
            Err(status) if status.code() == Code::NotFound && pools.len() > 1 => {}
            Err(status) => return Err(status.into()),
        }
    }
    if nodes.is_empty() {
        return Err(Failure::new(NOT_FOUND, format!("node {} does not exist", quote(name))));
    }
    Ok(nodes)
}
