//! What follows the end of an attempt: retries, back-off, the end of the job, quarantine of the node.

use super::*;

#[test]
fn failed_unit_backs_off_doubling_until_its_attempts_are_used_up() {
    let (mut world, pool) = one_node();
    let mut spec = minimal();
    let on = vec![RetryOn::Failed];
    spec.retry = RetryPolicy { max_attempts: 3, on, backoff_ms: 1_000, backoff_max_ms: 60_000, ..spec.retry };
    let job = world.submit_spec(spec);
    for backoff_ms in [1_000, 2_000] {
        world.must_start(unit(job, 0), pool);
        world.end(unit(job, 0), OutcomeKind::Failed);
        world.pass(backoff_ms - 1);
        assert!(world.state.job(job).unwrap().groups[0].waiting.is_empty(), "before {backoff_ms} ms");
        world.pass(1);
        assert!(world.state.job(job).unwrap().groups[0].waiting.contains(0), "after {backoff_ms} ms");
    }
    world.must_start(unit(job, 0), pool);
    assert_eq!(world.state.attempt(unit(job, 0)).map(|attempt| attempt.number), Some(3));
    world.end(unit(job, 0), OutcomeKind::Failed);
    assert_eq!(world.ended(job), Some(JobEnd::Failed));
}

#[test]
fn unit_that_loses_its_nodes_backs_off_and_fails_in_the_end() {
    let (mut world, pool) = one_node();
    let mut spec = tasks(1, 1);
    spec.retry.max_node_losses = NodeLosses(2);
    let job = world.submit_spec(spec);
    let losses = [OutcomeKind::NodeLost, OutcomeKind::LeaseEnded];
    for (lost, kind) in losses.into_iter().enumerate() {
        world.must_start(unit(job, 0), pool);
        world.end(unit(job, 0), kind);
        let backs_off = world.state.job(job).unwrap().groups[0].backing_off();
        assert_eq!(backs_off, u32::from(lost > 0), "only the first loss is followed by a start at once");
        world.pass(60_000);
    }
    // Evictions of other kinds don't count.
    for kind in [OutcomeKind::Drained, OutcomeKind::Preempted, OutcomeKind::NotStarted] {
        world.must_start(unit(job, 0), pool);
        world.end(unit(job, 0), kind);
    }
    world.must_start(unit(job, 0), pool);
    world.end(unit(job, 0), OutcomeKind::NodeLost);
    assert_eq!(world.ended(job), Some(JobEnd::Failed));
}

#[test]
fn unit_whose_orders_come_back_again_and_again_backs_off() {
    let (mut world, pool) = one_node();
    let job = world.submit_spec(tasks(1, 1));
    let mut waits_ms = Vec::new();
    for _ in 0..12 {
        world.must_start(unit(job, 0), pool);
        world.end(unit(job, 0), OutcomeKind::NotStarted);
        let from = world.now;
        while world.state.job(job).unwrap().groups[0].waiting.is_empty() {
            world.pass(500);
        }
        waits_ms.push(world.now.ms_since(from));
    }
    assert_eq!(waits_ms[..6], [0, 0, 0, 500, 1_000, 2_000]);
    assert_eq!(waits_ms[11], 60_000);
    // A start ends the series.
    world.must_start(unit(job, 0), pool);
    world.end(unit(job, 0), OutcomeKind::Drained);
    world.must_start(unit(job, 0), pool);
    world.end(unit(job, 0), OutcomeKind::NotStarted);
    assert_eq!(world.state.job(job).unwrap().groups[0].backing_off(), 0);
}

#[test]
fn job_goes_on_while_no_more_units_fail_than_it_allows() {
    let (mut world, pool) = one_node();
    let mut spec = tasks(4, 1);
    spec.on_unit_failure = OnUnitFailure::Continue { max_failed: 1 };
    let tolerant = world.submit_spec(spec.clone());
    let strict = world.submit_spec(spec);
    for job in [tolerant, strict] {
        (0..4).for_each(|index| world.must_start(unit(job, index), pool));
    }
    world.end(unit(tolerant, 0), OutcomeKind::Failed);
    (1..4).for_each(|index| world.end(unit(tolerant, index), OutcomeKind::Succeeded));
    assert_eq!(world.ended(tolerant), Some(JobEnd::Failed), "a job of which a unit failed has not succeeded");
    (0..2).for_each(|index| world.end(unit(strict, index), OutcomeKind::Failed));
    world.pass(0);
    let phases: Vec<Phase> = world.state.attempts_of(strict).map(|attempt| attempt.phase).collect();
    assert_eq!(phases, [Phase::Stopping, Phase::Stopping]);
    (2..4).for_each(|index| world.end(unit(strict, index), OutcomeKind::Cancelled));
    assert_eq!(world.ended(strict), Some(JobEnd::Failed));
}

