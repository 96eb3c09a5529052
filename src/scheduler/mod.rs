//! The scheduler: a function of the state to a plan.
//!
//! `plan` takes waiting classes by priority, then submission, and places their units by packing.
//! Its indexes are kept by folding the changes that `apply` emits; `packing` says where a task goes,
//! `nodes` tells it of the state's nodes, `capacity` says what is free, `full` keeps who waits for capacity,
//! `kept` which nodes are kept for whom, `line` who waits behind a running one, `window` chooses who goes next,
//! `why` explains, and `defrag` plans what could be moved.

pub mod capacity;
pub mod defrag;
mod full;
mod kept;
mod line;
mod nodes;
pub mod packing;
#[cfg(test)]
mod tests;
mod why;
mod window;

pub use kept::ReservationPolicy;
pub use why::{PoolWhy, Why};

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::model::demand::{Demand, WorkloadProfile};
use full::{Full, Gain};
use kept::Kept;
use packing::bucket::{Bucket, ClassRef};
use packing::fgd::Fgd;
use packing::mix::Mix;
use packing::overflow::Overflow;
use packing::policy::Scorer;
use packing::{DemandId, Packer, Place, Undo};

use crate::model::attempt::Placement;
use crate::model::change::Change;
use crate::model::id::{JobId, NodeRef, PoolId, QueueId, UnitId};
use crate::model::mutant::Mutant;
use crate::model::plan::{Plan, Policy, Start};
use crate::model::reason::Permanence;
use crate::model::resource::Resources;
use crate::model::shape::{ClassKey, Shape, ShapeId};
use crate::state::State;

/// Bounds of one round: so much work, then the broker looks at its other inputs.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Units started.
    pub starts: u32,
    /// Node states scored, placements tried, classes woken.
    pub work: u32,
}

impl Default for Budget {
    fn default() -> Self {
        // A start costs some microseconds to plan and more to apply and write: a few
        // milliseconds in all.
        Self { starts: 256, work: 50_000 }
    }
}

/// Kept indexes over the state.
#[derive(Debug)]
pub struct Scheduler {
    policy: Policy,
    packer: Packer,
    /// Nodes that the packer doesn't have.
    kept: Kept,
    pools: nodes::Pools,
    node_classes: FxHashSet<ClassRef>,
    mix: Mix,
    shapes: BTreeMap<ShapeId, ShapeIndex>,
    /// Classes that may have a place, in the order they are to be tried.
    runnable: BTreeSet<RunKey>,
    classes: BTreeMap<ClassKey, ClassState>,
    /// Classes that wait for capacity, with what has been gained since.
    full: Full,
    /// Classes that wait for their queue, or one above it, to hold less.
    limited: BTreeMap<QueueId, BTreeSet<ClassKey>>,
}

/// Priority, then submission: the order in which classes are tried.
type RunKey = (Reverse<i32>, (JobId, u16), ClassKey);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClassState {
    Runnable(RunKey),
    Full,
    Limited(QueueId),
}

/// A shape with what it asks of nodes, in the catalogue's numbers.
#[derive(Debug)]
struct ShapeIndex {
    shape: Arc<Shape>,
    /// One per entry of `shape.tasks`.
    demands: Vec<(Arc<Demand>, u32)>,
    /// Their numbers with the packer.
    ids: Vec<Option<DemandId>>,
}

/// Shapes kept without waiting units before they are dropped.
const IDLE_SHAPES_MAX: usize = 4_096;

/// Seed of what the policy draws: nothing depends on which it is, and plans must not differ.
const SEED: u64 = 0;

fn scorer(policy: Policy, profile: &WorkloadProfile, mix: &Mix) -> Scorer {
    match policy {
        // Until something is known of what comes.
        _ if profile.entries.is_empty() => Scorer::BestFit,
        Policy::Fgd => Scorer::Fgd(Fgd::new(profile.entries.iter().map(|kind| (&*kind.demand, kind.weight)))),
        // Of best fit, until what an earlier policy has learned is forgotten.
        Policy::Overflow | Policy::BestFit => {
            Scorer::Overflow(Overflow::of(profile, mix.turnover_percent(), SEED))
        }
    }
}

impl Scheduler {
    /// Builds the indexes of a state anew, to plan by best fit until told otherwise.
    pub fn rebuild(state: &State) -> Self {
        let (policy, mix) = (Policy::BestFit, Mix::resume(state.profile()));
        let mut scheduler = Self {
            policy,
            packer: Packer::new(scorer(policy, state.profile(), &mix)),
            kept: Kept::default(),
            mix,
            pools: nodes::Pools::new(),
            node_classes: FxHashSet::default(),
            shapes: BTreeMap::new(),
            runnable: BTreeSet::new(),
            classes: BTreeMap::new(),
            full: Full::default(),
            limited: BTreeMap::new(),
        };
        for pool in state.pools() {
            scheduler.fold(state, &[Change::Pool(pool.id)]);
        }
        let classes: Vec<Change> = state.classes().keys().map(|class| Change::Class(*class)).collect();
        scheduler.fold(state, &classes);
        scheduler
    }

