//! Invariants that are checked during a run.

use std::collections::BTreeSet;

use weir::agent::StartRequest;
use weir::broker::query::JobWhy;
use weir::broker::{AnyAnswer, Broker, CallId, SessionId};
use weir::model::attempt::{AttemptReport, Phase, StopReason};
use weir::model::change::Change;
use weir::model::exchange::{FromAgent, ToAgent};
use weir::model::high_water::HighWaterMark;
use weir::model::id::{AttemptId, Epoch, PoolId, Revision, UnitId};
use weir::model::pool::Connectivity;
use weir::scheduler::{Budget, Scheduler};
use weir::state::State;
use weir::state::decide::Reply;
use weir::state::rejection::Rejection;

use super::World;
use super::backend::{DEVICE_MILLIS, NODE_CPU_MILLIS};

/// Expensive checks run once in this many revisions.
const SAMPLED_EVERY: u64 = 160;

/// The pools of a state.
pub(crate) fn pool_ids(state: &State) -> BTreeSet<PoolId> {
    state.pools().map(|pool| pool.id).collect()
}

impl World {
    /// Checks the state after a step of a broker; the expensive checks run on a sample of revisions.
    pub(crate) fn check_step(&mut self, host: usize, broker: &Broker) -> Result<(), String> {
        let state = broker.state();
        let checked_at = self.brokers[host].checked_at;
        if state.revision() < checked_at {
            return Err(format!("revision {} after {checked_at}", state.revision()));
        }
        let newest = !self.brokers[host].on_stale_copy && broker.term() == self.journal.term;
        if let Some(reported) = broker.outdated().filter(|_| newest) {
            return Err(format!(
                "the broker on the newest journal treats it as stale, after revision {reported}"
            ));
        }
        let sampled = state.revision().0 / SAMPLED_EVERY != checked_at.0 / SAMPLED_EVERY;
        self.brokers[host].checked_at = state.revision();
        if sampled {
            state.check()?;
            let rebuilt = Scheduler::rebuild(state);
            if !rebuilt.same_nodes(broker.scheduler()) {
                return Err("the scheduler's index differs from a rebuilt one".to_owned());
            }
        }
        Ok(())
    }

    /// Checks that a broker that ends would have planned what one plans that knows its state alone.
    ///
    /// Two things are left out. Reserved nodes are not part of the state yet: where there are any, before or after,
    /// plans may differ. A unit may be queued behind a running one, which costs nothing, when its class is tried;
    /// that alone makes no waiting class runnable, but a rebuilt broker tries every class.
    pub(crate) fn check_plan(&mut self, broker: Broker) -> Result<(), String> {
        let (state, mut live) = broker.into_parts();
        let mut rebuilt = live.rebuilt(&state);
        if live.has_reserved_nodes() {
            return Ok(());
        }
        let budget = Budget { starts: u32::MAX, work: u32::MAX };
        let (mut planned, mut expected) = (live.plan(&state, budget), rebuilt.plan(&state, budget));
        for plan in [&mut planned, &mut expected] {
            plan.starts.retain(|start| start.after.is_none());
        }
        if live.has_reserved_nodes() || rebuilt.has_reserved_nodes() {
            return Ok(());
        }
        self.counts.plans_compared += 1;
        self.counts.planned_starts_compared += planned.starts.len() as u64;
        if planned.policy != expected.policy || planned.starts != expected.starts {
            return Err(format!(
                "at revision {} a rebuilt broker plans {:?} {:?}, the live one {:?} {:?}",
                state.revision(),
                expected.policy,
                expected.starts,
                planned.policy,
                planned.starts
            ));
        }
        Ok(())
    }

    /// Checks that an acknowledged submission is durable.
    pub(crate) fn check_reply(&self, result: &Result<Reply, Rejection>) -> Result<(), String> {
        if let Ok(Reply::Submitted { first, count }) = result
            && self.journal.replica.next_job().0 < first.0 + u64::from(*count)
        {
            return Err(format!("jobs from {first} on are acknowledged but not durable"));
        }
        Ok(())
    }

