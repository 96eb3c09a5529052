//! Names of queues, pools, device models and live jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use crate::model::device::DeviceModelId;
use crate::model::id::{JobId, PoolId, QueueId};
use crate::state::State;

/// What has which name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub queues: BTreeMap<String, QueueId>,
    pub pools: BTreeMap<String, PoolId>,
    pub models: BTreeMap<String, DeviceModelId>,
    /// Live jobs by the hash of queue and name: half the memory of the names themselves.
    pub jobs: BTreeSet<(u64, JobId)>,
}

/// Computes the names from the records.
pub fn rebuild(state: &State) -> Names {
    let models = state.catalogue.models.iter().enumerate();
    Names {
        queues: state.queues.values().map(|queue| (queue.spec.name.clone(), queue.id)).collect(),
        pools: state.pools.values().map(|pool| (pool.spec.name.clone(), pool.id)).collect(),
        models: models.map(|(at, model)| (model.name.clone(), DeviceModelId(at as u16))).collect(),
        jobs: state.jobs.values().map(|job| (job_name_hash(job.queue, &job.name), job.id)).collect(),
    }
}

/// The hash under which a job's name is found. Equal in every run: indexes must not differ.
pub fn job_name_hash(queue: QueueId, name: &str) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    queue.0.hash(&mut hasher);
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// FNV-1a.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
