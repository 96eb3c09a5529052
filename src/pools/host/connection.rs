//! A supervisor's connection to its agent: lines in both directions, without blocking.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags};

use super::protocol::{FromSupervisor, ToSupervisor};

/// Bytes buffered for an agent that doesn't read. Beyond it the agent is disconnected; it lists all
/// attempts when it connects again.
const OUTGOING_MAX: usize = 4 << 20;
/// The longest request in bytes: a start request with a full command line.
const LINE_MAX: usize = 8 << 20;

/// The agent's connection.
pub(super) struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Bytes that may be buffered: more after a list of attempts, which may be long.
    outgoing_max: usize,
}

impl Connection {
    /// Makes a connection of an accepted stream.
    ///
    /// # Errors
    /// If the stream can't be made non-blocking.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, incoming: Vec::new(), outgoing: Vec::new(), outgoing_max: OUTGOING_MAX })
    }

    /// Returns the events to poll the stream for.
    pub(super) fn poll(&self) -> PollFd<'_> {
        let out = if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        PollFd::new(&self.stream, PollFlags::IN | out)
    }

    /// Reads what has arrived. Returns the requests, and whether the agent is still connected.
    ///
    /// After a request that can't be decoded the agent counts as disconnected: its state is unclear,
    /// so it must connect again.
    pub(super) fn receive(&mut self) -> (Vec<ToSupervisor>, bool) {
        let mut buffer = [0; 16 * 1024];
        let mut connected = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break false,
                Ok(count) => self.incoming.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break false,
            }
        };
        let end = self.incoming.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines: Vec<u8> = self.incoming.drain(..end).collect();
        connected &= self.incoming.len() <= LINE_MAX;
        let mut requests = Vec::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(request) => requests.push(request),
                Err(_) => connected = false,
            }
        }
        (requests, connected)
    }

    /// Appends a message to the buffer; `flush` writes it.
    pub(super) fn send(&mut self, message: &FromSupervisor) {
        if let Ok(mut line) = serde_json::to_vec(message) {
            line.push(b'\n');
            self.outgoing.extend_from_slice(&line);
        }
        if matches!(message, FromSupervisor::Attempts { .. }) {
            self.outgoing_max = self.outgoing.len() + OUTGOING_MAX;
        }
    }

    /// Writes as much of the buffer as the stream takes. Returns whether the agent is still connected
    /// and reads.
    pub(super) fn flush(&mut self) -> bool {
        let mut written = 0;
        let mut connected = self.outgoing.len() <= self.outgoing_max;
        while written < self.outgoing.len() && connected {
            match self.stream.write(&self.outgoing[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => connected = false,
            }
        }
        self.outgoing.drain(..written);
        if self.outgoing.is_empty() {
            self.outgoing_max = OUTGOING_MAX;
        }
        connected
    }
}
