//! The memory that jobs, specs, pools and nodes take, estimated from what they hold.
//!
//! The estimate is what a budget is compared with. It counts each text and each entry of a list with the allocation
//! behind it, and errs on the large side. Attempts and other objects that clients can't multiply without real capacity
//! are counted by their number.

use std::collections::BTreeMap;
use std::mem::size_of;

use crate::model::id::{PoolId, SpecId};
use crate::model::pool::{Device, NodeSpec, PoolSpec};
use crate::model::spec::{EnvValue, JobSpec, Labels, Run, TaskGroup};
use crate::state::State;
use crate::state::event::Event;
use crate::state::job::{Job, Progress};
use crate::state::live::Attempt;
use crate::state::pool::{Node, Pool};

/// What an allocation takes besides its contents, and an entry of a map beside its value.
const ALLOCATION: u64 = 16;
const MAP_ENTRY: u64 = 48;
/// A job's entries in the indexes of the state and of the scheduler: a waiting job takes 470 bytes in all.
const JOB_INDEXES: u64 = 256;
/// A spec's shape, with the demands of its tasks, in the indexes of the state and of the scheduler.
const SHAPE: u64 = 1_024;
/// A node's entries in the indexes of the state and of the scheduler.
const NODE_INDEXES: u64 = 768;
/// A live attempt with its indexes, and a remembered request token.
const ATTEMPT: u64 = size_of::<Attempt>() as u64 + 512;
const TOKEN: u64 = 160;

/// Bytes of specs and jobs, and of each pool with its nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::state) struct Memory {
    specs: u64,
    jobs: u64,
    pools: BTreeMap<PoolId, u64>,
    all_pools: u64,
}

impl Memory {
    /// A spec is added.
    pub(in crate::state) fn add_spec(&mut self, spec: &JobSpec) {
        self.specs += of_spec(spec);
    }

    /// A spec is no longer used.
    pub(in crate::state) fn remove_spec(&mut self, spec: &JobSpec) {
        self.specs -= of_spec(spec);
    }

    /// A job is added.
    pub(in crate::state) fn add_job(&mut self, groups: usize) {
        self.jobs += of_job(groups);
    }

    /// A job has ended.
    pub(in crate::state) fn remove_job(&mut self, groups: usize) {
        self.jobs -= of_job(groups);
    }

    /// A pool or a node of it took `before` bytes and takes `after` now.
    pub(in crate::state) fn change_pool(&mut self, pool: PoolId, before: u64, after: u64) {
        let bytes = self.pools.entry(pool).or_default();
        *bytes = *bytes + after - before;
        self.all_pools = self.all_pools + after - before;
    }

    /// A pool is deleted.
    pub(in crate::state) fn remove_pool(&mut self, pool: PoolId) {
        self.all_pools -= self.pools.remove(&pool).unwrap_or_default();
    }
}

impl State {
    /// Estimates the memory of everything that clients and agents can multiply, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let memory = &self.index.memory;
        let counted = self.attempts.len() as u64 * ATTEMPT + self.tokens.len() as u64 * TOKEN;
        memory.specs + memory.jobs + memory.all_pools + counted
    }

    /// Estimates the memory of one pool with its nodes, in bytes.
    pub fn pool_memory_bytes(&self, pool: PoolId) -> u64 {
        self.index.memory.pools.get(&pool).copied().unwrap_or_default()
    }

    /// Estimates what new jobs, specs, pools and nodes add to the memory, in bytes.
    pub fn growth_bytes(&self, events: &[Event]) -> u64 {
        let mut added: BTreeMap<SpecId, usize> = BTreeMap::new();
        let mut bytes = 0;
        for event in events {
            if let Event::SpecAdded { spec, body } = event {
                added.insert(*spec, body.unit_group_count());
                bytes += of_spec(body);
            } else if let Event::JobSubmitted { spec, .. } = event {
                let known = || self.specs.get(spec).map_or(1, |entry| entry.shapes.len());
                bytes += of_job(added.get(spec).copied().unwrap_or_else(known));
            } else if let Event::NodeReported { spec, .. } = event {
                bytes += of_node(spec);
            } else if let Event::PoolRegistered { spec, .. } | Event::PoolUpdated { spec, .. } = event {
                bytes += of_pool_spec(spec);
            }
        }
        bytes
    }
}

