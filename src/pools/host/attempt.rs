//! One attempt in the supervisor: its tasks, its deadlines, its outcome.
//!
//! An attempt is over when the main processes of all its tasks have exited. It has ended when its
//! leftovers are gone, too: processes that the main processes left behind.

use std::path::PathBuf;

use rustix::process::{Signal, WaitStatus};

use super::cgroup::{Group, Groups};
use super::output;
use super::process;
use super::protocol::{Attempt, EndKind, StartAttempt, Status};
use super::store::{Entry, Journal, ProcessRecord};
use super::task::{Exit, Now, Task};
use crate::model::amount;
use crate::model::attempt::OUTPUT_MAY_BE_LOST;

/// Time from the exit of the last main process until leftovers are killed.
const LEFTOVERS_GRACE_MS: u64 = 2_000;
/// Interval between kills of a process that doesn't exit: the kernel may be busy with it.
const KILL_INTERVAL_MS: u64 = 100;

/// Time after its start during which the growth of an attempt's output is unknown.
const GROWTH_UNKNOWN_MS: u64 = 500;

/// An attempt that may still have processes.
pub(super) struct TrackedAttempt {
    pub(super) request: StartAttempt,
    directory: PathBuf,
    /// The tasks that were started, by rank.
    tasks: Vec<Task>,
    /// The attempt's control group, which contains those of all tasks; `None` without control groups.
    group: Option<Group>,
    /// Started by an earlier supervisor: its orphans are not children of this process.
    pub(super) adopted: bool,
    started: Now,
    stopping: Option<Stopping>,
    /// The first task that failed, with its rank, unless the attempt was stopped before.
    failed: Option<(usize, Exit)>,
    /// Set once all main processes have exited: leftovers are killed from this time of the boot clock on.
    leftovers_until: Option<u64>,
    /// Leftovers were sent SIGTERM.
    leftovers_signalled: bool,
    output_grows_fast: bool,
}

/// A stop that is in progress.
struct Stopping {
    kind: EndKind,
    message: String,
    /// When SIGKILL is sent next, on the boot clock.
    kill_at: u64,
}

