//! Fault-free run of Weir's kernel in virtual time: one broker, one agent per pool, and clients, over a
//! network and a disk with constant latency.
//!
//! The decisions are those of the shipped code: jobs are submitted to the broker's state machine, which sends
//! start orders to the agents' state machines. Only the backends are simulated: an attempt runs as long as
//! its job did in the trace.

use std::collections::BTreeMap;

use weir::agent::{self, Agent};
use weir::broker::{Broker, CallId, Effect, Input, Random, SessionId};
use weir::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use weir::model::exchange::{FromAgent, Hello, ToAgent};
use weir::model::id::{AttemptId, InstanceId, JobId, Revision, Term};
use weir::model::limit::DURATION_MS_MAX;
use weir::model::plan::Policy;
use weir::model::pool::{Capabilities, NodeSpec, PoolSpec};
use weir::model::region::RegionCode;
use weir::model::spec::{DeviceRequest, JobSpec, TaskRequest, minimal};
use weir::model::time::Timestamp;
use weir::state::command::{Command, Request, Submission};
use weir::state::decide::Reply;
use weir::state::job::Principal;

use crate::timeline::Timeline;
use crate::traces::Job;

/// One-way latency of the network.
const NETWORK_MS: u64 = 1;
/// Duration of one append to the journal, or of one snapshot chunk.
const DISK_MS: u64 = 2;
/// Wall-clock time of all clocks at virtual time 0.
const EPOCH: Timestamp = Timestamp(1_700_000_000_000);
/// Virtual time of the first job: by then all pools are ready.
const FIRST_ARRIVAL_MS: u64 = 60_000;
/// Without a running job, the run ends this long after the last arrival, start or end: no further job can
/// start then.
const IDLE_MS: u64 = 60_000;

/// Start and end of a job's only attempt, in milliseconds after the first arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ran {
    pub(super) from_ms: u64,
    pub(super) until_ms: u64,
}

/// Result of a run.
pub(super) struct Played {
    /// For each job; `None` if it was never started.
    pub(super) ran: Vec<Option<Ran>>,
    /// Steps of all state machines.
    pub(super) steps: u64,
}

enum Event {
    /// The next job is submitted.
    Arrive,
    /// The observer is called.
    Sample,
    Appended(Revision),
    ChunkWritten,
    ToBroker(usize, FromAgent),
    ToAgent(usize, ToAgent),
    Connected(usize),
    WakeBroker(Timestamp),
    WakeAgent(usize, Timestamp),
    AttemptRuns(usize, AttemptId),
    AttemptEnds(usize, AttemptId),
}

struct Pool {
    agent: Agent,
    wake: Timestamp,
    started: BTreeMap<AttemptId, Timestamp>,
}

/// Called with the time, in milliseconds after the first arrival, and the broker at that time.
pub(super) type Observer<'a> = &'a mut dyn FnMut(u64, &Broker);

pub(super) struct FaultFreeRun<'a> {
    now: Timestamp,
    queue: Timeline<Event>,
    broker: Broker,
    wake: Timestamp,
    pools: Vec<Pool>,
    jobs: &'a [Job],
    specs: Vec<JobSpec>,
    /// For each job, the index of its spec: equal jobs share one.
    spec_of: Vec<usize>,
    arrived: usize,
    job_of: BTreeMap<JobId, usize>,
    played: Played,
    running: usize,
    /// Time of the last arrival, start or end.
    last_change: Timestamp,
}

impl<'a> FaultFreeRun<'a> {
    /// Prepares a run with `nodes` distributed over `pools` pools and a broker that uses `policy`.
    pub(super) fn new(nodes: &[NodeSpec], pools: usize, jobs: &'a [Job], policy: Policy) -> Self {
        let random = Random { writer_session: 1, journal: 1, key: 1 };
        let mut broker = Broker::new(Default::default(), Term(1), random, EPOCH);
        broker.set_policy(policy);
        let (mut specs, mut spec_index, mut spec_of) = (Vec::new(), BTreeMap::new(), Vec::new());
        for job in jobs {
            let key = (job.tasks, job.cpu_millis, job.memory_bytes, job.devices, job.models.clone());
            spec_of.push(*spec_index.entry(key).or_insert_with(|| {
                specs.push(spec(job));
                specs.len() - 1
            }));
        }
        let mut queue = Timeline::default();
        let shares = (0..pools).map(|pool| nodes.iter().skip(pool).step_by(pools).cloned().collect());
        let pools = shares.enumerate().map(|(at, share): (usize, Vec<NodeSpec>)| {
            let mut agent = Agent::new(hello(at), EPOCH);
            let effects = agent.step(EPOCH, agent::Input::InitialSync { nodes: share, attempts: Vec::new() });
            (Pool { agent, wake: Timestamp::NEVER, started: BTreeMap::new() }, effects)
        });
        let (pools, initial_effects): (Vec<Pool>, Vec<_>) = pools.unzip();
        queue.put(FIRST_ARRIVAL_MS, Event::Arrive);
        let played = Played { ran: vec![None; jobs.len()], steps: 0 };
        let mut run = Self {
            now: EPOCH,
            queue,
            broker,
            wake: Timestamp::NEVER,
            pools,
            jobs,
            specs,
            spec_of,
            arrived: 0,
            job_of: BTreeMap::new(),
            played,
            running: 0,
            last_change: EPOCH,
        };
        for (pool, effects) in initial_effects.into_iter().enumerate() {
            effects.into_iter().for_each(|effect| run.agent_effect(pool, effect));
        }
        run
    }

