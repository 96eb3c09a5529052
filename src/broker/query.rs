//! What readers may ask of the hot state, in pages of bounded cost.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Broker;
use crate::model::id::{JobId, JournalId, NodeId, PoolId, QueueId, Revision, Term, UnitId};
use crate::model::limit::PAGE_MAX;
use crate::model::reason::JobReason;
use crate::model::shape::Shape;
pub use crate::scheduler::capacity::FreeBlock;
pub use crate::scheduler::defrag;
use crate::scheduler::defrag::{Inventory, Movable, Page, Tasks};
use crate::scheduler::{Why, capacity};
use crate::state::Queue;
use crate::state::pool::{Node, Pool};
use crate::state::view::{AttemptView, JobPhase, JobView, failed_units_from};

/// How a job is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobRef {
    Id(JobId),
    Named { queue: String, name: String },
}

/// Which jobs a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    pub queue: Option<String>,
    /// Empty means all.
    pub phases: Vec<JobPhase>,
    /// All of them must match.
    pub labels: Vec<(String, String)>,
}

impl JobFilter {
    /// Returns whether the filter selects the job.
    pub fn matches(&self, job: &JobView) -> bool {
        self.queue.as_ref().is_none_or(|queue| *queue == job.queue)
            && (self.phases.is_empty() || self.phases.contains(&job.phase))
            && self.labels.iter().all(|(key, value)| job.spec.labels.get(key) == Some(value))
    }
}

/// A question.
#[derive(Clone, Debug)]
pub enum Query {
    /// Identity and the present revision.
    Status,
    Job(JobRef),
    /// So many jobs at once, at most a page: those that are not live are left out.
    JobsById(Vec<JobId>),
    /// Live jobs with numbers below `before`, newest first.
    Jobs {
        filter: JobFilter,
        before: JobId,
        limit: usize,
    },
    /// Live attempts of a job.
    Attempts {
        job: JobId,
        after: Option<u32>,
        limit: usize,
    },
    /// Units of a live job that ended for good otherwise than by success, from a unit on.
    FailedUnits {
        job: JobId,
        from: u32,
        limit: usize,
    },
    Why(JobRef),
    Pool(String),
    /// The same, with its free capacity by block.
    PoolInFull(String),
    /// What a plan to defragment the pool is made from, but for what runs there: the plan itself would
    /// take too long for a step.
    FragmentedPool(String),
    /// What runs there and may be moved, in pages.
    Movable {
        pool: String,
        movable: Movable,
        page: Page,
    },
    Pools,
    Nodes {
        pool: String,
        after: NodeId,
        limit: usize,
    },
    Queues,
}

/// An answer, resting on the revision that comes with it.
#[derive(Clone, Debug)]
pub enum Answer {
    Status {
        journal: JournalId,
        term: Term,
        revision: Revision,
        read_only: bool,
        /// Live jobs and attempts, classes of waiting units, remembered request tokens.
        jobs: u64,
        attempts: u64,
        classes: u64,
        tokens: u64,
        /// Estimated, and what is allowed.
        memory_bytes: u64,
        memory_max: u64,
    },
    /// `None`: not live; the archive may know it.
    Job(Option<Box<JobView>>),
    /// Jobs, and where to go on, if anywhere.
    Jobs {
        jobs: Vec<JobView>,
        next: Option<JobId>,
    },
    Attempts(Vec<AttemptView>),
    /// `None` if the job is not live.
    FailedUnits(Option<Vec<u32>>),
    Why(Option<Box<JobWhy>>),
    Pool(Option<Box<PoolView>>),
    PoolInFull(Option<Box<(PoolView, Vec<FreeBlock>)>>),
    FragmentedPool(Option<Box<Inventory>>),
    Movable(Option<Tasks>),
    Pools(Vec<PoolView>),
    Nodes {
        nodes: Vec<NodeView>,
        next: Option<NodeId>,
    },
    Queues(Vec<QueueView>),
}

/// Why a job waits.
#[derive(Clone, Debug)]
pub struct JobWhy {
    pub job: JobView,
    pub reasons: Vec<JobReason>,
    /// Its place among the waiting unit groups of its queue, and how many there are.
    pub position: u64,
    pub waiting: u64,
    /// What its queue holds and may hold, from the queue itself up.
    pub queues: Vec<QueueView>,
    /// Per unit group that waits.
    pub groups: Vec<GroupWhy>,
}

