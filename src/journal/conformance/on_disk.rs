//! Faults that only a journal on a disk can have: its lock, a full or read-only disk, a disk that fails to
//! sync, a truncated log, a writer killed during a write.

#[path = "../../../tests/support/disk.rs"]
mod disk;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::{Writer, encoded, loaded, recover};
use crate::journal::sqlite::SqliteJournal;
use crate::journal::{Batch, Error, Journal};
use crate::model::id::{JobId, Revision, Term};
use crate::state::State;
use crate::state::command::Command;
use disk::{FaultyDisk, Tmpfs};

#[test]
fn sqlite_reopened_has_the_same_contents() {
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
    assert_eq!(journal.begin_term().unwrap(), Term(term.0 + 1));
    let misplaced = journal.append(&Batch { term: Term(9), after: Revision(0), ..Batch::default() });
    assert!(matches!(misplaced, Err(Error::Misplaced { current, .. }) if current == end));
}

#[test]
fn sqlite_directory_has_one_writer_and_the_error_names_it() {
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
fn sqlite_of_a_newer_weir_is_rejected() {
    let directory = TempDir::new().unwrap();
    drop(SqliteJournal::open(directory.path()).unwrap());
    let path = directory.path().join("journal.sqlite");
    let db = rusqlite::Connection::open(&path).unwrap();
    db.pragma_update(None, "user_version", 1_000_000).unwrap();
    drop(db);
    let Err(error) = SqliteJournal::open(directory.path()) else { panic!("a newer layout is read") };
    assert!(matches!(error, Error::Newer { found: 1_000_000, .. }), "{error}");
}

/// Mounts a small file system on a new folder; `None` if mounting is not possible here.
fn small_disk(test: &str, size: &str) -> Option<(Tmpfs, TempDir)> {
    let folder = TempDir::new().unwrap();
    Tmpfs::mount(test, folder.path(), size).map(|disk| (disk, folder))
}

#[test]
fn sqlite_names_a_directory_that_it_can_not_write() {
    let Some((disk, _folder)) = small_disk("sqlite_names_a_directory_that_it_can_not_write", "1m") else {
        return;
    };
    let directory = disk.path().join("data");
    drop(SqliteJournal::open(&directory).unwrap());
    disk.remount("ro").unwrap();
    let Err(error) = SqliteJournal::open(&directory) else { panic!("a read-only disk is written") };
    assert!(matches!(error, Error::Directory { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("{} can't be used", directory.display()));
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert!(source.as_ref().is_some_and(|text| text.contains("Read-only file system")), "{source:?}");
}

#[test]
fn sqlite_on_a_full_disk_fails_and_loses_nothing_acknowledged() {
    let test = "sqlite_on_a_full_disk_fails_and_loses_nothing_acknowledged";
    let Some((disk, _folder)) = small_disk(test, "1m") else { return };
    let mut journal = SqliteJournal::open(disk.path()).unwrap();
    let mut writer = Writer::begin(&mut journal);
    let mut acknowledged = Vec::new();
    let error = loop {
        let state = writer.state();
        acknowledged.push((writer.durable, state));
        assert!(acknowledged.len() < 10_000, "the disk never fills up");
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
    // The failed batch may or may not be durable: that is what "unknown" means.
    assert!(recovered.revision() >= *durable, "{} of {durable}", recovered.revision());
    assert!(recovered.revision() > *durable || encoded(&recovered) == *state);
    disk.remount("size=64m").unwrap();
    let mut journal = SqliteJournal::open(disk.path()).unwrap();
    Writer::begin(&mut journal).submit().unwrap();
}

/// Environment variable with the directory in which a copy of this process writes, on a disk whose syncs
/// fail.
const FAILING_WRITER: &str = "WEIR_TEST_FAILING_WRITER";

#[test]
fn sqlite_whose_disk_fails_to_sync_fails_and_loses_nothing_acknowledged() {
    if let Some(directory) = std::env::var_os(FAILING_WRITER) {
        return write_while_syncs_fail(Path::new(&directory));
    }
    let name = "sqlite_whose_disk_fails_to_sync_fails_and_loses_nothing_acknowledged";
    let directory = TempDir::new().unwrap();
    let Some(disk) = FaultyDisk::prepare(name, directory.path()) else { return };
    let child = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("journal::conformance::on_disk::{name}"), "--nocapture"])
        .env(FAILING_WRITER, directory.path())
        .envs(disk.env())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

fn write_while_syncs_fail(directory: &Path) {
    let disk = FaultyDisk::of_this_process();
    let data = directory.join("data");
    for _ in 0..5 {
        let mut journal = SqliteJournal::open(&data).unwrap();
        let mut writer = Writer::begin(&mut journal);
        for _ in 0..5 {
            writer.submit().unwrap();
        }
        let (durable, state) = (writer.durable, writer.state());
        disk.fail_syncs(true);
        let error = writer.submit().unwrap_err();
        assert!(matches!(error, Error::Io(_)), "{error:?}");
        drop(journal);
        disk.fail_syncs(false);
        let recovered = recover(&mut SqliteJournal::open(&data).unwrap());
        // The failed batch may or may not be durable: that is what "unknown" means.
        assert!(recovered.revision() >= durable, "{} of {durable}", recovered.revision());
        assert!(recovered.revision() > durable || encoded(&recovered) == state);
        assert_eq!(recovered.check(), Ok(()));
    }
}

/// Copies the directory's files as they are on the disk at this moment: what a crash would leave.
pub(super) fn copy(directory: &Path) -> TempDir {
    let target = TempDir::new().unwrap();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, target.path().join(path.file_name().unwrap())).unwrap();
    }
    target
}

#[test]
fn sqlite_with_a_truncated_log_is_refused_or_recovers_to_some_earlier_batch() {
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
        let remaining = if case == 0 { len } else { rng.random_range(0..len) };
        let file = std::fs::OpenOptions::new().write(true).open(wal(torn.path())).unwrap();
        file.set_len(remaining).unwrap();
        let mut reopened = match SqliteJournal::open(torn.path()) {
            Err(Error::Damaged { .. }) => {
                // What was acknowledged is missing. The admin accepts that.
                std::fs::remove_file(torn.path().join("journal.end")).unwrap();
                SqliteJournal::open(torn.path())
            }
            opened => opened,
        }
        .unwrap_or_else(|error| panic!("{remaining} of {len} bytes: {error:?}"));
        let state = recover(&mut reopened);
        let whole = states.iter().find(|(revision, _)| *revision == state.revision());
        let Some((_, expected)) = whole else {
            panic!("{remaining} bytes end within a batch: {}", state.revision())
        };
        assert!(encoded(&state) == *expected, "{remaining} of {len} bytes give another state");
        assert!(case > 0 || state.revision() == writer.durable, "a complete log lost a batch");
        reached.insert(state.revision());
        Writer::begin(&mut reopened).submit().unwrap();
    }
    assert!(reached.len() > 20, "only {} different ends were reached", reached.len());
}

