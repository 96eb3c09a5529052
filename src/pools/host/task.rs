//! One attempt as its supervisor keeps it: a process group, its deadlines, its files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, test_kill_process_group};

use super::process;
use super::protocol::{Attempt, EndKind, Launch, Status};
use super::store::{self, ProcessRecord};

/// From the hard end of a group's main process until what it left behind is killed.
const LEFTOVERS_GRACE_MS: u64 = 2_000;

/// An attempt that may still have processes.
pub(super) struct Task {
    pub(super) launch: Launch,
    pub(super) directory: PathBuf,
    pid: i32,
    /// `None` for a process that an earlier supervisor started: its exit status can't be known.
    child: Option<Child>,
    pub(super) pidfd: Option<OwnedFd>,
    started_unix_ms: u64,
    started_boot_ms: u64,
    /// Why it is being ended, and when the hard signal goes out.
    stopping: Option<(EndKind, u64, String)>,
    killed: bool,
    /// Its main process has ended so; others of the group may be left until then.
    exited: Option<(Option<i32>, Option<i32>)>,
    leftovers_until: u64,
    /// Bytes of output when it was last looked at.
    seen: [u64; 2],
}

/// The two files of output.
pub(super) const STREAMS: [&str; 2] = ["stdout", "stderr"];

impl Task {
    /// Starts a command whose directory is made.
    pub(super) fn spawn(launch: Launch, directory: PathBuf, unix_ms: u64, boot_ms: u64) -> io::Result<Self> {
        let output = |name: &str| OpenOptions::new().create(true).append(true).open(directory.join(name));
        let workdir = match &launch.workdir {
            Some(path) => PathBuf::from(path),
            None => {
                let path = directory.join("work");
                store::create_private_dir(&path)?;
                path
            }
        };
        let (program, arguments) =
            launch.command.split_first().ok_or_else(|| io::Error::other("no command"))?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().current_dir(&workdir);
        for name in ["PATH", "HOME", "LANG", "USER"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.envs(launch.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output("stdout")?).stderr(output("stderr")?).process_group(0);
        let child = command.spawn().map_err(|error| {
            // The program may be there and the directory not: the error alone doesn't say which.
            let what = if workdir.is_dir() { program.clone() } else { workdir.display().to_string() };
            io::Error::new(error.kind(), format!("{what}: {error}"))
        })?;
        let pid = child.id().cast_signed();
        let record = ProcessRecord {
            pid,
            started_ticks: process::stat(pid).map_or(0, |stat| stat.started_ticks),
            started_unix_ms: unix_ms,
        };
        store::write(&directory.join("pid"), &record)?;
        Ok(Self::new(launch, directory, pid, Some(child), unix_ms, boot_ms))
    }

    /// Takes over a process that an earlier supervisor started.
    pub(super) fn adopt(
        launch: Launch,
        directory: PathBuf,
        record: &ProcessRecord,
        unix_ms: u64,
        boot_ms: u64,
    ) -> Self {
        let ran_ms = unix_ms.saturating_sub(record.started_unix_ms);
        let started_boot_ms = boot_ms.saturating_sub(ran_ms);
        Self::new(launch, directory, record.pid, None, record.started_unix_ms, started_boot_ms)
    }

    fn new(
        launch: Launch,
        directory: PathBuf,
        pid: i32,
        child: Option<Child>,
        started_unix_ms: u64,
        started_boot_ms: u64,
    ) -> Self {
        let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Self {
            launch,
            directory,
            pid,
            child,
            pidfd,
            started_unix_ms,
            started_boot_ms,
            stopping: None,
            killed: false,
            exited: None,
            leftovers_until: 0,
            seen: [0; 2],
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// How it stands, while it has not ended.
    pub(super) fn running(&self) -> Attempt {
        attempt(&self.launch, Status::Running { started_unix_ms: self.started_unix_ms })
    }

    /// Begins to end it, politely. A reason given before stays.
    pub(super) fn stop(&mut self, kind: EndKind, grace_ms: u64, message: String, boot_ms: u64) {
        if self.stopping.is_none() && self.exited.is_none() {
            self.stopping = Some((kind, boot_ms + grace_ms, message));
            self.signal(if grace_ms == 0 { Signal::KILL } else { Signal::TERM });
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = Pid::from_raw(self.pid) {
            process::signal_group(group, signal);
        }
    }

    /// When something must be done next, on the boot clock.
    pub(super) fn deadline(&self) -> u64 {
        if self.exited.is_some() {
            return self.leftovers_until;
        }
        match &self.stopping {
            Some((_, kill_at, _)) if !self.killed => *kill_at,
            Some(_) => u64::MAX,
            None if self.launch.max_run_ms > 0 => self.started_boot_ms.saturating_add(self.launch.max_run_ms),
            None => u64::MAX,
        }
    }

    /// Does what is due: ends what ran too long, kills what did not go.
    pub(super) fn keep_deadlines(&mut self, boot_ms: u64) {
        if self.deadline() > boot_ms {
            return;
        }
        if self.exited.is_some() {
            self.kill_leftovers(Signal::KILL);
        } else if self.stopping.is_some() {
            self.killed = true;
            self.kill_leftovers(Signal::KILL);
        } else {
            let message = format!("ran longer than {} ms", self.launch.max_run_ms);
            self.stop(EndKind::TimedOut, self.launch.grace_ms.max(1), message, boot_ms);
        }
    }

    /// Notes the exit of the main process; tells whether it has exited.
    pub(super) fn reap(&mut self, boot_ms: u64) -> bool {
        if self.exited.is_some() {
            return true;
        }
        let ended = match &mut self.child {
            Some(child) => match child.try_wait() {
                Ok(Some(status)) => Some((status.code(), status.signal())),
                Ok(None) => None,
                Err(_) => Some((None, None)),
            },
            None => process::stat(self.pid).is_none_or(|stat| stat.dead).then_some((None, None)),
        };
        if ended.is_some() {
            self.exited = ended;
            self.leftovers_until = boot_ms + LEFTOVERS_GRACE_MS;
            self.pidfd = None;
            if self.has_leftovers() {
                self.kill_leftovers(Signal::TERM);
            }
        }
        ended.is_some()
    }

    /// Other processes of the attempt are alive: of its group, or strayed from it.
    pub(super) fn has_leftovers(&self) -> bool {
        Pid::from_raw(self.pid).is_some_and(|group| test_kill_process_group(group).is_ok())
            || !self.strays().is_empty()
    }

    /// Orphans that have become children of this process and carry the attempt's name.
    fn strays(&self) -> Vec<i32> {
        let children = process::own_children().into_iter().filter(|pid| *pid != self.pid);
        children
            .filter(|pid| process::stat(*pid).is_some_and(|stat| !stat.dead))
            .filter(|pid| process::attempt_of(*pid).as_deref() == Some(&self.launch.attempt))
            .collect()
    }

    fn kill_leftovers(&self, signal: Signal) {
        self.signal(signal);
        self.strays().into_iter().for_each(|pid| process::signal(pid, signal));
    }

    /// How it ended, once nothing is left of it.
    pub(super) fn outcome(&self, unix_ms: u64) -> Attempt {
        let (exit_code, signal) = self.exited.unwrap_or_default();
        let (kind, message) = match (&self.stopping, exit_code, signal) {
            // What ended well before the signal reached it ended well.
            (_, Some(0), None) => (EndKind::Succeeded, String::new()),
            (Some((kind, _, message)), _, _) => (*kind, message.clone()),
            (None, None, None) => {
                (EndKind::Vanished, "its supervisor was restarted: the exit status is unknown".to_owned())
            }
            (None, Some(_), _) => (EndKind::Failed, String::new()),
            (None, None, Some(signal)) => (EndKind::Failed, format!("killed by signal {signal}")),
        };
        let status = Status::Ended {
            started_unix_ms: Some(self.started_unix_ms),
            ended_unix_ms: unix_ms.max(self.started_unix_ms),
            kind,
            exit_code,
            signal,
            message,
        };
        attempt(&self.launch, status)
    }

    /// Keeps the head and the tail of each stream and gives the middle back to the disk.
    ///
    /// Offsets stay what they were: the file has a hole. Tells whether it grows fast.
    pub(super) fn cap_output(&mut self) -> bool {
        let (each, mut fast) = (self.launch.log_max_bytes / 2, false);
        for (index, name) in STREAMS.iter().enumerate() {
            let path = self.directory.join(name);
            let Ok(size) = std::fs::metadata(&path).map(|found| found.len()) else { continue };
            fast |= size.saturating_sub(self.seen[index]) > each / 8;
            if size > each && size != self.seen[index] {
                let (head, tail) = (each / 2, size - each / 2);
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let punched = OpenOptions::new().write(true).open(&path);
                let punched = punched.and_then(|file: File| Ok(fallocate(&file, punch, head, tail - head)?));
                if punched.is_err() {
                    // A file system without holes: nothing less than stopping it bounds the disk.
                    self.signal(Signal::KILL);
                }
            }
            self.seen[index] = size;
        }
        fast
    }
}

/// An attempt in a status.
pub(super) fn attempt(launch: &Launch, status: Status) -> Attempt {
    Attempt {
        attempt: launch.attempt.clone(),
        revision: launch.revision,
        start_by_unix_ms: launch.start_by_unix_ms,
        leased: launch.leased,
        status,
    }
}
