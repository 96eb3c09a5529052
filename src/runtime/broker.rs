//! The broker's event loop: feeds inputs to the state machine and executes its effects, on its own thread.
//! The journal has another thread, so that one batch is synced while the next is decided.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::error::CallError;
use super::handle::{Handle, Message, ReplySender, Shared};
use super::pool_log;
use super::read_only::{read_until_writable, refuse_for_a_while};
use super::watch::Watchers;
use crate::broker::{AnyAnswer, Broker, CallId, Effect, Input, Random, SessionId};
use crate::clock::{Clock, thread_cpu};
use crate::journal::{Batch, Chunk, Error, Journal, Loaded, RetainedEvents};
use crate::model::exchange::ToAgent;
use crate::model::id::{Revision, Term};
use crate::model::plan::Policy;
use crate::model::time::Timestamp;
use crate::state::State;
use crate::state::apply::Applied;
use crate::state::decide::Reply;
use crate::state::record;
use crate::state::rejection::Rejection;
use crate::telemetry::broker::BrokerMetrics;

/// Steps longer than this are logged at debug level.
const LONG_STEP: Duration = Duration::from_millis(20);

/// How a broker works.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub policy: Policy,
    /// Bytes of memory that live jobs, pools and nodes may take.
    pub memory_max: u64,
    /// How long ended jobs stay in the archive, in milliseconds; `None` without end.
    pub archive_retention_ms: Option<u64>,
    /// How long events stay readable, in milliseconds, and how many of them at most.
    pub event_retention_ms: u64,
    pub events_max: u64,
}

/// Opens the journal again after it failed.
pub type Reopen = Box<dyn Fn() -> Result<Box<dyn Journal>, Error> + Send>;

