//! Clients: they submit, cancel, configure, ask, and repeat what was not answered.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;
use weir::broker::{CallId, JobFilter, JobRef, Query};
use weir::model::id::{AttemptId, JobId, NodeId, PoolId, QueueId, ReservationId, Revision};
use weir::model::link::Link;
use weir::model::pool::{Connectivity, DrainMode};
use weir::model::price::{PriceSchedule, Rate};
use weir::model::queue::default_settings;
use weir::model::region::RegionCode;
use weir::model::reservation::Reservation;
use weir::model::resource::{ResourceKind, Resources};
use weir::model::time::Timestamp;
use weir::state::State;
use weir::state::command::{Command, Request, Submission};
use weir::state::decide::Reply;
use weir::state::job::Principal;
use weir::state::rejection::Rejection;
use weir::state::token::{RequestToken, TokenKey};

use super::broker::BrokerEvent;
use super::network::Weather;
use super::specs::{burst_spec, random_spec};
use super::{Event, Purpose, World, split};

/// A client with what it remembers.
pub(crate) struct Client {
    pub(crate) rng: StdRng,
    weather: Weather,
    next_call: u64,
    next_token: u64,
    /// Requests without an answer, to be repeated with the same token.
    open: BTreeMap<CallId, (Request, u64)>,
    /// What was asked under each call that had a token.
    asked: BTreeMap<CallId, Request>,
    /// What was answered to each token.
    answers: BTreeMap<TokenKey, Reply>,
    pub(crate) acknowledged: BTreeSet<JobId>,
    pub(crate) abandoned: BTreeSet<AttemptId>,
    acts: u32,
    filled_up: bool,
    /// How many pools there were when a question came in.
    pub(crate) pools_asked: BTreeMap<CallId, usize>,
}

/// How long a client waits for an answer before it asks again.
const PATIENCE_MS: u64 = 3_000;