impl TrackedAttempt {
    /// Starts all tasks of an attempt. Its `directory` must exist.
    ///
    /// If one task can't be started, those started before it are stopped.
    ///
    /// # Errors
    /// If no task was started: the outcome of the attempt.
    pub(super) fn start(
        request: StartAttempt,
        directory: PathBuf,
        groups: Option<&Groups>,
        now: Now,
        boot_id: &str,
        journal: &mut Journal,
    ) -> Result<Self, Exit> {
        let (group, each) = match groups.map(|groups| groups.create(&request.attempt, request.tasks.len())) {
            Some(Ok((group, each))) => (Some(group), each),
            Some(Err(error)) => {
                let message = format!("its control group can't be created: {error}");
                return Err(Exit::plain(EndKind::StartFailed, &message));
            }
            None => (None, Vec::new()),
        };
        let mut attempt = Self::new(request, directory, group, now);
        for rank in 0..attempt.request.tasks.len() {
            let group = each.get(rank).cloned();
            if let Err(exit) = attempt.start_task(rank, groups, group, boot_id, journal) {
                if attempt.tasks.is_empty() {
                    attempt.remove_group();
                    attempt.seal_output();
                    return Err(attempt.exit_of_task(rank, &exit));
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
        if let (Some(groups), Some(group), Some(start)) = (groups, &group, self.request.group_of(rank)) {
            // The first process of the task's namespaces counts, too.
            let more = u64::from(self.request.isolation.is_some());
            let processes_max = match self.request.processes_max {
                0 => 0,
                count => count + more,
            };
            let limited = groups.limit(group, start.cpu_max_millis, start.memory_max_bytes, processes_max);
            limited.map_err(|error| {
                Exit::plain(EndKind::StartFailed, &format!("its limits can't be set: {error}"))
            })?;
        }
        let spawned = Task::spawn(&self.request, &self.directory, rank, group);
        let task = spawned.map_err(|error| Exit::of_spawn_error(&error))?;
        // Without the entry (on a full disk) the task is found by its environment or control group.
        let _ = journal.append(&Entry::Started(task.record(&self.request.attempt, self.started, boot_id)));
        self.tasks.push(task);
        Ok(())
    }

    /// Takes over an attempt that an earlier supervisor started.
    ///
    /// `records` are its main processes, `started` is when it started. If a task has no record, it was
    /// never started: then the others are stopped.
    pub(super) fn adopt(
        request: StartAttempt,
        directory: PathBuf,
        groups: Option<&Groups>,
        records: &[ProcessRecord],
        started: Now,
        now: Now,
    ) -> Self {
        let count = request.tasks.len();
        let found = groups.and_then(|groups| groups.find(&request.attempt, count));
        let (group, each) = found.map_or((None, Vec::new()), |(group, each)| (Some(group), each));
        let mut attempt = Self::new(request, directory, group, started);
        attempt.adopted = true;
        for record in records {
            let group = each.get(record.rank).cloned();
            attempt.tasks.push(Task::adopt(record.rank, record.pid, record.started_ticks, group));
        }
        attempt.tasks.sort_by_key(Task::rank);
        if let Some(missing) = (0..count).find(|rank| !attempt.tasks.iter().any(|task| task.rank() == *rank))
        {
            let message = "its supervisor was killed while it was starting the tasks";
            attempt.fail(missing, Exit::plain(EndKind::StartFailed, message), now.boot_ms);
        }
        attempt.poll_exits(now);
        attempt
    }

    fn new(request: StartAttempt, directory: PathBuf, group: Option<Group>, started: Now) -> Self {
        Self {
            request,
            directory,
            tasks: Vec::new(),
            group,
            adopted: false,
            started,
            stopping: None,
            failed: None,
            leftovers_until: None,
            leftovers_signalled: false,
            output_grows_fast: false,
        }
    }

    /// The journal entries from which a later supervisor adopts the attempt.
    pub(super) fn entries(&self, boot_id: &str) -> Vec<Entry> {
        let record = |task: &Task| Entry::Started(task.record(&self.request.attempt, self.started, boot_id));
        let ordered = Entry::Ordered(self.request.clone());
        std::iter::once(ordered).chain(self.tasks.iter().map(record)).collect()
    }

    /// The tasks that were started.
    pub(super) fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The attempt as a message to the agent, while it has not ended.
    pub(super) fn running(&self) -> Attempt {
        attempt(&self.request, Status::Running { started_unix_ms: self.started.unix_ms })
    }

    /// Begins to stop the attempt: SIGTERM, then SIGKILL after `grace_ms`.
    ///
    /// If a stop is in progress, its reason stays, and the earlier of both kill times counts.
    pub(super) fn stop(&mut self, kind: EndKind, grace_ms: u64, message: String, boot_ms: u64) {
        let kill_at = boot_ms.saturating_add(grace_ms);
        if let Some(stopping) = &mut self.stopping {
            stopping.kill_at = stopping.kill_at.min(kill_at);
            self.leftovers_until = self.leftovers_until.map(|until| until.min(kill_at));
            return;
        }
        if self.is_over() {
            return;
        }
        self.stopping = Some(Stopping { kind, message, kill_at });
        if grace_ms == 0 {
            return self.kill(&[], boot_ms);
        }
        self.signal(Signal::TERM);
        self.terminate_outside_groups(&self.group.as_ref().map(Group::pids).unwrap_or_default());
    }

    /// Returns whether all main processes have exited.
    pub(super) fn is_over(&self) -> bool {
        self.leftovers_until.is_some()
    }

    /// When [`Self::enforce_deadlines`] must be called next, on the boot clock.
    pub(super) fn deadline(&self) -> u64 {
        match (self.leftovers_until, &self.stopping) {
            (Some(until), _) => until,
            (None, Some(stopping)) => stopping.kill_at,
            (None, None) if self.request.max_run_ms > 0 => {
                self.started.boot_ms.saturating_add(self.request.max_run_ms)
            }
            (None, None) => u64::MAX,
        }
    }

    /// Stops the attempt if it ran too long, and kills processes whose grace is over.
    pub(super) fn enforce_deadlines(&mut self, orphans: &[i32], boot_ms: u64) {
        if self.deadline() > boot_ms {
            return;
        }
        if self.is_over() || self.stopping.is_some() {
            self.kill(orphans, boot_ms);
        } else {
            let message = format!("ran longer than {}", amount::duration(self.request.max_run_ms));
            self.stop(EndKind::TimedOut, self.request.grace_ms.max(1), message, boot_ms);
        }
    }

    /// Records the exit of a process that was waited for, if it is a main process of this attempt. Returns
    /// whether it is.
    pub(super) fn record_exit(&mut self, pid: i32, status: WaitStatus, boot_ms: u64) -> bool {
        let ended = self.tasks.iter_mut().find(|task| task.pid() == pid && task.exit().is_none());
        let Some(task) = ended else { return false };
        task.record_exit(status);
        self.evaluate_exits(boot_ms);
        true
    }

    /// Polls the main processes of an adopted attempt: another process waits for them.
    pub(super) fn poll_exits(&mut self, now: Now) {
        if self.adopted && !self.is_over() {
            self.tasks.iter_mut().for_each(Task::poll_exit);
            self.evaluate_exits(now.boot_ms);
        }
    }

    /// Stops the attempt if a task failed, and begins the grace of leftovers if all tasks have exited.
    fn evaluate_exits(&mut self, boot_ms: u64) {
        let ended = self.tasks.iter().filter_map(|task| Some((task.rank(), task.exit()?)));
        let first = ended.into_iter().find(|(_, exit)| exit.kind != EndKind::Succeeded);
        if let Some((rank, exit)) = first.map(|(rank, exit)| (rank, exit.clone())) {
            self.fail(rank, exit, boot_ms);
        }
        if self.leftovers_until.is_none() && self.tasks.iter().all(|task| task.exit().is_some()) {
            // The grace of a stop counts from its request: a shell may end at once, and the program that it
            // ran saves its work.
            let stop_until = self.stopping.as_ref().map_or(0, |stopping| stopping.kill_at);
            self.leftovers_until = Some(stop_until.max(boot_ms + LEFTOVERS_GRACE_MS));
        }
    }

    /// Makes the exit of one task that of the attempt, unless it failed or was stopped before.
    fn fail(&mut self, rank: usize, exit: Exit, boot_ms: u64) {
        if self.failed.is_some() || self.stopping.is_some() {
            return;
        }
        let kind = exit.kind;
        self.failed = Some((rank, exit));
        if self.tasks.iter().any(|task| task.exit().is_none()) {
            self.stop(kind, self.request.grace_ms.max(1), String::new(), boot_ms);
        }
    }

    /// Returns whether processes other than the main ones live. `orphans` are those of this attempt.
    pub(super) fn has_leftovers(&self, orphans: &[i32]) -> bool {
        match &self.group {
            Some(group) => group.is_populated(),
            None => !orphans.is_empty() || self.tasks.iter().any(Task::has_process_group),
        }
    }

    /// Sends SIGTERM to the leftovers, once. Those that a stop has reached get no second one: many programs
    /// take that for a request to end at once.
    pub(super) fn end_leftovers(&mut self, orphans: &[i32]) {
        if std::mem::replace(&mut self.leftovers_signalled, true) {
            return;
        }
        match (&self.group, &self.stopping) {
            (Some(group), None) => group.signal(Signal::TERM),
            (Some(_), Some(_)) => {}
            (None, stopping) => {
                if stopping.is_none() {
                    self.signal(Signal::TERM);
                }
                self.terminate_outside_groups(orphans);
            }
        }
    }

    /// Sends SIGTERM to the processes among `pids` that are in no task's process group.
    fn terminate_outside_groups(&self, pids: &[i32]) {
        let groups: Vec<i32> = self.tasks.iter().map(Task::pid).collect();
        let is_outside = |pid: &&i32| process::stat(**pid).is_some_and(|stat| !groups.contains(&stat.group));
        pids.iter().filter(is_outside).for_each(|pid| process::signal(*pid, Signal::TERM));
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
            *until = boot_ms + KILL_INTERVAL_MS;
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.kill_at = boot_ms + KILL_INTERVAL_MS;
        }
    }

    /// The attempt as a message to the agent, once none of its processes is left.
    ///
    /// `disk_full`: the tasks could not write their output, which may be why they failed.
    pub(super) fn outcome(&self, unix_ms: u64, disk_full: bool) -> Attempt {
        let exits = || self.tasks.iter().filter_map(|task| Some((task.rank(), task.exit()?)));
        let bad = exits().find(|(_, exit)| exit.kind != EndKind::Succeeded);
        let Exit { kind, exit_code, signal, message } = match (&self.failed, bad, &self.stopping) {
            (Some((rank, exit)), ..) => self.exit_of_task(*rank, exit),
            (None, Some((_, exit)), Some(stopping)) => {
                let message = stopping.message.clone();
                Exit { kind: stopping.kind, message, ..exit.clone() }
            }
            (None, Some((rank, exit)), None) => self.exit_of_task(rank, exit),
            // A program that saves its work when it is stopped exits with 0, and has not finished.
            (None, None, Some(stopping)) => {
                Exit { exit_code: Some(0), ..Exit::plain(stopping.kind, &stopping.message) }
            }
            (None, None, None) => Exit { exit_code: Some(0), ..Exit::plain(EndKind::Succeeded, "") },
        };
        let (kind, message) = match kind {
            EndKind::Failed if disk_full => {
                let why = match exit_code {
                    Some(code) if message.is_empty() => format!("exit code {code}"),
                    _ => message,
                };
                (EndKind::DiskFull, format!("{why}, and the disk for its output was full"))
            }
            // What it did besides is done, and must not be repeated.
            EndKind::Succeeded if disk_full => (EndKind::Succeeded, OUTPUT_MAY_BE_LOST.to_owned()),
            kind => (kind, message),
        };
        let started_unix_ms = Some(self.started.unix_ms);
        let ended_unix_ms = unix_ms.max(self.started.unix_ms);
        attempt(
            &self.request,
            Status::Ended { started_unix_ms, ended_unix_ms, kind, exit_code, signal, message },
        )
    }

    /// The exit of a task, with the task's rank in the message if the attempt has several.
    fn exit_of_task(&self, rank: usize, exit: &Exit) -> Exit {
        let count = self.request.tasks.len();
        if count < 2 {
            return exit.clone();
        }
        let what = match (exit.exit_code, &exit.message) {
            (Some(code), message) if message.is_empty() => format!("exit code {code}"),
            (_, message) => message.clone(),
        };
        Exit { message: format!("task {rank} of {count}: {what}"), ..exit.clone() }
    }

    /// Drops output beyond its bound. Stops the attempt if the file system can't do that.
    pub(super) fn bound_output(&mut self, boot_ms: u64) {
        let limit_bytes = self.request.stream_max_bytes();
        let (mut fast, mut unbounded) = (false, false);
        for task in &mut self.tasks {
            let growth = task.bound_output(&self.directory, limit_bytes);
            fast |= growth.fast;
            unbounded |= growth.unbounded;
        }
        if unbounded && !self.is_over() {
            let message =
                format!("its output passed {limit_bytes} bytes, and the file system can't drop the middle");
            self.stop(EndKind::Failed, 0, message, boot_ms);
        }
        self.output_grows_fast = fast;
    }

    /// Returns whether the attempt's output grows fast, or started so recently that this is unknown.
    pub(super) fn grows_fast(&self, boot_ms: u64) -> bool {
        self.output_grows_fast || boot_ms < self.started.boot_ms.saturating_add(GROWTH_UNKNOWN_MS)
    }

    /// Kills the attempt because one of its tasks uses more memory than it requested.
    pub(super) fn stop_for_memory(&mut self, rank: usize, used_bytes: u64, limit_bytes: u64, boot_ms: u64) {
        let message = format!("used {used_bytes} bytes of memory, {limit_bytes} requested");
        let exit = self.exit_of_task(rank, &Exit::plain(EndKind::OutOfMemory, &message));
        self.stop(EndKind::OutOfMemory, 0, exit.message, boot_ms);
    }

    /// Marks the output of all tasks as complete, including those that were not started.
    pub(super) fn seal_output(&self) {
        (0..self.request.tasks.len()).for_each(|rank| output::seal(&self.directory, rank));
    }

    /// Removes the control group. Returns whether it is gone.
    pub(super) fn remove_group(&self) -> bool {
        self.group.as_ref().is_none_or(Group::remove)
    }
}

/// Makes a message to the agent of an attempt's status.
pub(super) fn attempt(request: &StartAttempt, status: Status) -> Attempt {
    Attempt {
        attempt: request.attempt.clone(),
        revision: request.revision,
        high_water: request.high_water.clone(),
        start_by_unix_ms: request.start_by_unix_ms,
        leased: request.leased,
        status,
    }
}
