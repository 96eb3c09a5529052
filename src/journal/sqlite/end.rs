//! The end of the journal in a small file beside it.
//!
//! SQLite ends its log at the first damaged part, and takes what is behind it for a commit that was never finished. So
//! the last durable revision is also written elsewhere, after each commit: a journal that ends earlier is damaged. The
//! file is not synced. After a loss of power it may name an earlier revision, never a later one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::journal::Error;
use crate::model::id::Revision;

/// The file's name. Restoring an older copy of the journal means removing it.
pub(super) const FILE: &str = "journal.end";

/// The file with the journal's last durable revision.
pub(super) struct EndMark {
    file: File,
}

impl EndMark {
    /// Opens the file of a journal that ends at `revision`, and creates it if it does not exist.
    pub(super) fn open(directory: &Path, revision: Revision) -> Result<Self, Error> {
        let failed = |source| Error::Directory { path: directory.to_owned(), source };
        if let Some(marked) = read(directory)?
            && marked > revision
        {
            return Err(ends_early(revision, marked));
        }
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let end = Self { file: options.open(directory.join(FILE)).map_err(failed)? };
        end.set(revision);
        Ok(end)
    }

    /// Writes a new end over the old one.
    pub(super) fn set(&self, revision: Revision) {
        // Should this fail, the file has an earlier end, and shows less damage.
        let _ = self.file.write_all_at(line_of(revision).as_bytes(), 0);
    }
}

/// The end that the file of a journal has; `None` without a file.
pub(super) fn read(directory: &Path) -> Result<Option<Revision>, Error> {
    match std::fs::read_to_string(directory.join(FILE)) {
        // A crash came between creating and writing it.
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => {
            let number = text.split(' ').next().and_then(|number| number.parse().ok()).map(Revision);
            match number.filter(|revision| line_of(*revision) == text) {
                Some(revision) => Ok(Some(revision)),
                None => Err(damaged("its checksum is not that of its contents")),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(damaged("it is not text")),
        Err(source) => Err(Error::Directory { path: directory.to_owned(), source }),
    }
}

/// The error of a journal that ends before its acknowledged end.
pub(super) fn ends_early(end: Revision, marked: Revision) -> Error {
    Error::Damaged {
        record: format!("the events from revision {} to {marked}", end.0 + 1),
        why: format!(
            "they are missing, though they were acknowledged; if an older copy was restored on purpose, remove {FILE}"
        ),
    }
}

fn damaged(why: &str) -> Error {
    Error::Damaged { record: format!("the file {FILE}"), why: why.to_owned() }
}

/// One line of fixed length.
fn line_of(revision: Revision) -> String {
    let number = format!("{:020}", revision.0);
    format!("{number} {:08x}\n", crc32fast::hash(number.as_bytes()))
}
