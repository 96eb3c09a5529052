//! Random records and random bytes: what is no record is refused, what is one stays it, and no length makes
//! the decoder ask for more memory than the bytes are worth.

use std::collections::BTreeSet;

use rand::RngExt;
use weir::state::record::{
    Error, decode_events, decode_objects, decode_row, encode_events, encode_objects, encode_row,
};

use crate::generate::{kinds, record};
use crate::memory::peak;
use crate::seeds::{chance, mutate, number, repeat, seeds, varint};

/// Bytes of memory for each byte of a record, at most: a queue of a few bytes becomes some hundred.
const WORTH: usize = 512;

/// One of the forms on disk: how it is read and written again.
struct Form {
    container: &'static str,
    /// The message whose oneof has the kinds of record.
    kinds: &'static str,
    again: fn(&[u8]) -> Result<Vec<u8>, Error>,
}

const FORMS: [Form; 3] = [
    Form {
        container: "EventBatch",
        kinds: "Event",
        again: |bytes| Ok(encode_events(&decode_events(bytes)?)),
    },
    Form {
        container: "SnapshotChunk",
        kinds: "Object",
        again: |bytes| Ok(encode_objects(&decode_objects(bytes)?)),
    },
    Form { container: "ArchiveRow", kinds: "ArchiveRow", again: |bytes| Ok(encode_row(&decode_row(bytes)?)) },
];

/// Reads `bytes`, and checks what comes of it. Returns whether they were a record.
fn check(form: &Form, bytes: &[u8]) -> Result<bool, String> {
    let (used, outcome) = peak(|| (form.again)(bytes));
    if used > WORTH * bytes.len() + 4_096 {
        return Err(format!("{used} bytes of memory for {} bytes of {}", bytes.len(), form.container));
    }
    let Ok(written) = outcome else { return Ok(false) };
    match (form.again)(&written) {
        Ok(again) if again == written => Ok(true),
        other => Err(format!("{}: {bytes:?} became {written:?}, and that {other:?}", form.container)),
    }
}

fn one_seed(seed: u64, found: &mut BTreeSet<(&'static str, u32)>) {
    let mut rng = chance(seed);
    let wrong = |error: String| -> ! { panic!("{error}\n{}", repeat("records", seed, "fuzz")) };
    for form in &FORMS {
        for (kind, _) in kinds(form.kinds) {
            let bytes = record(&mut rng, form.container, kind);
            match check(form, &bytes) {
                Ok(true) => drop(found.insert((form.container, kind))),
                Ok(false) => {
                    wrong(format!("{}: {bytes:?} is refused: {:?}", form.container, (form.again)(&bytes)))
                }
                Err(error) => wrong(error),
            }
            for _ in 0..20 {
                let mutant = mutate(&mut rng, &bytes);
                // A panic names no seed: it is added here.
                let checked = std::panic::catch_unwind(|| check(form, &mutant));
                match checked.unwrap_or_else(|_| Err(format!("{}: {mutant:?} panics", form.container))) {
                    Ok(_) => {}
                    Err(error) => wrong(error),
                }
            }
        }
        let noise: Vec<u8> = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
        check(form, &[varint(number(&mut rng)), noise].concat()).unwrap_or_else(|error| wrong(error));
    }
}

#[test]
fn records_are_read_without_harm_and_stay_what_they_are() {
    let (mut found, mut tried) = (BTreeSet::new(), 0);
    for seed in seeds() {
        one_seed(seed, &mut found);
        tried += 1;
    }
    println!("{tried} seeds");
    for form in &FORMS {
        let missing: Vec<_> = kinds(form.kinds)
            .into_iter()
            .filter(|(kind, _)| !found.contains(&(form.container, *kind)))
            .collect();
        assert!(missing.is_empty(), "no record of {missing:?} was read");
    }
}

#[test]
fn false_lengths_take_no_memory() {
    for form in &FORMS {
        for (kind, _) in kinds(form.kinds) {
            let bytes = record(&mut chance(1), form.container, kind);
            for length in [1 << 20, 1 << 32, 1 << 60, u64::MAX] {
                // The length stands in each place where there might be one.
                for at in 0..bytes.len().min(200) {
                    let bytes = [&bytes[..at], &varint(length), &bytes[at + 1..]].concat();
                    check(form, &bytes).unwrap_or_else(|error| panic!("kind {kind}: {error}"));
                }
            }
        }
    }
}
