//! The codec of all methods: counts the messages and list entries of a request before it decodes them.
//!
//! Two bytes on the wire can become hundreds in memory: a list of empty messages. They must therefore be counted before
//! the decoder allocates them.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::LazyLock;

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{Message, Name};
use prost_reflect::Kind;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

use super::body_limit::CHARGE;
use super::descriptor::methods;
use super::error;
use crate::model::limit::REQUEST_ENTRIES_MAX;

/// Encodes `T` and decodes `U`: of its two types the request is counted, the response is not.
#[derive(Debug)]
pub struct CountingCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for CountingCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Name + Send + 'static> Codec
    for CountingCodec<T, U>
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = CountingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::new().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        CountingDecoder(PhantomData)
    }
}

/// Decodes messages of one type.
#[derive(Debug)]
pub struct CountingDecoder<U>(PhantomData<U>);

impl<U: Message + Default + Name> Decoder for CountingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if let Some(kind) = schema().requests.get(U::NAME) {
            // The transport hands over a message in one piece.
            let entries = entries(*kind, bytes.chunk());
            if entries > REQUEST_ENTRIES_MAX {
                let message =
                    format!("the request has more than {REQUEST_ENTRIES_MAX} messages and list entries");
                return Err(error::unreadable(&message));
            }
            // Messages of a session, which are handled one at a time, are not charged.
            CHARGE.try_with(|charge| charge.add_entries(entries)).unwrap_or(Ok(()))?;
        }
        U::decode(bytes).map(Some).map_err(|error| error::unreadable(&error.to_string()))
    }
}

/// A field that counts.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// A message, with the index of its type.
    Message(usize),
    /// An entry of a list of strings or bytes.
    Entry,
}

/// The fields that count.
#[derive(Debug, Default)]
struct Schema {
    /// By message type and number.
    types: Vec<HashMap<u32, Field>>,
    /// The types of requests by name.
    requests: HashMap<String, usize>,
}

fn schema() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
        let mut schema = Schema::default();
        let mut indices = HashMap::new();
        for method in methods().values() {
            // Types that are still to be read, with their indices.
            let mut open = Vec::new();
            let mut index_of = |message: prost_reflect::MessageDescriptor, open: &mut Vec<_>| {
                let next = indices.len();
                *indices.entry(message.full_name().to_owned()).or_insert_with(|| {
                    open.push((next, message));
                    next
                })
            };
            let request = index_of(method.input(), &mut open);
            schema.requests.insert(method.input().name().to_owned(), request);
            while let Some((index, message)) = open.pop() {
                let counted = message.fields().filter_map(|field| {
                    let counted = match field.kind() {
                        Kind::Message(inner) => Field::Message(index_of(inner, &mut open)),
                        Kind::String | Kind::Bytes if field.is_list() => Field::Entry,
                        _ => return None,
                    };
                    Some((field.number(), counted))
                });
                let counted = counted.collect();
                schema.types.resize_with(schema.types.len().max(index + 1), HashMap::new);
                schema.types[index] = counted;
            }
        }
        schema
    });
    &SCHEMA
}

/// How many nested messages and list entries an encoded message of this type has, up to a few more than are allowed.
/// Bytes after a malformed part are not counted: the decoder refuses them.
///
/// Wire format: <https://protobuf.dev/programming-guides/encoding/>.
fn entries(kind: usize, bytes: &[u8]) -> usize {
    let mut entries = 0;
    let mut open = vec![(kind, bytes)];
    while let Some((kind, mut rest)) = open.pop() {
        while let Ok((number, wire)) = decode_key(&mut rest) {
            let field = schema().types.get(kind).and_then(|fields| fields.get(&number));
            let Some(field) = field.filter(|_| wire == WireType::LengthDelimited) else {
                if skip_field(wire, number, &mut rest, DecodeContext::default()).is_err() {
                    break;
                }
                continue;
            };
            entries += 1;
            let length = decode_varint(&mut rest).ok().and_then(|length| usize::try_from(length).ok());
            let Some((content, behind)) = length.and_then(|length| rest.split_at_checked(length)) else {
                break;
            };
            rest = behind;
            match field {
                Field::Message(kind) if !content.is_empty() => open.push((*kind, content)),
                Field::Message(_) | Field::Entry => {}
            }
        }
        if entries > REQUEST_ENTRIES_MAX {
            break;
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::api::proto::v1;

    fn entries_of(request: &str, bytes: &[u8]) -> usize {
        entries(schema().requests[request], bytes)
    }

    #[test]
    fn messages_and_entries_are_counted() {
        let program = v1::Program { command: vec!["a".to_owned(), String::new()], ..Default::default() };
        let run = Some(v1::task_group::Run::Process(program));
        let group = v1::TaskGroup { run, count: Some(7), ..Default::default() };
        let labels = [("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())].into();
        let spec =
            v1::JobSpec { groups: vec![group.clone(), group], labels, priority: -1, ..Default::default() };
        let job = v1::Submission { name: "n".repeat(300), spec: Some(spec), ..Default::default() };
        let request = v1::SubmitRequest { token: "t".to_owned(), jobs: vec![job], allow_pending: true };
        // A job, its spec, two labels, and twice a group, its program and two words.
        let counted = 1 + 1 + 2 + 2 * (1 + 1 + 2);
        assert_eq!(entries_of("SubmitRequest", &request.encode_to_vec()), counted);
        assert_eq!(entries_of("SubmitRequest", &[]), 0);
        assert!(!schema().requests.contains_key("SubmitResponse"));
    }

    #[test]
    fn counting_ends_soon_after_the_limit() {
        // Empty jobs: two bytes each.
        let bytes = [0x12, 0].repeat(2 * REQUEST_ENTRIES_MAX);
        let one = [&[0x12][..], &varint_of(bytes.len()), &bytes].concat();
        assert!(entries_of("SubmitRequest", &one) <= 2 * REQUEST_ENTRIES_MAX + 1);
        assert!(entries_of("SubmitRequest", &bytes) > REQUEST_ENTRIES_MAX);
    }

    fn varint_of(value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        prost::encoding::encode_varint(value as u64, &mut bytes);
        bytes
    }

    #[test]
    fn malformed_bytes_are_counted_without_a_panic() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..2_000 {
            let bytes: Vec<u8> = (0..rng.random_range(0..200))
                .map(|_| if rng.random_ratio(1, 2) { rng.random_range(0..20) } else { rng.random() })
                .collect();
            assert!(entries_of("SyncRequest", &bytes) <= 100);
        }
    }
}
