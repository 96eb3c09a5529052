//! Links between agents and brokers: delay, loss, repetition, reordering, partitions, resets.
//!
//! A connection delivers frames in order, as TCP does, unless a fault of the link conditions reorders or
//! drops them. Frames that a partition delays arrive when it ends, if the connection still exists then.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;
use weir::broker::{Input, SessionId};
use weir::model::exchange::{FrameCheck, FrameCounter, FromAgent, ToAgent};
use weir::model::id::Epoch;

use super::event::{AgentEvent, BrokerEvent, Event};
use super::schedule::Cut;
use super::{Purpose, World, split};

/// Connections that are open or closing, and the conditions of the links.
pub(crate) struct Network {
    rng: StdRng,
    next: u64,
    links: BTreeMap<SessionId, Link>,
    /// Partitions: agent, directions, end time.
    cuts: Vec<(usize, Cut, u64)>,
    /// Conditions of each agent's link.
    conditions: Vec<LinkConditions>,
    /// Heartbeats that a broker received after it had been deposed.
    unanswerable: BTreeSet<(SessionId, u64)>,
    /// Sessions of agents with a copied state folder, and the last epoch that it knows of.
    pub(crate) copies: BTreeMap<SessionId, Epoch>,
}

/// Conditions of a link until a time; afterwards it delivers in order and without loss.
#[derive(Clone, Copy, Default)]
pub(crate) struct LinkConditions {
    pub(crate) until: u64,
    pub(crate) loss_permille: u32,
    pub(crate) repeat_permille: u32,
    pub(crate) reorder_permille: u32,
    /// Longest additional delay.
    pub(crate) delay_ms: u64,
}

impl LinkConditions {
    /// Conditions with these probabilities of loss, repetition and reordering.
    pub(crate) fn new(until: u64, permille: [u32; 3], delay_ms: u64) -> Self {
        let [loss_permille, repeat_permille, reorder_permille] = permille;
        Self { until, loss_permille, repeat_permille, reorder_permille, delay_ms }
    }
}

struct Link {
    agent: usize,
    host: usize,
    host_incarnation: u32,
    /// Indexed by `TO_BROKER` and `TO_AGENT`.
    directions: [Direction; 2],
}

#[derive(Default)]
struct Direction {
    /// Frames sent.
    sent: u64,
    inbox: FrameCounter,
    /// Earliest arrival of the next frame, so that frames arrive in order unless a fault reorders them.
    from: u64,
    /// The receiving end has closed the connection.
    closed: bool,
}

const TO_BROKER: usize = 0;
const TO_AGENT: usize = 1;
/// Time after which an agent's connection attempt fails.
const CONNECT_MS: u64 = 5_000;

impl Network {
    pub(crate) fn new(seed: u64, agents: usize) -> Self {
        let conditions = vec![LinkConditions::default(); agents];
        let rng = split(seed, Purpose::Network);
        Self {
            rng,
            conditions,
            next: 0,
            links: BTreeMap::new(),
            cuts: Vec::new(),
            unanswerable: BTreeSet::new(),
            copies: BTreeMap::new(),
        }
    }

    /// An unused session id.
    pub(crate) fn next_session(&mut self) -> SessionId {
        self.next += 1;
        SessionId(self.next)
    }

    pub(crate) fn cut(&mut self, agent: usize, cut: Cut, until: u64) {
        self.cuts.push((agent, cut, until));
    }

    pub(crate) fn set_conditions(&mut self, agent: usize, conditions: LinkConditions) {
        self.conditions[agent] = conditions;
    }

    /// Ends all partitions and resets all link conditions.
    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        self.conditions.fill(LinkConditions::default());
    }

    /// End of the partition that cuts this direction; `None` if none does.
    fn cut_until(&self, now: u64, agent: usize, direction: usize) -> Option<u64> {
        let cuts = self.cuts.iter().filter(|(cut_agent, cut, until)| {
            let hits = match cut {
                Cut::ToBroker => direction == TO_BROKER,
                Cut::FromBroker => direction == TO_AGENT,
                Cut::Both => true,
            };
            *cut_agent == agent && hits && *until > now
        });
        cuts.map(|(_, _, until)| *until).max()
    }

    /// The heartbeat reached a deposed broker, so an answer to it must not renew leases.
    pub(crate) fn is_unanswerable(&self, session: SessionId, sequence: u64) -> bool {
        self.unanswerable.contains(&(session, sequence))
    }

    /// The agent at the other end of a session.
    pub(crate) fn agent_of(&self, session: SessionId) -> Option<usize> {
        self.links.get(&session).map(|link| link.agent)
    }
}

impl World {
    /// Connects an agent to a broker, or fails the attempt.
    pub(crate) fn dial(&mut self, agent: usize, incarnation: u32) {
        let blocked = [TO_BROKER, TO_AGENT]
            .iter()
            .any(|direction| self.network.cut_until(self.now, agent, *direction).is_some());
        let host = self.pick_broker();
        let paused = host.is_some_and(|host| self.brokers[host].paused);
        let what = AgentEvent::Unreachable;
        let Some(host) = host.filter(|_| !blocked && !paused) else {
            let delay = if blocked || paused { CONNECT_MS } else { 1 };
            return self.after(delay, Event::Agent { agent, incarnation, what });
        };
        let session = self.network.next_session();
        let host_incarnation = self.brokers[host].incarnation;
        let link = Link { agent, host, host_incarnation, directions: Default::default() };
        self.network.links.insert(session, link);
        self.after(1, Event::Agent { agent, incarnation, what: AgentEvent::Connected { session } });
    }

