//! The files of a supervisor.
//!
//! ```text
//! DIR/journal                   the state of all attempts: per line a JSON value, a tab and its CRC-32
//! DIR/attempts/ID               an attempt that is not forgotten
//!                 RANK.stdout, RANK.stderr
//!                 RANK.work/    the task's directory, unless the request names another
//! DIR/logs/ID                   the same after the attempt was forgotten: for its output
//! ```
//!
//! One journal replaced separate files for each attempt: creating and removing them was most of the
//! cost of a short task, because ext4 steps over recently removed inodes one by one. Nothing is synced
//! to disk: after a crash of the machine no process is left that could run twice.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::protocol::{Attempt, StartAttempt};
use crate::files;

/// The longest name of an attempt. Longer names would bring the paths of its files and control groups near
/// their limits.
const ATTEMPT_LEN_MAX: usize = 40;

/// An entry of the supervisor's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// An agent requested the attempt. Written before anything is started.
    Ordered(StartAttempt),
    /// A task was started. Written after its start.
    Started(ProcessRecord),
    /// The attempt ended. Written when no process of it is left.
    Ended(Attempt),
    /// The agent no longer needs the attempt.
    Forgotten { attempt: String },
}

/// The main process of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessRecord {
    pub(super) attempt: String,
    pub(super) rank: usize,
    pub(super) pid: i32,
    pub(super) started_ticks: u64,
    pub(super) started_unix_ms: u64,
    pub(super) started_boot_ms: u64,
    /// Pids and ticks are valid within one boot only.
    pub(super) boot_id: String,
}

/// The supervisor's journal: a file of entries.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    len: u64,
    /// Above this length in bytes the journal is compacted.
    compact_at: u64,
}

impl Journal {
    /// Opens the journal of a supervisor's folder and reads what is in it.
    ///
    /// Returns also how many lines are damaged: they are skipped. An incomplete last line is cut off.
    ///
    /// # Errors
    /// Any I/O error: entries that can't be read must not count as entries that don't exist.
    pub(super) fn open(state: &Path) -> io::Result<(Self, Vec<Entry>, usize)> {
        let path = state.join("journal");
        let mut file = private().create(true).read(true).append(true).open(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
        }
        let lines = bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let (mut entries, mut damaged) = (Vec::new(), 0);
        for line in lines {
            match entry_of(line) {
                Some(entry) => entries.push(entry),
                None => damaged += 1,
            }
        }
        Ok((Self { path, file, len: whole as u64, compact_at: COMPACT_MIN_BYTES }, entries, damaged))
    }

    /// Appends an entry, whole or not at all.
    ///
    /// # Errors
    /// The error of the file system, such as a full disk.
    pub(super) fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let line = line_of(entry)?;
        match self.file.write_all(&line) {
            Ok(()) => {
                self.len += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A partial line would corrupt the next one.
                self.file.set_len(self.len)?;
                Err(error)
            }
        }
    }

    /// Returns whether the journal has grown so much that it must be compacted.
    pub(super) fn needs_compaction(&self) -> bool {
        self.len > self.compact_at
    }

    /// Replaces all entries by these.
    ///
    /// # Errors
    /// The error of the file system. The journal is unchanged then, and compaction is due again when it
    /// has grown further.
    pub(super) fn compact(&mut self, entries: impl Iterator<Item = Entry>) -> io::Result<()> {
        self.compact_at = self.len + COMPACT_MIN_BYTES;
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.extend(line_of(&entry)?);
        }
        (self.file, self.len) = (files::replace(&self.path, &bytes)?, bytes.len() as u64);
        self.compact_at = 2 * self.len + COMPACT_MIN_BYTES;
        Ok(())
    }
}

/// A journal is not compacted for less growth than this.
const COMPACT_MIN_BYTES: u64 = 4 << 20;

/// Options for a file that only its owner can read: start requests contain secrets in `env`.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn line_of(entry: &Entry) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    let sum = crc32fast::hash(&line);
    writeln!(line, "\t{sum:08x}")?;
    Ok(line)
}

