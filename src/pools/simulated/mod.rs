//! Simulated pools: nodes from a file or a generator, and tasks that take a given time without running
//! anything. A journal stores what was started, when and for how long, so that a restarted agent adopts
//! it.

mod fleet;
mod journal;

pub use fleet::{NodeKind, fleet};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Error, Event, InitialSync, LogPart, OutputTimes, PoolBackend, ReadLogs, Stream};
use crate::agent::{ObservedAttempt, StartRequest};
use crate::clock::Clock;
use crate::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use crate::model::exchange::Stop;
use crate::model::high_water::HighWaterMark;
use crate::model::id::{AttemptId, Revision};
use crate::model::limit::LEASE_MS_MIN;
use crate::model::pool::NodeSpec;
use crate::model::time::Timestamp;
use journal::{Journal, Line};

/// The duration of a task whose spec sets none.
const DURATION_MS_DEFAULT: u64 = 1_000;

/// Settings of a simulated pool.
#[derive(Clone, Debug)]
pub struct Settings {
    pub pool: String,
    /// The nodes that the pool reports, such as those of [`fleet`].
    pub nodes: Vec<NodeSpec>,
    /// The folder of the journal; `None` means that nothing survives the process.
    pub state: Option<PathBuf>,
    /// Divisor of every duration, in thousandths: 2,000 runs twice as fast. 0 counts as 1.
    pub speedup_millis: u64,
}

/// A simulated backend.
pub struct Simulated {
    settings: Settings,
    clock: Clock,
    commands: mpsc::UnboundedSender<Command>,
    inbox: Option<mpsc::UnboundedReceiver<Command>>,
    attempts: Arc<Mutex<BTreeMap<AttemptId, String>>>,
}

enum Command {
    Start(Box<StartRequest>),
    Stop(Stop),
    Forget(AttemptId),
    Renew(Timestamp),
}

/// An attempt that was started in this pool.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) revision: Revision,
    pub(crate) high_water: Option<HighWaterMark>,
    pub(crate) start_by: Timestamp,
    pub(crate) lease_ms: Option<u64>,
    pub(crate) started_at: Timestamp,
    pub(crate) duration_ms: u64,
    pub(crate) timed_out: bool,
    pub(crate) exit_code: u8,
    /// When and how it ended, if it was stopped or its lease ended before its time.
    pub(crate) ended: Option<(Timestamp, OutcomeKind)>,
}

impl Task {
    fn ends_at(&self) -> Timestamp {
        self.ended.map_or_else(|| self.started_at.plus_ms(self.duration_ms), |(at, _)| at)
    }

    fn status(&self, now: Timestamp) -> AttemptStatus {
        if self.ended.is_none() && self.ends_at() > now {
            return AttemptStatus::Running { started_at: self.started_at };
        }
        let code = i32::from(self.exit_code);
        let (kind, exit_code) = match self.ended {
            Some((_, kind)) => (kind, None),
            None if self.timed_out => (OutcomeKind::TimedOut, None),
            None if self.exit_code == 0 => (OutcomeKind::Succeeded, Some(code)),
            None => (OutcomeKind::Failed, Some(code)),
        };
        let outcome = Outcome { exit_code, ..Outcome::plain(kind, "") };
        AttemptStatus::Ended { started_at: Some(self.started_at), ended_at: self.ends_at(), outcome }
    }
}

impl Simulated {
    /// Makes a backend, which is not opened yet.
    pub fn new(settings: Settings, clock: Clock) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        Self { settings, clock, commands, inbox: Some(inbox), attempts: Arc::default() }
    }

    fn send(&self, command: Command) {
        // The worker runs as long as this value exists.
        let _ = self.commands.send(command);
    }
}

impl PoolBackend for Simulated {
    async fn open(&mut self, events: mpsc::UnboundedSender<Event>) -> Result<InitialSync, Error> {
        let failed = |source| Error::Open { pool: self.settings.pool.clone(), source };
        let (journal, tasks) = Journal::open(self.settings.state.as_deref()).map_err(failed)?;
        let now = self.clock.now();
        let observed = |(attempt, task): (&AttemptId, &Task)| ObservedAttempt {
            attempt: *attempt,
            ordered_revision: task.revision,
            start_by: task.start_by,
            high_water: task.high_water,
            status: task.status(now),
        };
        let attempts = tasks.iter().map(observed).collect();
        let ends = tasks.iter().map(|(attempt, task)| (task.ends_at(), *attempt));
        let ends = ends.filter(|(at, _)| *at > now).collect();
        let inbox = self.inbox.take().ok_or_else(|| Error::Gone { pool: self.settings.pool.clone() })?;
        let worker = Worker {
            clock: self.clock,
            speedup_millis: self.settings.speedup_millis.max(1),
            journal,
            tasks,
            ends,
            renewed_at: Timestamp(0),
            events,
            banners: self.attempts.clone(),
        };
        tokio::spawn(worker.run(inbox));
        let notes = vec!["tasks are only simulated: their commands do not run".to_owned()];
        Ok(InitialSync { nodes: self.settings.nodes.clone(), attempts, notes })
    }

    fn start(&mut self, start: StartRequest) {
        self.send(Command::Start(Box::new(start)));
    }

    fn stop(&mut self, stop: Stop) {
        self.send(Command::Stop(stop));
    }

    fn forget(&mut self, attempt: AttemptId) {
        self.send(Command::Forget(attempt));
    }

    fn renew(&mut self, from: Timestamp, _from_boot_ms: u64) {
        self.send(Command::Renew(from));
    }

    fn logs(&self) -> Arc<dyn ReadLogs> {
        Arc::new(Banners(self.attempts.clone()))
    }
}

