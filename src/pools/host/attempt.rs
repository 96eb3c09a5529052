//! One attempt as its supervisor keeps it: its tasks, its deadlines, its outcome.

use std::path::PathBuf;

use rustix::process::{Signal, WaitStatus};

use super::cgroup::{Group, Groups};
use super::memory::Excess;
use super::output;
use super::process;
use super::protocol::{Attempt, EndKind, StartAttempt, Status};
use super::store::{Entry, Journal, ProcessRecord};
use super::task::{Exit, Task};

/// From the end of the last main process until what it left behind is killed.
const LEFTOVERS_GRACE_MS: u64 = 2_000;
/// Between two kills of what doesn't go: the kernel may be busy with it.
const KILL_AGAIN_MS: u64 = 100;

/// How long it is unknown how fast an attempt's output grows.
const YOUNG_MS: u64 = 500;

/// The time by both clocks, read once for one turn of the supervisor's loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) unix_ms: u64,
    pub(super) boot_ms: u64,
}

/// An attempt that may still have processes.
pub(super) struct TrackedAttempt {
    pub(super) launch: StartAttempt,
    directory: PathBuf,
    /// Those that were started, by rank.
    tasks: Vec<Task>,
    /// Holds the groups of all tasks.
    group: Option<Group>,
    /// Started by an earlier supervisor: its orphans are not this one's children.
    pub(super) adopted: bool,
    started: Now,
    stopping: Option<Stopping>,
    /// The first task that failed, before anybody stopped the attempt.
    failed: Option<(usize, Exit)>,
    /// All main processes have ended; what else is left is killed from then on.
    leftovers_until: Option<u64>,
    /// What the main processes left behind was asked to go.
    leftovers_told: bool,
    output_grows_fast: bool,
}

/// An attempt is being ended.
struct Stopping {
    kind: EndKind,
    message: String,
    /// When the hard signal goes out, the next time.
    kill_at: u64,
}

impl TrackedAttempt {
    /// Starts all tasks of an attempt whose directory is made.
    ///
    /// If one can't be started, those before it are stopped.
    ///
    /// # Errors
    /// If nothing was started: how the attempt ends.
    pub(super) fn start(
        launch: StartAttempt,
        directory: PathBuf,
        groups: Option<&Groups>,
        now: Now,
        boot_id: &str,
        journal: &mut Journal,
    ) -> Result<Self, Exit> {
        let (group, each) = match groups.map(|groups| groups.create(&launch.attempt, launch.tasks.len())) {
            Some(Ok((group, each))) => (Some(group), each),
            Some(Err(error)) => {
                let message = format!("its control group can't be made: {error}");
                return Err(Exit::plain(EndKind::StartFailed, &message));
            }
            None => (None, Vec::new()),
        };
        let mut attempt = Self::new(launch, directory, group, now);
        for rank in 0..attempt.launch.tasks.len() {
            let group = each.get(rank).cloned();
            if let Err(exit) = attempt.start_task(rank, groups, group, boot_id, journal) {
                if attempt.tasks.is_empty() {
                    attempt.remove_group();
                    attempt.seal_output();
                    return Err(attempt.told_of(rank, &exit));
                }
                attempt.fail(rank, exit, now.boot_ms);
                break;
            }
        }
        Ok(attempt)
    }

    fn start_task(
        &mut self,
        rank: usize,
        groups: Option<&Groups>,
        group: Option<Group>,
        boot_id: &str,
        journal: &mut Journal,
    ) -> Result<(), Exit> {
        if let (Some(groups), Some(group), Some(what)) = (groups, &group, self.launch.group_of(rank)) {
            let limited = groups.limit(group, what.cpu_max_millis, what.memory_max_bytes);
            limited.map_err(|error| {
                Exit::plain(EndKind::StartFailed, &format!("its limits can't be set: {error}"))
            })?;
        }
        let spawned = Task::spawn(&self.launch, &self.directory, rank, group);
        let task = spawned.map_err(|error| Exit::of_refused_start(&error))?;
        // Unwritten (on a full disk), it is found by its environment or its control group.
        let _ = journal.append(&Entry::Started(task.record(&self.launch.attempt, self.started, boot_id)));
        self.tasks.push(task);
        Ok(())
    }

    /// Takes over an attempt that an earlier supervisor started.
    ///
    /// `records` names its tasks, and `started` is when it was. A task without a record was never
    /// started: then the others are stopped.
    pub(super) fn adopt(
        launch: StartAttempt,
        directory: PathBuf,
        groups: Option<&Groups>,
        records: &[ProcessRecord],
        started: Now,
        now: Now,
    ) -> Self {
        let count = launch.tasks.len();
        let found = groups.and_then(|groups| groups.find(&launch.attempt, count));
        let (group, each) = found.map_or((None, Vec::new()), |(group, each)| (Some(group), each));
        let mut attempt = Self::new(launch, directory, group, started);
        attempt.adopted = true;
        for record in records {
            let group = each.get(record.rank).cloned();
            attempt.tasks.push(Task::adopt(record.rank, record.pid, record.started_ticks, group));
        }
        attempt.tasks.sort_by_key(Task::rank);
        if let Some(missing) = (0..count).find(|rank| !attempt.tasks.iter().any(|task| task.rank() == *rank))
        {
            let message = "its supervisor was killed while it started the tasks";
            attempt.fail(missing, Exit::plain(EndKind::StartFailed, message), now.boot_ms);
        }
        attempt.notice_ends(now);
        attempt
    }

