//! The agent's event loop: its state machine between a backend and a connection to the broker.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::agent::{Agent, Effect, Input};
use crate::clock::Clock;
use crate::model::attempt::AttemptStatus;
use crate::model::exchange::{FromAgent, Hello, ToAgent};
use crate::model::high_water::HighWaterMark;
use crate::model::id::Epoch;
use crate::model::time::Timestamp;
use crate::pools::{Event, PoolBackend};
use crate::telemetry::agent::PoolHealth;

/// Both directions of a connection to the broker. When either channel ends, the connection is lost.
pub struct Connection {
    pub to_broker: mpsc::Sender<FromAgent>,
    pub from_broker: mpsc::Receiver<ToAgent>,
}

/// Opens connections to the broker.
pub trait Dial: Send {
    /// Opens a connection.
    ///
    /// # Errors
    /// The reason as text, for the log.
    fn dial(&self) -> impl Future<Output = Result<Connection, String>> + Send;
}

/// Stores what the hello of the agent's next process must carry.
pub trait Memory: Send {
    /// Stores the newest high-water mark. Without it, one of the facts is missing that show a broker that its journal
    /// is an older copy.
    fn store_high_water(&mut self, high_water: HighWaterMark);

    /// Stores the epoch of a session that begins, and returns whether it is on disk.
    fn store_epoch(&mut self, epoch: Epoch) -> bool;
}

/// The memory of agents without a state folder.
impl Memory for () {
    fn store_high_water(&mut self, _: HighWaterMark) {}

    fn store_epoch(&mut self, _: Epoch) -> bool {
        true
    }
}

/// How long one attempt to connect may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two warnings that the broker can't be reached.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Runs an agent until `stop` ends. The attempts of its backend continue to run after that.
///
/// `memory` stores what the hello of the agent's next process must carry. `pool_health` is updated as the agent runs.
///
/// # Errors
/// - [`Error::Open`](crate::pools::Error::Open) if the backend can't be opened.
/// - [`Error::Gone`](crate::pools::Error::Gone) if it ends later.
pub async fn run<B: PoolBackend, D: Dial>(
    hello: Hello,
    mut backend: B,
    dial: D,
    clock: Clock,
    memory: impl Memory,
    pool_health: Arc<PoolHealth>,
    stop: impl Future<Output = ()>,
) -> Result<(), crate::pools::Error> {
    let (events, mut backend_events) = mpsc::unbounded_channel();
    pool_health.set_synced(false);
    pool_health.set_connected(false);
    tokio::pin!(stop);
    // A backend may take long to open. Stopping the agent does not wait for it.
    let opened = tokio::select! {
        opened = backend.open(events) => opened?,
        () = &mut stop => return Ok(()),
    };
    pool_health.set_synced(true);
    pool_health.set_answering(true);
    let mut hello = hello;
    hello.pool.notes = opened.notes;
    let pool = hello.pool.name.clone();
    let mut machine = Agent::new(hello, clock.now());
    let mut shell = Shell {
        connection: None,
        wake_at: clock.now(),
        dial_due: false,
        working: true,
        clock,
        memory,
        pool_health: pool_health.clone(),
    };
    let first = Input::InitialSync { nodes: opened.nodes, attempts: opened.attempts };
    shell.execute(machine.step(clock.now(), first), &mut backend);
    let mut warned_at = None;
    loop {
        pool_health.set_connected(machine.is_up());
        pool_health.set_nodes(machine.node_count());
        if shell.working && std::mem::take(&mut shell.dial_due) {
            let dialled = tokio::time::timeout(DIAL_TIMEOUT, dial.dial()).await;
            let no_response = |_| Err(format!("no response within {} s", DIAL_TIMEOUT.as_secs()));
            let input = match dialled.unwrap_or_else(no_response) {
                Ok(connection) => {
                    shell.connection = Some(connection);
                    Input::Connected
                }
                Err(error) => {
                    warn_at_intervals(&mut warned_at, &pool, &error);
                    Input::Disconnected
                }
            };
            shell.execute(machine.step(clock.now(), input), &mut backend);
        }
        let wait = Duration::from_millis(shell.wake_at.ms_since(clock.now()));
        let input = tokio::select! {
            () = &mut stop => return Ok(()),
            event = backend_events.recv() => match event {
                Some(Event::StatusChanged { attempt, status }) => {
                    if let AttemptStatus::Ended { outcome, .. } = &status {
                        pool_health.count_end(outcome.kind);
                    }
                    Input::StatusChanged { attempt, status }
                }
                Some(Event::NodesChanged { nodes, removed }) => Input::NodesChanged { nodes, removed },
                Some(Event::Answers(answers)) => {
                    pool_health.set_answering(answers);
                    match answers {
                        true => tracing::info!(pool, "the pool's backend responds again"),
                        false => tracing::warn!(pool, "the pool's backend does not respond: start orders wait"),
                    }
                    continue;
                }
                Some(Event::Working(working)) => {
                    shell.working = working;
                    continue;
                }
                Some(Event::Gone) | None => return Err(crate::pools::Error::Gone { pool }),
            },
            message = shell.receive() => match message {
                Some(message) => {
                    log_message(&pool, &message);
                    if let ToAgent::Accepted(accepted) = &message {
                        backend.serves(accepted.journal);
                    }
                    Input::FromBroker(message)
                }
                None => {
                    shell.connection = None;
                    Input::Disconnected
                }
            },
            () = tokio::time::sleep(wait) => Input::Wake,
        };
        let effects = machine.step(clock.now(), input);
        if let Some(input) = shell.execute(effects, &mut backend) {
            let effects = machine.step(clock.now(), input);
            shell.execute(effects, &mut backend);
        }
    }
}

