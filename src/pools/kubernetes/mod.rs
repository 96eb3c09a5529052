//! A pool that is a Kubernetes cluster: attempts are pods.
//!
//! `pod` makes of an order what is to be created, `status` reads what became of it, `nodes` and
//! `requests` tell what is free, `quantity` and `names` are words of theirs. `worker` hears what the
//! cluster tells, `attempts`, `kept`, `places` and `inventory` keep what follows from it, `cluster`
//! carries out calls, `lock` sees to it that one agent speaks, `logs` fetches output, `check` says what an agent
//! lacks.
//!
//! The pods are the agent's memory. One that ended stays until the broker has its outcome and no
//! order can start it any more. One that is told to stop is given a deadline that has passed instead
//! of being deleted: its kubelet ends it in peace, and the object stays to tell of it. Nothing waits
//! for the agent: pods end by themselves, also at their run-time limit, and a gang's service goes
//! with its first pod.

mod attempts;
pub mod check;
mod cluster;
mod inventory;
mod kept;
mod lock;
mod logs;
mod names;
mod nodes;
mod places;
mod pod;
mod quantity;
mod requests;
mod status;
mod timestamped;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Error, Event, InitialSync, PoolBackend, ReadLogs};
use crate::agent::StartRequest;
use crate::clock::Clock;
use crate::model::exchange::Stop;
use crate::model::id::{AttemptId, JournalId};
use crate::model::pool::Capabilities;
use crate::model::region::RegionCode;
use crate::model::time::Timestamp;
use cluster::Cluster;
use lock::Lock;
use logs::Logs;
use worker::{Command, Worker};

/// Output kept per task, unless the pool's file says else.
pub const LOG_MAX_BYTES: u64 = 64 << 20;

/// How pods come to their nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// They are created with their node's name, and no scheduler sees them.
    Direct,
    /// This scheduler binds them, to the one node that they may run on.
    Scheduler(String),
}

/// The pool's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    pub pool: String,
    pub region: RegionCode,
    pub state: PathBuf,
    /// Who this agent is, for the pool's lock: the same after each restart.
    pub holder: String,
    /// `None` means what `kubectl` would take, or what a pod of the cluster is given.
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    /// Where the pool's lock is, and the pods of queues that have no namespace of their own.
    pub namespace: String,
    /// Namespaces by queue.
    pub queues: BTreeMap<String, String>,
    /// A label selector; empty means all nodes.
    pub nodes: String,
    pub binding: Binding,
    /// The image in which jobs run that are commands; `None` refuses them.
    pub process_image: Option<String>,
    pub service_account: Option<String>,
    pub image_pull_secrets: Vec<String>,
    /// How long a pod may fail to start, for want of its image or a place.
    pub start_timeout_ms: u64,
    /// Models by the cluster's resource; they go before what labels say.
    pub devices: BTreeMap<String, String>,
    /// Output kept per task.
    pub log_max_bytes: u64,
}

impl Settings {
    /// Where a queue's pods are: the namespace of the nearest queue above it that has one.
    fn namespace_of(&self, queue: &str) -> &str {
        let mut queue = queue;
        loop {
            if let Some(namespace) = self.queues.get(queue) {
                return namespace;
            }
            match queue.rsplit_once('/') {
                Some((above, _)) => queue = above,
                None => return &self.namespace,
            }
        }
    }

    /// Every namespace that may hold pods.
    fn namespaces(&self) -> std::collections::BTreeSet<&str> {
        self.queues.values().map(String::as_str).chain([self.namespace.as_str()]).collect()
    }

    /// What this backend can do with a job. No lease: a pod that lost both its agent and its API server
    /// would have to end itself, and nothing in it could tell that apart from a quiet day.
    pub fn capabilities(&self) -> Capabilities {
        let processes = self.process_image.is_some();
        Capabilities {
            real: true,
            processes,
            containers: true,
            pods: true,
            leases: false,
            secrets: true,
            whole_devices_only: true,
        }
    }

    #[cfg(test)]
    fn for_tests() -> Self {
        Self {
            pool: "p".to_owned(),
            region: RegionCode::default(),
            state: PathBuf::new(),
            holder: "a".to_owned(),
            kubeconfig: None,
            context: None,
            namespace: "weir".to_owned(),
            queues: BTreeMap::from([("team-a".to_owned(), "weir-team-a".to_owned())]),
            nodes: String::new(),
            binding: Binding::Direct,
            process_image: None,
            service_account: None,
            image_pull_secrets: Vec::new(),
            start_timeout_ms: 120_000,
            devices: BTreeMap::new(),
            log_max_bytes: LOG_MAX_BYTES,
        }
    }
}

/// The backend.
pub struct Kubernetes {
    settings: Arc<Settings>,
    clock: Clock,
    commands: mpsc::UnboundedSender<Command>,
    inbox: Option<mpsc::UnboundedReceiver<Command>>,
    logs: Logs,
}

impl Kubernetes {
    /// A backend that is yet to be opened. Within a tokio runtime.
    pub fn new(settings: Settings, clock: Clock) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let logs = Logs::new(settings.state.join("logs"), settings.log_max_bytes);
        Self { settings: Arc::new(settings), clock, commands, inbox: Some(inbox), logs }
    }

    fn send(&self, command: Command) {
        // The worker ends only with the backend's events, and those end the agent.
        let _ = self.commands.send(command);
    }

    /// What this pool promises less than a job may think.
    fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "a task's two streams of output are one here, as the cluster gives them".to_owned(),
            "devices are given out whole".to_owned(),
            "max_run counts from when a node accepts the pod, its image's way there included".to_owned(),
        ];
        if self.settings.process_image.is_none() {
            notes.push(
                "jobs that are commands are refused: the pool's file names no process_image".to_owned(),
            );
        }
        notes
    }
}

impl PoolBackend for Kubernetes {
    async fn open(&mut self, events: mpsc::UnboundedSender<Event>) -> Result<InitialSync, Error> {
        let pool = self.settings.pool.clone();
        let failed = |why: String| Error::Open { pool: pool.clone(), source: std::io::Error::other(why) };
        let inbox = self.inbox.take().ok_or_else(|| Error::Gone { pool: pool.clone() })?;
        let cluster = Cluster::connect(&self.settings, self.clock).await.map_err(failed)?;
        let lock = Lock::new(&cluster, &self.settings.namespace, &self.settings.pool, &self.settings.holder);
        lock.take().await;
        self.logs.connect(cluster.clone());
        let mut worker = Worker::new(self.settings.clone(), cluster, lock, self.logs.clone(), events);
        if !worker.list().await {
            return Err(Error::Gone { pool });
        }
        let mut opened = worker.opened();
        opened.notes = self.notes();
        tokio::spawn(worker.run(inbox));
        Ok(opened)
    }

    fn serves(&mut self, journal: JournalId) {
        self.send(Command::Serves(journal));
    }

    fn start(&mut self, start: StartRequest) {
        self.send(Command::StartRequest(Box::new(start)));
    }

    fn stop(&mut self, stop: Stop) {
        self.send(Command::Stop(stop));
    }

    fn forget(&mut self, attempt: AttemptId) {
        self.send(Command::Forget(attempt));
    }

    fn renew(&mut self, _until: Timestamp, _until_boot_ms: u64) {}

    fn logs(&self) -> Arc<dyn ReadLogs> {
        Arc::new(self.logs.clone())
    }
}
