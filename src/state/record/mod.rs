//! The stored form of events, snapshot objects and archive rows; the only translator between.
//!
//! The forms are the messages of `proto/weir/journal/v1`. A reader accepts exactly what this version
//! writes: whatever it does not know was written by a newer Weir, and is refused instead of skipped.

mod event;
mod object;
mod translate;
mod types;

use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encoded_len_varint, message as message_field,
    skip_field,
};
use sha2::{Digest, Sha256};

use super::apply::ArchiveRow;
use super::event::EventRecord;
use super::snapshot::Object;
use super::token::first_bytes;
use crate::model::mutant::Mutant;
use crate::model::shape::{Shape, ShapeDigest};
use crate::model::spec::JobSpec;
use translate::Translate;

/// The generated messages. The containers are read and written record by record.
#[allow(dead_code, clippy::all, clippy::pedantic, unreachable_pub, missing_docs)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/weir.journal.v1.rs"));
}

/// Why bytes can't be read as a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes have no message's form.
    #[error("damaged record: {0}")]
    Malformed(prost::DecodeError),
    /// A value that no Weir writes.
    #[error("damaged record: {what} is {found}")]
    Damaged { what: &'static str, found: String },
    /// A field that every Weir writes.
    #[error("damaged record: {field} is missing")]
    Missing { field: &'static str },
    /// An enum's value or a kind of record that this version has no meaning for.
    #[error("the record was written by a newer weir: {what} has the unknown value {found}")]
    Unknown { what: &'static str, found: String },
    /// Fields that this version has no meaning for.
    #[error("the record was written by a newer weir: {bytes} bytes are in unknown fields")]
    UnknownFields { bytes: usize },
}

impl Error {
    fn damaged(what: &'static str, found: impl ToString) -> Self {
        Self::Damaged { what, found: found.to_string() }
    }

    fn unknown(what: &'static str, found: impl ToString) -> Self {
        Self::Unknown { what, found: found.to_string() }
    }
}

/// Reads a message that has no field beyond those of `M`.
fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Error> {
    let message = M::decode(bytes).map_err(Error::Malformed)?;
    // Unknown fields are skipped by the decoder, so they show as bytes that would not be written again.
    let known = message.encoded_len();
    if known == bytes.len() {
        Ok(message)
    } else {
        Err(Error::UnknownFields { bytes: bytes.len().abs_diff(known) })
    }
}

/// A container that was cut off between two records has fewer than its count.
fn check_count(count: u64, found: usize) -> Result<(), Error> {
    if count == found as u64 { Ok(()) } else { Err(Error::damaged("number of records", found)) }
}

/// Writes events of consecutive revisions.
pub fn encode_events(events: &[EventRecord]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 * events.len() + 16);
    let Some(first) = events.first() else { return out };
    prost::encoding::uint32::encode(3, &(events.len() as u32), &mut out);
    prost::encoding::uint64::encode(1, &first.revision.0, &mut out);
    let mut before = None;
    for (place, record) in (0u64..).zip(events) {
        assert!(
            record.revision.0 == first.revision.0 + place,
            "a batch has a gap before {}",
            record.revision
        );
        let mut message = record.to_message();
        if before == Some(record.at) {
            message.at_unix_ms = 0;
        }
        before = Some(record.at);
        message_field::encode(2, &message, &mut out);
    }
    out
}

/// Reads what [`encode_events`] wrote.
///
/// # Errors
/// [`Error`] if it wrote no such bytes.
pub fn decode_events(bytes: &[u8]) -> Result<Vec<EventRecord>, Error> {
    let bytes = if Mutant::SwallowTornBatch.is_on() { whole_fields(bytes) } else { bytes };
    let (mut first, mut count, mut at) = (0, 0, 0);
    let mut events = Vec::new();
    for field in Fields(bytes) {
        match field? {
            (1, Field::Number(number)) => first = number,
            (3, Field::Number(number)) => count = number,
            (2, Field::Bytes(bytes)) => {
                if first == 0 {
                    return Err(Error::Missing { field: "first_revision" });
                }
                let revision = first.checked_add(events.len() as u64).filter(|last| *last < u64::MAX);
                let revision = revision.ok_or_else(|| Error::damaged("first_revision", first))?;
                let mut event: proto::Event = decode(bytes)?;
                if event.at_unix_ms == 0 {
                    event.at_unix_ms = at;
                }
                at = event.at_unix_ms;
                events.push(event::from_message(revision, event)?);
            }
            (_, field) => return Err(Error::UnknownFields { bytes: field.size() }),
        }
    }
    if !Mutant::SwallowTornBatch.is_on() {
        check_count(count, events.len())?;
    }
    Ok(events)
}

/// A field of a container.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other(usize),
}

