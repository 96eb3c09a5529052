//! One world from its seed to its end: faults and clients at once, then healing, then the check.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use weir::api::client::Client;
use weir::api::proto::v1;

use crate::clients::{self, Access, Caller, Ledger, is_end};
use crate::commands;
use crate::history::{History, Told, code};
use crate::schedule::{self, Lane, Schedule, Seed, Turn};
use crate::work::{self, LABEL};
use crate::world::World;

/// After everything has healed: until each request is acknowledged, and until each job has ended.
const ACKNOWLEDGED_IN: Duration = Duration::from_secs(60);
const ENDED_IN: Duration = Duration::from_secs(120);
/// Until nothing of what ran is left, and until a watcher has heard of it.
const GONE_IN: Duration = Duration::from_secs(20);
const WATCHED_IN: Duration = Duration::from_secs(60);

const TEST: &str = "acknowledged_jobs_end_and_nothing_runs_twice_though_everything_fails";

/// Runs a world.
///
/// # Panics
/// If anything was not as it must be; what is left of the world is named.
pub fn run(seed: Seed) {
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let world = World::start(TEST, &runtime);
    let (ledger, schedule) = (Arc::<Ledger>::default(), schedule::draw(seed));
    let _witness = Witness { seed, world: &world, schedule: &schedule, ledger: &ledger };
    let pieces = work::draw(seed, &world.history());
    let submitted = pieces.len();
    let (stop, stopped) = watch::channel(false);
    let live = Arc::new(Mutex::new(BTreeSet::new()));
    let access = world.access();
    runtime.spawn(clients::watch_on(access.clone(), ledger.clone(), live.clone()));
    let reading = runtime.spawn(clients::read_on(access.clone(), ledger.clone(), stopped));
    let seen_through: Vec<_> = pieces
        .into_iter()
        .map(|piece| runtime.spawn(clients::see_through(piece, access.clone(), ledger.clone())))
        .collect();
    let mut commands = strike(&world, &schedule, commands::draw(seed));
    let healed = Instant::now();
    for client in seen_through {
        let left = ACKNOWLEDGED_IN.saturating_sub(healed.elapsed());
        let outcome = runtime.block_on(async { tokio::time::timeout(left, client).await });
        assert!(outcome.is_ok_and(|client| client.is_ok()), "a request got no answer");
    }
    let told = wait_for_ends(&runtime, &access, &ledger, healed);
    let ended_ms = healed.elapsed().as_millis();
    let wrong_commands = commands::check(&mut commands);
    let _ = stop.send(true);
    runtime.block_on(reading).expect("a reader");
    let mut complaints = check(&world, &runtime, &schedule, &told, &live);
    complaints.extend(wrong_commands);
    complaints.extend(ledger.complaints.lock().expect("no client panics").clone());
    let summary = format!(
        "{seed}: {submitted} jobs, {} commands; faults {:?}; attempts {:?}; all ended {ended_ms} ms after the last fault; {} s in all",
        commands.len(),
        count(
            schedule
                .iter()
                .flat_map(|(_, writer_sessions)| writer_sessions)
                .map(|writer_session| writer_session.fault.kind())
        ),
        count(told.iter().flat_map(|told| &told.attempts).map(code)),
        begun.elapsed().as_secs()
    );
    println!("{summary}; the last was {}", last_of(&told));
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// The job that ended last, with its attempts' times in milliseconds before its end: what kept it?
fn last_of(told: &[Told]) -> String {
    let Some(last) = told.iter().max_by_key(|told| told.job.ended_unix_ms) else { return "none".to_owned() };
    let end_ms = last.job.ended_unix_ms.unwrap_or(0);
    let before = |at_ms: Option<u64>| at_ms.map_or(-1, |at_ms| end_ms.saturating_sub(at_ms).cast_signed());
    let attempt = |attempt: &v1::Attempt| {
        let (ordered, started) = (before(Some(attempt.ordered_unix_ms)), before(attempt.started_unix_ms));
        let ended = before(attempt.ended_unix_ms);
        format!("{} {} ordered {ordered} started {started} ended {ended}", attempt.pool, code(attempt))
    };
    let attempts: Vec<String> = last.attempts.iter().map(attempt).collect();
    let submitted = before(Some(last.job.submitted_unix_ms));
    format!("{}, submitted {submitted} ms before: {}", last.acknowledged.piece.token, attempts.join(", "))
}

/// How many there are of each.
fn count<'a>(kinds: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    kinds.for_each(|kind| *counts.entry(kind).or_default() += 1);
    counts
}

/// Carries out a schedule, all lanes at once, until the last fault is healed. Meanwhile starts commands.
fn strike(world: &World, schedule: &Schedule, pieces: Vec<commands::Piece>) -> Vec<commands::Running> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (lane, writer_sessions) in schedule {
            scope.spawn(move || {
                writer_sessions
                    .iter()
                    .for_each(|writer_session| take_turn(world, *lane, *writer_session, begun))
            });
        }
        let started = pieces.into_iter().map(|piece| {
            wait_until(begun, piece.start_at);
            commands::start(world, piece)
        });
        started.collect()
    })
}

