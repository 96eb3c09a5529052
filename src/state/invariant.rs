//! What must always hold, checked in full. Costly: for tests and the simulator.

use std::collections::BTreeMap;

use super::State;
use super::index::Indexes;
use crate::model::id::{NodeRef, QueueId, UnitId};
use crate::model::resource::Resources;

impl State {
    /// Checks every invariant of the state.
    ///
    /// # Errors
    /// The first one that is broken, in words.
    pub fn check(&self) -> Result<(), String> {
        self.check_units()?;
        self.check_capacity()?;
        self.check_indexes()
    }

    /// Each unit is in exactly one place, and live attempts are counted by their jobs.
    fn check_units(&self) -> Result<(), String> {
        for job in self.jobs.values() {
            let entry = self.specs.get(&job.spec).ok_or(format!("job {} has no spec", job.id))?;
            for (index, group) in job.groups.iter().enumerate() {
                let first = entry.spec.first_unit(index);
                let count = if entry.spec.gang_job { 1 } else { entry.spec.groups[index].unit_count() };
                let mut seen = group.waiting.clone();
                let mut place = group.waiting.len();
                for unit in group.ended.iter().flat_map(|(_, units)| units.iter()) {
                    seen.insert(unit);
                    place += 1;
                }
                for tried in group.tried.iter().filter(|tried| tried.not_before.is_some()) {
                    seen.insert(tried.unit);
                    place += 1;
                }
                let mut live = 0;
                for unit in first..first + count {
                    if self.attempts.contains_key(&UnitId { job: job.id, unit }) {
                        seen.insert(unit);
                        live += 1;
                    }
                }
                if live != group.live {
                    return Err(format!("job {} counts {} live attempts and has {live}", job.id, group.live));
                }
                // A closing job drops its back-offs: those units wait for nothing.
                if job.closing.is_none() && (place + live != count || seen.len() != count) {
                    return Err(format!(
                        "job {} has {count} units and accounts for {}",
                        job.id,
                        place + live
                    ));
                }
            }
        }
        let orphan = self.attempts.keys().find(|unit| !self.jobs.contains_key(&unit.job));
        orphan.map_or(Ok(()), |unit| Err(format!("attempt of {unit:?} has no job")))
    }

    /// Nodes, pools and queues hold exactly what their live attempts take.
    fn check_capacity(&self) -> Result<(), String> {
        let mut nodes: BTreeMap<NodeRef, (Resources, BTreeMap<u16, u32>)> = BTreeMap::new();
        let mut queues: BTreeMap<QueueId, Resources> = BTreeMap::new();
        for attempt in self.attempts.values().filter(|attempt| attempt.after.is_none()) {
            let Some(job) = self.jobs.get(&attempt.unit.job) else { continue };
            let Some(entry) = self.specs.get(&job.spec) else { continue };
            for placement in &attempt.placements {
                let request = entry.spec.groups[usize::from(placement.group)].request.total();
                let at = NodeRef { pool: attempt.pool, node: placement.node };
                let held = nodes.entry(at).or_default();
                held.0 = held.0.checked_add(&request).ok_or("overflow")?;
                for share in &placement.devices {
                    *held.1.entry(share.index).or_default() += share.millis;
                }
                for queue in self.queue_path(job.queue) {
                    let held = queues.entry(queue.id).or_default();
                    *held = held.checked_add(&request).ok_or("overflow")?;
                }
            }
        }
        for pool in self.pools.values() {
            for node in pool.nodes.values() {
                let at = NodeRef { pool: pool.id, node: node.id };
                let (held, devices) = nodes.remove(&at).unwrap_or_default();
                if held != node.committed {
                    return Err(format!(
                        "node {} counts {:?}, attempts hold {held:?}",
                        node.spec.name, node.committed
                    ));
                }
                for (index, millis) in node.committed_devices.iter().enumerate() {
                    let held = devices.get(&(index as u16)).copied().unwrap_or_default();
                    if held != *millis {
                        return Err(format!(
                            "device {index} of {} counts {millis}, attempts hold {held}",
                            node.spec.name
                        ));
                    }
                }
            }
        }
        if let Some((at, _)) = nodes.first_key_value() {
            return Err(format!(
                "attempts hold something on node {} of pool {}, which is not there",
                at.node, at.pool
            ));
        }
        for queue in self.queues.values() {
            let held = queues.remove(&queue.id).unwrap_or_default();
            if held != queue.usage {
                return Err(format!(
                    "queue {} counts {:?}, attempts hold {held:?}",
                    queue.spec.name, queue.usage
                ));
            }
        }
        Ok(())
    }

    /// Every object of the state, as a snapshot would hold them.
    pub fn objects(&self) -> Vec<super::snapshot::Object> {
        let mut copy = self.shallow_clone();
        copy.begin_snapshot();
        let mut objects = Vec::new();
        while let Some((_, chunk, _)) = copy.next_chunk() {
            objects.extend(chunk);
        }
        objects
    }

    /// The records alone.
    fn shallow_clone(&self) -> Self {
        Self {
            identity: self.identity.clone(),
            revision: self.revision,
            now: self.now,
            settings: self.settings,
            catalogue: self.catalogue.clone(),
            profile: self.profile.clone(),
            workload: self.workload.clone(),
            queues: self.queues.clone(),
            specs: self.specs.clone(),
            jobs: self.jobs.clone(),
            attempts: self.attempts.clone(),
            pools: self.pools.clone(),
            tokens: self.tokens.clone(),
            run_times: self.run_times.clone(),
            market: self.market.clone(),
            next: self.next,
            index: Indexes::default(),
            snapshotter: None,
        }
    }
}
