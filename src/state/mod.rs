//! The broker's state: a fold over the journal's events.
//!
//! `decide` turns a command into events or a rejection and changes nothing; `apply` folds events
//! and can't fail. `record` is the only translator to the disk's form. Nothing here does I/O.

pub mod apply;
pub mod class;
pub mod command;
pub mod decide;
pub mod event;
mod index;
pub mod invariant;
pub mod job;
pub mod job_filter;
pub mod live;
pub mod pool;
pub mod record;
pub mod rejection;
pub mod snapshot;
pub mod token;
pub mod units;
pub mod view;
pub mod workload;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use class::{Classes, Demands};
use event::Settings;
use index::Indexes;
use index::names::job_name_hash;
use job::{Job, SpecEntry};
use live::Attempt;
use pool::{Node, Pool};
use snapshot::{Key, Snapshotter};
use token::Tokens;
use workload::Workload;

use crate::model::demand::{Demand, WorkloadProfile};
use crate::model::device::{DeviceModel, DeviceModelId};
use crate::model::high_water::JournalKey;
use crate::model::id::{
    AttemptId, JobId, JournalId, NodeRef, PoolId, QueueId, ReservationId, Revision, SpecId, Term, UnitId,
};
use crate::model::limit::TOKEN_RETENTION_MS;
use crate::model::link::Link;
use crate::model::price::Price;
use crate::model::queue::QueueSpec;
use crate::model::reason::PoolReason;
use crate::model::region::{Region, RegionCode};
use crate::model::reservation::Reservation;
use crate::model::resource::{Resources, TASK_SIZES};
use crate::model::shape::{ClassKey, Shape, ShapeDigest, ShapeId};
use crate::model::spec::TaskRequest;
use crate::model::time::Timestamp;

/// All that the broker knows and that is alive.
#[derive(Debug, Default)]
pub struct State {
    identity: Identity,
    revision: Revision,
    now: Timestamp,
    settings: Settings,
    catalogue: Catalogue,
    /// What tasks are expected to arrive; empty at first.
    profile: Arc<WorkloadProfile>,
    workload: Workload,
    queues: BTreeMap<QueueId, Queue>,
    specs: BTreeMap<SpecId, SpecEntry>,
    jobs: BTreeMap<JobId, Job>,
    attempts: BTreeMap<UnitId, Attempt>,
    pools: BTreeMap<PoolId, Pool>,
    tokens: Tokens,
    /// How long attempts of a shape run, in microseconds: a moving average; see `index::claims`.
    run_times: BTreeMap<ShapeDigest, u32>,
    market: Market,
    next: NextIds,
    index: Indexes,
    snapshotter: Option<Snapshotter>,
}

/// A queue with what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    pub id: QueueId,
    pub parent: Option<QueueId>,
    pub spec: QueueSpec,
    pub revision: Revision,
    /// Held by its attempts and those of the queues below. Derived.
    pub usage: Resources,
    /// Live jobs of this queue itself. Derived.
    pub jobs: u64,
}

/// Which journal this is, and who writes it.
#[derive(Clone, Debug, Default)]
struct Identity {
    journal: JournalId,
    key: Option<JournalKey>,
    /// The latest writer sessions with the revisions that began them, oldest first.
    writer_sessions: VecDeque<(u64, Revision)>,
    term: Term,
}

/// What jobs and pools may refer to.
#[derive(Clone, Debug, Default)]
struct Catalogue {
    regions: BTreeMap<RegionCode, Region>,
    /// In the order of their numbers.
    models: Vec<DeviceModel>,
}

/// Terms under which capacity is offered.
#[derive(Clone, Debug, Default, PartialEq)]
struct Market {
    prices: BTreeMap<(PoolId, Timestamp), Price>,
    links: BTreeMap<(RegionCode, RegionCode), Link>,
    reservations: BTreeMap<ReservationId, Reservation>,
}

/// The numbers that new records get.
#[derive(Clone, Copy, Debug, Default)]
struct NextIds {
    job: u64,
    pool: u32,
    queue: u32,
    reservation: u64,
}

impl State {
    /// The journal's identity.
    pub fn journal(&self) -> JournalId {
        self.identity.journal
    }

