//! A consistent copy of a journal, taken while a broker may write it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{APPLICATION_ID, FILE};
use crate::journal::Error;

/// Copies the journal in `directory`, as it is at one revision, to the new file `to`. Only its owner can read it: the
/// journal has environment values of jobs, and a secret key.
///
/// # Errors
/// - [`Error::Directory`] if there is no journal, or `to` exists or can't be written.
/// - [`Error::Foreign`] if the file is no journal.
/// - [`Error::Io`] if the copy fails; what was written of it is removed.
pub fn backup(directory: &Path, to: &Path) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Directory { path, source }
    };
    let file = directory.join(FILE);
    std::fs::metadata(&file).map_err(failed(&file))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&file, flags)?;
    let application: u32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application != APPLICATION_ID {
        return Err(Error::Foreign);
    }
    // SQLite fills an empty file, and leaves its mode as it is.
    let mut options = OpenOptions::new();
    let target = options.write(true).create_new(true).mode(0o600).open(to).map_err(failed(to))?;
    let copied = copy(&db, to).and_then(|()| {
        target.sync_all().map_err(failed(to))?;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.map_or_else(|| PathBuf::from("."), Path::to_owned);
        std::fs::File::open(&parent).and_then(|parent| parent.sync_all()).map_err(failed(&parent))
    });
    if copied.is_err() {
        let _ = std::fs::remove_file(to);
    }
    copied
}

fn copy(db: &Connection, to: &Path) -> Result<(), Error> {
    let path = to.to_str().ok_or_else(|| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path is not UTF-8");
        Error::Directory { path: to.to_owned(), source }
    })?;
    db.execute("VACUUM INTO ?1", [path])?;
    Ok(())
}
