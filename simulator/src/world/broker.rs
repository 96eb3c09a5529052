//! Broker processes: starts, crashes, pauses, stale copies of the journal, and execution of the brokers'
//! effects.

use rand::RngExt;
use weir::broker::{Broker, Effect, Input, Random};
use weir::model::exchange::{RefusedCode, ToAgent};
use weir::model::id::{Revision, Term};
use weir::model::plan::Policy;
use weir::model::pool::Connectivity;
use weir::model::time::Timestamp;
use weir::scheduler::ReservationPolicy;
use weir::state::rejection::Rejection;

use super::World;
use super::checks::pool_ids;
use super::clock::Clock;
use super::event::{BrokerEvent, Event};
use super::journal::{SimJournal, Writing, Written};
use super::schedule::PendingAppend;

/// A host for a broker process, with the broker's state machine if a process runs.
#[derive(Default)]
pub(crate) struct BrokerHost {
    pub(crate) machine: Option<Broker>,
    /// Counts starts and crashes: distinguishes events of one process from those of the next.
    pub(crate) incarnation: u32,
    pub(crate) clock: Option<Clock>,
    /// Virtual time of the latest requested wake-up; 0 if none.
    wake: u64,
    pub(crate) paused: bool,
    /// Inputs that arrived during a pause.
    backlog: Vec<BrokerEvent>,
    /// The append in progress.
    writing: Option<Writing>,
    /// Planned crash: number of effects of the next step before it, fate of the append, downtime.
    crash: Option<(usize, PendingAppend, u64)>,
    /// The next append fails.
    fail_append: Option<PendingAppend>,
    /// The broker runs on a stale copy of the journal.
    pub(crate) on_stale_copy: bool,
    /// Last revision of the journal when the broker started.
    pub(crate) recovered: Revision,
    /// Virtual time of the broker's first heartbeat answer, and the broker time in it.
    first_time: Option<(u64, Timestamp)>,
    writer_session: u64,
    /// Revision after the start of the writer session.
    begun: Revision,
    /// Revision at the previous invariant check.
    pub(crate) checked_at: Revision,
}

/// Shortest recovery grace period of a broker on a stale copy, for the pools in its state: the heartbeat
/// timeout of a pool, less the possible error of the broker's clock.
const STALE_COPY_GRACE_MS: u64 = 14_000;
/// Longest delay of an answer, by a slow disk and a paused broker.
const ANSWER_DELAY_MS_MAX: u64 = 60_000;
/// Delay from a failed append until the journal is opened again, as in the runtime.
const REOPEN_MS: u64 = 500;

impl World {
    /// The journal that the broker on this host writes to.
    fn disk_of(&mut self, host: usize) -> &mut SimJournal {
        match &mut self.stale_copy {
            Some(copy) if self.brokers[host].on_stale_copy => copy,
            _ => &mut self.journal,
        }
    }

    /// The host of the broker with the latest term: on the stale copy if there is one, else on the true
    /// journal.
    pub(crate) fn writer(&self) -> Option<usize> {
        let term = self.stale_copy.as_ref().map_or(self.journal.term, |copy| copy.term);
        let is_writer = |host: &BrokerHost| {
            let machine = host.machine.as_ref().filter(|machine| machine.term() == term);
            machine.is_some() && host.on_stale_copy == self.stale_copy.is_some()
        };
        self.brokers.iter().position(is_writer)
    }

    /// Starts a broker unless a writer runs.
    pub(crate) fn start_broker(&mut self, host: usize) -> Result<(), String> {
        if self.writer().is_some() {
            return Ok(());
        }
        // A deposed broker may still run on this host.
        self.kill_broker(host, PendingAppend::Lost)?;
        self.start_broker_on(host)
    }

