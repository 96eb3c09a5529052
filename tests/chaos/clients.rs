//! Clients. Each submits a job with its own token until the submit is acknowledged; some cancel the job or
//! repeat the request. Others read during the whole run and report changes that must not happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Code, Response, Status};
use weir::api::client::Client;
use weir::api::proto::v1;
use weir::api::proto::v1::JobPhase;

use crate::work::JobPlan;

/// Time limit of a call, after which it is repeated.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of violations that are recorded.
const VIOLATIONS_MAX: usize = 20;
/// Delay between two calls of one client.
const RETRY_DELAY: Duration = Duration::from_millis(150);

/// Address and token for clients.
#[derive(Clone)]
pub struct Access {
    pub address: String,
    pub token: String,
}

/// A job that was acknowledged.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    pub plan: JobPlan,
    /// Its phase after its cancel was acknowledged.
    pub after_cancel: Option<JobPhase>,
}

/// What the clients of a run observed.
#[derive(Default)]
pub struct Observations {
    pub jobs: Mutex<BTreeMap<u64, Acknowledged>>,
    /// Observations that violate a guarantee.
    pub violations: Mutex<Vec<String>>,
}

impl Observations {
    /// Records a violation, each text once.
    pub fn report_violation(&self, violation: String) {
        let mut violations = self.violations.lock().expect("no client panics");
        if violations.len() < VIOLATIONS_MAX && !violations.contains(&violation) {
            violations.push(violation);
        }
    }

    /// The ids of all acknowledged jobs.
    pub fn ids(&self) -> Vec<u64> {
        self.jobs.lock().expect("no client panics").keys().copied().collect()
    }
}

/// True for final phases.
pub fn is_end(phase: JobPhase) -> bool {
    matches!(phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Cancelled)
}

/// A client that reconnects after each failed call.
pub struct Caller {
    access: Access,
    observations: Arc<Observations>,
    client: Client,
}

impl Caller {
    /// Must be called in a Tokio runtime.
    pub fn new(access: &Access, observations: &Arc<Observations>) -> Self {
        Self { access: access.clone(), observations: observations.clone(), client: connect(access) }
    }

    /// Calls once. `None` if the call failed or timed out. A status that the broker must not return is
    /// recorded as a violation.
    pub async fn call<T, F>(&mut self, what: &str, call: impl FnOnce(Client) -> F) -> Option<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        match tokio::time::timeout(CALL_TIMEOUT, call(self.client.clone())).await {
            Ok(Ok(response)) => return Some(response.into_inner()),
            Ok(Err(status)) => {
                // Faults of broker and link may cause these codes; they mean that the outcome is unknown.
                let unknown = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
                if !unknown.contains(&status.code()) {
                    self.observations.report_violation(format!("{what}: {status}"));
                }
            }
            Err(_) => {}
        }
        self.client = connect(&self.access);
        None
    }

    /// Repeats a call until it succeeds.
    pub async fn call_until_answered<T, F>(&mut self, what: &str, call: impl Fn(Client) -> F) -> T
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            if let Some(answer) = self.call(what, &call).await {
                return answer;
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Fetches a job with its attempts.
    pub async fn job(&mut self, id: u64) -> v1::GetJobResponse {
        let get = |client: Client| async move {
            let request = v1::GetJobRequest { job: job_ref(id), with_attempts: true };
            client.jobs().get_job(request).await
        };
        self.call_until_answered(&format!("get job {id}"), get).await
    }
}

fn connect(access: &Access) -> Client {
    Client::new(&access.address, Some(&access.token)).expect("a client")
}

fn job_ref(id: u64) -> Option<v1::JobRef> {
    Some(v1::JobRef { id, ..Default::default() })
}

