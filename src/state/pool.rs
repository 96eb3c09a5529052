//! Pools and nodes as hot state keeps them, with what is committed on each.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use crate::model::attempt::Placement;
use crate::model::demand;
use crate::model::device::DeviceModelId;
use crate::model::exchange::Hello;
use crate::model::id::{Epoch, InstanceId, JobId, NodeId, PoolId, Revision, UnitId};
use crate::model::mutant::Mutant;
use crate::model::pool::{Connectivity, Drain, NodeSpec, PoolSpec};
use crate::model::reason::PoolReason;
use crate::model::resource::Resources;
use crate::model::shape::Shape;
use crate::model::spec::TaskRequest;
use crate::model::time::Timestamp;
use crate::state::token::first_bytes;

/// A registered pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub id: PoolId,
    pub spec: PoolSpec,
    /// The agent that the name is bound to.
    pub instance: InstanceId,
    /// SHA-256 of the agent's key, cut to 128 bits.
    pub key_digest: [u8; 16],
    /// The current session's epoch; reports of an older one are refused.
    pub epoch: Epoch,
    /// The last session in which it was READY; 0 if it never was.
    pub served_epoch: Epoch,
    pub connectivity: Connectivity,
    /// Since when it has not been READY; `None` while it is.
    pub not_ready_since: Option<Timestamp>,
    pub cordoned: bool,
    pub drain: Option<Drain>,
    pub registered_at: Timestamp,
    pub revision: Revision,
    pub nodes: BTreeMap<NodeId, Node>,
    pub next_node: u32,
    /// Names of nodes that an admin cordoned and that are gone: they are cordoned when they come back. At most
    /// [`NODES_PER_POOL_MAX`](crate::model::limit::NODES_PER_POOL_MAX).
    pub cordoned_absent: BTreeSet<String>,
    /// Derived from `nodes`.
    pub node_names: BTreeMap<String, NodeId>,
    /// Live attempts. Derived.
    pub attempts: BTreeSet<UnitId>,
    /// Sum over the nodes that are there; devices in thousandths. Derived.
    pub total: Resources,
    /// Sum over the nodes. Derived.
    pub committed: Resources,
}

impl Pool {
    /// A copy without the nodes and the indexes of attempts.
    pub fn without_nodes(&self) -> Self {
        Self {
            id: self.id,
            spec: self.spec.clone(),
            instance: self.instance,
            key_digest: self.key_digest,
            epoch: self.epoch,
            served_epoch: self.served_epoch,
            connectivity: self.connectivity,
            not_ready_since: self.not_ready_since,
            cordoned: self.cordoned,
            drain: self.drain,
            registered_at: self.registered_at,
            revision: self.revision,
            next_node: self.next_node,
            cordoned_absent: self.cordoned_absent.clone(),
            nodes: BTreeMap::new(),
            node_names: BTreeMap::new(),
            attempts: BTreeSet::new(),
            total: self.total.clone(),
            committed: self.committed.clone(),
        }
    }

    /// The hello comes from the agent that the pool's name is bound to, and proves it by its key.
    pub fn is_bound_to(&self, hello: &Hello) -> bool {
        self.instance == hello.instance && self.key_digest == digest_of(&hello.key)
    }

    /// The agent of the current session has reported all nodes and attempts.
    pub fn is_served(&self) -> bool {
        self.connectivity == Connectivity::Ready && self.served_epoch == self.epoch
    }

    /// The hello comes from a copy of the state folder that has served the pool since the copy was made.
    pub fn is_served_by_another_copy(&self, hello: &Hello) -> bool {
        hello.last_epoch.is_some_and(|last| last < self.served_epoch)
    }

    /// Why the pool can't run a shape, whatever its nodes have free; `None` if it can.
    pub fn exclusion(&self, shape: &Shape) -> Option<PoolReason> {
        let spec = &self.spec;
        demand::exclusion(&shape.constraints, shape.needs, Some(&spec.name), spec.region, spec.capabilities)
    }

