//! The broker as a step machine: it decides *when*, and says what is to be done.
//!
//! `step(now, input)` reads no clock, recovery_grace nothing, sends nothing; it returns effects. What
//! rests on an event is held until the event is durable. A step's work is bounded by counts; what
//! is left over asks for another step at once (`WakeAt(now)`).

mod commit;
mod liveness;
mod query;
mod recovery;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;

pub use query::{
    Answer, FreeBlock, GroupWhy, JobFilter, JobRef, JobWhy, NodeView, PoolView, Query, QueueView, defrag,
};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use session::Session;

use crate::model::change::Change;
use crate::model::demand::WorkloadProfile;
use crate::model::exchange::{FromAgent, ToAgent};
use crate::model::high_water::JournalKey;
use crate::model::id::{JobId, JournalId, PoolId, Revision, Term};
use crate::model::limit::TOKEN_RETENTION_MS;
use crate::model::mutant::Mutant;
use crate::model::plan::Policy;
use crate::model::time::Timestamp;
use crate::scheduler::{Budget, ReservationPolicy, Scheduler};
use crate::state::State;
use crate::state::apply::{ArchiveRow, FinishedJob};
use crate::state::command::{Command, Request};
use crate::state::decide::Reply;
use crate::state::event::EventRecord;
use crate::state::job::Principal;
use crate::state::rejection::Rejection;
use crate::state::snapshot::Object;

/// A caller's number for a request or query, returned with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A connection of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What happens to the broker.
#[derive(Debug)]
pub enum Input {
    Request {
        call: CallId,
        request: Request,
    },
    Query {
        call: CallId,
        query: Query,
    },
    FromAgent {
        session: SessionId,
        message: FromAgent,
    },
    AgentGone {
        session: SessionId,
    },
    /// The journal is durable up to this revision.
    Appended {
        through: Revision,
    },
    /// The chunk last asked for is durable.
    ChunkWritten,
    Wake,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Make these events durable. No other `Append` follows until `Appended` comes in. Without
    /// events it only asks whether the turn is still ours.
    Append {
        after: Revision,
        events: Vec<EventRecord>,
        archive: Vec<ArchiveRow>,
    },
    Reply {
        call: CallId,
        result: Result<Reply, Rejection>,
    },
    Answer {
        call: CallId,
        revision: Revision,
        answer: Answer,
    },
    Direct {
        session: SessionId,
        message: ToAgent,
    },
    CloseSession {
        session: SessionId,
    },
    /// These changes are durable: watchers may see them.
    Notify {
        changes: Vec<(Revision, Change)>,
    },
    WriteChunk {
        revision: Revision,
        index: u32,
        last: bool,
        objects: Vec<Object>,
    },
    /// Step again no later than this.
    WakeAt(Timestamp),
}

/// Random bits that a broker begins its turn with; each part is drawn by itself.
#[derive(Clone, Copy)]
pub struct Random {
    /// Names the turn. Shown.
    pub writer_session: u64,
    /// Names a journal that is new. Shown.
    pub journal: u64,
    /// The key of a journal without one. Secret.
    pub key: u128,
}

/// The broker's machine: the state, its scheduler, and the sessions of its agents.
pub struct Broker {
    state: State,
    scheduler: Scheduler,
    term: Term,
    /// A random number of this turn, for stamps.
    writer_session: u64,
    policy: Policy,
    /// Where the journal ended when this turn began.
    recovered: Revision,
    /// Pools to be heard before anything new is started, at the latest by `recovery_grace_until`.
    unreported_pools: BTreeSet<PoolId>,
    recovery_grace_until: Timestamp,
    /// No request token is forgotten before. The clock may show a much later time after a start or a
    /// sleep, while the clients that repeat their requests have waited only seconds.
    token_expiry_floor: Timestamp,
    now: Timestamp,
    /// How far the clock that we are given is behind the journal's time. Time goes on from where the
    /// journal ends: waiting for the clock to catch up would hold up everything that is due.
    behind_ms: u64,
    sessions: BTreeMap<SessionId, Session>,
    active_sessions: BTreeMap<PoolId, SessionId>,
    last_heartbeat: BTreeMap<PoolId, Timestamp>,
    heartbeat_deadlines: BTreeSet<(Timestamp, PoolId)>,
    /// No lease has surely ended before, whatever the state says of its pool.
    lease_expiry_floor: Timestamp,
    /// Sessions whose full set of orders isn't all sent.
    syncing: BTreeSet<SessionId>,
    pending: Vec<EventRecord>,
    pending_archive: Vec<ArchiveRow>,
    pending_changes: Vec<(Revision, Change)>,
    in_flight: bool,
    durable: Revision,
    held: VecDeque<(Revision, Effect)>,
    /// Jobs that have ended but whose end isn't durable: readers find them nowhere else.
    ended: BTreeMap<JobId, FinishedJob>,
    /// A revision that an agent has seen and this journal lacks: the disk is an old one.
    outdated: Option<Revision>,
    snapshot: snapshot::Progress,
    /// What may be said once the journal has been asked whose turn it is, each with the revision it
    /// rests on: what the append under way answers, and what the next one will.
    confirming: Vec<(Revision, Effect)>,
    unconfirmed: Vec<(Revision, Effect)>,
    budget: Budget,
    out: Vec<Effect>,
}

