//! One simulated Weir: a broker, its journal, agents with their backends, clients, and a network,
//! driven by one seed in virtual time. First with faults, then without: then it must converge.

mod backend;
mod checks;
mod client;
mod journal;
mod network;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weir::agent::{self, Agent};
use weir::broker::{self, Broker, CallId, SessionId};
use weir::model::exchange::{FromAgent, Hello, RefusedCode, ToAgent};
use weir::model::id::{AttemptId, InstanceId, Revision};
use weir::model::pool::{Capabilities, PoolSpec};
use weir::model::region::RegionCode;
use weir::model::time::Timestamp;
use weir::state::rejection::Rejection;

use backend::Backend;
use client::Client;
use journal::SimJournal;
use network::Network;

pub use checks::Counts;

/// What a seed ran into.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub inputs: u64,
    pub broker_crashes: u32,
    pub agent_crashes: u32,
    pub virtual_ms: u64,
    pub jobs: usize,
    pub counts: Counts,
    /// A digest of the journal: the same seed gives the same one.
    pub digest: u64,
}

/// When faults end, in virtual milliseconds.
const FAULTS_MS: u64 = 240_000;
/// How long the healed world may take to end every job.
const HEAL_MS: u64 = 3_600_000;
const AGENTS: usize = 4;
/// Virtual time starts here: a plausible wall clock.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// What happens next.
#[derive(Debug)]
pub(crate) enum Event {
    /// `at`: only the wake-up asked for last counts.
    BrokerWake {
        at: u64,
    },
    AppendDone {
        life: u32,
    },
    ChunkDone {
        life: u32,
    },
    ToBroker {
        session: SessionId,
        number: u64,
        message: Box<FromAgent>,
    },
    ToAgent {
        session: SessionId,
        number: u64,
        message: Box<ToAgent>,
    },
    Accept {
        agent: usize,
        life: u32,
        session: SessionId,
    },
    LinkLost {
        session: SessionId,
        at_broker: bool,
    },
    AgentWake {
        agent: usize,
        at: u64,
    },
    Backend {
        agent: usize,
        attempt: AttemptId,
        step: backend::Step,
    },
    LeaseCheck {
        agent: usize,
    },
    StartBroker,
    StartAgent {
        agent: usize,
    },
    CrashBroker,
    CrashAgent {
        agent: usize,
    },
    /// An agent's machine stands still, then goes on as if nothing had been.
    Pause {
        agent: usize,
        ms: u64,
    },
    Resume {
        agent: usize,
    },
    NodeChange {
        agent: usize,
    },
    /// Held back while the agent stood still.
    AgentInput {
        agent: usize,
        life: u32,
        input: Box<agent::Input>,
    },
    Client,
    Reply {
        call: CallId,
        result: Box<Result<weir::state::decide::Reply, weir::state::rejection::Rejection>>,
    },
}

/// An agent with what outlives its crashes.
pub(crate) struct AgentHost {
    pub(crate) machine: Option<Agent>,
    pub(crate) life: u32,
    pub(crate) wake: u64,
    pub(crate) hello: Hello,
    pub(crate) backend: Backend,
    pub(crate) session: Option<SessionId>,
    pub(crate) paused: bool,
    /// Inputs that came while the machine stood still.
    pub(crate) backlog: Vec<Event>,
}

/// The simulation.
pub struct World {
    seed: u64,
    trace: bool,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: BTreeMap<usize, Event>,
    next_event: usize,
    broker: Option<Broker>,
    broker_life: u32,
    broker_wake: u64,
    journal: SimJournal,
    agents: Vec<AgentHost>,
    network: Network,
    client: Client,
    faults: StdRng,
    timing: StdRng,
    inputs: u64,
    crashes: [u32; 2],
    counts: Counts,
    checked_at: Revision,
}

/// A seed broke a promise.
#[derive(Debug)]
pub struct Violation {
    pub seed: u64,
    pub at_ms: u64,
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let commit = option_env!("WEIR_COMMIT").unwrap_or("this commit");
        write!(
            f,
            "seed {} at {} ms on {commit}: {}; replay: cargo run --release -p simulator -- sweep --from {} --seeds 1 --trace",
            self.seed, self.at_ms, self.what, self.seed
        )
    }
}

fn split(seed: u64, purpose: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(purpose))
}

