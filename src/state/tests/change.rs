//! Live jobs are changed, held and released, and single units of them are cancelled.

use super::*;
use crate::model::attempt::StopReason;
use crate::model::change::Change;
use crate::model::interval::IntervalSet;
use crate::state::command::{JobChange, Submission};

fn update(world: &mut Fixture, job: JobId, change: JobChange) -> Result<Reply, Rejection> {
    world.command(Command::UpdateJob { job, based_on: Revision(0), change })
}

fn held(held: bool) -> JobChange {
    JobChange { held: Some(held), ..JobChange::default() }
}

fn cancel_units(world: &mut Fixture, job: JobId, units: &str) {
    let units = IntervalSet::parse(units).unwrap();
    world.must(Command::CancelUnits { job, units });
    check(world);
}

/// The state as it is, and as a restart would load it, are valid and equal.
fn check(world: &Fixture) {
    assert_eq!(world.state.check(), Ok(()));
    let restored = State::from_objects(world.state.objects());
    assert_eq!(restored.check(), Ok(()));
    assert!(encoded(&restored) == encoded(&world.state));
}

/// A job of independent tasks on one large node.
fn array(count: u32) -> (Fixture, PoolId, JobId) {
    let (mut world, pool) = one_node();
    let mut spec = tasks(count, 1);
    spec.on_unit_failure = OnUnitFailure::Continue { max_failed: u32::MAX };
    let job = world.submit_spec(spec);
    (world, pool, job)
}

#[test]
fn held_job_starts_nothing_and_what_it_runs_goes_on() {
    let (mut world, pool, job) = array(2);
    world.must_start(unit(job, 0), pool);
    update(&mut world, job, held(true)).unwrap();
    check(&world);
    assert!(world.state.classes().is_empty(), "no unit waits for a place");
    assert!(world.start_on(unit(job, 1), pool, NodeId(1), &[]).is_err());
    assert_eq!(world.state.attempt(unit(job, 0)).map(|attempt| attempt.stop), Some(None));
    world.end(unit(job, 0), OutcomeKind::Succeeded);
    update(&mut world, job, held(false)).unwrap();
    check(&world);
    world.must_start(unit(job, 1), pool);
    world.end(unit(job, 1), OutcomeKind::Succeeded);
    assert_eq!(world.ended(job), Some(JobEnd::Succeeded));
}

#[test]
fn job_is_held_from_its_submission_on() {
    let mut world = Fixture::new();
    let submission = Submission { held: true, ..submission("later", "", minimal()) };
    let job = world.submit(submission);
    assert!(world.state.classes().is_empty() && world.state.job(job).unwrap().held);
    check(&world);
}

#[test]
fn change_of_a_job_moves_it_to_another_class_and_leaves_the_specs_of_others() {
    let (mut world, pool, first) = array(3);
    let second = world.submit_spec((*world.state.job_view(first).unwrap().spec).clone());
    world.must_start(unit(first, 0), pool);
    let change = JobChange {
        priority: Some(7),
        max_run_ms: Some(60_000),
        labels: [("a".to_owned(), "1".to_owned())].into(),
        ..JobChange::default()
    };
    let before = world.changes.len();
    update(&mut world, first, change.clone()).unwrap();
    check(&world);
    let priorities: Vec<i32> = world.state.classes().keys().map(|class| class.priority).collect();
    assert_eq!(priorities, [0, 7]);
    let notified = world.changes[before..].iter().filter(|change| matches!(change, Change::Class(_)));
    assert_eq!(notified.count(), 2, "both classes");
    let spec = |world: &Fixture, job| world.state.job_view(job).unwrap().spec;
    assert_eq!((spec(&world, first).max_run_ms, spec(&world, first).labels["a"].as_str()), (60_000, "1"));
    assert_eq!((spec(&world, second).priority, spec(&world, second).labels.len()), (0, 0));
    // The same change again is none.
    let revision = world.state.revision();
    update(&mut world, first, change).unwrap();
    assert_eq!(world.state.revision(), revision);
    let removed = JobChange { labels_removed: vec!["a".to_owned()], ..JobChange::default() };
    update(&mut world, first, removed).unwrap();
    assert!(spec(&world, first).labels.is_empty());
    check(&world);
}

