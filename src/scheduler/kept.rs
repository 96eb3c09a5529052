//! Keeps nodes for jobs that would be passed over for ever.
//!
//! Where small jobs come all the time, each device that comes free is taken at once and no node is ever
//! free as a whole. So a class of tasks of several devices that has waited far longer than what starts
//! meanwhile gets nodes kept: where something ends, the node may be kept for the first in the line that
//! would fit it if it were empty. From then on only those take from it who come no later in the line. Few
//! nodes are kept at a time, and one that is nearer to being free takes the place of one that is less so:
//! what lies idle is bounded, and every change is a step forward. Jobs that ask for as much follow on such
//! a node later, so it is little that has to be kept.

use std::collections::BTreeMap;

use super::full::Gain;
use super::packing::policy::Scorer;
use super::packing::{Node, Packer, Undo};
use super::{ClassState, Round, RunKey, Scheduler, nodes, why};
use crate::model::attempt::Placement;
use crate::model::demand::Demand;
use crate::model::id::{JobId, NodeRef, PoolId, UnitId};
use crate::model::limit::{DEVICE_MILLIS, NODES_PER_RESERVED_NODE, RESERVATION_WAIT_MS_MIN};
use crate::model::resource::{Resources, TASK_SIZES, task_size};
use crate::model::shape::ClassKey;
use crate::state::State;

/// The most nodes kept at a time, whatever the size of the cluster: each start may look at all of them.
const NODES_MAX: usize = 64;
/// Devices over which the mean wait is taken: older ones count less and less.
const MEAN_OVER_DEVICES: i128 = 8_192;

/// Tenths of the mean wait, for each device that a task asks for, after which a node is kept for it. With 6,
/// those of eight waited 1 % less long, and those of one 1 % longer (openb).
const PATIENCE_TENTHS: u64 = 7;

/// How soon nodes are kept, and how many.
#[derive(Clone, Copy, Debug)]
pub struct ReservationPolicy {
    /// One of so many nodes at a time, at most; rounded.
    pub one_of: usize,
    /// For nobody who has waited less, in milliseconds.
    pub wait_ms_min: u64,
}

impl Default for ReservationPolicy {
    fn default() -> Self {
        Self { one_of: NODES_PER_RESERVED_NODE, wait_ms_min: RESERVATION_WAIT_MS_MIN }
    }
}

/// The nodes that are kept, out of the sight of those whom they are not kept for.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) packer: Packer,
    reservation_policy: ReservationPolicy,
    owners: BTreeMap<NodeRef, RunKey>,
    /// How long those waited that started, each device counted, in microseconds.
    mean_wait_us: i128,
}

impl Default for Kept {
    fn default() -> Self {
        // There is nothing to choose but devices.
        let packer = Packer::new(Scorer::BestFit);
        Self {
            packer,
            reservation_policy: ReservationPolicy::default(),
            owners: BTreeMap::new(),
            mean_wait_us: 0,
        }
    }
}

impl Kept {
    pub(super) fn holds(&self, at: NodeRef) -> bool {
        self.owners.contains_key(&at)
    }

    /// A node that doesn't take work any more.
    pub(super) fn remove(&mut self, at: NodeRef) {
        if self.owners.remove(&at).is_some() {
            self.packer.remove(at);
        }
    }

    /// Counts what starts.
    pub(super) fn start(&mut self, waited_ms: u64, total: &Resources) {
        let over = MEAN_OVER_DEVICES * i128::from(DEVICE_MILLIS);
        let weight = i128::from(total.device_millis).min(over);
        self.mean_wait_us += (i128::from(waited_ms) * 1_000 - self.mean_wait_us) * weight / over;
    }

