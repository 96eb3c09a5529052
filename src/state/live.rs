//! Live attempts: at most one per unit.

use crate::model::attempt::{Outcome, OutcomeKind, Phase, Placement, StopReason};
use crate::model::id::{AttemptId, JournalId, NodeRef, PoolId, Revision, UnitId};
use crate::model::time::Timestamp;

/// An attempt that holds capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub unit: UnitId,
    /// Counts the unit's attempts from 1.
    pub number: u32,
    /// Earlier attempts that count against `max_attempts`.
    pub failures: u32,
    /// Attempts of the unit before it that ended with their node or lease.
    pub losses: u32,
    /// Attempts just before it, in a row, that were not started.
    pub returns: u32,
    pub pool: PoolId,
    pub phase: Phase,
    /// Set in phase `Stopping`.
    pub stop: Option<StopReason>,
    pub ordered_at: Timestamp,
    /// The revision that ordered it.
    pub ordered_revision: Revision,
    /// The agent never creates it after this.
    pub start_by: Timestamp,
    pub started_at: Option<Timestamp>,
    /// It is stopped then; every attempt has an end.
    pub ends_by: Timestamp,
    /// It ends by itself when its pool's lease isn't renewed.
    pub leased: bool,
    /// The unit whose live attempt's place this one takes over when that one is gone; until
    /// then it holds nothing.
    pub after: Option<UnitId>,
    pub placements: Vec<Placement>,
    /// The last event that altered it.
    pub revision: Revision,
}

impl Attempt {
    /// The node that all of its tasks are on, if that is one.
    pub fn single_node(&self) -> Option<NodeRef> {
        let (first, rest) = self.placements.split_first()?;
        let one = rest.iter().all(|placement| placement.node == first.node);
        one.then_some(NodeRef { pool: self.pool, node: first.node })
    }

    /// Ending so, without a stop request, is its node's fault: the node was lost, or the backend blames it.
    pub fn is_node_fault(&self, outcome: &Outcome) -> bool {
        self.stop.is_none() && (outcome.kind == OutcomeKind::NodeLost || outcome.node_fault)
    }

    /// Its full identity.
    pub fn id(&self, journal: JournalId) -> AttemptId {
        AttemptId { journal, job: self.unit.job, unit: self.unit.unit, number: self.number }
    }
}
