//! Random records, generated from the compiled definitions: every field of every message occurs.

use std::sync::LazyLock;

use prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::seeds::varint;

const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/journal_descriptor.bin"));
const PACKAGE: &str = "weir.journal.v1";

/// The compiled definitions.
pub fn schema() -> &'static DescriptorPool {
    static READ: LazyLock<DescriptorPool> = LazyLock::new(|| DescriptorPool::decode(DESCRIPTOR).unwrap());
    &READ
}

/// A message of the records by its short name.
fn message_type(name: &str) -> MessageDescriptor {
    schema().get_message_by_name(&format!("{PACKAGE}.{name}")).unwrap()
}

/// The numbers of a message's fields that belong to its oneofs, by oneof.
fn oneofs(message: &MessageDescriptor) -> Vec<Vec<u32>> {
    let oneofs = message.oneofs().filter(|oneof| !oneof.is_synthetic());
    oneofs.map(|oneof| oneof.fields().map(|field| field.number()).collect()).collect()
}

/// The kinds of record that a message with one oneof holds: `body` field number and name.
pub fn kinds(message: &str) -> Vec<(u32, String)> {
    let message = message_type(message);
    let body = oneofs(&message).concat();
    let fields = message.fields().filter(|field| body.contains(&field.number()));
    fields.map(|field| (field.number(), field.name().to_owned())).collect()
}

/// The largest value of an enum.
fn largest(of: &EnumDescriptor) -> u64 {
    of.values().map(|value| u64::from(value.number().unsigned_abs())).max().unwrap()
}

/// A field's tag and content.
fn tagged(field: &FieldDescriptor, wire: u64, content: &[u8]) -> Vec<u8> {
    [&varint(u64::from(field.number()) << 3 | wire)[..], content].concat()
}

fn with_length(field: &FieldDescriptor, content: &[u8]) -> Vec<u8> {
    tagged(field, 2, &[&varint(content.len() as u64)[..], content].concat())
}

/// A text that the field's meaning allows.
fn text(rng: &mut StdRng, field: &FieldDescriptor) -> String {
    match field.name() {
        "code" | "region" | "from_region" | "to_region" | "regions_allowed" | "regions_denied" => {
            ["CN-CQ", "CN-XJ", "CN-GZ", "CN-SC"][rng.random_range(0..4)].to_owned()
        }
        name => format!("{name}-{}", rng.random_range(0..100)),
    }
}

/// One value of a field.
fn value(rng: &mut StdRng, field: &FieldDescriptor) -> Vec<u8> {
    match field.kind() {
        Kind::Message(inner) => {
            let content = message(rng, &inner, None);
            with_length(field, &content)
        }
        Kind::String => {
            let content = text(rng, field);
            with_length(field, content.as_bytes())
        }
        Kind::Bytes => with_length(field, &rng.random::<[u8; 16]>()),
        Kind::Bool => tagged(field, 0, &[1]),
        Kind::Enum(of) => tagged(field, 0, &varint(rng.random_range(1..=largest(&of)))),
        Kind::Sint32 => tagged(field, 0, &varint(rng.random_range(1..500))),
        Kind::Fixed64 => tagged(field, 1, &rng.random_range(1..=u64::MAX).to_le_bytes()),
        _ => tagged(field, 0, &varint(number(rng, field))),
    }
}

/// A number above 0 that the field's type and meaning allow.
fn number(rng: &mut StdRng, field: &FieldDescriptor) -> u64 {
    match field.name() {
        "exit_code" => rng.random_range(1..256),
        // Numbers of 16 bits.
        "group" | "topology_group" | "from_minute" | "to_minute" | "pending_dependencies" => {
            rng.random_range(1..1 << 16)
        }
        // Bits of a journal's identity.
        "journal" => rng.random_range(1..1 << 50),
        _ => {
            let bits = rng.random_range(1..if field.kind() == Kind::Uint32 { 32 } else { 62 });
            rng.random_range(1..1 << bits)
        }
    }
}

/// A list of numbers, packed. Lists of one message have the same length: some are pairs.
fn packed(rng: &mut StdRng, field: &FieldDescriptor, len: usize) -> Vec<u8> {
    let numbers = (0..len).map(|_| match (field.name(), field.kind()) {
        ("device_indices" | "models", _) => rng.random_range(0..100),
        (_, Kind::Enum(of)) => rng.random_range(1..=largest(&of)),
        _ => rng.random_range(0..1_001),
    });
    let content: Vec<u8> = numbers.flat_map(varint).collect();
    with_length(field, &content)
}

/// A message of this type in the form in which Weir writes it: fields by number, no zeros. `body` says which
/// field of its oneof it has.
pub fn message(rng: &mut StdRng, of: &MessageDescriptor, body: Option<u32>) -> Vec<u8> {
    let chosen: Vec<u32> = oneofs(of)
        .iter()
        .map(|group| {
            body.filter(|body| group.contains(body)).unwrap_or(group[rng.random_range(0..group.len())])
        })
        .collect();
    let in_oneof = oneofs(of).concat();
    let lists = rng.random_range(1..4usize);
    let mut bytes = Vec::new();
    // By number.
    for field in of.fields() {
        if in_oneof.contains(&field.number()) && !chosen.contains(&field.number()) {
            continue;
        }
        // Any model, and a list of models, exclude each other.
        if field.name() == "any_model" {
            continue;
        }
        bytes.extend(match (field.cardinality() == Cardinality::Repeated, field.kind()) {
            (true, _) if field.is_map() => value(rng, &field),
            (true, Kind::Message(_) | Kind::String | Kind::Bytes) => {
                (0..lists).flat_map(|_| value(rng, &field)).collect()
            }
            (true, _) if field.name() == "starts_and_lengths" => intervals(rng, &field, lists),
            (true, _) => packed(rng, &field, lists),
            (false, _) => value(rng, &field),
        });
    }
    bytes
}

/// Starts and lengths of intervals with gaps between them.
fn intervals(rng: &mut StdRng, field: &FieldDescriptor, count: usize) -> Vec<u8> {
    let mut start = 0;
    let pairs = (0..count).flat_map(|_| {
        let len = rng.random_range(1..50);
        start += rng.random_range(1..9);
        let pair = [varint(start), varint(len)].concat();
        start += len;
        pair
    });
    let content: Vec<u8> = pairs.collect();
    with_length(field, &content)
}

/// One record of this kind as the bytes of its container: `EventBatch`, `SnapshotChunk`, or `ArchiveRow`.
pub fn record(rng: &mut StdRng, container: &str, body: u32) -> Vec<u8> {
    match container {
        "EventBatch" => {
            let event = message(rng, &message_type("Event"), Some(body));
            let first = [varint(1 << 3), varint(rng.random_range(1..1_000_000))].concat();
            let count = [varint(3 << 3), varint(1)].concat();
            [count, first, varint(2 << 3 | 2), varint(event.len() as u64), event].concat()
        }
        "SnapshotChunk" => {
            let object = message(rng, &message_type("Object"), Some(body));
            let count = [varint(2 << 3), varint(1)].concat();
            [count, varint(1 << 3 | 2), varint(object.len() as u64), object].concat()
        }
        "ArchiveRow" => message(rng, &message_type("ArchiveRow"), Some(body)),
        other => panic!("no record is a {other}"),
    }
}
