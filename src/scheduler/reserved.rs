//! Reserves nodes for jobs that would otherwise wait for ever.
//!
//! Where small jobs arrive all the time, they take each device as soon as it is free, and no node ever
//! becomes free as a whole. So nodes are reserved for a class of tasks of several devices once it has waited
//! far longer than the jobs that start meanwhile. When something ends on a node, the node may be reserved for
//! the first blocked class, in order, that would fit it if it were empty. From then on only this class and
//! classes ahead of it are placed there.
//!
//! A class of higher priority than other work that waits or may arrive doesn't wait for that: the next nodes on which
//! something ends are reserved for it, also in small clusters and whatever its tasks lack there. For a gang these are as
//! many nodes of one pool as it may need.
//!
//! Few nodes are reserved at a time, and a node with more free devices replaces one with fewer: the idle
//! capacity is bounded, and each change brings a node closer to being free. A job of the same size can start
//! on such a node later, so few reservations are enough.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::blocked::FreedCapacity;
use super::packing::policy::Scorer;
use super::packing::{Node, Packer, Undo};
use super::{ClassState, Demands, Round, RunKey, Scheduler, nodes};
use crate::model::attempt::Placement;
use crate::model::demand::Demand;
use crate::model::id::{JobId, NodeRef, PoolId, UnitId};
use crate::model::limit::{DEVICE_MILLIS, NODES_PER_RESERVED_NODE, RESERVATION_WAIT_MS_MIN};
use crate::model::resource::{Resources, TASK_SIZES, task_size};
use crate::model::shape::{ClassKey, ShapeId};
use crate::model::time::Timestamp;
use crate::state::State;
use crate::state::pool::Pool;

/// Nodes reserved at a time, whatever the size of the cluster: each start may compare all of them.
const NODES_MAX: usize = 64;
/// Started devices over which the mean wait is taken; older ones count less and less.
const MEAN_OVER_DEVICES: i128 = 8_192;

/// A node is reserved for a task once it has waited this many tenths of the mean wait for each device that it
/// asks for. With 6, tasks of eight devices waited 1 % less, and tasks of one 1 % longer (openb).
const THRESHOLD_TENTHS: u64 = 7;

/// Blocked classes of higher priority that are compared with a freed node.
const CLASSES_COMPARED_MAX: usize = 32;

/// How soon nodes are reserved, and how many.
#[derive(Clone, Copy, Debug)]
pub struct ReservationPolicy {
    /// At most one of so many nodes is reserved at a time, rounded: none in clusters of less than half as
    /// many.
    pub one_of: usize,
    /// Shortest wait after which a node is reserved for a job, in milliseconds.
    pub wait_ms_min: u64,
}

impl Default for ReservationPolicy {
    fn default() -> Self {
        Self { one_of: NODES_PER_RESERVED_NODE, wait_ms_min: RESERVATION_WAIT_MS_MIN }
    }
}

/// The reserved nodes, in a packer of their own: the main packer doesn't contain them, so other classes can't
/// be placed there.
#[derive(Debug)]
pub(super) struct ReservedNodes {
    pub(super) packer: Packer,
    reservation_policy: ReservationPolicy,
    owners: BTreeMap<NodeRef, Owner>,
    /// Gangs that can't run in a pool, with when that was found.
    too_large: BTreeMap<(ShapeId, PoolId), Timestamp>,
    /// Moving average of the wait of the units that started, weighted by their devices, in microseconds.
    mean_wait_us: i128,
}

/// What a node is reserved for.
#[derive(Clone, Copy, Debug)]
struct Owner {
    /// The class, with its place in the order.
    key: RunKey,
    why: Cause,
}

/// Why a node is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// The class has waited long.
    Wait,
    /// The class has a higher priority than other work.
    Priority,
}

impl Owner {
    fn class(&self) -> ClassKey {
        self.key.2
    }

    /// The part of a node's free capacity by which nodes are compared for this owner.
    fn compared(&self, (devices, cpus): FreeCapacity) -> FreeCapacity {
        (devices, if self.why == Cause::Wait { 0 } else { cpus })
    }
}

/// Device thousandths, then millicores.
type FreeCapacity = (u64, u64);

fn free_capacity(node: &Node) -> FreeCapacity {
    (node.free_millis(), node.bucket().free.cpu_millis)
}

