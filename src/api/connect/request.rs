//! Requests of Connect become messages of gRPC.

use std::sync::Arc;

use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use prost::Message;
use prost::bytes::{BufMut, Bytes, BytesMut};
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};
use tonic::Status;
use tonic::body::Body;

use super::envelope::{PREFIX_BYTES, envelope};
use super::{Codec, Form};
use crate::api::body_limit::MemoryCharge;
use crate::api::error;
use crate::model::limit::{MESSAGE_BYTES_MAX, REQUEST_ENTRIES_MAX};
use crate::model::text;

/// Bytes of a value that an error quotes.
const VALUE_BYTES_SHOWN: usize = 80;

/// The body of gRPC with the message of a body of Connect. It is read when the service asks for it.
pub(super) fn body(body: Body, kind: MessageDescriptor, form: Form, charge: Arc<MemoryCharge>) -> Body {
    let frame = async move { message(body, kind, form, &charge).await.map(Frame::data) };
    Body::new(StreamBody::new(Box::pin(futures_util::stream::once(frame))))
}

async fn message(
    mut body: Body,
    kind: MessageDescriptor,
    form: Form,
    charge: &MemoryCharge,
) -> Result<Bytes, Status> {
    let mut received = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        charge.add(data.len())?;
        if received.len() + data.len() > MESSAGE_BYTES_MAX {
            return Err(Status::out_of_range(format!("the request has more than {MESSAGE_BYTES_MAX} bytes")));
        }
        received.put(data);
    }
    let content = if let Form::Envelopes(_) = form { content(&received)? } else { &received[..] };
    match form.codec() {
        // As gRPC sends it. The service decodes it, and counts what it contains.
        Codec::Proto => Ok(envelope(0, content)),
        Codec::Json => Ok(envelope(0, &from_json(content, kind, charge)?)),
    }
}

/// The message that a text in JSON describes.
fn from_json(json: &[u8], kind: MessageDescriptor, charge: &MemoryCharge) -> Result<Vec<u8>, Status> {
    // What a client that calls a method without a request's fields may leave out.
    let json = if json.is_empty() { b"{}" } else { json };
    let entries = entries(json);
    if entries > REQUEST_ENTRIES_MAX {
        let message = format!("the request has more than {REQUEST_ENTRIES_MAX} fields and list entries");
        return Err(error::unreadable(&message));
    }
    charge.add_entries(entries)?;
    Ok(read(json, kind)?.encode_to_vec())
}

/// The content of the one envelope that a request consists of.
fn content(bytes: &[u8]) -> Result<&[u8], Status> {
    let envelope = bytes.split_at_checked(PREFIX_BYTES).and_then(|(prefix, content)| {
        let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
        (prefix[0] == 0 && content.len() == length as usize).then_some(content)
    });
    envelope.ok_or_else(|| {
        error::unreadable(
            "the body is not one uncompressed envelope: a zero byte, the length in four bytes, the message",
        )
    })
}

/// Reads a message. Fields that it does not have are refused by name, as is every value that does not fit.
fn read(json: &[u8], kind: MessageDescriptor) -> Result<DynamicMessage, Status> {
    let mut text = serde_json::Deserializer::from_slice(json);
    let mut track = serde_path_to_error::Track::new();
    let read = DynamicMessage::deserialize(
        kind.clone(),
        serde_path_to_error::Deserializer::new(&mut text, &mut track),
    );
    let read = read.and_then(|message| text.end().map(|()| message));
    read.map_err(|error| {
        let path = track.path();
        let message = match misfit(json, &kind, &path) {
            Some(misfit) => format!("{path}: {misfit}"),
            None if path.iter().next().is_none() => error.to_string(),
            None => format!("{path}: {error}"),
        };
        error::unreadable(&text::escape(&message))
    })
}

