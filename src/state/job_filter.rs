//! Which jobs a list shows, alive or ended.

use std::cell::Cell;
use std::collections::BTreeSet;

use super::State;
use super::job::{Job, Principal};
use super::pool::Pool;
use super::view::{JobPhase, JobView};
use crate::model::attempt::OutcomeKind;
use crate::model::id::{PoolId, QueueId, UnitId};
use crate::model::region::RegionCode;
use crate::model::spec::JobSpec;
use crate::model::time::Timestamp;

/// What jobs must have in common to be selected. Empty lists and `None` select all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Any of these queues: with those below them they may be thousands.
    pub queues: BTreeSet<String>,
    /// Any of these phases.
    pub phases: Vec<JobPhase>,
    /// All of these requirements.
    pub labels: Vec<LabelRequirement>,
    /// With which the name begins.
    pub name_prefix: String,
    pub submitted_by: Option<Principal>,
    /// A live job has an attempt in any of these pools; an ended one had.
    pub pools: Vec<String>,
    /// The same for the regions of pools.
    pub regions: Vec<RegionCode>,
    /// With which the first failed unit ended.
    pub outcomes: Vec<OutcomeKind>,
    pub submitted: TimeRange,
    /// Selects no live jobs, unless it is unbounded.
    pub ended: TimeRange,
}

/// What a job's labels must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRequirement {
    pub key: String,
    pub operator: LabelOperator,
}

/// How a label is compared. As in Kubernetes, a job without the label has none of the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelOperator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl LabelRequirement {
    /// Returns whether a job with this spec meets it.
    pub fn is_met(&self, spec: &JobSpec) -> bool {
        let value = spec.labels.get(&self.key);
        match &self.operator {
            LabelOperator::In(values) => value.is_some_and(|value| values.contains(value)),
            LabelOperator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

/// Instants from one on and before another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeRange {
    pub from: Option<Timestamp>,
    pub before: Option<Timestamp>,
}

impl TimeRange {
    /// Returns whether every instant is in the range.
    pub fn is_unbounded(self) -> bool {
        self == Self::default()
    }

    /// Returns whether the instant is in the range.
    pub fn contains(self, at: Timestamp) -> bool {
        self.from.is_none_or(|from| at >= from) && self.before.is_none_or(|before| at < before)
    }
}

impl JobFilter {
    /// Returns whether the filter may select jobs that have not ended.
    pub fn selects_live(&self) -> bool {
        self.ended.is_unbounded()
            && (self.phases.is_empty() || self.phases.iter().any(|phase| !phase.is_end()))
    }

    /// Returns whether the filter names something that only jobs have which have ended.
    pub fn names_ended(&self) -> bool {
        !self.ended.is_unbounded() || self.phases.iter().any(|phase| phase.is_end())
    }

    /// Returns whether the filter selects the job, wherever its attempts are: that is not in its view.
    pub fn matches_anywhere(&self, job: &JobView) -> bool {
        (self.queues.is_empty() || self.queues.contains(&job.queue))
            && (self.phases.is_empty() || self.phases.contains(&job.phase))
            && self.matches_rest(&job.name, &job.submitted_by, job.submitted_at, || Some(&*job.spec))
            && (self.outcomes.is_empty()
                || job.failure.as_ref().is_some_and(|failure| self.outcomes.contains(&failure.kind)))
            && (self.ended.is_unbounded() || job.ended_at.is_some_and(|at| self.ended.contains(at)))
    }

    /// `spec` is looked up only if it is needed: that takes longer than all the rest.
    fn matches_rest<'a>(
        &self,
        name: &str,
        by: &Principal,
        at: Timestamp,
        spec: impl FnOnce() -> Option<&'a JobSpec>,
    ) -> bool {
        name.starts_with(&self.name_prefix)
            && self.submitted_by.as_ref().is_none_or(|principal| principal == by)
            && self.submitted.contains(at)
            && (self.labels.is_empty()
                || spec().is_some_and(|spec| self.labels.iter().all(|label| label.is_met(spec))))
    }
}

/// A filter of live jobs, with its names looked up.
pub struct LiveFilter<'a> {
    state: &'a State,
    filter: &'a JobFilter,
    queues: BTreeSet<QueueId>,
    /// Pools of which a job must have an attempt in one; `None` if that is not asked.
    pools: Option<BTreeSet<PoolId>>,
    looked_at: Cell<usize>,
}

