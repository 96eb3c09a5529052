//! What an agent and its supervisor say to each other: one JSON value a line, in both directions.

use serde::{Deserialize, Serialize};

/// What an agent asks for. Every request may be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToSupervisor {
    /// Starts an attempt, unless it is known: then its status is only sent again.
    StartAttempt(StartAttempt),
    /// Ends a running attempt: SIGTERM to its process groups, SIGKILL after `grace_ms`.
    Stop { attempt: String, grace_ms: u64 },
    /// Drops the memory of an ended attempt; its logs are kept until their retention is over.
    Forget { attempt: String },
    /// Extends the lease of all leased attempts. An earlier end than the present one is ignored.
    Renew {
        /// In milliseconds of `CLOCK_BOOTTIME`, which both sides share and which never jumps.
        lease_until_boot_ms: u64,
    },
    /// Asks for the full set of attempts.
    List,
    /// Ends the supervisor, if nothing runs.
    Shutdown,
}

/// Tasks that start and end together, each as a process group of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartAttempt {
    /// At most 40 characters out of `a-z`, `0-9` and `-`.
    pub attempt: String,
    pub revision: u64,
    /// The order's stamp as text; empty if it had none.
    #[serde(default)]
    pub high_water: String,
    /// Wall clock. After it nothing is started.
    pub start_by_unix_ms: u64,
    /// Whether the tasks may only run while the lease lasts.
    pub leased: bool,
    /// Of every task, on top of its group's.
    pub env: Vec<(String, String)>,
    /// What the tasks run: equal ones share an entry.
    pub groups: Vec<GroupStart>,
    /// At least one. A task's place here is its rank.
    pub tasks: Vec<TaskStart>,
    /// 0: no limit.
    pub max_run_ms: u64,
    /// Between SIGTERM and SIGKILL when `max_run_ms` is over, or another task has failed.
    pub grace_ms: u64,
    /// Of all output of all tasks together, an equal share for each stream.
    pub log_max_bytes: u64,
}

/// What the tasks of one group run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStart {
    pub command: Vec<String>,
    /// On top of `PATH`, `HOME`, `LANG` and `USER` of the supervisor.
    pub env: Vec<(String, String)>,
    /// `None`: an empty directory for each task, removed when the attempt is forgotten.
    pub workdir: Option<String>,
    /// 0: no limit.
    pub memory_max_bytes: u64,
    /// 0: no limit.
    pub cpu_max_millis: u64,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStart {
    /// Its place in `Launch::groups`.
    pub group: usize,
    /// Its own, on top of all others.
    pub env: Vec<(String, String)>,
}

impl StartAttempt {
    /// What the task of this rank runs; `None` if the launch contradicts itself.
    pub fn group_of(&self, rank: usize) -> Option<&GroupStart> {
        self.groups.get(self.tasks.get(rank)?.group)
    }

    /// The bytes that each stream of each task may keep.
    pub fn stream_max_bytes(&self) -> u64 {
        self.log_max_bytes / 2 / self.tasks.len().max(1) as u64
    }
}

/// What a supervisor tells its agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromSupervisor {
    /// Answers `List`: every attempt that is not forgotten.
    Attempts { attempts: Vec<Attempt> },
    /// An attempt changed, or was asked for again.
    StatusChanged(Attempt),
    /// What this supervisor doesn't enforce, in words for an operator. Sent first.
    Notes { notes: Vec<String> },
}

/// An attempt as its supervisor knows it.
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

/// Why an attempt is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    Succeeded,
    Failed,
    OutOfMemory,
    TimedOut,
    /// Ended by `Stop`.
    Cancelled,
    /// The operating system refused to start the command.
    StartFailed,
    /// The process is gone and nobody saw its exit status.
    Vanished,
    LeaseEnded,
    /// Too late: past its start-by time, or leased with the lease over.
    NotStarted,
}
