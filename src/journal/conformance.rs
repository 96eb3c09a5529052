//! What every journal must do, held by one suite for all of them; then what only a journal on a
//! disk can get wrong: its lock, a full or read-only disk, one that fails to
//! sync, a torn tail, a writer killed mid-write.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::memory::MemoryJournal;
use super::sqlite::SqliteJournal;
use super::{Batch, Chunk, Error, Journal, Loaded};
use crate::model::attempt::OutcomeKind;
use crate::model::id::{JobId, Revision, Term};
use crate::model::spec::minimal;
use crate::model::time::Timestamp;
use crate::state::State;
use crate::state::apply::{Applied, ArchiveRow};
use crate::state::command::Command;
use crate::state::fixture::{Fixture, node_spec, submission, tasks, unit};
use crate::state::record;

#[path = "../../tests/support/disk.rs"]
mod disk;

use disk::FailingSync;

/// A writer: a world whose events go to a journal.
struct Writer<'a> {
    journal: &'a mut dyn Journal,
    world: Fixture,
    term: Term,
    durable: Revision,
}

impl<'a> Writer<'a> {
    /// Recovers what the journal holds and takes the writer's turn.
    fn begin(journal: &'a mut dyn Journal) -> Self {
        let term = journal.claim().unwrap();
        let state = recover(journal);
        let durable = state.revision();
        let mut writer = Self { journal, world: Fixture::resume(state, term), term, durable };
        writer.flush().unwrap();
        writer
    }

    /// Appends what has happened since the last append.
    fn flush(&mut self) -> Result<(), Error> {
        let events = std::mem::take(&mut self.world.events);
        let archive = std::mem::take(&mut self.world.archive);
        let batch = Batch { term: self.term, after: self.durable, events, archive };
        self.journal.append(&batch)?;
        self.durable = self.world.state.revision();
        Ok(())
    }

    /// One more job, durable.
    fn submit(&mut self) -> Result<Revision, Error> {
        self.world.submit(submission("", "", minimal()));
        self.flush()?;
        Ok(self.durable)
    }

    /// A job that has started, and ended after so many attempts, the last of which succeeded.
    fn finish(&mut self, name: &str, queue: &str, attempts: u32) -> JobId {
        let pool = self.world.state.pool_named("p").map(|pool| pool.id);
        let pool = pool.unwrap_or_else(|| self.world.pool("p", "CN-CQ", vec![node_spec("n1", 64, 0)]));
        let job = self.world.submit(submission(name, queue, tasks(2, 1)));
        for index in 0..2 {
            for number in 1..=attempts {
                self.world.must_start(unit(job, index), pool);
                let last = number == attempts;
                let kind = if last { OutcomeKind::Succeeded } else { OutcomeKind::NodeLost };
                self.world.end(unit(job, index), kind);
            }
        }
        self.flush().unwrap();
        job
    }

    /// Every chunk of a snapshot of the present.
    fn chunks(&mut self) -> Vec<Chunk> {
        // More objects than fit into one chunk.
        for _ in 0..2 {
            let jobs = (0..400).map(|_| submission("", "", minimal())).collect();
            self.world.must(Command::Submit { jobs });
        }
        self.flush().unwrap();
        self.world.state.begin_snapshot();
        let mut chunks = Vec::new();
        while let Some((revision, objects, last)) = self.world.state.next_chunk() {
            let bytes = record::encode_objects(&objects);
            chunks.push(Chunk { revision, index: chunks.len() as u32, last, bytes });
        }
        assert!(chunks.len() > 1, "a snapshot of one chunk can't be incomplete");
        chunks
    }

    fn state(&self) -> Vec<u8> {
        encoded(&self.world.state)
    }
}

/// The state that a journal leads to. Panics where there is a hole.
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

/// What a load hands over: how many chunks, and how many batches of events.
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

