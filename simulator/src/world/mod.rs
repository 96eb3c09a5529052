//! One simulated Weir: brokers, their journal, agents with their backends, clients, and a network,
//! driven by one seed in virtual time. First with faults, then without: then it must converge.
//!
//! `schedule` says what goes wrong and when; `broker`, `agent`, `backend`, `network`, `journal`
//! and `client` are the world's parts; `checks`, `history`, `watch` and `end` hold it to its
//! promises.

mod agent;
mod backend;
mod broker;
mod checks;
mod client;
mod clock;
mod counts;
mod end;
mod faults;
mod history;
mod journal;
mod liar;
mod mistakes;
mod network;
mod schedule;
mod specs;
mod trace;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weir::broker::CallId;
use weir::model::id::{AttemptId, Revision, UnitId};
use weir::state::decide::Reply;
use weir::state::rejection::Rejection;

use agent::{AgentEvent, AgentHost};
use broker::{BrokerEvent, BrokerHost};
use client::Client;
use clock::DRIFT_PPM_MAX;
use journal::SimJournal;
use network::Network;
use watch::Watch;

use crate::timeline::Timeline;

pub use counts::Counts;
use schedule::FAULTS_MS;
pub use schedule::{Fault, Planned, Schedule};

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

/// How long the healed world may take to end every job.
const HEAL_MS: u64 = 3_600_000;
/// Inputs that every seed has at least: a calm one goes on until then.
const INPUTS_MIN: u64 = 1_000;
/// Inputs of one seed before something is going in circles: seeds have some ten thousand.
const INPUTS_MAX: u64 = 500_000;
/// Agents, each with a pool of its own: at least, and one more than at most.
const AGENTS: std::ops::Range<usize> = 3..6;

/// What a random generator is for. Each draws on its own, so that a change to one part of the
/// world doesn't shuffle all the others.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Setup = 1,
    Schedule,
    Network,
    Disk,
    Backend,
    Client,
    Hosts,
    Turns,
    Liar,
}

pub(crate) fn split(seed: u64, purpose: Purpose) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(purpose as u64))
}

/// What happens next.
#[derive(Debug)]
pub(crate) enum Event {
    /// By its number in the schedule.
    Fault(usize),
    /// The process that had this life; a later one knows nothing of it.
    Broker {
        host: usize,
        life: u32,
        what: BrokerEvent,
    },
    Agent {
        agent: usize,
        life: u32,
        what: AgentEvent,
    },
    /// The disk is done with what a broker gave it, whether that one still stands or not.
    DiskDone {
        host: usize,
        life: u32,
    },
    Backend {
        agent: usize,
        attempt: AttemptId,
        step: backend::Step,
    },
    LeaseCheck {
        agent: usize,
    },
    Dial {
        agent: usize,
        life: u32,
    },
    StartBroker {
        host: usize,
    },
    StartAgent {
        agent: usize,
    },
    ResumeBroker {
        host: usize,
    },
    ResumeAgent {
        agent: usize,
    },
    /// The admin puts the newest journal back.
    RestoreDisk,
    Heal,
    Act,
    Reply {
        call: CallId,
        result: Box<Result<Reply, Rejection>>,
    },
}

/// The simulation.
pub struct World {
    seed: u64,
    trace: bool,
    schedule: Schedule,
    /// Milliseconds since the world began.
    now: u64,
    queue: Timeline<Event>,
    brokers: Vec<BrokerHost>,
    agents: Vec<AgentHost>,
    journal: SimJournal,
    /// An older copy of the journal that a broker was started on.
    fork: Option<SimJournal>,
    /// Where the older copy ended when it was taken.
    fork_from: Revision,
    /// The turn that was the last in the copy, if it went on after that.
    fork_turn: u64,
    /// Agents that the broker on the older copy has heard, and from which of its revisions on.
    fork_heard: BTreeMap<usize, Revision>,
    /// Agents that it must wait for, and until when at the least.
    fork_awaits: BTreeSet<usize>,
    fork_awaits_until: u64,
    /// Brokers that have run on it. What an earlier one wrote, the next takes for its own.
    fork_lives: u32,
    /// Turns of brokers that ran on older copies, as their stamps name them, and where those copies
    /// ended.
    fork_turns: BTreeMap<u64, Revision>,
    /// What a broker on an older copy ordered, of which agent.
    fork_ordered: BTreeSet<(usize, AttemptId)>,
    /// Units whose outcome a broker on an older copy took, and which is lost with that copy.
    fork_took: BTreeSet<UnitId>,
    network: Network,
    client: Client,
    watch: Watch,
    hosts: StdRng,
    /// Random numbers that brokers draw at the beginning of each turn.
    writer_sessions: StdRng,
    disk: StdRng,
    backends: StdRng,
    liar: StdRng,
    /// Every append takes so long until then.
    slow_disk: (u64, u64),
    inputs: u64,
    crashes: [u32; 2],
    counts: Counts,
}

/// A seed broke a promise.
#[derive(Clone, Debug)]
pub struct Violation {
    pub seed: u64,
    pub at_ms: u64,
    pub what: String,
}

