//! The agent as a step machine: it reconciles the attempts at its backend with the orders of its broker.
//!
//! The backend is its only storage: each object there carries its attempt's id, and the agent adopts an
//! existing object before it creates one. It stops an attempt only on a stop, creates nothing after an
//! order's `start_by`, and repeats outcomes until the broker has acknowledged them as durable.

mod reconcile;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::model::attempt::{AttemptReport, AttemptStatus};
use crate::model::backoff::Backoff;
use crate::model::exchange::{
    Accepted, FromAgent, Hello, Inventory, Part, RefusedCode, SpecWindow, StartOrder, Stop, ToAgent,
};
use crate::model::high_water::HighWaterMark;
use crate::model::id::{AttemptId, Epoch, JournalId, Revision, SpecId, Term};
use crate::model::mutant::Mutant;
use crate::model::pool::NodeSpec;
use crate::model::spec::JobSpec;
use crate::model::time::Timestamp;

/// An input of the agent.
#[derive(Debug)]
pub enum Input {
    /// The backend has listed all of its nodes and attempts: the agent may connect.
    InitialSync { nodes: Vec<NodeSpec>, attempts: Vec<ObservedAttempt> },
    /// The connection is established: the hello can be sent.
    Connected,
    /// The connection was lost, or could not be established.
    Disconnected,
    /// A message from the broker.
    FromBroker(ToAgent),
    /// Nodes that are new or altered, and the names of removed ones.
    NodesChanged { nodes: Vec<NodeSpec>, removed: Vec<String> },
    /// The status of an attempt changed at the backend.
    StatusChanged { attempt: AttemptId, status: AttemptStatus },
    /// The time of the last [`Effect::WakeAt`] has come.
    Wake,
}

/// An attempt found at the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedAttempt {
    pub attempt: AttemptId,
    /// The revision that ordered it, as stored with the object.
    pub ordered_revision: Revision,
    /// On this agent's clock.
    pub start_by: Timestamp,
    /// The order's high-water mark, as stored with the object; `None` if it has none.
    pub high_water: Option<HighWaterMark>,
    pub status: AttemptStatus,
}

/// An action that the agent requests. Effects on one attempt must be executed in their order.
#[derive(Debug)]
pub enum Effect {
    /// Open a connection, and report it with [`Input::Connected`] or [`Input::Disconnected`].
    Connect,
    /// Close the connection.
    Disconnect,
    /// Send a message to the broker.
    Send(FromAgent),
    /// Start the attempt unless the backend already has it, and report its status with
    /// [`Input::StatusChanged`].
    Start(Box<StartRequest>),
    /// Stop the attempt.
    Stop(Stop),
    /// Delete the attempt's object or tombstone: its outcome is durable at the broker.
    Forget(AttemptId),
    /// Let attempts with a lease run for as long as it lasts from then on, on this agent's clock.
    RenewLeases { from: Timestamp },
    /// Store this for the hello of the agent's next process.
    StoreHighWater(HighWaterMark),
    /// The same. If it can't be stored, the connection must be closed: the next process would be taken for a copy.
    StoreEpoch(Epoch),
    /// Step again at this time at the latest.
    WakeAt(Timestamp),
}

/// A start order with its job spec, for the backend.
#[derive(Clone, Debug, PartialEq)]
pub struct StartRequest {
    pub order: StartOrder,
    pub spec: Arc<JobSpec>,
    /// On this agent's clock: the backend must not create the attempt later.
    pub start_by: Timestamp,
    /// The attempt must be stopped when the pool's leases have not been renewed for so long; `None`: never.
    pub lease_ms: Option<u64>,
}

/// First and longest window, in milliseconds, in which the next connection attempt falls at a random time. A
/// broker that has restarted must have its pools back soon, but not a thousand agents at once.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
/// Reports in one message: far below what a broker accepts, so that each is a short step for it.
const REPORTS_MAX: usize = 256;
/// Nodes in one message: a node with its labels and devices takes a kilobyte or two.
const NODES_MAX: usize = 64;
/// Time without a message after which the connection counts as lost.
const HEARTBEAT_TIMEOUT_MS: u64 = 10_000;
/// Heartbeats whose sending time is stored. An answer to an older one renews no lease.
const HEARTBEATS_MAX: usize = 16;

