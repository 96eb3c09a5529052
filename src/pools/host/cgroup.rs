//! Control groups (version 2): limits that the kernel enforces, and containment of all processes of a
//! task.
//!
//! ```text
//! BASE                  the supervisor's own group, or one that the pool's file names
//! BASE/weir-HASH        the pool's group, HASH being that of the supervisor's folder
//! …/ATTEMPT             an attempt's group: also the task's, if there is only one
//! …/ATTEMPT/RANK        one group per task, if there are several
//! ```
//!
//! A group with processes in it can't enable controllers for its children, unless it is the root: see
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>, "No Internal Process Constraint". So a
//! supervisor whose group contains only itself and its agent moves both into a child group.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustix::process::Signal;
use sha2::{Digest, Sha256};

use super::process;
use super::shim::{self, Confinement, THIS_PROGRAM};

/// The period over which CPU time is counted, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The smallest CPU time per period that the kernel accepts, in microseconds.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// The controllers whose limits are used.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The file in a supervisor's folder that has the path of the pool's group.
const HOME_FILE: &str = "cgroup";

/// The control groups of one supervisor.
#[derive(Debug)]
pub(super) struct Groups {
    /// The pool's group.
    home: PathBuf,
    /// `Ok` if the kernel enforces CPU limits; else the reason why it does not.
    pub(super) cpu: Result<(), String>,
    /// `Ok` if the kernel enforces memory limits; else the reason why it does not.
    pub(super) memory: Result<(), String>,
    /// `Ok` if the kernel bounds the number of processes; else the reason why it does not.
    pub(super) processes: Result<(), String>,
}

/// One control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group(PathBuf);

impl Groups {
    /// Checks whether the kernel would enforce limits of `controller`, without changing anything.
    ///
    /// # Errors
    /// The reason why it would not, in words for an operator.
    pub(super) fn would_enforce(parent: Option<&Path>, state: &Path, controller: &str) -> Result<(), String> {
        let (mount, base) = Self::base(parent, state)?;
        if !has_controller(&base, controller) {
            return Err(explain(&mount, &base, controller, &io::Error::from(io::ErrorKind::NotFound)));
        }
        rustix::fs::access(&base, rustix::fs::Access::WRITE_OK)
            .map_err(|error| format!("control group {}: {error}", base.display()))
    }

