//! What goes wrong in a seed, and when: drawn before anything runs, so that it can be made smaller.

use rand::RngExt;
use rand::rngs::StdRng;

use super::clock::DRIFT_PPM_MAX;
use super::{Purpose, split};

/// When faults end, in virtual milliseconds.
pub(crate) const FAULTS_MS: u64 = 150_000;

/// A fault with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub at_ms: u64,
    pub fault: Fault,
}

/// Which ways of a link are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    ToBroker,
    FromBroker,
    Both,
}

/// What becomes of the append under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    Kept,
    Lost,
    /// Part of it is there: recovery must see that, and take it for lost.
    Torn,
}

/// How a pool's nodes change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeChange {
    Remove,
    Add,
    /// Below what it holds, perhaps; or back to full size.
    Resize,
    /// A device fails, or is well again.
    Device,
    /// Labels, taints and the backend's own cordon.
    Relabel,
    /// Nothing can be started on a node, until it is mended.
    Break,
}

/// What a lying agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// More than it has, or less.
    Capacity,
    /// Attempts of other pools run here, or have ended.
    OthersAttempts,
    /// Success of what never ran.
    Success,
    /// Frames of an earlier session.
    OldReports,
    /// Attempts that nobody ever ordered.
    Inventions,
}

/// One thing that goes wrong. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The broker dies after so many effects of a step.
    CrashBroker {
        after_effects: u8,
        tail: Tail,
        down_ms: u64,
    },
    /// It stands still, then goes on as if nothing had been.
    PauseBroker {
        ms: u64,
    },
    /// Another broker takes its turn as the writer; the first one doesn't know.
    Takeover,
    FailAppend {
        tail: Tail,
    },
    /// Every append takes so long.
    SlowDisk {
        ms: u64,
        append_ms: u64,
    },
    /// The broker comes back on a copy of the journal with the newest part missing.
    OlderDisk {
        /// So many batches of a thousand.
        missing_permille: u32,
        ms: u64,
    },
    Snapshot,
    BrokerClock {
        jump_ms: u64,
        drift_ppm: i64,
    },
    CrashAgent {
        agent: usize,
        after_effects: u8,
        down_ms: u64,
    },
    PauseAgent {
        agent: usize,
        ms: u64,
    },
    AgentClock {
        agent: usize,
        jump_ms: u64,
        drift_ppm: i64,
    },
    /// The connection breaks; both ends learn of it at once.
    Reset {
        agent: usize,
    },
    Partition {
        agent: usize,
        cut: Cut,
        ms: u64,
    },
    /// Frames are lost, repeated, reordered, delayed: chances in a thousand.
    Weather {
        agent: usize,
        ms: u64,
        loss: u32,
        repeat: u32,
        reorder: u32,
        delay_ms: u64,
    },
    /// Requests and answers of clients get lost: chances in a thousand.
    ClientWeather {
        ms: u64,
        loss: u32,
        delay_ms: u64,
    },
    Nodes {
        agent: usize,
        change: NodeChange,
    },
    Lie {
        agent: usize,
        lie: Lie,
    },
}

/// What goes wrong in one seed, and how busy its clients are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// In the order of their times.
    pub faults: Vec<Planned>,
    /// Acts of the clients while faults last.
    pub acts: u32,
    /// The agent that lies, if one does.
    pub liar: Option<usize>,
}

/// Clients' acts of one seed.
const ACTS: u32 = 140;

impl Schedule {
    /// The schedule of a seed with so many agents.
    ///
    /// Each seed leaves out some kinds of fault altogether: what one hides, another seed shows
    /// (swarm testing: Groce et al., ISSTA 2012).
    pub fn of(seed: u64, agents: usize) -> Self {
        let mut draw = Draw { rng: split(seed, Purpose::Schedule), agents, faults: Vec::new() };
        let liar = draw.rng.random_bool(0.3).then_some(agents - 1);
        draw.crashes();
        for add in [Draw::writers, Draw::disk, Draw::older_disk, Draw::pauses, Draw::links, Draw::clocks] {
            if draw.rng.random_bool(0.6) {
                add(&mut draw);
            }
        }
        draw.nodes();
        if let Some(liar) = liar {
            draw.lies(liar);
        }
        let mut faults = draw.faults;
        faults.sort_by_key(|planned| planned.at_ms);
        Self { faults, acts: ACTS, liar }
    }

    /// The same with only the faults of these numbers.
    #[must_use]
    pub fn only(&self, numbers: &[usize]) -> Self {
        let faults = numbers.iter().filter_map(|number| self.faults.get(*number)).cloned().collect();
        Self { faults, ..self.clone() }
    }
}

struct Draw {
    rng: StdRng,
    agents: usize,
    faults: Vec<Planned>,
}

impl Draw {
    fn at(&mut self, from: u64, to: u64, fault: Fault) {
        let at_ms = self.rng.random_range(from..to);
        self.faults.push(Planned { at_ms, fault });
    }

    fn anywhere(&mut self, fault: Fault) {
        self.at(1_000, FAULTS_MS - 5_000, fault);
    }

