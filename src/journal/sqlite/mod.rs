//! The default journal: one SQLite file in WAL mode, with a full sync on every commit.

mod archive;
mod backup;
mod checksum;
mod end;
mod events;
mod terms;
mod verify;

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::{Archive, Batch, Chunk, Error, Journal, Loaded, RetainedEvents};
use crate::lock::{self, Lock};
use crate::model::id::{Revision, Term};
use crate::model::time::Timestamp;
use crate::state::apply::ArchiveRow;
use crate::state::record;
use crate::state::view::JobPhase;
use archive::SqliteArchive;
pub use backup::backup;
use checksum::{ARCHIVE_ATTEMPT, ARCHIVE_JOB, BATCH, META, SNAPSHOT};
use end::EndMark;
pub use verify::{Verified, verify};

/// The journal's file in its directory.
const FILE: &str = "journal.sqlite";
/// Version of the tables, raised with every change of them. 2 has checksums, 3 the index of the archive.
const LAYOUT: u32 = 3;
/// SQLite's number for the program that a file belongs to: `WEIR`. Files of builds before format 1 have none.
const APPLICATION_ID: u32 = 0x5745_4952;
/// Batches that one call of `prune` removes: it takes a few milliseconds.
const PRUNE_BATCHES: u32 = 256;
/// Rows of the archive that one call of `prune_archive` removes: it takes a few milliseconds.
const PRUNE_ROWS: u32 = 1_024;
/// Pages of write-ahead log before SQLite moves them into the database file: 16 MiB, so that checkpoints are
/// rare compared with commits.
const CHECKPOINT_PAGES: u32 = 4_096;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS meta (
        key TEXT PRIMARY KEY, value INTEGER NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS batch (
        last INTEGER PRIMARY KEY, first INTEGER NOT NULL, term INTEGER NOT NULL, at_ms INTEGER NOT NULL,
        events BLOB NOT NULL, checksum INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS snapshot (
        revision INTEGER NOT NULL, part INTEGER NOT NULL, last INTEGER NOT NULL, objects BLOB NOT NULL,
        checksum INTEGER NOT NULL, PRIMARY KEY (revision, part));
    CREATE TABLE IF NOT EXISTS archive_job (
        id INTEGER PRIMARY KEY, queue TEXT NOT NULL, name TEXT NOT NULL, phase INTEGER NOT NULL,
        submitted_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL, body BLOB NOT NULL,
        checksum INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS archive_job_by_name ON archive_job (name, queue, id);
    CREATE INDEX IF NOT EXISTS archive_job_ended ON archive_job (ended_ms);
    CREATE TABLE IF NOT EXISTS archive_attempt (
        job INTEGER NOT NULL, unit INTEGER NOT NULL, number INTEGER NOT NULL, ended_ms INTEGER NOT NULL,
        body BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (job, unit, number)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS archive_term (
        term INTEGER NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (term, job)) WITHOUT ROWID;
";

/// A journal in a directory that no other process uses.
pub struct SqliteJournal {
    db: Connection,
    path: PathBuf,
    /// The end of the journal.
    revision: Revision,
    /// The same in a file of its own.
    end: EndMark,
    file: FileId,
    /// Held while the journal is open, and released when it is dropped.
    _lock: Lock,
}

impl SqliteJournal {
    /// Opens the journal in `directory`, and creates either if it does not exist.
    ///
    /// # Errors
    /// - [`Error::Damaged`] if the journal ends before an acknowledged event, or SQLite finds damage.
    /// - [`Error::Directory`] if the directory can't be created or written.
    /// - [`Error::InUse`] if another process has it open.
    /// - [`Error::Foreign`] if a build before format 1 wrote it.
    /// - [`Error::Newer`] if a newer Weir wrote the journal.
    /// - [`Error::Io`] if SQLite fails.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Directory { path: directory.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let lock = lock(directory)?;
        Self::open_locked(directory, lock)
    }

    /// Opens the same file again after the journal failed. It creates nothing: a directory that was deleted or
    /// replaced meanwhile has another journal, or none.
    ///
    /// # Errors
    /// [`Error::Gone`] if the file is not there any more; otherwise as [`Self::open`].
    pub fn reopen(directory: &Path, file: FileId) -> Result<Self, Error> {
        file.check(&directory.join(FILE))?;
        Self::open_locked(directory, lock(directory)?)
    }

    /// Names the journal's file for [`Self::reopen`].
    pub fn file(&self) -> FileId {
        self.file
    }

    fn open_locked(directory: &Path, lock: Lock) -> Result<Self, Error> {
        let path = directory.join(FILE);
        // SQLite's other files get the mode of this one.
        let mut options = std::fs::OpenOptions::new();
        let opened = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
        let private = opened.and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o600)));
        private.map_err(|source| Error::Directory { path: path.clone(), source })?;
        let mut db = Connection::open(&path)?;
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
        // A journal of this layout is opened without a write, so that a full disk can be read.
        if found < LAYOUT {
            let transaction = db.transaction()?;
            if found == 1 {
                checksum::ALL.iter().try_for_each(|table| table.add_checksums(&transaction))?;
            }
            transaction.execute_batch(TABLES)?;
            if found > 0 {
                add_terms(&transaction)?;
            }
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", LAYOUT)?;
            transaction.commit()?;
        }
        let revision = Revision(last_revision(&db)?);
        let end = EndMark::open(directory, revision)?;
        let file = FileId::of(&path)?;
        Ok(Self { db, path, revision, end, file, _lock: lock })
    }

    fn check_term(db: &Connection, term: Term) -> Result<(), Error> {
        let current = Term(meta(db, "term")?);
        if term < current { Err(Error::Deposed { term, current }) } else { Ok(()) }
    }
}

