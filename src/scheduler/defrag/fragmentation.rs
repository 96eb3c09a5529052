//! Collects from the state what a plan for one pool is made from, in pages, each of which is a short step of
//! the broker.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::{FragmentedPool, Running, Waiting};
use crate::model::attempt::Phase;
use crate::model::demand::Demand;
use crate::model::id::{AttemptId, JobId, NodeId, NodeRef, QueueId, Revision, UnitId};
use crate::model::shape::ShapeId;
use crate::model::spec::Labels;
use crate::model::time::Timestamp;
use crate::scheduler::Scheduler;
use crate::state::State;
use crate::state::job::Job;
use crate::state::live::Attempt;
use crate::state::pool::Pool;

/// Kinds of waiting tasks in a plan, the first in the scheduler's order: each is compared with each node.
const KINDS_MAX: usize = 128;
/// Jobs of one kind whose tasks are counted.
const JOBS_MAX: usize = 1_000;
/// Jobs of one kind that are listed by name.
const NAMED_MAX: usize = 100;
/// Running tasks that one page reads: some milliseconds.
const TASKS_READ_MAX: usize = 4_096;
/// Cost of a restart, in seconds of run time.
const RESTART_S: u64 = 60;
/// Device thousandths that a task without devices counts as, so that its cost is not zero.
const MILLIS_MIN: u64 = 100;

/// The labels of the jobs whose tasks may be moved; one of them suffices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Movable {
    /// The tasks start again from the beginning: their run time so far is lost.
    pub preemptible: Labels,
    /// The tasks continue from their last checkpoint.
    pub checkpointed: Labels,
}

/// The input of a plan, with the names of its parts.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub pool: FragmentedPool,
    /// Names of the nodes.
    pub nodes: BTreeMap<NodeId, String>,
    /// Parallel to [`FragmentedPool::running`].
    pub running: Vec<Moving>,
    /// Parallel to [`FragmentedPool::waiting`]: the first jobs of each kind, with the number of their waiting
    /// tasks.
    pub waiting: Vec<Vec<(JobName, u32)>>,
}

/// A running task that may be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moving {
    pub attempt: AttemptId,
    pub job: JobName,
    /// Run time that a move loses, in milliseconds.
    pub lost_ms: u64,
}

/// A job's id and names, for users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobName {
    pub id: JobId,
    pub name: String,
    pub queue: String,
}

/// Which of a pool's tasks a page contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Only tasks after this one; `None` for the first page.
    pub after: Option<UnitId>,
    /// Only tasks that were ordered up to this revision, at which the nodes were read: later ones are not
    /// counted in the nodes' free capacity.
    pub until: Revision,
}

/// A page of running tasks that may be moved.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    pub(super) tasks: Vec<(Running, Moving)>,
    /// Where the next page begins; `None` after the last page.
    pub next: Option<UnitId>,
}

impl Inventory {
    /// Adds a page of running tasks. Tasks on nodes that are not in the inventory are left out.
    pub fn add(&mut self, page: Tasks) {
        for (running, moving) in page.tasks {
            if self.nodes.contains_key(&running.node) {
                self.pool.running.push(running);
                self.running.push(moving);
            }
        }
    }

    /// Returns the job of the next task of a waiting kind that is placed after `after` others of that kind.
    /// Beyond the jobs that are listed, it is the last of them; `None` if the kind has none.
    pub fn job_to_place(&self, waiting: usize, after: u32) -> Option<&JobName> {
        let jobs = self.waiting.get(waiting)?;
        let mut before = 0u32;
        let found = jobs.iter().find(|(_, tasks)| {
            before = before.saturating_add(*tasks);
            before > after
        });
        found.or(jobs.last()).map(|(job, _)| job)
    }
}

impl Movable {
    /// `None` if a job's tasks may not be moved, otherwise whether they continue from a checkpoint.
    fn has_checkpoints(&self, labels: &Labels) -> Option<bool> {
        let has = |any_of: &Labels| any_of.iter().any(|(key, value)| labels.get(key) == Some(value));
        if has(&self.checkpointed) { Some(true) } else { has(&self.preemptible).then_some(false) }
    }
}

