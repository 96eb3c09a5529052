//! The scheduler: a function from the state to a plan.
//!
//! [`Scheduler::plan`] takes waiting classes by priority, then submission, and places their units by packing.
//! [`Scheduler::fold`] updates its indexes from the changes that `apply` emits. Nothing here reads a clock,
//! writes to the journal or sends messages. `README.md` has the flow and the role of each file.

mod blocked;
pub mod capacity;
mod claims;
pub mod defrag;
mod nodes;
pub mod packing;
mod reserved;
#[cfg(test)]
mod tests;
mod why;
mod window;

pub use reserved::ReservationPolicy;
pub use why::{PoolWhy, Why, never_fits};

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashSet;

use blocked::{BlockedClasses, FreedCapacity};
use packing::bucket::{Bucket, ClassRef};
use packing::fgd::Fgd;
use packing::overflow::Overflow;
use packing::policy::Scorer;
use packing::profile::updated_profile;
use packing::{DemandId, Packer, Place, Undo};
use reserved::ReservedNodes;

use crate::model::attempt::Placement;
use crate::model::change::Change;
use crate::model::demand::{Demand, WorkloadProfile};
use crate::model::id::{JobId, NodeRef, PoolId, QueueId, UnitId};
use crate::model::mutant::Mutant;
use crate::model::plan::{Plan, Policy, Start};
use crate::model::reason::Permanence;
use crate::model::resource::Resources;
use crate::model::shape::{ClassKey, Shape, ShapeId};
use crate::state::State;
use crate::state::class::Demands;

/// Bounds of one round, after which the broker handles its other inputs.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Units to start, at most.
    pub starts: u32,
    /// Buckets scored, at most, and what costs as much: classes compared, notified or tried. The step that exceeds
    /// the bound is finished.
    pub work: u32,
}

impl Default for Budget {
    fn default() -> Self {
        // A start costs some microseconds to plan and more to apply and write: a round takes a few
        // milliseconds.
        Self { starts: 256, work: 50_000 }
    }
}

/// Indexes over the state, updated with each change, and the policy that plans by them.
#[derive(Debug)]
pub struct Scheduler {
    policy: Policy,
    packer: Packer,
    /// Nodes reserved for one class each. `packer` doesn't contain them.
    reserved: ReservedNodes,
    pools: nodes::Pools,
    node_classes: FxHashSet<ClassRef>,
    shapes: BTreeMap<ShapeId, ShapeIndex>,
    /// Classes to try, in this order.
    runnable: BTreeSet<RunKey>,
    classes: BTreeMap<ClassKey, ClassState>,
    /// Classes that wait for capacity, with the capacity freed since.
    blocked: BlockedClasses,
    /// Classes at a queue's limit, by the queue that has to hold less: their own or one above it.
    limited: BTreeMap<QueueId, BTreeSet<ClassKey>>,
}

/// Priority, then submission: the order in which classes are tried.
type RunKey = (Reverse<i32>, (JobId, u16), ClassKey);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClassState {
    Runnable(RunKey),
    Blocked,
    Limited(QueueId),
}

/// A shape with its demands, device models replaced by their catalogue ids.
#[derive(Debug)]
struct ShapeIndex {
    shape: Arc<Shape>,
    /// The demand and the number of tasks of each entry of `shape.tasks`.
    demands: Demands,
    /// The packer's ids of the demands; `None` until the packer is first asked.
    ids: Vec<Option<DemandId>>,
}

/// What trying one class costs besides scoring, in buckets scored.
const STEP_WORK: u32 = 64;

/// Shapes without waiting units that stay indexed: the same shapes come again.
const IDLE_SHAPES_MAX: usize = 4_096;

/// Seed of the policy's random streams. Any value works, but it must be constant: two brokers with the same
/// state must make the same plan.
const SEED: u64 = 0;

