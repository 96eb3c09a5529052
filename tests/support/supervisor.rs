//! A real supervisor process, with the test in the place of its agent.

#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::WEIR;

/// Deadline of every wait: generous, for a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A control group that can't exist: the supervisor uses none.
pub const NO_GROUPS: &str = "/cgroup.procs/none";

/// The control group that root may use on every machine: other users' supervisors use none.
pub const ROOT_GROUP: &str = "/";

/// The number of supervisors that were started.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A supervisor, its folder and a connection to it.
pub struct Supervisor {
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    child: Child,
    lines: BufReader<UnixStream>,
    /// The limits that it does not enforce, and why.
    pub notes: Vec<String>,
    /// Every report of an attempt, in order.
    reports: Vec<Value>,
    number: u32,
    /// What separates the tasks, as start requests have it.
    isolation: Value,
}

impl Supervisor {
    /// Starts a supervisor in a new folder, with further arguments.
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("weir").tempdir_in("/tmp").expect("a temp folder");
        Self::start_in(folder, arguments)
    }

    /// Starts a supervisor in this folder.
    pub fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let child = spawn(&folder.path().join("supervisor"), &arguments);
        Self::connected(folder, &arguments, child)
    }

    fn connected(folder: tempfile::TempDir, arguments: &[String], child: Child) -> Self {
        let arguments = arguments.to_vec();
        let lines = connect(&folder.path().join("supervisor"));
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let (notes, reports) = (Vec::new(), Vec::new());
        let mut supervisor =
            Self { folder, arguments, child, lines, notes, reports, number, isolation: Value::Null };
        supervisor.list();
        supervisor
    }

    /// Starts a supervisor as the only process of a control group, which its arguments don't name.
    pub fn start_within(group: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("weir").tempdir_in("/tmp").expect("a temp folder");
        let state = folder.path().join("supervisor");
        let enter = "echo 0 > \"$0\"/cgroup.procs && exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", enter]).arg(group).args([WEIR, "supervise", "--state"]).arg(&state);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file(&state));
        let child = command.spawn().expect("a supervisor");
        Self::connected(folder, &[], child)
    }

    /// Starts tasks in namespaces of their own from now on. Those can't see the supervisor's folder.
    pub fn isolated(self) -> Self {
        self.isolated_as(Value::Null)
    }

    /// The same, as this user, or as that of this process if it is null.
    pub fn isolated_as(mut self, user: Value) -> Self {
        self.isolation = json!({ "hidden": [self.state()], "user": user });
        self
    }

    /// Hides these paths, too.
    pub fn hide(&mut self, paths: &[&Path]) {
        let hidden = self.isolation["hidden"].as_array_mut().expect("it is isolated");
        hidden.extend(paths.iter().map(|path| json!(path)));
    }

    /// The supervisor's folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("supervisor")
    }

    /// A name of an attempt that no other test uses: supervisors search all processes for their attempts.
    pub fn attempt(&self) -> String {
        format!("aaaaaaaaab-{}-{}-1", std::process::id(), self.number)
    }

    /// The pid of the supervisor.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// The pool's control group, as the supervisor wrote it to its folder.
    pub fn group(&self) -> PathBuf {
        let base = std::fs::read_to_string(self.state().join("cgroup")).expect("the group is written");
        PathBuf::from(base)
    }

    /// A folder for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Kills the supervisor by SIGKILL, and starts another one in its folder.
    pub fn replace(&mut self) {
        self.replace_after(|_| {});
    }

    /// The same, with a change of the folder in between.
    pub fn replace_after(&mut self, change: impl FnOnce(&Path)) {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it is waited for");
        change(&self.state());
        self.child = spawn(&self.state(), &self.arguments);
        self.lines = connect(&self.state());
        self.reports.clear();
        self.list();
    }

    /// Reads the notes and the list of attempts, with which a connection begins.
    fn list(&mut self) {
        self.send(&json!("list"));
        loop {
            let line = self.line();
            if let Some(notes) = line.get("notes") {
                let notes = notes["notes"].as_array().expect("notes").iter();
                self.notes = notes.map(|note| note.as_str().expect("a text").to_owned()).collect();
            }
            if let Some(attempts) = line.get("attempts") {
                self.reports = attempts["attempts"].as_array().expect("attempts").clone();
                return;
            }
        }
    }

    /// Sends a request.
    pub fn send(&mut self, request: &Value) {
        let line = format!("{request}\n");
        self.lines.get_mut().write_all(line.as_bytes()).expect("the supervisor reads");
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        if !matches!(read, Ok(1..)) {
            let status = self.child.try_wait();
            panic!("the supervisor sends nothing: {read:?}; its exit status: {status:?}; {}", self.log());
        }
        serde_json::from_str(&line).expect("JSON")
    }

    /// What the supervisor wrote to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Requests the start of an attempt.
    pub fn start_attempt(&mut self, attempt: &str, tasks: &[Task]) {
        self.start_attempt_with(attempt, tasks, json!({}));
    }

    /// Requests the start of an attempt, with `fields` in place of the default ones.
    pub fn start_attempt_with(&mut self, attempt: &str, tasks: &[Task], fields: Value) {
        let mut request = json!({
            "attempt": attempt, "revision": 1, "start_by_unix_ms": 4_000_000_000_000_u64, "leased": false,
            "env": [["WEIR_ATTEMPT_ID", attempt]],
            "groups": tasks.iter().map(Task::group).collect::<Vec<_>>(),
            "tasks": (0..tasks.len()).map(|rank| {
                json!({"group": rank, "env": [["WEIR_GANG_RANK", rank.to_string()]]})
            }).collect::<Vec<_>>(),
            "max_run_ms": 0, "grace_ms": 2_000, "log_max_bytes": 1 << 20, "isolation": self.isolation,
        });
        for (name, value) in fields.as_object().expect("fields") {
            request[name] = value.clone();
        }
        self.send(&json!({ "start_attempt": request }));
    }

    /// Requests the stop of an attempt.
    pub fn stop(&mut self, attempt: &str, grace_ms: u64) {
        self.send(&json!({ "stop": { "attempt": attempt, "grace_ms": grace_ms } }));
    }

    /// The attempts that the supervisor reported since it was started: one entry per report.
    pub fn reported(&self) -> Vec<String> {
        self.reports.iter().filter_map(|report| Some(report["attempt"].as_str()?.to_owned())).collect()
    }

    /// Waits until an attempt runs or has ended.
    pub fn running(&mut self, attempt: &str) -> Value {
        self.wait_for_status(attempt, |_| true)
    }

    /// Waits until an attempt has ended, and returns how.
    pub fn ended(&mut self, attempt: &str) -> Ended {
        let status = self.wait_for_status(attempt, |status| status.get("ended").is_some())["ended"].clone();
        Ended {
            kind: status["kind"].as_str().expect("a kind").to_owned(),
            exit_code: status["exit_code"].as_i64(),
            signal: status["signal"].as_i64(),
            message: status["message"].as_str().expect("a message").to_owned(),
        }
    }

    /// Waits until an attempt has a status for which `is` holds, and returns the last such status.
    fn wait_for_status(&mut self, attempt: &str, is: impl Fn(&Value) -> bool) -> Value {
        loop {
            let reports = &self.reports;
            let report = reports.iter().rfind(|report| report["attempt"] == attempt && is(&report["status"]));
            if let Some(report) = report {
                return report["status"].clone();
            }
            let line = self.line();
            self.reports.extend(line.get("status_changed").cloned());
        }
    }

    /// Waits for a file that a task writes, and returns its text.
    pub fn file(&self, name: &str) -> String {
        let path = self.scratch().join(name);
        let mut text = String::new();
        super::until(&format!("a task writes {name}"), TIMEOUT, || {
            text = std::fs::read_to_string(&path).unwrap_or_default();
            text.ends_with('\n')
        });
        text.trim().to_owned()
    }

    /// A script that writes its shell's pid, and the namespace that the pid is of, to a file in the scratch folder.
    pub fn note_pid(&self, name: &str) -> String {
        format!("echo $$ $(readlink /proc/self/ns/pid) > {}", self.scratch().join(name).display())
    }

    /// Waits for the pid that a task wrote by [`Self::note_pid`], and returns it as this process sees it. If that process
    /// is gone, a number that no process has.
    pub fn pid(&self, name: &str) -> i32 {
        let noted = self.file(name);
        let (pid, namespace) = noted.split_once(' ').expect("a pid and a namespace");
        let processes = std::fs::read_dir("/proc").expect("processes").flatten();
        let found = processes.filter_map(|process| {
            let namespace_of = std::fs::read_link(process.path().join("ns/pid")).ok()?;
            let status = std::fs::read_to_string(process.path().join("status")).ok()?;
            let inner =
                status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?;
            let is_it = namespace_of.as_os_str() == namespace && inner == pid;
            is_it.then(|| process.file_name().to_str()?.parse().ok()).flatten()
        });
        found.last().unwrap_or(i32::MAX)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // In a test that failed the supervisor may be gone: errors here must not hide the failure.
        for name in self.reported() {
            let stop = json!({ "stop": { "attempt": name, "grace_ms": 0 } });
            let _ = self.lines.get_mut().write_all(format!("{stop}\n").as_bytes());
        }
        // The supervisor obeys only when nothing runs. After a failed test this may never be: the wait is
        // bounded.
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            let line = format!("{}\n", json!("shutdown"));
            let _ = self.lines.get_mut().write_all(line.as_bytes());
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub kind: String,
    pub exit_code: Option<i64>,
    pub signal: Option<i64>,
    pub message: String,
}

