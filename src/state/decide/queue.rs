//! Decides on the journal's beginning and on queues.

use super::{Decision, check_revision};
use crate::model::device;
use crate::model::high_water::JournalKey;
use crate::model::id::{JournalId, QueueId, Revision, Term};
use crate::model::limit::QUEUES_MAX;
use crate::model::queue::{DEFAULT_QUEUE, QueueSpec, default_settings};
use crate::model::region;
use crate::model::validate::{self, Violations, quote};
use crate::state::State;
use crate::state::event::{Event, Settings};
use crate::state::rejection::{InUse, Rejection};

impl State {
    pub(super) fn decide_term(
        &self,
        journal: JournalId,
        key: JournalKey,
        writer_session: u64,
        term: Term,
    ) -> Result<Decision, Rejection> {
        if term <= self.identity.term {
            return Err(Rejection::StaleTerm(term.0));
        }
        let mut events = Vec::new();
        if self.revision == Revision(0) {
            let spec = default_settings(DEFAULT_QUEUE);
            events = vec![
                Event::JournalCreated { journal },
                Event::WriterSessionStarted { writer_session },
                Event::SettingsChanged { settings: Settings::default() },
                Event::RegionsAdded { regions: region::built_in().collect() },
                Event::DeviceModelsAdded { models: device::built_in().collect() },
                Event::QueueCreated { queue: QueueId(1), spec },
            ];
        } else {
            // First of all: the turn before ends with the event before this one.
            events.push(Event::WriterSessionStarted { writer_session });
            if self.settings != Settings::default() {
                events.push(Event::SettingsChanged { settings: Settings::default() });
            }
            // A newer Weir may know more regions and models than the one that made the journal.
            let known = |region: &region::Region| self.catalogue.regions.contains_key(&region.code);
            let regions: Vec<_> = region::built_in().filter(|region| !known(region)).collect();
            if !regions.is_empty() {
                events.push(Event::RegionsAdded { regions });
            }
            let known = |model: &device::DeviceModel| self.model_named(&model.name).is_some();
            let models: Vec<_> = device::built_in().filter(|model| !known(model)).collect();
            if !models.is_empty() {
                events.push(Event::DeviceModelsAdded { models });
            }
        }
        if self.identity.key.is_none() {
            events.push(Event::KeyDrawn { key });
        }
        events.push(Event::TermStarted { term });
        Ok(Decision::done(events))
    }

    pub(super) fn decide_create_queue(&self, spec: &QueueSpec) -> Result<Decision, Rejection> {
        self.check_queue(spec)?;
        if self.queue_named(&spec.name).is_some() {
            return Err(Rejection::AlreadyExists { kind: "queue", name: spec.name.clone() });
        }
        if self.queues.len() >= QUEUES_MAX {
            return Err(Rejection::LimitReached { what: "queues", max: QUEUES_MAX });
        }
        if let Some((parent, _)) = spec.name.rsplit_once('/')
            && self.queue_named(parent).is_none()
        {
            let description = format!("its parent queue {} does not exist", quote(parent));
            return Err(Rejection::invalid("queue.name", description));
        }
        let queue = QueueId(self.next.queue);
        Ok(Decision::done(vec![Event::QueueCreated { queue, spec: spec.clone() }]))
    }

    pub(super) fn decide_update_queue(
        &self,
        spec: &QueueSpec,
        based_on: Revision,
    ) -> Result<Decision, Rejection> {
        self.check_queue(spec)?;
        let Some(queue) = self.queue_named(&spec.name) else {
            return Err(Rejection::NotFound { kind: "queue", name: spec.name.clone() });
        };
        check_revision("queue", &spec.name, queue.revision, based_on)?;
        if queue.spec == *spec {
            return Ok(Decision::done(Vec::new()));
        }
        Ok(Decision::done(vec![Event::QueueUpdated { queue: queue.id, spec: spec.clone() }]))
    }

    /// Only a queue that nothing refers to: its jobs keep their place, and its children their parent.
    pub(super) fn decide_delete_queue(&self, name: &str, based_on: Revision) -> Result<Decision, Rejection> {
        let Some(queue) = self.queue_named(name) else {
            return Err(Rejection::NotFound { kind: "queue", name: name.to_owned() });
        };
        check_revision("queue", name, queue.revision, based_on)?;
        if name == DEFAULT_QUEUE {
            return Err(Rejection::invalid("name", "the default queue can't be deleted"));
        }
        let in_use = |by| Err(Rejection::InUse { kind: "queue", name: name.to_owned(), by });
        if let Some(child) = self.queues.values().find(|other| other.parent == Some(queue.id)) {
            return in_use(InUse::Child { name: child.spec.name.clone() });
        }
        if queue.jobs > 0 {
            return in_use(InUse::Jobs { count: queue.jobs });
        }
        let reservations = self.market.reservations.values().filter(|entry| entry.queue == queue.id);
        let ended = reservations.map(|entry| Event::ReservationEnded { reservation: entry.id });
        Ok(Decision::done(
            ended.chain([Event::QueueDeleted { queue: queue.id, name: name.into() }]).collect(),
        ))
    }

    fn check_queue(&self, spec: &QueueSpec) -> Result<(), Rejection> {
        let mut out = Violations::default();
        validate::queue_spec("queue", spec, &mut out);
        out.finish().map_err(Rejection::Invalid)
    }
}