/// The output of simulated tasks: one line on standard error, which reports the simulation.
struct Banners(Arc<Mutex<BTreeMap<AttemptId, String>>>);

impl ReadLogs for Banners {
    fn read(
        &self,
        attempt: AttemptId,
        _: u32,
        stream: Stream,
        offset: u64,
        bytes_max: usize,
    ) -> std::io::Result<LogPart> {
        let banners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match stream {
            Stream::Stdout => "",
            Stream::Stderr => banners.get(&attempt).map_or("", String::as_str),
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let data = text.as_bytes()[from..].iter().take(bytes_max).copied().collect();
        Ok(LogPart { offset: from as u64, data, end: text.len() as u64, complete: true })
    }

    fn times(&self, _: AttemptId, _: u32, _: Stream) -> std::io::Result<Option<OutputTimes>> {
        Ok(None)
    }
}

/// Runs a pool's tasks in real time.
struct Worker {
    clock: Clock,
    speedup_millis: u64,
    journal: Journal,
    tasks: BTreeMap<AttemptId, Task>,
    ends: std::collections::BTreeSet<(Timestamp, AttemptId)>,
    renewed_at: Timestamp,
    events: mpsc::UnboundedSender<Event>,
    banners: Arc<Mutex<BTreeMap<AttemptId, String>>>,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        loop {
            let now = self.clock.now();
            let next = self.ends.first().map_or(u64::MAX, |(at, _)| at.ms_since(now));
            // A timer can't hold `u64::MAX`; waking once a day costs nothing.
            let wait = Duration::from_millis(next.min(86_400_000));
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Start(start)) => self.start(*start),
                    Some(Command::Stop(stop)) => self.stop(stop.attempt, OutcomeKind::Cancelled),
                    Some(Command::Forget(attempt)) => self.forget(attempt),
                    Some(Command::Renew(from)) => self.renewed_at = self.renewed_at.max(from),
                    None => return,
                },
                () = tokio::time::sleep(wait) => {}
            }
            self.end_due();
        }
    }

    fn start(&mut self, start: StartRequest) {
        let (now, attempt) = (self.clock.now(), start.order.attempt);
        if self.tasks.contains_key(&attempt) {
            return self.report(attempt);
        }
        if now > start.start_by || self.is_lease_over(start.lease_ms, now) {
            let outcome = Outcome::plain(OutcomeKind::NotStarted, "the order came too late");
            let status = AttemptStatus::Ended { started_at: None, ended_at: now, outcome };
            let _ = self.events.send(Event::StatusChanged { attempt, status });
            return;
        }
        let group = usize::from(start.order.tasks.first().map_or(0, |task| task.group));
        let simulate = start.spec.groups.get(group).and_then(|group| group.simulate);
        let asked_ms = simulate.map_or(DURATION_MS_DEFAULT, |simulate| simulate.duration_ms);
        let timed_out = asked_ms > start.spec.max_run_ms;
        let duration_ms = asked_ms.min(start.spec.max_run_ms).saturating_mul(1_000) / self.speedup_millis;
        let task = Task {
            revision: start.order.revision,
            high_water: start.order.high_water,
            start_by: start.start_by,
            lease_ms: start.lease_ms,
            started_at: now,
            duration_ms,
            timed_out,
            exit_code: simulate.map_or(0, |simulate| simulate.exit_code),
            ended: None,
        };
        self.journal.write(&Line::started(attempt, &task));
        let banner = format!("simulated: {} would run here for {asked_ms} ms\n", start.order.job_name);
        self.banners.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt, banner);
        self.ends.insert((task.ends_at(), attempt));
        let at_once = duration_ms == 0;
        self.tasks.insert(attempt, task);
        // An attempt without duration is reported once, with its end.
        if !at_once {
            self.report(attempt);
        }
    }

    fn stop(&mut self, attempt: AttemptId, kind: OutcomeKind) {
        let now = self.clock.now();
        let Some(task) = self.tasks.get_mut(&attempt) else { return };
        if task.ended.is_none() && task.ends_at() > now {
            self.ends.remove(&(task.ends_at(), attempt));
            task.ended = Some((now, kind));
            self.journal.write(&Line::ended(attempt, task));
        }
        self.report(attempt);
    }

    fn forget(&mut self, attempt: AttemptId) {
        self.banners.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
        if self.tasks.remove(&attempt).is_some() {
            self.journal.forget(attempt, &self.tasks);
        }
    }

    fn end_due(&mut self) {
        let now = self.clock.now();
        while let Some((at, attempt)) = self.ends.first().copied().filter(|(at, _)| *at <= now) {
            self.ends.remove(&(at, attempt));
            self.report(attempt);
        }
        // All tasks are looked at only when the shortest lease may be over.
        if now <= self.renewed_at.plus_ms(LEASE_MS_MIN) {
            return;
        }
        let over = |task: &Task| {
            self.is_lease_over(task.lease_ms, now) && task.ended.is_none() && task.ends_at() > now
        };
        let over = self.tasks.iter().filter(|(_, task)| over(task)).map(|(attempt, _)| *attempt);
        let over: Vec<AttemptId> = over.collect();
        over.into_iter().for_each(|attempt| self.stop(attempt, OutcomeKind::LeaseEnded));
    }

    fn is_lease_over(&self, lease_ms: Option<u64>, now: Timestamp) -> bool {
        lease_ms.is_some_and(|lease_ms| now > self.renewed_at.plus_ms(lease_ms))
    }

    fn report(&self, attempt: AttemptId) {
        if let Some(task) = self.tasks.get(&attempt) {
            let _ = self.events.send(Event::StatusChanged { attempt, status: task.status(self.clock.now()) });
        }
    }
}
