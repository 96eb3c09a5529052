//! JobService: submits, cancels, lists and explains jobs. Watches and logs are in their own files.

use std::collections::{BTreeMap, BTreeSet};

use tonic::{Request, Response, Status};

use super::connection::identity_of;
use super::convert;
use super::error;
use super::mutation::Mutations;
use super::page::{attempts_token, check_count, page_size};
use super::proto::v1;
use super::response_stream::{ResponseStream, spawn_response};
use super::watch::{JobWatch, watch};
use crate::broker::query::{GetJob, GetJobs, GetWhy, JobRef, QueuesOfName};
use crate::model::id::{JobId, Revision};
use crate::model::limit::{DEPENDENCIES_MAX, JOBS_PER_SUBMIT_MAX, PAGE_MAX};
use crate::model::queue::DEFAULT_QUEUE;
use crate::model::region::RegionCode;
use crate::runtime::error::CallError;
use crate::runtime::handle::{Archive, Handle};
use crate::state::command::{Command, Submission};
use crate::state::decide::Reply;
use crate::state::rejection::Rejection;
use crate::state::view::JobView;

/// Implements JobService.
#[derive(Clone)]
pub struct Jobs {
    pub broker: Handle,
    pub(super) mutations: Mutations,
}

/// How often one submit is decided if its dependencies end in the meantime.
pub(super) const SUBMIT_ATTEMPTS_MAX: u32 = 3;
/// Attempts of an ended job that are read for the pools in which it ran.
const ATTEMPTS_SHOWN: usize = 4;

