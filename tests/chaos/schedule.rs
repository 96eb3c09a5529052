//! The schedule of faults, generated from a seed before the run starts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::commands::STEADY_POOL;
use crate::support::proxy::LinkCondition;

/// Number of pools; each has its own agent and link.
pub const POOLS: usize = 3;
/// Longer than the heartbeat timeout after which the leases of a pool are considered ended, with a margin for
/// a busy machine.
const PAST_LOST_MS: u64 = 33_000;
/// No fault before this time, so that the first jobs are running.
const FAULT_FREE_MS: u64 = 1_500;

/// Which faults a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// One agent paused and another cut off until their leases have ended; the broker stays up.
    PoolsLost,
    /// The broker's disk is full, read-only, or fails to sync.
    Disk,
    /// Processes are killed and paused and links are cut, each for a short time.
    Crash,
    /// All of these.
    All,
}

impl Profile {
    pub const EACH: [Self; 4] = [Self::PoolsLost, Self::Disk, Self::Crash, Self::All];

    /// Part of the seed's text, from which all random numbers are derived: a changed name changes every
    /// schedule.
    fn name(self) -> &'static str {
        match self {
            Self::PoolsLost => "silence",
            Self::Disk => "disk",
            Self::Crash => "crash",
            Self::All => "all",
        }
    }
}

/// The seed of a run. Its text repeats the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    pub profile: Profile,
    pub number: u64,
    /// Duration of the faults.
    pub seconds: u64,
}

impl Seed {
    /// Makes the random number generator for one purpose. Generators of different profiles differ.
    pub fn rng(&self, purpose: &str) -> StdRng {
        let text = format!("{purpose} {self}");
        // FNV-1a, so that a changed hash function of a library does not change the runs of old seeds.
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        StdRng::seed_from_u64(hash)
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.profile.name(), self.number, self.seconds)
    }
}

impl FromStr for Seed {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('-');
        let (Some(profile), Some(number), Some(seconds), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(());
        };
        let profile = Profile::EACH.into_iter().find(|known| known.name() == profile).ok_or(())?;
        let number = number.parse().map_err(drop)?;
        Ok(Self { profile, number, seconds: seconds.parse().map_err(drop)? })
    }
}

/// Target of faults. Each has at most one fault at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Broker,
    Agent(usize),
    /// The link between an agent and the broker.
    Link(usize),
    /// The link between the clients and the broker.
    Clients,
    Disk,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed, and restarted immediately.
    Kill,
    /// The process is killed, and restarted at the end of the fault.
    Down,
    /// The process receives SIGTERM, and is restarted after it has ended.
    Terminate,
    /// The process is suspended.
    Pause,
    /// The supervisor of the agent's pool is killed; the agent starts a new one.
    KillSupervisor,
    /// Agent, supervisor and tasks are killed at once, as in a crash of their machine.
    KillMachine,
    /// Conditions of a link. At the end, its connections are reset (`torn_after`) or continue.
    Link {
        condition: LinkCondition,
        torn_after: bool,
    },
    DiskFull,
    /// The broker is killed, and restarted on a read-only disk.
    DiskMountedReadOnly,
    /// The disk becomes read-only while files are open.
    JournalBecomesReadOnly,
    SyncsFail,
}

/// Names of all kinds of faults.
pub const KINDS: [&str; 15] = [
    "Kill",
    "Down",
    "Terminate",
    "Pause",
    "KillSupervisor",
    "KillMachine",
    "LinkSlow",
    "LinkThrottled",
    "LinkCut",
    "LinkHalfOpen",
    "LinkReset",
    "DiskFull",
    "DiskMountedReadOnly",
    "JournalBecomesReadOnly",
    "SyncsFail",
];

impl Fault {
    /// True if exit codes may be lost.
    pub fn kills_supervisor(self) -> bool {
        matches!(self, Self::KillSupervisor | Self::KillMachine)
    }

    /// Name of the kind, for counting.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Kill => "Kill",
            Self::Down => "Down",
            Self::Terminate => "Terminate",
            Self::Pause => "Pause",
            Self::KillSupervisor => "KillSupervisor",
            Self::KillMachine => "KillMachine",
            Self::Link { condition: LinkCondition::Normal, .. } => "LinkFair",
            Self::Link { condition: LinkCondition::Slow { .. }, .. } => "LinkSlow",
            Self::Link { condition: LinkCondition::Throttled { .. }, .. } => "LinkThrottled",
            Self::Link { condition: LinkCondition::Cut { up: true, down: true }, .. } => "LinkCut",
            Self::Link { condition: LinkCondition::Cut { .. }, .. } => "LinkHalfOpen",
            Self::Link { condition: LinkCondition::Reset, .. } => "LinkReset",
            Self::DiskFull => "DiskFull",
            Self::DiskMountedReadOnly => "DiskMountedReadOnly",
            Self::JournalBecomesReadOnly => "JournalBecomesReadOnly",
            Self::SyncsFail => "SyncsFail",
        }
    }
}

