//! `weir submit`: submits the jobs of a file.

use std::collections::BTreeMap;
use std::ops::Range;

use prost::Message;

use super::connect::{RETRY_TIMEOUT, job_name, new_token, with_retries};
use super::input::Problem;
use super::job_file::{FileJob, JobsFile, NamedDependency, read_jobs};
use super::job_list::find_job_with_retries;
use super::output::print;
use super::{Connect, Failure, input};
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::limit::MESSAGE_BYTES_MAX;
use crate::model::validate::quote;

/// Submit jobs from a YAML or JSON file.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir submit train.yaml\n  weir submit -f train.yaml\n  ./make-jobs | weir submit -\n\nA file contains one job, a list of jobs, or several YAML documents:\n  name: hello\n  groups:\n  - count: 3\n    cpus: 500m\n    memory: 64Mi\n    command: [sh, -c, 'echo task $WEIR_TASK_INDEX in $WEIR_REGION']\n\nA job that waits for one before it in the file, or for one submitted earlier:\n  depends_on: [{job: hello}]         succeeded; or condition: any, failed"
)]
pub struct Submit {
    #[command(flatten)]
    file: input::FileArgument,
    /// Also submit jobs that no present pool can ever run: they wait for a pool that can.
    #[arg(long)]
    allow_pending: bool,
    /// Hold the jobs: they start nothing until `weir release` releases them.
    #[arg(long)]
    hold: bool,
}

/// Jobs in one request: half of what the broker accepts.
const BATCH: usize = 500;
/// Bytes of the jobs in one request: half of what the broker accepts.
const BATCH_BYTES: usize = MESSAGE_BYTES_MAX / 2;

/// Number of jobs in the next request. At least one, even if it is larger than the broker accepts.
fn batch_len(jobs: &[FileJob]) -> usize {
    let mut bytes = 0;
    let fitting = jobs.iter().take(BATCH).take_while(|job| {
        bytes += job.submission.encoded_len();
        bytes <= BATCH_BYTES
    });
    fitting.count().max(1)
}

impl Submit {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let file = self.file.name();
        let text = input::read_text(&file)?;
        let mut jobs = read_jobs(&text).map_err(|problems| input::failure(&file, &problems))?;
        for job in &mut jobs.jobs {
            if job.submission.queue.is_empty() {
                job.submission.queue = connect.queue.clone();
            }
        }
        check_order(&jobs).map_err(|problems| input::failure(&file, &problems))?;
        let client = connect.client()?;
        // Before anything is submitted: a wrong name must not leave half of a pipeline.
        let mut ids = find_others(&client, &file, &jobs).await?;
        let mut submitted = 0;
        for index in 0..jobs.jobs.len() {
            let after = std::mem::take(&mut jobs.jobs[index].after);
            // What a job depends on has a number once it is submitted.
            if !after.is_empty() {
                self.submit(&client, &file, &jobs, submitted..index, &mut ids).await?;
                submitted = index;
            }
            let submission = &mut jobs.jobs[index].submission;
            let id =
                |dependency: &NamedDependency| ids.get(&key(&submission.queue, &dependency.job)).copied();
            let edge = |dependency: &NamedDependency| {
                Some(v1::Dependency {
                    job_id: id(dependency)?,
                    condition: dependency.condition,
                    ..v1::Dependency::default()
                })
            };
            let edges: Vec<v1::Dependency> = after.iter().filter_map(edge).collect();
            submission.spec.get_or_insert_default().depends_on.extend(edges);
        }
        self.submit(&client, &file, &jobs, submitted..jobs.jobs.len(), &mut ids).await?;
        Ok(0)
    }

    /// Submits some of the jobs, prints their names, and records their numbers.
    async fn submit(
        &self,
        client: &Client,
        file: &str,
        jobs: &JobsFile,
        which: Range<usize>,
        ids: &mut Ids,
    ) -> Result<(), Failure> {
        let mut next = which.start;
        while next < which.end {
            let rest = &jobs.jobs[next..which.end];
            let batch = &rest[..batch_len(rest)];
            let held = self.hold;
            let asked = batch.iter().map(|job| v1::Submission { held, ..job.submission.clone() }).collect();
            let request =
                v1::SubmitRequest { token: new_token(), jobs: asked, allow_pending: self.allow_pending };
            let call = || async { client.jobs().submit(request.clone()).await };
            let response = with_retries(RETRY_TIMEOUT, call).await;
            let response = response.map_err(|status| {
                let failure = located(status.into(), file, jobs, batch);
                if next == 0 {
                    return failure;
                }
                let all = jobs.jobs.len();
                let hint = failure.hint.as_ref().map_or_else(String::new, |hint| format!("; {hint}"));
                failure.hint(format!("the first {next} of {all} jobs of the file were submitted{hint}"))
            })?;
            // The response lists one job per submission, in the same order.
            for (job, asked) in response.into_inner().jobs.iter().zip(&request.jobs) {
                ids.insert((asked.queue.clone(), job.name.clone()), job.id);
                print(&format!("{}\n", job_name(&asked.queue, &job.name)))?;
            }
            next += batch.len();
        }
        Ok(())
    }
}