/// Makes the index of an archive that has none.
fn add_terms(db: &Connection) -> Result<(), Error> {
    db.execute_batch(
        "DROP INDEX IF EXISTS archive_job_name; DROP INDEX IF EXISTS archive_job_queue; DELETE FROM archive_term",
    )?;
    archive::each_term(db, |job, found| match found {
        Ok(terms) => terms::insert(db, job.cast_unsigned(), terms),
        // The journal can be used without it. The check of the archive reports it.
        Err(_) => Ok(()),
    })
}

/// Takes the directory's lock.
fn lock(directory: &Path) -> Result<Lock, Error> {
    Lock::take(directory).map_err(|error| match error {
        lock::Error::InUse { holder } => Error::InUse { path: directory.to_owned(), holder },
        lock::Error::Io(source) => Error::Directory { path: directory.to_owned(), source },
    })
}

/// Names a file as long as it exists, whatever takes its place later: its device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(u64, u64);

impl FileId {
    fn of(path: &Path) -> Result<Self, Error> {
        let metadata = std::fs::metadata(path).map_err(|_| Error::Gone { path: path.to_owned() })?;
        Ok(Self(metadata.dev(), metadata.ino()))
    }

    fn check(self, path: &Path) -> Result<(), Error> {
        if Self::of(path)? == self { Ok(()) } else { Err(Error::Gone { path: path.to_owned() }) }
    }
}

fn meta(db: &Connection, key: &str) -> Result<u64, Error> {
    let mut statement = db.prepare_cached(&format!("SELECT {} FROM meta WHERE key = ?1", META.selected()))?;
    let mut rows = statement.query([key])?;
    let Some(row) = rows.next()? else { return Ok(0) };
    match META.check(row)?[..] {
        [_, Value::Integer(value)] => Ok(value.cast_unsigned()),
        _ => Ok(0),
    }
}

fn set_meta(db: &Connection, key: &str, value: u64) -> Result<(), Error> {
    META.insert(db, vec![Value::Text(key.to_owned()), int(value)])
}

fn last_revision(db: &Connection) -> Result<u64, Error> {
    let mut statement = db.prepare_cached("SELECT max(last) FROM batch")?;
    let last: Option<i64> = statement.query_row([], |row| row.get(0))?;
    // If every batch has been pruned, the journal ends where its snapshot does.
    Ok(last.unwrap_or(0).cast_unsigned().max(meta(db, "snapshot")?))
}

fn int(value: u64) -> Value {
    Value::Integer(value.cast_signed())
}

impl Journal for SqliteJournal {
    fn begin_term(&mut self) -> Result<Term, Error> {
        self.file.check(&self.path)?;
        let transaction = self.db.transaction()?;
        let term = meta(&transaction, "term")? + 1;
        set_meta(&transaction, "term", term)?;
        transaction.commit()?;
        Ok(Term(term))
    }

    fn load(&mut self, visit: &mut dyn FnMut(Loaded)) -> Result<(), Error> {
        let snapshot = meta(&self.db, "snapshot")?;
        load_snapshot(&self.db, snapshot, visit)?;
        load_events(&self.db, snapshot, visit)
    }

