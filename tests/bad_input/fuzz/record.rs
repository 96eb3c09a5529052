//! The journal's records: what is no record is refused, what is one stays it, and no length makes the
//! decoder ask for more memory than the bytes are worth.

use rand::RngExt;
use rand::rngs::StdRng;
use weir::state::record::{
    Corrupt, decode_events, decode_objects, decode_row, encode_events, encode_objects, encode_row,
};

use super::memory::peak;
use super::{chance, mutate, number, repeat, seeds, varint};

/// Bytes of memory for each byte of a record, at the most: a queue of five bytes becomes some hundred.
const WORTH: usize = 512;

/// One of the forms on disk: how it is read and written again, and what its records begin with.
struct Form {
    name: &'static str,
    again: fn(&[u8]) -> Result<Vec<u8>, Corrupt>,
    /// Format and count, and what comes before the tag.
    begins: &'static [u8],
    tags: u8,
}

const FORMS: [Form; 3] = [
    // Revision, time and principal are before an event.
    Form {
        name: "events",
        again: |bytes| Ok(encode_events(&decode_events(bytes)?)),
        begins: &[1, 1, 1, 1, 1],
        tags: 35,
    },
    Form {
        name: "objects",
        again: |bytes| Ok(encode_objects(&decode_objects(bytes)?)),
        begins: &[1, 1],
        tags: 14,
    },
    Form { name: "row", again: |bytes| Ok(encode_row(&decode_row(bytes)?)), begins: &[1, 1], tags: 2 },
];

/// A record of this tag: bytes by chance, mended where the decoder stumbles until it takes them.
fn grow(rng: &mut StdRng, form: &Form, tag: u8) -> Option<Vec<u8>> {
    let mut bytes = [form.begins, &[tag]].concat();
    let fixed = bytes.len();
    bytes.extend(
        (0..400).map(|_| if rng.random_ratio(1, 8) { rng.random() } else { rng.random_range(0..4u8) }),
    );
    for _ in 0..600 {
        let Err(corrupt) = (form.again)(&bytes) else { return Some(bytes) };
        if corrupt.what == "rest" {
            bytes.truncate(corrupt.at);
            continue;
        }
        // A text is read by its length before it is looked at: it is made empty.
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

/// Reads `bytes`, and checks what comes of it. Tells whether they were a record.
fn check(form: &Form, bytes: &[u8]) -> Result<bool, String> {
    let (held, outcome) = peak(|| (form.again)(bytes));
    if held > WORTH * bytes.len() + 4_096 {
        return Err(format!("{held} bytes of memory for {} bytes of {}", bytes.len(), form.name));
    }
    let Ok(written) = outcome else { return Ok(false) };
    match (form.again)(&written) {
        Ok(again) if again == written => Ok(true),
        other => Err(format!("{}: {bytes:?} became {written:?}, and that {other:?}", form.name)),
    }
}

fn one_seed(seed: u64, seen: &mut std::collections::BTreeSet<(&'static str, u8)>) {
    let mut rng = chance(seed);
    for form in &FORMS {
        for tag in 1..=form.tags {
            let wrong = |error: String| -> ! {
                panic!("{error}\n{}", repeat(seed, "fuzz::record"));
            };
            let Some(bytes) = grow(&mut rng, form, tag) else { continue };
            match check(form, &bytes) {
                Ok(true) => drop(seen.insert((form.name, tag))),
                Ok(false) => wrong(format!("{}: {bytes:?} is a record, and then is none", form.name)),
                Err(error) => wrong(error),
            }
            for _ in 0..20 {
                let mutant = mutate(&mut rng, &bytes);
                // A panic names no seed: it is put where it is seen.
                let checked = std::panic::catch_unwind(|| check(form, &mutant));
                match checked.unwrap_or_else(|_| Err(format!("{}: {mutant:?} panics", form.name))) {
                    Ok(_) => {}
                    Err(error) => wrong(error),
                }
            }
        }
        let noise: Vec<u8> = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
        check(form, &[&[1][..], &varint(number(&mut rng)), &noise].concat())
            .unwrap_or_else(|error| panic!("{error}\n{}", repeat(seed, "fuzz::record")));
    }
}

#[test]
fn records_are_read_without_harm_and_stay_what_they_are() {
    let mut seen = std::collections::BTreeSet::new();
    let mut tried = 0;
    for seed in seeds() {
        one_seed(seed, &mut seen);
        tried += 1;
    }
    println!("{tried} seeds");
    let all: Vec<_> = FORMS.iter().flat_map(|form| (1..=form.tags).map(|tag| (form.name, tag))).collect();
    if tried > 5 {
        let missing: Vec<_> = all.iter().filter(|at| !seen.contains(at)).collect();
        assert!(missing.is_empty(), "no record of {missing:?} was made");
    }
}

#[test]
fn lengths_that_lie_take_no_memory() {
    for form in &FORMS {
        for tag in 1..=form.tags {
            for length in [1 << 20, 1 << 32, 1 << 60, u64::MAX] {
                // The length stands in each place where there might be one.
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
