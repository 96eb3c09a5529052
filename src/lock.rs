//! Locks on a directory, and on its path, for one process at a time. It ends with the process and records its pid.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use sha2::{Digest, Sha256};

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
        options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let mut file = options.open(path)?;
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

/// The lock on a directory's path, held until it is dropped: if the directory is deleted or replaced while a process uses
/// it, another process can't use the one that takes its place.
#[derive(Debug)]
pub struct PathLock {
    /// Bound to a name that the kernel forgets with the process. `None` if another user has taken the name: that must
    /// keep no process from its directory.
    _name: Option<UnixListener>,
}

impl PathLock {
    /// Takes the path of an existing directory. Blocks for up to half a second if it is taken.
    ///
    /// # Errors
    /// - [`Error::InUse`] if another process of this user has taken it.
    /// - [`Error::Io`] if the system is short of files.
    pub fn take(directory: &Path) -> Result<Self, Error> {
        let path = std::fs::canonicalize(directory)?;
        let hash = Sha256::digest(path.as_os_str().as_encoded_bytes());
        let address = SocketAddr::from_abstract_name([b"weir-lock-".as_slice(), &hash].concat())?;
        let until = Instant::now() + TRY_FOR;
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => return Ok(Self { _name: Some(listener) }),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(error.into()),
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                Err(_) => break,
            }
        }
        let holder = UnixStream::connect_addr(&address).and_then(|stream| Ok(socket_peercred(&stream)?));
        match holder {
            Ok(holder) if holder.uid == geteuid() => {
                Err(Error::InUse { holder: holder.pid.as_raw_nonzero().to_string() })
            }
            Ok(_) | Err(_) => Ok(Self { _name: None }),
        }
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
