//! Refuses jobs that no pool can ever run, unless they are to wait for one that can.

use super::Broker;
use crate::model::reason::PoolReason;
use crate::model::shape::Shape;
use crate::model::suggest::nearest;
use crate::model::time::Timestamp;
use crate::scheduler::never_fits;
use crate::state::command::Submission;
use crate::state::rejection::{MissingPool, Rejection};

/// Pools and nodes that are compared with the jobs of one request: some milliseconds. Jobs beyond it are
/// accepted; `why` explains them.
const COMPARED_MAX: usize = 200_000;
/// After the start of the broker, and after a pool has registered, other pools may register for so long: until then
/// nothing is refused.
const REGISTRATION_MS: u64 = 10_000;
/// Pools that the refusal of a job names.
const POOLS_NAMED: usize = 4;

impl Broker {
    /// Checks that some pool, if it were empty and open, could run each unit of the jobs. Without pools there is
    /// nothing to compare with.
    pub(super) fn check_fits(&self, jobs: &[Submission]) -> Result<(), Rejection> {
        if jobs.iter().all(|job| job.allow_pending) {
            return Ok(());
        }
        let newest = self.state.pools().map(|pool| pool.registered_at).max();
        let is_past = |since: Timestamp| self.now >= since.plus_ms(REGISTRATION_MS);
        if !is_past(self.started_at) || !newest.is_some_and(is_past) {
            return Ok(());
        }
        let mut budget = COMPARED_MAX;
        let mut last = None;
        for (index, job) in jobs.iter().enumerate().filter(|(_, job)| !job.allow_pending) {
            // Batches are often alike.
            if last == Some(&job.spec) {
                continue;
            }
            last = Some(&job.spec);
            for group in 0..job.spec.unit_group_count() {
                let shape = Shape::of(&job.spec, group);
                let Some(pools) = never_fits(&self.state, &shape, &mut budget) else { continue };
                // Simulated pools would only hide what the others lack, and so would those that the job excludes.
                let (simulated, mut others): (Vec<_>, Vec<_>) =
                    pools.into_iter().partition(|why| why.reason == PoolReason::PoolSimulated);
                others.sort_by_key(|why| is_excluded(&why.reason));
                let shown = others.iter().filter(|why| !is_excluded(&why.reason)).count();
                let shown = if shown > 0 { shown.min(POOLS_NAMED) } else { POOLS_NAMED };
                let named = |why: crate::scheduler::PoolWhy| {
                    let pool = self.state.pool(why.pool).map(|pool| pool.spec.name.clone());
                    (pool.unwrap_or_default(), why.reason)
                };
                return Err(Rejection::NeverFits {
                    field: format!("jobs[{index}].spec.groups[{group}]"),
                    missing: self.missing_pools(&job.spec.constraints.pools),
                    more: others.len().saturating_sub(shown),
                    pools: others.into_iter().take(shown).map(named).collect(),
                    simulated: simulated.len(),
                });
            }
        }
        Ok(())
    }

    /// The first of these pools that do not exist, each with the existing ones of a similar name.
    fn missing_pools(&self, pools: &[String]) -> Vec<MissingPool> {
        let missing = pools.iter().filter(|pool| self.state.pool_named(pool).is_none());
        let similar = |pool: &String| {
            let existing = self.state.pools().map(|pool| pool.spec.name.as_str());
            nearest(pool, existing).into_iter().map(str::to_owned).collect()
        };
        missing
            .take(POOLS_NAMED)
            .map(|pool| MissingPool { name: pool.clone(), similar: similar(pool) })
            .collect()
    }
}

/// The job itself leaves the pool out, whatever the pool has.
fn is_excluded(reason: &PoolReason) -> bool {
    matches!(reason, PoolReason::PoolNotAllowed | PoolReason::RegionNotAllowed { .. })
}
