//! Chooses which runnable class is placed next.
//!
//! Which of many waiting jobs is placed next matters more than where it is placed. Of the classes near the
//! front of the order, the one goes first whose best placement strands the least. No job starves: a job is
//! passed over only by jobs of its own priority that were submitted at most [`OVERTAKING_AGE_MS_MAX`] later and
//! are at most [`OVERTAKING_JOBS_MAX`] jobs behind it.

use super::{DemandId, RunKey, Scheduler};
use crate::model::id::JobId;
use crate::model::limit::{OVERTAKING_AGE_MS_MAX, OVERTAKING_JOBS_MAX, OVERTAKING_UNITS_MAX};
use crate::model::shape::ClassKey;
use crate::state::State;

/// Classes compared for one choice.
const CLASSES_MAX: usize = 128;
/// What comparing one class costs, in buckets scored: without it, many classes that don't fit a freed node would take one
/// step of seconds.
const CLASS_WORK: u32 = 8;

impl Scheduler {
    /// Returns the class whose next unit is placed next; `None` if no class is runnable. Adds to `work` what
    /// was compared.
    pub(super) fn choose(&mut self, state: &State, work: &mut u32) -> Option<ClassKey> {
        let front = *self.runnable.first()?;
        if !self.packer.compares_costs() || self.packer_id(state, front.2).is_none() {
            return Some(front.2);
        }
        let near: Vec<RunKey> = self.runnable.iter().take(CLASSES_MAX).copied().collect();
        let mut best: Option<(i64, RunKey)> = None;
        for key in near {
            *work += CLASS_WORK;
            if !may_pass(state, &key, &front) {
                break;
            }
            if key != front && waiting_units_of(state, key.1.0) > OVERTAKING_UNITS_MAX {
                continue;
            }
            let Some(id) = self.packer_id(state, key.2) else { continue };
            let Some((score, node)) = self.packer.best_of(id, None) else {
                // It does not fit: its step marks it as blocked, and it is not compared again.
                best = Some((0, key));
                break;
            };
            let stranded = self.packer.stranding_cost(id, node, score);
            if best.is_none_or(|(least, _)| stranded < least) {
                best = Some((stranded, key));
            }
        }
        *work += self.packer.take_work();
        best.map(|(_, (_, _, class))| class)
    }

    /// The packer's id of the demand of a class of single tasks; `None` for gangs, which have no single best
    /// node to compare.
    fn packer_id(&mut self, state: &State, class: ClassKey) -> Option<DemandId> {
        self.shape_index(state, class.shape)?;
        let (packer, index) = (&mut self.packer, self.shapes.get_mut(&class.shape)?);
        let ([(demand, 1)], [id]) = (&index.demands[..], &mut index.ids[..]) else { return None };
        let current = packer.demand(demand, *id);
        *id = Some(current);
        Some(current)
    }
}

/// Returns whether a class is near enough behind the front to be placed before it.
fn may_pass(state: &State, key: &RunKey, front: &RunKey) -> bool {
    let submitted = |job: JobId| state.job(job).map(|job| job.submitted_at);
    let (job, first) = (key.1.0, front.1.0);
    key.0 == front.0
        && job.0 <= first.0.saturating_add(OVERTAKING_JOBS_MAX)
        && submitted(job) <= submitted(first).map(|at| at.plus_ms(OVERTAKING_AGE_MS_MAX))
}

fn waiting_units_of(state: &State, job: JobId) -> u32 {
    state.job(job).map_or(0, |job| job.groups.iter().map(|group| group.waiting.len()).sum())
}
