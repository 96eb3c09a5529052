//! The rules of planning, each with its smallest example, and updated indexes compared with rebuilt ones.

mod reserved;

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Budget, Scheduler};
use crate::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use crate::model::demand::{ProfileEntry, WorkloadProfile};
use crate::model::device::DeviceAmount;
use crate::model::exchange::{Inventory, Part};
use crate::model::id::{JobId, NodeId, NodeRef, PoolId, UnitId};
use crate::model::limit::{OVERTAKING_AGE_MS_MAX, OVERTAKING_JOBS_MAX};
use crate::model::plan::Plan;
use crate::model::pool::{Connectivity, DrainMode, NodeSpec};
use crate::model::queue::default_settings;
use crate::model::reason::{Help, Permanence, PoolReason};
use crate::model::region::RegionCode;
use crate::model::resource::ResourceKind;
use crate::model::shape::Shape;
use crate::model::spec::{JobSpec, minimal};
use crate::state::command::Command;
use crate::state::fixture::{Fixture, node_spec, submission, tasks, unit, with_devices};
use crate::state::pool::Pool;

/// Folds the changes since the last round, plans with this budget, and applies the plan.
fn plan_round(world: &mut Fixture, scheduler: &mut Scheduler, budget: Budget) -> Plan {
    scheduler.fold(&world.state, &std::mem::take(&mut world.changes));
    let plan = scheduler.plan(&world.state, budget);
    for start in &plan.starts {
        world.must(Command::Start { start: start.clone() });
    }
    scheduler.fold(&world.state, &std::mem::take(&mut world.changes));
    plan
}

/// Plans until there is nothing more to start. Returns the starts as (job, pool, node of the first task).
fn plan_until_idle(world: &mut Fixture, scheduler: &mut Scheduler) -> Vec<(JobId, PoolId, NodeId)> {
    let mut starts = Vec::new();
    for _ in 0..100 {
        let plan = plan_round(world, scheduler, Budget::default());
        if plan.starts.is_empty() && !scheduler.has_work() {
            return starts;
        }
        starts.extend(plan.starts.iter().map(|s| (s.unit.job, s.pool, s.placements[0].node)));
    }
    panic!("planning never ends");
}

fn shape(spec: &JobSpec) -> Shape {
    Shape::of(spec, 0)
}

#[test]
fn why_has_each_pool_once_with_its_most_permanent_reason() {
    let mut world = Fixture::new();
    let node = |devices| vec![node_spec("n1", 8, devices)];
    let fits = world.pool("fits", "CN-CQ", node(4));
    let elsewhere = world.pool("elsewhere", "CN-XJ", node(4));
    let bare = world.pool("bare", "CN-CQ", node(0));
    let empty = world.pool("empty", "CN-CQ", Vec::new());
    let small = world.pool("small", "CN-CQ", node(1));
    let cordoned = world.pool("cordoned", "CN-CQ", node(4));
    let draining = world.pool("draining", "CN-CQ", node(4));
    let unreachable = world.pool("unreachable", "CN-CQ", node(4));
    let closed_node = world.pool("closed-node", "CN-CQ", node(4));
    let busy = world.pool("busy", "CN-CQ", node(2));
    world.must(Command::CordonPool { pool: cordoned, cordoned: true });
    world.must(Command::DrainPool { pool: draining, mode: DrainMode::Wait, deadline_ms: 0 });
    world.must(Command::ChangeConnectivity { pool: unreachable, connectivity: Connectivity::Unreachable });
    world.must(Command::CordonNode { pool: closed_node, node: NodeId(1), cordoned: true });
    let mut filler = with_devices(DeviceAmount::Whole(1));
    filler.constraints.pools = vec!["busy".to_owned()];
    world.submit_spec(filler);
    let mut scheduler = Scheduler::rebuild(&world.state);
    plan_until_idle(&mut world, &mut scheduler);
    let mut spec = with_devices(DeviceAmount::Whole(2));
    spec.constraints.regions_allowed = vec![RegionCode::parse("CN-CQ").unwrap()];
    let why = scheduler.why(&world.state, &shape(&spec));
    let found: Vec<_> = why.pools.into_iter().map(|why| (why.pool, why.reason)).collect();
    let device = ResourceKind::Device;
    let expected = [
        (fits, PoolReason::Fits),
        (elsewhere, PoolReason::RegionNotAllowed { region: RegionCode::parse("CN-XJ").unwrap() }),
        (bare, PoolReason::DeviceMissing { models: Vec::new() }),
        (empty, PoolReason::NoNodes),
        (small, PoolReason::TaskTooLarge { kind: device.clone(), needed: 2_000, largest: 1_000 }),
        (cordoned, PoolReason::PoolCordoned),
        (draining, PoolReason::PoolDraining),
        (unreachable, PoolReason::PoolUnreachable),
        (closed_node, PoolReason::NodesCordoned { nodes: 1 }),
        (busy, PoolReason::ResourcesBusy { kind: device, needed: 2_000, free: 1_000 }),
    ];
    assert_eq!(found, expected);
}