    fn ms(&mut self, from: u64, to: u64) -> u64 {
        self.rng.random_range(from..to)
    }

    fn agent(&mut self) -> usize {
        self.rng.random_range(0..self.agents)
    }

    fn tail(&mut self) -> Tail {
        [Tail::Kept, Tail::Lost, Tail::Torn][self.rng.random_range(0..3)]
    }

    /// Of every agent twice and of the broker twice or more, far enough apart that it is up again.
    fn crashes(&mut self) {
        for agent in 0..self.agents {
            for _ in 0..2 {
                let (after_effects, down_ms) = (self.rng.random_range(0..6), self.ms(10, 40_000));
                let fault = Fault::CrashAgent { agent, after_effects, down_ms };
                self.at(5_000, FAULTS_MS - 20_000, fault);
            }
        }
        for from in [2_000, 70_000] {
            let (after_effects, tail) = (self.rng.random_range(0..8), self.tail());
            let down_ms = self.ms(10, 35_000);
            self.at(from, from + 30_000, Fault::CrashBroker { after_effects, tail, down_ms });
        }
        for _ in 0..self.rng.random_range(0..4) {
            let (after_effects, tail) = (self.rng.random_range(0..8), self.tail());
            let down_ms = self.ms(10, 3_000);
            self.anywhere(Fault::CrashBroker { after_effects, tail, down_ms });
        }
        for _ in 0..self.rng.random_range(0..4) {
            self.anywhere(Fault::Snapshot);
        }
    }

    fn writers(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            // Now and then the first one stands still while the second takes over.
            if self.rng.random_bool(0.4) {
                let (at_ms, ms) = (self.ms(10_000, FAULTS_MS - 30_000), self.ms(2_000, 50_000));
                self.faults.push(Planned { at_ms, fault: Fault::PauseBroker { ms } });
                let at_ms = at_ms + self.ms(1, ms);
                self.faults.push(Planned { at_ms, fault: Fault::Takeover });
            } else {
                self.anywhere(Fault::Takeover);
            }
        }
    }

    fn disk(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            let tail = self.tail();
            self.anywhere(Fault::FailAppend { tail });
            let (ms, append_ms) = (self.ms(1_000, 30_000), self.ms(20, 4_000));
            self.anywhere(Fault::SlowDisk { ms, append_ms });
        }
    }

    fn older_disk(&mut self) {
        let (missing_permille, ms) = (self.rng.random_range(1..700), self.ms(5_000, 50_000));
        self.at(30_000, FAULTS_MS - 50_000, Fault::OlderDisk { missing_permille, ms });
    }

    fn pauses(&mut self) {
        for _ in 0..self.rng.random_range(1..6) {
            let (agent, ms) = (self.agent(), self.ms(500, 70_000));
            self.anywhere(Fault::PauseAgent { agent, ms });
        }
        if self.rng.random_bool(0.5) {
            let ms = self.ms(500, 40_000);
            self.anywhere(Fault::PauseBroker { ms });
        }
    }

    fn links(&mut self) {
        for _ in 0..self.rng.random_range(2..10) {
            let agent = self.agent();
            let cut = [Cut::ToBroker, Cut::FromBroker, Cut::Both][self.rng.random_range(0..3)];
            let ms = self.ms(100, 80_000);
            self.anywhere(Fault::Partition { agent, cut, ms });
            let agent = self.agent();
            self.anywhere(Fault::Reset { agent });
        }
        for agent in 0..self.agents {
            let ms = self.ms(10_000, FAULTS_MS);
            let chance = |rng: &mut StdRng| [0, 0, 2, 10, 60][rng.random_range(0..5)];
            let (loss, repeat) = (chance(&mut self.rng), chance(&mut self.rng));
            let (reorder, delay_ms) = (chance(&mut self.rng), self.ms(1, 1_500));
            self.anywhere(Fault::Weather { agent, ms, loss, repeat, reorder, delay_ms });
        }
        let (ms, loss, delay_ms) = (self.ms(10_000, FAULTS_MS), self.rng.random_range(0..200), 4_000);
        self.anywhere(Fault::ClientWeather { ms, loss, delay_ms });
    }

    fn clocks(&mut self) {
        let drift = |rng: &mut StdRng| rng.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX);
        for _ in 0..self.rng.random_range(1..5) {
            let (agent, jump_ms, drift_ppm) = (self.agent(), self.ms(0, 400), drift(&mut self.rng));
            self.anywhere(Fault::AgentClock { agent, jump_ms, drift_ppm });
            let (jump_ms, drift_ppm) = (self.ms(0, 400), drift(&mut self.rng));
            self.anywhere(Fault::BrokerClock { jump_ms, drift_ppm });
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
            self.anywhere(Fault::Nodes { agent, change });
        }
    }

    fn lies(&mut self, agent: usize) {
        for _ in 0..self.rng.random_range(5..30) {
            let lie = [Lie::Capacity, Lie::OthersAttempts, Lie::Success, Lie::OldReports, Lie::Inventions];
            let lie = lie[self.rng.random_range(0..5)];
            self.anywhere(Fault::Lie { agent, lie });
        }
    }
}