/// Environment variable with the directory in which a copy of this process writes until it is killed.
const KILLED_WRITER: &str = "WEIR_TEST_KILLED_WRITER";

#[test]
fn sqlite_writer_killed_at_any_moment_loses_nothing_acknowledged() {
    if let Some(directory) = std::env::var_os(KILLED_WRITER) {
        write_until_killed(&PathBuf::from(directory));
    }
    let directory = TempDir::new().unwrap();
    let name = "journal::conformance::on_disk::sqlite_writer_killed_at_any_moment_loses_nothing_acknowledged";
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
        assert!(last.is_some(), "round {round}: the writer ended before it was killed");
        // At some point of the append after that, as the operating system schedules it.
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

/// Appends, and prints each revision once it is durable.
fn write_until_killed(directory: &Path) -> ! {
    let mut journal = SqliteJournal::open(directory).unwrap();
    let mut writer = Writer::begin(&mut journal);
    let mut stdout = std::io::stdout();
    loop {
        let durable = writer.submit().unwrap();
        if durable.0.is_multiple_of(7) {
            let jobs = writer.fixture.state.jobs_from(JobId(0)).take(5).map(|job| job.id).collect();
            writer.fixture.must(Command::Cancel { jobs, reason: String::new() });
        }
        writeln!(stdout, "durable {durable}.").unwrap();
    }
}

#[test]
fn sqlite_of_a_build_before_format_1_is_refused_as_such() {
    let directory = TempDir::new().unwrap();
    drop(SqliteJournal::open(directory.path()).unwrap());
    let db = rusqlite::Connection::open(directory.path().join("journal.sqlite")).unwrap();
    db.pragma_update(None, "application_id", 0).unwrap();
    drop(db);
    let Err(error) = SqliteJournal::open(directory.path()) else { panic!("an older format is read") };
    assert!(matches!(error, Error::Foreign), "{error}");
}