/// Recovers the state from the journal and runs the broker on its own threads. The thread ends after
/// [`Handle::stop`].
///
/// # Errors
/// The journal's error if it can't be read.
pub fn start(
    mut journal: Box<dyn Journal>,
    reopen: Reopen,
    clock: Clock,
    config: Config,
) -> Result<(Handle, std::thread::JoinHandle<()>), Error> {
    let state = load(&mut *journal)?;
    let (handle, shared, mut incoming) = Handle::new(&*journal, state.revision())?;
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let Ok(runtime) = runtime else { return };
        let mut next = Some((journal, state, None));
        while let Some((mut journal, state, failed)) = next.take() {
            let (policy, from) = (config.policy, &mut incoming);
            let reading = read_until_writable(&mut *journal, state, failed, policy, from, &shared, clock);
            let Some((state, term)) = runtime.block_on(reading) else { return };
            let random =
                Random { writer_session: rand::random(), journal: rand::random(), key: rand::random() };
            let mut broker = Broker::new(state, term, random, clock.now());
            broker.set_policy(policy);
            broker.set_memory_max(config.memory_max);
            let retention = Retention {
                archive_ms: config.archive_retention_ms,
                events_ms: config.event_retention_ms,
                events_max: config.events_max,
                clock,
            };
            let served = serve(broker, journal, retention, &mut incoming, &shared, clock);
            let Err(error) = runtime.block_on(served) else { return };
            shared.set_write_error(Some(&error));
            let mut failed = Some(error);
            // It is unknown whether the failed append is on disk, so the state is discarded too.
            while next.is_none() {
                match reopen().and_then(|mut journal| Ok((load(&mut *journal)?, journal))) {
                    Ok((state, journal)) => next = Some((journal, state, failed.take())),
                    Err(error) => {
                        shared.set_write_error(Some(&error));
                        let refused = runtime.block_on(refuse_for_a_while(&mut incoming, &shared));
                        if refused.is_break() {
                            return;
                        }
                    }
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("broker".to_owned()).spawn(run);
    let thread = thread.map_err(|error| Error::Io(Box::new(error)))?;
    Ok((handle, thread))
}

/// Loads the state from the journal.
fn load(journal: &mut dyn Journal) -> Result<State, Error> {
    let (mut objects, mut state, mut failed) = (Vec::new(), None::<State>, None);
    journal.load(&mut |loaded| {
        if failed.is_some() {
            return;
        }
        let outcome = match loaded {
            Loaded::Chunk(bytes) => record::decode_objects(&bytes).map(|chunk| objects.extend(chunk)),
            Loaded::Events(bytes) => record::decode_events(&bytes).map(|events| {
                let state = state.get_or_insert_with(|| State::from_objects(std::mem::take(&mut objects)));
                let mut applied = Applied::default();
                // A snapshot's revision may be in the middle of a batch.
                let loaded = state.revision();
                for event in events.iter().filter(|event| event.revision > loaded) {
                    state.apply(event, &mut applied);
                    applied.changes.clear();
                    applied.archive.clear();
                }
            }),
        };
        failed = outcome.err();
    })?;
    if let Some(corrupt) = failed {
        return Err(corrupt.into());
    }
    Ok(state.unwrap_or_else(|| State::from_objects(objects)))
}

/// A request to the journal's thread.
enum Write {
    Append(Batch),
    Chunk(Term, Chunk),
}

/// The result of a [`Write`].
enum Written {
    Append(Revision),
    Chunk,
    Failed(Error),
}

/// How long no write is pending before old records are removed.
const PRUNE_AFTER: Duration = Duration::from_millis(20);
/// Interval of searches for jobs and events past their retention.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

/// How long ended jobs and past events stay in the journal.
#[derive(Clone, Copy)]
struct Retention {
    archive_ms: Option<u64>,
    events_ms: u64,
    events_max: u64,
    clock: Clock,
}

impl Retention {
    fn events(self) -> RetainedEvents {
        let from = Timestamp(self.clock.now().0.saturating_sub(self.events_ms));
        RetainedEvents { from: Some(from), max: self.events_max }
    }

    /// Removes some of the jobs past their retention. Returns whether more are left.
    fn prune_archive(self, journal: &mut dyn Journal) -> Result<bool, Error> {
        let Some(ms) = self.archive_ms else { return Ok(false) };
        journal.prune_archive(Timestamp(self.clock.now().0.saturating_sub(ms)))
    }
}

fn write_all(
    mut journal: Box<dyn Journal>,
    retention: Retention,
    writes: std::sync::mpsc::Receiver<Write>,
    done: mpsc::UnboundedSender<Written>,
) {
    // What is covered by a snapshot, or past its retention, is removed while no write is pending.
    let (mut prune, mut prune_archive, mut searched_at) = (true, true, Instant::now());
    loop {
        if searched_at.elapsed() > RETENTION_INTERVAL {
            (prune, prune_archive, searched_at) = (true, true, Instant::now());
        }
        let wait = if prune || prune_archive { PRUNE_AFTER } else { RETENTION_INTERVAL };
        let write = match writes.recv_timeout(wait) {
            Ok(write) => Some(write),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
        };
        let written = match write {
            None if prune => match journal.prune(retention.events()) {
                Ok(more) => {
                    prune = more;
                    continue;
                }
                Err(error) => Written::Failed(error),
            },
            None if prune_archive => match retention.prune_archive(&mut *journal) {
                Ok(more) => {
                    prune_archive = more;
                    continue;
                }
                Err(error) => Written::Failed(error),
            },
            None => continue,
            Some(Write::Append(batch)) => match journal.append(&batch) {
                Ok(()) => Written::Append(batch.events.last().map_or(batch.after, |event| event.revision)),
                Err(error) => Written::Failed(error),
            },
            Some(Write::Chunk(term, chunk)) => match journal.write_chunk(term, &chunk) {
                Ok(()) => {
                    prune |= chunk.last;
                    Written::Chunk
                }
                Err(error) => Written::Failed(error),
            },
        };
        let failed = matches!(written, Written::Failed(_));
        if done.send(written).is_err() || failed {
            return;
        }
    }
}

/// Runs the broker until it is stopped.
///
/// # Errors
/// Why the journal failed.
async fn serve(
    broker: Broker,
    journal: Box<dyn Journal>,
    retention: Retention,
    incoming: &mut mpsc::Receiver<Message>,
    shared: &Shared,
    clock: Clock,
) -> Result<(), Error> {
    let (writes, to_write) = std::sync::mpsc::channel();
    let (done, mut written) = mpsc::unbounded_channel();
    let writer = std::thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || write_all(journal, retention, to_write, done));
    let writer = writer.map_err(|error| Error::Io(Box::new(error)))?;
    let watchers = Arc::new(Watchers::new(broker.durable()));
    shared.set_watchers(watchers.clone());
    let mut shell = Shell {
        writes,
        watchers,
        requests: HashMap::new(),
        queries: HashMap::new(),
        sessions: HashMap::new(),
        next_call: 0,
        wake_at: clock.now(),
        ended: Vec::new(),
        is_confirmed: false,
        appending_since: Instant::now(),
        metrics: shared.metrics().clone(),
        broker,
        clock,
    };
    let ended = shell.run(incoming, &mut written, shared).await;
    drop(shell);
    // The journal's thread ends with the channel. It must release its lock before the journal is reopened.
    let _ = writer.join();
    ended
}

/// The state machine with what its effects need.
struct Shell {
    broker: Broker,
    clock: Clock,
    writes: std::sync::mpsc::Sender<Write>,
    watchers: Arc<Watchers>,
    requests: HashMap<CallId, ReplySender<(Reply, Revision)>>,
    queries: HashMap<CallId, ReplySender<(Revision, AnyAnswer)>>,
    sessions: HashMap<SessionId, mpsc::Sender<ToAgent>>,
    next_call: u64,
    wake_at: Timestamp,
    /// Sessions that this side ended, which the state machine must still process.
    ended: Vec<SessionId>,
    /// The journal has been written.
    is_confirmed: bool,
    /// When the latest append was sent to the journal's thread.
    appending_since: Instant,
    metrics: BrokerMetrics,
}

impl Shell {
    async fn run(
        &mut self,
        incoming: &mut mpsc::Receiver<Message>,
        written: &mut mpsc::UnboundedReceiver<Written>,
        shared: &Shared,
    ) -> Result<(), Error> {
        loop {
            let wait = Duration::from_millis(self.wake_at.ms_since(self.clock.now()));
            let input = tokio::select! {
                biased;
                done = written.recv() => match done {
                    Some(Written::Append(through)) => {
                        self.metrics.count_append(self.appending_since.elapsed());
                        if !std::mem::replace(&mut self.is_confirmed, true) && self.broker.outdated().is_none() {
                            shared.set_write_error(None);
                        }
                        Input::Appended { through }
                    }
                    Some(Written::Chunk) => Input::ChunkWritten,
                    Some(Written::Failed(error)) => return Err(error),
                    None => return Err(Error::Io("the journal's thread has ended".into())),
                },
                message = incoming.recv() => match message {
                    Some(Message::Stop) | None => {
                        self.finish(written).await;
                        return Ok(());
                    }
                    Some(message) => match self.input_of(message) {
                        Some(input) => input,
                        None => continue,
                    },
                },
                () = tokio::time::sleep(wait) => Input::Wake,
            };
            self.step(input);
            while let Some(session) = self.ended.pop() {
                self.step(Input::AgentGone { session });
            }
            if let Some(seen) = self.broker.outdated() {
                shared.set_outdated(&Rejection::ReadOnly { seen, at: self.broker.state().revision() });
            }
        }
    }

    /// Waits until all decided events are durable.
    async fn finish(&mut self, written: &mut mpsc::UnboundedReceiver<Written>) {
        while self.broker.durable() < self.broker.state().revision() {
            match written.recv().await {
                Some(Written::Append(through)) => self.step(Input::Appended { through }),
                Some(Written::Chunk) => self.step(Input::ChunkWritten),
                Some(Written::Failed(_)) | None => break,
            }
        }
    }

    fn input_of(&mut self, message: Message) -> Option<Input> {
        self.next_call += 1;
        let call = CallId(self.next_call);
        Some(match message {
            Message::Request(request, reply) => {
                self.requests.insert(call, reply);
                Input::Request { call, request }
            }
            Message::Query(query, reply) => {
                self.queries.insert(call, reply);
                Input::Query { call, query }
            }
            Message::Open(session, sender) => {
                self.sessions.insert(session, sender);
                return None;
            }
            Message::FromAgent(session, message) => {
                // A disconnected session may still have messages in the queue.
                self.sessions.contains_key(&session).then_some(Input::FromAgent { session, message })?
            }
            Message::Gone(session) => {
                self.sessions.remove(&session);
                Input::AgentGone { session }
            }
            Message::Stop => return None,
        })
    }

    fn step(&mut self, input: Input) {
        let (began, cpu, input_kind) = (Instant::now(), thread_cpu(), kind_of(&input));
        for effect in self.broker.step(self.clock.now(), input) {
            self.execute(effect);
        }
        let took = began.elapsed();
        self.metrics.count_step(input_kind, took);
        if took > LONG_STEP {
            // Less than the elapsed time if the processor had other work.
            let cpu_ms = thread_cpu().saturating_sub(cpu).as_millis() as u64;
            let took_ms = took.as_millis() as u64;
            tracing::debug!(took_ms, cpu_ms, input = input_kind, "a long step delayed all other inputs");
        }
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Append { after, events, archive } => {
                events.iter().for_each(|record| pool_log::log(self.broker.state(), &record.event));
                self.metrics.count_events(self.broker.state(), &events);
                self.appending_since = Instant::now();
                let batch = Batch { term: self.broker.term(), after, events, archive };
                // If the thread has ended, its last result has the reason.
                let _ = self.writes.send(Write::Append(batch));
            }
            Effect::WriteChunk { revision, index, last, objects } => {
                let chunk = Chunk { revision, index, last, bytes: record::encode_objects(&objects) };
                let _ = self.writes.send(Write::Chunk(self.broker.term(), chunk));
            }
            Effect::Reply { call, result } => {
                if let Err(rejection) = &result {
                    self.metrics.count_rejection(rejection);
                }
                if let Some(reply) = self.requests.remove(&call) {
                    let durable = self.broker.durable();
                    let _ = reply.send(result.map(|reply| (reply, durable)).map_err(CallError::Rejected));
                }
            }
            Effect::Answer { call, revision, answer } => {
                if let Some(reply) = self.queries.remove(&call) {
                    let _ = reply.send(Ok((revision, answer)));
                }
            }
            Effect::Direct { session, message } => {
                let gone =
                    self.sessions.get(&session).is_some_and(|sender| sender.try_send(message).is_err());
                if gone {
                    self.sessions.remove(&session);
                    self.ended.push(session);
                }
            }
            Effect::CloseSession { session } => {
                self.sessions.remove(&session);
            }
            Effect::Notify { changes } => {
                let through = changes.last().map_or(self.broker.durable(), |(revision, _)| *revision);
                self.watchers.push(changes, through.max(self.broker.durable()));
            }
            Effect::WakeAt(at) => self.wake_at = at,
        }
    }
}

/// The kind of an input, for the log.
fn kind_of(input: &Input) -> &'static str {
    match input {
        Input::Request { .. } => "request",
        Input::Query { .. } => "query",
        Input::FromAgent { .. } => "from agent",
        Input::AgentGone { .. } => "agent gone",
        Input::Appended { .. } => "appended",
        Input::ChunkWritten => "chunk written",
        Input::Wake => "wake",
    }
}
