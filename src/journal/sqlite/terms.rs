//! The index of the archive: from each thing that filters ask for to the ended jobs that have it.
//!
//! An ended job has a term per queue, phase, submitter, label, pool and so on. A list of jobs goes through the terms of its
//! filter from the highest id down, and each time seeks in all of them the next id that may be in all (the leapfrog join,
//! Veldhuizen 2014, <https://arxiv.org/abs/1210.0481>): its work follows the rarest term, not the archive's size.

use std::cell::Cell;
use std::hash::{Hash, Hasher};

use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use crate::journal::Error;
use crate::model::time::Timestamp;
use crate::state::apply::{FinishedAttempt, FinishedJob};
use crate::state::job::Principal;
use crate::state::job_filter::{JobFilter, LabelOperator};
use crate::state::view::JobPhase;

/// A thing that a job has, hashed: what has the same hash by chance is found and filtered out afterwards.
pub(super) type Term = i64;

/// Milliseconds in each of the intervals that a job's end is indexed by.
const HOUR_MS: u64 = 3_600_000;
/// Terms of which a job may have any. More than these are slower than to look at the jobs.
const ANY_MAX: usize = 64;

fn term(kind: &str, parts: &[&str]) -> Term {
    let mut hash = Sha256::new();
    hash.update(kind);
    for part in parts {
        hash.update([0]);
        hash.update(part);
    }
    let bytes = hash.finalize();
    bytes.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte)).cast_signed()
}

fn phase(phase: JobPhase) -> Term {
    term("phase", &[phase.into()])
}

fn submitter(principal: &Principal) -> Term {
    match principal {
        Principal::System => term("system", &[]),
        Principal::Anonymous => term("anonymous", &[]),
        Principal::Agent(name) => term("agent", &[name]),
        Principal::User(name) => term("user", &[name]),
    }
}

fn hour(hour: u64) -> Term {
    term("ended", &[&hour.to_string()])
}

/// The terms of an ended job, but for those of its attempts.
pub(super) fn of_job(job: &FinishedJob) -> Vec<Term> {
    let mut terms = vec![
        term("queue", &[&job.queue]),
        phase(job.end.into()),
        submitter(&job.job.submitted_by),
        hour(job.ended_at.0 / HOUR_MS),
    ];
    terms.extend(job.job.first_failure.iter().map(|failure| term("outcome", &[failure.kind.code()])));
    for (key, value) in &job.spec.labels {
        terms.extend([term("label", &[key]), term("label", &[key, value])]);
    }
    terms
}

/// The terms of a job that one of its ended attempts adds.
pub(super) fn of_attempt(attempt: &FinishedAttempt) -> [Term; 2] {
    [term("pool", &[&attempt.pool]), term("region", &[&attempt.region.to_string()])]
}

/// The term of a job that is being removed: its other terms are not complete any more.
pub(super) fn removing() -> Term {
    term("removing", &[])
}

/// A number for one entry of the index, of which sums are compared.
pub(super) fn fingerprint(term: Term, job: i64) -> u64 {
    let mut hasher = rustc_hash::FxHasher::default();
    (term, job).hash(&mut hasher);
    hasher.finish()
}

/// Adds a job to the index.
pub(super) fn insert(db: &Connection, job: u64, terms: &[Term]) -> Result<(), Error> {
    let mut insert = db.prepare_cached("INSERT OR IGNORE INTO archive_term VALUES (?1, ?2)")?;
    for term in terms {
        insert.execute(params![term, job.cast_signed()])?;
    }
    Ok(())
}

/// Removes a job from the index.
pub(super) fn remove(db: &Connection, job: u64, terms: &[Term]) -> Result<(), Error> {
    let mut delete = db.prepare_cached("DELETE FROM archive_term WHERE term = ?1 AND job = ?2")?;
    for term in terms {
        delete.execute(params![term, job.cast_signed()])?;
    }
    Ok(())
}

/// Removes a job from the index whose terms are not known any more: its record is damaged. This reads the whole index.
pub(super) fn remove_all(db: &Connection, job: u64) -> Result<(), Error> {
    db.prepare_cached("DELETE FROM archive_term WHERE job = ?1")?.execute([job.cast_signed()])?;
    Ok(())
}