    /// Finds where control groups are mounted, and the group below which the pool's is.
    fn base(parent: Option<&Path>, state: &Path) -> Result<(Mount, PathBuf), String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let mount =
            Mount::find(&read("/proc/self/mountinfo")?).ok_or("no control groups (v2) are mounted")?;
        let name = name_of(state);
        let base = match parent {
            Some(path) => mount.point.join(path.strip_prefix("/").unwrap_or(path)),
            None => match earlier_base(state, &name) {
                Some(base) => base,
                None => mount.base_of(&read("/proc/self/cgroup")?, &name)?,
            },
        };
        Ok((mount, base))
    }

    /// Creates the pool's group below `parent`, or below this process's own group.
    ///
    /// # Errors
    /// If no group can be created there that processes can enter: the reason, in words for an operator.
    pub(super) fn open(parent: Option<&Path>, state: &Path) -> Result<Self, String> {
        let name = name_of(state);
        let (mount, base) = Self::base(parent, state)?;
        let failed = |error: io::Error| format!("control group {}: {error}", base.display());
        fs::create_dir_all(&base).map_err(failed)?;
        let home = base.join(&name);
        create(&home).map_err(failed)?;
        let probe = home.join("probe");
        create(&probe).map_err(failed)?;
        let confinement = Confinement { procs: Some(probe.join("cgroup.procs")), namespaces: None };
        let entered = shim::try_confinement(Path::new(THIS_PROGRAM), &confinement);
        let _ = fs::remove_dir(&probe);
        entered.map_err(failed)?;
        // If this fails, the next supervisor uses its own group as the base: usually the same one.
        let _ = fs::write(state.join(HOME_FILE), home.as_os_str().as_encoded_bytes());
        let vacated = vacate(&base, &name);
        let enabled = |controller: &str| {
            let enabled = match &vacated {
                Ok(()) => {
                    enable_controller(&base, controller).and_then(|()| enable_controller(&home, controller))
                }
                Err(error) => Err(io::Error::from(error.kind())),
            };
            enabled.map_err(|error| explain(&mount, &base, controller, &error))
        };
        let (cpu, memory, processes) = (enabled("cpu"), enabled("memory"), enabled("pids"));
        Ok(Self { home, cpu, memory, processes })
    }

    /// Removes the pool's group and returns `None`, unless the groups enforce a limit or are `required`.
    ///
    /// Groups without limits only contain processes, which is not worth an exec more for each task.
    pub(super) fn remove_unless_useful(self, required: bool) -> Option<Self> {
        if required || self.cpu.is_ok() || self.memory.is_ok() || self.processes.is_ok() {
            return Some(self);
        }
        self.remove();
        None
    }

    /// Creates the group of an attempt and those of its tasks. Returns them, the tasks' by rank.
    ///
    /// # Errors
    /// The error of the kernel; all groups of the attempt are removed then.
    pub(super) fn create(&self, attempt: &str, tasks: usize) -> io::Result<(Group, Vec<Group>)> {
        let (whole, each) = self.of(attempt, tasks);
        let made = create(&whole.0).and_then(|()| {
            if each.len() > 1 {
                if self.cpu.is_ok() {
                    enable_controller(&whole.0, "cpu")?;
                }
                if self.memory.is_ok() {
                    enable_controller(&whole.0, "memory")?;
                }
                if self.processes.is_ok() {
                    enable_controller(&whole.0, "pids")?;
                }
                each.iter().try_for_each(|group| create(&group.0))?;
            }
            Ok(())
        });
        if made.is_err() {
            whole.remove();
        }
        made.map(|()| (whole, each))
    }

    /// Returns the groups of an attempt that an earlier supervisor created, if they exist.
    pub(super) fn find(&self, attempt: &str, tasks: usize) -> Option<(Group, Vec<Group>)> {
        Some(self.of(attempt, tasks)).filter(|(whole, _)| whole.0.is_dir())
    }

    /// Sets the limits of a task; 0 means no limit. A limit that the kernel does not enforce here is skipped.
    ///
    /// # Errors
    /// If the kernel rejects a limit although the controller is enabled.
    pub(super) fn limit(
        &self,
        group: &Group,
        cpu_millis: u64,
        memory_bytes: u64,
        processes: u64,
    ) -> io::Result<()> {
        if self.processes.is_ok() && processes > 0 {
            fs::write(group.0.join("pids.max"), processes.to_string())?;
        }
        if self.cpu.is_ok() && cpu_millis > 0 {
            let quota_us = (cpu_millis * CPU_PERIOD_US / 1_000).max(CPU_QUOTA_MIN_US);
            fs::write(group.0.join("cpu.max"), format!("{quota_us} {CPU_PERIOD_US}"))?;
        }
        if self.memory.is_ok() && memory_bytes > 0 {
            fs::write(group.0.join("memory.max"), memory_bytes.to_string())?;
            // A task that lost some of its processes is useless: the kernel kills all of them.
            fs::write(group.0.join("memory.oom.group"), "1")?;
            // Absent where the kernel doesn't account for swap.
            let _absent = fs::write(group.0.join("memory.swap.max"), "0");
        }
        Ok(())
    }

    /// Removes the pool's group, if it is empty.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir(&self.home);
    }

    /// The groups of an attempt and of its tasks, whether they exist or not.
    fn of(&self, attempt: &str, tasks: usize) -> (Group, Vec<Group>) {
        let whole = Group(self.home.join(attempt));
        let each = match tasks {
            1 => vec![whole.clone()],
            _ => (0..tasks).map(|rank| Group(whole.0.join(rank.to_string()))).collect(),
        };
        (whole, each)
    }
}

