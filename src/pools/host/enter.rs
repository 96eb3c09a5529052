//! How a task gets into its control group: by a step of its own, before its program begins.
//!
//! The supervisor can't start a process inside a group (that takes a system call that the standard
//! library doesn't make), and one that it moved after the start could have had children already.
//! So it starts this program, which moves itself and then becomes the task's.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The first argument of a program that is to enter a control group.
const WORD: &str = "enter-control-group";
/// The exit code where the task's own program could not be started: that of a shell.
pub(super) const FAILED: i32 = 127;

/// Enters a control group and becomes the task's program, if this process was started to do so.
///
/// Returns the exit code of one that could not, or that had only to try.
pub fn as_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let procs = PathBuf::from(arguments.next()?);
    let failure = PathBuf::from(arguments.next()?);
    let message = match std::fs::write(&procs, "0") {
        Err(error) => format!("{}: {error}", procs.display()),
        Ok(()) => {
            let Some(program) = arguments.next() else { return Some(ExitCode::SUCCESS) };
            let shown = arguments.next().unwrap_or_else(|| program.clone());
            let error = Command::new(&program).arg0(&shown).args(arguments).exec();
            format!("{}: {error}", shown.display())
        }
    };
    // The supervisor reads it; if it can't be written, the exit code is all there is to say.
    let _ = std::fs::write(&failure, message);
    Some(ExitCode::from(FAILED as u8))
}

/// A command that enters the group with this `cgroup.procs` and becomes `program`.
///
/// What keeps it from that is written to `failure`.
pub(super) fn command(procs: &Path, failure: &Path, program: Option<(&Path, &str)>) -> Command {
    // Whatever has become of the file since: a process can always be started from what it runs.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("weir").arg(WORD).arg(procs).arg(failure);
    if let Some((program, shown)) = program {
        command.arg(program).arg(OsString::from(shown));
    }
    command
}

/// Tells whether processes may enter the group with this `cgroup.procs`, by trying.
pub(super) fn is_possible(procs: &Path, scratch: &Path) -> io::Result<()> {
    let status = command(procs, scratch, None).status()?;
    let message = std::fs::read_to_string(scratch);
    let _ = std::fs::remove_file(scratch);
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(message.unwrap_or_else(|_| "entering it fails".to_owned())))
}
