//! The promises, checked as the world goes on and when it has come to rest.

use std::collections::BTreeMap;

use weir::broker::{Answer, Broker};
use weir::model::attempt::{OutcomeKind, Phase};
use weir::model::change::Change;
use weir::model::id::Revision;
use weir::scheduler::Scheduler;
use weir::state::decide::Reply;
use weir::state::event::Event;
use weir::state::rejection::Rejection;

use super::World;

/// How often each kind of thing happened.
#[derive(Clone, Debug)]
pub struct Counts {
    pub events: [u64; Event::KINDS.len()],
    pub rejections: [u64; Rejection::MANUAL.len()],
    pub outcomes: BTreeMap<&'static str, u64>,
    pub reasons: BTreeMap<&'static str, u64>,
    /// Attempts ordered in a line behind another.
    pub lined_up: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            events: [0; Event::KINDS.len()],
            rejections: [0; Rejection::MANUAL.len()],
            outcomes: BTreeMap::new(),
            reasons: BTreeMap::new(),
            lined_up: 0,
        }
    }
}

impl Counts {
    pub(crate) fn event(&mut self, event: &Event) {
        self.events[event.kind()] += 1;
        if let Event::AttemptOrdered { order } = event {
            self.lined_up += u64::from(order.after.is_some());
        }
        if let Event::AttemptEnded { ended, .. } = event {
            *self.outcomes.entry(ended.outcome.kind.code()).or_default() += 1;
        }
    }

    pub(crate) fn rejection(&mut self, rejection: &Rejection) {
        self.rejections[rejection.kind()] += 1;
    }

    /// Adds another seed's counts.
    pub fn add(&mut self, other: &Self) {
        self.events.iter_mut().zip(other.events).for_each(|(sum, more)| *sum += more);
        self.rejections.iter_mut().zip(other.rejections).for_each(|(sum, more)| *sum += more);
        self.lined_up += other.lined_up;
        for (sums, more) in [(&mut self.outcomes, &other.outcomes), (&mut self.reasons, &other.reasons)] {
            more.iter().for_each(|(kind, count)| *sums.entry(kind).or_default() += count);
        }
    }

    /// Kinds of event and outcome that never came up, apart from those that need no simulation.
    pub fn unreached(&self) -> Vec<&'static str> {
        // Rejections of other writers, of full tables and of old disks have tests of their own.
        let elsewhere = ["StaleTerm", "LimitReached", "ReadOnly", "Preempted"];
        let events =
            Event::KINDS.iter().zip(self.events).filter(|(_, count)| *count == 0).map(|(kind, _)| *kind);
        let manual = Rejection::MANUAL.iter().zip(self.rejections);
        let rejections = manual.filter(|(_, count)| *count == 0).map(|(entry, _)| entry.0);
        let outcomes =
            OutcomeKind::ALL.iter().map(|kind| kind.code()).filter(|code| !self.outcomes.contains_key(code));
        let line = (self.lined_up == 0).then_some("an attempt in a line");
        events
            .chain(rejections)
            .chain(outcomes)
            .chain(line)
            .filter(|kind| !elsewhere.contains(kind))
            .collect()
    }
}

impl World {
    /// After every step of the broker. The costly checks run on a sample of revisions.
    pub(crate) fn check_step(&mut self, broker: &Broker) -> Result<(), String> {
        let state = broker.state();
        if state.revision() < self.checked_at {
            return Err(format!("revision {} after {}", state.revision(), self.checked_at));
        }
        let sampled = state.revision().0 / 64 != self.checked_at.0 / 64;
        self.checked_at = state.revision();
        self.check_capacity(broker)?;
        if sampled {
            state.check()?;
            let rebuilt = Scheduler::rebuild(state);
            if !rebuilt.same_nodes(broker.scheduler()) {
                return Err("the scheduler's kept index differs from a rebuilt one".to_owned());
            }
        }
        Ok(())
    }