/// Why a unit group waits.
#[derive(Clone, Debug)]
pub struct GroupWhy {
    pub name: String,
    pub waiting: u32,
    pub why: Why,
    /// Names of `why.pools`, in their order.
    pub pool_names: Vec<String>,
}

/// A pool as readers see it.
#[derive(Clone, Debug)]
pub struct PoolView {
    /// Without its nodes.
    pub pool: Pool,
    pub nodes: u32,
    pub attempts: u32,
    /// Its agent is connected.
    pub connected: bool,
}

/// A node as readers see it.
#[derive(Clone, Debug)]
pub struct NodeView {
    pub id: NodeId,
    pub node: Node,
    /// Thousandths of its free devices that no waiting task can use; `None` if none waits for such devices.
    pub stranded_millis: Option<u64>,
}

/// A queue as readers see it.
#[derive(Clone, Debug)]
pub struct QueueView {
    pub queue: Queue,
    pub parent: String,
}

/// Live jobs that one page of a list looks at: a filter that matches few makes short pages, not
/// long steps.
const LOOKED_AT_MAX: usize = 4 * PAGE_MAX;
/// Waiting unit groups that a position counts one by one: a millisecond or so.
const POSITION_MAX: usize = 10_000;

impl Broker {
    pub(super) fn query(&self, query: Query) -> Answer {
        match query {
            Query::Status => Answer::Status {
                journal: self.state.journal(),
                term: self.term,
                revision: self.state.revision(),
                read_only: self.recovery.newer_revision.is_some(),
                jobs: self.state.job_count() as u64,
                attempts: self.state.attempt_count() as u64,
                classes: self.state.classes().len() as u64,
                tokens: self.state.tokens().len() as u64,
                memory_bytes: self.state.memory_bytes(),
                memory_max: self.memory_max,
            },
            Query::Job(at) => Answer::Job(self.find_job(&at).map(Box::new)),
            Query::JobsById(ids) => {
                let live = ids.into_iter().take(PAGE_MAX).filter_map(|id| self.find_job(&JobRef::Id(id)));
                Answer::Jobs { jobs: live.collect(), next: None }
            }
            Query::Jobs { filter, before, limit } => self.list_jobs(&filter, before, limit),
            Query::FailedUnits { job, from, limit } => {
                let job = self.state.job(job).or_else(|| self.ended.get(&job).map(|ended| &ended.job));
                Answer::FailedUnits(job.map(|job| failed_units_from(&job.groups, from, limit)))
            }
            Query::Attempts { job, after, limit } => {
                let attempts = self.state.attempts_of(job);
                let attempts = attempts.filter(|a| after.is_none_or(|after| a.unit.unit > after)).take(limit);
                Answer::Attempts(attempts.map(|attempt| self.state.attempt_view(attempt)).collect())
            }
            Query::Why(at) => Answer::Why(self.find_job(&at).and_then(|job| self.why(job)).map(Box::new)),
            Query::Pool(name) => {
                Answer::Pool(self.state.pool_named(&name).map(|pool| Box::new(self.pool_view(pool))))
            }
            Query::PoolInFull(name) => {
                let in_full = |pool: &Pool| Box::new((self.pool_view(pool), capacity::free_blocks(pool)));
                Answer::PoolInFull(self.state.pool_named(&name).map(in_full))
            }
            Query::FragmentedPool(name) => {
                let found = |pool: &Pool| Box::new(self.scheduler.inventory(&self.state, pool));
                Answer::FragmentedPool(self.state.pool_named(&name).map(found))
            }
            Query::Movable { pool, movable, page } => {
                let tasks = |pool: &Pool| defrag::movable_tasks(&self.state, pool, &movable, page, self.now);
                Answer::Movable(self.state.pool_named(&pool).map(tasks))
            }
            Query::Pools => Answer::Pools(self.state.pools().map(|pool| self.pool_view(pool)).collect()),
            Query::Nodes { pool, after, limit } => self.list_nodes(&pool, after, limit),
            Query::Queues => {
                Answer::Queues(self.state.queues().map(|queue| self.queue_view(queue)).collect())
            }
        }
    }