    /// Sums up what the nodes have.
    ///
    /// # Panics
    /// If the sum exceeds 64 bits: `decide` refuses such inventories.
    pub(super) fn refresh_total(&mut self) {
        let nodes = self.nodes.values().filter(|node| !node.gone);
        self.total = nodes.fold(Resources::default(), |sum, node| sum_of(&sum, &node.total()));
    }

    /// New work may be ordered here.
    pub fn is_open(&self) -> bool {
        self.connectivity == Connectivity::Ready && !self.cordoned && self.drain.is_none()
    }
}

/// The digest of an agent's key: the key itself is not stored.
pub fn digest_of(key: &[u8; 16]) -> [u8; 16] {
    first_bytes(&Sha256::digest(key))
}

/// One machine of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub spec: NodeSpec,
    /// Models of `spec.devices`, in order.
    pub models: Vec<DeviceModelId>,
    /// An admin takes it out of use; the backend's own wish is in `spec`.
    pub cordoned: bool,
    /// No longer in the inventory, but attempts on it have not been reported gone.
    pub gone: bool,
    pub revision: Revision,
    pub failure_tracker: FailureTracker,
    /// Derived.
    pub committed: Resources,
    /// Thousandths per device. Derived.
    pub committed_devices: Vec<u32>,
    /// Tasks that hold something here. Derived.
    pub tasks: u32,
}

/// A node's failures since it last ran an attempt: a broken node must not fail a whole queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailureTracker {
    /// Attempts in a row that the node could not run.
    pub faults: u32,
    /// Changes of job among them, from 1: one bad job must not close every node.
    pub jobs: u32,
    pub last_job: JobId,
    /// How often it was quarantined: each time is twice as long.
    pub quarantines: u32,
    /// It takes no new work until then.
    pub quarantined_until: Option<Timestamp>,
}

/// Failures in a row after which a node is quarantined, and of how many jobs at least.
const FAULTS_MAX: u32 = 5;
const FAULT_JOBS_MIN: u32 = 2;
/// How long the first quarantine lasts, and the longest.
const HOLD_MS: u64 = 60_000;
const HOLD_MS_MAX: u64 = 3_600_000;

impl FailureTracker {
    /// The same with one more fault.
    pub fn after_fault(self, job: JobId) -> Self {
        let jobs = self.jobs + u32::from(self.faults == 0 || self.last_job != job);
        Self { faults: self.faults + 1, jobs, last_job: job, ..self }
    }

    /// How long the node must be quarantined now; `None` if it must not.
    pub fn quarantine_ms(self) -> Option<u64> {
        let due =
            self.faults >= FAULTS_MAX && self.jobs >= FAULT_JOBS_MIN && self.quarantined_until.is_none();
        due.then(|| HOLD_MS.checked_shl(self.quarantines.min(16)).unwrap_or(HOLD_MS_MAX).min(HOLD_MS_MAX))
    }

    /// The same, quarantined, with its failures counted from zero.
    pub fn quarantined(self, until: Timestamp) -> Self {
        Self { faults: 0, jobs: 0, quarantines: self.quarantines + 1, quarantined_until: Some(until), ..self }
    }
}

impl Node {
    /// A node as first reported.
    pub fn new(id: NodeId, spec: NodeSpec, models: Vec<DeviceModelId>, revision: Revision) -> Self {
        let committed_devices = vec![0; spec.devices.len()];
        Self {
            id,
            spec,
            models,
            cordoned: false,
            gone: false,
            revision,
            failure_tracker: FailureTracker::default(),
            committed: Resources::default(),
            committed_devices,
            tasks: 0,
        }
    }

    /// New work may be placed here, if its pool is open.
    pub fn is_open(&self) -> bool {
        !self.cordoned
            && !self.spec.cordoned
            && !self.gone
            && self.failure_tracker.quarantined_until.is_none()
            && !self.is_overcommitted()
    }