impl Scheduler {
    /// Returns the input of a plan for a pool, without the running tasks, which [`movable_tasks`] returns in
    /// pages: the open nodes, and the single tasks with devices that wait for capacity and may run there.
    pub fn inventory(&self, state: &State, pool: &Pool) -> Inventory {
        let mut inventory = Inventory::default();
        inventory.pool.name.clone_from(&pool.spec.name);
        for (id, node) in &pool.nodes {
            if let Some(packed) = self.node(NodeRef { pool: pool.id, node: *id }) {
                inventory.pool.nodes.push((*id, packed.clone()));
                inventory.nodes.insert(*id, node.spec.name.clone());
            }
        }
        self.add_waiting(state, pool, &mut inventory);
        inventory
    }

    fn add_waiting(&self, state: &State, pool: &Pool, inventory: &mut Inventory) {
        for (_, _, class) in &self.blocked.order {
            if inventory.waiting.len() >= KINDS_MAX {
                return;
            }
            let (Some(shape), Some(members)) = (state.shape(class.shape), state.classes().get(class)) else {
                continue;
            };
            let [(request, 1)] = &shape.tasks[..] else { continue };
            if request.devices.is_none() || pool.exclusion(shape).is_some() {
                continue;
            }
            let tasks = |(job, group): &(JobId, u16)| {
                let job = state.job(*job)?;
                Some((job, job.groups[usize::from(*group)].waiting.len()))
            };
            let jobs: Vec<(&Job, u32)> = members.iter().take(JOBS_MAX).filter_map(tasks).collect();
            inventory.pool.waiting.push(Waiting {
                demand: Arc::new(state.demand_of(request, shape)),
                count: jobs.iter().map(|(_, tasks)| *tasks).fold(0, u32::saturating_add),
                priority: class.priority,
            });
            let named = jobs.iter().take(NAMED_MAX).map(|(job, tasks)| (job_name(state, job), *tasks));
            inventory.waiting.push(named.collect());
        }
    }
}

/// Returns a page of the single tasks that run in a pool and may be moved.
pub fn movable_tasks(state: &State, pool: &Pool, movable: &Movable, page: Page, now: Timestamp) -> Tasks {
    let (mut tasks, mut demands) = (Tasks::default(), BTreeMap::new());
    let after = page.after.map_or(Bound::Unbounded, Bound::Excluded);
    for (read, unit) in pool.attempts.range((after, Bound::Unbounded)).enumerate() {
        if read >= TASKS_READ_MAX {
            return tasks;
        }
        tasks.next = Some(*unit);
        let attempt = state.attempt(*unit).filter(|attempt| attempt.ordered_revision <= page.until);
        tasks.tasks.extend(attempt.and_then(|one| movable_task(state, one, movable, now, &mut demands)));
    }
    tasks.next = None;
    tasks
}

fn movable_task(
    state: &State,
    attempt: &Attempt,
    movable: &Movable,
    now: Timestamp,
    demands: &mut BTreeMap<ShapeId, Arc<Demand>>,
) -> Option<(Running, Moving)> {
    // A task with a claim's successor, or behind one, hands its capacity on: a move would not free it.
    let is_independent = matches!(attempt.phase, Phase::Starting | Phase::Running)
        && attempt.after.is_none()
        && state.successor_of(attempt.unit).is_none();
    let ([placement], true) = (&attempt.placements[..], is_independent) else { return None };
    let job = state.job(attempt.unit.job)?;
    let entry = state.spec(job.spec)?;
    let has_checkpoints = movable.has_checkpoints(&entry.spec.labels)?;
    let shape = *entry.shapes.get(state.group_of(attempt.unit))?;
    let demand = match demands.get(&shape) {
        Some(cached) => Arc::clone(cached),
        None => {
            let shape_of = state.shape(shape)?;
            let (request, _) = shape_of.tasks.first()?;
            let demand = Arc::new(state.demand_of(request, shape_of));
            demands.insert(shape, Arc::clone(&demand));
            demand
        }
    };
    let ran_ms = attempt.started_at.map_or(0, |at| now.ms_since(at));
    let lost_ms = if has_checkpoints { 0 } else { ran_ms };
    let cost = demand.device_millis().max(MILLIS_MIN).saturating_mul(RESTART_S + lost_ms / 1_000);
    let (devices, priority) = (placement.devices.clone(), entry.spec.priority);
    let running = Running { demand, node: placement.node, devices, cost, priority };
    let moving = Moving { attempt: attempt.id(state.journal()), job: job_name(state, job), lost_ms };
    Some((running, moving))
}

fn job_name(state: &State, job: &Job) -> JobName {
    let queue = |id: QueueId| state.queue(id).map_or_else(String::new, |queue| queue.spec.name.clone());
    JobName { id: job.id, name: job.name.to_string(), queue: queue(job.queue) }
}
