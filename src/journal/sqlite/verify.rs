//! Verifies all that a journal's directory holds, for `weir admin verify`.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::archive::{check_terms, integrity};
use super::{
    BATCH, FILE, LAYOUT, SNAPSHOT, checksum, end, events, last_revision, load_events, load_snapshot, meta,
};
use crate::journal::{Error, Loaded};
use crate::model::id::Revision;
use crate::state::record;

/// What was found in a journal.
#[derive(Debug, Default)]
pub struct Verified {
    /// Where it ends.
    pub end: Revision,
    /// Batches of events, chunks of snapshots, ended jobs and ended attempts.
    pub batches: u64,
    pub chunks: u64,
    pub jobs: u64,
    pub attempts: u64,
    /// Every damaged part, in words.
    pub damage: Vec<String>,
}

/// Reads every record of the journal in `directory`. A broker may use it meanwhile. Nothing is changed.
///
/// # Errors
/// - [`Error::Directory`] if there is no journal.
/// - [`Error::Unchecked`] if it has an older layout, which a broker changes when it opens the journal.
/// - [`Error::Damaged`] if it is damaged so much that it can't be read.
pub fn verify(directory: &Path) -> Result<Verified, Error> {
    let path = directory.join(FILE);
    std::fs::metadata(&path).map_err(|source| Error::Directory { path: path.clone(), source })?;
    let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // One view of the file while a broker writes.
    db.execute_batch("BEGIN")?;
    let layout: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if layout != LAYOUT {
        return Err(Error::Unchecked { found: layout, needed: LAYOUT });
    }
    let mut found = Verified::default();
    let mut damage = Vec::new();
    let mut note = |error: Error| damage.push(error.to_string());
    found.batches = BATCH.verify(&db, &mut note)?;
    found.chunks = SNAPSHOT.verify(&db, &mut note)?;
    found.jobs = checksum::ARCHIVE_JOB.verify(&db, &mut note)?;
    found.attempts = checksum::ARCHIVE_ATTEMPT.verify(&db, &mut note)?;
    checksum::META.verify(&db, &mut note)?;
    let mut undecodable = Vec::new();
    let mut decode = |loaded| {
        let decoded = match loaded {
            Loaded::Chunk(bytes) => record::decode_objects(&bytes).map(drop),
            Loaded::Events(bytes) => record::decode_events(&bytes).map(drop),
        };
        undecodable.extend(decoded.err().map(Error::Record));
    };
    let snapshot = meta(&db, "snapshot");
    let loaded = snapshot.and_then(|snapshot| {
        load_snapshot(&db, snapshot, &mut decode)?;
        // Also those that the snapshot covers, which readers of events may still ask for.
        load_events(&db, snapshot.min(events::floor(&db)?.0), &mut decode)
    });
    loaded.err().into_iter().chain(undecodable).for_each(&mut note);
    match last_revision(&db) {
        Ok(last) => found.end = Revision(last),
        Err(error) => note(error),
    }
    match end::read(directory) {
        // The file may be ahead of the view.
        Ok(Some(marked)) if marked > found.end && !is_written(directory, marked)? => {
            note(end::ends_early(found.end, marked));
        }
        Ok(_) => {}
        Err(error) => note(error),
    }
    if let Err(error) = check_terms(&db) {
        damage.push(error.to_string());
    }
    damage.extend(integrity(&db)?.into_iter().map(|line| format!("SQLite: {line}")));
    damage.dedup();
    found.damage = damage;
    Ok(found)
}

/// The journal reaches this revision by now.
fn is_written(directory: &Path, revision: Revision) -> Result<bool, Error> {
    let db = Connection::open_with_flags(directory.join(FILE), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    Ok(last_revision(&db)? >= revision.0)
}
