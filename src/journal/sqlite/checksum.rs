//! A checksum (CRC-32) in each row, over all of its columns: SQLite itself has none in its database file.
//!
//! It finds damage by the disk, not forgery: who can write the file can write a checksum too.

use rusqlite::Connection;
use rusqlite::types::{ToSql, Value};

use crate::journal::Error;

/// A table whose rows have checksums.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// What a row is called in errors.
    what: &'static str,
    /// The columns before the checksum. The first `keys` of them name the row.
    columns: &'static [&'static str],
    keys: usize,
}

pub(super) const META: Table = Table { name: "meta", what: "the entry", columns: &["key", "value"], keys: 1 };
pub(super) const BATCH: Table = Table {
    name: "batch",
    what: "the events up to revision",
    columns: &["last", "first", "term", "at_ms", "events"],
    keys: 1,
};
pub(super) const SNAPSHOT: Table = Table {
    name: "snapshot",
    what: "the chunk (revision, number) of the snapshot",
    columns: &["revision", "part", "last", "objects"],
    keys: 2,
};
pub(super) const ARCHIVE_JOB: Table = Table {
    name: "archive_job",
    what: "the ended job",
    columns: &["id", "queue", "name", "phase", "submitted_ms", "ended_ms", "body"],
    keys: 1,
};
pub(super) const ARCHIVE_ATTEMPT: Table = Table {
    name: "archive_attempt",
    what: "the ended attempt (job, unit, number)",
    columns: &["job", "unit", "number", "ended_ms", "body"],
    keys: 3,
};

pub(super) const ALL: [&Table; 5] = [&META, &BATCH, &SNAPSHOT, &ARCHIVE_JOB, &ARCHIVE_ATTEMPT];

impl Table {
    /// The columns for a `SELECT` whose rows [`Self::check`] takes.
    pub(super) fn selected(&self) -> String {
        format!("{}, checksum", self.columns.join(", "))
    }

    /// Inserts a row with its checksum, or replaces the one with the same key.
    pub(super) fn insert(&self, db: &Connection, values: Vec<Value>) -> Result<(), Error> {
        debug_assert!(values.len() == self.columns.len(), "{} has other columns", self.name);
        let sum = Value::Integer(self.checksum(&values).into());
        let marks: Vec<String> = (1..=values.len() + 1).map(|at| format!("?{at}")).collect();
        let sql = format!("INSERT OR REPLACE INTO {} VALUES ({})", self.name, marks.join(", "));
        let values: Vec<&dyn ToSql> = values.iter().chain([&sum]).map(|value| value as &dyn ToSql).collect();
        db.prepare_cached(&sql)?.execute(&values[..])?;
        Ok(())
    }

    /// Reads a row that was selected by [`Self::selected`], and verifies its checksum.
    pub(super) fn check(&self, row: &rusqlite::Row<'_>) -> Result<Vec<Value>, Error> {
        let count = self.columns.len();
        let values: Vec<Value> = (0..count).map(|at| row.get(at)).collect::<Result<_, _>>()?;
        let stored: Value = row.get(count)?;
        if stored == Value::Integer(self.checksum(&values).into()) {
            return Ok(values);
        }
        Err(self.damaged(&values, "its checksum is not that of its contents"))
    }

    /// The error for a damaged row.
    pub(super) fn damaged(&self, values: &[Value], why: &str) -> Error {
        let keys: Vec<String> = values.iter().take(self.keys).map(text).collect();
        Error::Damaged { record: format!("{} {}", self.what, keys.join(", ")), why: why.to_owned() }
    }

    /// Verifies all rows; returns how many there are.
    pub(super) fn verify(&self, db: &Connection, damage: &mut dyn FnMut(Error)) -> Result<u64, Error> {
        let mut statement = db.prepare(&format!("SELECT {} FROM {}", self.selected(), self.name))?;
        let (mut rows, mut count) = (statement.query([])?, 0);
        while let Some(row) = rows.next()? {
            count += 1;
            if let Err(error) = self.check(row) {
                damage(error);
            }
        }
        Ok(count)
    }

    /// Adds the column with the checksums to a table of layout 1.
    pub(super) fn add_checksums(&self, db: &Connection) -> Result<(), Error> {
        let name = self.name;
        db.execute_batch(&format!("ALTER TABLE {name} ADD COLUMN checksum INTEGER NOT NULL DEFAULT -1"))?;
        let keys = self.columns[..self.keys].join(", ");
        let after: Vec<String> = (1..=self.keys).map(|at| format!("?{at}")).collect();
        // By key, so that no row is read while it is written, and none twice.
        let first = format!("SELECT {} FROM {name} ORDER BY {keys} LIMIT 1", self.columns.join(", "));
        let next = format!(
            "SELECT {} FROM {name} WHERE ({keys}) > ({}) ORDER BY {keys} LIMIT 1",
            self.columns.join(", "),
            after.join(", ")
        );
        let read = |row: &rusqlite::Row<'_>| (0..self.columns.len()).map(|at| row.get(at)).collect();
        let mut at: Option<Vec<Value>> = None;
        loop {
            let row: Result<Vec<Value>, _> = match &at {
                None => db.prepare_cached(&first)?.query_row([], read),
                Some(values) => db
                    .prepare_cached(&next)?
                    .query_row(rusqlite::params_from_iter(&values[..self.keys]), read),
            };
            match row {
                Ok(values) => {
                    self.insert(db, values.clone())?;
                    at = Some(values);
                }
                Err(rusqlite::Error::QueryReturnedNoRows) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn checksum(&self, values: &[Value]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.name.as_bytes());
        for value in values {
            // The type and the length come first, so that no two rows have the same bytes.
            match value {
                Value::Null => hasher.update(&[0]),
                Value::Integer(number) => {
                    hasher.update(&[1]);
                    hasher.update(&number.to_le_bytes());
                }
                Value::Real(number) => {
                    hasher.update(&[2]);
                    hasher.update(&number.to_le_bytes());
                }
                Value::Text(text) => {
                    hasher.update(&[3]);
                    hasher.update(&text.len().to_le_bytes());
                    hasher.update(text.as_bytes());
                }
                Value::Blob(bytes) => {
                    hasher.update(&[4]);
                    hasher.update(&bytes.len().to_le_bytes());
                    hasher.update(bytes);
                }
            }
        }
        hasher.finalize()
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Integer(number) => number.cast_unsigned().to_string(),
        Value::Text(text) => crate::model::validate::quote(text),
        Value::Null | Value::Real(_) | Value::Blob(_) => "of an unknown number".to_owned(),
    }
}
