//! What can go wrong with a journal.

use std::path::PathBuf;

use crate::model::id::{Revision, Term};
use crate::state::record;

/// Why a journal did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("data directory {} can't be used", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("data directory {} is in use by another weir, process {holder}", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("term {term} is deposed by term {current}")]
    Deposed { term: Term, current: Term },
    #[error("the journal ends at revision {current}, not {after}")]
    Misplaced { after: Revision, current: Revision },
    #[error("the journal's disk failed")]
    Io(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the journal was written by a newer weir (layout {found}, this one knows {known})")]
    Newer { found: u32, known: u32 },
    #[error(transparent)]
    Record(#[from] record::Error),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Io(Box::new(error))
    }
}
