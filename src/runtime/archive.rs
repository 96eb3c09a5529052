//! The archive of ended jobs, shared by the API's handlers: look-ups don't wait behind pages, and damage is found.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Semaphore;

use super::error::{CallError, causes};
use crate::journal::{Archive, Error, Journal};

/// The readers of the archive.
pub(super) struct SharedArchive {
    /// For single jobs.
    pub(super) lookups: Reader,
    /// For pages, which take long.
    pub(super) pages: Reader,
    /// Set once damage is found because of which answers may lack rows.
    damage: OnceLock<String>,
}

/// A reader of the archive, for one read at a time.
pub(super) struct Reader {
    archive: Arc<Mutex<Box<dyn Archive>>>,
    turn: Arc<Semaphore>,
}

impl Reader {
    fn new(journal: &dyn Journal) -> Result<Self, Error> {
        Ok(Self { archive: Arc::new(Mutex::new(journal.archive()?)), turn: Arc::new(Semaphore::new(1)) })
    }
}

impl SharedArchive {
    /// Opens the readers, and begins to check the archive on a thread of its own: the broker need not wait for that.
    ///
    /// # Errors
    /// If the archive can't be opened.
    pub(super) fn open(journal: &dyn Journal) -> Result<Arc<Self>, Error> {
        let (lookups, pages) = (Reader::new(journal)?, Reader::new(journal)?);
        let shared = Arc::new(Self { lookups, pages, damage: OnceLock::new() });
        let (mut archive, checked) = (journal.archive()?, shared.clone());
        let check = move || {
            if let Err(error) = archive.check() {
                let text = causes(&error);
                tracing::error!(
                    error = text,
                    "the archive can't be verified; `weir admin verify` lists all damage"
                );
                if matches!(error, Error::Damaged { .. }) {
                    let _ = checked.damage.set(text);
                }
            }
        };
        let started = std::thread::Builder::new().name("verify".to_owned()).spawn(check);
        started.map_err(|error| Error::Io(Box::new(error)))?;
        Ok(shared)
    }

    /// Reads on a thread for blocking calls.
    ///
    /// # Errors
    /// - [`CallError::Damaged`] if the rows that are asked for are damaged.
    /// - [`CallError::Unavailable`] if the archive can't be read. The log has the cause.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        reader: &Reader,
        read: impl FnOnce(&mut dyn Archive) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, CallError> {
        if let Some(damage) = self.damage.get() {
            return Err(CallError::Damaged(damage.clone()));
        }
        // Readers wait here, in the order in which they came, not on threads. The permit goes with the read: if the
        // caller is gone, the next one still waits for its end.
        let turn = reader.turn.clone().acquire_owned().await.map_err(|_| CallError::Unavailable)?;
        let archive = reader.archive.clone();
        let read = move || {
            let _turn = turn;
            read(&mut **archive.lock().unwrap_or_else(PoisonError::into_inner))
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                tracing::error!(error = %causes(&error), "the archive can't be read");
                Err(match error {
                    Error::Damaged { .. } | Error::Record(_) => CallError::Damaged(causes(&error)),
                    _ => CallError::Unavailable,
                })
            }
            Err(_) => Err(CallError::Unavailable),
        }
    }
}
