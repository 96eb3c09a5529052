//! The brokers' machines: starts, crashes, pauses, and what becomes of their effects.

use rand::RngExt;
use weir::broker::{Broker, CallId, Effect, Input, Query, Random, SessionId};
use weir::model::exchange::{FromAgent, RefusedCode, ToAgent};
use weir::model::id::{Revision, Term};
use weir::model::plan::Policy;
use weir::model::pool::Connectivity;
use weir::model::time::Timestamp;
use weir::scheduler::ReservationPolicy;
use weir::state::command::Request;
use weir::state::rejection::Rejection;

use super::clock::Clock;
use super::journal::{SimJournal, Writing, Written};
use super::schedule::Tail;
use super::{Event, World};

/// What comes to a broker's process.
#[derive(Debug)]
pub(crate) enum BrokerEvent {
    /// At this world time; only the wake-up asked for last counts.
    Wake {
        at: u64,
    },
    Appended {
        through: Revision,
    },
    ChunkWritten,
    Request {
        call: CallId,
        request: Request,
    },
    Query {
        call: CallId,
        query: Query,
    },
    Frame {
        session: SessionId,
        number: u64,
        message: Box<FromAgent>,
    },
    Gone {
        session: SessionId,
    },
}

/// A broker's process, if one runs here, and its machine.
#[derive(Default)]
pub(crate) struct BrokerHost {
    pub(crate) machine: Option<Broker>,
    pub(crate) life: u32,
    pub(crate) clock: Option<Clock>,
    wake: u64,
    pub(crate) paused: bool,
    backlog: Vec<BrokerEvent>,
    writing: Option<Writing>,
    /// It dies after so many effects of its next step, and comes back so much later.
    crash: Option<(usize, Tail, u64)>,
    /// Its next append fails.
    fail_append: Option<Tail>,
    /// It runs on an older copy of the journal.
    pub(crate) on_fork: bool,
    /// Where the journal ended when it took over.
    pub(crate) recovered: Revision,
    /// When it first told the time, in the world's time, and what it told.
    first_told: Option<(u64, Timestamp)>,
    /// Its turn, and the revision by which that had begun.
    writer_session: u64,
    begun: Revision,
    pub(crate) checked_at: Revision,
}

/// How long a broker on an older copy must at least wait for the pools that it knows: the silence
/// after which they count as unreachable, less what its clock may be fast.
const FORK_AWAITS_MS: u64 = 14_000;
/// How long an answer may be on its way: through a slow disk, and a broker that stands still.
const TOLD_LATE_MS: u64 = 60_000;
/// From a failed append to the next try, as the shell has it.
const REOPEN_MS: u64 = 500;

impl World {
    fn disk_of(&mut self, host: usize) -> &mut SimJournal {
        match &mut self.fork {
            Some(fork) if self.brokers[host].on_fork => fork,
            _ => &mut self.journal,
        }
    }

    /// The broker that has the writer's turn, on the true journal unless that is put away.
    pub(crate) fn writer(&self) -> Option<usize> {
        let term = self.fork.as_ref().map_or(self.journal.term, |fork| fork.term);
        let is_writer = |host: &BrokerHost| {
            let machine = host.machine.as_ref().filter(|machine| machine.term() == term);
            machine.is_some() && host.on_fork == self.fork.is_some()
        };
        self.brokers.iter().position(is_writer)
    }

    pub(crate) fn start_broker(&mut self, host: usize) -> Result<(), String> {
        if self.writer().is_some() {
            return Ok(());
        }
        // A deposed one may still stand here.
        self.kill_broker(host, Tail::Lost)?;
        self.start_broker_on(host)
    }

