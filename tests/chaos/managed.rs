//! A process that is restarted when it ends, as by a service manager, unless it is disabled.

use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Process, until};

/// Time limit of an end by SIGTERM, on a busy machine with a failing disk.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(30);

/// A process with its restart policy.
pub struct ManagedProcess {
    /// Name for reports.
    pub name: String,
    log: std::path::PathBuf,
    command: Box<dyn Fn() -> Command + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    process: Option<Process>,
    disabled: bool,
}

impl ManagedProcess {
    /// Manages the process that `command` starts, without starting it yet. Its output is appended to `log`.
    pub fn new(
        name: &str,
        log: std::path::PathBuf,
        command: impl Fn() -> Command + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.to_owned(), log, command: Box::new(command), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    /// Starts the process if it has ended or was never started, unless it is disabled.
    pub fn start_if_ended(&self) {
        let mut state = self.state();
        let ended = |process: &mut Process| process.0.try_wait().expect("a state").is_some();
        if state.disabled || !state.process.as_mut().is_none_or(ended) {
            return;
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("a log");
        let error = log.try_clone().expect("a second handle");
        let mut command = (self.command)();
        command.stdin(Stdio::null()).stdout(log).stderr(error);
        state.process = Some(Process(command.spawn().expect("weir starts")));
    }

    /// Kills the process with SIGKILL, as a power failure would.
    pub fn kill(&self) {
        let mut state = self.state();
        state.process = None;
    }

    /// Kills the process and prevents restarts, or allows them again.
    pub fn set_disabled(&self, disabled: bool) {
        let mut state = self.state();
        state.disabled = disabled;
        if disabled {
            state.process = None;
        }
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub fn terminate(&self) {
        let Some(pid) = self.signal(Signal::TERM) else { return };
        until(&format!("{} ends after SIGTERM", self.name), TERMINATE_TIMEOUT, || {
            let mut state = self.state();
            let Some(process) = &mut state.process else { return true };
            // Another lane may have killed it, and a new process may have been started.
            Pid::from_child(&process.0) != pid || process.0.try_wait().expect("a state").is_some()
        });
    }

    /// Suspends the process with SIGSTOP.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes the process with SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) -> Option<Pid> {
        let mut state = self.state();
        let process = state.process.as_mut()?;
        if process.0.try_wait().expect("a state").is_some() {
            return None;
        }
        let pid = Pid::from_child(&process.0);
        kill_process(pid, signal).expect("a signal");
        Some(pid)
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}
