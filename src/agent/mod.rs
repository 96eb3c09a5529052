//! The agent as a step machine: it reconciles what its backend runs with what its broker wants.
//!
//! Its memory is the backend: each object there carries its attempt's id, and the agent adopts
//! before it creates. It stops only what an order names, creates nothing after an order's
//! start-by time, and repeats outcomes until the broker says that they are durable.

mod reconcile;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::model::attempt::{AttemptReport, AttemptStatus};
use crate::model::exchange::{
    Accepted, FromAgent, Hello, Inventory, Part, RefusedCode, SpecWindow, StartOrder, Stop, ToAgent,
};
use crate::model::high_water::HighWaterMark;
use crate::model::id::{AttemptId, JournalId, Revision, SpecId, Term};
use crate::model::mutant::Mutant;
use crate::model::pool::NodeSpec;
use crate::model::spec::{JobSpec, OnPoolLost};
use crate::model::time::Timestamp;

/// What happens to the agent.
#[derive(Debug)]
pub enum Input {
    /// The backend has told all of its nodes and attempts: the agent may speak.
    InitialSync {
        nodes: Vec<NodeSpec>,
        attempts: Vec<ObservedAttempt>,
    },
    /// The connection stands; the hello may go out.
    Connected,
    Disconnected,
    FromBroker(ToAgent),
    /// Nodes that are new or altered, and names of those that are gone.
    NodesChanged {
        nodes: Vec<NodeSpec>,
        removed: Vec<String>,
    },
    /// An attempt moved on at the backend.
    StatusChanged {
        attempt: AttemptId,
        status: AttemptStatus,
    },
    Wake,
}

/// An attempt found at the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedAttempt {
    pub attempt: AttemptId,
    pub ordered_revision: Revision,
    pub start_by: Timestamp,
    /// As it came with the order.
    pub high_water: Option<HighWaterMark>,
    pub status: AttemptStatus,
}

/// What is to be done. Effects on one attempt must be carried out in their order.
#[derive(Debug)]
pub enum Effect {
    Connect,
    Disconnect,
    Send(FromAgent),
    /// Create the attempt unless it is there; `StatusChanged` tells what became of it.
    StartRequest(Box<StartRequest>),
    Stop(Stop),
    /// The outcome is durable at the broker: the object or tombstone may go.
    Forget(AttemptId),
    /// Attempts with a lease may go on until then, by this agent's clock.
    RenewLease {
        until: Timestamp,
    },
    /// Keep this for the next life: it goes into that one's hello.
    Remember(HighWaterMark),
    /// Step again no later than this.
    WakeAt(Timestamp),
}

/// An order with its spec.
#[derive(Clone, Debug, PartialEq)]
pub struct StartRequest {
    pub order: StartOrder,
    pub spec: Arc<JobSpec>,
    /// By this agent's clock: never create after this.
    pub start_by: Timestamp,
    /// It ends when the lease does.
    pub leased: bool,
}

/// The first and the longest window within which the next try to connect falls, anywhere: a broker
/// that is back must not be without its pools for long, nor meet a thousand agents at once.
const BACKOFF_MS: (u64, u64) = (1_000, 5_000);
/// Reports in one message.
const REPORTS_MAX: usize = 256;
/// Nodes in one message: a node with its labels and devices takes a kilobyte or two.
const NODES_MAX: usize = 64;
/// Silence after which the broker is taken for gone.
const HEARTBEAT_TIMEOUT_MS: u64 = 10_000;
/// Heartbeats whose sending time is remembered: later answers renew nothing.
const HEARTBEATS_MAX: usize = 16;

/// The agent's machine.
#[derive(Debug)]
pub struct Agent {
    hello: Hello,
    now: Timestamp,
    opened: bool,
    link: Link,
    nodes: BTreeMap<String, NodeSpec>,
    attempts: BTreeMap<AttemptId, TrackedAttempt>,
    /// Attempts that wait, by the one whose place they take.
    successors: BTreeMap<AttemptId, BTreeSet<AttemptId>>,
    /// When waiting attempts must not be started any more.
    expiring: BTreeSet<(Timestamp, AttemptId)>,
    /// Ended attempts whose outcome is durable at the broker, by when they may be forgotten.
    forgettable: BTreeSet<(Timestamp, AttemptId)>,
    /// Orders that wait for the end of something else of their name, with their revisions.
    stale_ids: BTreeMap<AttemptId, Revision>,
    /// Whose term it is: terms of two journals are not to be compared.
    journal: JournalId,
    term: Term,
    lease_until: Timestamp,
    tries: u32,
    /// Spreads reconnects: a counter-based hash of the instance.
    jitter: u64,
    reports: BTreeSet<AttemptId>,
    out: Vec<Effect>,
}

