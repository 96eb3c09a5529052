//! The conformance suite: the properties of a backend on which the guarantees of the broker depend.

use std::time::{Duration, Instant};

use weir::clock::Clock;
use weir::model::attempt::{AttemptStatus, OutcomeKind};
use weir::model::id::AttemptId;
use weir::model::spec::{JobSpec, Run};
use weir::model::time::Timestamp;
use weir::pools::PoolBackend;

use super::life::{Life, TIMEOUT, assert_kind};

/// A pool under test, and observations of it that don't come from the backend.
pub trait Bench {
    type Backend: PoolBackend;

    /// Makes the backend as each run of the agent does.
    fn backend(&self, clock: Clock) -> Self::Backend;

    /// A program that takes `ms` milliseconds and exits with `code`.
    fn run(&self, ms: u64, code: u8) -> Run;

    /// The same in a job's spec, for pools that don't run programs.
    fn simulate(&self, _spec: &mut JobSpec, _ms: u64, _code: u8) {}

    /// How often a task of this attempt was begun, by an observation outside of the backend; `None` if
    /// there is none.
    fn runs(&self, attempt: AttemptId) -> Option<usize>;

    /// A program that this pool can't start; `None` if there is no such program.
    fn unstartable(&self) -> Option<Run>;

    /// Whether the pool runs gangs.
    fn has_gangs(&self) -> bool {
        true
    }
}

fn task<B: Bench>(bench: &B, ms: u64, code: u8) -> impl FnOnce(&mut JobSpec) {
    let run = bench.run(ms, code);
    let mut simulated = weir::model::spec::minimal();
    bench.simulate(&mut simulated, ms, code);
    let simulate = simulated.groups[0].simulate;
    move |spec| {
        spec.groups[0].run = run;
        spec.groups[0].simulate = simulate;
    }
}

fn assert_runs<B: Bench>(bench: &B, attempt: AttemptId, times: usize) {
    if let Some(runs) = bench.runs(attempt) {
        assert_eq!(runs, times, "runs of {attempt}");
    }
}

/// Waits until the tasks of an attempt have begun: a running process may not have executed anything yet.
fn until_begun<B: Bench>(bench: &B, life: &mut Life<B::Backend>, attempt: AttemptId, times: usize) {
    life.until_running(attempt);
    life.wait_for("its tasks have begun", |_| bench.runs(attempt).is_none_or(|runs| runs >= times));
}

/// Runs the whole suite on one pool. Each part uses job numbers of its own.
pub fn run_all<B: Bench>(bench: &B) {
    opening_reports_nodes_and_attempts(bench);
    outcomes_are_typed(bench);
    a_start_can_be_repeated(bench);
    a_stop_is_final(bench);
    a_late_order_is_not_started(bench);
    an_outcome_stays_until_it_is_forgotten(bench);
    a_kill_between_any_two_calls_doubles_nothing_and_loses_nothing(bench);
    if bench.has_gangs() {
        a_gang_ends_with_the_first_that_fails(bench);
    }
}

fn opening_reports_nodes_and_attempts<B: Bench>(bench: &B) {
    let life = Life::begin(|clock| bench.backend(clock));
    assert!(!life.nodes.is_empty() && life.nodes.iter().all(|node| node.allocatable.cpu_millis > 0));
    assert!(life.found.is_empty(), "{:?}", life.found);
    life.kill();
}

fn outcomes_are_typed<B: Bench>(bench: &B) {
    let mut life = Life::begin(|clock| bench.backend(clock));
    let well = life.order(1, task(bench, 200, 0));
    let badly = life.order(2, task(bench, 200, 3));
    let slow = life.order(3, |spec| {
        task(bench, 3_600_000, 0)(spec);
        spec.max_run_ms = 2_000;
    });
    for start in [&well, &badly, &slow] {
        life.start(start);
    }
    let outcome = life.until_ended(well.order.attempt);
    assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Succeeded, Some(0)), "{outcome:?}");
    let outcome = life.until_ended(badly.order.attempt);
    assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Failed, Some(3)), "{outcome:?}");
    assert_kind(&life.until_ended(slow.order.attempt), OutcomeKind::TimedOut);
    if let Some(run) = bench.unstartable() {
        let broken = life.order(4, |spec| spec.groups[0].run = run);
        life.start(&broken);
        let outcome = life.until_ended(broken.order.attempt);
        assert_kind(&outcome, OutcomeKind::StartFailed);
        assert!(!outcome.message.is_empty(), "it has a reason");
    }
    let attempts = [1, 2, 3, 4].map(|job| life.order(job, |_| {}).order.attempt);
    forget_all(bench, life, &attempts);
}