impl World {
    /// Runs one seed to its end.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn run(seed: u64, trace: bool) -> Result<Report, Violation> {
        Self::run_with(seed, trace, Self::schedule_of(seed))
    }

    /// What goes wrong in a seed.
    pub fn schedule_of(seed: u64) -> Schedule {
        Schedule::of(seed, agents_of(seed))
    }

    /// Runs a seed's world with another schedule.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn run_with(seed: u64, trace: bool, schedule: Schedule) -> Result<Report, Violation> {
        let mut world = Self::new(seed, trace, schedule);
        let outcome = world.play();
        outcome.map_err(|what| Violation { seed, at_ms: world.now, what })?;
        Ok(Report {
            seed,
            inputs: world.inputs,
            broker_crashes: world.crashes[0],
            agent_crashes: world.crashes[1],
            virtual_ms: world.now,
            jobs: world.client.acknowledged.len(),
            digest: world.journal.digest(),
            counts: world.counts,
        })
    }

    fn new(seed: u64, trace: bool, schedule: Schedule) -> Self {
        let mut setup = split(seed, Purpose::Setup);
        let count = setup.random_range(AGENTS);
        let agents = (0..count).map(|index| AgentHost::new(index, &mut setup)).collect();
        Self {
            seed,
            trace,
            now: 0,
            queue: Timeline::default(),
            brokers: (0..2).map(|_| BrokerHost::default()).collect(),
            agents,
            journal: SimJournal::default(),
            fork: None,
            fork_from: Revision(0),
            fork_turn: 0,
            fork_heard: BTreeMap::new(),
            fork_awaits: BTreeSet::new(),
            fork_awaits_until: 0,
            fork_lives: 0,
            fork_turns: BTreeMap::new(),
            fork_ordered: BTreeSet::new(),
            fork_took: BTreeSet::new(),
            network: Network::new(seed, count),
            client: Client::new(seed, schedule.acts),
            watch: Watch::default(),
            hosts: split(seed, Purpose::Hosts),
            writer_sessions: split(seed, Purpose::Turns),
            disk: split(seed, Purpose::Disk),
            backends: split(seed, Purpose::Backend),
            liar: split(seed, Purpose::Liar),
            slow_disk: (0, 0),
            inputs: 0,
            crashes: [0; 2],
            counts: Counts::default(),
            schedule,
        }
    }

    pub(crate) fn faulty(&self) -> bool {
        self.now < FAULTS_MS
    }

    pub(crate) fn is_liar(&self, agent: usize) -> bool {
        self.schedule.liar == Some(agent)
    }

    pub(crate) fn after(&mut self, delay_ms: u64, event: Event) {
        self.at(self.now + delay_ms, event);
    }

    pub(crate) fn at(&mut self, time: u64, event: Event) {
        self.queue.put(time.max(self.now), event);
    }

    fn play(&mut self) -> Result<(), String> {
        self.at(0, Event::StartBroker { host: 0 });
        for agent in 0..self.agents.len() {
            self.at(10, Event::StartAgent { agent });
        }
        for number in 0..self.schedule.faults.len() {
            self.at(self.schedule.faults[number].at_ms, Event::Fault(number));
        }
        self.at(FAULTS_MS, Event::Heal);
        self.at(100, Event::Act);
        while let Some((time, event)) = self.queue.next() {
            if time > FAULTS_MS + HEAL_MS {
                return Err(format!("not converged: {}", self.leftovers()));
            }
            self.now = time;
            self.handle(event)?;
            if self.inputs > INPUTS_MAX {
                return Err(format!("the machines never rest: {}", self.leftovers()));
            }
            if !self.faulty() && self.inputs >= INPUTS_MIN && self.converged() {
                return self.check_end();
            }
        }
        Err(format!("nothing is left to happen: {}", self.leftovers()))
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        if self.trace {
            trace::event(self, &event);
        }
        match event {
            Event::Fault(number) => self.strike(number)?,
            Event::Broker { host, life, what } => self.broker_event(host, life, what)?,
            Event::Agent { agent, life, what } => self.agent_event(agent, life, what)?,
            Event::DiskDone { host, life } => self.disk_done(host, life)?,
            Event::Backend { agent, attempt, step } => self.backend_step(agent, attempt, step)?,
            Event::LeaseCheck { agent } => self.check_lease(agent)?,
            Event::Dial { agent, life } => self.dial(agent, life),
            Event::StartBroker { host } => self.start_broker(host)?,
            Event::StartAgent { agent } => self.start_agent(agent)?,
            Event::ResumeBroker { host } => self.resume_broker(host)?,
            Event::ResumeAgent { agent } => self.resume_agent(agent)?,
            Event::RestoreDisk => self.restore_disk()?,
            Event::Heal => self.heal()?,
            Event::Act => self.client_act()?,
            Event::Reply { call, result } => self.client_reply(call, *result),
        }
        Ok(())
    }

    /// A machine's clock after a start: near the world's time, or now and then far off.
    pub(crate) fn new_clock(&mut self) -> clock::Clock {
        let far = self.faulty() && self.hosts.random_bool(0.2);
        let connectivity: i64 = if far { 600_000 } else { 200 };
        let offset_ms = self.hosts.random_range(-connectivity..=connectivity);
        clock::Clock::new(self.now, offset_ms, self.hosts.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX))
    }
}

fn agents_of(seed: u64) -> usize {
    split(seed, Purpose::Setup).random_range(AGENTS)
}
