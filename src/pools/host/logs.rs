//! Output of tasks: where it is, how it is read, when it goes.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::store;
use super::task::STREAMS;
use crate::model::id::AttemptId;
use crate::pools::{LogPart, ReadLogs, Stream};

/// How long output is kept after its attempt was forgotten.
const RETENTION: Duration = Duration::from_secs(24 * 3_600);
/// Attempts whose output is kept at the most: the oldest go first.
const KEPT_MAX: usize = 50_000;

/// Reads output of attempts in a supervisor's folder.
pub(super) struct Logs {
    pub(super) state: PathBuf,
}

impl ReadLogs for Logs {
    fn read(
        &self,
        attempt: AttemptId,
        _task: u32,
        stream: Stream,
        offset: u64,
        bytes_max: usize,
    ) -> io::Result<LogPart> {
        let name = attempt.to_string();
        let live = store::attempts_dir(&self.state).join(&name);
        let kept = store::logs_dir(&self.state).join(&name);
        let directory = if live.is_dir() { live } else { kept };
        if !directory.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the output is no longer kept"));
        }
        let complete = directory.join("status.json").is_file() || !directory.join("launch.json").is_file();
        let name = match stream {
            Stream::Stdout => STREAMS[0],
            Stream::Stderr => STREAMS[1],
        };
        let file = match std::fs::File::open(directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(LogPart { complete, ..LogPart::default() });
            }
            opened => opened?,
        };
        let end = file.metadata()?.len();
        // The middle of long output is a hole: go on where there is data again.
        let seek = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(offset));
        let from = seek.unwrap_or(offset).max(offset).min(end);
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(from)).unwrap_or(end).max(from);
        let len = usize::try_from(hole - from).unwrap_or(usize::MAX).min(bytes_max);
        let mut data = vec![0; len];
        let count = file.read_at(&mut data, from)?;
        data.truncate(count);
        Ok(LogPart { offset: from, data, end, complete })
    }
}

/// Removes output past its retention.
pub(super) fn collect(logs: &Path) {
    let Ok(entries) = std::fs::read_dir(logs) else { return };
    let mut kept: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in entries.flatten() {
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
