//! Messages between an agent and its supervisor: one JSON value per line, in both directions.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::limit::LEASE_MS_DEFAULT;

/// A request of an agent. Every request may be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToSupervisor {
    /// Starts an attempt. If the attempt exists, only its status is sent again.
    StartAttempt(StartAttempt),
    /// Stops a running attempt: SIGTERM to its process groups, SIGKILL after `grace_ms`.
    Stop { attempt: String, grace_ms: u64 },
    /// Forgets an ended attempt. Its output stays until its retention is over.
    Forget { attempt: String },
    /// Renews the leases of all attempts. A time before the last one is ignored.
    Renew {
        /// In milliseconds of `CLOCK_BOOTTIME`: both sides read the same clock, and it never jumps.
        from_boot_ms: u64,
    },
    /// Asks for the full set of attempts.
    List,
    /// Asks for a sign of life.
    Ping,
    /// Ends the supervisor, unless an attempt runs.
    Shutdown,
}

/// The request to start an attempt: tasks that start and end together, each in its own process group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartAttempt {
    /// At most 40 characters out of `a-z`, `0-9` and `-`.
    pub attempt: String,
    pub revision: u64,
    /// The order's journal high-water mark as text; empty if the order had none.
    #[serde(default)]
    pub high_water: String,
    /// By the agent's clock, for its later processes.
    pub start_by_unix_ms: u64,
    /// Nothing is started after it. By the boot clock: somebody may set the wall clock. Absent in requests of
    /// older agents and in their journals.
    #[serde(default)]
    pub start_by_boot_ms: Option<u64>,
    /// Whether the tasks may only run while their lease lasts.
    pub leased: bool,
    /// How long the lease lasts once it is renewed; 0 in journals of older supervisors: the default.
    #[serde(default)]
    pub lease_ms: u64,
    /// Variables of all tasks. They override those of the groups.
    pub env: Vec<(String, String)>,
    /// What the tasks run. Equal tasks share an entry.
    pub groups: Vec<GroupStart>,
    /// At least one. The index of a task here is its rank.
    pub tasks: Vec<TaskStart>,
    /// 0: no limit.
    pub max_run_ms: u64,
    /// Time between SIGTERM and SIGKILL, if the attempt ran for `max_run_ms` or another task failed.
    pub grace_ms: u64,
    /// Bound of the processes and threads of each task; 0, as in journals of older supervisors: no limit.
    #[serde(default)]
    pub processes_max: u64,
    /// `None`: the tasks run beside the supervisor, as its user. So did those of older agents.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// Bound of the output of all tasks together. Each stream gets an equal share.
    pub log_max_bytes: u64,
}

/// What separates tasks from each other and from their supervisor: each has namespaces of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// Files and folders that tasks can't read, such as the agent's state.
    pub hidden: Vec<PathBuf>,
    /// The user that tasks run as; `None`: the supervisor's.
    pub user: Option<User>,
}

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    pub home: String,
    pub uid: u32,
    pub gid: u32,
    /// All groups, also that of `gid`.
    pub groups: Vec<u32>,
}

/// What the tasks of one group run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStart {
    pub command: Vec<String>,
    /// Variables that are added to `PATH`, `HOME`, `LANG` and `USER` of the supervisor, or of the tasks' user.
    pub env: Vec<(String, String)>,
    /// `None`: each task starts in an empty directory, which is emptied again when the attempt is forgotten.
    pub workdir: Option<String>,
    /// 0: no limit.
    pub memory_max_bytes: u64,
    /// 0: no limit.
    pub cpu_max_millis: u64,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStart {
    /// Index into [`StartAttempt::groups`].
    pub group: usize,
    /// Variables of this task. They override all others.
    pub env: Vec<(String, String)>,
}

impl StartAttempt {
    /// Returns how long the attempt's lease lasts once it is renewed; `None` if it needs none.
    pub fn lease_ms(&self) -> Option<u64> {
        self.leased.then_some(if self.lease_ms == 0 { LEASE_MS_DEFAULT } else { self.lease_ms })
    }

    /// Returns what the task with this rank runs; `None` if there is no such task or group.
    pub fn group_of(&self, rank: usize) -> Option<&GroupStart> {
        self.groups.get(self.tasks.get(rank)?.group)
    }

    /// Returns the user that the tasks run as, if that is not the supervisor's.
    pub fn user(&self) -> Option<&User> {
        self.isolation.as_ref()?.user.as_ref()
    }

    /// Returns the bound of each stream of each task, in bytes.
    pub fn stream_max_bytes(&self) -> u64 {
        self.log_max_bytes / 2 / self.tasks.len().max(1) as u64
    }
}

/// A message of a supervisor to its agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromSupervisor {
    /// The answer to `List`: every attempt that is not forgotten.
    Attempts { attempts: Vec<Attempt> },
    /// The status of an attempt changed, or the attempt was requested again.
    StatusChanged(Attempt),
    /// The answer to `Ping`.
    Pong,
    /// What this supervisor doesn't enforce, in words for an operator. The first message of a connection.
    Notes { notes: Vec<String> },
}

/// An attempt and its status at the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub attempt: String,
    pub revision: u64,
    #[serde(default)]
    pub high_water: String,
    pub start_by_unix_ms: u64,
    pub leased: bool,
    pub status: Status,
}

/// Where an attempt is between its start and its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Running {
        started_unix_ms: u64,
    },
    Ended {
        /// `None` if nothing was started.
        started_unix_ms: Option<u64>,
        ended_unix_ms: u64,
        kind: EndKind,
        exit_code: Option<i32>,
        signal: Option<i32>,
        message: String,
    },
}

/// Why an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    Succeeded,
    Failed,
    OutOfMemory,
    TimedOut,
    /// Stopped by a [`ToSupervisor::Stop`].
    Cancelled,
    /// The operating system refused to start the command.
    StartFailed,
    /// The processes are gone and their exit status is unknown.
    Vanished,
    LeaseEnded,
    /// The request came after its start-by time, or the attempt needs a lease and the lease had expired.
    NotStarted,
    /// A task failed while the disk that stores its output was full.
    DiskFull,
}
