//! Schedule of a seed: its faults and their times. It is sampled before the run, so that it can be minimised.

use rand::RngExt;
use rand::rngs::StdRng;

use super::clock::DRIFT_PPM_MAX;
use super::{Purpose, split};

/// Length of the fault phase, in virtual milliseconds.
pub(crate) const FAULTS_MS: u64 = 150_000;

/// A fault with its virtual time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub at_ms: u64,
    pub fault: Fault,
}

/// Directions of a link that a partition cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    ToBroker,
    FromBroker,
    Both,
}

/// Fate of the append in progress when its writer crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingAppend {
    /// All of the batch is durable.
    Durable,
    /// None of the batch is durable.
    Lost,
    /// A part of the batch is durable: recovery must detect and discard it.
    Torn,
}

/// Change of a pool's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// The last node is removed, unless the pool has one only; attempts on it end as NodeLost.
    Remove,
    /// A node is added, sometimes under the name of a removed one.
    Add,
    /// The first node shrinks, perhaps below its allocation, or grows back to full size.
    Resize,
    /// A device of the last node fails, or becomes healthy.
    Device,
    /// The last node's labels change, and its taint or the backend's own cordon.
    Relabel,
    /// Every start on the first node fails, until the next such change or the end of the fault phase.
    Break,
}

/// False report of a Byzantine agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FalseReport {
    /// Nodes with random CPU and devices.
    Capacity,
    /// Other pools' attempts run in this pool, or have ended.
    OthersAttempts,
    /// The pool's own attempts run or have succeeded, whatever their true status.
    OwnAttempts,
    /// Messages sent earlier are repeated, those of earlier sessions included.
    RepeatedMessages,
    /// An attempt that was never ordered.
    UnknownAttempt,
}

/// A fault. `ms` is its duration, `agent` the index of the agent that it affects. A fault of the broker
/// affects the current writer and has no effect if there is none; a crash is retried until the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The writer crashes after this number of effects of its next step, or after the last. After `down_ms` a
    /// broker starts on a random host.
    CrashBroker { after_effects: u8, pending: PendingAppend, down_ms: u64 },
    /// The writer stops, and then continues with the inputs that have arrived meanwhile.
    PauseBroker { ms: u64 },
    /// Another broker starts a new term as the writer. The first one is deposed without notice.
    Takeover,
    /// The writer's next append fails. The broker process then opens the journal again.
    FailAppend { pending: PendingAppend },
    /// Each append takes up to `append_ms`.
    SlowDisk { ms: u64, append_ms: u64 },
    /// The broker restarts on a copy of the journal without its newest batches. After `ms` the admin restores
    /// the newest journal.
    StaleCopy {
        /// Missing share of all batches; at least one batch is missing.
        missing_permille: u32,
        ms: u64,
    },
    /// The writer begins a snapshot.
    Snapshot,
    /// The clock of the writer's host jumps ahead by `jump_ms`, and has this drift from then on.
    BrokerClock { jump_ms: u64, drift_ppm: i64 },
    /// The agent crashes after this number of effects of its next step, or after the last, and restarts after
    /// `down_ms`. Its backend continues.
    CrashAgent { agent: usize, after_effects: u8, down_ms: u64 },
    /// The agent stops, and then continues with the inputs that have arrived meanwhile.
    PauseAgent { agent: usize, ms: u64 },
    /// The clock of the agent's host jumps ahead by `jump_ms`, and has this drift from then on.
    AgentClock { agent: usize, jump_ms: u64, drift_ppm: i64 },
    /// The agent's connection breaks, and both ends are notified.
    Reset { agent: usize },
    /// Frames in the cut directions arrive when the partition ends; new connections fail.
    Partition { agent: usize, cut: Cut, ms: u64 },
    /// Frames between the agent and the broker are lost, repeated or reordered with these probabilities, and
    /// delayed by up to `delay_ms`.
    LinkConditions {
        agent: usize,
        ms: u64,
        loss_permille: u32,
        repeat_permille: u32,
        reorder_permille: u32,
        delay_ms: u64,
    },
    /// Requests of clients and replies to them are lost with this probability, and delayed by up to
    /// `delay_ms`.
    ClientLinkConditions { ms: u64, loss_permille: u32, delay_ms: u64 },
    /// The agent's state folder is copied, as a machine's image is.
    CopyState { agent: usize },
    /// An agent with that copy connects, beside the first one or while it is away.
    StartCopy { agent: usize },
    /// The nodes of the agent's pool change.
    Nodes { agent: usize, change: NodeChange },
    /// The Byzantine agent sends a false report.
    FalseReport { agent: usize, report: FalseReport },
}

