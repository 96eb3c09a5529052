//! Simulated environment of Weir: brokers, their journal, agents with their backends, clients and a network,
//! driven by one seed in virtual time. Faults are injected in the first phase; then all faults are repaired
//! and the system must converge.
//!
//! `schedule` samples the faults and their times, `faults` injects them. `broker`, `agent`, `backend`,
//! `network`, `journal`, `clock` and `client` are the parts of the environment. `checks`, `history`, `watch`
//! and `end` check the invariants. README.md beside this file is the map.

mod agent;
mod backend;
mod broker;
mod byzantine;
mod checks;
mod client;
mod clock;
mod counts;
mod end;
mod event;
mod faults;
mod history;
mod invalid_requests;
mod journal;
mod network;
mod schedule;
mod specs;
mod trace;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weir::model::id::{AttemptId, Revision, UnitId};

use agent::AgentHost;
use broker::BrokerHost;
use client::Client;
use clock::DRIFT_PPM_MAX;
use event::Event;
use journal::SimJournal;
use network::Network;
use watch::Watch;

use crate::timeline::Timeline;

pub use counts::Counts;
use schedule::FAULTS_MS;
pub use schedule::{Fault, Planned, Schedule};

/// Summary of a seed that violated no invariant.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    /// Inputs of all state machines.
    pub inputs: u64,
    pub broker_crashes: u32,
    pub agent_crashes: u32,
    /// Virtual time at which the system had converged.
    pub virtual_ms: u64,
    /// Jobs whose submission was acknowledged.
    pub jobs: usize,
    pub counts: Counts,
    /// Digest of all appended bytes of the journal: equal for equal seeds.
    pub digest: u64,
}

/// Virtual time after the fault phase within which every job must end.
const HEAL_MS: u64 = 3_600_000;
/// Fewest inputs of a seed: a seed that has converged earlier continues until then.
const INPUTS_MIN: u64 = 1_000;
/// Inputs after which a seed counts as a livelock: seeds have some ten thousand.
const INPUTS_MAX: u64 = 500_000;
/// Number of agents, each with its own pool: 3 to 5.
const AGENTS: std::ops::Range<usize> = 3..6;

/// Purpose of a random generator. Each purpose has its own generator, so that a change to one part of the
/// environment doesn't change the random choices of the others. The discriminants are part of each seed.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Setup = 1,
    Schedule,
    Network,
    Disk,
    Backend,
    Client,
    Hosts,
    WriterSessions,
    Byzantine,
}

/// The random generator of a seed for one purpose.
pub(crate) fn split(seed: u64, purpose: Purpose) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(purpose as u64))
}

/// The simulated environment of one seed.
pub struct World {
    seed: u64,
    trace: bool,
    schedule: Schedule,
    /// Virtual milliseconds since the start.
    now: u64,
    queue: Timeline<Event>,
    brokers: Vec<BrokerHost>,
    agents: Vec<AgentHost>,
    journal: SimJournal,
    /// The copy of the journal without its newest batches that brokers currently run on.
    stale_copy: Option<SimJournal>,
    /// Last revision of the copy when it was taken.
    stale_copy_end: Revision,
    /// The writer session that the copy ends in, if that session continued after the copy; else 0.
    stale_copy_session: u64,
    /// Agents that have sent a hello to a broker on the copy, with the broker's revision at that time.
    stale_copy_hellos: BTreeMap<usize, Revision>,
    /// Agents that a broker on the copy must wait for, and the earliest end of that recovery grace period.
    stale_copy_expected: BTreeSet<usize>,
    stale_copy_grace_until: u64,
    /// Brokers that have started on the copy. A later one continues what an earlier one wrote there.
    stale_copy_starts: u32,
    /// Writer sessions of brokers that ran on stale copies, as high-water marks name them, with the last
    /// revision of each copy when it was taken.
    stale_copy_sessions: BTreeMap<u64, Revision>,
    /// (Agent, attempt) for each attempt that a broker on a stale copy ordered.
    stale_copy_ordered: BTreeSet<(usize, AttemptId)>,
    /// Units of which a broker on a stale copy acknowledged an outcome: it is lost with that copy.
    stale_copy_outcomes: BTreeSet<UnitId>,
    network: Network,
    client: Client,
    watch: Watch,
    /// Random choices of the hosts: clocks, latency between an agent and its backend, host of the next
    /// broker.
    hosts: StdRng,
    /// Random numbers that brokers get at the start of each writer session.
    writer_sessions: StdRng,
    disk: StdRng,
    backends: StdRng,
    byzantine: StdRng,
    /// Until the first time, an append takes up to the second value, in milliseconds.
    slow_disk: (u64, u64),
    inputs: u64,
    /// Crashes of brokers and of agents.
    crashes: [u32; 2],
    counts: Counts,
}

