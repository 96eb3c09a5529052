//! The backend for a pool that is a Kubernetes cluster: each task of an attempt is a pod.
//!
//! `README.md` beside this file lists the modules and the invariants.
//!
//! The pods are the agent's only durable record of its attempts. An ended pod stays until the broker has stored
//! its outcome and no order can start it any more. A stop does not delete a pod: it sets a deadline that has
//! passed, so the kubelet ends the pod with its grace period, and the object stays with the exit status. No pod
//! depends on a live agent: the kubelet enforces the run-time limit, and a gang's service is garbage-collected
//! with its first pod.

mod attempts;
pub mod check;
mod cluster;
mod inventory;
mod lock;
mod logs;
mod names;
mod nodes;
mod pod;
mod quantity;
mod requests;
mod status;
mod tasks_by_node;
mod timestamped;
mod tracked;
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

/// Bytes of output stored per task, unless the pool's file sets another limit.
pub const LOG_MAX_BYTES: u64 = 64 << 20;

/// How pods are bound to their nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Pods are created with their node's name and pass no scheduler.
    Direct,
    /// The scheduler of this name binds them, to the one node that their affinity allows.
    Scheduler(String),
}

/// The pool's settings, from its file.
#[derive(Clone, Debug)]
pub struct Settings {
    pub pool: String,
    pub region: RegionCode,
    /// The agent's state folder; output is stored below it.
    pub state: PathBuf,
    /// This agent's id in the pool's lock. It must be the same after each restart.
    pub holder: String,
    /// `None` means the file that `kubectl` would read, or within the cluster the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// `None` means the kubeconfig's current context.
    pub context: Option<String>,
    /// The namespace of the pool's lock, and of the pods of queues that have no namespace of their own.
    pub namespace: String,
    /// Namespaces by queue. A queue without one has that of its nearest ancestor.
    pub queues: BTreeMap<String, String>,
    /// The label selector of the pool's nodes; empty means all nodes.
    pub nodes: String,
    pub binding: Binding,
    /// The image for jobs that are plain commands; `None` means that they are refused.
    pub process_image: Option<String>,
    /// The pods' service account; `None` means the namespace's default.
    pub service_account: Option<String>,
    pub image_pull_secrets: Vec<String>,
    /// How long a pod may fail to start, for lack of its image or of a node.
    pub start_timeout_ms: u64,
    /// Device models by resource name. They take precedence over node labels.
    pub devices: BTreeMap<String, String>,
    /// Bytes of output stored per task.
    pub log_max_bytes: u64,
}

impl Settings {
    /// The namespace of a queue's pods: its own, or that of its nearest ancestor that has one.
    fn namespace_of(&self, queue: &str) -> &str {
        let mut queue = queue;
        loop {
            if let Some(namespace) = self.queues.get(queue) {
                return namespace;
            }
            match queue.rsplit_once('/') {
                Some((parent, _)) => queue = parent,
                None => return &self.namespace,
            }
        }
    }

    /// Every namespace that may hold pods.
    fn namespaces(&self) -> std::collections::BTreeSet<&str> {
        self.queues.values().map(String::as_str).chain([self.namespace.as_str()]).collect()
    }

    /// What this backend supports. It has no leases: a pod that lost both its agent and its API server would
    /// have to end itself, and nothing within the pod can detect that loss.
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

/// The backend of one pool. Dropping it ends the worker.
pub struct Kubernetes {
    settings: Arc<Settings>,
    clock: Clock,
    commands: mpsc::UnboundedSender<Command>,
    inbox: Option<mpsc::UnboundedReceiver<Command>>,
    logs: Logs,
}

impl Kubernetes {
    /// Creates a backend that is not open yet. Must be called within a tokio runtime.
    pub fn new(settings: Settings, clock: Clock) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let logs = Logs::new(settings.state.join("logs"), settings.log_max_bytes);
        Self { settings: Arc::new(settings), clock, commands, inbox: Some(inbox), logs }
    }

    fn send(&self, command: Command) {
        // A failed send means that the worker has ended. It reports that as `Event::Gone`.
        let _ = self.commands.send(command);
    }

    /// Limits of this backend that a job's owner should be aware of.
    fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "stdout and stderr are one stream: the cluster does not separate them".to_owned(),
            "devices are allocated whole".to_owned(),
            "max_run counts from when a node accepts the pod, and so includes the image pull".to_owned(),
        ];
        if self.settings.process_image.is_none() {
            notes.push(
                "jobs that are commands are refused: process_image is not set in the pool's file".to_owned(),
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
        lock.acquire().await;
        self.logs.connect(cluster.clone());
        let mut worker = Worker::new(self.settings.clone(), cluster, lock, self.logs.clone(), events);
        if !worker.list().await {
            return Err(Error::Gone { pool });
        }
        let mut initial = worker.initial_sync();
        initial.notes = self.notes();
        tokio::spawn(worker.run(inbox));
        Ok(initial)
    }

    fn serves(&mut self, journal: JournalId) {
        self.send(Command::Serves(journal));
    }

    fn start(&mut self, start: StartRequest) {
        self.send(Command::Start(Box::new(start)));
    }

    fn stop(&mut self, stop: Stop) {
        self.send(Command::Stop(stop));
    }

    fn forget(&mut self, attempt: AttemptId) {
        self.send(Command::Forget(attempt));
    }

    fn renew(&mut self, _from: Timestamp, _from_boot_ms: u64) {}

    fn logs(&self) -> Arc<dyn ReadLogs> {
        Arc::new(self.logs.clone())
    }
}
