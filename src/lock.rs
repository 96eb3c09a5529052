//! One process at a time in a directory: a lock that ends with its process, and tells who holds it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// A child that its parent has forked and that isn't the other program yet holds what its parent
/// held, even where that has ended: so long a lock is tried for.
const TRY_FOR: Duration = Duration::from_millis(500);

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
    /// Blocks for up to half a second if another holds it.
    ///
    /// # Errors
    /// - [`Error::InUse`] if another process holds it, or another part of this one.
    /// - [`Error::Io`] if the file can't be written.
    pub fn take(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("lock");
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(false).read(true).write(true).open(path)?;
        match try_lock(&file) {
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

fn try_lock(file: &File) -> Result<(), std::fs::TryLockError> {
    let until = Instant::now() + TRY_FOR;
    loop {
        match file.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            tried => return tried,
        }
    }
}
