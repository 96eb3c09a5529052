//! One task in the supervisor: a process group, maybe a control group, and the task's files.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{chown, fchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitStatus, pidfd_open, test_kill_process_group};

use super::cgroup::{self, Group};
use super::output::{self, Growth};
use super::process::{self, ATTEMPT_VARIABLE, RANK_VARIABLE, SHIM_VARIABLE};
use super::protocol::{EndKind, StartAttempt, User};
use super::shim::{
    self, Confinement, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, Exchange, Namespaces, Report, THIS_PROGRAM,
};
use super::store::{self, ProcessRecord};
use crate::pools::Stream;

/// Where programs are searched if neither the request nor the supervisor's environment sets `PATH`, and for tasks of
/// another user.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The time on both clocks, read once per iteration of the supervisor's loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) unix_ms: u64,
    pub(super) boot_ms: u64,
}

/// A task that was started.
pub(super) struct Task {
    rank: usize,
    pid: i32,
    started_ticks: u64,
    /// The main process was started by this process, which gets its exit status by waiting.
    is_child: bool,
    /// Readable when the main process ends; `None` after that, or if it could not be opened.
    pub(super) pidfd: Option<OwnedFd>,
    group: Option<Group>,
    /// With what the shim was started; `None` without one, or if an earlier supervisor started it.
    exchange: Option<Exchange>,
    /// How the main process ended; `None` while it runs.
    exit: Option<Exit>,
    /// Sizes of the output streams at the last poll, in bytes.
    output_sizes: [u64; 2],
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
    /// Makes an exit without an exit status.
    pub(super) fn plain(kind: EndKind, message: &str) -> Self {
        Self { kind, exit_code: None, signal: None, message: message.to_owned() }
    }

    /// Makes the exit of a task whose program could not be started.
    ///
    /// Errors in the job have the exit codes of a shell: 127 if the program does not exist, 126 if it
    /// can't be executed. What the machine lacks counts as a failed start, and against the node: only such errors,
    /// as everything else can be caused by the job's command, environment or directory.
    pub(super) fn of_spawn_error(error: &io::Error) -> Self {
        let exit_code = match error.kind() {
            io::ErrorKind::NotFound => Some(EXIT_NOT_FOUND),
            _ if shim::is_of_machine(error) => None,
            _ => Some(EXIT_NOT_EXECUTABLE),
        };
        let kind = if exit_code.is_some() { EndKind::Failed } else { EndKind::StartFailed };
        Self { exit_code, ..Self::plain(kind, &error.to_string()) }
    }
}