    /// Checks that watchers receive durable changes only, and in order.
    pub(crate) fn check_notify(&mut self, host: usize, changes: &[(Revision, Change)]) -> Result<(), String> {
        let durable = self.journal.replica.revision();
        if let Some((revision, _)) = changes.iter().find(|(revision, _)| *revision > durable) {
            return Err(format!("watchers receive revision {revision}, durable is {durable}"));
        }
        // Watchers of a deposed writer list the state again at the new one, so its changes are not applied.
        let current = self.brokers[host].machine.as_ref().is_some_and(|broker| broker.durable() == durable);
        if current && self.writer() == Some(host) {
            self.watch.apply(changes, &self.journal.replica)?;
        }
        Ok(())
    }

    /// Checks that an answer to `why` has each pool once, and counts its reasons.
    pub(crate) fn check_answer(
        &mut self,
        host: usize,
        call: CallId,
        answer: &AnyAnswer,
    ) -> Result<(), String> {
        let Some(Some(why)) = answer.downcast_ref::<Option<Box<JobWhy>>>() else { return Ok(()) };
        // Pools may be registered and deleted between the query and its answer.
        let now =
            self.brokers[host].machine.as_ref().map(|broker| pool_ids(broker.state())).unwrap_or_default();
        let then = self.client.pools_at_query.remove(&call).unwrap_or_default();
        for group in &why.groups {
            let listed: BTreeSet<PoolId> = group.why.pools.iter().map(|pool| pool.pool).collect();
            let counted = group.why.pools.len();
            let unknown = listed.iter().any(|pool| !now.contains(pool) && !then.contains(pool));
            if listed.len() != counted
                || unknown
                || !then.intersection(&now).all(|pool| listed.contains(pool))
            {
                return Err(format!("why lists {counted} pools, {listed:?}, of {then:?} to {now:?}"));
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

    /// Checks that a message to an agent follows from durable events, and stops no attempt that must run.
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
        let on_stale_copy = self.brokers[host].on_stale_copy;
        // An attempt that a broker on a stale copy ordered may have the id of a later attempt of the true
        // journal.
        let objects = &self.agents[agent].backend.objects;
        let of_stale_copy =
            |attempt: &AttemptId| objects.get(attempt).is_some_and(|object| object.of_stale_copy);
        // The order of a broker on a stale copy arrived too late for a start: an attempt with the same id
        // that has just been ordered is a different one.
        let never_started = |attempt: &AttemptId| {
            !objects.contains_key(attempt) && self.stale_copy_ordered.contains(&(agent, *attempt))
        };
        match message {
            ToAgent::Stops { stops, .. } => {
                let must_run = |live: &weir::state::live::Attempt| live.phase != Phase::Stopping;
                // On a stale copy users may stop any attempt, but the broker must not stop one as orphaned.
                let wrong = stops
                    .iter()
                    .filter(|stop| {
                        !on_stale_copy || (stop.reason == StopReason::Orphaned && self.stale_copy_starts == 1)
                    })
                    .find(|stop| here(&stop.attempt).is_some_and(must_run));
                // An attempt of a stale copy must end before the true journal's attempt with the same id
                // starts.
                match wrong {
                    Some(stop) if !self.is_byzantine(agent) && !of_stale_copy(&stop.attempt) => {
                        Err(format!("agent {agent} receives a stop for {}, which must run", stop.attempt))
                    }
                    _ => Ok(()),
                }
            }
            _ if on_stale_copy => Ok(()),
            ToAgent::Accepted(accepted) => match pool {
                Some(pool) if pool.epoch >= accepted.epoch => {
                    let served = |last: &Epoch| *last < pool.served_epoch && self.writer() == Some(host);
                    if self.network.copies.get(&session).is_some_and(served) {
                        let rule = "although the original has served the pool since";
                        return Err(format!("a copy of agent {agent} is accepted {rule}"));
                    }
                    Ok(())
                }
                _ => Err(format!("agent {agent} is accepted in an epoch that is not durable")),
            },
            ToAgent::Orders { orders, .. } => {
                let durable = |attempt: &AttemptId| self.journal.history.was_ordered(*attempt);
                match orders.iter().find(|order| !durable(&order.attempt)) {
                    Some(order) => {
                        Err(format!("a start order for {} is sent but not durable", order.attempt))
                    }
                    None => Ok(()),
                }
            }
            ToAgent::Acknowledged { attempts } => match attempts.iter().find(|id| here(id).is_some()) {
                Some(attempt)
                    if !self.is_byzantine(agent) && !of_stale_copy(attempt) && !never_started(attempt) =>
                {
                    Err(format!("the end of {attempt} is acknowledged but not durable"))
                }
                _ => Ok(()),
            },
            // An agent that repeats its heartbeats asks for answers that it has had.
            ToAgent::HeartbeatAnswer { sequence, .. }
                if self.network.is_unanswerable(session, *sequence) && !self.is_byzantine(agent) =>
            {
                Err(format!("a deposed writer renews the leases of agent {agent}"))
            }
            ToAgent::Refused { .. } | ToAgent::HeartbeatAnswer { .. } => Ok(()),
        }
    }

    /// Notes the orders of a broker on a stale copy, and the outcomes that it acknowledges: agents forget
    /// those.
    pub(crate) fn note_stale_copy(&mut self, host: usize, session: SessionId, message: &ToAgent) {
        if !self.brokers[host].on_stale_copy {
            return;
        }
        match (message, self.network.agent_of(session)) {
            (ToAgent::Acknowledged { attempts }, _) => {
                self.stale_copy_outcomes.extend(attempts.iter().map(|attempt| attempt.unit_id()));
            }
            (ToAgent::Orders { orders, .. }, Some(agent)) => {
                self.stale_copy_ordered.extend(orders.iter().map(|order| (agent, order.attempt)));
            }
            _ => {}
        }
    }

    /// A broker on a stale copy ordered this start: after the end of the copy, or again an attempt that has
    /// ended in the true journal.
    pub(crate) fn is_of_stale_copy(&self, start: &StartRequest) -> bool {
        let order = &start.order;
        let copy_end = |high_water: HighWaterMark| self.stale_copy_sessions.get(&high_water.writer_session);
        let live = self.journal.replica.attempt(order.attempt.unit_id());
        let live = live.is_some_and(|live| live.number == order.attempt.number);
        order.high_water.and_then(copy_end).is_some_and(|end| order.revision > *end || !live)
    }

    /// An agent reports in an epoch that is no longer its pool's.
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

    /// Live attempts, with their revisions, whose id a report has although it is about another attempt.
    pub(crate) fn stale_ids(&self, host: usize, message: &FromAgent) -> Vec<(UnitId, Revision)> {
        let (FromAgent::Observed { reports, .. }, Some(broker)) = (message, &self.brokers[host].machine)
        else {
            return Vec::new();
        };
        let other = |report: &AttemptReport| {
            let live = broker.state().attempt(report.attempt.unit_id())?;
            let named = live.number == report.attempt.number && report.ordered_revision != Revision(0);
            let other = named && live.ordered_revision != report.ordered_revision;
            // The lease of an unreachable pool may end in the same step, when its message arrives.
            let unreachable =
                broker.state().pool(live.pool).is_some_and(|pool| pool.connectivity > Connectivity::Suspect);
            (other && !unreachable).then_some((live.unit, live.revision))
        };
        // An attempt that the same message also reports correctly may change.
        let is_reported = |unit: &UnitId| {
            reports
                .iter()
                .filter(|report| report.attempt.unit_id() == *unit)
                .any(|report| other(report).is_none())
        };
        reports.iter().filter_map(other).filter(|(unit, _)| !is_reported(unit)).collect()
    }

    /// Checks that none of these attempts has changed.
    pub(crate) fn check_stale_ids(&self, host: usize, before: &[(UnitId, Revision)]) -> Result<(), String> {
        let Some(broker) = &self.brokers[host].machine else { return Ok(()) };
        for (unit, revision) in before {
            let after = broker.state().attempt(*unit).map(|live| live.revision);
            // The same step may stop the attempt for another reason; it is then still live.
            let stopped = broker.state().attempt(*unit).is_some_and(|live| live.phase == Phase::Stopping);
            if after != Some(*revision) && !stopped {
                return Err(format!("{unit:?} is changed by a report on another attempt with its id"));
            }
        }
        Ok(())
    }

    /// Checks that a broker on a stale copy detects it at the hello of the first agent with later data.
    pub(crate) fn check_hello(&mut self, host: usize, agent: usize) -> Result<(), String> {
        if !self.brokers[host].on_stale_copy || self.is_byzantine(agent) {
            return Ok(());
        }
        let Some(broker) = &self.brokers[host].machine else { return Ok(()) };
        let revision = broker.state().revision();
        self.stale_copy_hellos.entry(agent).or_insert(revision);
        if broker.outdated().is_some() {
            self.counts.stale_copies_detected += 1;
            return Ok(());
        }
        // The writer session in which the copy was taken continued on the true journal: every broker on the
        // copy must detect a later revision of that session.
        let high_water = self.agents[agent].hello.high_water;
        let is_later = |high_water: HighWaterMark| {
            high_water.writer_session == self.stale_copy_session
                && high_water.revision > self.stale_copy_end
                && self.stale_copy_session != 0
        };
        if high_water.is_some_and(is_later) {
            return Err(format!(
                "agent {agent} has a later revision of the copy's writer session, and the broker does not detect it"
            ));
        }
        let recovered = self.brokers[host].recovered;
        let true_objects = self.agents[agent].backend.objects.values().filter(|object| !object.of_stale_copy);
        let revisions = true_objects.map(|object| object.start.order.revision);
        match revisions.chain([self.agents[agent].remembered]).max() {
            Some(newest) if newest > recovered => Err(format!(
                "agent {agent} has revision {newest}, and the broker that recovered {recovered} does not detect it"
            )),
            _ => Ok(()),
        }
    }

    /// Checks that at most one attempt of a unit is live, unless its job or an admin allows more.
    pub(crate) fn check_no_overlap(
        &self,
        attempt: AttemptId,
        start: &StartRequest,
        of_stale_copy: bool,
    ) -> Result<(), String> {
        let live = self.agents.iter().enumerate();
        for (index, host) in live {
            for (other, object) in host.backend.live() {
                if other.unit_id() != attempt.unit_id() {
                    continue;
                }
                let allowed = object.may_overlap()
                    || start.spec.may_overlap
                    || object.of_stale_copy
                    || self.is_byzantine(index)
                    || self.client.abandoned.contains(other)
                    || self.client.abandoned.contains(&attempt);
                // A broker on a stale copy has no record of an attempt until the attempt's agent reports it,
                // but must wait for that report during the recovery grace period.
                let hello_at = self.stale_copy_hellos.get(&index);
                let unreported = hello_at.is_none_or(|hello_at| *hello_at >= start.order.revision);
                let in_grace =
                    self.stale_copy_expected.contains(&index) && self.now < self.stale_copy_grace_until;
                let undetectable = of_stale_copy && ((unreported && !in_grace) || self.stale_copy_starts > 1);
                if !allowed && !undetectable {
                    return Err(format!("{attempt} starts while {other} of the same unit is live"));
                }
            }
        }
        Ok(())
    }

    /// Checks that a start exceeds neither the full CPU of a node nor a device at the backend.
    pub(crate) fn check_capacity(&self, index: usize, start: &StartRequest) -> Result<(), String> {
        // The broker no longer counts attempts that were abandoned or may overlap.
        let counted = |attempt: &AttemptId, object: &super::backend::Object| {
            !object.may_overlap() && !object.of_stale_copy && !self.client.abandoned.contains(attempt)
        };
        let live = self.agents[index].backend.live().filter(|(attempt, object)| counted(attempt, object));
        let starts: Vec<&StartRequest> = live.map(|(_, object)| &object.start).chain([start]).collect();
        for task in &start.order.tasks {
            let cpu: u64 = starts.iter().map(|start| cpu_on(start, &task.node)).sum();
            if cpu > NODE_CPU_MILLIS {
                let users: Vec<String> = starts
                    .iter()
                    .filter(|start| cpu_on(start, &task.node) > 0)
                    .map(|start| format!("{} {}", start.order.attempt, cpu_on(start, &task.node)))
                    .collect();
                let users = users.join(", ");
                return Err(format!(
                    "node {} has {cpu} of {NODE_CPU_MILLIS} millicores in use: {users}",
                    task.node
                ));
            }
            for share in &task.devices {
                let of = |start: &&StartRequest| device_on(start, &task.node, share.index);
                let used: u32 = starts.iter().map(of).sum();
                if used > DEVICE_MILLIS {
                    let attempt = start.order.attempt;
                    return Err(format!(
                        "{attempt} brings device {} of {} to {used} thousandths",
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