/// What `why` suggests for a job whose four devices per task, in `count` tasks that start together, are not free.
fn suggested(world: &mut Fixture, count: u32, devices: u32) -> Vec<Help> {
    let mut spec = with_devices(DeviceAmount::Whole(devices));
    (spec.groups[0].count, spec.groups[0].gang) = (count, count > 1);
    let scheduler = Scheduler::rebuild(&world.state);
    scheduler.why(&world.state, &shape(&spec)).would_help
}

#[test]
fn only_what_lets_the_unit_start_is_suggested() {
    let mut world = Fixture::new();
    let nodes = (1..4).map(|node| node_spec(&format!("n{node}"), 64, 4)).collect();
    let pool = world.pool("p", "CN-CQ", nodes);
    // One device of each node is taken.
    for node in 1..4 {
        let job = world.submit_spec(with_devices(DeviceAmount::Whole(1)));
        let share = crate::model::device::DeviceShare { index: 0, millis: 1_000 };
        world.start_on(unit(job, 0), pool, NodeId(node), &[share]).expect("free");
    }
    assert_eq!(suggested(&mut world, 1, 4), [Help::FewerDevices { devices: 3 }]);
    // Its tasks ask for fewer already, and with three each they need more than there is.
    assert_eq!(suggested(&mut world, 4, 2), []);
    assert_eq!(suggested(&mut world, 4, 4), []);
    world.must(Command::CordonPool { pool, cordoned: true });
    let uncordon = Help::UncordonPool { pool: "p".to_owned() };
    assert_eq!(suggested(&mut world, 1, 3), [uncordon]);
    assert_eq!(suggested(&mut world, 1, 4), [], "it would not fit either");
}

#[test]
fn why_agrees_with_planning() {
    let mut by_bucket = 0;
    for seed in 0..30 {
        let (mut world, mut scheduler, mut rng) = random_world(seed);
        for _ in 0..30 {
            (0..8).for_each(|_| world.act(&mut rng));
            plan_until_idle(&mut world, &mut scheduler);
            for class in world.state.classes().keys() {
                let shape = world.state.shape(class.shape).unwrap();
                let why = scheduler.why(&world.state, shape);
                let pools: Vec<PoolId> = world.state.pools().map(|pool| pool.id).collect();
                assert_eq!(why.pools.iter().map(|why| why.pool).collect::<Vec<_>>(), pools, "seed {seed}");
                let fits = why.pools.iter().any(|why| why.reason.permanence() == Permanence::Fits);
                let limited = world.state.queue_path(class.queue).any(|queue| {
                    let sum = queue.usage.checked_add(&shape.total()).unwrap();
                    queue.spec.limit.first_excess(&sum).is_some()
                });
                assert!(!fits || limited, "seed {seed}: {class:?} waits, though {:?}", why.pools);
                let packers = (&scheduler.packer, &scheduler.reserved.packer);
                let same = |pool: &&Pool| super::why::same_by_node(&world.state, packers, pool, shape);
                by_bucket += world.state.pools().filter(same).count();
            }
        }
    }
    assert!(by_bucket > 1_000, "only {by_bucket} pools were explained by their buckets");
}

#[test]
fn best_fit_fills_used_nodes_before_empty_ones() {
    let mut world = Fixture::new();
    let nodes = (1..5).map(|node| node_spec(&format!("n{node}"), 8, 4)).collect();
    world.pool("p", "CN-CQ", nodes);
    let mut scheduler = Scheduler::rebuild(&world.state);
    for _ in 0..8 {
        world.submit_spec(with_devices(DeviceAmount::Whole(1)));
    }
    let mut used: Vec<NodeId> =
        plan_until_idle(&mut world, &mut scheduler).into_iter().map(|s| s.2).collect();
    used.sort_unstable();
    assert_eq!(used, [1, 1, 1, 1, 2, 2, 2, 2].map(NodeId));
    // Two nodes stay free as a whole for jobs that need one.
    for _ in 0..2 {
        world.submit_spec(with_devices(DeviceAmount::Whole(4)));
    }
    assert_eq!(plan_until_idle(&mut world, &mut scheduler).len(), 2);
}