    /// No decision exceeds what is attested: what was ordered last must have fitted.
    fn check_capacity(&self, broker: &Broker) -> Result<(), String> {
        let state = broker.state();
        for pool in state.pools() {
            for node in pool.nodes.values().filter(|node| !node.gone) {
                let ordered_after_report = pool.attempts.iter().any(|unit| {
                    state.attempt(*unit).is_some_and(|attempt| {
                        attempt.phase == Phase::Ordered
                            && attempt.ordered_revision > node.revision
                            && attempt.placements.iter().any(|placement| placement.node == node.id)
                    })
                });
                if !ordered_after_report {
                    continue;
                }
                let over_devices = (0..node.spec.devices.len())
                    .any(|index| node.committed_devices[index] > node.spec.devices[index].millis);
                if !node.committed.fits(&node.total()) || over_devices {
                    return Err(format!(
                        "node {} of pool {} holds more than it has",
                        node.spec.name, pool.spec.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// An acknowledgement rests on durable events.
    pub(crate) fn check_reply(&self, result: &Result<Reply, Rejection>) -> Result<(), String> {
        if let Ok(Reply::Submitted { first, count }) = result
            && self.journal.replica.next_job().0 < first.0 + u64::from(*count)
        {
            return Err(format!("jobs from {first} on are acknowledged but not durable"));
        }
        Ok(())
    }

    pub(crate) fn check_notify(&self, changes: &[(Revision, Change)]) -> Result<(), String> {
        let durable = self.journal.replica.revision();
        let early = changes.iter().find(|(revision, _)| *revision > durable);
        early.map_or(Ok(()), |(revision, _)| Err(format!("watchers see {revision}, durable is {durable}")))
    }

    pub(crate) fn check_answer(&mut self, answer: &Answer) -> Result<(), String> {
        let Answer::Why(Some(why)) = answer else { return Ok(()) };
        let pools = self.broker.as_ref().map_or(0, |broker| broker.state().pools().count());
        for group in &why.groups {
            let mut seen: Vec<_> = group.why.pools.iter().map(|pool| pool.pool).collect();
            seen.dedup();
            if seen.len() != group.why.pools.len() || (seen.len() != pools && self.broker.is_some()) {
                return Err(format!("why counts {} of {pools} pools", seen.len()));
            }
            for pool in &group.why.pools {
                *self.counts.reasons.entry(pool.reason.code()).or_default() += 1;
            }
        }
        for reason in &why.reasons {
            *self.counts.reasons.entry(reason.code()).or_default() += 1;
        }
        Ok(())
    }

    /// All that was acknowledged has ended, or can never run.
    pub(crate) fn converged(&self) -> bool {
        let Some(broker) = &self.broker else { return false };
        let state = broker.state();
        let up = self.agents.iter().all(|host| host.machine.as_ref().is_some_and(|machine| machine.is_up()));
        // One seed in sixteen goes on until every request token has expired.
        let tokens_gone = !self.seed.is_multiple_of(16) || state.tokens().is_empty();
        up && tokens_gone
            && self.client.is_idle()
            && state.attempts().next().is_none()
            && broker.durable() == state.revision()
            && state.jobs_from(weir::model::id::JobId(0)).all(|job| self.never_fits(broker, job.id))
    }

    /// A job that waits only because no pool could ever take it, or waits for such a job.
    fn never_fits(&self, broker: &Broker, id: weir::model::id::JobId) -> bool {
        let state = broker.state();
        let Some(view) = state.job_view(id) else { return true };
        let waits_for_stuck = view.spec.depends_on.iter().any(|edge| state.job(edge.job).is_some());
        waits_for_stuck
            || (0..view.spec.unit_group_count()).all(|group| {
                let shape = weir::model::shape::Shape::of(&view.spec, group);
                !broker.scheduler().could_ever_fit(state, &shape)
            })
    }

    pub(crate) fn check_end(&mut self) -> Result<(), String> {
        let Some(broker) = &self.broker else { return Err("no broker".to_owned()) };
        broker.state().check()?;
        for job in &self.client.acknowledged {
            let live = broker.state().job(*job).is_some();
            let ended = self.journal.ended.contains_key(job);
            if live == ended {
                let how = if live { "both alive and archived" } else { "lost" };
                return Err(format!("job {job} was acknowledged and is {how}"));
            }
        }
        for host in &self.agents {
            if let Some((attempt, _)) = host.backend.live().next() {
                return Err(format!("attempt {attempt} still runs at its backend"));
            }
        }
        Ok(())
    }

    pub(crate) fn leftovers(&self) -> String {
        let Some(broker) = &self.broker else { return "the broker is down".to_owned() };
        let state = broker.state();
        let attempts: Vec<String> = state
            .attempts()
            .take(3)
            .map(|attempt| format!("{} {:?} in {}", attempt.id(state.journal()), attempt.phase, attempt.pool))
            .collect();
        let jobs: Vec<String> = state
            .jobs_from(weir::model::id::JobId(0))
            .filter(|job| !self.never_fits(broker, job.id))
            .take(3)
            .map(|job| {
                let shape = state.class_of(job, 0).and_then(|class| state.shape(class.shape));
                let why = shape.map(|shape| broker.scheduler().why(state, shape));
                let reasons: Vec<String> =
                    why.iter().flat_map(|why| &why.pools).map(|p| format!("{:?}", p.reason)).collect();
                format!("job {} closing {:?} {:?}: {reasons:?}", job.id, job.closing, job.groups)
            })
            .collect();
        let up = self
            .agents
            .iter()
            .filter(|host| host.machine.as_ref().is_some_and(|machine| machine.is_up()))
            .count();
        format!(
            "{up} agents up, {} open calls, durable {} of {}, attempts {attempts:?}, jobs {jobs:?}",
            u8::from(!self.client.is_idle()),
            broker.durable(),
            state.revision()
        )
    }
}
