//! Requests as bytes: encodings that the generated types can't produce.

use prost::bytes::{Buf, BufMut};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::fake::Broker;

/// A codec that passes messages through.
#[derive(Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

/// Calls a method with a message of these bytes.
pub async fn call(broker: &Broker, method: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    call_at(&broker.home.address, &broker.token, method, message).await
}

/// Calls a method of the broker at an address.
pub async fn call_at(address: &str, token: &str, method: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = tonic::client::Grpc::new(channel_at(address).await);
    client.ready().await.expect("a connection");
    let mut request = Request::new(message);
    let token = format!("Bearer {token}").parse().expect("a header");
    request.metadata_mut().insert("authorization", token);
    let path = http::uri::PathAndQuery::try_from(method).expect("a path");
    client.unary(request, path, Bytes).await.map(tonic::Response::into_inner)
}

/// Calls a method of any kind with these messages. Reads up to three responses, as long as each arrives
/// within 20 ms: a stream need not respond at all.
pub async fn stream(
    channel: &Channel,
    token: &str,
    method: &str,
    messages: Vec<Vec<u8>>,
) -> Result<(), Status> {
    let soon = std::time::Duration::from_millis(20);
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(tokio_stream::iter(messages));
    let token = format!("Bearer {token}").parse().expect("a header");
    request.metadata_mut().insert("authorization", token);
    let path = http::uri::PathAndQuery::try_from(method).expect("a path");
    let mut answers = client.streaming(request, path, Bytes).await?.into_inner();
    for _ in 0..3 {
        match tokio::time::timeout(soon, answers.message()).await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) | Err(_) => break,
            Ok(Err(status)) => return Err(status),
        }
    }
    Ok(())
}

/// A connection to the broker.
pub async fn channel(broker: &Broker) -> Channel {
    channel_at(&broker.home.address).await
}

async fn channel_at(address: &str) -> Channel {
    let url = format!("http://{address}");
    tonic::transport::Endpoint::from_shared(url).expect("a url").connect().await.expect("a connection")
}

/// A length-delimited field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// A varint field.
fn varint(number: u8, value: u64) -> Vec<u8> {
    let mut bytes = vec![number << 3];
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}

const SUBMIT: &str = "/weir.v1.JobService/Submit";

#[tokio::test]
async fn undecodable_bodies_are_refused() {
    let broker = Broker::start();
    let nested = |levels: usize| (0..levels).fold(Vec::new(), |inner, _| field(2, &inner));
    let rows: Vec<(&str, &str, Vec<u8>)> = vec![
        ("no field at all", SUBMIT, vec![0xff; 64]),
        ("a length beyond the end", SUBMIT, vec![0x12, 0x7f, 0x00]),
        ("a length that never ends", SUBMIT, vec![0x12; 11]),
        ("a varint of eleven bytes", SUBMIT, [vec![0x08], vec![0xff; 10], vec![0x01]].concat()),
        ("a name that is not UTF-8", SUBMIT, field(2, &field(1, &[0xc3, 0x28]))),
        ("a surrogate in a name", SUBMIT, field(2, &field(1, &[0xed, 0xa0, 0x80]))),
        ("a number where a text belongs", SUBMIT, varint(1, 7)),
        ("groups without an end", SUBMIT, vec![0x7b; 100_000]),
        ("groups within groups", SUBMIT, [vec![0x7b; 1_000], vec![0x7c; 1_000]].concat()),
        ("a message cut short", "/weir.v1.PoolService/GetPool", vec![0x0a, 0x05, b'a']),
        ("a field number of zero", "/weir.v1.PoolService/GetPool", vec![0x00, 0x00]),
    ];
    for (what, method, bytes) in rows {
        let status = call(&broker, method, bytes).await.expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        assert!(!status.message().is_empty(), "{what}: {status:?}");
    }
    // Unknown fields are skipped at any depth: a newer client may send them.
    let unknown = [field(15, &nested(10_000)), field(1, b"nope")].concat();
    let status = call(&broker, "/weir.v1.PoolService/GetPool", unknown).await.expect_err("no such pool");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "pool \"nope\" does not exist"));
    broker.check_health(&broker.client()).await;
}

#[tokio::test]
async fn numbers_out_of_range_are_refused_with_their_field() {
    let broker = Broker::start();
    // A count of -1 as a negative varint: ten bytes in a field of 32 bits.
    let group = [varint(2, u64::MAX), field(4, &varint(1, u64::MAX)), field(5, &field(1, b"true"))].concat();
    let spec = [varint(2, 1 << 31), field(3, &group), varint(7, 1_000)].concat();
    let status = call(&broker, SUBMIT, field(2, &field(4, &spec))).await.expect_err("out of range");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("jobs[0].spec.on_pool_lost: 1000 is not a value"), "{status:?}");
    let spec = [varint(2, 1 << 31), field(3, &group)].concat();
    let status = call(&broker, SUBMIT, field(2, &field(4, &spec))).await.expect_err("out of range");
    for part in [
        "jobs[0].spec.groups[0].count: 4294967295 is not within 1 and 1000000",
        "jobs[0].spec.groups[0].resources.cpu_millis: 18446744073709551.615 CPUs is not within",
        "jobs[0].spec.priority: -2147483648 is not within",
    ] {
        assert!(status.message().contains(part), "{status:?}");
    }
    broker.check_health(&broker.client()).await;
}

#[tokio::test]
async fn unknown_methods_are_unimplemented() {
    let broker = Broker::start();
    for method in ["/weir.v1.JobService/Nope", "/weir.v2.JobService/Submit", "/x", "/"] {
        let status = call(&broker, method, Vec::new()).await.expect_err(method);
        assert_eq!(status.code(), Code::Unimplemented, "{method}: {status:?}");
    }
    broker.check_health(&broker.client()).await;
}
