//! The supervisor: a small synchronous program that runs the tasks of a host pool and outlives its agent.
//!
//! It is one thread with one `poll` over the socket, the agent's connection and the pidfds of the
//! main processes, and sleeps when nothing happens. It writes an attempt to its journal before it starts
//! it, and an end before it reports it, as far as the disk has space.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::process::{
    Resource, Rlimit, WaitOptions, getrlimit, set_child_subreaper, setpgid, setrlimit, wait,
};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::attempt::{TrackedAttempt, attempt};
use super::cgroup::Groups;
use super::connection::Connection;
use super::memory;
use super::notes::{UNCONTAINED, unenforced};
use super::orphans::Orphans;
use super::probe::{ANSWER_MS_MAX, Begun, Probed, Probes};
use super::protocol::{Attempt, EndKind, FromSupervisor, StartAttempt, Status, ToSupervisor};
use super::recover::recover;
use super::shim::EXIT_NOT_EXECUTABLE;
use super::space::Space;
use super::store::{self, Entry, Journal, LeaseRecord};
use super::task::{Exit, Now};
use crate::files::{self, private};
use crate::pools::clean::empty_subfolders;
use crate::pools::retention::collect;

/// Interval of polls of memory, and of output that grows slowly.
const POLL: Duration = Duration::from_millis(200);
/// Interval of polls of output that grows fast, or may: that of attempts that have just started.
const POLL_FAST: Duration = Duration::from_millis(10);
/// Interval of polls of processes whose exit no event reports.
const POLL_PROCESSES_MS: u64 = 5;
/// Interval of searches for output past its retention.
const COLLECT: Duration = Duration::from_secs(60);
/// A supervisor without attempts and without an agent ends after this time.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// The limit of open files: enough for three per running task, and far below the limits at which programs
/// that inherit it have problems.
const FILES_MAX: u64 = 16_384;

/// Runs the supervisor of the folder `state` until it is shut down, or has had no attempts and no agent for
/// ten minutes.
///
/// Control groups are created below `cgroup_parent`, or below this process's own group if that is
/// `None`. A second supervisor of the same folder returns `Ok` at once.
///
/// # Errors
/// If the folder, its journal or its socket can't be used.
pub fn run(state: &Path, cgroup_parent: Option<&Path>) -> io::Result<()> {
    private::folder(state)?;
    let lock =
        OpenOptions::new().create(true).truncate(false).write(true).open(state.join("supervisor.lock"))?;
    if lock.try_lock().is_err() {
        return Ok(());
    }
    store::create_private_dir(&store::attempts_dir(state))?;
    store::create_private_dir(&store::logs_dir(state))?;
    // Shims are members of this process's group. That of an agent may get signals from a terminal.
    let _ = setpgid(None, None);
    // Orphans of tasks become children of this process, so that none is lost.
    set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    raise_file_limit();
    let (groups, mut notes) = match Groups::open(cgroup_parent, state) {
        Ok(groups) => {
            let notes = unenforced(
                [&groups.cpu, &groups.memory, &groups.processes].map(|limit| limit.as_ref().err()),
                POLL,
            );
            (groups.remove_unless_useful(cgroup_parent.is_some()), notes)
        }
        Err(why) => (None, unenforced([Some(&why); 3], POLL)),
    };
    if groups.is_none() {
        notes.push(UNCONTAINED.to_owned());
    }
    let (journal, entries, damaged) = Journal::open(state)?;
    if damaged > 0 {
        let note = format!(
            "{damaged} lines of the supervisor's journal are damaged: the attempts that they were about are stopped"
        );
        eprintln!("{}: {note}", state.display());
        notes.push(note);
    }
    let mut supervisor = Supervisor {
        state: state.to_owned(),
        boot_id: boot_id(),
        journal,
        groups,
        notes,
        attempts: BTreeMap::new(),
        probes: Probes::new()?,
        orphans: Orphans::default(),
        ended: BTreeMap::new(),
        unwritten: Vec::new(),
        unremoved: Vec::new(),
        renewed_boot_ms: 0,
        agent: None,
        polled_at: Instant::now(),
        output_polled_at: Instant::now(),
        output_poll: POLL,
        collected_at: Instant::now(),
        collector: None,
        cleaner: start_cleaner(&store::logs_dir(state)),
        busy_at: Instant::now(),
        ending: false,
        _lock: lock,
    };
    supervisor.adopt(entries)?;
    // Last, so that a list of attempts that an agent gets is complete.
    let socket = state.join("supervisor.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    listener.set_nonblocking(true)?;
    supervisor.serve(&listener)
}

/// Starts the thread that empties the folders of forgotten attempts' tasks: that may take minutes, or for ever on
/// a dead file system, and must not delay tasks. It begins with what an earlier supervisor left.
fn start_cleaner(logs: &Path) -> Sender<PathBuf> {
    let (sender, inbox) = channel::<PathBuf>();
    let logs = logs.to_owned();
    let _ = std::thread::Builder::new().name("cleaner".to_owned()).spawn(move || {
        let earlier = std::fs::read_dir(logs).into_iter().flatten().flatten().map(|entry| entry.path());
        for folder in earlier.chain(inbox) {
            if let Err(error) = empty_subfolders(&folder, store::WORK) {
                // What is mounted there, or can't be opened, stays.
                eprintln!("{}: not all of the tasks' files are removed: {error}", folder.display());
            }
        }
    });
    sender
}

/// Raises the limit of open files: a supervisor of many tasks needs more than the usual thousand.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = limit.maximum.map_or(FILES_MAX, |most| most.min(FILES_MAX));
    if limit.current.is_some_and(|current| current < raised) {
        // If this fails, starts beyond the old limit fail with the system's error.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum });
    }
}

