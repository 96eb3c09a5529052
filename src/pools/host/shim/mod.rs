//! The task shim: this program, started by the supervisor in the place of a task's program. It enters the task's
//! control group and namespaces, then executes the program.
//!
//! The supervisor can't start a process inside a group: that needs `clone3` with `CLONE_INTO_CGROUP`, which the
//! standard library doesn't call. It can't move the process after the start either: the process may have children by
//! then, which would stay outside the group.
//!
//! Without namespaces the shim becomes the program. With them, three processes run:
//!
//! ```text
//! supervisor
//! └─ shim                   [`namespaces`]: makes the namespaces, waits, reports how the program ended
//!    └─ init, pid 1 inside  [`init`]: enters the group, hides files, starts the program, waits for what it leaves
//!       └─ program
//! ```
//!
//! The kernel kills all processes of a PID namespace when its first one ends, so none can outlive the task, whatever it
//! did to its session, parent or environment.

mod exchange;
mod init;
mod namespaces;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::protocol::User;
pub(super) use exchange::{Exchange, Report};
use exchange::{take_stdin, variables};

/// The first argument that makes this program the shim.
const ARGUMENT: &str = "task-exec";
/// The exit code if the task's program does not exist or the shim failed: the same as a shell's.
pub(super) const EXIT_NOT_FOUND: i32 = 127;
/// The exit code if the task's program may not be executed: the same as a shell's.
pub(super) const EXIT_NOT_EXECUTABLE: i32 = 126;

/// What a shim does before it executes a program: its second argument, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Confinement {
    /// The file `cgroup.procs` of the control group to enter.
    pub(super) procs: Option<PathBuf>,
    /// `None`: the program runs in the namespaces of the supervisor, in the shim's directory.
    pub(super) namespaces: Option<Namespaces>,
}

/// The namespaces of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Namespaces {
    /// Folders that look empty to the task, and files that look like `/dev/null`.
    pub(super) hidden: Vec<PathBuf>,
    /// The task's private folder, visible although it may be below a hidden one.
    pub(super) private: Option<PathBuf>,
    /// The directory to start in.
    pub(super) directory: PathBuf,
    /// Where control groups are mounted: read-only for the task, or it could change its own limits.
    pub(super) cgroup_mount: Option<PathBuf>,
    /// The user to become; `None`: the supervisor's.
    pub(super) user: Option<User>,
    /// Tasks of a gang share memory.
    pub(super) shares_memory: bool,
    /// The supervisor's process group: while the program runs, the shim is in it.
    pub(super) supervisors_group: i32,
}

/// Why a shim did not start the task's program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// The machine's fault, not that of the job's command.
    pub(super) of_machine: bool,
    pub(super) exit_code: i32,
    pub(super) message: String,
}

impl Failure {
    fn of_machine(what: &str, error: &io::Error) -> Self {
        Self { of_machine: true, exit_code: EXIT_NOT_FOUND, message: format!("{what}: {error}") }
    }

    /// The program or directory that the job names can't be used.
    fn of_job(what: &Path, error: &io::Error) -> Self {
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        let exit_code = if is_missing { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE };
        Self { of_machine: is_of_machine(error), exit_code, message: format!("{}: {error}", what.display()) }
    }
}

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

/// The program of a task.
struct Program {
    file: OsString,
    /// What the program gets as argument zero, and errors name.
    shown: OsString,
    arguments: Vec<OsString>,
}

impl Program {
    /// Reads a program from the rest of a shim's arguments; `None` if nothing shall be executed.
    fn of(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let file = arguments.next()?;
        let shown = arguments.next().unwrap_or_else(|| file.clone());
        Some(Self { file, shown, arguments: arguments.collect() })
    }

    /// Makes the command that executes the program, or has a shell run it: a script without a `#!` line.
    fn command(&self, by_shell: bool, environment: &[u8]) -> Command {
        let mut command = if by_shell {
            let mut command = Command::new("/bin/sh");
            command.arg(&self.file);
            command
        } else {
            let mut command = Command::new(&self.file);
            command.arg0(&self.shown);
            command
        };
        command.args(&self.arguments).env_clear().envs(variables(environment));
        command
    }
}

/// Acts as the shim, if the arguments of this process request it.
///
/// Returns `None` if they don't; else the exit code of the process.
pub fn run_if_requested() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == ARGUMENT).then(|| run(arguments))
}

fn run(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let failed = ExitCode::from(EXIT_NOT_FOUND as u8);
    let Ok((stdin, environment)) = take_stdin() else { return failed };
    let exchange = Exchange::at(stdin, environment.len());
    let confinement = confinement(arguments.next());
    let program = Program::of(arguments);
    let ended = match confinement {
        Ok(confinement) => match &confinement.namespaces {
            Some(namespaces) => {
                return namespaces::run(exchange, &confinement, namespaces, program.as_ref(), &environment);
            }
            None => execute(&confinement, program.as_ref(), &environment),
        },
        Err(failure) => Report::Failed(failure),
    };
    exchange.end(&ended)
}

/// Reads the confinement from an argument.
fn confinement(argument: Option<OsString>) -> Result<Confinement, Failure> {
    let text = argument.unwrap_or_default();
    serde_json::from_slice(text.as_encoded_bytes())
        .map_err(|error| Failure::of_machine("the confinement of a task", &error.into()))
}

/// Enters a control group.
fn enter(procs: &Path) -> Result<(), Failure> {
    std::fs::write(procs, "0").map_err(|error| Failure::of_machine(&procs.display().to_string(), &error))
}

/// Becomes the program. Returns only if that failed, or there is no program: then entering was only tried.
fn execute(confinement: &Confinement, program: Option<&Program>, environment: &[u8]) -> Report {
    if let Some(Err(failure)) = confinement.procs.as_deref().map(enter) {
        return Report::Failed(failure);
    }
    let Some(program) = program else { return Report::Ended { code: Some(0), signal: None } };
    let mut error = program.command(false, environment).exec();
    if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) {
        error = program.command(true, environment).exec();
    }
    Report::Failed(Failure::of_job(Path::new(&program.shown), &error))
}

/// Makes a command that executes `program`, which is a path and the name to pass as argument zero, confined, with the
/// environment of an [`Exchange`].
///
/// # Errors
/// If a path of the confinement is not Unicode.
pub(super) fn command(
    shim: &Path,
    confinement: &Confinement,
    program: Option<(&Path, &str)>,
) -> io::Result<Command> {
    let mut command = Command::new(shim);
    command.arg0("weir").arg(ARGUMENT).arg(serde_json::to_string(confinement)?).env_clear();
    if let Some((program, shown)) = program {
        command.arg(program).arg(shown);
    }
    Ok(command)
}

/// The file of this program. It may have been replaced or deleted since: this path still works.
pub(super) const THIS_PROGRAM: &str = "/proc/self/exe";

/// Checks that processes can be confined in this way, by starting one that is.
///
/// # Errors
/// Why that failed.
pub(super) fn try_confinement(shim: &Path, confinement: &Confinement) -> io::Result<()> {
    let exchange = Exchange::new(std::iter::empty())?;
    let status = command(shim, confinement, None)?.stdin(exchange.stdin()?).status()?;
    match exchange.read() {
        Some(Report::Failed(failure)) => Err(io::Error::other(failure.message)),
        _ if status.success() => Ok(()),
        _ => Err(io::Error::other(format!("the task shim ended: {status}"))),
    }
}
