//! A TCP proxy that simulates link faults: delay, low bandwidth, cuts and resets.

#![allow(dead_code)]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes forwarded at once: few, so that a change of the link can split a message.
const PIECE_BYTES: usize = 1_024;
/// Bytes forwarded at once on a throttled link.
const THROTTLED_BYTES: usize = 64;

/// The condition of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkCondition {
    /// No fault.
    Normal,
    /// Each piece arrives later by this delay.
    Slow { delay_ms: u64 },
    /// Bandwidth of each direction.
    Throttled { bytes_per_s: u64 },
    /// Nothing arrives in these directions, without an error at either end. Bytes in transit wait, as they
    /// would under TCP retransmission.
    Cut { up: bool, down: bool },
    /// Every connection is reset, including new ones.
    Reset,
}

/// The state that connections follow.
#[derive(Clone, Copy, Debug)]
struct State {
    condition: LinkCondition,
    /// Counts resets: each ends all connections that were open.
    resets: u64,
}

/// A proxy. It ends with its runtime.
pub struct Proxy {
    /// The address that it listens on.
    pub address: SocketAddr,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Proxy {
    /// Starts a proxy for `target` on a free port.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (state, states) = watch::channel(State { condition: LinkCondition::Normal, resets: 0 });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(forward(stream, target, states.clone()));
            }
        });
        Self { address, state }
    }

    /// Changes the condition of the link.
    pub fn set(&self, condition: LinkCondition) {
        self.state.send_modify(|state| {
            state.condition = condition;
            state.resets += u64::from(condition == LinkCondition::Reset);
        });
    }

    /// Ends all faults. Connections that were cut continue, or are reset if `reset`, as by a router that
    /// has lost their state.
    pub fn heal(&self, reset: bool) {
        self.state.send_modify(|state| {
            state.condition = LinkCondition::Normal;
            state.resets += u64::from(reset);
        });
    }
}

/// Forwards one connection.
async fn forward(mut client: TcpStream, target: SocketAddr, states: watch::Receiver<State>) {
    let begun = *states.borrow();
    let server = TcpStream::connect(target).await;
    let (Ok(mut server), true) = (server, begun.condition != LinkCondition::Reset) else {
        // A connection that is closed with zero linger ends with a reset.
        let _ = client.set_zero_linger();
        return;
    };
    let (mut resets, up, down) = (states.clone(), states.clone(), states);
    let is_reset = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            biased;
            _ = resets.wait_for(|state| state.resets != begun.resets) => true,
            () = async {
                tokio::join!(
                    pump(from_client, to_server, Direction::Up, up),
                    pump(from_server, to_client, Direction::Down, down)
                );
            } => false,
        }
    };
    if is_reset {
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

/// Forwards one direction until it ends.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction,
    mut states: watch::Receiver<State>,
) {
    let mut piece = [0; PIECE_BYTES];
    loop {
        let len_max = match states.borrow().condition {
            LinkCondition::Throttled { .. } => THROTTLED_BYTES,
            LinkCondition::Normal
            | LinkCondition::Slow { .. }
            | LinkCondition::Cut { .. }
            | LinkCondition::Reset => PIECE_BYTES,
        };
        let count = from.read(&mut piece[..len_max]).await.unwrap_or(0);
        wait_to_forward(direction, count, &mut states).await;
        // The end of a stream is delayed like its bytes.
        if count == 0 || to.write_all(&piece[..count]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

/// Waits until the link lets this many bytes pass.
async fn wait_to_forward(direction: Direction, count: usize, states: &mut watch::Receiver<State>) {
    let is_cut = |state: &State| match state.condition {
        LinkCondition::Cut { up, down } => match direction {
            Direction::Up => up,
            Direction::Down => down,
        },
        LinkCondition::Normal
        | LinkCondition::Slow { .. }
        | LinkCondition::Throttled { .. }
        | LinkCondition::Reset => false,
    };
    let delay_ms = match states.borrow().condition {
        LinkCondition::Slow { delay_ms } => delay_ms,
        LinkCondition::Throttled { bytes_per_s } => 1_000 * count as u64 / bytes_per_s.max(1),
        LinkCondition::Normal | LinkCondition::Cut { .. } | LinkCondition::Reset => 0,
    };
    tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    let _ = states.wait_for(|state| !is_cut(state)).await;
}
