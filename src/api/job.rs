//! JobService.

use std::pin::Pin;
use std::time::Duration;

use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert::{self, parse_phase};
use super::proto::v1;
use super::{error, mutation};
use crate::broker::{Answer, JobFilter, JobRef, Query};
use crate::model::change::Change;
use crate::model::id::{JobId, Revision};
use crate::model::limit::{PAGE_DEFAULT, PAGE_MAX};
use crate::model::queue::DEFAULT_QUEUE;
use crate::runtime::broker::Handle;
use crate::runtime::logs::{Ask, Stream as LogStream};
use crate::runtime::watch::Missed;
use crate::state::command::{Command, Submission};
use crate::state::decide::Reply;
use crate::state::view::{AttemptPhase, AttemptView, JobView};

/// The service.
pub struct Jobs {
    pub broker: Handle,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Messages of a stream that wait for a slow reader; it waits then, not the broker.
const STREAM_MAX: usize = 16;
/// Bytes of output in one message.
const LOG_BYTES: u32 = 64 * 1024;
/// How often a followed log is looked at: at first soon, for what ends soon, then less and less.
const FOLLOW_WAIT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// Wait for an agent that is away while its output is read.
const AGENT_WAIT: Duration = Duration::from_millis(500);

#[tonic::async_trait]
impl v1::job_service_server::JobService for Jobs {
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let message = request.into_inner();
        let mut jobs = Vec::with_capacity(message.jobs.len());
        for (index, submission) in message.jobs.iter().enumerate() {
            let spec = submission.spec.clone().unwrap_or_default();
            let mut spec =
                convert::job_spec(&format!("jobs[{index}].spec"), &spec).map_err(error::invalid)?;
            self.settle_dependencies(&mut spec).await?;
            jobs.push(Submission {
                name: submission.name.clone(),
                name_prefix: submission.name_prefix.clone(),
                queue: submission.queue.clone(),
                spec,
            });
        }
        let named: Vec<(String, String)> =
            jobs.iter().map(|job| (job.name.clone(), job.name_prefix.clone())).collect();
        let fingerprint = v1::SubmitRequest { token: String::new(), ..message.clone() }.encode_to_vec();
        let request = mutation(&message.token, "Submit", &fingerprint, Command::Submit { jobs })?;
        let (reply, revision) = self.broker.request(request).await.map_err(error::call)?;
        let Reply::Submitted { first, .. } = reply else {
            return Err(Status::internal("submit gave no jobs"));
        };
        let jobs = named.into_iter().enumerate().map(|(index, (name, prefix))| {
            let id = first.0 + index as u64;
            let prefix = if prefix.is_empty() { "job" } else { &prefix };
            v1::SubmittedJob { id, name: if name.is_empty() { format!("{prefix}-{id}") } else { name } }
        });
        Ok(Response::new(v1::SubmitResponse { jobs: jobs.collect(), revision: revision.0 }))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        let message = request.into_inner();
        let job = self.find(message.job.as_ref()).await?;
        let attempts = if message.with_attempts { self.attempts(&job).await? } else { Vec::new() };
        Ok(Response::new(v1::GetJobResponse {
            job: Some(convert::job_message(&job)),
            attempts: attempts.iter().map(convert::attempt_message).collect(),
        }))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let message = request.into_inner();
        let before =
            match message.page_token.as_str() {
                "" => JobId(u64::MAX),
                text => JobId(text.parse().map_err(|_| {
                    error::invalid(convert::invalid("page_token", "is not from a page before"))
                })?),
            };
        let limit = page_size(message.page_size)?;
        let phases = message.phases.iter().map(|value| parse_phase("phases", *value));
        let filter = JobFilter {
            queue: (!message.queue.is_empty()).then(|| message.queue.clone()),
            phases: phases.collect::<Result<_, _>>().map_err(error::invalid)?,
            labels: message.labels.clone().into_iter().collect(),
        };
        let query = Query::Jobs { filter: filter.clone(), before, limit };
        let (revision, answer) = self.broker.query(query).await.map_err(error::call)?;
        let Answer::Jobs { mut jobs, mut next } = answer else { return Err(Status::internal("no list")) };
        if message.with_ended {
            (jobs, next) = self.with_ended(filter, jobs, next, before, limit).await?;
        }
        Ok(Response::new(v1::ListJobsResponse {
            jobs: jobs.iter().map(convert::job_message).collect(),
            next_page_token: next.map(|id| id.to_string()).unwrap_or_default(),
            revision: revision.0,
        }))
    }

