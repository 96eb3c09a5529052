//! Snapshots in chunks, between steps, without stalling them.
//!
//! A snapshot shows the state at the revision at which it began. Whoever alters an object that
//! the snapshot has not reached yet first puts the object as it was into the next chunk (copy on
//! update); the cursor later skips it. So recovery loads plain objects and replays what follows,
//! and memory grows only by what one chunk holds.

use std::collections::BTreeSet;

use super::job::Job;
use super::live::Attempt;
use super::pool::{Node, Pool};
use super::token::{TokenEntry, TokenKey};
use super::{Queue, State};
use crate::model::device::DeviceModel;
use crate::model::id::{JobId, JournalId, NodeId, NodeRef, PoolId, Revision, SpecId, Term, UnitId};
use crate::model::region::Region;
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
        self.pending.extend(state.object(key));
    }
}

impl State {
    /// Begins a snapshot of the present revision, dropping one that was under way.
    pub fn begin_snapshot(&mut self) -> Revision {
        let head = Head {
            journal: self.journal,
            term: self.term,
            revision: self.revision,
            now: self.now,
            settings: self.settings,
            regions: self.regions.values().cloned().collect(),
            models: self.models.clone(),
            next_job: self.next_job,
            next_pool: self.next_pool,
            next_queue: self.next_queue,
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
                objects.extend(self.object(*key));
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

    /// Gives up the snapshot under way.
    pub fn abort_snapshot(&mut self) {
        self.snapshotter = None;
    }

    /// Builds the state that a snapshot's objects show, in any order.
    pub fn from_objects(objects: impl IntoIterator<Item = Object>) -> Self {
        let (mut state, mut nodes) = (Self::default(), Vec::new());
        for object in objects {
            match object {
                Object::Head(head) => {
                    state.journal = head.journal;
                    state.term = head.term;
                    state.revision = head.revision;
                    state.now = head.now;
                    state.settings = head.settings;
                    state.regions = head.regions.into_iter().map(|region| (region.code, region)).collect();
                    state.models = head.models;
                    (state.next_job, state.next_pool, state.next_queue) =
                        (head.next_job, head.next_pool, head.next_queue);
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

    fn object(&self, key: Key) -> Option<Object> {
        match key {
            Key::Spec(id) => self.specs.get(&id).map(|entry| Object::Spec(id, entry.spec.clone())),
            Key::Job(id) => self.jobs.get(&id).cloned().map(Object::Job),
            Key::Attempt(unit) => self.attempts.get(&unit).cloned().map(Object::Attempt),
            Key::Pool(id) => self.pools.get(&id).map(|pool| Object::Pool(Box::new(pool.without_nodes()))),
            Key::Node(at) => self.node(at).cloned().map(|node| Object::Node(at.pool, Box::new(node))),
            Key::Token(key) => self.tokens.get(&key).map(|entry| Object::Token(key, *entry)),
        }
    }

    /// The first `limit` keys after `cursor`.
    fn keys_after(&self, cursor: Option<Key>, limit: usize) -> Vec<Key> {
        // Each table is entered at the cursor if the cursor lies in it, left out if it lies
        // beyond it, and taken from its beginning otherwise.
        let spec = match cursor {
            Some(Key::Spec(id)) => Some(Some(id)),
            None => Some(None),
            _ => None,
        };
        let job = match cursor {
            Some(Key::Job(id)) => Some(Some(id)),
            None | Some(Key::Spec(_)) => Some(None),
            _ => None,
        };
        let attempt = match cursor {
            Some(Key::Attempt(unit)) => Some(Some(unit)),
            None | Some(Key::Spec(_) | Key::Job(_)) => Some(None),
            _ => None,
        };
        let pool = match cursor {
            Some(Key::Pool(id)) => Some(Some(id)),
            None | Some(Key::Spec(_) | Key::Job(_) | Key::Attempt(_)) => Some(None),
            _ => None,
        };
        let node = match cursor {
            Some(Key::Node(at)) => Some(at),
            Some(Key::Token(_)) => None,
            _ => Some(NodeRef { pool: PoolId(0), node: NodeId(0) }),
        };
        let token = match cursor {
            Some(Key::Token(key)) => Some(key),
            _ => None,
        };
        let specs = spec
            .into_iter()
            .flat_map(|from| self.specs.range((Self::range_after(from), std::ops::Bound::Unbounded)));
        let jobs = job
            .into_iter()
            .flat_map(|from| self.jobs.range((Self::range_after(from), std::ops::Bound::Unbounded)));
        let attempts = attempt
            .into_iter()
            .flat_map(|from| self.attempts.range((Self::range_after(from), std::ops::Bound::Unbounded)));
        let pools = pool
            .into_iter()
            .flat_map(|from| self.pools.range((Self::range_after(from), std::ops::Bound::Unbounded)));
        let nodes = node.into_iter().flat_map(|from| self.nodes_after(from));
        specs
            .map(|(id, _)| Key::Spec(*id))
            .chain(jobs.map(|(id, _)| Key::Job(*id)))
            .chain(attempts.map(|(unit, _)| Key::Attempt(*unit)))
            .chain(pools.map(|(id, _)| Key::Pool(*id)))
            .chain(nodes.map(Key::Node))
            .chain(self.tokens.range(Self::range_after(token)).map(|(key, _)| Key::Token(*key)))
            .take(limit)
            .collect()
    }

    fn nodes_after(&self, from: NodeRef) -> impl Iterator<Item = NodeRef> {
        self.pools.range(from.pool..).flat_map(move |(pool, entry)| {
            let first = if *pool == from.pool { from.node } else { NodeId(0) };
            let nodes = entry.nodes.range((std::ops::Bound::Excluded(first), std::ops::Bound::Unbounded));
            nodes.map(|(node, _)| NodeRef { pool: *pool, node: *node })
        })
    }
}
