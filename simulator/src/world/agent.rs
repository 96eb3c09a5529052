//! The agents' machines: starts, crashes, pauses, and what becomes of their effects.

use std::collections::{BTreeMap, VecDeque};

use rand::RngExt;
use rand::rngs::StdRng;
use weir::agent::{Agent, Effect, Input};
use weir::broker::SessionId;
use weir::model::exchange::{FromAgent, Hello, ToAgent};
use weir::model::id::{InstanceId, Revision};
use weir::model::pool::{Capabilities, PoolSpec};
use weir::model::region::RegionCode;
use weir::model::time::Timestamp;
use weir::state::event::Settings;

use super::backend::{Backend, Step};
use super::clock::Clock;
use super::{Event, World};

/// What comes to an agent's process.
#[derive(Debug)]
pub(crate) enum AgentEvent {
    /// At this world time; only the wake-up asked for last counts.
    Wake {
        at: u64,
    },
    Connected {
        session: SessionId,
    },
    /// The connection that was tried does not come about.
    Unreachable,
    Frame {
        session: SessionId,
        number: u64,
        message: Box<ToAgent>,
    },
    Gone {
        session: SessionId,
    },
    Input(Box<Input>),
    /// What the agent asks of its backend, which takes a moment.
    Ask(weir::model::id::AttemptId, Box<Step>),
}

/// An agent's process, if one runs here, its machine, and what outlives its crashes.
pub(crate) struct AgentHost {
    pub(crate) machine: Option<Agent>,
    pub(crate) life: u32,
    pub(crate) clock: Clock,
    wake: u64,
    pub(crate) hello: Hello,
    pub(crate) backend: Backend,
    pub(crate) session: Option<SessionId>,
    pub(crate) paused: bool,
    backlog: Vec<AgentEvent>,
    /// It dies after so many effects of its next step, and comes back so much later.
    crash: Option<(usize, u64)>,
    /// What it sent lately, for an agent that lies.
    pub(crate) sent: VecDeque<FromAgent>,
    /// The backend gets what it is asked in the order it was asked: nothing before this.
    asked_at: u64,
    /// When the hello and the heartbeats of this session were sent, by the agent's clock.
    beats: BTreeMap<u64, Timestamp>,
    /// The lease may last until then, as what has been answered was sent.
    lease_max: Timestamp,
    /// How far brokers on the true journal have told it that it goes, as it remembers.
    pub(crate) told: Revision,
}

/// Frames that a lying agent keeps to send them again.
const SENT_MAX: usize = 64;

impl AgentHost {
    pub(crate) fn new(index: usize, setup: &mut StdRng) -> Self {
        let region = ["CN-CQ", "CN-XJ", "CN-GZ", "CN-SC"][index % 4];
        let capabilities = Capabilities {
            real: index == 0,
            processes: true,
            containers: index % 2 == 1,
            pods: false,
            leases: index != 3,
            secrets: index == 2,
            whole_devices_only: index == 3,
        };
        let pool = PoolSpec {
            name: format!("pool-{index}"),
            // A constant that is well-formed.
            region: RegionCode::parse(region).unwrap_or_default(),
            backend: "simulated".to_owned(),
            labels: Default::default(),
            capabilities,
            notes: Vec::new(),
        };
        let instance = InstanceId(setup.random());
        Self {
            machine: None,
            life: 0,
            clock: Clock::new(0, 0, 0),
            wake: 0,
            hello: Hello { pool, instance, key: [index as u8; 16], high_water: None },
            backend: Backend::new(index, setup),
            session: None,
            paused: false,
            backlog: Vec::new(),
            crash: None,
            sent: VecDeque::new(),
            asked_at: 0,
            beats: BTreeMap::new(),
            lease_max: Timestamp(0),
            told: Revision(0),
        }
    }
}

