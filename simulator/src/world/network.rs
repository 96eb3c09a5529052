//! Links between agents and brokers: delay, loss, repetition, reordering, cuts, breaks.
//!
//! A connection delivers in order, as TCP does, unless the weather is bad; what a cut holds back
//! comes when it is over, if the connection lives that long.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;
use weir::broker::{Input, SessionId};
use weir::model::exchange::{FrameCheck, FrameCounter, FromAgent, ToAgent};

use super::agent::AgentEvent;
use super::broker::BrokerEvent;
use super::schedule::Cut;
use super::{Event, Purpose, World, split};

/// Connections that stand or are coming down, and what the links are like.
pub(crate) struct Network {
    rng: StdRng,
    next: u64,
    links: BTreeMap<SessionId, Link>,
    cuts: Vec<(usize, Cut, u64)>,
    weather: Vec<Weather>,
    /// Heartbeats that came in at a writer that had been deposed by then.
    unanswerable: BTreeSet<(SessionId, u64)>,
}

/// What a link does to frames, until a time.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weather {
    pub(crate) until: u64,
    pub(crate) loss: u32,
    pub(crate) repeat: u32,
    pub(crate) reorder: u32,
    pub(crate) delay_ms: u64,
}

struct Link {
    agent: usize,
    host: usize,
    host_life: u32,
    /// By direction: to the broker, to the agent.
    ways: [Way; 2],
}

#[derive(Default)]
struct Way {
    sent: u64,
    inbox: FrameCounter,
    /// Frames arrive in order unless the weather is bad: none before this.
    from: u64,
    /// The receiving end is done with the connection.
    over: bool,
}

const TO_BROKER: usize = 0;
const TO_AGENT: usize = 1;
/// How long an agent waits for a connection to come about.
const CONNECT_MS: u64 = 5_000;

impl Network {
    pub(crate) fn new(seed: u64, agents: usize) -> Self {
        let weather = vec![Weather::default(); agents];
        let rng = split(seed, Purpose::Network);
        Self {
            rng,
            weather,
            next: 0,
            links: BTreeMap::new(),
            cuts: Vec::new(),
            unanswerable: BTreeSet::new(),
        }
    }

    /// A number that no connection has.
    pub(crate) fn next_session(&mut self) -> SessionId {
        self.next += 1;
        SessionId(self.next)
    }

    pub(crate) fn cut(&mut self, agent: usize, cut: Cut, until: u64) {
        self.cuts.push((agent, cut, until));
    }

    pub(crate) fn set_weather(&mut self, agent: usize, weather: Weather) {
        self.weather[agent] = weather;
    }

    /// All is well from now on.
    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        self.weather.fill(Weather::default());
    }

    /// Until when nothing gets through, if that is so.
    fn cut_until(&self, now: u64, agent: usize, way: usize) -> Option<u64> {
        let cuts = self.cuts.iter().filter(|(cut_agent, cut, until)| {
            let hits = match cut {
                Cut::ToBroker => way == TO_BROKER,
                Cut::FromBroker => way == TO_AGENT,
                Cut::Both => true,
            };
            *cut_agent == agent && hits && *until > now
        });
        cuts.map(|(_, _, until)| *until).max()
    }

    /// No answer to this heartbeat may keep a lease.
    pub(crate) fn is_unanswerable(&self, session: SessionId, sequence: u64) -> bool {
        self.unanswerable.contains(&(session, sequence))
    }

    /// The agent at the other end of a session.
    pub(crate) fn agent_of(&self, session: SessionId) -> Option<usize> {
        self.links.get(&session).map(|link| link.agent)
    }
}

impl World {
    /// An agent's try to connect reaches a broker, or none.
    pub(crate) fn dial(&mut self, agent: usize, life: u32) {
        let blocked =
            [TO_BROKER, TO_AGENT].iter().any(|way| self.network.cut_until(self.now, agent, *way).is_some());
        let host = self.pick_broker();
        let paused = host.is_some_and(|host| self.brokers[host].paused);
        let what = AgentEvent::Unreachable;
        let Some(host) = host.filter(|_| !blocked && !paused) else {
            let delay = if blocked || paused { CONNECT_MS } else { 1 };
            return self.after(delay, Event::Agent { agent, life, what });
        };
        let session = self.network.next_session();
        let host_life = self.brokers[host].life;
        let link = Link { agent, host, host_life, ways: Default::default() };
        self.network.links.insert(session, link);
        self.after(1, Event::Agent { agent, life, what: AgentEvent::Connected { session } });
    }

