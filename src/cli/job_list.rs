//! Which jobs a command means: by reference, or by what they have in common.

use super::connect::{RETRY_TIMEOUT, with_retries};
use super::exit::{NOT_FOUND, SEPARATOR, USAGE};
use super::output::{now_ms, report};
use super::{Connect, Failure, quantity, selector};
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::queue::DEFAULT_QUEUE;

/// The flags that select jobs.
#[derive(clap::Args, Default)]
pub(super) struct Selection {
    /// Only jobs whose labels meet this: KEY=VALUE, KEY!=VALUE, KEY, !KEY, 'KEY in (A, B)', 'KEY notin (A, B)',
    /// several separated by commas. May be repeated: jobs must meet all.
    #[arg(long, short, value_name = "SELECTOR")]
    pub(super) label: Vec<String>,
    /// Only jobs in this state, several separated by commas: pending, running, cancelling, failing, succeeded, failed,
    /// cancelled. Of those that only ended jobs have, --all is not needed.
    #[arg(long, visible_alias = "phase", value_name = "STATE", value_delimiter = ',', value_parser = parse_state)]
    pub(super) state: Vec<v1::JobPhase>,
    /// Only jobs that were submitted at most this long ago: 90s, 5m, 2d.
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration_ms)]
    pub(super) since: Option<u64>,
    /// Only jobs that ended at most this long ago: 90s, 5m, 2d.
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration_ms)]
    pub(super) ended_since: Option<u64>,
    /// Also jobs of the queues below --queue.
    #[arg(long)]
    pub(super) subtree: bool,
    /// Only jobs that run, or ran, in these regions, comma-separated.
    #[arg(long, value_name = "REGION", value_delimiter = ',')]
    pub(super) region: Vec<String>,
    /// Only jobs whose first failed unit ended with this code, several separated by commas: Failed, OutOfMemory,
    /// TimedOut. See weir explain.
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    pub(super) outcome: Vec<String>,
    /// Only jobs whose name begins with this.
    #[arg(long, value_name = "TEXT")]
    pub(super) name_prefix: Option<String>,
    /// Only jobs that this principal submitted.
    #[arg(long, value_name = "NAME")]
    pub(super) submitted_by: Option<String>,
}

impl Selection {
    /// The filter of these flags, for a queue, or all if it is empty, and for pools.
    ///
    /// # Errors
    /// If a flag can't be read.
    pub(super) fn filter(
        &self,
        queue: &str,
        pools: &[String],
        with_ended: bool,
    ) -> Result<JobFilter, Failure> {
        let ago = |ms: Option<u64>| ms.map_or(0, |ms| now_ms().saturating_sub(ms).max(1));
        let message = v1::JobFilter {
            labels: selector::parse(&self.label)?,
            phases: self.state.iter().map(|state| *state as i32).collect(),
            subtree: self.subtree,
            submitted_from_unix_ms: ago(self.since),
            ended_from_unix_ms: ago(self.ended_since),
            pools: pools.to_vec(),
            regions: self.region.clone(),
            outcomes: self.outcome.clone(),
            name_prefix: self.name_prefix.clone().unwrap_or_default(),
            submitted_by: self.submitted_by.clone().unwrap_or_default(),
            with_ended,
            ..JobFilter::of_queue(queue).message
        };
        Ok(JobFilter { message })
    }

    /// The first flag of those that a watch can't apply to each change.
    pub(super) fn not_watched(&self) -> Option<&'static str> {
        [
            ("--since", self.since.is_some()),
            ("--ended-since", self.ended_since.is_some()),
            ("--subtree", self.subtree),
            ("--region", !self.region.is_empty()),
            ("--outcome", !self.outcome.is_empty()),
            ("--name-prefix", self.name_prefix.is_some()),
            ("--submitted-by", self.submitted_by.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, is_set)| is_set.then_some(flag))
    }

    /// The first flag that is set.
    pub(super) fn first_set(&self) -> Option<&'static str> {
        let first = [("--label", !self.label.is_empty()), ("--state", !self.state.is_empty())];
        first.into_iter().find_map(|(flag, is_set)| is_set.then_some(flag)).or_else(|| self.not_watched())
    }

    /// Returns whether the flags name something that only ended jobs have.
    pub(super) fn names_ended(&self) -> bool {
        self.ended_since.is_some() || self.state.iter().any(|state| ENDED.contains(state))
    }
}

/// The jobs that a command changes: named, or selected by flags.
#[derive(clap::Args, Default)]
pub(super) struct Targets {
    /// Jobs: job/NAME, job/QUEUE/NAME or the id.
    pub(super) jobs: Vec<String>,
    /// All jobs; with --queue, those of that queue.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    selection: Selection,
}

impl Targets {
    /// Finds the jobs, and what is wrong with the first name that has none: the others are changed nevertheless.
    ///
    /// # Errors
    /// If none is named or selected, or both ways are used at once, and as the broker does.
    pub(super) async fn find(
        &self,
        client: &Client,
        connect: &Connect,
    ) -> Result<(Vec<v1::Job>, Option<Failure>), Failure> {
        let selected_by = self.selection.first_set().or(self.all.then_some("--all"));
        match selected_by {
            Some(flag) if !self.jobs.is_empty() => {
                return Err(Failure::new(USAGE, format!("{flag} selects jobs: name none beside it")));
            }
            None if self.jobs.is_empty() => {
                let message =
                    "name jobs, or select them with --label, --state or another such flag, or --all";
                return Err(Failure::new(USAGE, message));
            }
            _ => {}
        }
        if self.jobs.is_empty() {
            let filter = self.selection.filter(&connect.queue, &[], false)?;
            let jobs = filter.list(client, v1::JobView::Basic, None).await?.0;
            if jobs.is_empty() {
                report("no such job waits or runs");
                connect.warn_if_read_only().await;
            }
            return Ok((jobs, None));
        }
        let references = self.jobs.iter().map(|text| connect.job_ref(text)).collect::<Result<Vec<_>, _>>()?;
        let (mut jobs, mut missing) = (Vec::new(), None::<Failure>);
        for reference in references {
            match find_job_with_retries(client, reference).await {
                Err(failure) if failure.code == NOT_FOUND => match &mut missing {
                    Some(first) => first.message.push_str(&format!("{SEPARATOR}{}", failure.message)),
                    None => missing = Some(failure),
                },
                found => jobs.push(found?),
            }
        }
        Ok((jobs, missing))
    }
}