/// Reads a line; `None` if it is damaged. Supervisors of earlier builds wrote none with a tab.
fn entry_of(line: &[u8]) -> Option<Entry> {
    let tab = line.iter().rposition(|byte| *byte == b'\t');
    let json = match tab {
        Some(tab) => {
            let sum = format!("{:08x}", crc32fast::hash(&line[..tab]));
            (sum.as_bytes() == &line[tab + 1..]).then_some(&line[..tab])?
        }
        None => line,
    };
    serde_json::from_slice(json).ok()
}

/// When the leases were last renewed. It is valid across supervisors, but only within one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    pub(super) boot_id: String,
    pub(super) renewed_boot_ms: u64,
}

/// Returns whether a name is safe as a part of a path: at most 40 characters out of `a-z`, `0-9` and `-`.
pub(super) fn is_attempt(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= ATTEMPT_LEN_MAX && name.bytes().all(plain)
}

/// The folder of the attempts that are not forgotten.
pub(super) fn attempts_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("attempts")
}

/// The folder of the output of forgotten attempts.
pub(super) fn logs_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("logs")
}

/// The extension of the folders of an attempt's tasks.
pub(super) const WORK: &str = "work";

/// Creates a directory that only its owner can enter: start requests contain secrets in `env`.
pub(super) fn create_private_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn forgotten(attempt: &str) -> Entry {
        Entry::Forgotten { attempt: attempt.to_owned() }
    }

    #[test]
    fn a_partial_last_line_is_cut_off_and_the_next_one_is_whole() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let (mut journal, entries, _) = Journal::open(folder.path()).expect("a journal");
        assert_eq!(entries, []);
        journal.append(&forgotten("a")).expect("free space");
        let path = folder.path().join("journal");
        let mut bytes = fs::read(&path).expect("a file");
        bytes.extend(b"{\"forgotten\":{\"att");
        fs::write(&path, bytes).expect("free space");
        let (mut journal, entries, _) = Journal::open(folder.path()).expect("a journal");
        assert_eq!(entries, [forgotten("a")]);
        journal.append(&forgotten("b")).expect("free space");
        let (_, entries, _) = Journal::open(folder.path()).expect("a journal");
        assert_eq!(entries, [forgotten("a"), forgotten("b")]);
    }

    #[test]
    fn a_compacted_journal_takes_further_entries() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let (mut journal, _, _) = Journal::open(folder.path()).expect("a journal");
        for _ in 0..3 {
            journal.append(&forgotten("a")).expect("free space");
        }
        journal.compact([forgotten("b")].into_iter()).expect("free space");
        journal.append(&forgotten("c")).expect("free space");
        let (_, entries, _) = Journal::open(folder.path()).expect("a journal");
        assert_eq!(entries, [forgotten("b"), forgotten("c")]);
    }

    #[test]
    fn no_flipped_bit_of_a_journal_is_read_as_another_entry() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let (mut journal, ..) = Journal::open(folder.path()).expect("a journal");
        let entries = ["a", "b", "c"].map(forgotten);
        entries.iter().for_each(|entry| journal.append(entry).expect("free space"));
        let path = folder.path().join("journal");
        let bytes = fs::read(&path).expect("a file");
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            fs::write(&path, &flipped).expect("free space");
            let (_, found, damaged) = Journal::open(folder.path()).expect("a journal");
            assert!(found.iter().all(|entry| entries.contains(entry)), "bit {at}: {found:?}");
            // A last line without its end is one that was never completed.
            assert!(damaged > 0 || at / 8 == bytes.len() - 1, "bit {at}: {found:?}");
        }
    }

    #[test]
    fn an_attempt_that_could_leave_its_directory_is_refused() {
        let refused = ["", ".", "..", "a/b", "A", "a.b", "a b", &"a".repeat(41)];
        assert!(refused.iter().all(|name| !is_attempt(name)));
        assert!(is_attempt("0f-9z") && is_attempt(&"a".repeat(40)));
    }
}
