//! A keeper of one process, as a machine's init is: what ends is started again, unless it is held down.

use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Process, until};

/// How long a process that is told to end may take, on a busy machine with a broken disk.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// Keeps one process.
pub struct Keeper {
    /// Who it is, for reports.
    pub name: String,
    log: std::path::PathBuf,
    command: Box<dyn Fn() -> Command + Send + Sync>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    process: Option<Process>,
    held_down: bool,
}

impl Keeper {
    /// A keeper of what `command` starts; output goes to `log`.
    pub fn new(
        name: &str,
        log: std::path::PathBuf,
        command: impl Fn() -> Command + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.to_owned(), log, command: Box::new(command), kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no keeper panics")
    }

    /// Starts the process unless it runs, or is to be down.
    pub fn tend(&self) {
        let mut kept = self.kept();
        let ended = |process: &mut Process| process.0.try_wait().expect("a state").is_some();
        if kept.held_down || !kept.process.as_mut().is_none_or(ended) {
            return;
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("a log");
        let error = log.try_clone().expect("a second handle");
        let mut command = (self.command)();
        command.stdin(Stdio::null()).stdout(log).stderr(error);
        kept.process = Some(Process(command.spawn().expect("weir starts")));
    }

    /// Kills it as a power cut would.
    pub fn kill(&self) {
        let mut kept = self.kept();
        kept.process = None;
    }

    /// Kills it and keeps it down, or lets it be started again.
    pub fn hold_down(&self, down: bool) {
        let mut kept = self.kept();
        kept.held_down = down;
        if down {
            kept.process = None;
        }
    }

    /// Tells it to end and waits until it has.
    pub fn terminate(&self) {
        let Some(pid) = self.signal(Signal::TERM) else { return };
        until(&format!("{} ends when told to", self.name), END_PATIENCE, || {
            let mut kept = self.kept();
            let Some(process) = &mut kept.process else { return true };
            // Another lane may have killed it, and the next one been started.
            Pid::from_child(&process.0) != pid || process.0.try_wait().expect("a state").is_some()
        });
    }

    /// Stops it amid whatever it does.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) -> Option<Pid> {
        let mut kept = self.kept();
        let process = kept.process.as_mut()?;
        if process.0.try_wait().expect("a state").is_some() {
            return None;
        }
        let pid = Pid::from_child(&process.0);
        kill_process(pid, signal).expect("a signal");
        Some(pid)
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}