impl Default for ReservedNodes {
    fn default() -> Self {
        // The node is already chosen: this packer only chooses devices.
        let packer = Packer::new(Scorer::BestFit);
        Self {
            packer,
            reservation_policy: ReservationPolicy::default(),
            owners: BTreeMap::new(),
            too_large: BTreeMap::new(),
            mean_wait_us: 0,
        }
    }
}

impl ReservedNodes {
    pub(super) fn policy(&self) -> ReservationPolicy {
        self.reservation_policy
    }

    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    pub(super) fn contains(&self, at: NodeRef) -> bool {
        self.owners.contains_key(&at)
    }

    /// Removes a node, if it is reserved.
    pub(super) fn remove(&mut self, at: NodeRef) {
        if self.owners.remove(&at).is_some() {
            self.packer.remove(at);
        }
    }

    /// Moves a node to the main packer; returns whether it was reserved.
    fn hand_over(&mut self, at: NodeRef, main: &mut Packer) -> bool {
        let node = self.packer.node(at).cloned();
        self.remove(at);
        node.map(|node| main.set(at, node)).is_some()
    }

    /// Counts a started unit towards the mean wait, with the resources of all its tasks.
    pub(super) fn record_start(&mut self, waited_ms: u64, total: &Resources) {
        let over = MEAN_OVER_DEVICES * i128::from(DEVICE_MILLIS);
        let weight = i128::from(total.device_millis).min(over);
        self.mean_wait_us += (i128::from(waited_ms) * 1_000 - self.mean_wait_us) * weight / over;
    }

    /// How long a task of several devices waits before a node is reserved for it, in milliseconds. The more
    /// devices it asks for the longer, because so many become free together the more rarely. `in_use` are the
    /// device thousandths in use by tasks of each size; `None` where a reservation would cost more than it
    /// brings.
    fn threshold_ms(&self, demand: &Demand, in_use: &[u64; TASK_SIZES]) -> Option<u64> {
        let devices = demand.device_millis() / u64::from(DEVICE_MILLIS);
        // A reservation shortens the wait of large jobs and lengthens that of small ones. To shorten the
        // former by one per cent lengthens the latter the more, the more devices large jobs have in use and
        // the longer they wait: by more than one per cent once the devices of large jobs, times the mean
        // waits until a reservation, exceed those of small jobs.
        let times = devices.saturating_mul(THRESHOLD_TENTHS);
        let (smaller, as_large) = in_use.split_at(task_size(demand.device_millis()));
        let (smaller, as_large) = (smaller.iter().sum::<u64>(), as_large.iter().sum::<u64>());
        if devices < 2 || as_large.saturating_mul(times) > smaller.saturating_mul(10) {
            return None;
        }
        let mean_ms = u64::try_from(self.mean_wait_us / 1_000).unwrap_or(0);
        Some((mean_ms.saturating_mul(times) / 10).max(self.reservation_policy.wait_ms_min))
    }

    /// The node with the least free capacity, and that, of the reserved nodes whose owner is accepted.
    fn least_free(&self, accept: impl Fn(&Owner) -> bool) -> Option<(FreeCapacity, NodeRef)> {
        let nodes = self.owners.iter().filter(|(_, owner)| accept(owner));
        let free = |at| self.packer.node(at).map_or((0, 0), free_capacity);
        nodes.map(|(at, owner)| (owner.compared(free(*at)), *at)).min()
    }
}

impl Scheduler {
    /// Sets how soon nodes are reserved, and how many. Nodes that are reserved already stay so.
    pub fn set_reservation_policy(&mut self, reservation_policy: ReservationPolicy) {
        self.reserved.reservation_policy = reservation_policy;
    }

