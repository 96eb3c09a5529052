//! The archive: jobs and attempts that have ended, and events that are retained.

use std::cell::Cell;
use std::collections::BTreeSet;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Params};

use super::checksum::{ARCHIVE_ATTEMPT, ARCHIVE_JOB, Table};
use super::terms::{self, Found, Ids, Term};
use super::{events, int};
use crate::journal::{Archive, EndPlace, Error, EventPage, FinishedJobs};
use crate::model::id::{JobId, Revision};
use crate::model::time::Timestamp;
use crate::state::apply::{ArchiveRow, FinishedAttempt, FinishedJob};
use crate::state::job_filter::JobFilter;
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

/// Rows of jobs that one page reads, and seeks in the index that it makes: a few milliseconds each.
const ROWS_MAX: u32 = 2_000;
const SEEKS_MAX: u32 = 4_000;
/// Jobs of one beginning of a name, or of one range of ends, that are listed. If there are more, other terms of the filter
/// are sought, and each job that has them is looked at.
const LISTED_MAX: usize = 10_000;

impl SqliteArchive {
    fn select(&self, filter: &JobFilter, before: JobId, limit: usize) -> Result<FinishedJobs, Error> {
        let mut lists: Vec<Ids> = terms::of_filter(filter).into_iter().map(Ids::any).collect();
        if !filter.name_prefix.is_empty() {
            let end = format!("{}\u{10ffff}", filter.name_prefix);
            let range = "name >= ?1 AND name < ?2";
            lists.extend(self.listed(range, rusqlite::params![filter.name_prefix, end])?);
        }
        if !filter.ended.is_unbounded() {
            let end = Timestamp(self.newest_end()?.0 + 1);
            let from = filter.ended.from.map_or(Timestamp(0), |from| from.min(end));
            let before = filter.ended.before.map_or(end, |before| before.min(end));
            let listed = self.listed("ended_ms >= ?1 AND ended_ms < ?2", [int(from.0), int(before.0)])?;
            lists.extend(listed.or_else(|| terms::of_ends(from, before).map(Ids::any)));
        }
        let submitted = filter.submitted;
        let least = submitted.from.map_or(Ok(i64::MIN), |from| self.first_submitted(from))?;
        let end = submitted.before.map_or(Ok(i64::MAX), |before| self.first_submitted(before))?;
        let mut most = before.0.min(i64::MAX.cast_unsigned()).cast_signed().min(end).saturating_sub(1);
        let (mut page, seeks_left) = (FinishedJobs::default(), Cell::new(SEEKS_MAX));
        for row in 0..ROWS_MAX {
            if row > 0 && seeks_left.get() == 0 {
                break;
            }
            let found = if lists.is_empty() {
                let sql = "SELECT id FROM archive_job WHERE id <= ?1 ORDER BY id DESC LIMIT 1";
                let id = self.db.prepare_cached(sql)?.query_row([most], |row| row.get(0)).optional()?;
                id.map_or(Found::None, Found::Job)
            } else {
                terms::seek(&self.db, &mut lists, most, &seeks_left)?
            };
            let id = match found {
                Found::Job(id) if id >= least => id,
                Found::GaveUp(next) if next >= least => {
                    page.next = Some(JobId((next + 1).cast_unsigned()));
                    return Ok(page);
                }
                Found::Job(_) | Found::GaveUp(_) | Found::None => return Ok(page),
            };
            if page.jobs.len() == limit {
                page.next = Some(JobId((id + 1).cast_unsigned()));
                return Ok(page);
            }
            // An attempt of a job that is still live may be there already.
            let job = self.finished_jobs("id = ?1", [id])?.pop();
            page.jobs.extend(job.filter(|job| filter.matches_anywhere(&job.view())));
            most = id - 1;
        }
        page.next = Some(JobId((most + 1).cast_unsigned()));
        Ok(page)
    }

    fn newest_end(&self) -> Result<Timestamp, Error> {
        let sql = "SELECT coalesce(max(ended_ms), 0) FROM archive_job";
        let newest: i64 = self.db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(Timestamp(newest.cast_unsigned()))
    }

    /// The ids of all jobs in a range of an index; `None` if they are too many.
    fn listed(&self, range: &str, params: impl Params) -> Result<Option<Ids>, Error> {
        let sql = format!("SELECT id FROM archive_job WHERE {range} LIMIT {}", LISTED_MAX + 1);
        let mut statement = self.db.prepare_cached(&sql)?;
        let ids = statement.query_map(params, |row| row.get(0))?;
        let mut ids = ids.collect::<Result<Vec<i64>, _>>()?;
        ids.sort_unstable();
        Ok((ids.len() <= LISTED_MAX).then_some(Ids::Listed(ids)))
    }

