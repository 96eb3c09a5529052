//! Envelopes, in which Connect sends the messages of a stream.

use prost::bytes::{BufMut, Bytes, BytesMut};

/// Bytes before a message of gRPC, and before one in Connect's envelope: flags, and the length in four bytes.
pub(super) const PREFIX_BYTES: usize = 5;

/// The flag of the envelope that ends a stream.
pub(super) const END: u8 = 2;

/// A message in an envelope.
pub(super) fn envelope(flags: u8, content: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + content.len());
    bytes.put_u8(flags);
    bytes.put_u32(u32::try_from(content.len()).unwrap_or(u32::MAX));
    bytes.put(content);
    bytes.freeze()
}
