//! The supervisor: a small synchronous program that outlives its agent and keeps its tasks.
//!
//! One thread, one `poll` over the socket, the agent's connection and the processes' pidfds; when
//! nothing happens it sleeps. What it must remember it writes to files first.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitOptions, set_child_subreaper, waitpid};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::logs::collect;
use super::process;
use super::protocol::{Attempt, EndKind, FromSupervisor, Launch, Status, ToSupervisor};
use super::store::{self, LeaseRecord, ProcessRecord};
use super::task::{Task, attempt};

/// How often output and memory are looked at while something runs.
const WATCH: Duration = Duration::from_millis(200);
/// The same while output grows fast.
const WATCH_CLOSELY: Duration = Duration::from_millis(10);
/// How often logs past their retention are looked for.
const COLLECT: Duration = Duration::from_secs(60);
/// How long a supervisor stays that has nothing to keep and no agent.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// Bytes that wait for an agent that doesn't read; then it is cut off, and will list anew.
const OUTGOING_MAX: usize = 4 << 20;
/// Bytes of one request: a launch with a full command line.
const LINE_MAX: usize = 8 << 20;

/// Keeps the attempts in `state` until there are none and no agent asks any more.
///
/// A second supervisor of the same folder ends at once and well.
///
/// # Errors
/// If the folder or its socket can't be used.
pub fn run(state: &Path) -> io::Result<()> {
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
    let socket = state.join("supervisor.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    listener.set_nonblocking(true)?;
    let mut supervisor = Supervisor {
        state: state.to_owned(),
        tasks: BTreeMap::new(),
        ended: BTreeMap::new(),
        lease_until_boot_ms: 0,
        agent: None,
        watched_at: Instant::now(),
        watch: WATCH,
        collected_at: Instant::now(),
        busy_at: Instant::now(),
        leave: false,
        _lock: lock,
    };
    supervisor.recover()?;
    supervisor.serve(&listener)
}

struct Supervisor {
    state: PathBuf,
    tasks: BTreeMap<String, Task>,
    ended: BTreeMap<String, Attempt>,
    lease_until_boot_ms: u64,
    agent: Option<Agent>,
    watched_at: Instant,
    watch: Duration,
    collected_at: Instant,
    busy_at: Instant,
    leave: bool,
    /// Held as long as this lives.
    _lock: File,
}

/// The agent's connection.
struct Agent {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.cast_unsigned() * 1_000 + time.tv_nsec.cast_unsigned() / 1_000_000
}

/// The name that the kernel gave this boot; empty where it gives none.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

impl Supervisor {
    /// Takes over what an earlier supervisor kept.
    fn recover(&mut self) -> io::Result<()> {
        // A lease outlives the supervisor, but not the boot that its clock counts from.
        let lease = store::read::<LeaseRecord>(&self.state.join("lease")).ok().flatten();
        if let Some(lease) = lease.filter(|lease| lease.boot_id == boot_id()) {
            self.lease_until_boot_ms = lease.until_boot_ms;
        }
        let mut unseen = Vec::new();
        for entry in std::fs::read_dir(store::attempts_dir(&self.state))?.flatten() {
            let directory = entry.path();
            let Some(launch) = store::read::<Launch>(&directory.join("launch.json")).ok().flatten() else {
                // It never got as far as being started.
                let _ = std::fs::remove_dir_all(&directory);
                continue;
            };
            if let Ok(Some(ended)) = store::read::<Attempt>(&directory.join("status.json")) {
                self.ended.insert(launch.attempt, ended);
                continue;
            }
            let record = store::read::<ProcessRecord>(&directory.join("pid")).ok().flatten();
            let alive = record.filter(|record| {
                process::stat(record.pid)
                    .is_some_and(|stat| !stat.dead && stat.started_ticks == record.started_ticks)
            });
            match alive {
                Some(record) => {
                    let task = Task::adopt(launch.clone(), directory, &record, unix_ms(), boot_ms());
                    self.tasks.insert(launch.attempt, task);
                }
                None => unseen.push((launch, directory)),
            }
        }
        if unseen.is_empty() {
            return Ok(());
        }
        // Started, but killed before it was noted: its environment tells.
        let mut strays = process::by_attempt();
        for (launch, directory) in unseen {
            let stat = strays
                .remove(&launch.attempt)
                .and_then(|stats| stats.into_iter().min_by_key(|stat| stat.pid));
            match stat {
                Some(stat) => {
                    let record = ProcessRecord {
                        pid: stat.group,
                        started_ticks: stat.started_ticks,
                        started_unix_ms: unix_ms(),
                    };
                    let task = Task::adopt(launch.clone(), directory, &record, unix_ms(), boot_ms());
                    self.tasks.insert(launch.attempt, task);
                }
                None => {
                    let message = "it was gone when its supervisor came back".to_owned();
                    self.end_unstarted(&launch, EndKind::Vanished, message);
                }
            }
        }
        Ok(())
    }

    fn serve(&mut self, listener: &UnixListener) -> io::Result<()> {
        while !self.leave {
            self.wait(listener)?;
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true)?;
                self.agent = Some(Agent { stream, incoming: Vec::new(), outgoing: Vec::new() });
                self.say(&FromSupervisor::Notes { notes: notes() });
            }
            self.read_requests();
            self.keep_tasks();
            self.flush();
            if self.collected_at.elapsed() > COLLECT {
                self.collected_at = Instant::now();
                collect(&store::logs_dir(&self.state));
            }
            if self.agent.is_some() || !self.tasks.is_empty() || !self.ended.is_empty() {
                self.busy_at = Instant::now();
            }
            self.leave |= self.busy_at.elapsed() > IDLE_MAX;
        }
        Ok(())
    }

    /// Sleeps until something happens or falls due.
    fn wait(&mut self, listener: &UnixListener) -> io::Result<()> {
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        if let Some(agent) = &self.agent {
            let out = if agent.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::new(&agent.stream, PollFlags::IN | out));
        }
        let now = boot_ms();
        let mut wait_ms = 30_000;
        for task in self.tasks.values() {
            fds.extend(task.pidfd.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            wait_ms = wait_ms.min(task.deadline().saturating_sub(now));
            if task.pidfd.is_none() {
                // Leftovers of a group send no notice when they go.
                wait_ms = wait_ms.min(5);
            }
        }
        if !self.tasks.is_empty() {
            wait_ms = wait_ms.min(self.watch.saturating_sub(self.watched_at.elapsed()).as_millis() as u64);
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
        let mut buffer = [0; 64 * 1024];
        let mut gone = false;
        loop {
            match agent.stream.read(&mut buffer) {
                Ok(0) => {
                    gone = true;
                    break;
                }
                Ok(count) => agent.incoming.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    gone = true;
                    break;
                }
            }
        }
        gone |= agent.incoming.len() > LINE_MAX;
        let end = agent.incoming.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines: Vec<u8> = agent.incoming.drain(..end).collect();
        if gone {
            self.agent = None;
        }
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(request) => self.take(request),
                // Not our agent: whoever it is must start over.
                Err(_) => self.agent = None,
            }
        }
    }

    fn take(&mut self, request: ToSupervisor) {
        match request {
            ToSupervisor::Launch(launch) => self.launch(launch),
            ToSupervisor::Stop { attempt, grace_ms } => {
                if let Some(task) = self.tasks.get_mut(&attempt) {
                    task.stop(EndKind::Cancelled, grace_ms, String::new(), boot_ms());
                } else if let Some(ended) = self.ended.get(&attempt).cloned() {
                    self.say(&FromSupervisor::Moved(ended));
                }
            }
            ToSupervisor::Forget { attempt } => self.forget(&attempt),
            ToSupervisor::Renew { lease_until_boot_ms } => {
                if lease_until_boot_ms > self.lease_until_boot_ms {
                    self.lease_until_boot_ms = lease_until_boot_ms;
                    let lease = LeaseRecord { boot_id: boot_id(), until_boot_ms: lease_until_boot_ms };
                    // Unwritten, it is only forgotten sooner: leased tasks then end early.
                    let _ = store::write(&self.state.join("lease"), &lease);
                }
            }
            ToSupervisor::List => {
                let running = self.tasks.values().map(Task::running);
                let attempts = running.chain(self.ended.values().cloned()).collect();
                self.say(&FromSupervisor::Attempts { attempts });
            }
            ToSupervisor::Shutdown => self.leave |= self.tasks.is_empty(),
        }
    }

    fn launch(&mut self, launch: Launch) {
        if let Some(task) = self.tasks.get(&launch.attempt) {
            let running = task.running();
            return self.say(&FromSupervisor::Moved(running));
        }
        if let Some(ended) = self.ended.get(&launch.attempt).cloned() {
            return self.say(&FromSupervisor::Moved(ended));
        }
        if !store::is_attempt(&launch.attempt) {
            return;
        }
        let late = unix_ms() > launch.start_by_unix_ms;
        if late || (launch.leased && boot_ms() >= self.lease_until_boot_ms) {
            let message = if late { "the order came too late" } else { "the pool's lease had run out" };
            let status = unstarted(EndKind::NotStarted, message.to_owned());
            return self.say(&FromSupervisor::Moved(attempt(&launch, status)));
        }
        let directory = store::attempts_dir(&self.state).join(&launch.attempt);
        let prepared = store::create_private_dir(&directory)
            .and_then(|()| store::write(&directory.join("launch.json"), &launch));
        let spawned = prepared.and_then(|()| Task::spawn(launch.clone(), directory, unix_ms(), boot_ms()));
        match spawned {
            Ok(task) => {
                self.say(&FromSupervisor::Moved(task.running()));
                self.tasks.insert(launch.attempt, task);
            }
            Err(error) => self.end_unstarted(&launch, EndKind::LaunchFailed, error.to_string()),
        }
    }

    fn end_unstarted(&mut self, launch: &Launch, kind: EndKind, message: String) {
        self.end(attempt(launch, unstarted(kind, message)));
    }

    /// Writes an end down, then tells it.
    fn end(&mut self, ended: Attempt) {
        let directory = store::attempts_dir(&self.state).join(&ended.attempt);
        // Without a place to write it to, it is still told as long as this process lives.
        let _ = store::write(&directory.join("status.json"), &ended);
        self.say(&FromSupervisor::Moved(ended.clone()));
        self.ended.insert(ended.attempt.clone(), ended);
    }

    fn forget(&mut self, attempt: &str) {
        if self.ended.remove(attempt).is_none() {
            return;
        }
        let directory = store::attempts_dir(&self.state).join(attempt);
        for name in ["launch.json", "status.json", "pid"] {
            let _ = std::fs::remove_file(directory.join(name));
        }
        let _ = std::fs::remove_dir_all(directory.join("work"));
        let _ = std::fs::rename(&directory, store::logs_dir(&self.state).join(attempt));
    }

    fn keep_tasks(&mut self) {
        let now = boot_ms();
        let lease_over = now >= self.lease_until_boot_ms;
        let mut gone = Vec::new();
        for (name, task) in &mut self.tasks {
            if task.launch.leased && lease_over {
                let grace_ms = crate::state::event::LEASE_STOP_GRACE_MS / 2;
                task.stop(EndKind::LeaseEnded, grace_ms, "its pool lost the broker".to_owned(), now);
            }
            task.keep_deadlines(now);
            if task.reap(now) && !task.has_leftovers() {
                gone.push(name.clone());
            }
        }
        for name in gone {
            if let Some(mut task) = self.tasks.remove(&name) {
                task.cap_output();
                self.end(task.outcome(unix_ms()));
            }
        }
        self.reap_strays();
        if self.watched_at.elapsed() >= self.watch && !self.tasks.is_empty() {
            self.watched_at = Instant::now();
            self.watch_tasks(now);
        }
    }

    /// Waits for orphans that became children of this process.
    fn reap_strays(&self) {
        if self.watched_at.elapsed() < self.watch {
            return;
        }
        let ours: Vec<i32> = self.tasks.values().map(Task::pid).collect();
        for pid in process::own_children().into_iter().filter(|pid| !ours.contains(pid)) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }

    fn watch_tasks(&mut self, now: u64) {
        let mut fast = false;
        for task in self.tasks.values_mut() {
            fast |= task.cap_output();
        }
        self.watch = if fast { WATCH_CLOSELY } else { WATCH };
        let limited = self.tasks.values().any(|task| task.launch.memory_max_bytes > 0);
        if !limited {
            return;
        }
        let page = rustix::param::page_size() as u64;
        let mut held: BTreeMap<i32, u64> = BTreeMap::new();
        for stat in process::all() {
            *held.entry(stat.group).or_default() += stat.resident_pages * page;
        }
        for task in self.tasks.values_mut() {
            let (most, holds) = (task.launch.memory_max_bytes, held.get(&task.pid()).copied().unwrap_or(0));
            if most > 0 && holds > most {
                let message = format!("held {holds} bytes of memory, {most} were asked for");
                task.stop(EndKind::OutOfMemory, 0, message, now);
            }
        }
    }

    fn say(&mut self, message: &FromSupervisor) {
        let Some(agent) = &mut self.agent else { return };
        if let Ok(mut line) = serde_json::to_vec(message) {
            line.push(b'\n');
            agent.outgoing.extend_from_slice(&line);
        }
    }

    fn flush(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let mut written = 0;
        let mut gone = agent.outgoing.len() > OUTGOING_MAX;
        while written < agent.outgoing.len() && !gone {
            match agent.stream.write(&agent.outgoing[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => gone = true,
            }
        }
        agent.outgoing.drain(..written);
        if gone {
            self.agent = None;
        }
    }
}

fn unstarted(kind: EndKind, message: String) -> Status {
    Status::Ended {
        started_unix_ms: None,
        ended_unix_ms: unix_ms(),
        kind,
        exit_code: None,
        signal: None,
        message,
    }
}

/// What is not enforced here.
fn notes() -> Vec<String> {
    vec![
        "CPU limits are not enforced".to_owned(),
        "memory is watched every 200 ms, not enforced by the kernel: a task above what it asked for is killed".to_owned(),
    ]
}