/// Runs a test on a fresh journal of every kind.
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
fn batch_that_does_not_follow_the_last_is_refused_and_changes_nothing() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let before = writer.state();
        let end = writer.durable;
        writer.world.submit(submission("", "", minimal()));
        for after in [Revision(end.0 - 1), end.next()] {
            let events = writer.world.events.clone();
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
        let newer = writer.journal.claim().unwrap();
        assert!(newer > writer.term);
        let before = writer.state();
        writer.world.submit(submission("", "", minimal()));
        let deposed = |error: &Error| matches!(error, Error::Deposed { term, current } if (*term, *current) == (Term(1), newer));
        let error = writer.flush().unwrap_err();
        assert!(deposed(&error), "{error}");
        let error = writer.journal.write_chunk(writer.term, &chunks[0]).unwrap_err();
        assert!(deposed(&error), "{error}");
        assert!(encoded(&recover(journal)) == before);
        Writer::begin(journal).submit().unwrap();
    });
}

#[test]
fn snapshot_counts_once_its_last_chunk_is_written() {
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
fn incomplete_snapshot_never_harms_a_complete_one_even_of_the_same_revision() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let chunks = writer.chunks();
        let term = writer.term;
        chunks.iter().for_each(|chunk| writer.journal.write_chunk(term, chunk).unwrap());
        while writer.journal.prune().unwrap() {}
        let state = writer.state();
        writer.journal.write_chunk(term, &chunks[0]).unwrap();
        assert_eq!(loaded(writer.journal), (chunks.len(), 0));
        assert!(encoded(&recover(writer.journal)) == state);
        let newer = writer.chunks();
        writer.journal.write_chunk(term, &newer[0]).unwrap();
        while writer.journal.prune().unwrap() {}
        let state = writer.state();
        assert!(encoded(&recover(journal)) == state);
    });
}

#[test]
fn prune_removes_what_is_covered_and_nothing_else() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        assert!(!writer.journal.prune().unwrap(), "without a snapshot there is nothing to remove");
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
        while writer.journal.prune().unwrap() {}
        assert_eq!(loaded(writer.journal), (last.len(), 2));
        assert!(encoded(&recover(writer.journal)) == state);
        writer.submit().unwrap();
        let state = writer.state();
        assert!(encoded(&recover(journal)) == state);
    });
}

#[test]
fn writer_goes_on_where_a_pruned_snapshot_ends() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let term = writer.term;
        let chunks = writer.chunks();
        chunks.iter().for_each(|chunk| writer.journal.write_chunk(term, chunk).unwrap());
        while writer.journal.prune().unwrap() {}
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
        writer.world.must(Command::CreateQueue { spec: crate::model::queue::default_settings("team") });
        writer.world.now = writer.world.now.plus_ms(1_000);
        let old = writer.finish("twin", "", 1);
        let other = writer.finish("twin", "team", 1);
        let second_from = writer.world.now.plus_ms(1_000);
        writer.world.now = second_from;
        let new = writer.finish("twin", "", 3);
        let mut archive = writer.journal.archive().unwrap();
        let of = |found: Option<crate::state::apply::FinishedJob>| found.map(|job| job.job.id);
        assert_eq!(of(archive.job(old).unwrap()), Some(old));
        assert_eq!(of(archive.job(JobId(99)).unwrap()), None);
        assert_eq!(of(archive.job_named("default", "twin").unwrap()), Some(new));
        assert_eq!(of(archive.job_named("team", "twin").unwrap()), Some(other));
        assert_eq!(of(archive.job_named("team", "none").unwrap()), None);
        let mut page = |queue, before, limit| -> Vec<JobId> {
            let jobs = archive.jobs(queue, before, limit).unwrap();
            jobs.into_iter().map(|job| job.job.id).collect()
        };
        let end = JobId(u64::MAX);
        assert_eq!(page(None, end, 10), [new, other, old]);
        assert_eq!(page(None, end, 2), [new, other]);
        assert_eq!(page(None, other, 2), [old]);
        assert_eq!(page(Some("default"), end, 10), [new, old]);
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
fn archive_row_written_twice_is_there_once_as_it_was() {
    each(|journal| {
        let mut writer = Writer::begin(journal);
        let job = writer.finish("a", "", 1);
        let mut archive = writer.journal.archive().unwrap();
        let first = archive.job(job).unwrap().unwrap();
        writer.world.archive.push(ArchiveRow::Job(first.clone()));
        writer.flush().unwrap();
        assert_eq!(archive.jobs(None, JobId(u64::MAX), 10).unwrap(), [first]);
    });
}

