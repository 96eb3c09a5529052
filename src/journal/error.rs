//! Errors of journals.

use std::path::PathBuf;

use crate::model::id::{Revision, Term};
use crate::state::record;

/// Why an operation of a journal failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory can't be created, opened or written.
    #[error("data directory {} can't be used", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Another process has the data directory open; `holder` is its id.
    #[error("data directory {} is in use by another weir, process {holder}", path.display())]
    InUse { path: PathBuf, holder: String },
    /// A higher term has begun: the writer must stop.
    #[error("term {term} is deposed by term {current}")]
    Deposed { term: Term, current: Term },
    /// The batch does not continue the journal.
    #[error("the journal ends at revision {current}, not {after}")]
    Misplaced { after: Revision, current: Revision },
    /// A read or write failed.
    #[error("the journal's disk failed")]
    Io(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The tables have a layout that this version can't read.
    #[error("the journal was written by a newer weir (layout {found}, this one supports up to {supported})")]
    Newer { found: u32, supported: u32 },
    /// A record could not be decoded.
    /// A build before the first released format wrote it.
    #[error("the journal was written by a weir from before format 1, which this version can't read")]
    Foreign,
    #[error(transparent)]
    Record(#[from] record::Error),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Io(Box::new(error))
    }
}
