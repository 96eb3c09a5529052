//! One process at a time in a directory: a lock that ends with its process, and tells who holds it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// A directory that no other process takes as long as this lives.
#[derive(Debug)]
pub struct Lock {
    /// The lock goes with the file, so even kill -9 leaves none behind.
    _file: File,
}

/// Why a directory's lock can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it: its pid, unless it took the lock this very moment.
    #[error("process {holder} holds the lock")]
    InUse { holder: String },
    #[error("the lock can't be written")]
    Io(#[from] io::Error),
}

impl Lock {
    /// Takes the lock of a directory that exists, and leaves this process's pid in its file `lock`.
    ///
    /// # Errors
    /// - [`Error::InUse`] if another process holds it, or another part of this one.
    /// - [`Error::Io`] if the file can't be written.
    pub fn take(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("lock");
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(false).read(true).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                let known = !holder.trim().is_empty();
                let holder = if known { holder.trim().to_owned() } else { "unknown".to_owned() };
                return Err(Error::InUse { holder });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}
