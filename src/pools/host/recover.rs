//! What a supervisor takes over from one that was killed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::attempt::{Now, TrackedAttempt};
use super::cgroup::Groups;
use super::process;
use super::protocol::{Attempt, StartAttempt};
use super::store::{self, Entry, ProcessRecord};

/// What was found in a supervisor's folder.
#[derive(Default)]
pub(super) struct Recovered {
    /// Something of them may be alive.
    pub(super) kept: BTreeMap<String, TrackedAttempt>,
    pub(super) ended: BTreeMap<String, Attempt>,
    /// Nothing of them is alive, and nobody saw how they ended.
    pub(super) vanished: Vec<StartAttempt>,
}

/// Makes of a journal's entries what stands, and finds what still runs.
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
    let (mut recovered, mut launched, mut started) =
        (Recovered::default(), BTreeMap::new(), BTreeMap::<String, Vec<ProcessRecord>>::new());
    for entry in entries {
        match entry {
            Entry::Launched(launch) => {
                launched.insert(launch.attempt.clone(), launch);
            }
            Entry::Started(record) if record.boot_id == boot_id => {
                started.entry(record.attempt.clone()).or_default().push(record);
            }
            Entry::Started(_) => {}
            Entry::Ended(ended) => {
                launched.remove(&ended.attempt);
                recovered.ended.insert(ended.attempt.clone(), ended);
            }
            Entry::Forgotten { attempt } => {
                launched.remove(&attempt);
                recovered.ended.remove(&attempt);
            }
        }
    }
    for entry in std::fs::read_dir(store::attempts_dir(state))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !launched.contains_key(&name) && !recovered.ended.contains_key(&name) {
            // Forgotten, but not moved any more.
            let _ = std::fs::rename(entry.path(), store::logs_dir(state).join(name));
        }
    }
    let unseen: Vec<(StartAttempt, Vec<ProcessRecord>)> = launched
        .into_iter()
        .map(|(attempt, launch)| (launch, started.remove(&attempt).unwrap_or_default()))
        .collect();
    if unseen.is_empty() {
        return Ok(recovered);
    }
    let mut carried = process::by_attempt();
    for (launch, mut records) in unseen {
        let directory = store::attempts_dir(state).join(&launch.attempt);
        let found = carried.remove(&launch.attempt).unwrap_or_default();
        let group = groups.and_then(|groups| groups.find(&launch.attempt, launch.tasks.len()));
        let alive = !found.is_empty()
            || group.as_ref().is_some_and(|(group, _)| group.is_populated())
            || records.iter().any(is_alive);
        if !alive {
            if let Some((group, _)) = group {
                group.remove();
            }
            recovered.vanished.push(launch);
            continue;
        }
        // Started, but killed before it was noted: the environment tells. The main process is the
        // one that its process group is named after.
        for (stat, rank) in found.iter().filter(|(stat, _)| stat.pid == stat.group) {
            if !records.iter().any(|record| record.rank == *rank) && *rank < launch.tasks.len() {
                records.push(ProcessRecord {
                    attempt: launch.attempt.clone(),
                    rank: *rank,
                    pid: stat.pid,
                    started_ticks: stat.started_ticks,
                    started_unix_ms: now.unix_ms,
                    started_boot_ms: now.boot_ms,
                    boot_id: boot_id.to_owned(),
                });
            }
        }
        let first = records.iter().min_by_key(|record| record.started_boot_ms);
        let started = first
            .map_or(now, |record| Now { unix_ms: record.started_unix_ms, boot_ms: record.started_boot_ms });
        let attempt = TrackedAttempt::adopt(launch, directory, groups, &records, started, now);
        recovered.kept.insert(attempt.launch.attempt.clone(), attempt);
    }
    Ok(recovered)
}

fn is_alive(record: &ProcessRecord) -> bool {
    process::stat(record.pid).is_some_and(|stat| !stat.dead && stat.started_ticks == record.started_ticks)
}
