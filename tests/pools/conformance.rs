//! The suite: what the broker's promises rest on.

use weir::clock::Clock;
use weir::model::attempt::{AttemptStatus, OutcomeKind};
use weir::model::id::AttemptId;
use weir::model::spec::{JobSpec, Run};
use weir::model::time::Timestamp;
use weir::pools::PoolBackend;

use super::life::{Life, assert_kind};

/// A pool to be tried, and what is known of it from outside.
pub trait Bench {
    type Backend: PoolBackend;

    /// The backend as another life of the agent would make it.
    fn backend(&self, clock: Clock) -> Self::Backend;

    /// What a task runs that takes so long and exits so.
    fn run(&self, ms: u64, code: u8) -> Run;

    /// The same for pools that only pretend.
    fn simulate(&self, _spec: &mut JobSpec, _ms: u64, _code: u8) {}

    /// How often a task of this attempt was begun, as seen by others than the backend; `None` where
    /// nobody else could see it.
    fn runs(&self, attempt: AttemptId) -> Option<usize>;

    /// What this pool can't start, if there is something that shows it.
    fn unstartable(&self) -> Option<Run>;

    /// It runs several tasks of one unit.
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

/// A process that runs has not yet done anything: waits until all of them have.
fn until_begun<B: Bench>(bench: &B, life: &mut Life<B::Backend>, attempt: AttemptId, times: usize) {
    life.until_running(attempt);
    life.hear("its tasks have begun", |_| bench.runs(attempt).is_none_or(|runs| runs >= times));
}

/// All of it, one after another: jobs are numbered apart.
pub fn whole<B: Bench>(bench: &B) {
    what_is_there_is_told(bench);
    outcomes_are_typed(bench);
    a_launch_can_be_repeated(bench);
    a_stop_is_final(bench);
    what_comes_too_late_is_not_started(bench);
    an_outcome_stays_until_it_is_forgotten(bench);
    a_kill_between_any_two_calls_doubles_nothing_and_loses_nothing(bench);
    if bench.has_gangs() {
        a_gang_ends_with_the_first_that_fails(bench);
    }
}

fn what_is_there_is_told<B: Bench>(bench: &B) {
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
    for launch in [&well, &badly, &slow] {
        life.launch(launch);
    }
    let outcome = life.until_ended(well.order.attempt);
    assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Succeeded, Some(0)));
    let outcome = life.until_ended(badly.order.attempt);
    assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Failed, Some(3)));
    assert_kind(&life.until_ended(slow.order.attempt), OutcomeKind::TimedOut);
    if let Some(run) = bench.unstartable() {
        let broken = life.order(4, |spec| spec.groups[0].run = run);
        life.launch(&broken);
        let outcome = life.until_ended(broken.order.attempt);
        assert_kind(&outcome, OutcomeKind::StartFailed);
        assert!(!outcome.message.is_empty(), "it says why");
    }
    (1..=4).for_each(|job| life.forget(life.order(job, |_| {}).order.attempt));
    settle(&mut life);
    life.kill();
}

fn a_launch_can_be_repeated<B: Bench>(bench: &B) {
    let mut life = Life::begin(|clock| bench.backend(clock));
    let launch = life.order(11, task(bench, 1_500, 0));
    let attempt = launch.order.attempt;
    life.launch(&launch);
    life.launch(&launch);
    life.until_running(attempt);
    life.launch(&launch);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Succeeded);
    life.launch(&launch);
    settle(&mut life);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Succeeded);
    assert_runs(bench, attempt, 1);
    life.forget(attempt);
    settle(&mut life);
    life.kill();
}

fn a_stop_is_final<B: Bench>(bench: &B) {
    let mut life = Life::begin(|clock| bench.backend(clock));
    let launch = life.order(21, task(bench, 3_600_000, 0));
    let attempt = launch.order.attempt;
    life.launch(&launch);
    until_begun(bench, &mut life, attempt, 1);
    life.stop(attempt);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Cancelled);
    // Neither another launch nor another life brings it back.
    life.launch(&launch);
    life.stop(attempt);
    settle(&mut life);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Cancelled);
    life.kill();
    let mut life = Life::begin(|clock| bench.backend(clock));
    life.launch(&launch);
    settle(&mut life);
    assert_kind(&life.until_ended(attempt), OutcomeKind::Cancelled);
    assert_runs(bench, attempt, 1);
    life.forget(attempt);
    settle(&mut life);
    life.kill();
}

