//! The files of a supervisor: one directory per attempt.
//!
//! ```text
//! DIR/attempts/ID/launch.json   written before anything is started
//!                 processes     a line for each task that was: who it is
//!                 status.json   written when all is over
//!                 RANK.stdout, RANK.stderr
//!                 RANK.work/    the task's directory, unless the launch names another
//!                 RANK.failure  why its program could not be started
//! DIR/logs/ID                   what was forgotten: logs only
//! ```
//!
//! What is read while it may be replaced is replaced by rename; the rest is written once, and read by
//! a supervisor that comes after a kill takes a torn file for none. Nothing is synced to disk: after
//! a crash of the machine no process is left that could run twice.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longer names would not fit the paths of control groups and file systems comfortably.
const ATTEMPT_LEN_MAX: usize = 40;

/// Who runs a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessRecord {
    pub(super) rank: usize,
    pub(super) pid: i32,
    pub(super) started_ticks: u64,
    pub(super) started_unix_ms: u64,
    pub(super) started_boot_ms: u64,
    /// Pids and ticks start anew with each boot.
    pub(super) boot_id: String,
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

/// Writes a value as JSON, whole or not at all.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    fs::write(&temporary, serde_json::to_vec(value)?)?;
    fs::rename(&temporary, path)
}

/// Writes a value as JSON where nobody reads it before it is whole, or takes half of it for none.
pub(super) fn write_once<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    fs::write(path, serde_json::to_vec(value)?)
}

/// Adds a value to a file that holds one a line.
pub(super) fn append<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(&line)
}

/// Reads the values of a file that holds one a line; those that are torn are left out.
pub(super) fn read_lines<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            let lines = bytes.split(|byte| *byte == b'\n');
            Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Reads a value; `None` if there is no such file.
///
/// # Errors
/// - Any I/O error but absence, and `InvalidData` if the file doesn't hold such a value.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_could_leave_its_directory_is_refused() {
        let refused = ["", ".", "..", "a/b", "A", "a.b", "a b", &"a".repeat(41)];
        assert!(refused.iter().all(|name| !is_attempt(name)));
        assert!(is_attempt("0f-9z") && is_attempt(&"a".repeat(40)));
    }
}
