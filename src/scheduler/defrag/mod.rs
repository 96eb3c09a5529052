//! Plans which running tasks to move so that those who wait find room.
//!
//! A plan is made of steps. Each lets one waiting task in on one node, for which some of those that run there
//! go elsewhere: to other nodes where they fit as these are, or, where no node has room for such a task, back
//! to those who wait, for somebody of no lower priority. More must be in use after each step than before; what has been moved stays. Which step
//! to take first is decided greedily: the one that lets in the highest priority, then the one by which most
//! devices come into use for what its moves cost. Nothing is carried out.
//!
//! `clutter` collects what a plan is made from, `room` finds what has to go from one node.

mod clutter;
mod room;
#[cfg(test)]
mod tests;

pub use clutter::{Found, Movable, Page, Tasks, movable_tasks};

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::packing::policy::Scorer;
use super::packing::{Node, Packer, Undo};
use crate::model::demand::Demand;
use crate::model::device::{DeviceAmount, DeviceShare};
use crate::model::id::{NodeId, NodeRef, PoolId};
use room::{Room, TASKS_MAX};

/// The best ways to let somebody in on a node that are remembered: where the moved tasks find no place, the
/// next is tried.
const WAYS_MAX: usize = 8;

/// One pool as it is: what is free, what may be moved, and who waits.
#[derive(Clone, Debug, Default)]
pub struct Clutter {
    /// The pool's name, for demands that name pools.
    pub pool: String,
    /// Nodes that take work.
    pub nodes: Vec<(NodeId, Node)>,
    /// Running tasks that may be moved, each on one of the nodes.
    pub running: Vec<Running>,
    pub waiting: Vec<Waiting>,
}

/// A running task that may be moved.
#[derive(Clone, Debug)]
pub struct Running {
    pub demand: Arc<Demand>,
    pub node: NodeId,
    pub devices: Vec<DeviceShare>,
    /// What is lost by moving it, next to the others; at least 1.
    pub cost: u64,
    /// It doesn't wait again for those of a lower one.
    pub priority: i32,
}

/// Alike tasks that wait.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub demand: Arc<Demand>,
    pub count: u32,
    pub priority: i32,
}

/// Where a plan ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Moves in all.
    pub moves: usize,
    /// Once no more than so many device thousandths are free.
    pub free_millis: u64,
    /// Sets of tasks on a node that are compared: bounds the time that it takes, some ten nanoseconds each.
    pub looks: u64,
}

/// What would let tasks in, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// There was no time to look for more.
    pub is_cut: bool,
}

/// One waiting task that finds room, and what has to go elsewhere first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What goes elsewhere first.
    pub moves: Vec<Move>,
    /// Its place among the clutter's.
    pub waiting: usize,
    pub node: NodeId,
    pub devices: Vec<DeviceShare>,
}

/// A running task that goes elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Its place among the clutter's.
    pub running: usize,
    /// `None`: it waits again.
    pub to: Option<(NodeId, Vec<DeviceShare>)>,
}

impl Plan {
    /// Moves of all steps.
    pub fn moves(&self) -> usize {
        self.steps.iter().map(|step| step.moves.len()).sum()
    }
}

impl Clutter {
    /// Plans within limits. The same clutter gives the same plan.
    pub fn plan(&self, limits: Limits) -> Plan {
        Planner::new(self, limits).plan()
    }
}

struct Planner<'a> {
    clutter: &'a Clutter,
    limits: Limits,
    packer: Packer,
    /// Tasks that may still be moved, by node.
    movable: BTreeMap<NodeId, Vec<usize>>,
    /// How many of each kind still wait.
    left: Vec<u32>,
    /// Of each running task, the place of its kind among those who wait.
    waiting_as: Vec<Option<usize>>,
    ways: BinaryHeap<Way>,
    /// How often a node has changed: what was found before no longer holds.
    changes: BTreeMap<NodeId, u32>,
    moves: usize,
    looks: u64,
}

/// A way to let a waiting task in on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Way {
    priority: i32,
    /// Device thousandths that come into use.
    gain: u64,
    cost: u64,
    /// Tasks that go elsewhere.
    moved: Vec<usize>,
    waiting: usize,
    node: NodeId,
    /// The node's changes when it was found.
    change: u32,
}

