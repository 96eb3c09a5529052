//! Events that stay readable after a snapshot covers them.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params};

use super::checksum::BATCH;
use super::{PRUNE_BATCHES, int, last_revision};
use crate::journal::{EVENT_PAGE_BYTES, Error, EventPage, RetainedEvents};
use crate::model::id::Revision;
use crate::model::time::Timestamp;
use crate::state::record;

/// Removes at most [`PRUNE_BATCHES`] of the batches that a snapshot covers and that are not retained, the oldest first.
/// Returns how many. Times never decrease, so the first that stays is found without a look at the others.
pub(super) fn prune(
    db: &Connection,
    snapshot: &Value,
    retained: RetainedEvents,
    end: Revision,
) -> Result<u32, Error> {
    let sql = "SELECT last, at_ms FROM batch WHERE last <= ?1 ORDER BY last LIMIT ?2";
    let mut oldest = db.prepare_cached(sql)?;
    let mut rows = oldest.query(params![snapshot, PRUNE_BATCHES])?;
    let (mut through, mut count) = (None::<i64>, 0);
    while let Some(row) = rows.next()? {
        let (last, at): (i64, i64) = (row.get(0)?, row.get(1)?);
        if retained.has(Revision(last.cast_unsigned()), Timestamp(at.cast_unsigned()), end) {
            break;
        }
        (through, count) = (Some(last), count + 1);
    }
    if let Some(through) = through {
        db.prepare_cached("DELETE FROM batch WHERE last <= ?1")?.execute([through])?;
    }
    Ok(count)
}

/// The revision after which all events are there.
pub(super) fn floor(db: &Connection) -> Result<Revision, Error> {
    let sql = "SELECT first FROM batch ORDER BY last LIMIT 1";
    let first: Option<i64> = db.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?;
    let first = first.map(|first| Revision(first.cast_unsigned().saturating_sub(1)));
    Ok(first.unwrap_or(Revision(last_revision(db)?)))
}

pub(super) fn read(db: &Connection, after: Revision) -> Result<EventPage, Error> {
    // One view of the file while batches are appended and removed.
    let view = db.unchecked_transaction()?;
    let mut page = EventPage { floor: floor(&view)?, events: Vec::new() };
    if after < page.floor {
        return Ok(page);
    }
    let sql = format!("SELECT {} FROM batch WHERE last > ?1 ORDER BY last", BATCH.selected());
    let mut batches = view.prepare_cached(&sql)?;
    let mut rows = batches.query([int(after.0)])?;
    let (mut end, mut bytes) = (after, 0);
    while bytes < EVENT_PAGE_BYTES
        && let Some(row) = rows.next()?
    {
        let values = BATCH.check(row)?;
        let [Value::Integer(last), Value::Integer(first), _, _, Value::Blob(events)] = &values[..] else {
            return Err(BATCH.damaged(&values, "its columns have other types"));
        };
        if first.cast_unsigned() > end.0 + 1 {
            let missing = format!("those from revision {} to {} are missing", end.0 + 1, first - 1);
            return Err(BATCH.damaged(&values, &missing));
        }
        end = Revision(last.cast_unsigned());
        bytes += events.len();
        page.events.extend(record::decode_events(events)?.into_iter().filter(|event| event.revision > after));
    }
    Ok(page)
}

/// Finds the first batch that ends at `at` or later by halving: times never decrease.
pub(super) fn revision_before(db: &Connection, at: Timestamp) -> Result<Revision, Error> {
    let view = db.unchecked_transaction()?;
    let sql = "SELECT last, at_ms FROM batch WHERE last > ?1 ORDER BY last LIMIT 1";
    let mut next = view.prepare_cached(sql)?;
    let (mut low, mut high) = (floor(&view)?.0, last_revision(&view)?);
    // All batches that end at `low` or before are too old; those after `high` are not.
    while low < high {
        let middle = low + (high - low) / 2;
        let found: Option<(i64, i64)> =
            next.query_row([int(middle)], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match found {
            Some((last, end)) if end.cast_unsigned() < at.0 => low = last.cast_unsigned(),
            _ => high = middle,
        }
    }
    Ok(Revision(low))
}