#[test]
fn fraction_goes_to_the_device_that_it_fills_best() {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("n1", 64, 4)]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    for millis in [600, 500, 400, 500] {
        world.submit_spec(with_devices(DeviceAmount::Fraction(millis)));
        plan_until_idle(&mut world, &mut scheduler);
    }
    let pool = world.state.pools().next().unwrap();
    assert_eq!(pool.nodes[&NodeId(1)].committed_devices, [1_000, 1_000, 0, 0]);
}

#[test]
fn order_is_priority_then_submission() {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 0)]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    let mut submit = |priority| {
        let mut spec = tasks(1, 8);
        spec.priority = priority;
        world.submit_spec(spec)
    };
    let [low, first, second, high] = [submit(-1), submit(0), submit(0), submit(5)];
    let mut started = Vec::new();
    for expected in [high, first, second, low] {
        started.extend(plan_until_idle(&mut world, &mut scheduler).into_iter().map(|start| start.0));
        world.end(unit(expected, 0), OutcomeKind::Succeeded);
    }
    assert_eq!(started, [high, first, second, low]);
}

#[test]
fn gang_that_does_not_fit_whole_takes_nothing() {
    let mut world = Fixture::new();
    let pool = world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 0), node_spec("n2", 8, 0)]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    let blocker = world.submit_spec(tasks(1, 5));
    plan_until_idle(&mut world, &mut scheduler);
    let mut gang = tasks(4, 4);
    gang.groups[0].gang = true;
    let gang = world.submit_spec(gang);
    assert_eq!(plan_until_idle(&mut world, &mut scheduler), []);
    assert!(
        scheduler.same_nodes(&Scheduler::rebuild(&world.state)),
        "the attempted placement was not undone"
    );
    // Capacity that the gang can't use yet is free for other jobs.
    let small = world.submit_spec(tasks(2, 4));
    assert_eq!(plan_until_idle(&mut world, &mut scheduler).len(), 2);
    world.end(unit(blocker, 0), OutcomeKind::Succeeded);
    assert_eq!(plan_until_idle(&mut world, &mut scheduler), []);
    (0..2).for_each(|index| world.end(unit(small, index), OutcomeKind::Succeeded));
    let starts = plan_until_idle(&mut world, &mut scheduler);
    assert_eq!(starts.iter().map(|start| (start.0, start.1)).collect::<Vec<_>>(), [(gang, pool)]);
    assert_eq!(world.state.attempt(unit(gang, 0)).map(|attempt| attempt.placements.len()), Some(4));
}

#[test]
fn class_at_its_queues_limit_waits_until_the_queue_holds_less() {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("n1", 32, 0)]);
    let mut city = default_settings("city");
    city.limit.cpu_millis = Some(4_000);
    world.must(Command::CreateQueue { spec: city });
    world.must(Command::CreateQueue { spec: default_settings("city/a") });
    let mut scheduler = Scheduler::rebuild(&world.state);
    let job = world.submit(submission("", "city/a", tasks(3, 2)));
    let other = world.submit_spec(tasks(1, 2));
    let started: Vec<JobId> = plan_until_idle(&mut world, &mut scheduler).into_iter().map(|s| s.0).collect();
    assert_eq!(started, [job, job, other]);
    world.end(unit(other, 0), OutcomeKind::Succeeded);
    assert_eq!(plan_until_idle(&mut world, &mut scheduler), []);
    world.end(unit(job, 0), OutcomeKind::Succeeded);
    assert_eq!(plan_until_idle(&mut world, &mut scheduler).len(), 1);
}

#[test]
fn round_stays_within_its_budget_and_the_next_one_continues() {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("n1", 64, 0)]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    let job = world.submit_spec(tasks(10, 1));
    let budget = Budget { starts: 4, ..Budget::default() };
    let units = |plan: Plan| plan.starts.iter().map(|start| start.unit).collect::<Vec<_>>();
    let numbers = |range: std::ops::Range<u32>| range.map(|index| unit(job, index)).collect::<Vec<UnitId>>();
    assert_eq!(units(plan_round(&mut world, &mut scheduler, budget)), numbers(0..4));
    assert_eq!(units(plan_round(&mut world, &mut scheduler, budget)), numbers(4..8));
    assert_eq!(units(plan_round(&mut world, &mut scheduler, budget)), numbers(8..10));
    assert!(!scheduler.has_work());
}