impl<'a> LiveFilter<'a> {
    /// Looks up the names of a filter.
    pub fn new(state: &'a State, filter: &'a JobFilter) -> Self {
        let queues = filter.queues.iter().filter_map(|name| state.queue_named(name));
        let by_place = !filter.pools.is_empty() || !filter.regions.is_empty();
        let pools = by_place.then(|| {
            let selected = state.pools().filter(|pool| {
                (filter.pools.is_empty() || filter.pools.contains(&pool.spec.name))
                    && (filter.regions.is_empty() || filter.regions.contains(&pool.spec.region))
            });
            selected.map(|pool| pool.id).collect()
        });
        let queues = queues.map(|queue| queue.id).collect();
        Self { state, filter, queues, pools, looked_at: Cell::new(0) }
    }

    /// How much has been looked at: a step that looks at more than a bound goes on in the next one.
    pub fn looked_at(&self) -> usize {
        self.looked_at.get()
    }

    /// The pools in which a job has live attempts. Its attempts or the pools are looked at, whichever are fewer.
    pub fn pools_of(&self, job: &Job) -> BTreeSet<PoolId> {
        let (live, pools) =
            (job.groups.iter().map(|group| group.live as usize).sum(), self.state.pool_count());
        self.looked_at.set(self.looked_at.get() + pools.min(live));
        if live <= pools {
            return self.state.attempts_of(job.id).map(|attempt| attempt.pool).collect();
        }
        let units = UnitId { job: job.id, unit: 0 }..=UnitId { job: job.id, unit: u32::MAX };
        let is_there = |pool: &&Pool| pool.attempts.range(units.clone()).next().is_some();
        self.state.pools().filter(is_there).map(|pool| pool.id).collect()
    }

    /// Returns whether the filter selects the live job. It makes no view, which would take several times as long.
    pub fn matches(&self, job: &Job) -> bool {
        self.looked_at.set(self.looked_at.get() + 1);
        let filter = self.filter;
        if !filter.queues.is_empty() && !self.queues.contains(&job.queue) {
            return false;
        }
        filter.matches_rest(&job.name, &job.submitted_by, job.submitted_at, || {
            self.state.spec(job.spec).map(|entry| &*entry.spec)
        }) && (filter.phases.is_empty() || filter.phases.contains(&job.phase()))
            && (filter.outcomes.is_empty()
                || job.first_failure.as_ref().is_some_and(|failure| filter.outcomes.contains(&failure.kind)))
            && filter.ended.is_unbounded()
            && self.pools.as_ref().is_none_or(|pools| !pools.is_disjoint(&self.pools_of(job)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::minimal;

    #[test]
    fn labels_are_compared_as_kubernetes_does() {
        let mut spec = minimal();
        spec.labels.insert("team".to_owned(), "vision".to_owned());
        let met = |key: &str, operator| LabelRequirement { key: key.to_owned(), operator }.is_met(&spec);
        let values = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        assert!(met("team", LabelOperator::In(values(&["speech", "vision"]))));
        assert!(!met("team", LabelOperator::In(values(&["speech"]))));
        assert!(!met("team", LabelOperator::NotIn(values(&["vision"]))));
        assert!(met("team", LabelOperator::NotIn(values(&["speech"]))));
        assert!(
            met("owner", LabelOperator::NotIn(values(&["vision"])))
                && !met("owner", LabelOperator::In(values(&["a"])))
        );
        assert!(met("team", LabelOperator::Exists) && !met("owner", LabelOperator::Exists));
        assert!(met("owner", LabelOperator::DoesNotExist) && !met("team", LabelOperator::DoesNotExist));
    }

    #[test]
    fn range_has_its_first_instant_and_not_its_last() {
        let range = TimeRange { from: Some(Timestamp(5)), before: Some(Timestamp(7)) };
        let inside: Vec<u64> = (0..10).filter(|at| range.contains(Timestamp(*at))).collect();
        assert_eq!(inside, [5, 6]);
        assert!(!range.is_unbounded() && TimeRange::default().contains(Timestamp(0)));
    }
}
