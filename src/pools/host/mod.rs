//! The host backend: a pool that is the agent's own machine. Tasks are process groups under a
//! supervisor process, which outlives the agent. `README.md` beside this file has the overview.
//!
//! Agent side: this file is the backend, `start` converts a start order for the supervisor, `client`
//! starts the supervisor and connects to it, `protocol` has the messages of both sides, `logs`
//! reads output.
//!
//! Supervisor side: `supervisor` is the main loop, `connection` its connection to the agent,
//! `attempt` and `task` the state of what runs, `recover` the adoption after a supervisor was killed,
//! `store` and `output` the files, `space` their disk, `probe` the search for
//! the jobs' own files, `cgroup` the limits that the kernel enforces, `shim` and `isolation` what separates tasks, `memory`,
//! `orphans` and `process` the replacement where the kernel enforces none, `notes` what is not promised.

mod attempt;
mod cgroup;
pub mod check;
mod client;
mod connection;
pub mod isolation;
mod logs;
mod memory;
mod notes;
mod orphans;
mod output;
mod probe;
mod process;
mod protocol;
mod recover;
pub mod shim;
mod space;
mod start;
mod store;
pub mod supervisor;
mod task;

use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::{Error, Event, InitialSync, PoolBackend, ReadLogs};
use crate::agent::{ObservedAttempt, StartRequest};
use crate::clock::Clock;
use crate::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use crate::model::exchange::Stop;
use crate::model::id::{AttemptId, Revision};
use crate::model::pool::{Capabilities, Device, NodeSpec};
use crate::model::region::RegionCode;
use crate::model::resource::Resources;
use crate::model::time::Timestamp;
use isolation::{Mode, Resolved, RunAs};
use notes::UNCONTAINED;
use protocol::{Attempt, EndKind, FromSupervisor, Status, ToSupervisor};
use space::Space;
use start::{Pool, start_request};

/// The kinds of jobs that this backend runs.
pub const CAPABILITIES: Capabilities = Capabilities {
    real: true,
    processes: true,
    containers: false,
    pods: false,
    leases: true,
    secrets: false,
    whole_devices_only: false,
};

/// Default bound of the output stored per attempt, all streams of all tasks together.
pub const LOG_MAX_BYTES: u64 = 64 << 20;

/// Default bound of the processes and threads of a task: more than large programs have, and less than a system has
/// numbers for.
pub const PROCESSES_MAX: u64 = 16_384;

/// Settings of a host pool.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The executable of this program: the supervisor is started from it.
    pub program: PathBuf,
    pub pool: String,
    pub region: RegionCode,
    /// The agent's state folder. The supervisor's files are in `supervisor` below it.
    pub state: PathBuf,
    /// CPUs that Weir may use; `None` means all.
    pub cpus: Option<u64>,
    /// Memory that Weir may use; `None` means seven eighths of it.
    pub memory_bytes: Option<u64>,
    /// Accelerators, in the order in which the tools of their makers list them.
    pub devices: Vec<HostDevice>,
    /// The control group below which the attempts' groups are created; `None` means the
    /// supervisor's own.
    pub cgroup_parent: Option<PathBuf>,
    /// Bound of the output stored per attempt, in bytes.
    pub log_max_bytes: u64,
    /// Bound of the processes and threads of each task, where control groups enforce it.
    pub processes_max: u64,
    pub isolation: Mode,
    pub run_as: RunAs,
    /// Files and folders that tasks must not see, such as the agent's state and tokens. Those that don't exist are
    /// skipped.
    pub hidden: Vec<PathBuf>,
}

/// An accelerator of a host pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    pub device: Device,
    /// The environment variable that restricts a task to its devices, as indices in the maker's numbering.
    pub variable: String,
}

