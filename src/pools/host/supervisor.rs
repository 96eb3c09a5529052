//! The supervisor: a small synchronous program that outlives its agent and keeps its tasks.
//!
//! One thread, one `poll` over the socket, the agent's connection and the processes' pidfds; when
//! nothing happens it sleeps. What it must remember it writes to files first.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, WaitOptions, getrlimit, set_child_subreaper, setrlimit, wait};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::attempt::{Now, TrackedAttempt, attempt};
use super::cgroup::Groups;
use super::connection::Connection;
use super::memory;
use super::orphans::Orphans;
use super::protocol::{Attempt, EndKind, FromSupervisor, StartAttempt, Status, ToSupervisor};
use super::recover::recover;
use super::store::{self, Entry, Journal, LeaseRecord};
use super::task::Exit;
use crate::pools::{retention::collect, saved};

/// How often memory, and output that grows slowly, are looked at.
const WATCH: Duration = Duration::from_millis(200);
/// The same for output that grows fast, or may: that of what has just begun.
const WATCH_CLOSELY: Duration = Duration::from_millis(10);
/// How often what can't be waited for is looked at.
const LOOK_AGAIN_MS: u64 = 5;
/// How often logs past their retention are looked for.
const COLLECT: Duration = Duration::from_secs(60);
/// How long a supervisor stays that has nothing to keep and no agent.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// Files that may be open: three for each running task and room, far below what programs that
/// inherit the limit would stumble over.
const FILES_MAX: u64 = 16_384;

/// Keeps the attempts in `state` until there are none and no agent asks any more.
///
/// Control groups are made below `cgroup_parent`, or below this process's own.
/// A second supervisor of the same folder ends at once and well.
///
/// # Errors
/// If the folder or its socket can't be used.
pub fn run(state: &Path, cgroup_parent: Option<&Path>) -> io::Result<()> {
    store::create_private_dir(state)?;
    let lock =
        OpenOptions::new().create(true).truncate(false).write(true).open(state.join("supervisor.lock"))?;
    if lock.try_lock().is_err() {
        return Ok(());
    }
    store::create_private_dir(&store::attempts_dir(state))?;
    store::create_private_dir(&store::logs_dir(state))?;
    // Orphans of tasks become children of this process, so that none gets away.
    set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    raise_file_limit();
    let (groups, notes) = match Groups::open(cgroup_parent, state) {
        Ok(groups) => {
            let notes = notes(groups.cpu.as_ref().err(), groups.memory.as_ref().err());
            (groups.keep_if(cgroup_parent.is_some()), notes)
        }
        Err(why) => (None, notes(Some(&why), Some(&why))),
    };
    let (journal, entries) = Journal::open(state)?;
    let mut supervisor = Supervisor {
        state: state.to_owned(),
        boot_id: boot_id(),
        journal,
        groups,
        notes,
        attempts: BTreeMap::new(),
        orphans: Orphans::default(),
        ended: BTreeMap::new(),
        unwritten: Vec::new(),
        emptied: Vec::new(),
        lease_until_boot_ms: 0,
        agent: None,
        watched_at: Instant::now(),
        closely_at: Instant::now(),
        watch: WATCH,
        collected_at: Instant::now(),
        collector: None,
        busy_at: Instant::now(),
        leave: false,
        _lock: lock,
    };
    supervisor.take_over(entries)?;
    // Last, so that an agent that gets an answer gets the whole.
    let socket = state.join("supervisor.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    listener.set_nonblocking(true)?;
    supervisor.serve(&listener)
}

/// A supervisor of many tasks needs many files, and the usual limit is a thousand.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES_MAX, |most| most.min(FILES_MAX));
    if limit.current.is_some_and(|current| current < wanted) {
        // Refused, tasks beyond it fail to launch, and say so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
}

struct Supervisor {
    state: PathBuf,
    boot_id: String,
    journal: Journal,
    groups: Option<Groups>,
    notes: Vec<String>,
    attempts: BTreeMap<String, TrackedAttempt>,
    orphans: Orphans,
    ended: BTreeMap<String, Attempt>,
    /// Ends that found no room on the disk.
    unwritten: Vec<String>,
    /// Ended attempts whose control groups the kernel would not remove yet.
    emptied: Vec<TrackedAttempt>,
    lease_until_boot_ms: u64,
    agent: Option<Connection>,
    /// When memory and all output were last looked at.
    watched_at: Instant,
    /// The same for output that grows fast, and how often that is.
    closely_at: Instant,
    watch: Duration,
    collected_at: Instant,
    /// Removes old output.
    collector: Option<std::thread::JoinHandle<()>>,
    busy_at: Instant,
    leave: bool,
    /// Held as long as this lives.
    _lock: File,
}

fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.cast_unsigned() * 1_000 + time.tv_nsec.cast_unsigned() / 1_000_000
}