impl Broker {
    /// Takes over a recovered state as the writer of `term`, with secret random bits of its own.
    ///
    /// The first effects come from the first step.
    pub fn new(state: State, term: Term, random: Random, now: Timestamp) -> Self {
        let scheduler = Scheduler::rebuild(&state);
        let durable = state.revision();
        let mut broker = Self {
            now: now.max(state.now()),
            behind_ms: if Mutant::StandStill.is_on() { 0 } else { state.now().ms_since(now) },
            scheduler,
            term,
            writer_session: random.writer_session,
            policy: Policy::BestFit,
            recovered: durable,
            unreported_pools: BTreeSet::new(),
            recovery_grace_until: Timestamp::NEVER,
            token_expiry_floor: now.max(state.now()).plus_ms(TOKEN_RETENTION_MS),
            sessions: BTreeMap::new(),
            active_sessions: BTreeMap::new(),
            last_heartbeat: BTreeMap::new(),
            heartbeat_deadlines: BTreeSet::new(),
            lease_expiry_floor: Timestamp::NEVER,
            syncing: BTreeSet::new(),
            pending: Vec::new(),
            pending_archive: Vec::new(),
            pending_changes: Vec::new(),
            in_flight: false,
            durable,
            held: VecDeque::new(),
            ended: BTreeMap::new(),
            outdated: None,
            snapshot: snapshot::Progress::default(),
            confirming: Vec::new(),
            unconfirmed: Vec::new(),
            budget: Budget::default(),
            out: Vec::new(),
            state,
        };
        let (journal, writer_session) = (JournalId::from_random(random.journal), random.writer_session);
        let start =
            Command::StartTerm { journal, key: JournalKey::from_random(random.key), writer_session, term };
        let started = broker.command(Principal::System, start);
        assert!(started.is_ok(), "term {term} can't be started: {started:?}");
        broker.reset_heartbeats();
        broker.begin_recovery_grace();
        broker
    }

