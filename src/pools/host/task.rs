//! One task as its supervisor keeps it: a process group, maybe a control group, and its files.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitStatus, pidfd_open, test_kill_process_group};

use super::attempt::Now;
use super::cgroup::Group;
use super::enter;
use super::output::{self, Look};
use super::process;
use super::protocol::{EndKind, StartAttempt};
use super::store::{self, ProcessRecord};
use crate::pools::Stream;

/// Where programs are looked for if neither the launch nor the supervisor's environment says.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The exit code of a program that may not be executed: that of a shell.
const NOT_EXECUTABLE: i32 = 126;

/// A task that was started.
pub(super) struct Task {
    rank: usize,
    pid: i32,
    started_ticks: u64,
    /// Started by this process, so its exit status comes from waiting for it.
    is_child: bool,
    /// Wakes the supervisor when the main process ends.
    pub(super) pidfd: Option<OwnedFd>,
    group: Option<Group>,
    /// How its main process ended, once it has.
    exit: Option<Exit>,
    /// Bytes of output when it was last looked at.
    seen: [u64; 2],
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) kind: EndKind,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) message: String,
}

impl Exit {
    /// An end without an exit status.
    pub(super) fn plain(kind: EndKind, message: &str) -> Self {
        Self { kind, exit_code: None, signal: None, message: message.to_owned() }
    }

    /// The end of a task whose program could not be started.
    ///
    /// What the job itself got wrong ends as in a shell, with 127 for a program that isn't there and
    /// 126 for one that may not be executed; the rest is this machine's fault.
    pub(super) fn of_refused_start(error: &io::Error) -> Self {
        let exit_code = match error.kind() {
            io::ErrorKind::NotFound => Some(enter::FAILED),
            io::ErrorKind::PermissionDenied => Some(NOT_EXECUTABLE),
            _ => None,
        };
        let kind = if exit_code.is_some() { EndKind::Failed } else { EndKind::StartFailed };
        Self { exit_code, ..Self::plain(kind, &error.to_string()) }
    }
}

impl Task {
    /// Starts the task of this rank in an attempt whose directory is made.
    ///
    /// # Errors
    /// What keeps the program from being started, naming what it is about.
    pub(super) fn spawn(
        launch: &StartAttempt,
        directory: &Path,
        rank: usize,
        group: Option<Group>,
    ) -> io::Result<Self> {
        let output = |stream| output::create(directory, rank, stream);
        let spawn = |shell| {
            let mut command = command(launch, directory, rank, group.as_ref(), shell)?;
            command.stdin(Stdio::null()).stdout(output(Stream::Stdout)?).stderr(output(Stream::Stderr)?);
            command.process_group(0).spawn()
        };
        let child = match spawn(None) {
            // A text that doesn't say who reads it: as every shell does, let one read it.
            Err(error) if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
                spawn(Some("/bin/sh"))?
            }
            spawned => spawned?,
        };
        let pid = child.id().cast_signed();
        let started_ticks = process::stat(pid).map_or(0, |stat| stat.started_ticks);
        Ok(Self::new(rank, pid, started_ticks, true, group))
    }

    /// Takes over a task that an earlier supervisor started. Its exit status can't be known.
    pub(super) fn adopt(rank: usize, pid: i32, started_ticks: u64, group: Option<Group>) -> Self {
        Self::new(rank, pid, started_ticks, false, group)
    }

    fn new(rank: usize, pid: i32, started_ticks: u64, is_child: bool, group: Option<Group>) -> Self {
        let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Self { rank, pid, started_ticks, is_child, pidfd, group, exit: None, seen: [0; 2] }
    }

    /// Its place in its attempt.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// Its main process, which also names its process group.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// The control group that it runs in.
    pub(super) fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// How its main process ended, once it has.
    pub(super) fn exit(&self) -> Option<&Exit> {
        self.exit.as_ref()
    }

    /// What the next supervisor must know of it.
    pub(super) fn record(&self, attempt: &str, started: Now, boot_id: &str) -> ProcessRecord {
        ProcessRecord {
            attempt: attempt.to_owned(),
            rank: self.rank,
            pid: self.pid,
            started_ticks: self.started_ticks,
            started_unix_ms: started.unix_ms,
            started_boot_ms: started.boot_ms,
            boot_id: boot_id.to_owned(),
        }
    }

    /// Notes what waiting for its main process brought.
    pub(super) fn note_exit(&mut self, status: WaitStatus, directory: &Path) {
        let (exit_code, signal) = (status.exit_status(), status.terminating_signal());
        let (kind, message) = match (exit_code, signal) {
            (Some(0), _) => (EndKind::Succeeded, String::new()),
            _ if self.group.as_ref().is_some_and(Group::ran_out_of_memory) => {
                (EndKind::OutOfMemory, "used more memory than was asked for".to_owned())
            }
            (Some(enter::FAILED), _) if self.group.is_some() => self.why_not_started(directory),
            (None, Some(signal)) => (EndKind::Failed, format!("killed by signal {signal}")),
            _ => (EndKind::Failed, String::new()),
        };
        let exit_code = exit_code.filter(|_| kind != EndKind::StartFailed);
        self.end(Exit { kind, exit_code, signal, message });
    }

    /// Tells a program that never began from one that itself ended with that code.
    fn why_not_started(&self, directory: &Path) -> (EndKind, String) {
        match std::fs::read_to_string(failure_path(directory, self.rank)) {
            Ok(message) => (EndKind::StartFailed, message),
            Err(_) => (EndKind::Failed, String::new()),
        }
    }

    /// Notes the end of a process that somebody else waits for.
    pub(super) fn notice_end(&mut self) {
        if self.exit.is_none() && !self.is_child && !self.is_alive() {
            let message = "its supervisor was restarted: the exit status is unknown";
            self.end(Exit::plain(EndKind::Vanished, message));
        }
    }

    fn end(&mut self, exit: Exit) {
        self.exit = Some(exit);
        self.pidfd = None;
    }

    /// Its main process is there, and is no other that got its number since.
    fn is_alive(&self) -> bool {
        process::stat(self.pid).is_some_and(|stat| !stat.dead && stat.started_ticks == self.started_ticks)
    }

    /// Its process group has members.
    ///
    /// A number is not given to a new process while a group bears it. So if the main process was
    /// waited for and there is a process of that number, then the group is empty, and the number
    /// now means somebody else.
    pub(super) fn has_process_group(&self) -> bool {
        let Some(group) = Pid::from_raw(self.pid) else { return false };
        let main = process::stat(self.pid);
        let same = main.is_some_and(|stat| stat.started_ticks == self.started_ticks);
        let ours = match (&self.exit, self.is_child) {
            (None, true) => true,
            (None, false) => same,
            (Some(_), true) => main.is_none(),
            (Some(_), false) => main.is_none() || same,
        };
        if !ours || test_kill_process_group(group).is_err() {
            return false;
        }
        // The dead count as members until they are waited for. Those of an earlier supervisor are
        // waited for by the system's first process, which may take its time.
        self.is_child || process::all().iter().any(|stat| stat.group == self.pid && !stat.dead)
    }

    /// Sends a signal to its process group.
    pub(super) fn signal(&self, signal: Signal) {
        if self.has_process_group()
            && let Some(group) = Pid::from_raw(self.pid)
        {
            process::signal_group(group, signal);
        }
    }

    /// Keeps its output within its bound.
    pub(super) fn bound_output(&mut self, directory: &Path, stream_max_bytes: u64) -> Look {
        output::bound(directory, self.rank, stream_max_bytes, &mut self.seen)
    }
}