    fn append(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.after != self.revision {
            return Err(Error::Misplaced { after: batch.after, current: self.revision });
        }
        self.file.check(&self.path)?;
        let transaction = self.db.transaction()?;
        Self::check_term(&transaction, batch.term)?;
        let mut end = self.revision;
        if let (Some(first), Some(last)) = (batch.events.first(), batch.events.last()) {
            end = last.revision;
            let events = Value::Blob(record::encode_events(&batch.events));
            let numbers = [end.0, first.revision.0, batch.term.0, last.at.0].map(int);
            BATCH.insert(&transaction, numbers.into_iter().chain([events]).collect())?;
        }
        for row in &batch.archive {
            insert_row(&transaction, row)?;
        }
        transaction.commit()?;
        self.revision = end;
        self.end.set(end);
        Ok(())
    }

    fn write_chunk(&mut self, term: Term, chunk: &Chunk) -> Result<(), Error> {
        let transaction = self.db.transaction()?;
        Self::check_term(&transaction, term)?;
        let revision = int(chunk.revision.0);
        if chunk.revision.0 <= meta(&transaction, "snapshot")? {
            // A complete snapshot covers this revision. Overwriting it would lose it until the last chunk is
            // written.
            return Ok(());
        }
        if chunk.index == 0 {
            // Chunks of a snapshot that was not completed.
            transaction.execute("DELETE FROM snapshot WHERE revision = ?1", [&revision])?;
        }
        let (index, last) = (int(chunk.index.into()), int(chunk.last.into()));
        SNAPSHOT.insert(&transaction, vec![revision, index, last, Value::Blob(chunk.bytes.clone())])?;
        if chunk.last {
            set_meta(&transaction, "snapshot", chunk.revision.0)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn prune(&mut self, retained: RetainedEvents) -> Result<bool, Error> {
        let snapshot = int(meta(&self.db, "snapshot")?);
        let transaction = self.db.transaction()?;
        let batches = events::prune(&transaction, &snapshot, retained, self.revision)?;
        let chunks = transaction.execute(
            "DELETE FROM snapshot WHERE rowid IN (SELECT rowid FROM snapshot WHERE revision < ?1 LIMIT 16)",
            params![snapshot],
        )?;
        transaction.commit()?;
        Ok(batches == PRUNE_BATCHES || chunks == 16)
    }

    fn prune_archive(&mut self, before: Timestamp) -> Result<bool, Error> {
        let transaction = self.db.transaction()?;
        let mut left = PRUNE_ROWS;
        while left > 0 {
            let oldest = "SELECT id FROM archive_job WHERE ended_ms < ?1 ORDER BY ended_ms LIMIT 1";
            let oldest = transaction.prepare_cached(oldest)?.query_row([int(before.0)], |row| row.get(0));
            let Some(id) = oldest.optional()?.map(|id: i64| id) else { break };
            left -= remove_attempts(&transaction, id, left)?;
            // The job is found as long as any of its attempts is.
            if left > 0 {
                remove_job(&transaction, id)?;
                left -= 1;
            } else {
                terms::insert(&transaction, id.cast_unsigned(), &[terms::removing()])?;
            }
        }
        transaction.commit()?;
        Ok(left == 0)
    }

    fn archive(&self) -> Result<Box<dyn Archive>, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Ok(Box::new(SqliteArchive::new(Connection::open_with_flags(&self.path, flags)?)))
    }
}

/// Loads the chunks of a snapshot; revision 0 has none.
fn load_snapshot(db: &Connection, revision: u64, visit: &mut dyn FnMut(Loaded)) -> Result<(), Error> {
    let sql = format!("SELECT {} FROM snapshot WHERE revision = ?1 ORDER BY part", SNAPSHOT.selected());
    let mut chunks = db.prepare(&sql)?;
    let mut rows = chunks.query([int(revision)])?;
    let (mut next, mut complete) = (0, revision == 0);
    while let Some(row) = rows.next()? {
        let mut values = SNAPSHOT.check(row)?;
        let [_, Value::Integer(part), Value::Integer(last), Value::Blob(objects)] = &mut values[..] else {
            return Err(SNAPSHOT.damaged(&values, "its columns have other types"));
        };
        if *part != next || complete {
            return Err(SNAPSHOT.damaged(&values, "a chunk is missing before it"));
        }
        (next, complete) = (next + 1, *last == 1);
        visit(Loaded::Chunk(std::mem::take(objects)));
    }
    if complete {
        return Ok(());
    }
    Err(SNAPSHOT.damaged(&[int(revision), Value::Integer(next)], "it is missing"))
}

/// Loads the events after a revision.
fn load_events(db: &Connection, after: u64, visit: &mut dyn FnMut(Loaded)) -> Result<(), Error> {
    let sql = format!("SELECT {} FROM batch WHERE last > ?1 ORDER BY last", BATCH.selected());
    let mut batches = db.prepare(&sql)?;
    let mut rows = batches.query([int(after)])?;
    let mut end = None::<u64>;
    while let Some(row) = rows.next()? {
        let mut values = BATCH.check(row)?;
        let [Value::Integer(last), Value::Integer(first), _, _, Value::Blob(events)] = &mut values[..] else {
            return Err(BATCH.damaged(&values, "its columns have other types"));
        };
        let (first, last) = (first.cast_unsigned(), last.cast_unsigned());
        let events = std::mem::take(events);
        // A snapshot's revision may be in the middle of the first batch.
        if end.map_or(first > after + 1, |end| first != end + 1) {
            let from = end.unwrap_or(after) + 1;
            return Err(
                BATCH.damaged(&values, &format!("those from revision {from} to {} are missing", first - 1))
            );
        }
        end = Some(last);
        visit(Loaded::Events(events));
    }
    Ok(())
}

/// Removes at most so many attempts of an ended job from the archive; returns how many.
fn remove_attempts(db: &Connection, job: i64, most: u32) -> Result<u32, Error> {
    let oldest =
        "SELECT unit, number, body FROM archive_attempt WHERE job = ?1 ORDER BY unit, number LIMIT ?2";
    let mut select = db.prepare_cached(oldest)?;
    let rows = select.query_map(params![job, most], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let rows: Vec<(u32, u32, Vec<u8>)> = rows.collect::<Result<_, _>>()?;
    let mut delete =
        db.prepare_cached("DELETE FROM archive_attempt WHERE job = ?1 AND unit = ?2 AND number = ?3")?;
    let mut removed = BTreeSet::new();
    for (unit, number, body) in &rows {
        delete.execute(params![job, unit, number])?;
        match record::decode_row(body) {
            Ok(ArchiveRow::Attempt(attempt)) => removed.extend(terms::of_attempt(&attempt)),
            Ok(ArchiveRow::Job(_)) => {}
            Err(_) => terms::remove_all(db, job.cast_unsigned())?,
        }
    }
    terms::remove(db, job.cast_unsigned(), &Vec::from_iter(removed))?;
    Ok(rows.len() as u32)
}

/// Removes an ended job without attempts from the archive.
fn remove_job(db: &Connection, id: i64) -> Result<(), Error> {
    let mut select = db.prepare_cached("SELECT body FROM archive_job WHERE id = ?1")?;
    let body: Vec<u8> = select.query_row([id], |row| row.get(0))?;
    match record::decode_row(&body) {
        Ok(ArchiveRow::Job(job)) => terms::remove(db, id.cast_unsigned(), &terms::of_job(&job))?,
        Ok(ArchiveRow::Attempt(_)) | Err(_) => terms::remove_all(db, id.cast_unsigned())?,
    }
    terms::remove(db, id.cast_unsigned(), &[terms::removing()])?;
    db.prepare_cached("DELETE FROM archive_job WHERE id = ?1")?.execute([id])?;
    Ok(())
}

fn insert_row(db: &Connection, row: &ArchiveRow) -> Result<(), Error> {
    let body = Value::Blob(record::encode_row(row));
    match row {
        ArchiveRow::Job(job) => {
            let [queue, name] = [&job.queue[..], &job.job.name].map(|text| Value::Text(text.to_owned()));
            let phase = Value::Integer(JobPhase::from(job.end) as i64);
            let (submitted, ended) = (int(job.job.submitted_at.0), int(job.ended_at.0));
            terms::insert(db, job.job.id.0, &terms::of_job(job))?;
            ARCHIVE_JOB.insert(db, vec![int(job.job.id.0), queue, name, phase, submitted, ended, body])
        }
        ArchiveRow::Attempt(ended) => {
            let unit = ended.attempt.unit;
            terms::insert(db, unit.job.0, &terms::of_attempt(ended))?;
            let keys = [unit.job.0, unit.unit.into(), ended.attempt.number.into(), ended.ended.ended_at.0];
            ARCHIVE_ATTEMPT.insert(db, keys.map(int).into_iter().chain([body]).collect())
        }
    }
}
