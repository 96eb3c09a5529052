//! What readers see of jobs and attempts, alive or ended, in one form.

use std::sync::Arc;

use super::State;
use super::apply::{FinishedAttempt, FinishedJob};
use super::event::EndedAttempt;
use super::job::{Closing, Job, JobEnd, Principal, Progress};
use super::live::Attempt;
use super::pool::Pool;
use crate::model::attempt::{Outcome, OutcomeKind, Phase, Placement};
use crate::model::id::{AttemptId, JobId, JournalId, Revision, UnitId};
use crate::model::pool::Connectivity;
use crate::model::region::RegionCode;
use crate::model::spec::JobSpec;
use crate::model::time::Timestamp;

/// Where a job stands. Its name is that of the API, such as `PENDING`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "UPPERCASE")]
pub enum JobPhase {
    Pending,
    /// At least one attempt is live.
    Running,
    Cancelling,
    /// A unit failed for good; the others are being stopped.
    Failing,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobPhase {
    /// How the job ended; `None` if it has not.
    pub fn end(self) -> Option<JobEnd> {
        match self {
            Self::Succeeded => Some(JobEnd::Succeeded),
            Self::Failed => Some(JobEnd::Failed),
            Self::Cancelled => Some(JobEnd::Cancelled),
            Self::Pending | Self::Running | Self::Cancelling | Self::Failing => None,
        }
    }

    /// It won't change any more.
    pub fn is_end(self) -> bool {
        self.end().is_some()
    }
}

impl From<JobEnd> for JobPhase {
    fn from(end: JobEnd) -> Self {
        match end {
            JobEnd::Succeeded => Self::Succeeded,
            JobEnd::Failed => Self::Failed,
            JobEnd::Cancelled => Self::Cancelled,
        }
    }
}

/// Units of a job, by where they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub total: u32,
    pub waiting: u32,
    pub backing_off: u32,
    /// Live, running or not.
    pub live: u32,
    pub running: u32,
    pub succeeded: u32,
    pub failed: u32,
}

/// A job as readers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    pub id: JobId,
    pub name: String,
    pub queue: String,
    pub phase: JobPhase,
    pub spec: Arc<JobSpec>,
    pub submitted_at: Timestamp,
    pub submitted_by: Principal,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub revision: Revision,
    pub counts: Counts,
    /// Of its first failed unit.
    pub failure: Option<Outcome>,
    /// Its units that ended for good otherwise than by success, by outcome.
    pub failed_units: Vec<FailedUnits>,
    /// At least one of its attempts ended in a pool that only simulates tasks.
    pub simulated: bool,
    /// It starts no attempts until it is released.
    pub held: bool,
    /// Pools of its live attempts, the first few, and their regions.
    pub pools: Vec<String>,
    pub regions: Vec<RegionCode>,
    /// Pools of its live attempts that are not READY: whether these attempts still run is unknown.
    pub pools_not_ready: Vec<PoolContact>,
}

/// Units with one final outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedUnits {
    pub kind: OutcomeKind,
    pub count: u32,
    /// The lowest of them as intervals without their end, at most 16.
    pub first: Vec<[u32; 2]>,
    /// There are more intervals.
    pub more: bool,
}

/// Intervals that a view has of failed units of one outcome.
const INTERVALS_SHOWN: usize = 16;

/// A pool that is not READY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolContact {
    pub pool: String,
    pub connectivity: Connectivity,
    /// Since when it has not been READY; `None` if it was so before Weir noted the time.
    pub since: Option<Timestamp>,
}

/// Pools that a job's view names.
const POOLS_SHOWN: usize = 4;

/// An attempt as readers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptView {
    pub id: AttemptId,
    pub pool: String,
    pub region: RegionCode,
    /// One per placement.
    pub nodes: Vec<String>,
    pub placements: Vec<Placement>,
    pub phase: AttemptPhase,
    pub ordered_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub outcome: Option<Outcome>,
    pub revision: Revision,
}

/// Where an attempt stands, ended ones included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptPhase {
    Live(Phase),
    Ended,
}

fn failed_units(groups: &[Progress]) -> Vec<FailedUnits> {
    let mut failed: Vec<FailedUnits> = Vec::new();
    for (kind, units) in groups.iter().flat_map(|group| &group.ended) {
        if *kind == OutcomeKind::Succeeded {
            continue;
        }
        let at = failed.iter().position(|other| other.kind == *kind).unwrap_or_else(|| {
            failed.push(FailedUnits { kind: *kind, count: 0, first: Vec::new(), more: false });
            failed.len() - 1
        });
        let (entry, intervals) = (&mut failed[at], units.intervals());
        let room = INTERVALS_SHOWN - entry.first.len();
        entry.count += units.len();
        entry.first.extend(intervals.iter().take(room));
        entry.more |= intervals.len() > room;
    }
    failed
}

/// Units from `from` on that ended for good otherwise than by success, the lowest first, at most `limit`.
pub fn failed_units_from(groups: &[Progress], from: u32, limit: usize) -> Vec<u32> {
    let sets =
        || groups.iter().flat_map(|group| &group.ended).filter(|(kind, _)| *kind != OutcomeKind::Succeeded);
    let mut next = from;
    let mut units = Vec::new();
    while units.len() < limit
        && let Some(unit) = sets().filter_map(|(_, units)| units.first_from(next)).min()
    {
        units.push(unit);
        next = unit + 1;
    }
    units
}