    /// Where a name leads that several brokers may answer to: mostly to the one that writes.
    pub(crate) fn pick_broker(&mut self) -> Option<usize> {
        let up: Vec<usize> =
            (0..self.brokers.len()).filter(|host| self.brokers[*host].machine.is_some()).collect();
        let writer = self.writer();
        if up.len() > 1 && self.network.rng.random_bool(0.2) {
            return Some(up[self.network.rng.random_range(0..up.len())]);
        }
        writer.or(up.first().copied())
    }

    /// When the copies of a frame arrive.
    fn fate(&mut self, session: SessionId, way: usize) -> Vec<u64> {
        let now = self.now;
        let Some(link) = self.network.links.get_mut(&session) else { return Vec::new() };
        let weather = self.network.weather[link.agent];
        let rng = &mut self.network.rng;
        let mut at = now + rng.random_range(1..10);
        if weather.until <= now {
            at = at.max(link.ways[way].from);
            link.ways[way].from = at;
            return vec![at];
        }
        at += rng.random_range(0..=weather.delay_ms);
        let chance = rng.random_range(0..1_000);
        if chance < weather.loss {
            return Vec::new();
        }
        if chance < weather.loss + weather.reorder {
            // Those sent later may come earlier.
            return vec![at + rng.random_range(1..2_000)];
        }
        at = at.max(link.ways[way].from);
        link.ways[way].from = at;
        let again = rng.random_range(0..1_000) < weather.repeat;
        if again { vec![at, at + rng.random_range(1..5_000)] } else { vec![at] }
    }

    pub(crate) fn send_to_broker(&mut self, agent: usize, message: FromAgent) {
        let Some(session) = self.agents[agent].session else { return };
        let Some(link) = self.network.links.get_mut(&session) else { return };
        link.ways[TO_BROKER].sent += 1;
        let (number, host, life) = (link.ways[TO_BROKER].sent, link.host, link.host_life);
        for at in self.fate(session, TO_BROKER) {
            let message = Box::new(message.clone());
            self.at(at, Event::Broker { host, life, what: BrokerEvent::Frame { session, number, message } });
        }
    }

    pub(crate) fn send_to_agent(&mut self, session: SessionId, message: ToAgent) {
        let Some(link) = self.network.links.get_mut(&session) else { return };
        link.ways[TO_AGENT].sent += 1;
        let (number, agent) = (link.ways[TO_AGENT].sent, link.agent);
        let life = self.agents[agent].life;
        for at in self.fate(session, TO_AGENT) {
            let message = Box::new(message.clone());
            self.at(at, Event::Agent { agent, life, what: AgentEvent::Frame { session, number, message } });
        }
    }

    /// What a cut holds back comes after it.
    fn hold_back(&mut self, session: SessionId, way: usize) -> Option<u64> {
        let link = self.network.links.get(&session)?;
        let until = self.network.cut_until(self.now, link.agent, way)?;
        let link = self.network.links.get_mut(&session)?;
        link.ways[way].from = link.ways[way].from.max(until);
        Some(until)
    }