/// The connection to the broker.
#[derive(Debug)]
enum Link {
    Down {
        retry_at: Timestamp,
    },
    Connecting,
    /// The hello is sent, the accepted has not come.
    Handshaking {
        sent_at: Timestamp,
    },
    Up(Box<Up>),
}

#[derive(Debug)]
struct Up {
    accepted: Accepted,
    /// This agent's clock less the broker's, in milliseconds.
    skew_ms: i64,
    heartbeat_at: Timestamp,
    /// When the broker last spoke.
    last_received_at: Timestamp,
    sequence: u64,
    sent: VecDeque<(u64, Timestamp)>,
    window: SpecWindow,
    specs: BTreeMap<SpecId, Arc<JobSpec>>,
    /// The full set of orders is in: an attempt that is not known now is gone.
    orders_known: bool,
    /// Out of the window, but the message at hand may need them.
    stale_specs: Vec<SpecId>,
}

/// An attempt that this agent knows of.
#[derive(Debug)]
struct TrackedAttempt {
    ordered_revision: Revision,
    start_by: Timestamp,
    state: TrackedState,
}

#[derive(Debug)]
enum TrackedState {
    /// Ordered, to be launched when the attempt it follows is gone.
    Waiting(Box<StartRequest>),
    /// At the backend; without a status it is on the way there, and nothing is told of it: who hears that it
    /// starts takes it for lost when the backend doesn't know it.
    Present(Option<AttemptStatus>),
    /// Ended; `at_backend` tells whether there is something to forget.
    Gone {
        status: AttemptStatus,
        at_backend: bool,
        /// It never had its place: whoever follows it waits for this one instead.
        ahead: Option<AttemptId>,
    },
}

impl Agent {
    /// An agent that will speak for the pool in `hello`.
    pub fn new(hello: Hello, now: Timestamp) -> Self {
        let jitter = hello.instance.0 as u64 | 1;
        Self {
            hello,
            now,
            opened: false,
            link: Link::Down { retry_at: now },
            nodes: BTreeMap::new(),
            attempts: BTreeMap::new(),
            successors: BTreeMap::new(),
            expiring: BTreeSet::new(),
            forgettable: BTreeSet::new(),
            stale_ids: BTreeMap::new(),
            journal: JournalId::default(),
            term: Term(0),
            lease_until: Timestamp(0),
            tries: 0,
            jitter,
            reports: BTreeSet::new(),
            out: Vec::new(),
        }
    }

    /// Takes one input and says what is to be done.
    pub fn step(&mut self, now: Timestamp, input: Input) -> Vec<Effect> {
        self.now = self.now.max(now);
        match input {
            Input::InitialSync { nodes, attempts } => self.open(nodes, attempts),
            Input::Connected => self.send_hello(),
            Input::Disconnected => self.lose_link(),
            Input::FromBroker(message) => self.receive(message),
            Input::NodesChanged { nodes, removed } => self.change_nodes(nodes, removed),
            Input::StatusChanged { attempt, status } => self.note_status(attempt, status),
            Input::Wake => {}
        }
        self.disconnect_if_timed_out();
        self.connect_if_due();
        self.beat_if_due();
        self.expire_due();
        self.forget_due();
        self.send_reports();
        self.out.push(Effect::WakeAt(self.next_wake()));
        std::mem::take(&mut self.out)
    }

