//! Agent processes: starts, crashes, pauses, and execution of the agents' effects.

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

use super::World;
use super::backend::Backend;
use super::clock::Clock;
use super::event::{AgentEvent, Event, Step};

/// A host for an agent process, with the agent's state machine if a process runs, and the state that survives
/// crashes.
pub(crate) struct AgentHost {
    pub(crate) machine: Option<Agent>,
    /// Counts starts and crashes: distinguishes events of one process from those of the next.
    pub(crate) incarnation: u32,
    pub(crate) clock: Clock,
    /// Virtual time of the latest requested wake-up; 0 if none.
    wake: u64,
    pub(crate) hello: Hello,
    /// The hello of an agent with a copy of the state folder.
    pub(crate) copy: Option<Hello>,
    pub(crate) backend: Backend,
    pub(crate) session: Option<SessionId>,
    pub(crate) paused: bool,
    /// Inputs that arrived during a pause.
    backlog: Vec<AgentEvent>,
    /// Planned crash: number of effects of the next step before it, and downtime.
    crash: Option<(usize, u64)>,
    /// The latest sent messages of a Byzantine agent, to be repeated.
    pub(crate) sent: VecDeque<FromAgent>,
    /// Arrival of the latest request at the backend: requests arrive in the order in which they were sent.
    requested_at: u64,
    /// Times at which the hello (as 0) and the heartbeats of this session were sent, by the agent's clock.
    heartbeats: BTreeMap<u64, Timestamp>,
    /// Latest time from which leases may count: the sending of the latest answered heartbeat.
    renewed_max: Timestamp,
    /// Highest revision of the true journal that the agent has remembered from a broker.
    pub(crate) remembered: Revision,
}

