//! Plans which running tasks to move so that waiting tasks fit. Nothing is carried out.
//!
//! A plan consists of steps. Each step places one waiting task on one node after it has moved some of the
//! tasks that run there. A moved task goes to another node where it fits without further moves. If it fits no
//! other node, it goes back to the waiting tasks, provided that its priority is not higher than that of the
//! task that takes its node. After each step more devices must be in use than before, and a moved task is not
//! moved again.
//!
//! The order is greedy: first the step that places the highest priority, then the one that brings the most
//! devices into use for the cost of its moves.
//!
//! `fragmentation` collects the input of a plan, `freed` finds the tasks to move away from one node.

mod fragmentation;
mod freed;
#[cfg(test)]
mod tests;

pub use fragmentation::{Inventory, Movable, Page, Tasks, movable_tasks};

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::packing::policy::Scorer;
use super::packing::{Node, Packer, Undo};
use crate::model::demand::Demand;
use crate::model::device::{DeviceAmount, DeviceShare};
use crate::model::id::{NodeId, NodeRef, PoolId};
use freed::{FreeableNode, TASKS_MAX};

/// Candidate moves that are stored for one node, the best ones: if the tasks of one can't be placed
/// elsewhere, the next one is tried.
const CANDIDATES_MAX: usize = 8;

/// The state of one pool that a plan is made from: free capacity, movable tasks and waiting tasks.
#[derive(Clone, Debug, Default)]
pub struct FragmentedPool {
    /// The pool's name, for demands that name pools.
    pub name: String,
    /// Nodes that take work.
    pub nodes: Vec<(NodeId, Node)>,
    /// Running tasks that may be moved, each on one of the nodes.
    pub running: Vec<Running>,
    /// Waiting tasks, each demand and priority once.
    pub waiting: Vec<Waiting>,
}

/// A running task that may be moved.
#[derive(Clone, Debug)]
pub struct Running {
    pub demand: Arc<Demand>,
    pub node: NodeId,
    pub devices: Vec<DeviceShare>,
    /// What a move of this task costs relative to the others; at least 1.
    pub cost: u64,
    /// The task does not go back to the waiting ones for a task of a lower priority.
    pub priority: i32,
}

/// Waiting tasks of one demand and priority.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub demand: Arc<Demand>,
    pub count: u32,
    pub priority: i32,
}

/// Bounds at which a plan ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Moves of all steps together, at most.
    pub moves: usize,
    /// No further step is planned once at most so many device thousandths are free.
    pub free_millis: u64,
    /// Sets of tasks that are compared, about: bounds the running time at tens of nanoseconds each.
    pub comparisons: u64,
}

/// The steps of a plan, to be carried out in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Whether the search stopped at [`Limits::comparisons`]: there may be more steps.
    pub is_cut: bool,
}

/// The placement of one waiting task, and the moves that it needs first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub moves: Vec<Move>,
    /// Index into [`FragmentedPool::waiting`].
    pub waiting: usize,
    /// Where the waiting task is placed.
    pub node: NodeId,
    pub devices: Vec<DeviceShare>,
}

/// The move of one running task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Index into [`FragmentedPool::running`].
    pub running: usize,
    /// The new node and devices; `None` if the task goes back to the waiting ones.
    pub to: Option<(NodeId, Vec<DeviceShare>)>,
}

impl Plan {
    /// Returns the number of moves of all steps.
    pub fn moves(&self) -> usize {
        self.steps.iter().map(|step| step.moves.len()).sum()
    }
}

impl FragmentedPool {
    /// Makes a plan within limits. The same input gives the same plan.
    pub fn plan(&self, limits: Limits) -> Plan {
        Planner::new(self, limits).plan()
    }
}

struct Planner<'a> {
    pool: &'a FragmentedPool,
    limits: Limits,
    packer: Packer,
    /// Tasks that may still be moved, by node: indexes into the pool's running tasks.
    movable: BTreeMap<NodeId, Vec<usize>>,
    /// How many tasks of each waiting kind still wait.
    left: Vec<u32>,
    /// For each running task the waiting kind with the same demand, if any.
    waiting_as: Vec<Option<usize>>,
    candidates: BinaryHeap<CandidateMove>,
    /// How often a node has changed: candidates from before its latest change are stale.
    changes: BTreeMap<NodeId, u32>,
    moves: usize,
    comparisons: u64,
}

/// A set of tasks whose move away from a node lets a waiting task fit there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CandidateMove {
    /// Of the waiting task.
    priority: i32,
    /// Device thousandths that come into use.
    gain: u64,
    cost: u64,
    /// The tasks to move, as indexes into the pool's running tasks.
    moved: Vec<usize>,
    waiting: usize,
    node: NodeId,
    /// The node's number of changes when the candidate was found.
    change: u32,
}

