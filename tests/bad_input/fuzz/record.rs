//! The journal's records: invalid ones are refused, valid ones round-trip, and no length in them makes the
//! decoder allocate more memory than the input justifies.

use rand::RngExt;
use rand::rngs::StdRng;
use weir::state::record::{
    Corrupt, decode_events, decode_objects, decode_row, encode_events, encode_objects, encode_row,
};

use super::memory::peak;
use super::{mutate, number, repeat, rng_of, seeds, varint};

/// Bytes of memory per byte of a record, at most: a queue of five bytes becomes some hundred.
const EXPANSION_MAX: usize = 512;

/// One of the formats on disk: a decode and encode round trip, and the first bytes of its records.
struct Form {
    name: &'static str,
    round_trip: fn(&[u8]) -> Result<Vec<u8>, Corrupt>,
    /// Format, count, and the fields before the tag.
    begins: &'static [u8],
    tags: u8,
}

const FORMS: [Form; 3] = [
    // Revision, time and principal precede an event.
    Form {
        name: "events",
        round_trip: |bytes| Ok(encode_events(&decode_events(bytes)?)),
        begins: &[1, 1, 1, 1, 1],
        tags: 35,
    },
    Form {
        name: "objects",
        round_trip: |bytes| Ok(encode_objects(&decode_objects(bytes)?)),
        begins: &[1, 1],
        tags: 14,
    },
    Form { name: "row", round_trip: |bytes| Ok(encode_row(&decode_row(bytes)?)), begins: &[1, 1], tags: 2 },
];

/// A valid record with this tag: random bytes, corrected where the decoder fails until it accepts them.
/// `None` if that takes too many corrections.
fn grow(rng: &mut StdRng, form: &Form, tag: u8) -> Option<Vec<u8>> {
    let mut bytes = [form.begins, &[tag]].concat();
    let fixed = bytes.len();
    bytes.extend(
        (0..400).map(|_| if rng.random_ratio(1, 8) { rng.random() } else { rng.random_range(0..4u8) }),
    );
    for _ in 0..600 {
        let Err(corrupt) = (form.round_trip)(&bytes) else { return Some(bytes) };
        if corrupt.what == "rest" {
            bytes.truncate(corrupt.at);
            continue;
        }
        // The decoder reads a text by its length before it validates it: make it empty.
        let back = if matches!(corrupt.what, "region" | "text") {
            bytes[fixed..corrupt.at].iter_mut().for_each(|byte| *byte &= 0x3f);
            corrupt.found as usize + 1
        } else {
            1
        };
        let at = corrupt.at.saturating_sub(back);
        if at < fixed || at >= bytes.len() {
            return None;
        }
        bytes[at] = if corrupt.what == "region" { 0 } else { rng.random_range(0..6) };
    }
    None
}

/// Decodes `bytes` and checks memory and round trip. True if they are a record.
fn check(form: &Form, bytes: &[u8]) -> Result<bool, String> {
    let (allocated, outcome) = peak(|| (form.round_trip)(bytes));
    if allocated > EXPANSION_MAX * bytes.len() + 4_096 {
        return Err(format!("{allocated} bytes of memory for {} bytes of {}", bytes.len(), form.name));
    }
    let Ok(written) = outcome else { return Ok(false) };
    match (form.round_trip)(&written) {
        Ok(again) if again == written => Ok(true),
        other => Err(format!("{}: {bytes:?} became {written:?}, and that {other:?}", form.name)),
    }
}

fn one_seed(seed: u64, found: &mut std::collections::BTreeSet<(&'static str, u8)>) {
    let mut rng = rng_of(seed);
    for form in &FORMS {
        for tag in 1..=form.tags {
            let fail = |error: String| -> ! {
                panic!("{error}\n{}", repeat(seed, "fuzz::record"));
            };
            let Some(bytes) = grow(&mut rng, form, tag) else { continue };
            match check(form, &bytes) {
                Ok(true) => drop(found.insert((form.name, tag))),
                Ok(false) => fail(format!("{}: {bytes:?} is a record at first, then not", form.name)),
                Err(error) => fail(error),
            }
            for _ in 0..20 {
                let mutant = mutate(&mut rng, &bytes);
                // A panic's message lacks the seed: report it with the seed.
                let checked = std::panic::catch_unwind(|| check(form, &mutant));
                match checked.unwrap_or_else(|_| Err(format!("{}: {mutant:?} panics", form.name))) {
                    Ok(_) => {}
                    Err(error) => fail(error),
                }
            }
        }
        let noise: Vec<u8> = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
        check(form, &[&[1][..], &varint(number(&mut rng)), &noise].concat())
            .unwrap_or_else(|error| panic!("{error}\n{}", repeat(seed, "fuzz::record")));
    }
}

#[test]
fn records_round_trip_and_invalid_ones_are_refused_without_a_panic() {
    let mut found = std::collections::BTreeSet::new();
    let mut count = 0;
    for seed in seeds() {
        one_seed(seed, &mut found);
        count += 1;
    }
    println!("{count} seeds");
    let all: Vec<_> = FORMS.iter().flat_map(|form| (1..=form.tags).map(|tag| (form.name, tag))).collect();
    if count > 5 {
        let missing: Vec<_> = all.iter().filter(|at| !found.contains(at)).collect();
        assert!(missing.is_empty(), "no record of {missing:?} was made");
    }
}

#[test]
fn wrong_lengths_allocate_no_memory() {
    for form in &FORMS {
        for tag in 1..=form.tags {
            for length in [1 << 20, 1 << 32, 1 << 60, u64::MAX] {
                // The length at each offset where one could be.
                for before in 0..12 {
                    let bytes = [form.begins, &[tag], &vec![1; before], &varint(length), &[0; 64]].concat();
                    check(form, &bytes).unwrap_or_else(|error| panic!("tag {tag}: {error}"));
                }
            }
        }
        for length in [1 << 20, 1 << 60, u64::MAX] {
            let bytes = [&[1][..], &varint(length), &[0; 64]].concat();
            assert_eq!(check(form, &bytes), Ok(false));
        }
    }
}