    /// Reserves a node on which capacity was freed, if a blocked class qualifies that does not fit it yet.
    pub(super) fn reserve(&mut self, state: &State, at: NodeRef) {
        if self.reserved.contains(at) {
            return;
        }
        let (owner, nodes_max) = match self.class_ahead_by_priority(state, at) {
            Some(owner) => (owner, NODES_MAX),
            None => {
                let nodes = self.packer.node_count() + self.reserved.owners.len();
                let one_of = self.reserved.reservation_policy.one_of.max(1);
                let nodes_max = NODES_MAX.min((nodes + one_of / 2) / one_of);
                let has_free_devices = self.packer.node(at).is_some_and(|node| node.free_millis() > 0);
                if nodes_max == 0 || !self.packer.compares_costs() || !has_free_devices {
                    return;
                }
                let Some(key) = self.class_to_reserve_for(state, at, nodes_max) else { return };
                (Owner { key, why: Cause::Wait }, nodes_max)
            }
        };
        let own = self.reserved.owners.values().filter(|other| other.class() == owner.class()).count();
        let replaced = if self.nodes_needed(state, owner.class(), at, own + 1) <= own {
            self.reserved.least_free(|other| other.class() == owner.class())
        } else if self.reserved.owners.len() >= nodes_max {
            self.reserved.least_free(|other| other.why <= owner.why)
        } else {
            None
        };
        let free = owner.compared(self.packer.node(at).map_or((0, 0), free_capacity));
        if let Some((least, other)) = replaced {
            if free <= least {
                return;
            }
            self.release(other);
        } else if self.reserved.owners.len() >= nodes_max {
            return;
        }
        if let Some(node) = self.packer.node(at).cloned() {
            self.packer.remove(at);
            self.reserved.packer.set(at, node);
            self.reserved.owners.insert(at, owner);
        }
    }

    /// The first blocked class, in order, that would fit the node if it were empty, provided that its priority is
    /// above that of other work that waits, or may arrive with the default priority of 0. `None` if the class fits
    /// the node as it is.
    fn class_ahead_by_priority(&mut self, state: &State, at: NodeRef) -> Option<Owner> {
        let last = [self.runnable.last(), self.blocked.order.last()];
        let lowest =
            last.into_iter().flatten().fold(0, |lowest, (Reverse(priority), ..)| lowest.min(*priority));
        let above = |key: &&RunKey| key.0.0 > lowest;
        let first: Vec<RunKey> =
            self.blocked.order.iter().take_while(above).take(CLASSES_COMPARED_MAX).copied().collect();
        if first.is_empty() {
            return None;
        }
        let (node, whole) = (self.packer.node(at)?.clone(), state.node(at)?);
        let empty = nodes::emptied(whole, node.class.clone(), node.devices.clone()).bucket();
        first.into_iter().find_map(|key| {
            let index = self.shape_index(state, key.2.shape)?;
            if state.exclusion(at.pool, &index.shape).is_some() {
                return None;
            }
            let owner = Owner { key, why: Cause::Priority };
            if let [(demand, 1)] = &index.demands[..] {
                let lacks = || shortage(demand, &node, &whole.spec.allocatable) != Shortage::None;
                return empty.fits(demand).then(|| lacks().then_some(owner));
            }
            // A gang runs in one pool. What fits one of its tasks now is no use to it alone.
            let demands = index.demands.clone();
            let fits = demands.iter().any(|(demand, _)| empty.fits(demand));
            let elsewhere = self
                .reserved
                .owners
                .iter()
                .any(|(other, owner)| owner.class() == key.2 && other.pool != at.pool);
            let mut may_hold = || self.may_hold_gang(state, at.pool, key.2, &demands);
            (fits && !elsewhere && may_hold()).then_some(Some(owner))
        })?
    }

    /// Returns whether the pool could run a gang if nothing else ran on its open nodes. Nodes that are reserved for a
    /// gang that can't run would be idle for ever. Once the class has nodes there, the answer is known until a placement
    /// fails; that a gang can't run is taken as true for some seconds.
    fn may_hold_gang(&mut self, state: &State, pool: PoolId, class: ClassKey, demands: &Demands) -> bool {
        if self.reserved.owners.values().any(|owner| owner.class() == class) {
            return true;
        }
        let too_large = self.reserved.too_large.get(&(class.shape, pool));
        if too_large.is_some_and(|at| state.now().ms_since(*at) < TOO_LARGE_MS) {
            return false;
        }
        let holds = state.pool(pool).is_some_and(|pool| could_hold(pool, demands));
        if !holds {
            if self.reserved.too_large.len() >= NODES_MAX {
                self.reserved.too_large.clear();
            }
            self.reserved.too_large.insert((class.shape, pool), state.now());
        }
        holds
    }