    /// The key of the journal's high-water marks. A writer draws one for a journal that has none.
    pub fn key(&self) -> Option<&JournalKey> {
        self.identity.key.as_ref()
    }

    /// Where this writer session ended in this journal: `None` if the journal does not contain it (any more),
    /// `Some(None)` while it lasts.
    pub fn writer_session_end(&self, writer_session: u64) -> Option<Option<Revision>> {
        let at = self.identity.writer_sessions.iter().position(|(other, _)| *other == writer_session)?;
        Some(self.identity.writer_sessions.get(at + 1).map(|(_, begun)| *begun))
    }

    /// The current writer's term.
    pub fn term(&self) -> Term {
        self.identity.term
    }

    /// The last applied event.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The time of the last applied event.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Times that broker and agents go by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A live job.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// Live jobs from `from` on, in the order they were submitted.
    pub fn jobs_from(&self, from: JobId) -> impl Iterator<Item = &Job> {
        self.jobs.range(from..).map(|(_, job)| job)
    }

    /// Numbers of live jobs below `before`, newest first.
    pub fn jobs_before(&self, before: JobId) -> impl Iterator<Item = &Job> {
        self.jobs.range(..before).rev().map(|(_, job)| job)
    }

    /// How many jobs are live.
    pub fn job_count(&self) -> usize {
        self.jobs.len()
    }

    /// The number that the next job will get.
    pub fn next_job(&self) -> JobId {
        JobId(self.next.job)
    }

    /// The live job of this name in this queue.
    pub fn job_named(&self, queue: QueueId, name: &str) -> Option<&Job> {
        let hash = job_name_hash(queue, name);
        let range = (hash, JobId(0))..=(hash, JobId(u64::MAX));
        let mut jobs = self.index.names.jobs.range(range).filter_map(|(_, id)| self.jobs.get(id));
        jobs.find(|job| job.queue == queue && *job.name == *name)
    }

    /// A spec in use.
    pub fn spec(&self, id: SpecId) -> Option<&SpecEntry> {
        self.specs.get(&id)
    }

    /// The live attempt of a unit.
    pub fn attempt(&self, unit: UnitId) -> Option<&Attempt> {
        self.attempts.get(&unit)
    }

    /// Surely no attempt of this number was ever ordered.
    pub fn never_ordered(&self, attempt: AttemptId) -> bool {
        let unit = attempt.unit_id();
        if let Some(live) = self.attempts.get(&unit) {
            return attempt.number > live.number;
        }
        let Some(job) = self.jobs.get(&attempt.job) else { return false };
        let units = self.specs.get(&job.spec).map_or(0, |entry| entry.spec.unit_count());
        let known = || job.groups[self.unit_group(unit)].attempts_known(attempt.unit);
        attempt.unit >= units || known().is_some_and(|attempts| attempt.number > attempts)
    }

    /// The live attempts of a job.
    pub fn attempts_of(&self, job: JobId) -> impl Iterator<Item = &Attempt> {
        let range = UnitId { job, unit: 0 }..=UnitId { job, unit: u32::MAX };
        self.attempts.range(range).map(|(_, attempt)| attempt)
    }

    /// How many attempts are live.
    pub fn attempt_count(&self) -> usize {
        self.attempts.len()
    }

