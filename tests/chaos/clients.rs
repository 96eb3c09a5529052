//! Clients: each submits with a token of its own until it is acknowledged; some cancel, some repeat
//! themselves; others read all the while, and notice what must not change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Code, Response, Status};
use weir::api::client::Client;
use weir::api::proto::v1;
use weir::api::proto::v1::JobPhase;

use crate::work::Piece;

/// How long a client waits for an answer before it asks anew.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Complaints that are kept.
const COMPLAINTS_MAX: usize = 20;
/// Between two calls of one client.
const AGAIN: Duration = Duration::from_millis(150);

/// How clients get to the broker.
#[derive(Clone)]
pub struct Access {
    pub address: String,
    pub token: String,
}

/// A job that was acknowledged.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    pub piece: Piece,
    /// What it was when its cancel had been acknowledged.
    pub after_cancel: Option<JobPhase>,
}

/// What the clients of a world know.
#[derive(Default)]
pub struct Ledger {
    pub jobs: Mutex<BTreeMap<u64, Acknowledged>>,
    /// What must not be.
    pub complaints: Mutex<Vec<String>>,
}

impl Ledger {
    /// Notes what must not be. One that is repeated for ever is heard often enough.
    pub fn complain(&self, complaint: String) {
        let mut complaints = self.complaints.lock().expect("no client panics");
        if complaints.len() < COMPLAINTS_MAX && !complaints.contains(&complaint) {
            complaints.push(complaint);
        }
    }

    /// The ids of all acknowledged jobs.
    pub fn ids(&self) -> Vec<u64> {
        self.jobs.lock().expect("no client panics").keys().copied().collect()
    }
}

/// A phase from which no job comes back.
pub fn is_end(phase: JobPhase) -> bool {
    matches!(phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Cancelled)
}

/// A client that opens a new connection when the old one is of no use.
pub struct Caller {
    access: Access,
    ledger: Arc<Ledger>,
    client: Client,
}

impl Caller {
    /// Must be called within a runtime.
    pub fn new(access: &Access, ledger: &Arc<Ledger>) -> Self {
        Self { access: access.clone(), ledger: ledger.clone(), client: connect(access) }
    }

    /// Calls once; `None` if there was no answer. One that may not be is complained of.
    pub async fn call<T, F>(&mut self, what: &str, call: impl FnOnce(Client) -> F) -> Option<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        match tokio::time::timeout(CALL_TIMEOUT, call(self.client.clone())).await {
            Ok(Ok(response)) => return Some(response.into_inner()),
            Ok(Err(status)) => {
                // Whatever the broker or the link does: these say that the outcome is unknown.
                let unknown = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
                if !unknown.contains(&status.code()) {
                    self.ledger.complain(format!("{what}: {status}"));
                }
            }
            Err(_) => {}
        }
        self.client = connect(&self.access);
        None
    }

    /// Calls until there is an answer.
    pub async fn insist<T, F>(&mut self, what: &str, call: impl Fn(Client) -> F) -> T
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            if let Some(answer) = self.call(what, &call).await {
                return answer;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// One job with its attempts.
    pub async fn job(&mut self, id: u64) -> v1::GetJobResponse {
        let get = |client: Client| async move {
            let request = v1::GetJobRequest { job: job_ref(id), with_attempts: true };
            client.jobs().get_job(request).await
        };
        self.insist(&format!("get job {id}"), get).await
    }
}

fn connect(access: &Access) -> Client {
    Client::new(&access.address, Some(&access.token)).expect("a client")
}

fn job_ref(id: u64) -> Option<v1::JobRef> {
    Some(v1::JobRef { id, ..Default::default() })
}