fn scorer(policy: Policy, profile: &WorkloadProfile) -> Scorer {
    match policy {
        // No tasks have been counted yet.
        _ if profile.entries.is_empty() => Scorer::BestFit,
        Policy::Fgd => Scorer::Fgd(Fgd::new(profile.entries.iter().map(|kind| (&*kind.demand, kind.weight)))),
        // Under `BestFit` a profile is left over from an earlier policy, until the broker clears it.
        Policy::Overflow | Policy::BestFit => Scorer::Overflow(Overflow::of(profile, SEED)),
    }
}

impl Scheduler {
    /// Builds the indexes from a state. The policy is best fit until [`Self::set_policy`] changes it.
    pub fn rebuild(state: &State) -> Self {
        let policy = Policy::BestFit;
        let mut scheduler = Self {
            policy,
            packer: Packer::new(scorer(policy, state.profile())),
            reserved: ReservedNodes::default(),
            pools: nodes::Pools::new(),
            node_classes: FxHashSet::default(),
            shapes: BTreeMap::new(),
            runnable: BTreeSet::new(),
            classes: BTreeMap::new(),
            blocked: BlockedClasses::default(),
            limited: BTreeMap::new(),
        };
        for pool in state.pools() {
            scheduler.fold(state, &[Change::Pool(pool.id)]);
        }
        let classes: Vec<Change> = state.classes().keys().map(|class| Change::Class(*class)).collect();
        scheduler.fold(state, &classes);
        scheduler
    }

