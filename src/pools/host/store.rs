//! The files of a supervisor.
//!
//! ```text
//! DIR/journal                   what it must not forget, one JSON value a line
//! DIR/attempts/ID               an attempt that is not forgotten
//!                 RANK.stdout, RANK.stderr
//!                 RANK.work/    the task's directory, unless the launch names another
//!                 RANK.failure  why its program could not be started
//! DIR/logs/ID                   the same, once it was forgotten: for its output
//! ```
//!
//! Files of their own for each attempt were tried first. Making and removing them was most of what a
//! short task cost: ext4 steps over inodes that were removed lately, one by one. Nothing is synced to
//! disk: after a crash of the machine no process is left that could run twice.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::protocol::{Attempt, StartAttempt};

/// Longer names would not fit the paths of control groups and file systems comfortably.
const ATTEMPT_LEN_MAX: usize = 40;

/// What a supervisor must not forget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// Written before anything is started.
    Launched(StartAttempt),
    /// Written after a task was: who it is.
    Started(ProcessRecord),
    /// Written when nothing of the attempt is left.
    Ended(Attempt),
    Forgotten {
        attempt: String,
    },
}

/// Who runs a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessRecord {
    pub(super) attempt: String,
    pub(super) rank: usize,
    pub(super) pid: i32,
    pub(super) started_ticks: u64,
    pub(super) started_unix_ms: u64,
    pub(super) started_boot_ms: u64,
    /// Pids and ticks start anew with each boot.
    pub(super) boot_id: String,
}

/// The file of entries.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    len: u64,
    /// From this length on it is worth while to leave out what was forgotten.
    compact_at: u64,
}

impl Journal {
    /// Opens the journal of a supervisor's folder and reads what is in it.
    ///
    /// A line that was never written whole is left out, and one at the end is cut off.
    ///
    /// # Errors
    /// Any I/O error: what can't be read must not be taken for what was never there.
    pub(super) fn open(state: &Path) -> io::Result<(Self, Vec<Entry>)> {
        let path = state.join("journal");
        let mut file = private().create(true).read(true).append(true).open(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
        }
        let lines = bytes[..whole].split(|byte| *byte == b'\n');
        let entries = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        Ok((Self { path, file, len: whole as u64, compact_at: COMPACT_MIN_BYTES }, entries))
    }

    /// Adds an entry, whole or not at all.
    ///
    /// # Errors
    /// What the file system reports, such as a full disk.
    pub(super) fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let line = line_of(entry)?;
        match self.file.write_all(&line) {
            Ok(()) => {
                self.len += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a line would spoil the next one.
                self.file.set_len(self.len)?;
                Err(error)
            }
        }
    }

    /// It has grown so much that it should be written anew.
    pub(super) fn is_long(&self) -> bool {
        self.len > self.compact_at
    }

    /// Replaces all entries by these.
    ///
    /// # Errors
    /// What the file system reports; then the journal is as it was, and will be tried later.
    pub(super) fn compact(&mut self, entries: impl Iterator<Item = Entry>) -> io::Result<()> {
        self.compact_at = self.len + COMPACT_MIN_BYTES;
        let fresh = self.path.with_extension("new");
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.extend(line_of(&entry)?);
        }
        let _absent = fs::remove_file(&fresh);
        let mut file = private().create(true).append(true).open(&fresh)?;
        file.write_all(&bytes)?;
        fs::rename(&fresh, &self.path)?;
        (self.file, self.len) = (file, bytes.len() as u64);
        self.compact_at = 2 * self.len + COMPACT_MIN_BYTES;
        Ok(())
    }
}

/// A journal is not written anew for less.
const COMPACT_MIN_BYTES: u64 = 4 << 20;

/// Launches hold secrets in their environment.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn line_of(entry: &Entry) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line)
}

/// Until when leased attempts may run. It outlives the supervisor, but not the boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    pub(super) boot_id: String,
    pub(super) until_boot_ms: u64,
}

/// Returns whether an attempt's name is one that may become part of a path.
pub(super) fn is_attempt(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= ATTEMPT_LEN_MAX && name.bytes().all(plain)
}

pub(super) fn attempts_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("attempts")
}

pub(super) fn logs_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("logs")
}

/// Creates a directory that only its owner may enter: launches hold secrets in `env`.
pub(super) fn create_private_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        done => done,
    }
}

/// Removes what tasks left in their own directories. The directories stay, until the output goes.
pub(super) fn empty_work(attempt: &Path) {
    let entries = fs::read_dir(attempt).into_iter().flatten().flatten();
    for work in entries.filter(|entry| entry.path().extension().is_some_and(|last| last == "work")) {
        for left in fs::read_dir(work.path()).into_iter().flatten().flatten() {
            let _ = match left.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(left.path()),
                _ => fs::remove_file(left.path()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forgotten(attempt: &str) -> Entry {
        Entry::Forgotten { attempt: attempt.to_owned() }
    }

    #[test]
    fn half_a_line_at_the_end_is_cut_off_and_the_next_one_is_whole() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let (mut journal, entries) = Journal::open(folder.path()).expect("a journal");
        assert_eq!(entries, []);
        journal.append(&forgotten("a")).expect("room");
        let path = folder.path().join("journal");
        let mut bytes = fs::read(&path).expect("a file");
        bytes.extend(b"{\"forgotten\":{\"att");
        fs::write(&path, bytes).expect("room");
        let (mut journal, entries) = Journal::open(folder.path()).expect("a journal");
        assert_eq!(entries, [forgotten("a")]);
        journal.append(&forgotten("b")).expect("room");
        let (_, entries) = Journal::open(folder.path()).expect("a journal");
        assert_eq!(entries, [forgotten("a"), forgotten("b")]);
    }

    #[test]
    fn a_journal_that_was_written_anew_goes_on() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let (mut journal, _) = Journal::open(folder.path()).expect("a journal");
        for _ in 0..3 {
            journal.append(&forgotten("a")).expect("room");
        }
        journal.compact([forgotten("b")].into_iter()).expect("room");
        journal.append(&forgotten("c")).expect("room");
        let (_, entries) = Journal::open(folder.path()).expect("a journal");
        assert_eq!(entries, [forgotten("b"), forgotten("c")]);
    }

    #[test]
    fn an_attempt_that_could_leave_its_directory_is_refused() {
        let refused = ["", ".", "..", "a/b", "A", "a.b", "a b", &"a".repeat(41)];
        assert!(refused.iter().all(|name| !is_attempt(name)));
        assert!(is_attempt("0f-9z") && is_attempt(&"a".repeat(40)));
    }
}
