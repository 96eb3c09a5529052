//! Control groups (version 2): limits that the kernel enforces, and a sure hold on all that a task
//! starts.
//!
//! ```text
//! BASE                  the supervisor's own group, or one that the pool's file names
//! BASE/weir-HASH        the pool's, by the supervisor's folder
//! …/ATTEMPT             an attempt's: the task's, if there is only one
//! …/ATTEMPT/RANK        one task's of several
//! ```
//!
//! A group that holds processes can't give controllers to its children, unless it is the root: see
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>, "No Internal Process Constraint". So a
//! supervisor that is alone with its agent in its group moves both of them one down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use sha2::{Digest, Sha256};

use super::{enter, process};

/// The period over which CPU time is counted, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The least CPU time in a period that the kernel takes, in microseconds.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// The file in a supervisor's folder that names the pool's group.
const HOME_FILE: &str = "cgroup";

/// The control groups of one supervisor.
#[derive(Debug)]
pub(super) struct Groups {
    /// The pool's group.
    home: PathBuf,
    /// The kernel enforces CPU limits, or why it does not.
    pub(super) cpu: Result<(), String>,
    /// The kernel enforces memory limits, or why it does not.
    pub(super) memory: Result<(), String>,
}

/// One control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group(PathBuf);

impl Groups {
    /// Tells whether the kernel would enforce limits of `controller`, or why not, and changes nothing.
    ///
    /// # Errors
    /// In words for an operator.
    pub(super) fn would_enforce(parent: Option<&Path>, state: &Path, controller: &str) -> Result<(), String> {
        let (mount, base) = Self::base(parent, state)?;
        if !offers(&base, controller) {
            return Err(why_not(&mount, &base, controller, &io::Error::from(io::ErrorKind::NotFound)));
        }
        rustix::fs::access(&base, rustix::fs::Access::WRITE_OK)
            .map_err(|error| format!("control group {}: {error}", base.display()))
    }

