//! Nodes that are reserved: for jobs that have waited long, and for jobs of higher priority.

use super::*;
use crate::model::limit::{NODES_PER_RESERVED_NODE, RESERVATION_WAIT_MS_MIN};

/// The smallest cluster in which a node is reserved.
const NODES: usize = NODES_PER_RESERVED_NODE / 2;

/// A full cluster of nodes with two devices: tasks of one device run, the first waiting job asks for two
/// devices, and behind it wait more tasks of one device.
struct FullCluster {
    world: Fixture,
    scheduler: Scheduler,
    running: JobId,
    wide: JobId,
    nodes: Vec<NodeId>,
}

fn full_cluster() -> FullCluster {
    full_cluster_with(0)
}

/// A full cluster in which jobs of two devices run on `wide` of the nodes.
fn full_cluster_with(wide: u32) -> FullCluster {
    let mut world = Fixture::new();
    let nodes = (0..NODES).map(|at| node_spec(&format!("n{at}"), 8, 2)).collect();
    world.pool("p", "CN-CQ", nodes);
    world.must(whole_devices_overflow());
    for _ in 0..wide {
        world.submit_spec(with_devices(DeviceAmount::Whole(2)));
    }
    let mut many = with_devices(DeviceAmount::Whole(1));
    many.groups[0].count = 2 * (NODES as u32 - wide);
    let running = world.submit_spec(many.clone());
    let mut scheduler = Scheduler::rebuild(&world.state);
    let starts =
        plan_until_idle(&mut world, &mut scheduler).into_iter().filter(|(job, _, _)| *job == running);
    let nodes: Vec<NodeId> = starts.map(|(_, _, node)| node).collect();
    assert_eq!(nodes.len(), 2 * (NODES - wide as usize));
    let wide = world.submit_spec(with_devices(DeviceAmount::Whole(2)));
    world.submit_spec(many);
    plan_until_idle(&mut world, &mut scheduler);
    FullCluster { world, scheduler, running, wide, nodes }
}

impl FullCluster {
    /// Ends one running task on a node. Returns the jobs that start then.
    fn end_on(&mut self, node: NodeId) -> Vec<JobId> {
        let at = self.nodes.iter().rposition(|other| *other == node).unwrap();
        self.nodes[at] = NodeId(0);
        end_after_long(&mut self.world, unit(self.running, at as u32));
        plan_until_idle(&mut self.world, &mut self.scheduler).into_iter().map(|(job, _, _)| job).collect()
    }
}

#[test]
fn node_is_reserved_for_a_wide_job_once_it_has_waited_long() {
    let mut cluster = full_cluster();
    let small = JobId(cluster.wide.0 + 1);
    assert_eq!(cluster.end_on(NodeId(1)), [small], "at first no node is reserved");
    cluster.world.pass(RESERVATION_WAIT_MS_MIN + 1);
    assert_eq!(cluster.end_on(NodeId(2)), []);
    assert_eq!(cluster.end_on(NodeId(3)), [small], "one node is reserved, and no more");
    let why = cluster.scheduler.why(&cluster.world.state, &shape(&with_devices(DeviceAmount::Whole(1))));
    assert_eq!(why.pools[0].reason, PoolReason::NodesReserved { nodes: 1 });
    // A job ahead of the wide one may use the node.
    let mut urgent = with_devices(DeviceAmount::Whole(1));
    urgent.priority = 1;
    let urgent = cluster.world.submit_spec(urgent);
    let starts = plan_until_idle(&mut cluster.world, &mut cluster.scheduler);
    assert_eq!(starts, [(urgent, PoolId(1), NodeId(2))]);
    end_after_long(&mut cluster.world, unit(urgent, 0));
    assert_eq!(plan_until_idle(&mut cluster.world, &mut cluster.scheduler), []);
    assert_eq!(cluster.end_on(NodeId(2)), [cluster.wide]);
    assert!(cluster.scheduler.same_nodes(&Scheduler::rebuild(&cluster.world.state)));
    assert_eq!(cluster.end_on(NodeId(4)), [small]);
}

#[test]
fn no_node_is_reserved_for_jobs_that_use_most_devices_already() {
    // Their threshold is 1.4 times the mean wait. If wide jobs use as many devices as small ones, a
    // reservation would cost more than it brings; with half as many it doesn't.
    for (wide, reserves) in [(NODES / 2, false), (NODES / 3, true)] {
        let mut cluster = full_cluster_with(wide as u32);
        cluster.world.pass(RESERVATION_WAIT_MS_MIN + 1);
        let node = *cluster.nodes.last().unwrap();
        let small = JobId(cluster.wide.0 + 1);
        let started = if reserves { vec![] } else { vec![small] };
        assert_eq!(cluster.end_on(node), started, "wide jobs run on {wide} of {NODES} nodes");
    }
}