    /// The broker that an agent or client reaches: mostly the writer, in some cases another running one.
    pub(crate) fn pick_broker(&mut self) -> Option<usize> {
        let up: Vec<usize> =
            (0..self.brokers.len()).filter(|host| self.brokers[*host].machine.is_some()).collect();
        let writer = self.writer();
        if up.len() > 1 && self.network.rng.random_bool(0.2) {
            return Some(up[self.network.rng.random_range(0..up.len())]);
        }
        writer.or(up.first().copied())
    }

    /// Arrival times of a frame: none if it is lost, two if it is repeated.
    fn arrival_times(&mut self, session: SessionId, direction: usize) -> Vec<u64> {
        let now = self.now;
        let Some(link) = self.network.links.get_mut(&session) else { return Vec::new() };
        let conditions = self.network.conditions[link.agent];
        let rng = &mut self.network.rng;
        let mut at = now + rng.random_range(1..10);
        if conditions.until <= now {
            at = at.max(link.directions[direction].from);
            link.directions[direction].from = at;
            return vec![at];
        }
        at += rng.random_range(0..=conditions.delay_ms);
        let chance = rng.random_range(0..1_000);
        if chance < conditions.loss_permille {
            return Vec::new();
        }
        if chance < conditions.loss_permille + conditions.reorder_permille {
            // Frames sent later may arrive earlier, since `from` is not raised.
            return vec![at + rng.random_range(1..2_000)];
        }
        at = at.max(link.directions[direction].from);
        link.directions[direction].from = at;
        let repeated = rng.random_range(0..1_000) < conditions.repeat_permille;
        if repeated { vec![at, at + rng.random_range(1..5_000)] } else { vec![at] }
    }

    pub(crate) fn send_to_broker(&mut self, agent: usize, message: FromAgent) {
        if let Some(session) = self.agents[agent].session {
            self.send_in(session, message);
        }
    }

    /// Connects an agent with a copy of a state folder. It has no attempts, and receives nothing.
    pub(crate) fn start_copy(&mut self, agent: usize) {
        let (Some(hello), Some(host)) = (self.agents[agent].copy.clone(), self.writer()) else { return };
        let session = self.network.next_session();
        let host_incarnation = self.brokers[host].incarnation;
        let link = Link { agent, host, host_incarnation, directions: Default::default() };
        self.network.links.insert(session, link);
        self.network.copies.insert(session, hello.last_epoch.unwrap_or_default());
        self.send_in(session, FromAgent::Hello(hello));
    }

    fn send_in(&mut self, session: SessionId, message: FromAgent) {
        let Some(link) = self.network.links.get_mut(&session) else { return };
        link.directions[TO_BROKER].sent += 1;
        let (number, host, incarnation) = (link.directions[TO_BROKER].sent, link.host, link.host_incarnation);
        for at in self.arrival_times(session, TO_BROKER) {
            let message = Box::new(message.clone());
            self.at(
                at,
                Event::Broker { host, incarnation, what: BrokerEvent::Frame { session, number, message } },
            );
        }
    }

    pub(crate) fn send_to_agent(&mut self, session: SessionId, message: ToAgent) {
        let Some(link) = self.network.links.get_mut(&session) else { return };
        link.directions[TO_AGENT].sent += 1;
        let (number, agent) = (link.directions[TO_AGENT].sent, link.agent);
        let incarnation = self.agents[agent].incarnation;
        for at in self.arrival_times(session, TO_AGENT) {
            let message = Box::new(message.clone());
            self.at(
                at,
                Event::Agent { agent, incarnation, what: AgentEvent::Frame { session, number, message } },
            );
        }
    }

    /// The time until which a partition delays a frame that arrives now; `None` if it is delivered. Frames
    /// behind it are delayed as well.
    fn delayed_until(&mut self, session: SessionId, direction: usize) -> Option<u64> {
        let link = self.network.links.get(&session)?;
        let until = self.network.cut_until(self.now, link.agent, direction)?;
        let link = self.network.links.get_mut(&session)?;
        link.directions[direction].from = link.directions[direction].from.max(until);
        Some(until)
    }

