//! Counts the messages and list entries in a request's bytes as they arrive, before they are decoded.
//!
//! Two bytes on the wire can become hundreds in memory: a list of empty messages. The messages must therefore
//! be counted before the decoder allocates them.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::descriptor::{BYTES, MESSAGE, REPEATED, STRING, definitions};

/// A field that counts.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// A message, with the index of its type.
    Message(usize),
    /// An entry of a list of strings or bytes.
    Entry,
}

/// The fields that count, for each message type and method.
#[derive(Debug, Default)]
struct Schema {
    types: Vec<HashMap<u64, Field>>,
    inputs: HashMap<&'static str, usize>,
}

fn schema() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
        let read = definitions();
        let indices: HashMap<&str, usize> =
            read.types.keys().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
        let fields = read.types.values().map(|message| {
            let counted = message.field.iter().filter_map(|field| {
                let kind = match field.kind {
                    MESSAGE => Field::Message(*indices.get(field.type_name.as_str())?),
                    STRING | BYTES if field.label == REPEATED => Field::Entry,
                    _ => return None,
                };
                Some((u64::from(field.number.unsigned_abs()), kind))
            });
            counted.collect()
        });
        let inputs = read
            .inputs
            .iter()
            .filter_map(|(path, input)| Some((path.as_str(), *indices.get(input.as_str())?)));
        Schema { types: fields.collect(), inputs: inputs.collect() }
    });
    &SCHEMA
}

/// Position in the wire format.
#[derive(Clone, Copy, Debug)]
enum State {
    /// In the five-byte prefix of a message: bytes read, and the length they give so far.
    Prefix { read: u32, length: u32 },
    /// In the tag of a field.
    Tag(Varint),
    /// In a varint field, which is skipped.
    Number(Varint),
    /// In the length of the field with this number.
    Length(u64, Varint),
    /// In skipped bytes, of which this many remain.
    Skip(u64),
    /// The bytes are malformed. Counting stops; the decoder reports the error.
    Malformed,
}

#[derive(Clone, Copy, Debug, Default)]
struct Varint {
    value: u64,
    shift: u32,
}

/// An incremental parser of length-prefixed gRPC messages that counts their parts.
///
/// Wire format: <https://protobuf.dev/programming-guides/encoding/>.
#[derive(Debug)]
pub(super) struct MessageCounter {
    input: usize,
    state: State,
    /// Bytes of the current message that have been parsed.
    position: u64,
    /// The messages that enclose the position: type, and offset of the end.
    open: Vec<(usize, u64)>,
    /// Nested messages and list entries of the current message.
    entries: usize,
}

impl MessageCounter {
    /// A counter for the input of the method with this path; `None` for methods outside `weir.v1`.
    pub(super) fn for_method(path: &str) -> Option<Self> {
        let input = *schema().inputs.get(path)?;
        let state = State::Prefix { read: 0, length: 0 };
        Some(Self { input, state, position: 0, open: Vec::new(), entries: 0 })
    }

