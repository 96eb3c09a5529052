//! Live attempts that can be stopped, and the jobs and pools that wait for that.

use std::collections::BTreeSet;

use crate::model::attempt::Phase;
use crate::model::id::{JobId, PoolId, UnitId};
use crate::model::pool::{Connectivity, DrainMode};
use crate::model::spec::{JobSpec, OnPoolLost};
use crate::state::State;

/// Attempts to stop, and who has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// Live attempts without a stop request, by job and by pool.
    pub stoppable: BTreeSet<UnitId>,
    pub stoppable_in: BTreeSet<(PoolId, UnitId)>,
    /// Live attempts whose units are requeued when their pool is lost.
    pub requeueable: BTreeSet<(PoolId, UnitId)>,
    /// Closing jobs that have stoppable attempts.
    pub closing: BTreeSet<JobId>,
    /// Evicting pools that have stoppable attempts.
    pub evicting: BTreeSet<PoolId>,
    /// Lost pools that have attempts to requeue.
    pub lost: BTreeSet<PoolId>,
}

/// Computes the index from the records.
pub fn rebuild(state: &State) -> Stops {
    let mut stops = Stops::default();
    for attempt in state.attempts.values() {
        if attempt.phase != Phase::Stopping {
            stops.stoppable.insert(attempt.unit);
            stops.stoppable_in.insert((attempt.pool, attempt.unit));
            let closing = state.jobs.get(&attempt.unit.job).is_some_and(|job| job.closing.is_some());
            stops.closing.extend(closing.then_some(attempt.unit.job));
            stops.evicting.extend(state.is_evicting(attempt.pool).then_some(attempt.pool));
        }
        if state.may_requeue(attempt.unit) {
            stops.requeueable.insert((attempt.pool, attempt.unit));
            let lost =
                state.pools.get(&attempt.pool).is_some_and(|pool| pool.connectivity == Connectivity::Lost);
            stops.lost.extend(lost.then_some(attempt.pool));
        }
    }
    stops
}

/// Some of a pool's attempts are in the set.
fn has(set: &BTreeSet<(PoolId, UnitId)>, id: PoolId) -> bool {
    let first = (id, UnitId { job: JobId(0), unit: 0 });
    set.range(first..).next().is_some_and(|(pool, _)| *pool == id)
}

impl State {
    /// Something is due that waits for no timer: attempts of closing jobs and evicting pools, and jobs whose
    /// dependency failed.
    pub fn has_backlog(&self) -> bool {
        let stops = &self.index.stops;
        !(stops.closing.is_empty() && stops.evicting.is_empty() && self.index.dependents.failed.is_empty())
    }

    /// A lost pool has attempts that wait to be requeued.
    pub fn has_lost(&self) -> bool {
        !self.index.stops.lost.is_empty()
    }

    /// The unit is requeued when its attempt's pool is lost: the attempt's lease ends with the pool's
    /// connection, or the job allows attempts to overlap.
    pub(in crate::state) fn may_requeue(&self, unit: UnitId) -> bool {
        let Some(attempt) = self.attempts.get(&unit) else { return false };
        let overlaps = |spec: &JobSpec| spec.may_overlap && spec.on_pool_lost == OnPoolLost::Requeue;
        attempt.leased || self.spec_of(unit.job).is_some_and(|spec| overlaps(spec))
    }

    fn is_evicting(&self, id: PoolId) -> bool {
        self.pools.get(&id).and_then(|pool| pool.drain).is_some_and(|drain| drain.mode == DrainMode::Evict)
    }

    /// Notes whether a closing job still has attempts to be stopped.
    pub(in crate::state) fn reconcile_job(&mut self, id: JobId) {
        let range = UnitId { job: id, unit: 0 }..=UnitId { job: id, unit: u32::MAX };
        let closing = self.jobs.get(&id).is_some_and(|job| job.closing.is_some());
        if closing && self.index.stops.stoppable.range(range).next().is_some() {
            self.index.stops.closing.insert(id);
        } else {
            self.index.stops.closing.remove(&id);
        }
    }

    /// Notes whether a pool has attempts to be evicted or requeued.
    pub(in crate::state) fn reconcile_pool(&mut self, id: PoolId) {
        let Some(pool) = self.pools.get(&id) else { return };
        let (lost, evicting) = (pool.connectivity == Connectivity::Lost, self.is_evicting(id));
        let stops = &mut self.index.stops;
        if evicting && has(&stops.stoppable_in, id) {
            stops.evicting.insert(id);
        } else {
            stops.evicting.remove(&id);
        }
        if lost && has(&stops.requeueable, id) {
            stops.lost.insert(id);
        } else {
            stops.lost.remove(&id);
        }
    }
}