#[tonic::async_trait]
impl v1::job_service_server::JobService for Jobs {
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        check_count("jobs", "jobs", message.jobs.len(), 1, JOBS_PER_SUBMIT_MAX)?;
        let mut attempts = 0;
        let (reply, revision) = loop {
            let jobs = self.submissions(&message.jobs, message.allow_pending).await?;
            attempts += 1;
            let count = jobs.len();
            match self.mutations.decide(&identity, &message, count, Command::Submit { jobs }).await? {
                // A dependency may end between its lookup and the decision. The archive has it then.
                Err(CallError::Rejected(Rejection::BadDependency { .. }))
                    if attempts < SUBMIT_ATTEMPTS_MAX => {}
                Err(CallError::Rejected(rejection)) => {
                    return Err(error::status(&self.explain_dependency(rejection).await));
                }
                outcome => break outcome?,
            }
        };
        let Reply::Submitted { first, .. } = reply else {
            return Err(error::internal("unexpected reply to a submit"));
        };
        let jobs =
            message.jobs.into_iter().enumerate().map(|(index, v1::Submission { name, name_prefix, .. })| {
                let id = first.0 + index as u64;
                let prefix = if name_prefix.is_empty() { "job" } else { &name_prefix };
                v1::SubmittedJob { id, name: if name.is_empty() { format!("{prefix}-{id}") } else { name } }
            });
        Ok(Response::new(v1::SubmitResponse { jobs: jobs.collect(), revision: revision.0 }))
    }

    async fn rerun(&self, request: Request<v1::RerunRequest>) -> Result<Response<v1::RerunResponse>, Status> {
        let identity = identity_of(&request);
        self.rerun_job(&identity, request.into_inner()).await.map(Response::new)
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        let message = request.into_inner();
        let mut job = self.find("job", message.job.as_ref()).await?;
        self.add_pools(std::slice::from_mut(&mut job)).await?;
        let (attempts, next) = match message.with_attempts {
            true => self.attempts(&job, (0, 0), PAGE_MAX).await?,
            false => (Vec::new(), None),
        };
        let mut job = convert::job_message(&job);
        self.name_dependencies(std::slice::from_mut(&mut job)).await;
        Ok(Response::new(v1::GetJobResponse {
            job: Some(job),
            attempts: attempts.iter().map(convert::attempt_message).collect(),
            more_attempts: next.is_some(),
        }))
    }

    async fn list_attempts(
        &self,
        request: Request<v1::ListAttemptsRequest>,
    ) -> Result<Response<v1::ListAttemptsResponse>, Status> {
        let message = request.into_inner();
        let (limit, after) = (page_size(message.page_size)?, attempts_token(&message.page_token)?);
        let job = self.find("job", message.job.as_ref()).await?;
        let (attempts, next) = match message.failed_units {
            true => self.failed_attempts(&job, after.0, limit).await?,
            false => self.attempts(&job, after, limit).await?,
        };
        Ok(Response::new(v1::ListAttemptsResponse {
            attempts: attempts.iter().map(convert::attempt_message).collect(),
            next_page_token: next.map(|(unit, number)| format!("{unit}.{number}")).unwrap_or_default(),
        }))
    }

    async fn list_units(
        &self,
        request: Request<v1::ListUnitsRequest>,
    ) -> Result<Response<v1::ListUnitsResponse>, Status> {
        self.units(request.into_inner()).await.map(Response::new)
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        self.list(request.into_inner()).await.map(Response::new)
    }

    async fn count_jobs(
        &self,
        request: Request<v1::CountJobsRequest>,
    ) -> Result<Response<v1::CountJobsResponse>, Status> {
        self.count(request.into_inner()).await.map(Response::new)
    }

    type WatchJobsStream = ResponseStream<v1::WatchJobsResponse>;

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let only = match &message.job {
            Some(_) => Some(self.find("job", message.job.as_ref()).await?.id),
            None => None,
        };
        let watched = JobWatch { jobs: self.clone(), only };
        let (broker, from) = (self.broker.clone(), Revision(message.from_revision));
        Ok(Response::new(spawn_response(&identity, |sender| async move {
            watch(&broker, &watched, from, &sender).await
        })))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::CancelResponse>, Status> {
        let identity = identity_of(&request);
        self.cancel_jobs(&identity, request.into_inner()).await.map(Response::new)
    }

    async fn update_job(
        &self,
        request: Request<v1::UpdateJobRequest>,
    ) -> Result<Response<v1::UpdateJobResponse>, Status> {
        let identity = identity_of(&request);
        self.change_job(&identity, request.into_inner()).await.map(Response::new)
    }

    async fn why(&self, request: Request<v1::WhyRequest>) -> Result<Response<v1::WhyResponse>, Status> {
        let job = self.find("job", request.into_inner().job.as_ref()).await?;
        let (_, why) = self.broker.query(GetWhy(JobRef::Id(job.id))).await?;
        let ended =
            || v1::WhyResponse { job: Some(convert::job_message(&job)), ..v1::WhyResponse::default() };
        Ok(Response::new(why.map_or_else(ended, |why| convert::why_message(&why))))
    }

    type LogsStream = ResponseStream<v1::LogsResponse>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let identity = identity_of(&request);
        let message = request.into_inner();
        let job = self.find("job", message.job.as_ref()).await?;
        if message.unit >= job.counts.total {
            let last = job.counts.total.saturating_sub(1);
            let description = format!("{} is not within 0 and {last}", message.unit);
            return Err(error::invalid(convert::invalid("unit", description)));
        }
        let tasks = job.spec.tasks_of_unit(message.unit).len();
        if message.task as usize >= tasks {
            let description = format!("{} is not within 0 and {}", message.task, tasks.saturating_sub(1));
            return Err(error::invalid(convert::invalid("task", description)));
        }
        let jobs = self.clone();
        Ok(Response::new(spawn_response(&identity, |sender| async move {
            jobs.stream_logs(&job, &message, &sender).await
        })))
    }
}

