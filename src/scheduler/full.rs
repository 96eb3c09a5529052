//! Classes that wait for capacity, and whom of them a gain wakes.
//!
//! They are kept by how much they need at the least: what a node has gained wakes only those
//! that ask for no more devices than the node has free. A queue of large jobs costs nothing while
//! small ones come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{RunKey, Scheduler, why};
use crate::model::id::{NodeRef, PoolId};
use crate::model::shape::{ClassKey, Shape};
use crate::state::State;

/// Waiting classes that one round offers gains to: some milliseconds at the most.
const LOOKS_MAX: usize = 16_384;

/// Device thousandths, then millicores, that the smallest task of a class needs.
type Need = (u64, u64);

/// Something has become free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Gain {
    Pool(PoolId),
    Node(NodeRef),
}

/// The classes that wait for capacity.
#[derive(Debug, Default)]
pub(super) struct Full {
    classes: BTreeMap<ClassKey, (Need, RunKey)>,
    by_need: BTreeSet<(Need, ClassKey)>,
    /// In the order in which they were to be tried.
    pub(super) order: BTreeSet<RunKey>,
    /// Not yet offered to the classes.
    gains: BTreeSet<Gain>,
    /// A gain that has been offered to the classes up to this one.
    offered: Option<(Gain, (Need, ClassKey))>,
}

impl Full {
    pub(super) fn insert(&mut self, class: ClassKey, shape: &Shape, key: RunKey) {
        let needs = shape.tasks.iter().map(|(request, _)| {
            let devices = request.devices.as_ref().map_or(0, |devices| devices.amount.millis());
            (devices, request.resources.cpu_millis)
        });
        let need = needs.min().unwrap_or_default();
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

    /// Notes a gain, unless nobody waits for it.
    pub(super) fn gain(&mut self, gain: Gain) {
        if !self.classes.is_empty() {
            self.gains.insert(gain);
        }
    }

    /// There are classes that have not been offered all that was gained.
    pub(super) fn has_offers(&self) -> bool {
        !self.classes.is_empty() && (!self.gains.is_empty() || self.offered.is_some())
    }
}

impl Scheduler {
    /// Makes classes runnable that a gain may serve; tells how many were looked at.
    pub(super) fn wake(&mut self, state: &State) -> usize {
        let mut looks = 0;
        while looks < LOOKS_MAX {
            let (gain, after) = match self.full.offered.take() {
                Some((gain, last)) => (gain, Bound::Excluded(last)),
                None => match self.full.gains.pop_first() {
                    Some(gain) => {
                        if let Gain::Node(at) = gain {
                            self.keep(state, at);
                        }
                        (gain, Bound::Unbounded)
                    }
                    None => return looks,
                },
            };
            let most = self.most(gain);
            let fits = |(need, _): &&(Need, ClassKey)| need.0 <= most.0;
            let list = self.full.by_need.range((after, Bound::Unbounded)).take_while(fits);
            let list: Vec<(Need, ClassKey)> = list.take(LOOKS_MAX - looks).copied().collect();
            looks += list.len().max(1);
            if let Some(last) = list.last().filter(|_| looks >= LOOKS_MAX) {
                self.full.offered = Some((gain, *last));
            }
            for (need, class) in list {
                if need.1 <= most.1 && self.may_serve(state, gain, class) {
                    self.forget_kept(class);
                    self.fold_class(state, class);
                }
            }
        }
        looks
    }

    /// The most that one task may need to be served by a gain.
    fn most(&self, gain: Gain) -> Need {
        match gain {
            Gain::Pool(_) => (u64::MAX, u64::MAX),
            Gain::Node(at) => self.node(at).map_or((0, 0), |node| (node.free_millis(), node.free.cpu_millis)),
        }
    }

    fn may_serve(&mut self, state: &State, gain: Gain, class: ClassKey) -> bool {
        let Some(index) = self.shape_index(state, class.shape) else { return false };
        let (Gain::Node(NodeRef { pool, .. }) | Gain::Pool(pool)) = gain;
        if why::exclusion(state, pool, &index.shape).is_some() {
            return false;
        }
        let demands = index.demands.clone();
        let Gain::Node(at) = gain else { return true };
        let packer = self.packer_of(at);
        demands.iter().any(|(demand, _)| packer.fits(demand, at))
    }
}
