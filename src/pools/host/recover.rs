//! What a supervisor takes over from one that was killed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::attempt::{KeptAttempt, Now};
use super::cgroup::Groups;
use super::process;
use super::protocol::{Attempt, Launch};
use super::store::{self, ProcessRecord};

/// What was found in a supervisor's folder.
#[derive(Default)]
pub(super) struct Recovered {
    /// Something of them may be alive.
    pub(super) kept: BTreeMap<String, KeptAttempt>,
    pub(super) ended: BTreeMap<String, Attempt>,
    /// Nothing of them is alive, and nobody saw how they ended.
    pub(super) vanished: Vec<Launch>,
}

/// Reads the folder and finds what still runs.
///
/// # Errors
/// If something is there that can't be read: forgetting it could mean that it runs twice.
pub(super) fn recover(
    state: &Path,
    groups: Option<&Groups>,
    now: Now,
    boot_id: &str,
) -> io::Result<Recovered> {
    let (mut recovered, mut unseen) = (Recovered::default(), Vec::new());
    for entry in std::fs::read_dir(store::attempts_dir(state))? {
        let directory = entry?.path();
        let Some(launch) = whole::<Launch>(&directory.join("launch.json"))? else {
            // It never got as far as being started.
            let _ = std::fs::remove_dir_all(&directory);
            continue;
        };
        if let Some(ended) = whole::<Attempt>(&directory.join("status.json"))? {
            recovered.ended.insert(launch.attempt, ended);
            continue;
        }
        let mut records: Vec<ProcessRecord> = store::read_lines(&directory.join("processes"))?;
        records.retain(|record| record.boot_id == boot_id);
        unseen.push((launch, directory, records));
    }
    if unseen.is_empty() {
        return Ok(recovered);
    }
    let mut carried = process::by_attempt();
    for (launch, directory, mut records) in unseen {
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
        let attempt = KeptAttempt::adopt(launch, directory, groups, &records, started, now);
        recovered.kept.insert(attempt.launch.attempt.clone(), attempt);
    }
    Ok(recovered)
}

fn is_alive(record: &ProcessRecord) -> bool {
    process::stat(record.pid).is_some_and(|stat| !stat.dead && stat.started_ticks == record.started_ticks)
}

/// Reads a value; `None` if it is absent or was never written whole.
fn whole<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match store::read(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            Ok(None)
        }
        read => read,
    }
}
