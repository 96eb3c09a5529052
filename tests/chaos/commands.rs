//! `weir run` during faults: its output and exit code must be those of the command, as if the command had run
//! locally.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rand::RngExt;

use crate::schedule::{POOLS, Seed};
use crate::support::{Process, until, weir_in};
use crate::testbed::Testbed;
use crate::work::{HISTORY, LABEL};

/// Pool in which the commands run: its supervisor is never killed, so exit codes are never lost.
pub const STEADY_POOL: usize = POOLS - 1;
/// Prefix of the tokens of their jobs.
pub const TOKEN_PREFIX: &str = "run-";
/// No command is started in this time before the end of the last fault.
const END_MARGIN_MS: u64 = 15_000;
/// Mean time between two commands.
const EVERY_MS: u64 = 3_000;
/// Time limit after the last fault: a client may need 30 s to detect a dead connection.
const END_TIMEOUT: Duration = Duration::from_secs(90);

/// A command: when it starts, how many lines it prints, and its exit code.
#[derive(Clone, Debug)]
pub struct CommandPlan {
    pub start_at: Duration,
    token: String,
    lines: u32,
    code: i32,
}

/// Generates the commands of a run, in the order of their start.
pub fn generate(seed: Seed) -> Vec<CommandPlan> {
    let mut rng = seed.rng("commands");
    let (mut plans, mut at_ms) = (Vec::new(), rng.random_range(0..3_000));
    while at_ms + END_MARGIN_MS < seed.seconds * 1_000 {
        plans.push(CommandPlan {
            start_at: Duration::from_millis(at_ms),
            token: format!("{TOKEN_PREFIX}{}", plans.len()),
            lines: rng.random_range(1..24),
            code: if rng.random_bool(0.5) { 0 } else { rng.random_range(1..100) },
        });
        at_ms += rng.random_range(0..2 * EVERY_MS);
    }
    plans
}

/// A command that was started.
pub struct Running {
    plan: CommandPlan,
    process: Process,
    output: PathBuf,
    errors: PathBuf,
}

/// Starts `weir run` with a command.
pub fn start(testbed: &Testbed, plan: CommandPlan) -> Running {
    let script = format!(
        "i=0; while [ $i -lt {} ]; do echo line $i; i=$((i + 1)); sleep 0.25; done; exit {}",
        plan.lines, plan.code
    );
    let access = testbed.access();
    let file = |end: &str| testbed.home.path().join(format!("{}.{end}", plan.token));
    let (output, errors) = (file("out"), file("err"));
    let mut command = weir_in(testbed.home.path());
    command
        .env("WEIR_SERVER", &access.address)
        .env("WEIR_TOKEN", &access.token)
        .args(["run", "--cpus", "0.5", "--pool", &format!("pool-{STEADY_POOL}")])
        .args(["--label", &format!("{LABEL}={}", plan.token)])
        .args(["--env", &format!("{HISTORY}={}", testbed.history().display())])
        .args(["--", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(File::create(&output).expect("a file"))
        .stderr(File::create(&errors).expect("a file"));
    let process = Process(command.spawn().expect("weir starts"));
    Running { plan, process, output, errors }
}

/// Waits until all commands have ended. Returns the violations.
pub fn check(commands: &mut [Running]) -> Vec<String> {
    commands.iter_mut().filter_map(|command| command.check().err()).collect()
}

impl Running {
    fn check(&mut self) -> Result<(), String> {
        let mut code = None;
        until(&format!("{:?} ends", self.plan), END_TIMEOUT, || {
            code = self.process.0.try_wait().expect("a state").and_then(|status| status.code());
            code.is_some()
        });
        let read = |path| std::fs::read_to_string(path).expect("a file");
        let (printed, reported) = (read(&self.output), read(&self.errors));
        let expected: String = (0..self.plan.lines).map(|line| format!("line {line}\n")).collect();
        // `weir run` may give up if the broker is unavailable or can't write, with a correct part of the
        // output.
        let unavailable = ["can't be reached", "can't write now"].iter().any(|why| reported.contains(why));
        let gave_up = code == Some(125) && unavailable && expected.starts_with(&printed);
        if gave_up || (code == Some(self.plan.code) && printed == expected) {
            return Ok(());
        }
        Err(format!("{:?} ended with {code:?}, printed {printed:?} and reported {reported:?}", self.plan))
    }
}
