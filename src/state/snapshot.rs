//! Snapshots in chunks, between steps, without stalling them.
//!
//! A snapshot shows the state at the revision at which it began. An event that changes an object that
//! the snapshot has not reached yet first puts the object as it was into the next chunk (copy on
//! update); the cursor later skips it. So recovery loads plain objects and replays what follows,
//! and memory grows only by what one chunk holds.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use super::job::Job;
use super::live::Attempt;
use super::pool::{Node, Pool};
use super::token::{TokenEntry, TokenKey};
use super::workload::Workload;
use super::{Queue, State};
use crate::model::demand::WorkloadProfile;
use crate::model::device::DeviceModel;
use crate::model::high_water::JournalKey;
use crate::model::id::{
    JobId, JournalId, NodeId, NodeRef, PoolId, ReservationId, Revision, SpecId, Term, UnitId,
};
use crate::model::link::Link;
use crate::model::mutant::Mutant;
use crate::model::price::Price;
use crate::model::region::{Region, RegionCode};
use crate::model::reservation::Reservation;
use crate::model::shape::ShapeDigest;
use crate::model::spec::JobSpec;
use crate::model::time::Timestamp;
use crate::state::event::Settings;

/// Objects in one chunk: a chunk takes well under a millisecond.
pub const CHUNK_OBJECTS: usize = 512;

/// What identifies an object in a snapshot; their order is the snapshot's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Spec(SpecId),
    Job(JobId),
    Attempt(UnitId),
    Pool(PoolId),
    Node(NodeRef),
    Token(TokenKey),
    RunTime(ShapeDigest),
    Price((PoolId, Timestamp)),
    Link((RegionCode, RegionCode)),
    Reservation(ReservationId),
}

/// The tables that keys lie in, in the keys' order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Spec,
    Job,
    Attempt,
    Pool,
    Node,
    Token,
    RunTime,
    Price,
    Link,
    Reservation,
}

impl Key {
    fn table(self) -> Table {
        match self {
            Self::Spec(_) => Table::Spec,
            Self::Job(_) => Table::Job,
            Self::Attempt(_) => Table::Attempt,
            Self::Pool(_) => Table::Pool,
            Self::Node(_) => Table::Node,
            Self::Token(_) => Table::Token,
            Self::RunTime(_) => Table::RunTime,
            Self::Price(_) => Table::Price,
            Self::Link(_) => Table::Link,
            Self::Reservation(_) => Table::Reservation,
        }
    }
}

/// One object of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Head(Box<Head>),
    Queue(Queue),
    Spec(SpecId, std::sync::Arc<JobSpec>),
    Job(Job),
    Attempt(Attempt),
    /// Without its nodes.
    Pool(Box<Pool>),
    Node(PoolId, Box<Node>),
    Token(TokenKey, TokenEntry),
    /// In microseconds.
    RunTime(ShapeDigest, u32),
    Price(Price),
    Link(Link),
    Reservation(Reservation),
}

/// What there is only one of.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    pub journal: JournalId,
    pub term: Term,
    pub revision: Revision,
    pub now: Timestamp,
    pub settings: Settings,
    pub regions: Vec<Region>,
    pub models: Vec<DeviceModel>,
    pub next_job: u64,
    pub next_pool: u32,
    pub next_queue: u32,
    pub next_reservation: u64,
    /// `None` before the journal has a key.
    pub key: Option<JournalKey>,
    /// The latest writer sessions, oldest first, with the revisions that began them.
    pub writer_sessions: Vec<(u64, Revision)>,
    pub profile: Arc<WorkloadProfile>,
    pub workload: Workload,
}

/// A snapshot being written.
#[derive(Debug)]
pub struct Snapshotter {
    /// The revision that the snapshot shows.
    revision: Revision,
    /// The last key that the cursor has passed.
    cursor: Option<Key>,
    /// Keys after the cursor that are written already, or that did not exist at `revision`.
    done: BTreeSet<Key>,
    /// Objects for the next chunk, as they were.
    pending: Vec<Object>,
}