    /// How many nodes like this one a class may need, counted up to `limit`: one for each waiting unit of one task. A
    /// gang may need twice as many as its resources fill, as tasks don't fill nodes, but not more than it has tasks.
    fn nodes_needed(&self, state: &State, class: ClassKey, at: NodeRef, limit: usize) -> usize {
        let units = units_waiting(state, class, limit);
        let (Some(index), Some(whole)) = (self.shapes.get(&class.shape), state.node(at)) else {
            return units;
        };
        let tasks: u64 = index.demands.iter().map(|(_, count)| u64::from(*count)).sum();
        if tasks < 2 || units == 0 {
            return units;
        }
        let whole = whole.total();
        let filled = |of: fn(&Resources) -> u64| {
            let all: u64 = index.demands.iter().fold(0, |sum, (demand, count)| {
                sum.saturating_add(of(&total_of(demand)).saturating_mul(u64::from(*count)))
            });
            all.div_ceil(of(&whole).max(1))
        };
        let filled = [
            filled(|resources| resources.cpu_millis),
            filled(|resources| resources.memory_bytes),
            filled(|resources| resources.device_millis),
        ];
        let nodes = filled.into_iter().max().unwrap_or(1).saturating_mul(2).min(tasks);
        usize::try_from(nodes).unwrap_or(usize::MAX).min(limit)
    }

    /// The first blocked class, in order, that would fit the node if it were empty, provided that it has
    /// waited past its threshold; `None` if an earlier class fits the node as it is. Compares the first
    /// `classes_max` classes.
    fn class_to_reserve_for(&mut self, state: &State, at: NodeRef, classes_max: usize) -> Option<RunKey> {
        let (node, whole) = (self.packer.node(at)?.clone(), state.node(at)?);
        let empty = nodes::emptied(whole, node.class.clone(), node.devices.clone()).bucket();
        let first: Vec<RunKey> = self.blocked.order.iter().take(classes_max).copied().collect();
        for key in first {
            let class = key.2;
            let Some((head, _)) = state.classes().get(&class).and_then(|members| members.first()) else {
                continue;
            };
            let Some(index) = self.shape_index(state, class.shape) else { continue };
            let ([(demand, 1)], shape) = (&index.demands[..], index.shape.clone()) else { continue };
            let demand = demand.clone();
            let allowed = || state.exclusion(at.pool, &shape).is_none();
            if !empty.fits(&demand) || !allowed() {
                continue;
            }
            match shortage(&demand, &node, &whole.spec.allocatable) {
                Shortage::None => return None,
                Shortage::Other => {}
                Shortage::Devices => {
                    let waited_ms = state.job(*head).map_or(0, |job| state.now().ms_since(job.submitted_at));
                    let threshold_ms = self.reserved.threshold_ms(&demand, state.devices_in_use())?;
                    return (waited_ms > threshold_ms).then_some(key);
                }
            }
        }
        None
    }

    /// Releases a node that has changed, if the class that it is reserved for can no longer use it.
    pub(super) fn recheck_reserved(&mut self, state: &State, at: NodeRef) {
        let Some(owner) = self.reserved.owners.get(&at) else { return };
        let (Some(node), Some(whole)) = (self.reserved.packer.node(at), state.node(at)) else { return };
        let useful = self.shapes.get(&owner.class().shape).is_some_and(|index| {
            let empty = nodes::emptied(whole, node.class.clone(), node.devices.clone()).bucket();
            index.demands.iter().any(|(demand, _)| {
                let other = || shortage(demand, node, &whole.spec.allocatable) == Shortage::Other;
                empty.fits(demand) && (owner.why != Cause::Wait || !other())
            }) && state.exclusion(at.pool, &index.shape).is_none()
        });
        if !useful {
            self.release(at);
        }
    }

