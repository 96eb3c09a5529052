//! A lock on a directory for one process at a time. It ends with the process and records its pid.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to try. Until a child process calls exec it still holds the locks of its parent, even after the
/// parent has ended.
const TRY_FOR: Duration = Duration::from_millis(500);

/// A lock on a directory, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    /// The kernel releases the lock with the file, so even kill -9 leaves none behind.
    _file: File,
}

/// Why the lock on a directory was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it. `holder` is its pid, or "unknown" if it has just taken the lock and not
    /// written its pid yet.
    #[error("process {holder} holds the lock")]
    InUse { holder: String },
    /// The lock file can't be opened or written.
    #[error("the lock file can't be written")]
    Io(#[from] io::Error),
}

impl Lock {
    /// Takes the lock of an existing directory and writes this process's pid to its file `lock`. Blocks for
    /// up to half a second if the lock is held.
    ///
    /// # Errors
    /// - [`Error::InUse`] if another process holds the lock, or another `Lock` of this one.
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
                let is_written = !holder.trim().is_empty();
                let holder = if is_written { holder.trim().to_owned() } else { "unknown".to_owned() };
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
            outcome => return outcome,
        }
    }
}