/// The name that the kernel gave this boot; empty where it gives none.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn now() -> Now {
    let since = SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Now { unix_ms: since.map_or(0, |since| since.as_millis() as u64), boot_ms: boot_ms() }
}

impl Supervisor {
    /// Takes over what an earlier supervisor kept.
    fn take_over(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        // A lease outlives the supervisor, but not the boot that its clock counts from.
        let lease = saved::read::<LeaseRecord>(&self.state.join("lease")).ok().flatten();
        if let Some(lease) = lease.filter(|lease| lease.boot_id == self.boot_id) {
            self.lease_until_boot_ms = lease.until_boot_ms;
        }
        let recovered = recover(&self.state, entries, self.groups.as_ref(), now(), &self.boot_id)?;
        self.attempts = recovered.kept;
        self.ended = recovered.ended;
        for launch in recovered.vanished {
            let exit = Exit::plain(EndKind::Vanished, "it was gone when its supervisor came back");
            self.end(attempt(&launch, unstarted(exit)));
        }
        Ok(())
    }

    fn serve(&mut self, listener: &UnixListener) -> io::Result<()> {
        while !self.leave {
            self.wait(listener)?;
            if let Ok((stream, _)) = listener.accept() {
                self.agent = Some(Connection::new(stream)?);
                self.say(&FromSupervisor::Notes { notes: self.notes.clone() });
            }
            self.read_requests();
            self.keep_attempts();
            self.flush();
            if self.collected_at.elapsed() > COLLECT {
                self.collected_at = Instant::now();
                self.collect();
            }
            if self.agent.is_some() || !self.attempts.is_empty() || !self.ended.is_empty() {
                self.busy_at = Instant::now();
            }
            self.leave |= self.busy_at.elapsed() > IDLE_MAX;
        }
        if let Some(groups) = &self.groups {
            groups.remove();
        }
        Ok(())
    }

    /// Has old output removed, on a thread of its own: that may take minutes, and no task may wait.
    fn collect(&mut self) {
        if self.collector.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let logs = store::logs_dir(&self.state);
        let started =
            std::thread::Builder::new().name("logs".to_owned()).spawn(move || collect(&logs, |_| false));
        // Without a thread the next turn tries again.
        self.collector = started.ok();
    }

