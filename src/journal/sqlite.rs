//! The default journal: one SQLite file in WAL mode, with a full sync on every commit.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::{Archive, Batch, Chunk, Error, Journal, Loaded};
use crate::lock::{self, Lock};
use crate::model::id::{JobId, Revision, Term};
use crate::model::time::Timestamp;
use crate::state::apply::{ArchiveRow, FinishedAttempt, FinishedJob};
use crate::state::record;
use crate::state::view::JobPhase;

/// Version of the tables, raised with every change of them.
const LAYOUT: u32 = 1;
/// SQLite's number for the program that a file belongs to: `WEIR`. Files of builds before format 1 have none.
const APPLICATION_ID: u32 = 0x5745_4952;
/// Batches that one call of `prune` removes: it takes a few milliseconds.
const PRUNE_BATCHES: u32 = 256;
/// Pages of write-ahead log before SQLite moves them into the database file: 16 MiB, so that checkpoints are
/// rare compared with commits.
const CHECKPOINT_PAGES: u32 = 4_096;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS batch (
        last INTEGER PRIMARY KEY, first INTEGER NOT NULL, term INTEGER NOT NULL, at_ms INTEGER NOT NULL,
        events BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS snapshot (
        revision INTEGER NOT NULL, part INTEGER NOT NULL, last INTEGER NOT NULL, objects BLOB NOT NULL,
        PRIMARY KEY (revision, part));
    CREATE TABLE IF NOT EXISTS archive_job (
        id INTEGER PRIMARY KEY, queue TEXT NOT NULL, name TEXT NOT NULL, phase INTEGER NOT NULL,
        submitted_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE INDEX IF NOT EXISTS archive_job_name ON archive_job (queue, name, id);
    CREATE TABLE IF NOT EXISTS archive_attempt (
        job INTEGER NOT NULL, unit INTEGER NOT NULL, number INTEGER NOT NULL, ended_ms INTEGER NOT NULL,
        body BLOB NOT NULL, PRIMARY KEY (job, unit, number)) WITHOUT ROWID;
";

/// A journal in a directory that no other process uses.
pub struct SqliteJournal {
    db: Connection,
    path: PathBuf,
    /// The end of the journal.
    revision: Revision,
    /// Held while the journal is open, and released when it is dropped.
    _lock: Lock,
}

impl SqliteJournal {
    /// Opens the journal in `directory`, and creates either if it does not exist.
    ///
    /// # Errors
    /// - [`Error::Directory`] if the directory can't be created or written.
    /// - [`Error::InUse`] if another process has it open.
    /// - [`Error::Foreign`] if a build before format 1 wrote it.
    /// - [`Error::Newer`] if a newer Weir wrote the journal.
    /// - [`Error::Io`] if SQLite fails.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Directory { path: directory.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let lock = lock(directory)?;
        let path = directory.join("journal.sqlite");
        let db = Connection::open(&path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        db.pragma_update(None, "temp_store", "MEMORY")?;
        db.set_prepared_statement_cache_capacity(32);
        let found: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let application: u32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
        if found > 0 && application != APPLICATION_ID {
            return Err(Error::Foreign);
        }
        if found > LAYOUT {
            return Err(Error::Newer { found, supported: LAYOUT });
        }
        db.execute_batch(TABLES)?;
        db.pragma_update(None, "application_id", APPLICATION_ID)?;
        db.pragma_update(None, "user_version", LAYOUT)?;
        let revision = Revision(last_revision(&db)?);
        Ok(Self { db, path, revision, _lock: lock })
    }

    fn check_term(db: &Connection, term: Term) -> Result<(), Error> {
        let current = Term(meta(db, "term")?);
        if term < current { Err(Error::Deposed { term, current }) } else { Ok(()) }
    }
}

/// Takes the directory's lock.
fn lock(directory: &Path) -> Result<Lock, Error> {
    Lock::take(directory).map_err(|error| match error {
        lock::Error::InUse { holder } => Error::InUse { path: directory.to_owned(), holder },
        lock::Error::Io(source) => Error::Directory { path: directory.to_owned(), source },
    })
}

fn meta(db: &Connection, key: &str) -> Result<u64, Error> {
    let mut statement = db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    let value: Option<i64> = statement.query_row([key], |row| row.get(0)).optional()?;
    Ok(value.unwrap_or(0).cast_unsigned())
}

fn last_revision(db: &Connection) -> Result<u64, Error> {
    let mut statement = db.prepare_cached("SELECT max(last) FROM batch")?;
    let last: Option<i64> = statement.query_row([], |row| row.get(0))?;
    // If every batch has been pruned, the journal ends where its snapshot does.
    Ok(last.unwrap_or(0).cast_unsigned().max(meta(db, "snapshot")?))
}

fn int(value: u64) -> i64 {
    value.cast_signed()
}

impl Journal for SqliteJournal {
    fn begin_term(&mut self) -> Result<Term, Error> {
        let transaction = self.db.transaction()?;
        let term = meta(&transaction, "term")? + 1;
        transaction.execute("INSERT OR REPLACE INTO meta VALUES ('term', ?1)", [int(term)])?;
        transaction.commit()?;
        Ok(Term(term))
    }

    fn load(&mut self, visit: &mut dyn FnMut(Loaded)) -> Result<(), Error> {
        let snapshot = int(meta(&self.db, "snapshot")?);
        let mut chunks = self.db.prepare("SELECT objects FROM snapshot WHERE revision = ?1 ORDER BY part")?;
        let mut rows = chunks.query([snapshot])?;
        while let Some(row) = rows.next()? {
            visit(Loaded::Chunk(row.get(0)?));
        }
        let mut batches = self.db.prepare("SELECT events FROM batch WHERE last > ?1 ORDER BY last")?;
        let mut rows = batches.query([snapshot])?;
        while let Some(row) = rows.next()? {
            visit(Loaded::Events(row.get(0)?));
        }
        Ok(())
    }

    fn append(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.after != self.revision {
            return Err(Error::Misplaced { after: batch.after, current: self.revision });
        }
        let transaction = self.db.transaction()?;
        Self::check_term(&transaction, batch.term)?;
        let mut end = self.revision;
        if let (Some(first), Some(last)) = (batch.events.first(), batch.events.last()) {
            end = last.revision;
            let mut insert = transaction.prepare_cached("INSERT INTO batch VALUES (?1, ?2, ?3, ?4, ?5)")?;
            insert.execute(params![
                int(end.0),
                int(first.revision.0),
                int(batch.term.0),
                int(last.at.0),
                record::encode_events(&batch.events),
            ])?;
        }
        for row in &batch.archive {
            insert_row(&transaction, row)?;
        }
        transaction.commit()?;
        self.revision = end;
        Ok(())
    }

    fn write_chunk(&mut self, term: Term, chunk: &Chunk) -> Result<(), Error> {
        let transaction = self.db.transaction()?;
        Self::check_term(&transaction, term)?;
        let revision = int(chunk.revision.0);
        if revision <= int(meta(&transaction, "snapshot")?) {
            // A complete snapshot covers this revision. Overwriting it would lose it until the last chunk is
            // written.
            return Ok(());
        }
        if chunk.index == 0 {
            // Chunks of a snapshot that was not completed.
            transaction.execute("DELETE FROM snapshot WHERE revision = ?1", [revision])?;
        }
        let mut insert = transaction.prepare_cached("INSERT INTO snapshot VALUES (?1, ?2, ?3, ?4)")?;
        insert.execute(params![revision, chunk.index, chunk.last, chunk.bytes])?;
        drop(insert);
        if chunk.last {
            transaction.execute("INSERT OR REPLACE INTO meta VALUES ('snapshot', ?1)", [revision])?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn prune(&mut self) -> Result<bool, Error> {
        let snapshot = int(meta(&self.db, "snapshot")?);
        let transaction = self.db.transaction()?;
        let batches = transaction.execute(
            "DELETE FROM batch WHERE last IN (SELECT last FROM batch WHERE last <= ?1 ORDER BY last LIMIT ?2)",
            params![snapshot, PRUNE_BATCHES],
        )?;
        let chunks = transaction.execute(
            "DELETE FROM snapshot WHERE rowid IN (SELECT rowid FROM snapshot WHERE revision < ?1 LIMIT 16)",
            params![snapshot],
        )?;
        transaction.commit()?;
        Ok(batches == PRUNE_BATCHES as usize || chunks == 16)
    }

    fn archive(&self) -> Result<Box<dyn Archive>, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Ok(Box::new(SqliteArchive { db: Connection::open_with_flags(&self.path, flags)? }))
    }
}

fn insert_row(db: &Connection, row: &ArchiveRow) -> Result<(), Error> {
    let body = record::encode_row(row);
    match row {
        ArchiveRow::Job(job) => {
            let sql = "INSERT OR REPLACE INTO archive_job VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            db.prepare_cached(sql)?.execute(params![
                int(job.job.id.0),
                job.queue,
                &*job.job.name,
                JobPhase::from(job.end) as i64,
                int(job.job.submitted_at.0),
                int(job.ended_at.0),
                body
            ])?;
        }
        ArchiveRow::Attempt(ended) => {
            let unit = ended.attempt.unit;
            let sql = "INSERT OR REPLACE INTO archive_attempt VALUES (?1, ?2, ?3, ?4, ?5)";
            let ended_ms = int(ended.ended.ended_at.0);
            let row = params![int(unit.job.0), unit.unit, ended.attempt.number, ended_ms, body];
            db.prepare_cached(sql)?.execute(row)?;
        }
    }
    Ok(())
}

/// A reader of the archive with a connection of its own.
struct SqliteArchive {
    db: Connection,
}

fn finished_job(bytes: &[u8]) -> Result<Option<FinishedJob>, Error> {
    Ok(match record::decode_row(bytes)? {
        ArchiveRow::Job(job) => Some(job),
        ArchiveRow::Attempt(_) => None,
    })
}

impl Archive for SqliteArchive {
    fn job(&mut self, id: JobId) -> Result<Option<FinishedJob>, Error> {
        let mut statement = self.db.prepare_cached("SELECT body FROM archive_job WHERE id = ?1")?;
        let body: Option<Vec<u8>> = statement.query_row([int(id.0)], |row| row.get(0)).optional()?;
        body.map_or(Ok(None), |bytes| finished_job(&bytes))
    }

    fn job_named(&mut self, queue: &str, name: &str) -> Result<Option<FinishedJob>, Error> {
        let sql = "SELECT body FROM archive_job WHERE queue = ?1 AND name = ?2 ORDER BY id DESC LIMIT 1";
        let mut statement = self.db.prepare_cached(sql)?;
        let body: Option<Vec<u8>> = statement.query_row([queue, name], |row| row.get(0)).optional()?;
        body.map_or(Ok(None), |bytes| finished_job(&bytes))
    }

    fn jobs(&mut self, queue: Option<&str>, before: JobId, limit: usize) -> Result<Vec<FinishedJob>, Error> {
        let sql = "SELECT body FROM archive_job WHERE id < ?1 AND (?2 IS NULL OR queue = ?2) ORDER BY id DESC LIMIT ?3";
        let mut statement = self.db.prepare_cached(sql)?;
        let before = int(before.0.min(i64::MAX.cast_unsigned()));
        let mut rows = statement.query(params![before, queue, int(limit as u64)])?;
        let mut jobs = Vec::new();
        while let Some(row) = rows.next()? {
            let body: Vec<u8> = row.get(0)?;
            jobs.extend(finished_job(&body)?);
        }
        Ok(jobs)
    }

    fn attempts(
        &mut self,
        job: JobId,
        after: (u32, u32),
        limit: usize,
    ) -> Result<Vec<FinishedAttempt>, Error> {
        let sql = "SELECT body FROM archive_attempt WHERE job = ?1 AND (unit, number) > (?2, ?3)
                   ORDER BY unit, number LIMIT ?4";
        let mut statement = self.db.prepare_cached(sql)?;
        let mut rows = statement.query(params![int(job.0), after.0, after.1, int(limit as u64)])?;
        let mut attempts = Vec::new();
        while let Some(row) = rows.next()? {
            let body: Vec<u8> = row.get(0)?;
            if let ArchiveRow::Attempt(attempt) = record::decode_row(&body)? {
                attempts.push(attempt);
            }
        }
        Ok(attempts)
    }

    fn count_ended_since(&mut self, at: Timestamp) -> Result<u64, Error> {
        let sql = "SELECT count(*) FROM archive_job WHERE ended_ms >= ?1";
        let count: i64 = self.db.prepare_cached(sql)?.query_row([int(at.0)], |row| row.get(0))?;
        Ok(count.cast_unsigned())
    }
}
