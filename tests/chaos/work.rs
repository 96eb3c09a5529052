//! The jobs that clients submit: of every kind, generated from the seed, with the expected result of each.

use std::path::Path;

use rand::RngExt;
use rand::rngs::StdRng;
use weir::api::proto::v1;

use crate::commands::STEADY_POOL;
use crate::schedule::Seed;

/// Environment variable with the path of the history file.
pub const HISTORY: &str = "CHAOS_HISTORY";
/// Label with the job's token.
pub const LABEL: &str = "chaos";

/// No job is submitted in this time before the end of the last fault, so that the run ends soon after it.
const END_MARGIN_MS: u64 = 5_000;
/// The same for jobs that run long.
const LONG_END_MARGIN_MS: u64 = 18_000;

/// Until this time jobs are submitted in a burst and most run long, so that the first faults hit fully
/// allocated pools.
const BURST_MS: u64 = 1_500;

/// The script of a task. It writes a line at its start, four times a second, and at its end. Each line is one
/// write to an append-only file, so the order of lines is the order of events.
///
/// Arguments: run time in quarters of a second; the exit code; how many attempts exit with that code before
/// one exits with 0; `stubborn` to ignore SIGTERM.
const SCRIPT: &str = r#"
record() {
    read -r up _ </proc/uptime
    echo "$1 $WEIR_ATTEMPT_ID ${WEIR_GANG_RANK:-0} $up $2" >>"$CHAOS_HISTORY"
}
[ "$4" = stubborn ] && trap '' TERM
record START
left=$1
while [ "$left" -gt 0 ]; do
    sleep 0.25
    record ALIVE
    left=$((left - 1))
done
code=0
[ "${WEIR_ATTEMPT_ID##*-}" -le "$3" ] && code=$2
record END "$code"
exit "$code"
"#;

/// The expected result of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expected {
    Succeeds,
    Fails,
    /// Depends on the phase in which the cancel found the job: see `history`.
    IsCancelled,
}

/// A job and what its client does.
#[derive(Clone, Debug)]
pub struct JobPlan {
    /// Request token, and value of the label.
    pub token: String,
    pub spec: v1::JobSpec,
    pub expected: Expected,
    /// Since the start of the run.
    pub submit_at_ms: u64,
    /// When it is cancelled, after the acknowledgement.
    pub cancel_after_ms: Option<u64>,
    /// When the same request is repeated, after the acknowledgement.
    pub repeat_after_ms: Option<u64>,
    /// Exit code of attempts that fail.
    pub code: i32,
}

impl JobPlan {
    /// True if attempts have a lease, so that a lost one is requeued.
    pub fn requeues(&self) -> bool {
        self.spec.on_pool_lost() == v1::OnPoolLost::Requeue
    }

    /// The submit request, the same at each call.
    pub fn request(&self) -> v1::SubmitRequest {
        // Without a name: a conflict of names would hide a second job of the same token.
        let spec = Some(self.spec.clone());
        let job = v1::Submission { name_prefix: "chaos".to_owned(), spec, ..Default::default() };
        v1::SubmitRequest { token: self.token.clone(), jobs: vec![job], allow_pending: true }
    }
}

/// Generates the jobs of a run, in the order of their submission.
pub fn generate(seed: Seed, history: &Path) -> Vec<JobPlan> {
    let mut rng = seed.rng("work");
    let (mut plans, mut at_ms) = (Vec::new(), 200);
    let end_ms = seed.seconds * 1_000;
    while at_ms + END_MARGIN_MS < end_ms {
        let token = format!("{seed}-{}", plans.len());
        let times = (at_ms, at_ms < BURST_MS, at_ms + LONG_END_MARGIN_MS < end_ms);
        plans.push(generate_one(&mut rng, token, times, history));
        at_ms += match at_ms {
            ..BURST_MS => 80,
            _ if rng.random_bool(0.3) => 50,
            _ => rng.random_range(200..1_500),
        };
    }
    plans
}

/// Generates a job that is submitted at this time. In the burst most jobs run long; later a job may, if
/// `long`.
fn generate_one(
    rng: &mut StdRng,
    token: String,
    (submit_at_ms, burst, long): (u64, bool, bool),
    history: &Path,
) -> JobPlan {
    let (mut quarters, mut failures, mut stubborn) = (rng.random_range(0..10), 0, false);
    let (mut count, mut gang) = (1, false);
    let code = rng.random_range(1..100);
    let mut requeues = rng.random_bool(0.5);
    let (mut expected, mut cancel_after_ms) = (Expected::Succeeds, None);
    let kind = if burst && rng.random_bool(0.7) { 3..5 } else { 0..11 };
    match rng.random_range(kind) {
        0..3 => {}
        // Long enough that their pool may be lost while they run.
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
    // A job that must fail fails at its third attempt. Killed supervisors cause unknown outcomes.
    let max_attempts = Some(if expected == Expected::Fails { 3 } else { 50 });
    let on = [v1::RetryOn::Failed, v1::RetryOn::Unknown].map(i32::from).to_vec();
    // Some may run in one or two pools only, so they return to a pool that was lost. One of these is the
    // steady pool, whose machine is never killed: a node that failed is quarantined for a minute, which is
    // too long to wait for.
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
        retry: Some(v1::RetryPolicy {
            max_attempts,
            on,
            backoff_ms: 100,
            backoff_max_ms: 1_000,
            max_node_losses: Some(1_000),
        }),
        on_pool_lost: i32::from(on_pool_lost),
        may_overlap,
        lease_ms: if requeues { 20_000 } else { 0 },
        grace_ms: Some(rng.random_range(0..1_500)),
        ..Default::default()
    };
    let repeat_after_ms = rng.random_bool(0.4).then(|| rng.random_range(0..8_000));
    JobPlan { token, spec, expected, submit_at_ms, cancel_after_ms, repeat_after_ms, code }
}
