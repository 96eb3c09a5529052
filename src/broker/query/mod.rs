//! What readers may ask of the hot state, in pages of bounded cost.

mod count;

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

pub use count::{CountBy, CountJobs, JobCounts};

use super::Broker;
use crate::model::id::{JobId, JournalId, NodeId, NodeRef, PoolId, QueueId, Term, UnitId};
use crate::model::limit::PAGE_MAX;
use crate::model::reason::JobReason;
use crate::model::shape::Shape;
pub use crate::scheduler::capacity::FreeBlock;
pub use crate::scheduler::defrag;
use crate::scheduler::defrag::{Inventory, Movable, Page, Tasks};
use crate::scheduler::{Why, capacity};
use crate::state::Queue;
pub use crate::state::job_filter::JobFilter;
use crate::state::job_filter::LiveFilter;
use crate::state::pool::{Node, Pool};
use crate::state::units::{Units, unit_ranges};
use crate::state::view::{AttemptView, JobView, failed_units_from};

/// How a job is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobRef {
    Id(JobId),
    Named { queue: String, name: String },
}

/// A question about the hot state. Its answer takes one step of the broker, so its work is bounded.
pub trait Query: fmt::Debug + Send + 'static {
    type Answer: fmt::Debug + Send + 'static;

    fn answer(self, broker: &Broker) -> Self::Answer;
}

/// A query of any kind.
pub trait AnyQuery: fmt::Debug + Send {
    /// Answers the query, with its [`Query::Answer`].
    fn answer_any(self: Box<Self>, broker: &Broker) -> AnyAnswer;
}

/// The [`Query::Answer`] of some kind of query.
pub type AnyAnswer = Box<dyn Any + Send>;

impl<Q: Query> AnyQuery for Q {
    fn answer_any(self: Box<Self>, broker: &Broker) -> AnyAnswer {
        Box::new((*self).answer(broker))
    }
}

/// Asks for the broker's identity and how much it holds.
#[derive(Clone, Copy, Debug)]
pub struct GetStatus;

/// The broker's identity, and how much it holds.
#[derive(Clone, Debug)]
pub struct Status {
    pub journal: JournalId,
    pub term: Term,
    pub read_only: bool,
    /// Live jobs and attempts, classes of waiting units, remembered request tokens.
    pub jobs: u64,
    pub attempts: u64,
    pub classes: u64,
    pub tokens: u64,
    /// Estimated, and what is allowed.
    pub memory_bytes: u64,
    pub memory_max: u64,
}

impl Query for GetStatus {
    type Answer = Status;

    fn answer(self, broker: &Broker) -> Status {
        let state = &broker.state;
        Status {
            journal: state.journal(),
            term: broker.term,
            read_only: broker.recovery.newer_revision.is_some(),
            jobs: state.job_count() as u64,
            attempts: state.attempt_count() as u64,
            classes: state.classes().len() as u64,
            tokens: state.tokens().len() as u64,
            memory_bytes: state.memory_bytes(),
            memory_max: broker.memory_max,
        }
    }
}

/// Asks for a job. `None`: it is not live; the archive may know it.
#[derive(Clone, Debug)]
pub struct GetJob(pub JobRef);

impl Query for GetJob {
    type Answer = Option<Box<JobView>>;

    fn answer(self, broker: &Broker) -> Self::Answer {
        broker.find_job(&self.0).map(Box::new)
    }
}

/// Asks for so many jobs at once, at most a page. Those that are not live are left out.
#[derive(Clone, Debug)]
pub struct GetJobs(pub Vec<JobId>);

impl Query for GetJobs {
    type Answer = Vec<JobView>;

    fn answer(self, broker: &Broker) -> Vec<JobView> {
        let ids = self.0.into_iter().take(PAGE_MAX);
        ids.filter_map(|id| broker.find_job(&JobRef::Id(id))).collect()
    }
}

/// Asks for live jobs with ids below `before`, newest first.
#[derive(Clone, Debug)]
pub struct ListJobs {
    pub filter: JobFilter,
    pub before: JobId,
    pub limit: usize,
}

/// Jobs, and the id below which the next page begins, if there is one.
#[derive(Clone, Debug)]
pub struct JobPage {
    pub jobs: Vec<JobView>,
    pub next: Option<JobId>,
}

impl Query for ListJobs {
    type Answer = JobPage;

