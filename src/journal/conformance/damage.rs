//! Damaged files: a flipped bit changes no answer.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::on_disk::copy;
use super::{Writer, encoded};
use crate::journal::sqlite::{SqliteJournal, verify};
use crate::journal::{Error, Journal, Loaded};
use crate::model::id::JobId;
use crate::state::State;
use crate::state::apply::Applied;
use crate::state::job_filter::JobFilter;
use crate::state::record;

/// Flips per file of the test; set `WEIR_FLIPS` for more.
const FLIPS: u32 = 120;

/// All that a journal can be asked for: the state that it recovers to, and each row of its archive.
fn answers(directory: &Path, jobs: &[JobId]) -> Result<(Vec<u8>, String), Error> {
    let mut journal = SqliteJournal::open(directory)?;
    let (mut objects, mut events, mut undecodable) = (Vec::new(), Vec::new(), None);
    journal.load(&mut |loaded| {
        let decoded = match loaded {
            Loaded::Chunk(bytes) => record::decode_objects(&bytes).map(|chunk| objects.extend(chunk)),
            Loaded::Events(bytes) => record::decode_events(&bytes).map(|batch| events.extend(batch)),
        };
        undecodable = undecodable.take().or(decoded.err());
    })?;
    if let Some(error) = undecodable {
        return Err(error.into());
    }
    let mut state = State::from_objects(objects);
    let from = state.revision();
    for event in events.iter().filter(|event| event.revision > from) {
        state.apply(event, &mut Applied::default());
    }
    let mut archive = journal.archive()?;
    archive.check()?;
    let mut rows = String::new();
    for id in jobs {
        let job = archive.job(*id)?;
        let (queue, name) = job.as_ref().map_or(("", ""), |job| (&job.queue, &job.job.name));
        let named = archive.job_named(queue, name)?;
        rows += &format!("{job:?} {named:?} {:?}\n", archive.attempts(*id, (0, 0), 10)?);
    }
    for filter in filters() {
        rows += &format!("{:?}\n", archive.jobs(&filter, JobId(u64::MAX), 100)?);
    }
    Ok((encoded(&state), rows))
}

/// Filters that use each kind of index.
fn filters() -> [JobFilter; 4] {
    [
        JobFilter::default(),
        JobFilter { queues: ["default".to_owned()].into(), ..JobFilter::default() },
        JobFilter { pools: vec!["p".to_owned()], ..JobFilter::default() },
        JobFilter { name_prefix: "job".to_owned(), ..JobFilter::default() },
    ]
}

#[test]
fn a_flipped_bit_changes_no_answer() {
    let directory = TempDir::new().unwrap();
    let mut journal = SqliteJournal::open(directory.path()).unwrap();
    let mut writer = Writer::begin(&mut journal);
    let mut jobs: Vec<JobId> = (0..6).map(|_| writer.finish("", "", 2)).collect();
    let (chunks, term) = (writer.chunks(), writer.term);
    chunks.iter().for_each(|chunk| writer.journal.write_chunk(term, chunk).unwrap());
    jobs.extend((0..6).map(|_| writer.finish("", "", 2)));
    // As after a crash, when most is in SQLite's log, and as after a stop, when all is in its database.
    let crashed = copy(directory.path());
    drop(journal);
    let flips = std::env::var("WEIR_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(FLIPS);
    let mut rng = StdRng::seed_from_u64(7);
    for (from, file) in
        [(&crashed, "journal.sqlite-wal"), (&directory, "journal.sqlite"), (&directory, "journal.end")]
    {
        let expected = answers(copy(from.path()).path(), &jobs).unwrap();
        assert_eq!(verify(from.path()).unwrap().damage, [""; 0]);
        let (mut refused, mut unverified) = (0, 0);
        for flip in 0..flips {
            let damaged = copy(from.path());
            let path = damaged.path().join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            let (at, bit) = (rng.random_range(0..bytes.len()), rng.random_range(0..8));
            bytes[at] ^= 1 << bit;
            std::fs::write(&path, bytes).unwrap();
            let before = copy(damaged.path());
            match answers(damaged.path(), &jobs) {
                Ok(found) => {
                    let same = (found.0 == expected.0, found.1 == expected.1);
                    assert_eq!(same, (true, true), "flip {flip}: bit {bit} of byte {at} of {file}");
                }
                Err(error) => {
                    refused += 1;
                    // What a broker refuses, `verify` finds.
                    unverified += u32::from(verify(before.path()).is_ok_and(|found| found.damage.is_empty()));
                    let text = error.to_string();
                    assert!(!text.contains("disk failed"), "bit {bit} of byte {at} of {file}: {text}");
                }
            }
        }
        assert!(refused > flips / 20, "{refused} of {flips} flips in {file} were found");
        assert_eq!(unverified, 0, "flips in {file} that only a broker finds");
    }
}

/// A journal from before archives had an index, with a row that can't be read, is opened all the same: its jobs go on. The
/// row is reported, and once it is removed all is well.
#[test]
fn a_damaged_row_does_not_stop_the_upgrade_of_a_journal() {
    let directory = TempDir::new().unwrap();
    let mut journal = SqliteJournal::open(directory.path()).unwrap();
    let mut writer = Writer::begin(&mut journal);
    let (first, second) = (writer.finish("first", "", 1), writer.finish("second", "", 1));
    let after = writer.fixture.now.plus_ms(1);
    drop(journal);
    let db = rusqlite::Connection::open(directory.path().join("journal.sqlite")).unwrap();
    db.execute_batch("DELETE FROM archive_term; PRAGMA user_version = 2").unwrap();
    db.execute("UPDATE archive_job SET body = x'ff' WHERE id = ?1", [first.0.cast_signed()]).unwrap();
    drop(db);
    let mut journal = SqliteJournal::open(directory.path()).unwrap();
    let mut archive = journal.archive().unwrap();
    assert_eq!(archive.job(second).unwrap().unwrap().job.id, second);
    let error = archive.check().unwrap_err().to_string();
    assert!(error.contains(&format!("the ended job {first}")), "{error}");
    while journal.prune_archive(after).unwrap() {}
    archive.check().unwrap();
    let filter = JobFilter { queues: ["default".to_owned()].into(), ..JobFilter::default() };
    assert_eq!(archive.jobs(&filter, JobId(u64::MAX), 10).unwrap().jobs, []);
}

#[test]
fn a_journal_that_is_deleted_or_replaced_takes_no_more_writes() {
    for replaced in [false, true] {
        let directory = TempDir::new().unwrap();
        let data = directory.path().join("data");
        let mut journal = SqliteJournal::open(&data).unwrap();
        let file = journal.file();
        let mut writer = Writer::begin(&mut journal);
        writer.submit().unwrap();
        std::fs::rename(&data, directory.path().join("moved")).unwrap();
        if replaced {
            drop(SqliteJournal::open(&data).unwrap());
        }
        let error = writer.submit().unwrap_err();
        assert!(matches!(error, Error::Gone { .. }), "{error}");
        drop(journal);
        let Err(error) = SqliteJournal::reopen(&data, file) else { panic!("another journal is opened") };
        assert!(matches!(error, Error::Gone { .. }), "{error}");
        assert_eq!(data.exists(), replaced, "a directory is made again");
    }
}