/// The faults of one seed and the load by its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// In order of time.
    pub faults: Vec<Planned>,
    /// Number of client actions during the fault phase.
    pub acts: u32,
    /// The Byzantine agent: it sends false reports about its pool. `None` if all agents are correct.
    pub byzantine: Option<usize>,
}

/// Client actions of one seed.
const ACTS: u32 = 140;

impl Schedule {
    /// Samples the schedule of a seed with this number of agents.
    ///
    /// Each seed omits some kinds of fault, since one kind can mask a bug that another would reveal (swarm
    /// testing: Groce et al., ISSTA 2012).
    pub fn of(seed: u64, agents: usize) -> Self {
        let mut sampler = Sampler { rng: split(seed, Purpose::Schedule), agents, faults: Vec::new() };
        let byzantine = sampler.rng.random_bool(0.3).then_some(agents - 1);
        sampler.crashes();
        for add in [
            Sampler::writers,
            Sampler::disk,
            Sampler::stale_copy,
            Sampler::pauses,
            Sampler::links,
            Sampler::clocks,
            Sampler::copies,
        ] {
            if sampler.rng.random_bool(0.6) {
                add(&mut sampler);
            }
        }
        sampler.nodes();
        if let Some(agent) = byzantine {
            sampler.false_reports(agent);
        }
        let mut faults = sampler.faults;
        faults.sort_by_key(|planned| planned.at_ms);
        Self { faults, acts: ACTS, byzantine }
    }

    /// The same schedule with only the faults of these numbers; numbers out of range are ignored.
    #[must_use]
    pub fn only(&self, numbers: &[usize]) -> Self {
        let faults = numbers.iter().filter_map(|number| self.faults.get(*number)).cloned().collect();
        Self { faults, ..self.clone() }
    }
}

/// Samples the faults of a seed. Each method adds one kind; the order of the calls is part of each seed.
struct Sampler {
    rng: StdRng,
    agents: usize,
    faults: Vec<Planned>,
}

impl Sampler {
    fn at(&mut self, from: u64, to: u64, fault: Fault) {
        let at_ms = self.rng.random_range(from..to);
        self.faults.push(Planned { at_ms, fault });
    }

    fn at_any_time(&mut self, fault: Fault) {
        self.at(1_000, FAULTS_MS - 5_000, fault);
    }

    fn ms(&mut self, from: u64, to: u64) -> u64 {
        self.rng.random_range(from..to)
    }

    fn agent(&mut self) -> usize {
        self.rng.random_range(0..self.agents)
    }

    fn pending_append(&mut self) -> PendingAppend {
        [PendingAppend::Durable, PendingAppend::Lost, PendingAppend::Torn][self.rng.random_range(0..3)]
    }

    /// Two crashes of each agent, and two to five of the broker. The first two of the broker are far enough
    /// apart for it to be up again.
    fn crashes(&mut self) {
        for agent in 0..self.agents {
            for _ in 0..2 {
                let (after_effects, down_ms) = (self.rng.random_range(0..6), self.ms(10, 40_000));
                let fault = Fault::CrashAgent { agent, after_effects, down_ms };
                self.at(5_000, FAULTS_MS - 20_000, fault);
            }
        }
        for from in [2_000, 70_000] {
            let (after_effects, pending) = (self.rng.random_range(0..8), self.pending_append());
            let down_ms = self.ms(10, 35_000);
            self.at(from, from + 30_000, Fault::CrashBroker { after_effects, pending, down_ms });
        }
        for _ in 0..self.rng.random_range(0..4) {
            let (after_effects, pending) = (self.rng.random_range(0..8), self.pending_append());
            let down_ms = self.ms(10, 3_000);
            self.at_any_time(Fault::CrashBroker { after_effects, pending, down_ms });
        }
        for _ in 0..self.rng.random_range(0..4) {
            self.at_any_time(Fault::Snapshot);
        }
    }

