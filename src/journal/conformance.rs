//! The conformance suite: what every journal must do.

use tempfile::TempDir;

use super::memory::MemoryJournal;
use super::sqlite::SqliteJournal;
use super::{Batch, Chunk, Error, Journal, Loaded, RetainedEvents};
use crate::model::attempt::OutcomeKind;
use crate::model::id::{JobId, Revision, Term};
use crate::model::spec::minimal;
use crate::model::time::Timestamp;
use crate::state::State;
use crate::state::apply::{Applied, ArchiveRow};
use crate::state::command::Command;
use crate::state::fixture::{Fixture, node_spec, submission, tasks, unit};
use crate::state::job_filter::JobFilter;
use crate::state::record;

mod damage;
mod events;
mod filters;
mod on_disk;

/// A writer: a fixture whose events are appended to a journal.
struct Writer<'a> {
    journal: &'a mut dyn Journal,
    fixture: Fixture,
    term: Term,
    durable: Revision,
}

impl<'a> Writer<'a> {
    /// Begins a term and recovers the journal's state.
    fn begin(journal: &'a mut dyn Journal) -> Self {
        let term = journal.begin_term().unwrap();
        let state = recover(journal);
        let durable = state.revision();
        let mut writer = Self { journal, fixture: Fixture::resume(state, term), term, durable };
        writer.flush().unwrap();
        writer
    }

    /// Appends the events since the last append.
    fn flush(&mut self) -> Result<(), Error> {
        let events = std::mem::take(&mut self.fixture.events);
        let archive = std::mem::take(&mut self.fixture.archive);
        let batch = Batch { term: self.term, after: self.durable, events, archive };
        self.journal.append(&batch)?;
        self.durable = self.fixture.state.revision();
        Ok(())
    }

    /// Submits one more job and makes it durable.
    fn submit(&mut self) -> Result<Revision, Error> {
        self.fixture.submit(submission("", "", minimal()));
        self.flush()?;
        Ok(self.durable)
    }

    /// Runs a job of two units, each with so many attempts, of which the last succeeds.
    fn finish(&mut self, name: &str, queue: &str, attempts: u32) -> JobId {
        let pool = self.fixture.state.pool_named("p").map(|pool| pool.id);
        let pool = pool.unwrap_or_else(|| self.fixture.pool("p", "CN-CQ", vec![node_spec("n1", 64, 0)]));
        let job = self.fixture.submit(submission(name, queue, tasks(2, 1)));
        for index in 0..2 {
            for number in 1..=attempts {
                self.fixture.must_start(unit(job, index), pool);
                let last = number == attempts;
                let kind = if last { OutcomeKind::Succeeded } else { OutcomeKind::Drained };
                self.fixture.end(unit(job, index), kind);
            }
        }
        self.flush().unwrap();
        job
    }

    /// Returns every chunk of a snapshot of the current state.
    fn chunks(&mut self) -> Vec<Chunk> {
        // More objects than fit into one chunk.
        for _ in 0..2 {
            let jobs = (0..400).map(|_| submission("", "", minimal())).collect();
            self.fixture.must(Command::Submit { jobs });
        }
        self.flush().unwrap();
        self.fixture.state.begin_snapshot();
        let mut chunks = Vec::new();
        while let Some((revision, objects, last)) = self.fixture.state.next_chunk() {
            let bytes = record::encode_objects(&objects);
            chunks.push(Chunk { revision, index: chunks.len() as u32, last, bytes });
        }
        assert!(chunks.len() > 1, "a snapshot of one chunk can't be incomplete");
        chunks
    }

    fn state(&self) -> Vec<u8> {
        encoded(&self.fixture.state)
    }
}

/// Returns the state that a journal recovers to. Panics if a revision is missing.
fn recover(journal: &mut dyn Journal) -> State {
    let (mut objects, mut events) = (Vec::new(), Vec::new());
    let visit = &mut |loaded| match loaded {
        Loaded::Chunk(bytes) => objects.extend(record::decode_objects(&bytes).unwrap()),
        Loaded::Events(bytes) => events.extend(record::decode_events(&bytes).unwrap()),
    };
    journal.load(visit).unwrap();
    let mut state = if objects.is_empty() { State::default() } else { State::from_objects(objects) };
    events.iter().for_each(|event| state.apply(event, &mut Applied::default()));
    state
}

/// Returns how many chunks and how many batches of events a load passes on.
fn loaded(journal: &mut dyn Journal) -> (usize, usize) {
    let (mut chunks, mut batches) = (0, 0);
    let visit = &mut |loaded| match loaded {
        Loaded::Chunk(_) => chunks += 1,
        Loaded::Events(_) => batches += 1,
    };
    journal.load(visit).unwrap();
    (chunks, batches)
}

fn encoded(state: &State) -> Vec<u8> {
    record::encode_objects(&state.objects())
}