struct Supervisor {
    state: PathBuf,
    boot_id: String,
    journal: Journal,
    groups: Option<Groups>,
    notes: Vec<String>,
    attempts: BTreeMap<String, TrackedAttempt>,
    /// Starts that wait for a file system.
    probes: Probes,
    orphans: Orphans,
    ended: BTreeMap<String, Attempt>,
    /// Ended attempts whose end could not be written to the journal, because the disk was full.
    unwritten: Vec<String>,
    /// Ended attempts whose control groups the kernel did not remove yet.
    unremoved: Vec<TrackedAttempt>,
    /// When the leases were last renewed, on the boot clock.
    renewed_boot_ms: u64,
    agent: Option<Connection>,
    /// When memory and all output were last polled.
    polled_at: Instant,
    /// When output that grows fast was last polled, and the interval of these polls.
    output_polled_at: Instant,
    output_poll: Duration,
    collected_at: Instant,
    /// Removes old output.
    collector: Option<std::thread::JoinHandle<()>>,
    /// Takes the folders of forgotten attempts, whose tasks' folders it empties.
    cleaner: Sender<PathBuf>,
    busy_at: Instant,
    ending: bool,
    /// Locked as long as this process lives.
    _lock: File,
}

fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.cast_unsigned() * 1_000 + time.tv_nsec.cast_unsigned() / 1_000_000
}

/// The kernel's id of this boot; empty if there is none.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn now() -> Now {
    let since = SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Now { unix_ms: since.map_or(0, |since| since.as_millis() as u64), boot_ms: boot_ms() }
}

impl Supervisor {
    /// Adopts the attempts of an earlier supervisor.
    fn adopt(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        // A lease survives the supervisor, but is void after a reboot: its clock starts at the boot.
        let lease = files::read_json::<LeaseRecord>(&self.state.join("lease")).ok().flatten();
        if let Some(lease) = lease.filter(|lease| lease.boot_id == self.boot_id) {
            self.renewed_boot_ms = lease.renewed_boot_ms;
        }
        let recovered = recover(&self.state, entries, self.groups.as_ref(), now(), &self.boot_id)?;
        self.attempts = recovered.live;
        self.ended = recovered.ended;
        for request in recovered.vanished {
            let exit =
                Exit::plain(EndKind::Vanished, "its processes were gone when its supervisor was restarted");
            self.end(attempt(&request, unstarted(exit)));
        }
        Ok(())
    }

    fn serve(&mut self, listener: &UnixListener) -> io::Result<()> {
        while !self.ending {
            self.wait(listener)?;
            if let Ok((stream, _)) = listener.accept() {
                self.agent = Some(Connection::new(stream)?);
                self.send(&FromSupervisor::Notes { notes: self.notes.clone() });
            }
            self.read_requests();
            self.advance_probes();
            self.advance_attempts();
            self.flush();
            if self.collected_at.elapsed() > COLLECT {
                self.collected_at = Instant::now();
                self.collect();
            }
            let is_busy =
                !self.attempts.is_empty() || !self.ended.is_empty() || self.probes.deadline().is_some();
            if self.agent.is_some() || is_busy {
                self.busy_at = Instant::now();
            }
            self.ending |= self.busy_at.elapsed() > IDLE_MAX;
        }
        if let Some(groups) = &self.groups {
            groups.remove();
        }
        Ok(())
    }