    /// Nested messages and list entries of the current message so far.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// Parses the next bytes, in pieces of any size.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            match self.state {
                State::Malformed => return,
                State::Skip(left) => {
                    let here = left.min(bytes.len() as u64);
                    bytes = &bytes[here as usize..];
                    self.position += here;
                    self.state = State::Skip(left - here);
                    if left == here {
                        self.next_field();
                    }
                    continue;
                }
                State::Prefix { read, length } => {
                    // The first byte is the compression flag. Compressed messages are refused.
                    let length = if read == 0 { 0 } else { length << 8 | u32::from(*first) };
                    self.state = State::Prefix { read: read + 1, length };
                    if read == 4 {
                        (self.position, self.entries) = (0, 0);
                        self.open = vec![(self.input, u64::from(length))];
                        self.next_field();
                    }
                }
                State::Tag(varint) => self.step(*first, varint, State::Tag, Self::start_field),
                State::Number(varint) => {
                    self.step(*first, varint, State::Number, |counter, _| counter.next_field());
                }
                State::Length(field, varint) => {
                    self.step(
                        *first,
                        varint,
                        |more| State::Length(field, more),
                        |counter, len| counter.start_content(field, len),
                    );
                }
            }
            bytes = rest;
        }
    }

    /// Parses one byte of a varint: calls `done` with its value after the last one.
    fn step(
        &mut self,
        byte: u8,
        varint: Varint,
        more: impl Fn(Varint) -> State,
        done: impl Fn(&mut Self, u64),
    ) {
        self.position += 1;
        let value = varint.value | u64::from(byte & 0x7f).checked_shl(varint.shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            done(self, value);
        } else if varint.shift < 63 {
            self.state = more(Varint { value, shift: varint.shift + 7 });
        } else {
            self.state = State::Malformed;
        }
    }

    /// Closes the messages that end here, then expects a field or the next message.
    fn next_field(&mut self) {
        while self.open.last().is_some_and(|(_, end)| *end == self.position) {
            self.open.pop();
        }
        self.state = match self.open.last() {
            None => State::Prefix { read: 0, length: 0 },
            Some((_, end)) if *end < self.position => State::Malformed,
            Some(_) => State::Tag(Varint::default()),
        };
    }

    /// Follows a complete tag, which is field number and wire type.
    fn start_field(&mut self, tag: u64) {
        match tag & 7 {
            0 => self.state = State::Number(Varint::default()),
            1 => self.state = State::Skip(8),
            2 => self.state = State::Length(tag >> 3, Varint::default()),
            5 => self.state = State::Skip(4),
            // The start or end of a group.
            3 | 4 => self.next_field(),
            _ => self.state = State::Malformed,
        }
    }

    /// Enters the content of a length-delimited field if it is a message of `weir.v1`, else skips it.
    fn start_content(&mut self, field: u64, len: u64) {
        let Some((kind, end)) = self.open.last().copied() else { return self.state = State::Malformed };
        let Some(to) = self.position.checked_add(len).filter(|to| *to <= end) else {
            return self.state = State::Malformed;
        };
        let found = schema().types.get(kind).and_then(|fields| fields.get(&field)).copied();
        self.entries += usize::from(found.is_some());
        match found {
            Some(Field::Message(kind)) => {
                self.open.push((kind, to));
                self.next_field();
            }
            Some(Field::Entry) | None if len == 0 => self.next_field(),
            Some(Field::Entry) | None => self.state = State::Skip(len),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::api::proto::v1;

    fn framed(message: &impl Message) -> Vec<u8> {
        let bytes = message.encode_to_vec();
        [&[0][..], &(bytes.len() as u32).to_be_bytes(), &bytes].concat()
    }

    #[test]
    fn messages_and_entries_are_counted_in_pieces_of_any_size() {
        let program = v1::Program { command: vec!["a".to_owned(), String::new()], ..Default::default() };
        let run = Some(v1::task_group::Run::Process(program));
        let group = v1::TaskGroup { run, count: Some(7), ..Default::default() };
        let labels = [("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())].into();
        let spec =
            v1::JobSpec { groups: vec![group.clone(), group], labels, priority: -1, ..Default::default() };
        let job = v1::Submission { name: "n".repeat(300), spec: Some(spec), ..Default::default() };
        let bytes =
            framed(&v1::SubmitRequest { token: "t".to_owned(), jobs: vec![job], allow_pending: true });
        // A job, its spec, two labels, and twice a group, its program and two words.
        let entries = 1 + 1 + 2 + 2 * (1 + 1 + 2);
        for size in [1, 2, 7, bytes.len()] {
            let mut counter = MessageCounter::for_method("/weir.v1.JobService/Submit").expect("a method");
            bytes.chunks(size).for_each(|piece| counter.feed(piece));
            assert_eq!(counter.entries(), entries, "pieces of {size}");
            // The next message is counted from zero.
            framed(&v1::SubmitRequest::default()).chunks(size).for_each(|piece| counter.feed(piece));
            assert_eq!(counter.entries(), 0);
        }
        assert!(MessageCounter::for_method("/weir.v1.JobService/Nope").is_none());
    }

    #[test]
    fn malformed_bytes_are_counted_without_a_panic() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..2_000 {
            let mut counter = MessageCounter::for_method("/weir.v1.AgentService/Sync").expect("a method");
            let bytes: Vec<u8> = (0..rng.random_range(0..200))
                .map(|_| if rng.random_ratio(1, 2) { rng.random_range(0..20) } else { rng.random() })
                .collect();
            counter.feed(&[0, 0, 0, 0, 150]);
            counter.feed(&bytes);
            assert!(counter.entries() <= 100);
        }
    }
}
