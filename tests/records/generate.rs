//! Random records, generated from the compiled definitions: every field of every message occurs.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;
use rand::RngExt;
use rand::rngs::StdRng;
use weir::api::descriptor::{BOOL, BYTES, Field, FileSet, MESSAGE, REPEATED, STRING, Type};

use crate::seeds::varint;

const ENUM: i32 = 14;
const SINT32: i32 = 17;
const FIXED64: i32 = 6;
const UINT32: i32 = 13;

/// The messages by full name, such as `.weir.journal.v1.Event`, and the largest value of each enum.
pub struct Schema {
    pub messages: HashMap<String, Type>,
    enums: HashMap<String, u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Enums {
    #[prost(message, repeated, tag = "1")]
    file: Vec<EnumFile>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EnumFile {
    #[prost(message, repeated, tag = "5")]
    enums: Vec<Enum>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Enum {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    values: Vec<EnumValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EnumValue {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "2")]
    number: i32,
}

/// A oneof's fields have its number here; the others have none.
#[derive(Clone, PartialEq, prost::Message)]
struct Oneofs {
    #[prost(message, repeated, tag = "1")]
    file: Vec<OneofFile>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OneofFile {
    #[prost(message, repeated, tag = "4")]
    messages: Vec<OneofMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OneofMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    fields: Vec<OneofField>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OneofField {
    #[prost(int32, tag = "3")]
    number: i32,
    #[prost(int32, optional, tag = "9")]
    oneof: Option<i32>,
    #[prost(bool, tag = "17")]
    proto3_optional: bool,
}

const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/journal_descriptor.bin"));
const PACKAGE: &str = ".weir.journal.v1";

/// The compiled definitions.
pub fn schema() -> &'static Schema {
    static READ: LazyLock<Schema> = LazyLock::new(|| {
        let mut schema = Schema { messages: HashMap::new(), enums: HashMap::new() };
        for file in FileSet::decode(DESCRIPTOR).unwrap().file {
            for message in file.message_type {
                for nested in &message.nested_type {
                    schema
                        .messages
                        .insert(format!("{PACKAGE}.{}.{}", message.name, nested.name), nested.clone());
                }
                schema.messages.insert(format!("{PACKAGE}.{}", message.name), message);
            }
        }
        for item in Enums::decode(DESCRIPTOR).unwrap().file.into_iter().flat_map(|file| file.enums) {
            let largest = item.values.iter().map(|value| value.number.unsigned_abs()).max().unwrap();
            schema.enums.insert(format!("{PACKAGE}.{}", item.name), u64::from(largest));
        }
        schema
    });
    &READ
}

/// The numbers of a message's fields that belong to its oneofs, by oneof.
fn oneofs(message: &str) -> Vec<Vec<i32>> {
    static READ: LazyLock<HashMap<String, Vec<Vec<i32>>>> = LazyLock::new(|| {
        let messages = Oneofs::decode(DESCRIPTOR).unwrap().file.into_iter().flat_map(|file| file.messages);
        let groups = messages.map(|message| {
            let mut groups: HashMap<i32, Vec<i32>> = HashMap::new();
            for field in message.fields.iter().filter(|field| !field.proto3_optional) {
                if let Some(oneof) = field.oneof {
                    groups.entry(oneof).or_default().push(field.number);
                }
            }
            (format!("{PACKAGE}.{}", message.name), groups.into_values().collect())
        });
        groups.collect()
    });
    READ.get(message).cloned().unwrap_or_default()
}

/// The kinds of record that a message with one oneof holds: `body` field number and name.
pub fn kinds(message: &str) -> Vec<(i32, String)> {
    let name = format!("{PACKAGE}.{message}");
    let body: Vec<i32> = oneofs(&name).concat();
    let fields = schema().messages[&name].field.iter().filter(|field| body.contains(&field.number));
    fields.map(|field| (field.number, field.name.clone())).collect()
}

/// A field's tag and content.
fn tagged(field: &Field, wire: u64, content: &[u8]) -> Vec<u8> {
    [&varint(u64::from(field.number.unsigned_abs()) << 3 | wire)[..], content].concat()
}

fn with_length(field: &Field, content: &[u8]) -> Vec<u8> {
    tagged(field, 2, &[&varint(content.len() as u64)[..], content].concat())
}

/// A text that the field's meaning allows.
fn text(rng: &mut StdRng, field: &Field) -> String {
    match field.name.as_str() {
        "code" | "region" | "from_region" | "to_region" | "regions_allowed" | "regions_denied" => {
            ["CN-CQ", "CN-XJ", "CN-GZ", "CN-SC"][rng.random_range(0..4)].to_owned()
        }
        name => format!("{name}-{}", rng.random_range(0..100)),
    }
}

/// One value of a field.
fn value(rng: &mut StdRng, field: &Field) -> Vec<u8> {
    match field.kind {
        MESSAGE => {
            let content = message(rng, &field.type_name, None);
            with_length(field, &content)
        }
        STRING => {
            let content = text(rng, field);
            with_length(field, content.as_bytes())
        }
        BYTES => with_length(field, &rng.random::<[u8; 16]>()),
        BOOL => tagged(field, 0, &[1]),
        ENUM => {
            let largest = schema().enums[&field.type_name];
            tagged(field, 0, &varint(rng.random_range(1..=largest)))
        }
        SINT32 => tagged(field, 0, &varint(rng.random_range(1..500))),
        FIXED64 => tagged(field, 1, &rng.random_range(1..=u64::MAX).to_le_bytes()),
        _ => tagged(field, 0, &varint(number(rng, field))),
    }
}

/// A number above 0 that the field's type and meaning allow.
fn number(rng: &mut StdRng, field: &Field) -> u64 {
    match field.name.as_str() {
        "exit_code" => rng.random_range(1..256),
        // Numbers of 16 bits.
        "group" | "topology_group" | "from_minute" | "to_minute" | "pending_dependencies" => {
            rng.random_range(1..1 << 16)
        }
        // Bits of a journal's identity.
        "journal" => rng.random_range(1..1 << 50),
        _ => {
            let bits = rng.random_range(1..if field.kind == UINT32 { 32 } else { 62 });
            rng.random_range(1..1 << bits)
        }
    }
}

/// A list of numbers, packed. Lists of one message have the same length: some are pairs.
fn packed(rng: &mut StdRng, field: &Field, len: usize) -> Vec<u8> {
    let numbers = (0..len).map(|_| match (field.name.as_str(), field.kind) {
        ("device_indices" | "models", _) => rng.random_range(0..100),
        (_, ENUM) => rng.random_range(1..=schema().enums[&field.type_name]),
        _ => rng.random_range(0..1_001),
    });
    let content: Vec<u8> = numbers.flat_map(varint).collect();
    with_length(field, &content)
}

/// A message of this type in the form in which Weir writes it: fields by number, no zeros. `body` says which
/// field of its oneof it has.
pub fn message(rng: &mut StdRng, name: &str, body: Option<i32>) -> Vec<u8> {
    let type_of = &schema().messages[name];
    let chosen: Vec<i32> = oneofs(name)
        .iter()
        .map(|group| {
            body.filter(|body| group.contains(body)).unwrap_or(group[rng.random_range(0..group.len())])
        })
        .collect();
    let in_oneof = oneofs(name).concat();
    let lists = rng.random_range(1..4usize);
    let mut fields: Vec<&Field> = type_of.field.iter().collect();
    fields.sort_by_key(|field| field.number);
    let mut bytes = Vec::new();
    for field in fields {
        if in_oneof.contains(&field.number) && !chosen.contains(&field.number) {
            continue;
        }
        // Any model, and a list of models, exclude each other.
        if field.name == "any_model" {
            continue;
        }
        let is_map = field.kind == MESSAGE
            && schema().messages[&field.type_name].name.ends_with("Entry")
            && field.type_name.matches('.').count() > 4;
        bytes.extend(match (field.label == REPEATED, field.kind) {
            (true, MESSAGE | STRING | BYTES) if is_map => value(rng, field),
            (true, MESSAGE | STRING | BYTES) => (0..lists).flat_map(|_| value(rng, field)).collect(),
            (true, _) if field.name == "starts_and_lengths" => intervals(rng, field, lists),
            (true, _) => packed(rng, field, lists),
            (false, _) => value(rng, field),
        });
    }
    bytes
}

/// Starts and lengths of intervals with gaps between them.
fn intervals(rng: &mut StdRng, field: &Field, count: usize) -> Vec<u8> {
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
pub fn record(rng: &mut StdRng, container: &str, body: i32) -> Vec<u8> {
    match container {
        "EventBatch" => {
            let event = message(rng, ".weir.journal.v1.Event", Some(body));
            let first = [varint(1 << 3), varint(rng.random_range(1..1_000_000))].concat();
            let count = [varint(3 << 3), varint(1)].concat();
            [count, first, varint(2 << 3 | 2), varint(event.len() as u64), event].concat()
        }
        "SnapshotChunk" => {
            let object = message(rng, ".weir.journal.v1.Object", Some(body));
            let count = [varint(2 << 3), varint(1)].concat();
            [count, varint(1 << 3 | 2), varint(object.len() as u64), object].concat()
        }
        "ArchiveRow" => message(rng, ".weir.journal.v1.ArchiveRow", Some(body)),
        other => panic!("no record is a {other}"),
    }
}