/// A fault with its start and duration.
#[derive(Clone, Copy, Debug)]
pub struct TimedFault {
    /// Since the start of the run.
    pub at: Duration,
    pub fault: Fault,
    pub lasts: Duration,
}

/// The faults of a run, by lane.
pub type Schedule = Vec<(Lane, Vec<TimedFault>)>;

/// Generates the schedule of a run.
pub fn generate(seed: Seed) -> Schedule {
    let mut rng = seed.rng("schedule");
    let mut generator = Generator { rng: &mut rng, end_ms: seed.seconds * 1_000 };
    let mut schedule = match seed.profile {
        Profile::PoolsLost => generator.pools_lost(),
        Profile::Disk => generator.disk(),
        Profile::Crash => generator.crash(),
        Profile::All => generator.all(),
    };
    for (lane, faults) in &mut schedule {
        if *lane == Lane::Agent(STEADY_POOL) {
            faults.retain(|timed| !timed.fault.kills_supervisor());
        }
    }
    schedule.retain(|(_, faults)| !faults.is_empty());
    schedule
}

struct Generator<'a> {
    rng: &'a mut StdRng,
    end_ms: u64,
}

impl Generator<'_> {
    fn pools_lost(&mut self) -> Schedule {
        let cut = LinkCondition::Cut { up: true, down: self.rng.random_bool(0.5) };
        let lost = Fault::Link { condition: cut, torn_after: self.rng.random_bool(0.5) };
        // Which pools lose their connection is random, too.
        let first = self.rng.random_range(0..POOLS);
        let [paused, parted, connected] = [0, 1, 2].map(|step| (first + step) % POOLS);
        let outage = if self.rng.random_bool(0.7) { Fault::Pause } else { Fault::Down };
        vec![
            (Lane::Agent(paused), self.outages(FAULT_FREE_MS..FAULT_FREE_MS + 1_000, outage)),
            (Lane::Link(parted), self.outages(FAULT_FREE_MS..FAULT_FREE_MS + 1_500, lost)),
            (Lane::Agent(connected), self.lane(2_000..9_000, Self::agent_fault)),
            (Lane::Link(connected), self.lane(4_000..9_000, Self::link_fault)),
            (Lane::Clients, self.lane(3_000..8_000, Self::link_fault)),
        ]
    }

    fn disk(&mut self) -> Schedule {
        // All kinds in random order, repeated: so even a short run has each kind.
        let mut kinds = vec![
            Fault::DiskFull,
            Fault::DiskMountedReadOnly,
            Fault::JournalBecomesReadOnly,
            Fault::SyncsFail,
        ];
        for at in (1..kinds.len()).rev() {
            kinds.swap(at, self.rng.random_range(0..=at));
        }
        let mut next = kinds.into_iter().cycle();
        let disk = self.lane(1_000..4_000, move |generator| {
            (next.next().unwrap_or(Fault::DiskFull), generator.rng.random_range(1_500..5_000))
        });
        let kills = |generator: &mut Self| {
            let fault = if generator.rng.random_bool(0.7) { Fault::Kill } else { Fault::Terminate };
            (fault, 100)
        };
        vec![
            (Lane::Disk, disk),
            (Lane::Broker, self.lane(3_000..9_000, kills)),
            (Lane::Agent(0), self.lane(4_000..12_000, Self::agent_fault)),
            (Lane::Clients, self.lane(4_000..9_000, Self::link_fault)),
        ]
    }

    fn crash(&mut self) -> Schedule {
        let mut schedule = vec![
            (Lane::Broker, self.lane(1_500..6_000, Self::broker_fault)),
            (Lane::Clients, self.lane(3_000..8_000, Self::link_fault)),
        ];
        for pool in 0..POOLS {
            schedule.push((Lane::Agent(pool), self.lane(2_000..8_000, Self::agent_fault)));
            schedule.push((Lane::Link(pool), self.lane(3_000..10_000, Self::link_fault)));
        }
        schedule
    }

    fn all(&mut self) -> Schedule {
        let mut schedule = self.crash();
        schedule.push((
            Lane::Disk,
            self.lane(5_000..20_000, |generator| {
                let kinds = [
                    Fault::DiskFull,
                    Fault::DiskMountedReadOnly,
                    Fault::JournalBecomesReadOnly,
                    Fault::SyncsFail,
                ];
                let fault = kinds[generator.rng.random_range(0..kinds.len())];
                (fault, generator.rng.random_range(1_500..15_000))
            }),
        ));
        // Faults of broker and disk pause every other 50 s, so that a pool can be lost.
        for (lane, faults) in &mut schedule {
            if matches!(lane, Lane::Broker | Lane::Disk) {
                faults.retain(|timed| timed.at.as_secs() / 50 % 2 == 0);
            }
        }
        for (lane, faults) in &mut schedule {
            let Lane::Agent(pool) = *lane else { continue };
            let outage_ms = 50_000 + 1_000 * pool as u64;
            if pool < 2 && outage_ms + PAST_LOST_MS <= self.end_ms {
                let (at, lasts) = (Duration::from_millis(outage_ms), Duration::from_millis(PAST_LOST_MS));
                faults.retain(|timed| timed.at + timed.lasts < at || timed.at > at + lasts);
                let fault = if self.rng.random_bool(0.6) { Fault::Pause } else { Fault::Down };
                faults.push(TimedFault { at, fault, lasts });
                faults.sort_by_key(|timed| timed.at);
            }
        }
        schedule
    }

    /// Repeats a fault that lasts until the pool is lost, with pauses, until `end_ms`.
    fn outages(&mut self, begin_ms: std::ops::Range<u64>, fault: Fault) -> Vec<TimedFault> {
        let (mut faults, mut at) = (Vec::new(), self.rng.random_range(begin_ms));
        while at + PAST_LOST_MS <= self.end_ms {
            let (begins, lasts) = (Duration::from_millis(at), Duration::from_millis(PAST_LOST_MS));
            faults.push(TimedFault { at: begins, fault, lasts });
            at += PAST_LOST_MS + self.rng.random_range(3_000..15_000);
        }
        faults
    }

    /// Generates faults with pauses between them, until `end_ms`.
    fn lane(
        &mut self,
        pause_ms: std::ops::Range<u64>,
        mut fault: impl FnMut(&mut Self) -> (Fault, u64),
    ) -> Vec<TimedFault> {
        let (mut faults, mut at) = (Vec::new(), FAULT_FREE_MS);
        loop {
            at += self.rng.random_range(pause_ms.clone());
            let (fault, lasts) = fault(self);
            if at + lasts > self.end_ms {
                return faults;
            }
            faults.push(TimedFault {
                at: Duration::from_millis(at),
                fault,
                lasts: Duration::from_millis(lasts),
            });
            at += lasts;
        }
    }

    fn broker_fault(&mut self) -> (Fault, u64) {
        match self.rng.random_range(0..10) {
            0..5 => (Fault::Kill, 100),
            5 => (Fault::Terminate, 100),
            6 => (Fault::Down, self.rng.random_range(500..8_000)),
            7..9 => (Fault::Pause, self.rng.random_range(200..4_000)),
            _ => (Fault::Pause, self.rng.random_range(8_000..26_000)),
        }
    }

    fn agent_fault(&mut self) -> (Fault, u64) {
        match self.rng.random_range(0..11) {
            0..4 => (Fault::Kill, 100),
            4 => (Fault::Terminate, 100),
            5 => (Fault::KillSupervisor, 2_000),
            6 => (Fault::KillMachine, 100),
            7 => (Fault::Down, self.rng.random_range(500..8_000)),
            8..10 => (Fault::Pause, self.rng.random_range(200..5_000)),
            _ => (Fault::Pause, self.rng.random_range(8_000..15_000)),
        }
    }

    fn link_fault(&mut self) -> (Fault, u64) {
        let condition = match self.rng.random_range(0..12) {
            0..3 => LinkCondition::Slow { delay_ms: self.rng.random_range(50..600) },
            3..5 => LinkCondition::Throttled { bytes_per_s: self.rng.random_range(200..4_000) },
            5..8 => LinkCondition::Cut { up: true, down: true },
            8 => LinkCondition::Cut { up: true, down: false },
            9 => LinkCondition::Cut { up: false, down: true },
            _ => LinkCondition::Reset,
        };
        let lasts = if self.rng.random_bool(0.8) { 500..5_000 } else { 5_000..14_000 };
        (Fault::Link { condition, torn_after: self.rng.random_bool(0.5) }, self.rng.random_range(lasts))
    }
}