/// Computes the estimate from the records.
pub(in crate::state) fn rebuild(state: &State) -> Memory {
    let mut memory = Memory::default();
    state.specs.values().for_each(|entry| memory.add_spec(&entry.spec));
    state.jobs.values().for_each(|job| memory.add_job(job.groups.len()));
    for pool in state.pools.values() {
        memory.change_pool(pool.id, 0, of_pool_spec(&pool.spec));
        pool.nodes.values().for_each(|node| memory.change_pool(pool.id, 0, of_node(&node.spec)));
    }
    memory
}

/// Bytes of a spec.
fn of_spec(spec: &JobSpec) -> u64 {
    let constraints = &spec.constraints;
    let lists = (constraints.regions_allowed.len() + constraints.regions_denied.len()) as u64 * ALLOCATION
        + constraints.tolerations.len() as u64 * 2 * LABEL
        + spec.depends_on.len() as u64 * (ALLOCATION + MAP_ENTRY);
    let groups: u64 = spec.groups.iter().map(of_group).sum();
    size_of::<JobSpec>() as u64
        + MAP_ENTRY
        + lists
        + texts(&constraints.pools)
        + text(&spec.display_name)
        + labels(&spec.labels)
        + labels(&constraints.node_labels)
        + groups
        + spec.unit_group_count() as u64 * SHAPE
}

fn of_group(group: &TaskGroup) -> u64 {
    let program = group.run.program();
    let variable = |value: &EnvValue| match value {
        EnvValue::Plain(value) => text(value),
        EnvValue::Secret { name, key } => text(name) + text(key),
    };
    let env: u64 = program.env.iter().map(|var| text(&var.name) + variable(&var.value)).sum();
    let image = match &group.run {
        Run::Process(_) => 0,
        Run::Container { image, .. } => text(image),
        Run::Pod { spec } => text(spec),
    };
    let models = group.request.devices.as_ref().map_or(0, |devices| texts(&devices.models));
    size_of::<TaskGroup>() as u64
        + text(&group.name)
        + texts(&program.command)
        + texts(&program.args)
        + text(&program.workdir)
        + env
        + image
        + group.selection.as_ref().map_or(0, |selection| size_of_val(selection.indices.intervals()) as u64)
        + models
}

/// Bytes of a job besides its spec.
fn of_job(groups: usize) -> u64 {
    let progress = size_of::<Progress>() as u64 + 2 * ALLOCATION;
    size_of::<Job>() as u64 + JOB_INDEXES + groups as u64 * progress
}

/// Bytes of a pool without its nodes.
pub(in crate::state) fn of_pool_spec(spec: &PoolSpec) -> u64 {
    size_of::<Pool>() as u64 + 2 * text(&spec.name) + labels(&spec.labels) + texts(&spec.notes)
}

/// Bytes of a node.
pub(in crate::state) fn of_node(spec: &NodeSpec) -> u64 {
    let device = |device: &Device| {
        size_of_val(device) as u64 + text(&device.model) + texts(&device.profiles) + ALLOCATION
    };
    size_of::<Node>() as u64
        + NODE_INDEXES
        + 2 * text(&spec.name)
        + labels(&spec.labels)
        + spec.taints.len() as u64 * LABEL
        + spec.devices.iter().map(device).sum::<u64>()
}

/// Bytes of a label with short texts, in a map.
const LABEL: u64 = 2 * size_of::<String>() as u64 + 2 * ALLOCATION + MAP_ENTRY;

fn labels(labels: &Labels) -> u64 {
    labels.iter().map(|(key, value)| LABEL + (key.len() + value.len()) as u64).sum()
}

fn text(text: &str) -> u64 {
    size_of::<String>() as u64 + ALLOCATION + text.len() as u64
}

fn texts(list: &[String]) -> u64 {
    list.iter().map(|entry| text(entry)).sum()
}