#[test]
fn sqlite_reopened_is_as_it_was() {
    let directory = TempDir::new().unwrap();
    let mut journal = SqliteJournal::open(directory.path()).unwrap();
    let mut writer = Writer::begin(&mut journal);
    let job = writer.finish("a", "", 2);
    let chunks = writer.chunks();
    let term = writer.term;
    chunks.iter().for_each(|chunk| writer.journal.write_chunk(term, chunk).unwrap());
    writer.submit().unwrap();
    let (state, end) = (writer.state(), writer.durable);
    drop(journal);
    let mut journal = SqliteJournal::open(directory.path()).unwrap();
    assert!(encoded(&recover(&mut journal)) == state);
    assert_eq!(loaded(&mut journal), (chunks.len(), 1));
    assert_eq!(journal.archive().unwrap().job(job).unwrap().map(|job| job.job.id), Some(job));
    assert_eq!(journal.claim().unwrap(), Term(term.0 + 1));
    let misplaced = journal.append(&Batch { term: Term(9), after: Revision(0), ..Batch::default() });
    assert!(matches!(misplaced, Err(Error::Misplaced { current, .. }) if current == end));
}

#[test]
fn sqlite_directory_takes_one_writer_and_tells_the_other_who_it_is() {
    let directory = TempDir::new().unwrap();
    let journal = SqliteJournal::open(directory.path()).unwrap();
    let Err(error) = SqliteJournal::open(directory.path()) else { panic!("two writers in one directory") };
    let pid = std::process::id().to_string();
    assert!(matches!(&error, Error::InUse { holder, .. } if *holder == pid), "{error}");
    let path = directory.path().display();
    let text = format!("data directory {path} is in use by another weir, process {pid}");
    assert_eq!(error.to_string(), text);
    drop(journal);
    SqliteJournal::open(directory.path()).unwrap();
}

#[test]
fn sqlite_of_a_newer_weir_is_refused_and_left_alone() {
    let directory = TempDir::new().unwrap();
    drop(SqliteJournal::open(directory.path()).unwrap());
    let path = directory.path().join("journal.sqlite");
    let db = rusqlite::Connection::open(&path).unwrap();
    db.pragma_update(None, "user_version", 1_000_000).unwrap();
    drop(db);
    let Err(error) = SqliteJournal::open(directory.path()) else { panic!("a newer layout is read") };
    assert!(matches!(error, Error::Newer { found: 1_000_000, .. }), "{error}");
}

/// A small file system of its own.
struct Tmpfs(TempDir);