impl Ord for Way {
    /// The greatest is the best.
    fn cmp(&self, other: &Self) -> Ordering {
        let worth = |gain: u64, cost: u64| u128::from(gain) * u128::from(cost);
        self.priority
            .cmp(&other.priority)
            .then_with(|| worth(self.gain, other.cost).cmp(&worth(other.gain, self.cost)))
            .then_with(|| other.moved.len().cmp(&self.moved.len()))
            .then_with(|| self.gain.cmp(&other.gain))
            .then_with(|| {
                (other.waiting, other.node, other.change).cmp(&(self.waiting, self.node, self.change))
            })
            .then_with(|| other.moved.cmp(&self.moved))
    }
}

impl PartialOrd for Way {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The only pool.
const POOL: PoolId = PoolId(1);

fn at(node: NodeId) -> NodeRef {
    NodeRef { pool: POOL, node }
}

impl<'a> Planner<'a> {
    fn new(clutter: &'a Clutter, limits: Limits) -> Self {
        // What is moved fills what is filled best already.
        let mut packer = Packer::new(Scorer::BestFit);
        packer.set_pool(POOL, &clutter.pool);
        for (id, node) in &clutter.nodes {
            packer.set(at(*id), node.clone());
        }
        let mut movable = BTreeMap::<NodeId, Vec<usize>>::new();
        for (index, running) in clutter.running.iter().enumerate() {
            if packer.node(at(running.node)).is_some() {
                movable.entry(running.node).or_default().push(index);
            }
        }
        let kinds = clutter.waiting.iter().enumerate().map(|(at, waiting)| (&waiting.demand, at));
        let kinds: BTreeMap<&Arc<Demand>, usize> = kinds.collect();
        let waiting_as = clutter.running.iter().map(|running| kinds.get(&running.demand).copied()).collect();
        Self {
            clutter,
            limits,
            packer,
            movable,
            left: clutter.waiting.iter().map(|waiting| waiting.count).collect(),
            waiting_as,
            ways: BinaryHeap::new(),
            changes: BTreeMap::new(),
            moves: 0,
            looks: 0,
        }
    }

    fn plan(mut self) -> Plan {
        let mut plan = Plan::default();
        loop {
            let before = plan.steps.len();
            for (node, _) in &self.clutter.nodes {
                if self.looks <= self.limits.looks {
                    self.look_at(*node);
                }
            }
            self.take_all(&mut plan);
            plan.is_cut = self.looks > self.limits.looks;
            // What has become possible by the last step of a node is only seen by looking again.
            if plan.steps.len() == before || plan.is_cut {
                return plan;
            }
        }
    }

    /// Takes the best way as long as there is one.
    fn take_all(&mut self, plan: &mut Plan) {
        while self.packer.device_free() > self.limits.free_millis
            && let Some(way) = self.ways.pop()
        {
            if way.change != self.change(way.node) {
                continue;
            }
            if self.left[way.waiting] == 0 {
                self.look_again(way.node);
                continue;
            }
            if self.moves + way.moved.len() > self.limits.moves {
                continue;
            }
            plan.steps.extend(self.take(&way));
        }
        self.ways.clear();
    }

    fn change(&self, node: NodeId) -> u32 {
        self.changes.get(&node).copied().unwrap_or(0)
    }

    /// Moves what is in the way and lets the waiting task in; all or nothing.
    fn take(&mut self, way: &Way) -> Option<Step> {
        let (moves, devices) = self.clear(way)?;
        self.left[way.waiting] -= 1;
        self.moves += moves.len();
        if let Some(movable) = self.movable.get_mut(&way.node) {
            movable.retain(|index| !way.moved.contains(index));
        }
        for moved in moves.iter().filter(|moved| moved.to.is_none()) {
            let priority = self.clutter.running[moved.running].priority;
            let alike = self.waiting_as[moved.running];
            if let Some(kind) = alike.filter(|kind| self.clutter.waiting[*kind].priority == priority) {
                self.left[kind] += 1;
            }
        }
        let mut changed: Vec<NodeId> =
            moves.iter().filter_map(|moved| moved.to.as_ref().map(|(node, _)| *node)).collect();
        changed.push(way.node);
        changed.sort_unstable();
        changed.dedup();
        for node in &changed {
            *self.changes.entry(*node).or_default() += 1;
        }
        changed.into_iter().for_each(|node| self.look_again(node));
        Some(Step { moves, waiting: way.waiting, node: way.node, devices })
    }