/// Warns that the broker can't be reached: at the first failure, then once per [`WARN_INTERVAL`].
fn warn_at_intervals(warned_at: &mut Option<std::time::Instant>, pool: &str, error: &str) {
    if warned_at.is_none_or(|at| at.elapsed() > WARN_INTERVAL) {
        *warned_at = Some(std::time::Instant::now());
        tracing::warn!(pool, error, "the broker can't be reached; retrying");
    }
}

fn log_message(pool: &str, message: &ToAgent) {
    match message {
        ToAgent::Accepted(accepted) => {
            tracing::info!(pool, epoch = accepted.epoch.0, "the broker accepted the pool")
        }
        ToAgent::Refused { code, message } => {
            tracing::warn!(pool, code = code.code(), message, "the broker refused the pool")
        }
        ToAgent::Orders { .. }
        | ToAgent::Stops { .. }
        | ToAgent::Acknowledged { .. }
        | ToAgent::HeartbeatAnswer { .. } => {}
    }
}

/// What the state machine's effects act on, besides the backend.
struct Shell<M> {
    connection: Option<Connection>,
    wake_at: Timestamp,
    /// The state machine has requested a connection.
    dial_due: bool,
    /// The backend makes progress.
    working: bool,
    clock: Clock,
    memory: M,
    pool_health: Arc<PoolHealth>,
}

impl<M: Memory> Shell<M> {
    /// The broker's next message; `None` if the connection is lost. Pending while there is none.
    async fn receive(&mut self) -> Option<ToAgent> {
        match &mut self.connection {
            Some(connection) => connection.from_broker.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Executes effects. Returns the input that results from them, if any.
    fn execute(&mut self, effects: Vec<Effect>, backend: &mut impl PoolBackend) -> Option<Input> {
        let mut input = None;
        for effect in effects {
            match effect {
                Effect::Connect => self.dial_due = true,
                Effect::Disconnect => self.connection = None,
                // An agent whose backend stands still must not seem to work.
                Effect::Send(FromAgent::Heartbeat { .. }) if !self.working => {}
                Effect::Send(message) => {
                    let failed =
                        self.connection.as_ref().is_some_and(|c| c.to_broker.try_send(message).is_err());
                    if failed {
                        // The broker doesn't read: reconnect, which starts with a full report.
                        self.connection = None;
                        input = Some(Input::Disconnected);
                    }
                }
                Effect::Start(start) => {
                    self.pool_health.count_start();
                    backend.start(*start);
                }
                Effect::Stop(stop) => {
                    self.pool_health.count_stop();
                    backend.stop(stop);
                }
                Effect::Forget(attempt) => backend.forget(attempt),
                Effect::RenewLeases { from } => backend.renew(from, self.clock.to_boot_ms(from)),
                Effect::StoreHighWater(high_water) => self.memory.store_high_water(high_water),
                Effect::StoreEpoch(epoch) => {
                    if !self.memory.store_epoch(epoch) {
                        self.connection = None;
                        return Some(Input::Disconnected);
                    }
                }
                Effect::WakeAt(at) => self.wake_at = at,
            }
        }
        input
    }
}