    /// Starts a broker as the new writer, even if another one runs.
    pub(crate) fn start_broker_on(&mut self, host: usize) -> Result<(), String> {
        let clock = self.new_clock();
        self.brokers[host].on_stale_copy = self.stale_copy.is_some();
        let disk = self.disk_of(host);
        let state = disk.recover()?;
        let term: Term = disk.begin_term();
        state.check().map_err(|what| format!("recovered state: {what}"))?;
        let recovered = state.revision();
        let (writer_session, journal, key) =
            (self.writer_sessions.random(), self.writer_sessions.random(), self.writer_sessions.random());
        let random = Random { writer_session, journal, key };
        if self.stale_copy.is_some() {
            self.stale_copy_sessions.insert(writer_session, self.stale_copy_end);
            let is_expected = |host: &&super::AgentHost| {
                state
                    .pool_named(&host.hello.pool.name)
                    .is_some_and(|pool| pool.connectivity < Connectivity::Lost)
            };
            let agents = self.agents.iter().enumerate().filter(|(_, host)| is_expected(host));
            self.stale_copy_expected = agents.map(|(index, _)| index).collect();
            self.stale_copy_grace_until = self.now + STALE_COPY_GRACE_MS;
            self.stale_copy_starts += 1;
        }
        let now = clock.at(self.now);
        let process = &mut self.brokers[host];
        process.incarnation += 1;
        let mut machine = Broker::new(state, term, random, now);
        // Clusters are small and runs are short: any node may be reserved, without a minimum wait.
        machine.set_reservation_policy(ReservationPolicy { one_of: 1, wait_ms_min: 0 });
        // The policy varies between starts, so that best fit discards the workload profile of `overflow`.
        machine.set_policy(if writer_session.is_multiple_of(4) { Policy::BestFit } else { Policy::Overflow });
        process.machine = Some(machine);
        (process.clock, process.recovered, process.checked_at) = (Some(clock), recovered, Revision(0));
        (process.writer_session, process.begun) = (
            writer_session,
            process.machine.as_ref().map_or(recovered, |machine| machine.state().revision()),
        );
        (process.wake, process.paused, process.crash, process.fail_append) = (0, false, None, None);
        process.first_time = None;
        if !process.on_stale_copy {
            self.watch.relist(&self.journal.replica);
        }
        self.broker_step(host, Input::Wake)
    }

    /// Ends a broker process with its connections. `pending` is the fate of its append in progress.
    pub(crate) fn kill_broker(&mut self, host: usize, pending: PendingAppend) -> Result<(), String> {
        let process = &mut self.brokers[host];
        let Some(machine) = process.machine.take() else { return Ok(()) };
        let term = machine.term();
        process.incarnation += 1;
        process.paused = false;
        process.backlog.clear();
        // A planned crash counts now, since it will not happen later.
        self.crashes[0] += u32::from(process.crash.take().is_some());
        let (writing, cut) = (process.writing.take(), self.disk.random());
        let mut counts = std::mem::take(&mut self.counts);
        let lost = self.disk_of(host).lose_writer(term, writing, pending, cut, &mut counts);
        self.counts = counts;
        lost?;
        self.drop_links_of_broker(host);
        self.check_plan(machine)
    }

    /// Crashes a broker, and starts one on a random host after `down_ms`.
    pub(crate) fn crash_broker(
        &mut self,
        host: usize,
        pending: PendingAppend,
        down_ms: u64,
    ) -> Result<(), String> {
        if self.brokers[host].machine.is_none() {
            return Ok(());
        }
        self.crashes[0] += 1;
        self.kill_broker(host, pending)?;
        let next = self.hosts.random_range(0..self.brokers.len());
        self.after(down_ms, Event::StartBroker { host: next });
        Ok(())
    }

    /// Plans a crash of the broker after `after` effects of its next step.
    pub(crate) fn plan_crash(&mut self, host: usize, after: u8, pending: PendingAppend, down_ms: u64) {
        self.brokers[host].crash = Some((usize::from(after), pending, down_ms));
    }

    pub(crate) fn fail_next_append(&mut self, host: usize, pending: PendingAppend) {
        self.brokers[host].fail_append = Some(pending);
    }

    /// Ends a pause: the process handles the inputs that have arrived meanwhile.
    pub(crate) fn resume_broker(&mut self, host: usize) -> Result<(), String> {
        let process = &mut self.brokers[host];
        process.paused = false;
        let incarnation = process.incarnation;
        for what in std::mem::take(&mut process.backlog) {
            self.broker_event(host, incarnation, what)?;
        }
        Ok(())
    }

