//! Queues units of short tasks behind running attempts of their class (claim reuse). `state::index::claims` has the
//! reasons and the bounds.

use super::{Round, RunKey, Scheduler};
use crate::model::attempt::Placement;
use crate::model::id::{NodeRef, UnitId};
use crate::model::plan::Start;
use crate::model::shape::ClassKey;
use crate::state::State;

/// Claims compared for one unit.
const CLAIMS_MAX: usize = 64;
/// Blocked classes ahead in the order that are compared with a claim's node.
const CLASSES_AHEAD_MAX: usize = 32;

impl Scheduler {
    /// Queues a unit of one task behind the claim of its own class that has the fewest successors.
    ///
    /// A claim passes from attempt to attempt and its capacity never becomes free. So no class ahead in the
    /// order may be waiting for a node like the claim's.
    pub(super) fn queue_behind_claim(
        &mut self,
        state: &State,
        class: ClassKey,
        unit: UnitId,
        avoid: Option<NodeRef>,
        round: &mut Round,
    ) -> Option<Start> {
        let depth_max = state.successors_max(class.shape);
        if depth_max == 0 {
            return None;
        }
        let task = state.job(unit.job).and_then(|job| state.spec(job.spec));
        let [(group, task)] = task?.spec.tasks_of_unit(unit.unit)[..] else { return None };
        let mut claims = state.claim_ends(class).take_while(|(depth, _)| *depth < depth_max).take(CLAIMS_MAX);
        let (after, pool, placement) = claims.find_map(|(_, last)| {
            round.work += 1;
            let ahead = state.attempt(last).filter(|_| !round.claimed.contains(&last))?;
            let [placement] = &ahead.placements[..] else { return None };
            let at = NodeRef { pool: ahead.pool, node: placement.node };
            let open = state.pool(at.pool)?.is_open() && state.node(at)?.is_open();
            (open && avoid != Some(at) && !self.is_needed_ahead(state, class, at, round))
                .then(|| (last, ahead.pool, placement.clone()))
        })?;
        round.claimed.insert(after);
        let placements = vec![Placement { group, task, ..placement }];
        Some(Start { unit, pool, placements, after: Some(after) })
    }

    /// Returns whether a blocked class ahead of this one in the order could use the node if it were empty.
    fn is_needed_ahead(&self, state: &State, class: ClassKey, at: NodeRef, round: &mut Round) -> bool {
        let Some(head) = state.classes().get(&class).and_then(|members| members.first()) else { return true };
        let own: RunKey = (std::cmp::Reverse(class.priority), *head, class);
        let mut ahead = self.blocked.order.range(..own).map(|(_, _, other)| *other);
        let needed = ahead.by_ref().take(CLASSES_AHEAD_MAX).any(|other| {
            round.work += 1;
            other != class && could_use(state, other, at)
        });
        // More classes than may be compared: assume that one of the rest could use the node.
        needed || ahead.next().is_some()
    }
}

/// Returns whether some task of the class might fit the node if it were empty. Device counts and labels are
/// not compared: a wrong `true` only costs a claim.
fn could_use(state: &State, class: ClassKey, at: NodeRef) -> bool {
    let (Some(shape), Some(node)) = (state.shape(class.shape), state.node(at)) else { return false };
    state.exclusion(at.pool, shape).is_none()
        && shape.tasks.iter().any(|(request, _)| {
            request.resources.fits(&node.spec.allocatable)
                && (request.devices.is_none() || !node.spec.devices.is_empty())
        })
}
