//! Re-checks one decision of a plan against the state as it is now.

use std::collections::BTreeMap;

use super::Decision;
use crate::model::device::DeviceAmount;
use crate::model::id::{NodeId, UnitId};
use crate::model::limit::DEVICE_MILLIS;
use crate::model::mutant::Mutant;
use crate::model::plan::Start;
use crate::model::resource::Resources;
use crate::model::spec::OnPoolLost;
use crate::model::time::Timestamp;
use crate::state::State;
use crate::state::apply::RUN_SLACK_MS;
use crate::state::event::{Event, OrderedAttempt};
use crate::state::index::claims::WAIT_MS;
use crate::state::job::Job;
use crate::state::pool::Pool;
use crate::state::rejection::Rejection;

const OUTDATED: fn(&'static str) -> Rejection = |what| Rejection::Outdated { what };

impl State {
    pub(super) fn decide_start(&self, now: Timestamp, start: &Start) -> Result<Decision, Rejection> {
        let job = self.jobs.get(&start.unit.job).ok_or(OUTDATED("the job"))?;
        let spec = self.spec_of_job(job.id).ok_or(OUTDATED("the job's spec"))?;
        let group = spec.group_of_unit(start.unit.unit);
        let progress = &job.groups[group];
        if !job.is_eligible() || !progress.waiting.contains(start.unit.unit) {
            return Err(OUTDATED("the unit"));
        }
        let pool = self.pool(start.pool).filter(|pool| pool.is_open()).ok_or(OUTDATED("the pool"))?;
        let tasks = spec.tasks_of_unit(start.unit.unit);
        let placed = start.placements.iter().map(|placement| (placement.group, placement.task));
        if !placed.eq(tasks) {
            return Err(OUTDATED("the unit's tasks"));
        }
        let start_within_ms = match start.after {
            None => {
                let total = self.check_nodes(spec, pool, start)?;
                self.check_limits(job.queue, &total)?;
                self.settings.start_by_ms
            }
            Some(before) => {
                self.check_claim(job, group, start, before)?;
                WAIT_MS
            }
        };
        let start_by = now.plus_ms(start_within_ms);
        let order = OrderedAttempt {
            unit: start.unit,
            number: progress.tried(start.unit.unit).map_or(0, |tried| tried.attempts) + 1,
            pool: pool.id,
            start_by,
            ends_by: start_by.plus_ms(spec.max_run_ms).plus_ms(RUN_SLACK_MS),
            leased: spec.on_pool_lost == OnPoolLost::Requeue && pool.spec.capabilities.leases,
            after: start.after,
            placements: start.placements.clone(),
        };
        Ok(Decision::done(vec![Event::AttemptOrdered { order }]))
    }

    /// Checks that the unit may stand behind `before`, whose place it is to take over as it is.
    ///
    /// Of one class, both ask for the same and count for the same queues: nothing more is held
    /// when one follows the other.
    fn check_claim(&self, job: &Job, group: usize, start: &Start, before: UnitId) -> Result<(), Rejection> {
        let class = self.class_of(job, group).ok_or(OUTDATED("the class"))?;
        let end = self.claim_end(before).filter(|(other, _)| *other == class).ok_or(OUTDATED("the claim"))?;
        let ahead = self.attempt(before).filter(|ahead| ahead.pool == start.pool);
        let same_place = ahead.is_some_and(|ahead| {
            let places = ahead.placements.iter().zip(&start.placements);
            places.into_iter().all(|(a, b)| (a.node, &a.devices) == (b.node, &b.devices))
        });
        if end.1 >= self.successors_max(class.shape) || !same_place {
            return Err(OUTDATED("the claim"));
        }
        Ok(())
    }

    /// Checks that every task fits where the plan puts it, all together; returns what they take.
    fn check_nodes(
        &self,
        spec: &crate::model::spec::JobSpec,
        pool: &Pool,
        start: &Start,
    ) -> Result<Resources, Rejection> {
        let mut taken: BTreeMap<NodeId, (Resources, BTreeMap<u16, u32>)> = BTreeMap::new();
        let mut total = Resources::default();
        for placement in &start.placements {
            let node =
                pool.nodes.get(&placement.node).filter(|node| node.is_open()).ok_or(OUTDATED("a node"))?;
            let request = &spec.groups[usize::from(placement.group)].request;
            let (used, devices) = taken.entry(node.id).or_default();
            *used = used.checked_add(&request.resources).ok_or(OUTDATED("a node"))?;
            if !used.fits(&node.free()) {
                return Err(OUTDATED("a node's free capacity"));
            }
            for share in &placement.devices {
                let held = devices.entry(share.index).or_default();
                *held += share.millis;
                if *held > node.device_free(usize::from(share.index)) {
                    return Err(OUTDATED("a device's free capacity"));
                }
            }
            let shares_fit = match request.devices.as_ref().map(|devices| devices.amount) {
                None => placement.devices.is_empty(),
                Some(DeviceAmount::Whole(count)) => {
                    placement.devices.len() == count as usize
                        && placement.devices.iter().all(|share| share.millis == DEVICE_MILLIS)
                }
                Some(DeviceAmount::Fraction(millis)) => {
                    matches!(&placement.devices[..], [share] if share.millis == millis)
                }
            };
            if !shares_fit {
                return Err(OUTDATED("the devices asked for"));
            }
            total = total.checked_add(&request.total()).ok_or(OUTDATED("the total"))?;
        }
        Ok(total)
    }

    fn check_limits(&self, queue: crate::model::id::QueueId, more: &Resources) -> Result<(), Rejection> {
        for queue in self.queue_path(queue) {
            let sum = queue.usage.checked_add(more).ok_or(OUTDATED("a queue's usage"))?;
            if queue.spec.limit.first_excess(&sum).is_some() && !Mutant::IgnoreQueueLimit.is_on() {
                return Err(OUTDATED("a queue's free limit"));
            }
        }
        Ok(())
    }
}
