//! Client: submits, cancels, configures and queries at random, and repeats requests that were not answered.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;
use weir::broker::query::{GetJob, GetWhy, JobFilter, JobRef, ListJobs, ListPools};
use weir::broker::{AnyQuery, CallId};
use weir::model::id::{AttemptId, JobId, NodeId, PoolId, QueueId, ReservationId, Revision};
use weir::model::interval::IntervalSet;
use weir::model::link::Link;
use weir::model::pool::{Connectivity, DrainMode};
use weir::model::price::{PriceSchedule, Rate};
use weir::model::queue::default_settings;
use weir::model::region::RegionCode;
use weir::model::reservation::Reservation;
use weir::model::resource::{ResourceKind, Resources};
use weir::model::time::Timestamp;
use weir::state::State;
use weir::state::command::{Command, JobChange, Request, Submission};
use weir::state::decide::Reply;
use weir::state::job::Principal;
use weir::state::pool::Pool;
use weir::state::rejection::Rejection;
use weir::state::token::{RequestToken, TokenKey};

use super::event::{BrokerEvent, Event};
use super::invalid_requests::CLAIMED_POOL;
use super::network::LinkConditions;
use super::specs::{burst_spec, make_alike, random_spec};
use super::{Purpose, World, split};

/// State of the client.
pub(crate) struct Client {
    pub(crate) rng: StdRng,
    conditions: LinkConditions,
    next_call: u64,
    next_token: u64,
    /// Requests without a reply, with the time at which each was sent: repeated with the same token.
    open: BTreeMap<CallId, (Request, u64)>,
    /// Requests with a token, by call.
    requests: BTreeMap<CallId, Request>,
    /// First reply to each token.
    replies: BTreeMap<TokenKey, Reply>,
    /// Jobs whose submission was acknowledged.
    pub(crate) acknowledged: BTreeSet<JobId>,
    /// Attempts that an abandon request was sent for.
    pub(crate) abandoned: BTreeSet<AttemptId>,
    /// Remaining actions.
    acts: u32,
    prices_filled: bool,
    /// All its tasks ask for the same: what arrives does not change.
    tasks_alike: bool,
    /// Pools when a query arrived at the broker.
    pub(crate) pools_at_query: BTreeMap<CallId, BTreeSet<PoolId>>,
}

/// Time without a reply after which the client repeats a request.
const REPLY_TIMEOUT_MS: u64 = 3_000;

impl Client {
    pub(crate) fn new(seed: u64, acts: u32) -> Self {
        let mut rng = split(seed, Purpose::Client);
        let tasks_alike = rng.random_bool(0.1);
        Self {
            rng,
            conditions: LinkConditions::default(),
            next_call: 0,
            next_token: 0,
            open: BTreeMap::new(),
            requests: BTreeMap::new(),
            replies: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            abandoned: BTreeSet::new(),
            acts,
            prices_filled: false,
            tasks_alike,
            pools_at_query: BTreeMap::new(),
        }
    }

    /// All requests have been answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// True once in a seed, after a minute, when the pools are registered: the client then fills the price
    /// list.
    pub(crate) fn fills_prices(&mut self, now: u64) -> bool {
        now > 60_000 && !std::mem::replace(&mut self.prices_filled, now > 60_000)
    }

    pub(crate) fn set_conditions(&mut self, conditions: LinkConditions) {
        self.conditions = conditions;
    }

    /// Arrival time of a message sent now; `None` if it is lost.
    fn arrival(&mut self, now: u64) -> Option<u64> {
        let at = now + self.rng.random_range(1..10);
        if self.conditions.until <= now {
            return Some(at);
        }
        let is_lost = self.rng.random_range(0..1_000) < self.conditions.loss_permille;
        (!is_lost).then(|| at + self.rng.random_range(0..=self.conditions.delay_ms))
    }
}

impl World {
    /// The state of the writer, so that requests can name existing jobs, pools and attempts. `None` without a
    /// writer or on a stale copy.
    pub(crate) fn writers_state(&self) -> Option<&State> {
        let host = self.writer().filter(|host| !self.brokers[*host].on_stale_copy)?;
        self.brokers[host].machine.as_ref().map(weir::broker::Broker::state)
    }