impl World {
    pub(crate) fn start_agent(&mut self, index: usize) -> Result<(), String> {
        if self.agents[index].machine.is_some() {
            return Ok(());
        }
        let clock = self.new_clock();
        let now = clock.at(self.now);
        let host = &mut self.agents[index];
        host.life += 1;
        // A new configuration, now and then.
        host.hello.pool.labels.insert("life".to_owned(), format!("{}", host.life / 2));
        host.machine = Some(Agent::new(host.hello.clone(), now));
        (host.clock, host.wake, host.paused, host.crash) = (clock, 0, false, None);
        let (nodes, attempts) = host.backend.open();
        self.agent_step(index, Input::InitialSync { nodes, attempts })
    }

    fn crash_agent(&mut self, index: usize, down_ms: u64) {
        let host = &mut self.agents[index];
        if host.machine.take().is_none() {
            return;
        }
        host.life += 1;
        host.paused = false;
        host.backlog.clear();
        self.crashes[1] += 1;
        if let Some(session) = host.session.take() {
            self.drop_link_of_agent(session);
        }
        self.after(down_ms, Event::StartAgent { agent: index });
    }

    /// The agent dies in the midst of its next step.
    pub(crate) fn plan_agent_crash(&mut self, index: usize, after: u8, down_ms: u64) {
        self.agents[index].crash = Some((usize::from(after), down_ms));
    }

    pub(crate) fn resume_agent(&mut self, index: usize) -> Result<(), String> {
        let host = &mut self.agents[index];
        host.paused = false;
        let life = host.life;
        for what in std::mem::take(&mut host.backlog) {
            self.agent_event(index, life, what)?;
        }
        Ok(())
    }

    pub(crate) fn agent_event(&mut self, index: usize, life: u32, what: AgentEvent) -> Result<(), String> {
        let host = &mut self.agents[index];
        // What a dead agent asked for may still be on its way to the backend.
        let asked = matches!(what, AgentEvent::Ask(..));
        if (host.life != life || host.machine.is_none()) && !asked {
            return Ok(());
        }
        if host.paused {
            host.backlog.push(what);
            return Ok(());
        }
        match what {
            AgentEvent::Wake { at } => {
                if at != host.wake {
                    return Ok(());
                }
                host.wake = 0;
                self.agent_step(index, Input::Wake)
            }
            AgentEvent::Connected { session } => {
                host.session = Some(session);
                self.agent_step(index, Input::Connected)
            }
            AgentEvent::Unreachable => self.agent_step(index, Input::Disconnected),
            AgentEvent::Frame { session, number, message } => {
                self.agent_frame(index, session, number, *message)
            }
            AgentEvent::Gone { session } => {
                self.end_at_agent(session);
                if self.agents[index].session != Some(session) {
                    return Ok(());
                }
                self.agents[index].session = None;
                self.agent_step(index, Input::Disconnected)
            }
            AgentEvent::Input(input) => self.agent_step(index, *input),
            AgentEvent::Ask(attempt, step) => self.backend_step(index, attempt, *step),
        }
    }

    /// Something new from the backend: at once, or when the agent goes on.
    pub(crate) fn tell_agent(&mut self, index: usize, input: Input) -> Result<(), String> {
        let life = self.agents[index].life;
        self.agent_event(index, life, AgentEvent::Input(Box::new(input)))
    }

    /// Notes from when on what the broker says may count.
    pub(crate) fn note_answer(&mut self, index: usize, message: &ToAgent) {
        let host = &mut self.agents[index];
        let (beat, lease_ms) = match message {
            // The hello counts as the first heartbeat.
            ToAgent::Accepted(accepted) => (0, accepted.lease_ms),
            ToAgent::HeartbeatAnswer { sequence, .. } => (*sequence, Settings::default().lease_ms),
            _ => return,
        };
        if let Some(sent_at) = host.beats.get(&beat) {
            host.lease_max = host.lease_max.max(sent_at.plus_ms(lease_ms));
        }
    }