    /// Releases the nodes that their class no longer needs: at most as many stay reserved as it has waiting
    /// units.
    pub(super) fn release_unneeded(&mut self, state: &State) {
        let mut owned: BTreeMap<(ClassKey, Cause), usize> = BTreeMap::new();
        for owner in self.reserved.owners.values() {
            *owned.entry((owner.class(), owner.why)).or_default() += 1;
        }
        for ((class, why), nodes) in owned {
            let waits = (why != Cause::Wait || self.packer.compares_costs())
                && matches!(self.classes.get(&class), Some(ClassState::Blocked | ClassState::Runnable(_)));
            let is_gang = self.shapes.get(&class.shape).is_some_and(|index| is_gang(&index.demands));
            let needed = match units_waiting(state, class, nodes) {
                0 => 0,
                _ if !waits => 0,
                _ if is_gang => nodes,
                units => units,
            };
            for _ in needed..nodes {
                if let Some((_, at)) = self.reserved.least_free(|owner| owner.class() == class) {
                    self.release(at);
                }
            }
        }
    }

    /// Releases the nodes of a pool that are reserved for gangs: the pool has changed, and may be too small for them now.
    /// They are reserved again if it is not.
    pub(super) fn release_gangs(&mut self, pool: PoolId) {
        let of_gang = |owner: &Owner| {
            self.shapes.get(&owner.class().shape).is_some_and(|index| is_gang(&index.demands))
        };
        let own = self.reserved.owners.iter().filter(|(at, owner)| at.pool == pool && of_gang(owner));
        let own: Vec<NodeRef> = own.map(|(at, _)| *at).collect();
        own.into_iter().for_each(|at| self.release(at));
    }

    /// Releases the nodes of a gang that can't run in their pool any more.
    fn release_if_too_large(&mut self, state: &State, class: ClassKey, round: &mut Round) {
        let own = self.reserved.owners.iter().filter(|(_, owner)| owner.class() == class);
        let own: Vec<NodeRef> = own.map(|(at, _)| *at).collect();
        let (Some(first), Some(index)) = (own.first(), self.shapes.get(&class.shape)) else { return };
        let demands = index.demands.clone();
        round.work += TRIED_MAX as u32;
        if !state.pool(first.pool).is_some_and(|pool| could_hold(pool, &demands)) {
            self.reserved.too_large.insert((class.shape, first.pool), state.now());
            own.into_iter().for_each(|at| self.release(at));
        }
    }

    /// Moves the nodes that are reserved for a class to its place in the order. Classes that are ahead of it now may use
    /// them: two gangs that hold nodes of one pool would wait for each other for ever.
    pub(super) fn reorder_reserved(&mut self, key: RunKey) {
        let own =
            self.reserved.owners.iter_mut().filter(|(_, owner)| owner.class() == key.2 && owner.key != key);
        for (at, owner) in own {
            owner.key = key;
            self.blocked.note_freed(FreedCapacity::Node(*at));
        }
    }

    /// Returns a reserved node to the main packer and notifies the blocked classes of it.
    fn release(&mut self, at: NodeRef) {
        if self.reserved.hand_over(at, &mut self.packer) {
            self.blocked.note_freed(FreedCapacity::Node(at));
        }
    }

    /// Places a unit of one task on a node that is reserved for its own class, which releases the node, or
    /// for a class behind it in the order.
    pub(super) fn place_on_reserved(
        &mut self,
        state: &State,
        key: RunKey,
        unit: UnitId,
        avoid: Option<NodeRef>,
        round: &mut Round,
    ) -> Option<(PoolId, Vec<Placement>)> {
        if self.reserved.owners.is_empty() {
            return None;
        }
        let index = self.shape_index(state, key.2.shape)?;
        let ([(demand, 1)], shape) = (&index.demands[..], index.shape.clone()) else { return None };
        let demand = demand.clone();
        round.work += self.reserved.owners.len() as u32;
        let allowed = |(at, owner): &(&NodeRef, &Owner)| {
            (owner.class() == key.2 || key < owner.key)
                && self.reserved.packer.fits(&demand, **at)
                && state.exclusion(at.pool, &shape).is_none()
        };
        let own_first = |(at, owner): (&NodeRef, &Owner)| (Some(*at) == avoid, owner.class() != key.2, *at);
        let (_, of_others, at) = self.reserved.owners.iter().filter(allowed).map(own_first).min()?;
        let entry = state.job(unit.job).and_then(|job| state.spec(job.spec))?;
        let [(group, task)] = entry.spec.tasks_of_unit(unit.unit)[..] else { return None };
        let id = self.reserved.packer.demand(&demand, None);
        let devices = self.reserved.packer.take(id, at, &mut Undo::default())?;
        if !of_others {
            self.release(at);
        }
        Some((at.pool, vec![Placement { group, task, node: at.node, devices }]))
    }