impl World {
    /// Runs one seed to its end.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn run(seed: u64, trace: bool) -> Result<Report, Violation> {
        let mut world = Self::new(seed, trace);
        let outcome = world.play();
        outcome.map_err(|what| Violation { seed, at_ms: world.now - EPOCH_MS, what })?;
        Ok(Report {
            seed,
            inputs: world.inputs,
            broker_crashes: world.crashes[0],
            agent_crashes: world.crashes[1],
            virtual_ms: world.now - EPOCH_MS,
            jobs: world.client.acknowledged.len(),
            digest: world.journal.digest(),
            counts: world.counts,
        })
    }

    fn new(seed: u64, trace: bool) -> Self {
        let mut setup = split(seed, 1);
        let agents = (0..AGENTS).map(|index| {
            let region = ["CN-CQ", "CN-XJ", "CN-GZ", "CN-SC"][index % 4];
            let capabilities = Capabilities {
                real: index == 0,
                processes: true,
                containers: index % 2 == 1,
                leases: index != 3,
                secrets: false,
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
            AgentHost {
                machine: None,
                life: 0,
                wake: 0,
                hello: Hello { pool, instance, key: [index as u8; 16] },
                backend: Backend::new(index, &mut setup),
                session: None,
                paused: false,
                backlog: Vec::new(),
            }
        });
        Self {
            seed,
            trace,
            now: EPOCH_MS,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            broker: None,
            broker_life: 0,
            broker_wake: 0,
            journal: SimJournal::default(),
            agents: agents.collect(),
            network: Network::default(),
            client: Client::new(seed),
            faults: split(seed, 2),
            timing: split(seed, 3),
            inputs: 0,
            crashes: [0; 2],
            counts: Counts::default(),
            checked_at: Revision(0),
        }
    }

    pub(crate) fn clock(&self) -> Timestamp {
        Timestamp(self.now)
    }

    pub(crate) fn faulty(&self) -> bool {
        self.now < EPOCH_MS + FAULTS_MS
    }

    pub(crate) fn at(&mut self, delay_ms: u64, event: Event) {
        self.order += 1;
        self.next_event += 1;
        self.events.insert(self.next_event, event);
        self.queue.push(Reverse((self.now + delay_ms, self.order, self.next_event)));
    }

    fn play(&mut self) -> Result<(), String> {
        self.at(0, Event::StartBroker);
        for agent in 0..AGENTS {
            self.at(10, Event::StartAgent { agent });
            // Two crashes of every agent and pauses past the lease, at times of the seed's own.
            for _ in 0..2 {
                let at = self.faults.random_range(5_000..FAULTS_MS - 20_000);
                self.at(at, Event::CrashAgent { agent });
            }
            let (at, ms) =
                (self.faults.random_range(5_000..FAULTS_MS), self.faults.random_range(1_000..60_000));
            self.at(at, Event::Pause { agent, ms });
            for _ in 0..4 {
                let at = self.faults.random_range(1_000..FAULTS_MS);
                self.at(at, Event::NodeChange { agent });
            }
        }
        // Far enough apart that the broker is up again when the next one comes.
        for from in [2_000, 80_000, 160_000] {
            let at = self.faults.random_range(from..from + 30_000);
            self.at(at, Event::CrashBroker);
        }
        self.at(100, Event::Client);
        while let Some(Reverse((time, _, key))) = self.queue.pop() {
            if time > EPOCH_MS + FAULTS_MS + HEAL_MS {
                return Err(format!("not converged: {}", self.leftovers()));
            }
            self.now = time;
            let Some(event) = self.events.remove(&key) else { continue };
            self.handle(event)?;
            if !self.faulty() && self.converged() {
                return self.check_end();
            }
        }
        Err(format!("nothing is left to happen: {}", self.leftovers()))
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        if self.trace {
            println!("{:>9} {event:?}", self.now - EPOCH_MS);
        }
        match event {
            Event::StartBroker => self.start_broker()?,
            Event::CrashBroker => self.crash_broker(),
            Event::BrokerWake { at } if at == self.broker_wake => {
                self.broker_wake = 0;
                self.broker_step(broker::Input::Wake)?;
            }
            Event::AppendDone { life } if life == self.broker_life => {
                let through = self.journal.finish_append(&mut self.counts)?;
                self.broker_step(broker::Input::Appended { through })?;
            }
            Event::ChunkDone { life } if life == self.broker_life => {
                self.broker_step(broker::Input::ChunkWritten)?
            }
            Event::BrokerWake { .. } | Event::AppendDone { .. } | Event::ChunkDone { .. } => {}
            Event::ToBroker { session, number, message } => {
                self.deliver_to_broker(session, number, *message)?
            }
            Event::ToAgent { session, number, message } => self.deliver_to_agent(session, number, *message),
            Event::LinkLost { session, at_broker } => self.lose_link(session, at_broker)?,
            Event::Reply { call, result } => self.client_reply(call, *result),
            Event::Client => self.client_act()?,
            Event::StartAgent { agent } => self.start_agent(agent),
            Event::CrashAgent { agent } => self.crash_agent(agent),
            Event::Pause { agent, ms } => {
                self.agents[agent].paused = true;
                self.at(ms, Event::Resume { agent });
            }
            Event::Resume { agent } => {
                self.agents[agent].paused = false;
                for event in std::mem::take(&mut self.agents[agent].backlog) {
                    self.handle(event)?;
                }
            }
            Event::LeaseCheck { agent } => self.check_lease(agent),
            Event::NodeChange { agent } => self.change_nodes(agent),
            Event::Accept { agent, life, session } => self.accept(agent, life, session),
            Event::AgentWake { agent, at } => {
                if at == self.agents[agent].wake {
                    self.agents[agent].wake = 0;
                    self.agent_input(agent, agent::Input::Wake);
                }
            }
            Event::AgentInput { agent, life, input } => {
                if life == self.agents[agent].life {
                    self.agent_input(agent, *input);
                }
            }
            Event::Backend {
                agent,
                attempt,
                step: step @ (backend::Step::Create(_) | backend::Step::Stop),
            } if self.agents[agent].paused => {
                self.agents[agent].backlog.push(Event::Backend { agent, attempt, step });
            }
            Event::Backend { agent, attempt, step } => self.backend_step(agent, attempt, step)?,
        }
        Ok(())
    }

    fn start_broker(&mut self) -> Result<(), String> {
        if self.broker.is_some() {
            return Ok(());
        }
        let (state, term) = self.journal.recover()?;
        state.check().map_err(|what| format!("recovered state: {what}"))?;
        self.broker_life += 1;
        let random = split(self.seed, 9).random();
        self.broker = Some(Broker::new(state, term, random, self.clock()));
        self.checked_at = Revision(0);
        self.broker_step(broker::Input::Wake)
    }

    fn crash_broker(&mut self) {
        if self.broker.take().is_none() {
            return;
        }
        self.crashes[0] += 1;
        self.broker_life += 1;
        // What was being written is there whole or not at all.
        let kept = self.faults.random_bool(0.5);
        self.journal.crash(kept, &mut self.counts);
        for session in self.network.sessions() {
            self.at(1, Event::LinkLost { session, at_broker: false });
        }
        let delay = self.faults.random_range(10..45_000);
        self.at(delay, Event::StartBroker);
    }

    fn broker_step(&mut self, input: broker::Input) -> Result<(), String> {
        let Some(mut broker) = self.broker.take() else { return Ok(()) };
        self.inputs += 1;
        // Real snapshots are far apart: here they come up at any moment, also within a batch.
        if self.timing.random_bool(0.002) {
            broker.begin_snapshot();
        }
        let effects = broker.step(self.clock(), input);
        self.check_step(&broker)?;
        self.broker = Some(broker);
        let crash_at = self.crash_point(effects.len());
        for (index, effect) in effects.into_iter().enumerate() {
            if crash_at == Some(index) {
                self.crash_broker();
                return Ok(());
            }
            self.broker_effect(effect)?;
        }
        Ok(())
    }

    /// Where among so many effects this step crashes, if it does.
    fn crash_point(&mut self, effects: usize) -> Option<usize> {
        let crashes = self.faulty() && self.faults.random_bool(0.0005);
        crashes.then(|| self.faults.random_range(0..effects.max(1)))
    }

    fn broker_effect(&mut self, effect: broker::Effect) -> Result<(), String> {
        let life = self.broker_life;
        match effect {
            broker::Effect::Append { after, events, archive } => {
                let term = self.broker.as_ref().map(Broker::term).unwrap_or_default();
                self.journal.begin_append(term, after, events, archive)?;
                let slow = self.faulty() && self.faults.random_bool(0.01);
                let delay = self.timing.random_range(1..if slow { 3_000 } else { 12 });
                self.at(delay, Event::AppendDone { life });
            }
            broker::Effect::WriteChunk { revision, index, last, objects } => {
                self.journal.write_chunk(revision, index, last, &objects)?;
                let delay = self.timing.random_range(1..20);
                self.at(delay, Event::ChunkDone { life });
            }
            broker::Effect::Reply { call, result } => {
                self.check_reply(&result)?;
                let delay = self.timing.random_range(1..10);
                if !(self.faulty() && self.faults.random_bool(0.05)) {
                    self.at(delay, Event::Reply { call, result: Box::new(result) });
                }
            }
            broker::Effect::Answer { answer, .. } => self.check_answer(&answer)?,
            broker::Effect::Direct { session, message } => {
                if let ToAgent::Refused { code: RefusedCode::PoolClaimed, .. } = &message {
                    self.counts.rejection(&Rejection::PoolClaimed { pool: String::new() });
                }
                self.send_to_agent(session, message);
            }
            broker::Effect::CloseSession { session } => {
                self.at(1, Event::LinkLost { session, at_broker: false });
            }
            broker::Effect::Notify { changes } => self.check_notify(&changes)?,
            broker::Effect::WakeAt(at) => {
                if at != Timestamp::NEVER && at.0 != self.broker_wake {
                    self.broker_wake = at.0;
                    self.at(at.0.saturating_sub(self.now), Event::BrokerWake { at: at.0 });
                }
            }
        }
        Ok(())
    }

    fn start_agent(&mut self, index: usize) {
        let now = self.clock();
        let host = &mut self.agents[index];
        if host.machine.is_some() {
            return;
        }
        host.life += 1;
        // A new configuration, now and then.
        host.hello.pool.labels.insert("life".to_owned(), format!("{}", host.life / 2));
        host.machine = Some(Agent::new(host.hello.clone(), now));
        let (nodes, attempts) = host.backend.open();
        self.agent_step(index, agent::Input::Opened { nodes, attempts });
    }

    fn crash_agent(&mut self, index: usize) {
        let host = &mut self.agents[index];
        if host.machine.take().is_none() {
            return;
        }
        host.life += 1;
        self.crashes[1] += 1;
        if let Some(session) = host.session.take() {
            self.at(1, Event::LinkLost { session, at_broker: true });
        }
        let delay = self.faults.random_range(10..50_000);
        self.at(delay, Event::StartAgent { agent: index });
    }

    pub(crate) fn agent_step(&mut self, index: usize, input: agent::Input) {
        let now = self.clock();
        let Some(machine) = self.agents[index].machine.as_mut() else { return };
        self.inputs += 1;
        let effects = machine.step(now, input);
        let crash_at = self.crash_point(effects.len());
        for (at, effect) in effects.into_iter().enumerate() {
            if crash_at == Some(at) {
                self.crash_agent(index);
                return;
            }
            self.agent_effect(index, effect);
        }
    }

    fn agent_effect(&mut self, index: usize, effect: agent::Effect) {
        let life = self.agents[index].life;
        match effect {
            agent::Effect::Connect => {
                let delay = self.timing.random_range(1..20);
                let session = self.network.next_session(index);
                self.at(delay, Event::Accept { agent: index, life, session });
            }
            agent::Effect::Disconnect => {
                if let Some(session) = self.agents[index].session.take() {
                    self.at(1, Event::LinkLost { session, at_broker: true });
                }
            }
            agent::Effect::Send(message) => self.send_to_broker(index, message),
            agent::Effect::Launch(launch) => {
                let delay = self.timing.random_range(1..30);
                let attempt = launch.order.attempt;
                self.at(delay, Event::Backend { agent: index, attempt, step: backend::Step::Create(launch) });
            }
            agent::Effect::Stop(stop) => {
                let delay = self.timing.random_range(1..30);
                let attempt = stop.attempt;
                self.at(delay, Event::Backend { agent: index, attempt, step: backend::Step::Stop });
            }
            agent::Effect::Forget(attempt) => self.agents[index].backend.forget(attempt),
            agent::Effect::RenewLease { until } => {
                self.agents[index].backend.renew(until);
                self.at(until.0.saturating_sub(self.now) + 1, Event::LeaseCheck { agent: index });
            }
            agent::Effect::WakeAt(at) => {
                if at != Timestamp::NEVER && at.0 != self.agents[index].wake {
                    self.agents[index].wake = at.0;
                    self.at(at.0.saturating_sub(self.now), Event::AgentWake { agent: index, at: at.0 });
                }
            }
        }
    }
}