/// Submits a job, then repeats the request and cancels the job if the plan has times for it.
pub async fn drive_job(plan: JobPlan, access: Access, observations: Arc<Observations>) {
    tokio::time::sleep(Duration::from_millis(plan.submit_at_ms)).await;
    let mut caller = Caller::new(&access, &observations);
    let what = format!("submit {}", plan.token);
    let submit = |client: Client| {
        let request = plan.request();
        async move { client.jobs().submit(request).await }
    };
    let id = caller.call_until_answered(&what, submit).await.jobs.first().map_or(0, |job| job.id);
    let acknowledged = Acknowledged { plan: plan.clone(), after_cancel: None };
    observations.jobs.lock().expect("no client panics").insert(id, acknowledged);
    if let Some(after_ms) = plan.repeat_after_ms {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        let again = caller.call_until_answered(&what, submit).await.jobs.first().map_or(0, |job| job.id);
        if again != id {
            observations
                .report_violation(format!("{what}: made job {id}, and job {again} when it was repeated"));
        }
    }
    if let Some(after_ms) = plan.cancel_after_ms {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        let request = v1::CancelRequest {
            token: format!("{}-cancel", plan.token),
            jobs: job_ref(id).into_iter().collect(),
            ..v1::CancelRequest::default()
        };
        let cancel = |client: Client| {
            let request = request.clone();
            async move { client.jobs().cancel(request).await }
        };
        caller.call_until_answered(&format!("cancel job {id}"), cancel).await;
        let phase = caller.job(id).await.job.map(|job| job.phase());
        if let Some(job) = observations.jobs.lock().expect("no client panics").get_mut(&id) {
            job.after_cancel = phase;
        }
    }
}

/// Reads jobs and lists until `stop` is true. Checks that acknowledged jobs exist, that final phases don't
/// change, and that revisions don't decrease.
pub async fn read_continuously(access: Access, observations: Arc<Observations>, stop: watch::Receiver<bool>) {
    let mut caller = Caller::new(&access, &observations);
    let (mut ends, mut revision) = (BTreeMap::<u64, JobPhase>::new(), 0);
    while !*stop.borrow() {
        tokio::time::sleep(RETRY_DELAY).await;
        let ids = observations.ids();
        if ids.is_empty() {
            continue;
        }
        let id = ids[rand::random_range(0..ids.len())];
        let request = v1::GetJobRequest { job: job_ref(id), with_attempts: false };
        let what = format!("get job {id}, which was acknowledged");
        let answer =
            caller.call(&what, |client: Client| async move { client.jobs().get_job(request).await }).await;
        if let Some(job) = answer.and_then(|answer| answer.job) {
            note_end(&observations, &mut ends, "a reader", &job);
        }
        let request = v1::ListJobsRequest {
            page_size: 1,
            filter: Some(v1::JobFilter { with_ended: true, ..Default::default() }),
            view: v1::JobView::Full.into(),
            ..Default::default()
        };
        let answer = caller
            .call("list jobs", |client: Client| async move { client.jobs().list_jobs(request).await })
            .await;
        if let Some(list) = answer {
            if list.revision < revision {
                observations.report_violation(format!(
                    "a list has revision {}, after one of revision {revision}",
                    list.revision
                ));
            }
            revision = list.revision;
        }
    }
}

/// Records a final phase. A violation if the job was in another final phase before.
fn note_end(observations: &Observations, ends: &mut BTreeMap<u64, JobPhase>, who: &str, job: &v1::Job) {
    let phase = job.phase();
    match ends.get(&job.id) {
        Some(before) if *before != phase => {
            observations
                .report_violation(format!("{who} observed job {} {before:?}, then {phase:?}", job.id));
        }
        Some(_) => {}
        None if is_end(phase) => drop(ends.insert(job.id, phase)),
        None => {}
    }
}

/// Watches all jobs until its runtime ends, and resumes after broken connections. `live` is the set of jobs
/// for which no final phase was observed.
pub async fn watch_continuously(
    access: Access,
    observations: Arc<Observations>,
    live: Arc<Mutex<BTreeSet<u64>>>,
) {
    let (mut ends, mut revision) = (BTreeMap::new(), 0);
    let mut listed = BTreeSet::new();
    loop {
        let client = connect(&access);
        let request = v1::WatchJobsRequest { job: None, from_revision: revision };
        let opened = tokio::time::timeout(CALL_TIMEOUT, async { client.jobs().watch_jobs(request).await });
        let mut stream = match opened.await {
            Ok(Ok(stream)) => stream.into_inner(),
            Ok(Err(_)) | Err(_) => {
                tokio::time::sleep(RETRY_DELAY).await;
                continue;
            }
        };
        listed.clear();
        while let Ok(Some(changes)) = stream.message().await {
            let mut live = live.lock().expect("no watcher panics");
            for job in &changes.jobs {
                note_end(&observations, &mut ends, "a watcher", job);
                if is_end(job.phase()) {
                    live.remove(&job.id);
                } else {
                    live.insert(job.id);
                }
            }
            if changes.relisted {
                listed.extend(changes.jobs.iter().map(|job| job.id));
                // The list is complete: jobs that are not in it ended while the watch was disconnected.
                if changes.revision > 0 {
                    live.retain(|id| listed.contains(id));
                    listed.clear();
                }
            }
            revision = revision.max(changes.revision);
        }
    }
}