    /// Where control groups are mounted, and the one below which the pool's is.
    fn base(parent: Option<&Path>, state: &Path) -> Result<(Mount, PathBuf), String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let mount =
            Mount::find(&read("/proc/self/mountinfo")?).ok_or("no control groups (v2) are mounted")?;
        let name = name_of(state);
        let base = match parent {
            Some(path) => mount.point.join(path.strip_prefix("/").unwrap_or(path)),
            None => match used_before(state, &name) {
                Some(base) => base,
                None => mount.base_of(&read("/proc/self/cgroup")?, &name)?,
            },
        };
        Ok((mount, base))
    }

    /// Makes the pool's group below `parent`, or below this process's own group.
    ///
    /// # Errors
    /// In words for an operator, if there is no such group that processes can be put into.
    pub(super) fn open(parent: Option<&Path>, state: &Path) -> Result<Self, String> {
        let name = name_of(state);
        let (mount, base) = Self::base(parent, state)?;
        let failed = |error: io::Error| format!("control group {}: {error}", base.display());
        fs::create_dir_all(&base).map_err(failed)?;
        let home = base.join(&name);
        create(&home).map_err(failed)?;
        let probe = home.join("probe");
        create(&probe).map_err(failed)?;
        let possible = enter::is_possible(&probe.join("cgroup.procs"), &state.join("probe"));
        let _ = fs::remove_dir(&probe);
        possible.map_err(failed)?;
        // Unwritten, the next supervisor looks where it is itself, which is the same as a rule.
        let _ = fs::write(state.join(HOME_FILE), home.as_os_str().as_encoded_bytes());
        let room = make_room(&base, &name);
        let enabled = |controller: &str| {
            let given = match &room {
                Ok(()) => give(&base, controller).and_then(|()| give(&home, controller)),
                Err(error) => Err(io::Error::from(error.kind())),
            };
            given.map_err(|error| why_not(&mount, &base, controller, &error))
        };
        let (cpu, memory) = (enabled("cpu"), enabled("memory"));
        Ok(Self { home, cpu, memory })
    }

    /// Keeps groups that bring limits, or that somebody `wanted`. Others only hold processes
    /// together, which is not worth a step more for every task.
    pub(super) fn keep_if(self, wanted: bool) -> Option<Self> {
        if wanted || self.cpu.is_ok() || self.memory.is_ok() {
            return Some(self);
        }
        self.remove();
        None
    }

    /// Makes the group of an attempt and those of its tasks, by rank.
    ///
    /// # Errors
    /// What the kernel reports; then nothing of it is left.
    pub(super) fn create(&self, attempt: &str, tasks: usize) -> io::Result<(Group, Vec<Group>)> {
        let (whole, each) = self.of(attempt, tasks);
        let made = create(&whole.0).and_then(|()| {
            if each.len() > 1 {
                if self.cpu.is_ok() {
                    give(&whole.0, "cpu")?;
                }
                if self.memory.is_ok() {
                    give(&whole.0, "memory")?;
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

    /// The groups of an attempt that an earlier supervisor made, if they are there.
    pub(super) fn find(&self, attempt: &str, tasks: usize) -> Option<(Group, Vec<Group>)> {
        Some(self.of(attempt, tasks)).filter(|(whole, _)| whole.0.is_dir())
    }

    /// Sets what a task may use at the most: 0 means no limit.
    ///
    /// # Errors
    /// If the kernel refuses a limit that it said it would take.
    pub(super) fn limit(&self, group: &Group, cpu_millis: u64, memory_bytes: u64) -> io::Result<()> {
        if self.cpu.is_ok() && cpu_millis > 0 {
            let quota_us = (cpu_millis * CPU_PERIOD_US / 1_000).max(CPU_QUOTA_MIN_US);
            fs::write(group.0.join("cpu.max"), format!("{quota_us} {CPU_PERIOD_US}"))?;
        }
        if self.memory.is_ok() && memory_bytes > 0 {
            fs::write(group.0.join("memory.max"), memory_bytes.to_string())?;
            // Half a task is none: what runs out of memory ends as a whole.
            fs::write(group.0.join("memory.oom.group"), "1")?;
            // Absent where the kernel doesn't account for swap.
            let _absent = fs::write(group.0.join("memory.swap.max"), "0");
        }
        Ok(())
    }

    /// Removes the pool's group, if nothing is left in it.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir(&self.home);
    }

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
    /// The file through which processes enter.
    pub(super) fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// Some process is in it or below it.
    pub(super) fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.0.join("cgroup.events"));
        events.is_ok_and(|text| value(&text, "populated") > 0)
    }

    /// The processes in it and below it.
    pub(super) fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for group in self.with_below() {
            let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        pids
    }

    /// Kills all in it and below it, also what forks meanwhile.
    pub(super) fn kill(&self) {
        // Linux before 5.14 has no such file.
        if fs::write(self.0.join("cgroup.kill"), "1").is_err() {
            self.signal(Signal::KILL);
        }
    }

    /// Sends a signal to each process in it and below it.
    pub(super) fn signal(&self, signal: Signal) {
        self.pids().into_iter().for_each(|pid| process::signal(pid, signal));
    }

    /// The kernel killed something in it for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.0.join("memory.events"));
        events.is_ok_and(|text| value(&text, "oom_kill") > 0 || value(&text, "oom_group_kill") > 0)
    }

    /// Removes it and what is below it. Tells whether it is gone.
    pub(super) fn remove(&self) -> bool {
        self.with_below().into_iter().rev().for_each(|group| {
            let _ = fs::remove_dir(group);
        });
        !self.0.exists()
    }

    /// Its directory and those below, parents first.
    fn with_below(&self) -> Vec<PathBuf> {
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

/// The base that an earlier supervisor of this folder chose, if its group is still there: the next
/// one may be started from elsewhere, and must find what it adopts.
fn used_before(state: &Path, name: &str) -> Option<PathBuf> {
    let home = PathBuf::from(fs::read_to_string(state.join(HOME_FILE)).ok()?);
    let ours = home.file_name().is_some_and(|last| *last == *name) && home.join("cgroup.procs").is_file();
    home.parent().filter(|_| ours).map(Path::to_owned)
}

/// Where the hierarchy of version 2 is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// The group that is seen there: not the root in some containers.
    root: PathBuf,
}

impl Mount {
    /// Finds it in the text of `/proc/self/mountinfo`.
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

    /// The directory of this process's group, or of that which it once retreated from.
    fn base_of(&self, own: &str, name: &str) -> Result<PathBuf, String> {
        let own = own_group(own).ok_or("this process is in no control group of version 2")?;
        let directory = self.directory(own)?;
        let retreated = directory.file_name().is_some_and(|last| *last == *format!("{name}-agent"));
        match directory.parent() {
            Some(parent) if retreated => Ok(parent.to_owned()),
            _ => Ok(directory),
        }
    }

    /// The directory of a group.
    fn directory(&self, group: &str) -> Result<PathBuf, String> {
        let below = Path::new(group).strip_prefix(&self.root);
        match below {
            Ok(below) if !group.contains("/..") => Ok(self.point.join(below)),
            _ => Err(format!("its control group {group} is outside of what is mounted")),
        }
    }
}

/// Undoes the escapes of mountinfo: a backslash and three octal digits.
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

/// The group of version 2 in the text of `/proc/self/cgroup`.
fn own_group(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// A name for the group of the supervisor of this folder: others have others.
fn name_of(state: &Path) -> String {
    let state = fs::canonicalize(state).unwrap_or_else(|_| state.to_owned());
    let hash = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let hash: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("weir-{hash}")
}

fn create(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Gives a controller to the children of a group.
fn give(group: &Path, controller: &str) -> io::Result<()> {
    let control = group.join("cgroup.subtree_control");
    if fs::read_to_string(&control)?.split_ascii_whitespace().any(|given| given == controller) {
        return Ok(());
    }
    fs::write(control, format!("+{controller}"))
}

fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

/// Moves this process and its agent out of a group, if nobody else is in it.
///
/// Before any controller is given: with processes in it, a group takes some controllers and then
/// has children that can't hold processes.
fn make_room(base: &Path, name: &str) -> io::Result<()> {
    let text = fs::read_to_string(base.join("cgroup.procs"))?;
    // The root, which alone has no type, may hold processes as well.
    let is_root = !base.join("cgroup.type").exists();
    if text.is_empty() || is_root || !(offers(base, "cpu") || offers(base, "memory")) {
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

/// A group has a controller that it can give to its children.
fn offers(group: &Path, controller: &str) -> bool {
    let text = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    text.split_ascii_whitespace().any(|offered| offered == controller)
}

fn why_not(mount: &Mount, base: &Path, controller: &str, error: &io::Error) -> String {
    if !offers(&mount.point, controller) {
        return format!("this machine has no {controller} controller in its control groups of version 2");
    }
    if !offers(base, controller) {
        return format!("control group {} is given no {controller} controller", base.display());
    }
    if is_busy(error) {
        return format!("control group {} holds other processes", base.display());
    }
    format!("control group {}: {error}", base.display())
}

/// The value of a key in a flat keyed file; 0 where it is absent.
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
    fn a_group_is_looked_for_below_what_is_mounted() {
        let mount = Mount { point: "/sys/fs/cgroup".into(), root: "/docker/1".into() };
        assert_eq!(mount.directory("/docker/1/x"), Ok("/sys/fs/cgroup/x".into()));
        assert!(mount.directory("/docker/2").is_err() && mount.directory("/docker/1/../2").is_err());
        assert_eq!(
            own_group("9:cpu:/a\n0::/system.slice/weir.service\n"),
            Some("/system.slice/weir.service")
        );
    }

    #[test]
    fn keys_of_one_beginning_are_told_apart() {
        let text = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!((value(text, "oom"), value(text, "oom_kill"), value(text, "gone")), (3, 2, 0));
    }
}
