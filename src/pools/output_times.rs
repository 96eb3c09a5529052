//! When output was written: an index beside each stream, so that output can be read since a time and printed with
//! times.
//!
//! Entries of 16 bytes, little endian: the offset at which a piece of the stream ends, and the time by which it was
//! written, in milliseconds of Unix time. A piece begins where the one before it ends. Both numbers only grow. What the
//! stream has beyond the last entry was written by a time that the reader must know by itself.
//!
//! What is written within a second may share an entry: the last entry is replaced as long as it stays within that time
//! of the one before it. So a time is late by a second at most, also after a long pause; in a stream of many hours by some seconds.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;

use crate::model::limit::OUTPUT_TIMES_MAX;
use crate::model::time::Timestamp;

/// Bytes of an entry.
const ENTRY_BYTES: u64 = 16;
/// Pieces that are written within so many milliseconds may share an entry.
const INTERVAL_MS: u64 = 1_000;
/// After so many entries that time has doubled, after as many again tripled, and so on, so that an index stays small: less
/// than 1 MiB for 10 hours and 20 MB for a year of output without a pause.
const ENTRIES_PER_INTERVAL: u64 = 32_768;

/// The end of a piece of output, and the time by which it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputTime {
    /// In bytes from the stream's beginning.
    pub end: u64,
    pub at: Timestamp,
}

/// The index's file for a stream's file.
fn path_of(stream: &Path) -> PathBuf {
    stream.with_added_extension("times")
}

/// Opens an index without following a link and without waiting for a pipe: a task may have replaced it.
fn open(stream: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    options.custom_flags(flags.bits().cast_signed()).open(path_of(stream))
}

/// Begins the index of a stream that is empty, or begins again. Without this, nothing is recorded.
pub(super) fn begin(stream: &Path) -> io::Result<()> {
    open(stream, OpenOptions::new().create(true).write(true).truncate(true).mode(0o600)).map(drop)
}

