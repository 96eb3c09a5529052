//! The promises, checked as the world goes on and when it has come to rest.

use std::collections::BTreeSet;

use weir::agent::Launch;
use weir::broker::{Answer, Broker, CallId, SessionId};
use weir::model::attempt::{AttemptStatus, Phase, StopReason};
use weir::model::change::Change;
use weir::model::exchange::{FromAgent, Stop, ToAgent};
use weir::model::id::{AttemptId, JobId, Revision};
use weir::model::stamp::Stamp;
use weir::scheduler::Scheduler;
use weir::state::decide::Reply;
use weir::state::job::JobEnd;
use weir::state::rejection::Rejection;

use super::World;
use super::backend::{DEVICE_MILLIS, NODE_CPU_MILLIS};

/// Costly checks run once in so many revisions.
const SAMPLED_EVERY: u64 = 64;

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
        match message {
            ToAgent::Stops { stops, .. } => {
                let good = |live: &weir::state::live::Attempt| live.phase != Phase::Stopping;
                // What users do on an older disk is theirs to do; the broker itself must not.
                let wrong = stops
                    .iter()
                    .filter(|stop| !on_fork || stop.reason == StopReason::Stray)
                    .find(|stop| here(&stop.attempt).is_some_and(good));
                // An older disk's work of the same name must end before the newer one's is there.
                let objects = &self.agents[agent].backend.objects;
                let of_fork = |stop: &Stop| objects.get(&stop.attempt).is_some_and(|object| object.of_fork);
                match wrong {
                    Some(stop) if !self.is_liar(agent) && !of_fork(stop) => {
                        Err(format!("agent {agent} is told to stop {}, which is to run", stop.attempt))
                    }
                    _ => Ok(()),
                }
            }
            _ if on_fork => Ok(()),
            ToAgent::Welcome(welcome) => match pool {
                Some(pool) if pool.epoch >= welcome.epoch => Ok(()),
                _ => Err(format!("agent {agent} is welcome in an epoch that is not durable")),
            },
            ToAgent::Orders { orders, .. } => {
                let known = |attempt: &AttemptId| self.journal.history.was_ordered(*attempt);
                match orders.iter().find(|order| !known(&order.attempt)) {
                    Some(order) => Err(format!("attempt {} is sent but not durable", order.attempt)),
                    None => Ok(()),
                }
            }
            ToAgent::Acknowledged { attempts } => match attempts.iter().find(|id| here(id).is_some()) {
                Some(attempt) => Err(format!("the end of {attempt} is acknowledged but not durable")),
                None => Ok(()),
            },
            ToAgent::Refused { .. } | ToAgent::HeartbeatAnswer { .. } => Ok(()),
        }
    }

    /// An agent learns of orders: what it knows, a broker on an older disk must not overlook.
    pub(crate) fn note_told(&mut self, agent: usize, host: usize, message: &ToAgent) {
        let on_fork = self.brokers[host].on_fork;
        let stamp = match message {
            ToAgent::Welcome(welcome) => welcome.stamp,
            ToAgent::HeartbeatAnswer { stamp, .. } => *stamp,
            _ => None,
        };
        if let (true, ToAgent::Acknowledged { attempts }) = (on_fork, message) {
            self.fork_took.extend(attempts.iter().map(|attempt| attempt.unit_id()));
        }
        if let Some(stamp) = stamp.filter(|_| !on_fork) {
            let told = &mut self.agents[agent].told;
            *told = stamp.revision.max(*told);
        }
    }

    /// A broker on an older copy of the journal ordered it.
    pub(crate) fn is_of_fork(&self, launch: &Launch) -> bool {
        let copied = |stamp: Stamp| self.fork_turns.get(&stamp.turn);
        launch.order.stamp.and_then(copied).is_some_and(|copied| launch.order.revision > *copied)
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
        let recovered = self.brokers[host].recovered;
        let known = self.agents[agent].backend.objects.values().filter(|object| !object.of_fork);
        let known = known.map(|object| object.launch.order.revision);
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
        launch: &Launch,
        of_fork: bool,
    ) -> Result<(), String> {
        let live = self.agents.iter().enumerate();
        for (index, host) in live {
            for (other, object) in host.backend.live() {
                if other.unit_id() != attempt.unit_id() {
                    continue;
                }
                let allowed = object.may_overlap()
                    || launch.spec.may_overlap
                    || object.of_fork
                    || self.is_liar(index)
                    || self.client.abandoned.contains(other);
                // On an older disk a broker can't know what no agent has told it yet, but must give
                // them time to tell it.
                let heard = self.fork_heard.get(&index);
                let unheard = of_fork && heard.is_none_or(|heard| *heard >= launch.order.revision);
                let unheard =
                    unheard && !(self.fork_awaits.contains(&index) && self.now < self.fork_awaits_until);
                if !allowed && !unheard {
                    return Err(format!("{attempt} starts while {other} of the same unit is alive"));
                }
            }
        }
        Ok(())
    }

    /// No node ever holds more than the most it had, whatever orders and lines led here.
    pub(crate) fn check_room(&self, index: usize, launch: &Launch) -> Result<(), String> {
        // What the broker has given up, or may overlap, is not on its books any more.
        let counted = |attempt: &AttemptId, object: &super::backend::Object| {
            !object.may_overlap() && !object.of_fork && !self.client.abandoned.contains(attempt)
        };
        let live = self.agents[index].backend.live().filter(|(attempt, object)| counted(attempt, object));
        let launches: Vec<&Launch> = live.map(|(_, object)| &object.launch).chain([launch]).collect();
        for task in &launch.order.tasks {
            let cpu: u64 = launches.iter().map(|launch| cpu_on(launch, &task.node)).sum();
            if cpu > NODE_CPU_MILLIS {
                let who: Vec<String> = launches
                    .iter()
                    .filter(|launch| cpu_on(launch, &task.node) > 0)
                    .map(|launch| format!("{} {}", launch.order.attempt, cpu_on(launch, &task.node)))
                    .collect();
                let who = who.join(", ");
                return Err(format!("node {} holds {cpu} of {NODE_CPU_MILLIS} millicores: {who}", task.node));
            }
            for share in &task.devices {
                let of = |launch: &&Launch| device_on(launch, &task.node, share.index);
                let held: u32 = launches.iter().map(of).sum();
                if held > DEVICE_MILLIS {
                    let attempt = launch.order.attempt;
                    return Err(format!(
                        "{attempt} brings device {} of {} to {held}",
                        share.index, task.node
                    ));
                }
            }
        }
        Ok(())
    }

    /// All that was acknowledged has ended, or can never run.
    pub(crate) fn converged(&self) -> bool {
        let Some(broker) = self.writer().and_then(|host| self.brokers[host].machine.as_ref()) else {
            return false;
        };
        let state = broker.state();
        let up = self.agents.iter().all(|host| host.machine.as_ref().is_some_and(|machine| machine.is_up()));
        // One seed in sixteen goes on until every request token has expired.
        let tokens_gone = !self.seed.is_multiple_of(16) || state.tokens().is_empty();
        up && tokens_gone
            && self.client.is_idle()
            && state.attempts().next().is_none()
            && self.agents.iter().all(|host| host.backend.live().next().is_none())
            && broker.durable() == state.revision()
            && broker.durable() == self.journal.replica.revision()
            && state.jobs_from(JobId(0)).all(|job| self.never_fits(broker, job.id))
    }

    /// A job that waits only because no pool could ever take it, or waits for such a job.
    fn never_fits(&self, broker: &Broker, id: JobId) -> bool {
        let state = broker.state();
        let Some(view) = state.job_view(id) else { return true };
        let waits_for_stuck = view.spec.depends_on.iter().any(|edge| state.job(edge.job).is_some());
        let waits = |group: &usize| state.job(id).is_some_and(|job| !job.groups[*group].waiting.is_empty());
        waits_for_stuck
            || (0..view.spec.unit_group_count()).filter(waits).all(|group| {
                let shape = weir::model::shape::Shape::of(&view.spec, group);
                !broker.scheduler().could_ever_fit(state, &shape)
            })
    }

    pub(crate) fn check_end(&mut self) -> Result<(), String> {
        let Some(host) = self.writer() else { return Err("no broker".to_owned()) };
        let Some(broker) = &self.brokers[host].machine else { return Err("no broker".to_owned()) };
        broker.state().check()?;
        for job in &self.client.acknowledged {
            let live = broker.state().job(*job).is_some();
            let ended = self.journal.history.jobs.get(job).is_some_and(|job| job.end.is_some());
            if live == ended {
                let how = if live { "both alive and ended" } else { "lost" };
                return Err(format!("job {job} was acknowledged and is {how}"));
            }
        }
        self.check_runs()?;
        self.journal.recover().map(drop)
    }

    /// Every unit of a job that succeeded ran to a good end, and once.
    fn check_runs(&self) -> Result<(), String> {
        let journal = self.journal.replica.journal();
        for (job, kept) in
            self.journal.history.jobs.iter().filter(|(_, job)| job.end == Some(JobEnd::Succeeded))
        {
            for (number, unit) in kept.units.iter().enumerate() {
                let [attempt] = unit.succeeded[..] else {
                    // A job may allow some of its units to fail.
                    if unit.succeeded.is_empty() {
                        continue;
                    }
                    return Err(format!(
                        "unit {number} of job {job} succeeds {} times",
                        unit.succeeded.len()
                    ));
                };
                let unit_id = AttemptId { journal, job: *job, unit: number as u32, number: attempt };
                let ran = |id: &AttemptId| id.unit_id() == unit_id.unit_id();
                let honest = self.agents.iter().enumerate().filter(|(index, _)| !self.is_liar(*index));
                let runs = honest.map(|(_, host)| host.backend.succeeded.iter().filter(|id| ran(id)).count());
                let runs: usize = runs.sum();
                let lost = self.fork_took.contains(&unit_id.unit_id());
                if runs > 1 && !unit.doubtful && !lost {
                    return Err(format!("unit {number} of job {job} ran {runs} times to a good end"));
                }
                let truly = self.agents.iter().any(|host| host.backend.succeeded.contains(&unit_id));
                let lied = self.schedule.liar.is_some_and(|liar| {
                    let pool = self.journal.replica.pool_named(&self.agents[liar].hello.pool.name);
                    pool.is_some_and(|pool| Some(pool.id) == unit.pool)
                });
                if !truly && !lied {
                    return Err(format!("{unit_id} is said to have succeeded and never ran to its end"));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn leftovers(&self) -> String {
        let Some(broker) = self.writer().and_then(|host| self.brokers[host].machine.as_ref()) else {
            return "the broker is down".to_owned();
        };
        let state = broker.state();
        let attempts: Vec<String> = state
            .attempts()
            .take(3)
            .map(|attempt| format!("{} {:?} in {}", attempt.id(state.journal()), attempt.phase, attempt.pool))
            .collect();
        let jobs: Vec<String> = state
            .jobs_from(JobId(0))
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
        let up = |host: &&super::AgentHost| host.machine.as_ref().is_some_and(|machine| machine.is_up());
        let running: Vec<String> = self
            .agents
            .iter()
            .flat_map(|host| host.backend.live())
            .map(|(attempt, object)| {
                format!("{attempt} {}", matches!(object.status, AttemptStatus::Starting))
            })
            .take(3)
            .collect();
        format!(
            "{} of {} agents up, idle clients {}, durable {} of {}, read-only {:?}, attempts {attempts:?}, at backends {running:?}, jobs {jobs:?}",
            self.agents.iter().filter(up).count(),
            self.agents.len(),
            self.client.is_idle(),
            broker.durable(),
            state.revision(),
            broker.outdated(),
        )
    }
}

fn cpu_on(launch: &Launch, node: &str) -> u64 {
    let tasks = launch.order.tasks.iter().filter(|task| task.node == node);
    tasks.map(|task| launch.spec.groups[usize::from(task.group)].request.resources.cpu_millis).sum()
}

fn device_on(launch: &Launch, node: &str, index: u16) -> u32 {
    let tasks = launch.order.tasks.iter().filter(|task| task.node == node);
    tasks.flat_map(|task| &task.devices).filter(|share| share.index == index).map(|share| share.millis).sum()
}