/// The states that `--state` takes.
const STATES: [v1::JobPhase; 7] = [
    v1::JobPhase::Pending,
    v1::JobPhase::Running,
    v1::JobPhase::Cancelling,
    v1::JobPhase::Failing,
    v1::JobPhase::Succeeded,
    v1::JobPhase::Failed,
    v1::JobPhase::Cancelled,
];
/// States of jobs that are only listed with those that have ended.
const ENDED: [v1::JobPhase; 3] = [v1::JobPhase::Succeeded, v1::JobPhase::Failed, v1::JobPhase::Cancelled];

fn state_name(phase: v1::JobPhase) -> String {
    phase.as_str_name().trim_start_matches("JOB_PHASE_").to_lowercase()
}

/// The states of jobs, as users write them.
pub(super) fn state_names() -> impl Iterator<Item = String> {
    STATES.into_iter().map(state_name)
}

fn parse_state(text: &str) -> Result<v1::JobPhase, String> {
    let found = STATES.into_iter().find(|state| state_name(*state) == text.to_lowercase());
    found.ok_or_else(|| format!("use {}", STATES.map(state_name).join(", ")))
}

/// Which jobs a command means that names none.
pub(super) struct JobFilter {
    pub(super) message: v1::JobFilter,
}

impl JobFilter {
    /// The live jobs of a queue. Users who don't use queues expect all jobs, so the default queue selects those of all.
    pub(super) fn of_queue(queue: &str) -> Self {
        let queues =
            if queue.is_empty() || queue == DEFAULT_QUEUE { Vec::new() } else { vec![queue.to_owned()] };
        Self { message: v1::JobFilter { queues, ..v1::JobFilter::default() } }
    }

    /// Lists the jobs, the newest first, and whether there are more than `limit`.
    pub(super) async fn list(
        self,
        client: &Client,
        view: v1::JobView,
        limit: Option<usize>,
    ) -> Result<(Vec<v1::Job>, bool), Failure> {
        let mut request = v1::ListJobsRequest {
            filter: Some(self.message),
            view: view.into(),
            page_size: limit.map_or(500, |limit| u32::try_from(limit.clamp(1, 500)).unwrap_or(500)),
            page_token: String::new(),
        };
        let mut jobs: Vec<v1::Job> = Vec::new();
        loop {
            let page = client.jobs().list_jobs(request.clone()).await;
            let page = page.map_err(|status| Failure::from(status).with_fields(as_flag))?.into_inner();
            jobs.extend(page.jobs);
            let is_last = page.next_page_token.is_empty();
            if is_last || limit.is_some_and(|limit| jobs.len() >= limit) {
                return Ok((jobs, !is_last));
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Returns whether a change of a job is to be printed.
    pub(super) fn matches(&self, job: &v1::Job) -> bool {
        let filter = &self.message;
        let none = std::collections::BTreeMap::new();
        let labels = job.spec.as_ref().map_or(&none, |spec| &spec.labels);
        (filter.queues.is_empty() || filter.queues.contains(&job.queue))
            && filter.labels.iter().all(|label| selector::is_met(label, labels))
            && (filter.phases.is_empty() || filter.phases.contains(&job.phase))
            && (filter.pools.is_empty() || job.pools.iter().any(|pool| filter.pools.contains(pool)))
    }
}

/// A field of a filter as the flag that sets it.
pub(super) fn as_flag(field: &str) -> String {
    let name = field.strip_prefix("filter.").unwrap_or(field);
    let name = name.split(['[', '.']).next().unwrap_or(name);
    let flag = match name {
        "queues" => "queue",
        "phases" => "state",
        "labels" => "label",
        "pools" => "pool",
        "regions" => "region",
        "outcomes" => "outcome",
        "name_prefix" => "name-prefix",
        "submitted_by" => "submitted-by",
        "submitted_from_unix_ms" | "submitted_before_unix_ms" => "since",
        "ended_from_unix_ms" | "ended_before_unix_ms" => "ended-since",
        "by" => "by",
        _ => return field.to_owned(),
    };
    format!("--{flag}")
}

/// Fetches a job for a command that changes something: such commands wait for a broker that restarts.
pub(super) async fn find_job_with_retries(client: &Client, at: v1::JobRef) -> Result<v1::Job, Failure> {
    let request = v1::GetJobRequest { job: Some(at), with_attempts: false };
    let call = || async { client.jobs().get_job(request.clone()).await };
    Ok(with_retries(RETRY_TIMEOUT, call).await?.into_inner().job.unwrap_or_default())
}

/// Fetches a job by reference, without its attempts.
pub(super) async fn find_job(client: &Client, at: v1::JobRef) -> Result<v1::Job, Failure> {
    let request = v1::GetJobRequest { job: Some(at), with_attempts: false };
    Ok(client.jobs().get_job(request).await?.into_inner().job.unwrap_or_default())
}