/// Records that the stream up to `end` was written by `at`. Without an index nothing happens.
///
/// # Errors
/// Those of the file system.
pub(super) fn record(stream: &Path, end: u64, at: Timestamp) -> io::Result<()> {
    let file = match open(stream, OpenOptions::new().read(true).write(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let entries = Entries::of(file)?;
    let (mut at, mut index) = (at, entries.count);
    if let Some(last) = entries.nth_last(1)? {
        if end <= last.end {
            return Ok(());
        }
        at = at.max(last.at);
        let interval = INTERVAL_MS * (1 + entries.count / ENTRIES_PER_INTERVAL);
        if entries.nth_last(2)?.is_some_and(|before| at.ms_since(before.at) < interval) {
            index -= 1;
        }
    }
    let entry = [end.to_le_bytes(), at.0.to_le_bytes()].concat();
    // An entry that a full disk cut off is overwritten by the next one.
    entries.file.write_all_at(&entry, index * ENTRY_BYTES)
}

/// When a file was last written. Not later than now: a task may set the time of its output.
pub(super) fn written_at(found: &Metadata) -> Timestamp {
    let now = SystemTime::now();
    let at = found.modified().map_or(now, |at| at.min(now));
    let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// The times of a stream as a reader sees them.
#[derive(Debug)]
pub struct OutputTimes {
    entries: Entries,
    /// What is beyond the last entry was written by then.
    rest: Timestamp,
}

impl OutputTimes {
    /// Opens the times of a stream of which the bytes beyond the last entry were written by `rest`. `None` if the stream
    /// has no index.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn open(stream: &Path, rest: Timestamp) -> io::Result<Option<Self>> {
        match open(stream, OpenOptions::new().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => Ok(Some(Self { entries: Entries::of(opened?)?, rest })),
        }
    }

    /// Returns an offset before which nothing was written at `since` or later; `end` is the stream's end.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn since(&self, since: Timestamp, end: u64) -> io::Result<u64> {
        let index = self.entries.first_where(|entry| entry.at >= since)?;
        if index == self.entries.count && self.rest < since {
            return Ok(end);
        }
        Ok(self.entries.before(index)?.min(end))
    }

    /// Returns the pieces that a part of the stream belongs to. The last one ends at or beyond the part's end, unless
    /// there are more than [`OUTPUT_TIMES_MAX`].
    ///
    /// # Errors
    /// Those of the file system.
    pub fn within(&self, part: Range<u64>) -> io::Result<Vec<OutputTime>> {
        let mut times = Vec::new();
        if part.is_empty() {
            return Ok(times);
        }
        let mut index = self.entries.first_where(|entry| entry.end > part.start)?;
        while let Some(entry) = self.entries.read(index)? {
            times.push(entry);
            if entry.end >= part.end || times.len() == OUTPUT_TIMES_MAX {
                return Ok(times);
            }
            index += 1;
        }
        let at = times.last().map_or(self.rest, |last| last.at.max(self.rest));
        times.push(OutputTime { end: part.end, at });
        Ok(times)
    }
}

/// The entries of an index that has not more than it had when it was opened.
#[derive(Debug)]
struct Entries {
    file: File,
    count: u64,
}

impl Entries {
    fn of(file: File) -> io::Result<Self> {
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the task has replaced the times of its output",
            ));
        }
        Ok(Self { file, count: found.len() / ENTRY_BYTES })
    }

    fn read(&self, index: u64) -> io::Result<Option<OutputTime>> {
        if index >= self.count {
            return Ok(None);
        }
        let mut entry = [0; ENTRY_BYTES as usize];
        self.file.read_exact_at(&mut entry, index * ENTRY_BYTES)?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| entry[at + byte]));
        Ok(Some(OutputTime { end: number(0), at: Timestamp(number(8)) }))
    }

    /// The last entry is 1 from the end.
    fn nth_last(&self, distance: u64) -> io::Result<Option<OutputTime>> {
        self.count.checked_sub(distance).map_or(Ok(None), |index| self.read(index))
    }

    /// Where the piece of an entry begins.
    fn before(&self, index: u64) -> io::Result<u64> {
        let before = index.checked_sub(1).map_or(Ok(None), |before| self.read(before))?;
        Ok(before.map_or(0, |entry| entry.end))
    }

    /// The first entry for which `holds`, which holds for all later ones; `count` if there is none.
    fn first_where(&self, holds: impl Fn(OutputTime) -> bool) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.read(middle)? {
                Some(entry) if !holds(entry) => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream with an index; each piece has its end and its time in milliseconds.
    fn stream(pieces: &[(u64, u64)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let stream = folder.path().join("0.stdout");
        begin(&stream).expect("an index");
        for (end, at) in pieces {
            record(&stream, *end, Timestamp(*at)).expect("recorded");
        }
        (folder, stream)
    }

    fn times(stream: &Path, rest: u64) -> OutputTimes {
        OutputTimes::open(stream, Timestamp(rest)).expect("readable").expect("an index")
    }

    fn within(times: &OutputTimes, part: Range<u64>) -> Vec<(u64, u64)> {
        times.within(part).expect("times").iter().map(|time| (time.end, time.at.0)).collect()
    }

    #[test]
    fn every_byte_has_a_time_not_before_and_at_most_a_second_after_it_was_written() {
        // Bytes by the time at which each was written: a burst, a steady flow, and pauses.
        let mut written = vec![(0, 5_000)];
        for at in (0..400_u64).map(|step| 6_000 + step * 130 + if step > 200 { 3_600_000 } else { 0 }) {
            written.push((written.len() as u64, at));
        }
        written.push((written.len() as u64, 90_000_000));
        let pieces: Vec<(u64, u64)> = written.iter().map(|(offset, at)| (offset + 1, *at)).collect();
        let (_folder, stream) = stream(&pieces);
        let times = times(&stream, 90_000_000);
        assert!(times.entries.count < 130, "{} entries for {} pieces", times.entries.count, pieces.len());
        for (offset, at) in &written {
            let shown = within(&times, *offset..*offset + 1)[0].1;
            assert!((*at..*at + INTERVAL_MS).contains(&shown), "byte {offset} of {at} has {shown}");
            // Nothing is left out, and at most what was written in the second before is added.
            let since = times.since(Timestamp(*at), written.len() as u64).expect("an offset");
            assert!(since <= *offset, "since {at}: {since} is after {offset}");
            let first = written[since as usize].1;
            assert!(first + INTERVAL_MS > *at, "since {at} begins with what was written at {first}");
        }
        let all = within(&times, 0..written.len() as u64);
        assert_eq!(all.last().map(|last| last.0), Some(written.len() as u64));
        assert!(all.is_sorted(), "{all:?}");
    }

    #[test]
    fn what_is_not_recorded_yet_has_the_readers_own_time() {
        let (_folder, stream) = stream(&[(10, 1_000), (20, 5_000)]);
        let times = times(&stream, 9_000);
        assert_eq!(within(&times, 0..30), [(10, 1_000), (20, 5_000), (30, 9_000)]);
        assert_eq!(within(&times, 12..15), [(20, 5_000)]);
        assert_eq!(within(&times, 25..30), [(30, 9_000)]);
        assert_eq!(within(&times, 5..5), []);
        let since = |at: u64| times.since(Timestamp(at), 30).expect("an offset");
        assert_eq!([0, 1_000, 1_001, 5_001, 9_000, 9_001].map(since), [0, 0, 10, 20, 20, 30]);
    }

    #[test]
    fn clock_that_is_set_back_gives_no_earlier_time() {
        let (_folder, stream) = stream(&[(1, 5_000), (2, 8_000), (3, 2_000), (4, 12_000)]);
        let all = within(&times(&stream, 0), 0..4);
        assert!(all.is_sorted() && all.iter().all(|(_, at)| *at >= 5_000), "{all:?}");
    }

    #[test]
    fn stream_without_an_index_gets_none_and_a_replaced_one_is_not_followed() {
        let (folder, stream) = stream(&[(1, 1)]);
        let other = folder.path().join("1.stdout");
        record(&other, 1, Timestamp(1)).expect("nothing to do");
        assert!(OutputTimes::open(&other, Timestamp(1)).expect("no error").is_none());
        let aim = folder.path().join("aim");
        std::fs::write(&aim, "").expect("a file");
        std::fs::remove_file(path_of(&stream)).expect("the index");
        std::os::unix::fs::symlink(&aim, path_of(&stream)).expect("a link");
        record(&stream, 9, Timestamp(9)).expect_err("a link");
        assert!(OutputTimes::open(&stream, Timestamp(1)).is_err());
        assert_eq!(std::fs::read(&aim).expect("the file"), b"");
    }
}
