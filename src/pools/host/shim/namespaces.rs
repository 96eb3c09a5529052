//! The shim of a task in namespaces of its own: outside of them, it waits for the program.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::unistd::ForkResult;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, getegid, geteuid, setpgid, wait};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use rustix::time::Timespec;

use super::{Confinement, Exchange, Failure, Namespaces, Program, Report, init};

/// Runs the program of a task in namespaces of its own, until it has ended. Returns the shim's exit code.
pub(super) fn run(
    exchange: Exchange,
    confinement: &Confinement,
    namespaces: &Namespaces,
    program: Option<&Program>,
    environment: &[u8],
) -> ExitCode {
    let failed = |error: &io::Error| Report::Failed(Failure::of_machine("namespaces", error));
    let (ours, inits) = match unshare(namespaces).and_then(|()| UnixStream::pair()) {
        Ok(pair) => pair,
        Err(error) => return exchange.end(&failed(&error)),
    };
    // A copy of this process starts in half the time that its execution would take.
    #[expect(unsafe_code, reason = "a copy of a process with several threads may find their locks held")]
    // SAFETY: this process has one thread.
    let forked = unsafe { nix::unistd::fork() };
    match forked {
        Ok(ForkResult::Child) => {
            // The program may open what the first process has open.
            drop((ours, exchange));
            init::run(inits, confinement, namespaces, program, environment)
        }
        Ok(ForkResult::Parent { .. }) => {
            drop(inits);
            exchange.end(&attend(ours, namespaces.supervisors_group))
        }
        Err(error) => exchange.end(&failed(&error.into())),
    }
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
    Ok(())
}

/// How long the shim waits for the first process after the program has ended. If the program left no processes, that ends
/// at once, and then no process of the task is left when the supervisor gets to know the end.
const END_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Waits until the program has ended, and returns how.
fn attend(init: UnixStream, supervisors: i32) -> Report {
    // If the first process dies, all others of the namespace do.
    let killed = Report::Ended { code: None, signal: Some(Signal::KILL.as_raw()) };
    let Ok(mut confirm) = init.try_clone() else { return killed };
    let mut reports = BufReader::new(init);
    let mut started = false;
    loop {
        let mut line = String::new();
        let report = reports.read_line(&mut line).ok().and_then(|_| serde_json::from_str(&line).ok());
        match report {
            Some(Report::Started) => {
                started = true;
                leave_process_group(supervisors);
                if confirm.write_all(b"\n").is_err() {
                    return killed;
                }
            }
            // The program may control the first process, and must not blame the machine.
            Some(Report::Failed(_)) if started => return killed,
            Some(report) => {
                let mut end = [PollFd::new(&confirm, PollFlags::IN)];
                if poll(&mut end, Some(&END_WAIT)).is_ok_and(|ended| ended > 0) {
                    let _ = wait(WaitOptions::empty());
                }
                return report;
            }
            None => return killed,
        }
    }
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