fn a_start_can_be_repeated<B: Bench>(bench: &B) {
    let mut life = Life::begin(|clock| bench.backend(clock));
    let start = life.order(11, task(bench, 1_500, 0));
    let attempt = start.order.attempt;
    life.start(&start);
    life.start(&start);
    life.until_running(attempt);
    life.start(&start);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Succeeded);
    life.start(&start);
    let later = until_handled(bench, &mut life, 12);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Succeeded);
    assert_runs(bench, attempt, 1);
    forget_all(bench, life, &[attempt, later]);
}

fn a_stop_is_final<B: Bench>(bench: &B) {
    let mut life = Life::begin(|clock| bench.backend(clock));
    let start = life.order(21, task(bench, 3_600_000, 0));
    let attempt = start.order.attempt;
    life.start(&start);
    until_begun(bench, &mut life, attempt, 1);
    life.stop(attempt);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Cancelled);
    // Neither another start nor another life brings it back.
    life.start(&start);
    life.stop(attempt);
    let first = until_handled(bench, &mut life, 22);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Cancelled);
    life.kill();
    let mut life = Life::begin(|clock| bench.backend(clock));
    life.start(&start);
    let second = until_handled(bench, &mut life, 23);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Cancelled);
    assert_runs(bench, attempt, 1);
    forget_all(bench, life, &[attempt, first, second]);
}

fn a_late_order_is_not_started<B: Bench>(bench: &B) {
    let mut life = Life::begin(|clock| bench.backend(clock));
    let mut start = life.order(31, task(bench, 10, 0));
    // Late by a second, because the clocks of two processes differ a little.
    start.start_by = Timestamp(life.clock.now().0 - 1_000);
    life.start(&start);
    assert_kind(&life.until_ended(start.order.attempt), OutcomeKind::NotStarted);
    assert_runs(bench, start.order.attempt, 0);
    forget_all(bench, life, &[start.order.attempt]);
}

fn an_outcome_stays_until_it_is_forgotten<B: Bench>(bench: &B) {
    let mut life = Life::begin(|clock| bench.backend(clock));
    let start = life.order(41, task(bench, 200, 5));
    let attempt = start.order.attempt;
    life.start(&start);
    let outcome = life.until_ended(attempt);
    life.kill();
    for _ in 0..2 {
        let life = Life::begin(|clock| bench.backend(clock));
        let found = life.found.iter().find(|found| found.attempt == attempt).expect("it is found");
        let AttemptStatus::Ended { outcome: stored, .. } = &found.status else { panic!("{found:?}") };
        assert_eq!((stored.kind, stored.exit_code), (outcome.kind, outcome.exit_code));
        assert_eq!(found.ordered_revision, start.order.revision);
        assert_eq!(found.start_by, start.start_by);
        life.kill();
    }
    forget_all(bench, Life::begin(|clock| bench.backend(clock)), &[attempt]);
}

/// Waits until the backend has handled all earlier calls: until a later attempt has run to its end.
///
/// Calls without an effect have no event to wait for. Returns the later attempt.
fn until_handled<B: Bench>(bench: &B, life: &mut Life<B::Backend>, job: u64) -> AttemptId {
    let later = life.order(job, task(bench, 100, 0));
    life.start(&later);
    assert_kind(&life.until_ended(later.order.attempt), OutcomeKind::Succeeded);
    later.order.attempt
}

/// Forgets attempts until a new life finds none of them, and ends that life.
///
/// The backend reports no event when it has forgotten an attempt, and a kill may interrupt it. So each
/// round gives it twice the time of the one before.
fn forget_all<B: Bench>(bench: &B, mut life: Life<B::Backend>, attempts: &[AttemptId]) {
    let (deadline, mut wait) = (Instant::now() + TIMEOUT, Duration::from_millis(50));
    loop {
        attempts.iter().for_each(|attempt| life.forget(*attempt));
        std::thread::sleep(wait);
        wait *= 2;
        life.kill();
        life = Life::begin(|clock| bench.backend(clock));
        if !life.found.iter().any(|found| attempts.contains(&found.attempt)) {
            return life.kill();
        }
        assert!(Instant::now() < deadline, "not forgotten in time: {:?}", life.found);
    }
}

