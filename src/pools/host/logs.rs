//! Output of tasks: where it is, and how it is read.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{output, store};
use crate::model::id::AttemptId;
use crate::pools::{LogPart, ReadLogs, Stream};

/// Tries of a read that the output's supervisor keeps disturbing: each time it moves files or drops
/// the very bytes that were read. Then the reader comes again.
const TRIES_MAX: usize = 16;

/// Reads output of attempts in a supervisor's folder.
pub(super) struct Logs {
    pub(super) state: PathBuf,
}

impl ReadLogs for Logs {
    fn read(
        &self,
        attempt: AttemptId,
        task: u32,
        stream: Stream,
        offset: u64,
        bytes_max: usize,
    ) -> io::Result<LogPart> {
        let name = attempt.to_string();
        let places = [store::attempts_dir(&self.state).join(&name), store::logs_dir(&self.state).join(&name)];
        for _ in 0..TRIES_MAX {
            let Some(directory) = places.iter().find(|place| place.is_dir()) else {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "nothing is kept of its output, if it had any",
                ));
            };
            if let Some(part) = read_once(directory, task as usize, stream, offset, bytes_max)? {
                return Ok(part);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the output changes faster than it can be read"))
    }
}

/// Reads from a directory; `None` if what was read changed meanwhile.
fn read_once(
    directory: &Path,
    rank: usize,
    stream: Stream,
    offset: u64,
    bytes_max: usize,
) -> io::Result<Option<LogPart>> {
    let path = output::path(directory, rank, stream);
    let file = match std::fs::File::open(&path) {
        // Without its directory it has only been moved.
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_dir() => {
            return Ok(Some(LogPart::default()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let found = file.metadata()?;
    let (end, complete) = (found.len(), output::is_sealed(&found));
    let before = output::dropped(&path);
    let (from, until) = match before {
        Some(gap) if offset >= gap.from => (offset.max(gap.to), end),
        Some(gap) => (offset, gap.from),
        None => (offset, end),
    };
    let from = from.min(end);
    let len = usize::try_from(until.saturating_sub(from)).unwrap_or(usize::MAX).min(bytes_max);
    let mut data = vec![0; len];
    let count = file.read_at(&mut data, from)?;
    data.truncate(count);
    // What is dropped is written down before it is: if the note still spares what was read, then
    // it was there. A directory that has moved shows no notes.
    let read = from..from + count as u64;
    let spared = match output::dropped(&path) {
        Some(gap) => read.end <= gap.from || read.start >= gap.to || read.is_empty(),
        None => before.is_none(),
    };
    Ok((spared && directory.is_dir()).then_some(LogPart { offset: from, data, end, complete }))
}
