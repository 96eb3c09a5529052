//! Chooses, of the classes that wait, which is to be placed next.
//!
//! Which of many waiting jobs goes next matters more than where it goes: of those near the front of
//! the line the one is taken whose best place strands the least. Nobody starves by that: a job is only
//! passed over by jobs of its own priority, submitted not much later, and no more than so many of them.

use super::packing::policy::Score;
use super::{ClassState, RunKey, Scheduler};
use crate::model::id::JobId;
use crate::model::shape::ClassKey;
use crate::state::State;

/// A job is passed over by none that comes more than so many jobs after it. Trials on the openb trace
/// lost most of what choosing gains with an eighth of that.
pub const PASSES_MAX: u64 = 8_000;
/// A job is passed over by none that was submitted more than this later, in milliseconds.
pub const PASSES_AGE_MS_MAX: u64 = 10 * 60 * 1_000;
/// A job of more units passes nobody over: its units would be as many passes.
const UNITS_MAX: u32 = 1_000;
/// Classes compared for one choice: some ten microseconds.
const CLASSES_MAX: usize = 128;

impl Scheduler {
    /// The class whose next unit is to be placed.
    pub(super) fn choose(&mut self, state: &State, work: &mut u32) -> Option<ClassKey> {
        let front = *self.runnable.first()?;
        if !self.packer.compares_costs() || self.packer_id(state, front.2).is_none() {
            return Some(front.2);
        }
        let near = self.runnable.iter().take(CLASSES_MAX).take_while(|key| may_pass(state, key, &front));
        let near: Vec<RunKey> = near.copied().collect();
        let mut best: Option<(Score, RunKey)> = None;
        for key in near {
            if key != front && units_of(state, key.1.0) > UNITS_MAX {
                continue;
            }
            let Some(id) = self.packer_id(state, key.2) else { continue };
            let Some((score, _)) = self.packer.best_of(id, None) else {
                // It is put aside, and no more compared.
                best = Some((Score::default(), key));
                break;
            };
            if best.is_none_or(|(least, _)| score.cost < least.cost) {
                best = Some((score, key));
            }
        }
        *work += self.packer.take_work();
        debug_assert!(
            best.is_none_or(|(_, key)| self.classes.get(&key.2) == Some(&ClassState::Runnable(key)))
        );
        best.map(|(_, (_, _, class))| class)
    }

    /// The packer's number for a class of single tasks: gangs have no one place to compare.
    fn packer_id(&mut self, state: &State, class: ClassKey) -> Option<super::DemandId> {
        self.shape_index(state, class.shape)?;
        let (packer, index) = (&mut self.packer, self.shapes.get_mut(&class.shape)?);
        let ([(demand, 1)], [id]) = (&index.demands[..], &mut index.ids[..]) else { return None };
        let known = packer.demand(demand, *id);
        *id = Some(known);
        Some(known)
    }
}

/// A class is near enough behind the front to be taken before it.
fn may_pass(state: &State, key: &RunKey, front: &RunKey) -> bool {
    let submitted = |job: JobId| state.job(job).map(|job| job.submitted_at);
    let (job, first) = (key.1.0, front.1.0);
    key.0 == front.0
        && job.0 <= first.0.saturating_add(PASSES_MAX)
        && submitted(job) <= submitted(first).map(|at| at.plus_ms(PASSES_AGE_MS_MAX))
}

fn units_of(state: &State, job: JobId) -> u32 {
    state.job(job).map_or(0, |job| job.groups.iter().map(|group| group.waiting.len()).sum())
}