    /// Takes in what applied events altered.
    pub fn fold(&mut self, state: &State, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Pool(id) => self.fold_pool(state, *id),
                Change::Node(at) => {
                    if self.set_node(state, *at) {
                        self.full.gain(Gain::Node(*at));
                    }
                    self.recheck_kept(state, *at);
                }
                Change::Class(class) => self.fold_class(state, *class),
                Change::Queue(queue) | Change::UsageFell(queue) => {
                    for class in self.limited.remove(queue).unwrap_or_default() {
                        self.classes.remove(&class);
                        self.fold_class(state, class);
                    }
                }
                Change::ClaimReusable(class) => {
                    if let Some(kept @ ClassState::Full) = self.classes.get(class).copied() {
                        self.forget(*class, kept);
                        self.fold_class(state, *class);
                    }
                }
                Change::WorkloadProfile => {
                    self.packer.set_scorer(scorer(self.policy, state.profile(), &self.mix))
                }
                Change::Job(_) => {}
            }
        }
    }

    /// Both indexes hold the same nodes with the same free capacity.
    pub fn same_nodes(&self, other: &Self) -> bool {
        let nodes = |scheduler: &Self| -> BTreeMap<_, _> { scheduler.nodes().collect() };
        self.pools == other.pools && nodes(self) == nodes(other)
    }

    /// Plans by another policy from now on.
    pub fn set_policy(&mut self, state: &State, policy: Policy) {
        self.policy = policy;
        self.packer.set_scorer(scorer(policy, state.profile(), &self.mix));
    }

    /// The nodes that take work, each with all that packing knows of it, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeRef, Arc<Bucket>)> {
        self.packer.buckets_of_nodes().chain(self.kept.packer.buckets_of_nodes())
    }

    /// Counts a job that has just come.
    pub fn arrive(&mut self, state: &State, id: JobId) {
        let Some(job) = state.job(id) else { return };
        let Some(entry) = state.spec(job.spec) else { return };
        for (shape, progress) in entry.shapes.iter().zip(&job.groups) {
            let Some(index) = self.shape_index(state, *shape) else { continue };
            let demands = index.demands.clone();
            let units = u64::from(progress.waiting.len());
            for (demand, count) in demands {
                self.mix.arrive(&demand, u64::from(count).saturating_mul(units));
            }
        }
    }

    /// Counts tasks that have just ended.
    pub fn depart(&mut self, tasks: u64) {
        self.mix.depart(tasks);
    }

    /// What is to be learned from the tasks that have come, if enough have since the last time and it is
    /// news.
    pub fn profile(&mut self, state: &State) -> Option<WorkloadProfile> {
        if !self.mix.is_update_due() {
            return None;
        }
        let empty = nodes::sample(state);
        self.mix.update(empty.iter(), SEED, state.profile())
    }

    /// There is something to plan.
    pub fn has_work(&self) -> bool {
        !self.runnable.is_empty() || self.full.has_offers()
    }

    fn fold_class(&mut self, state: &State, class: ClassKey) {
        let head = state.classes().get(&class).and_then(|members| members.first()).copied();
        let kept = self.classes.get(&class).copied();
        match (head, kept) {
            (None, None) => {}
            (None, Some(kept)) => {
                self.forget(class, kept);
                self.drop_idle_shapes(state);
            }
            (Some(_), Some(ClassState::Full | ClassState::Limited(_))) => {}
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

    fn forget(&mut self, class: ClassKey, kept: ClassState) {
        self.classes.remove(&class);
        match kept {
            ClassState::Runnable(key) => {
                self.runnable.remove(&key);
            }
            ClassState::Full => self.full.remove(class),
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
            Entry::Occupied(kept) => Some(kept.into_mut()),
            Entry::Vacant(place) => {
                let shape = state.shape(id)?.clone();
                let demand = |(request, count): &(_, u32)| {
                    (Arc::new(nodes::demand_of(state, request, &shape)), *count)
                };
                let demands: Vec<_> = shape.tasks.iter().map(demand).collect();
                let ids = vec![None; demands.len()];
                Some(place.insert(ShapeIndex { shape, demands, ids }))
            }
        }
    }

    /// Computes the next starts within `budget`. The indexes hold what the plan takes already;
    /// folding the applied plan changes nothing, folding a refused start gives it back.
    pub fn plan(&mut self, state: &State, budget: Budget) -> Plan {
        let mut round = Round::default();
        self.give_back_unwanted(state);
        round.work += self.wake(state) as u32 / 16;
        while (round.starts.len() as u32) < budget.starts && round.work < budget.work {
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

    /// The policy whose rules hold: another one's while there is nothing learned, or too much.
    fn planned_by(&self) -> Policy {
        match self.packer.scorer() {
            Scorer::Overflow(_) => Policy::Overflow,
            Scorer::Fgd(_) => Policy::Fgd,
            Scorer::Random { .. } | Scorer::BestFit | Scorer::DotProduct { .. } => Policy::BestFit,
        }
    }

    /// Places the next unit of a class, or puts the class aside.
    fn step(&mut self, state: &State, class: ClassKey, round: &mut Round) {
        let after = round.cursors.get(&class).copied();
        if after.is_none() {
            round.classes += 1;
        }
        let Some((job, group, unit)) = next_unit(state, class, after) else {
            self.forget_kept(class);
            return;
        };
        let Some(total) = self.shape_index(state, class.shape).map(|index| index.shape.total()) else {
            self.forget_kept(class);
            return;
        };
        if let Some(queue) = round.over_limit(state, class.queue, &total) {
            self.forget_kept(class);
            self.classes.insert(class, ClassState::Limited(queue));
            self.limited.entry(queue).or_default().insert(class);
            return;
        }
        let unit = UnitId { job, unit };
        let avoid = state.job(job).and_then(|job| job.groups[usize::from(group)].tried(unit.unit)?.avoid);
        let placed = self.place(state, class.shape, unit, avoid, round);
        let placed = placed.or_else(|| avoid.and_then(|_| self.place(state, class.shape, unit, None, round)));
        let key = (Reverse(class.priority), (job, group), class);
        let placed = placed.or_else(|| self.place_kept(state, key, unit, avoid, round));
        let start = match placed {
            Some((pool, placements)) => {
                let waited_ms = state.job(job).map_or(0, |job| state.now().ms_since(job.submitted_at));
                self.kept.start(waited_ms, &total);
                round.hold(state, class.queue, &total);
                Some(Start { unit, pool, placements, after: None })
            }
            None => {
                let elsewhere = self.line_up(state, class, unit, avoid, round);
                if elsewhere.is_none() && avoid.is_some() {
                    self.line_up(state, class, unit, None, round)
                } else {
                    elsewhere
                }
            }
        };
        self.forget_kept(class);
        let Some(start) = start else {
            if let Some(shape) = state.shape(class.shape) {
                self.classes.insert(class, ClassState::Full);
                self.full.insert(class, shape, key);
            }
            return;
        };
        round.starts.push(start);
        round.cursors.insert(class, (job, group, unit.unit));
        if let Some((job, group, _)) = next_unit(state, class, Some((job, group, unit.unit))) {
            self.make_runnable(class, (job, group));
        }
    }

    fn forget_kept(&mut self, class: ClassKey) {
        if let Some(kept) = self.classes.get(&class).copied() {
            self.forget(class, kept);
        }
    }

    /// Finds a place for a unit, in one pool, whole or not at all.
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

    /// A shape's demands with the packer's numbers.
    fn demands_of(&mut self, state: &State, shape: ShapeId) -> Option<Vec<(DemandId, u32)>> {
        self.shape_index(state, shape)?;
        let (packer, index) = (&mut self.packer, self.shapes.get_mut(&shape)?);
        let demands = index.demands.iter().zip(&mut index.ids);
        let id = |((demand, count), id): (&(Arc<Demand>, u32), &mut Option<DemandId>)| {
            let known = packer.demand(demand, *id);
            *id = Some(known);
            (known, *count)
        };
        Some(demands.map(id).collect())
    }

    /// Finds a pool for a unit of several tasks: the one whose nodes suit the first of them best, of
    /// those that take all.
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
            if why::exclusion(state, id, &shape).is_none() && self.packer.may_hold(id, &total) {
                let best = self.packer.best_in(id, first, avoid);
                ranked.extend(best.map(|(score, node)| (score, node, id)));
            }
        }
        ranked.sort_unstable();
        ranked
            .into_iter()
            .find_map(|(_, _, id)| self.packer.place_in(id, demands, avoid).map(|places| (id, places)))
    }

    /// Explains, for one unit group's shape, every pool's part exactly once.
    pub fn why(&self, state: &State, shape: &Shape) -> Why {
        why::explain(state, (&self.packer, &self.kept.packer), shape)
    }

    /// Some pool could take a unit of this shape one day.
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

/// What one call of `plan` has done so far.
#[derive(Default)]
struct Round {
    starts: Vec<Start>,
    work: u32,
    classes: u32,
    /// The last unit placed of each class.
    cursors: BTreeMap<ClassKey, (JobId, u16, u32)>,
    /// What the plan takes from queues beyond what they hold.
    held: BTreeMap<QueueId, Resources>,
    /// Ends of lines that the plan has put a unit behind.
    lined: BTreeSet<UnitId>,
}

impl Round {
    /// The first queue, from `queue` up, that may not hold `more`.
    fn over_limit(&self, state: &State, queue: QueueId, more: &Resources) -> Option<QueueId> {
        let none = Resources::default();
        state.queue_path(queue).find_map(|queue| {
            let held = self.held.get(&queue.id).unwrap_or(&none);
            let sum = queue.usage.checked_add(held).and_then(|sum| sum.checked_add(more));
            let over = sum.is_none_or(|sum| queue.spec.limit.first_excess(&sum).is_some())
                && !Mutant::IgnoreQueueLimit.is_on();
            over.then_some(queue.id)
        })
    }

    fn hold(&mut self, state: &State, queue: QueueId, more: &Resources) {
        for queue in state.queue_path(queue) {
            let held = self.held.entry(queue.id).or_default();
            *held = held.checked_add(more).unwrap_or_default();
        }
    }
}
