//! Golden records: at least one of every kind, as a released Weir wrote it.
//!
//! `tests/golden/records.txt` has a line for each: container, kind, bytes in hexadecimal digits. A line never
//! changes and none is removed. `tests/golden/records.read.txt` shows what they are read as; it changes only
//! where types are renamed, or fields added that old records lack (`UPDATE_EXPECT=1`).

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use expect_test::expect_file;
use rand::SeedableRng;
use rand::rngs::StdRng;
use weir::journal::sqlite::SqliteJournal;
use weir::journal::{Journal, Loaded};
use weir::model::id::{JobId, Revision};
use weir::state::job_filter::JobFilter;
use weir::state::record;

use crate::generate::{kinds, record};

const CONTAINERS: [&str; 3] = ["EventBatch", "SnapshotChunk", "ArchiveRow"];

/// What bytes are read as, and the bytes that are written for it.
fn read(container: &str, bytes: &[u8]) -> Result<(String, Vec<u8>), record::Error> {
    match container {
        "EventBatch" => record::decode_events(bytes)
            .map(|events| (format!("{events:#?}"), record::encode_events(&events))),
        "SnapshotChunk" => record::decode_objects(bytes)
            .map(|objects| (format!("{objects:#?}"), record::encode_objects(&objects))),
        "ArchiveRow" => record::decode_row(bytes).map(|row| (format!("{row:#?}"), record::encode_row(&row))),
        other => panic!("no record is a {other}"),
    }
}

fn golden(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

/// The kinds of record that a container holds.
fn kinds_of(container: &str) -> Vec<(u32, String)> {
    kinds(match container {
        "EventBatch" => "Event",
        "SnapshotChunk" => "Object",
        other => other,
    })
}

#[test]
fn every_kind_of_record_has_a_golden_one_that_is_still_read_alike() {
    let text = std::fs::read_to_string(golden("records.txt")).unwrap_or_default();
    let (mut found, mut shown) = (BTreeSet::new(), String::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [container, kind, digits] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
        let (value, written) = read(container, &bytes).unwrap_or_else(|error| panic!("{kind}: {error}"));
        // What a later version writes may differ, but must be read alike.
        let (again, _) = read(container, &written).unwrap();
        assert_eq!(again, value, "{kind}");
        writeln!(shown, "{container} {kind} {value}").unwrap();
        found.insert((container.to_owned(), kind.to_owned()));
    }
    let mut missing = String::new();
    for container in CONTAINERS {
        for (number, kind) in kinds_of(container) {
            if !found.contains(&(container.to_owned(), kind.clone())) {
                let bytes = record(&mut StdRng::seed_from_u64(number.into()), container, number);
                let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(missing, "{container} {kind} {digits}").unwrap();
            }
        }
    }
    assert!(missing.is_empty(), "tests/golden/records.txt lacks these lines; append them:\n{missing}");
    expect_file![golden("records.read.txt")].assert_eq(&shown);
}

#[test]
fn what_a_newer_weir_wrote_is_refused_as_such() {
    for container in CONTAINERS {
        for (number, kind) in kinds_of(container) {
            let bytes = record(&mut StdRng::seed_from_u64(1), container, number);
            // A field that no message has, at the end of the outermost one.
            let newer = [&bytes[..], &[0xf8, 0x7f, 1]].concat();
            let error = read(container, &newer).map(|(value, _)| value).unwrap_err();
            assert!(matches!(error, record::Error::UnknownFields { .. }), "{kind}: {error}");
            assert!(error.to_string().contains("newer weir"), "{error}");
        }
    }
    // An event, an object and a row of a kind that is unknown.
    for (container, bytes) in [
        ("EventBatch", vec![8, 1, 0x12, 5, 8, 1, 0xfa, 0x7f, 0]),
        ("SnapshotChunk", vec![0x0a, 3, 0xfa, 0x7f, 0]),
        ("ArchiveRow", vec![0xfa, 0x7f, 0]),
    ] {
        let error = read(container, &bytes).unwrap_err();
        assert!(error.to_string().contains("newer weir"), "{container}: {error}");
    }
}

/// Protobuf alone reads a batch that was cut off between two events as a shorter one.
#[test]
fn a_container_that_is_cut_off_anywhere_is_refused() {
    let (mut events, mut objects) = (Vec::new(), Vec::new());
    for (number, _) in kinds_of("EventBatch") {
        let bytes = record(&mut StdRng::seed_from_u64(1), "EventBatch", number);
        events.extend(record::decode_events(&bytes).unwrap());
    }
    for (event, revision) in events.iter_mut().zip(1..) {
        event.revision = Revision(revision);
    }
    for (number, _) in kinds_of("SnapshotChunk") {
        let bytes = record(&mut StdRng::seed_from_u64(1), "SnapshotChunk", number);
        objects.extend(record::decode_objects(&bytes).unwrap());
    }
    for (container, bytes) in
        [("EventBatch", record::encode_events(&events)), ("SnapshotChunk", record::encode_objects(&objects))]
    {
        read(container, &bytes).unwrap();
        for end in 1..bytes.len() {
            assert!(
                read(container, &bytes[..end]).is_err(),
                "{container} of {} bytes, cut at {end}",
                bytes.len()
            );
        }
    }
}

/// The whole journal of a broker that wrote it with the first release of the format.
#[test]
fn golden_journal_is_opened_and_its_state_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden("journal.sqlite"), folder.path().join("journal.sqlite")).unwrap();
    let mut journal = SqliteJournal::open(folder.path()).unwrap();
    let (mut objects, mut events) = (Vec::new(), Vec::new());
    journal
        .load(&mut |loaded| match loaded {
            Loaded::Chunk(bytes) => objects.extend(record::decode_objects(&bytes).unwrap()),
            Loaded::Events(bytes) => events.extend(record::decode_events(&bytes).unwrap()),
        })
        .unwrap();
    assert!(!objects.is_empty() && !events.is_empty());
    let mut state = weir::state::State::from_objects(objects);
    let shown = state.revision();
    for event in events.iter().filter(|event| event.revision > shown) {
        state.apply(event, &mut weir::state::apply::Applied::default());
    }
    state.check().unwrap();
    let jobs = state.jobs_from(Default::default()).map(|job| format!("{} {}", job.id, job.name));
    let (mut archive, last) = (journal.archive().unwrap(), JobId(u64::MAX));
    let ended = archive.jobs(&JobFilter::default(), last, 100).unwrap().jobs;
    // The journal was written before archives had an index.
    archive.check().unwrap();
    let filter = JobFilter { queues: ["default".to_owned()].into(), ..JobFilter::default() };
    let by_queue = archive.jobs(&filter, last, 100).unwrap().jobs;
    assert!(!ended.is_empty() && by_queue == ended);
    let ended = ended.iter().map(|job| format!("{} {} {:?}", job.job.id, job.job.name, job.end));
    let pools = state.pools().map(|pool| format!("{} {} nodes", pool.spec.name, pool.nodes.len()));
    let lines: Vec<String> = std::iter::once(format!("revision {}", state.revision()))
        .chain(pools.chain(jobs).chain(ended))
        .collect();
    expect_file![golden("journal.read.txt")].assert_eq(&(lines.join("\n") + "\n"));
}