impl Task {
    /// Starts the task with this rank. The attempt's `directory` must exist.
    ///
    /// # Errors
    /// Why the program could not be started, with the name of the program or directory.
    pub(super) fn spawn(
        request: &StartAttempt,
        directory: &Path,
        rank: usize,
        group: Option<Group>,
    ) -> io::Result<Self> {
        let user = request.user();
        let output = |stream| {
            let file = output::create(directory, rank, stream)?;
            // Programs open their output again, by `/dev/stdout`.
            user.map_or(Ok(()), |user| fchown(&file, Some(user.uid), Some(user.gid)))?;
            Ok::<_, io::Error>(file)
        };
        let spawn = |shell| -> io::Result<(Child, Option<Exchange>)> {
            let (mut command, exchange) = command(request, directory, rank, group.as_ref(), shell)?;
            let stdin = exchange.as_ref().map_or(Ok(Stdio::null()), Exchange::stdin)?;
            command.stdin(stdin).stdout(output(Stream::Stdout)?).stderr(output(Stream::Stderr)?);
            Ok((command.process_group(0).spawn()?, exchange))
        };
        let (child, exchange) = match spawn(None) {
            // A script without a `#!` line: run it by a shell, as every shell does.
            Err(error) if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
                spawn(Some("/bin/sh"))?
            }
            spawned => spawned?,
        };
        let pid = child.id().cast_signed();
        let started_ticks = process::stat(pid).map_or(0, |stat| stat.started_ticks);
        Ok(Self { exchange, ..Self::new(rank, pid, started_ticks, true, group) })
    }

    /// Takes over a task that an earlier supervisor started. Its exit status will be unknown.
    pub(super) fn adopt(rank: usize, pid: i32, started_ticks: u64, group: Option<Group>) -> Self {
        Self::new(rank, pid, started_ticks, false, group)
    }

    fn new(rank: usize, pid: i32, started_ticks: u64, is_child: bool, group: Option<Group>) -> Self {
        let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Self {
            rank,
            pid,
            started_ticks,
            is_child,
            pidfd,
            group,
            exchange: None,
            exit: None,
            output_sizes: [0; 2],
        }
    }

    /// The task's index in its attempt.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// The pid of the main process, which is also the id of the process group.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// The control group that the task runs in, if there is one.
    pub(super) fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// How the main process ended; `None` while it runs.
    pub(super) fn exit(&self) -> Option<&Exit> {
        self.exit.as_ref()
    }

    /// The journal record by which a later supervisor finds the task.
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

    /// Records the exit status of the main process.
    pub(super) fn record_exit(&mut self, status: WaitStatus) {
        let (code, signal, failure) = match self.exchange.as_ref().and_then(Exchange::read) {
            Some(Report::Ended { code, signal }) => (code, signal, None),
            Some(Report::Failed(failure)) => (Some(failure.exit_code), None, Some(failure)),
            _ => (status.exit_status(), status.terminating_signal(), None),
        };
        let (kind, message) = match (code, signal, failure) {
            (Some(0), ..) => (EndKind::Succeeded, String::new()),
            _ if self.group.as_ref().is_some_and(Group::ran_out_of_memory) => {
                (EndKind::OutOfMemory, "used more memory than was asked for".to_owned())
            }
            (.., Some(failure)) if failure.of_machine => (EndKind::StartFailed, failure.message),
            (.., Some(failure)) => (EndKind::Failed, failure.message),
            (None, Some(signal), None) => (EndKind::Failed, format!("killed by signal {signal}")),
            _ => (EndKind::Failed, String::new()),
        };
        let exit_code = code.filter(|_| kind != EndKind::StartFailed);
        self.end(Exit { kind, exit_code, signal, message });
    }

    /// Checks whether an adopted main process has ended: another process waits for it.
    pub(super) fn poll_exit(&mut self) {
        if self.exit.is_none() && !self.is_child && !self.is_alive() {
            let message = "its supervisor was restarted: the exit status is unknown";
            self.end(Exit::plain(EndKind::Vanished, message));
        }
    }

    fn end(&mut self, exit: Exit) {
        self.exit = Some(exit);
        self.pidfd = None;
    }

    /// Returns whether the main process lives, and its pid was not reused by another process.
    fn is_alive(&self) -> bool {
        process::stat(self.pid).is_some_and(|stat| !stat.dead && stat.started_ticks == self.started_ticks)
    }

    /// Returns whether the task's process group has members.
    ///
    /// The kernel does not reuse a pid while a process group has it as its id. So if the main process
    /// was waited for and a process with its pid exists, the group is empty and the pid belongs to a
    /// foreign process.
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
        // Dead processes are members until they are waited for. For those of an earlier supervisor the
        // system's first process does that, possibly much later.
        self.is_child || process::all().iter().any(|stat| stat.group == self.pid && !stat.dead)
    }

    /// Sends a signal to the task's process group, if that has members.
    pub(super) fn signal(&self, signal: Signal) {
        if self.has_process_group()
            && let Some(group) = Pid::from_raw(self.pid)
        {
            process::signal_group(group, signal);
        }
    }

    /// Drops output beyond the bound of each stream.
    pub(super) fn bound_output(&mut self, directory: &Path, stream_max_bytes: u64) -> Growth {
        output::bound(directory, self.rank, stream_max_bytes, &mut self.output_sizes)
    }
}

