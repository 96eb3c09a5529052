//! How long output is kept of attempts that are over.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long output is kept after its attempt was forgotten.
const RETENTION: Duration = Duration::from_secs(24 * 3_600);
/// Attempts whose output is kept at the most: the oldest go first.
const KEPT_MAX: usize = 50_000;

/// Removes output past its retention, but for that of attempts that are still in use.
pub(super) fn collect(logs: &Path, in_use: impl Fn(&OsStr) -> bool) {
    let Ok(entries) = std::fs::read_dir(logs) else { return };
    let mut kept: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in entries.flatten().filter(|entry| !in_use(&entry.file_name())) {
        let Ok(modified) = entry.metadata().and_then(|found| found.modified()) else { continue };
        kept.push((modified, entry.path()));
    }
    kept.sort();
    let over = kept.len().saturating_sub(KEPT_MAX);
    let old = |at: &SystemTime| at.elapsed().is_ok_and(|age| age > RETENTION);
    for (_, path) in
        kept.iter().enumerate().filter(|(index, (at, _))| *index < over || old(at)).map(|(_, kept)| kept)
    {
        let _ = std::fs::remove_dir_all(path);
    }
}