    /// How long a task of several devices waits before a node is kept for it, in milliseconds: the longer the
    /// more it asks for, as so many come free together the more rarely. Never, where it would bring less than
    /// it costs, given what devices are `in_use` for by tasks of each size.
    fn patience_ms(&self, demand: &Demand, in_use: &[u64; TASK_SIZES]) -> Option<u64> {
        let devices = demand.device_millis() / u64::from(DEVICE_MILLIS);
        // A node that is kept moves waiting from the large to the small. The more devices the large hold, and the
        // longer they wait, the more per cent of theirs it costs the small to spare the large one: more than
        // one, once these hold more than the small, times how many mean waits they wait when nodes are kept.
        let times = devices.saturating_mul(PATIENCE_TENTHS);
        let (smaller, as_large) = in_use.split_at(task_size(demand.device_millis()));
        let (smaller, as_large) = (smaller.iter().sum::<u64>(), as_large.iter().sum::<u64>());
        if devices < 2 || as_large.saturating_mul(times) > smaller.saturating_mul(10) {
            return None;
        }
        let mean_ms = u64::try_from(self.mean_wait_us / 1_000).unwrap_or(0);
        Some((mean_ms.saturating_mul(times) / 10).max(self.reservation_policy.wait_ms_min))
    }

    /// The node that is least free, of one class or of all, with its free device thousandths.
    fn weakest(&self, of: Option<ClassKey>) -> Option<(u64, NodeRef)> {
        let nodes = self.owners.iter().filter(|(_, owner)| of.is_none_or(|class| owner.2 == class));
        nodes.map(|(at, _)| (self.packer.node(*at).map_or(0, Node::free_millis), *at)).min()
    }
}

impl Scheduler {
    /// Keeps nodes sooner or later, more or fewer, from now on.
    pub fn set_reservation_policy(&mut self, reservation_policy: ReservationPolicy) {
        self.kept.reservation_policy = reservation_policy;
    }

    /// Keeps a node on which something has become free, if somebody is to have it who doesn't fit it yet.
    pub(super) fn keep(&mut self, state: &State, at: NodeRef) {
        let nodes = self.packer.node_count() + self.kept.owners.len();
        let one_of = self.kept.reservation_policy.one_of.max(1);
        let most = NODES_MAX.min((nodes + one_of / 2) / one_of);
        if most == 0 || !self.packer.compares_costs() || self.kept.holds(at) {
            return;
        }
        let Some(free) = self.packer.node(at).map(Node::free_millis).filter(|free| *free > 0) else { return };
        let Some(owner) = self.wanting(state, at, most) else { return };
        let own = self.kept.owners.values().filter(|kept| kept.2 == owner.2).count();
        let in_its_place = if units_waiting(state, owner.2, own + 1) <= own {
            self.kept.weakest(Some(owner.2))
        } else if self.kept.owners.len() >= most {
            self.kept.weakest(None)
        } else {
            None
        };
        if let Some((least, other)) = in_its_place {
            if free <= least {
                return;
            }
            self.give_back(other);
        }
        if let Some(node) = self.packer.node(at).cloned() {
            self.packer.remove(at);
            self.kept.packer.set(at, node);
            self.kept.owners.insert(at, owner);
        }
    }

    /// The first in the line, of those that have waited too long, that would fit the node if it were empty:
    /// nobody, if one before it fits it as it is.
    fn wanting(&mut self, state: &State, at: NodeRef, asked: usize) -> Option<RunKey> {
        let (node, whole) = (self.packer.node(at)?.clone(), state.node(at)?);
        let empty = nodes::emptied(whole, node.class.clone(), node.devices.clone()).bucket();
        let first: Vec<RunKey> = self.full.order.iter().take(asked).copied().collect();
        for key in first {
            let class = key.2;
            let Some((head, _)) = state.classes().get(&class).and_then(|members| members.first()) else {
                continue;
            };
            let Some(index) = self.shape_index(state, class.shape) else { continue };
            let ([(demand, 1)], shape) = (&index.demands[..], index.shape.clone()) else { continue };
            let demand = demand.clone();
            let allowed = || why::exclusion(state, at.pool, &shape).is_none();
            if !empty.fits(&demand) || !allowed() {
                continue;
            }
            match lack(&demand, &node, &whole.spec.allocatable) {
                Lack::Nothing => return None,
                Lack::Other => {}
                Lack::Devices => {
                    let waited_ms = state.job(*head).map_or(0, |job| state.now().ms_since(job.submitted_at));
                    let patience_ms = self.kept.patience_ms(&demand, state.devices_in_use())?;
                    return (waited_ms > patience_ms).then_some(key);
                }
            }
        }
        None
    }

