//! What a supervisor takes over from an earlier one that was killed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::attempt::TrackedAttempt;
use super::cgroup::Groups;
use super::process::{self, Owner, Stat};
use super::protocol::{Attempt, StartAttempt};
use super::store::{self, Entry, ProcessRecord};
use super::task::Now;

/// The attempts found in a supervisor's folder, by name.
#[derive(Default)]
pub(super) struct Recovered {
    /// Attempts that may have live processes.
    pub(super) live: BTreeMap<String, TrackedAttempt>,
    pub(super) ended: BTreeMap<String, Attempt>,
    /// Attempts without a live process whose end was not recorded.
    pub(super) vanished: Vec<StartAttempt>,
}

/// Attempts without an end in the journal, by name, each with the processes recorded for it in this boot.
type Unfinished = BTreeMap<String, (StartAttempt, Vec<ProcessRecord>)>;

/// Rebuilds the state of all attempts from a journal's entries, and adopts what still runs.
///
/// # Errors
/// If the folder can't be read.
pub(super) fn recover(
    state: &Path,
    entries: Vec<Entry>,
    groups: Option<&Groups>,
    now: Now,
    boot_id: &str,
) -> io::Result<Recovered> {
    let (unfinished, ended) = replay(entries, boot_id);
    let mut recovered = Recovered { ended, ..Recovered::default() };
    let mut unrecorded = Vec::new();
    for entry in std::fs::read_dir(store::attempts_dir(state))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !unfinished.contains_key(&name) && !recovered.ended.contains_key(&name) {
            unrecorded.push(name);
        }
    }
    if unfinished.is_empty() && unrecorded.is_empty() {
        return Ok(recovered);
    }
    end_unrecorded(&unrecorded, groups);
    for name in unrecorded {
        let _ = std::fs::rename(store::attempts_dir(state).join(&name), store::logs_dir(state).join(name));
    }
    let mut by_environment = process::by_attempt();
    for (name, (request, mut records)) in unfinished {
        let found = by_environment.remove(&name).unwrap_or_default();
        let group = groups.and_then(|groups| groups.find(&name, request.tasks.len()));
        let alive = !found.is_empty()
            || group.as_ref().is_some_and(|(group, _)| group.is_populated())
            || records.iter().any(is_alive);
        if !alive {
            if let Some((group, _)) = group {
                group.remove();
            }
            recovered.vanished.push(request);
            continue;
        }
        add_unrecorded(&mut records, &request, &found, now, boot_id);
        let first = records.iter().min_by_key(|record| record.started_boot_ms);
        let started = first
            .map_or(now, |record| Now { unix_ms: record.started_unix_ms, boot_ms: record.started_boot_ms });
        let directory = store::attempts_dir(state).join(&name);
        let attempt = TrackedAttempt::adopt(request, directory, groups, &records, started, now);
        recovered.live.insert(name, attempt);
    }
    Ok(recovered)
}

/// Time until processes that were sent SIGKILL must be gone.
const KILL_MAX: Duration = Duration::from_secs(5);

/// Kills what runs of attempts that have a folder and are not in the journal, and waits until it is gone. Mostly they
/// were forgotten, and the earlier supervisor was killed before it moved the folder. If the journal was lost or damaged,
/// they may run: the broker will start them again, and must not start them beside these processes.
fn end_unrecorded(names: &[String], groups: Option<&Groups>) {
    let until = Instant::now() + KILL_MAX;
    while !names.is_empty() {
        let mut by_environment = process::by_attempt();
        let mut left = false;
        for name in names {
            for (stat, _) in by_environment.remove(name).unwrap_or_default() {
                left = true;
                process::signal(stat.pid, Signal::KILL);
            }
            if let Some((group, _)) = groups.and_then(|groups| groups.find(name, 0)) {
                group.kill();
                left |= !group.remove();
            }
        }
        if !left || Instant::now() > until {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Folds a journal's entries into the unfinished attempts and the ended ones that are not forgotten.
fn replay(entries: Vec<Entry>, boot_id: &str) -> (Unfinished, BTreeMap<String, Attempt>) {
    let (mut ordered, mut started, mut ended) =
        (BTreeMap::new(), BTreeMap::<String, Vec<ProcessRecord>>::new(), BTreeMap::new());
    for entry in entries {
        match entry {
            Entry::Ordered(request) => {
                ordered.insert(request.attempt.clone(), request);
            }
            Entry::Started(record) if record.boot_id == boot_id => {
                started.entry(record.attempt.clone()).or_default().push(record);
            }
            Entry::Started(_) => {}
            Entry::Ended(attempt) => {
                ordered.remove(&attempt.attempt);
                ended.insert(attempt.attempt.clone(), attempt);
            }
            Entry::Forgotten { attempt } => {
                ordered.remove(&attempt);
                ended.remove(&attempt);
            }
        }
    }
    let unfinished = ordered.into_iter().map(|(name, request)| {
        let records = started.remove(&name).unwrap_or_default();
        (name, (request, records))
    });
    (unfinished.collect(), ended)
}

/// Adds records of main processes that were started, but not recorded before the supervisor was killed.
///
/// `found` are the live processes that name the attempt in their environment. A main process is a shim, or without
/// isolation the one that leads its process group.
fn add_unrecorded(
    records: &mut Vec<ProcessRecord>,
    request: &StartAttempt,
    found: &[(Stat, Owner)],
    now: Now,
    boot_id: &str,
) {
    // The first process of a task's namespaces is a copy of its shim.
    let shims = || found.iter().filter(|(_, owner)| owner.is_shim);
    let is_main = |stat: &Stat, owner: &Owner| {
        let is_copy = || shims().any(|(other, _)| other.pid == stat.parent);
        owner.is_shim && !is_copy() || request.isolation.is_none() && stat.pid == stat.group
    };
    for (stat, Owner { rank, .. }) in found.iter().filter(|(stat, owner)| is_main(stat, owner)) {
        if !records.iter().any(|record| record.rank == *rank) && *rank < request.tasks.len() {
            records.push(ProcessRecord {
                attempt: request.attempt.clone(),
                rank: *rank,
                pid: stat.pid,
                started_ticks: stat.started_ticks,
                started_unix_ms: now.unix_ms,
                started_boot_ms: now.boot_ms,
                boot_id: boot_id.to_owned(),
            });
        }
    }
}

fn is_alive(record: &ProcessRecord) -> bool {
    process::stat(record.pid).is_some_and(|stat| !stat.dead && stat.started_ticks == record.started_ticks)
}
