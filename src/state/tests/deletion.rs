//! Pools and queues are deleted only when nothing depends on them, and then without a trace.

use super::*;
use crate::model::pool::Connectivity;

fn delete_pool(name: &str) -> Command {
    Command::DeletePool { name: name.to_owned(), based_on: Revision(0) }
}

fn delete_queue(name: &str) -> Command {
    Command::DeleteQueue { name: name.to_owned(), based_on: Revision(0) }
}

/// The state as it is, and as a restart would load it, are valid and equal.
fn check(world: &Fixture) {
    assert_eq!(world.state.check(), Ok(()));
    let restored = State::from_objects(world.state.objects());
    assert_eq!(restored.check(), Ok(()));
    assert!(encoded(&restored) == encoded(&world.state));
}

#[test]
fn pool_is_deleted_once_its_agent_is_gone_and_nothing_may_run_there() {
    let (mut world, pool) = one_node();
    let job = world.submit_spec(tasks(1, 1));
    world.must_start(unit(job, 0), pool);
    refused(
        world.command(delete_pool("p")),
        expect![[
            r#"InUse: pool "p" is in use: 1 attempt runs there; drain the pool, and when it is empty stop its agent and wait 15 s"#
        ]],
    );
    world.must(Command::ChangeConnectivity { pool, connectivity: Connectivity::Lost });
    refused(
        world.command(delete_pool("p")),
        expect![[
            r#"InUse: pool "p" is in use: 1 attempt may still run there, such as aaaaaaaabk-1-0-1; drain the pool while its agent runs, or give each up with `weir admin abandon`"#
        ]],
    );
    let attempt = world.state.attempt(unit(job, 0)).unwrap().id(world.state.journal());
    world.must(Command::Abandon { attempt });
    world.must(delete_pool("p"));
    assert!(world.state.pool_named("p").is_none() && world.state.pool(pool).is_none());
    check(&world);
    refused(world.command(delete_pool("p")), expect![[r#"NotFound: pool "p" does not exist"#]]);
}

#[test]
fn what_belongs_to_a_deleted_pool_goes_with_it_and_its_name_is_free() {
    let (mut world, pool) = one_node();
    let valid_from = world.now.plus_ms(1_000);
    let rate = Rate {
        kind: ResourceKind::Device,
        model: String::new(),
        micros_per_hour: 1,
        from_minute: 0,
        to_minute: 1_440,
    };
    let schedule = PriceSchedule { currency: "CNY".to_owned(), rates: vec![rate] };
    world.must(Command::SetPrices { pool, valid_from, schedule });
    let reservation = Reservation {
        id: ReservationId(0),
        queue: QueueId(1),
        pool: Some(pool),
        amounts: Resources { device_millis: 1_000, ..Resources::default() },
        models: Vec::new(),
        from: world.now,
        until: world.now.plus_ms(60_000),
    };
    world.must(Command::Reserve { reservation });
    world.must(Command::CordonNode { pool, node: NodeId(1), cordoned: true });
    world.must(Command::DrainPool { pool, mode: DrainMode::Wait, deadline_ms: 5_000 });
    world.must(Command::ChangeConnectivity { pool, connectivity: Connectivity::Unreachable });
    world.must(delete_pool("p"));
    assert_eq!(world.state.prices_of(pool).count(), 0);
    assert!(world.state.reservation(ReservationId(1)).is_none());
    assert_eq!(world.state.next_timer(), None);
    check(&world);
    // Another agent may have the name; it gets a number of its own and no cordon.
    let other = world.pool("p", "CN-XJ", vec![node_spec("n1", 8, 4)]);
    assert_ne!(other, pool);
    assert!(world.state.pool(other).unwrap().nodes.values().all(|node| !node.cordoned));
    check(&world);
}

#[test]
fn queue_is_deleted_once_it_has_no_jobs_and_no_children() {
    let mut world = Fixture::new();
    for name in ["team", "team/a"] {
        world.must(Command::CreateQueue { spec: default_settings(name) });
    }
    refused(
        world.command(delete_queue("team")),
        expect![[r#"InUse: queue "team" is in use: "team/a" is below it; delete that first"#]],
    );
    let job = world.submit(submission("j", "team/a", minimal()));
    refused(
        world.command(delete_queue("team/a")),
        expect![[
            r#"InUse: queue "team/a" is in use: it has 1 job that has not ended; cancel them, or wait"#
        ]],
    );
    world.must(Command::Cancel { jobs: vec![job], reason: String::new() });
    let queue = world.state.queue_named("team/a").unwrap().id;
    let reservation = Reservation {
        id: ReservationId(0),
        queue,
        pool: None,
        amounts: Resources { device_millis: 1_000, ..Resources::default() },
        models: Vec::new(),
        from: world.now,
        until: world.now.plus_ms(60_000),
    };
    world.must(Command::Reserve { reservation });
    world.must(delete_queue("team/a"));
    assert!(world.state.reservation(ReservationId(1)).is_none());
    world.must(delete_queue("team"));
    check(&world);
    refused(
        world.command(delete_queue("default")),
        expect!["Invalid: name: the default queue can't be deleted"],
    );
    world.must(Command::CreateQueue { spec: default_settings("team") });
    assert!(world.state.queue_named("team").unwrap().id > queue, "a number is given once");
}

#[test]
fn deletion_based_on_an_old_revision_is_refused_and_a_repeated_one_is_not() {
    let mut world = Fixture::new();
    world.must(Command::CreateQueue { spec: default_settings("team") });
    let seen = world.state.queue_named("team").unwrap().revision;
    let mut spec = default_settings("team");
    spec.weight = 2;
    world.must(Command::UpdateQueue { spec, based_on: Revision(0) });
    let outdated = Command::DeleteQueue { name: "team".to_owned(), based_on: seen };
    assert_eq!(world.command(outdated).unwrap_err().code(), "Conflict");
    let request = with_token("t", b"delete", delete_queue("team"));
    world.request(&request).unwrap();
    world.request(&request).expect("its token is known, though the queue is gone");
}