    /// The id from which on all jobs were submitted at `at` or later. Later jobs have higher ids.
    fn first_submitted(&self, at: Timestamp) -> Result<i64, Error> {
        let sql = "SELECT id, submitted_ms FROM archive_job WHERE id >= ?1 ORDER BY id LIMIT 1";
        let mut next = self.db.prepare_cached(sql)?;
        // Each alone is one seek; both in one statement would be read from all rows.
        let end =
            |sql| -> Result<i64, Error> { Ok(self.db.prepare_cached(sql)?.query_row([], |row| row.get(0))?) };
        let mut low = end("SELECT coalesce(min(id), 0) FROM archive_job")?;
        let mut high = end("SELECT coalesce(max(id), 0) + 1 FROM archive_job")?;
        while low < high {
            let middle = low + (high - low) / 2;
            let found: Option<(i64, i64)> =
                next.query_row([middle], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            match found {
                Some((id, submitted)) if submitted.cast_unsigned() < at.0 => low = id + 1,
                Some(_) | None => high = middle,
            }
        }
        Ok(low)
    }
}

/// Compares the index of terms with the rows that it is made of, in a transaction. What it lacks, no filter finds.
pub(super) fn check_terms(db: &Connection) -> Result<(), Error> {
    let sql = "SELECT job FROM archive_term WHERE term = ?1";
    let removing: Result<BTreeSet<i64>, _> =
        db.prepare(sql)?.query_map([terms::removing()], |row| row.get(0))?.collect();
    let removing = removing?;
    let mut sum = 0_u64;
    let mut indexed = db.prepare("SELECT term, job FROM archive_term")?;
    let mut rows = indexed.query([])?;
    while let Some(row) = rows.next()? {
        let (term, job) = (row.get(0)?, row.get(1)?);
        if !removing.contains(&job) {
            sum = sum.wrapping_add(terms::fingerprint(term, job));
        }
    }
    each_term(db, |job, found| {
        let found = found?;
        if !removing.contains(&job) {
            found.iter().for_each(|term| sum = sum.wrapping_sub(terms::fingerprint(*term, job)));
        }
        Ok(())
    })?;
    if sum == 0 {
        return Ok(());
    }
    let why = "it is not that of the ended jobs: filters may leave some out".to_owned();
    Err(Error::Damaged { record: "the archive's index".to_owned(), why })
}

/// Visits the terms of all jobs of the archive, none twice, and the rows that can't be decoded. A job may be visited more
/// than once.
pub(super) fn each_term(
    db: &Connection,
    mut visit: impl FnMut(i64, Result<&[Term], Error>) -> Result<(), Error>,
) -> Result<(), Error> {
    let damaged = |what: &str, job: i64, error: record::Error| {
        Err(Error::Damaged { record: format!("{what} {job}"), why: error.to_string() })
    };
    let mut bodies = db.prepare("SELECT id, body FROM archive_job")?;
    let mut rows = bodies.query([])?;
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        match record::decode_row(&row.get::<_, Vec<u8>>(1)?) {
            Ok(ArchiveRow::Job(job)) => visit(id, Ok(&terms::of_job(&job)))?,
            Ok(ArchiveRow::Attempt(_)) => {}
            Err(error) => visit(id, damaged("the ended job", id, error))?,
        }
    }
    let mut bodies = db.prepare("SELECT job, body FROM archive_attempt ORDER BY job, unit, number")?;
    let mut rows = bodies.query([])?;
    let (mut of, mut visited) = (None, BTreeSet::new());
    while let Some(row) = rows.next()? {
        let job: i64 = row.get(0)?;
        if of.replace(job) != Some(job) {
            visited.clear();
        }
        match record::decode_row(&row.get::<_, Vec<u8>>(1)?) {
            Ok(ArchiveRow::Attempt(attempt)) => {
                for term in terms::of_attempt(&attempt) {
                    if visited.insert(term) {
                        visit(job, Ok(&[term]))?;
                    }
                }
            }
            Ok(ArchiveRow::Job(_)) => {}
            Err(error) => visit(job, damaged("an ended attempt of job", job, error))?,
        }
    }
    Ok(())
}

impl Archive for SqliteArchive {
    fn job(&mut self, id: JobId) -> Result<Option<FinishedJob>, Error> {
        Ok(self.finished_jobs("id = ?1", [int(id.0)])?.pop())
    }

    fn job_named(&mut self, queue: &str, name: &str) -> Result<Option<FinishedJob>, Error> {
        let clause = "queue = ?1 AND name = ?2 ORDER BY id DESC LIMIT 1";
        Ok(self.finished_jobs(clause, [queue, name])?.pop())
    }

    fn jobs(&mut self, filter: &JobFilter, before: JobId, limit: usize) -> Result<FinishedJobs, Error> {
        // One view of the file, while the broker writes.
        let view = self.db.unchecked_transaction()?;
        let found = self.select(filter, before, limit);
        view.commit()?;
        found
    }

    fn last_ended(&mut self, place: Option<EndPlace>, limit: usize) -> Result<Vec<FinishedJob>, Error> {
        let (at, id) =
            place.unwrap_or((Timestamp(i64::MAX.cast_unsigned()), JobId(i64::MAX.cast_unsigned())));
        let clause = "(ended_ms, id) < (?1, ?2) ORDER BY ended_ms DESC, id DESC LIMIT ?3";
        self.finished_jobs(clause, [int(at.0), int(id.0), int(limit as u64)])
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

    fn events(&mut self, after: Revision) -> Result<EventPage, Error> {
        events::read(&self.db, after)
    }

    fn revision_before(&mut self, at: Timestamp) -> Result<Revision, Error> {
        events::revision_before(&self.db, at)
    }

    fn check(&mut self) -> Result<(), Error> {
        if let Some(why) = integrity(&self.db)?.into_iter().next() {
            return Err(Error::Damaged { record: "a page of journal.sqlite".to_owned(), why });
        }
        let view = self.db.unchecked_transaction()?;
        check_terms(&view)
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
