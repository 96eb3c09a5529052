//! Links between agents and the broker: delay, loss, repetition, reordering, breaks.

use std::collections::BTreeMap;

use rand::RngExt;
use weir::agent;
use weir::broker::{self, SessionId};
use weir::model::exchange::{Arrival, FromAgent, Inbox, ToAgent};

use super::{Event, World};

/// Sessions that stand, with the numbering of their frames.
#[derive(Default)]
pub(crate) struct Network {
    next: u64,
    links: BTreeMap<SessionId, Link>,
}

struct Link {
    agent: usize,
    to_broker: u64,
    to_agent: u64,
    broker_inbox: Inbox,
    agent_inbox: Inbox,
    /// Frames arrive in order unless the network misbehaves: none before these times.
    broker_at: u64,
    agent_at: u64,
}

impl Network {
    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        self.links.keys().copied().collect()
    }

    /// Numbers a session that is about to be tried.
    pub(crate) fn next_session(&mut self, _agent: usize) -> SessionId {
        self.next += 1;
        SessionId(self.next)
    }
}

impl World {
    pub(crate) fn accept(&mut self, agent: usize, life: u32, session: SessionId) {
        if life != self.agents[agent].life {
            return;
        }
        if self.broker.is_none() || (self.faulty() && self.faults.random_bool(0.05)) {
            return self.agent_input(agent, agent::Input::Disconnected);
        }
        let link = Link {
            agent,
            to_broker: 0,
            to_agent: 0,
            broker_inbox: Inbox::default(),
            agent_inbox: Inbox::default(),
            broker_at: self.now,
            agent_at: self.now,
        };
        self.network.links.insert(session, link);
        self.agents[agent].session = Some(session);
        if self.faulty() && self.faults.random_bool(0.3) {
            let ms = self.faults.random_range(100..60_000);
            self.at(ms, Event::LinkLost { session, at_broker: false });
        }
        self.agent_input(agent, agent::Input::Connected);
    }

    /// What the network does to a frame: the delays of the copies that arrive.
    fn fate(&mut self, in_order_from: u64) -> Vec<u64> {
        let mut delay = self.timing.random_range(1..40);
        let fault: f64 = if self.faulty() { self.faults.random() } else { 1.0 };
        if fault < 0.002 {
            return Vec::new();
        }
        if fault < 0.004 {
            return vec![delay, delay + self.faults.random_range(1..5_000)];
        }
        if fault < 0.006 {
            // Out of order: those sent later may come earlier.
            return vec![delay + self.faults.random_range(1..2_000)];
        }
        delay = delay.max(in_order_from.saturating_sub(self.now));
        vec![delay]
    }

    pub(crate) fn send_to_broker(&mut self, agent: usize, message: FromAgent) {
        let Some(session) = self.agents[agent].session else { return };
        let Some(link) = self.network.links.get_mut(&session) else { return };
        link.to_broker += 1;
        let (number, from) = (link.to_broker, link.broker_at);
        for delay in self.fate(from) {
            if let Some(link) = self.network.links.get_mut(&session) {
                link.broker_at = link.broker_at.max(self.now + delay.min(50));
            }
            self.at(delay, Event::ToBroker { session, number, message: Box::new(message.clone()) });
        }
    }

    pub(crate) fn send_to_agent(&mut self, session: SessionId, message: ToAgent) {
        let Some(link) = self.network.links.get_mut(&session) else { return };
        link.to_agent += 1;
        let (number, from) = (link.to_agent, link.agent_at);
        for delay in self.fate(from) {
            if let Some(link) = self.network.links.get_mut(&session) {
                link.agent_at = link.agent_at.max(self.now + delay.min(50));
            }
            self.at(delay, Event::ToAgent { session, number, message: Box::new(message.clone()) });
        }
    }

    pub(crate) fn deliver_to_broker(
        &mut self,
        session: SessionId,
        number: u64,
        message: FromAgent,
    ) -> Result<(), String> {
        let Some(link) = self.network.links.get_mut(&session) else { return Ok(()) };
        match link.broker_inbox.arrive(number) {
            Arrival::Take => self.broker_step(broker::Input::FromAgent { session, message }),
            Arrival::Repeated => Ok(()),
            Arrival::Gap => self.lose_link(session, false),
        }
    }

    pub(crate) fn deliver_to_agent(&mut self, session: SessionId, number: u64, message: ToAgent) {
        let Some(link) = self.network.links.get_mut(&session) else { return };
        let agent = link.agent;
        if self.agents[agent].paused {
            let event = Event::ToAgent { session, number, message: Box::new(message) };
            return self.agents[agent].backlog.push(event);
        }
        match link.agent_inbox.arrive(number) {
            Arrival::Take => self.agent_input(agent, agent::Input::FromBroker(message)),
            Arrival::Repeated => {}
            Arrival::Gap => self.at(0, Event::LinkLost { session, at_broker: false }),
        }
    }

    /// The link breaks; both ends learn of it, the broker later if only the agent's end is gone.
    pub(crate) fn lose_link(&mut self, session: SessionId, from_agent: bool) -> Result<(), String> {
        let Some(link) = self.network.links.remove(&session) else { return Ok(()) };
        if !from_agent && self.agents[link.agent].session == Some(session) {
            self.agents[link.agent].session = None;
            self.agent_input(link.agent, agent::Input::Disconnected);
        }
        self.broker_step(broker::Input::AgentGone { session })
    }

    /// An input for an agent's machine, now, or when it goes on after a pause.
    pub(crate) fn agent_input(&mut self, agent: usize, input: agent::Input) {
        let host = &mut self.agents[agent];
        if host.paused {
            let life = host.life;
            host.backlog.push(Event::AgentInput { agent, life, input: Box::new(input) });
        } else {
            self.agent_step(agent, input);
        }
    }
}
