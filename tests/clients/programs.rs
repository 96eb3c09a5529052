//! Programs that are not the product's: where they are, and how they are run to their end.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::support::{Home, Process, disk};

/// Deadline of every program and of every message that is waited for. Each takes seconds at most.
pub const TIMEOUT: Duration = Duration::from_secs(180);

/// The repository's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of a part that `tests/clients/prepare` installs. Without it, reports that `test` is skipped.
pub fn part(test: &str, part: &str) -> Option<PathBuf> {
    let mut prepare = Command::new(root().join("tests/clients/prepare"));
    let output = prepare.args(["--folder", part]).output().expect("a shell");
    if output.status.success() {
        return Some(PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim()));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    disk::skip(test, &format!("{}: tests/clients/prepare installs it", errors.trim()));
    None
}

/// A program of this machine, by the first of its names that there is. Without it, reports that `test` is skipped.
pub fn program(test: &str, names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let found = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        disk::skip(test, &format!("{} is not installed", names.join(" or ")));
    }
    found
}

/// Without a proxy, which could not reach this machine's loopback addresses.
pub fn without_proxy(command: &mut Command) {
    command.env("NO_PROXY", "localhost,127.0.0.1").env("no_proxy", "localhost,127.0.0.1");
}

/// Runs a program, which must succeed in time. One that does not is ended with its children, browsers for example.
pub fn finish(home: &Home, mut command: Command) {
    let log = home.path().join("client.log");
    let output = std::fs::File::create(&log).expect("a log file");
    let errors = output.try_clone().expect("a second handle");
    without_proxy(&mut command);
    command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
    let mut child = Process(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    let status = wait(&mut child, TIMEOUT);
    let group = rustix::process::Pid::from_child(&child.0);
    if status.is_none() {
        // A browser driver ends its browser, which is in a group of its own.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
        if wait(&mut child, Duration::from_secs(10)).is_none() {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
    let printed = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    let outcome = status.map_or("not in time".to_owned(), |status| status.to_string());
    let succeeded = status.is_some_and(|status| status.success());
    assert!(succeeded, "{command:?}: {outcome}\n{printed}\nbroker:\n{}", home.log());
}

fn wait(child: &mut Process, timeout: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        if let Some(status) = child.0.try_wait().expect("a child") {
            return Some(status);
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    None
}