#[test]
fn reserved_node_is_released_when_its_job_is_cancelled() {
    let mut cluster = full_cluster();
    let small = JobId(cluster.wide.0 + 1);
    cluster.world.pass(RESERVATION_WAIT_MS_MIN + 1);
    assert_eq!(cluster.end_on(NodeId(2)), []);
    cluster.world.must(Command::Cancel { jobs: vec![cluster.wide], reason: String::new() });
    let starts = plan_until_idle(&mut cluster.world, &mut cluster.scheduler);
    assert_eq!(
        starts.into_iter().map(|(job, _, node)| (job, node)).collect::<Vec<_>>(),
        [(small, NodeId(2))]
    );
}

#[test]
fn no_node_is_reserved_by_best_fit_or_in_small_clusters() {
    let mut cluster = full_cluster();
    cluster.world.pass(RESERVATION_WAIT_MS_MIN + 1);
    let pool = cluster.world.state.pool_named("p").unwrap().id;
    cluster.world.must(Command::CordonNode { pool, node: NodeId(9), cordoned: true });
    let small = JobId(cluster.wide.0 + 1);
    assert_eq!(cluster.end_on(NodeId(2)), [small], "one node too few for a reservation");
    cluster.world.must(Command::CordonNode { pool, node: NodeId(9), cordoned: false });
    cluster.world.must(Command::UpdateWorkloadProfile { profile: Some(Arc::default()) });
    assert_eq!(cluster.end_on(NodeId(3)), [small]);
}

/// Two nodes, full of tasks of one `small` request each, while more of them wait; then a `large` job comes. Returns
/// whether it starts although after each end another small job arrives.
fn starts_while_small_jobs_come(priority: i32, small: &JobSpec, large: JobSpec) -> bool {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", (0..2).map(|at| node_spec(&format!("n{at}"), 8, 4)).collect());
    let mut scheduler = Scheduler::rebuild(&world.state);
    for _ in 0..16 {
        world.submit_spec(small.clone());
    }
    plan_until_idle(&mut world, &mut scheduler);
    let large = world.submit_spec(JobSpec { priority, ..large });
    for _ in 0..16 {
        // The smallest of its kind that runs, on either node in turn.
        let running: Vec<UnitId> = world.state.attempts().map(|attempt| attempt.unit).collect();
        let Some(first) = running.first() else { return false };
        end_after_long(&mut world, *first);
        world.submit_spec(small.clone());
        let starts = plan_until_idle(&mut world, &mut scheduler);
        if starts.iter().any(|(job, _, _)| *job == large) {
            return true;
        }
    }
    false
}

#[test]
fn job_of_higher_priority_gets_the_next_freed_capacity_while_smaller_jobs_arrive() {
    let devices = |count| with_devices(DeviceAmount::Whole(count));
    let cpus = |cpu_millis| {
        let mut spec = minimal();
        spec.groups[0].request.resources.cpu_millis = cpu_millis;
        spec
    };
    for (small, large) in [(devices(1), devices(2)), (devices(1), devices(4)), (cpus(1_000), cpus(4_000))] {
        assert!(!starts_while_small_jobs_come(0, &small, large.clone()), "the test doesn't starve it");
        assert!(starts_while_small_jobs_come(1_000, &small, large.clone()));
        let best_effort = JobSpec { priority: -1, ..small };
        assert!(starts_while_small_jobs_come(0, &best_effort, large), "0 is above -1");
    }
}

#[test]
fn gang_of_higher_priority_gets_the_next_freed_capacity_while_smaller_jobs_arrive() {
    let devices = |count| with_devices(DeviceAmount::Whole(count));
    let gang = |tasks, each| {
        let mut spec = devices(each);
        (spec.groups[0].count, spec.groups[0].gang) = (tasks, true);
        spec
    };
    let mut mixed = devices(4);
    let mut second = devices(1).groups.remove(0);
    (second.name, second.count) = ("second".to_owned(), 3);
    mixed.groups.push(second);
    mixed.gang_job = true;
    for large in [gang(2, 4), gang(4, 2), gang(2, 2), gang(8, 1), mixed] {
        let small = devices(1);
        assert!(!starts_while_small_jobs_come(0, &small, large.clone()), "the test doesn't starve it");
        assert!(starts_while_small_jobs_come(1_000, &small, large.clone()), "{:?}", large.groups);
    }
}

#[test]
fn gang_that_its_pool_can_never_hold_keeps_no_node_free() {
    let devices = |count| with_devices(DeviceAmount::Whole(count));
    let mut large = JobSpec { priority: 1_000, ..devices(4) };
    (large.groups[0].count, large.groups[0].gang) = (3, true);
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", (0..2).map(|at| node_spec(&format!("n{at}"), 8, 4)).collect());
    let mut scheduler = Scheduler::rebuild(&world.state);
    let small: Vec<JobId> = (0..9).map(|_| world.submit_spec(devices(1))).collect();
    plan_until_idle(&mut world, &mut scheduler);
    world.submit_spec(large);
    plan_until_idle(&mut world, &mut scheduler);
    end_after_long(&mut world, unit(small[0], 0));
    let started = plan_until_idle(&mut world, &mut scheduler);
    assert_eq!(started.iter().map(|(job, ..)| *job).collect::<Vec<_>>(), [small[8]]);
    assert!(!scheduler.has_reserved_nodes());
}

