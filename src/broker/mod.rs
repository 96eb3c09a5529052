//! The broker as a step machine: it decides *when* things happen, and returns what its shell must do.
//!
//! `step(now, input)` reads no clock, awaits nothing and sends nothing; it returns effects. An effect that
//! depends on an event waits until the event is durable. A step's work is bounded by counts; if work is left
//! over, the step asks for another one at once (`WakeAt(now)`).

mod durability;
mod fits;
mod liveness;
mod memory;
pub mod query;
mod reader;
mod recovery;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;

pub use query::{AnyAnswer, AnyQuery, Query};

pub use reader::Reader;

use std::collections::BTreeMap;
use std::sync::Arc;

use durability::Durability;
use liveness::Liveness;
use recovery::Recovery;
use session::Sessions;

use crate::model::change::Change;
use crate::model::demand::WorkloadProfile;
use crate::model::exchange::{FromAgent, ToAgent};
use crate::model::high_water::JournalKey;
use crate::model::id::{JobId, JournalId, Revision, Term};
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
        query: Box<dyn AnyQuery>,
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

/// What the shell must do.
#[derive(Debug)]
pub enum Effect {
    /// Make these events durable. No other `Append` follows before `Appended` comes in. Without events it only
    /// checks that this broker is still the journal's writer.
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
        answer: AnyAnswer,
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

/// Random bits for a writer session; each part is drawn independently.
#[derive(Clone, Copy)]
pub struct Random {
    /// Names the writer session. Public.
    pub writer_session: u64,
    /// Names a journal that is new. Public.
    pub journal: u64,
    /// The key of a journal that has none. Secret.
    pub key: u128,
}

/// The broker's machine: the state, its scheduler, and the sessions of its agents.
pub struct Broker {
    state: State,
    scheduler: Scheduler,
    term: Term,
    policy: Policy,
    budget: Budget,
    /// Bytes that jobs, pools and nodes may take.
    memory_max: u64,
    now: Timestamp,
    /// When this broker took over.
    started_at: Timestamp,
    /// How far the caller's clock is behind the journal's time. Time continues from where the journal ends:
    /// waiting for the clock to catch up would delay everything that is due.
    behind_ms: u64,
    durability: Durability,
    sessions: Sessions,
    liveness: Liveness,
    recovery: Recovery,
    /// Jobs that have ended but whose end isn't durable: readers find them nowhere else.
    ended: BTreeMap<JobId, FinishedJob>,
    snapshot: snapshot::Progress,
    out: Vec<Effect>,
}

impl Broker {
    /// Takes over a recovered state as the writer of `term`, with secret random bits of its own.
    ///
    /// The first effects come from the first step.
    pub fn new(state: State, term: Term, random: Random, now: Timestamp) -> Self {
        let mut broker = Self::recovered(state, term, random.writer_session, now);
        let (journal, writer_session) = (JournalId::from_random(random.journal), random.writer_session);
        let start =
            Command::StartTerm { journal, key: JournalKey::from_random(random.key), writer_session, term };
        let started = broker.command(Principal::System, start);
        assert!(started.is_ok(), "term {term} can't be started: {started:?}");
        broker.reset_heartbeats();
        broker.begin_recovery_grace();
        broker
    }

    /// A broker with a recovered state, which has done nothing yet.
    fn recovered(state: State, term: Term, writer_session: u64, now: Timestamp) -> Self {
        let started = now.max(state.now());
        Self {
            now: started,
            started_at: started,
            behind_ms: if Mutant::StandStill.is_on() { 0 } else { state.now().ms_since(now) },
            scheduler: Scheduler::rebuild(&state),
            term,
            policy: Policy::BestFit,
            budget: Budget::default(),
            memory_max: u64::MAX,
            durability: Durability::new(state.revision()),
            sessions: Sessions::default(),
            liveness: Liveness::default(),
            recovery: Recovery::new(writer_session, state.revision(), started),
            ended: BTreeMap::new(),
            snapshot: snapshot::Progress::default(),
            out: Vec::new(),
            state,
        }
    }

    /// Plans by this policy from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.scheduler.set_policy(&self.state, policy);
    }

    /// Reserves nodes by this policy from now on.
    pub fn set_reservation_policy(&mut self, reservation_policy: ReservationPolicy) {
        self.scheduler.set_reservation_policy(reservation_policy);
    }

    /// The state as it is, durable or not.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Ends the broker and returns what it held: its state, and the scheduler with its indexes.
    pub fn into_parts(self) -> (State, Scheduler) {
        (self.state, self.scheduler)
    }

    /// The term in which this broker writes.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The last durable revision.
    pub fn durable(&self) -> Revision {
        self.durability.durable
    }

    /// The revision that an agent has proved this journal to lack; then nothing is written any more.
    pub fn outdated(&self) -> Option<Revision> {
        self.recovery.newer_revision
    }