    /// Plays until all jobs have arrived and every job that could start has ended. Calls `observer` every
    /// `every_ms` milliseconds until the last arrival.
    ///
    /// # Errors
    /// If the broker rejects a job, or closes a session, which must not happen without faults.
    pub(super) fn play(mut self, every_ms: u64, observer: Observer) -> anyhow::Result<Played> {
        self.broker_step(Input::Wake)?;
        self.queue.put(FIRST_ARRIVAL_MS, Event::Sample);
        while let Some((at, event)) = self.queue.next() {
            self.now = EPOCH.plus_ms(at);
            match event {
                Event::Arrive => self.arrive()?,
                Event::Sample => {
                    observer(at - FIRST_ARRIVAL_MS, &self.broker);
                    if self.arrived < self.jobs.len() {
                        self.after(every_ms, Event::Sample);
                    }
                }
                Event::Appended(through) => self.broker_step(Input::Appended { through })?,
                Event::ChunkWritten => self.broker_step(Input::ChunkWritten)?,
                Event::ToBroker(pool, message) => {
                    self.broker_step(Input::FromAgent { session: session(pool), message })?;
                }
                Event::ToAgent(pool, message) => self.agent_step(pool, agent::Input::FromBroker(message)),
                Event::Connected(pool) => self.agent_step(pool, agent::Input::Connected),
                // Only the latest requested wake-up is valid.
                Event::WakeBroker(at) if at == self.wake => {
                    self.wake = Timestamp::NEVER;
                    self.broker_step(Input::Wake)?;
                }
                Event::WakeAgent(pool, at) if at == self.pools[pool].wake => {
                    self.pools[pool].wake = Timestamp::NEVER;
                    self.agent_step(pool, agent::Input::Wake);
                }
                Event::WakeBroker(_) | Event::WakeAgent(..) => {}
                Event::AttemptRuns(pool, attempt) => self.begin(pool, attempt),
                Event::AttemptEnds(pool, attempt) => self.end(pool, attempt),
            }
            let is_idle = self.running == 0 && self.now.ms_since(self.last_change) > IDLE_MS;
            if self.arrived == self.jobs.len() && is_idle {
                break;
            }
        }
        Ok(self.played)
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.queue.put(self.now.ms_since(EPOCH) + ms, event);
    }

    fn arrive(&mut self) -> anyhow::Result<()> {
        let Some(due_ms) = self.jobs.get(self.arrived).map(|job| job.arrives_ms) else { return Ok(()) };
        let at = self.arrived;
        self.arrived += 1;
        self.last_change = self.now;
        if let Some(next) = self.jobs.get(self.arrived) {
            self.after(next.arrives_ms - due_ms, Event::Arrive);
        }
        let submission = Submission {
            name: String::new(),
            name_prefix: String::new(),
            queue: String::new(),
            allow_pending: true,
            held: false,
            spec: self.specs[self.spec_of[at]].clone(),
        };
        let command = Command::Submit { jobs: vec![submission] };
        let request = Request { principal: Principal::Anonymous, token: None, command };
        self.broker_step(Input::Request { call: CallId(at as u64), request })
    }

    fn broker_step(&mut self, input: Input) -> anyhow::Result<()> {
        self.played.steps += 1;
        let effects = self.broker.step(self.now, input);
        effects.into_iter().try_for_each(|effect| self.broker_effect(effect))
    }

