//! Indexes over the state's records: each can be rebuilt from them.
//!
//! `apply` changes them event by event. Each index has a file with what it holds and with `rebuild`, which
//! computes it from the records alone. `check` compares the two: an index that `apply` forgot to change, or
//! changed otherwise, is found by the tests and by the simulator.

pub mod claims;
pub mod commitments;
pub mod dependents;
pub mod memory;
pub mod names;
pub mod stops;
pub mod timers;

use std::collections::{BTreeMap, BTreeSet};

use claims::Claims;
use dependents::Dependents;
use memory::Memory;
use names::Names;
use stops::Stops;
use timers::Timers;

use super::State;
use super::class::{Classes, Shapes};
use crate::model::id::PoolId;
use crate::model::pool::Connectivity;
use crate::model::resource::TASK_SIZES;
use crate::model::shape::{ClassKey, Shape};

/// All indexes.
#[derive(Clone, Debug, Default)]
pub(super) struct Indexes {
    pub(super) names: Names,
    pub(super) timers: Timers,
    pub(super) stops: Stops,
    pub(super) claims: Claims,
    pub(super) dependents: Dependents,
    pub(super) memory: Memory,
    pub(super) shapes: Shapes,
    pub(super) classes: Classes,
    /// Pools that are not READY.
    pub(super) not_ready: BTreeSet<PoolId>,
    /// Device thousandths that tasks hold, by the tasks' size.
    pub(super) devices_in_use: [u64; TASK_SIZES],
}

impl State {
    /// Rebuilds every index, and what pools, queues and specs count of their attempts and jobs.
    pub(super) fn rebuild(&mut self) {
        self.index = Indexes { names: names::rebuild(self), ..Indexes::default() };
        self.index.not_ready = not_ready(self);
        self.tokens.rebuild();
        self.rebuild_shapes();
        self.rebuild_commitments();
        self.index.timers = timers::rebuild(self);
        self.index.stops = stops::rebuild(self);
        self.index.claims = claims::rebuild(self);
        self.index.dependents = dependents::rebuild(self);
        self.index.memory = memory::rebuild(self);
        let jobs: Vec<_> = self.jobs.keys().copied().collect();
        for id in jobs {
            self.index_classes(id);
        }
    }

    /// Numbers the shapes of the specs in use, and counts the specs' jobs.
    fn rebuild_shapes(&mut self) {
        for entry in self.specs.values_mut() {
            let groups = 0..entry.spec.unit_group_count();
            let shape =
                |group| self.index.shapes.acquire(Shape::of(&entry.spec, group), &self.index.names.models);
            entry.shapes = groups.map(shape).collect();
            entry.jobs = 0;
        }
        for job in self.jobs.values() {
            if let Some(entry) = self.specs.get_mut(&job.spec) {
                entry.jobs += 1;
            }
        }
    }

    /// Compares each index with a rebuilt one.
    ///
    /// # Errors
    /// The first index that differs.
    pub(super) fn check_indexes(&self) -> Result<(), String> {
        let rebuilt = Self::from_objects(self.objects());
        let same = [
            ("names", self.index.names == names::rebuild(self)),
            ("timers", self.index.timers == timers::rebuild(self)),
            ("stops", self.index.stops == stops::rebuild(self)),
            ("pools not READY", self.index.not_ready == not_ready(self)),
            ("dependents", self.index.dependents == dependents::rebuild(self)),
            ("memory", self.index.memory == memory::rebuild(self)),
            ("claims", claims::same(self, &rebuilt)),
            ("classes", classes_by_shape(self) == classes_by_shape(&rebuilt)),
            ("devices in use", self.index.devices_in_use == rebuilt.index.devices_in_use),
            ("workload", self.workload == rebuilt.workload),
            ("market", self.market == rebuilt.market),
            ("pools", self.pools == rebuilt.pools),
            ("queues", self.queues == rebuilt.queues),
            ("jobs", self.jobs == rebuilt.jobs),
            ("attempts", self.attempts == rebuilt.attempts),
        ];
        let broken = same.iter().find(|(_, same)| !same);
        broken.map_or(Ok(()), |(what, _)| {
            Err(format!("rebuilt {what} differ from those that apply maintained"))
        })
    }
}

fn not_ready(state: &State) -> BTreeSet<PoolId> {
    let pools = state.pools.values().filter(|pool| pool.connectivity != Connectivity::Ready);
    pools.map(|pool| pool.id).collect()
}

/// Members of classes by what the classes are: a rebuilt state may number shapes otherwise.
fn classes_by_shape(state: &State) -> BTreeMap<impl Ord + use<>, impl PartialEq + use<>> {
    let class = |(key, members): (&ClassKey, &std::collections::BTreeSet<_>)| {
        ((key.queue, key.priority, state.shape(key.shape).cloned()), members.clone())
    };
    state.index.classes.iter().map(class).collect::<BTreeMap<_, _>>()
}