impl Group {
    /// The file through which processes enter the group.
    pub(super) fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// Returns whether the group or a group below it has processes.
    pub(super) fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.0.join("cgroup.events"));
        events.is_ok_and(|text| value(&text, "populated") > 0)
    }

    /// Returns the processes of the group and of those below it.
    pub(super) fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for group in self.subtree() {
            let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        pids
    }

    /// Kills all processes of the group and of those below it, including those that are created meanwhile.
    pub(super) fn kill(&self) {
        // Linux has this file since 5.14.
        if fs::write(self.0.join("cgroup.kill"), "1").is_err() {
            self.signal(Signal::KILL);
        }
    }

    /// Sends a signal to each process of the group and of those below it.
    pub(super) fn signal(&self, signal: Signal) {
        self.pids().into_iter().for_each(|pid| process::signal(pid, signal));
    }

    /// Returns whether the kernel killed a process of the group because its memory limit was reached.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.0.join("memory.events"));
        events.is_ok_and(|text| value(&text, "oom_kill") > 0 || value(&text, "oom_group_kill") > 0)
    }

    /// Removes the group and those below it. Returns whether the group is gone.
    pub(super) fn remove(&self) -> bool {
        self.subtree().into_iter().rev().for_each(|group| {
            let _ = fs::remove_dir(group);
        });
        !self.0.exists()
    }

    /// The directories of the group and of those below it, parents first.
    fn subtree(&self) -> Vec<PathBuf> {
        let (mut found, mut next) = (vec![self.0.clone()], 0);
        while let Some(group) = found.get(next) {
            next += 1;
            let below = fs::read_dir(group).into_iter().flatten().flatten();
            let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let below: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
            found.extend(below);
        }
        found
    }
}

/// Where control groups are mounted, if they are.
pub(super) fn mount_point() -> Option<PathBuf> {
    static POINT: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| Some(Mount::find(&fs::read_to_string("/proc/self/mountinfo").ok()?)?.point));
    POINT.clone()
}

/// The base that an earlier supervisor of this folder used, if the pool's group still exists there. This
/// supervisor may run in another group, but must find the groups of the attempts that it adopts.
fn earlier_base(state: &Path, name: &str) -> Option<PathBuf> {
    let home = PathBuf::from(fs::read_to_string(state.join(HOME_FILE)).ok()?);
    let ours = home.file_name().is_some_and(|last| *last == *name) && home.join("cgroup.procs").is_file();
    home.parent().filter(|_| ours).map(Path::to_owned)
}

/// The mount of the version 2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// The group that is visible at `point`: not the root group in some containers.
    root: PathBuf,
}

impl Mount {
    /// Finds the mount in the text of `/proc/self/mountinfo`.
    fn find(mounts: &str) -> Option<Self> {
        mounts.lines().find_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            if kind.split(' ').next() != Some("cgroup2") {
                return None;
            }
            let mut fields = mount.split(' ').skip(3).map(unescape);
            let (root, point) = (fields.next()?, fields.next()?);
            Some(Self { point: point.into(), root: root.into() })
        })
    }

    /// The directory of this process's group. If that is the child group into which a supervisor moved its
    /// agent ([`vacate`]), the directory of its parent.
    fn base_of(&self, own: &str, name: &str) -> Result<PathBuf, String> {
        let own = own_group(own).ok_or("this process is in no control group of version 2")?;
        let directory = self.directory(own)?;
        let is_child = directory.file_name().is_some_and(|last| *last == *format!("{name}-agent"));
        match directory.parent() {
            Some(parent) if is_child => Ok(parent.to_owned()),
            _ => Ok(directory),
        }
    }

    /// The directory of a group.
    fn directory(&self, group: &str) -> Result<PathBuf, String> {
        let below = Path::new(group).strip_prefix(&self.root);
        match below {
            Ok(below) if !group.contains("/..") => Ok(self.point.join(below)),
            _ => Err(format!("its control group {group} is outside of the mounted hierarchy")),
        }
    }
}