    fn broker_effect(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Append { after, events, .. } => {
                let through = events.last().map_or(after, |record| record.revision);
                self.after(DISK_MS, Event::Appended(through));
            }
            Effect::WriteChunk { .. } => self.after(DISK_MS, Event::ChunkWritten),
            Effect::Reply { call, result } => match result {
                Ok(Reply::Submitted { first, .. }) => drop(self.job_of.insert(first, call.0 as usize)),
                Ok(_) => {}
                Err(rejection) => anyhow::bail!("job {} is rejected: {rejection}", call.0),
            },
            Effect::Direct { session, message } => {
                self.after(NETWORK_MS, Event::ToAgent(session.0 as usize, message));
            }
            Effect::CloseSession { session } => {
                anyhow::bail!("the broker closes the session of pool {}", session.0)
            }
            Effect::WakeAt(at) => {
                if at != self.wake && at != Timestamp::NEVER {
                    self.wake = at;
                    self.queue.put(at.max(self.now).ms_since(EPOCH), Event::WakeBroker(at));
                }
            }
            Effect::Answer { .. } | Effect::Notify { .. } => {}
        }
        Ok(())
    }

    fn agent_step(&mut self, pool: usize, input: agent::Input) {
        self.played.steps += 1;
        let effects = self.pools[pool].agent.step(self.now, input);
        effects.into_iter().for_each(|effect| self.agent_effect(pool, effect));
    }

    fn agent_effect(&mut self, pool: usize, effect: agent::Effect) {
        match effect {
            agent::Effect::Connect => self.after(NETWORK_MS, Event::Connected(pool)),
            agent::Effect::Send(message) => self.after(NETWORK_MS, Event::ToBroker(pool, message)),
            agent::Effect::Start(start) => {
                self.running += 1;
                self.after(0, Event::AttemptRuns(pool, start.order.attempt));
            }
            agent::Effect::WakeAt(at) => {
                if at != self.pools[pool].wake && at != Timestamp::NEVER {
                    self.pools[pool].wake = at;
                    self.queue.put(at.max(self.now).ms_since(EPOCH), Event::WakeAgent(pool, at));
                }
            }
            // Agents don't crash here, so nothing needs to be remembered, and no job is cancelled.
            agent::Effect::Forget(_)
            | agent::Effect::StoreHighWater(_)
            | agent::Effect::StoreEpoch(_)
            | agent::Effect::RenewLeases { .. }
            | agent::Effect::Stop(_)
            | agent::Effect::Disconnect => {}
        }
    }

    fn begin(&mut self, pool: usize, attempt: AttemptId) {
        // The broker replies to a submit before it sends a start order for the job, so the job is registered.
        let Some(job) = self.job_of.get(&attempt.job).copied() else { return };
        self.last_change = self.now;
        let (from_ms, length_ms) =
            (self.now.ms_since(EPOCH) - FIRST_ARRIVAL_MS, self.jobs[job].duration_ms.max(1));
        self.played.ran[job] = Some(Ran { from_ms, until_ms: from_ms + length_ms });
        self.pools[pool].started.insert(attempt, self.now);
        self.after(length_ms, Event::AttemptEnds(pool, attempt));
        let status = AttemptStatus::Running { started_at: self.now };
        self.agent_step(pool, agent::Input::StatusChanged { attempt, status });
    }

    fn end(&mut self, pool: usize, attempt: AttemptId) {
        self.running -= 1;
        self.last_change = self.now;
        let started_at = self.pools[pool].started.remove(&attempt);
        let outcome = Outcome::plain(OutcomeKind::Succeeded, "");
        let status = AttemptStatus::Ended { started_at, ended_at: self.now, outcome };
        self.agent_step(pool, agent::Input::StatusChanged { attempt, status });
    }
}

/// Each agent has one session, which lasts for the whole run.
fn session(pool: usize) -> SessionId {
    SessionId(pool as u64)
}

fn hello(at: usize) -> Hello {
    let pool = PoolSpec {
        name: format!("pool-{at}"),
        region: RegionCode::parse("CN-CQ").unwrap_or_default(),
        backend: "simulated".to_owned(),
        labels: Default::default(),
        capabilities: Capabilities { real: true, processes: true, ..Capabilities::default() },
        notes: Vec::new(),
    };
    Hello {
        pool,
        instance: InstanceId(at as u128 + 1),
        key: [at as u8; 16],
        last_epoch: None,
        high_water: None,
    }
}

/// The spec that is submitted for a job of the trace.
pub(super) fn spec(job: &Job) -> JobSpec {
    let mut spec = minimal();
    let group = &mut spec.groups[0];
    (group.count, group.gang) = (job.tasks, job.tasks > 1);
    group.request = request(job);
    spec.max_run_ms = DURATION_MS_MAX;
    spec
}

fn request(job: &Job) -> TaskRequest {
    let mut request = TaskRequest::default();
    (request.resources.cpu_millis, request.resources.memory_bytes) = (job.cpu_millis, job.memory_bytes);
    request.devices = job.devices.map(|amount| DeviceRequest { models: job.models.clone(), amount });
    request
}
