//! The disk's form of events, snapshot objects and archive rows; the only translator between.
//!
//! A batch starts with its format. A layout, once written, never changes: an altered one gets a
//! new tag, and the old one stays readable. Integers are LEB128, signed ones zigzag first.

mod codec;
mod layout;

pub use codec::Corrupt;
use codec::{Input, Record};

use super::apply::ArchiveRow;
use super::event::EventRecord;
use super::snapshot::Object;
use crate::model::mutant::Mutant;
use crate::model::shape::Shape;
use crate::model::spec::JobSpec;

/// First byte of everything that is written.
const FORMAT: u8 = 1;

fn encode<T: Record>(items: &[T]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 * items.len() + 8);
    out.push(FORMAT);
    (items.len() as u64).put(&mut out);
    for item in items {
        item.put(&mut out);
    }
    out
}

fn decode<T: Record>(bytes: &[u8]) -> Result<Vec<T>, Corrupt> {
    let mut input = Input::new(bytes);
    let format = u8::get(&mut input)?;
    if format != FORMAT {
        return Err(Corrupt { what: "format", at: 0, found: u64::from(format) });
    }
    let items = Vec::get(&mut input)?;
    if !Mutant::SwallowTornBatch.is_on() {
        input.finish()?;
    }
    Ok(items)
}

/// Writes a group of events.
pub fn encode_events(events: &[EventRecord]) -> Vec<u8> {
    encode(events)
}

/// Reads a group of events.
///
/// # Errors
/// [`Corrupt`] if the bytes are not what [`encode_events`] writes.
pub fn decode_events(bytes: &[u8]) -> Result<Vec<EventRecord>, Corrupt> {
    decode(bytes)
}

/// Writes a chunk of a snapshot.
pub fn encode_objects(objects: &[Object]) -> Vec<u8> {
    encode(objects)
}

/// Reads a chunk of a snapshot.
///
/// # Errors
/// [`Corrupt`] if the bytes are not what [`encode_objects`] writes.
pub fn decode_objects(bytes: &[u8]) -> Result<Vec<Object>, Corrupt> {
    decode(bytes)
}

/// Writes one archive row.
pub fn encode_row(row: &ArchiveRow) -> Vec<u8> {
    encode(std::slice::from_ref(row))
}

/// Reads one archive row.
///
/// # Errors
/// [`Corrupt`] if the bytes are not what [`encode_row`] writes.
pub fn decode_row(bytes: &[u8]) -> Result<ArchiveRow, Corrupt> {
    decode(bytes)?.pop().ok_or(Corrupt { what: "row", at: 0, found: 0 })
}

/// The bytes that a spec's identity is the digest of.
pub fn encode_spec(spec: &JobSpec) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    spec.put(&mut out);
    out
}

/// The bytes that a shape's digest is taken of.
pub fn encode_shape(shape: &Shape) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    shape.put(&mut out);
    out
}