/// One task of an attempt.
pub struct Task {
    pub command: Vec<String>,
    pub cpu_max_millis: u64,
    pub memory_max_bytes: u64,
}

impl Task {
    /// A shell script.
    pub fn script(script: &str) -> Self {
        Self::command(&["sh", "-c", script])
    }

    /// A command.
    pub fn command(command: &[&str]) -> Self {
        let command = command.iter().map(|part| (*part).to_owned()).collect();
        Self { command, cpu_max_millis: 0, memory_max_bytes: 0 }
    }

    fn group(&self) -> Value {
        json!({
            "command": self.command, "env": [], "workdir": null,
            "memory_max_bytes": self.memory_max_bytes, "cpu_max_millis": self.cpu_max_millis,
        })
    }
}

fn spawn(state: &Path, arguments: &[String]) -> Child {
    let mut command = Command::new(WEIR);
    command.arg("supervise").arg("--state").arg(state).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file(state));
    command.spawn().expect("a supervisor")
}

fn log_file(state: &Path) -> std::fs::File {
    let log = state.with_file_name("log");
    std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log file")
}

fn connect(state: &Path) -> BufReader<UnixStream> {
    let mut stream = None;
    super::until("the supervisor listens", TIMEOUT, || {
        stream = UnixStream::connect(state.join("supervisor.sock")).ok();
        stream.is_some()
    });
    let stream = stream.expect("a connection");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    BufReader::new(stream)
}

/// Returns whether a process exists and has not ended.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie, whose parent has not waited for it yet, counts as dead.
    let state = stat.rfind(')').and_then(|at| stat[at + 1..].trim_start().chars().next());
    state.is_some_and(|state| !['Z', 'X'].contains(&state))
}

/// Returns whether tasks can have namespaces here, by another program's word. Where they can't, says so: nothing that could
/// be installed helps.
pub fn namespaces_work() -> bool {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--user");
    }
    let status = command.args(["--mount", "--pid", "--ipc", "--fork", "--mount-proc", "true"]).status();
    let works = status.is_ok_and(|status| status.success());
    if !works {
        super::disk::report_skipped("tasks in namespaces", "this machine allows none");
    }
    works
}
