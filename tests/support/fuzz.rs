//! Random input from seeds: requests of every method, and records of the journal.
//!
//! `WEIR_FUZZ=600` runs each test for this many seconds, from a random seed on. `WEIR_FUZZ_SEED=7` runs that
//! seed only.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The seeds of one run: for the time of `WEIR_FUZZ`; by default for two seconds, from seed 0 on.
pub fn seeds() -> impl Iterator<Item = u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seconds, only) = (number("WEIR_FUZZ"), number("WEIR_FUZZ_SEED"));
    let first = only.unwrap_or_else(|| seconds.map_or(0, |_| rand::random_range(1..1 << 48)));
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    (first..).take_while(move |seed| if only.is_some() { *seed == first } else { Instant::now() < until })
}

/// What repeats a seed that failed.
pub fn repeat(binary: &str, seed: u64, test: &str) -> String {
    format!("repeat it with: WEIR_FUZZ_SEED={seed} cargo test --test {binary} {test}")
}

/// The random numbers of a seed.
pub fn chance(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// A random number, often near a limit of the model.
pub fn number(rng: &mut StdRng) -> u64 {
    const EDGES: [u64; 14] = [
        0,
        1,
        2,
        3,
        100,
        1_000,
        65_536,
        1 << 20,
        1 << 31,
        u32::MAX as u64,
        1 << 50,
        1 << 60,
        i64::MAX as u64,
        u64::MAX,
    ];
    match rng.random_range(0..3) {
        0 => rng.random_range(0..10),
        1 => EDGES[rng.random_range(0..EDGES.len())],
        _ => rng.random::<u64>() >> rng.random_range(0..64),
    }
}

/// A number as a varint, the encoding of protobuf and of the journal.
pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A mutation of `bytes`: flipped bits, removed, repeated or moved pieces, wrong lengths.
pub fn mutate(rng: &mut StdRng, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.random_range(1..4) {
        if bytes.is_empty() {
            return vec![rng.random()];
        }
        let at = rng.random_range(0..bytes.len());
        let to = rng.random_range(at..=bytes.len().min(at + 32));
        match rng.random_range(0..7) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..to)),
            4 => {
                let piece = bytes[at..to].to_vec();
                let into = rng.random_range(0..=bytes.len());
                bytes.splice(into..into, piece);
            }
            5 => drop(bytes.splice(at..=at, varint(number(rng)))),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
    bytes
}
