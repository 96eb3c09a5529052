//! The cgroup exec shim: moves its own process into a task's control group, then executes the task's
//! program.
//!
//! The supervisor can't start a process inside a group: that needs `clone3` with
//! `CLONE_INTO_CGROUP`, which the standard library doesn't call. It can't move the process after the
//! start either: the process may have children by then, which would stay outside the group.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::stdio::dup2_stdin;

/// The first argument that makes this program the shim.
const ARGUMENT: &str = "cgroup-exec";
/// The exit code if the task's program could not be started: the same as a shell's.
pub(super) const EXIT_NOT_STARTED: i32 = 127;

/// First character of the reason of a failure that is the machine's, and of one that the job's command caused.
const OF_MACHINE: u8 = b'M';
const OF_JOB: u8 = b'J';

/// Errors of starting a program that the machine alone can cause: it lacks processes, memory, files or space, or its
/// disk is broken.
pub(super) fn is_of_machine(error: &io::Error) -> bool {
    let causes = [
        Errno::AGAIN,
        Errno::NOMEM,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::IO,
        Errno::ROFS,
    ];
    causes.iter().any(|cause| error.raw_os_error() == Some(cause.raw_os_error()))
}

/// What the supervisor and a shim exchange: a file in memory that the shim gets as its standard input. It holds the
/// environment of the task's program and, if the program could not be started, the reason behind it.
///
/// The program's environment is not the shim's: `LD_PRELOAD` would run in the shim, outside the control group. And the
/// program can't reach the file, or it could blame the machine for its own exit.
pub(super) struct Exchange {
    file: File,
    environment_len: u64,
}

impl Exchange {
    /// Makes the file for a program with these variables.
    ///
    /// # Errors
    /// If the system is short of files or memory.
    pub(super) fn new<'a>(variables: impl Iterator<Item = (&'a OsStr, &'a OsStr)>) -> io::Result<Self> {
        let mut file = File::from(memfd_create("weir-task", MemfdFlags::CLOEXEC)?);
        let mut environment = Vec::new();
        for (name, value) in variables {
            for part in [name.as_bytes(), b"=", value.as_bytes(), b"\0"] {
                environment.extend_from_slice(part);
            }
        }
        file.write_all(&environment)?;
        Ok(Self { file, environment_len: environment.len() as u64 })
    }

    /// The file, for the shim's standard input.
    ///
    /// # Errors
    /// If the system is short of files.
    pub(super) fn stdin(&self) -> io::Result<Stdio> {
        Ok(Stdio::from(self.file.try_clone()?))
    }

    /// Why the program was not started; `None` if the shim wrote no reason.
    pub(super) fn failure(&self) -> Option<Failure> {
        let mut bytes = vec![0; FAILURE_BYTES_MAX];
        let len = self.file.read_at(&mut bytes, self.environment_len).ok()?;
        let (whose, message) = bytes.get(..len)?.split_first()?;
        Some(Failure {
            of_machine: *whose == OF_MACHINE,
            message: String::from_utf8_lossy(message).into_owned(),
        })
    }
}

/// Why a shim did not start the task's program.
pub(super) struct Failure {
    /// The machine's fault, not that of the job's command.
    pub(super) of_machine: bool,
    pub(super) message: String,
}

/// Bytes of the reason that are read.
const FAILURE_BYTES_MAX: usize = 4_096;

/// Enters a control group and executes the task's program, if the arguments of this process request it.
///
/// Returns `None` if they don't. Returns an exit code if entering or executing failed, or if the
/// arguments name no program: then entering was only tried.
pub fn run_if_requested() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let procs = PathBuf::from(arguments.next()?);
    let failed = ExitCode::from(EXIT_NOT_STARTED as u8);
    let Ok((exchange, environment)) = take_stdin() else { return Some(failed) };
    let message = match std::fs::write(&procs, "0") {
        Err(error) => (OF_MACHINE, format!("{}: {error}", procs.display())),
        Ok(()) => {
            let Some(program) = arguments.next() else { return Some(ExitCode::SUCCESS) };
            let shown = arguments.next().unwrap_or_else(|| program.clone());
            let mut command = Command::new(&program);
            command.arg0(&shown).args(arguments).env_clear().envs(variables(&environment));
            let error = command.exec();
            let whose = if is_of_machine(&error) { OF_MACHINE } else { OF_JOB };
            (whose, format!("{}: {error}", shown.display()))
        }
    };
    // For the supervisor. If this fails, only the exit code reports the failure.
    let _ = exchange.write_all_at(&[&[message.0], message.1.as_bytes()].concat(), environment.len() as u64);
    Some(failed)
}

/// Takes the exchange from standard input, which is empty then, and reads the environment. The program doesn't inherit
/// the file.
fn take_stdin() -> io::Result<(File, Vec<u8>)> {
    let stdin = io::stdin();
    let exchange = File::from(fcntl_dupfd_cloexec(&stdin, 3)?);
    let null = File::open("/dev/null")?;
    dup2_stdin(&null)?;
    let mut environment = vec![0; exchange.metadata()?.len() as usize];
    exchange.read_exact_at(&mut environment, 0)?;
    Ok((exchange, environment))
}

/// The variables of an environment.
fn variables(environment: &[u8]) -> impl Iterator<Item = (&OsStr, &OsStr)> {
    environment.split(|byte| *byte == 0).filter_map(|variable| {
        // A name may begin with an equals sign, as in the standard library.
        let at = 1 + variable.get(1..)?.iter().position(|byte| *byte == b'=')?;
        Some((OsStr::from_bytes(&variable[..at]), OsStr::from_bytes(&variable[at + 1..])))
    })
}

/// Makes a command that enters the group of the file `procs` and then executes `program`, which is a path
/// and the name to pass as argument zero, with the environment of an [`Exchange`].
pub(super) fn command(procs: &Path, program: Option<(&Path, &str)>) -> Command {
    // The executable file may have been replaced or deleted since: this path still works.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("weir").arg(ARGUMENT).arg(procs).env_clear();
    if let Some((program, shown)) = program {
        command.arg(program).arg(OsString::from(shown));
    }
    command
}

/// Checks that processes can enter the group of the file `procs`, by starting one that does.
///
/// # Errors
/// Why entering failed.
pub(super) fn try_enter(procs: &Path) -> io::Result<()> {
    let exchange = Exchange::new(std::iter::empty())?;
    let status = command(procs, None).stdin(exchange.stdin()?).status()?;
    if status.success() {
        return Ok(());
    }
    let why = exchange.failure().map(|failure| failure.message);
    Err(io::Error::other(why.unwrap_or_else(|| "a process could not enter it".to_owned())))
}