#[test]
fn gang_uses_nodes_that_are_reserved_for_jobs_behind_it() {
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", (0..2).map(|at| node_spec(&format!("n{at}"), 8, 2)).collect());
    let mut scheduler = Scheduler::rebuild(&world.state);
    let small: Vec<JobId> = (0..4).map(|_| world.submit_spec(with_devices(DeviceAmount::Whole(1)))).collect();
    let nodes: Vec<NodeId> =
        plan_until_idle(&mut world, &mut scheduler).into_iter().map(|(_, _, node)| node).collect();
    let wide = world.submit_spec(JobSpec { priority: 1, ..with_devices(DeviceAmount::Whole(2)) });
    plan_until_idle(&mut world, &mut scheduler);
    end_after_long(&mut world, unit(small[0], 0));
    assert_eq!(plan_until_idle(&mut world, &mut scheduler), []);
    assert!(scheduler.has_reserved_nodes());
    let other = (1..4).find(|at| nodes[*at] != nodes[0]).unwrap();
    end_after_long(&mut world, unit(small[other], 0));
    plan_until_idle(&mut world, &mut scheduler);
    let mut gang = JobSpec { priority: 2, ..with_devices(DeviceAmount::Whole(1)) };
    (gang.groups[0].count, gang.groups[0].gang) = (2, true);
    let gang = world.submit_spec(gang);
    let started = plan_until_idle(&mut world, &mut scheduler);
    assert!(
        started.iter().all(|(job, _, _)| *job == gang) && !started.is_empty(),
        "{started:?} before {wide}"
    );
    assert!(scheduler.same_nodes(&Scheduler::rebuild(&world.state)));
}

/// Else two gangs that hold nodes of one pool wait for each other for ever.
#[test]
fn gang_uses_the_nodes_of_one_behind_it_also_if_a_cancelled_job_had_been_ahead() {
    let gang = |tasks| {
        let mut spec = JobSpec { priority: 1_000, ..with_devices(DeviceAmount::Whole(4)) };
        (spec.groups[0].count, spec.groups[0].gang) = (tasks, true);
        spec
    };
    let mut world = Fixture::new();
    world.pool("p", "CN-CQ", (0..3).map(|at| node_spec(&format!("n{at}"), 8, 4)).collect());
    let mut scheduler = Scheduler::rebuild(&world.state);
    let small: Vec<JobId> = (0..3).map(|_| world.submit_spec(with_devices(DeviceAmount::Whole(4)))).collect();
    plan_until_idle(&mut world, &mut scheduler);
    let cancelled = world.submit_spec(gang(3));
    plan_until_idle(&mut world, &mut scheduler);
    for ended in &small[..2] {
        end_after_long(&mut world, unit(*ended, 0));
        assert_eq!(
            plan_until_idle(&mut world, &mut scheduler),
            [],
            "both nodes are reserved for the gang of three"
        );
    }
    let narrow = world.submit_spec(gang(2));
    let behind = world.submit_spec(gang(3));
    assert_eq!(plan_until_idle(&mut world, &mut scheduler), []);
    world.must(Command::Cancel { jobs: vec![cancelled], reason: String::new() });
    let started = plan_until_idle(&mut world, &mut scheduler);
    let jobs: Vec<JobId> = started.iter().map(|(job, ..)| *job).collect();
    assert_eq!(jobs, [narrow], "not {behind}, nor none");
}

/// A gang that no longer fits its pool, as a node is gone, holds none of the others.
#[test]
fn gang_holds_no_node_of_a_pool_that_became_too_small() {
    let devices = |count| with_devices(DeviceAmount::Whole(count));
    let mut large = JobSpec { priority: 1_000, ..devices(4) };
    (large.groups[0].count, large.groups[0].gang) = (2, true);
    let mut world = Fixture::new();
    let pool = world.pool("p", "CN-CQ", (0..2).map(|at| node_spec(&format!("n{at}"), 8, 4)).collect());
    let mut scheduler = Scheduler::rebuild(&world.state);
    let small: Vec<JobId> = (0..9).map(|_| world.submit_spec(devices(1))).collect();
    let first = plan_until_idle(&mut world, &mut scheduler);
    world.submit_spec(large);
    plan_until_idle(&mut world, &mut scheduler);
    end_after_long(&mut world, unit(small[0], 0));
    assert_eq!(plan_until_idle(&mut world, &mut scheduler), []);
    assert!(scheduler.has_reserved_nodes());
    let on = |job: JobId| first.iter().find(|(other, ..)| *other == job).map(|(_, _, node)| *node).unwrap();
    let other = [NodeId(1), NodeId(2)].into_iter().find(|node| *node != on(small[0])).unwrap();
    world.must(Command::CordonNode { pool, node: other, cordoned: true });
    let started = plan_until_idle(&mut world, &mut scheduler);
    assert_eq!(started.iter().map(|(job, ..)| *job).collect::<Vec<_>>(), [small[8]]);
    assert!(!scheduler.has_reserved_nodes());
}
