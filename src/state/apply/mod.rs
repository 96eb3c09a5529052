//! Folds events into the state. Can't fail: `decide` has checked, and what it overlooked asserts
//! here, before the event reaches the disk.

mod attempt;
mod capacity;
mod job;
mod pool;

pub(super) use attempt::RUN_SLACK_MS;

use std::sync::Arc;

use super::event::EndedAttempt;
use super::event::{Event, EventRecord};
use super::job::{Job, JobEnd, SpecEntry};
use super::live::Attempt;
use super::pool::sum_of;
use super::snapshot::Key;
use super::{Queue, State};
use crate::model::change::Change;
use crate::model::device::DeviceModelId;
use crate::model::id::{QueueId, Revision, SpecId};
use crate::model::queue::QueueSpec;
use crate::model::region::RegionCode;
use crate::model::resource::Resources;
use crate::model::shape::Shape;
use crate::model::spec::JobSpec;
use crate::model::time::Timestamp;

/// What applying events altered and what left the hot state.
#[derive(Debug, Default)]
pub struct Applied {
    pub changes: Vec<Change>,
    pub archive: Vec<ArchiveRow>,
}

/// What has ended for good, with all that a reader will want to know.
#[derive(Clone, Debug, PartialEq)]
pub enum ArchiveRow {
    Job(FinishedJob),
    Attempt(FinishedAttempt),
}

/// A job as it was when it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishedJob {
    pub job: Job,
    pub queue: String,
    pub spec: Arc<JobSpec>,
    pub end: JobEnd,
    pub ended_at: Timestamp,
    pub revision: Revision,
}

/// An attempt as it was when it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishedAttempt {
    pub attempt: Attempt,
    pub pool: String,
    pub region: RegionCode,
    /// One name per placement.
    pub nodes: Vec<String>,
    pub ended: EndedAttempt,
    pub revision: Revision,
}

/// Writer sessions that are stored: an agent that was away for more restarts brings a high-water mark that
/// can't be compared any more.
const WRITER_SESSIONS_MAX: usize = 256;

impl State {
    /// Folds one event.
    ///
    /// # Panics
    /// If the event breaks an invariant: the state must not go on from there.
    pub fn apply(&mut self, record: &EventRecord, out: &mut Applied) {
        assert!(
            record.revision == self.revision.next(),
            "event {} follows {}",
            record.revision,
            self.revision
        );
        assert!(record.at >= self.now, "time goes back at revision {}", record.revision);
        self.revision = record.revision;
        self.now = record.at;
        match &record.event {
            Event::JournalCreated { journal } => {
                self.identity.journal = *journal;
                self.next.job = 1;
                self.next.pool = 1;
                self.next.queue = 1;
            }
            Event::TermStarted { term } => {
                assert!(*term > self.identity.term, "term {term} follows {}", self.identity.term);
                self.identity.term = *term;
            }
            Event::KeyDrawn { key } => self.identity.key = Some(*key),
            Event::WriterSessionStarted { writer_session } => {
                if self.identity.writer_sessions.len() >= WRITER_SESSIONS_MAX {
                    self.identity.writer_sessions.pop_front();
                }
                self.identity.writer_sessions.push_back((*writer_session, self.revision));
            }
            Event::WorkloadProfileUpdated { profile } => {
                self.profile = profile.clone();
                self.workload.note_check();
                out.changes.push(Change::WorkloadProfile);
            }
            Event::WorkloadProfileConfirmed => self.workload.note_check(),
            Event::SettingsChanged { settings } => self.settings = *settings,
            Event::RegionsAdded { regions } => {
                self.catalogue.regions.extend(regions.iter().map(|region| (region.code, region.clone())));
            }
            Event::DeviceModelsAdded { models } => {
                for model in models {
                    let id = DeviceModelId(self.catalogue.models.len() as u16);
                    self.index.names.models.insert(model.name.clone(), id);
                    self.catalogue.models.push(model.clone());
                }
            }
            Event::QueueCreated { queue, spec } => self.create_queue(*queue, spec, out),
            Event::QueueUpdated { queue, spec } => self.update_queue(*queue, spec, out),
            Event::QueueDeleted { queue, .. } => self.delete_queue(*queue, out),
            Event::SpecAdded { spec, body } => self.add_spec(*spec, body),
            Event::JobSubmitted { job, name, queue, spec } => {
                self.submit_job(*job, name, *queue, *spec, record, out);
            }
            Event::TokenUsed { key, entry } => {
                self.touch(Key::Token(*key));
                self.tokens.insert(*key, *entry);
            }
            Event::TokensExpired { count } => {
                for _ in 0..*count {
                    if let Some((_, key)) = self.tokens.oldest() {
                        self.touch(Key::Token(key));
                        self.tokens.pop_oldest();
                    }
                }
            }
            Event::JobUpdated { job, spec, held } => self.update_job(*job, *spec, *held, out),
            Event::UnitsCancelled { job, units } => self.cancel_units(*job, units, out),
            Event::JobClosing { job, why, reason } => self.close_job(*job, *why, reason, out),
            Event::JobEnded { job, end } => self.end_job(*job, *end, out),
            Event::RoundPlanned { .. } => {}
            Event::AttemptOrdered { order } => self.order_attempt(order, out),
            Event::AttemptStarting { unit } => self.note_starting(*unit, out),
            Event::AttemptRunning { unit, started_at } => self.note_running(*unit, *started_at, out),
            Event::AttemptStopping { unit, reason } => self.note_stopping(*unit, *reason, out),
            Event::AttemptEnded { unit, ended } => self.end_attempt(*unit, ended, out),
            Event::UnitReleased { unit } => self.release_unit(*unit, out),
            Event::PoolRegistered { pool, spec, instance, key_digest } => {
                self.register_pool(*pool, spec, *instance, *key_digest, out);
            }
            Event::PoolUpdated { pool, spec } => self.update_pool(*pool, spec, out),
            Event::PoolDeleted { pool, .. } => self.delete_pool(*pool, out),
            Event::SessionOpened { pool, epoch } => {
                self.change_pool(*pool, out, |pool| {
                    assert!(*epoch > pool.epoch, "epoch {epoch} follows {}", pool.epoch);
                    pool.epoch = *epoch;
                });
            }
            Event::PoolConnectivityChanged { pool, connectivity } => {
                self.change_connectivity(*pool, *connectivity, out);
            }
            Event::PoolCordoned { pool, cordoned } => {
                self.change_pool(*pool, out, |pool| pool.cordoned = *cordoned);
            }
            Event::PoolDrainChanged { pool, drain } => self.change_drain(*pool, *drain, out),
            Event::NodeReported { pool, node, spec } => self.report_node(*pool, *node, spec, out),
            Event::NodeRemoved { pool, node, .. } => self.remove_node(*pool, *node, out),
            Event::NodeCordoned { pool, node, cordoned } => {
                self.change_node(*pool, *node, out, |node| node.cordoned = *cordoned);
            }
            Event::NodeQuarantined { pool, node, until } => self.quarantine_node(*pool, *node, *until, out),
            Event::NodeReleased { pool, node } => self.release_node(*pool, *node, out),
            Event::PricesSet { price } => self.set_prices(price),
            Event::LinkSet { link } => self.set_link(link),
            Event::ReservationMade { reservation } => self.make_reservation(reservation),
            Event::ReservationEnded { reservation } => self.end_reservation(*reservation),
        }
    }