    fn find_job(&self, at: &JobRef) -> Option<JobView> {
        let ended = |id: JobId| self.ended.get(&id).map(|job| job.view());
        match at {
            JobRef::Id(id) => self.state.job_view(*id).or_else(|| ended(*id)),
            JobRef::Named { queue, name } => {
                let live =
                    self.state.queue_named(queue).and_then(|queue| self.state.job_named(queue.id, name));
                let live = live.and_then(|job| self.state.job_view(job.id));
                live.or_else(|| {
                    let mut ended = self.ended.values().rev();
                    ended.find(|job| job.queue == *queue && *job.job.name == **name).map(|job| job.view())
                })
            }
        }
    }

    fn list_jobs(&self, filter: &JobFilter, before: JobId, limit: usize) -> Answer {
        let (mut jobs, mut looked_at, mut last) = (Vec::new(), 0, None);
        for id in self.state.job_ids_before(before) {
            if jobs.len() >= limit || looked_at >= LOOKED_AT_MAX {
                return Answer::Jobs { jobs, next: last };
            }
            (looked_at, last) = (looked_at + 1, Some(id));
            jobs.extend(self.state.job_view(id).filter(|job| filter.matches(job)));
        }
        Answer::Jobs { jobs, next: None }
    }

    fn list_nodes(&self, pool: &str, after: NodeId, limit: usize) -> Answer {
        let Some(pool) = self.state.pool_named(pool) else {
            return Answer::Nodes { nodes: Vec::new(), next: None };
        };
        let waiting = capacity::Waiting::for_pool(&self.state, pool);
        let view = |(id, node): (&NodeId, &Node)| NodeView {
            id: *id,
            node: node.clone(),
            stranded_millis: waiting.stranded_millis(pool, node),
        };
        let range = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let mut nodes: Vec<NodeView> = pool.nodes.range(range).take(limit + 1).map(view).collect();
        let more = nodes.len() > limit;
        nodes.truncate(limit);
        Answer::Nodes { next: nodes.last().map(|node| node.id).filter(|_| more), nodes }
    }

    fn pool_view(&self, pool: &Pool) -> PoolView {
        PoolView {
            nodes: pool.nodes.len() as u32,
            attempts: pool.attempts.len() as u32,
            connected: self.sessions.active.contains_key(&pool.id),
            pool: pool.without_nodes(),
        }
    }

    fn queue_view(&self, queue: &Queue) -> QueueView {
        let parent = queue.parent.and_then(|id| self.state.queue(id));
        QueueView { queue: queue.clone(), parent: parent.map_or_else(String::new, |p| p.spec.name.clone()) }
    }

    fn why(&self, view: JobView) -> Option<JobWhy> {
        let Some(job) = self.state.job(view.id) else {
            return Some(JobWhy {
                job: view,
                reasons: Vec::new(),
                position: 0,
                waiting: 0,
                queues: Vec::new(),
                groups: Vec::new(),
            });
        };
        let mut reasons = Vec::new();
        if self.recovery.newer_revision.is_some() {
            reasons.push(JobReason::BrokerReadOnly);
        }
        if let Some((pools, until)) = self.recovery_grace() {
            reasons.push(JobReason::RecoveryGracePeriod { pools, until });
        }
        for dependency in &view.spec.depends_on {
            if job.pending_dependencies > 0
                && let Some(other) = self.state.job(dependency.job)
            {
                let queue =
                    self.state.queue(other.queue).map_or_else(String::new, |queue| queue.spec.name.clone());
                let name = other.name.to_string();
                reasons.push(JobReason::DependencyPending { job: other.id, queue, name });
            }
        }
        let mut groups = Vec::new();
        for (index, progress) in job.groups.iter().enumerate() {
            let until = progress.tried.iter().filter_map(|tried| tried.not_before).min();
            reasons.extend(until.map(|until| JobReason::BackingOff { until }));
            if progress.waiting.is_empty() || job.closing.is_some() {
                continue;
            }
            let shape: Arc<Shape> = Arc::new(Shape::of(&view.spec, index));
            reasons.extend(self.limit_reason(job.queue, &shape));
            let why = self.scheduler.why(&self.state, &shape);
            let name =
                |id: PoolId| self.state.pool(id).map_or_else(String::new, |pool| pool.spec.name.clone());
            groups.push(GroupWhy {
                name: if view.spec.gang_job {
                    "all".to_owned()
                } else {
                    view.spec.groups[index].name.clone()
                },
                waiting: progress.waiting.len(),
                pool_names: why.pools.iter().map(|pool| name(pool.pool)).collect(),
                why,
            });
        }
        let (position, waiting) = self.position(job.queue, view.id);
        let queues = self.state.queue_path(job.queue).map(|queue| self.queue_view(queue)).collect();
        Some(JobWhy { job: view, reasons, position, waiting, queues, groups })
    }

