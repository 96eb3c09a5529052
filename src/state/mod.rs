//! The broker's state: a fold over the journal's events.
//!
//! `decide` turns a command into events or a rejection and changes nothing; `apply` folds events
//! and can't fail. `record` is the only translator to the disk's form. Nothing here does I/O.

pub mod apply;
pub mod claim;
pub mod class;
pub mod command;
pub mod decide;
pub mod event;
pub mod invariant;
pub mod job;
pub mod live;
pub mod pool;
pub mod record;
pub mod rejection;
pub mod snapshot;
pub mod token;
pub mod view;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use class::{Classes, ShapeDigest, Shapes};
use event::Settings;
use job::{Job, SpecEntry};
use live::Attempt;
use pool::{Node, Pool};
use snapshot::{Key, Snapshotter};
use token::Tokens;

use crate::model::demand::WorkloadProfile;
use crate::model::device::{DeviceModel, DeviceModelId};
use crate::model::high_water::JournalKey;
use crate::model::id::{
    AttemptId, JobId, JournalId, NodeRef, PoolId, QueueId, ReservationId, Revision, SpecId, Term, UnitId,
};
use crate::model::limit::TOKEN_RETENTION_MS;
use crate::model::link::Link;
use crate::model::price::Price;
use crate::model::queue::QueueSpec;
use crate::model::region::{Region, RegionCode};
use crate::model::reservation::Reservation;
use crate::model::resource::{Resources, TASK_SIZES};
use crate::model::shape::{ClassKey, Shape, ShapeId};
use crate::model::time::Timestamp;

/// All that the broker knows and that is alive.
#[derive(Debug, Default)]
pub struct State {
    journal: JournalId,
    key: Option<JournalKey>,
    /// The latest turns with the revisions that began them.
    writer_sessions: VecDeque<(u64, Revision)>,
    /// The latest, empty at first.
    profile: Arc<WorkloadProfile>,
    term: Term,
    revision: Revision,
    now: Timestamp,
    settings: Settings,
    regions: BTreeMap<RegionCode, Region>,
    models: Vec<DeviceModel>,
    queues: BTreeMap<QueueId, Queue>,
    specs: BTreeMap<SpecId, SpecEntry>,
    jobs: BTreeMap<JobId, Job>,
    attempts: BTreeMap<UnitId, Attempt>,
    pools: BTreeMap<PoolId, Pool>,
    tokens: Tokens,
    /// How long attempts of a shape run, in microseconds, newer ones counting more; see `line`.
    run_times: BTreeMap<ShapeDigest, u32>,
    prices: BTreeMap<(PoolId, Timestamp), Price>,
    links: BTreeMap<(RegionCode, RegionCode), Link>,
    reservations: BTreeMap<ReservationId, Reservation>,
    next_reservation: u64,
    next_job: u64,
    next_pool: u32,
    next_queue: u32,
    derived: Derived,
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

/// What can be rebuilt from the rest.
#[derive(Clone, Debug, Default)]
struct Derived {
    shapes: Shapes,
    classes: Classes,
    queue_names: BTreeMap<String, QueueId>,
    pool_names: BTreeMap<String, PoolId>,
    model_names: BTreeMap<String, DeviceModelId>,
    /// Live jobs by the hash of queue and name: half the memory of the names themselves.
    job_names: BTreeSet<(u64, JobId)>,
    dependents: BTreeMap<JobId, Vec<JobId>>,
    devices_in_use: [u64; TASK_SIZES],
    timers: BTreeSet<(Timestamp, Timer)>,
    /// Live attempts that have not been told to stop, by job and by pool.
    stoppable: BTreeSet<UnitId>,
    stoppable_in: BTreeSet<(PoolId, UnitId)>,
    /// Live attempts that go elsewhere when their pool is lost.
    requeueable: BTreeSet<(PoolId, UnitId)>,
    /// Closing jobs that have stoppable attempts.
    closing: BTreeSet<JobId>,
    /// Evicting pools that have stoppable attempts.
    evicting: BTreeSet<PoolId>,
    /// Lost pools that have attempts to requeue.
    lost: BTreeSet<PoolId>,
    dependency_failed_jobs: BTreeSet<JobId>,
    /// Successors in a slot, by the attempt whose place they take.
    successors: BTreeMap<UnitId, UnitId>,
    /// Ends of lines by class and length, and where each one stands there.
    tails: BTreeSet<(ClassKey, u8, UnitId)>,
    tail_of: BTreeMap<UnitId, (ClassKey, u8)>,
}

/// What falls due at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Release(UnitId),
    EndRun(UnitId),
    EndStart(UnitId),
    Drain(PoolId),
    ReleaseNode(NodeRef),
    EndReservation(ReservationId),
}