    /// It shrank below what it holds: it takes nothing new until that has gone. A device that is there and broken is
    /// not meant: it has nothing free, and the rest of the node goes on.
    pub fn is_overcommitted(&self) -> bool {
        let gone = self.committed_devices.iter().skip(self.spec.devices.len());
        !Resources { device_millis: 0, ..self.committed.clone() }.fits(&self.spec.allocatable)
            || gone.into_iter().any(|held| *held > 0)
    }

    /// What the node has, devices included.
    pub fn total(&self) -> Resources {
        let device_millis =
            (0..self.spec.devices.len()).map(|index| u64::from(self.device_capacity(index))).sum();
        Resources { device_millis, ..self.spec.allocatable.clone() }
    }

    /// Free CPU, memory and other kinds; zero where more is committed than there is.
    pub fn free(&self) -> Resources {
        let minus = |total: u64, committed: u64| total.saturating_sub(committed);
        let (total, used) = (&self.spec.allocatable, &self.committed);
        let other = total.other.as_ref().map(|map| {
            let mut free = std::collections::BTreeMap::new();
            for (name, amount) in map.iter() {
                let left =
                    minus(*amount, used.get(&crate::model::resource::ResourceKind::Other(name.clone())));
                if left > 0 {
                    free.insert(name.clone(), left);
                }
            }
            Box::new(free)
        });
        Resources {
            cpu_millis: minus(total.cpu_millis, used.cpu_millis),
            memory_bytes: minus(total.memory_bytes, used.memory_bytes),
            storage_bytes: minus(total.storage_bytes, used.storage_bytes),
            device_millis: 0,
            other: other.filter(|map| !map.is_empty()),
        }
    }

    /// Free thousandths of device `index`.
    pub fn device_free(&self, index: usize) -> u32 {
        let committed = self.committed_devices.get(index).copied().unwrap_or_default();
        let committed = if Mutant::ForgetHeldDevices.is_on() { 0 } else { committed };
        self.device_capacity(index).saturating_sub(committed)
    }

    fn device_capacity(&self, index: usize) -> u32 {
        self.spec.devices.get(index).filter(|device| device.healthy).map_or(0, |device| device.millis)
    }

    /// Takes what a task holds. The node may have shrunk below that: then nothing is free.
    pub fn commit(&mut self, request: &TaskRequest, placement: &Placement) {
        self.committed = sum_of(&self.committed, &request.total());
        for share in &placement.devices {
            let index = usize::from(share.index);
            if self.committed_devices.len() <= index {
                self.committed_devices.resize(index + 1, 0);
            }
            self.committed_devices[index] += share.millis;
        }
        self.tasks += 1;
    }

    /// Gives back what a task held.
    ///
    /// # Panics
    /// If it held nothing: the books would be wrong from here on.
    pub fn uncommit(&mut self, request: &TaskRequest, placement: &Placement) {
        let (rest, name) = (self.committed.checked_sub(&request.total()), &self.spec.name);
        assert!(self.tasks > 0, "node {name} releases a task that it never held");
        self.committed = rest.unwrap_or_else(|| panic!("node {name} releases what it never held"));
        self.tasks -= 1;
        for share in &placement.devices {
            let held = &mut self.committed_devices[usize::from(share.index)];
            assert!(*held >= share.millis, "device {} releases what it never held", share.index);
            *held -= share.millis;
        }
        self.fit_devices();
    }

    /// Counts as many devices as there are, and those beyond that are still held.
    pub fn fit_devices(&mut self) {
        let held = self.committed_devices.iter().rposition(|millis| *millis > 0).map_or(0, |last| last + 1);
        self.committed_devices.resize(held.max(self.spec.devices.len()), 0);
    }
}

/// The sum of what tasks hold.
///
/// # Panics
/// If it overflows. A task holds at most 2^50 of a kind and there are fewer than 2^14 times as many live
/// tasks of that size, so only a broken invariant gets here; a total that wraps or restarts at zero would
/// let a node be given out twice.
pub(super) fn sum_of(left: &Resources, right: &Resources) -> Resources {
    match left.checked_add(right) {
        Some(sum) => sum,
        None => panic!("what attempts hold exceeds 64 bits: {left:?} and {right:?}"),
    }
}