#[test]
fn unit_that_failed_on_a_node_is_placed_on_another_node() {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 0), node_spec("n2", 8, 0)]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    let job = world.submit_spec(minimal());
    let first = plan_until_idle(&mut world, &mut scheduler)[0].2;
    world.end(unit(job, 0), OutcomeKind::NodeLost);
    let second = plan_until_idle(&mut world, &mut scheduler)[0].2;
    assert_ne!(first, second);
}

/// Random pools, a scheduler over them, and the generator for what happens next.
fn random_world(seed: u64) -> (Fixture, Scheduler, StdRng) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = Fixture::new();
    for (pool, region) in ["CN-CQ", "CN-XJ", "CN-GZ"].into_iter().enumerate() {
        let nodes = (1..4).map(|node| node_spec(&format!("n{node}"), rng.random_range(4..33), 4)).collect();
        world.pool(&format!("pool-{pool}"), region, nodes);
    }
    let scheduler = Scheduler::rebuild(&world.state);
    (world, scheduler, rng)
}

#[test]
fn updated_index_equals_a_rebuilt_one_and_starts_all_that_it_would_start() {
    let mut compared = 0;
    for seed in 0..40 {
        let (mut world, mut scheduler, mut rng) = random_world(seed);
        for step in 0..60 {
            (0..rng.random_range(1..8)).for_each(|_| world.act(&mut rng));
            let starts = rng.random_range(1..12);
            plan_round(&mut world, &mut scheduler, Budget { starts, ..Budget::default() });
            assert!(
                scheduler.same_nodes(&Scheduler::rebuild(&world.state)),
                "seed {seed} step {step}: indexes differ"
            );
            if step % 10 == 9 {
                plan_until_idle(&mut world, &mut scheduler);
                // Which nodes are reserved is not part of the state: a rebuilt scheduler has none.
                if scheduler.has_reserved_nodes() {
                    continue;
                }
                compared += 1;
                let late =
                    Scheduler::rebuild(&world.state).plan(&world.state, Budget::default()).starts.len();
                assert_eq!(late, 0, "seed {seed} step {step}: the updated index leaves {late} units waiting");
            }
        }
        assert_eq!(world.state.check(), Ok(()), "seed {seed}");
    }
    assert!(compared > 100, "{compared} of 240 were without reserved nodes");
}

/// One node of eight cores, on which a task of eight cores has just run for a very short time.
fn cluster_of_short_tasks(spec: &JobSpec) -> (Fixture, Scheduler, JobId) {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 0)]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    let job = world.submit_spec(spec.clone());
    assert_eq!(
        plan_until_idle(&mut world, &mut scheduler).len(),
        1,
        "before a task has run, no claim is reused"
    );
    world.end(unit(job, 0), OutcomeKind::Succeeded);
    (world, scheduler, job)
}

#[test]
fn short_tasks_queue_behind_running_ones_and_reuse_the_claim_in_order() {
    let (mut world, mut scheduler, job) = cluster_of_short_tasks(&tasks(20, 8));
    assert_eq!(
        plan_until_idle(&mut world, &mut scheduler).len(),
        5,
        "one runs and four are queued behind its claim"
    );
    let after = |world: &Fixture, index| world.state.attempt(unit(job, index)).unwrap().after;
    let claim = |world: &Fixture, from| (from..from + 5).map(|i| after(world, i)).collect::<Vec<_>>();
    let behind = |index| Some(unit(job, index));
    assert_eq!(claim(&world, 1), [None, behind(1), behind(2), behind(3), behind(4)]);
    // A successor that leaves is replaced by the one behind it. An attempt that ends passes its capacity on.
    world.end(unit(job, 3), OutcomeKind::NotStarted);
    world.end(unit(job, 1), OutcomeKind::Succeeded);
    assert_eq!([2, 4, 5].map(|index| after(&world, index)), [None, behind(2), behind(4)]);
    plan_until_idle(&mut world, &mut scheduler);
    assert_eq!(world.state.check(), Ok(()));
    assert_eq!(world.state.job(job).unwrap().live(), 5);
}