    /// One random action of the client, after it has repeated requests without a reply.
    pub(crate) fn client_act(&mut self) -> Result<(), String> {
        let now = self.now;
        let unanswered = self.client.open.iter().filter(|(_, (_, at))| now - at > REPLY_TIMEOUT_MS);
        let unanswered: Vec<CallId> = unanswered.map(|(call, _)| *call).collect();
        for call in unanswered {
            if let Some((request, _)) = self.client.open.remove(&call) {
                self.send(request);
            }
        }
        if self.in_fault_phase() && self.client.acts > 0 {
            self.client.acts -= 1;
            match self.client.rng.random_range(0..20) {
                0..9 => self.submit(),
                9 => self.cancel(),
                10 => self.change_job(),
                11 if self.client.rng.random_bool(0.4) => self.configure_prices(),
                11 => self.configure(),
                12..14 => self.operate(),
                14..18 => self.query(),
                _ => self.send_invalid_request()?,
            }
        }
        if !self.in_fault_phase() {
            self.reopen();
        }
        let ms = self.client.rng.random_range(200..2_500);
        self.after(ms, Event::Act);
        Ok(())
    }

    /// Sends a request, which is repeated until a reply arrives.
    pub(crate) fn send(&mut self, request: Request) {
        self.client.next_call += 1;
        let call = CallId(self.client.next_call);
        self.client.open.insert(call, (request.clone(), self.now));
        if request.token.is_some() {
            self.client.requests.insert(call, request.clone());
        }
        self.deliver(BrokerEvent::Request { call, request });
    }

    /// Sends a request once, without waiting for a reply.
    pub(crate) fn send_only(&mut self, request: Request) {
        self.client.next_call += 1;
        let call = CallId(self.client.next_call);
        self.deliver(BrokerEvent::Request { call, request });
    }

    fn deliver(&mut self, what: BrokerEvent) {
        let Some(host) = self.pick_broker() else { return };
        let incarnation = self.brokers[host].incarnation;
        if let Some(at) = self.client.arrival(self.now) {
            self.at(at, Event::Broker { host, incarnation, what });
        }
    }

    pub(crate) fn send_reply(&mut self, call: CallId, result: Result<Reply, Rejection>) {
        if let Some(at) = self.client.arrival(self.now) {
            self.at(at, Event::Reply { call, result: Box::new(result) });
        }
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.client.next_token += 1;
        let principal = Principal::Anonymous;
        let text = format!("token-{}", self.client.next_token);
        // Each command has its own token, so the token's text can stand for the request in the digest.
        let token = Some(RequestToken::new(&principal, "", &text, text.as_bytes()));
        self.send(Request { principal, token, command });
    }

    pub(crate) fn client_reply(&mut self, call: CallId, result: Result<Reply, Rejection>) {
        if let Err(rejection) = &result {
            self.counts.rejection(rejection);
        }
        if self.client.open.remove(&call).is_none() {
            return;
        }
        if let Ok(Reply::Submitted { first, count }) = result {
            self.client.acknowledged.extend((0..u64::from(count)).map(|index| JobId(first.0 + index)));
        }
    }