impl Field<'_> {
    /// Bytes of its value.
    fn size(&self) -> usize {
        match self {
            Self::Number(number) => encoded_len_varint(*number),
            Self::Bytes(bytes) => bytes.len(),
            Self::Other(size) => *size,
        }
    }
}

/// The fields of a container with their tags. Records are decoded one by one: a container decoded as one message of all
/// records' messages made the recovery of 0.9 million jobs take 15 % more CPU.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Field<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.read())
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<(u32, Field<'a>), Error> {
        let (tag, wire) = decode_key(&mut self.0).map_err(Error::Malformed)?;
        let field = match wire {
            WireType::Varint => Field::Number(decode_varint(&mut self.0).map_err(Error::Malformed)?),
            WireType::LengthDelimited => {
                let len = decode_varint(&mut self.0).map_err(Error::Malformed)?;
                let split = usize::try_from(len).ok().and_then(|len| self.0.split_at_checked(len));
                let (bytes, rest) = split.ok_or_else(|| Error::damaged("length of a record", len))?;
                self.0 = rest;
                Field::Bytes(bytes)
            }
            wire => {
                let before = self.0.len();
                skip_field(wire, tag, &mut self.0, DecodeContext::default()).map_err(Error::Malformed)?;
                Field::Other(before - self.0.len())
            }
        };
        Ok((tag, field))
    }
}

/// The beginning of `bytes` that consists of whole fields.
fn whole_fields(bytes: &[u8]) -> &[u8] {
    let (mut rest, mut whole) = (bytes, 0);
    while let Ok((tag, wire)) = decode_key(&mut rest)
        && skip_field(wire, tag, &mut rest, DecodeContext::default()).is_ok()
    {
        whole = bytes.len() - rest.len();
    }
    &bytes[..whole]
}

/// Writes a chunk of a snapshot.
pub fn encode_objects(objects: &[Object]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 * objects.len() + 16);
    if !objects.is_empty() {
        prost::encoding::uint32::encode(2, &(objects.len() as u32), &mut out);
    }
    for object in objects {
        message_field::encode(1, &object.to_message(), &mut out);
    }
    out
}

/// Reads what [`encode_objects`] wrote.
///
/// # Errors
/// [`Error`] if it wrote no such bytes.
pub fn decode_objects(bytes: &[u8]) -> Result<Vec<Object>, Error> {
    let (mut count, mut objects) = (0, Vec::new());
    for field in Fields(bytes) {
        match field? {
            (2, Field::Number(number)) => count = number,
            (1, Field::Bytes(bytes)) => objects.push(Object::from_message(decode::<proto::Object>(bytes)?)?),
            (_, field) => return Err(Error::UnknownFields { bytes: field.size() }),
        }
    }
    check_count(count, objects.len())?;
    Ok(objects)
}

/// Writes one archive row.
pub fn encode_row(row: &ArchiveRow) -> Vec<u8> {
    row.to_message().encode_to_vec()
}

/// Reads what [`encode_row`] wrote.
///
/// # Errors
/// [`Error`] if it wrote no such bytes.
pub fn decode_row(bytes: &[u8]) -> Result<ArchiveRow, Error> {
    ArchiveRow::from_message(decode(bytes)?)
}

/// The bytes that a spec's identity is the digest of.
pub fn encode_spec(spec: &JobSpec) -> Vec<u8> {
    spec.to_message().encode_to_vec()
}

/// The digest of a shape's record.
pub fn shape_digest(shape: &Shape) -> ShapeDigest {
    ShapeDigest(first_bytes(&Sha256::digest(shape.to_message().encode_to_vec())))
}
