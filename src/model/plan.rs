//! What the scheduler decided: the units to start and where.

use super::attempt::Placement;
use super::id::{PoolId, Revision, UnitId};

/// The decisions of one scheduling round. Each is checked again against the state when it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The revision of the state that the plan was computed from.
    pub based_on: Revision,
    pub policy: Policy,
    /// Largest number of starts that this round was allowed to plan.
    pub budget: u32,
    /// Number of classes examined in this round.
    pub cursor: u32,
    pub starts: Vec<Start>,
}

/// A unit to start in a pool, with the node and devices of each of its tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub unit: UnitId,
    pub pool: PoolId,
    /// One per task, in the order in which the unit lists its tasks.
    pub placements: Vec<Placement>,
    /// The unit behind whose live attempt this one is queued (claim reuse): it takes over that attempt's
    /// placement when the attempt ends. `None` starts at once.
    pub after: Option<UnitId>,
}

/// The placement policy. The same policy in the same [`VERSION`](Policy::VERSION) computes the same plan from
/// the same state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The node with the least free capacity left afterwards, devices first. Jobs in the order of their
    /// submission.
    BestFit,
    /// The node whose fragmentation grows least for the workload profile; best fit until there is a profile.
    /// Jobs in the order of their submission. The best published policy, for comparison.
    Fgd,
    /// The node that strands the least capacity for the demands of the workload profile that overflow; best
    /// fit until there is a profile. It also chooses which waiting class goes next. The broker's default.
    #[default]
    Overflow,
}

impl Policy {
    /// Raised with every change that could alter a plan.
    pub const VERSION: u32 = 10;

    /// The stable name, as recorded in the journal and accepted by `--policy`.
    pub fn name(self) -> &'static str {
        match self {
            Self::BestFit => "best-fit",
            Self::Fgd => "fgd",
            Self::Overflow => "overflow",
        }
    }
}