    fn new(launch: StartAttempt, directory: PathBuf, group: Option<Group>, started: Now) -> Self {
        Self {
            launch,
            directory,
            tasks: Vec::new(),
            group,
            adopted: false,
            started,
            stopping: None,
            failed: None,
            leftovers_until: None,
            leftovers_told: false,
            output_grows_fast: false,
        }
    }

    /// What the next supervisor must know of it.
    pub(super) fn entries(&self, boot_id: &str) -> Vec<Entry> {
        let record = |task: &Task| Entry::Started(task.record(&self.launch.attempt, self.started, boot_id));
        let launched = Entry::Launched(self.launch.clone());
        std::iter::once(launched).chain(self.tasks.iter().map(record)).collect()
    }

    /// Its tasks that were started.
    pub(super) fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// How it stands, while it has not ended.
    pub(super) fn running(&self) -> Attempt {
        attempt(&self.launch, Status::Running { started_unix_ms: self.started.unix_ms })
    }

    /// Begins to end it, politely. A reason given before stays; of two graces the shorter counts.
    pub(super) fn stop(&mut self, kind: EndKind, grace_ms: u64, message: String, boot_ms: u64) {
        let kill_at = boot_ms.saturating_add(grace_ms);
        if let Some(stopping) = &mut self.stopping {
            stopping.kill_at = stopping.kill_at.min(kill_at);
            return;
        }
        if self.is_over() {
            return;
        }
        self.stopping = Some(Stopping { kind, message, kill_at });
        if grace_ms > 0 {
            self.signal(Signal::TERM);
        } else {
            self.kill(&[], boot_ms);
        }
    }

    /// The main processes have ended.
    pub(super) fn is_over(&self) -> bool {
        self.leftovers_until.is_some()
    }

    /// When something must be done next, on the boot clock.
    pub(super) fn deadline(&self) -> u64 {
        match (self.leftovers_until, &self.stopping) {
            (Some(until), _) => until,
            (None, Some(stopping)) => stopping.kill_at,
            (None, None) if self.launch.max_run_ms > 0 => {
                self.started.boot_ms.saturating_add(self.launch.max_run_ms)
            }
            (None, None) => u64::MAX,
        }
    }

    /// Does what is due: ends what ran too long, kills what did not go.
    pub(super) fn keep_deadlines(&mut self, orphans: &[i32], boot_ms: u64) {
        if self.deadline() > boot_ms {
            return;
        }
        if self.is_over() || self.stopping.is_some() {
            self.kill(orphans, boot_ms);
        } else {
            let message = format!("ran longer than {} ms", self.launch.max_run_ms);
            self.stop(EndKind::TimedOut, self.launch.grace_ms.max(1), message, boot_ms);
        }
    }

    /// Notes the end of a process that was waited for, if it is one of this attempt's.
    pub(super) fn note_exit(&mut self, pid: i32, status: WaitStatus, boot_ms: u64) -> bool {
        let ended = self.tasks.iter_mut().find(|task| task.pid() == pid && task.exit().is_none());
        let Some(task) = ended else { return false };
        task.note_exit(status, &self.directory);
        self.judge(boot_ms);
        true
    }

    /// Notices the ends of processes that somebody else waits for.
    pub(super) fn notice_ends(&mut self, now: Now) {
        if self.adopted && !self.is_over() {
            self.tasks.iter_mut().for_each(Task::notice_end);
            self.judge(now.boot_ms);
        }
    }

    /// The first task that failed ends the attempt, and the last one that ended does.
    fn judge(&mut self, boot_ms: u64) {
        let ended = self.tasks.iter().filter_map(|task| Some((task.rank(), task.exit()?)));
        let first = ended.into_iter().find(|(_, exit)| exit.kind != EndKind::Succeeded);
        if let Some((rank, exit)) = first.map(|(rank, exit)| (rank, exit.clone())) {
            self.fail(rank, exit, boot_ms);
        }
        if self.leftovers_until.is_none() && self.tasks.iter().all(|task| task.exit().is_some()) {
            self.leftovers_until = Some(boot_ms + LEFTOVERS_GRACE_MS);
        }
    }

    fn fail(&mut self, rank: usize, exit: Exit, boot_ms: u64) {
        if self.failed.is_some() || self.stopping.is_some() {
            return;
        }
        let kind = exit.kind;
        self.failed = Some((rank, exit));
        if self.tasks.iter().any(|task| task.exit().is_none()) {
            self.stop(kind, self.launch.grace_ms.max(1), String::new(), boot_ms);
        }
    }

