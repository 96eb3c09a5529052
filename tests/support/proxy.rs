//! A link that can be cut: a TCP proxy on a port of its own, with weather.

#![allow(dead_code)]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes that are carried at once: small, so that a change of weather comes amid messages.
const PIECE_BYTES: usize = 1_024;
/// The same where the link is throttled.
const TRICKLE_BYTES: usize = 64;

/// What becomes of the bytes on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Each piece arrives so much later.
    Slow {
        delay_ms: u64,
    },
    /// So many bytes a second come through, either way.
    Throttled {
        bytes_per_s: u64,
    },
    /// Nothing arrives, or nothing in one direction; nobody is told. What was under way waits, as
    /// what is sent again and again does.
    Cut {
        up: bool,
        down: bool,
    },
    /// Every connection is reset, new ones as well.
    Torn,
}

/// What the proxy is told.
#[derive(Clone, Copy, Debug)]
struct Told {
    weather: Weather,
    /// Grows when all connections of now are to be reset.
    torn: u64,
}

/// A proxy; it ends with its runtime.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    told: watch::Sender<Told>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Proxy {
    /// Listens for what is meant for `target`.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (told, telling) = watch::channel(Told { weather: Weather::Fair, torn: 0 });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(carry(stream, target, telling.clone()));
            }
        });
        Self { address, told }
    }

    /// Changes the weather.
    pub fn set(&self, weather: Weather) {
        self.told.send_modify(|told| {
            told.weather = weather;
            told.torn += u64::from(weather == Weather::Torn);
        });
    }

    /// Fair weather from now on. What was cut goes on where it was, or is reset: some other router
    /// on the way has forgotten it.
    pub fn heal(&self, torn: bool) {
        self.told.send_modify(|told| {
            told.weather = Weather::Fair;
            told.torn += u64::from(torn);
        });
    }
}

/// Carries one connection.
async fn carry(mut client: TcpStream, target: SocketAddr, telling: watch::Receiver<Told>) {
    let begun = *telling.borrow();
    let server = TcpStream::connect(target).await;
    let (Ok(mut server), true) = (server, begun.weather != Weather::Torn) else {
        // Closed with zero linger, a connection ends with a reset.
        let _ = client.set_zero_linger();
        return;
    };
    let (mut torn, up, down) = (telling.clone(), telling.clone(), telling);
    let is_torn = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            biased;
            _ = torn.wait_for(|told| told.torn != begun.torn) => true,
            () = async {
                tokio::join!(
                    pump(from_client, to_server, Way::Up, up),
                    pump(from_server, to_client, Way::Down, down)
                );
            } => false,
        }
    };
    if is_torn {
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

/// Carries one direction to its end.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, way: Way, mut telling: watch::Receiver<Told>) {
    let mut piece = [0; PIECE_BYTES];
    loop {
        let most = match telling.borrow().weather {
            Weather::Throttled { .. } => TRICKLE_BYTES,
            Weather::Fair | Weather::Slow { .. } | Weather::Cut { .. } | Weather::Torn => PIECE_BYTES,
        };
        let count = from.read(&mut piece[..most]).await.unwrap_or(0);
        wait_for_passage(way, count, &mut telling).await;
        // An end travels as slowly as what came before it.
        if count == 0 || to.write_all(&piece[..count]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

/// Waits until the weather lets so many bytes pass.
async fn wait_for_passage(way: Way, count: usize, telling: &mut watch::Receiver<Told>) {
    let blocked = |told: &Told| match told.weather {
        Weather::Cut { up, down } => {
            if way == Way::Up {
                up
            } else {
                down
            }
        }
        Weather::Fair | Weather::Slow { .. } | Weather::Throttled { .. } | Weather::Torn => false,
    };
    let delay_ms = match telling.borrow().weather {
        Weather::Slow { delay_ms } => delay_ms,
        Weather::Throttled { bytes_per_s } => 1_000 * count as u64 / bytes_per_s.max(1),
        Weather::Fair | Weather::Cut { .. } | Weather::Torn => 0,
    };
    tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    let _ = telling.wait_for(|told| !blocked(told)).await;
}
