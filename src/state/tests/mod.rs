//! The rules of decide, apply, records and snapshots, each by its smallest example.

mod change;
mod deletion;
mod retries;

use expect_test::{Expect, expect};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::State;
use super::command::{Command, Request};
use super::decide::Reply;
use super::fixture::{Fixture, node_spec, submission, tasks, unit, with_devices};
use super::job::{JobEnd, Principal};
use super::record;
use super::rejection::Rejection;
use super::snapshot::Object;
use super::token::RequestToken;
use crate::model::attempt::{AttemptStatus, Outcome, OutcomeKind, Phase};
use crate::model::device::{DeviceAmount, DeviceShare};
use crate::model::exchange::{Inventory, Part};
use crate::model::id::{JobId, NodeId, NodeRef, PoolId, QueueId, ReservationId, Revision};
use crate::model::limit::{DEPENDENTS_MAX, JOBS_PER_SUBMIT_MAX, TOKEN_RETENTION_MS};
use crate::model::link::Link;
use crate::model::pool::{DrainMode, NodeSpec};
use crate::model::price::{PriceSchedule, Rate};
use crate::model::queue::default_settings;
use crate::model::region::RegionCode;
use crate::model::reservation::Reservation;
use crate::model::resource::{ResourceKind, Resources};
use crate::model::spec::{
    Dependency, DependencyCondition, DeviceRequest, JobSpec, NodeLosses, OnUnitFailure, RetryOn, RetryPolicy,
    minimal,
};
use crate::model::time::Timestamp;

/// A world with one pool of one node: 8 cores, 4 devices.
fn one_node() -> (Fixture, PoolId) {
    let mut world = Fixture::new();
    let pool = world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 4)]);
    (world, pool)
}

fn with_token(token: &str, body: &[u8], command: Command) -> Request {
    let principal = Principal::Anonymous;
    Request { token: Some(RequestToken::new(&principal, "", token, body)), principal, command }
}

fn submit_named(name: &str) -> Command {
    Command::Submit { jobs: vec![submission(name, "", minimal())] }
}

fn refused(result: Result<Reply, Rejection>, expect: Expect) {
    let rejection = result.expect_err("it is refused");
    expect.assert_eq(&format!("{}: {rejection}", rejection.code()));
}

#[test]
fn repeated_token_gets_the_first_reply_and_changes_nothing() {
    let mut world = Fixture::new();
    let request = with_token("t", b"one", submit_named("twin"));
    let first = world.request(&request).unwrap();
    let revision = world.state.revision();
    assert_eq!(world.request(&request), Ok(first));
    assert_eq!(world.state.revision(), revision);
    assert_eq!(world.state.job_count(), 1);
}

#[test]
fn token_of_another_request_is_refused() {
    let mut world = Fixture::new();
    world.request(&with_token("t", b"one", submit_named("one"))).unwrap();
    let other = world.request(&with_token("t", b"two", submit_named("two")));
    assert_eq!(other, Err(Rejection::TokenReused));
}

#[test]
fn token_is_forgotten_after_a_quarter_of_an_hour_and_not_before() {
    let mut world = Fixture::new();
    world.request(&with_token("t", b"one", submit_named("one"))).unwrap();
    world.pass(TOKEN_RETENTION_MS - 1);
    assert_eq!(world.state.tokens().len(), 1);
    world.pass(1);
    assert!(world.state.tokens().is_empty());
    let again = world.request(&with_token("t", b"two", submit_named("two")));
    assert_eq!(again, Ok(Reply::Submitted { first: JobId(2), count: 1 }));
}

#[test]
fn token_with_a_time_is_refused_once_it_may_have_expired() {
    let mut world = Fixture::new();
    let token = format!("{:08x}-{:04x}-7000-8000-000000000001", world.now.0 >> 16, world.now.0 & 0xffff);
    let request = with_token(&token, b"one", submit_named("one"));
    let first = world.request(&request).unwrap();
    world.pass(TOKEN_RETENTION_MS - 1);
    assert_eq!(world.request(&request), Ok(first));
    world.pass(1);
    assert_eq!(
        world.request(&request),
        Err(Rejection::TokenExpired { made_at: Timestamp(1_700_000_000_000) })
    );
    assert_eq!(world.state.job_count(), 1);
}