/// The agent side of a host pool.
pub struct Host {
    settings: Settings,
    clock: Clock,
    requests: mpsc::UnboundedSender<ToSupervisor>,
    /// The other end of `requests`, until the backend is opened.
    to_send: Option<mpsc::UnboundedReceiver<ToSupervisor>>,
    events: Option<mpsc::UnboundedSender<Event>>,
    /// How tasks are separated, once the backend is open.
    isolation: Option<protocol::Isolation>,
}

impl Host {
    /// Makes a backend, which is not opened yet.
    pub fn new(settings: Settings, clock: Clock) -> Self {
        let (requests, to_send) = mpsc::unbounded_channel();
        Self { settings, clock, requests, to_send: Some(to_send), events: None, isolation: None }
    }

    fn folder(&self) -> PathBuf {
        self.settings.state.join("supervisor")
    }

    fn send(&self, request: ToSupervisor) {
        // The receiver ends only when the connection does; then the agent opens the backend again.
        let _ = self.requests.send(request);
    }

    fn report_start_failed(&self, attempt: AttemptId, message: String) {
        let now = self.clock.now();
        let outcome = Outcome::plain(OutcomeKind::StartFailed, &message);
        let status = AttemptStatus::Ended { started_at: None, ended_at: now, outcome };
        if let Some(events) = &self.events {
            let _ = events.send(Event::StatusChanged { attempt, status });
        }
    }

    /// What this pool does not enforce, as far as it is not the supervisor's part.
    fn notes(&self) -> Vec<String> {
        let note = "a part of a device is counted, not enforced: the task sees the whole device";
        (!self.settings.devices.is_empty()).then(|| note.to_owned()).into_iter().collect()
    }
}

/// The name of this machine.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    if crate::model::text::is_host_name(&name) { name } else { "localhost".to_owned() }
}

/// The name of the pool's node: that of the machine when the pool was first opened. A machine that is renamed stays
/// the same node, with the tasks that run on it. Under a new name their capacity would be given out twice.
fn node_name(folder: &Path, host_name: &str) -> std::io::Result<String> {
    if let Some(name) = stored_node_name(folder)? {
        return Ok(name);
    }
    crate::files::replace_durably(&folder.join(NODE_FILE), format!("{host_name}\n").as_bytes())?;
    Ok(host_name.to_owned())
}

/// The file with the name of the pool's node.
const NODE_FILE: &str = "node";