    /// The scheduler's indexes, for comparing them with rebuilt ones.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Takes one input and returns the effects. `now` is the caller's clock, and so is the time of `WakeAt`.
    pub fn step(&mut self, now: Timestamp, input: Input) -> Vec<Effect> {
        let now = now.plus_ms(self.behind_ms);
        let gap = now.ms_since(self.now);
        self.now = self.now.max(now);
        if gap > self.state.settings().heartbeat_ms {
            // The broker was paused, not the agents: missing heartbeats prove nothing.
            self.reset_heartbeats();
            self.recovery.grace_until = self.recovery.grace_until.plus_ms(gap);
            self.recovery.token_expiry_floor =
                self.recovery.token_expiry_floor.max(self.now.plus_ms(TOKEN_RETENTION_MS));
        }
        self.take(input);
        let mut more = false;
        if self.recovery.newer_revision.is_none() {
            self.check_heartbeats();
            more |= self.run_due_actions();
            more |= self.schedule();
        }
        if self.recovery.newer_revision.is_none() {
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
                    // Made by the client's wall clock, which the journal's time may be ahead of.
                    token.made_at = token.made_at.map(|at| at.plus_ms(self.behind_ms));
                }
                let result = self.request(&request);
                let refused = result.is_err();
                let reply = Effect::Reply { call, result };
                // A writer that was deposed and has not noticed may refuse wrongly.
                if refused { self.hold_until_confirmed(reply) } else { self.hold_until_durable(reply) }
            }
            Input::Query { call, query } => {
                let answer = query.answer_any(self);
                let revision = self.state.revision();
                self.hold_until_durable(Effect::Answer { call, revision, answer });
            }
            Input::FromAgent { session, message } => self.receive(session, message),
            Input::AgentGone { session } => self.end_session(session),
            Input::Appended { through } => {
                self.durability.in_flight = false;
                self.durability.durable = through;
                self.ended.retain(|_, job| job.revision > through);
                self.release_confirmed();
            }
            Input::ChunkWritten => self.snapshot.chunk_in_flight = false,
            Input::Wake => {}
        }
    }

    fn request(&mut self, request: &Request) -> Result<Reply, Rejection> {
        if let Some(seen) = self.recovery.newer_revision {
            return Err(Rejection::ReadOnly { seen, at: self.state.revision() });
        }
        let decision = self.state.decide(self.now, request)?;
        self.check_memory(&request.command, &decision.events)?;
        // A repeated request has no events: it gets its first reply, whatever has happened to the pools.
        if let Command::Submit { jobs } = &request.command
            && !decision.events.is_empty()
        {
            self.check_fits(jobs)?;
        }
        self.commit(&request.principal, decision.events);
        Ok(decision.reply)
    }

    /// Decides and applies one command of the broker's own or of an agent.
    fn command(&mut self, principal: Principal, command: Command) -> Result<Reply, Rejection> {
        self.request(&Request { principal, token: None, command })
    }

    /// Executes due actions; returns whether more are due.
    fn run_due_actions(&mut self) -> bool {
        let timer_due = self.next_timer() <= self.now;
        if !timer_due && !self.state.has_backlog() && !self.state.has_lost() {
            return false;
        }
        let circuit_open = self.is_circuit_open();
        let silent_ms = |pool| match (circuit_open, Mutant::LoseEarly.is_on()) {
            (true, _) => 0,
            (false, false) => self.silent_ms(pool),
            (false, true) => 2 * self.silent_ms(pool),
        };
        let due_actions = self.state.due_actions(self.now, silent_ms, self.recovery.token_expiry_floor);
        let more = due_actions.len() >= crate::state::decide::DUE_ACTIONS_MAX;
        for due_action in due_actions {
            // One action may make another void, such as the end of a job's last attempt.
            let _ = self.command(Principal::System, Command::DueAction(due_action));
        }
        more
    }

    /// Plans and starts what fits; returns whether there is more to plan.
    fn schedule(&mut self) -> bool {
        if !self.scheduler.has_work() || self.in_recovery_grace() {
            return false;
        }
        if self.update_profile() {
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
                // The scheduler's index has committed it already: restore what the state has.
                self.scheduler.fold(&self.state, &nodes);
                let class = self.state.job(job).and_then(|job| self.state.class_of(job, group?));
                self.scheduler.fold(&self.state, &class.map(Change::Class).into_iter().collect::<Vec<_>>());
            }
        }
        self.scheduler.has_work()
    }

    /// Updates the workload profile if that is due, or clears it under a policy that uses none; returns whether
    /// it changed.
    fn update_profile(&mut self) -> bool {
        let profile = match self.policy {
            Policy::Fgd | Policy::Overflow if self.state.workload().is_check_due() => {
                Scheduler::updated_profile(&self.state)
            }
            Policy::BestFit if !self.state.profile().entries.is_empty() => Some(WorkloadProfile::default()),
            Policy::Fgd | Policy::Overflow | Policy::BestFit => return false,
        };
        let changed = profile.is_some();
        let profile = profile.map(Arc::new);
        let _ = self.command(Principal::System, Command::UpdateWorkloadProfile { profile });
        changed
    }

    /// When the next timer or request token falls due.
    fn next_timer(&self) -> Timestamp {
        let token = self.state.next_token().map(|at| at.max(self.recovery.token_expiry_floor));
        self.state.next_timer().into_iter().chain(token).min().unwrap_or(Timestamp::NEVER)
    }

    fn next_wake(&self) -> Timestamp {
        if self.recovery.newer_revision.is_some() {
            // Nothing that falls due is executed any more.
            return Timestamp::NEVER;
        }
        let settings = self.state.settings();
        let timer = self.next_timer();
        let deadline = self.liveness.next_deadline();
        // While a pool may miss heartbeats, never sleep so long that the broker's own pause could be the cause.
        let attentive = if deadline == Timestamp::NEVER && !self.state.has_lost() {
            Timestamp::NEVER
        } else {
            self.now.plus_ms(settings.heartbeat_ms / 2)
        };
        let grace_until = self.recovery_grace().map_or(Timestamp::NEVER, |(_, until)| until);
        timer.min(deadline).min(attentive).min(grace_until).max(self.now)
    }
}
