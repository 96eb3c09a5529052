//! `weir run` among faults: what it prints and how it exits is what the command did, as if it had run
//! here.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rand::RngExt;

use crate::schedule::{POOLS, Seed};
use crate::support::{Process, until, weir_in};
use crate::work::{HISTORY, LABEL};
use crate::world::World;

/// Where commands run: this pool's supervisor is never killed, so an exit code is always known.
pub const STEADY_POOL: usize = POOLS - 1;
/// What the tokens of their jobs begin with.
pub const TOKEN_PREFIX: &str = "run-";
/// None is started so shortly before the last fault is over.
const TAIL_MS: u64 = 15_000;
/// Of a world that lasts the shortest; longer ones have more.
const EVERY_MS: u64 = 3_000;
/// After everything has healed: a client may need half a minute to see that its connection is dead.
const ENDED_IN: Duration = Duration::from_secs(90);

/// A command and what it does.
#[derive(Clone, Debug)]
pub struct Piece {
    pub start_at: Duration,
    token: String,
    lines: u32,
    code: i32,
}

/// Draws a world's commands, in the order in which they are started.
pub fn draw(seed: Seed) -> Vec<Piece> {
    let mut rng = seed.rng("commands");
    let (mut pieces, mut at_ms) = (Vec::new(), rng.random_range(0..3_000));
    while at_ms + TAIL_MS < seed.seconds * 1_000 {
        pieces.push(Piece {
            start_at: Duration::from_millis(at_ms),
            token: format!("{TOKEN_PREFIX}{}", pieces.len()),
            lines: rng.random_range(1..24),
            code: if rng.random_bool(0.5) { 0 } else { rng.random_range(1..100) },
        });
        at_ms += rng.random_range(0..2 * EVERY_MS);
    }
    pieces
}

/// A command that was started.
pub struct Running {
    piece: Piece,
    process: Process,
    output: PathBuf,
    errors: PathBuf,
}

/// Starts a command as a user at a terminal would.
pub fn start(world: &World, piece: Piece) -> Running {
    let script = format!(
        "i=0; while [ $i -lt {} ]; do echo line $i; i=$((i + 1)); sleep 0.25; done; exit {}",
        piece.lines, piece.code
    );
    let access = world.access();
    let file = |end: &str| world.home.path().join(format!("{}.{end}", piece.token));
    let (output, errors) = (file("out"), file("err"));
    let mut command = weir_in(world.home.path());
    command
        .env("WEIR_SERVER", &access.address)
        .env("WEIR_TOKEN", &access.token)
        .args(["run", "--cpus", "0.5", "--pool", &format!("pool-{STEADY_POOL}")])
        .args(["--label", &format!("{LABEL}={}", piece.token)])
        .args(["--env", &format!("{HISTORY}={}", world.history().display())])
        .args(["--", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(File::create(&output).expect("a file"))
        .stderr(File::create(&errors).expect("a file"));
    let process = Process(command.spawn().expect("weir starts"));
    Running { piece, process, output, errors }
}

/// Waits until all have ended; tells what is not as it must be.
pub fn check(commands: &mut [Running]) -> Vec<String> {
    commands.iter_mut().filter_map(|command| command.check().err()).collect()
}

impl Running {
    fn check(&mut self) -> Result<(), String> {
        let mut code = None;
        until(&format!("{:?} ends", self.piece), ENDED_IN, || {
            code = self.process.0.try_wait().expect("a state").and_then(|status| status.code());
            code.is_some()
        });
        let read = |path| std::fs::read_to_string(path).expect("a file");
        let (printed, said) = (read(&self.output), read(&self.errors));
        let expected: String = (0..self.piece.lines).map(|line| format!("line {line}\n")).collect();
        // Who gives up on a broker that is away, or can't write, says so, and has printed nothing wrong.
        let away = ["can't be reached", "can't write now"].iter().any(|why| said.contains(why));
        let gave_up = code == Some(125) && away && expected.starts_with(&printed);
        if gave_up || (code == Some(self.piece.code) && printed == expected) {
            return Ok(());
        }
        Err(format!("{:?} ended with {code:?}, printed {printed:?} and said {said:?}", self.piece))
    }
}