/// A failure of a batch, with the fields as they are in the file.
fn located(failure: Failure, file: &str, jobs: &JobsFile, batch: &[FileJob]) -> Failure {
    let mut problems = Vec::new();
    for (field, description) in &failure.fields {
        let inner = field.strip_prefix("jobs[").and_then(|rest| rest.split_once(']'));
        let job = inner.and_then(|(index, _)| batch.get(index.parse::<usize>().ok()?));
        if let (Some((_, field)), Some(job)) = (inner, job) {
            problems.extend(jobs.located(job, field.trim_start_matches('.'), description));
        }
    }
    input::relocated(failure, file, &problems)
}

/// The numbers of the jobs that those of the file depend on and that are not in it, by queue and name.
async fn find_others(client: &Client, file: &str, jobs: &JobsFile) -> Result<Ids, Failure> {
    let (own, mut ids) = (positions(&jobs.jobs), Ids::new());
    for (job, dependency) in jobs.jobs.iter().flat_map(|job| job.after.iter().map(move |after| (job, after)))
    {
        let queue = &job.submission.queue;
        let key = key(queue, &dependency.job);
        if own.contains_key(&key) || ids.contains_key(&key) {
            continue;
        }
        let (queue, name) = key.clone();
        let found = find_job_with_retries(client, v1::JobRef { id: 0, queue, name }).await;
        let named = |failure: Failure| {
            let problems = jobs.located(job, &dependency.field, &failure.message);
            input::relocated(failure, file, &problems)
        };
        ids.insert(key, found.map_err(named)?.id);
    }
    Ok(ids)
}

/// Numbers of jobs by queue and name.
type Ids = BTreeMap<(String, String), u64>;

/// The queue and the name of a job that a job of `queue` refers to.
fn key(queue: &str, job: &str) -> (String, String) {
    let job = job.strip_prefix("job/").unwrap_or(job);
    let (queue, name) = job.rsplit_once('/').unwrap_or((queue, job));
    (queue.to_owned(), name.to_owned())
}

/// The positions of jobs in their file, by queue and name.
fn positions(jobs: &[FileJob]) -> BTreeMap<(String, String), usize> {
    let name = |job: &FileJob| (job.submission.queue.clone(), job.submission.name.clone());
    jobs.iter().enumerate().map(|(index, job)| (name(job), index)).collect()
}

/// Checks, before anything is submitted, that no name is used twice in a queue, and that no job depends on itself or one that
/// comes after it in the file.
fn check_order(jobs: &JobsFile) -> Result<(), Vec<Problem>> {
    let at = positions(&jobs.jobs);
    for (index, job) in jobs.jobs.iter().enumerate() {
        let name = &job.submission.name;
        let own = at.get(&(job.submission.queue.clone(), name.clone()));
        if !name.is_empty() && own != Some(&index) {
            let message = format!("{} is used again further down in this file", quote(name));
            return Err(jobs.located(job, "name", &message));
        }
        for dependency in &job.after {
            let of = at.get(&key(&job.submission.queue, &dependency.job));
            if of.is_some_and(|of| *of >= index) {
                let message = format!("{} comes later in the file: put it before", quote(&dependency.job));
                return Err(jobs.located(job, &dependency.field, &message));
            }
        }
    }
    Ok(())
}