#[test]
fn claim_that_a_job_ahead_could_use_is_not_reused() {
    let (mut world, mut scheduler, job) = cluster_of_short_tasks(&tasks(20, 8));
    plan_until_idle(&mut world, &mut scheduler);
    let mut urgent = tasks(1, 7);
    urgent.priority = 1;
    let urgent = world.submit_spec(urgent);
    // The successors that were queued before it was submitted start first, and no further ones.
    for index in 1..6 {
        plan_until_idle(&mut world, &mut scheduler);
        assert_eq!(world.state.job(urgent).unwrap().live(), 0, "before unit {index} ends");
        world.end(unit(job, index), OutcomeKind::Succeeded);
    }
    plan_until_idle(&mut world, &mut scheduler);
    assert_eq!(world.state.job(urgent).unwrap().live(), 1);
}

#[test]
fn claim_that_is_passed_on_stays_committed_though_its_node_is_gone() {
    let (mut world, mut scheduler, job) = cluster_of_short_tasks(&tasks(20, 8));
    let pool = world.state.pool_named("p").unwrap().id;
    plan_until_idle(&mut world, &mut scheduler);
    world.must(Command::RemoveNodes { pool, nodes: vec![NodeId(1)] });
    world.end(unit(job, 1), OutcomeKind::Succeeded);
    assert_eq!(world.state.check(), Ok(()));
    let node = world
        .state
        .node(NodeRef { pool, node: NodeId(1) })
        .expect("a removed node stays while a task holds it");
    assert!(node.gone && node.tasks == 1);
}

/// A gang may wait for the capacity of any of its tasks, also of the one that asks for most devices.
#[test]
fn gang_starts_when_the_capacity_of_its_larger_task_is_freed() {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("cores", 8, 0), node_spec("device", 4, 1)]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    let first = world.submit_spec(with_devices(DeviceAmount::Whole(1)));
    assert_eq!(plan_until_idle(&mut world, &mut scheduler).len(), 1);
    let mut gang = with_devices(DeviceAmount::Whole(1));
    gang.gang_job = true;
    let mut cores = gang.groups[0].clone();
    cores.name = "cores".to_owned();
    (cores.request.devices, cores.request.resources.cpu_millis) = (None, 8_000);
    gang.groups.push(cores);
    world.submit_spec(gang);
    assert_eq!(plan_until_idle(&mut world, &mut scheduler).len(), 0);
    end_after_long(&mut world, unit(first, 0));
    assert_eq!(plan_until_idle(&mut world, &mut scheduler).len(), 1);
}

/// Small tasks of a gang must not take the capacity that its large tasks need, whatever the order of its groups.
#[test]
fn gang_places_its_large_tasks_first() {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("a", 4, 0), node_spec("b", 9, 0)]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    let mut gang = minimal();
    gang.gang_job = true;
    gang.groups[0].request.resources.cpu_millis = 1_000;
    let mut large = gang.groups[0].clone();
    (large.name, large.count) = ("large".to_owned(), 3);
    large.request.resources.cpu_millis = 4_000;
    gang.groups.push(large);
    let job = world.submit_spec(gang);
    assert_eq!(plan_until_idle(&mut world, &mut scheduler).len(), 1);
    let attempt = world.state.attempt(unit(job, 0)).expect("an attempt");
    // The places are by rank, so the small task's is the first. By best fit alone it would take the node with 4 CPUs.
    let nodes: Vec<u32> = attempt.placements.iter().map(|placement| placement.node.0).collect();
    let small_nodes = nodes.iter().filter(|node| **node == nodes[0]).count();
    assert_eq!((nodes.len(), small_nodes), (4, 3), "{nodes:?}");
}

/// Ends a unit after so long a run that claims of its class are not reused.
fn end_after_long(world: &mut Fixture, unit: UnitId) {
    world.report(unit, AttemptStatus::Running { started_at: world.now });
    let started_at = Some(world.now);
    world.pass(1_000);
    let outcome = Outcome::plain(OutcomeKind::Succeeded, "");
    world.report(unit, AttemptStatus::Ended { started_at, ended_at: world.now, outcome });
}

#[test]
fn claims_of_long_tasks_are_not_reused() {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 0)]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    let job = world.submit_spec(tasks(5, 8));
    plan_until_idle(&mut world, &mut scheduler);
    end_after_long(&mut world, unit(job, 0));
    assert_eq!(plan_until_idle(&mut world, &mut scheduler).len(), 1);
}