    /// Moves tasks to wherever they fit, or to nowhere if the step is still worth it.
    fn clear(&mut self, way: &Way) -> Option<(Vec<Move>, Vec<DeviceShare>)> {
        let mut undo = Undo::default();
        let mut order = way.moved.clone();
        // The largest first: they find a place least easily.
        order.sort_by_key(|index| {
            let demand = &self.clutter.running[*index].demand;
            (Reverse((demand.device_millis(), demand.resources.cpu_millis)), *index)
        });
        let (mut moves, mut lost, mut is_fair) = (Vec::new(), 0, true);
        let waiting = &self.clutter.waiting[way.waiting];
        for index in order {
            let running = &self.clutter.running[index];
            let id = self.packer.demand(&running.demand, None);
            let to = self.packer.place_of(id, Some(at(way.node)), &mut undo);
            if to.is_none() {
                lost += running.demand.device_millis();
                is_fair &= running.priority <= waiting.priority;
            }
            moves.push(Move { running: index, to: to.map(|place| (place.node.node, place.devices)) });
        }
        if lost >= waiting.demand.device_millis() || !is_fair {
            self.packer.undo(undo);
            return None;
        }
        let old = self.packer.node(at(way.node))?.clone();
        self.packer.set(at(way.node), self.without(&old, &way.moved));
        let Some(devices) = self.put(&waiting.demand, way.node) else {
            self.packer.set(at(way.node), old);
            self.packer.undo(undo);
            return None;
        };
        Some((moves, devices))
    }

    /// Puts a task on a node, if it fits.
    fn put(&mut self, demand: &Arc<Demand>, node: NodeId) -> Option<Vec<DeviceShare>> {
        let id = self.packer.demand(demand, None);
        self.packer.take(id, at(node), &mut Undo::default())
    }

    /// The node as it is when these tasks are gone.
    fn without(&self, node: &Node, tasks: &[usize]) -> Node {
        let mut freed = node.clone();
        for running in tasks.iter().map(|index| &self.clutter.running[*index]) {
            freed.free = freed.free.checked_add(&running.demand.resources).unwrap_or(freed.free);
            for share in &running.devices {
                // A node may have lost a device that is still held.
                if let Some(free) = freed.device_free.get_mut(usize::from(share.index)) {
                    *free += share.millis;
                }
            }
        }
        freed
    }

    /// Finds what has become of a node's ways, while there is time.
    fn look_again(&mut self, id: NodeId) {
        if self.looks <= self.limits.looks {
            self.look_at(id);
        }
    }

    /// Finds the best ways to let somebody in on a node.
    fn look_at(&mut self, id: NodeId) {
        let Some(node) = self.packer.node(at(id)).cloned() else { return };
        let mut ways = self.ways(id, &node);
        ways.sort_unstable_by(|one, other| other.cmp(one));
        ways.truncate(WAYS_MAX);
        self.ways.extend(ways);
    }

    fn ways(&mut self, id: NodeId, node: &Node) -> Vec<Way> {
        let mut tasks: Vec<usize> = self.movable.get(&id).cloned().unwrap_or_default();
        if tasks.len() > TASKS_MAX {
            tasks.sort_by_key(|index| (self.clutter.running[*index].cost, *index));
            tasks.truncate(TASKS_MAX);
        }
        // Of a kind that waits one more finds no room: it would wait, too.
        let is_lost = |index: &usize| self.waiting_as[*index].is_some_and(|kind| self.left[kind] > 0);
        let lost = tasks.iter().map(|index| {
            if is_lost(index) { self.clutter.running[*index].demand.device_millis() } else { 0 }
        });
        let room = Room::new(node, lost.collect(), tasks, &self.clutter.running);
        let mut ways = Vec::new();
        for (waiting, kind) in self.clutter.waiting.iter().enumerate().filter(|(at, _)| self.left[*at] > 0) {
            self.looks += room.sets();
            let Some(devices) = kind.demand.devices.as_ref().filter(|_| kind.demand.admits(&node.class))
            else {
                continue;
            };
            let cleared = match devices.amount {
                DeviceAmount::Whole(count) => room.clear_whole(&kind.demand, count as usize),
                DeviceAmount::Fraction(millis) => room.clear_part(&kind.demand, millis),
            };
            let Some(cleared) = cleared else { continue };
            let gain = kind.demand.device_millis().saturating_sub(cleared.lost);
            if gain > 0 {
                let moved = room.tasks_of(cleared.set);
                let (priority, change) = (kind.priority, self.change(id));
                ways.push(Way { priority, gain, cost: cleared.cost, moved, waiting, node: id, change });
            }
        }
        ways
    }
}
