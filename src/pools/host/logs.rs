//! Reading of task output, beside a supervisor that moves it and drops parts of it.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{output, store};
use crate::model::id::AttemptId;
use crate::pools::{LogPart, OutputTimes, ReadLogs, Stream, output_times};

/// Tries of one read: a try fails if the supervisor moves the files or drops the bytes that are being
/// read. After the last one the read fails and the client repeats it.
const TRIES_MAX: usize = 16;

/// Reads the output of attempts in the supervisor's folder `state`.
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
        self.repeat(attempt, |directory| read_once(directory, task as usize, stream, offset, bytes_max))
    }

    fn times(&self, attempt: AttemptId, task: u32, stream: Stream) -> io::Result<Option<OutputTimes>> {
        self.repeat(attempt, |directory| {
            let path = output::path(directory, task as usize, stream);
            let times = match path.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                found => OutputTimes::open(&path, output_times::written_at(&found?))?,
            };
            Ok(directory.is_dir().then_some(times))
        })
    }
}

impl Logs {
    /// Reads from an attempt's directory, again if the supervisor moves or changes what is read.
    fn repeat<T>(&self, attempt: AttemptId, read: impl Fn(&Path) -> io::Result<Option<T>>) -> io::Result<T> {
        let name = attempt.to_string();
        let places = [store::attempts_dir(&self.state).join(&name), store::logs_dir(&self.state).join(&name)];
        for _ in 0..TRIES_MAX {
            let Some(directory) = places.iter().find(|place| place.is_dir()) else {
                return Err(io::Error::new(io::ErrorKind::NotFound, "no output of the attempt is stored"));
            };
            if let Some(value) = read(directory)? {
                return Ok(value);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the output changes faster than it can be read"))
    }
}

/// Reads from an attempt's directory; `None` if the bytes that were read changed meanwhile.
fn read_once(
    directory: &Path,
    rank: usize,
    stream: Stream,
    offset: u64,
    bytes_max: usize,
) -> io::Result<Option<LogPart>> {
    let path = output::path(directory, rank, stream);
    let file = match output::open(&path, std::fs::OpenOptions::new().read(true)) {
        // If the directory is gone, too, the file was moved with it, and the read is repeated.
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
    // The record of a dropped range is written before the range is dropped. So if the record does
    // not cover what was read, the bytes were still there. In a directory that was moved meanwhile the
    // record is not found.
    let read = from..from + count as u64;
    let intact = match output::dropped(&path) {
        Some(gap) => read.end <= gap.from || read.start >= gap.to || read.is_empty(),
        None => before.is_none(),
    };
    Ok((intact && directory.is_dir()).then_some(LogPart { offset: from, data, end, complete }))
}