#[test]
fn drained_attempt_is_retried_and_does_not_count() {
    let (mut world, pool) = one_node();
    let other = world.pool("q", "CN-XJ", vec![node_spec("n1", 8, 0)]);
    let job = world.submit_spec(minimal());
    world.must_start(unit(job, 0), pool);
    world.report(unit(job, 0), AttemptStatus::Running { started_at: world.now });
    world.must(Command::DrainPool { pool, mode: DrainMode::Wait, deadline_ms: 1_000 });
    world.pass(999);
    assert_eq!(world.state.attempt(unit(job, 0)).map(|attempt| attempt.phase), Some(Phase::Running));
    world.pass(1);
    assert_eq!(world.state.attempt(unit(job, 0)).map(|attempt| attempt.phase), Some(Phase::Stopping));
    // The task dies of the stop's signal: that is the drain's doing, not its own.
    world.end(unit(job, 0), OutcomeKind::Failed);
    let refused = world.start_on(unit(job, 0), pool, NodeId(1), &[]);
    assert_eq!(refused, Err(Rejection::Outdated { what: "the pool" }));
    world.must_start(unit(job, 0), other);
    let again = world.state.attempt(unit(job, 0)).map(|attempt| (attempt.number, attempt.failures));
    assert_eq!(again, Some((2, 0)));
}

#[test]
fn node_that_fails_attempts_of_several_jobs_is_quarantined_and_released() {
    let mut world = Fixture::new();
    let pool = world.pool("p", "CN-CQ", vec![node_spec("n1", 64, 0)]);
    let at = NodeRef { pool, node: NodeId(1) };
    let held = |world: &Fixture| world.state.node(at).unwrap().failure_tracker.quarantined_until;
    let fault = |world: &mut Fixture| {
        let job = world.submit_spec(tasks(1, 1));
        world.must_start(unit(job, 0), pool);
        world.end_with(unit(job, 0), Outcome::of_node(OutcomeKind::StartFailed, ""));
    };
    (0..4).for_each(|_| fault(&mut world));
    // One attempt that ran proves that the node works: the count restarts.
    let job = world.submit_spec(tasks(1, 1));
    world.must_start(unit(job, 0), pool);
    world.end(unit(job, 0), OutcomeKind::Failed);
    (0..4).for_each(|_| fault(&mut world));
    assert_eq!(held(&world), None);
    fault(&mut world);
    assert_eq!(held(&world), Some(world.now.plus_ms(60_000)));
    let job = world.submit_spec(tasks(1, 1));
    assert!(world.start_on(unit(job, 0), pool, NodeId(1), &[]).is_err(), "a held node takes nothing");
    world.pass(60_000);
    assert_eq!(held(&world), None);
    world.must_start(unit(job, 0), pool);
    world.end_with(unit(job, 0), Outcome::of_node(OutcomeKind::StartFailed, ""));
    (0..4).for_each(|_| fault(&mut world));
    assert_eq!(held(&world), Some(world.now.plus_ms(120_000)), "the second time is twice as long");
    world.must(Command::CordonNode { pool, node: NodeId(1), cordoned: false });
    assert_eq!(held(&world), None, "an admin may end it");
    assert_eq!(world.state.check(), Ok(()));
}

/// What a user can cause, in however many jobs, closes no node to others.
#[test]
fn failures_that_the_backend_does_not_blame_on_the_node_quarantine_nothing() {
    let mut world = Fixture::new();
    let pool = world.pool("p", "CN-CQ", vec![node_spec("n1", 64, 0)]);
    for kind in
        [OutcomeKind::StartFailed, OutcomeKind::Vanished, OutcomeKind::TimedOut, OutcomeKind::OutOfMemory]
    {
        for _ in 0..10 {
            let job = world.submit_spec(tasks(1, 1));
            world.must_start(unit(job, 0), pool);
            world.end(unit(job, 0), kind);
        }
    }
    let node = world.state.node(NodeRef { pool, node: NodeId(1) }).unwrap();
    assert_eq!((node.failure_tracker.faults, node.failure_tracker.quarantined_until), (0, None));
}

#[test]
fn one_job_that_fails_everywhere_closes_no_node() {
    let mut world = Fixture::new();
    let pool = world.pool("p", "CN-CQ", vec![node_spec("n1", 64, 0)]);
    let mut spec = tasks(20, 1);
    spec.on_unit_failure = OnUnitFailure::Continue { max_failed: 20 };
    let job = world.submit_spec(spec);
    for index in 0..20 {
        world.must_start(unit(job, index), pool);
        world.end_with(unit(job, index), Outcome::of_node(OutcomeKind::StartFailed, ""));
    }
    assert_eq!(
        world.state.node(NodeRef { pool, node: NodeId(1) }).unwrap().failure_tracker.quarantined_until,
        None
    );
}
