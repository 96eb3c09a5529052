//! What goes wrong when: drawn from a seed, before anything runs.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::commands::STEADY_POOL;
use crate::support::proxy::LinkCondition;

/// Pools of a world; each has its agent and its link.
pub const POOLS: usize = 3;
/// Longer than a pool may be silent before its leases are taken for ended, with room for a busy machine.
const PAST_LOST_MS: u64 = 33_000;
/// Nothing goes wrong before the first jobs are under way.
const CALM_MS: u64 = 1_500;

/// Which faults a world sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// One agent paused and another cut off until their leases have ended; the broker stays up.
    Silence,
    /// The broker's disk is full, read-only, or fails to sync.
    Disk,
    /// Everything is killed, paused and cut, never for long.
    Crash,
    /// All of it.
    All,
}

impl Profile {
    pub const EACH: [Self; 4] = [Self::Silence, Self::Disk, Self::Crash, Self::All];

    fn name(self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::Disk => "disk",
            Self::Crash => "crash",
            Self::All => "all",
        }
    }
}

/// All that a world is drawn from; its text runs it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    pub profile: Profile,
    pub number: u64,
    /// How long faults go on.
    pub seconds: u64,
}

impl Seed {
    /// A source of chance for one purpose; each profile has its own of the same number.
    pub fn rng(&self, purpose: &str) -> StdRng {
        let text = format!("{purpose} {self}");
        // FNV-1a, so that no library's change of its hash gives old seeds a new meaning.
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

/// What is hit. One fault at a time hits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Broker,
    Agent(usize),
    /// Between an agent and the broker.
    Link(usize),
    /// Between the clients and the broker.
    Clients,
    Disk,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Killed, and started again at once.
    Kill,
    /// Killed, and not started before the turn is over.
    Down,
    /// Told to end; started again once it has.
    Terminate,
    /// Stopped amid whatever it does.
    Pause,
    /// The agent's supervisor is killed: the agent starts the next.
    KillSupervisor,
    /// Agent, supervisor and tasks are killed at once, as with their machine.
    KillMachine,
    /// Bad weather; afterwards what was cut is reset or goes on.
    Link {
        weather: LinkCondition,
        torn_after: bool,
    },
    DiskFull,
    /// The broker is killed, and its next lives find a read-only disk.
    DiskMountedReadOnly,
    /// The disk turns read-only under open files.
    JournalBecomesReadOnly,
    SyncsFail,
}

/// Names of all kinds.
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
    /// Exit codes may be lost.
    pub fn kills_supervisor(self) -> bool {
        matches!(self, Self::KillSupervisor | Self::KillMachine)
    }

    /// The kind's name, for counting.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Kill => "Kill",
            Self::Down => "Down",
            Self::Terminate => "Terminate",
            Self::Pause => "Pause",
            Self::KillSupervisor => "KillSupervisor",
            Self::KillMachine => "KillMachine",
            Self::Link { weather: LinkCondition::Normal, .. } => "LinkFair",
            Self::Link { weather: LinkCondition::Slow { .. }, .. } => "LinkSlow",
            Self::Link { weather: LinkCondition::Throttled { .. }, .. } => "LinkThrottled",
            Self::Link { weather: LinkCondition::Cut { up: true, down: true }, .. } => "LinkCut",
            Self::Link { weather: LinkCondition::Cut { .. }, .. } => "LinkHalfOpen",
            Self::Link { weather: LinkCondition::Reset, .. } => "LinkReset",
            Self::DiskFull => "DiskFull",
            Self::DiskMountedReadOnly => "DiskMountedReadOnly",
            Self::JournalBecomesReadOnly => "JournalBecomesReadOnly",
            Self::SyncsFail => "SyncsFail",
        }
    }
}

/// A fault with its time.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// From the start of the world.
    pub at: Duration,
    pub fault: Fault,
    pub lasts: Duration,
}

/// What goes wrong in a world, lane by lane.
pub type Schedule = Vec<(Lane, Vec<Turn>)>;

/// Draws a world's schedule.
pub fn draw(seed: Seed) -> Schedule {
    let mut rng = seed.rng("schedule");
    let mut drawing = Drawing { rng: &mut rng, end_ms: seed.seconds * 1_000 };
    let mut schedule = match seed.profile {
        Profile::Silence => drawing.silence(),
        Profile::Disk => drawing.disk(),
        Profile::Crash => drawing.crash(),
        Profile::All => drawing.all(),
    };
    for (lane, writer_sessions) in &mut schedule {
        if *lane == Lane::Agent(STEADY_POOL) {
            writer_sessions.retain(|writer_session| !writer_session.fault.kills_supervisor());
        }
    }
    schedule.retain(|(_, writer_sessions)| !writer_sessions.is_empty());
    schedule
}

struct Drawing<'a> {
    rng: &'a mut StdRng,
    end_ms: u64,
}

