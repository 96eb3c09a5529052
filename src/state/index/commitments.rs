//! What live attempts hold: on nodes, in pools, in queues, and in all by task size.

use crate::model::id::UnitId;
use crate::model::resource::{Resources, task_size};
use crate::state::State;
use crate::state::pool::sum_of;

impl State {
    /// Computes what pools, nodes and queues count, from their records and from the live attempts.
    pub(super) fn rebuild_commitments(&mut self) {
        for queue in self.queues.values_mut() {
            (queue.usage, queue.jobs) = (Resources::default(), 0);
        }
        for job in self.jobs.values() {
            if let Some(queue) = self.queues.get_mut(&job.queue) {
                queue.jobs += 1;
            }
        }
        let models = super::names::rebuild(self).models;
        for pool in self.pools.values_mut() {
            pool.attempts.clear();
            pool.node_names = pool.nodes.values().map(|node| (node.spec.name.clone(), node.id)).collect();
            pool.committed = Resources::default();
            for node in pool.nodes.values_mut() {
                let known = |name: &str| models.get(name).copied().unwrap_or_default();
                node.models = node.spec.devices.iter().map(|device| known(&device.model)).collect();
                node.committed = Resources::default();
                node.committed_devices = vec![0; node.spec.devices.len()];
                node.tasks = 0;
            }
            pool.refresh_total();
        }
        let units: Vec<(UnitId, bool)> =
            self.attempts.values().map(|attempt| (attempt.unit, attempt.after.is_none())).collect();
        for (unit, holds) in units {
            let pool = self.attempts.get(&unit).map(|attempt| attempt.pool);
            if let Some(pool) = pool.and_then(|pool| self.pools.get_mut(&pool)) {
                pool.attempts.insert(unit);
            }
            if holds {
                self.commit(unit);
            }
        }
    }

    /// Adds what an attempt's tasks hold to their nodes, its pool and its queues.
    pub(in crate::state) fn commit(&mut self, unit: UnitId) {
        let (Some(attempt), Some(job)) = (self.attempts.get(&unit), self.jobs.get(&unit.job)) else { return };
        let Some(entry) = self.specs.get(&job.spec) else { return };
        let (queue, mut total) = (job.queue, Resources::default());
        if let Some(pool) = self.pools.get_mut(&attempt.pool) {
            for placement in &attempt.placements {
                let request = &entry.spec.groups[usize::from(placement.group)].request;
                let asked = request.total();
                self.index.devices_in_use[task_size(asked.device_millis)] += asked.device_millis;
                total = sum_of(&total, &asked);
                if let Some(node) = pool.nodes.get_mut(&placement.node) {
                    node.commit(request, placement);
                }
            }
            pool.committed = sum_of(&pool.committed, &total);
        }
        self.add_usage(queue, &total);
    }
}