/// Runs a test on a new journal of every kind.
fn each(test: impl Fn(&mut dyn Journal)) {
    test(&mut MemoryJournal::default());
    let directory = TempDir::new().unwrap();
    test(&mut SqliteJournal::open(directory.path()).unwrap());
}

#[test]
fn what_is_appended_is_loaded_in_order() {
    each(|journal| {
        assert_eq!(loaded(journal), (0, 0));
        let mut writer = Writer::begin(journal);
        writer.finish("a", "", 3);
        for _ in 0..50 {
            writer.submit().unwrap();
        }
        let state = writer.state();
        assert!(encoded(&recover(journal)) == state);
        assert_eq!(loaded(journal), (0, 52));
    });
}

#[test]
fn batch_that_does_not_follow_the_last_is_rejected_and_changes_nothing() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let before = writer.state();
        let end = writer.durable;
        writer.fixture.submit(submission("", "", minimal()));
        for after in [Revision(end.0 - 1), end.next()] {
            let events = writer.fixture.events.clone();
            let batch = Batch { term: writer.term, after, events, archive: Vec::new() };
            let error = writer.journal.append(&batch).unwrap_err();
            assert!(
                matches!(error, Error::Misplaced { after: a, current } if (a, current) == (after, end)),
                "{error}"
            );
        }
        assert!(encoded(&recover(writer.journal)) == before);
        writer.flush().unwrap();
        let after = writer.state();
        assert!(encoded(&recover(journal)) == after);
    });
}

#[test]
fn deposed_writer_cannot_append_nor_write_chunks() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let chunks = writer.chunks();
        let newer = writer.journal.begin_term().unwrap();
        assert!(newer > writer.term);
        let before = writer.state();
        let deposed = |error: &Error| matches!(error, Error::Deposed { term, current } if (*term, *current) == (Term(1), newer));
        // An append without events checks the term, too.
        let error = writer.flush().unwrap_err();
        assert!(deposed(&error), "{error}");
        writer.fixture.submit(submission("", "", minimal()));
        let error = writer.flush().unwrap_err();
        assert!(deposed(&error), "{error}");
        let error = writer.journal.write_chunk(writer.term, &chunks[0]).unwrap_err();
        assert!(deposed(&error), "{error}");
        assert!(encoded(&recover(journal)) == before);
        Writer::begin(journal).submit().unwrap();
    });
}

#[test]
fn snapshot_is_loaded_once_its_last_chunk_is_written() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let chunks = writer.chunks();
        let batches = loaded(writer.journal).1;
        let (last, rest) = chunks.split_last().unwrap();
        for chunk in rest {
            writer.journal.write_chunk(writer.term, chunk).unwrap();
            assert_eq!(loaded(writer.journal), (0, batches));
        }
        writer.submit().unwrap();
        assert_eq!(loaded(writer.journal), (0, batches + 1));
        writer.journal.write_chunk(writer.term, last).unwrap();
        assert_eq!(loaded(writer.journal), (chunks.len(), 1));
        writer.submit().unwrap();
        let state = writer.state();
        assert_eq!(loaded(journal), (chunks.len(), 2));
        assert!(encoded(&recover(journal)) == state);
    });
}

#[test]
fn incomplete_snapshot_never_replaces_a_complete_one_even_of_the_same_revision() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let chunks = writer.chunks();
        let term = writer.term;
        chunks.iter().for_each(|chunk| writer.journal.write_chunk(term, chunk).unwrap());
        while writer.journal.prune(RetainedEvents::default()).unwrap() {}
        let state = writer.state();
        writer.journal.write_chunk(term, &chunks[0]).unwrap();
        assert_eq!(loaded(writer.journal), (chunks.len(), 0));
        assert!(encoded(&recover(writer.journal)) == state);
        let newer = writer.chunks();
        writer.journal.write_chunk(term, &newer[0]).unwrap();
        while writer.journal.prune(RetainedEvents::default()).unwrap() {}
        let state = writer.state();
        assert!(encoded(&recover(journal)) == state);
    });
}

#[test]
fn prune_removes_what_is_covered_and_nothing_else() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        assert!(
            !writer.journal.prune(RetainedEvents::default()).unwrap(),
            "without a snapshot there is nothing to remove"
        );
        let term = writer.term;
        let mut last = Vec::new();
        for _ in 0..2 {
            for _ in 0..300 {
                writer.submit().unwrap();
            }
            last = writer.chunks();
            last.iter().for_each(|chunk| writer.journal.write_chunk(term, chunk).unwrap());
        }
        writer.submit().unwrap();
        writer.submit().unwrap();
        let state = writer.state();
        while writer.journal.prune(RetainedEvents::default()).unwrap() {}
        assert_eq!(loaded(writer.journal), (last.len(), 2));
        assert!(encoded(&recover(writer.journal)) == state);
        writer.submit().unwrap();
        let state = writer.state();
        assert!(encoded(&recover(journal)) == state);
    });
}