    /// Gives a node back that has changed, if it is of no use any more to whom it is kept for.
    pub(super) fn recheck_kept(&mut self, state: &State, at: NodeRef) {
        let Some(owner) = self.kept.owners.get(&at) else { return };
        let (Some(node), Some(whole)) = (self.kept.packer.node(at), state.node(at)) else { return };
        let useful = self.shapes.get(&owner.2.shape).is_some_and(|index| {
            let empty = nodes::emptied(whole, node.class.clone(), node.devices.clone()).bucket();
            index.demands.iter().all(|(demand, _)| {
                empty.fits(demand) && lack(demand, node, &whole.spec.allocatable) != Lack::Other
            }) && why::exclusion(state, at.pool, &index.shape).is_none()
        });
        if !useful {
            self.give_back(at);
        }
    }

    /// Gives back what is kept for nobody any more.
    pub(super) fn give_back_unwanted(&mut self, state: &State) {
        let mut owned: BTreeMap<ClassKey, usize> = BTreeMap::new();
        for owner in self.kept.owners.values() {
            *owned.entry(owner.2).or_default() += 1;
        }
        for (class, nodes) in owned {
            let waits = self.packer.compares_costs()
                && matches!(self.classes.get(&class), Some(ClassState::Full | ClassState::Runnable(_)));
            let wanted = if waits { units_waiting(state, class, nodes) } else { 0 };
            for _ in wanted..nodes {
                if let Some((_, at)) = self.kept.weakest(Some(class)) {
                    self.give_back(at);
                }
            }
        }
    }

    fn give_back(&mut self, at: NodeRef) {
        let node = self.kept.packer.node(at).cloned();
        self.kept.remove(at);
        if let Some(node) = node {
            self.packer.set(at, node);
            self.full.gain(Gain::Node(at));
        }
    }

    /// Places a unit of one task on a kept node, if it is kept for its class, which gives it back, or for one
    /// that comes later.
    pub(super) fn place_kept(
        &mut self,
        state: &State,
        key: RunKey,
        unit: UnitId,
        avoid: Option<NodeRef>,
        round: &mut Round,
    ) -> Option<(PoolId, Vec<Placement>)> {
        if self.kept.owners.is_empty() {
            return None;
        }
        let index = self.shape_index(state, key.2.shape)?;
        let ([(demand, 1)], shape) = (&index.demands[..], index.shape.clone()) else { return None };
        let demand = demand.clone();
        round.work += self.kept.owners.len() as u32;
        let allowed = |(at, owner): &(&NodeRef, &RunKey)| {
            (owner.2 == key.2 || key < **owner)
                && self.kept.packer.fits(&demand, **at)
                && why::exclusion(state, at.pool, &shape).is_none()
        };
        let own_first = |(at, owner): (&NodeRef, &RunKey)| (Some(*at) == avoid, owner.2 != key.2, *at);
        let (_, of_others, at) = self.kept.owners.iter().filter(allowed).map(own_first).min()?;
        let entry = state.job(unit.job).and_then(|job| state.spec(job.spec))?;
        let [(group, task)] = entry.spec.tasks_of_unit(unit.unit)[..] else { return None };
        let id = self.kept.packer.demand(&demand, None);
        let devices = self.kept.packer.take(id, at, &mut Undo::default())?;
        if !of_others {
            self.give_back(at);
        }
        Some((at.pool, vec![Placement { group, task, node: at.node, devices }]))
    }
}

/// What a task that would fit the empty node lacks as it is.
#[derive(PartialEq, Eq)]
enum Lack {
    Nothing,
    Devices,
    /// It has the devices that it needs: to keep them idle until there is more of the rest would cost too much.
    Other,
}

fn lack(demand: &Demand, node: &Node, whole: &Resources) -> Lack {
    let mut bucket = node.bucket();
    if bucket.fits(demand) {
        return Lack::Nothing;
    }
    bucket.free = whole.clone();
    if bucket.fits(demand) { Lack::Other } else { Lack::Devices }
}

/// How many units of a class wait, counted up to `most`.
fn units_waiting(state: &State, class: ClassKey, most: usize) -> usize {
    let units_of = |(job, group): &(JobId, u16)| {
        state.job(*job).map_or(0, |job| job.groups[usize::from(*group)].waiting.len() as usize)
    };
    let members = state.classes().get(&class).into_iter().flatten();
    members.map(units_of).take(most).sum::<usize>().min(most)
}