    /// Removes old output on a thread of its own: that may take minutes, and must not delay tasks.
    fn collect(&mut self) {
        if self.collector.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let logs = store::logs_dir(&self.state);
        let started =
            std::thread::Builder::new().name("logs".to_owned()).spawn(move || collect(&logs, |_| false));
        // If no thread could be started, the next interval tries again.
        self.collector = started.ok();
    }

    /// Sleeps until an event arrives or an action is due.
    fn wait(&mut self, listener: &UnixListener) -> io::Result<()> {
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(self.agent.as_ref().map(Connection::poll));
        fds.push(self.probes.poll());
        let now = boot_ms();
        let mut wait_ms = self.probes.deadline().map_or(30_000, |until| until.saturating_sub(now));
        for attempt in self.attempts.values() {
            wait_ms = wait_ms.min(attempt.deadline().saturating_sub(now));
            if attempt.is_over() {
                // Nothing signals the end of leftovers.
                wait_ms = wait_ms.min(POLL_PROCESSES_MS);
                continue;
            }
            for task in attempt.tasks().iter().filter(|task| task.exit().is_none()) {
                match &task.pidfd {
                    Some(fd) => fds.push(PollFd::new(fd, PollFlags::IN)),
                    None => wait_ms = wait_ms.min(POLL_PROCESSES_MS),
                }
            }
        }
        if !self.attempts.is_empty() {
            let output = self.output_poll.saturating_sub(self.output_polled_at.elapsed());
            let all = POLL.saturating_sub(self.polled_at.elapsed());
            wait_ms = wait_ms.min(output.min(all).as_millis() as u64);
        }
        if !(self.unwritten.is_empty() && self.unremoved.is_empty()) {
            wait_ms = wait_ms.min(POLL.as_millis() as u64);
        }
        let timeout =
            Timespec { tv_sec: (wait_ms / 1_000) as i64, tv_nsec: (wait_ms % 1_000) as i64 * 1_000_000 + 1 };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn read_requests(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let (requests, connected) = agent.receive();
        if !connected {
            self.agent = None;
        }
        requests.into_iter().for_each(|request| self.handle(request));
    }

    fn handle(&mut self, request: ToSupervisor) {
        match request {
            ToSupervisor::StartAttempt(request) => self.start(request),
            ToSupervisor::Stop { attempt, grace_ms } => {
                // What has exited by now ended by itself.
                self.reap(boot_ms());
                if let Some(tracked) = self.attempts.get_mut(&attempt) {
                    tracked.stop(EndKind::Cancelled, grace_ms, String::new(), boot_ms());
                } else if let Some(ended) = self.ended.get(&attempt).cloned() {
                    self.send(&FromSupervisor::StatusChanged(ended));
                } else if let Some(request) = self.probes.cancel(&attempt) {
                    self.refuse(&request, EndKind::Cancelled, "it was stopped before it had started");
                }
            }
            ToSupervisor::Forget { attempt } => self.forget(&attempt),
            ToSupervisor::Renew { from_boot_ms } => {
                if from_boot_ms > self.renewed_boot_ms {
                    self.renewed_boot_ms = from_boot_ms;
                    let lease = LeaseRecord { boot_id: self.boot_id.clone(), renewed_boot_ms: from_boot_ms };
                    // If this fails, a later supervisor uses an earlier time: leased tasks end early.
                    let _ = files::replace_json_unsynced(&self.state.join("lease"), &lease);
                }
            }
            ToSupervisor::List => {
                let running = self.attempts.values().map(TrackedAttempt::running);
                let attempts = running.chain(self.ended.values().cloned()).collect();
                self.send(&FromSupervisor::Attempts { attempts });
            }
            ToSupervisor::Ping => self.send(&FromSupervisor::Pong),
            ToSupervisor::Shutdown => self.ending |= self.attempts.is_empty(),
        }
    }

    /// Starts an attempt. If it exists, only its status is sent.
    fn start(&mut self, request: StartAttempt) {
        if let Some(tracked) = self.attempts.get(&request.attempt) {
            let running = tracked.running();
            return self.send(&FromSupervisor::StatusChanged(running));
        }
        if let Some(ended) = self.ended.get(&request.attempt).cloned() {
            return self.send(&FromSupervisor::StatusChanged(ended));
        }
        if !store::is_attempt(&request.attempt) {
            return;
        }
        let now = now();
        if let Some(why) = self.why_not_now(&request, now) {
            return self.refuse(&request, EndKind::NotStarted, &why);
        }
        if self.probes.has(&request.attempt) {
            return;
        }
        match self.probes.begin(request, now.boot_ms) {
            Begun::NotNeeded(request) => self.begin_tasks(request, now),
            Begun::Waits => {}
            Begun::TooMany(request) => {
                let message = "too many starts wait for file systems that don't answer";
                self.refuse(&request, EndKind::NotStarted, message);
            }
        }
    }

    /// Why an attempt must not be started any more, or not here.
    fn why_not_now(&self, request: &StartAttempt, now: Now) -> Option<String> {
        let late = match request.start_by_boot_ms {
            Some(start_by) => now.boot_ms > start_by,
            None => now.unix_ms > request.start_by_unix_ms,
        };
        if late {
            return Some("the order came too late".to_owned());
        }
        if is_lease_over(request, self.renewed_boot_ms, now.boot_ms) {
            return Some("the pool's lease had run out".to_owned());
        }
        let space = Space::of(&self.state).filter(|space| space.is_low())?;
        Some(format!("the disk of the pool is full: {} bytes are free", space.free_bytes))
    }

    /// Reports that an attempt ends without a start.
    fn refuse(&mut self, request: &StartAttempt, kind: EndKind, message: &str) {
        let status = unstarted(Exit::plain(kind, message));
        self.send(&FromSupervisor::StatusChanged(attempt(request, status)));
    }

    /// Goes on with the starts for which file systems have answered, and ends those for which they don't.
    fn advance_probes(&mut self) {
        let now = now();
        for (request, probed) in self.probes.take_ended(now.boot_ms) {
            match probed {
                // It may have waited past its time.
                Probed::Answered => match self.why_not_now(&request, now) {
                    Some(why) => self.refuse(&request, EndKind::NotStarted, &why),
                    None => self.begin_tasks(request, now),
                },
                Probed::Silent => {
                    let message = format!(
                        "the file system of its directory or program does not answer within {} s",
                        ANSWER_MS_MAX / 1_000
                    );
                    let exit = Exit {
                        exit_code: Some(EXIT_NOT_EXECUTABLE),
                        ..Exit::plain(EndKind::Failed, &message)
                    };
                    self.end(attempt(&request, unstarted(exit)));
                }
            }
        }
    }

    /// Starts the tasks of an attempt.
    fn begin_tasks(&mut self, request: StartAttempt, now: Now) {
        let directory = store::attempts_dir(&self.state).join(&request.attempt);
        let prepared = self
            .journal
            .append(&Entry::Ordered(request.clone()))
            .and_then(|()| store::create_private_dir(&directory));
        let started = match prepared {
            Ok(()) => {
                let (groups, journal) = (self.groups.as_ref(), &mut self.journal);
                TrackedAttempt::start(request.clone(), directory, groups, now, &self.boot_id, journal)
            }
            Err(error) => Err(Exit::plain(EndKind::StartFailed, &error.to_string())),
        };
        match started {
            Ok(tracked) => {
                self.send(&FromSupervisor::StatusChanged(tracked.running()));
                self.attempts.insert(request.attempt, tracked);
                self.output_poll = POLL_FAST;
            }
            Err(exit) => self.end(attempt(&request, unstarted(exit))),
        }
    }

    /// Writes the end of an attempt to the journal, then reports it.
    fn end(&mut self, ended: Attempt) {
        if self.journal.append(&Entry::Ended(ended.clone())).is_err() {
            // This process still reports it, and writes it when the disk has space again.
            self.unwritten.push(ended.attempt.clone());
        }
        self.send(&FromSupervisor::StatusChanged(ended.clone()));
        self.ended.insert(ended.attempt.clone(), ended);
    }

    fn forget(&mut self, attempt: &str) {
        if self.ended.remove(attempt).is_none() {
            return;
        }
        // If this fails, a later supervisor only reports the attempt once more.
        let _ = self.journal.append(&Entry::Forgotten { attempt: attempt.to_owned() });
        self.unwritten.retain(|unwritten| unwritten != attempt);
        let directory = store::attempts_dir(&self.state).join(attempt);
        // Its retention begins now.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&directory);
        let _ = opened.and_then(|directory| directory.set_modified(SystemTime::now()));
        let output = store::logs_dir(&self.state).join(attempt);
        let _ = std::fs::rename(&directory, &output);
        // If the thread could not be started, the folders are removed with the output.
        let _ = self.cleaner.send(output);
        if self.journal.needs_compaction() {
            let live = self.attempts.values().flat_map(|tracked| tracked.entries(&self.boot_id));
            let ended = self.ended.values().cloned().map(Entry::Ended);
            // If this fails, it is repeated when the journal has grown further.
            let _ = self.journal.compact(live.chain(ended));
        }
    }

    /// Advances all attempts: collects exits, ends leases, and does what is due.
    fn advance_attempts(&mut self) {
        let now = now();
        self.reap(now.boot_ms);
        let renewed = self.renewed_boot_ms;
        for attempt in self.attempts.values_mut() {
            if is_lease_over(&attempt.request, renewed, now.boot_ms) {
                let grace_ms = crate::state::event::LEASE_STOP_GRACE_MS / 2;
                let message = "the lease expired: the pool had no connection to the broker".to_owned();
                attempt.stop(EndKind::LeaseEnded, grace_ms, message, now.boot_ms);
            }
            attempt.poll_exits(now);
        }
        let due = |attempt: &TrackedAttempt| attempt.is_over() || attempt.deadline() <= now.boot_ms;
        let due = self.attempts.iter().filter(|(_, attempt)| due(attempt)).map(|(name, _)| name.clone());
        let due: Vec<String> = due.collect();
        if !due.is_empty() {
            self.orphans.poll(&self.attempts);
        }
        for name in due {
            self.advance(&name, now);
        }
        self.poll(now.boot_ms);
    }

    /// Waits for all processes that ended: main processes, and orphans that became children of this process.
    fn reap(&mut self, boot_ms: u64) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let _orphan =
                !self.attempts.values_mut().any(|tracked| tracked.record_exit(pid, status, boot_ms));
        }
    }

    /// Does what is due for one attempt.
    fn advance(&mut self, name: &str, now: Now) {
        let Some(attempt) = self.attempts.get_mut(name) else { return };
        let orphans = self.orphans.of(name, attempt.adopted);
        attempt.enforce_deadlines(&orphans, now.boot_ms);
        if !attempt.is_over() {
            return;
        }
        if attempt.has_leftovers(&orphans) {
            return attempt.end_leftovers(&orphans);
        }
        if let Some(mut attempt) = self.attempts.remove(name) {
            attempt.bound_output(now.boot_ms);
            attempt.seal_output();
            let is_full = Space::of(&self.state).is_some_and(Space::is_exhausted);
            self.end(attempt.outcome(now.unix_ms, is_full));
            if !attempt.remove_group() {
                self.unremoved.push(attempt);
            }
        }
    }

    /// Polls, at intervals, what no event reports: output, memory, and work that failed before.
    fn poll(&mut self, boot_ms: u64) {
        let all = self.polled_at.elapsed() >= POLL;
        if all || self.output_polled_at.elapsed() >= self.output_poll {
            self.output_polled_at = Instant::now();
            let mut fast = false;
            for attempt in self.attempts.values_mut() {
                if all || attempt.grows_fast(boot_ms) {
                    attempt.bound_output(boot_ms);
                }
                fast |= attempt.grows_fast(boot_ms);
            }
            self.output_poll = if fast { POLL_FAST } else { POLL };
        }
        if !all {
            return;
        }
        self.polled_at = Instant::now();
        let enforced = self.groups.as_ref().is_some_and(|groups| groups.memory.is_ok());
        let excesses = if enforced { Vec::new() } else { memory::excesses(&self.attempts) };
        for over in excesses {
            if let Some(attempt) = self.attempts.get_mut(&over.attempt) {
                attempt.stop_for_memory(over.rank, over.used_bytes, over.limit_bytes, boot_ms);
            }
        }
        self.unremoved.retain(|attempt| !attempt.remove_group());
        for name in std::mem::take(&mut self.unwritten) {
            let entry = self.ended.get(&name).cloned().map(Entry::Ended);
            if entry.is_some_and(|entry| self.journal.append(&entry).is_err()) {
                self.unwritten.push(name);
            }
        }
    }

    /// Queues a message for the agent; without an agent it is dropped, as every agent lists all attempts.
    fn send(&mut self, message: &FromSupervisor) {
        if let Some(agent) = &mut self.agent {
            agent.send(message);
        }
    }

    fn flush(&mut self) {
        if self.agent.as_mut().is_some_and(|agent| !agent.flush()) {
            self.agent = None;
        }
    }
}

/// The attempt needs a lease, and the last one has expired.
fn is_lease_over(request: &StartAttempt, renewed_boot_ms: u64, now_boot_ms: u64) -> bool {
    request.lease_ms().is_some_and(|lease_ms| now_boot_ms >= renewed_boot_ms.saturating_add(lease_ms))
}

/// The status of an attempt of which no task was started.
fn unstarted(exit: Exit) -> Status {
    let Exit { kind, exit_code, signal, message } = exit;
    let ended_unix_ms = now().unix_ms;
    Status::Ended { started_unix_ms: None, ended_unix_ms, kind, exit_code, signal, message }
}