#[test]
fn writer_continues_after_a_snapshot_whose_events_are_pruned() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let term = writer.term;
        let chunks = writer.chunks();
        chunks.iter().for_each(|chunk| writer.journal.write_chunk(term, chunk).unwrap());
        while writer.journal.prune(RetainedEvents::default()).unwrap() {}
        assert_eq!(loaded(writer.journal), (chunks.len(), 0));
        let mut writer = Writer::begin(journal);
        writer.submit().unwrap();
        let state = writer.state();
        assert!(encoded(&recover(journal)) == state);
    });
}

#[test]
fn archive_is_found_by_id_by_name_and_in_pages() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        writer.fixture.must(Command::CreateQueue { spec: crate::model::queue::default_settings("team") });
        writer.fixture.now = writer.fixture.now.plus_ms(1_000);
        let old = writer.finish("twin", "", 1);
        let other = writer.finish("twin", "team", 1);
        let second_from = writer.fixture.now.plus_ms(1_000);
        writer.fixture.now = second_from;
        let new = writer.finish("twin", "", 3);
        let mut archive = writer.journal.archive().unwrap();
        let of = |found: Option<crate::state::apply::FinishedJob>| found.map(|job| job.job.id);
        assert_eq!(of(archive.job(old).unwrap()), Some(old));
        assert_eq!(of(archive.job(JobId(99)).unwrap()), None);
        assert_eq!(of(archive.job_named("default", "twin").unwrap()), Some(new));
        assert_eq!(of(archive.job_named("team", "twin").unwrap()), Some(other));
        assert_eq!(of(archive.job_named("team", "none").unwrap()), None);
        let mut page = |queue: Option<&str>, before, limit| -> Vec<JobId> {
            let queues = queue.into_iter().map(str::to_owned).collect();
            let filter = JobFilter { queues, ..JobFilter::default() };
            let jobs = archive.jobs(&filter, before, limit).unwrap().jobs;
            jobs.into_iter().map(|job| job.job.id).collect()
        };
        let end = JobId(u64::MAX);
        assert_eq!(page(None, end, 10), [new, other, old]);
        assert_eq!(page(None, end, 2), [new, other]);
        assert_eq!(page(None, other, 2), [old]);
        assert_eq!(page(Some("default"), end, 10), [new, old]);
        let mut last_ended = |place, limit| -> Vec<JobId> {
            let jobs = archive.last_ended(place, limit).unwrap();
            jobs.into_iter().map(|job| job.job.id).collect()
        };
        assert_eq!(last_ended(None, 2), [new, other]);
        assert_eq!(last_ended(Some((second_from, JobId(0))), 10), [other, old]);
        let mut after = (0, 0);
        let mut attempts = Vec::new();
        loop {
            let page = archive.attempts(new, after, 2).unwrap();
            let Some(last) = page.last() else { break };
            after = (last.attempt.unit.unit, last.attempt.number);
            attempts.extend(page.iter().map(|row| (row.attempt.unit.unit, row.attempt.number)));
        }
        assert_eq!(attempts, [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]);
        assert_eq!(archive.count_ended_since(second_from).unwrap(), 1);
        assert_eq!(archive.count_ended_since(Timestamp(0)).unwrap(), 3);
    });
}

#[test]
fn archive_row_written_twice_is_stored_once_and_unchanged() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let job = writer.finish("a", "", 1);
        let mut archive = writer.journal.archive().unwrap();
        let first = archive.job(job).unwrap().unwrap();
        writer.fixture.archive.push(ArchiveRow::Job(first.clone()));
        writer.flush().unwrap();
        assert_eq!(archive.jobs(&JobFilter::default(), JobId(u64::MAX), 10).unwrap().jobs, [first]);
    });
}

#[test]
fn archive_loses_what_is_past_its_retention_and_nothing_else() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        // More attempts than one call removes.
        let old = writer.finish("old", "", 700);
        let second = writer.finish("second", "", 1);
        writer.fixture.now = writer.fixture.now.plus_ms(1_000);
        let retained_from = writer.fixture.now;
        let new = writer.finish("new", "", 2);
        let mut archive = writer.journal.archive().unwrap();
        assert!(!writer.journal.prune_archive(Timestamp(0)).unwrap(), "nothing is so old");
        assert!(archive.job(old).unwrap().is_some());
        while writer.journal.prune_archive(retained_from).unwrap() {}
        let jobs = archive.jobs(&JobFilter::default(), JobId(u64::MAX), 10).unwrap().jobs;
        assert_eq!(jobs.iter().map(|job| job.job.id).collect::<Vec<_>>(), [new]);
        let mut attempts = |job| archive.attempts(job, (0, 0), 10).unwrap().len();
        assert_eq!([attempts(old), attempts(second), attempts(new)], [0, 0, 4]);
        writer.submit().unwrap();
        let state = writer.state();
        assert!(encoded(&recover(journal)) == state);
    });
}