impl Ord for CandidateMove {
    /// The greatest is the best: by priority, then by gain for the cost.
    fn cmp(&self, other: &Self) -> Ordering {
        let product = |gain: u64, cost: u64| u128::from(gain) * u128::from(cost);
        self.priority
            .cmp(&other.priority)
            .then_with(|| product(self.gain, other.cost).cmp(&product(other.gain, self.cost)))
            .then_with(|| other.moved.len().cmp(&self.moved.len()))
            .then_with(|| self.gain.cmp(&other.gain))
            .then_with(|| {
                (other.waiting, other.node, other.change).cmp(&(self.waiting, self.node, self.change))
            })
            .then_with(|| other.moved.cmp(&self.moved))
    }
}

impl PartialOrd for CandidateMove {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The id of the pool in the planner's packer, which has no other pool.
const POOL: PoolId = PoolId(1);

fn at(node: NodeId) -> NodeRef {
    NodeRef { pool: POOL, node }
}

impl<'a> Planner<'a> {
    fn new(pool: &'a FragmentedPool, limits: Limits) -> Self {
        // Moved tasks go to the fullest nodes that they fit.
        let mut packer = Packer::new(Scorer::BestFit);
        packer.set_pool(POOL, &pool.name);
        for (id, node) in &pool.nodes {
            packer.set(at(*id), node.clone());
        }
        let mut movable = BTreeMap::<NodeId, Vec<usize>>::new();
        for (index, running) in pool.running.iter().enumerate() {
            if packer.node(at(running.node)).is_some() {
                movable.entry(running.node).or_default().push(index);
            }
        }
        let entries = pool.waiting.iter().enumerate().map(|(at, waiting)| (&waiting.demand, at));
        let entries: BTreeMap<&Arc<Demand>, usize> = entries.collect();
        let waiting_as = pool.running.iter().map(|running| entries.get(&running.demand).copied()).collect();
        Self {
            pool,
            limits,
            packer,
            movable,
            left: pool.waiting.iter().map(|waiting| waiting.count).collect(),
            waiting_as,
            candidates: BinaryHeap::new(),
            changes: BTreeMap::new(),
            moves: 0,
            comparisons: 0,
        }
    }

    fn plan(mut self) -> Plan {
        let mut plan = Plan::default();
        loop {
            let before = plan.steps.len();
            for (node, _) in &self.pool.nodes {
                if self.comparisons <= self.limits.comparisons {
                    self.add_candidates(*node);
                }
            }
            self.apply_candidates(&mut plan);
            plan.is_cut = self.comparisons > self.limits.comparisons;
            // The steps may have made more possible on nodes that were already searched.
            if plan.steps.len() == before || plan.is_cut {
                return plan;
            }
        }
    }

    /// Applies the best candidate until none is left or a limit is reached.
    fn apply_candidates(&mut self, plan: &mut Plan) {
        while self.packer.device_free() > self.limits.free_millis
            && let Some(candidate) = self.candidates.pop()
        {
            if candidate.change != self.change(candidate.node) {
                continue;
            }
            if self.left[candidate.waiting] == 0 {
                self.refresh_candidates(candidate.node);
                continue;
            }
            if self.moves + candidate.moved.len() > self.limits.moves {
                continue;
            }
            plan.steps.extend(self.apply(&candidate));
        }
        self.candidates.clear();
    }

    fn change(&self, node: NodeId) -> u32 {
        self.changes.get(&node).copied().unwrap_or(0)
    }

    /// Applies a candidate: moves its tasks and places the waiting task, all or nothing.
    fn apply(&mut self, candidate: &CandidateMove) -> Option<Step> {
        let (moves, devices) = self.move_and_place(candidate)?;
        self.left[candidate.waiting] -= 1;
        self.moves += moves.len();
        if let Some(movable) = self.movable.get_mut(&candidate.node) {
            movable.retain(|index| !candidate.moved.contains(index));
        }
        for moved in moves.iter().filter(|moved| moved.to.is_none()) {
            let priority = self.pool.running[moved.running].priority;
            let kind = self.waiting_as[moved.running];
            if let Some(kind) = kind.filter(|kind| self.pool.waiting[*kind].priority == priority) {
                self.left[kind] += 1;
            }
        }
        let mut changed: Vec<NodeId> =
            moves.iter().filter_map(|moved| moved.to.as_ref().map(|(node, _)| *node)).collect();
        changed.push(candidate.node);
        changed.sort_unstable();
        changed.dedup();
        for node in &changed {
            *self.changes.entry(*node).or_default() += 1;
        }
        changed.into_iter().for_each(|node| self.refresh_candidates(node));
        Some(Step { moves, waiting: candidate.waiting, node: candidate.node, devices })
    }

