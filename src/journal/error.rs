//! Errors of journals.

use std::path::PathBuf;

use crate::model::id::{Revision, Term};
use crate::state::record;

/// Why an operation of a journal failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory or file can't be created, opened or written.
    #[error("{} can't be used", path.display())]
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
    /// The file was deleted or replaced while it was open.
    #[error("{} was deleted or replaced", path.display())]
    Gone { path: PathBuf },
    /// What was read is not what was written.
    #[error("the journal is damaged: {record}: {why}")]
    Damaged { record: String, why: String },
    /// The journal lacks what is verified: it has an older layout.
    #[error(
        "the journal has layout {found}, which can't be verified; a broker that opens it changes it to layout {needed}"
    )]
    Unchecked { found: u32, needed: u32 },
    /// The tables have a layout that this version can't read.
    #[error("the journal was written by a newer weir (layout {found}, this one supports up to {supported})")]
    Newer { found: u32, supported: u32 },
    /// A build before the first released format wrote it.
    #[error("the journal was written by a weir from before format 1, which this version can't read")]
    Foreign,
    /// A record could not be decoded.
    #[error(transparent)]
    Record(#[from] record::Error),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error as Sqlite;
        let is_damage = match &error {
            Sqlite::SqliteFailure(failure, _) => {
                matches!(
                    failure.code,
                    rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase
                )
            }
            // The statements are constant: if one is wrong, the tables are not as they were made.
            Sqlite::SqlInputError { .. }
            | Sqlite::FromSqlConversionFailure(..)
            | Sqlite::IntegralValueOutOfRange(..)
            | Sqlite::InvalidColumnType(..)
            | Sqlite::Utf8Error(..) => true,
            _ => false,
        };
        if is_damage {
            let record = "a page of journal.sqlite".to_owned();
            return Self::Damaged { record, why: error.to_string() };
        }
        Self::Io(Box::new(error))
    }
}