    /// Delivers a frame to the broker, which closes the connection if a frame is missing.
    pub(crate) fn broker_frame(
        &mut self,
        host: usize,
        session: SessionId,
        number: u64,
        message: FromAgent,
    ) -> Result<(), String> {
        if let Some(until) = self.delayed_until(session, TO_BROKER) {
            let (incarnation, message) = (self.brokers[host].incarnation, Box::new(message));
            let what = BrokerEvent::Frame { session, number, message };
            self.at(until, Event::Broker { host, incarnation, what });
            return Ok(());
        }
        let Some(link) = self.network.links.get_mut(&session) else { return Ok(()) };
        let (agent, direction) = (link.agent, &mut link.directions[TO_BROKER]);
        if direction.closed {
            return Ok(());
        }
        match direction.inbox.check(number) {
            FrameCheck::InOrder => {
                let hello = matches!(message, FromAgent::Hello(_));
                let stale = self.is_stale(host, agent, &message);
                let broker =
                    self.brokers[host].machine.as_ref().filter(|_| !self.brokers[host].on_stale_copy);
                if let FromAgent::Heartbeat { sequence, .. } = &message
                    && broker.is_some_and(|broker| broker.term() < self.journal.term)
                {
                    self.network.unanswerable.insert((session, *sequence));
                }
                let stale_ids = self.stale_ids(host, &message);
                self.broker_step(host, Input::FromAgent { session, message })?;
                self.check_stale_ids(host, &stale_ids)?;
                let is_open =
                    self.network.links.get(&session).is_some_and(|link| !link.directions[TO_BROKER].closed);
                if stale && is_open && self.brokers[host].machine.is_some() {
                    return Err(format!("agent {agent} sends in an older epoch and is not refused"));
                }
                let copied = self.network.copies.contains_key(&session);
                if hello && !copied { self.check_hello(host, agent) } else { Ok(()) }
            }
            FrameCheck::Repeated => Ok(()),
            FrameCheck::Gap => {
                self.close_link(session);
                self.broker_step(host, Input::AgentGone { session })
            }
        }
    }

    /// Delivers a frame to the agent, which closes the connection if a frame is missing.
    pub(crate) fn agent_frame(
        &mut self,
        agent: usize,
        session: SessionId,
        number: u64,
        message: ToAgent,
    ) -> Result<(), String> {
        if let Some(until) = self.delayed_until(session, TO_AGENT) {
            let (incarnation, message) = (self.agents[agent].incarnation, Box::new(message));
            let what = AgentEvent::Frame { session, number, message };
            self.at(until, Event::Agent { agent, incarnation, what });
            return Ok(());
        }
        if self.agents[agent].session != Some(session) {
            return Ok(());
        }
        let Some(link) = self.network.links.get_mut(&session) else { return Ok(()) };
        match link.directions[TO_AGENT].inbox.check(number) {
            FrameCheck::InOrder => {
                self.note_answer(agent, &message);
                self.agent_step(agent, weir::agent::Input::FromBroker(message))
            }
            FrameCheck::Repeated => Ok(()),
            FrameCheck::Gap => {
                self.agents[agent].session = None;
                self.drop_link_of_agent(session);
                self.agent_step(agent, weir::agent::Input::Disconnected)
            }
        }
    }

    /// The broker closes a connection. Frames that it has sent still arrive.
    pub(crate) fn close_link(&mut self, session: SessionId) {
        self.end_at_broker(session);
        self.notify_closed(session, TO_AGENT);
    }

    /// The agent closes a connection. The broker is notified as soon as the network delivers.
    pub(crate) fn drop_link_of_agent(&mut self, session: SessionId) {
        self.end_at_agent(session);
        self.notify_closed(session, TO_BROKER);
    }

    /// Breaks the agent's connection, if it has one, and notifies both ends.
    pub(crate) fn reset_link(&mut self, agent: usize) {
        let Some(session) = self.agents[agent].session else { return };
        self.notify_closed(session, TO_BROKER);
        self.notify_closed(session, TO_AGENT);
    }

    pub(crate) fn drop_links_of_broker(&mut self, host: usize) {
        let of_host = self.network.links.iter().filter(|(_, link)| link.host == host);
        let sessions: Vec<SessionId> = of_host.map(|(session, _)| *session).collect();
        for session in sessions {
            self.close_link(session);
        }
    }

    /// Notifies one end that the connection is closed, after all frames in that direction.
    fn notify_closed(&mut self, session: SessionId, direction: usize) {
        let Some(link) = self.network.links.get(&session) else { return };
        let (agent, host, host_incarnation) = (link.agent, link.host, link.host_incarnation);
        let cut_until = self.network.cut_until(self.now, agent, direction).unwrap_or(0);
        let at = link.directions[direction].from.max(cut_until).max(self.now) + 1;
        if direction == TO_BROKER {
            let what = BrokerEvent::Disconnected { session };
            self.at(at, Event::Broker { host, incarnation: host_incarnation, what });
        } else {
            let incarnation = self.agents[agent].incarnation;
            self.at(at, Event::Agent { agent, incarnation, what: AgentEvent::Disconnected { session } });
        }
    }

    pub(crate) fn end_at_broker(&mut self, session: SessionId) {
        self.end_direction(session, TO_BROKER);
    }

    pub(crate) fn end_at_agent(&mut self, session: SessionId) {
        self.end_direction(session, TO_AGENT);
    }

    fn end_direction(&mut self, session: SessionId, direction: usize) {
        let Some(link) = self.network.links.get_mut(&session) else { return };
        link.directions[direction].closed = true;
        if link.directions.iter().all(|direction| direction.closed) {
            self.network.links.remove(&session);
        }
    }
}
