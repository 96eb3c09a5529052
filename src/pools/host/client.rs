//! The agent's connection to its supervisor, which is started if it does not run.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::files::private;

/// How long a new supervisor may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to the supervisor of the folder `state`; starts `program supervise` first if none listens.
///
/// Blocks for at most [`START_TIMEOUT`].
///
/// # Errors
/// If the supervisor can't be started or doesn't listen in time. `supervisor.log` in its folder has
/// the reason.
pub(super) fn connect(state: &Path, program: &Path, cgroup_parent: Option<&Path>) -> io::Result<UnixStream> {
    let socket = state.join("supervisor.sock");
    if let Ok(stream) = UnixStream::connect(&socket) {
        return Ok(stream);
    }
    private::folder(state)?;
    let log = OpenOptions::new().create(true).append(true).open(state.join("supervisor.log"))?;
    let mut child = Command::new(program)
        .arg("supervise")
        .arg("--state")
        .arg(state)
        .args(cgroup_parent.into_iter().flat_map(|parent| [Path::new("--cgroup-parent"), parent]))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // A process group of its own: closing the agent's terminal must not end the tasks.
        .process_group(0)
        .spawn()?;
    // If the supervisor ends before the agent does, only the agent can reap it.
    std::thread::spawn(move || child.wait());
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