/// The agent's step machine.
#[derive(Debug)]
pub struct Agent {
    /// Sent at the start of each session; holds the newest high-water mark.
    hello: Hello,
    now: Timestamp,
    /// The backend has listed its nodes and attempts.
    synced: bool,
    connection: Connection,
    nodes: BTreeMap<String, NodeSpec>,
    attempts: BTreeMap<AttemptId, TrackedAttempt>,
    /// Waiting attempts, by the attempt that they are queued behind.
    successors: BTreeMap<AttemptId, BTreeSet<AttemptId>>,
    /// Waiting attempts by their `start_by`, after which they must not be started.
    expiring: BTreeSet<(Timestamp, AttemptId)>,
    /// Ended attempts whose outcome is durable at the broker, by the time at which they may be deleted.
    forgettable: BTreeSet<(Timestamp, AttemptId)>,
    /// Orders whose id is in use by another attempt that has to end first, with their revisions.
    stale_ids: BTreeMap<AttemptId, Revision>,
    /// The journal of `term`: terms of two journals are not comparable.
    journal: JournalId,
    term: Term,
    /// When the newest answered heartbeat was sent: leases count from then on.
    renewed_at: Timestamp,
    /// Connections lost or refused since the last session was established.
    backoff: Backoff,
    /// State of the generator that spreads reconnects, seeded with the instance.
    jitter: u64,
    /// Attempts whose status must be reported.
    unreported: BTreeSet<AttemptId>,
    /// Effects of the current step.
    effects: Vec<Effect>,
}

/// The connection to the broker.
#[derive(Debug)]
enum Connection {
    Down {
        retry_at: Timestamp,
    },
    Connecting,
    /// The hello was sent; the broker has not answered.
    Handshaking {
        sent_at: Timestamp,
    },
    Up(Box<Session>),
}

/// An established session.
#[derive(Debug)]
struct Session {
    accepted: Accepted,
    /// This agent's clock minus the broker's, in milliseconds.
    skew_ms: i64,
    /// When the next heartbeat is due.
    heartbeat_at: Timestamp,
    /// When the broker's last message was received.
    last_received_at: Timestamp,
    /// Number of the last heartbeat sent.
    sequence: u64,
    /// Unanswered heartbeats with their sending times, oldest first.
    heartbeats_sent: VecDeque<(u64, Timestamp)>,
    spec_window: SpecWindow,
    specs: BTreeMap<SpecId, Arc<JobSpec>>,
    /// The full set of orders has been received: an attempt that is not tracked has ended.
    orders_complete: bool,
    /// Specs that left the window during the current message, whose orders may still refer to them.
    evicted_specs: Vec<SpecId>,
}

/// An attempt at the backend, or ordered for it.
#[derive(Debug)]
struct TrackedAttempt {
    ordered_revision: Revision,
    start_by: Timestamp,
    state: TrackedState,
}

#[derive(Debug)]
enum TrackedState {
    /// Ordered; it is started when the attempt that it is queued behind has ended.
    Waiting(Box<StartRequest>),
    /// Started. `None` until the backend confirms the start. Until then the status must not be reported: the
    /// broker would treat a reported start as lost if the agent died and the backend never had the attempt.
    Present(Option<AttemptStatus>),
    /// Ended. `at_backend` is true if the backend has an object or tombstone to delete.
    Ended {
        status: AttemptStatus,
        at_backend: bool,
        /// The attempt that this one was queued behind, if it was never started: its successors wait for that
        /// attempt instead.
        predecessor: Option<AttemptId>,
    },
}

impl Agent {
    /// Makes the agent of the pool in `hello`. It connects after [`Input::InitialSync`].
    pub fn new(hello: Hello, now: Timestamp) -> Self {
        let jitter = hello.instance.0 as u64 | 1;
        Self {
            hello,
            now,
            synced: false,
            connection: Connection::Down { retry_at: now },
            nodes: BTreeMap::new(),
            attempts: BTreeMap::new(),
            successors: BTreeMap::new(),
            expiring: BTreeSet::new(),
            forgettable: BTreeSet::new(),
            stale_ids: BTreeMap::new(),
            journal: JournalId::default(),
            term: Term(0),
            renewed_at: Timestamp(0),
            backoff: BACKOFF,
            jitter,
            unreported: BTreeSet::new(),
            effects: Vec::new(),
        }
    }

