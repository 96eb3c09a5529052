//! Random input, from seeds: requests of every method, and records of the journal.
//!
//! `WEIR_FUZZ=600` lets each of them go on for so many seconds; `WEIR_FUZZ_SEED=7` begins with that
//! seed and tries no other.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Seeds for as long as is asked; without being asked, for a moment, and the same ones each time.
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

/// The source of chance that a seed stands for.
pub fn chance(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Numbers at which something changes.
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

/// A number as both codecs write it.
pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Bytes that are almost these: bits that flip, pieces that go, come twice or change places, lengths
/// that lie.
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