    /// Others than the main processes are alive. `orphans` are this attempt's, as far as they are
    /// known from elsewhere.
    pub(super) fn has_leftovers(&self, orphans: &[i32]) -> bool {
        match &self.group {
            Some(group) => group.is_populated(),
            None => !orphans.is_empty() || self.tasks.iter().any(Task::has_process_group),
        }
    }

    /// Asks what the main processes left behind to go, once.
    pub(super) fn end_leftovers(&mut self, orphans: &[i32]) {
        if std::mem::replace(&mut self.leftovers_told, true) {
            return;
        }
        match &self.group {
            Some(group) => group.signal(Signal::TERM),
            None => {
                self.signal(Signal::TERM);
                orphans.iter().for_each(|pid| process::signal(*pid, Signal::TERM));
            }
        }
    }

    fn signal(&self, signal: Signal) {
        self.tasks.iter().for_each(|task| task.signal(signal));
    }

    fn kill(&mut self, orphans: &[i32], boot_ms: u64) {
        self.signal(Signal::KILL);
        orphans.iter().for_each(|pid| process::signal(*pid, Signal::KILL));
        if let Some(group) = &self.group {
            group.kill();
        }
        if let Some(until) = &mut self.leftovers_until {
            *until = boot_ms + KILL_AGAIN_MS;
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.kill_at = boot_ms + KILL_AGAIN_MS;
        }
    }

    /// How it ended, once nothing is left of it.
    pub(super) fn outcome(&self, unix_ms: u64) -> Attempt {
        let exits = || self.tasks.iter().filter_map(|task| Some((task.rank(), task.exit()?)));
        let bad = exits().find(|(_, exit)| exit.kind != EndKind::Succeeded);
        let Exit { kind, exit_code, signal, message } = match (&self.failed, bad, &self.stopping) {
            (Some((rank, exit)), ..) => self.told_of(*rank, exit),
            (None, Some((_, exit)), Some(stopping)) => {
                let message = stopping.message.clone();
                Exit { kind: stopping.kind, message, ..exit.clone() }
            }
            (None, Some((rank, exit)), None) => self.told_of(rank, exit),
            // What ended well before the signal reached it ended well.
            (None, None, _) => Exit { exit_code: Some(0), ..Exit::plain(EndKind::Succeeded, "") },
        };
        let started_unix_ms = Some(self.started.unix_ms);
        let ended_unix_ms = unix_ms.max(self.started.unix_ms);
        attempt(
            &self.launch,
            Status::Ended { started_unix_ms, ended_unix_ms, kind, exit_code, signal, message },
        )
    }

    /// A task's end, naming the task if there are others.
    fn told_of(&self, rank: usize, exit: &Exit) -> Exit {
        let count = self.launch.tasks.len();
        if count < 2 {
            return exit.clone();
        }
        let what = match (exit.exit_code, &exit.message) {
            (Some(code), message) if message.is_empty() => format!("exit code {code}"),
            (_, message) => message.clone(),
        };
        Exit { message: format!("task {rank} of {count}: {what}"), ..exit.clone() }
    }

    /// Keeps its output within its bound.
    pub(super) fn bound_output(&mut self, boot_ms: u64) {
        let most = self.launch.stream_max_bytes();
        let (mut fast, mut unbounded) = (false, false);
        for task in &mut self.tasks {
            let look = task.bound_output(&self.directory, most);
            fast |= look.fast;
            unbounded |= look.unbounded;
        }
        if unbounded && !self.is_over() {
            let message =
                format!("its output passed {most} bytes, and the file system can't drop the middle");
            self.stop(EndKind::Failed, 0, message, boot_ms);
        }
        self.output_grows_fast = fast;
    }

    /// Its output grows fast, or may: nobody knows yet.
    pub(super) fn grows_fast(&self, boot_ms: u64) -> bool {
        self.output_grows_fast || boot_ms < self.started.boot_ms.saturating_add(YOUNG_MS)
    }

    /// Ends it because one of its tasks holds too much memory.
    pub(super) fn stop_for_memory(&mut self, over: &Excess, boot_ms: u64) {
        let message = format!("held {} bytes of memory, {} were asked for", over.held_bytes, over.most_bytes);
        let exit = self.told_of(over.rank, &Exit::plain(EndKind::OutOfMemory, &message));
        self.stop(EndKind::OutOfMemory, 0, exit.message, boot_ms);
    }

    /// Marks its output as complete, also that of tasks that could not be started.
    pub(super) fn seal_output(&self) {
        (0..self.launch.tasks.len()).for_each(|rank| output::seal(&self.directory, rank));
    }

    /// Removes its control group. Tells whether nothing is left to remove.
    pub(super) fn remove_group(&self) -> bool {
        self.group.as_ref().is_none_or(Group::remove)
    }
}

/// An attempt in a status.
pub(super) fn attempt(launch: &StartAttempt, status: Status) -> Attempt {
    Attempt {
        attempt: launch.attempt.clone(),
        revision: launch.revision,
        high_water: launch.high_water.clone(),
        start_by_unix_ms: launch.start_by_unix_ms,
        leased: launch.leased,
        status,
    }
}