    pub(crate) fn agent_step(&mut self, index: usize, input: Input) -> Result<(), String> {
        let host = &mut self.agents[index];
        let Some(machine) = host.machine.as_mut() else { return Ok(()) };
        let crash = host.crash.take();
        self.inputs += 1;
        let effects = machine.step(host.clock.at(self.now), input);
        if self.trace {
            super::trace::agent_effects(index, &effects);
        }
        for (at, effect) in effects.into_iter().enumerate() {
            match crash {
                Some((after, down_ms)) if after == at => {
                    self.crash_agent(index, down_ms);
                    return Ok(());
                }
                _ => self.agent_effect(index, effect)?,
            }
        }
        if let Some((_, down_ms)) = crash {
            self.crash_agent(index, down_ms);
        }
        Ok(())
    }

    fn agent_effect(&mut self, index: usize, effect: Effect) -> Result<(), String> {
        let life = self.agents[index].life;
        match effect {
            Effect::Connect => {
                let delay = self.hosts.random_range(1..20);
                self.after(delay, Event::Dial { agent: index, life });
            }
            Effect::Disconnect => {
                if let Some(session) = self.agents[index].session.take() {
                    self.drop_link_of_agent(session);
                }
            }
            Effect::Send(message) => {
                let host = &mut self.agents[index];
                let sent_at = host.clock.at(self.now);
                match &message {
                    FromAgent::Hello(_) => host.beats = [(0, sent_at)].into(),
                    FromAgent::Heartbeat { sequence, .. } => drop(host.beats.insert(*sequence, sent_at)),
                    FromAgent::Inventory(_) | FromAgent::Observed { .. } => {}
                }
                if self.is_liar(index) {
                    let sent = &mut self.agents[index].sent;
                    sent.push_back(message.clone());
                    if sent.len() > SENT_MAX {
                        sent.pop_front();
                    }
                }
                self.send_to_broker(index, message);
            }
            Effect::Start(start) => {
                let attempt = start.order.attempt;
                self.ask_backend(index, attempt, Step::Create(start));
            }
            Effect::Stop(stop) => self.ask_backend(index, stop.attempt, Step::Stop),
            Effect::Forget(attempt) => self.agents[index].backend.forget(attempt),
            Effect::RenewLease { until } => {
                if until > self.agents[index].lease_max {
                    return Err(format!("agent {index} keeps its lease longer than from when it sent"));
                }
                // The supervisor keeps the lease by its machine's boot clock.
                let until = self.agents[index].clock.world_at(until);
                self.agents[index].backend.renew(until);
                self.at(until + 1, Event::LeaseCheck { agent: index });
            }
            Effect::StoreHighWater(high_water) => {
                let host = &mut self.agents[index];
                host.hello.high_water = Some(high_water);
                if !self.fork_turns.contains_key(&high_water.writer_session) {
                    host.told = host.told.max(high_water.revision);
                }
            }
            Effect::WakeAt(at) => self.wake_agent(index, at),
        }
        Ok(())
    }

    fn ask_backend(&mut self, index: usize, attempt: weir::model::id::AttemptId, step: Step) {
        let delay = self.hosts.random_range(1..30);
        let host = &mut self.agents[index];
        host.asked_at = host.asked_at.max(self.now + delay);
        let (at, life) = (host.asked_at, host.life);
        self.at(at, Event::Agent { agent: index, life, what: AgentEvent::Ask(attempt, Box::new(step)) });
    }

    fn wake_agent(&mut self, index: usize, at: Timestamp) {
        if at == Timestamp::NEVER {
            return;
        }
        let host = &mut self.agents[index];
        let at = host.clock.world_at(at).max(self.now);
        if at != host.wake {
            let life = host.life;
            host.wake = at;
            self.at(at, Event::Agent { agent: index, life, what: AgentEvent::Wake { at } });
        }
    }
}