/// What a filter asks for: of each of these lists a job has any term. What they can't express is left to the filter.
pub(super) fn of_filter(filter: &JobFilter) -> Vec<Vec<Term>> {
    let texts = |kind: &str, texts: &[String]| texts.iter().map(|text| term(kind, &[text])).collect();
    let mut lists: Vec<Vec<Term>> = vec![
        filter.phases.iter().map(|value| phase(*value)).collect(),
        filter.submitted_by.iter().map(submitter).collect(),
        texts("pool", &filter.pools),
        filter.regions.iter().map(|region| term("region", &[&region.to_string()])).collect(),
        filter.outcomes.iter().map(|outcome| term("outcome", &[outcome.code()])).collect(),
    ];
    if filter.queues.len() <= ANY_MAX {
        lists.push(filter.queues.iter().map(|queue| term("queue", &[queue])).collect());
    }
    for label in &filter.labels {
        match &label.operator {
            LabelOperator::In(values) => {
                lists.push(values.iter().map(|value| term("label", &[&label.key, value])).collect());
            }
            LabelOperator::Exists => lists.push(vec![term("label", &[&label.key])]),
            LabelOperator::NotIn(_) | LabelOperator::DoesNotExist => {}
        }
    }
    lists.retain(|list| !list.is_empty());
    lists
}

/// The terms of the hours in which jobs ended that ended in a range; `None` if they are too many.
pub(super) fn of_ends(from: Timestamp, before: Timestamp) -> Option<Vec<Term>> {
    let (first, last) = (from.0 / HOUR_MS, before.0 / HOUR_MS);
    (last.saturating_sub(first) < ANY_MAX as u64).then(|| (first..=last).map(hour).collect())
}

/// Ids of jobs, from the highest down.
pub(super) enum Ids {
    /// Of the jobs that have any of these terms, each with the highest id that is not above the last one sought; `None`
    /// if there is none any more.
    Any(Vec<(Term, Option<i64>)>),
    /// These, in ascending order.
    Listed(Vec<i64>),
}

impl Ids {
    /// The jobs that have any of these terms.
    pub(super) fn any(terms: Vec<Term>) -> Self {
        Self::Any(terms.into_iter().map(|term| (term, Some(i64::MAX))).collect())
    }

    /// The highest id that is not above `most`.
    fn seek(&mut self, db: &Connection, most: i64, seeks_left: &Cell<u32>) -> Result<Option<i64>, Error> {
        let heads = match self {
            Self::Any(heads) => heads,
            Self::Listed(ids) => {
                ids.truncate(ids.partition_point(|id| *id <= most));
                return Ok(ids.last().copied());
            }
        };
        let sql = "SELECT job FROM archive_term WHERE term = ?1 AND job <= ?2 ORDER BY job DESC LIMIT 1";
        for (term, head) in &mut *heads {
            if head.is_some_and(|id| id > most) {
                seeks_left.set(seeks_left.get().saturating_sub(1));
                *head =
                    db.prepare_cached(sql)?.query_row(params![*term, most], |row| row.get(0)).optional()?;
            }
        }
        Ok(heads.iter().filter_map(|(_, head)| *head).max())
    }
}

/// What a seek leads to.
pub(super) enum Found {
    Job(i64),
    None,
    /// The seeks are used up: nothing above this id is left.
    GaveUp(i64),
}

/// The highest id that is in all lists, of which there is at least one, and not above `most`.
pub(super) fn seek(
    db: &Connection,
    lists: &mut [Ids],
    most: i64,
    seeks_left: &Cell<u32>,
) -> Result<Found, Error> {
    let (mut candidate, mut agreed, mut at) = (most, 0, 0);
    while agreed < lists.len() {
        // Never without progress: the next page would be the same.
        if seeks_left.get() == 0 && candidate < most {
            return Ok(Found::GaveUp(candidate));
        }
        let Some(id) = lists[at].seek(db, candidate, seeks_left)? else { return Ok(Found::None) };
        (agreed, candidate) = if id == candidate { (agreed + 1, id) } else { (1, id) };
        at = (at + 1) % lists.len();
    }
    Ok(Found::Job(candidate))
}