impl Snapshotter {
    pub(super) fn touch(&mut self, state: &State, key: Key) {
        if self.cursor.is_some_and(|cursor| key <= cursor) || !self.done.insert(key) {
            return;
        }
        if Mutant::DropTouchedAttempts.is_on() && matches!(key, Key::Attempt(_)) {
            return;
        }
        state.put_object(key, &mut self.pending);
    }
}

impl State {
    /// Begins a snapshot of the present revision, dropping one that was under way.
    pub fn begin_snapshot(&mut self) -> Revision {
        let head = Head {
            journal: self.identity.journal,
            term: self.identity.term,
            revision: self.revision,
            now: self.now,
            settings: self.settings,
            regions: self.catalogue.regions.values().cloned().collect(),
            models: self.catalogue.models.clone(),
            next_job: self.next.job,
            next_pool: self.next.pool,
            next_queue: self.next.queue,
            next_reservation: self.next.reservation,
            key: self.identity.key,
            writer_sessions: self.identity.writer_sessions.iter().copied().collect(),
            profile: self.profile.clone(),
            workload: self.workload.clone(),
        };
        let mut pending = vec![Object::Head(Box::new(head))];
        pending.extend(self.queues.values().cloned().map(Object::Queue));
        self.snapshotter =
            Some(Snapshotter { revision: self.revision, cursor: None, done: BTreeSet::new(), pending });
        self.revision
    }

    /// A snapshot is being written.
    pub fn is_snapshotting(&self) -> bool {
        self.snapshotter.is_some()
    }

    /// The next chunk of the snapshot under way: its revision, objects, and whether it is the last.
    pub fn next_chunk(&mut self) -> Option<(Revision, Vec<Object>, bool)> {
        let mut snapshotter = self.snapshotter.take()?;
        let mut objects = std::mem::take(&mut snapshotter.pending);
        let keys = self.keys_after(snapshotter.cursor, CHUNK_OBJECTS);
        let last = keys.len() < CHUNK_OBJECTS;
        for key in &keys {
            if !snapshotter.done.remove(key) {
                self.put_object(*key, &mut objects);
            }
        }
        let revision = snapshotter.revision;
        if !last {
            snapshotter.cursor = keys.last().copied();
            // Removed objects never come up again, so the cursor clears their marks.
            if let Some(cursor) = snapshotter.cursor {
                snapshotter.done = snapshotter.done.split_off(&cursor);
            }
            self.snapshotter = Some(snapshotter);
        }
        Some((revision, objects, last))
    }

    /// Builds the state that a snapshot's objects show, in any order.
    pub fn from_objects(objects: impl IntoIterator<Item = Object>) -> Self {
        let (mut state, mut nodes) = (Self::default(), Vec::new());
        for object in objects {
            match object {
                Object::Head(head) => {
                    state.identity.journal = head.journal;
                    state.identity.term = head.term;
                    state.revision = head.revision;
                    state.now = head.now;
                    state.settings = head.settings;
                    state.catalogue.regions =
                        head.regions.into_iter().map(|region| (region.code, region)).collect();
                    state.catalogue.models = head.models;
                    (state.next.job, state.next.pool, state.next.queue) =
                        (head.next_job, head.next_pool, head.next_queue);
                    state.next.reservation = head.next_reservation;
                    state.identity.key = head.key;
                    state.identity.writer_sessions = head.writer_sessions.into();
                    (state.profile, state.workload) = (head.profile, head.workload);
                }
                Object::Queue(queue) => {
                    state.queues.insert(queue.id, queue);
                }
                Object::Spec(id, spec) => {
                    let entry = super::job::SpecEntry { spec, shapes: Box::default(), jobs: 0 };
                    state.specs.insert(id, entry);
                }
                Object::Job(job) => {
                    state.jobs.insert(job.id, job);
                }
                Object::Attempt(attempt) => {
                    state.attempts.insert(attempt.unit, attempt);
                }
                Object::Pool(pool) => {
                    state.pools.insert(pool.id, *pool);
                }
                Object::Node(pool, node) => nodes.push((pool, node)),
                Object::Token(key, entry) => state.tokens.insert(key, entry),
                Object::RunTime(shape, micros) => {
                    state.run_times.insert(shape, micros);
                }
                Object::Price(price) => {
                    state.market.prices.insert((price.pool, price.valid_from), price);
                }
                Object::Link(link) => {
                    state.market.links.insert(link.ends, link);
                }
                Object::Reservation(reservation) => {
                    state.market.reservations.insert(reservation.id, reservation);
                }
            }
        }
        for (pool, node) in nodes {
            if let Some(pool) = state.pools.get_mut(&pool) {
                pool.nodes.insert(node.id, *node);
            }
        }
        state.rebuild();
        state
    }