/// The directory that a task starts in. If the request names none, a private one is created.
fn workdir(request: &StartAttempt, directory: &Path, rank: usize) -> io::Result<PathBuf> {
    match request.group_of(rank).and_then(|group| group.workdir.as_ref()) {
        Some(path) => Ok(PathBuf::from(path)),
        None => {
            let path = directory.join(format!("{rank}.{}", store::WORK));
            store::create_private_dir(&path)?;
            request.user().map_or(Ok(()), |user| chown(&path, Some(user.uid), Some(user.gid)))?;
            Ok(path)
        }
    }
}

/// Builds the command of a task, without its streams.
///
/// With a control group or isolation, the shim starts the program, from an exchange. Without, `shell` runs it, if given.
fn command(
    request: &StartAttempt,
    directory: &Path,
    rank: usize,
    group: Option<&Group>,
    shell: Option<&str>,
) -> io::Result<(Command, Option<Exchange>)> {
    let (Some(start), Some(task)) = (request.group_of(rank), request.tasks.get(rank)) else {
        return Err(io::Error::other("the request names no group for a task"));
    };
    let workdir = workdir(request, directory, rank)?;
    if !workdir.is_dir() {
        // The error of the system is the same for a missing directory and a missing program.
        let message = format!("{}: no such directory", workdir.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    let (program, arguments) = start.command.split_first().ok_or_else(|| io::Error::other("no command"))?;
    let env: Vec<&(String, String)> = start.env.iter().chain(&request.env).chain(&task.env).collect();
    let set = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.into());
    let (isolation, user) = (request.isolation.as_ref(), request.user());
    // The supervisor's may begin with folders that are closed to another user.
    let own_path = || std::env::var_os("PATH").filter(|_| user.is_none());
    let path = set.or_else(own_path).unwrap_or_else(|| PATH_DEFAULT.into());
    let found = find_program(program, &path, &workdir)?;
    let inherited = ["HOME", "LANG", "USER"].into_iter().filter_map(|name| inherited(name, user));
    let path = [(OsString::from("PATH"), path)];
    let own = env.into_iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    // The last one of a name counts.
    let variables: BTreeMap<OsString, OsString> = inherited.chain(path).chain(own).collect();
    if group.is_none() && isolation.is_none() {
        let mut command = Command::new(shell.map_or(&*found, Path::new));
        match shell {
            Some(_) => command.arg(&found),
            None => command.arg0(program),
        };
        command.args(arguments).env_clear().envs(&variables).current_dir(&workdir);
        return Ok((command, None));
    }
    let namespaces = isolation.map(|isolation| Namespaces {
        hidden: isolation.hidden.clone(),
        private: start.workdir.is_none().then(|| workdir.clone()),
        directory: workdir.clone(),
        cgroup_mount: cgroup::mount_point(),
        user: isolation.user.clone(),
        shares_memory: request.tasks.len() > 1,
        supervisors_group: process::own_group(),
    });
    // In namespaces the first process changes to the directory: there its path may lead elsewhere.
    let directory = if namespaces.is_some() { Path::new("/") } else { &workdir };
    let confinement = Confinement { procs: group.map(Group::procs), namespaces };
    let mut command = shim::command(Path::new(THIS_PROGRAM), &confinement, Some((&found, program)))?;
    // By these a later supervisor finds the shim.
    let names = [(ATTEMPT_VARIABLE, request.attempt.clone()), (RANK_VARIABLE, rank.to_string())];
    command.envs(names).env(SHIM_VARIABLE, "1").args(arguments).current_dir(directory);
    let variables = variables.iter().map(|(name, value)| (&**name, &**value));
    Ok((command, Some(Exchange::new(variables)?)))
}

/// A variable that the task gets without asking for it: the supervisor's, or that of the user that it runs as.
fn inherited(name: &str, user: Option<&User>) -> Option<(OsString, OsString)> {
    let value = match (name, user) {
        ("HOME", Some(user)) => user.home.clone().into(),
        ("USER", Some(user)) => user.name.clone().into(),
        _ => std::env::var_os(name)?,
    };
    Some((name.into(), value))
}

/// Finds a program as a shell in `workdir` would.
///
/// With a full path the standard library can also use `posix_spawn`, which does not copy this process.
///
/// # Errors
/// `NotFound` or `PermissionDenied`, with the name of the program.
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