/// Sees one job through: submits it, repeats the request, cancels it, as the piece says.
pub async fn see_through(piece: Piece, access: Access, ledger: Arc<Ledger>) {
    tokio::time::sleep(Duration::from_millis(piece.submit_at_ms)).await;
    let mut caller = Caller::new(&access, &ledger);
    let what = format!("submit {}", piece.token);
    let submit = |client: Client| {
        let request = piece.request();
        async move { client.jobs().submit(request).await }
    };
    let id = caller.insist(&what, submit).await.jobs.first().map_or(0, |job| job.id);
    let acknowledged = Acknowledged { piece: piece.clone(), after_cancel: None };
    ledger.jobs.lock().expect("no client panics").insert(id, acknowledged);
    if let Some(after_ms) = piece.repeat_after_ms {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        let again = caller.insist(&what, submit).await.jobs.first().map_or(0, |job| job.id);
        if again != id {
            ledger.complain(format!("{what}: job {id}, and job {again} when it was repeated"));
        }
    }
    if let Some(after_ms) = piece.cancel_after_ms {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        let request = v1::CancelRequest {
            token: format!("{}-cancel", piece.token),
            jobs: job_ref(id).into_iter().collect(),
        };
        let cancel = |client: Client| {
            let request = request.clone();
            async move { client.jobs().cancel(request).await }
        };
        caller.insist(&format!("cancel job {id}"), cancel).await;
        let phase = caller.job(id).await.job.map(|job| job.phase());
        if let Some(job) = ledger.jobs.lock().expect("no client panics").get_mut(&id) {
            job.after_cancel = phase;
        }
    }
}

/// Reads jobs and lists until told to stop: an acknowledged job is known, an end is final, and time
/// does not go backwards.
pub async fn read_on(access: Access, ledger: Arc<Ledger>, stop: watch::Receiver<bool>) {
    let mut caller = Caller::new(&access, &ledger);
    let (mut ends, mut revision) = (BTreeMap::<u64, JobPhase>::new(), 0);
    while !*stop.borrow() {
        tokio::time::sleep(AGAIN).await;
        let ids = ledger.ids();
        if ids.is_empty() {
            continue;
        }
        let id = ids[rand::random_range(0..ids.len())];
        let request = v1::GetJobRequest { job: job_ref(id), with_attempts: false };
        let what = format!("get job {id}, which was acknowledged");
        let answer =
            caller.call(&what, |client: Client| async move { client.jobs().get_job(request).await }).await;
        if let Some(job) = answer.and_then(|answer| answer.job) {
            note_end(&ledger, &mut ends, "a reader", &job);
        }
        let request = v1::ListJobsRequest { page_size: 1, with_ended: true, ..Default::default() };
        let answer = caller
            .call("list jobs", |client: Client| async move { client.jobs().list_jobs(request).await })
            .await;
        if let Some(list) = answer {
            if list.revision < revision {
                ledger.complain(format!("a list of revision {} after one of {revision}", list.revision));
            }
            revision = list.revision;
        }
    }
}

/// Notes an end; complains if the job had come to another, or comes back from one.
fn note_end(ledger: &Ledger, ends: &mut BTreeMap<u64, JobPhase>, who: &str, job: &v1::Job) {
    let phase = job.phase();
    match ends.get(&job.id) {
        Some(before) if *before != phase => {
            ledger.complain(format!("{who} saw job {} {before:?}, then {phase:?}", job.id));
        }
        Some(_) => {}
        None if is_end(phase) => drop(ends.insert(job.id, phase)),
        None => {}
    }
}

/// Watches all jobs, over every break, until its runtime ends. `live` are those that it has not seen end.
pub async fn watch_on(access: Access, ledger: Arc<Ledger>, live: Arc<Mutex<BTreeSet<u64>>>) {
    let (mut ends, mut revision) = (BTreeMap::new(), 0);
    let mut listed = BTreeSet::new();
    loop {
        let client = connect(&access);
        let request = v1::WatchJobsRequest { job: None, from_revision: revision };
        let opened = tokio::time::timeout(CALL_TIMEOUT, async { client.jobs().watch_jobs(request).await });
        let mut stream = match opened.await {
            Ok(Ok(stream)) => stream.into_inner(),
            Ok(Err(_)) | Err(_) => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        listed.clear();
        while let Ok(Some(changes)) = stream.message().await {
            let mut live = live.lock().expect("no watcher panics");
            for job in &changes.jobs {
                note_end(&ledger, &mut ends, "a watcher", job);
                if is_end(job.phase()) {
                    live.remove(&job.id);
                } else {
                    live.insert(job.id);
                }
            }
            if changes.relisted {
                listed.extend(changes.jobs.iter().map(|job| job.id));
                // A whole list: whoever is not on it has ended unseen.
                if changes.revision > 0 {
                    live.retain(|id| listed.contains(id));
                    listed.clear();
                }
            }
            revision = revision.max(changes.revision);
        }
    }
}