    /// Adds the object of a key, if there is one.
    fn put_object(&self, key: Key, out: &mut Vec<Object>) {
        out.extend(match key {
            Key::Spec(id) => self.specs.get(&id).map(|entry| Object::Spec(id, entry.spec.clone())),
            Key::Job(id) => self.jobs.get(&id).cloned().map(Object::Job),
            Key::Attempt(unit) => self.attempts.get(&unit).cloned().map(Object::Attempt),
            Key::Pool(id) => self.pools.get(&id).map(|pool| Object::Pool(Box::new(pool.without_nodes()))),
            Key::Node(at) => self.node(at).cloned().map(|node| Object::Node(at.pool, Box::new(node))),
            Key::Token(key) => self.tokens.get(&key).map(|entry| Object::Token(key, *entry)),
            Key::RunTime(shape) => self.run_times.get(&shape).map(|micros| Object::RunTime(shape, *micros)),
            Key::Price(key) => self.market.prices.get(&key).cloned().map(Object::Price),
            Key::Link(ends) => self.market.links.get(&ends).copied().map(Object::Link),
            Key::Reservation(id) => self.market.reservations.get(&id).cloned().map(Object::Reservation),
        });
    }

    /// The first `limit` keys after `cursor`.
    fn keys_after(&self, cursor: Option<Key>, limit: usize) -> Vec<Key> {
        // Each table is entered at the cursor if the cursor lies in it, left out if it lies
        // beyond it, and taken from its beginning otherwise.
        let from = |table: Table| match cursor.map(|key| (key.table(), key)) {
            None => Some(None),
            Some((at, _)) if at > table => None,
            Some((at, key)) if at == table => Some(Some(key)),
            Some(_) => Some(None),
        };
        macro_rules! keys {
            ($name:ident, $rows:expr) => {
                from(Table::$name).into_iter().flat_map(|from| {
                    let after = match from {
                        Some(Key::$name(id)) => Bound::Excluded(id),
                        _ => Bound::Unbounded,
                    };
                    $rows.range((after, Bound::Unbounded)).map(|(id, _)| Key::$name(*id))
                })
            };
        }
        let nodes = from(Table::Node).into_iter().flat_map(|from| {
            let first = NodeRef { pool: PoolId(0), node: NodeId(0) };
            let after = if let Some(Key::Node(at)) = from { at } else { first };
            self.nodes_after(after).map(Key::Node)
        });
        let tokens = from(Table::Token).into_iter().flat_map(|from| {
            let after = match from {
                Some(Key::Token(key)) => Bound::Excluded(key),
                _ => Bound::Unbounded,
            };
            self.tokens.range(after).map(|(key, _)| Key::Token(*key))
        });
        keys!(Spec, self.specs)
            .chain(keys!(Job, self.jobs))
            .chain(keys!(Attempt, self.attempts))
            .chain(keys!(Pool, self.pools))
            .chain(nodes)
            .chain(tokens)
            .chain(keys!(RunTime, self.run_times))
            .chain(keys!(Price, self.market.prices))
            .chain(keys!(Link, self.market.links))
            .chain(keys!(Reservation, self.market.reservations))
            .take(limit)
            .collect()
    }

    fn nodes_after(&self, from: NodeRef) -> impl Iterator<Item = NodeRef> {
        self.pools.range(from.pool..).flat_map(move |(pool, entry)| {
            let first = if *pool == from.pool { from.node } else { NodeId(0) };
            let nodes = entry.nodes.range((Bound::Excluded(first), Bound::Unbounded));
            nodes.map(|(node, _)| NodeRef { pool: *pool, node: *node })
        })
    }
}