    /// Updates the indexes from the changes that applied events caused; `state` is the state after them.
    pub fn fold(&mut self, state: &State, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Pool(id) => self.fold_pool(state, *id),
                Change::Node(at) => {
                    if self.set_node(state, *at) {
                        self.blocked.note_freed(FreedCapacity::Node(*at));
                    }
                    self.recheck_reserved(state, *at);
                    // Its place in the inventory has changed, not only what runs there.
                    if state.node(*at).is_none_or(|node| node.gone || node.revision == state.revision()) {
                        self.release_gangs(at.pool);
                    }
                }
                Change::Class(class) => self.fold_class(state, *class),
                Change::Queue(queue) | Change::UsageFell(queue) => {
                    for class in self.limited.remove(queue).unwrap_or_default() {
                        self.classes.remove(&class);
                        self.fold_class(state, class);
                    }
                }
                Change::ClaimReusable(class) => {
                    if let Some(blocked @ ClassState::Blocked) = self.classes.get(class).copied() {
                        self.remove_class(*class, blocked);
                        self.fold_class(state, *class);
                    }
                }
                Change::WorkloadProfile => self.packer.set_scorer(scorer(self.policy, state.profile())),
                Change::Job(_) => {}
            }
        }
    }

    /// Returns whether both indexes hold the same nodes with the same free capacity.
    pub fn same_nodes(&self, other: &Self) -> bool {
        let nodes = |scheduler: &Self| -> BTreeMap<_, _> { scheduler.nodes().collect() };
        self.pools == other.pools && nodes(self) == nodes(other)
    }

    /// Builds the indexes from the state alone, for the same policies.
    pub fn rebuilt(&self, state: &State) -> Self {
        let mut scheduler = Self::rebuild(state);
        scheduler.set_policy(state, self.policy);
        scheduler.set_reservation_policy(self.reserved.policy());
        scheduler
    }

    /// Returns whether nodes are reserved. Which ones is not part of the state.
    pub fn has_reserved_nodes(&self) -> bool {
        !self.reserved.is_empty()
    }

    /// Plans by another policy from the next round on.
    pub fn set_policy(&mut self, state: &State, policy: Policy) {
        self.policy = policy;
        self.packer.set_scorer(scorer(policy, state.profile()));
    }

    /// Returns the nodes that take work, reserved ones included, each with its bucket, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeRef, Arc<Bucket>)> {
        self.packer.buckets_of_nodes().chain(self.reserved.packer.buckets_of_nodes())
    }

    /// Returns the updated workload profile, or `None` if the present one is still good.
    pub fn updated_profile(state: &State) -> Option<WorkloadProfile> {
        let empty = nodes::sample(state);
        updated_profile(state.workload(), empty.iter(), SEED, state.profile())
    }

    /// Returns whether there are classes to try or to notify of freed capacity.
    pub fn has_work(&self) -> bool {
        !self.runnable.is_empty() || self.blocked.has_pending_notifications()
    }

    fn fold_class(&mut self, state: &State, class: ClassKey) {
        let head = state.classes().get(&class).and_then(|members| members.first()).copied();
        let current = self.classes.get(&class).copied();
        match (head, current) {
            (None, None) => {}
            (None, Some(current)) => {
                self.remove_class(class, current);
                self.drop_idle_shapes(state);
            }
            // New units change nothing for a class that waits for capacity or its queue, but for its place in the order.
            (Some(head), Some(ClassState::Blocked)) => {
                let key = (Reverse(class.priority), head, class);
                self.blocked.reorder(key);
                self.reorder_reserved(key);
            }
            (Some(_), Some(ClassState::Limited(_))) => {}
            (Some(head), Some(ClassState::Runnable(old))) => {
                self.runnable.remove(&old);
                self.make_runnable(class, head);
            }
            (Some(head), None) => self.make_runnable(class, head),
        }
    }

    fn make_runnable(&mut self, class: ClassKey, head: (JobId, u16)) {
        let key = (Reverse(class.priority), head, class);
        self.runnable.insert(key);
        self.classes.insert(class, ClassState::Runnable(key));
    }

    /// Removes a class that is in the state `current`.
    fn remove_class(&mut self, class: ClassKey, current: ClassState) {
        self.classes.remove(&class);
        match current {
            ClassState::Runnable(key) => {
                self.runnable.remove(&key);
            }
            ClassState::Blocked => self.blocked.remove(class),
            ClassState::Limited(queue) => {
                if let Some(classes) = self.limited.get_mut(&queue) {
                    classes.remove(&class);
                }
            }
        }
    }

    fn drop_idle_shapes(&mut self, state: &State) {
        if self.shapes.len() > IDLE_SHAPES_MAX + self.classes.len() {
            self.shapes.retain(|id, _| state.shape(*id).is_some());
        }
    }

    fn shape_index(&mut self, state: &State, id: ShapeId) -> Option<&ShapeIndex> {
        match self.shapes.entry(id) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => {
                let (shape, demands) = (state.shape(id)?.clone(), state.demands(id)?.clone());
                let ids = vec![None; demands.len()];
                Some(entry.insert(ShapeIndex { shape, demands, ids }))
            }
        }
    }

    /// Computes the next starts within `budget`.
    ///
    /// Afterwards the indexes already count the planned starts as placed: folding the applied plan changes
    /// nothing, and folding the nodes of a rejected start makes its capacity free again.
    pub fn plan(&mut self, state: &State, budget: Budget) -> Plan {
        let mut round = Round::default();
        self.release_unneeded(state);
        // However much was notified, something starts.
        round.work += self.notify(state).min(budget.work / 2);
        while !self.blocked.is_interrupted()
            && (round.starts.len() as u32) < budget.starts
            && round.work < budget.work
        {
            let Some(class) = self.choose(state, &mut round.work) else { break };
            self.step(state, class, &mut round);
        }
        Plan {
            based_on: state.revision(),
            policy: self.planned_by(),
            budget: budget.starts,
            cursor: round.classes,
            starts: round.starts,
        }
    }

    /// The policy that is in effect. It differs from the configured one while there is no profile yet, or
    /// while best fit still finds the profile of an earlier policy.
    fn planned_by(&self) -> Policy {
        match self.packer.scorer() {
            Scorer::Overflow(_) => Policy::Overflow,
            Scorer::Fgd(_) => Policy::Fgd,
            Scorer::Random { .. } | Scorer::BestFit | Scorer::DotProduct { .. } => Policy::BestFit,
        }
    }

    /// Plans the start of a class's next unit, or marks the class as blocked or limited.
    fn step(&mut self, state: &State, class: ClassKey, round: &mut Round) {
        round.work += STEP_WORK;
        let after = round.cursors.get(&class).copied();
        if after.is_none() {
            round.classes += 1;
        }
        let Some((job, group, unit)) = next_unit(state, class, after) else {
            self.forget_class(class);
            return;
        };
        let Some(total) = self.shape_index(state, class.shape).map(|index| index.shape.total()) else {
            self.forget_class(class);
            return;
        };
        if let Some(queue) = round.over_limit(state, class.queue, &total) {
            self.forget_class(class);
            self.classes.insert(class, ClassState::Limited(queue));
            self.limited.entry(queue).or_default().insert(class);
            return;
        }
        let unit = UnitId { job, unit };
        let avoid = state.job(job).and_then(|job| job.groups[usize::from(group)].tried(unit.unit)?.avoid);
        let placed = self.place(state, class.shape, unit, avoid, round);
        let placed = placed.or_else(|| avoid.and_then(|_| self.place(state, class.shape, unit, None, round)));
        let key = (Reverse(class.priority), (job, group), class);
        self.reorder_reserved(key);
        let placed = placed.or_else(|| self.place_on_reserved(state, key, unit, avoid, round));
        let placed = placed.or_else(|| self.place_gang_on_reserved(state, key, unit, avoid, round));
        let start = match placed {
            Some((pool, placements)) => {
                let waited_ms = state.job(job).map_or(0, |job| state.now().ms_since(job.submitted_at));
                self.reserved.record_start(waited_ms, &total);
                round.add_usage(state, class.queue, &total);
                Some(Start { unit, pool, placements, after: None })
            }
            None => {
                let elsewhere = self.queue_behind_claim(state, class, unit, avoid, round);
                if elsewhere.is_none() && avoid.is_some() {
                    self.queue_behind_claim(state, class, unit, None, round)
                } else {
                    elsewhere
                }
            }
        };
        self.forget_class(class);
        let Some(start) = start else {
            if let Some(shape) = state.shape(class.shape) {
                self.classes.insert(class, ClassState::Blocked);
                self.blocked.insert(class, shape, key);
            }
            return;
        };
        round.starts.push(start);
        round.cursors.insert(class, (job, group, unit.unit));
        if let Some((job, group, _)) = next_unit(state, class, Some((job, group, unit.unit))) {
            self.make_runnable(class, (job, group));
        }
    }

    /// Removes a class, whatever state it is in.
    fn forget_class(&mut self, class: ClassKey) {
        if let Some(current) = self.classes.get(&class).copied() {
            self.remove_class(class, current);
        }
    }

    /// Finds the placement of a unit in one pool: of all its tasks, or none.
    fn place(
        &mut self,
        state: &State,
        shape: ShapeId,
        unit: UnitId,
        avoid: Option<NodeRef>,
        round: &mut Round,
    ) -> Option<(PoolId, Vec<Placement>)> {
        let demands = self.demands_of(state, shape)?;
        let tasks = state
            .job(unit.job)
            .and_then(|job| state.spec(job.spec))
            .map(|entry| entry.spec.tasks_of_unit(unit.unit))?;
        let placed = match demands[..] {
            [(id, 1)] => self
                .packer
                .place_of(id, avoid, &mut Undo::default())
                .map(|place| (place.node.pool, vec![place])),
            _ => self.place_gang(state, shape, &demands, avoid),
        };
        round.work += self.packer.take_work();
        let (pool, places) = placed?;
        let placement = |((group, task), place): (&(u16, u32), Place)| Placement {
            group: *group,
            task: *task,
            node: place.node.node,
            devices: place.devices,
        };
        Some((pool, tasks.iter().zip(places).map(placement).collect()))
    }

    /// The packer's ids of a shape's demands, each with the number of tasks.
    fn demands_of(&mut self, state: &State, shape: ShapeId) -> Option<Vec<(DemandId, u32)>> {
        self.shape_index(state, shape)?;
        let (packer, index) = (&mut self.packer, self.shapes.get_mut(&shape)?);
        let demands = index.demands.iter().zip(&mut index.ids);
        let id = |((demand, count), id): (&(Arc<Demand>, u32), &mut Option<DemandId>)| {
            let current = packer.demand(demand, *id);
            *id = Some(current);
            (current, *count)
        };
        Some(demands.map(id).collect())
    }

    /// Finds the pool for a unit of several tasks: of the pools that take all tasks, the one with the best
    /// score for the first task.
    fn place_gang(
        &mut self,
        state: &State,
        shape: ShapeId,
        demands: &[(DemandId, u32)],
        avoid: Option<NodeRef>,
    ) -> Option<(PoolId, Vec<Place>)> {
        let (first, _) = *demands.first()?;
        let shape = self.shapes.get(&shape)?.shape.clone();
        let total = shape.total();
        let open: Vec<PoolId> = self.pools.iter().filter(|(_, pool)| pool.open).map(|(id, _)| *id).collect();
        let mut ranked = Vec::new();
        for id in open {
            if state.exclusion(id, &shape).is_none() && self.packer.may_hold(id, &total) {
                let best = self.packer.best_in(id, first, avoid);
                ranked.extend(best.map(|(score, node)| (score, node, id)));
            }
        }
        ranked.sort_unstable();
        ranked
            .into_iter()
            .find_map(|(_, _, id)| self.packer.place_in(id, demands, avoid).map(|places| (id, places)))
    }

    /// Explains why a unit of this shape waits: one reason for each pool.
    pub fn why(&self, state: &State, shape: &Shape) -> Why {
        why::explain(state, (&self.packer, &self.reserved.packer), shape)
    }

    /// Returns whether some pool could take a unit of this shape if it were empty and open.
    pub fn could_ever_fit(&self, state: &State, shape: &Shape) -> bool {
        self.why(state, shape).pools.iter().any(|pool| pool.reason.permanence() != Permanence::Never)
    }
}