    /// The session with the broker stands.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// How many nodes the pool has.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    fn open(&mut self, nodes: Vec<NodeSpec>, attempts: Vec<ObservedAttempt>) {
        self.opened = true;
        self.nodes = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
        for seen in attempts {
            self.note_high_water(seen.high_water);
            let ended = matches!(seen.status, AttemptStatus::Ended { .. });
            let state = if ended {
                TrackedState::Gone { status: seen.status, at_backend: true, ahead: None }
            } else {
                TrackedState::Present(Some(seen.status))
            };
            let local =
                TrackedAttempt { ordered_revision: seen.ordered_revision, start_by: seen.start_by, state };
            self.attempts.insert(seen.attempt, local);
        }
    }

    /// When a broker that says nothing is taken for gone: a half-open connection tells nobody.
    fn timeout_at(&self) -> Timestamp {
        match &self.link {
            Link::Handshaking { sent_at } => sent_at.plus_ms(HEARTBEAT_TIMEOUT_MS),
            Link::Up(up) => {
                up.last_received_at.plus_ms(HEARTBEAT_TIMEOUT_MS.max(3 * up.accepted.heartbeat_ms))
            }
            Link::Down { .. } | Link::Connecting => Timestamp::NEVER,
        }
    }

    fn disconnect_if_timed_out(&mut self) {
        if self.timeout_at() <= self.now {
            self.disconnect();
        }
    }

    fn connect_if_due(&mut self) {
        if let Link::Down { retry_at } = self.link
            && self.opened
            && retry_at <= self.now
        {
            self.link = Link::Connecting;
            self.out.push(Effect::Connect);
        }
    }

    fn send_hello(&mut self) {
        if matches!(self.link, Link::Connecting) {
            self.link = Link::Handshaking { sent_at: self.now };
            self.out.push(Effect::Send(FromAgent::Hello(self.hello.clone())));
        }
    }

    fn lose_link(&mut self) {
        if matches!(self.link, Link::Down { .. }) {
            return;
        }
        self.tries = self.tries.saturating_add(1);
        let (first, most) = BACKOFF_MS;
        let window_ms = first.checked_shl(self.tries.saturating_sub(1).min(16)).unwrap_or(most).min(most);
        // Splitmix64: a thousand agents that lost one broker must not come back as one.
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.jitter ^ (self.jitter >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let wait_ms = 1 + (mixed >> 33) % window_ms;
        self.link = Link::Down { retry_at: self.now.plus_ms(wait_ms) };
        self.reports.clear();
        // Orders that were not begun come again with the next full set, if they still stand.
        self.attempts.retain(|_, local| !matches!(local.state, TrackedState::Waiting(_)));
        self.successors.clear();
        self.expiring.clear();
        self.stale_ids.clear();
    }

    fn disconnect(&mut self) {
        self.out.push(Effect::Disconnect);
        self.lose_link();
    }

    fn receive(&mut self, message: ToAgent) {
        if let Link::Up(up) = &mut self.link {
            up.last_received_at = self.now;
        }
        let term = match &message {
            ToAgent::Orders { term, .. }
            | ToAgent::Stops { term, .. }
            | ToAgent::HeartbeatAnswer { term, .. } => *term,
            ToAgent::Accepted(_) | ToAgent::Refused { .. } | ToAgent::Acknowledged { .. } => self.term,
        };
        if term < self.term {
            // A deposed broker: its orders are void.
            return self.disconnect();
        }
        match message {
            ToAgent::Accepted(accepted) => self.begin_session(accepted),
            ToAgent::Refused { code, .. } => {
                // Trying again at once would only take turns with whoever was let in.
                self.tries = match code {
                    RefusedCode::PoolClaimed
                    | RefusedCode::Superseded
                    | RefusedCode::InvalidPool
                    | RefusedCode::UnknownWork => 6,
                    RefusedCode::ProtocolError | RefusedCode::Unavailable => self.tries,
                };
                self.disconnect();
            }
            ToAgent::Orders { part, specs, orders, .. } => self.take_orders(part, specs, orders),
            ToAgent::Stops { stops, .. } => stops.into_iter().for_each(|stop| self.take_stop(stop)),
            ToAgent::Acknowledged { attempts } => {
                attempts.into_iter().for_each(|attempt| self.acknowledge(attempt))
            }
            ToAgent::HeartbeatAnswer { sequence, now, high_water, .. } => {
                self.remember(high_water);
                self.renew(sequence, now);
            }
        }
    }

    /// The session stands: full sets go out.
    fn begin_session(&mut self, accepted: Accepted) {
        let Link::Handshaking { sent_at } = self.link else { return self.disconnect() };
        // A deposed broker has nothing newer than what its successor has told. A journal that was put
        // back after an older copy of it had been in use has, whatever that copy's terms were.
        let newer = |high_water: &HighWaterMark| {
            self.hello.high_water.is_some_and(|seen| seen.revision < high_water.revision)
        };
        let deposed = accepted.journal == self.journal && accepted.term < self.term;
        if deposed && !accepted.high_water.as_ref().is_some_and(newer) {
            return self.disconnect();
        }
        self.journal = accepted.journal;
        self.term = accepted.term;
        self.remember(accepted.high_water);
        self.tries = 0;
        // The broker has heard the hello: it counts as the first heartbeat.
        self.extend_lease(sent_at.plus_ms(accepted.lease_ms));
        let skew_ms = skew_ms(sent_at, accepted.now);
        self.link = Link::Up(Box::new(Up {
            accepted,
            skew_ms,
            heartbeat_at: self.now,
            last_received_at: self.now,
            sequence: 0,
            sent: VecDeque::new(),
            window: SpecWindow::default(),
            specs: BTreeMap::new(),
            orders_known: false,
            stale_specs: Vec::new(),
        }));
        let nodes: Vec<NodeSpec> = self.nodes.values().cloned().collect();
        let mut chunks = nodes.chunks(NODES_MAX).peekable();
        loop {
            let nodes = chunks.next().map(<[NodeSpec]>::to_vec).unwrap_or_default();
            let part = if chunks.peek().is_some() { Part::FullMore } else { Part::FullEnd };
            let inventory = Inventory { epoch: accepted.epoch, part, nodes, removed: Vec::new() };
            self.out.push(Effect::Send(FromAgent::Inventory(inventory)));
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
            self.out.push(Effect::Send(FromAgent::Observed { epoch: accepted.epoch, part, reports }));
            if part == Part::FullEnd {
                break;
            }
        }
    }

    fn beat_if_due(&mut self) {
        let now = self.now;
        let Link::Up(up) = &mut self.link else { return };
        if up.heartbeat_at > now {
            return;
        }
        up.heartbeat_at = now.plus_ms(up.accepted.heartbeat_ms);
        up.sequence += 1;
        up.sent.push_back((up.sequence, now));
        if up.sent.len() > HEARTBEATS_MAX {
            up.sent.pop_front();
        }
        let message = FromAgent::Heartbeat { epoch: up.accepted.epoch, sequence: up.sequence };
        self.out.push(Effect::Send(message));
    }

    /// Keeps the newest stamp: it shows a broker on an older disk that there was more. Tells whether
    /// it is a new one.
    fn note_high_water(&mut self, high_water: Option<HighWaterMark>) -> bool {
        let Some(high_water) = high_water else { return false };
        let is_new = self.hello.high_water.is_none_or(|seen| {
            if seen.journal == high_water.journal {
                seen.revision < high_water.revision
            } else {
                // What is left of another journal's work must not displace the present one's.
                high_water.journal == self.journal
            }
        });
        if is_new {
            self.hello.high_water = Some(high_water);
        }
        is_new
    }

    /// The same, also for the agent's next life. Stamps of orders are kept with their attempts.
    fn remember(&mut self, high_water: Option<HighWaterMark>) {
        if self.note_high_water(high_water) {
            self.out.extend(high_water.map(Effect::Remember));
        }
    }

    /// The lease counts from when the answered heartbeat was sent.
    fn renew(&mut self, sequence: u64, last_received_at: Timestamp) {
        let Link::Up(up) = &mut self.link else { return };
        while let Some((number, sent_at)) = up.sent.front().copied().filter(|(number, _)| *number <= sequence)
        {
            up.sent.pop_front();
            if number == sequence {
                // Clocks drift apart: in a day by seconds. An older broker doesn't say.
                if last_received_at != Timestamp::default() {
                    up.skew_ms = skew_ms(sent_at, last_received_at);
                }
                let sent_at = if Mutant::LeaseFromAnswer.is_on() { self.now } else { sent_at };
                let until = sent_at.plus_ms(up.accepted.lease_ms);
                return self.extend_lease(until);
            }
        }
    }

    fn extend_lease(&mut self, until: Timestamp) {
        if until > self.lease_until {
            self.lease_until = until;
            self.out.push(Effect::RenewLease { until });
        }
    }

    fn change_nodes(&mut self, nodes: Vec<NodeSpec>, removed: Vec<String>) {
        for name in &removed {
            self.nodes.remove(name);
        }
        for node in &nodes {
            self.nodes.insert(node.name.clone(), node.clone());
        }
        let Link::Up(up) = &self.link else { return };
        let inventory = Inventory { epoch: up.accepted.epoch, part: Part::Delta, nodes, removed };
        self.out.push(Effect::Send(FromAgent::Inventory(inventory)));
    }

    fn next_wake(&self) -> Timestamp {
        let link = match &self.link {
            Link::Down { retry_at } if self.opened => *retry_at,
            Link::Up(up) => up.heartbeat_at,
            Link::Down { .. } | Link::Connecting | Link::Handshaking { .. } => Timestamp::NEVER,
        };
        let forget = self.forgettable.first().map_or(Timestamp::NEVER, |(at, _)| *at);
        // A waiting attempt may be started until its start-by, and comes back after it.
        let expire = self.expiring.first().map_or(Timestamp::NEVER, |(at, _)| at.plus_ms(1));
        link.min(forget).min(expire).min(self.timeout_at()).max(self.now)
    }
}

/// How far this agent's clock is ahead of the broker's, as a message says that was sent and heard
/// at these times: less the way there, so that what must not start late rather starts not at all.
fn skew_ms(sent_at: Timestamp, last_received_at: Timestamp) -> i64 {
    i64::try_from(sent_at.0).unwrap_or(0) - i64::try_from(last_received_at.0).unwrap_or(0)
}

/// It was ordered with a lease.
fn is_leased(spec: &JobSpec) -> bool {
    spec.on_pool_lost == OnPoolLost::Requeue
}