    fn limit_reason(&self, queue: QueueId, shape: &Shape) -> Option<JobReason> {
        let more = shape.total();
        self.state.queue_path(queue).find_map(|queue| {
            let excess = queue.spec.limit.first_excess(&queue.usage.checked_add(&more)?)?;
            Some(JobReason::QueueLimit {
                queue: queue.spec.name.clone(),
                limit: excess.have,
                used: queue.usage.get(&excess.kind),
                needed: more.get(&excess.kind),
                kind: excess.kind,
            })
        })
    }

    /// How many waiting unit groups of the queue come before the job, plus one; and all of them.
    fn position(&self, queue: QueueId, job: JobId) -> (u64, u64) {
        let Some(view) = self.state.job(job) else { return (0, 0) };
        let Some(priority) = self.state.class_of(view, 0).map(|class| class.priority) else { return (0, 0) };
        let (mut before, mut all, mut budget) = (0, 0, POSITION_MAX);
        for (class, members) in self.state.classes().iter().filter(|(class, _)| class.queue == queue) {
            all += members.len();
            before += match class.priority.cmp(&priority) {
                std::cmp::Ordering::Greater => members.len(),
                std::cmp::Ordering::Equal => count_before(members, job, &mut budget),
                std::cmp::Ordering::Less => 0,
            };
        }
        (before as u64 + 1, all as u64)
    }

    /// The unit's job, for callers that hold a unit only.
    pub fn job_of(&self, unit: UnitId) -> Option<JobView> {
        self.state.job_view(unit.job)
    }
}

/// How many of a class's members come before a job, counted from the nearer end. If the budget doesn't last, as
/// many as there would be if they came evenly.
fn count_before(members: &BTreeSet<(JobId, u16)>, job: JobId, budget: &mut usize) -> usize {
    let (mut before, mut behind) = (members.range(..(job, 0)), members.range((job, 0)..));
    for counted in 0..*budget {
        let found = match (before.next(), behind.next()) {
            (None, _) => counted,
            (_, None) => members.len() - counted,
            (Some(_), Some(_)) => continue,
        };
        *budget -= counted;
        return found;
    }
    *budget = 0;
    let (Some((first, _)), Some((last, _))) = (members.first(), members.last()) else { return 0 };
    let share = |end: JobId| u128::from(end.0.saturating_sub(first.0));
    (members.len() as u128 * share(job).min(share(*last)) / share(*last).max(1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_in_a_class_is_counted_from_the_nearer_end_and_beyond_the_budget_estimated() {
        let members: BTreeSet<(JobId, u16)> = (1..=1_000).map(|job| (JobId(3 * job), 0)).collect();
        for (job, before) in
            [(1, 0), (3, 0), (4, 1), (1_500, 499), (2_999, 999), (3_000, 999), (3_001, 1_000)]
        {
            let mut budget = 10_000;
            assert_eq!(count_before(&members, JobId(job), &mut budget), before, "job {job}");
            assert_eq!(budget, 10_000 - before.min(1_000 - before), "job {job}");
        }
        for job in [300, 1_500, 2_700] {
            let mut budget = 50;
            let estimated = count_before(&members, JobId(job), &mut budget);
            assert!(estimated.abs_diff(job as usize / 3) < 3, "job {job}: {estimated}");
            assert_eq!(budget, 0);
        }
        assert_eq!(count_before(&members, JobId(9_000), &mut 0), 1_000);
        assert_eq!(count_before(&members, JobId(1), &mut 0), 0);
        assert_eq!(count_before(&BTreeSet::new(), JobId(1), &mut 0), 0);
    }
}