impl Client {
    pub(crate) fn new(seed: u64, acts: u32) -> Self {
        Self {
            rng: split(seed, Purpose::Client),
            weather: Weather::default(),
            next_call: 0,
            next_token: 0,
            open: BTreeMap::new(),
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            abandoned: BTreeSet::new(),
            acts,
            filled_up: false,
            pools_asked: BTreeMap::new(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Once in a seed, when there is a pool, it is time to fill the books.
    pub(crate) fn fills_up(&mut self, now: u64) -> bool {
        now > 60_000 && !std::mem::replace(&mut self.filled_up, now > 60_000)
    }

    pub(crate) fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
    }

    /// When what is sent now arrives, if it does.
    fn arrival(&mut self, now: u64) -> Option<u64> {
        let at = now + self.rng.random_range(1..10);
        if self.weather.until <= now {
            return Some(at);
        }
        let lost = self.rng.random_range(0..1_000) < self.weather.loss;
        (!lost).then(|| at + self.rng.random_range(0..=self.weather.delay_ms))
    }
}

impl World {
    /// The state as the writer has it, for clients that aim well.
    pub(crate) fn writers_state(&self) -> Option<&State> {
        let host = self.writer().filter(|host| !self.brokers[*host].on_fork)?;
        self.brokers[host].machine.as_ref().map(weir::broker::Broker::state)
    }

    pub(crate) fn client_act(&mut self) -> Result<(), String> {
        let now = self.now;
        let stale = self.client.open.iter().filter(|(_, (_, at))| now - at > PATIENCE_MS);
        let stale: Vec<CallId> = stale.map(|(call, _)| *call).collect();
        for call in stale {
            if let Some((request, _)) = self.client.open.remove(&call) {
                self.send(request);
            }
        }
        if self.faulty() && self.client.acts > 0 {
            self.client.acts -= 1;
            match self.client.rng.random_range(0..20) {
                0..9 => self.submit(),
                9..11 => self.cancel(),
                11 if self.client.rng.random_bool(0.4) => self.trade(),
                11 => self.configure(),
                12..14 => self.operate(),
                14..18 => self.ask(),
                _ => self.err()?,
            }
        }
        if !self.faulty() {
            self.reopen();
        }
        let ms = self.client.rng.random_range(200..2_500);
        self.after(ms, Event::Act);
        Ok(())
    }

    /// Hands a request to the network.
    pub(crate) fn send(&mut self, request: Request) {
        self.client.next_call += 1;
        let call = CallId(self.client.next_call);
        self.client.open.insert(call, (request.clone(), self.now));
        if request.token.is_some() {
            self.client.asked.insert(call, request.clone());
        }
        self.deliver(BrokerEvent::Request { call, request });
    }

    /// Sends a request that nobody waits for.
    pub(crate) fn send_only(&mut self, request: Request) {
        self.client.next_call += 1;
        let call = CallId(self.client.next_call);
        self.deliver(BrokerEvent::Request { call, request });
    }

    fn deliver(&mut self, what: BrokerEvent) {
        let Some(host) = self.pick_broker() else { return };
        let life = self.brokers[host].life;
        if let Some(at) = self.client.arrival(self.now) {
            self.at(at, Event::Broker { host, life, what });
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
        // No two commands share a token, so its text stands for the request.
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

    /// The same token gets the same answer, and what is answered is durable.
    pub(crate) fn check_repetition(
        &mut self,
        call: CallId,
        result: &Result<Reply, Rejection>,
    ) -> Result<(), String> {
        let Some(request) = self.client.asked.get(&call) else { return Ok(()) };
        let Some(token) = request.token else { return Ok(()) };
        let before = self.client.answers.get(&token.key);
        match (before, result) {
            (Some(before), Ok(now)) if before != now => {
                Err(format!("the same request is answered {before:?} and {now:?}"))
            }
            (Some(before), Err(rejection)) if *rejection != Rejection::TokenReused => {
                Err(format!("a request that was answered {before:?} is then refused: {rejection}"))
            }
            (_, Ok(reply)) => {
                if let Command::Cancel { jobs } = &request.command {
                    let history = &self.journal.history;
                    if let Some(job) =
                        jobs.iter().find(|job| history.jobs.get(job).is_some_and(|j| j.is_open()))
                    {
                        return Err(format!("the cancel of job {job} is acknowledged but not durable"));
                    }
                }
                self.client.answers.insert(token.key, reply.clone());
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
            spec,
        };
        let mut jobs = Vec::new();
        for _ in 0..rng.random_range(1..5) {
            let spec = random_spec(rng, &live);
            jobs.push(submission(rng, "", spec));
        }
        if rng.random_bool(0.1) {
            let spec = burst_spec(rng);
            jobs.push(submission(rng, "burst", spec));
        }
        self.command(Command::Submit { jobs });
    }

    fn cancel(&mut self) {
        let known: Vec<JobId> = self.client.acknowledged.iter().copied().collect();
        if known.is_empty() {
            return;
        }
        let job = known[self.client.rng.random_range(0..known.len())];
        self.command(Command::Cancel { jobs: vec![job] });
    }

    fn configure(&mut self) {
        let mut spec = default_settings("team");
        let create = self.client.rng.random_bool(0.5);
        spec.limit.device_millis = self.client.rng.random_bool(0.5).then_some(3_000);
        spec.weight = self.client.rng.random_range(1..4);
        if create {
            self.command(Command::CreateQueue { spec });
        } else {
            let based_on = Revision(if self.client.rng.random_bool(0.3) { 3 } else { 0 });
            self.command(Command::UpdateQueue { spec, based_on });
        }
    }

    /// Prices, links and reservations.
    fn trade(&mut self) {
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

    fn operate(&mut self) {
        let pool = PoolId(self.client.rng.random_range(1..6));
        let cordoned = self.client.rng.random_bool(0.3);
        let deadline_ms = self.client.rng.random_range(0..20_000);
        match self.client.rng.random_range(0..5) {
            0 => self.command(Command::CordonPool { pool, cordoned }),
            1 => self.command(Command::DrainPool { pool, mode: DrainMode::Wait, deadline_ms }),
            2 => self.command(Command::DrainPool { pool, mode: DrainMode::Evict, deadline_ms: 0 }),
            3 => {
                let node = NodeId(self.client.rng.random_range(1..4));
                self.command(Command::CordonNode { pool, node, cordoned });
            }
            _ => {
                let silent = self.writers_state().and_then(|state| {
                    let silent = |pool: &PoolId| {
                        state.pool(*pool).is_some_and(|p| p.connectivity > Connectivity::Suspect)
                    };
                    let attempt = state.attempts().find(|attempt| silent(&attempt.pool))?;
                    Some(attempt.id(state.journal()))
                });
                if let Some(attempt) = silent {
                    self.client.abandoned.insert(attempt);
                    self.command(Command::Abandon { attempt });
                }
            }
        }
    }

    /// After the faults everything is opened again, so that all jobs can end.
    fn reopen(&mut self) {
        let Some(state) = self.writers_state() else { return };
        let mut commands = Vec::new();
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

    /// Asks, mostly about jobs that are new: those wait, and have reasons.
    fn ask(&mut self) {
        let jobs: Vec<JobId> = self.client.acknowledged.iter().rev().take(30).copied().collect();
        let job = if jobs.is_empty() { JobId(1) } else { jobs[self.client.rng.random_range(0..jobs.len())] };
        let query = match self.client.rng.random_range(0..8) {
            0 => Query::Jobs { filter: JobFilter::default(), before: JobId(u64::MAX), limit: 10 },
            1 => Query::Pools,
            2 => Query::Job(JobRef::Id(job)),
            _ => Query::Why(JobRef::Id(job)),
        };
        self.client.next_call += 1;
        let call = CallId(self.client.next_call);
        self.deliver(BrokerEvent::Query { call, query });
    }
}