impl Drawing<'_> {
    fn silence(&mut self) -> Schedule {
        let cut = LinkCondition::Cut { up: true, down: self.rng.random_bool(0.5) };
        let lost = Fault::Link { weather: cut, torn_after: self.rng.random_bool(0.5) };
        // Which agents fall silent is drawn, too.
        let first = self.rng.random_range(0..POOLS);
        let [paused, parted, lively] = [0, 1, 2].map(|step| (first + step) % POOLS);
        let silence = if self.rng.random_bool(0.7) { Fault::Pause } else { Fault::Down };
        vec![
            (Lane::Agent(paused), self.silences(CALM_MS..CALM_MS + 1_000, silence)),
            (Lane::Link(parted), self.silences(CALM_MS..CALM_MS + 1_500, lost)),
            (Lane::Agent(lively), self.lane(2_000..9_000, Self::agent_fault)),
            (Lane::Link(lively), self.lane(4_000..9_000, Self::link_fault)),
            (Lane::Clients, self.lane(3_000..8_000, Self::link_fault)),
        ]
    }

    fn disk(&mut self) -> Schedule {
        // Every kind in turn, in an order that is drawn: even a short run has them all.
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
        let disk = self.lane(1_000..4_000, move |drawing| {
            (next.next().unwrap_or(Fault::DiskFull), drawing.rng.random_range(1_500..5_000))
        });
        let kills = |drawing: &mut Self| {
            let fault = if drawing.rng.random_bool(0.7) { Fault::Kill } else { Fault::Terminate };
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
            self.lane(5_000..20_000, |drawing| {
                let kinds = [
                    Fault::DiskFull,
                    Fault::DiskMountedReadOnly,
                    Fault::JournalBecomesReadOnly,
                    Fault::SyncsFail,
                ];
                let fault = kinds[drawing.rng.random_range(0..kinds.len())];
                (fault, drawing.rng.random_range(1_500..15_000))
            }),
        ));
        // Now and then the broker is left alone for so long that a pool can be lost.
        for (lane, writer_sessions) in &mut schedule {
            if matches!(lane, Lane::Broker | Lane::Disk) {
                writer_sessions.retain(|writer_session| writer_session.at.as_secs() / 50 % 2 == 0);
            }
        }
        for (lane, writer_sessions) in &mut schedule {
            let Lane::Agent(pool) = *lane else { continue };
            let quiet_ms = 50_000 + 1_000 * pool as u64;
            if pool < 2 && quiet_ms + PAST_LOST_MS <= self.end_ms {
                let (at, lasts) = (Duration::from_millis(quiet_ms), Duration::from_millis(PAST_LOST_MS));
                writer_sessions.retain(|writer_session| {
                    writer_session.at + writer_session.lasts < at || writer_session.at > at + lasts
                });
                let fault = if self.rng.random_bool(0.6) { Fault::Pause } else { Fault::Down };
                writer_sessions.push(Turn { at, fault, lasts });
                writer_sessions.sort_by_key(|writer_session| writer_session.at);
            }
        }
        schedule
    }

    /// The fault until the pool is lost, and again as long as there is time.
    fn silences(&mut self, begin_ms: std::ops::Range<u64>, fault: Fault) -> Vec<Turn> {
        let (mut writer_sessions, mut at) = (Vec::new(), self.rng.random_range(begin_ms));
        while at + PAST_LOST_MS <= self.end_ms {
            let (begins, lasts) = (Duration::from_millis(at), Duration::from_millis(PAST_LOST_MS));
            writer_sessions.push(Turn { at: begins, fault, lasts });
            at += PAST_LOST_MS + self.rng.random_range(3_000..15_000);
        }
        writer_sessions
    }

    /// Fault after fault with pauses between them, as long as there is time.
    fn lane(
        &mut self,
        pause_ms: std::ops::Range<u64>,
        mut fault: impl FnMut(&mut Self) -> (Fault, u64),
    ) -> Vec<Turn> {
        let (mut writer_sessions, mut at) = (Vec::new(), CALM_MS);
        loop {
            at += self.rng.random_range(pause_ms.clone());
            let (fault, lasts) = fault(self);
            if at + lasts > self.end_ms {
                return writer_sessions;
            }
            writer_sessions.push(Turn {
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
        let weather = match self.rng.random_range(0..12) {
            0..3 => LinkCondition::Slow { delay_ms: self.rng.random_range(50..600) },
            3..5 => LinkCondition::Throttled { bytes_per_s: self.rng.random_range(200..4_000) },
            5..8 => LinkCondition::Cut { up: true, down: true },
            8 => LinkCondition::Cut { up: true, down: false },
            9 => LinkCondition::Cut { up: false, down: true },
            _ => LinkCondition::Reset,
        };
        let lasts = if self.rng.random_bool(0.8) { 500..5_000 } else { 5_000..14_000 };
        (Fault::Link { weather, torn_after: self.rng.random_bool(0.5) }, self.rng.random_range(lasts))
    }
}
