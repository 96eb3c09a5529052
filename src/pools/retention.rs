//! Removal of the output of old attempts.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::clean::remove_tree;

/// Output is removed this long after its attempt was forgotten.
const RETENTION: Duration = Duration::from_secs(24 * 3_600);
/// The most attempts whose output is stored: beyond it the oldest output is removed first.
const ATTEMPTS_MAX: usize = 50_000;

/// Removes expired output below `logs`, except that of attempts that are still in use.
///
/// Each entry of `logs` is the output of one attempt; it expires by its modification time.
pub(super) fn collect(logs: &Path, in_use: impl Fn(&OsStr) -> bool) {
    let Ok(entries) = std::fs::read_dir(logs) else { return };
    let mut stored: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in entries.flatten().filter(|entry| !in_use(&entry.file_name())) {
        let Ok(modified) = entry.metadata().and_then(|found| found.modified()) else { continue };
        stored.push((modified, entry.path()));
    }
    stored.sort();
    let over = stored.len().saturating_sub(ATTEMPTS_MAX);
    let old = |at: &SystemTime| at.elapsed().is_ok_and(|age| age > RETENTION);
    for (_, path) in
        stored.iter().enumerate().filter(|(index, (at, _))| *index < over || old(at)).map(|(_, entry)| entry)
    {
        // What can't be removed is left for the next search.
        let _ = remove_tree(path);
    }
}
