//! The first process of a task's PID namespace: it starts the program, and waits for all processes that lose their
//! parents. When it ends, the kernel kills what is left.

use std::collections::BTreeSet;
use std::env::set_current_dir;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
use rustix::process::{Gid, Uid, WaitOptions, geteuid, wait};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_thread_gid, set_thread_groups, set_thread_uid,
};

use super::{Confinement, Failure, Namespaces, Program, Report, enter};

/// Starts a task's program, and lives until no process of the namespace is left. Returns this process's exit code.
pub(super) fn run(
    mut shim: UnixStream,
    confinement: &Confinement,
    namespaces: &Namespaces,
    program: Option<&Program>,
    environment: &[u8],
) -> ExitCode {
    let entered = confinement.procs.as_deref().map_or(Ok(()), enter);
    let confined = entered.and_then(|()| confine(namespaces));
    let started = confined.and_then(|()| program.map(|program| spawn(program, environment)).transpose());
    let child = match started {
        Ok(Some(child)) => child,
        Ok(None) => return send(&mut shim, &Report::Ended { code: Some(0), signal: None }),
        Err(failure) => return send(&mut shim, &Report::Failed(failure)),
    };
    send(&mut shim, &Report::Started);
    // A stop before this point ends the shim; then the program must end, too.
    if shim.read_exact(&mut [0]).is_err() {
        return ExitCode::FAILURE;
    }
    attend(&child, &mut shim)
}

/// Sends a report to the shim. If that has ended, nothing waits for it.
fn send(shim: &mut UnixStream, report: &Report) -> ExitCode {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    let _ = shim.write_all(&line);
    ExitCode::SUCCESS
}

fn spawn(program: &Program, environment: &[u8]) -> Result<Child, Failure> {
    let spawned = match program.command(false, environment).spawn() {
        Err(error) if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
            program.command(true, environment).spawn()
        }
        spawned => spawned,
    };
    spawned.map_err(|error| Failure::of_job(Path::new(&program.shown), &error))
}

/// Reports how the program ends, and waits for everything that it leaves behind.
fn attend(program: &Child, shim: &mut UnixStream) -> ExitCode {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().cast_unsigned() == program.id() => {
                let (code, signal) = (status.exit_status(), status.terminating_signal());
                send(shim, &Report::Ended { code, signal });
            }
            Ok(_) | Err(Errno::INTR) => {}
            // No children: no process of the namespace is left.
            Err(_) => return ExitCode::SUCCESS,
        }
    }
}

/// Takes from this process what the program must not have.
fn confine(namespaces: &Namespaces) -> Result<(), Failure> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Failure::of_machine(&what, &error)
    };
    // What the machine mounts later appears here, too; what is mounted here stays here.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|error| failed("/")(error.into()))?;
    hide_all(namespaces)?;
    if let Some(point) = &namespaces.cgroup_mount {
        make_read_only(point).map_err(failed(&point.display().to_string()))?;
    }
    mount("proc", "/proc", "proc", PROC_FLAGS, None).map_err(|error| failed("/proc")(error.into()))?;
    let directory = &namespaces.directory;
    let change = || set_current_dir(directory).map_err(|error| Failure::of_job(directory, &error));
    let drop = || drop_privileges(namespaces).map_err(failed("the task's user"));
    // Folders above the private one may be closed to the task's user. Those above one that the job names must not be.
    if namespaces.private.as_ref() == Some(directory) {
        change().and_then(|()| drop())
    } else {
        drop().and_then(|()| change())
    }
}

/// Flags of `/proc`, as systems have them.
const PROC_FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Covers what is hidden.
fn hide_all(namespaces: &Namespaces) -> Result<(), Failure> {
    let hidden: BTreeSet<PathBuf> =
        namespaces.hidden.iter().filter_map(|path| path.canonicalize().ok()).collect();
    let private = namespaces.private.as_ref().map(|path| path.canonicalize()).transpose();
    let private = private.map_err(|error| Failure::of_machine("the task's folder", &error))?;
    for path in &hidden {
        // What is below another one is covered with it.
        if hidden.iter().any(|other| path != other && path.starts_with(other)) {
            continue;
        }
        let covered = if path.is_dir() {
            hide_folder(path, private.as_deref().filter(|private| private.starts_with(path)))
        } else {
            mount_bind("/dev/null", path).map_err(io::Error::from)
        };
        covered.map_err(|error| Failure::of_machine(&path.display().to_string(), &error))?;
    }
    Ok(())
}

/// Covers a folder by an empty one in memory, in which only the folder `shown` is there.
fn hide_folder(folder: &Path, shown: Option<&Path>) -> io::Result<()> {
    let opened = shown.map(|path| {
        File::options()
            .read(true)
            .custom_flags((OFlags::PATH | OFlags::DIRECTORY).bits().cast_signed())
            .open(path)
    });
    let opened = opened.transpose()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("none", folder, "tmpfs", flags, Some(c"size=64k,mode=0755"))?;
    if let (Some(path), Some(opened)) = (shown, opened) {
        DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        // The path of the folder leads to the covering one; the descriptor still to what it was.
        mount_bind(format!("/proc/self/fd/{}", opened.as_raw_fd()), path)?;
    }
    Ok(mount_remount(folder, flags | MountFlags::BIND | MountFlags::RDONLY, "")?)
}

fn make_read_only(point: &Path) -> io::Result<()> {
    mount_bind(point, point)?;
    let flags =
        MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount_remount(point, flags, "")?)
}

/// Becomes the task's user, or drops what a user namespace gave.
fn drop_privileges(namespaces: &Namespaces) -> io::Result<()> {
    if let Some(user) = &namespaces.user {
        let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        set_thread_groups(&groups)?;
        set_thread_gid(Gid::from_raw(user.gid))?;
        return Ok(set_thread_uid(Uid::from_raw(user.uid))?);
    }
    if !geteuid().is_root() {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    }
    Ok(())
}