/// The name that the pool's node has, if the pool was opened before.
fn stored_node_name(folder: &Path) -> std::io::Result<Option<String>> {
    let file = folder.join(NODE_FILE);
    match std::fs::read_to_string(&file) {
        Ok(name) if crate::model::text::is_host_name(name.trim()) => Ok(Some(name.trim().to_owned())),
        Ok(name) => {
            let message = format!("{}: {name:?} is not a node's name", file.display());
            Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How long a supervisor may take for the list of its attempts.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Interval of requests for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Requests without an answer after which the pool sends no heartbeats, a supervisor that was stopped is continued, and
/// one is replaced.
const PINGS_UNTIL_UNREADY: u32 = 2;
const PINGS_UNTIL_CONTINUED: u32 = 4;
const PINGS_UNTIL_REPLACED: u32 = 8;
/// Answers in a row after which the pool sends heartbeats again.
const ANSWERS_UNTIL_READY: u32 = 2;

/// Replaces a supervisor that doesn't answer, until the agent has gone: tasks may have stopped it, and it would neither
/// start nor end anything. The next one adopts what runs. Intervals are counted, not time: a machine that was suspended
/// proves nothing.
async fn watch_supervisor(
    pool: String,
    supervisor: Option<i32>,
    requests: mpsc::UnboundedSender<ToSupervisor>,
    answers: Arc<AtomicU64>,
    events: mpsc::UnboundedSender<Event>,
) {
    let Some(process) = supervisor.and_then(Pid::from_raw) else { return };
    // Names the process for as long as it is needed, whatever takes its number later.
    let Ok(process) = pidfd_open(process, PidfdFlags::empty()) else { return };
    let (mut unanswered, mut answered, mut seen) = (0, ANSWERS_UNTIL_READY, 0);
    while !events.is_closed() {
        let _ = requests.send(ToSupervisor::Ping);
        tokio::time::sleep(PING_INTERVAL).await;
        let now = answers.load(Ordering::Relaxed);
        (unanswered, answered) = if now == seen { (unanswered + 1, 0) } else { (0, answered + 1) };
        seen = now;
        if unanswered == PINGS_UNTIL_UNREADY || answered == ANSWERS_UNTIL_READY {
            let _ = events.send(Event::Working(answered > 0));
        }
        if unanswered == PINGS_UNTIL_CONTINUED {
            tracing::warn!(pool, "the supervisor doesn't answer: it may have been stopped, and is continued");
            let _ = pidfd_send_signal(&process, Signal::CONT);
        } else if unanswered == PINGS_UNTIL_REPLACED {
            tracing::error!(pool, "the supervisor doesn't answer: it is killed and replaced");
            let _ = pidfd_send_signal(&process, Signal::KILL);
            let _ = events.send(Event::Gone);
            return;
        }
    }
}

/// Interval of checks of the free space.
const SPACE_INTERVAL: Duration = Duration::from_secs(2);

/// Closes the node while the disk of the pool's state is full, until the agent has gone.
async fn watch_space(
    folder: PathBuf,
    pool: String,
    node: NodeSpec,
    events: mpsc::UnboundedSender<Event>,
    mut is_low: bool,
) {
    while !events.is_closed() {
        tokio::time::sleep(SPACE_INTERVAL).await;
        let read = folder.clone();
        let Ok(Some(space)) = tokio::task::spawn_blocking(move || Space::of(&read)).await else { continue };
        if std::mem::replace(&mut is_low, space.is_low()) == space.is_low() {
            continue;
        }
        let (free_bytes, folder) = (space.free_bytes, folder.display());
        if is_low {
            tracing::warn!(pool, free_bytes, %folder, "the disk is full: the node takes no new work");
        } else {
            tracing::info!(pool, free_bytes, %folder, "the disk has space again: the node takes new work");
        }
        let nodes = vec![NodeSpec { cordoned: is_low, ..node.clone() }];
        let _ = events.send(Event::NodesChanged { nodes, removed: Vec::new() });
    }
}

/// Describes the part of this machine that the pool may use.
fn node(settings: &Settings, name: String) -> NodeSpec {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let memory = memory_total_bytes();
    let allocatable = Resources {
        cpu_millis: settings.cpus.unwrap_or(cpus) * 1_000,
        memory_bytes: settings.memory_bytes.unwrap_or(memory - memory / 8),
        ..Resources::default()
    };
    NodeSpec {
        name,
        labels: Default::default(),
        taints: Vec::new(),
        cordoned: false,
        allocatable,
        devices: settings.devices.iter().map(|device| device.device.clone()).collect(),
    }
}

/// Reads the machine's memory from `/proc/meminfo`; 1 GiB if that can't be read.
fn memory_total_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kibibytes.map_or(1 << 30, |kibibytes| kibibytes << 10)
}

fn outcome_kind(kind: EndKind) -> OutcomeKind {
    match kind {
        EndKind::Succeeded => OutcomeKind::Succeeded,
        EndKind::Failed => OutcomeKind::Failed,
        EndKind::OutOfMemory => OutcomeKind::OutOfMemory,
        EndKind::TimedOut => OutcomeKind::TimedOut,
        EndKind::Cancelled => OutcomeKind::Cancelled,
        EndKind::StartFailed => OutcomeKind::StartFailed,
        EndKind::Vanished => OutcomeKind::Vanished,
        EndKind::LeaseEnded => OutcomeKind::LeaseEnded,
        EndKind::NotStarted => OutcomeKind::NotStarted,
        EndKind::DiskFull => OutcomeKind::NodeLost,
    }
}

fn observed(attempt: Attempt) -> Option<ObservedAttempt> {
    let status = match attempt.status {
        Status::Running { started_unix_ms } => {
            AttemptStatus::Running { started_at: Timestamp(started_unix_ms) }
        }
        Status::Ended { started_unix_ms, ended_unix_ms, kind, exit_code, signal, message } => {
            AttemptStatus::Ended {
                started_at: started_unix_ms.map(Timestamp),
                ended_at: Timestamp(ended_unix_ms),
                outcome: Outcome {
                    exit_code,
                    signal,
                    // What the job's command can cause, the supervisor reports as `Failed`.
                    node_fault: kind == EndKind::StartFailed,
                    ..Outcome::plain(outcome_kind(kind), &message)
                },
            }
        }
    };
    Some(ObservedAttempt {
        attempt: attempt.attempt.parse().ok()?,
        ordered_revision: Revision(attempt.revision),
        start_by: Timestamp(attempt.start_by_unix_ms),
        high_water: attempt.high_water.parse().ok(),
        status,
    })
}

/// A connection to the supervisor, with what it had to report at first.
struct Supervised {
    /// Its process, if that is known.
    supervisor: Option<i32>,
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    attempts: Vec<Attempt>,
    notes: Vec<String>,
}

/// Tries of a first exchange with the supervisor: one that is being killed may accept a connection and close it.
const LIST_TRIES: usize = 5;
/// Wait between two of them.
const LIST_RETRY: Duration = Duration::from_millis(50);

/// The supervisor has closed the connection.
fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

impl Host {
    /// Connects to the supervisor, which is started if none runs, and lists its attempts.
    async fn list_attempts(&self) -> std::io::Result<Supervised> {
        let (program, folder) = (self.settings.program.clone(), self.folder());
        let parent = self.settings.cgroup_parent.clone();
        let connect = move || client::connect(&folder, &program, parent.as_deref());
        let stream = tokio::task::spawn_blocking(connect).await.map_err(std::io::Error::other)??;
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        let supervisor = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (read, mut write) = stream.into_split();
        let (mut lines, mut notes) = (BufReader::new(read).lines(), Vec::new());
        write.write_all(&line_of(&ToSupervisor::List)).await?;
        loop {
            let line = tokio::time::timeout(ANSWER_MAX, lines.next_line()).await;
            let line = line.map_err(|_| std::io::Error::other("the supervisor doesn't answer"))??;
            let closed = || std::io::Error::new(UnexpectedEof, "the supervisor closed the connection");
            match serde_json::from_str(&line.ok_or_else(closed)?)? {
                FromSupervisor::Notes { notes: more } => notes.extend(more),
                FromSupervisor::Attempts { attempts } => {
                    return Ok(Supervised { supervisor, lines, write, attempts, notes });
                }
                FromSupervisor::StatusChanged(_) | FromSupervisor::Pong => {}
            }
        }
    }
}

impl PoolBackend for Host {
    async fn open(&mut self, events: mpsc::UnboundedSender<Event>) -> Result<InitialSync, Error> {
        let failed = |source| Error::Open { pool: self.settings.pool.clone(), source };
        let mut tries = 0;
        let supervised = loop {
            tries += 1;
            match self.list_attempts().await {
                Err(error) if tries < LIST_TRIES && is_gone(&error) => tokio::time::sleep(LIST_RETRY).await,
                listed => break listed.map_err(failed)?,
            }
        };
        let Supervised { supervisor, mut lines, mut write, attempts, notes: of_supervisor } = supervised;
        let host_name = host_name();
        let name = node_name(&self.folder(), &host_name).map_err(failed)?;
        let settings = self.settings.clone();
        let resolved = tokio::task::spawn_blocking(move || isolation::resolve(&settings)).await;
        let resolved = resolved.map_err(std::io::Error::other).and_then(|resolved| resolved);
        let Resolved { isolation, notes: of_isolation } = resolved.map_err(failed)?;
        self.isolation = isolation;
        let mut notes = self.notes();
        notes.extend(of_isolation);
        if name != host_name {
            notes.push(format!("this machine is called {host_name} now; its node keeps the name {name}"));
        }
        let node = node(&self.settings, name);
        let is_low = Space::of(&self.folder()).is_some_and(Space::is_low);
        if is_low {
            let folder = self.folder();
            tracing::warn!(pool = self.settings.pool, folder = %folder.display(), "the disk is full: the node takes no new work");
        }
        let nodes = vec![NodeSpec { cordoned: is_low, ..node.clone() }];
        let mut initial = InitialSync { nodes, notes, ..InitialSync::default() };
        initial.notes.extend(of_supervisor);
        initial.attempts = attempts.into_iter().filter_map(observed).collect();
        if self.isolation.is_some() {
            // The namespaces of a task contain its processes.
            initial.notes.retain(|note| note != UNCONTAINED);
        }
        for note in &initial.notes {
            tracing::warn!(pool = self.settings.pool, note);
        }
        let mut to_send =
            self.to_send.take().ok_or_else(|| Error::Gone { pool: self.settings.pool.clone() })?;
        self.events = Some(events.clone());
        let pool = self.settings.pool.clone();
        tokio::spawn(watch_space(self.folder(), pool, node, events.clone(), is_low));
        tokio::spawn(async move {
            while let Some(request) = to_send.recv().await {
                if write.write_all(&line_of(&request)).await.is_err() {
                    return;
                }
            }
        });
        let answers = Arc::new(AtomicU64::new(0));
        let watched = watch_supervisor(
            self.settings.pool.clone(),
            supervisor,
            self.requests.clone(),
            answers.clone(),
            events.clone(),
        );
        tokio::spawn(watched);
        // If the supervisor ends, the agent opens the backend again, which starts another one.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                answers.fetch_add(1, Ordering::Relaxed);
                let Ok(FromSupervisor::StatusChanged(attempt)) = serde_json::from_str(&line) else {
                    continue;
                };
                if let Some(ObservedAttempt { attempt, status, .. }) = observed(attempt) {
                    let _ = events.send(Event::StatusChanged { attempt, status });
                }
            }
            let _ = events.send(Event::Gone);
        });
        Ok(initial)
    }

    fn start(&mut self, start: StartRequest) {
        let pool = Pool {
            name: &self.settings.pool,
            region: self.settings.region,
            devices: &self.settings.devices,
            log_max_bytes: self.settings.log_max_bytes,
            processes_max: self.settings.processes_max,
            isolation: self.isolation.as_ref(),
        };
        match start_request(&pool, &start, self.clock) {
            Ok(request) => self.send(ToSupervisor::StartAttempt(request)),
            Err(message) => self.report_start_failed(start.order.attempt, message),
        }
    }

    fn stop(&mut self, stop: Stop) {
        self.send(ToSupervisor::Stop { attempt: stop.attempt.to_string(), grace_ms: stop.grace_ms });
    }

    fn forget(&mut self, attempt: AttemptId) {
        self.send(ToSupervisor::Forget { attempt: attempt.to_string() });
    }

    fn renew(&mut self, _from: Timestamp, from_boot_ms: u64) {
        self.send(ToSupervisor::Renew { from_boot_ms });
    }

    fn logs(&self) -> Arc<dyn ReadLogs> {
        Arc::new(logs::Logs { state: self.folder() })
    }
}

fn line_of(request: &ToSupervisor) -> Vec<u8> {
    // Structs of strings and numbers only: serialisation can't fail.
    let mut line = serde_json::to_vec(request).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_keeps_its_name_when_the_machine_is_renamed() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(node_name(folder.path(), "first").unwrap(), "first");
        assert_eq!(node_name(folder.path(), "second").unwrap(), "first");
        std::fs::write(folder.path().join("node"), "no name\u{7}").unwrap();
        let error = node_name(folder.path(), "third").unwrap_err().to_string();
        assert!(error.contains("is not a node's name"), "{error}");
    }
}