    /// Handles an input of a broker process, unless it is for an earlier incarnation; during a pause, stores
    /// it.
    pub(crate) fn broker_event(
        &mut self,
        host: usize,
        incarnation: u32,
        what: BrokerEvent,
    ) -> Result<(), String> {
        let process = &mut self.brokers[host];
        if process.incarnation != incarnation || process.machine.is_none() {
            return Ok(());
        }
        if process.paused {
            process.backlog.push(what);
            return Ok(());
        }
        match what {
            BrokerEvent::Wake { at } => {
                if at != process.wake {
                    return Ok(());
                }
                process.wake = 0;
                self.broker_step(host, Input::Wake)
            }
            BrokerEvent::Appended { through } => self.broker_step(host, Input::Appended { through }),
            BrokerEvent::ChunkWritten => self.broker_step(host, Input::ChunkWritten),
            BrokerEvent::Request { call, request } => {
                self.broker_step(host, Input::Request { call, request })
            }
            BrokerEvent::Query { call, query } => {
                let pools =
                    process.machine.as_ref().map(|broker| pool_ids(broker.state())).unwrap_or_default();
                self.client.pools_at_query.insert(call, pools);
                self.broker_step(host, Input::Query { call, query })
            }
            BrokerEvent::Frame { session, number, message } => {
                self.broker_frame(host, session, number, *message)
            }
            BrokerEvent::Disconnected { session } => {
                self.end_at_broker(session);
                self.broker_step(host, Input::AgentGone { session })
            }
        }
    }

    /// Passes an input to the broker, checks the invariants of its state, and executes its effects until a
    /// planned crash.
    pub(crate) fn broker_step(&mut self, host: usize, input: Input) -> Result<(), String> {
        let process = &mut self.brokers[host];
        let (Some(mut broker), Some(clock)) = (process.machine.take(), process.clock) else { return Ok(()) };
        let crash = process.crash.take();
        self.inputs += 1;
        let effects = broker.step(clock.at(self.now), input);
        self.check_step(host, &broker)?;
        self.brokers[host].machine = Some(broker);
        if self.trace {
            super::trace::broker_effects(host, &effects);
        }
        let incarnation = self.brokers[host].incarnation;
        for (index, effect) in effects.into_iter().enumerate() {
            match crash {
                Some((after, pending, down_ms)) if after == index => {
                    return self.crash_broker(host, pending, down_ms);
                }
                _ => self.broker_effect(host, effect)?,
            }
            if self.brokers[host].incarnation != incarnation {
                return Ok(());
            }
        }
        match crash {
            Some((_, pending, down_ms)) => self.crash_broker(host, pending, down_ms),
            None => Ok(()),
        }
    }

    fn broker_effect(&mut self, host: usize, effect: Effect) -> Result<(), String> {
        let incarnation = self.brokers[host].incarnation;
        match effect {
            Effect::Append { after, events, archive } => {
                let term = self.brokers[host].machine.as_ref().map(Broker::term).unwrap_or_default();
                let batch = Writing { term, after, events, archive };
                if self.brokers[host].writing.replace(batch).is_some() {
                    return Err("two appends at once".to_owned());
                }
                let (until, append_ms) = self.slow_disk;
                let delay = self.disk.random_range(1..if self.now < until { append_ms } else { 12 });
                self.after(delay, Event::DiskDone { host, incarnation });
            }
            Effect::WriteChunk { revision, index, last, objects } => {
                let term = self.brokers[host].machine.as_ref().map(Broker::term).unwrap_or_default();
                self.disk_of(host).write_chunk(term, (revision, index, last), &objects)?;
                let delay = self.disk.random_range(1..20);
                self.after(delay, Event::Broker { host, incarnation, what: BrokerEvent::ChunkWritten });
            }
            Effect::Reply { call, result } => {
                if self.brokers[host].on_stale_copy {
                    let rejection = result.as_ref().err().into_iter();
                    rejection.for_each(|rejection| self.counts.rejection(rejection));
                } else {
                    self.check_reply(&result)?;
                    // After a pause a deposed broker may reply with what was true before it was deposed.
                    if self.writer() == Some(host) {
                        self.check_repetition(call, &result)?;
                    }
                    self.send_reply(call, result);
                }
            }
            Effect::Answer { call, answer, .. } => self.check_answer(host, call, &answer)?,
            Effect::Direct { session, message } => {
                self.check_direct(host, session, &message)?;
                self.note_stale_copy(host, session, &message);
                if let ToAgent::HeartbeatAnswer { now, .. } = &message {
                    self.check_time(host, *now)?;
                }
                if let ToAgent::Refused { code: RefusedCode::PoolClaimed, .. } = &message {
                    let pool = String::new();
                    let rejection = match self.network.copies.get(&session) {
                        Some(last) => Rejection::PoolServed { pool, served: *last, last: *last },
                        None => Rejection::PoolClaimed { pool },
                    };
                    self.counts.rejection(&rejection);
                }
                self.send_to_agent(session, message);
            }
            Effect::CloseSession { session } => self.close_link(session),
            Effect::Notify { changes } => {
                if !self.brokers[host].on_stale_copy {
                    self.check_notify(host, &changes)?;
                }
            }
            Effect::WakeAt(at) => self.wake_broker(host, at),
        }
        Ok(())
    }