impl Tmpfs {
    /// Mounts one, or says loudly that the test can't be run here.
    fn mount(test: &str, size: &str) -> Option<Self> {
        let mounted = Self(TempDir::new().unwrap());
        match mounted.remount(&format!("size={size}"), false) {
            Ok(()) => Some(mounted),
            Err(why) => {
                assert!(std::env::var_os("WEIR_REQUIRE_REAL").is_none(), "{test}: no tmpfs: {why}");
                let line = format!("SKIPPED: {test}: can't mount a tmpfs: {why}\n");
                // Past the test runner's capture: what was not tested must be seen.
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, options: &str, again: bool) -> Result<(), String> {
        let options = if again { format!("remount,{options}") } else { options.to_owned() };
        let mut mount = Process::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "weir-test"]).arg(self.path());
        let output = mount.output().map_err(|error| error.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Where nothing was mounted this fails, which is as well.
        drop(Process::new("umount").arg("-l").arg(self.path()).stderr(Stdio::null()).status());
    }
}

#[test]
fn sqlite_names_a_directory_that_it_may_not_write() {
    let Some(disk) = Tmpfs::mount("sqlite_names_a_directory_that_it_may_not_write", "1m") else { return };
    let directory = disk.path().join("data");
    drop(SqliteJournal::open(&directory).unwrap());
    disk.remount("ro", true).unwrap();
    let Err(error) = SqliteJournal::open(&directory) else { panic!("a read-only disk is written") };
    assert!(matches!(error, Error::Directory { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("data directory {} can't be used", directory.display()));
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert!(source.as_ref().is_some_and(|text| text.contains("Read-only file system")), "{source:?}");
}

#[test]
fn sqlite_on_a_full_disk_refuses_and_keeps_what_it_acknowledged() {
    let test = "sqlite_on_a_full_disk_refuses_and_keeps_what_it_acknowledged";
    let Some(disk) = Tmpfs::mount(test, "1m") else { return };
    let mut journal = SqliteJournal::open(disk.path()).unwrap();
    let mut writer = Writer::begin(&mut journal);
    let mut acknowledged = Vec::new();
    let error = loop {
        let state = writer.state();
        acknowledged.push((writer.durable, state));
        assert!(acknowledged.len() < 10_000, "the disk never fills");
        if let Err(error) = writer.submit() {
            break error;
        }
    };
    assert!(matches!(error, Error::Io(_)), "{error:?}");
    assert_eq!(error.to_string(), "the journal's disk failed");
    let (durable, state) = acknowledged.last().unwrap();
    assert!(acknowledged.len() > 10, "only {} appends fitted", acknowledged.len());
    drop(journal);
    let elsewhere = copy(disk.path());
    let mut reopened = SqliteJournal::open(elsewhere.path()).unwrap();
    let recovered = recover(&mut reopened);
    // The refused batch may or may not be there: that is what "unknown" means.
    assert!(recovered.revision() >= *durable, "{} of {durable}", recovered.revision());
    assert!(recovered.revision() > *durable || encoded(&recovered) == *state);
    disk.remount("size=64m", true).unwrap();
    let mut journal = SqliteJournal::open(disk.path()).unwrap();
    Writer::begin(&mut journal).submit().unwrap();
}

/// Names the directory in which a copy of this process writes on a disk whose syncs fail.
const FAILING_WRITER: &str = "WEIR_TEST_FAILING_WRITER";

#[test]
fn sqlite_whose_disk_fails_to_sync_refuses_and_keeps_what_it_acknowledged() {
    if let Some(directory) = std::env::var_os(FAILING_WRITER) {
        return write_while_syncs_fail(Path::new(&directory));
    }
    let name = "sqlite_whose_disk_fails_to_sync_refuses_and_keeps_what_it_acknowledged";
    let directory = TempDir::new().unwrap();
    let Some(disk) = FailingSync::prepare(name, directory.path()) else { return };
    let child = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("journal::conformance::{name}"), "--nocapture"])
        .env(FAILING_WRITER, directory.path())
        .envs(disk.env())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

fn write_while_syncs_fail(directory: &Path) {
    let disk = FailingSync::of_this_process();
    let data = directory.join("data");
    for _ in 0..5 {
        let mut journal = SqliteJournal::open(&data).unwrap();
        let mut writer = Writer::begin(&mut journal);
        for _ in 0..5 {
            writer.submit().unwrap();
        }
        let (durable, state) = (writer.durable, writer.state());
        disk.set(true);
        let error = writer.submit().unwrap_err();
        assert!(matches!(error, Error::Io(_)), "{error:?}");
        drop(journal);
        disk.set(false);
        let recovered = recover(&mut SqliteJournal::open(&data).unwrap());
        // The refused batch may or may not be there: that is what "unknown" means.
        assert!(recovered.revision() >= durable, "{} of {durable}", recovered.revision());
        assert!(recovered.revision() > durable || encoded(&recovered) == state);
        assert_eq!(recovered.check(), Ok(()));
    }
}

/// The directory's files as they are on the disk at this moment: what a crash leaves.
fn copy(directory: &Path) -> TempDir {
    let target = TempDir::new().unwrap();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, target.path().join(path.file_name().unwrap())).unwrap();
    }
    target
}

