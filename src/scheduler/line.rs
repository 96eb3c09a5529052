//! Puts units of short tasks in line behind running ones; `state::claim` says when and why.

use super::{Round, RunKey, Scheduler, why};
use crate::model::attempt::Placement;
use crate::model::id::{NodeRef, UnitId};
use crate::model::plan::Start;
use crate::model::shape::ClassKey;
use crate::state::State;

/// Ends of lines looked at for one unit.
const TAILS_MAX: usize = 64;
/// Waiting classes ahead that are asked whether the place would be theirs.
const AHEAD_MAX: usize = 32;

impl Scheduler {
    /// Finds the shortest line of its own class for a unit of one task.
    ///
    /// A place that is handed on in a line is never free: so nobody who is to be served earlier
    /// may be waiting for a node like this one.
    pub(super) fn line_up(
        &mut self,
        state: &State,
        class: ClassKey,
        unit: UnitId,
        avoid: Option<NodeRef>,
        round: &mut Round,
    ) -> Option<Start> {
        let len_max = state.successors_max(class.shape);
        if len_max == 0 {
            return None;
        }
        let task = state.job(unit.job).and_then(|job| state.spec(job.spec));
        let [(group, task)] = task?.spec.tasks_of_unit(unit.unit)[..] else { return None };
        let mut shorter = state.claim_ends(class).take_while(|(len, _)| *len < len_max).take(TAILS_MAX);
        let (after, pool, place) = shorter.find_map(|(_, tail)| {
            round.work += 1;
            let ahead = state.attempt(tail).filter(|_| !round.lined.contains(&tail))?;
            let [place] = &ahead.placements[..] else { return None };
            let at = NodeRef { pool: ahead.pool, node: place.node };
            let open = state.pool(at.pool)?.is_open() && state.node(at)?.is_open();
            (open && avoid != Some(at) && !self.is_wanted(state, class, at, round))
                .then(|| (tail, ahead.pool, place.clone()))
        })?;
        round.lined.insert(after);
        let placements = vec![Placement { group, task, ..place }];
        Some(Start { unit, pool, placements, after: Some(after) })
    }

    /// A class that comes before this one waits, and could use the node if it were free.
    fn is_wanted(&self, state: &State, class: ClassKey, at: NodeRef, round: &mut Round) -> bool {
        let Some(head) = state.classes().get(&class).and_then(|members| members.first()) else { return true };
        let own: RunKey = (std::cmp::Reverse(class.priority), *head, class);
        let mut ahead = self.full.order.range(..own).map(|(_, _, other)| *other);
        let wanted = ahead.by_ref().take(AHEAD_MAX).any(|other| {
            round.work += 1;
            other != class && could_use(state, other, at)
        });
        // So many that the rest can't be asked: give way.
        wanted || ahead.next().is_some()
    }
}

/// One task of the class would fit the node if it were empty.
fn could_use(state: &State, class: ClassKey, at: NodeRef) -> bool {
    let (Some(shape), Some(node)) = (state.shape(class.shape), state.node(at)) else { return false };
    why::exclusion(state, at.pool, shape).is_none()
        && shape.tasks.iter().any(|(request, _)| {
            request.resources.fits(&node.spec.allocatable)
                && (request.devices.is_none() || !node.spec.devices.is_empty())
        })
}
