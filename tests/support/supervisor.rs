//! A real supervisor process, spoken to as its agent would.

#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::WEIR;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A control group that can't be: the supervisor does without.
pub const NO_GROUPS: &str = "/cgroup.procs/none";

/// The control group that root may use on every machine: others do without.
pub const ROOT_GROUP: &str = "/";

/// How many supervisors were started.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A supervisor, its folder and a connection to it.
pub struct Supervisor {
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    child: Child,
    lines: BufReader<UnixStream>,
    /// What it does not enforce.
    pub notes: Vec<String>,
    /// Every attempt as it was last told.
    told: Vec<Value>,
    number: u32,
}

impl Supervisor {
    /// Starts one in a folder of its own, with such arguments.
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("weir").tempdir_in("/tmp").expect("a temp folder");
        Self::start_in(folder, arguments)
    }

    /// Starts one in this folder.
    pub fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let child = spawn(&folder.path().join("supervisor"), &arguments);
        Self::greeted(folder, &arguments, child)
    }

    fn greeted(folder: tempfile::TempDir, arguments: &[String], child: Child) -> Self {
        let arguments = arguments.to_vec();
        let lines = connect(&folder.path().join("supervisor"));
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let (notes, told) = (Vec::new(), Vec::new());
        let mut supervisor = Self { folder, arguments, child, lines, notes, told, number };
        supervisor.greet();
        supervisor
    }

    /// Starts one as the only process of a control group, without being told of it.
    pub fn start_within(group: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("weir").tempdir_in("/tmp").expect("a temp folder");
        let state = folder.path().join("supervisor");
        let enter = "echo 0 > \"$0\"/cgroup.procs && exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", enter]).arg(group).args([WEIR, "supervise", "--state"]).arg(&state);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file(&state));
        let child = command.spawn().expect("a supervisor");
        Self::greeted(folder, &[], child)
    }

    /// Its folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("supervisor")
    }

    /// The name of an attempt that no other test has: supervisors look for theirs everywhere.
    pub fn attempt(&self) -> String {
        format!("aaaaaaaaab-{}-{}-1", std::process::id(), self.number)
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// The pool's control group, as it noted it.
    pub fn group(&self) -> PathBuf {
        let base = std::fs::read_to_string(self.state().join("cgroup")).expect("the base is noted");
        PathBuf::from(base)
    }

    /// Where tests may put their own files.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Kills it as the kernel would, and starts another in its place.
    pub fn replace(&mut self) {
        self.replace_after(|_| {});
    }

    /// The same, with something done to its folder in between.
    pub fn replace_after(&mut self, change: impl FnOnce(&Path)) {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it is waited for");
        change(&self.state());
        self.child = spawn(&self.state(), &self.arguments);
        self.lines = connect(&self.state());
        self.told.clear();
        self.greet();
    }

    fn greet(&mut self) {
        self.send(&json!("list"));
        loop {
            let line = self.line();
            if let Some(notes) = line.get("notes") {
                let notes = notes["notes"].as_array().expect("notes").iter();
                self.notes = notes.map(|note| note.as_str().expect("a text").to_owned()).collect();
            }
            if let Some(attempts) = line.get("attempts") {
                self.told = attempts["attempts"].as_array().expect("attempts").clone();
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
            panic!("the supervisor does not speak: {read:?}; it ended: {status:?}; {}", self.log());
        }
        serde_json::from_str(&line).expect("JSON")
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Asks it to start an attempt.
    pub fn launch(&mut self, attempt: &str, tasks: &[Task]) {
        self.start_attempt_with(attempt, tasks, json!({}));
    }

    /// Asks it to start an attempt, with such fields instead of the usual.
    pub fn start_attempt_with(&mut self, attempt: &str, tasks: &[Task], fields: Value) {
        let mut launch = json!({
            "attempt": attempt, "revision": 1, "start_by_unix_ms": 4_000_000_000_000_u64, "leased": false,
            "env": [["WEIR_ATTEMPT_ID", attempt]],
            "groups": tasks.iter().map(Task::group).collect::<Vec<_>>(),
            "tasks": (0..tasks.len()).map(|rank| {
                json!({"group": rank, "env": [["WEIR_GANG_RANK", rank.to_string()]]})
            }).collect::<Vec<_>>(),
            "max_run_ms": 0, "grace_ms": 2_000, "log_max_bytes": 1 << 20,
        });
        for (name, value) in fields.as_object().expect("fields") {
            launch[name] = value.clone();
        }
        self.send(&json!({ "launch": launch }));
    }

    /// Asks it to end an attempt.
    pub fn stop(&mut self, attempt: &str, grace_ms: u64) {
        self.send(&json!({ "stop": { "attempt": attempt, "grace_ms": grace_ms } }));
    }

    /// The attempts that it told of since it was started.
    pub fn known(&self) -> Vec<String> {
        self.told.iter().filter_map(|told| Some(told["attempt"].as_str()?.to_owned())).collect()
    }

    /// Waits until an attempt runs or has ended.
    pub fn running(&mut self, attempt: &str) -> Value {
        self.told(attempt, |_| true)
    }

    /// Waits for how an attempt ended.
    pub fn ended(&mut self, attempt: &str) -> Ended {
        let status = self.told(attempt, |status| status.get("ended").is_some())["ended"].clone();
        Ended {
            kind: status["kind"].as_str().expect("a kind").to_owned(),
            exit_code: status["exit_code"].as_i64(),
            signal: status["signal"].as_i64(),
            message: status["message"].as_str().expect("a message").to_owned(),
        }
    }

    fn told(&mut self, attempt: &str, is: impl Fn(&Value) -> bool) -> Value {
        loop {
            let told = self.told.iter().rfind(|told| told["attempt"] == attempt && is(&told["status"]));
            if let Some(told) = told {
                return told["status"].clone();
            }
            let line = self.line();
            self.told.extend(line.get("moved").cloned());
        }
    }

    /// Waits for a file that a task writes, and returns its text.
    pub fn file(&self, name: &str) -> String {
        let path = self.scratch().join(name);
        let mut text = String::new();
        super::until(&format!("a task writes {name}"), PATIENCE, || {
            text = std::fs::read_to_string(&path).unwrap_or_default();
            text.ends_with('\n')
        });
        text.trim().to_owned()
    }

    /// A script that writes its shell's pid to a file of the scratch folder.
    pub fn note_pid(&self, name: &str) -> String {
        format!("echo $$ > {}", self.scratch().join(name).display())
    }

    /// The process that a task noted.
    pub fn pid(&self, name: &str) -> i32 {
        self.file(name).parse().expect("a pid")
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // It may be gone, where a test failed: what failed must be seen.
        for name in self.known() {
            let stop = json!({ "stop": { "attempt": name, "grace_ms": 0 } });
            let _ = self.lines.get_mut().write_all(format!("{stop}\n").as_bytes());
        }
        // It leaves when nothing runs any more. A test that failed half-way must not wait for ever.
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

/// One task to launch.
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
    super::until("the supervisor listens", PATIENCE, || {
        stream = UnixStream::connect(state.join("supervisor.sock")).ok();
        stream.is_some()
    });
    let stream = stream.expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    BufReader::new(stream)
}

/// The process is there and has not ended.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // What has ended and waits for its parent, which may be slow, is dead.
    let state = stat.rfind(')').and_then(|at| stat[at + 1..].trim_start().chars().next());
    state.is_some_and(|state| !['Z', 'X'].contains(&state))
}