#[test]
fn change_is_refused_if_it_is_not_valid_or_based_on_what_is_no_longer() {
    let (mut world, _, job) = array(1);
    let seen = world.state.job(job).unwrap().revision;
    let change = JobChange { priority: Some(1_000_001), ..JobChange::default() };
    refused(
        update(&mut world, job, change),
        expect!["Invalid: change.priority: 1000001 is not within -1000000 and 1000000"],
    );
    update(&mut world, job, held(true)).unwrap();
    let command = Command::UpdateJob { job, based_on: seen, change: held(false) };
    assert!(matches!(world.command(command), Err(Rejection::Conflict { .. })));
    world.must(Command::Cancel { jobs: vec![job], reason: "no longer needed".to_owned() });
    assert!(matches!(update(&mut world, job, held(false)), Err(Rejection::NotFound { .. })));
    let ended = world.finished(job).and_then(|ended| ended.view().failure);
    assert_eq!(ended.map(|failure| failure.message), Some("no longer needed".into()));
}

#[test]
fn cancelled_units_end_or_are_stopped_and_the_others_go_on() {
    let (mut world, pool, job) = array(6);
    world.must_start(unit(job, 0), pool);
    world.must_start(unit(job, 1), pool);
    cancel_units(&mut world, job, "1,3-4");
    let stop = |world: &Fixture, number| world.state.attempt(unit(job, number)).unwrap().stop;
    assert_eq!((stop(&world, 0), stop(&world, 1)), (None, Some(StopReason::Cancelled)));
    let counts = world.state.job_view(job).unwrap().counts;
    assert_eq!((counts.waiting, counts.live, counts.failed), (2, 2, 2));
    // Whatever its attempt ended with: a cancelled unit gets no other one.
    world.end(unit(job, 1), OutcomeKind::NodeLost);
    cancel_units(&mut world, job, "1,3-4");
    assert_eq!(world.state.job_view(job).unwrap().counts.failed, 3);
    world.end(unit(job, 0), OutcomeKind::Succeeded);
    cancel_units(&mut world, job, "0-5");
    assert_eq!(world.ended(job), Some(JobEnd::Failed), "not all of its units succeeded");
    refused(
        {
            let (mut world, _, job) = array(2);
            let units = IntervalSet::parse("1-2").unwrap();
            world.command(Command::CancelUnits { job, units })
        },
        expect!["Invalid: units: 2 is not within 0 and 1"],
    );
}

#[test]
fn job_that_allows_no_failure_fails_with_its_first_cancelled_unit() {
    let (mut world, pool) = one_node();
    let mut spec = tasks(3, 1);
    spec.on_unit_failure = OnUnitFailure::FailJob;
    let job = world.submit_spec(spec);
    world.must_start(unit(job, 0), pool);
    cancel_units(&mut world, job, "2");
    assert!(world.state.job(job).unwrap().closing.is_some());
    world.end(unit(job, 0), OutcomeKind::Cancelled);
    assert_eq!(world.ended(job), Some(JobEnd::Failed));
}

#[test]
fn cancelled_unit_gets_no_other_attempt_though_its_attempt_was_being_stopped_already() {
    let (mut world, pool, job) = array(2);
    world.must_start(unit(job, 0), pool);
    world.report(unit(job, 0), AttemptStatus::Running { started_at: world.now });
    world.must(Command::DrainPool { pool, mode: DrainMode::Evict, deadline_ms: 0 });
    world.pass(0);
    let stop = |world: &Fixture| world.state.attempt(unit(job, 0)).unwrap().stop;
    assert_eq!(stop(&world), Some(StopReason::Drained));
    cancel_units(&mut world, job, "0");
    assert_eq!(stop(&world), Some(StopReason::Cancelled));
    // Once more changes nothing.
    let revision = world.state.revision();
    cancel_units(&mut world, job, "0");
    assert_eq!(world.state.revision(), revision);
    world.end(unit(job, 0), OutcomeKind::Drained);
    let counts = world.state.job_view(job).unwrap().counts;
    assert_eq!((counts.waiting, counts.live, counts.failed), (1, 0, 1));
}

#[test]
fn shorter_maximum_run_time_ends_what_runs_and_a_longer_one_does_not_prolong_it() {
    let (mut world, pool, job) = array(1);
    let limit = |ms| JobChange { max_run_ms: Some(ms), ..JobChange::default() };
    update(&mut world, job, limit(600_000)).unwrap();
    world.must_start(unit(job, 0), pool);
    world.report(unit(job, 0), AttemptStatus::Running { started_at: world.now });
    let ends_by = |world: &Fixture| world.state.attempt(unit(job, 0)).unwrap().ends_by;
    let before = ends_by(&world);
    update(&mut world, job, limit(900_000)).unwrap();
    assert_eq!(ends_by(&world), before);
    update(&mut world, job, limit(60_000)).unwrap();
    check(&world);
    world.pass(60_000);
    assert_eq!(world.state.attempt(unit(job, 0)).unwrap().stop, None, "it has some seconds more");
    world.pass(60_000);
    assert_eq!(world.state.attempt(unit(job, 0)).unwrap().stop, Some(StopReason::TimedOut));
}