    /// Takes the writer's turn, whoever has it.
    pub(crate) fn start_broker_on(&mut self, host: usize) -> Result<(), String> {
        let clock = self.new_clock();
        self.brokers[host].on_fork = self.fork.is_some();
        let disk = self.disk_of(host);
        let state = disk.recover()?;
        let term: Term = disk.claim();
        state.check().map_err(|what| format!("recovered state: {what}"))?;
        let recovered = state.revision();
        let (writer_session, journal, key) =
            (self.writer_sessions.random(), self.writer_sessions.random(), self.writer_sessions.random());
        let random = Random { writer_session, journal, key };
        if self.fork.is_some() {
            self.fork_turns.insert(writer_session, self.fork_from);
            let there = |host: &&super::AgentHost| {
                state
                    .pool_named(&host.hello.pool.name)
                    .is_some_and(|pool| pool.connectivity < Connectivity::Lost)
            };
            let agents = self.agents.iter().enumerate().filter(|(_, host)| there(host));
            self.fork_awaits = agents.map(|(index, _)| index).collect();
            self.fork_awaits_until = self.now + FORK_AWAITS_MS;
            self.fork_lives += 1;
        }
        let now = clock.at(self.now);
        let kept = &mut self.brokers[host];
        kept.life += 1;
        let mut machine = Broker::new(state, term, random, now);
        // Its clusters are small and its time is short.
        machine.set_reservation_policy(ReservationPolicy { one_of: 1, wait_ms_min: 0 });
        // The two policies take turns, so that what one has learned the other forgets.
        machine.set_policy(if writer_session.is_multiple_of(4) { Policy::BestFit } else { Policy::Overflow });
        kept.machine = Some(machine);
        (kept.clock, kept.recovered, kept.checked_at) = (Some(clock), recovered, Revision(0));
        (kept.writer_session, kept.begun) =
            (writer_session, kept.machine.as_ref().map_or(recovered, |m| m.state().revision()));
        (kept.wake, kept.paused, kept.crash, kept.fail_append) = (0, false, None, None);
        kept.first_told = None;
        if !kept.on_fork {
            self.watch.relist(&self.journal.replica);
        }
        self.broker_step(host, Input::Wake)
    }

    /// The process is gone, with its connections and what it was writing.
    pub(crate) fn kill_broker(&mut self, host: usize, tail: Tail) -> Result<(), String> {
        let kept = &mut self.brokers[host];
        let Some(machine) = kept.machine.take() else { return Ok(()) };
        let term = machine.term();
        kept.life += 1;
        kept.paused = false;
        kept.backlog.clear();
        // It was about to die anyway.
        self.crashes[0] += u32::from(kept.crash.take().is_some());
        let (writing, cut) = (kept.writing.take(), self.disk.random());
        let mut counts = std::mem::take(&mut self.counts);
        let lost = self.disk_of(host).lose_writer(term, writing, tail, cut, &mut counts);
        self.counts = counts;
        lost?;
        self.drop_links_of_broker(host);
        Ok(())
    }

    pub(crate) fn crash_broker(&mut self, host: usize, tail: Tail, down_ms: u64) -> Result<(), String> {
        if self.brokers[host].machine.is_none() {
            return Ok(());
        }
        self.crashes[0] += 1;
        self.kill_broker(host, tail)?;
        let next = self.hosts.random_range(0..self.brokers.len());
        self.after(down_ms, Event::StartBroker { host: next });
        Ok(())
    }

    /// The broker dies in the midst of its next step.
    pub(crate) fn plan_crash(&mut self, host: usize, after: u8, tail: Tail, down_ms: u64) {
        self.brokers[host].crash = Some((usize::from(after), tail, down_ms));
    }

    pub(crate) fn fail_next_append(&mut self, host: usize, tail: Tail) {
        self.brokers[host].fail_append = Some(tail);
    }

    pub(crate) fn resume_broker(&mut self, host: usize) -> Result<(), String> {
        let kept = &mut self.brokers[host];
        kept.paused = false;
        let life = kept.life;
        for what in std::mem::take(&mut kept.backlog) {
            self.broker_event(host, life, what)?;
        }
        Ok(())
    }

