//! The shim of a task in namespaces of its own: outside of them, it waits for the program.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, getegid, geteuid, setpgid};
use rustix::thread::{
    CapabilitySet, UnshareFlags, capabilities, configure_capability_in_ambient_set, set_capabilities,
    unshare_unsafe,
};

use super::super::process::SHIM_VARIABLE;
use super::{Confinement, Failure, Namespaces, Report, THIS_PROGRAM, init};

/// Runs the program of a task in namespaces of its own, until it has ended.
pub(super) fn run(
    confinement: &Confinement,
    namespaces: &Namespaces,
    arguments: impl Iterator<Item = OsString>,
    environment: &[u8],
) -> Report {
    match start(confinement, namespaces, arguments, environment) {
        Ok(init) => attend(init, namespaces.supervisors_group),
        Err(error) => Report::Failed(Failure::of_machine("namespaces", &error)),
    }
}

/// Makes the namespaces and starts their first process. Returns the connection to it.
fn start(
    confinement: &Confinement,
    namespaces: &Namespaces,
    arguments: impl Iterator<Item = OsString>,
    environment: &[u8],
) -> io::Result<UnixStream> {
    unshare(namespaces)?;
    let (mut ours, inits) = UnixStream::pair()?;
    let mut command = Command::new(THIS_PROGRAM);
    command.arg0("weir").arg(init::ARGUMENT).arg(serde_json::to_string(confinement)?).args(arguments);
    // Its environment is this process's: it names the attempt, and nothing of the program's.
    command.env_remove(SHIM_VARIABLE).stdin(Stdio::from(OwnedFd::from(inits))).spawn()?;
    drop(command);
    ours.write_all(&(environment.len() as u64).to_le_bytes())?;
    ours.write_all(environment)?;
    Ok(ours)
}

/// Moves this process into new namespaces, and its next child into a new PID namespace.
fn unshare(namespaces: &Namespaces) -> io::Result<()> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWPID;
    if !namespaces.shares_memory {
        flags |= UnshareFlags::NEWIPC;
    }
    // A user without privileges has them in a user namespace.
    let (user, group) = (geteuid(), getegid());
    if !user.is_root() {
        flags |= UnshareFlags::NEWUSER;
    }
    #[expect(unsafe_code, reason = "only for CLONE_FILES, and this process has one thread")]
    // SAFETY: the table of descriptors stays shared.
    unsafe { unshare_unsafe(flags) }?;
    if user.is_root() {
        return Ok(());
    }
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{0} {0} 1", user.as_raw()))?;
    std::fs::write("/proc/self/gid_map", format!("{0} {0} 1", group.as_raw()))?;
    // For the mounts of the first process: without this, its execution drops all capabilities.
    let mut sets = capabilities(None)?;
    sets.inheritable |= CapabilitySet::SYS_ADMIN;
    set_capabilities(None, sets)?;
    configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true)?;
    Ok(())
}

/// Waits until the program has ended, and returns how.
fn attend(init: UnixStream, supervisors: i32) -> Report {
    // If the first process dies, all others of the namespace do.
    let killed = Report::Ended { code: None, signal: Some(Signal::KILL.as_raw()) };
    let Ok(mut confirm) = init.try_clone() else { return killed };
    for line in BufReader::new(init).lines() {
        let report = line.ok().and_then(|line| serde_json::from_str(&line).ok());
        match report {
            Some(Report::Started) => {
                leave_process_group(supervisors);
                if confirm.write_all(b"\n").is_err() {
                    return killed;
                }
            }
            Some(report) => return report,
            None => return killed,
        }
    }
    killed
}

/// Moves this process to the supervisor's process group. Its own has its pid as number, and contains the program: a
/// signal to it must not end the shim, which reports how the program ends.
fn leave_process_group(supervisors: i32) {
    if let Some(group) = Pid::from_raw(supervisors) {
        // This fails if the supervisor has been killed. Then a stop ends this process, too, and no process waits for
        // the exit code.
        let _ = setpgid(None, Some(group));
    }
}
