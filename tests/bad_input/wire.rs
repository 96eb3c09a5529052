//! Raw HTTP/2: frames that no library would send.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::fake::Broker;

/// The beginning of a connection: the preface and empty settings.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame of this kind.
pub fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = (content.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(content);
    bytes
}

/// A header as a literal without indexing (RFC 7541).
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        assert!(text.len() < 127, "one byte of length");
        bytes.push(text.len() as u8);
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// The headers of a call with the broker's token.
pub fn call_headers(broker: &Broker, method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let token = format!("Bearer {}", broker.token);
    let mut bytes = Vec::new();
    let fixed = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", broker.home.address.as_str()),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", &token),
    ];
    for (name, value) in fixed.iter().chain(more) {
        bytes.extend(literal(name, value));
    }
    bytes
}

/// Opens a connection and sends these bytes. `None` if the broker refuses or closes it.
pub async fn open_with(broker: &Broker, beginning: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(&broker.home.address).await.ok()?;
    stream.write_all(beginning).await.ok()?;
    Some(stream)
}

/// Sends `round` after `round` until the broker closes the connection, then continues on a new one, without
/// end. Responses are read, since the broker would otherwise only wait.
pub async fn flood(broker: &Broker, mut round: impl FnMut(u32) -> Vec<u8>) {
    let mut ignored = vec![0; 65_536];
    loop {
        let Some(mut stream) = open_with(broker, PREFACE).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let (mut reads, mut writes) = stream.split();
        let sending = async {
            let mut number = 0;
            while writes.write_all(&round(number)).await.is_ok() {
                number += 1;
                tokio::task::yield_now().await;
            }
        };
        let reading = async {
            use tokio::io::AsyncReadExt;
            while reads.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
        };
        tokio::select! {
            () = sending => {}
            () = reading => {}
        }
    }
}