/// A profile whose overflow mostly asks for whole devices: a share on an untouched device strands much.
fn whole_devices_overflow() -> Command {
    let demand = |amount| {
        let shape = shape(&with_devices(amount));
        let world = Fixture::new();
        Arc::new(world.state.demand_of(&shape.tasks[0].0, &shape))
    };
    let expected = |amount, overflow| ProfileEntry { demand: demand(amount), weight: 1, overflow };
    let entries = vec![expected(DeviceAmount::Whole(1), 9), expected(DeviceAmount::Fraction(500), 1)];
    Command::UpdateWorkloadProfile {
        profile: Some(Arc::new(WorkloadProfile { arrivals: 100, turnover_percent: 100, entries })),
    }
}

/// The job that starts first: one that asks for a share, or, submitted after `later`, one that asks for a
/// device.
fn first_started(later: impl FnOnce(&mut Fixture)) -> JobId {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 2)]);
    world.must(whole_devices_overflow());
    world.submit_spec(with_devices(DeviceAmount::Fraction(300)));
    later(&mut world);
    world.submit_spec(with_devices(DeviceAmount::Whole(1)));
    let mut scheduler = Scheduler::rebuild(&world.state);
    let plan = scheduler.plan(&world.state, Budget { starts: 1, work: 1_000_000 });
    plan.starts[0].unit.job
}

#[test]
fn job_that_strands_less_starts_before_an_earlier_one() {
    assert_eq!(first_started(|_| {}), JobId(2));
}

#[test]
fn job_is_not_passed_over_by_a_much_later_one() {
    assert_eq!(first_started(|world| world.pass(OVERTAKING_AGE_MS_MAX + 1)), JobId(1));
    let many = |world: &mut Fixture| {
        let mut filler = with_devices(DeviceAmount::Whole(8));
        filler.priority = -1;
        for _ in 0..OVERTAKING_JOBS_MAX {
            world.submit_spec(filler.clone());
        }
    };
    assert_eq!(first_started(many), JobId(1));
}

#[test]
fn profile_is_due_after_some_tasks_and_has_the_overflow() {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", vec![node_spec("n1", 8, 2), node_spec("n2", 8, 2)]);
    for _ in 0..16 {
        assert!(!world.state.workload().is_check_due());
        world.submit_spec(with_devices(DeviceAmount::Whole(1)));
    }
    assert!(world.state.workload().is_check_due());
    let profile = Scheduler::updated_profile(&world.state).unwrap();
    assert_eq!((profile.arrivals, profile.entries.len()), (16, 1));
    assert!(profile.entries[0].overflow > 0);
    world.must(Command::UpdateWorkloadProfile { profile: Some(Arc::new(profile)) });
    assert!(!world.state.workload().is_check_due());
}

#[test]
fn broken_device_closes_neither_the_rest_of_its_node_nor_tasks_without_devices() {
    let mut world = Fixture::new();
    let node = node_spec("n1", 8, 3);
    let pool = world.pool("p", "CN-CQ", vec![node.clone()]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    for _ in 0..2 {
        world.submit_spec(with_devices(DeviceAmount::Whole(1)));
    }
    assert_eq!(plan_until_idle(&mut world, &mut scheduler).len(), 2);
    let report = |world: &mut Fixture, node: NodeSpec| {
        let epoch = world.state.pool(pool).unwrap().epoch;
        let (nodes, removed) = (vec![node], Vec::new());
        let inventory = Inventory { epoch, part: Part::Delta, nodes, removed };
        world.must(Command::ReportNodes { pool, inventory });
    };
    // A device breaks that a task holds.
    let mut broken = node.clone();
    broken.devices[0].healthy = false;
    report(&mut world, broken);
    for job in [minimal(), with_devices(DeviceAmount::Whole(1))] {
        let id = world.submit_spec(job);
        assert_eq!(plan_until_idle(&mut world, &mut scheduler), [(id, pool, NodeId(1))]);
    }
    let waits = with_devices(DeviceAmount::Whole(1));
    let why = scheduler.why(&world.state, &shape(&waits)).pools[0].reason.clone();
    assert!(matches!(why, PoolReason::ResourcesBusy { kind: ResourceKind::Device, .. }), "{why:?}");
    // A device is gone: the indexes of the others may have changed, and nothing new starts until the tasks have ended.
    let mut gone = node;
    gone.devices.pop();
    report(&mut world, gone);
    world.submit_spec(minimal());
    assert_eq!(plan_until_idle(&mut world, &mut scheduler), []);
}
