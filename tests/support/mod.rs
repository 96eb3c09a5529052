//! Real processes for end-to-end tests, on free ports and in temporary folders, ended by pid.

#![allow(dead_code)]

pub mod disk;

pub mod kubernetes;

pub mod proxy;

pub mod supervisor;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub const WEIR: &str = env!("CARGO_BIN_EXE_weir");

/// A process that is killed when it is dropped.
pub struct Process(pub Child);

impl Process {
    /// Kills the process with SIGKILL, as a power failure would.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A folder with all files of one test's Weir.
pub struct Home {
    pub folder: tempfile::TempDir,
    /// The broker's address, after its first start. Restarts listen on it again.
    pub address: String,
    /// Further environment variables of its commands.
    pub env: Vec<(&'static str, PathBuf)>,
    /// Resource limits of its commands, in the syntax of the shell's `ulimit`; empty for none.
    pub limits: &'static str,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// Creates an empty folder.
    pub fn new() -> Self {
        // A short path, because a socket's path has at most 108 bytes.
        let folder = tempfile::Builder::new().prefix("weir").tempdir_in("/tmp").expect("a temp folder");
        Self { folder, address: "127.0.0.1:0".to_owned(), env: Vec::new(), limits: "" }
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The broker's data directory.
    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// A `weir` command that uses no files outside the folder.
    pub fn weir(&self, arguments: &[&str]) -> Command {
        let mut command = weir_in(self.path());
        if !self.limits.is_empty() {
            command = Command::new("sh");
            command.args(["-c", &format!("ulimit {} && exec \"$0\" \"$@\"", self.limits), WEIR]);
            isolate(&mut command, self.path());
        }
        command.args(arguments).env("WEIR_SERVER", &self.address).envs(self.env.iter().cloned());
        command
    }

    /// Starts a long-running command. Its output is appended to the log in the folder.
    pub fn start(&self, arguments: &[&str]) -> Process {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path().join("log"))
            .expect("a log file");
        let error = log.try_clone().expect("a second handle");
        Process(self.weir(arguments).stdout(log).stderr(error).spawn().expect("weir starts"))
    }

    /// Starts a broker and waits until it listens.
    pub fn start_broker(&mut self, command: &str) -> Process {
        self.start_broker_with(command, &[])
    }

    /// Starts a broker with more arguments and waits until it listens.
    pub fn start_broker_with(&mut self, command: &str, more: &[&str]) -> Process {
        let endpoint = self.data().join("endpoint");
        let _ = std::fs::remove_file(&endpoint);
        let data = self.data();
        let arguments = [command, "--data", data.to_str().expect("a plain path"), "--listen", &self.address];
        let process = self.start(&[&arguments[..], more].concat());
        until("the broker listens", Duration::from_secs(60), || std::fs::read_to_string(&endpoint).is_ok());
        self.address = std::fs::read_to_string(&endpoint).expect("the endpoint");
        process
    }

    /// Starts the agent of a host pool with this many CPUs.
    pub fn start_agent(&self, cpus: u32) -> Process {
        self.start_agent_with(cpus, "")
    }

    /// Starts the agent of a host pool with more lines in the `[host]` section of its file. Tasks run as the test's user,
    /// unless the lines name another.
    pub fn start_agent_with(&self, cpus: u32, more: &str) -> Process {
        let run_as = if more.contains("run_as") || more.contains("isolation") { "" } else { run_as() };
        let file = self.path().join("local.toml");
        let state = self.path().join("local");
        let token = self.data().join("token");
        let text = format!(
            "name = \"local\"\nregion = \"CN-CQ\"\nserver = \"{}\"\ntoken_file = {token:?}\nstate = {state:?}\n[host]\ncpus = {cpus}\nmemory_mib = 65536\n{run_as}{more}",
            self.address
        );
        std::fs::write(&file, text).expect("the agent's file");
        self.start(&["agent", file.to_str().expect("a plain path")])
    }

    /// Runs a command until it exits. Returns exit code, standard output, standard error.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.weir(arguments).output().expect("weir runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// The log of all started commands.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }
}

/// The line of a `[host]` section by which tasks run as the user of this process.
pub fn run_as() -> &'static str {
    if rustix::process::geteuid().is_root() { "run_as = \"root\"\n" } else { "" }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Supervisors outlive their agents by design, but must not outlive the test.
        let Ok(folders) = find_supervisors(self.path()) else { return };
        for folder in folders {
            stop_supervisor(&folder);
        }
    }
}