/// The next waiting unit of a class after the one given, in submission order.
fn next_unit(state: &State, class: ClassKey, after: Option<(JobId, u16, u32)>) -> Option<(JobId, u16, u32)> {
    let members = state.classes().get(&class)?;
    let from = after.map_or((JobId(0), 0), |(job, group, _)| (job, group));
    members.range(from..).find_map(|(job, group)| {
        let first = after.filter(|(j, g, _)| (j, g) == (job, group)).map_or(0, |(_, _, unit)| unit + 1);
        let unit = state.job(*job)?.groups[usize::from(*group)].waiting.first_from(first)?;
        Some((*job, *group, unit))
    })
}

/// What one call of [`Scheduler::plan`] has done so far.
#[derive(Default)]
struct Round {
    starts: Vec<Start>,
    work: u32,
    classes: u32,
    /// The last unit placed of each class.
    cursors: BTreeMap<ClassKey, (JobId, u16, u32)>,
    /// What the planned starts add to the usage of queues.
    planned_usage: BTreeMap<QueueId, Resources>,
    /// Attempts behind which the plan has queued a successor.
    claimed: BTreeSet<UnitId>,
}

impl Round {
    /// The first queue, from `queue` up, whose limit does not allow `more`.
    fn over_limit(&self, state: &State, queue: QueueId, more: &Resources) -> Option<QueueId> {
        let none = Resources::default();
        state.queue_path(queue).find_map(|queue| {
            let planned = self.planned_usage.get(&queue.id).unwrap_or(&none);
            let sum = queue.usage.checked_add(planned).and_then(|sum| sum.checked_add(more));
            let over = sum.is_none_or(|sum| queue.spec.limit.first_excess(&sum).is_some())
                && !Mutant::IgnoreQueueLimit.is_on();
            over.then_some(queue.id)
        })
    }

    fn add_usage(&mut self, state: &State, queue: QueueId, more: &Resources) {
        for queue in state.queue_path(queue) {
            let planned = self.planned_usage.entry(queue.id).or_default();
            *planned = planned.checked_add(more).unwrap_or_default();
        }
    }
}
