//! Live attempts that can be stopped, and the jobs and pools that wait for that.

use std::collections::BTreeSet;

use crate::model::attempt::Phase;
use crate::model::id::{JobId, PoolId, UnitId};
use crate::model::pool::{Connectivity, DrainMode};
use crate::state::State;

/// Attempts to stop, and who has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// Live attempts without a stop request, by job and by pool.
    pub stoppable: BTreeSet<UnitId>,
    pub stoppable_in: BTreeSet<(PoolId, UnitId)>,
    /// Live attempts whose units are requeued when their lease is over, with its length in milliseconds.
    pub requeueable: BTreeSet<(PoolId, u64, UnitId)>,
    /// Closing jobs that have stoppable attempts.
    pub closing: BTreeSet<JobId>,
    /// Evicting pools that have stoppable attempts.
    pub evicting: BTreeSet<PoolId>,
    /// Lost pools that have attempts to requeue, when their lease is over.
    pub lost: BTreeSet<PoolId>,
}

impl Stops {
    /// The requeueable attempts in a pool with the lengths of their leases, shortest first.
    pub fn requeueable_in(&self, pool: PoolId) -> impl Iterator<Item = (u64, UnitId)> {
        let first = (pool, 0, UnitId { job: JobId(0), unit: 0 });
        let of_pool = self.requeueable.range(first..).take_while(move |(other, ..)| *other == pool);
        of_pool.map(|(_, lease_ms, unit)| (*lease_ms, *unit))
    }
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
        if let Some(lease_ms) = state.requeue_lease_ms(attempt.unit) {
            stops.requeueable.insert((attempt.pool, lease_ms, attempt.unit));
            let pool = state.pools.get(&attempt.pool);
            let lost = pool.is_some_and(|pool| pool.connectivity == Connectivity::Lost);
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

    /// A lost pool has attempts that are requeued when their lease is over.
    pub fn has_lost(&self) -> bool {
        !self.index.stops.lost.is_empty()
    }

    /// For how long an attempt's pool must be silent until its unit is requeued: the lease by whose end the
    /// attempt has stopped, or, if the job allows attempts to overlap, may run on. `None` if the unit waits.
    pub(in crate::state) fn requeue_lease_ms(&self, unit: UnitId) -> Option<u64> {
        let (attempt, spec) = (self.attempts.get(&unit)?, self.spec_of(unit.job)?);
        spec.lease_ms().filter(|_| attempt.leased || spec.may_overlap)
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
        if lost && stops.requeueable_in(id).next().is_some() {
            stops.lost.insert(id);
        } else {
            stops.lost.remove(&id);
        }
    }
}
