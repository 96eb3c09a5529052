//! Which jobs a command means: by reference, or by queue and labels.

use std::collections::BTreeMap;

use super::Failure;
use super::connect::{RETRY_TIMEOUT, with_retries};
use super::exit::INVALID;
use super::output::now_ms;
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::queue::DEFAULT_QUEUE;
use crate::model::text;
use crate::model::validate::quote;

/// Which jobs a command means that names none.
pub(super) struct JobFilter {
    /// Empty selects all queues.
    pub(super) queue: String,
    labels: BTreeMap<String, String>,
    /// Empty selects jobs in any state.
    pub(super) states: Vec<v1::JobPhase>,
    /// Only jobs that were submitted at most so long ago.
    pub(super) since_ms: Option<u64>,
}

impl JobFilter {
    /// The jobs of a queue that have all labels. Users who don't use queues expect all jobs, so the default queue selects
    /// those of all.
    ///
    /// # Errors
    /// If a label selector can't be read.
    pub(super) fn of(queue: &str, labels: &[String]) -> Result<Self, Failure> {
        let queue = if queue == DEFAULT_QUEUE { String::new() } else { queue.to_owned() };
        Ok(Self { queue, labels: selected_labels(labels)?, states: Vec::new(), since_ms: None })
    }

    /// Lists the jobs, the newest first, and whether there are more than `limit`.
    pub(super) async fn list(
        self,
        client: &Client,
        with_ended: bool,
        limit: Option<usize>,
    ) -> Result<(Vec<v1::Job>, bool), Failure> {
        let mut request = v1::ListJobsRequest {
            queue: self.queue,
            labels: self.labels,
            phases: self.states.iter().map(|state| *state as i32).collect(),
            with_ended,
            page_size: 500,
            ..v1::ListJobsRequest::default()
        };
        let since = self.since_ms.map_or(0, |ms| now_ms().saturating_sub(ms));
        let mut jobs: Vec<v1::Job> = Vec::new();
        loop {
            let page = client.jobs().list_jobs(request.clone()).await?.into_inner();
            // The newest come first.
            let older = page.jobs.iter().position(|job| job.submitted_unix_ms < since);
            jobs.extend(page.jobs.into_iter().take(older.unwrap_or(usize::MAX)));
            let is_last = page.next_page_token.is_empty() || older.is_some();
            if is_last || limit.is_some_and(|limit| jobs.len() >= limit) {
                return Ok((jobs, !is_last));
            }
            request.page_token = page.next_page_token;
        }
    }

    pub(super) fn matches(&self, job: &v1::Job) -> bool {
        let labels = job.spec.as_ref().map(|spec| &spec.labels);
        let has = |(key, value): (&String, &String)| labels.and_then(|labels| labels.get(key)) == Some(value);
        (self.queue.is_empty() || self.queue == job.queue)
            && self.labels.iter().all(has)
            && (self.states.is_empty() || self.states.contains(&job.phase()))
    }
}

/// Parses label selectors: `KEY=VALUE`, several separated by commas.
fn selected_labels(selectors: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut labels = BTreeMap::new();
    for part in selectors.iter().flat_map(|selector| selector.split(',')) {
        let pair = part
            .split_once('=')
            .filter(|(key, value)| !key.is_empty() && text::is_label(key) && text::is_label(value));
        let Some((key, value)) = pair else {
            let allowed = "write KEY=VALUE, or several separated by commas; jobs must have all of them";
            return Err(Failure::new(INVALID, format!("--label {}: {allowed}", quote(part))));
        };
        if labels.insert(key.to_owned(), value.to_owned()).is_some_and(|before| before != value) {
            let both = format!("--label: {} is selected with two values, which no job has", quote(key));
            return Err(Failure::new(INVALID, both));
        }
    }
    Ok(labels)
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