fn counts(groups: &[Progress]) -> Counts {
    let mut sum = Counts::default();
    for group in groups {
        sum.waiting += group.waiting.len();
        sum.backing_off += group.backing_off();
        sum.live += group.live;
        sum.running += group.running;
        sum.failed += group.failed_units();
        let succeeded = group.ended.iter().filter(|(kind, _)| *kind == OutcomeKind::Succeeded);
        sum.succeeded += succeeded.map(|(_, units)| units.len()).sum::<u32>();
    }
    sum
}

impl Job {
    /// Where the job stands while it is live.
    pub fn phase(&self) -> JobPhase {
        match self.closing {
            Some(Closing::Cancelled) => JobPhase::Cancelling,
            Some(Closing::Failed) => JobPhase::Failing,
            None if self.groups.iter().any(|group| group.live > 0) => JobPhase::Running,
            None => JobPhase::Pending,
        }
    }
}

impl State {
    /// A live job as readers see it.
    pub fn job_view(&self, id: JobId) -> Option<JobView> {
        let job = self.jobs.get(&id)?;
        let entry = self.specs.get(&job.spec)?;
        let counts = Counts { total: entry.spec.unit_count(), ..counts(&job.groups) };
        let (mut pools, mut regions) = (Vec::new(), Vec::new());
        for attempt in self.attempts_of(id).take(64) {
            let Some(pool) = self.pools.get(&attempt.pool) else { continue };
            if pools.len() < POOLS_SHOWN && !pools.contains(&pool.spec.name) {
                pools.push(pool.spec.name.clone());
                regions.push(pool.spec.region);
            }
        }
        let units = UnitId { job: id, unit: 0 }..=UnitId { job: id, unit: u32::MAX };
        let not_ready = self.index.not_ready.iter().filter_map(|pool| self.pools.get(pool));
        let not_ready = not_ready.filter(|pool| pool.attempts.range(units.clone()).next().is_some());
        let contact = |pool: &Pool| PoolContact {
            pool: pool.spec.name.clone(),
            connectivity: pool.connectivity,
            since: pool.not_ready_since,
        };
        Some(JobView {
            pools_not_ready: not_ready.map(contact).collect(),
            id,
            name: job.name.to_string(),
            queue: self.queues.get(&job.queue).map_or_else(String::new, |queue| queue.spec.name.clone()),
            phase: job.phase(),
            spec: entry.spec.clone(),
            submitted_at: job.submitted_at,
            submitted_by: job.submitted_by.clone(),
            started_at: job.started_at,
            ended_at: None,
            revision: job.revision,
            counts,
            simulated: job.simulated,
            held: job.held,
            failure: job.first_failure.as_deref().cloned(),
            failed_units: failed_units(&job.groups),
            pools,
            regions,
        })
    }

    /// A live attempt as readers see it.
    pub fn attempt_view(&self, attempt: &Attempt) -> AttemptView {
        let pool = self.pools.get(&attempt.pool);
        let node = |placement: &Placement| {
            let node = pool.and_then(|pool| pool.nodes.get(&placement.node));
            node.map_or_else(String::new, |node| node.spec.name.clone())
        };
        AttemptView {
            id: attempt.id(self.identity.journal),
            pool: pool.map_or_else(String::new, |pool| pool.spec.name.clone()),
            region: pool.map_or_else(RegionCode::default, |pool| pool.spec.region),
            nodes: attempt.placements.iter().map(node).collect(),
            placements: attempt.placements.clone(),
            phase: AttemptPhase::Live(attempt.phase),
            ordered_at: attempt.ordered_at,
            started_at: attempt.started_at,
            ended_at: None,
            outcome: None,
            revision: attempt.revision,
        }
    }
}

impl FinishedJob {
    /// The ended job as readers see it.
    pub fn view(&self) -> JobView {
        JobView {
            id: self.job.id,
            name: self.job.name.to_string(),
            queue: self.queue.clone(),
            phase: self.end.into(),
            spec: self.spec.clone(),
            submitted_at: self.job.submitted_at,
            submitted_by: self.job.submitted_by.clone(),
            started_at: self.job.started_at,
            ended_at: Some(self.ended_at),
            revision: self.revision,
            counts: Counts { total: self.spec.unit_count(), ..counts(&self.job.groups) },
            simulated: self.job.simulated,
            held: false,
            failure: self.job.first_failure.as_deref().cloned(),
            failed_units: failed_units(&self.job.groups),
            pools: Vec::new(),
            regions: Vec::new(),
            pools_not_ready: Vec::new(),
        }
    }
}

impl FinishedAttempt {
    /// The ended attempt as readers see it.
    pub fn view(&self, journal: JournalId) -> AttemptView {
        let EndedAttempt { started_at, ended_at, outcome, .. } = &self.ended;
        AttemptView {
            id: self.attempt.id(journal),
            pool: self.pool.clone(),
            region: self.region,
            nodes: self.nodes.clone(),
            placements: self.attempt.placements.clone(),
            phase: AttemptPhase::Ended,
            ordered_at: self.attempt.ordered_at,
            started_at: started_at.or(self.attempt.started_at),
            ended_at: Some(*ended_at),
            outcome: Some(outcome.clone()),
            revision: self.revision,
        }
    }
}