    /// Moves tasks to the nodes that they fit best, or back to the waiting ones if the step still gains, and
    /// places the waiting task. Changes nothing if it returns `None`.
    fn move_and_place(&mut self, candidate: &CandidateMove) -> Option<(Vec<Move>, Vec<DeviceShare>)> {
        let mut undo = Undo::default();
        let mut order = candidate.moved.clone();
        // The largest first, as they are the hardest to place.
        order.sort_by_key(|index| {
            let demand = &self.pool.running[*index].demand;
            (Reverse((demand.device_millis(), demand.resources.cpu_millis)), *index)
        });
        let (mut moves, mut lost, mut is_fair) = (Vec::new(), 0, true);
        let waiting = &self.pool.waiting[candidate.waiting];
        for index in order {
            let running = &self.pool.running[index];
            let id = self.packer.demand(&running.demand, None);
            let to = self.packer.place_of(id, Some(at(candidate.node)), &mut undo);
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
        let old = self.packer.node(at(candidate.node))?.clone();
        self.packer.set(at(candidate.node), self.without(&old, &candidate.moved));
        let Some(devices) = self.place_on(&waiting.demand, candidate.node) else {
            self.packer.set(at(candidate.node), old);
            self.packer.undo(undo);
            return None;
        };
        Some((moves, devices))
    }

    /// Places a task on a node, if it fits.
    fn place_on(&mut self, demand: &Arc<Demand>, node: NodeId) -> Option<Vec<DeviceShare>> {
        let id = self.packer.demand(demand, None);
        self.packer.take(id, at(node), &mut Undo::default())
    }

    /// The node after these tasks have left.
    fn without(&self, node: &Node, tasks: &[usize]) -> Node {
        let mut freed = node.clone();
        for running in tasks.iter().map(|index| &self.pool.running[*index]) {
            freed.free = freed.free.checked_add(&running.demand.resources).unwrap_or(freed.free);
            for share in &running.devices {
                // A node may have lost a device that a task still holds.
                if let Some(free) = freed.device_free.get_mut(usize::from(share.index)) {
                    *free += share.millis;
                }
            }
        }
        freed
    }

    /// Searches a node again, unless the limit of comparisons is reached.
    fn refresh_candidates(&mut self, id: NodeId) {
        if self.comparisons <= self.limits.comparisons {
            self.add_candidates(id);
        }
    }

    /// Adds the best candidates of a node to the heap.
    fn add_candidates(&mut self, id: NodeId) {
        let Some(node) = self.packer.node(at(id)).cloned() else { return };
        let mut candidates = self.candidates_on(id, &node);
        candidates.sort_unstable_by(|one, other| other.cmp(one));
        candidates.truncate(CANDIDATES_MAX);
        self.candidates.extend(candidates);
    }

    /// For each waiting kind the cheapest set of tasks to move, if it fits the node then and more devices are
    /// in use.
    fn candidates_on(&mut self, id: NodeId, node: &Node) -> Vec<CandidateMove> {
        let mut tasks: Vec<usize> = self.movable.get(&id).cloned().unwrap_or_default();
        if tasks.len() > TASKS_MAX {
            tasks.sort_by_key(|index| (self.pool.running[*index].cost, *index));
            tasks.truncate(TASKS_MAX);
        }
        // A moved task of a kind that still waits would not fit elsewhere either: its devices count as lost.
        let is_lost = |index: &usize| self.waiting_as[*index].is_some_and(|kind| self.left[kind] > 0);
        let lost = tasks
            .iter()
            .map(|index| if is_lost(index) { self.pool.running[*index].demand.device_millis() } else { 0 });
        let freeable = FreeableNode::new(node, lost.collect(), tasks, &self.pool.running);
        let mut candidates = Vec::new();
        for (waiting, kind) in self.pool.waiting.iter().enumerate().filter(|(at, _)| self.left[*at] > 0) {
            self.comparisons += freeable.sets();
            let Some(devices) = kind.demand.devices.as_ref().filter(|_| kind.demand.admits(&node.class))
            else {
                continue;
            };
            let found = match devices.amount {
                DeviceAmount::Whole(count) => freeable.free_whole(&kind.demand, count as usize),
                DeviceAmount::Fraction(millis) => freeable.free_share(&kind.demand, millis),
            };
            let Some(found) = found else { continue };
            let gain = kind.demand.device_millis().saturating_sub(found.lost);
            if gain > 0 {
                let moved = freeable.tasks_of(found.set);
                let (priority, change) = (kind.priority, self.change(id));
                let cost = found.cost;
                candidates.push(CandidateMove { priority, gain, cost, moved, waiting, node: id, change });
            }
        }
        candidates
    }
}
