//! Jobs as hot state keeps them: progress as intervals, no record per waiting or ended task.

use std::sync::Arc;

use crate::model::attempt::{Outcome, OutcomeKind};
use crate::model::id::{JobId, NodeRef, QueueId, Revision, SpecId};
use crate::model::interval::IntervalSet;
use crate::model::shape::ShapeId;
use crate::model::spec::{DependencyCondition, JobSpec};
use crate::model::time::Timestamp;

/// A spec in use, with the shapes of its unit groups and how many live jobs hold it.
#[derive(Clone, Debug)]
pub struct SpecEntry {
    pub spec: Arc<JobSpec>,
    /// One per unit group. Derived.
    pub shapes: Box<[ShapeId]>,
    /// Derived.
    pub jobs: u32,
}

/// A job that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub id: JobId,
    pub name: Box<str>,
    pub queue: QueueId,
    pub spec: SpecId,
    pub submitted_at: Timestamp,
    pub submitted_by: Principal,
    pub started_at: Option<Timestamp>,
    /// The last event that altered it.
    pub revision: Revision,
    /// It takes no new attempts and ends when none is live.
    pub closing: Option<Closing>,
    /// Dependencies that have not ended yet.
    pub pending_dependencies: u16,
    /// A dependency ended otherwise than the job asked: it will be closed.
    pub dependency_failed: bool,
    /// It starts no attempts until it is released. Those that it has go on.
    pub held: bool,
    /// At least one of its attempts ended in a pool that only simulates tasks.
    pub simulated: bool,
    /// What its first failed unit ended with.
    pub first_failure: Option<Box<Outcome>>,
    /// One per unit group.
    pub groups: Box<[Progress]>,
}

/// Who caused something.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// The broker itself.
    #[default]
    System,
    /// Any client with the local token, while there is no authentication.
    Anonymous,
    /// The agent of the pool of this name.
    Agent(Arc<str>),
    User(Arc<str>),
}

/// Why a job is closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    Cancelled,
    Failed,
}

/// How far the units of one group are. A unit is in exactly one of: waiting, backing off, live, ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub waiting: IntervalSet,
    /// Units by their final outcome; sorted by kind, no set is empty.
    pub ended: Vec<(OutcomeKind, IntervalSet)>,
    /// Units that had attempts and have none now, sorted.
    pub tried: Vec<Tried>,
    pub live: u32,
    /// Those of the live that run.
    pub running: u32,
}

/// A unit between two attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    pub unit: u32,
    /// Attempts so far: the next one's number is one more.
    pub attempts: u32,
    /// Those of them that count against `max_attempts`.
    pub failures: u32,
    /// Those that ended with their node or lease.
    pub losses: u32,
    /// The last in a row that were not started.
    pub returns: u32,
    /// Set while the unit backs off; then it isn't waiting.
    pub not_before: Option<Timestamp>,
    /// Where the last attempt failed.
    pub avoid: Option<NodeRef>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobEnd {
    Succeeded,
    Failed,
    Cancelled,
}

impl JobEnd {
    /// Returns whether a job that ended so meets a dependency on this condition.
    pub fn meets(self, condition: DependencyCondition) -> bool {
        match condition {
            DependencyCondition::Any => true,
            DependencyCondition::Succeeded => self == Self::Succeeded,
            DependencyCondition::Failed => self == Self::Failed,
        }
    }

    /// The end in a sentence.
    pub fn text(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "been cancelled",
        }
    }
}

impl Progress {
    /// The earlier attempts of a unit that has none live.
    pub fn tried(&self, unit: u32) -> Option<&Tried> {
        let at = self.tried.binary_search_by_key(&unit, |tried| tried.unit).ok()?;
        Some(&self.tried[at])
    }

    /// Notes earlier attempts, replacing what was noted.
    pub fn set_tried(&mut self, tried: Tried) {
        match self.tried.binary_search_by_key(&tried.unit, |other| other.unit) {
            Ok(at) => self.tried[at] = tried,
            Err(at) => self.tried.insert(at, tried),
        }
    }

    /// Attempts that the unit has had, if that is still known: it isn't once the unit has ended.
    pub fn attempts_known(&self, unit: u32) -> Option<u32> {
        let ended = self.ended.iter().any(|(_, units)| units.contains(unit));
        (!ended).then(|| self.tried(unit).map_or(0, |tried| tried.attempts))
    }

    /// Forgets the note on a unit's earlier attempts and returns it.
    pub fn take_tried(&mut self, unit: u32) -> Option<Tried> {
        let at = self.tried.binary_search_by_key(&unit, |tried| tried.unit).ok()?;
        Some(self.tried.remove(at))
    }

    /// Notes a unit's final outcome.
    pub fn end_unit(&mut self, unit: u32, kind: OutcomeKind) {
        match self.ended.binary_search_by_key(&kind, |(other, _)| *other) {
            Ok(at) => {
                self.ended[at].1.insert(unit);
            }
            Err(at) => self.ended.insert(at, (kind, IntervalSet::from_range(unit, unit + 1))),
        }
    }

    /// Notes that units that wait, or back off, are cancelled. Returns until when those that backed off would have.
    pub fn cancel(&mut self, units: &IntervalSet) -> Vec<(Timestamp, u32)> {
        let idle = self.idle_within(units);
        let mut released = Vec::new();
        self.tried.retain(|tried| {
            let is_cancelled = idle.contains(tried.unit);
            released.extend(tried.not_before.filter(|_| is_cancelled).map(|at| (at, tried.unit)));
            !is_cancelled
        });
        self.waiting = self.waiting.difference(&idle);
        if !idle.is_empty() {
            match self.ended.binary_search_by_key(&OutcomeKind::Cancelled, |(other, _)| *other) {
                Ok(at) => self.ended[at].1 = self.ended[at].1.union(&idle),
                Err(at) => self.ended.insert(at, (OutcomeKind::Cancelled, idle)),
            }
        }
        released
    }

    /// Those of `units` that wait, or wait for the end of a back-off.
    pub fn idle_within(&self, units: &IntervalSet) -> IntervalSet {
        let backing_off = self.tried.iter().filter(|tried| tried.not_before.is_some());
        let backing_off = backing_off.filter(|tried| units.contains(tried.unit));
        let backing_off = IntervalSet::from_intervals(backing_off.map(|tried| [tried.unit, tried.unit + 1]));
        self.waiting.intersection(units).union(&backing_off)
    }

    /// Units that ended for good with another outcome than success.
    pub fn failed_units(&self) -> u32 {
        self.ended
            .iter()
            .filter(|(kind, _)| *kind != OutcomeKind::Succeeded)
            .map(|(_, units)| units.len())
            .sum()
    }

    /// Units that wait for the end of a back-off.
    pub fn backing_off(&self) -> u32 {
        self.tried.iter().filter(|tried| tried.not_before.is_some()).count() as u32
    }

    /// Nothing waits, backs off or runs.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.live == 0 && self.backing_off() == 0
    }
}

impl Job {
    /// Attempts that hold capacity.
    pub fn live(&self) -> u32 {
        self.groups.iter().map(|group| group.live).sum()
    }

    /// Units that ended for good with another outcome than success.
    pub fn failed_units(&self) -> u32 {
        self.groups.iter().map(Progress::failed_units).sum()
    }

    /// Its waiting units may be placed.
    pub fn is_eligible(&self) -> bool {
        self.closing.is_none() && !self.held && self.pending_dependencies == 0 && !self.dependency_failed
    }
}
