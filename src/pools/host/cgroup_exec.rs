//! The cgroup exec shim: moves its own process into a task's control group, then executes the task's
//! program.
//!
//! The supervisor can't start a process inside a group: that needs `clone3` with
//! `CLONE_INTO_CGROUP`, which the standard library doesn't call. It can't move the process after the
//! start either: the process may have children by then, which would stay outside the group.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::io::Errno;

/// The first argument that makes this program the shim.
const ARGUMENT: &str = "cgroup-exec";
/// The exit code if the task's program could not be started: the same as a shell's.
pub(super) const EXIT_NOT_STARTED: i32 = 127;

/// First character of the reason of a failure that is the machine's, and of one that the job's command caused.
pub(super) const OF_MACHINE: char = 'M';
const OF_JOB: char = 'J';

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
    let failure = PathBuf::from(arguments.next()?);
    let message = match std::fs::write(&procs, "0") {
        Err(error) => format!("{OF_MACHINE}{}: {error}", procs.display()),
        Ok(()) => {
            let Some(program) = arguments.next() else { return Some(ExitCode::SUCCESS) };
            let shown = arguments.next().unwrap_or_else(|| program.clone());
            let error = Command::new(&program).arg0(&shown).args(arguments).exec();
            let whose = if is_of_machine(&error) { OF_MACHINE } else { OF_JOB };
            format!("{whose}{}: {error}", shown.display())
        }
    };
    // For the supervisor. If the file can't be written, only the exit code reports the failure.
    let _ = std::fs::write(&failure, message);
    Some(ExitCode::from(EXIT_NOT_STARTED as u8))
}

/// Makes a command that enters the group of the file `procs` and then executes `program`, which is a path
/// and the name to pass as argument zero.
///
/// The command writes the reason of a failure to the file `failure`.
pub(super) fn command(procs: &Path, failure: &Path, program: Option<(&Path, &str)>) -> Command {
    // The executable file may have been replaced or deleted since: this path still works.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("weir").arg(ARGUMENT).arg(procs).arg(failure);
    if let Some((program, shown)) = program {
        command.arg(program).arg(OsString::from(shown));
    }
    command
}

/// Checks that processes can enter the group of the file `procs`, by starting one that does.
///
/// # Errors
/// Why entering failed. `scratch` is a file that this writes and removes.
pub(super) fn try_enter(procs: &Path, scratch: &Path) -> io::Result<()> {
    let status = command(procs, scratch, None).status()?;
    let message = std::fs::read_to_string(scratch);
    let _ = std::fs::remove_file(scratch);
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(message.unwrap_or_else(|_| "a process could not enter it".to_owned())))
}