/// The calls of an agent for one attempt.
#[derive(Clone, Copy, Debug)]
enum Call {
    Start,
    Stop,
    Forget,
}

fn a_kill_between_any_two_calls_doubles_nothing_and_loses_nothing<B: Bench>(bench: &B) {
    // The kill comes at once, while the call's effects are in progress, or when they have most likely ended.
    for (index, wait_ms) in [0, 5, 30, 400].into_iter().enumerate() {
        let job = 51 + 2 * index as u64;
        one_call_a_life(bench, job, task(bench, 600, 0), &[Call::Start, Call::Start, Call::Forget], wait_ms);
        let calls = [Call::Start, Call::Stop, Call::Stop, Call::Forget];
        one_call_a_life(bench, job + 1, task(bench, 3_600_000, 0), &calls, wait_ms);
    }
}

/// Makes each call in a life of its own, which is killed `wait_ms` after the call.
fn one_call_a_life<B: Bench>(
    bench: &B,
    job: u64,
    change: impl FnOnce(&mut JobSpec),
    calls: &[Call],
    wait_ms: u64,
) {
    let first = Life::begin(|clock| bench.backend(clock));
    let start = first.order(job, change);
    let attempt = start.order.attempt;
    first.kill();
    let stops = calls.iter().any(|call| matches!(call, Call::Stop));
    for call in calls {
        let mut life = Life::begin(|clock| bench.backend(clock));
        match call {
            // As the agent does: an attempt that exists is adopted, any other is started.
            Call::Start if life.status(attempt).is_none() => life.start(&start),
            Call::Start => {}
            Call::Stop => {
                if life.status(attempt).is_some() {
                    life.stop(attempt);
                }
            }
            Call::Forget => {
                if life.status(attempt).is_none() {
                    life.start(&start);
                }
                if stops {
                    life.stop(attempt);
                }
                let outcome = life.until_ended(attempt);
                let expected: &[OutcomeKind] = match stops {
                    true => &[OutcomeKind::Cancelled],
                    false => &[OutcomeKind::Succeeded],
                };
                assert!(expected.contains(&outcome.kind), "wait {wait_ms}: {outcome:?}");
                life.forget(attempt);
            }
        }
        // A fixed time on purpose: it is the moment of the kill that varies.
        std::thread::sleep(Duration::from_millis(wait_ms));
        life.kill();
    }
    if let Some(runs) = bench.runs(attempt) {
        assert!(runs <= 1 && (stops || runs == 1), "{runs} runs of {attempt}, wait {wait_ms}");
    }
    forget_all(bench, Life::begin(|clock| bench.backend(clock)), &[attempt]);
}

fn a_gang_ends_with_the_first_that_fails<B: Bench>(bench: &B) {
    let mut life = Life::begin(|clock| bench.backend(clock));
    let gang = |spec: &mut JobSpec, count: u32| {
        spec.groups[0].count = count;
        spec.groups[0].gang = true;
    };
    let well = life.order(71, |spec| {
        task(bench, 300, 0)(spec);
        gang(spec, 3);
    });
    let badly = life.order(72, |spec| {
        task(bench, 300, 9)(spec);
        gang(spec, 2);
    });
    let stopped = life.order(73, |spec| {
        task(bench, 3_600_000, 0)(spec);
        gang(spec, 2);
    });
    for start in [&well, &badly, &stopped] {
        life.start(start);
    }
    assert_kind(&life.until_ended(well.order.attempt), OutcomeKind::Succeeded);
    let outcome = life.until_ended(badly.order.attempt);
    assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Failed, Some(9)));
    until_begun(bench, &mut life, stopped.order.attempt, 2);
    life.kill();
    let mut life = Life::begin(|clock| bench.backend(clock));
    life.stop(stopped.order.attempt);
    assert_kind(&life.until_ended(stopped.order.attempt), OutcomeKind::Cancelled);
    assert_runs(bench, stopped.order.attempt, 2);
    forget_all(bench, life, &[&well, &badly, &stopped].map(|start| start.order.attempt));
}