/// Decodes the escapes of mountinfo: a backslash and three octal digits.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// Finds the version 2 group in the text of `/proc/self/cgroup`.
fn own_group(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The name of the pool's group: a hash of the supervisor's folder, so that two pools never share one.
fn name_of(state: &Path) -> String {
    let state = fs::canonicalize(state).unwrap_or_else(|_| state.to_owned());
    let hash = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let hash: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("weir-{hash}")
}

/// Creates a group unless it exists.
fn create(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Enables a controller for the children of a group.
fn enable_controller(group: &Path, controller: &str) -> io::Result<()> {
    let control = group.join("cgroup.subtree_control");
    if fs::read_to_string(&control)?.split_ascii_whitespace().any(|enabled| enabled == controller) {
        return Ok(());
    }
    fs::write(control, format!("+{controller}"))
}

fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

/// Moves this process and its agent from a group into a child group, if no other process is in it.
///
/// This must precede the first `enable_controller`: a group with processes accepts some controllers, and
/// then its children can't contain processes.
///
/// # Errors
/// `ResourceBusy` if other processes are in the group; else the error of the kernel.
fn vacate(base: &Path, name: &str) -> io::Result<()> {
    let text = fs::read_to_string(base.join("cgroup.procs"))?;
    // Only the root group has no `cgroup.type`, and it may contain processes beside children.
    let is_root = !base.join("cgroup.type").exists();
    if text.is_empty() || is_root || !CONTROLLERS.iter().any(|controller| has_controller(base, controller)) {
        return Ok(());
    }
    let own = rustix::process::getpid().as_raw_nonzero().get().to_string();
    let parent = rustix::process::getppid().map_or(own.clone(), |pid| pid.as_raw_nonzero().to_string());
    if text.lines().any(|pid| pid != own && pid != parent) {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let below = base.join(format!("{name}-agent"));
    create(&below)?;
    text.lines().try_for_each(|pid| fs::write(below.join("cgroup.procs"), pid))
}

/// Returns whether a group has a controller that it can enable for its children.
fn has_controller(group: &Path, controller: &str) -> bool {
    let text = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    text.split_ascii_whitespace().any(|available| available == controller)
}

/// The reason why `controller` does not work below `base`, in words for an operator.
fn explain(mount: &Mount, base: &Path, controller: &str, error: &io::Error) -> String {
    if !has_controller(&mount.point, controller) {
        return format!("this machine has no {controller} controller in its control groups of version 2");
    }
    if !has_controller(base, controller) {
        return format!("control group {} has no {controller} controller", base.display());
    }
    if is_busy(error) {
        return format!("control group {} holds other processes", base.display());
    }
    format!("control group {}: {error}", base.display())
}

/// The value of a key in a flat keyed file; 0 if the key is absent.
fn value(text: &str, key: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    found.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_wherever_it_is_mounted() {
        let pure = "31 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 /a\\040b /mnt/c\\134d rw shared:9 - cgroup2 cgroup2 rw\n";
        let mount = |point: &str, root: &str| Some(Mount { point: point.into(), root: root.into() });
        assert_eq!(Mount::find(pure), mount("/sys/fs/cgroup", "/"));
        assert_eq!(Mount::find(hybrid), mount("/mnt/c\\d", "/a b"));
        assert_eq!(Mount::find("32 31 0:29 / /sys rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn a_group_outside_of_the_mount_is_rejected() {
        let mount = Mount { point: "/sys/fs/cgroup".into(), root: "/docker/1".into() };
        assert_eq!(mount.directory("/docker/1/x"), Ok("/sys/fs/cgroup/x".into()));
        assert!(mount.directory("/docker/2").is_err() && mount.directory("/docker/1/../2").is_err());
        assert_eq!(
            own_group("9:cpu:/a\n0::/system.slice/weir.service\n"),
            Some("/system.slice/weir.service")
        );
    }

    #[test]
    fn keys_with_a_common_prefix_are_distinguished() {
        let text = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!((value(text, "oom"), value(text, "oom_kill"), value(text, "gone")), (3, 2, 0));
    }
}