#[test]
fn names_are_unique_among_live_jobs_of_a_queue() {
    let mut world = Fixture::new();
    world.must(Command::CreateQueue { spec: default_settings("team") });
    let first = world.submit(submission("train", "", minimal()));
    refused(world.command(submit_named("train")), expect![[r#"AlreadyExists: job "train" exists already"#]]);
    let twins = vec![submission("a", "", minimal()), submission("a", "", minimal())];
    refused(
        world.command(Command::Submit { jobs: twins }),
        expect![[r#"AlreadyExists: job "a" exists already"#]],
    );
    world.submit(submission("train", "team", minimal()));
    world.must(Command::Cancel { jobs: vec![first], reason: String::new() });
    let second = world.submit(submission("train", "", minimal()));
    let queue = world.state.queue_named("default").unwrap().id;
    assert_eq!(world.state.job_named(queue, "train").map(|job| job.id), Some(second));
}

#[test]
fn misspelt_names_are_answered_with_the_nearest_known() {
    let mut world = Fixture::new();
    world.must(Command::CreateQueue { spec: default_settings("research") });
    let mut submit = |queue: &str, change: &dyn Fn(&mut JobSpec)| {
        let mut spec = minimal();
        change(&mut spec);
        world.command(Command::Submit { jobs: vec![submission("", queue, spec)] })
    };
    refused(
        submit("reserch", &|_| {}),
        expect![[r#"Invalid: jobs[0].queue: queue "reserch" does not exist, did you mean "research"?"#]],
    );
    refused(submit("zzzzzz", &|_| {}), expect![[r#"Invalid: jobs[0].queue: queue "zzzzzz" does not exist"#]]);
    refused(
        submit("", &|spec| {
            let models = vec!["A100-80".to_owned()];
            spec.groups[0].request.devices = Some(DeviceRequest { models, amount: DeviceAmount::Whole(1) });
        }),
        expect![[
            r#"Invalid: jobs[0].spec.groups[0].resources.devices.models: device model "A100-80" is not known, did you mean "A100-80G"?"#
        ]],
    );
    refused(
        submit("", &|spec| spec.constraints.regions_allowed = vec![RegionCode::parse("CN-CK").unwrap()]),
        expect![[
            r#"Invalid: jobs[0].spec.constraints.regions_allowed: region CN-CK does not exist, did you mean "CN-CQ" or "CN-HK"?"#
        ]],
    );
}

#[test]
fn limit_of_an_ancestor_holds_back_and_is_released() {
    let (mut world, pool) = one_node();
    let mut parent = default_settings("city");
    parent.limit.cpu_millis = Some(4_000);
    world.must(Command::CreateQueue { spec: parent });
    world.must(Command::CreateQueue { spec: default_settings("city/a") });
    world.must(Command::CreateQueue { spec: default_settings("city/b") });
    let first = world.submit(submission("", "city/a", tasks(1, 3)));
    let second = world.submit(submission("", "city/b", tasks(1, 2)));
    world.must_start(unit(first, 0), pool);
    let over = world.start_on(unit(second, 0), pool, NodeId(1), &[]);
    assert_eq!(over, Err(Rejection::Outdated { what: "a queue's free limit" }));
    let usage = |world: &Fixture, name: &str| world.state.queue_named(name).unwrap().usage.cpu_millis;
    assert_eq!([usage(&world, "city"), usage(&world, "city/a"), usage(&world, "city/b")], [3_000, 3_000, 0]);
    world.end(unit(first, 0), OutcomeKind::Succeeded);
    assert_eq!(usage(&world, "city"), 0);
    world.must_start(unit(second, 0), pool);
    assert_eq!(usage(&world, "city"), 2_000);
}

#[test]
fn gang_is_placed_whole_or_not_at_all() {
    let (mut world, pool) = one_node();
    let mut gang = tasks(3, 3);
    gang.groups[0].gang = true;
    let job = world.submit_spec(gang);
    let before = world.state.revision();
    let whole = world.start_on(unit(job, 0), pool, NodeId(1), &[]);
    assert_eq!(whole, Err(Rejection::Outdated { what: "a node's free capacity" }));
    let mut part = tasks(2, 3);
    part.groups[0].gang = true;
    let small = world.submit_spec(part);
    let mut start =
        crate::model::plan::Start { unit: unit(small, 0), pool, placements: Vec::new(), after: None };
    let place =
        |task| crate::model::attempt::Placement { group: 0, task, node: NodeId(1), devices: Vec::new() };
    start.placements = vec![place(0)];
    let half = world.command(Command::Start { start: start.clone() });
    assert_eq!(half, Err(Rejection::Outdated { what: "the unit's tasks" }));
    assert!(world.state.attempts().next().is_none(), "nothing is held after {before}");
    start.placements.push(place(1));
    world.must(Command::Start { start });
    assert_eq!(world.state.node(crate::model::id::NodeRef { pool, node: NodeId(1) }).unwrap().tasks, 2);
}

#[test]
fn fractions_share_a_device_and_never_exceed_it() {
    let (mut world, pool) = one_node();
    let share = |millis| [DeviceShare { index: 0, millis }];
    let mut start = |millis| {
        let job = world.submit_spec(with_devices(DeviceAmount::Fraction(millis)));
        world.start_on(unit(job, 0), pool, NodeId(1), &share(millis))
    };
    assert_eq!(start(600), Ok(Reply::Done));
    assert_eq!(start(401), Err(Rejection::Outdated { what: "a device's free capacity" }));
    assert_eq!(start(400), Ok(Reply::Done));
    assert_eq!(start(1), Err(Rejection::Outdated { what: "a device's free capacity" }));
    let job = world.submit_spec(with_devices(DeviceAmount::Whole(1)));
    let shared = world.start_on(unit(job, 0), pool, NodeId(1), &share(1_000));
    assert_eq!(shared, Err(Rejection::Outdated { what: "a device's free capacity" }));
    let twice = world.start_on(unit(job, 0), pool, NodeId(1), &share(500));
    assert_eq!(twice, Err(Rejection::Outdated { what: "a device's free capacity" }));
}

#[test]
fn cordon_outlives_the_absence_of_its_node_and_a_snapshot() {
    let (mut world, pool) = one_node();
    world.must(Command::CordonNode { pool, node: NodeId(1), cordoned: true });
    let name = world.state.pool(pool).unwrap().nodes[&NodeId(1)].spec.name.clone();
    world.must(Command::RemoveNodes { pool, nodes: vec![NodeId(1)] });
    assert!(world.state.pool(pool).unwrap().nodes.is_empty());
    world.state = State::from_objects(world.state.objects());
    let report = |world: &mut Fixture, node: NodeSpec| {
        let epoch = world.state.pool(pool).unwrap().epoch;
        let (nodes, removed) = (vec![node], Vec::new());
        world.must(Command::ReportNodes {
            pool,
            inventory: Inventory { epoch, part: Part::Delta, nodes, removed },
        });
    };
    report(&mut world, node_spec(&name, 8, 0));
    report(&mut world, node_spec("another", 8, 0));
    let cordoned = |world: &Fixture| -> Vec<bool> {
        world.state.pool(pool).unwrap().nodes.values().map(|node| node.cordoned).collect()
    };
    assert_eq!(cordoned(&world), [true, false]);
    world.must(Command::CordonNode { pool, node: NodeId(2), cordoned: false });
    world.must(Command::RemoveNodes { pool, nodes: vec![NodeId(2)] });
    report(&mut world, node_spec(&name, 8, 0));
    assert_eq!(cordoned(&world), [false, false], "until it is taken back");
}

#[test]
fn jobs_that_depend_on_one_job_are_limited() {
    let (mut world, _) = one_node();
    let first = world.submit_spec(minimal());
    let mut spec = minimal();
    spec.depends_on = vec![Dependency { job: first, condition: DependencyCondition::Any }];
    let batch = |count| (0..count).map(|_| submission("", "", spec.clone())).collect();
    for _ in 0..DEPENDENTS_MAX / JOBS_PER_SUBMIT_MAX {
        world.must(Command::Submit { jobs: batch(JOBS_PER_SUBMIT_MAX) });
    }
    let refused = world.command(Command::Submit { jobs: batch(1) });
    assert!(matches!(refused, Err(Rejection::LimitReached { max: DEPENDENTS_MAX, .. })), "{refused:?}");
}

#[test]
fn dependency_releases_or_fails_a_job_by_its_condition() {
    for (outcome, condition, opens) in [
        (OutcomeKind::Succeeded, DependencyCondition::Succeeded, true),
        (OutcomeKind::Succeeded, DependencyCondition::Failed, false),
        (OutcomeKind::Failed, DependencyCondition::Succeeded, false),
        (OutcomeKind::Failed, DependencyCondition::Failed, true),
        (OutcomeKind::Failed, DependencyCondition::Any, true),
    ] {
        let (mut world, pool) = one_node();
        let first = world.submit_spec(minimal());
        let mut spec = minimal();
        spec.depends_on = vec![Dependency { job: first, condition }];
        let second = world.submit_spec(spec);
        let early = world.start_on(unit(second, 0), pool, NodeId(1), &[]);
        assert_eq!(early, Err(Rejection::Outdated { what: "the unit" }));
        world.must_start(unit(first, 0), pool);
        world.end(unit(first, 0), outcome);
        world.pass(0);
        if opens {
            world.must_start(unit(second, 0), pool);
        } else {
            assert_eq!(world.ended(second), Some(JobEnd::Failed), "{outcome:?} {condition:?}");
        }
    }
}

#[test]
fn cancelled_job_without_attempts_ends_at_once() {
    let (mut world, pool) = one_node();
    let (pending, running) = (world.submit_spec(minimal()), world.submit_spec(minimal()));
    world.must_start(unit(running, 0), pool);
    world.must(Command::Cancel { jobs: vec![pending, running], reason: String::new() });
    assert_eq!(world.ended(pending), Some(JobEnd::Cancelled));
    assert_eq!(world.ended(running), None);
    world.pass(0);
    world.end(unit(running, 0), OutcomeKind::Failed);
    assert_eq!(world.ended(running), Some(JobEnd::Cancelled));
}

/// Events, objects and archive rows of a busy random world, each encoded.
fn samples() -> [Vec<u8>; 3] {
    let mut world = busy(7, 400);
    let archive: Vec<Vec<u8>> = world.archive.iter().map(record::encode_row).collect();
    let rows = archive.into_iter().max_by_key(Vec::len).unwrap();
    // Without the catalogues, which are long and all alike.
    let events = world.events.split_off(world.events.len() - 120);
    let objects: Vec<Object> = world.state.objects().into_iter().skip(1).take(60).collect();
    [record::encode_events(&events), record::encode_objects(&objects), rows]
}

/// A world after so many random acts.
fn busy(seed: u64, acts: u32) -> Fixture {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = Fixture::new();
    for (pool, region) in ["CN-CQ", "CN-XJ", "CN-GZ"].into_iter().enumerate() {
        let nodes = (1..4).map(|node| node_spec(&format!("n{node}"), 16, 4)).collect();
        world.pool(&format!("pool-{pool}"), region, nodes);
    }
    (0..acts).for_each(|_| world.act(&mut rng));
    world
}

/// Decodes as all three kinds of record; what is taken for valid must encode again.
fn decode_all(bytes: &[u8]) {
    if let Ok(events) = record::decode_events(bytes) {
        assert_eq!(record::decode_events(&record::encode_events(&events)), Ok(events));
    }
    if let Ok(objects) = record::decode_objects(bytes) {
        assert_eq!(record::decode_objects(&record::encode_objects(&objects)), Ok(objects));
    }
    if let Ok(row) = record::decode_row(bytes) {
        assert_eq!(record::decode_row(&record::encode_row(&row)), Ok(row));
    }
}

#[test]
fn decoder_survives_every_truncation_and_single_byte_mutation() {
    let mut rng = StdRng::seed_from_u64(1);
    for valid in samples() {
        assert!(valid.len() > 100, "{} bytes are too few", valid.len());
        for len in 0..valid.len() {
            decode_all(&valid[..len]);
            let mut mutated = valid.clone();
            for flip in [0x01, 0x80, 0xff, rng.random_range(1..=255u8)] {
                mutated[len] = valid[len] ^ flip;
                decode_all(&mutated);
            }
        }
        let cut = &valid[..valid.len() - 1];
        assert!(record::decode_events(cut).is_err() && record::decode_objects(cut).is_err());
    }
}

#[test]
fn decoder_survives_random_bytes() {
    for seed in 0..20_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes: Vec<u8> = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
        if let Some(format) = bytes.first_mut().filter(|_| seed.is_multiple_of(2)) {
            *format = 1;
        }
        decode_all(&bytes);
    }
}

#[test]
fn snapshot_shows_the_state_at_its_beginning_whatever_happens_meanwhile() {
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = busy(seed, 300);
        // More objects than one chunk holds, so that the cursor stands in every table once.
        for _ in 0..900 {
            let jobs = vec![submission("", "", tasks(1, 1)), submission("", "", tasks(2, 1))];
            world.must(Command::Submit { jobs });
        }
        let begun = encoded(&world.state);
        let revision = world.state.begin_snapshot();
        let (mut objects, mut chunks) = (Vec::new(), 0);
        loop {
            let Some((of, chunk, last)) = world.state.next_chunk() else { panic!("it has no last chunk") };
            assert_eq!(of, revision);
            objects.extend(chunk);
            chunks += 1;
            if last {
                break;
            }
            (0..rng.random_range(1..60)).for_each(|_| world.act(&mut rng));
        }
        assert!(chunks > 3 && world.state.revision() > revision, "seed {seed}: nothing happened meanwhile");
        assert!(!world.state.is_snapshotting());
        let restored = State::from_objects(objects);
        assert_eq!(restored.check(), Ok(()), "seed {seed}");
        assert!(encoded(&restored) == begun, "seed {seed}: the snapshot is not of revision {revision}");
        // And what followed leads on to the present.
        let mut successor = restored;
        for event in world.events.iter().filter(|event| event.revision > revision) {
            successor.apply(event, &mut super::apply::Applied::default());
        }
        assert!(encoded(&successor) == encoded(&world.state), "seed {seed}: replay differs");
    }
}

/// A state as bytes, whatever has been derived in it.
fn encoded(state: &State) -> Vec<u8> {
    record::encode_objects(&state.objects())
}

#[test]
fn random_commands_break_no_invariant() {
    for seed in 0..40 {
        let world = busy(seed, 400);
        assert_eq!(world.state.check(), Ok(()), "seed {seed}");
        assert!(world.state.revision() > Revision(100));
    }
}

#[test]
fn prices_are_versions_that_never_reach_back() {
    let mut world = Fixture::new();
    let pool = world.pool("p", "CN-CQ", Vec::new());
    let rate = |micros_per_hour| Rate {
        kind: ResourceKind::Device,
        model: String::new(),
        micros_per_hour,
        from_minute: 0,
        to_minute: 1_440,
    };
    let set = |world: &mut Fixture, valid_from, rates| {
        let schedule = PriceSchedule { currency: "CNY".to_owned(), rates };
        world.command(Command::SetPrices { pool, valid_from, schedule })
    };
    set(&mut world, Timestamp(0), vec![rate(1)]).unwrap();
    let later = world.now.plus_ms(5_000);
    set(&mut world, later, vec![rate(2)]).unwrap();
    let versions: Vec<_> = world.state.prices_of(pool).map(|p| (p.version, p.valid_from)).collect();
    assert_eq!(versions, [(1, world.now), (2, later)]);
    assert_eq!(set(&mut world, later, vec![rate(3)]).unwrap_err().code(), "AlreadyExists");
    let refused = set(&mut world, later.plus_ms(1), vec![rate(u64::MAX)]).unwrap_err().to_string();
    assert!(
        refused.starts_with("schedule.rates[0].micros_per_hour: 18446744073709551615 is not"),
        "{refused}"
    );
    assert_eq!(world.state.check(), Ok(()));
}

#[test]
fn reservation_ends_by_itself_and_its_number_is_not_used_again() {
    let mut world = Fixture::new();
    let (from, until) = (world.now.plus_ms(100), world.now.plus_ms(5_000));
    let amounts = Resources { device_millis: 8_000, ..Resources::default() };
    let reservation = Reservation {
        id: ReservationId(0),
        queue: QueueId(1),
        pool: None,
        amounts,
        models: Vec::new(),
        from,
        until,
    };
    world.must(Command::Reserve { reservation: reservation.clone() });
    assert!(world.state.reservation(ReservationId(1)).is_some());
    world.pass(5_000);
    assert!(world.state.reservation(ReservationId(1)).is_none());
    assert_eq!(
        world.command(Command::Reserve { reservation: reservation.clone() }).unwrap_err().code(),
        "Invalid"
    );
    let restored = State::from_objects(world.state.objects());
    assert!(encoded(&restored) == encoded(&world.state));
    let until = world.now.plus_ms(1_000);
    world.must(Command::Reserve { reservation: Reservation { until, ..reservation } });
    assert!(world.state.reservation(ReservationId(2)).is_some());
}

#[test]
fn link_joins_two_known_regions_in_either_order() {
    let mut world = Fixture::new();
    let region = |text| RegionCode::parse(text).unwrap();
    let link = |a, b| Link {
        ends: (region(a), region(b)),
        bandwidth_bits_per_s: 10_000_000_000,
        round_trip_micros: 41_000,
        micros_per_gb: 20_000,
    };
    world.must(Command::SetLink { link: link("CN-XJ", "CN-CQ") });
    assert_eq!(world.state.link(region("CN-XJ"), region("CN-CQ")), Some(&link("CN-CQ", "CN-XJ")));
    let refused = world.command(Command::SetLink { link: link("CN-XJ", "CN-XJ") }).unwrap_err().to_string();
    assert_eq!(refused, "link.ends: CN-XJ twice: a link joins two regions");
}
