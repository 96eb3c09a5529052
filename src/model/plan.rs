//! What the scheduler decided: placements and what blocked the rest.

use super::attempt::Placement;
use super::id::{PoolId, Revision, UnitId};

/// A set of decisions, each re-checked against the state when it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The state it was computed from.
    pub based_on: Revision,
    pub policy: Policy,
    /// Decisions that this round was allowed to take.
    pub budget: u32,
    /// Classes looked at in this round.
    pub cursor: u32,
    pub starts: Vec<Start>,
}

/// A unit to be started in a pool, every task on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub unit: UnitId,
    pub pool: PoolId,
    pub placements: Vec<Placement>,
    /// The unit whose live attempt's place it takes over when that one is gone.
    pub after: Option<UnitId>,
}

/// The placement policy and its version: the same version gives the same plans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Least free capacity left, devices first; jobs in the order of their submission.
    BestFit,
    /// Least fragmentation added for what is expected to come, once enough is known of that; jobs in the
    /// order of their submission. The best policy published, to compare with.
    Fgd,
    /// Least stranded for what overflows, once enough is known of what comes: both where a task goes
    /// and which of those that wait goes next. What a broker goes by unless it is told otherwise.
    #[default]
    Overflow,
}

impl Policy {
    /// Raised with every change that could alter a plan.
    pub const VERSION: u32 = 4;

    /// It goes by what has been learned of the tasks that come.
    pub fn uses_profile(self) -> bool {
        matches!(self, Self::Fgd | Self::Overflow)
    }

    /// The policy's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::BestFit => "best-fit",
            Self::Fgd => "fgd",
            Self::Overflow => "overflow",
        }
    }
}
