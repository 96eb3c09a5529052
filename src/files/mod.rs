//! Files that are replaced whole, and folders that are private.

pub mod private;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Replaces a file, or creates it: after a crash or a loss of power it has its old contents or the new ones. Only
/// its owner can read it. Returns the new file, open for appending.
///
/// # Errors
/// The error of the file system. The file has its old contents then.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    write(path, bytes, File::sync_all)
}

/// Replaces a file as [`replace`] does, and for good: once this returns, a loss of power doesn't bring back the old
/// contents.
///
/// # Errors
/// The error of the file system. The file has its old contents then or, if only its folder can't be synced, the new
/// ones.
pub fn replace_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes)?;
    File::open(folder_of(path))?.sync_all()
}

/// Replaces a file by a value as JSON. The value survives a crash of the process, but not a loss of power, after
/// which the file may be empty: a sync would cost milliseconds each time.
///
/// # Errors
/// The error of the file system. The file has its old contents then.
pub fn replace_json_unsynced<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write(path, &serde_json::to_vec(value)?, |_| Ok(())).map(drop)
}

fn write(path: &Path, bytes: &[u8], sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<File> {
    let mut file = tempfile::Builder::new().append(true).tempfile_in(folder_of(path))?;
    file.write_all(bytes)?;
    sync(file.as_file())?;
    Ok(file.persist(path)?)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads a value that [`replace_json_unsynced`] has written; `None` if the file does not exist.
///
/// # Errors
/// Any other I/O error; `InvalidData` or `UnexpectedEof` if the file does not contain such a value.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        replace(&path, b"a long first text").unwrap();
        let mut file = replace(&path, b"short").unwrap();
        file.write_all(b", and more").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"short, and more");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_failed_replacement_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("value");
        std::fs::create_dir(&path).unwrap();
        replace(&path, b"text").unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(path.is_dir());
    }
}