    /// Places a gang on nodes of which some are reserved for its own class, which releases them, or for classes behind it
    /// in the order.
    pub(super) fn place_gang_on_reserved(
        &mut self,
        state: &State,
        key: RunKey,
        unit: UnitId,
        avoid: Option<NodeRef>,
        round: &mut Round,
    ) -> Option<(PoolId, Vec<Placement>)> {
        let is_gang = is_gang(&self.shape_index(state, key.2.shape)?.demands);
        let usable =
            self.reserved.owners.iter().filter(|(_, owner)| owner.class() == key.2 || key < owner.key);
        let usable: Vec<(NodeRef, Owner)> = usable.map(|(at, owner)| (*at, *owner)).collect();
        if !is_gang || usable.is_empty() {
            return None;
        }
        round.work += usable.len() as u32;
        for (at, _) in &usable {
            self.reserved.hand_over(*at, &mut self.packer);
        }
        let placed = self.place(state, key.2.shape, unit, avoid, round);
        let placed = placed.or_else(|| avoid.and_then(|_| self.place(state, key.2.shape, unit, None, round)));
        for (at, owner) in usable {
            if placed.is_some() && owner.class() == key.2 {
                self.blocked.note_freed(FreedCapacity::Node(at));
            } else if let Some(node) = self.packer.node(at).cloned() {
                self.packer.remove(at);
                self.reserved.packer.set(at, node);
                self.reserved.owners.insert(at, owner);
            }
        }
        if placed.is_none() {
            self.release_if_too_large(state, key.2, round);
        }
        placed
    }
}

/// Nodes of a pool on which a gang is tried, and its tasks: more than are ever reserved for it. Some tenths of a
/// millisecond.
const TRIED_MAX: usize = 256;
/// How long it is taken as true that a gang can't run in a pool, in milliseconds.
const TOO_LARGE_MS: u64 = 10_000;

/// Returns whether a gang fits the open nodes of a pool if nothing else runs there. A larger one than can be tried does
/// not count.
fn could_hold(pool: &Pool, demands: &Demands) -> bool {
    let tasks: u64 = demands.iter().map(|(_, count)| u64::from(*count)).sum();
    if tasks > TRIED_MAX as u64 || !pool.is_open() {
        return false;
    }
    let mut copy = Packer::new(Scorer::BestFit);
    for node in pool.nodes.values().filter(|node| node.is_open()).take(TRIED_MAX) {
        copy.set(NodeRef { pool: pool.id, node: node.id }, nodes::emptied_node(pool, node));
    }
    let tasks: Vec<_> = demands.iter().map(|(demand, count)| (copy.demand(demand, None), *count)).collect();
    copy.place_in(pool.id, &tasks, None).is_some()
}

/// Returns whether the tasks with these demands start together.
fn is_gang(demands: &[(Arc<Demand>, u32)]) -> bool {
    !matches!(demands, [(_, 1)])
}

/// What a task asks for, with its devices.
fn total_of(demand: &Demand) -> Resources {
    Resources { device_millis: demand.device_millis(), ..demand.resources.clone() }
}

/// What a node lacks for a task that would fit it if it were empty.
#[derive(PartialEq, Eq)]
enum Shortage {
    None,
    Devices,
    /// The devices are free, CPU, memory or another kind is not. Devices that stay idle until then would cost
    /// too much.
    Other,
}

fn shortage(demand: &Demand, node: &Node, whole: &Resources) -> Shortage {
    let mut bucket = node.bucket();
    if bucket.fits(demand) {
        return Shortage::None;
    }
    bucket.free = whole.clone();
    if bucket.fits(demand) { Shortage::Other } else { Shortage::Devices }
}

/// How many units of a class wait, counted up to `limit`.
fn units_waiting(state: &State, class: ClassKey, limit: usize) -> usize {
    let units_of = |(job, group): &(JobId, u16)| {
        state.job(*job).map_or(0, |job| job.groups[usize::from(*group)].waiting.len() as usize)
    };
    let members = state.classes().get(&class).into_iter().flatten();
    members.map(units_of).take(limit).sum::<usize>().min(limit)
}