fn find_supervisors(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let folders = std::fs::read_dir(path)?.flatten().map(|entry| entry.path());
    for folder in folders.chain([path.join("data/pools/local")]) {
        let supervisor = folder.join("supervisor");
        if supervisor.join("supervisor.sock").exists() {
            found.push(supervisor);
        }
    }
    Ok(found)
}

/// Shuts down a supervisor through its protocol. It refuses while it runs attempts, such as one that was just stopped.
fn stop_supervisor(folder: &Path) {
    use std::io::Write;
    for _ in 0..40 {
        let Ok(mut stream) = std::os::unix::net::UnixStream::connect(folder.join("supervisor.sock")) else {
            return;
        };
        let _ = stream.write_all(b"\"shutdown\"\n");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The supervisor of the host pool with this state folder.
pub fn supervisor_of(state: &Path) -> Option<rustix::process::Pid> {
    let state = state.display().to_string();
    processes().find(|pid| {
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("\0supervise\0") && line.contains(&state)
    })
}

/// Running processes that have `NAME=value` in their environment.
pub fn processes_with(variable: &str) -> Vec<rustix::process::Pid> {
    let carries = |pid: &rustix::process::Pid| {
        let text = std::fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).unwrap_or_default();
        text.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    processes().filter(carries).collect()
}

fn processes() -> impl Iterator<Item = rustix::process::Pid> {
    let entries = std::fs::read_dir("/proc").expect("processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(rustix::process::Pid::from_raw)
}

/// A `weir` command with all its files in `folder` and no broker configured.
pub fn weir_in(folder: &Path) -> Command {
    let mut command = Command::new(WEIR);
    isolate(&mut command, folder);
    command
}

/// Removes from a command's environment all paths and settings outside the folder.
fn isolate(command: &mut Command, folder: &Path) {
    command
        .env("XDG_CONFIG_HOME", folder.join("config"))
        .env("XDG_STATE_HOME", folder.join("state"))
        .env_remove("WEIR_SERVER")
        .env_remove("WEIR_TOKEN")
        .stdin(Stdio::null());
}

/// Polls every 20 ms until a condition holds.
///
/// # Panics
/// If it does not hold within `timeout`.
pub fn until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Sends a request of HTTP/1.1 and returns the response's code and body.
pub fn http_get(address: &str, path: &str, headers: &str) -> (u16, String) {
    let (code, body) = http(address, "GET", path, headers, &[]);
    (code, String::from_utf8(body).expect("text"))
}

/// Sends a request of HTTP/1.1, with a body whose length the headers don't name. Returns the response's code and body.
pub fn http(address: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let (head, body) = exchange(address, method, path, headers, body);
    let code = head.split(' ').nth(1).expect("a code").parse().expect("a number");
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (code, if chunked { joined(&body) } else { body })
}

/// Sends a request without a body. Returns the response's status line and headers.
pub fn http_head(address: &str, method: &str, path: &str, headers: &str) -> String {
    exchange(address, method, path, headers, &[]).0
}

fn exchange(address: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    // A server may answer, and close the connection, before it has read all of a body that is too long.
    let is_closed = |error: &std::io::Error| {
        matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset)
    };
    let sent = stream.write_all(&[head.as_bytes(), body].concat());
    assert!(sent.as_ref().err().is_none_or(is_closed), "{sent:?}");
    let mut response = Vec::new();
    let read = stream.read_to_end(&mut response);
    assert!(read.as_ref().err().is_none_or(is_closed), "{read:?}");
    let end = response.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&response[..end]).into_owned();
    (head, response.split_off(end + 4))
}

/// The content of a body that came in chunks.
fn joined(mut chunks: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(end) = chunks.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&chunks[..end]).expect("a size");
        let size = usize::from_str_radix(size.trim(), 16).expect("a size");
        content.extend_from_slice(&chunks[end + 2..end + 2 + size]);
        chunks = &chunks[end + 2 + size + 2..];
        if size == 0 {
            break;
        }
    }
    content
}