    fn writers(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            // In some cases the first writer is paused while the second takes over.
            if self.rng.random_bool(0.4) {
                let (at_ms, ms) = (self.ms(10_000, FAULTS_MS - 30_000), self.ms(2_000, 50_000));
                self.faults.push(Planned { at_ms, fault: Fault::PauseBroker { ms } });
                let at_ms = at_ms + self.ms(1, ms);
                self.faults.push(Planned { at_ms, fault: Fault::Takeover });
            } else {
                self.at_any_time(Fault::Takeover);
            }
        }
    }

    fn disk(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            let pending = self.pending_append();
            self.at_any_time(Fault::FailAppend { pending });
            let (ms, append_ms) = (self.ms(1_000, 30_000), self.ms(20, 4_000));
            self.at_any_time(Fault::SlowDisk { ms, append_ms });
        }
    }

    fn stale_copy(&mut self) {
        let (missing_permille, ms) = (self.rng.random_range(1..700), self.ms(5_000, 50_000));
        self.at(30_000, FAULTS_MS - 50_000, Fault::StaleCopy { missing_permille, ms });
    }

    fn pauses(&mut self) {
        for _ in 0..self.rng.random_range(1..6) {
            let (agent, ms) = (self.agent(), self.ms(500, 70_000));
            self.at_any_time(Fault::PauseAgent { agent, ms });
        }
        if self.rng.random_bool(0.5) {
            let ms = self.ms(500, 40_000);
            self.at_any_time(Fault::PauseBroker { ms });
        }
    }

    fn links(&mut self) {
        for _ in 0..self.rng.random_range(2..10) {
            let agent = self.agent();
            let cut = [Cut::ToBroker, Cut::FromBroker, Cut::Both][self.rng.random_range(0..3)];
            let ms = self.ms(100, 80_000);
            self.at_any_time(Fault::Partition { agent, cut, ms });
            let agent = self.agent();
            self.at_any_time(Fault::Reset { agent });
        }
        for agent in 0..self.agents {
            let ms = self.ms(10_000, FAULTS_MS);
            let chance = |rng: &mut StdRng| [0, 0, 2, 10, 60][rng.random_range(0..5)];
            let (loss_permille, repeat_permille) = (chance(&mut self.rng), chance(&mut self.rng));
            let (reorder_permille, delay_ms) = (chance(&mut self.rng), self.ms(1, 1_500));
            self.at_any_time(Fault::LinkConditions {
                agent,
                ms,
                loss_permille,
                repeat_permille,
                reorder_permille,
                delay_ms,
            });
        }
        let (ms, loss_permille, delay_ms) =
            (self.ms(10_000, FAULTS_MS), self.rng.random_range(0..200), 4_000);
        self.at_any_time(Fault::ClientLinkConditions { ms, loss_permille, delay_ms });
    }

    fn clocks(&mut self) {
        let drift = |rng: &mut StdRng| rng.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX);
        for _ in 0..self.rng.random_range(1..5) {
            let (agent, jump_ms, drift_ppm) = (self.agent(), self.ms(0, 400), drift(&mut self.rng));
            self.at_any_time(Fault::AgentClock { agent, jump_ms, drift_ppm });
            let (jump_ms, drift_ppm) = (self.ms(0, 400), drift(&mut self.rng));
            self.at_any_time(Fault::BrokerClock { jump_ms, drift_ppm });
        }
    }

    fn nodes(&mut self) {
        for _ in 0..self.agents * 3 {
            let agent = self.agent();
            let change = [
                NodeChange::Remove,
                NodeChange::Add,
                NodeChange::Resize,
                NodeChange::Device,
                NodeChange::Relabel,
                NodeChange::Break,
            ][self.rng.random_range(0..6)];
            self.at_any_time(Fault::Nodes { agent, change });
        }
    }

    fn copies(&mut self) {
        let agent = self.agent();
        self.at(1_000, FAULTS_MS / 2, Fault::CopyState { agent });
        for _ in 0..self.rng.random_range(1..6) {
            self.at_any_time(Fault::StartCopy { agent });
        }
    }

    fn false_reports(&mut self, agent: usize) {
        for _ in 0..self.rng.random_range(5..30) {
            let report = [
                FalseReport::Capacity,
                FalseReport::OthersAttempts,
                FalseReport::OwnAttempts,
                FalseReport::RepeatedMessages,
                FalseReport::UnknownAttempt,
            ][self.rng.random_range(0..5)];
            self.at_any_time(Fault::FalseReport { agent, report });
        }
    }
}