/// How the value at a path differs from its field's type, if it has one that is more precise than the parser's error.
fn misfit(json: &[u8], kind: &MessageDescriptor, path: &Path) -> Option<String> {
    let mut value: &Value = &serde_json::from_slice(json).ok()?;
    let mut expected = Kind::Message(kind.clone());
    for segment in path {
        value = match segment {
            Segment::Seq { index } => value.get(index)?,
            Segment::Map { key } => {
                let Kind::Message(message) = &expected else { return None };
                let field = message.get_field_by_json_name(key).or_else(|| message.get_field_by_name(key))?;
                if field.is_map() {
                    return None;
                }
                expected = field.kind();
                value.get(key)?
            }
            Segment::Enum { .. } | Segment::Unknown => return None,
        };
    }
    let allowed = match expected {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            format!("a whole number from {} to {}", i32::MIN, i32::MAX)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            format!("a whole number from {} to {}", i64::MIN, i64::MAX)
        }
        Kind::Uint32 | Kind::Fixed32 => format!("a whole number from 0 to {}", u32::MAX),
        Kind::Uint64 | Kind::Fixed64 => format!("a whole number from 0 to {}", u64::MAX),
        Kind::Float | Kind::Double => "a number".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::String => "a text".to_owned(),
        Kind::Bytes => "bytes in base64".to_owned(),
        Kind::Enum(values) => {
            let names: Vec<String> = values.values().skip(1).map(|value| value.name().to_owned()).collect();
            format!("one of {}", names.join(", "))
        }
        Kind::Message(_) => return None,
    };
    let mut found = value.to_string();
    text::truncate(&mut found, VALUE_BYTES_SHOWN);
    Some(format!("{found} is not {allowed}"))
}

/// At least as many as the values in a JSON text: each takes memory of its own.
fn entries(json: &[u8]) -> usize {
    let (mut entries, mut in_text, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            b'{' | b'[' | b',' if !in_text => entries += 1,
            _ => {}
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::descriptor::definitions;

    fn read_submit(json: &str) -> Result<DynamicMessage, Status> {
        let kind = definitions().get_message_by_name("weir.v1.SubmitRequest").expect("a message");
        read(json.as_bytes(), kind)
    }

    #[test]
    fn errors_name_the_field_as_it_is_written() {
        for (json, expected) in [
            ("{\"jobs\": [{\"nmae\": \"a\"}]}", "jobs[0]"),
            (
                "{\"jobs\": [{\"spec\": {\"priority\": \"high\"}}]}",
                "jobs[0].spec.priority: \"high\" is not a whole number from -2147483648 to 2147483647",
            ),
            (
                "{\"jobs\": [{\"spec\": {\"maxRunMs\": -1}}]}",
                "jobs[0].spec.maxRunMs: -1 is not a whole number from 0 to 18446744073709551615",
            ),
            (
                "{\"jobs\": [{\"spec\": {\"retry\": {\"on\": [\"RETRY_ON_X\"]}}}]}",
                "jobs[0].spec.retry.on[0]: \"RETRY_ON_X\" is not one of RETRY_ON_",
            ),
            ("{\"allow_pending\": 1}", "allow_pending: 1 is not true or false"),
            ("{\"jobs\": [{\"spec\": {\"labels\": {\"a\": 1}}}]}", "jobs[0].spec.labels"),
            ("{} {}", "trailing characters"),
            ("[]", "expected"),
            ("nonsense", "expected"),
        ] {
            let status = read_submit(json).expect_err(json);
            assert!(status.code() == tonic::Code::InvalidArgument, "{status:?}");
            assert!(status.message().contains(expected), "{json}: {}", status.message());
        }
        assert!(
            read_submit("{\"jobs\": [{\"name\": \"a\", \"name_prefix\": \"b\"}]}").is_ok(),
            "both spellings"
        );
    }

    #[test]
    fn values_are_counted_outside_of_texts() {
        assert_eq!(entries(b"{\"a\": [1, 2, 3], \"b\": {}}"), 6);
        assert_eq!(entries(b"{\"a\": \"[,,\\\"{{\"}"), 1);
    }

    #[test]
    fn an_envelope_has_the_length_that_it_names() {
        assert_eq!(content(b"\0\0\0\0\x02{}").expect("one"), b"{}");
        for bytes in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x03{}", b"\0\0\0\0\x01{}", b"\x01\0\0\0\x02{}"] {
            assert!(content(bytes).is_err(), "{bytes:?}");
        }
    }
}
