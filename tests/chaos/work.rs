//! What clients ask for: jobs of every kind, drawn from the seed, and what each must come to.

use std::path::Path;

use rand::RngExt;
use rand::rngs::StdRng;
use weir::api::proto::v1;

use crate::commands::STEADY_POOL;
use crate::schedule::Seed;

/// Names the file that tasks write their history to.
pub const HISTORY: &str = "CHAOS_HISTORY";
/// The label that carries a job's token.
pub const LABEL: &str = "chaos";

/// No job is submitted so shortly before the last fault is over, and none that runs long so shortly
/// before: whoever waits for the end of the world need not wait for them.
const TAIL_MS: u64 = 5_000;
const LONG_TAIL_MS: u64 = 18_000;

/// Until then jobs come in a rush, and most run long: the first faults hit pools that are full.
const RUSH_MS: u64 = 1_500;

/// What a task does: it says that it starts, that it lives, four times a second, and that it ends. One line
/// is one write to a file that is only appended to, so the file's order is that of the events.
///
/// Arguments: quarters of a second, the exit code, how many attempts end with that code before one
/// ends well, and whether it ignores the polite signal.
const SCRIPT: &str = r#"
say() {
    read -r up _ </proc/uptime
    echo "$1 $WEIR_ATTEMPT_ID ${WEIR_GANG_RANK:-0} $up $2" >>"$CHAOS_HISTORY"
}
[ "$4" = stubborn ] && trap '' TERM
say START
left=$1
while [ "$left" -gt 0 ]; do
    sleep 0.25
    say ALIVE
    left=$((left - 1))
done
code=0
[ "${WEIR_ATTEMPT_ID##*-}" -le "$3" ] && code=$2
say END "$code"
exit "$code"
"#;

/// What a job must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expected {
    Succeeds,
    Fails,
    /// Whatever the cancel finds: see `history`.
    IsCancelled,
}

/// A job and what is done with it.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Its token, and its label.
    pub token: String,
    pub spec: v1::JobSpec,
    pub expected: Expected,
    /// From the start of the world.
    pub submit_at_ms: u64,
    /// After it was acknowledged.
    pub cancel_after_ms: Option<u64>,
    /// The same request comes again so long after it was acknowledged.
    pub repeat_after_ms: Option<u64>,
    /// Exit code of attempts that fail.
    pub code: i32,
}

impl Piece {
    /// A lost attempt has a lease.
    pub fn requeues(&self) -> bool {
        self.spec.on_pool_lost() == v1::OnPoolLost::Requeue
    }

    /// The request, the same each time.
    pub fn request(&self) -> v1::SubmitRequest {
        // No name: a second job of the same token would not be noticed by its name alone.
        let spec = Some(self.spec.clone());
        let job = v1::Submission { name_prefix: "chaos".to_owned(), spec, ..Default::default() };
        v1::SubmitRequest { token: self.token.clone(), jobs: vec![job] }
    }
}

/// Draws a world's jobs, in the order in which they are submitted.
pub fn draw(seed: Seed, history: &Path) -> Vec<Piece> {
    let mut rng = seed.rng("work");
    let (mut pieces, mut at_ms) = (Vec::new(), 200);
    let end_ms = seed.seconds * 1_000;
    while at_ms + TAIL_MS < end_ms {
        let token = format!("{seed}-{}", pieces.len());
        let times = (at_ms, at_ms < RUSH_MS, at_ms + LONG_TAIL_MS < end_ms);
        pieces.push(draw_one(&mut rng, token, times, history));
        at_ms += match at_ms {
            ..RUSH_MS => 80,
            _ if rng.random_bool(0.3) => 50,
            _ => rng.random_range(200..1_500),
        };
    }
    pieces
}

/// Draws a job that is submitted at this time; in the rush it runs long, and it may if that ends in time.
fn draw_one(
    rng: &mut StdRng,
    token: String,
    (submit_at_ms, rush, long): (u64, bool, bool),
    history: &Path,
) -> Piece {
    let (mut quarters, mut failures, mut stubborn) = (rng.random_range(0..10), 0, false);
    let (mut count, mut gang) = (1, false);
    let code = rng.random_range(1..100);
    let mut requeues = rng.random_bool(0.5);
    let (mut expected, mut cancel_after_ms) = (Expected::Succeeds, None);
    let kind = if rush && rng.random_bool(0.7) { 3..5 } else { 0..11 };
    match rng.random_range(kind) {
        0..3 => {}
        // Long enough to lose their pool.
        3 if long => (quarters, requeues) = (rng.random_range(20..40), true),
        4 if long => (quarters, requeues, stubborn) = (rng.random_range(20..40), true, true),
        3 | 4 => {}
        5 => count = rng.random_range(2..6),
        6 => (count, gang) = (rng.random_range(2..4), true),
        7 => failures = rng.random_range(1..3),
        8 => (failures, expected) = (1_000, Expected::Fails),
        _ => {
            cancel_after_ms = Some(rng.random_range(0..4_000));
            expected = Expected::IsCancelled;
            quarters = rng.random_range(0..40);
        }
    }
    let may_overlap = requeues && rng.random_bool(0.15);
    let how = if stubborn { "stubborn" } else { "polite" };
    let arguments = [quarters.to_string(), code.to_string(), failures.to_string(), how.to_owned()];
    let command = ["sh", "-c", SCRIPT, "chaos"].map(str::to_owned).into_iter().chain(arguments).collect();
    let value = v1::env_var::Source::Value(history.display().to_string());
    let env = vec![v1::EnvVar { name: HISTORY.to_owned(), source: Some(value) }];
    let program = v1::Program { command, env, ..Default::default() };
    let resources = v1::TaskResources { cpu_millis: 500, memory_bytes: 64 << 20, ..Default::default() };
    let group = v1::TaskGroup {
        count: Some(count),
        gang,
        resources: Some(resources),
        run: Some(v1::task_group::Run::Process(program)),
        ..Default::default()
    };
    let on_pool_lost = if requeues { v1::OnPoolLost::Requeue } else { v1::OnPoolLost::Wait };
    // What fails for good fails at the third attempt. Unknown outcomes come of killed supervisors.
    let max_attempts = Some(if expected == Expected::Fails { 3 } else { 50 });
    let on = [v1::RetryOn::Failed, v1::RetryOn::Unknown].map(i32::from).to_vec();
    // Some may run in one pool or two only: they come back to a pool that was lost. It is not one whose
    // machine is killed: such a node is held back, and a minute is too long to wait for it.
    let pools = match rng.random_range(0..10) {
        0..2 => vec![STEADY_POOL],
        2..5 => vec![STEADY_POOL, rng.random_range(0..STEADY_POOL)],
        _ => Vec::new(),
    };
    let pools = pools.into_iter().map(|pool| format!("pool-{pool}")).collect();
    let spec = v1::JobSpec {
        constraints: Some(v1::Constraints { pools, ..Default::default() }),
        labels: [(LABEL.to_owned(), token.clone())].into(),
        groups: vec![group],
        retry: Some(v1::RetryPolicy { max_attempts, on, backoff_ms: 100, backoff_max_ms: 1_000 }),
        on_pool_lost: i32::from(on_pool_lost),
        may_overlap,
        grace_ms: Some(rng.random_range(0..1_500)),
        ..Default::default()
    };
    let repeat_after_ms = rng.random_bool(0.4).then(|| rng.random_range(0..8_000));
    Piece { token, spec, expected, submit_at_ms, cancel_after_ms, repeat_after_ms, code }
}