/// The directory that a task starts in.
fn workdir(launch: &StartAttempt, directory: &Path, rank: usize) -> io::Result<PathBuf> {
    match launch.group_of(rank).and_then(|group| group.workdir.as_ref()) {
        Some(path) => Ok(PathBuf::from(path)),
        None => {
            let path = directory.join(format!("{rank}.work"));
            store::create_private_dir(&path)?;
            Ok(path)
        }
    }
}

fn failure_path(directory: &Path, rank: usize) -> PathBuf {
    directory.join(format!("{rank}.failure"))
}

/// The command of a task, all but its streams.
fn command(
    launch: &StartAttempt,
    directory: &Path,
    rank: usize,
    group: Option<&Group>,
    shell: Option<&str>,
) -> io::Result<Command> {
    let (Some(what), Some(task)) = (launch.group_of(rank), launch.tasks.get(rank)) else {
        return Err(io::Error::other("the launch names no group for a task"));
    };
    let workdir = workdir(launch, directory, rank)?;
    if !workdir.is_dir() {
        // The system's own error doesn't tell a missing directory from a missing program.
        let message = format!("{}: no such directory", workdir.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    let (program, arguments) = what.command.split_first().ok_or_else(|| io::Error::other("no command"))?;
    let env: Vec<&(String, String)> = what.env.iter().chain(&launch.env).chain(&task.env).collect();
    let set = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.into());
    let path = set.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| PATH_DEFAULT.into());
    let found = find_program(program, &path, &workdir)?;
    let mut command = match (group, shell) {
        (Some(group), _) => {
            enter::command(&group.procs(), &failure_path(directory, rank), Some((&found, program)))
        }
        (None, Some(shell)) => {
            let mut command = Command::new(shell);
            command.arg(&found);
            command
        }
        (None, None) => {
            let mut command = Command::new(&found);
            command.arg0(program);
            command
        }
    };
    command.args(arguments).current_dir(&workdir).env_clear();
    for name in ["HOME", "LANG", "USER"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.env("PATH", &path).envs(env.into_iter().map(|(name, value)| (name, value)));
    Ok(command)
}

/// Finds a program as a shell in `workdir` would. A full path also lets the standard library start
/// it without copying this process.
fn find_program(program: &str, path: &std::ffi::OsStr, workdir: &Path) -> io::Result<PathBuf> {
    let refused = |kind, why: &str| io::Error::new(kind, format!("{program}: {why}"));
    let runs = |file: &Path| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok();
    if program.contains('/') {
        let file = workdir.join(program);
        return match (runs(&file), file.exists()) {
            (true, _) => Ok(file),
            (false, true) => Err(refused(io::ErrorKind::PermissionDenied, "can't be executed")),
            (false, false) => Err(refused(io::ErrorKind::NotFound, "no such file")),
        };
    }
    let mut places = std::env::split_paths(path).map(|place| workdir.join(place).join(program));
    places.find(|file| runs(file)).ok_or_else(|| refused(io::ErrorKind::NotFound, "no such program in PATH"))
}