    /// Checks that a repeated token gets an equal reply, and that an acknowledged cancel is durable.
    pub(crate) fn check_repetition(
        &mut self,
        call: CallId,
        result: &Result<Reply, Rejection>,
    ) -> Result<(), String> {
        let Some(request) = self.client.requests.get(&call) else { return Ok(()) };
        let Some(token) = request.token else { return Ok(()) };
        let before = self.client.replies.get(&token.key);
        match (before, result) {
            (Some(before), Ok(now)) if before != now => {
                Err(format!("equal requests get the replies {before:?} and {now:?}"))
            }
            (Some(before), Err(rejection)) if *rejection != Rejection::TokenReused => {
                Err(format!("a request with the reply {before:?} is rejected when repeated: {rejection}"))
            }
            (_, Ok(reply)) => {
                if let Command::Cancel { jobs, .. } = &request.command {
                    let history = &self.journal.history;
                    if let Some(job) =
                        jobs.iter().find(|job| history.jobs.get(job).is_some_and(|j| j.is_open()))
                    {
                        return Err(format!("the cancel of job {job} is acknowledged but not durable"));
                    }
                }
                self.client.replies.insert(token.key, reply.clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn submit(&mut self) {
        let live: Vec<JobId> = self
            .writers_state()
            .into_iter()
            .flat_map(|state| state.jobs_from(JobId(0)))
            .map(|j| j.id)
            .collect();
        let rng = &mut self.client.rng;
        let queue = if rng.random_bool(0.2) { "team" } else { "" };
        let submission = |rng: &mut StdRng, prefix: &str, spec| Submission {
            name: String::new(),
            name_prefix: if prefix.is_empty() {
                ["train", "eval", ""][rng.random_range(0..3)]
            } else {
                prefix
            }
            .to_owned(),
            queue: queue.to_owned(),
            allow_pending: rng.random_bool(0.9),
            held: false,
            spec,
        };
        let mut jobs = Vec::new();
        for _ in 0..rng.random_range(1..5) {
            let mut spec = random_spec(rng, &live);
            if self.client.tasks_alike {
                make_alike(&mut spec);
            }
            jobs.push(submission(rng, "", spec));
        }
        if rng.random_bool(0.1) {
            let spec = burst_spec(rng);
            jobs.push(submission(rng, "burst", spec));
        }
        self.command(Command::Submit { jobs });
    }

    fn cancel(&mut self) {
        let jobs: Vec<JobId> = self.client.acknowledged.iter().copied().collect();
        if jobs.is_empty() {
            return;
        }
        let job = jobs[self.client.rng.random_range(0..jobs.len())];
        self.command(Command::Cancel { jobs: vec![job], reason: String::new() });
    }

    /// Cancels units of a job, or changes, holds or releases it.
    fn change_job(&mut self) {
        let jobs: Vec<JobId> = self.client.acknowledged.iter().copied().collect();
        if jobs.is_empty() {
            return;
        }
        let rng = &mut self.client.rng;
        let job = jobs[rng.random_range(0..jobs.len())];
        if rng.random_bool(0.4) {
            let first = rng.random_range(0..6);
            let units = IntervalSet::from_range(first, first + rng.random_range(1..4));
            return self.command(Command::CancelUnits { job, units });
        }
        let change = JobChange {
            priority: rng.random_bool(0.5).then(|| rng.random_range(-5..5)),
            held: rng.random_bool(0.6).then(|| rng.random_bool(0.5)),
            ..JobChange::default()
        };
        self.command(Command::UpdateJob { job, based_on: Revision(0), change });
    }

    /// Creates the queue `team`, changes its limit and weight, or deletes it.
    fn configure(&mut self) {
        let mut spec = default_settings("team");
        let create = self.client.rng.random_bool(0.5);
        if self.client.rng.random_bool(0.3) {
            return self.command(Command::DeleteQueue { name: spec.name, based_on: Revision(0) });
        }
        spec.limit.device_millis = self.client.rng.random_bool(0.5).then_some(3_000);
        spec.weight = self.client.rng.random_range(1..4);
        if create {
            self.command(Command::CreateQueue { spec });
        } else {
            let based_on = Revision(if self.client.rng.random_bool(0.3) { 3 } else { 0 });
            self.command(Command::UpdateQueue { spec, based_on });
        }
    }

    /// Sets prices or a link, or begins or ends a reservation.
    fn configure_prices(&mut self) {
        let now = self.writers_state().map_or(Timestamp(0), State::now);
        let rng = &mut self.client.rng;
        let (pool, ms) = (PoolId(rng.random_range(1..6)), rng.random_range(0..60_000));
        let from = now.plus_ms(ms);
        let command = match rng.random_range(0..4) {
            0 => {
                let micros_per_hour = rng.random_range(0..5_000_000);
                let (model, kind) = (String::new(), ResourceKind::Device);
                let rate = Rate { kind, model, micros_per_hour, from_minute: 0, to_minute: 1_440 };
                let schedule = PriceSchedule { currency: "CNY".to_owned(), rates: vec![rate] };
                Command::SetPrices { pool, valid_from: from, schedule }
            }
            1 => {
                let regions = ["CN-CQ", "CN-XJ", "CN-GZ"].map(|r| RegionCode::parse(r).unwrap_or_default());
                let ends = (regions[rng.random_range(0..3)], regions[rng.random_range(0..3)]);
                let (bandwidth_bits_per_s, round_trip_micros) = (10_000_000_000, rng.random_range(0..90_000));
                let link = Link { ends, bandwidth_bits_per_s, round_trip_micros, micros_per_gb: 20_000 };
                Command::SetLink { link }
            }
            2 => {
                let amounts = Resources { device_millis: 8_000, ..Resources::default() };
                let until = from.plus_ms(rng.random_range(0..90_000));
                let (id, queue) = (ReservationId(0), QueueId(1));
                let pool = rng.random_bool(0.5).then_some(pool);
                let models = Vec::new();
                let reservation = Reservation { id, queue, pool, amounts, models, from, until };
                Command::Reserve { reservation }
            }
            _ => Command::EndReservation { reservation: ReservationId(rng.random_range(1..4)) },
        };
        self.command(command);
    }

    /// Cordons, drains, deletes or abandons, as an admin does.
    fn operate(&mut self) {
        let pool = PoolId(self.client.rng.random_range(1..6));
        let cordoned = self.client.rng.random_bool(0.3);
        let deadline_ms = self.client.rng.random_range(0..20_000);
        match self.client.rng.random_range(0..6) {
            0 => self.command(Command::CordonPool { pool, cordoned }),
            1 => self.command(Command::DrainPool { pool, mode: DrainMode::Wait, deadline_ms }),
            2 => self.command(Command::DrainPool { pool, mode: DrainMode::Evict, deadline_ms: 0 }),
            3 => {
                let node = NodeId(self.client.rng.random_range(1..4));
                self.command(Command::CordonNode { pool, node, cordoned });
            }
            4 => {
                // Mostly one that can be deleted; not the one whose name another agent claims: it would get it.
                let any = self.client.rng.random_bool(0.2);
                let name = self.writers_state().and_then(|state| {
                    let silent = |pool: &&Pool| pool.connectivity > Connectivity::Suspect;
                    let mut pools = state.pools().filter(|pool| pool.spec.name != CLAIMED_POOL);
                    let pool = pools.find(|pool| any || silent(pool) && pool.attempts.is_empty())?;
                    Some(pool.spec.name.clone())
                });
                if let Some(name) = name {
                    self.command(Command::DeletePool { name, based_on: Revision(0) });
                }
            }
            _ => {
                let attempt = self.writers_state().and_then(|state| {
                    let is_unreachable = |pool: &PoolId| {
                        state.pool(*pool).is_some_and(|p| p.connectivity > Connectivity::Suspect)
                    };
                    let attempt = state.attempts().find(|attempt| is_unreachable(&attempt.pool))?;
                    Some(attempt.id(state.journal()))
                });
                if let Some(attempt) = attempt {
                    self.client.abandoned.insert(attempt);
                    self.command(Command::Abandon { attempt });
                }
            }
        }
    }

    /// After the fault phase: releases held jobs, removes cordons, drains and the queue limit, so that all jobs can end.
    fn reopen(&mut self) {
        let Some(state) = self.writers_state() else { return };
        let mut commands = Vec::new();
        for job in state.jobs_from(JobId(0)).filter(|job| job.held) {
            let change = JobChange { held: Some(false), ..JobChange::default() };
            commands.push(Command::UpdateJob { job: job.id, based_on: Revision(0), change });
        }
        for pool in state.pools() {
            if pool.cordoned || pool.drain.is_some() {
                commands.push(Command::CordonPool { pool: pool.id, cordoned: false });
            }
            let cordoned = pool.nodes.values().filter(|node| node.cordoned);
            commands.extend(cordoned.map(|node| Command::CordonNode {
                pool: pool.id,
                node: node.id,
                cordoned: false,
            }));
        }
        if let Some(queue) = state.queue_named("team").filter(|queue| queue.spec.limit != Default::default())
        {
            let mut spec = queue.spec.clone();
            spec.limit = Default::default();
            commands.push(Command::UpdateQueue { spec, based_on: Revision(0) });
        }
        commands.into_iter().for_each(|command| self.command(command));
    }

    /// Sends queries, mostly about new jobs: they wait, so the broker explains why. While nodes are reserved, which
    /// is rare, it sends more of them.
    fn query(&mut self) {
        let mut machines = self.brokers.iter().filter_map(|broker| broker.machine.as_ref());
        let reserved = machines.any(|broker| broker.scheduler().has_reserved_nodes());
        (0..if reserved { 16 } else { 1 }).for_each(|_| self.send_query());
    }

    fn send_query(&mut self) {
        let jobs: Vec<JobId> = self.client.acknowledged.iter().rev().take(30).copied().collect();
        let job = if jobs.is_empty() { JobId(1) } else { jobs[self.client.rng.random_range(0..jobs.len())] };
        let query: Box<dyn AnyQuery> = match self.client.rng.random_range(0..8) {
            0 => Box::new(ListJobs { filter: JobFilter::default(), before: JobId(u64::MAX), limit: 10 }),
            1 => Box::new(ListPools),
            2 => Box::new(GetJob(JobRef::Id(job))),
            _ => Box::new(GetWhy(JobRef::Id(job))),
        };
        self.client.next_call += 1;
        let call = CallId(self.client.next_call);
        self.deliver(BrokerEvent::Query { call, query });
    }
}