impl Jobs {
    /// Converts the jobs of a request and resolves their dependencies.
    async fn submissions(
        &self,
        messages: &[v1::Submission],
        allow_pending: bool,
    ) -> Result<Vec<Submission>, Status> {
        let mut jobs = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            let path = format!("jobs[{index}].spec");
            let spec = message.spec.as_ref();
            let spec = spec.ok_or_else(|| error::invalid(convert::invalid(&path, "is missing")))?;
            let mut spec = convert::job_spec(&path, spec).map_err(error::invalid)?;
            // Each dependency costs a lookup in the archive.
            let edges = spec.depends_on.len();
            check_count(&format!("{path}.depends_on"), "entries", edges, 0, DEPENDENCIES_MAX)?;
            self.resolve_dependencies(&mut spec).await?;
            jobs.push(Submission {
                allow_pending,
                name: message.name.clone(),
                name_prefix: message.name_prefix.clone(),
                queue: message.queue.clone(),
                held: message.held,
                spec,
            });
        }
        Ok(jobs)
    }

    /// The job with this id, live or ended.
    pub(super) async fn find_id(&self, id: JobId) -> Result<JobView, Status> {
        self.find("job", Some(&v1::JobRef { id: id.0, ..v1::JobRef::default() })).await
    }

    /// The job that `field` refers to, live or ended.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the reference is not complete, `NOT_FOUND` if there is no such job.
    pub(super) async fn find(&self, field: &str, at: Option<&v1::JobRef>) -> Result<JobView, Status> {
        let at = at.ok_or_else(|| error::invalid(convert::invalid(field, "is missing")))?;
        if (at.id == 0) == at.name.is_empty() {
            return Err(error::invalid(convert::invalid(
                field,
                "identify the job by id, or by queue and name",
            )));
        }
        let queue = if at.queue.is_empty() { DEFAULT_QUEUE.to_owned() } else { at.queue.clone() };
        let reference = if at.id > 0 {
            JobRef::Id(JobId(at.id))
        } else {
            JobRef::Named { queue: queue.clone(), name: at.name.clone() }
        };
        if let (_, Some(job)) = self.broker.query(GetJob(reference)).await? {
            return Ok(*job);
        }
        let (id, name) = (at.id, at.name.clone());
        let found = self.broker.archive(move |archive| {
            if id > 0 { archive.job(JobId(id)) } else { archive.job_named(&queue, &name) }
        });
        let found = found.await?;
        if let Some(job) = found {
            return Ok(job.view());
        }
        if at.id > 0 {
            return Err(error::not_found("job", &at.id.to_string()));
        }
        // Its author may have left out the queue.
        let (_, queues) = self.broker.query(QueuesOfName(at.name.clone())).await?;
        let name = at.name.clone();
        Err(error::status(&match queues.is_empty() {
            true => Rejection::NotFound { kind: "job", name },
            false => Rejection::JobElsewhere { name, queues },
        }))
    }

    /// Adds the pools in which ended jobs ran: those of their first attempts.
    pub(super) async fn add_pools(&self, jobs: &mut [JobView]) -> Result<(), Status> {
        let ended: Vec<JobId> = jobs.iter().filter(|job| job.phase.is_end()).map(|job| job.id).collect();
        if ended.is_empty() {
            return Ok(());
        }
        let single = ended.len() == 1;
        let read = move |archive: &mut dyn Archive| {
            let pools = |id: JobId| -> Result<_, _> {
                let attempts = archive.attempts(id, (0, 0), ATTEMPTS_SHOWN)?;
                let mut pools: Vec<(String, RegionCode)> = Vec::new();
                for attempt in attempts {
                    if pools.iter().all(|(pool, _)| *pool != attempt.pool) {
                        pools.push((attempt.pool, attempt.region));
                    }
                }
                Ok((id, pools))
            };
            ended.into_iter().map(pools).collect::<Result<BTreeMap<_, _>, _>>()
        };
        // A look-up of one job does not wait behind pages.
        let read =
            if single { self.broker.archive(read).await } else { self.broker.archive_page(read).await };
        let mut pools = read?;
        for job in jobs {
            if let Some(pools) = pools.remove(&job.id) {
                (job.pools, job.regions) = pools.into_iter().unzip();
            }
        }
        Ok(())
    }

    /// The jobs with these ids, live or ended, in the order of their ids. At most a page.
    pub(super) async fn find_all(&self, ids: &[JobId]) -> Result<Vec<JobView>, Status> {
        let (_, mut found) = self.broker.query(GetJobs(ids.to_vec())).await?;
        let live: BTreeSet<JobId> = found.iter().map(|job| job.id).collect();
        let gone: Vec<JobId> = ids.iter().filter(|id| !live.contains(id)).copied().collect();
        if !gone.is_empty() {
            let ended = self.broker.archive(move |archive| {
                let ended = gone.iter().filter_map(|id| archive.job(*id).transpose());
                ended.collect::<Result<Vec<_>, _>>()
            });
            let ended = ended.await?;
            found.extend(ended.iter().map(|job| job.view()));
            found.sort_by_key(|job| job.id);
        }
        Ok(found)
    }
}