    fn create_queue(&mut self, id: QueueId, spec: &QueueSpec, out: &mut Applied) {
        let parent =
            spec.name.rsplit_once('/').and_then(|(parent, _)| self.queue_named(parent)).map(|q| q.id);
        let queue = Queue {
            id,
            parent,
            spec: spec.clone(),
            revision: self.revision,
            usage: Resources::default(),
            jobs: 0,
        };
        self.index.names.queues.insert(spec.name.clone(), id);
        self.queues.insert(id, queue);
        self.next.queue = self.next.queue.max(id.0 + 1);
        out.changes.push(Change::Queue(id));
    }

    fn update_queue(&mut self, id: QueueId, spec: &QueueSpec, out: &mut Applied) {
        let revision = self.revision;
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.spec = spec.clone();
            queue.revision = revision;
        }
        out.changes.push(Change::Queue(id));
    }

    fn delete_queue(&mut self, id: QueueId, out: &mut Applied) {
        let Some(queue) = self.queues.remove(&id) else { panic!("queue {id} is deleted but is not there") };
        assert!(queue.jobs == 0, "queue {id} is deleted with {} jobs", queue.jobs);
        self.index.names.queues.remove(&queue.spec.name);
        out.changes.push(Change::Queue(id));
    }

    fn add_spec(&mut self, id: SpecId, body: &Arc<JobSpec>) {
        self.touch(Key::Spec(id));
        let groups = 0..body.unit_group_count();
        let shapes = groups
            .map(|group| self.index.shapes.acquire(Shape::of(body, group), &self.index.names.models))
            .collect();
        self.index.memory.add_spec(body);
        let before = self.specs.insert(id, SpecEntry { spec: body.clone(), shapes, jobs: 0 });
        assert!(before.is_none(), "spec {id} is added twice");
    }

    /// Adds to what a queue and those above it hold.
    pub(super) fn add_usage(&mut self, queue: QueueId, amount: &Resources) {
        let mut at = Some(queue);
        while let Some(queue) = at.and_then(|id| self.queues.get_mut(&id)) {
            queue.usage = sum_of(&queue.usage, amount);
            at = queue.parent;
        }
    }

    /// Takes from what a queue and those above it hold.
    pub(super) fn sub_usage(&mut self, queue: QueueId, amount: &Resources, out: &mut Applied) {
        let mut at = Some(queue);
        while let Some(queue) = at.and_then(|id| self.queues.get_mut(&id)) {
            let (rest, name) = (queue.usage.checked_sub(amount), &queue.spec.name);
            queue.usage = rest.unwrap_or_else(|| panic!("queue {name} releases what it never held"));
            out.changes.push(Change::UsageFell(queue.id));
            at = queue.parent;
        }
    }
}