    /// Checks that a broker's time advances with virtual time, except for drift and the delay of an answer.
    fn check_time(&mut self, host: usize, now: Timestamp) -> Result<(), String> {
        let (since, first) = *self.brokers[host].first_time.get_or_insert((self.now, now));
        let (passed, reported) = (self.now - since, now.ms_since(first));
        if reported + ANSWER_DELAY_MS_MAX < passed - passed / 50 {
            return Err(format!("broker {host} reports {reported} ms of {passed} ms that have passed"));
        }
        Ok(())
    }

    fn wake_broker(&mut self, host: usize, at: Timestamp) {
        let process = &mut self.brokers[host];
        let Some(clock) = process.clock.filter(|_| at != Timestamp::NEVER) else { return };
        let at = clock.virtual_at(at).max(self.now);
        if at != process.wake {
            let incarnation = process.incarnation;
            process.wake = at;
            self.at(at, Event::Broker { host, incarnation, what: BrokerEvent::Wake { at } });
        }
    }

    /// Completes an append, or fails it.
    pub(crate) fn disk_done(&mut self, host: usize, incarnation: u32) -> Result<(), String> {
        let process = &mut self.brokers[host];
        if process.incarnation != incarnation {
            return Ok(());
        }
        if let Some(pending) = process.fail_append.take() {
            // The runtime drops the state and opens the journal again.
            self.kill_broker(host, pending)?;
            self.after(REOPEN_MS, Event::StartBroker { host });
            return Ok(());
        }
        let Some(batch) = process.writing.take() else {
            return Err("an append completes that was not issued".to_owned());
        };
        let mut counts = std::mem::take(&mut self.counts);
        let written = self.disk_of(host).append(batch, &mut counts);
        self.counts = counts;
        match written? {
            Written::Through(through) => {
                // The admin restores the newest journal before the copy is as long: the copy could then pass
                // for the newer one.
                if self.brokers[host].on_stale_copy && through >= self.journal.replica.revision() {
                    return self.restore_journal();
                }
                let what = BrokerEvent::Appended { through };
                self.broker_event(host, incarnation, what)
            }
            Written::Deposed => {
                self.counts.deposed += 1;
                self.kill_broker(host, PendingAppend::Lost)
            }
        }
    }

    /// Restarts the writer on a copy of the journal without its newest batches, for `ms`.
    pub(crate) fn start_on_stale_copy(&mut self, missing_permille: u32, ms: u64) -> Result<(), String> {
        let Some(host) = self.writer().filter(|_| self.stale_copy.is_none()) else { return Ok(()) };
        let Some(copy) = self.journal.stale_copy(missing_permille)? else { return Ok(()) };
        self.kill_broker(host, PendingAppend::Lost)?;
        self.stale_copy_end = copy.replica.revision();
        // The session of the writer whose last batches are missing, if it began before the copy ends.
        let begun = self.brokers[host].begun;
        self.stale_copy_session =
            if begun <= self.stale_copy_end { self.brokers[host].writer_session } else { 0 };
        self.stale_copy = Some(copy);
        self.stale_copy_starts = 0;
        self.stale_copy_hellos.clear();
        self.counts.stale_copies += 1;
        self.after(ms, Event::RestoreJournal);
        self.start_broker_on(host)
    }

    /// Replaces the stale copy by the newest journal: brokers on the copy end, and a new one starts.
    pub(crate) fn restore_journal(&mut self) -> Result<(), String> {
        if self.stale_copy.is_none() {
            return Ok(());
        }
        for host in 0..self.brokers.len() {
            if self.brokers[host].on_stale_copy {
                self.kill_broker(host, PendingAppend::Lost)?;
                self.brokers[host].on_stale_copy = false;
            }
        }
        self.stale_copy = None;
        self.stale_copy_hellos.clear();
        self.after(REOPEN_MS, Event::StartBroker { host: 0 });
        Ok(())
    }
}