    pub(crate) fn broker_frame(
        &mut self,
        host: usize,
        session: SessionId,
        number: u64,
        message: FromAgent,
    ) -> Result<(), String> {
        if let Some(until) = self.hold_back(session, TO_BROKER) {
            let (life, message) = (self.brokers[host].life, Box::new(message));
            let what = BrokerEvent::Frame { session, number, message };
            self.at(until, Event::Broker { host, life, what });
            return Ok(());
        }
        let Some(link) = self.network.links.get_mut(&session) else { return Ok(()) };
        let (agent, way) = (link.agent, &mut link.ways[TO_BROKER]);
        if way.over {
            return Ok(());
        }
        match way.inbox.check(number) {
            FrameCheck::InOrder => {
                let hello = matches!(message, FromAgent::Hello(_));
                let stale = self.is_stale(host, agent, &message);
                let broker = self.brokers[host].machine.as_ref().filter(|_| !self.brokers[host].on_fork);
                if let FromAgent::Heartbeat { sequence, .. } = &message
                    && broker.is_some_and(|broker| broker.term() < self.journal.term)
                {
                    self.network.unanswerable.insert((session, *sequence));
                }
                let stale_ids = self.stale_ids(host, &message);
                self.broker_step(host, Input::FromAgent { session, message })?;
                self.check_stale_ids(host, &stale_ids)?;
                let stands = self.network.links.get(&session).is_some_and(|link| !link.ways[TO_BROKER].over);
                if stale && stands && self.brokers[host].machine.is_some() {
                    return Err(format!("agent {agent} speaks in an older epoch and is not refused"));
                }
                if hello { self.check_hello(host, agent) } else { Ok(()) }
            }
            FrameCheck::Repeated => Ok(()),
            FrameCheck::Gap => {
                self.close_link(session);
                self.broker_step(host, Input::AgentGone { session })
            }
        }
    }

    pub(crate) fn agent_frame(
        &mut self,
        agent: usize,
        session: SessionId,
        number: u64,
        message: ToAgent,
    ) -> Result<(), String> {
        if let Some(until) = self.hold_back(session, TO_AGENT) {
            let (life, message) = (self.agents[agent].life, Box::new(message));
            let what = AgentEvent::Frame { session, number, message };
            self.at(until, Event::Agent { agent, life, what });
            return Ok(());
        }
        if self.agents[agent].session != Some(session) {
            return Ok(());
        }
        let Some(link) = self.network.links.get_mut(&session) else { return Ok(()) };
        match link.ways[TO_AGENT].inbox.check(number) {
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

    /// The broker closes a connection; what it sent before still arrives.
    pub(crate) fn close_link(&mut self, session: SessionId) {
        self.end_at_broker(session);
        self.tell_end(session, TO_AGENT);
    }

    /// The agent's end is gone; the broker uses_profile of it when the network lets it.
    pub(crate) fn drop_link_of_agent(&mut self, session: SessionId) {
        self.end_at_agent(session);
        self.tell_end(session, TO_BROKER);
    }

    /// The connection breaks in the middle; both ends learn of it.
    pub(crate) fn reset_link(&mut self, session: SessionId) {
        self.tell_end(session, TO_BROKER);
        self.tell_end(session, TO_AGENT);
    }

    pub(crate) fn drop_links_of_broker(&mut self, host: usize) {
        let of_host = self.network.links.iter().filter(|(_, link)| link.host == host);
        let sessions: Vec<SessionId> = of_host.map(|(session, _)| *session).collect();
        for session in sessions {
            self.close_link(session);
        }
    }

    fn tell_end(&mut self, session: SessionId, way: usize) {
        let Some(link) = self.network.links.get(&session) else { return };
        let (agent, host, host_life) = (link.agent, link.host, link.host_life);
        let held = self.network.cut_until(self.now, agent, way).unwrap_or(0);
        let at = link.ways[way].from.max(held).max(self.now) + 1;
        if way == TO_BROKER {
            let what = BrokerEvent::Gone { session };
            self.at(at, Event::Broker { host, life: host_life, what });
        } else {
            let life = self.agents[agent].life;
            self.at(at, Event::Agent { agent, life, what: AgentEvent::Gone { session } });
        }
    }

    pub(crate) fn end_at_broker(&mut self, session: SessionId) {
        self.end_way(session, TO_BROKER);
    }

    pub(crate) fn end_at_agent(&mut self, session: SessionId) {
        self.end_way(session, TO_AGENT);
    }

    fn end_way(&mut self, session: SessionId, way: usize) {
        let Some(link) = self.network.links.get_mut(&session) else { return };
        link.ways[way].over = true;
        if link.ways.iter().all(|way| way.over) {
            self.network.links.remove(&session);
        }
    }
}