fn wait_until(begun: Instant, at: Duration) {
    while let Some(left) = at.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

fn take_turn(world: &World, lane: Lane, writer_session: Turn, begun: Instant) {
    wait_until(begun, writer_session.at);
    world.strike(lane, writer_session.fault);
    // Measured from when it struck: on a busy machine that may be late, and a lease waits for nobody.
    wait_until(begun, begun.elapsed() + writer_session.lasts);
    world.heal(lane, writer_session.fault);
}

/// What the broker says of each acknowledged job once all have ended.
fn wait_for_ends(
    runtime: &tokio::runtime::Runtime,
    access: &Access,
    ledger: &Arc<Ledger>,
    healed: Instant,
) -> Vec<Told> {
    runtime.block_on(async {
        let mut caller = Caller::new(access, ledger);
        let (mut told, jobs) = (Vec::new(), ledger.jobs.lock().expect("no client panics").clone());
        for (id, acknowledged) in jobs {
            loop {
                let answer = caller.job(id).await;
                let job = answer.job.expect("a job");
                if is_end(job.phase()) {
                    told.push(Told { acknowledged, job, attempts: answer.attempts });
                    break;
                }
                let late = healed.elapsed() > ENDED_IN;
                assert!(!late, "job {id} has not ended: {job:?} {:?}", answer.attempts);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        told
    })
}

/// Polls whether a condition comes to hold.
fn holds_in(patience: Duration, condition: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > patience {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    true
}

/// Tells, if the world fails, all that is known of it.
struct Witness<'a> {
    seed: Seed,
    world: &'a World,
    schedule: &'a Schedule,
    ledger: &'a Ledger,
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!(
            "world {} failed; what is left of it is in {}",
            self.seed,
            self.world.home.path().display()
        );
        for (lane, writer_sessions) in self.schedule {
            let writer_session = |writer_session: &Turn| {
                let (from, to) =
                    (writer_session.at.as_millis(), (writer_session.at + writer_session.lasts).as_millis());
                format!("  {from:>6} to {to:>6} ms: {:?}", writer_session.fault)
            };
            eprintln!(
                "{lane:?}\n{}",
                writer_sessions.iter().map(writer_session).collect::<Vec<_>>().join("\n")
            );
        }
        let complaints = self.ledger.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("clients complain of {complaints:#?}");
    }
}

/// Everything that is not as it must be, now that all have ended.
fn check(
    world: &World,
    runtime: &tokio::runtime::Runtime,
    schedule: &Schedule,
    told: &[Told],
    live: &Mutex<BTreeSet<u64>>,
) -> Vec<String> {
    let mut complaints = Vec::new();
    if !holds_in(GONE_IN, || world.tasks().is_empty()) {
        complaints.push(format!("processes of tasks that have ended: {:?}", world.tasks()));
    }
    let live = || live.lock().expect("no watcher panics").clone();
    if !holds_in(WATCHED_IN, || live().is_empty()) {
        complaints.push(format!("jobs whose ends a watcher did not see: {:?}", live()));
    }
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as u64;
    let text = std::fs::read_to_string(world.history()).expect("the history");
    let mut writer_sessions = schedule.iter().flat_map(|(_, writer_sessions)| writer_sessions);
    let supervisors_killed = writer_sessions.any(|writer_session| writer_session.fault.kills_supervisor());
    let history = History::read(&text, wall_ms - weir::clock::boot_ms());
    complaints.extend(history.check(told, supervisors_killed));
    // Once more after a power cut: what was told must have been durable.
    let before = list(world, runtime, &mut complaints);
    world.broker.kill();
    world.broker.tend();
    let after = list(world, runtime, &mut complaints);
    if before != after {
        complaints.push(format!("before the last kill {before:?}, after it {after:?}"));
    }
    let expected: BTreeMap<String, (u64, i32)> = told
        .iter()
        .map(|told| (told.acknowledged.piece.token.clone(), (told.job.id, told.job.phase)))
        .collect();
    let mut jobs = before;
    jobs.retain(|token, _| !token.starts_with(commands::TOKEN_PREFIX));
    if jobs != expected {
        complaints.push(format!("the list says {jobs:?}, the jobs say {expected:?}"));
    }
    for keeper in world.agents.iter().chain([&world.broker]) {
        let log = keeper.log();
        let panics = log.lines().filter(|line| line.contains("panicked"));
        complaints.extend(panics.map(|line| format!("{}: {line}", keeper.name)));
    }
    complaints
}

/// All jobs of the broker by their token; complains of a second one.
fn list(
    world: &World,
    runtime: &tokio::runtime::Runtime,
    complaints: &mut Vec<String>,
) -> BTreeMap<String, (u64, i32)> {
    let (ledger, mut jobs) = (Arc::<Ledger>::default(), BTreeMap::new());
    let request = v1::ListJobsRequest { page_size: 1_000, with_ended: true, ..Default::default() };
    let answer = runtime.block_on(async {
        let mut caller = Caller::new(&world.access(), &ledger);
        let list = |client: Client| {
            let request = request.clone();
            async move { client.jobs().list_jobs(request).await }
        };
        caller.insist("list jobs", list).await
    });
    assert!(answer.next_page_token.is_empty(), "more jobs than on one page");
    for job in answer.jobs {
        let token = job.spec.as_ref().and_then(|spec| spec.labels.get(LABEL)).cloned().unwrap_or_default();
        if let Some((first, _)) = jobs.insert(token.clone(), (job.id, job.phase)) {
            complaints.push(format!("token {token} made job {first} and job {}", job.id));
        }
    }
    complaints.append(&mut ledger.complaints.lock().expect("no client panics"));
    jobs
}
