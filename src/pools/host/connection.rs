//! A supervisor's connection to its agent: lines in both directions, without waiting.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags};

use super::protocol::{FromSupervisor, ToSupervisor};

/// Bytes that wait for an agent that doesn't read; then it is cut off, and will list anew.
const OUTGOING_MAX: usize = 4 << 20;
/// Bytes of one request: a launch with a full command line.
const LINE_MAX: usize = 8 << 20;

/// The agent's connection.
pub(super) struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Bytes that may wait: more after a list, which may be long.
    outgoing_max: usize,
}

impl Connection {
    /// Takes over a stream.
    ///
    /// # Errors
    /// If it can't be read without waiting.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, incoming: Vec::new(), outgoing: Vec::new(), outgoing_max: OUTGOING_MAX })
    }

    /// What to wait for.
    pub(super) fn poll(&self) -> PollFd<'_> {
        let out = if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        PollFd::new(&self.stream, PollFlags::IN | out)
    }

    /// Reads what has come: the requests, and whether the agent is still there. One that says what
    /// makes no sense is taken for gone: whoever it is must start over.
    pub(super) fn receive(&mut self) -> (Vec<ToSupervisor>, bool) {
        let mut buffer = [0; 16 * 1024];
        let mut there = loop {
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
        there &= self.incoming.len() <= LINE_MAX;
        let mut requests = Vec::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(request) => requests.push(request),
                Err(_) => there = false,
            }
        }
        (requests, there)
    }

    /// Adds a message to what is to be sent.
    pub(super) fn say(&mut self, message: &FromSupervisor) {
        if let Ok(mut line) = serde_json::to_vec(message) {
            line.push(b'\n');
            self.outgoing.extend_from_slice(&line);
        }
        if matches!(message, FromSupervisor::Attempts { .. }) {
            self.outgoing_max = self.outgoing.len() + OUTGOING_MAX;
        }
    }

    /// Sends what can be sent. Tells whether the agent is still there and reads.
    pub(super) fn flush(&mut self) -> bool {
        let mut written = 0;
        let mut there = self.outgoing.len() <= self.outgoing_max;
        while written < self.outgoing.len() && there {
            match self.stream.write(&self.outgoing[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => there = false,
            }
        }
        self.outgoing.drain(..written);
        if self.outgoing.is_empty() {
            self.outgoing_max = OUTGOING_MAX;
        }
        there
    }
}