    /// Plans by this policy from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.scheduler.set_policy(&self.state, policy);
    }

    /// Keeps nodes sooner or later, more or fewer, from now on.
    pub fn set_reservation_policy(&mut self, reservation_policy: ReservationPolicy) {
        self.scheduler.set_reservation_policy(reservation_policy);
    }

    /// The state as it is, durable or not.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The writer's turn.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The last durable revision.
    pub fn durable(&self) -> Revision {
        self.durable
    }

    /// Set if an agent has proved that the journal went further: nothing is written any more.
    pub fn outdated(&self) -> Option<Revision> {
        self.outdated
    }

    /// The scheduler's indexes, for comparing them with rebuilt ones.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Takes one input and says what is to be done. `now` is the caller's clock, and so is the time of
    /// `WakeAt`.
    pub fn step(&mut self, now: Timestamp, input: Input) -> Vec<Effect> {
        let now = now.plus_ms(self.behind_ms);
        let gap = now.ms_since(self.now);
        self.now = self.now.max(now);
        if gap > self.state.settings().heartbeat_ms {
            // We were away, not they: their silence proves nothing.
            self.reset_heartbeats();
            self.recovery_grace_until = self.recovery_grace_until.plus_ms(gap);
            self.token_expiry_floor = self.token_expiry_floor.max(self.now.plus_ms(TOKEN_RETENTION_MS));
        }
        self.take(input);
        let mut more = false;
        if self.outdated.is_none() {
            self.check_heartbeats();
            more |= self.run_due_actions();
            more |= self.schedule();
        }
        if self.outdated.is_none() {
            more |= self.sync_sessions();
        }
        self.write_next_chunk();
        self.append_next();
        self.release();
        let wake = if more { self.now } else { self.next_wake() };
        let never = wake == Timestamp::NEVER;
        self.out.push(Effect::WakeAt(if never { wake } else { Timestamp(wake.0 - self.behind_ms) }));
        std::mem::take(&mut self.out)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Request { call, mut request } => {
                if let Some(token) = &mut request.token {
                    // Made by the clock of the day, which the journal's time may be ahead of.
                    token.made_at = token.made_at.map(|at| at.plus_ms(self.behind_ms));
                }
                let result = self.request(&request);
                let refused = result.is_err();
                let reply = Effect::Reply { call, result };
                // Of a writer that has been deposed, and doesn't know, a refusal may be wrong.
                if refused { self.hold_unconfirmed(reply) } else { self.hold(reply) }
            }
            Input::Query { call, query } => {
                let answer = self.query(query);
                let revision = self.state.revision();
                self.hold(Effect::Answer { call, revision, answer });
            }
            Input::FromAgent { session, message } => self.receive(session, message),
            Input::AgentGone { session } => self.end_session(session),
            Input::Appended { through } => {
                self.in_flight = false;
                self.durable = through;
                self.ended.retain(|_, job| job.revision > through);
                self.confirm_held();
            }
            Input::ChunkWritten => self.snapshot.chunk_in_flight = false,
            Input::Wake => {}
        }
    }

    fn request(&mut self, request: &Request) -> Result<Reply, Rejection> {
        if let Some(seen) = self.outdated {
            return Err(Rejection::ReadOnly { seen, at: self.state.revision() });
        }
        let decision = self.state.decide(self.now, request)?;
        self.commit(&request.principal, decision.events);
        Ok(decision.reply)
    }

    /// Decides and applies one command of the broker's own or of an agent.
    fn command(&mut self, principal: Principal, command: Command) -> Result<Reply, Rejection> {
        self.request(&Request { principal, token: None, command })
    }

    /// Does what is due; tells whether more is.
    fn run_due_actions(&mut self) -> bool {
        let timer_due = self.next_timer() <= self.now;
        if !timer_due && !self.state.has_backlog() && !self.state.has_lost() {
            return false;
        }
        let due_actions = self.state.due_actions(self.now, self.is_circuit_open(), self.token_expiry_floor);
        let more = due_actions.len() >= crate::state::decide::DUE_ACTIONS_MAX;
        for due_action in due_actions {
            // One due_action may make another void, such as the end of a job's last attempt.
            let _ = self.command(Principal::System, Command::DueAction(due_action));
        }
        more
    }

    /// Plans and starts what fits; tells whether there is more to plan.
    fn schedule(&mut self) -> bool {
        if !self.scheduler.has_work() || self.in_recovery_grace() {
            return false;
        }
        if let Some(profile) = self.next_profile() {
            let _ = self
                .command(Principal::System, Command::UpdateWorkloadProfile { profile: Arc::new(profile) });
            return true;
        }
        let mut plan = self.scheduler.plan(&self.state, self.budget);
        let starts = std::mem::take(&mut plan.starts);
        if !starts.is_empty() {
            let _ = self.command(Principal::System, Command::RecordRound { plan });
        }
        for start in starts {
            let nodes: Vec<Change> = start
                .placements
                .iter()
                .map(|p| Change::Node(crate::model::id::NodeRef { pool: start.pool, node: p.node }))
                .collect();
            let job = start.unit.job;
            let group = self.state.job(job).map(|_| self.state.group_of(start.unit));
            if self.command(Principal::System, Command::Start { start }).is_err() {
                // The index took it already: give it back.
                self.scheduler.fold(&self.state, &nodes);
                let class = self.state.job(job).and_then(|job| self.state.class_of(job, group?));
                self.scheduler.fold(&self.state, &class.map(Change::Class).into_iter().collect::<Vec<_>>());
            }
        }
        self.scheduler.has_work()
    }

    /// What is to be learned, or forgotten where nothing is to be: plans go by the journal's lesson.
    fn next_profile(&mut self) -> Option<WorkloadProfile> {
        match self.policy {
            Policy::Fgd | Policy::Overflow => self.scheduler.profile(&self.state),
            Policy::BestFit => (!self.state.profile().entries.is_empty()).then(WorkloadProfile::default),
        }
    }

    /// When the next timer or request token falls due.
    fn next_timer(&self) -> Timestamp {
        let token = self.state.next_token().map(|at| at.max(self.token_expiry_floor));
        self.state.next_timer().into_iter().chain(token).min().unwrap_or(Timestamp::NEVER)
    }

    fn next_wake(&self) -> Timestamp {
        if self.outdated.is_some() {
            // Nothing that falls due is done any more.
            return Timestamp::NEVER;
        }
        let settings = self.state.settings();
        let timer = self.next_timer();
        let heartbeat_deadlines = self.heartbeat_deadlines.first().map_or(Timestamp::NEVER, |(at, _)| *at);
        // While a pool may fall silent we must not sleep long enough to doubt our own clock.
        let attentive = if self.heartbeat_deadlines.is_empty() && !self.state.has_lost() {
            Timestamp::NEVER
        } else {
            self.now.plus_ms(settings.heartbeat_ms / 2)
        };
        let unreported_pools = self.recovery_grace().map_or(Timestamp::NEVER, |(_, until)| until);
        timer.min(heartbeat_deadlines).min(attentive).min(unreported_pools).max(self.now)
    }
}
