//! Looks for directories and programs on threads of their own, before a task starts in them: on a dead network file
//! system that may take for ever, and must stop neither the supervisor nor other tasks.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use super::protocol::StartAttempt;

/// How long a file system may take to answer.
pub(super) const ANSWER_MS_MAX: u64 = 10_000;
/// Threads that may wait at once: each costs memory, and a thread on a dead file system ends only with it.
const THREADS_MAX: usize = 64;

/// The starts that wait for a file system.
pub(super) struct Probes {
    waiting: Vec<Waiting>,
    /// Threads that still look, by what they look for: the starts of one job share one.
    looking: HashMap<Vec<PathBuf>, Arc<AtomicBool>>,
    /// Readable when a thread has ended.
    ended: Arc<OwnedFd>,
}

struct Waiting {
    request: StartAttempt,
    answered: Arc<AtomicBool>,
    /// On the boot clock.
    until: u64,
}

/// What [`Probes::begin`] did with a start.
pub(super) enum Begun {
    /// It needs no foreign file and may go on.
    NotNeeded(StartAttempt),
    /// It waits for an answer.
    Waits,
    /// It can't wait: too many threads do already.
    TooMany(StartAttempt),
}

/// What became of a start that waited.
pub(super) enum Probed {
    /// It may go on.
    Answered,
    /// The file system does not answer.
    Silent,
}

impl Probes {
    /// Makes an empty list.
    ///
    /// # Errors
    /// If the system is short of files.
    pub(super) fn new() -> std::io::Result<Self> {
        let ended = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        Ok(Self { waiting: Vec::new(), looking: HashMap::new(), ended })
    }

    /// Begins to look for the paths that a start needs.
    pub(super) fn begin(&mut self, request: StartAttempt, boot_ms: u64) -> Begun {
        let paths = foreign_paths(&request);
        if paths.is_empty() {
            return Begun::NotNeeded(request);
        }
        self.looking.retain(|_, answered| !answered.load(Ordering::Acquire));
        let answered = match self.looking.get(&paths) {
            Some(answered) => answered.clone(),
            None if self.looking.len() >= THREADS_MAX => return Begun::TooMany(request),
            None => {
                let answered = Arc::new(AtomicBool::new(false));
                let (flag, ended, look_for) = (answered.clone(), self.ended.clone(), paths.clone());
                let look = move || {
                    // The result does not matter: the start looks again, and reports what is missing.
                    look_for.iter().for_each(|path| drop(std::fs::metadata(path)));
                    flag.store(true, Ordering::Release);
                    let _ = rustix::io::write(&*ended, &1_u64.to_ne_bytes());
                };
                if std::thread::Builder::new().name("probe".to_owned()).spawn(look).is_err() {
                    return Begun::TooMany(request);
                }
                self.looking.insert(paths, answered.clone());
                answered
            }
        };
        self.waiting.push(Waiting { request, answered, until: boot_ms + ANSWER_MS_MAX });
        Begun::Waits
    }

    /// Returns whether the start of an attempt waits.
    pub(super) fn has(&self, attempt: &str) -> bool {
        self.waiting.iter().any(|waiting| waiting.request.attempt == attempt)
    }

    /// Returns the starts that need not wait any more, and what became of them.
    pub(super) fn take_ended(&mut self, boot_ms: u64) -> Vec<(StartAttempt, Probed)> {
        let _ = rustix::io::read(&*self.ended, &mut [0; 8]);
        let mut ended = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.answered.load(Ordering::Acquire) {
                ended.push((waiting.request, Probed::Answered));
            } else if waiting.until <= boot_ms {
                ended.push((waiting.request, Probed::Silent));
            } else {
                self.waiting.push(waiting);
            }
        }
        ended
    }

    /// Takes the start of an attempt out of the list.
    pub(super) fn cancel(&mut self, attempt: &str) -> Option<StartAttempt> {
        let at = self.waiting.iter().position(|waiting| waiting.request.attempt == attempt)?;
        Some(self.waiting.remove(at).request)
    }

    /// What to poll for the end of a thread.
    pub(super) fn poll(&self) -> PollFd<'_> {
        PollFd::new(&*self.ended, PollFlags::IN)
    }

    /// When [`Self::take_ended`] must be called next, on the boot clock; `None` if nothing waits.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }
}

/// The paths that a job chooses and a start looks at: working directories and programs. Those in the directories of the
/// system's own `PATH` are not among them.
fn foreign_paths(request: &StartAttempt) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for (rank, task) in request.tasks.iter().enumerate() {
        let Some(group) = request.group_of(rank) else { continue };
        let workdir = group.workdir.as_deref().map(Path::new);
        let Some(program) = group.command.first() else { continue };
        let variables = group.env.iter().chain(&request.env).chain(&task.env);
        let path = variables.rev().find(|(name, _)| name == "PATH").map(|(_, value)| value);
        let places: Vec<PathBuf> = match (program.contains('/'), path) {
            (true, _) => vec![PathBuf::from(program)],
            (false, Some(path)) => std::env::split_paths(path).map(|place| place.join(program)).collect(),
            (false, None) => Vec::new(),
        };
        let below = |place: PathBuf| workdir.map_or_else(|| place.clone(), |workdir| workdir.join(&place));
        paths.extend(workdir.map(Path::to_owned).into_iter().chain(places.into_iter().map(below)));
    }
    paths.sort();
    paths.dedup();
    // A relative path below a task's own empty directory leads nowhere foreign.
    paths.retain(|path| path.is_absolute());
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::host::protocol::{GroupStart, TaskStart};

    fn request(command: &str, workdir: Option<&str>, env: &[(&str, &str)]) -> StartAttempt {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let group = GroupStart {
            command: vec![command.to_owned()],
            env,
            workdir: workdir.map(str::to_owned),
            memory_max_bytes: 0,
            cpu_max_millis: 0,
        };
        StartAttempt {
            attempt: "a".to_owned(),
            revision: 1,
            high_water: String::new(),
            start_by_unix_ms: 0,
            start_by_boot_ms: None,
            leased: false,
            lease_ms: 0,
            env: Vec::new(),
            groups: vec![group],
            tasks: vec![TaskStart { group: 0, env: Vec::new() }],
            max_run_ms: 0,
            grace_ms: 0,
            log_max_bytes: 0,
            processes_max: 0,
            isolation: None,
        }
    }

    #[test]
    fn what_a_job_chooses_is_looked_for_and_the_systems_programs_are_not() {
        let paths = |command, workdir, env: &[(&str, &str)]| -> Vec<String> {
            let paths = foreign_paths(&request(command, workdir, env));
            paths.iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(paths("sh", None, &[]), [""; 0]);
        assert_eq!(paths("sh", Some("/mnt/w"), &[]), ["/mnt/w"]);
        assert_eq!(paths("./run", Some("/mnt/w"), &[]), ["/mnt/w", "/mnt/w/./run"]);
        assert_eq!(paths("/opt/run", None, &[]), ["/opt/run"]);
        assert_eq!(paths("./run", None, &[]), [""; 0]);
        assert_eq!(paths("run", None, &[("PATH", "/mnt/bin:bin")]), ["/mnt/bin/run"]);
    }
}