/// Violation of an invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    pub seed: u64,
    /// Virtual time.
    pub at_ms: u64,
    /// The invariant, with its values.
    pub what: String,
}

impl World {
    /// Runs one seed until the system has converged. `trace` prints each input and effect to standard output.
    ///
    /// # Errors
    /// The first violation of an invariant.
    pub fn run(seed: u64, trace: bool) -> Result<Report, Violation> {
        Self::run_with(seed, trace, Self::schedule_of(seed))
    }

    /// The schedule of a seed: its faults and the number of client actions.
    pub fn schedule_of(seed: u64) -> Schedule {
        Schedule::of(seed, agents_of(seed))
    }

    /// Runs the environment of a seed with another schedule, as to minimise it.
    ///
    /// # Errors
    /// The first violation of an invariant.
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
            stale_copy: None,
            stale_copy_end: Revision(0),
            stale_copy_session: 0,
            stale_copy_hellos: BTreeMap::new(),
            stale_copy_expected: BTreeSet::new(),
            stale_copy_grace_until: 0,
            stale_copy_starts: 0,
            stale_copy_sessions: BTreeMap::new(),
            stale_copy_ordered: BTreeSet::new(),
            stale_copy_outcomes: BTreeSet::new(),
            network: Network::new(seed, count),
            client: Client::new(seed, schedule.acts),
            watch: Watch::default(),
            hosts: split(seed, Purpose::Hosts),
            writer_sessions: split(seed, Purpose::WriterSessions),
            disk: split(seed, Purpose::Disk),
            backends: split(seed, Purpose::Backend),
            byzantine: split(seed, Purpose::Byzantine),
            slow_disk: (0, 0),
            inputs: 0,
            crashes: [0; 2],
            counts: Counts::default(),
            schedule,
        }
    }

    /// Faults are still injected.
    pub(crate) fn in_fault_phase(&self) -> bool {
        self.now < FAULTS_MS
    }

    /// The agent sends false reports in this seed.
    pub(crate) fn is_byzantine(&self, agent: usize) -> bool {
        self.schedule.byzantine == Some(agent)
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
                return Err(format!("more than {INPUTS_MAX} inputs: {}", self.leftovers()));
            }
            if !self.in_fault_phase() && self.inputs >= INPUTS_MIN && self.converged() {
                return self.check_end();
            }
        }
        Err(format!("no event is left: {}", self.leftovers()))
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        if self.trace {
            trace::event(self, &event);
        }
        match event {
            Event::Fault(number) => self.inject(number)?,
            Event::Broker { host, incarnation, what } => self.broker_event(host, incarnation, what)?,
            Event::Agent { agent, incarnation, what } => self.agent_event(agent, incarnation, what)?,
            Event::DiskDone { host, incarnation } => self.disk_done(host, incarnation)?,
            Event::Backend { agent, attempt, step } => self.backend_step(agent, attempt, step)?,
            Event::LeaseCheck { agent } => self.check_lease(agent)?,
            Event::Dial { agent, incarnation } => self.dial(agent, incarnation),
            Event::StartBroker { host } => self.start_broker(host)?,
            Event::StartAgent { agent } => self.start_agent(agent)?,
            Event::ResumeBroker { host } => self.resume_broker(host)?,
            Event::ResumeAgent { agent } => self.resume_agent(agent)?,
            Event::RestoreJournal => self.restore_journal()?,
            Event::Heal => self.heal()?,
            Event::Act => self.client_act()?,
            Event::Reply { call, result } => self.client_reply(call, *result),
        }
        Ok(())
    }

    /// The clock of a host after a start: within 200 ms of virtual time, or in one of five within ten
    /// minutes.
    pub(crate) fn new_clock(&mut self) -> clock::Clock {
        let far = self.in_fault_phase() && self.hosts.random_bool(0.2);
        let offset_ms_max: i64 = if far { 600_000 } else { 200 };
        let offset_ms = self.hosts.random_range(-offset_ms_max..=offset_ms_max);
        clock::Clock::new(self.now, offset_ms, self.hosts.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX))
    }
}

fn agents_of(seed: u64) -> usize {
    split(seed, Purpose::Setup).random_range(AGENTS)
}
