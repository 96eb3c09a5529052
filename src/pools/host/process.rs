//! What `/proc` says about processes. A process that ended while it was looked at is simply absent.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// The environment variable by which a process, however far it strayed, names its attempt.
pub(super) const ATTEMPT_VARIABLE: &str = "WEIR_ATTEMPT_ID";
/// The same for the task's place in a gang; absent where the attempt has one task.
pub(super) const RANK_VARIABLE: &str = "WEIR_GANG_RANK";

/// One line of `/proc/PID/stat`, as far as a supervisor cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: i32,
    /// Ended, but not waited for yet.
    pub(super) dead: bool,
    pub(super) parent: i32,
    pub(super) group: i32,
    /// In hundredths of a second since boot: with the pid it names a process uniquely.
    pub(super) started_ticks: u64,
    pub(super) resident_pages: u64,
}

/// Reads the state of one process.
pub(super) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads the state of all processes: slow, for the paths where something went wrong.
pub(super) fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| stat(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Returns the live processes that carry an attempt in their environment, by attempt, with the rank
/// of the task that they belong to.
pub(super) fn by_attempt() -> BTreeMap<String, Vec<(Stat, usize)>> {
    let mut found: BTreeMap<String, Vec<(Stat, usize)>> = BTreeMap::new();
    for stat in all().into_iter().filter(|stat| !stat.dead) {
        if let Some((attempt, rank)) = owner_of(stat.pid) {
            found.entry(attempt).or_default().push((stat, rank));
        }
    }
    found
}

/// Returns the attempt that a process carries in its environment, and the task's rank in it. A
/// process that ended or belongs to someone else carries none.
pub(super) fn owner_of(pid: i32) -> Option<(String, usize)> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |name: &str| {
        environ.split(|byte| *byte == 0).find_map(|variable| {
            let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            String::from_utf8(value.to_vec()).ok()
        })
    };
    let rank = value(RANK_VARIABLE).and_then(|rank| rank.parse().ok()).unwrap_or(0);
    Some((value(ATTEMPT_VARIABLE)?, rank))
}

/// Returns the children of this process, live or not, whichever thread started them.
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

/// Sends a signal to one process; one that is gone needs none.
pub(super) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _gone = kill_process(pid, signal);
    }
}

/// Sends a signal to a process group; one that is gone needs none.
pub(super) fn signal_group(group: Pid, signal: Signal) {
    let _gone = kill_process_group(group, signal);
}

fn parse_stat(pid: i32, text: &str) -> Option<Stat> {
    // The second field is the program's name in parentheses, and may hold anything.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    // From the third field on, so the start time is 22 − 6 and the resident set 24 − 23 further.
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