    /// Sleeps until something happens or falls due.
    fn wait(&mut self, listener: &UnixListener) -> io::Result<()> {
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(self.agent.as_ref().map(Connection::poll));
        let now = boot_ms();
        let mut wait_ms = 30_000;
        for attempt in self.attempts.values() {
            wait_ms = wait_ms.min(attempt.deadline().saturating_sub(now));
            if attempt.is_over() {
                // What is left of it sends no notice when it goes.
                wait_ms = wait_ms.min(LOOK_AGAIN_MS);
                continue;
            }
            for task in attempt.tasks().iter().filter(|task| task.exit().is_none()) {
                match &task.pidfd {
                    Some(fd) => fds.push(PollFd::new(fd, PollFlags::IN)),
                    None => wait_ms = wait_ms.min(LOOK_AGAIN_MS),
                }
            }
        }
        if !self.attempts.is_empty() {
            let closely = self.watch.saturating_sub(self.closely_at.elapsed());
            let all = WATCH.saturating_sub(self.watched_at.elapsed());
            wait_ms = wait_ms.min(closely.min(all).as_millis() as u64);
        }
        if !(self.unwritten.is_empty() && self.emptied.is_empty()) {
            wait_ms = wait_ms.min(WATCH.as_millis() as u64);
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
        let (requests, there) = agent.receive();
        if !there {
            self.agent = None;
        }
        requests.into_iter().for_each(|request| self.take(request));
    }

    fn take(&mut self, request: ToSupervisor) {
        match request {
            ToSupervisor::StartAttempt(launch) => self.launch(launch),
            ToSupervisor::Stop { attempt, grace_ms } => {
                if let Some(kept) = self.attempts.get_mut(&attempt) {
                    kept.stop(EndKind::Cancelled, grace_ms, String::new(), boot_ms());
                } else if let Some(ended) = self.ended.get(&attempt).cloned() {
                    self.say(&FromSupervisor::StatusChanged(ended));
                }
            }
            ToSupervisor::Forget { attempt } => self.forget(&attempt),
            ToSupervisor::Renew { lease_until_boot_ms } => {
                if lease_until_boot_ms > self.lease_until_boot_ms {
                    self.lease_until_boot_ms = lease_until_boot_ms;
                    let lease =
                        LeaseRecord { boot_id: self.boot_id.clone(), until_boot_ms: lease_until_boot_ms };
                    // Unwritten, it is only forgotten sooner: leased tasks then end early.
                    let _ = saved::write(&self.state.join("lease"), &lease);
                }
            }
            ToSupervisor::List => {
                let running = self.attempts.values().map(TrackedAttempt::running);
                let attempts = running.chain(self.ended.values().cloned()).collect();
                self.say(&FromSupervisor::Attempts { attempts });
            }
            ToSupervisor::Shutdown => self.leave |= self.attempts.is_empty(),
        }
    }

    fn launch(&mut self, launch: StartAttempt) {
        if let Some(kept) = self.attempts.get(&launch.attempt) {
            let running = kept.running();
            return self.say(&FromSupervisor::StatusChanged(running));
        }
        if let Some(ended) = self.ended.get(&launch.attempt).cloned() {
            return self.say(&FromSupervisor::StatusChanged(ended));
        }
        if !store::is_attempt(&launch.attempt) {
            return;
        }
        let now = now();
        let late = now.unix_ms > launch.start_by_unix_ms;
        if late || (launch.leased && now.boot_ms >= self.lease_until_boot_ms) {
            let message = if late { "the order came too late" } else { "the pool's lease had run out" };
            let status = unstarted(Exit::plain(EndKind::NotStarted, message));
            return self.say(&FromSupervisor::StatusChanged(attempt(&launch, status)));
        }
        let directory = store::attempts_dir(&self.state).join(&launch.attempt);
        let prepared = self
            .journal
            .append(&Entry::Launched(launch.clone()))
            .and_then(|()| store::create_private_dir(&directory));
        let started = match prepared {
            Ok(()) => {
                let (groups, journal) = (self.groups.as_ref(), &mut self.journal);
                TrackedAttempt::start(launch.clone(), directory, groups, now, &self.boot_id, journal)
            }
            Err(error) => Err(Exit::plain(EndKind::StartFailed, &error.to_string())),
        };
        match started {
            Ok(kept) => {
                self.say(&FromSupervisor::StatusChanged(kept.running()));
                self.attempts.insert(launch.attempt, kept);
                self.watch = WATCH_CLOSELY;
            }
            Err(exit) => self.end(attempt(&launch, unstarted(exit))),
        }
    }

    /// Writes an end down, then tells it.
    fn end(&mut self, ended: Attempt) {
        if self.journal.append(&Entry::Ended(ended.clone())).is_err() {
            // It is told as long as this process lives, and written when there is room again.
            self.unwritten.push(ended.attempt.clone());
        }
        self.say(&FromSupervisor::StatusChanged(ended.clone()));
        self.ended.insert(ended.attempt.clone(), ended);
    }

    fn forget(&mut self, attempt: &str) {
        if self.ended.remove(attempt).is_none() {
            return;
        }
        // Unwritten, it is only told of once more.
        let _ = self.journal.append(&Entry::Forgotten { attempt: attempt.to_owned() });
        self.unwritten.retain(|unwritten| unwritten != attempt);
        let directory = store::attempts_dir(&self.state).join(attempt);
        store::empty_work(&directory);
        // Its retention begins now.
        let _ = File::open(&directory).and_then(|directory| directory.set_modified(SystemTime::now()));
        let _ = std::fs::rename(&directory, store::logs_dir(&self.state).join(attempt));
        if self.journal.is_long() {
            let kept = self.attempts.values().flat_map(|kept| kept.entries(&self.boot_id));
            let ended = self.ended.values().cloned().map(Entry::Ended);
            // Tried again when it has grown further.
            let _ = self.journal.compact(kept.chain(ended));
        }
    }

    fn keep_attempts(&mut self) {
        let now = now();
        self.reap(now.boot_ms);
        let lease_over = now.boot_ms >= self.lease_until_boot_ms;
        for attempt in self.attempts.values_mut() {
            if attempt.launch.leased && lease_over {
                let grace_ms = crate::state::event::LEASE_STOP_GRACE_MS / 2;
                let message = "its pool lost the broker".to_owned();
                attempt.stop(EndKind::LeaseEnded, grace_ms, message, now.boot_ms);
            }
            attempt.notice_ends(now);
        }
        let due = |attempt: &TrackedAttempt| attempt.is_over() || attempt.deadline() <= now.boot_ms;
        let due = self.attempts.iter().filter(|(_, attempt)| due(attempt)).map(|(name, _)| name.clone());
        let due: Vec<String> = due.collect();
        if !due.is_empty() {
            self.orphans.look(&self.attempts);
        }
        for name in due {
            self.keep(&name, now);
        }
        self.watch(now.boot_ms);
    }

    /// Waits for all that ended: main processes, and orphans that became children of this process.
    fn reap(&mut self, boot_ms: u64) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let _orphan = !self.attempts.values_mut().any(|kept| kept.note_exit(pid, status, boot_ms));
        }
    }

    /// Does for one attempt what is due.
    fn keep(&mut self, name: &str, now: Now) {
        let Some(attempt) = self.attempts.get_mut(name) else { return };
        let orphans = self.orphans.of(name, attempt.adopted);
        attempt.keep_deadlines(&orphans, now.boot_ms);
        if !attempt.is_over() {
            return;
        }
        if attempt.has_leftovers(&orphans) {
            return attempt.end_leftovers(&orphans);
        }
        if let Some(mut attempt) = self.attempts.remove(name) {
            attempt.bound_output(now.boot_ms);
            attempt.seal_output();
            self.end(attempt.outcome(now.unix_ms));
            if !attempt.remove_group() {
                self.emptied.push(attempt);
            }
        }
    }

    /// Looks now and then at what sends no notice.
    fn watch(&mut self, boot_ms: u64) {
        let all = self.watched_at.elapsed() >= WATCH;
        if all || self.closely_at.elapsed() >= self.watch {
            self.closely_at = Instant::now();
            let mut closely = false;
            for attempt in self.attempts.values_mut() {
                if all || attempt.grows_fast(boot_ms) {
                    attempt.bound_output(boot_ms);
                }
                closely |= attempt.grows_fast(boot_ms);
            }
            self.watch = if closely { WATCH_CLOSELY } else { WATCH };
        }
        if !all {
            return;
        }
        self.watched_at = Instant::now();
        let enforced = self.groups.as_ref().is_some_and(|groups| groups.memory.is_ok());
        let excesses = if enforced { Vec::new() } else { memory::excesses(&self.attempts) };
        for over in excesses {
            if let Some(attempt) = self.attempts.get_mut(&over.attempt) {
                attempt.stop_for_memory(&over, boot_ms);
            }
        }
        self.emptied.retain(|attempt| !attempt.remove_group());
        for name in std::mem::take(&mut self.unwritten) {
            let entry = self.ended.get(&name).cloned().map(Entry::Ended);
            if entry.is_some_and(|entry| self.journal.append(&entry).is_err()) {
                self.unwritten.push(name);
            }
        }
    }

    fn say(&mut self, message: &FromSupervisor) {
        if let Some(agent) = &mut self.agent {
            agent.say(message);
        }
    }

    fn flush(&mut self) {
        if self.agent.as_mut().is_some_and(|agent| !agent.flush()) {
            self.agent = None;
        }
    }
}

fn unstarted(exit: Exit) -> Status {
    let Exit { kind, exit_code, signal, message } = exit;
    let ended_unix_ms = now().unix_ms;
    Status::Ended { started_unix_ms: None, ended_unix_ms, kind, exit_code, signal, message }
}

/// What is not enforced here, and why.
fn notes(cpu: Option<&String>, memory: Option<&String>) -> Vec<String> {
    let cpu = cpu.map(|why| format!("CPU limits are not enforced: {why}"));
    let memory = memory.map(|why| {
        format!(
            "memory is watched every {} ms, not enforced by the kernel, and a task above what it asked for \
             is killed: {why}",
            WATCH.as_millis()
        )
    });
    cpu.into_iter().chain(memory).collect()
}