    type WatchJobsStream = Streamed<v1::WatchJobsResponse>;

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let message = request.into_inner();
        let only = match &message.job {
            Some(_) => Some(self.find(message.job.as_ref()).await?.id),
            None => None,
        };
        let (sender, receiver) = mpsc::channel(STREAM_MAX);
        let jobs = Self { broker: self.broker.clone() };
        tokio::spawn(async move { jobs.watch(only, Revision(message.from_revision), sender).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::CancelResponse>, Status> {
        let message = request.into_inner();
        let mut jobs = Vec::new();
        for at in &message.jobs {
            jobs.push(self.find(Some(at)).await?.id);
        }
        let fingerprint = v1::CancelRequest { token: String::new(), ..message.clone() }.encode_to_vec();
        let request = mutation(&message.token, "Cancel", &fingerprint, Command::Cancel { jobs })?;
        let (_, revision) = self.broker.request(request).await.map_err(error::call)?;
        Ok(Response::new(v1::CancelResponse { revision: revision.0 }))
    }

    async fn why(&self, request: Request<v1::WhyRequest>) -> Result<Response<v1::WhyResponse>, Status> {
        let job = self.find(request.into_inner().job.as_ref()).await?;
        let (_, answer) = self.broker.query(Query::Why(JobRef::Id(job.id))).await.map_err(error::call)?;
        let Answer::Why(why) = answer else { return Err(Status::internal("no reasons")) };
        let ended =
            || v1::WhyResponse { job: Some(convert::job_message(&job)), ..v1::WhyResponse::default() };
        Ok(Response::new(why.map_or_else(ended, |why| convert::why_message(&why))))
    }

    type LogsStream = Streamed<v1::LogsResponse>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let message = request.into_inner();
        let job = self.find(message.job.as_ref()).await?;
        if message.unit >= job.counts.total {
            let description = format!("{} is not within 0 and {}", message.unit, job.counts.total - 1);
            return Err(error::invalid(convert::invalid("unit", description)));
        }
        let (sender, receiver) = mpsc::channel(STREAM_MAX);
        let jobs = Self { broker: self.broker.clone() };
        tokio::spawn(async move {
            if let Err(status) = jobs.stream_logs(&job, &message, &sender).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// The size of a page that is asked for.
pub(super) fn page_size(asked: u32) -> Result<usize, Status> {
    match asked as usize {
        0 => Ok(PAGE_DEFAULT),
        size if size <= PAGE_MAX => Ok(size),
        size => Err(error::invalid(convert::invalid(
            "page_size",
            format!("{size} is not within 0 and {PAGE_MAX}"),
        ))),
    }
}

impl Jobs {
    /// Edges to jobs that have ended are met already, or never will be.
    async fn settle_dependencies(&self, spec: &mut crate::model::spec::JobSpec) -> Result<(), Status> {
        use crate::model::spec::DependencyCondition;
        use crate::state::job::JobEnd;
        let mut pending = Vec::new();
        for edge in std::mem::take(&mut spec.depends_on) {
            let id = edge.job;
            let ended = self.broker.archive(move |archive| archive.job(id)).await.map_err(error::call)?;
            match ended.map(|job| job.end) {
                None => pending.push(edge),
                Some(end) => {
                    let met = match edge.condition {
                        DependencyCondition::Any => true,
                        DependencyCondition::Succeeded => end == JobEnd::Succeeded,
                        DependencyCondition::Failed => end == JobEnd::Failed,
                    };
                    if !met {
                        let description = format!("job {id} has ended otherwise than the condition asks");
                        return Err(error::invalid(convert::invalid("spec.depends_on", description)));
                    }
                }
            }
        }
        spec.depends_on = pending;
        Ok(())
    }

    /// A job, alive or ended.
    async fn find(&self, at: Option<&v1::JobRef>) -> Result<JobView, Status> {
        let at = at.ok_or_else(|| error::invalid(convert::invalid("job", "is missing")))?;
        if at.id == 0 && at.name.is_empty() {
            return Err(error::invalid(convert::invalid("job", "name it by id, or by queue and name")));
        }
        let queue = if at.queue.is_empty() { DEFAULT_QUEUE.to_owned() } else { at.queue.clone() };
        let reference = if at.id > 0 {
            JobRef::Id(JobId(at.id))
        } else {
            JobRef::Named { queue: queue.clone(), name: at.name.clone() }
        };
        let (_, answer) = self.broker.query(Query::Job(reference)).await.map_err(error::call)?;
        if let Answer::Job(Some(job)) = answer {
            return Ok(*job);
        }
        let (id, name) = (at.id, at.name.clone());
        let found = self.broker.archive(move |archive| {
            if id > 0 { archive.job(JobId(id)) } else { archive.job_named(&queue, &name) }
        });
        let found = found.await.map_err(error::call)?;
        let called = if at.id > 0 { at.id.to_string() } else { at.name.clone() };
        found.map(|job| job.view()).ok_or_else(|| error::not_found("job", &called))
    }

    /// A job's attempts, ended ones first, at most a page.
    async fn attempts(&self, job: &JobView) -> Result<Vec<AttemptView>, Status> {
        let id = job.id;
        let query = Query::Attempts { job: id, after: None, limit: PAGE_MAX };
        let (_, answer) = self.broker.query(query).await.map_err(error::call)?;
        let Answer::Attempts(live) = answer else { return Err(Status::internal("no attempts")) };
        let (_, status) = self.broker.query(Query::Status).await.map_err(error::call)?;
        let Answer::Status { journal, .. } = status else { return Err(Status::internal("no status")) };
        // The archive begins after unit and number; (0, 0) is before the first attempt.
        let ended = self.broker.archive(move |archive| archive.attempts(id, (0, 0), PAGE_MAX));
        let ended = ended.await.map_err(error::call)?;
        let mut all: Vec<AttemptView> = ended.iter().map(|attempt| attempt.view(journal)).collect();
        let fresh = live.into_iter().filter(|live| !ended.iter().any(|e| e.attempt.id(journal) == live.id));
        let fresh: Vec<AttemptView> = fresh.collect();
        all.extend(fresh);
        all.sort_by_key(|attempt| (attempt.id.unit, attempt.id.number));
        all.truncate(PAGE_MAX);
        Ok(all)
    }

    /// Merges a page of live jobs with one of ended jobs, newest first.
    async fn with_ended(
        &self,
        filter: JobFilter,
        live: Vec<JobView>,
        next: Option<JobId>,
        before: JobId,
        limit: usize,
    ) -> Result<(Vec<JobView>, Option<JobId>), Status> {
        let queue = filter.queue.clone();
        let ended = self.broker.archive(move |archive| archive.jobs(queue.as_deref(), before, limit));
        let ended = ended.await.map_err(error::call)?;
        let full = ended.len() == limit;
        let ended_to = ended.last().map(|job| job.job.id);
        // Both lists are complete down to the larger of where each stops.
        let floor = next.max(if full { ended_to } else { None });
        let mut jobs: Vec<JobView> =
            ended.iter().map(|job| job.view()).filter(|job| filter.matches(job)).collect();
        let fresh: Vec<JobView> =
            live.into_iter().filter(|job| !jobs.iter().any(|other| other.id == job.id)).collect();
        jobs.extend(fresh);
        jobs.retain(|job| floor.is_none_or(|floor| job.id >= floor));
        jobs.sort_by_key(|job| std::cmp::Reverse(job.id));
        let cut = jobs.len() > limit;
        jobs.truncate(limit);
        let next = if cut { jobs.last().map(|job| job.id) } else { floor };
        Ok((jobs, next))
    }

    async fn watch(
        &self,
        only: Option<JobId>,
        from: Revision,
        sender: mpsc::Sender<Result<v1::WatchJobsResponse, Status>>,
    ) {
        let mut seen = from;
        loop {
            let watchers = self.broker.watchers();
            let mut news = watchers.subscribe();
            let through = *news.borrow_and_update();
            let missed = if seen == Revision(0) { Missed::Unknown } else { watchers.since(seen) };
            let sent = match missed {
                Missed::Unknown => self.send_list(only, &sender).await,
                Missed::Changes(changes) if through > seen => {
                    self.send_changes(only, changes.into_iter().collect(), through, &sender).await
                }
                Missed::Changes(_) => Ok(through.max(seen)),
            };
            match sent {
                Ok(revision) => seen = revision,
                Err(status) => {
                    let _ = sender.send(Err(status)).await;
                    return;
                }
            }
            tokio::select! {
                changed = news.changed() => if changed.is_err() {
                    // The broker has reopened its journal: there are new watchers to ask.
                    tokio::time::sleep(AGENT_WAIT).await;
                },
                () = sender.closed() => return,
            }
        }
    }

    /// Sends all live jobs, or the one that is watched.
    async fn send_list(
        &self,
        only: Option<JobId>,
        sender: &mpsc::Sender<Result<v1::WatchJobsResponse, Status>>,
    ) -> Result<Revision, Status> {
        let (mut before, mut first) = (JobId(u64::MAX), None);
        loop {
            let (revision, jobs, next) = match only {
                Some(id) => {
                    let (revision, _) = self.broker.query(Query::Status).await.map_err(error::call)?;
                    let job = self.find(Some(&v1::JobRef { id: id.0, ..v1::JobRef::default() })).await?;
                    (revision, vec![job], None)
                }
                None => {
                    let query = Query::Jobs { filter: JobFilter::default(), before, limit: PAGE_MAX };
                    let (revision, answer) = self.broker.query(query).await.map_err(error::call)?;
                    let Answer::Jobs { jobs, next } = answer else { return Err(Status::internal("no list")) };
                    (revision, jobs, next)
                }
            };
            // Pages rest on later and later revisions: what changed since the first comes again.
            let revision = *first.get_or_insert(revision);
            let jobs = jobs.iter().map(convert::job_message).collect();
            let message = v1::WatchJobsResponse { jobs, revision: revision.0, relisted: true };
            sender.send(Ok(message)).await.map_err(|_| Status::cancelled("the watcher is gone"))?;
            match next {
                Some(next) => before = next,
                None => return Ok(revision),
            }
        }
    }

    async fn send_changes(
        &self,
        only: Option<JobId>,
        changes: Vec<Change>,
        through: Revision,
        sender: &mpsc::Sender<Result<v1::WatchJobsResponse, Status>>,
    ) -> Result<Revision, Status> {
        let changed = changes.into_iter().filter_map(|change| match change {
            Change::Job(id) if only.is_none_or(|only| only == id) => Some(id),
            _ => None,
        });
        let changed: Vec<JobId> = changed.collect();
        let mut jobs = Vec::new();
        for id in changed {
            jobs.push(convert::job_message(
                &self.find(Some(&v1::JobRef { id: id.0, ..v1::JobRef::default() })).await?,
            ));
        }
        if !jobs.is_empty() {
            let message = v1::WatchJobsResponse { jobs, revision: through.0, relisted: false };
            sender.send(Ok(message)).await.map_err(|_| Status::cancelled("the watcher is gone"))?;
        }
        Ok(through)
    }

    /// The attempt whose output is asked for, once there is one.
    async fn attempt_of(
        &self,
        job: &JobView,
        message: &v1::LogsRequest,
    ) -> Result<Option<AttemptView>, Status> {
        let of_unit = |attempt: &AttemptView| {
            attempt.id.unit == message.unit && (message.attempt == 0 || attempt.id.number == message.attempt)
        };
        let after = message.unit.checked_sub(1);
        let query = Query::Attempts { job: job.id, after, limit: 1 };
        let (_, answer) = self.broker.query(query).await.map_err(error::call)?;
        let Answer::Attempts(live) = answer else { return Err(Status::internal("no attempts")) };
        if let Some(attempt) = live.into_iter().find(of_unit) {
            return Ok(Some(attempt));
        }
        let (_, status) = self.broker.query(Query::Status).await.map_err(error::call)?;
        let Answer::Status { journal, .. } = status else { return Err(Status::internal("no status")) };
        let (id, unit) = (job.id, message.unit);
        let ended = self.broker.archive(move |archive| archive.attempts(id, (unit, 0), PAGE_MAX));
        let ended = ended.await.map_err(error::call)?;
        Ok(ended.iter().map(|attempt| attempt.view(journal)).rfind(of_unit))
    }

    async fn stream_logs(
        &self,
        job: &JobView,
        message: &v1::LogsRequest,
        sender: &mpsc::Sender<Result<v1::LogsResponse, Status>>,
    ) -> Result<(), Status> {
        let mut wait = FOLLOW_WAIT.0;
        let attempt = loop {
            if let Some(attempt) = self.attempt_of(job, message).await? {
                break attempt;
            }
            let now = self.find(Some(&v1::JobRef { id: job.id.0, ..v1::JobRef::default() })).await?;
            if !message.follow || now.phase.is_end() || sender.is_closed() {
                return Ok(());
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(FOLLOW_WAIT.1);
        };
        wait = FOLLOW_WAIT.0;
        let mut streams = [
            (LogStream::Stdout, v1::LogStream::Stdout, message.stdout_offset, false),
            (LogStream::Stderr, v1::LogStream::Stderr, message.stderr_offset, false),
        ];
        loop {
            let ended = attempt.phase == AttemptPhase::Ended || self.has_ended(job, &attempt).await?;
            let mut moved = false;
            for (stream, shown, offset, done) in &mut streams {
                if *done {
                    continue;
                }
                let ask = Ask {
                    attempt: attempt.id,
                    task: message.task,
                    stream: *stream,
                    offset: *offset,
                    bytes_max: LOG_BYTES,
                };
                let Some(part) = self.broker.logs().ask(&attempt.pool, ask).await else {
                    if !message.follow {
                        let text = format!("the agent of pool {} is not connected", attempt.pool);
                        return Err(Status::unavailable(text));
                    }
                    tokio::time::sleep(AGENT_WAIT).await;
                    continue;
                };
                if !part.error.is_empty() && ended {
                    return Err(Status::not_found(part.error));
                }
                *done = ended && part.error.is_empty() && part.offset + part.data.len() as u64 >= part.end;
                if part.data.is_empty() {
                    continue;
                }
                (moved, wait) = (true, FOLLOW_WAIT.0);
                *offset = part.offset + part.data.len() as u64;
                let message = v1::LogsResponse {
                    stream: *shown as i32,
                    offset: part.offset,
                    data: part.data,
                    attempt: attempt.id.to_string(),
                };
                if sender.send(Ok(message)).await.is_err() {
                    return Ok(());
                }
            }
            let all_done = streams.iter().all(|(_, _, _, done)| *done);
            if all_done || sender.is_closed() || (!moved && !message.follow) {
                return Ok(());
            }
            if !moved {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(FOLLOW_WAIT.1);
            }
        }
    }

    async fn has_ended(&self, job: &JobView, attempt: &AttemptView) -> Result<bool, Status> {
        let query = Query::Attempts { job: job.id, after: attempt.id.unit.checked_sub(1), limit: 1 };
        let (_, answer) = self.broker.query(query).await.map_err(error::call)?;
        let Answer::Attempts(live) = answer else { return Err(Status::internal("no attempts")) };
        Ok(!live.iter().any(|live| live.id == attempt.id))
    }
}
