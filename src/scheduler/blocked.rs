//! Classes that wait for capacity, and which of them freed capacity makes runnable again.
//!
//! The classes are sorted by the fewest devices that one of their tasks asks for. Capacity freed on a node is
//! notified only to those where that is no more than the node has free: a queue of large jobs costs nothing while
//! small ones come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{RunKey, Scheduler};
use crate::model::id::{NodeRef, PoolId};
use crate::model::shape::{ClassKey, Shape};
use crate::model::spec::TaskRequest;
use crate::state::State;

/// Blocked classes that one round compares with freed capacity: some milliseconds at most, also if all of them become
/// runnable.
const NOTIFICATIONS_MAX: usize = 2_048;
/// Comparisons that cost as much as scoring a bucket, and what a class costs that becomes runnable, in buckets.
const COMPARED_PER_WORK: usize = 16;
const RUNNABLE_WORK: u32 = 8;

/// The least that a task of a class asks for, of each by itself: device thousandths, then millicores.
type Need = (u64, u64);

/// Where capacity has become free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FreedCapacity {
    /// A pool has opened: all of its nodes count.
    Pool(PoolId),
    Node(NodeRef),
}

/// The classes that wait for capacity.
#[derive(Debug, Default)]
pub(super) struct BlockedClasses {
    classes: BTreeMap<ClassKey, (Need, RunKey)>,
    by_need: BTreeSet<(Need, ClassKey)>,
    /// In the order of priority and submission.
    pub(super) order: BTreeSet<RunKey>,
    /// Freed capacity that no class has been notified of yet.
    pending: BTreeSet<FreedCapacity>,
    /// Freed capacity whose notification stopped after this class, at the bound of a round.
    interrupted: Option<(FreedCapacity, (Need, ClassKey))>,
}

impl BlockedClasses {
    pub(super) fn insert(&mut self, class: ClassKey, shape: &Shape, key: RunKey) {
        // The least of each: one task of a gang may ask for few devices, another for few cores.
        let devices =
            |request: &TaskRequest| request.devices.as_ref().map_or(0, |asked| asked.amount.millis());
        let requests = || shape.tasks.iter().map(|(request, _)| request);
        let need = (
            requests().map(devices).min().unwrap_or(0),
            requests().map(|request| request.resources.cpu_millis).min().unwrap_or(0),
        );
        self.classes.insert(class, (need, key));
        self.by_need.insert((need, class));
        self.order.insert(key);
    }

    pub(super) fn remove(&mut self, class: ClassKey) {
        if let Some((need, key)) = self.classes.remove(&class) {
            self.by_need.remove(&(need, class));
            self.order.remove(&key);
        }
    }

    /// Moves a class to the place in the order of its first job: the one before may have been cancelled.
    pub(super) fn reorder(&mut self, key: RunKey) {
        if let Some((_, current)) = self.classes.get_mut(&key.2)
            && *current != key
        {
            self.order.remove(current);
            self.order.insert(key);
            *current = key;
        }
    }

    /// Notes freed capacity for the next round, unless no class is blocked.
    pub(super) fn note_freed(&mut self, freed: FreedCapacity) {
        if !self.classes.is_empty() {
            self.pending.insert(freed);
        }
    }

    /// Returns whether there are blocked classes and freed capacity that some of them were not notified of.
    pub(super) fn has_pending_notifications(&self) -> bool {
        !self.classes.is_empty() && (!self.pending.is_empty() || self.interrupted.is_some())
    }

    /// Returns whether only some of the classes were notified of a freed node. Nothing may start then: those that come
    /// first in the order may be among the others.
    pub(super) fn is_interrupted(&self) -> bool {
        !self.classes.is_empty() && self.interrupted.is_some()
    }
}

impl Scheduler {
    /// Makes blocked classes runnable that freed capacity may serve, or reserves the freed node. Returns the work,
    /// in buckets scored.
    pub(super) fn notify(&mut self, state: &State) -> u32 {
        let (mut compared, mut runnable) = (0, 0);
        let continued = self.blocked.interrupted.is_some();
        while compared < NOTIFICATIONS_MAX {
            let (freed, after) = match self.blocked.interrupted.take() {
                Some((freed, last)) => (freed, Bound::Excluded(last)),
                None => match self.blocked.pending.pop_first() {
                    Some(freed) => {
                        if let FreedCapacity::Node(at) = freed {
                            self.reserve(state, at);
                        }
                        (freed, Bound::Unbounded)
                    }
                    None => break,
                },
            };
            let largest = self.largest_need(freed);
            let fits = |(need, _): &&(Need, ClassKey)| need.0 <= largest.0;
            let classes = self.blocked.by_need.range((after, Bound::Unbounded)).take_while(fits);
            let classes: Vec<(Need, ClassKey)> =
                classes.take(NOTIFICATIONS_MAX - compared).copied().collect();
            compared += classes.len().max(1);
            if let Some(last) = classes.last().filter(|_| compared >= NOTIFICATIONS_MAX) {
                self.blocked.interrupted = Some((freed, *last));
            }
            for (need, class) in classes {
                if need.1 <= largest.1 && self.may_serve(state, freed, class) {
                    self.forget_class(class);
                    self.fold_class(state, class);
                    runnable += 1;
                }
            }
            if continued {
                // Before the next freed node is looked at, something may start on this one.
                break;
            }
        }
        (compared / COMPARED_PER_WORK) as u32 + runnable * RUNNABLE_WORK
    }

    /// The largest need of a task that this freed capacity may serve.
    fn largest_need(&self, freed: FreedCapacity) -> Need {
        match freed {
            FreedCapacity::Pool(_) => (u64::MAX, u64::MAX),
            FreedCapacity::Node(at) => {
                self.node(at).map_or((0, 0), |node| (node.free_millis(), node.free.cpu_millis))
            }
        }
    }

    /// Returns whether some task of the class may fit the freed capacity, by itself.
    fn may_serve(&mut self, state: &State, freed: FreedCapacity, class: ClassKey) -> bool {
        let Some(index) = self.shape_index(state, class.shape) else { return false };
        let (FreedCapacity::Node(NodeRef { pool, .. }) | FreedCapacity::Pool(pool)) = freed;
        if state.exclusion(pool, &index.shape).is_some() {
            return false;
        }
        let demands = index.demands.clone();
        let FreedCapacity::Node(at) = freed else { return true };
        let packer = self.packer_of(at);
        demands.iter().any(|(demand, _)| packer.fits(demand, at))
    }
}