/// Messages of a Byzantine agent that are stored to be repeated.
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
            // The constants are valid codes.
            region: RegionCode::parse(region).unwrap_or_default(),
            backend: "simulated".to_owned(),
            labels: Default::default(),
            capabilities,
            notes: Vec::new(),
        };
        let instance = InstanceId(setup.random());
        Self {
            machine: None,
            incarnation: 0,
            clock: Clock::new(0, 0, 0),
            wake: 0,
            hello: Hello { pool, instance, key: [index as u8; 16], last_epoch: None, high_water: None },
            copy: None,
            backend: Backend::new(index, setup),
            session: None,
            paused: false,
            backlog: Vec::new(),
            crash: None,
            sent: VecDeque::new(),
            requested_at: 0,
            heartbeats: BTreeMap::new(),
            renewed_max: Timestamp(0),
            remembered: Revision(0),
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
        host.incarnation += 1;
        // The labels change at every second start, as after a change of configuration. The label's name is
        // part of the journal, hence of each seed's digest.
        host.hello.pool.labels.insert("life".to_owned(), format!("{}", host.incarnation / 2));
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
        host.incarnation += 1;
        host.paused = false;
        host.backlog.clear();
        self.crashes[1] += 1;
        if let Some(session) = host.session.take() {
            self.drop_link_of_agent(session);
        }
        self.after(down_ms, Event::StartAgent { agent: index });
    }

    /// Plans a crash of the agent after `after` effects of its next step.
    pub(crate) fn plan_agent_crash(&mut self, index: usize, after: u8, down_ms: u64) {
        self.agents[index].crash = Some((usize::from(after), down_ms));
    }

    pub(crate) fn resume_agent(&mut self, index: usize) -> Result<(), String> {
        let host = &mut self.agents[index];
        host.paused = false;
        let incarnation = host.incarnation;
        for what in std::mem::take(&mut host.backlog) {
            self.agent_event(index, incarnation, what)?;
        }
        Ok(())
    }

    pub(crate) fn agent_event(
        &mut self,
        index: usize,
        incarnation: u32,
        what: AgentEvent,
    ) -> Result<(), String> {
        let host = &mut self.agents[index];
        // The request of a crashed agent may still reach the backend.
        let to_backend = matches!(what, AgentEvent::BackendRequest(..));
        if (host.incarnation != incarnation || host.machine.is_none()) && !to_backend {
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
            AgentEvent::Disconnected { session } => {
                self.end_at_agent(session);
                if self.agents[index].session != Some(session) {
                    return Ok(());
                }
                self.agents[index].session = None;
                self.agent_step(index, Input::Disconnected)
            }
            AgentEvent::Input(input) => self.agent_step(index, *input),
            AgentEvent::BackendRequest(attempt, step) => self.backend_step(index, attempt, *step),
        }
    }

    /// Passes an input from the backend to the agent: now, or after a pause of the agent.
    pub(crate) fn notify_agent(&mut self, index: usize, input: Input) -> Result<(), String> {
        let incarnation = self.agents[index].incarnation;
        self.agent_event(index, incarnation, AgentEvent::Input(Box::new(input)))
    }

    /// Notes from when on an answer of the broker renews the leases.
    pub(crate) fn note_answer(&mut self, index: usize, message: &ToAgent) {
        let host = &mut self.agents[index];
        let heartbeat = match message {
            // The hello counts as the first heartbeat.
            ToAgent::Accepted(_) => 0,
            ToAgent::HeartbeatAnswer { sequence, .. } => *sequence,
            _ => return,
        };
        if let Some(sent_at) = host.heartbeats.get(&heartbeat) {
            host.renewed_max = host.renewed_max.max(*sent_at);
        }
    }

    /// Passes an input to the agent and executes its effects until a planned crash.
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
        let incarnation = self.agents[index].incarnation;
        match effect {
            Effect::Connect => {
                let delay = self.hosts.random_range(1..20);
                self.after(delay, Event::Dial { agent: index, incarnation });
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
                    FromAgent::Hello(_) => host.heartbeats = [(0, sent_at)].into(),
                    FromAgent::Heartbeat { sequence, .. } => drop(host.heartbeats.insert(*sequence, sent_at)),
                    FromAgent::Inventory(_) | FromAgent::Observed { .. } => {}
                }
                if self.is_byzantine(index) {
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
                self.request_backend(index, attempt, Step::Create(start));
            }
            Effect::Stop(stop) => self.request_backend(index, stop.attempt, Step::Stop),
            Effect::Forget(attempt) => self.agents[index].backend.forget(attempt),
            Effect::RenewLeases { from } => {
                if from > self.agents[index].renewed_max {
                    return Err(format!(
                        "agent {index} renews its leases from after its latest answered heartbeat on"
                    ));
                }
                // The supervisor measures leases with its host's boot clock, which does not jump.
                let from = self.agents[index].clock.virtual_at(from);
                self.agents[index].backend.renew(from);
                self.schedule_lease_check(index);
            }
            Effect::StoreHighWater(high_water) => {
                let host = &mut self.agents[index];
                host.hello.high_water = Some(high_water);
                if !self.stale_copy_sessions.contains_key(&high_water.writer_session) {
                    host.remembered = host.remembered.max(high_water.revision);
                }
            }
            Effect::StoreEpoch(epoch) => self.agents[index].hello.last_epoch = Some(epoch),
            Effect::WakeAt(at) => self.wake_agent(index, at),
        }
        Ok(())
    }

    fn request_backend(&mut self, index: usize, attempt: weir::model::id::AttemptId, step: Step) {
        let delay = self.hosts.random_range(1..30);
        let host = &mut self.agents[index];
        host.requested_at = host.requested_at.max(self.now + delay);
        let (at, incarnation) = (host.requested_at, host.incarnation);
        self.at(
            at,
            Event::Agent {
                agent: index,
                incarnation,
                what: AgentEvent::BackendRequest(attempt, Box::new(step)),
            },
        );
    }

    fn wake_agent(&mut self, index: usize, at: Timestamp) {
        if at == Timestamp::NEVER {
            return;
        }
        let host = &mut self.agents[index];
        let at = host.clock.virtual_at(at).max(self.now);
        if at != host.wake {
            let incarnation = host.incarnation;
            host.wake = at;
            self.at(at, Event::Agent { agent: index, incarnation, what: AgentEvent::Wake { at } });
        }
    }
}
