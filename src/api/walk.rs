//! A walk over a request's bytes as they come, which counts what would be made of them.
//!
//! Two bytes on the wire can become hundreds in memory: a list of empty messages. So their number is
//! known before they are decoded.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::described::{BYTES, MESSAGE, REPEATED, STRING, definitions};

/// What of a field matters here.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// A message, by its type's number.
    Message(usize),
    /// An entry of a list of texts.
    Entry,
}

#[derive(Debug, Default)]
struct Shapes {
    types: Vec<HashMap<u64, Field>>,
    inputs: HashMap<&'static str, usize>,
}

fn shapes() -> &'static Shapes {
    static MADE: LazyLock<Shapes> = LazyLock::new(|| {
        let read = definitions();
        let numbers: HashMap<&str, usize> =
            read.types.keys().enumerate().map(|(number, name)| (name.as_str(), number)).collect();
        let fields = read.types.values().map(|message| {
            let counted = message.field.iter().filter_map(|field| {
                let kind = match field.kind {
                    MESSAGE => Field::Message(*numbers.get(field.type_name.as_str())?),
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
            .filter_map(|(path, input)| Some((path.as_str(), *numbers.get(input.as_str())?)));
        Shapes { types: fields.collect(), inputs: inputs.collect() }
    });
    &MADE
}

/// Where the walk stands.
#[derive(Clone, Copy, Debug)]
enum At {
    /// In the five bytes before a message: so many are read, and this is their number so far.
    Prefix { read: u32, length: u32 },
    /// In a field's tag.
    Tag(Varint),
    /// In a number that is passed over.
    Number(Varint),
    /// In the length of this field.
    Length(u64, Varint),
    /// In bytes that are passed over, of which so many are left.
    Skip(u64),
    /// What comes can't be read: whoever decodes it says why.
    Lost,
}

#[derive(Clone, Copy, Debug, Default)]
struct Varint {
    value: u64,
    shift: u32,
}

/// A walk over the messages of one stream.
#[derive(Debug)]
pub(super) struct Walk {
    input: usize,
    at: At,
    /// Bytes of the message that have been walked over.
    position: u64,
    /// Messages that are open: type, and where they end.
    open: Vec<(usize, u64)>,
    /// Messages and entries of the message at hand.
    entries: usize,
}

impl Walk {
    /// A walk over what this method takes; `None` if it isn't one of ours.
    pub(super) fn over(path: &str) -> Option<Self> {
        let input = *shapes().inputs.get(path)?;
        let at = At::Prefix { read: 0, length: 0 };
        Some(Self { input, at, position: 0, open: Vec::new(), entries: 0 })
    }

    /// Entries of the message at hand, so far.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// Walks over what has come in.
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            match self.at {
                At::Lost => return,
                At::Skip(left) => {
                    let here = left.min(bytes.len() as u64);
                    bytes = &bytes[here as usize..];
                    self.position += here;
                    self.at = At::Skip(left - here);
                    if left == here {
                        self.next_field();
                    }
                    continue;
                }
                At::Prefix { read, length } => {
                    // The first of them says whether it is packed; nothing that is packed is taken.
                    let length = if read == 0 { 0 } else { length << 8 | u32::from(*first) };
                    self.at = At::Prefix { read: read + 1, length };
                    if read == 4 {
                        (self.position, self.entries) = (0, 0);
                        self.open = vec![(self.input, u64::from(length))];
                        self.next_field();
                    }
                }
                At::Tag(varint) => self.step(*first, varint, At::Tag, Self::enter),
                At::Number(varint) => self.step(*first, varint, At::Number, |walk, _| walk.next_field()),
                At::Length(field, varint) => {
                    self.step(
                        *first,
                        varint,
                        |more| At::Length(field, more),
                        |walk, len| walk.descend(field, len),
                    );
                }
            }
            bytes = rest;
        }
    }

    /// One byte of a varint: it goes on, or is complete.
    fn step(&mut self, byte: u8, varint: Varint, more: impl Fn(Varint) -> At, done: impl Fn(&mut Self, u64)) {
        self.position += 1;
        let value = varint.value | u64::from(byte & 0x7f).checked_shl(varint.shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            done(self, value);
        } else if varint.shift < 63 {
            self.at = more(Varint { value, shift: varint.shift + 7 });
        } else {
            self.at = At::Lost;
        }
    }

    /// A field begins, or messages end here.
    fn next_field(&mut self) {
        while self.open.last().is_some_and(|(_, end)| *end == self.position) {
            self.open.pop();
        }
        self.at = match self.open.last() {
            None => At::Prefix { read: 0, length: 0 },
            Some((_, end)) if *end < self.position => At::Lost,
            Some(_) => At::Tag(Varint::default()),
        };
    }

    /// A tag is complete: field number and wire type.
    fn enter(&mut self, tag: u64) {
        match tag & 7 {
            0 => self.at = At::Number(Varint::default()),
            1 => self.at = At::Skip(8),
            2 => self.at = At::Length(tag >> 3, Varint::default()),
            5 => self.at = At::Skip(4),
            // A group's beginning or end.
            3 | 4 => self.next_field(),
            _ => self.at = At::Lost,
        }
    }

    /// A field with a length: into it, if it is a message of ours, or past it.
    fn descend(&mut self, field: u64, len: u64) {
        let Some((kind, end)) = self.open.last().copied() else { return self.at = At::Lost };
        let Some(to) = self.position.checked_add(len).filter(|to| *to <= end) else {
            return self.at = At::Lost;
        };
        let found = shapes().types.get(kind).and_then(|fields| fields.get(&field)).copied();
        self.entries += usize::from(found.is_some());
        match found {
            Some(Field::Message(kind)) => {
                self.open.push((kind, to));
                self.next_field();
            }
            Some(Field::Entry) | None if len == 0 => self.next_field(),
            Some(Field::Entry) | None => self.at = At::Skip(len),
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
    fn messages_and_entries_are_counted_however_they_come() {
        let program = v1::Program { command: vec!["a".to_owned(), String::new()], ..Default::default() };
        let run = Some(v1::task_group::Run::Process(program));
        let group = v1::TaskGroup { run, count: Some(7), ..Default::default() };
        let labels = [("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())].into();
        let spec =
            v1::JobSpec { groups: vec![group.clone(), group], labels, priority: -1, ..Default::default() };
        let job = v1::Submission { name: "n".repeat(300), spec: Some(spec), ..Default::default() };
        let bytes = framed(&v1::SubmitRequest { token: "t".to_owned(), jobs: vec![job] });
        // A job, its spec, two labels, and twice a group, its program and two words.
        let entries = 1 + 1 + 2 + 2 * (1 + 1 + 2);
        for piece in [1, 2, 7, bytes.len()] {
            let mut walk = Walk::over("/weir.v1.JobService/Submit").expect("a method");
            bytes.chunks(piece).for_each(|piece| walk.take(piece));
            assert_eq!(walk.entries(), entries, "pieces of {piece}");
            // The next message begins anew.
            framed(&v1::SubmitRequest::default()).chunks(piece).for_each(|piece| walk.take(piece));
            assert_eq!(walk.entries(), 0);
        }
        assert!(Walk::over("/weir.v1.JobService/Nope").is_none());
    }

    #[test]
    fn bytes_that_are_no_message_are_walked_over_without_harm() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..2_000 {
            let mut walk = Walk::over("/weir.v1.AgentService/Sync").expect("a method");
            let bytes: Vec<u8> = (0..rng.random_range(0..200))
                .map(|_| if rng.random_ratio(1, 2) { rng.random_range(0..20) } else { rng.random() })
                .collect();
            walk.take(&[0, 0, 0, 0, 150]);
            walk.take(&bytes);
            assert!(walk.entries() <= 100);
        }
    }
}
