//! The archive: jobs and attempts that have ended.

use rusqlite::types::Value;
use rusqlite::{Connection, Params};

use super::checksum::{ARCHIVE_ATTEMPT, ARCHIVE_JOB, Table};
use super::int;
use crate::journal::{Archive, Error};
use crate::model::id::JobId;
use crate::model::time::Timestamp;
use crate::state::apply::{ArchiveRow, FinishedAttempt, FinishedJob};
use crate::state::record;

/// A reader of the archive with a connection of its own.
pub(super) struct SqliteArchive {
    db: Connection,
}

impl SqliteArchive {
    pub(super) fn new(db: Connection) -> Self {
        Self { db }
    }

    /// Reads the rows that a `WHERE` clause selects, and verifies them.
    fn rows(&self, table: &Table, clause: &str, params: impl Params) -> Result<Vec<ArchiveRow>, Error> {
        let sql = format!("SELECT {} FROM {} WHERE {clause}", table.selected(), table.name);
        let mut statement = self.db.prepare_cached(&sql)?;
        let (mut rows, mut found) = (statement.query(params)?, Vec::new());
        while let Some(row) = rows.next()? {
            let values = table.check(row)?;
            let Some(Value::Blob(body)) = values.last() else {
                return Err(table.damaged(&values, "its columns have other types"));
            };
            found.push(record::decode_row(body)?);
        }
        Ok(found)
    }

    fn finished_jobs(&self, clause: &str, params: impl Params) -> Result<Vec<FinishedJob>, Error> {
        let rows = self.rows(&ARCHIVE_JOB, clause, params)?.into_iter();
        let job = |row| if let ArchiveRow::Job(job) = row { Some(job) } else { None };
        Ok(rows.filter_map(job).collect())
    }
}

impl Archive for SqliteArchive {
    fn job(&mut self, id: JobId) -> Result<Option<FinishedJob>, Error> {
        Ok(self.finished_jobs("id = ?1", [int(id.0)])?.pop())
    }

    fn job_named(&mut self, queue: &str, name: &str) -> Result<Option<FinishedJob>, Error> {
        let clause = "queue = ?1 AND name = ?2 ORDER BY id DESC LIMIT 1";
        Ok(self.finished_jobs(clause, [queue, name])?.pop())
    }

    fn jobs(&mut self, queue: Option<&str>, before: JobId, limit: usize) -> Result<Vec<FinishedJob>, Error> {
        let (before, limit) = (int(before.0.min(i64::MAX.cast_unsigned())), int(limit as u64));
        match queue {
            None => self.finished_jobs("id < ?1 ORDER BY id DESC LIMIT ?2", [before, limit]),
            Some(queue) => {
                let clause = "queue = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3";
                self.finished_jobs(clause, rusqlite::params![queue, before, limit])
            }
        }
    }

    fn attempts(
        &mut self,
        job: JobId,
        after: (u32, u32),
        limit: usize,
    ) -> Result<Vec<FinishedAttempt>, Error> {
        let clause = "job = ?1 AND (unit, number) > (?2, ?3) ORDER BY unit, number LIMIT ?4";
        let params = rusqlite::params![int(job.0), after.0, after.1, int(limit as u64)];
        let rows = self.rows(&ARCHIVE_ATTEMPT, clause, params)?.into_iter();
        let attempt = |row| if let ArchiveRow::Attempt(attempt) = row { Some(attempt) } else { None };
        Ok(rows.filter_map(attempt).collect())
    }

    fn check(&mut self) -> Result<(), Error> {
        match integrity(&self.db)?.into_iter().next() {
            None => Ok(()),
            Some(why) => Err(Error::Damaged { record: "a page of journal.sqlite".to_owned(), why }),
        }
    }

    fn count_ended_since(&mut self, at: Timestamp) -> Result<u64, Error> {
        let sql = "SELECT count(*) FROM archive_job WHERE ended_ms >= ?1";
        let count: i64 = self.db.prepare_cached(sql)?.query_row([int(at.0)], |row| row.get(0))?;
        Ok(count.cast_unsigned())
    }
}

/// What SQLite finds wrong with the structure of the database: pages, order, indexes.
pub(super) fn integrity(db: &Connection) -> Result<Vec<String>, Error> {
    let mut statement = db.prepare("PRAGMA integrity_check")?;
    let lines: Result<Vec<String>, _> = statement.query_map([], |row| row.get(0))?.collect();
    Ok(lines?.into_iter().filter(|line| line != "ok").collect())
}
