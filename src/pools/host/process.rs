//! Reading of `/proc`, and sending of signals. A process that ends while it is read counts as absent.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// The environment variable that names the attempt of a process, also of one that left its process group.
pub(super) const ATTEMPT_VARIABLE: &str = "WEIR_ATTEMPT_ID";
/// The same for the task's rank in a gang; absent if the task is not in a gang.
pub(super) const RANK_VARIABLE: &str = "WEIR_GANG_RANK";
/// Only shims have it, not the programs that they start.
pub(super) const SHIM_VARIABLE: &str = "WEIR_SHIM";

/// The fields of `/proc/PID/stat` that the supervisor uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: i32,
    /// The process has ended, but was not waited for yet.
    pub(super) dead: bool,
    pub(super) parent: i32,
    pub(super) group: i32,
    /// Start time in hundredths of a second since boot: with the pid it identifies a process.
    pub(super) started_ticks: u64,
    pub(super) resident_pages: u64,
}

/// Reads the state of one process.
pub(super) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The process group of this process; 0 if it can't be seen from here.
pub(super) fn own_group() -> i32 {
    stat(rustix::process::getpid().as_raw_nonzero().get()).map_or(0, |stat| stat.group)
}

/// Reads the memory of a process, in bytes, in which pages that it shares with others count in part: its proportional
/// set size. `None` if it has ended or belongs to another user.
pub(super) fn proportional_bytes(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let size = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    size.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// Reads the state of all processes. This is slow: only for memory polls and error paths.
pub(super) fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| stat(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// The task that a process belongs to, by its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) attempt: String,
    pub(super) rank: usize,
    /// The process is a task's shim.
    pub(super) is_shim: bool,
}

/// Returns the live processes that carry an attempt in their environment, by attempt.
pub(super) fn by_attempt() -> BTreeMap<String, Vec<(Stat, Owner)>> {
    let mut found: BTreeMap<String, Vec<(Stat, Owner)>> = BTreeMap::new();
    for stat in all().into_iter().filter(|stat| !stat.dead) {
        if let Some(owner) = owner_of(stat.pid) {
            found.entry(owner.attempt.clone()).or_default().push((stat, owner));
        }
    }
    found
}

/// Returns the task that a process carries in its environment. A process that has ended or belongs to another user
/// carries none.
pub(super) fn owner_of(pid: i32) -> Option<Owner> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |name: &str| {
        environ.split(|byte| *byte == 0).find_map(|variable| {
            let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            String::from_utf8(value.to_vec()).ok()
        })
    };
    let rank = value(RANK_VARIABLE).and_then(|rank| rank.parse().ok()).unwrap_or(0);
    Some(Owner { attempt: value(ATTEMPT_VARIABLE)?, rank, is_shim: value(SHIM_VARIABLE).is_some() })
}

/// Returns the children of this process, live or dead, of all its threads.
pub(super) fn own_children() -> Vec<i32> {
    let listed = children_listed();
    listed.unwrap_or_else(|_| {
        // A kernel without CONFIG_PROC_CHILDREN.
        let own = rustix::process::getpid().as_raw_nonzero().get();
        all().into_iter().filter(|stat| stat.parent == own).map(|stat| stat.pid).collect()
    })
}

fn children_listed() -> io::Result<Vec<i32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(thread?.path().join("children"))?;
        children.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(children)
}

/// Sends a signal to one process. If the process is gone, this does nothing.
pub(super) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _gone = kill_process(pid, signal);
    }
}

/// Sends a signal to a process group. If the group is gone, this does nothing.
pub(super) fn signal_group(group: Pid, signal: Signal) {
    let _gone = kill_process_group(group, signal);
}

fn parse_stat(pid: i32, text: &str) -> Option<Stat> {
    // The second field is the program's name in parentheses, and may contain any character.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    // The next field is the sixth. Start time is field 22, so `nth(22 − 6)`; the resident set is field 24,
    // so `nth(24 − 23)`.
    let started_ticks = fields.nth(16)?.parse().ok()?;
    let resident_pages = fields.nth(1)?.parse().ok()?;
    Some(Stat { pid, dead: matches!(state, "Z" | "X"), parent, group, started_ticks, resident_pages })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c) Z 3 5 5 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 4321 1000 77 99 1 1\n";
        let expected =
            Stat { pid: 7, dead: true, parent: 3, group: 5, started_ticks: 4321, resident_pages: 77 };
        assert_eq!(parse_stat(7, text), Some(expected));
    }
}
