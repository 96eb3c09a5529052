//! One run from its seed: faults and clients at the same time, then healing, then the checks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use weir::api::client::Client;
use weir::api::proto::v1;

use crate::clients::{self, Access, Caller, Observations, is_end};
use crate::commands;
use crate::history::{History, JobReport, code};
use crate::schedule::{self, Lane, Schedule, Seed, TimedFault};
use crate::testbed::Testbed;
use crate::work::{self, LABEL};

/// Time limit for acknowledging each request, after the last fault.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit for the end of each job, after the last fault.
const END_TIMEOUT: Duration = Duration::from_secs(120);
/// Time limit for the end of all task processes, after the end of all jobs.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(20);
/// Time limit until a watcher has received the end of all jobs.
const WATCH_TIMEOUT: Duration = Duration::from_secs(60);

const TEST: &str = "acknowledged_jobs_end_and_nothing_runs_twice_during_faults";

/// Does one run.
///
/// # Panics
/// If a guarantee was violated. The folder with the remains of the run is printed.
pub fn run(seed: Seed) {
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let testbed = Testbed::start(TEST, &runtime);
    let (observations, schedule) = (Arc::<Observations>::default(), schedule::generate(seed));
    let _failure_report =
        FailureReport { seed, testbed: &testbed, schedule: &schedule, observations: &observations };
    let plans = work::generate(seed, &testbed.history());
    let submitted = plans.len();
    let (stop, stopped) = watch::channel(false);
    let live = Arc::new(Mutex::new(BTreeSet::new()));
    let access = testbed.access();
    runtime.spawn(clients::watch_continuously(access.clone(), observations.clone(), live.clone()));
    let reading = runtime.spawn(clients::read_continuously(access.clone(), observations.clone(), stopped));
    let driven: Vec<_> = plans
        .into_iter()
        .map(|plan| runtime.spawn(clients::drive_job(plan, access.clone(), observations.clone())))
        .collect();
    let mut commands = run_schedule(&testbed, &schedule, commands::generate(seed));
    let healed = Instant::now();
    for client in driven {
        let left = ACKNOWLEDGE_TIMEOUT.saturating_sub(healed.elapsed());
        let outcome = runtime.block_on(async { tokio::time::timeout(left, client).await });
        assert!(outcome.is_ok_and(|client| client.is_ok()), "a request was not acknowledged in time");
    }
    let reports = wait_for_ends(&runtime, &access, &observations, healed);
    let ended_ms = healed.elapsed().as_millis();
    let wrong_commands = commands::check(&mut commands);
    let _ = stop.send(true);
    runtime.block_on(reading).expect("a reader");
    let mut violations = check(&testbed, &runtime, &schedule, &reports, &live);
    violations.extend(wrong_commands);
    violations.extend(observations.violations.lock().expect("no client panics").clone());
    let summary = format!(
        "{seed}: {submitted} jobs, {} commands; faults {:?}; attempts {:?}; all ended {ended_ms} ms after the last fault; {} s in all",
        commands.len(),
        count(schedule.iter().flat_map(|(_, faults)| faults).map(|timed| timed.fault.kind())),
        count(reports.iter().flat_map(|report| &report.attempts).map(code)),
        begun.elapsed().as_secs()
    );
    println!("{summary}; the last was {}", last_of(&reports));
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// Describes the job that ended last, with the times of its attempts in milliseconds before its end, to show
/// why it was late.
fn last_of(reports: &[JobReport]) -> String {
    let Some(last) = reports.iter().max_by_key(|report| report.job.ended_unix_ms) else {
        return "none".to_owned();
    };
    let end_ms = last.job.ended_unix_ms.unwrap_or(0);
    let before = |at_ms: Option<u64>| at_ms.map_or(-1, |at_ms| end_ms.saturating_sub(at_ms).cast_signed());
    let attempt = |attempt: &v1::Attempt| {
        let (ordered, started) = (before(Some(attempt.ordered_unix_ms)), before(attempt.started_unix_ms));
        let ended = before(attempt.ended_unix_ms);
        format!("{} {} ordered {ordered} started {started} ended {ended}", attempt.pool, code(attempt))
    };
    let attempts: Vec<String> = last.attempts.iter().map(attempt).collect();
    let submitted = before(Some(last.job.submitted_unix_ms));
    format!("{}, submitted {submitted} ms before: {}", last.acknowledged.plan.token, attempts.join(", "))
}

/// Counts each kind.
fn count<'a>(kinds: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    kinds.for_each(|kind| *counts.entry(kind).or_default() += 1);
    counts
}

/// Executes a schedule, all lanes at once, until the last fault is healed. Meanwhile starts the commands.
fn run_schedule(
    testbed: &Testbed,
    schedule: &Schedule,
    plans: Vec<commands::CommandPlan>,
) -> Vec<commands::Running> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (lane, faults) in schedule {
            scope.spawn(move || {
                faults.iter().for_each(|timed| inject_and_heal(testbed, *lane, *timed, begun))
            });
        }
        let started = plans.into_iter().map(|plan| {
            wait_until(begun, plan.start_at);
            commands::start(testbed, plan)
        });
        started.collect()
    })
}