impl State {
    /// The journal's identity.
    pub fn journal(&self) -> JournalId {
        self.journal
    }

    /// What the journal's stamps are made with. Every writer draws one for a journal without.
    pub fn key(&self) -> Option<&JournalKey> {
        self.key.as_ref()
    }

    /// How far the turn of this number came in this journal, if it is one of the latest: to `None`
    /// while it lasts.
    pub fn writer_session_end(&self, writer_session: u64) -> Option<Option<Revision>> {
        let at = self.writer_sessions.iter().position(|(other, _)| *other == writer_session)?;
        Some(self.writer_sessions.get(at + 1).map(|(_, begun)| *begun))
    }

    /// The current writer's turn.
    pub fn term(&self) -> Term {
        self.term
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
    pub fn job_ids_before(&self, before: JobId) -> impl Iterator<Item = JobId> {
        self.jobs.range(..before).rev().map(|(id, _)| *id)
    }

    /// How many jobs are live.
    pub fn job_count(&self) -> usize {
        self.jobs.len()
    }

    /// The number that the next job will get.
    pub fn next_job(&self) -> JobId {
        JobId(self.next_job)
    }

    /// The live job of this name in this queue.
    pub fn job_named(&self, queue: QueueId, name: &str) -> Option<&Job> {
        let hash = name_hash(queue, name);
        let range = (hash, JobId(0))..=(hash, JobId(u64::MAX));
        let mut jobs = self.derived.job_names.range(range).filter_map(|(_, id)| self.jobs.get(id));
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

    /// All live attempts.
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.values()
    }

    /// A pool by number.
    pub fn pool(&self, id: PoolId) -> Option<&Pool> {
        self.pools.get(&id)
    }

    /// A pool by name.
    pub fn pool_named(&self, name: &str) -> Option<&Pool> {
        self.pools.get(self.derived.pool_names.get(name)?)
    }

    /// All pools, in the order they were registered.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values()
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
        self.queues.get(self.derived.queue_names.get(name)?)
    }