#[test]
fn sqlite_with_a_torn_tail_recovers_to_some_earlier_batch() {
    let directory = TempDir::new().unwrap();
    let mut journal = SqliteJournal::open(directory.path()).unwrap();
    let mut writer = Writer::begin(&mut journal);
    let mut states = vec![(Revision(0), encoded(&State::default())), (writer.durable, writer.state())];
    for index in 0..40 {
        if index % 8 == 0 {
            writer.finish("", "", 2);
        } else {
            writer.submit().unwrap();
        }
        states.push((writer.durable, writer.state()));
    }
    let crashed = copy(directory.path());
    let wal = |directory: &Path| directory.join("journal.sqlite-wal");
    let len = std::fs::metadata(wal(crashed.path())).unwrap().len();
    assert!(len > 40 * 1_024, "a log of {len} bytes holds less than was appended");
    let mut rng = StdRng::seed_from_u64(3);
    let mut reached = std::collections::BTreeSet::new();
    for case in 0..150 {
        let torn = copy(crashed.path());
        let keep = if case == 0 { len } else { rng.random_range(0..len) };
        let file = std::fs::OpenOptions::new().write(true).open(wal(torn.path())).unwrap();
        file.set_len(keep).unwrap();
        let mut reopened = SqliteJournal::open(torn.path())
            .unwrap_or_else(|error| panic!("{keep} of {len} bytes: {error:?}"));
        let state = recover(&mut reopened);
        let whole = states.iter().find(|(revision, _)| *revision == state.revision());
        let Some((_, expected)) = whole else {
            panic!("{keep} bytes end amid a batch: {}", state.revision())
        };
        assert!(encoded(&state) == *expected, "{keep} of {len} bytes give another state");
        assert!(case > 0 || state.revision() == writer.durable, "an untorn log lost something");
        reached.insert(state.revision());
        Writer::begin(&mut reopened).submit().unwrap();
    }
    assert!(reached.len() > 20, "only {} different ends were met", reached.len());
}

/// Names the directory in which a copy of this process writes until it is killed.
const KILLED_WRITER: &str = "WEIR_TEST_KILLED_WRITER";

#[test]
fn sqlite_writer_killed_at_any_moment_loses_nothing_acknowledged() {
    if let Some(directory) = std::env::var_os(KILLED_WRITER) {
        write_until_killed(&PathBuf::from(directory));
    }
    let directory = TempDir::new().unwrap();
    let name = "journal::conformance::sqlite_writer_killed_at_any_moment_loses_nothing_acknowledged";
    let mut rng = StdRng::seed_from_u64(4);
    for round in 0..20 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(KILLED_WRITER, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let acknowledged = |line: std::io::Result<String>| -> Option<u64> {
            line.ok()?.strip_prefix("durable ")?.strip_suffix('.')?.parse().ok()
        };
        let enough = rng.random_range(1..60);
        let mut last = lines.by_ref().filter_map(acknowledged).nth(enough);
        assert!(last.is_some(), "round {round}: the writer ended by itself");
        // Somewhere in the append after that, as the scheduler will have it.
        (0..rng.random_range(0..20_000u32)).for_each(|_| std::hint::spin_loop());
        child.kill().unwrap();
        child.wait().unwrap();
        last = lines.filter_map(acknowledged).last().or(last);
        let mut journal = SqliteJournal::open(directory.path()).unwrap();
        let state = recover(&mut journal);
        assert!(Some(state.revision().0) >= last, "round {round}: {last:?} of {}", state.revision());
        assert_eq!(state.check(), Ok(()));
    }
}

/// Appends, and tells each revision once it is durable.
fn write_until_killed(directory: &Path) -> ! {
    let mut journal = SqliteJournal::open(directory).unwrap();
    let mut writer = Writer::begin(&mut journal);
    let mut stdout = std::io::stdout();
    loop {
        let durable = writer.submit().unwrap();
        if durable.0.is_multiple_of(7) {
            let jobs = writer.world.state.jobs_from(JobId(0)).take(5).map(|job| job.id).collect();
            writer.world.must(Command::Cancel { jobs });
        }
        writeln!(stdout, "durable {durable}.").unwrap();
    }
}
