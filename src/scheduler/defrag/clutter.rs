//! What a plan for one pool is made from, as the state has it: in parts, each a short step of the broker.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::{Clutter, Running, Waiting};
use crate::model::attempt::Phase;
use crate::model::demand::{Demand, exclusion};
use crate::model::id::{AttemptId, JobId, NodeId, NodeRef, QueueId, Revision, UnitId};
use crate::model::shape::ShapeId;
use crate::model::spec::Labels;
use crate::model::time::Timestamp;
use crate::scheduler::Scheduler;
use crate::scheduler::nodes::demand_of;
use crate::state::State;
use crate::state::job::Job;
use crate::state::live::Attempt;
use crate::state::pool::Pool;

/// Kinds of waiting tasks that are looked at, the first to be tried.
const KINDS_MAX: usize = 128;
/// Jobs of one kind that are counted.
const JOBS_MAX: usize = 1_000;
/// Jobs of one kind that are named.
const NAMED_MAX: usize = 100;
/// Running tasks that one page looks at: some milliseconds.
const TASKS_LOOKED_AT_MAX: usize = 4_096;
/// What starting anew costs, in seconds of run time.
const RESTART_S: u64 = 60;
/// Device thousandths that a task without devices counts as.
const MILLIS_MIN: u64 = 100;

/// Whose tasks may be moved: jobs with one of these labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Movable {
    /// They start anew elsewhere and lose what they did.
    pub preemptible: Labels,
    /// They go on from where they last saved what they did.
    pub checkpointed: Labels,
}

/// A pool's clutter, with what its parts are.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub clutter: Clutter,
    pub nodes: BTreeMap<NodeId, String>,
    /// In the order of the clutter's running tasks.
    pub running: Vec<Moving>,
    /// In the order of the clutter's waiting tasks: the first jobs of each kind, with how many tasks of each
    /// wait.
    pub waiting: Vec<Vec<(JobName, u32)>>,
}

/// A running task that may be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moving {
    pub attempt: AttemptId,
    pub job: JobName,
    /// Run time that is lost with it, in milliseconds.
    pub lost_ms: u64,
}

/// A job, as people call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobName {
    pub id: JobId,
    pub name: String,
    pub queue: String,
}

/// Which of a pool's tasks a page is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Those that come after this one.
    pub after: Option<UnitId>,
    /// Ordered no later: they hold something of the nodes as they were found then.
    pub until: Revision,
}

/// Running tasks that may be moved, of so many that were looked at.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    pub(super) tasks: Vec<(Running, Moving)>,
    /// Where the next page begins, if there is one.
    pub next: Option<UnitId>,
}

impl Found {
    /// Takes in tasks that run on the nodes.
    pub fn add(&mut self, page: Tasks) {
        for (running, moving) in page.tasks {
            if self.nodes.contains_key(&running.node) {
                self.clutter.running.push(running);
                self.running.push(moving);
            }
        }
    }

    /// The job of the task of a kind that would be let in after so many others; the last that is named, if
    /// there are more.
    pub fn job_let_in(&self, waiting: usize, after: u32) -> Option<&JobName> {
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
    /// Whether a job's tasks may be moved, and keep what they did.
    fn keeps(&self, labels: &Labels) -> Option<bool> {
        let has = |wanted: &Labels| wanted.iter().any(|(key, value)| labels.get(key) == Some(value));
        if has(&self.checkpointed) { Some(true) } else { has(&self.preemptible).then_some(false) }
    }
}

impl Scheduler {
    /// The clutter of a pool but for what runs there: its open nodes, and single tasks with devices that
    /// wait for capacity and may run there.
    pub fn clutter(&self, state: &State, pool: &Pool) -> Found {
        let mut found = Found::default();
        found.clutter.pool.clone_from(&pool.spec.name);
        for (id, node) in &pool.nodes {
            if let Some(kept) = self.node(NodeRef { pool: pool.id, node: *id }) {
                found.clutter.nodes.push((*id, kept.clone()));
                found.nodes.insert(*id, node.spec.name.clone());
            }
        }
        self.find_waiting(state, pool, &mut found);
        found
    }

    fn find_waiting(&self, state: &State, pool: &Pool, found: &mut Found) {
        let (name, spec) = (Some(pool.spec.name.as_str()), &pool.spec);
        for (_, _, class) in &self.full.order {
            if found.waiting.len() >= KINDS_MAX {
                return;
            }
            let (Some(shape), Some(members)) = (state.shape(class.shape), state.classes().get(class)) else {
                continue;
            };
            let [(request, 1)] = &shape.tasks[..] else { continue };
            let barred = exclusion(&shape.constraints, shape.needs, name, spec.region, spec.capabilities);
            if request.devices.is_none() || barred.is_some() {
                continue;
            }
            let tasks = |(job, group): &(JobId, u16)| {
                let job = state.job(*job)?;
                Some((job, job.groups[usize::from(*group)].waiting.len()))
            };
            let jobs: Vec<(&Job, u32)> = members.iter().take(JOBS_MAX).filter_map(tasks).collect();
            found.clutter.waiting.push(Waiting {
                demand: Arc::new(demand_of(state, request, shape)),
                count: jobs.iter().map(|(_, tasks)| *tasks).fold(0, u32::saturating_add),
                priority: class.priority,
            });
            let named = jobs.iter().take(NAMED_MAX).map(|(job, tasks)| (job_name(state, job), *tasks));
            found.waiting.push(named.collect());
        }
    }
}

/// Single tasks that run in a pool and may be moved, a page of them.
pub fn movable_tasks(state: &State, pool: &Pool, movable: &Movable, page: Page, now: Timestamp) -> Tasks {
    let (mut tasks, mut demands) = (Tasks::default(), BTreeMap::new());
    let after = page.after.map_or(Bound::Unbounded, Bound::Excluded);
    for (looked_at, unit) in pool.attempts.range((after, Bound::Unbounded)).enumerate() {
        if looked_at >= TASKS_LOOKED_AT_MAX {
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
    let is_settled = matches!(attempt.phase, Phase::Starting | Phase::Running)
        && attempt.after.is_none()
        && state.successor_of(attempt.unit).is_none();
    let ([placement], true) = (&attempt.placements[..], is_settled) else { return None };
    let job = state.job(attempt.unit.job)?;
    let entry = state.spec(job.spec)?;
    let keeps = movable.keeps(&entry.spec.labels)?;
    let shape = *entry.shapes.get(state.group_of(attempt.unit))?;
    let demand = match demands.get(&shape) {
        Some(known) => Arc::clone(known),
        None => {
            let shape_of = state.shape(shape)?;
            let (request, _) = shape_of.tasks.first()?;
            let demand = Arc::new(demand_of(state, request, shape_of));
            demands.insert(shape, Arc::clone(&demand));
            demand
        }
    };
    let ran_ms = attempt.started_at.map_or(0, |at| now.ms_since(at));
    let lost_ms = if keeps { 0 } else { ran_ms };
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
