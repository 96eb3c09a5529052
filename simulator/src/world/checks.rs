//! The promises, checked as the world goes on.

use std::collections::BTreeSet;

use weir::agent::StartRequest;
use weir::broker::{Answer, Broker, CallId, SessionId};
use weir::model::attempt::{AttemptReport, Phase, StopReason};
use weir::model::change::Change;
use weir::model::exchange::{FromAgent, ToAgent};
use weir::model::high_water::HighWaterMark;
use weir::model::id::{AttemptId, Revision, UnitId};
use weir::model::pool::Connectivity;
use weir::scheduler::Scheduler;
use weir::state::decide::Reply;
use weir::state::rejection::Rejection;

use super::World;
use super::backend::{DEVICE_MILLIS, NODE_CPU_MILLIS};

/// Costly checks run once in so many revisions.
const SAMPLED_EVERY: u64 = 160;

impl World {
    /// After every step of a broker. The costly checks run on a sample of revisions.
    pub(crate) fn check_step(&mut self, host: usize, broker: &Broker) -> Result<(), String> {
        let state = broker.state();
        let checked_at = self.brokers[host].checked_at;
        if state.revision() < checked_at {
            return Err(format!("revision {} after {checked_at}", state.revision()));
        }
        let newest = !self.brokers[host].on_fork && broker.term() == self.journal.term;
        if let Some(seen) = broker.outdated().filter(|_| newest) {
            return Err(format!("the broker takes the newest journal for an old one: {seen}"));
        }
        let sampled = state.revision().0 / SAMPLED_EVERY != checked_at.0 / SAMPLED_EVERY;
        self.brokers[host].checked_at = state.revision();
        if sampled {
            state.check()?;
            let rebuilt = Scheduler::rebuild(state);
            if !rebuilt.same_nodes(broker.scheduler()) {
                return Err("the scheduler's kept index differs from a rebuilt one".to_owned());
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

    pub(crate) fn check_notify(&mut self, host: usize, changes: &[(Revision, Change)]) -> Result<(), String> {
        let durable = self.journal.replica.revision();
        if let Some((revision, _)) = changes.iter().find(|(revision, _)| *revision > durable) {
            return Err(format!("watchers see {revision}, durable is {durable}"));
        }
        // A deposed writer's watchers are to list anew at the other one.
        let current = self.brokers[host].machine.as_ref().is_some_and(|broker| broker.durable() == durable);
        if current && self.writer() == Some(host) {
            self.watch.take(changes, &self.journal.replica)?;
        }
        Ok(())
    }

    pub(crate) fn check_answer(&mut self, host: usize, call: CallId, answer: &Answer) -> Result<(), String> {
        let Answer::Why(Some(why)) = answer else { return Ok(()) };
        // Pools may be registered between the question and its answer, and are never removed.
        let now = self.brokers[host].machine.as_ref().map_or(0, |broker| broker.state().pools().count());
        let then = self.client.pools_asked.remove(&call).unwrap_or_default();
        for group in &why.groups {
            let seen: BTreeSet<_> = group.why.pools.iter().map(|pool| pool.pool).collect();
            let counted = group.why.pools.len();
            if seen.len() != counted || counted > now || counted < then {
                let once = seen.len();
                return Err(format!("why counts {counted} pools, {once} of them once, of {then} to {now}"));
            }
            for pool in &group.why.pools {
                self.counts.reason(pool.reason.code());
            }
        }
        for reason in &why.reasons {
            self.counts.reason(reason.code());
        }
        Ok(())
    }

    /// What agents are told rests on durable events, and stops nothing that is to run.
    pub(crate) fn check_direct(
        &self,
        host: usize,
        session: SessionId,
        message: &ToAgent,
    ) -> Result<(), String> {
        let Some(agent) = self.network.agent_of(session) else { return Ok(()) };
        let replica = &self.journal.replica;
        let pool = replica.pool_named(&self.agents[agent].hello.pool.name);
        let here = |attempt: &AttemptId| {
            let live = replica.attempt(attempt.unit_id()).filter(|live| live.number == attempt.number);
            live.filter(|live| pool.is_some_and(|pool| pool.id == live.pool))
        };
        let on_fork = self.brokers[host].on_fork;
        // What an older disk ordered, and its agent remembers, may have a namesake here by now.
        let objects = &self.agents[agent].backend.objects;
        let of_fork = |attempt: &AttemptId| objects.get(attempt).is_some_and(|object| object.of_fork);
        // It was ordered by a broker on an older disk, too late to be started: what has just been ordered
        // by the same name is another.
        let never_was = |attempt: &AttemptId| {
            !objects.contains_key(attempt) && self.fork_ordered.contains(&(agent, *attempt))
        };
        match message {
            ToAgent::Stops { stops, .. } => {
                let good = |live: &weir::state::live::Attempt| live.phase != Phase::Stopping;
                // What users do on an older disk is theirs to do; the broker itself must not.
                let wrong = stops
                    .iter()
                    .filter(|stop| !on_fork || (stop.reason == StopReason::Orphaned && self.fork_lives == 1))
                    .find(|stop| here(&stop.attempt).is_some_and(good));
                // An older disk's work of the same name must end before the newer one's is there.
                match wrong {
                    Some(stop) if !self.is_liar(agent) && !of_fork(&stop.attempt) => {
                        Err(format!("agent {agent} is told to stop {}, which is to run", stop.attempt))
                    }
                    _ => Ok(()),
                }
            }
            _ if on_fork => Ok(()),
            ToAgent::Accepted(accepted) => match pool {
                Some(pool) if pool.epoch >= accepted.epoch => Ok(()),
                _ => Err(format!("agent {agent} is accepted in an epoch that is not durable")),
            },
            ToAgent::Orders { orders, .. } => {
                let known = |attempt: &AttemptId| self.journal.history.was_ordered(*attempt);
                match orders.iter().find(|order| !known(&order.attempt)) {
                    Some(order) => Err(format!("attempt {} is sent but not durable", order.attempt)),
                    None => Ok(()),
                }
            }
            ToAgent::Acknowledged { attempts } => match attempts.iter().find(|id| here(id).is_some()) {
                Some(attempt) if !self.is_liar(agent) && !of_fork(attempt) && !never_was(attempt) => {
                    Err(format!("the end of {attempt} is acknowledged but not durable"))
                }
                _ => Ok(()),
            },
            ToAgent::HeartbeatAnswer { sequence, .. } if self.network.is_unanswerable(session, *sequence) => {
                Err(format!("a deposed writer keeps the leases of agent {agent}"))
            }
            ToAgent::Refused { .. } | ToAgent::HeartbeatAnswer { .. } => Ok(()),
        }
    }

    /// Notes what a broker on an older disk orders, and which outcomes it takes, which their agents forget.
    pub(crate) fn note_fork(&mut self, host: usize, session: SessionId, message: &ToAgent) {
        if !self.brokers[host].on_fork {
            return;
        }
        match (message, self.network.agent_of(session)) {
            (ToAgent::Acknowledged { attempts }, _) => {
                self.fork_took.extend(attempts.iter().map(|attempt| attempt.unit_id()));
            }
            (ToAgent::Orders { orders, .. }, Some(agent)) => {
                self.fork_ordered.extend(orders.iter().map(|order| (agent, order.attempt)));
            }
            _ => {}
        }
    }

    /// A broker on an older copy of the journal ordered it, or what has ended since by the true one.
    pub(crate) fn is_of_fork(&self, start: &StartRequest) -> bool {
        let order = &start.order;
        let copied = |high_water: HighWaterMark| self.fork_turns.get(&high_water.writer_session);
        let live = self.journal.replica.attempt(order.attempt.unit_id());
        let live = live.is_some_and(|live| live.number == order.attempt.number);
        order.high_water.and_then(copied).is_some_and(|copied| order.revision > *copied || !live)
    }

    /// An agent reports in an epoch that is not its pool's any more.
    pub(crate) fn is_stale(&self, host: usize, agent: usize, message: &FromAgent) -> bool {
        let state = self.brokers[host].machine.as_ref().map(Broker::state);
        let pool = state.and_then(|state| state.pool_named(&self.agents[agent].hello.pool.name));
        let epoch = match message {
            FromAgent::Hello(_) => return false,
            FromAgent::Inventory(inventory) => inventory.epoch,
            FromAgent::Observed { epoch, .. } | FromAgent::Heartbeat { epoch, .. } => *epoch,
        };
        pool.is_some_and(|pool| pool.epoch != epoch)
    }

    /// Live attempts that a report names, and which are not what it is about: with their revisions.
    pub(crate) fn stale_ids(&self, host: usize, message: &FromAgent) -> Vec<(UnitId, Revision)> {
        let (FromAgent::Observed { reports, .. }, Some(broker)) = (message, &self.brokers[host].machine)
        else {
            return Vec::new();
        };
        let other = |report: &AttemptReport| {
            let live = broker.state().attempt(report.attempt.unit_id())?;
            let named = live.number == report.attempt.number && report.ordered_revision != Revision(0);
            let other = named && live.ordered_revision != report.ordered_revision;
            // Its lease may end in the same step, as soon as the pool that speaks is heard.
            let silent =
                broker.state().pool(live.pool).is_some_and(|pool| pool.connectivity > Connectivity::Suspect);
            (other && !silent).then_some((live.unit, live.revision))
        };
        // One that is named rightly as well may move on.
        let right = |unit: &UnitId| {
            reports
                .iter()
                .filter(|report| report.attempt.unit_id() == *unit)
                .any(|report| other(report).is_none())
        };
        reports.iter().filter_map(other).filter(|(unit, _)| !right(unit)).collect()
    }

    pub(crate) fn check_stale_ids(&self, host: usize, before: &[(UnitId, Revision)]) -> Result<(), String> {
        let Some(broker) = &self.brokers[host].machine else { return Ok(()) };
        for (unit, revision) in before {
            let after = broker.state().attempt(*unit).map(|live| live.revision);
            // In the same step it may be stopped for reasons of its own: then it is still there.
            let stopped = broker.state().attempt(*unit).is_some_and(|live| live.phase == Phase::Stopping);
            if after != Some(*revision) && !stopped {
                return Err(format!("{unit:?} moves on by a report on another attempt of its name"));
            }
        }
        Ok(())
    }

    /// A broker on an older disk must see it by the first agent that runs what it doesn't know.
    pub(crate) fn check_hello(&mut self, host: usize, agent: usize) -> Result<(), String> {
        if !self.brokers[host].on_fork || self.is_liar(agent) {
            return Ok(());
        }
        let Some(broker) = &self.brokers[host].machine else { return Ok(()) };
        let revision = broker.state().revision();
        self.fork_heard.entry(agent).or_insert(revision);
        if broker.outdated().is_some() {
            self.counts.older_disks_noticed += 1;
            return Ok(());
        }
        // The turn in which the copy was taken went on elsewhere: that is seen whoever opens the copy.
        let high_water = self.agents[agent].hello.high_water;
        let went_on = |high_water: HighWaterMark| {
            high_water.writer_session == self.fork_turn
                && high_water.revision > self.fork_from
                && self.fork_turn != 0
        };
        if high_water.is_some_and(went_on) {
            return Err(format!("agent {agent} was told more in the turn that the copy is of, unnoticed"));
        }
        let recovered = self.brokers[host].recovered;
        let known = self.agents[agent].backend.objects.values().filter(|object| !object.of_fork);
        let known = known.map(|object| object.start.order.revision);
        match known.chain([self.agents[agent].told]).max() {
            Some(newest) if newest > recovered => Err(format!(
                "agent {agent} knows of revision {newest}, the broker recovered {recovered} and doesn't notice"
            )),
            _ => Ok(()),
        }
    }

    /// At most one attempt of a unit is alive, unless its job or an admin allowed more.
    pub(crate) fn check_no_overlap(
        &self,
        attempt: AttemptId,
        start: &StartRequest,
        of_fork: bool,
    ) -> Result<(), String> {
        let live = self.agents.iter().enumerate();
        for (index, host) in live {
            for (other, object) in host.backend.live() {
                if other.unit_id() != attempt.unit_id() {
                    continue;
                }
                let allowed = object.may_overlap()
                    || start.spec.may_overlap
                    || object.of_fork
                    || self.is_liar(index)
                    || self.client.abandoned.contains(other)
                    || self.client.abandoned.contains(&attempt);
                // On an older disk a broker can't know what no agent has told it yet, but must give
                // them time to tell it.
                let heard = self.fork_heard.get(&index);
                let unheard = of_fork && heard.is_none_or(|heard| *heard >= start.order.revision);
                let too_soon = self.fork_awaits.contains(&index) && self.now < self.fork_awaits_until;
                let unheard = of_fork && ((unheard && !too_soon) || self.fork_lives > 1);
                if !allowed && !unheard {
                    return Err(format!("{attempt} starts while {other} of the same unit is alive"));
                }
            }
        }
        Ok(())
    }

    /// No node ever holds more than the most it had, whatever orders and lines led here.
    pub(crate) fn check_room(&self, index: usize, start: &StartRequest) -> Result<(), String> {
        // What the broker has given up, or may overlap, is not on its books any more.
        let counted = |attempt: &AttemptId, object: &super::backend::Object| {
            !object.may_overlap() && !object.of_fork && !self.client.abandoned.contains(attempt)
        };
        let live = self.agents[index].backend.live().filter(|(attempt, object)| counted(attempt, object));
        let starts: Vec<&StartRequest> = live.map(|(_, object)| &object.start).chain([start]).collect();
        for task in &start.order.tasks {
            let cpu: u64 = starts.iter().map(|start| cpu_on(start, &task.node)).sum();
            if cpu > NODE_CPU_MILLIS {
                let who: Vec<String> = starts
                    .iter()
                    .filter(|start| cpu_on(start, &task.node) > 0)
                    .map(|start| format!("{} {}", start.order.attempt, cpu_on(start, &task.node)))
                    .collect();
                let who = who.join(", ");
                return Err(format!("node {} holds {cpu} of {NODE_CPU_MILLIS} millicores: {who}", task.node));
            }
            for share in &task.devices {
                let of = |start: &&StartRequest| device_on(start, &task.node, share.index);
                let held: u32 = starts.iter().map(of).sum();
                if held > DEVICE_MILLIS {
                    let attempt = start.order.attempt;
                    return Err(format!(
                        "{attempt} brings device {} of {} to {held}",
                        share.index, task.node
                    ));
                }
            }
        }
        Ok(())
    }
}

fn cpu_on(start: &StartRequest, node: &str) -> u64 {
    let tasks = start.order.tasks.iter().filter(|task| task.node == node);
    tasks.map(|task| start.spec.groups[usize::from(task.group)].request.resources.cpu_millis).sum()
}

fn device_on(start: &StartRequest, node: &str, index: u16) -> u32 {
    let tasks = start.order.tasks.iter().filter(|task| task.node == node);
    tasks.flat_map(|task| &task.devices).filter(|share| share.index == index).map(|share| share.millis).sum()
}