    fn answer(self, broker: &Broker) -> JobPage {
        let filter = LiveFilter::new(&broker.state, &self.filter);
        let (mut jobs, mut last) = (Vec::new(), None);
        for job in broker.state.jobs_before(self.before) {
            if jobs.len() >= self.limit || filter.looked_at() >= LOOKED_AT_MAX {
                return JobPage { jobs, next: last };
            }
            last = Some(job.id);
            if filter.matches(job) {
                jobs.extend(broker.state.job_view(job.id));
            }
        }
        JobPage { jobs, next: None }
    }
}

/// Asks for live attempts of a job.
#[derive(Clone, Copy, Debug)]
pub struct ListAttempts {
    pub job: JobId,
    /// Only those of units after this one.
    pub after: Option<u32>,
    pub limit: usize,
}

impl Query for ListAttempts {
    type Answer = Vec<AttemptView>;

    fn answer(self, broker: &Broker) -> Vec<AttemptView> {
        let attempts = broker.state.attempts_of(self.job);
        let attempts = attempts.filter(|attempt| self.after.is_none_or(|after| attempt.unit.unit > after));
        attempts.take(self.limit).map(|attempt| broker.state.attempt_view(attempt)).collect()
    }
}

/// Asks for units of a job, from a unit on, that ended for good otherwise than by success. `None` if the job is not
/// live.
#[derive(Clone, Copy, Debug)]
pub struct ListFailedUnits {
    pub job: JobId,
    pub from: u32,
    pub limit: usize,
}

impl Query for ListFailedUnits {
    type Answer = Option<Vec<u32>>;

    fn answer(self, broker: &Broker) -> Option<Vec<u32>> {
        let ended = || broker.ended.get(&self.job).map(|ended| &ended.job);
        let job = broker.state.job(self.job).or_else(ended)?;
        Some(failed_units_from(&job.groups, self.from, self.limit))
    }
}

/// Asks where a job's units stand, from a unit on. `None` if the job is not live.
#[derive(Clone, Copy, Debug)]
pub struct ListUnits {
    pub job: JobId,
    pub from: u32,
    pub limit: usize,
}

impl Query for ListUnits {
    type Answer = Option<Vec<Units>>;

    fn answer(self, broker: &Broker) -> Option<Vec<Units>> {
        let job = broker.state.job(self.job)?;
        let total = broker.state.spec(job.spec)?.spec.unit_count();
        Some(unit_ranges(&job.groups, total, true, self.from, self.limit))
    }
}

/// Asks why a job waits. `None` if it is not live.
#[derive(Clone, Debug)]
pub struct GetWhy(pub JobRef);

impl Query for GetWhy {
    type Answer = Option<Box<JobWhy>>;

    fn answer(self, broker: &Broker) -> Self::Answer {
        broker.find_job(&self.0).and_then(|job| broker.why(job)).map(Box::new)
    }
}

/// Asks for a pool by name.
#[derive(Clone, Debug)]
pub struct GetPool(pub String);

impl Query for GetPool {
    type Answer = Option<Box<PoolView>>;

    fn answer(self, broker: &Broker) -> Self::Answer {
        broker.state.pool_named(&self.0).map(|pool| Box::new(broker.pool_view(pool)))
    }
}

/// Asks for a pool and its free capacity by block.
#[derive(Clone, Debug)]
pub struct GetPoolInFull(pub String);

impl Query for GetPoolInFull {
    type Answer = Option<Box<(PoolView, Vec<FreeBlock>)>>;

    fn answer(self, broker: &Broker) -> Self::Answer {
        let pool = broker.state.pool_named(&self.0)?;
        Some(Box::new((broker.pool_view(pool), capacity::free_blocks(pool))))
    }
}

/// Asks for what a plan to defragment a pool is made from, but for what runs there: the plan itself would take too
/// long for a step.
#[derive(Clone, Debug)]
pub struct GetInventory(pub String);

impl Query for GetInventory {
    type Answer = Option<Box<Inventory>>;

    fn answer(self, broker: &Broker) -> Self::Answer {
        let pool = broker.state.pool_named(&self.0)?;
        Some(Box::new(broker.scheduler.inventory(&broker.state, pool)))
    }
}

/// Asks for a page of what runs in a pool and may be moved. `None` if there is no such pool.
#[derive(Clone, Debug)]
pub struct ListMovable {
    pub pool: String,
    pub movable: Movable,
    pub page: Page,
}

impl Query for ListMovable {
    type Answer = Option<Tasks>;

    fn answer(self, broker: &Broker) -> Option<Tasks> {
        let pool = broker.state.pool_named(&self.pool)?;
        Some(defrag::movable_tasks(&broker.state, pool, &self.movable, self.page, broker.now))
    }
}

/// Asks for all pools.
#[derive(Clone, Copy, Debug)]
pub struct ListPools;