    pub(crate) fn broker_event(&mut self, host: usize, life: u32, what: BrokerEvent) -> Result<(), String> {
        let kept = &mut self.brokers[host];
        if kept.life != life || kept.machine.is_none() {
            return Ok(());
        }
        if kept.paused {
            kept.backlog.push(what);
            return Ok(());
        }
        match what {
            BrokerEvent::Wake { at } => {
                if at != kept.wake {
                    return Ok(());
                }
                kept.wake = 0;
                self.broker_step(host, Input::Wake)
            }
            BrokerEvent::Appended { through } => self.broker_step(host, Input::Appended { through }),
            BrokerEvent::ChunkWritten => self.broker_step(host, Input::ChunkWritten),
            BrokerEvent::Request { call, request } => {
                self.broker_step(host, Input::Request { call, request })
            }
            BrokerEvent::Query { call, query } => {
                let pools = kept.machine.as_ref().map_or(0, |broker| broker.state().pools().count());
                self.client.pools_asked.insert(call, pools);
                self.broker_step(host, Input::Query { call, query })
            }
            BrokerEvent::Frame { session, number, message } => {
                self.broker_frame(host, session, number, *message)
            }
            BrokerEvent::Gone { session } => {
                self.end_at_broker(session);
                self.broker_step(host, Input::AgentGone { session })
            }
        }
    }

    pub(crate) fn broker_step(&mut self, host: usize, input: Input) -> Result<(), String> {
        let kept = &mut self.brokers[host];
        let (Some(mut broker), Some(clock)) = (kept.machine.take(), kept.clock) else { return Ok(()) };
        let crash = kept.crash.take();
        self.inputs += 1;
        let effects = broker.step(clock.at(self.now), input);
        self.check_step(host, &broker)?;
        self.brokers[host].machine = Some(broker);
        if self.trace {
            super::trace::broker_effects(host, &effects);
        }
        let life = self.brokers[host].life;
        for (index, effect) in effects.into_iter().enumerate() {
            match crash {
                Some((after, tail, down_ms)) if after == index => {
                    return self.crash_broker(host, tail, down_ms);
                }
                _ => self.broker_effect(host, effect)?,
            }
            if self.brokers[host].life != life {
                return Ok(());
            }
        }
        match crash {
            Some((_, tail, down_ms)) => self.crash_broker(host, tail, down_ms),
            None => Ok(()),
        }
    }

    fn broker_effect(&mut self, host: usize, effect: Effect) -> Result<(), String> {
        let life = self.brokers[host].life;
        match effect {
            Effect::Append { after, events, archive } => {
                let term = self.brokers[host].machine.as_ref().map(Broker::term).unwrap_or_default();
                let batch = Writing { term, after, events, archive };
                if self.brokers[host].writing.replace(batch).is_some() {
                    return Err("two appends at once".to_owned());
                }
                let (until, append_ms) = self.slow_disk;
                let delay = self.disk.random_range(1..if self.now < until { append_ms } else { 12 });
                self.after(delay, Event::DiskDone { host, life });
            }
            Effect::WriteChunk { revision, index, last, objects } => {
                let term = self.brokers[host].machine.as_ref().map(Broker::term).unwrap_or_default();
                self.disk_of(host).write_chunk(term, (revision, index, last), &objects)?;
                let delay = self.disk.random_range(1..20);
                self.after(delay, Event::Broker { host, life, what: BrokerEvent::ChunkWritten });
            }
            Effect::Reply { call, result } => {
                if self.brokers[host].on_fork {
                    result.as_ref().err().into_iter().for_each(|no| self.counts.rejection(no));
                } else {
                    self.check_reply(&result)?;
                    // What a writer says late, after a pause, may have been so while it had its turn.
                    if self.writer() == Some(host) {
                        self.check_repetition(call, &result)?;
                    }
                    self.send_reply(call, result);
                }
            }
            Effect::Answer { call, answer, .. } => self.check_answer(host, call, &answer)?,
            Effect::Direct { session, message } => {
                self.check_direct(host, session, &message)?;
                self.note_fork(host, session, &message);
                if let ToAgent::HeartbeatAnswer { now, .. } = &message {
                    self.check_time(host, *now)?;
                }
                if let ToAgent::Refused { code: RefusedCode::PoolClaimed, .. } = &message {
                    self.counts.rejection(&Rejection::PoolClaimed { pool: String::new() });
                }
                self.send_to_agent(session, message);
            }
            Effect::CloseSession { session } => self.close_link(session),
            Effect::Notify { changes } => {
                if !self.brokers[host].on_fork {
                    self.check_notify(host, &changes)?;
                }
            }
            Effect::WakeAt(at) => self.wake_broker(host, at),
        }
        Ok(())
    }

