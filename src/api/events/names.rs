//! Where the events of a stream happened. Events name pools, nodes and attempts by number, as the journal does.

use std::collections::BTreeMap;

use tonic::Status;

use super::page::read;
use crate::api::convert::Place;
use crate::api::job::Jobs;
use crate::broker::query::{GetNodeName, ListAttempts, ListPools};
use crate::model::id::{AttemptId, JournalId, NodeId, NodeRef, PoolId, Revision, UnitId};
use crate::state::event::{Event, EventRecord};
use crate::state::view::AttemptView;

/// Attempts and nodes that a stream remembers: some megabytes. Others are looked up again.
const REMEMBERED_MAX: usize = 65_536;
/// Attempts of one unit that are read at once: few units have more.
const ATTEMPTS_READ: usize = 8;

/// The names that a stream has met.
pub(super) struct Names {
    journal: JournalId,
    pools: BTreeMap<PoolId, String>,
    nodes: BTreeMap<NodeRef, String>,
    /// The live attempt of a unit, at the event that the stream has reached.
    attempts: BTreeMap<UnitId, Attempt>,
    /// Up to here the journal was searched for the names of what was deleted.
    searched: Revision,
}

#[derive(Clone)]
struct Attempt {
    number: u32,
    pool: String,
}

impl Names {
    pub(super) fn new(journal: JournalId) -> Self {
        let (pools, nodes, attempts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { journal, pools, nodes, attempts, searched: Revision(0) }
    }

    /// Remembers the names that an event has. All events must be passed, also those that the stream does not select.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::PoolRegistered { pool, spec, .. } | Event::PoolUpdated { pool, spec } => {
                self.pools.insert(*pool, spec.name.clone());
            }
            Event::PoolDeleted { pool, name } => {
                self.pools.insert(*pool, name.to_string());
            }
            // The one that is remembered has ended; its end may not have been selected.
            Event::AttemptOrdered { order } => drop(self.attempts.remove(&order.unit)),
            Event::NodeReported { pool, node, spec } => self.note_node(*pool, *node, &spec.name),
            Event::NodeRemoved { pool, node, name } if !name.is_empty() => {
                self.note_node(*pool, *node, name);
            }
            _ => {}
        }
    }

    fn note_node(&mut self, pool: PoolId, node: NodeId, name: &str) {
        if self.nodes.len() >= REMEMBERED_MAX {
            self.nodes.clear();
        }
        self.nodes.insert(NodeRef { pool, node }, name.to_owned());
    }

    fn note_attempt(&mut self, unit: UnitId, attempt: Attempt) {
        if self.attempts.len() >= REMEMBERED_MAX {
            self.attempts.clear();
        }
        self.attempts.insert(unit, attempt);
    }

    /// Where an event happened, which was passed to [`Self::note`] last.
    pub(super) async fn place(&mut self, jobs: &Jobs, record: &EventRecord) -> Result<Place, Status> {
        let place = match &record.event {
            Event::AttemptOrdered { order } => {
                let pool = self.pool(jobs, order.pool, record.revision).await?;
                let attempt = Attempt { number: order.number, pool };
                self.note_attempt(order.unit, attempt.clone());
                self.attempt_place(order.unit, attempt)
            }
            Event::AttemptStarting { unit }
            | Event::AttemptRunning { unit, .. }
            | Event::AttemptStopping { unit, .. } => {
                let attempt = self.attempt(jobs, *unit, record.revision).await?;
                self.attempt_place(*unit, attempt)
            }
            Event::AttemptEnded { unit, .. } => {
                let attempt = self.attempt(jobs, *unit, record.revision).await?;
                self.attempts.remove(unit);
                self.attempt_place(*unit, attempt)
            }
            Event::PoolRegistered { pool, .. }
            | Event::PoolUpdated { pool, .. }
            | Event::PoolDeleted { pool, .. }
            | Event::SessionOpened { pool, .. }
            | Event::PoolConnectivityChanged { pool, .. }
            | Event::PoolCordoned { pool, .. }
            | Event::PoolDrainChanged { pool, .. } => {
                Place { pool: self.pool(jobs, *pool, record.revision).await?, ..Place::default() }
            }
            Event::NodeReported { pool, node, .. }
            | Event::NodeRemoved { pool, node, .. }
            | Event::NodeCordoned { pool, node, .. }
            | Event::NodeQuarantined { pool, node, .. }
            | Event::NodeReleased { pool, node } => {
                let node = NodeRef { pool: *pool, node: *node };
                let name = self.node(jobs, node, record.revision).await?;
                Place { pool: self.pool(jobs, *pool, record.revision).await?, node: name, attempt: None }
            }
            _ => Place::default(),
        };
        Ok(place)
    }

    fn attempt_place(&self, unit: UnitId, attempt: Attempt) -> Place {
        let id = AttemptId { journal: self.journal, job: unit.job, unit: unit.unit, number: attempt.number };
        Place { pool: attempt.pool, node: String::new(), attempt: Some(id) }
    }

    /// The attempt of a unit that was live at a revision.
    async fn attempt(&mut self, jobs: &Jobs, unit: UnitId, at: Revision) -> Result<Attempt, Status> {
        if let Some(known) = self.attempts.get(&unit) {
            return Ok(known.clone());
        }
        // It may end between the two reads, so the live one is read first.
        let query = ListAttempts { job: unit.job, after: unit.unit.checked_sub(1), limit: 1 };
        let (_, live) = jobs.broker.query(query).await?;
        let live = live.into_iter().find(|attempt| attempt.id.unit == unit.unit);
        let journal = self.journal;
        let ended = jobs.broker.archive(move |archive| {
            let mut after = (unit.unit, 0);
            loop {
                let read = archive.attempts(unit.job, after, ATTEMPTS_READ)?;
                let is_last = read.len() < ATTEMPTS_READ;
                let of_unit = || read.iter().filter(|attempt| attempt.attempt.unit == unit);
                // It is the first that ended at this event or later.
                if let Some(found) = of_unit().find(|attempt| attempt.revision >= at) {
                    return Ok(Some(found.view(journal)));
                }
                match of_unit().next_back() {
                    Some(last) if !is_last => after.1 = last.attempt.number,
                    _ => return Ok(None),
                }
            }
        });
        let found: Option<AttemptView> = ended.await?.or(live);
        let attempt = found.map_or_else(
            || Attempt { number: 0, pool: String::new() },
            |found| Attempt { number: found.id.number, pool: found.pool },
        );
        if attempt.number > 0 {
            self.note_attempt(unit, attempt.clone());
        }
        Ok(attempt)
    }

    async fn pool(&mut self, jobs: &Jobs, id: PoolId, at: Revision) -> Result<String, Status> {
        if !self.pools.contains_key(&id) {
            let (_, pools) = jobs.broker.query(ListPools).await?;
            self.pools.extend(pools.into_iter().map(|view| (view.pool.id, view.pool.spec.name)));
        }
        if !self.pools.contains_key(&id) {
            self.search(jobs, at).await?;
        }
        Ok(self.pools.get(&id).cloned().unwrap_or_default())
    }

    async fn node(&mut self, jobs: &Jobs, node: NodeRef, at: Revision) -> Result<String, Status> {
        if !self.nodes.contains_key(&node) {
            let (_, name) = jobs.broker.query(GetNodeName(node)).await?;
            match name {
                Some(name) => self.note_node(node.pool, node.node, &name),
                None => self.search(jobs, at).await?,
            }
        }
        Ok(self.nodes.get(&node).cloned().unwrap_or_default())
    }

    /// Searches the rest of the journal for the names of what has been deleted since: its last event has its name.
    async fn search(&mut self, jobs: &Jobs, at: Revision) -> Result<(), Status> {
        let mut after = self.searched.max(at);
        loop {
            let page = read(jobs, after).await?;
            let Some(last) = page.events.last() else { break };
            after = last.revision;
            for record in page.events {
                if matches!(record.event, Event::PoolDeleted { .. } | Event::NodeRemoved { .. }) {
                    self.note(&record.event);
                }
            }
        }
        self.searched = after;
        Ok(())
    }
}