    /// All queues.
    pub fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.queues.values()
    }

    /// A queue and those above it, from the queue itself up.
    pub fn queue_path(&self, id: QueueId) -> impl Iterator<Item = &Queue> {
        std::iter::successors(self.queues.get(&id), |queue| self.queues.get(&queue.parent?))
    }

    /// The number of a device model.
    pub fn model_named(&self, name: &str) -> Option<DeviceModelId> {
        self.derived.model_names.get(name).copied()
    }

    /// Known device models, in the order of their numbers.
    pub fn models(&self) -> &[DeviceModel] {
        &self.models
    }

    /// The region catalogue.
    pub fn regions(&self) -> &BTreeMap<RegionCode, Region> {
        &self.regions
    }

    /// Classes of waiting units.
    pub fn classes(&self) -> &Classes {
        &self.derived.classes
    }

    /// A shape in use.
    pub fn shape(&self, id: ShapeId) -> Option<&Arc<Shape>> {
        self.derived.shapes.get(id)
    }

    /// The attempt that takes over this unit's place.
    pub fn successor_of(&self, unit: UnitId) -> Option<UnitId> {
        self.derived.successors.get(&unit).copied()
    }

    /// A pool's prices, oldest first.
    pub fn prices_of(&self, pool: PoolId) -> impl DoubleEndedIterator<Item = &Price> + Clone {
        self.prices.range((pool, Timestamp(0))..=(pool, Timestamp::NEVER)).map(|(_, price)| price)
    }

    /// The link between two regions, in either order.
    pub fn link(&self, a: RegionCode, b: RegionCode) -> Option<&Link> {
        self.links.get(&(a.min(b), a.max(b)))
    }

    /// A reservation that has not ended.
    pub fn reservation(&self, id: ReservationId) -> Option<&Reservation> {
        self.reservations.get(&id)
    }

    /// Device thousandths that tasks hold, by the tasks' size.
    pub fn devices_in_use(&self) -> &[u64; TASK_SIZES] {
        &self.derived.devices_in_use
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

    /// Everything derived is built anew; the indexes kept so far must have been equal.
    fn rebuild(&mut self) {
        self.derived = Derived::default();
        self.tokens.rebuild();
        for (index, model) in self.models.iter().enumerate() {
            self.derived.model_names.insert(model.name.clone(), DeviceModelId(index as u16));
        }
        for queue in self.queues.values_mut() {
            (queue.usage, queue.jobs) = (Resources::default(), 0);
            self.derived.queue_names.insert(queue.spec.name.clone(), queue.id);
        }
        for pool in self.pools.values_mut() {
            self.derived.pool_names.insert(pool.spec.name.clone(), pool.id);
            pool.attempts.clear();
            pool.node_names = pool.nodes.values().map(|node| (node.spec.name.clone(), node.id)).collect();
            pool.committed = Resources::default();
            for node in pool.nodes.values_mut() {
                let models = node.spec.devices.iter();
                let known = |name: &str| self.derived.model_names.get(name).copied().unwrap_or_default();
                node.models = models.map(|device| known(&device.model)).collect();
                node.committed = Resources::default();
                node.committed_devices = vec![0; node.spec.devices.len()];
                node.tasks = 0;
                if let Some(until) = node.failure_tracker.quarantined_until {
                    let at = NodeRef { pool: pool.id, node: node.id };
                    self.derived.timers.insert((until, Timer::ReleaseNode(at)));
                }
            }
            apply::refresh_pool_total(pool);
            if let Some(deadline) = pool.drain.and_then(|drain| drain.deadline) {
                self.derived.timers.insert((deadline, Timer::Drain(pool.id)));
            }
        }
        for entry in self.specs.values_mut() {
            let groups = 0..entry.spec.unit_group_count();
            let shape = |group| self.derived.shapes.acquire(Shape::of(&entry.spec, group));
            entry.shapes = groups.map(shape).collect();
            entry.jobs = 0;
        }
        let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in jobs {
            self.index_job(id);
        }
        let units: Vec<UnitId> = self.attempts.keys().copied().collect();
        for unit in units {
            self.index_attempt(unit);
        }
        for reservation in self.reservations.values() {
            self.derived.timers.insert((reservation.until, Timer::EndReservation(reservation.id)));
        }
        let units: Vec<UnitId> = self.attempts.keys().copied().collect();
        for unit in units {
            self.reconcile_claim_end(unit);
        }
        let pools: Vec<PoolId> = self.pools.keys().copied().collect();
        for pool in pools {
            self.reconcile_pool(pool);
        }
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

    /// Calls `visit` for the first timers that are due, until it says to stop.
    fn due_timers(&self, now: Timestamp) -> impl Iterator<Item = Timer> {
        self.derived.timers.iter().take_while(move |(at, _)| *at <= now).map(|(_, timer)| *timer)
    }

    /// Something is due that waits for no timer.
    pub fn has_backlog(&self) -> bool {
        let derived = &self.derived;
        !(derived.closing.is_empty()
            && derived.evicting.is_empty()
            && derived.dependency_failed_jobs.is_empty())
    }

    /// A lost pool has attempts that wait to be requeued.
    pub fn has_lost(&self) -> bool {
        !self.derived.lost.is_empty()
    }

    /// The unit group that a unit of a live job belongs to; 0 if the job is not live.
    pub fn group_of(&self, unit: UnitId) -> usize {
        self.unit_group(unit)
    }

    /// What has been learned of the tasks that come.
    pub fn profile(&self) -> &WorkloadProfile {
        &self.profile
    }

    /// When the next timer falls due.
    pub fn next_timer(&self) -> Option<Timestamp> {
        self.derived.timers.first().map(|(at, _)| *at)
    }

    /// When the oldest request token may be forgotten.
    pub fn next_token(&self) -> Option<Timestamp> {
        self.tokens.oldest().map(|(at, _)| at.plus_ms(TOKEN_RETENTION_MS))
    }
}

/// FNV-1a over queue and name. A collision costs a second look, nothing more.
fn name_hash(queue: QueueId, name: &str) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    queue.0.hash(&mut hasher);
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// The Fowler-Noll-Vo hash, version 1a, 64 bits: the same on every machine and in every run.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