fn wait_until(begun: Instant, at: Duration) {
    while let Some(left) = at.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

fn inject_and_heal(testbed: &Testbed, lane: Lane, timed: TimedFault, begun: Instant) {
    wait_until(begun, timed.at);
    testbed.inject(lane, timed.fault);
    // The duration counts from the injection: on a busy machine it may be late, and leases expire by real
    // time.
    wait_until(begun, begun.elapsed() + timed.lasts);
    testbed.heal(lane, timed.fault);
}

/// Waits until all acknowledged jobs have ended. Returns what the broker reports about them.
fn wait_for_ends(
    runtime: &tokio::runtime::Runtime,
    access: &Access,
    observations: &Arc<Observations>,
    healed: Instant,
) -> Vec<JobReport> {
    runtime.block_on(async {
        let mut caller = Caller::new(access, observations);
        let (mut reports, jobs) = (Vec::new(), observations.jobs.lock().expect("no client panics").clone());
        for (id, acknowledged) in jobs {
            loop {
                let answer = caller.job(id).await;
                let job = answer.job.expect("a job");
                if is_end(job.phase()) {
                    reports.push(JobReport { acknowledged, job, attempts: answer.attempts });
                    break;
                }
                let late = healed.elapsed() > END_TIMEOUT;
                assert!(!late, "job {id} has not ended: {job:?} {:?}", answer.attempts);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        reports
    })
}

/// Polls a condition. False if it does not hold within `timeout`.
fn holds_within(timeout: Duration, condition: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > timeout {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    true
}

/// Prints the seed, the folder, the schedule and the violations when the run panics.
struct FailureReport<'a> {
    seed: Seed,
    testbed: &'a Testbed,
    schedule: &'a Schedule,
    observations: &'a Observations,
}

impl Drop for FailureReport<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("run {} failed; its files are in {}", self.seed, self.testbed.home.path().display());
        for (lane, faults) in self.schedule {
            let timed = |timed: &TimedFault| {
                let (from, to) = (timed.at.as_millis(), (timed.at + timed.lasts).as_millis());
                format!("  {from:>6} to {to:>6} ms: {:?}", timed.fault)
            };
            eprintln!("{lane:?}\n{}", faults.iter().map(timed).collect::<Vec<_>>().join("\n"));
        }
        let violations = self.observations.violations.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("violations observed by clients: {violations:#?}");
    }
}

/// Returns all violations after the end of all jobs.
fn check(
    testbed: &Testbed,
    runtime: &tokio::runtime::Runtime,
    schedule: &Schedule,
    reports: &[JobReport],
    live: &Mutex<BTreeSet<u64>>,
) -> Vec<String> {
    let mut violations = Vec::new();
    if !holds_within(CLEANUP_TIMEOUT, || testbed.tasks().is_empty()) {
        violations.push(format!("processes of ended tasks are still running: {:?}", testbed.tasks()));
    }
    let live = || live.lock().expect("no watcher panics").clone();
    if !holds_within(WATCH_TIMEOUT, || live().is_empty()) {
        violations.push(format!("jobs whose end a watcher did not receive: {:?}", live()));
    }
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as u64;
    let text = std::fs::read_to_string(testbed.history()).expect("the history");
    let mut faults = schedule.iter().flat_map(|(_, faults)| faults);
    let supervisors_killed = faults.any(|timed| timed.fault.kills_supervisor());
    let history = History::read(&text, wall_ms - weir::clock::boot_ms());
    violations.extend(history.check(reports, supervisors_killed));
    // List the jobs again after a kill of the broker: what it reported before must have been durable.
    let before = list(testbed, runtime, &mut violations);
    testbed.broker.kill();
    testbed.broker.start_if_ended();
    let after = list(testbed, runtime, &mut violations);
    if before != after {
        violations.push(format!("before the last kill {before:?}, after it {after:?}"));
    }
    let expected: BTreeMap<String, (u64, i32)> = reports
        .iter()
        .map(|report| (report.acknowledged.plan.token.clone(), (report.job.id, report.job.phase)))
        .collect();
    let mut jobs = before;
    jobs.retain(|token, _| !token.starts_with(commands::TOKEN_PREFIX));
    if jobs != expected {
        violations.push(format!("the list has {jobs:?}, expected {expected:?}"));
    }
    for managed in testbed.agents.iter().chain([&testbed.broker]) {
        let log = managed.log();
        let panics = log.lines().filter(|line| line.contains("panicked"));
        violations.extend(panics.map(|line| format!("{}: {line}", managed.name)));
    }
    violations
}

/// Lists all jobs of the broker by token. A second job of the same token is a violation.
fn list(
    testbed: &Testbed,
    runtime: &tokio::runtime::Runtime,
    violations: &mut Vec<String>,
) -> BTreeMap<String, (u64, i32)> {
    let (observations, mut jobs) = (Arc::<Observations>::default(), BTreeMap::new());
    let request = v1::ListJobsRequest {
        page_size: 1_000,
        filter: Some(v1::JobFilter { with_ended: true, ..Default::default() }),
        view: v1::JobView::Full.into(),
        ..Default::default()
    };
    let answer = runtime.block_on(async {
        let mut caller = Caller::new(&testbed.access(), &observations);
        let list = |client: Client| {
            let request = request.clone();
            async move { client.jobs().list_jobs(request).await }
        };
        caller.call_until_answered("list jobs", list).await
    });
    assert!(answer.next_page_token.is_empty(), "more jobs than fit on one page");
    for job in answer.jobs {
        let token = job.spec.as_ref().and_then(|spec| spec.labels.get(LABEL)).cloned().unwrap_or_default();
        if let Some((first, _)) = jobs.insert(token.clone(), (job.id, job.phase)) {
            violations.push(format!("token {token} made job {first} and job {}", job.id));
        }
    }
    violations.append(&mut observations.violations.lock().expect("no client panics"));
    jobs
}