    /// A broker's time goes on with the world's, but for drift and what an answer was held.
    fn check_time(&mut self, host: usize, now: Timestamp) -> Result<(), String> {
        let (since, first) = *self.brokers[host].first_told.get_or_insert((self.now, now));
        let (passed, told) = (self.now - since, now.ms_since(first));
        if told + TOLD_LATE_MS < passed - passed / 50 {
            return Err(format!("broker {host} says that {told} ms have passed, {passed} have"));
        }
        Ok(())
    }

    fn wake_broker(&mut self, host: usize, at: Timestamp) {
        let kept = &mut self.brokers[host];
        let Some(clock) = kept.clock.filter(|_| at != Timestamp::NEVER) else { return };
        let at = clock.world_at(at).max(self.now);
        if at != kept.wake {
            let life = kept.life;
            kept.wake = at;
            self.at(at, Event::Broker { host, life, what: BrokerEvent::Wake { at } });
        }
    }

    /// The disk has what it was given, or refuses it.
    pub(crate) fn disk_done(&mut self, host: usize, life: u32) -> Result<(), String> {
        let kept = &mut self.brokers[host];
        if kept.life != life {
            return Ok(());
        }
        if let Some(tail) = kept.fail_append.take() {
            // The shell drops its state and opens the journal again.
            self.kill_broker(host, tail)?;
            self.after(REOPEN_MS, Event::StartBroker { host });
            return Ok(());
        }
        let Some(batch) = kept.writing.take() else { return Err("nothing is being written".to_owned()) };
        let mut counts = std::mem::take(&mut self.counts);
        let written = self.disk_of(host).append(batch, &mut counts);
        self.counts = counts;
        match written? {
            Written::Through(through) => {
                // Before it can be taken for the newer of the two, the admin has seen what is wrong.
                if self.brokers[host].on_fork && through >= self.journal.replica.revision() {
                    return self.restore_disk();
                }
                let what = BrokerEvent::Appended { through };
                self.broker_event(host, life, what)
            }
            Written::Deposed => {
                self.counts.deposed += 1;
                self.kill_broker(host, Tail::Lost)
            }
        }
    }

    /// A broker starts on a copy of the journal that lacks its newest part.
    pub(crate) fn go_back(&mut self, missing_permille: u32, ms: u64) -> Result<(), String> {
        let Some(host) = self.writer().filter(|_| self.fork.is_none()) else { return Ok(()) };
        let Some(older) = self.journal.older(missing_permille)? else { return Ok(()) };
        self.kill_broker(host, Tail::Lost)?;
        self.fork_from = older.replica.revision();
        // Of the writer whose last batches are missing, if it began before the copy ends.
        let begun = self.brokers[host].begun;
        self.fork_turn = if begun <= self.fork_from { self.brokers[host].writer_session } else { 0 };
        self.fork = Some(older);
        self.fork_lives = 0;
        self.fork_heard.clear();
        self.counts.older_disks += 1;
        self.after(ms, Event::RestoreDisk);
        self.start_broker_on(host)
    }

    pub(crate) fn restore_disk(&mut self) -> Result<(), String> {
        if self.fork.is_none() {
            return Ok(());
        }
        for host in 0..self.brokers.len() {
            if self.brokers[host].on_fork {
                self.kill_broker(host, Tail::Lost)?;
                self.brokers[host].on_fork = false;
            }
        }
        self.fork = None;
        self.fork_heard.clear();
        self.after(REOPEN_MS, Event::StartBroker { host: 0 });
        Ok(())
    }
}