fn what_comes_too_late_is_not_started<B: Bench>(bench: &B) {
    let mut life = Life::begin(|clock| bench.backend(clock));
    let mut launch = life.order(31, task(bench, 10, 0));
    // A second, because another process's clock started a little earlier or later than this one's.
    launch.start_by = Timestamp(life.clock.now().0 - 1_000);
    life.launch(&launch);
    assert_kind(&life.until_ended(launch.order.attempt), OutcomeKind::NotStarted);
    assert_runs(bench, launch.order.attempt, 0);
    life.forget(launch.order.attempt);
    settle(&mut life);
    life.kill();
}

fn an_outcome_stays_until_it_is_forgotten<B: Bench>(bench: &B) {
    let mut life = Life::begin(|clock| bench.backend(clock));
    let launch = life.order(41, task(bench, 200, 5));
    let attempt = launch.order.attempt;
    life.launch(&launch);
    let outcome = life.until_ended(attempt);
    life.kill();
    for _ in 0..2 {
        let life = Life::begin(|clock| bench.backend(clock));
        let seen = life.found.iter().find(|seen| seen.attempt == attempt).expect("it is found");
        let AttemptStatus::Ended { outcome: found, .. } = &seen.status else { panic!("{seen:?}") };
        assert_eq!((found.kind, found.exit_code), (outcome.kind, outcome.exit_code));
        assert_eq!(seen.ordered_revision, launch.order.revision);
        assert_eq!(seen.start_by, launch.start_by);
        life.kill();
    }
    let mut life = Life::begin(|clock| bench.backend(clock));
    life.forget(attempt);
    settle(&mut life);
    life.kill();
    let mut left = true;
    for _ in 0..50 {
        let life = Life::begin(|clock| bench.backend(clock));
        left = life.found.iter().any(|seen| seen.attempt == attempt);
        life.kill();
        if !left {
            break;
        }
    }
    assert!(!left, "it is forgotten");
}

/// Lets calls that are under way come to their ends, as far as nobody tells of them.
fn settle<B: PoolBackend>(life: &mut Life<B>) {
    let until = std::time::Instant::now() + std::time::Duration::from_millis(700);
    life.hear("a moment passes", |_| std::time::Instant::now() > until);
}

/// The agent's calls for one attempt, each with how long it lives on after it.
#[derive(Clone, Copy, Debug)]
enum Call {
    StartRequest,
    Stop,
    Forget,
}

fn a_kill_between_any_two_calls_doubles_nothing_and_loses_nothing<B: Bench>(bench: &B) {
    // At once, in the middle of what the call set off, and when it has most likely come to its end.
    for (index, wait_ms) in [0, 5, 30, 400].into_iter().enumerate() {
        let job = 51 + 2 * index as u64;
        one_call_a_life(
            bench,
            job,
            task(bench, 600, 0),
            &[Call::StartRequest, Call::StartRequest, Call::Forget],
            wait_ms,
        );
        let calls = [Call::StartRequest, Call::Stop, Call::Stop, Call::Forget];
        one_call_a_life(bench, job + 1, task(bench, 3_600_000, 0), &calls, wait_ms);
    }
}

fn one_call_a_life<B: Bench>(
    bench: &B,
    job: u64,
    change: impl FnOnce(&mut JobSpec),
    calls: &[Call],
    wait_ms: u64,
) {
    let first = Life::begin(|clock| bench.backend(clock));
    let launch = first.order(job, change);
    let attempt = launch.order.attempt;
    first.kill();
    let stops = calls.iter().any(|call| matches!(call, Call::Stop));
    for call in calls {
        let mut life = Life::begin(|clock| bench.backend(clock));
        match call {
            // As the agent does: what is there is adopted, what isn't is launched.
            Call::StartRequest if life.status(attempt).is_none() => life.launch(&launch),
            Call::StartRequest => {}
            Call::Stop => {
                if life.status(attempt).is_some() {
                    life.stop(attempt);
                }
            }
            Call::Forget => {
                if life.status(attempt).is_none() {
                    life.launch(&launch);
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
        std::thread::sleep(std::time::Duration::from_millis(wait_ms));
        life.kill();
    }
    if let Some(runs) = bench.runs(attempt) {
        assert!(runs <= 1 && (stops || runs == 1), "{runs} runs of {attempt}, wait {wait_ms}");
    }
    let mut life = Life::begin(|clock| bench.backend(clock));
    life.forget(attempt);
    settle(&mut life);
    life.kill();
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
    for launch in [&well, &badly, &stopped] {
        life.launch(launch);
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
    (71..=73).for_each(|job| life.forget(life.order(job, |_| {}).order.attempt));
    settle(&mut life);
    life.kill();
}