    /// All live attempts.
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.values()
    }

    /// A pool by number.
    pub fn pool(&self, id: PoolId) -> Option<&Pool> {
        self.pools.get(&id)
    }

    /// [`Pool::exclusion`] of a pool by number; `None` also if there is no such pool.
    pub fn exclusion(&self, id: PoolId, shape: &Shape) -> Option<PoolReason> {
        self.pool(id)?.exclusion(shape)
    }

    /// A pool by name.
    pub fn pool_named(&self, name: &str) -> Option<&Pool> {
        self.pools.get(self.index.names.pools.get(name)?)
    }

    /// All pools, in the order they were registered.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values()
    }

    /// How many pools there are.
    pub fn pool_count(&self) -> usize {
        self.pools.len()
    }

    /// A node.
    pub fn node(&self, at: NodeRef) -> Option<&Node> {
        self.pools.get(&at.pool)?.nodes.get(&at.node)
    }

    /// A queue by number.
    pub fn queue(&self, id: QueueId) -> Option<&Queue> {
        self.queues.get(&id)
    }

    /// A queue by its path.
    pub fn queue_named(&self, name: &str) -> Option<&Queue> {
        self.queues.get(self.index.names.queues.get(name)?)
    }

    /// All queues.
    pub fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.queues.values()
    }

    /// A queue and those above it, from the queue itself up.
    pub fn queue_path(&self, id: QueueId) -> impl Iterator<Item = &Queue> {
        std::iter::successors(self.queues.get(&id), |queue| self.queues.get(&queue.parent?))
    }

    /// The demands of the tasks of a shape in use.
    pub fn demands(&self, shape: ShapeId) -> Option<&Demands> {
        self.index.shapes.demands(shape)
    }

    /// The demand of a task of any shape.
    pub fn demand_of(&self, request: &TaskRequest, shape: &Shape) -> Demand {
        class::demand_of(&self.index.names.models, request, shape)
    }

    /// The number of a device model.
    pub fn model_named(&self, name: &str) -> Option<DeviceModelId> {
        self.index.names.models.get(name).copied()
    }

    /// Known device models, in the order of their numbers.
    pub fn models(&self) -> &[DeviceModel] {
        &self.catalogue.models
    }

    /// The region catalogue.
    pub fn regions(&self) -> &BTreeMap<RegionCode, Region> {
        &self.catalogue.regions
    }

    /// Classes of waiting units.
    pub fn classes(&self) -> &Classes {
        &self.index.classes
    }

    /// A shape in use.
    pub fn shape(&self, id: ShapeId) -> Option<&Arc<Shape>> {
        self.index.shapes.get(id)
    }

    /// A pool's prices, oldest first.
    pub fn prices_of(&self, pool: PoolId) -> impl DoubleEndedIterator<Item = &Price> + Clone {
        self.market.prices.range((pool, Timestamp(0))..=(pool, Timestamp::NEVER)).map(|(_, price)| price)
    }

    /// The link between two regions, in either order.
    pub fn link(&self, a: RegionCode, b: RegionCode) -> Option<&Link> {
        self.market.links.get(&(a.min(b), a.max(b)))
    }

    /// A reservation that has not ended.
    pub fn reservation(&self, id: ReservationId) -> Option<&Reservation> {
        self.market.reservations.get(&id)
    }

    /// Device thousandths that tasks hold, by the tasks' size.
    pub fn devices_in_use(&self) -> &[u64; TASK_SIZES] {
        &self.index.devices_in_use
    }

    /// Request tokens that are remembered.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The class of a job's unit group, and whether it has units that wait to be placed.
    pub fn class_of(&self, job: &Job, group: usize) -> Option<ClassKey> {
        let entry = self.specs.get(&job.spec)?;
        let shape = *entry.shapes.get(group)?;
        Some(ClassKey { queue: job.queue, priority: entry.spec.priority, shape })
    }

    /// Notes that `key` is about to change, for a snapshot that is being written.
    fn touch(&mut self, key: Key) {
        if let Some(mut snapshotter) = self.snapshotter.take() {
            snapshotter.touch(self, key);
            self.snapshotter = Some(snapshotter);
        }
    }

    fn job_mut(&mut self, id: JobId) -> Option<&mut Job> {
        self.touch(Key::Job(id));
        self.jobs.get_mut(&id)
    }

    fn attempt_mut(&mut self, unit: UnitId) -> Option<&mut Attempt> {
        self.touch(Key::Attempt(unit));
        self.attempts.get_mut(&unit)
    }

    fn pool_mut(&mut self, id: PoolId) -> Option<&mut Pool> {
        self.touch(Key::Pool(id));
        self.pools.get_mut(&id)
    }

    /// The unit group that a unit of a live job belongs to; 0 if the job is not live.
    pub fn group_of(&self, unit: UnitId) -> usize {
        self.unit_group(unit)
    }

    /// What tasks are expected to arrive; empty until enough have.
    pub fn profile(&self) -> &WorkloadProfile {
        &self.profile
    }

    /// The tasks that have arrived and ended.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// When the oldest request token may be forgotten.
    pub fn next_token(&self) -> Option<Timestamp> {
        self.tokens.oldest().map(|(at, _)| at.plus_ms(TOKEN_RETENTION_MS))
    }
}