    /// Processes one input and returns the effects to execute, in order. The last is [`Effect::WakeAt`].
    ///
    /// A `now` before that of an earlier step counts as that one.
    pub fn step(&mut self, now: Timestamp, input: Input) -> Vec<Effect> {
        self.now = self.now.max(now);
        match input {
            Input::InitialSync { nodes, attempts } => self.apply_initial_sync(nodes, attempts),
            Input::Connected => self.send_hello(),
            Input::Disconnected => self.reset_connection(),
            Input::FromBroker(message) => self.receive(message),
            Input::NodesChanged { nodes, removed } => self.change_nodes(nodes, removed),
            Input::StatusChanged { attempt, status } => self.update_status(attempt, status),
            Input::Wake => {}
        }
        self.disconnect_if_timed_out();
        self.connect_if_due();
        self.send_heartbeat_if_due();
        self.expire_due();
        self.forget_due();
        self.send_reports();
        self.effects.push(Effect::WakeAt(self.next_wake()));
        std::mem::take(&mut self.effects)
    }

    /// True while a session with the broker is established.
    pub fn is_up(&self) -> bool {
        matches!(self.connection, Connection::Up(_))
    }

    /// Returns the number of nodes of the pool.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    fn apply_initial_sync(&mut self, nodes: Vec<NodeSpec>, attempts: Vec<ObservedAttempt>) {
        self.synced = true;
        self.nodes = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
        for observed in attempts {
            self.update_high_water(observed.high_water);
            let ended = matches!(observed.status, AttemptStatus::Ended { .. });
            let state = if ended {
                TrackedState::Ended { status: observed.status, at_backend: true, predecessor: None }
            } else {
                TrackedState::Present(Some(observed.status))
            };
            let ObservedAttempt { attempt, ordered_revision, start_by, .. } = observed;
            self.attempts.insert(attempt, TrackedAttempt { ordered_revision, start_by, state });
        }
    }

    /// When the connection counts as lost if no message arrives: a half-open connection reports no error.
    fn timeout_at(&self) -> Timestamp {
        match &self.connection {
            Connection::Handshaking { sent_at } => sent_at.plus_ms(HEARTBEAT_TIMEOUT_MS),
            Connection::Up(session) => {
                session.last_received_at.plus_ms(HEARTBEAT_TIMEOUT_MS.max(3 * session.accepted.heartbeat_ms))
            }
            Connection::Down { .. } | Connection::Connecting => Timestamp::NEVER,
        }
    }

    fn disconnect_if_timed_out(&mut self) {
        if self.timeout_at() <= self.now {
            self.disconnect();
        }
    }

    fn connect_if_due(&mut self) {
        if let Connection::Down { retry_at } = self.connection
            && self.synced
            && retry_at <= self.now
        {
            self.connection = Connection::Connecting;
            self.effects.push(Effect::Connect);
        }
    }

    fn send_hello(&mut self) {
        if matches!(self.connection, Connection::Connecting) {
            self.connection = Connection::Handshaking { sent_at: self.now };
            self.effects.push(Effect::Send(FromAgent::Hello(self.hello.clone())));
        }
    }

    /// Drops the session and what depends on it, and schedules the next connection attempt.
    fn reset_connection(&mut self) {
        if matches!(self.connection, Connection::Down { .. }) {
            return;
        }
        let window_ms = self.backoff.next_wait().as_millis() as u64;
        // As in SplitMix64 (Steele, Lea and Flood 2014): agents that lost one broker must not reconnect at
        // the same time.
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.jitter ^ (self.jitter >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let wait_ms = 1 + (mixed >> 33) % window_ms;
        self.connection = Connection::Down { retry_at: self.now.plus_ms(wait_ms) };
        self.unreported.clear();
        // The next full set repeats the orders of waiting attempts that are still valid.
        self.attempts.retain(|_, tracked| !matches!(tracked.state, TrackedState::Waiting(_)));
        self.successors.clear();
        self.expiring.clear();
        self.stale_ids.clear();
    }

    fn disconnect(&mut self) {
        self.effects.push(Effect::Disconnect);
        self.reset_connection();
    }

    fn receive(&mut self, message: ToAgent) {
        if let Connection::Up(session) = &mut self.connection {
            session.last_received_at = self.now;
        }
        let term = match &message {
            ToAgent::Orders { term, .. }
            | ToAgent::Stops { term, .. }
            | ToAgent::HeartbeatAnswer { term, .. } => *term,
            ToAgent::Accepted(_) | ToAgent::Refused { .. } | ToAgent::Acknowledged { .. } => self.term,
        };
        if term < self.term {
            // The broker is deposed: its orders are not valid.
            return self.disconnect();
        }
        match message {
            ToAgent::Accepted(accepted) => self.begin_session(accepted),
            ToAgent::Refused { code, .. } => {
                // With the longest back-off: an immediate reconnect would displace the accepted session,
                // which would then do the same.
                match code {
                    RefusedCode::PoolClaimed
                    | RefusedCode::Superseded
                    | RefusedCode::InvalidPool
                    | RefusedCode::UnknownWork => self.backoff.skip_to_longest(),
                    RefusedCode::ProtocolError | RefusedCode::Unavailable => {}
                }
                self.disconnect();
            }
            ToAgent::Orders { part, specs, orders, .. } => self.handle_orders(part, specs, orders),
            ToAgent::Stops { stops, .. } => stops.into_iter().for_each(|stop| self.handle_stop(stop)),
            ToAgent::Acknowledged { attempts } => {
                attempts.into_iter().for_each(|attempt| self.acknowledge(attempt))
            }
            ToAgent::HeartbeatAnswer { sequence, now, high_water, .. } => {
                self.store_high_water(high_water);
                self.renew(sequence, now);
            }
        }
    }

    /// Establishes the session and sends the full sets of nodes and attempts.
    fn begin_session(&mut self, accepted: Accepted) {
        let Connection::Handshaking { sent_at } = self.connection else { return self.disconnect() };
        // A deposed broker has no newer high-water mark than its successor has sent. A journal that was
        // restored after an older copy of it had been in use has one, whatever the terms of that copy were.
        let newer = |high_water: &HighWaterMark| {
            self.hello.high_water.is_some_and(|newest| newest.revision < high_water.revision)
        };
        let deposed = accepted.journal == self.journal && accepted.term < self.term;
        if deposed && !accepted.high_water.as_ref().is_some_and(newer) {
            return self.disconnect();
        }
        self.journal = accepted.journal;
        self.term = accepted.term;
        self.store_high_water(accepted.high_water);
        self.hello.last_epoch = Some(accepted.epoch);
        self.effects.push(Effect::StoreEpoch(accepted.epoch));
        self.backoff.reset();
        // The hello was received, so it counts as the first heartbeat.
        self.renew_leases(sent_at);
        let skew_ms = skew_ms(sent_at, accepted.now);
        self.connection = Connection::Up(Box::new(Session {
            accepted,
            skew_ms,
            heartbeat_at: self.now,
            last_received_at: self.now,
            sequence: 0,
            heartbeats_sent: VecDeque::new(),
            spec_window: SpecWindow::default(),
            specs: BTreeMap::new(),
            orders_complete: false,
            evicted_specs: Vec::new(),
        }));
        let nodes: Vec<NodeSpec> = self.nodes.values().cloned().collect();
        let mut chunks = nodes.chunks(NODES_MAX).peekable();
        loop {
            let nodes = chunks.next().map(<[NodeSpec]>::to_vec).unwrap_or_default();
            let part = if chunks.peek().is_some() { Part::FullMore } else { Part::FullEnd };
            let inventory = Inventory { epoch: accepted.epoch, part, nodes, removed: Vec::new() };
            self.effects.push(Effect::Send(FromAgent::Inventory(inventory)));
            if part == Part::FullEnd {
                break;
            }
        }
        let ours = self.attempts.keys().filter(|attempt| attempt.journal == accepted.journal);
        let all: Vec<AttemptReport> = ours.filter_map(|attempt| self.report_of(*attempt)).collect();
        let mut chunks = all.chunks(REPORTS_MAX).peekable();
        loop {
            let reports = chunks.next().map(<[AttemptReport]>::to_vec).unwrap_or_default();
            let part = if chunks.peek().is_some() { Part::FullMore } else { Part::FullEnd };
            self.effects.push(Effect::Send(FromAgent::Observed { epoch: accepted.epoch, part, reports }));
            if part == Part::FullEnd {
                break;
            }
        }
    }

    fn send_heartbeat_if_due(&mut self) {
        let now = self.now;
        let Connection::Up(session) = &mut self.connection else { return };
        if session.heartbeat_at > now {
            return;
        }
        session.heartbeat_at = now.plus_ms(session.accepted.heartbeat_ms);
        session.sequence += 1;
        session.heartbeats_sent.push_back((session.sequence, now));
        if session.heartbeats_sent.len() > HEARTBEATS_MAX {
            session.heartbeats_sent.pop_front();
        }
        let message = FromAgent::Heartbeat { epoch: session.accepted.epoch, sequence: session.sequence };
        self.effects.push(Effect::Send(message));
    }

    /// Replaces the high-water mark of the hello if this one is newer, and returns whether it was. The newest
    /// mark proves to a broker on an older copy of its journal that events are missing.
    fn update_high_water(&mut self, high_water: Option<HighWaterMark>) -> bool {
        let Some(high_water) = high_water else { return false };
        let is_new = self.hello.high_water.is_none_or(|newest| {
            if newest.journal == high_water.journal {
                newest.revision < high_water.revision
            } else {
                // A mark left by another journal's work must not replace the current journal's.
                high_water.journal == self.journal
            }
        });
        if is_new {
            self.hello.high_water = Some(high_water);
        }
        is_new
    }

    /// Updates the high-water mark, and stores it for the agent's next process. Marks of orders need no such
    /// storage: the backend stores them with their attempts.
    fn store_high_water(&mut self, high_water: Option<HighWaterMark>) {
        if self.update_high_water(high_water) {
            self.effects.extend(high_water.map(Effect::StoreHighWater));
        }
    }

    /// Renews the leases from when the answered heartbeat was sent on. `broker_now` is the broker's
    /// clock when it received that heartbeat.
    fn renew(&mut self, sequence: u64, broker_now: Timestamp) {
        let Connection::Up(session) = &mut self.connection else { return };
        while let Some((number, sent_at)) =
            session.heartbeats_sent.front().copied().filter(|(number, _)| *number <= sequence)
        {
            session.heartbeats_sent.pop_front();
            if number == sequence {
                // Clocks drift apart by seconds a day. A broker of an older version sends 0.
                if broker_now != Timestamp::default() {
                    session.skew_ms = skew_ms(sent_at, broker_now);
                }
                let sent_at = if Mutant::LeaseFromAnswer.is_on() { self.now } else { sent_at };
                return self.renew_leases(sent_at);
            }
        }
    }

    fn renew_leases(&mut self, from: Timestamp) {
        if from > self.renewed_at {
            self.renewed_at = from;
            self.effects.push(Effect::RenewLeases { from });
        }
    }

    fn change_nodes(&mut self, nodes: Vec<NodeSpec>, removed: Vec<String>) {
        for name in &removed {
            self.nodes.remove(name);
        }
        for node in &nodes {
            self.nodes.insert(node.name.clone(), node.clone());
        }
        let Connection::Up(session) = &self.connection else { return };
        let inventory = Inventory { epoch: session.accepted.epoch, part: Part::Delta, nodes, removed };
        self.effects.push(Effect::Send(FromAgent::Inventory(inventory)));
    }

    fn next_wake(&self) -> Timestamp {
        let connection = match &self.connection {
            Connection::Down { retry_at } if self.synced => *retry_at,
            Connection::Up(session) => session.heartbeat_at,
            Connection::Down { .. } | Connection::Connecting | Connection::Handshaking { .. } => {
                Timestamp::NEVER
            }
        };
        let forget = self.forgettable.first().map_or(Timestamp::NEVER, |(at, _)| *at);
        // A waiting attempt may be started until its `start_by`, inclusive, and expires after it.
        let expire = self.expiring.first().map_or(Timestamp::NEVER, |(at, _)| at.plus_ms(1));
        connection.min(forget).min(expire).min(self.timeout_at()).max(self.now)
    }
}

/// Returns by how many milliseconds this agent's clock is ahead of the broker's, from a message sent at
/// `sent_at` on the one and received at `received_at` on the other.
///
/// The result is too low by the message's transit time. That is the safe side: an attempt may miss its
/// `start_by`, but never starts after it.
fn skew_ms(sent_at: Timestamp, received_at: Timestamp) -> i64 {
    i64::try_from(sent_at.0).unwrap_or(0) - i64::try_from(received_at.0).unwrap_or(0)
}