impl Query for ListPools {
    type Answer = Vec<PoolView>;

    fn answer(self, broker: &Broker) -> Vec<PoolView> {
        broker.state.pools().map(|pool| broker.pool_view(pool)).collect()
    }
}

/// Asks for nodes of a pool with ids above `after`.
#[derive(Clone, Debug)]
pub struct ListNodes {
    pub pool: String,
    pub after: NodeId,
    pub limit: usize,
}

/// Nodes, and the id after which the next page begins, if there is one.
#[derive(Clone, Debug, Default)]
pub struct NodePage {
    pub nodes: Vec<NodeView>,
    pub next: Option<NodeId>,
}

impl Query for ListNodes {
    type Answer = NodePage;

    fn answer(self, broker: &Broker) -> NodePage {
        let Some(pool) = broker.state.pool_named(&self.pool) else { return NodePage::default() };
        let waiting = capacity::Waiting::for_pool(&broker.state, pool);
        let view = |(id, node): (&NodeId, &Node)| NodeView::new(&waiting, pool, *id, node);
        let range = (Bound::Excluded(self.after), Bound::Unbounded);
        let mut nodes: Vec<NodeView> = pool.nodes.range(range).take(self.limit + 1).map(view).collect();
        let more = nodes.len() > self.limit;
        nodes.truncate(self.limit);
        NodePage { next: nodes.last().map(|node| node.id).filter(|_| more), nodes }
    }
}

/// Asks for the node of this name in a pool.
#[derive(Clone, Debug)]
pub struct GetNode {
    pub pool: String,
    pub name: String,
}

impl Query for GetNode {
    type Answer = Option<Box<NodeView>>;

    fn answer(self, broker: &Broker) -> Self::Answer {
        let pool = broker.state.pool_named(&self.pool)?;
        let id = pool.node_names.get(&self.name)?;
        let waiting = capacity::Waiting::for_pool(&broker.state, pool);
        Some(Box::new(NodeView::new(&waiting, pool, *id, pool.nodes.get(id)?)))
    }
}

/// Asks for the name of a node.
#[derive(Clone, Copy, Debug)]
pub struct GetNodeName(pub NodeRef);

impl Query for GetNodeName {
    type Answer = Option<String>;

    fn answer(self, broker: &Broker) -> Option<String> {
        broker.state.node(self.0).map(|node| node.spec.name.clone())
    }
}

/// Asks for all queues.
#[derive(Clone, Copy, Debug)]
pub struct ListQueues;

impl Query for ListQueues {
    type Answer = Vec<QueueView>;

    fn answer(self, broker: &Broker) -> Vec<QueueView> {
        broker.state.queues().map(|queue| broker.queue_view(queue)).collect()
    }
}

/// Asks for a queue by name.
#[derive(Clone, Debug)]
pub struct GetQueue(pub String);

impl Query for GetQueue {
    type Answer = Option<QueueView>;

    fn answer(self, broker: &Broker) -> Option<QueueView> {
        broker.state.queue_named(&self.0).map(|queue| broker.queue_view(queue))
    }
}

/// Asks in which queues a live job has this name: the first three.
#[derive(Clone, Debug)]
pub struct QueuesOfName(pub String);

impl Query for QueuesOfName {
    type Answer = Vec<String>;

    fn answer(self, broker: &Broker) -> Vec<String> {
        let queues = broker.state.queues().take(QUEUES_SEARCHED_MAX);
        let found = queues.filter(|queue| broker.state.job_named(queue.id, &self.0).is_some());
        found.take(3).map(|queue| queue.spec.name.clone()).collect()
    }
}

/// Queues that are searched for a job's name: some hundred microseconds.
const QUEUES_SEARCHED_MAX: usize = 2_048;

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

impl NodeView {
    fn new(waiting: &capacity::Waiting, pool: &Pool, id: NodeId, node: &Node) -> Self {
        Self { id, node: node.clone(), stranded_millis: waiting.stranded_millis(pool, node) }
    }
}

/// A queue as readers see it.
#[derive(Clone, Debug)]
pub struct QueueView {
    pub queue: Queue,
    pub parent: String,
}

/// What one page of a list looks at, live jobs and the places where they are: a filter that matches few makes short pages, not
/// long steps.
const LOOKED_AT_MAX: usize = 8 * PAGE_MAX;
/// Waiting unit groups that a position counts one by one: a millisecond or so.
const POSITION_MAX: usize = 10_000;

impl Broker {
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
        if job.held {
            reasons.push(JobReason::Held);
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
