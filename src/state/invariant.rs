//! What must always hold, checked in full. Costly: for tests and the simulator.

use std::collections::BTreeMap;

use super::State;
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
        self.check_derived()
    }

    /// Each unit is in exactly one place, and live attempts are where their jobs say.
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
                        "node {} says {:?}, attempts hold {held:?}",
                        node.spec.name, node.committed
                    ));
                }
                for (index, millis) in node.committed_devices.iter().enumerate() {
                    let held = devices.get(&(index as u16)).copied().unwrap_or_default();
                    if held != *millis {
                        return Err(format!(
                            "device {index} of {} says {millis}, attempts hold {held}",
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
                    "queue {} says {:?}, attempts hold {held:?}",
                    queue.spec.name, queue.usage
                ));
            }
        }
        Ok(())
    }

    /// A rebuilt index equals the kept one.
    fn check_derived(&self) -> Result<(), String> {
        let objects = self.objects();
        let mut rebuilt = Self::from_objects(objects);
        rebuilt.check_same_order(self)?;
        rebuilt.snapshotter = None;
        Ok(())
    }

    fn check_same_order(&self, kept: &Self) -> Result<(), String> {
        // Shapes may be numbered otherwise: compare what the classes hold, by shape.
        let classes = |state: &Self| -> BTreeMap<_, _> {
            let class = |(key, members): (&crate::model::shape::ClassKey, &std::collections::BTreeSet<_>)| {
                let shape = state.shape(key.shape).cloned();
                ((key.queue, key.priority, shape), members.clone())
            };
            state.derived.classes.iter().map(class).collect()
        };
        if classes(self) != classes(kept) {
            return Err("rebuilt classes differ from the kept ones".to_owned());
        }
        let lines = |state: &Self| -> Vec<(UnitId, u8)> {
            state.derived.tail_of.iter().map(|(unit, (_, len))| (*unit, *len)).collect()
        };
        let same = [
            ("timers", self.derived.timers == kept.derived.timers),
            ("job names", self.derived.job_names == kept.derived.job_names),
            (
                "dependency_failed_jobs jobs",
                self.derived.dependency_failed_jobs == kept.derived.dependency_failed_jobs,
            ),
            ("devices in use", self.derived.devices_in_use == kept.derived.devices_in_use),
            ("successors", self.derived.successors == kept.derived.successors),
            ("prices", self.prices == kept.prices),
            ("links", self.links == kept.links),
            ("reservations", self.reservations == kept.reservations),
            ("lines", lines(self) == lines(kept)),
            ("pools", self.pools == kept.pools),
            ("queues", self.queues == kept.queues),
            ("jobs", self.jobs == kept.jobs),
            ("attempts", self.attempts == kept.attempts),
        ];
        let broken = same.iter().find(|(_, same)| !same);
        broken.map_or(Ok(()), |(what, _)| Err(format!("rebuilt {what} differ from the kept ones")))
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

    fn shallow_clone(&self) -> Self {
        Self {
            journal: self.journal,
            key: self.key,
            writer_sessions: self.writer_sessions.clone(),
            profile: self.profile.clone(),
            term: self.term,
            revision: self.revision,
            now: self.now,
            settings: self.settings,
            regions: self.regions.clone(),
            models: self.models.clone(),
            queues: self.queues.clone(),
            specs: self.specs.clone(),
            jobs: self.jobs.clone(),
            attempts: self.attempts.clone(),
            pools: self.pools.clone(),
            tokens: self.tokens.clone(),
            run_times: self.run_times.clone(),
            prices: self.prices.clone(),
            links: self.links.clone(),
            reservations: self.reservations.clone(),
            next_reservation: self.next_reservation,
            next_job: self.next_job,
            next_pool: self.next_pool,
            next_queue: self.next_queue,
            derived: Derived::default(),
            snapshotter: None,
        }
    }
}

use super::Derived;
