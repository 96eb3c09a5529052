//! Plans of moves for pools that each test builds by itself.

use super::*;
use crate::model::attempt::AttemptStatus;
use crate::model::demand::DeviceDemand;
use crate::model::device::DeviceModelId;
use crate::model::id::{JobId, Revision, UnitId};
use crate::model::limit::DEVICE_MILLIS;
use crate::model::resource::Resources;
use crate::model::spec::JobSpec;
use crate::scheduler::packing::Device;
use crate::scheduler::packing::bucket::ClassRef;
use crate::scheduler::packing::random::Random;
use crate::scheduler::{Budget, Scheduler};
use crate::state::command::Command;
use crate::state::fixture::{Fixture, node_spec, with_devices};

const UNLIMITED: Limits = Limits { moves: usize::MAX, free_millis: 0, comparisons: u64::MAX };

fn demand(amount: DeviceAmount, cpus: u64) -> Arc<Demand> {
    Arc::new(Demand {
        resources: Resources { cpu_millis: cpus * 1_000, ..Resources::default() },
        devices: Some(DeviceDemand { models: None, amount }),
        constraints: Default::default(),
        needs: Default::default(),
    })
}

fn whole(count: u32) -> Arc<Demand> {
    demand(DeviceAmount::Whole(count), u64::from(count))
}

fn part(millis: u32) -> Arc<Demand> {
    demand(DeviceAmount::Fraction(millis), 1)
}

fn empty_node(devices: u16, cpus: u64) -> Node {
    let device = |slot: u16| Device { model: DeviceModelId(0), topology_group: slot / 4 };
    Node {
        class: ClassRef::new(Default::default()),
        free: Resources { cpu_millis: cpus * 1_000, ..Resources::default() },
        devices: (0..devices).map(device).collect(),
        device_free: vec![DEVICE_MILLIS; usize::from(devices)],
    }
}

/// A pool of empty nodes with these numbers of devices and CPUs.
fn pool_of(nodes: &[(u16, u64)]) -> FragmentedPool {
    let nodes = nodes.iter().enumerate();
    let nodes = nodes.map(|(at, (devices, cpus))| (NodeId(at as u32), empty_node(*devices, *cpus)));
    FragmentedPool { nodes: nodes.collect(), ..FragmentedPool::default() }
}

impl FragmentedPool {
    /// Runs a task on these devices of a node. With a cost of 0 it can't be moved.
    fn run(&mut self, demand: &Arc<Demand>, node: u32, devices: &[u16], cost: u64) {
        let millis = demand.device_millis() as u32 / devices.len() as u32;
        let devices: Vec<DeviceShare> =
            devices.iter().map(|index| DeviceShare { index: *index, millis }).collect();
        let at = &mut self.nodes[node as usize].1;
        at.free = at.free.checked_sub(&demand.resources).expect("the node has the resources");
        devices.iter().for_each(|share| at.device_free[usize::from(share.index)] -= share.millis);
        if cost > 0 {
            self.running.push(Running {
                demand: demand.clone(),
                node: NodeId(node),
                devices,
                cost,
                priority: 0,
            });
        }
    }

    fn wait(&mut self, demand: &Arc<Demand>, count: u32, priority: i32) {
        self.waiting.push(Waiting { demand: demand.clone(), count, priority });
    }

    /// Carries a plan out and asserts that each step is possible.
    fn carry_out(&self, plan: &Plan) -> Vec<(NodeId, Node)> {
        let mut nodes: BTreeMap<NodeId, Node> = self.nodes.iter().cloned().collect();
        let mut moved = vec![false; self.running.len()];
        let take = |node: &mut Node, demand: &Demand, devices: &[DeviceShare]| {
            node.free = node.free.checked_sub(&demand.resources).expect("CPU for it");
            assert_eq!(
                devices.iter().map(|share| u64::from(share.millis)).sum::<u64>(),
                demand.device_millis()
            );
            for share in devices {
                let free = &mut node.device_free[usize::from(share.index)];
                *free = free.checked_sub(share.millis).expect("a device for it");
            }
        };
        for step in &plan.steps {
            let free = |nodes: &BTreeMap<NodeId, Node>| -> u32 {
                nodes.values().flat_map(|node| &node.device_free).sum()
            };
            let before = free(&nodes);
            for one in &step.moves {
                let running = &self.running[one.running];
                assert!(!std::mem::replace(&mut moved[one.running], true), "the task is moved twice");
                let from = nodes.get_mut(&running.node).unwrap();
                from.free = from.free.checked_add(&running.demand.resources).unwrap();
                running.devices.iter().for_each(|s| from.device_free[usize::from(s.index)] += s.millis);
            }
            for one in &step.moves {
                let Some((to, devices)) = &one.to else { continue };
                assert_ne!(*to, self.running[one.running].node, "the task is moved to its own node");
                take(nodes.get_mut(to).unwrap(), &self.running[one.running].demand, devices);
            }
            take(nodes.get_mut(&step.node).unwrap(), &self.waiting[step.waiting].demand, &step.devices);
            assert!(free(&nodes) < before, "a step brings no device into use");
        }
        for (at, waiting) in self.waiting.iter().enumerate() {
            let placed = plan.steps.iter().filter(|step| step.waiting == at).count();
            let again = plan
                .steps
                .iter()
                .flat_map(|step| &step.moves)
                .filter(|one| one.to.is_none() && self.running[one.running].demand == waiting.demand);
            assert!(placed <= waiting.count as usize + again.count(), "more tasks are placed than wait");
        }
        nodes.into_iter().collect()
    }
}

/// A step in short: the moved tasks with their new nodes, the waiting kind, and its node.
type StepSummary = (Vec<(usize, Option<u32>)>, usize, u32);

fn summary(plan: &Plan) -> Vec<StepSummary> {
    let moves = |step: &Step| {
        step.moves.iter().map(|one| (one.running, one.to.as_ref().map(|(node, _)| node.0))).collect()
    };
    plan.steps.iter().map(|step| (moves(step), step.waiting, step.node.0)).collect()
}

#[test]
fn cheapest_task_is_moved_to_a_node_that_it_fits() {
    let mut pool = pool_of(&[(8, 64), (8, 64), (8, 64)]);
    pool.run(&whole(1), 0, &[3], 500);
    pool.run(&whole(1), 1, &[0], 20);
    pool.run(&whole(7), 2, &[0, 1, 2, 3, 4, 5, 6], 0);
    pool.wait(&whole(8), 1, 0);
    let plan = pool.plan(UNLIMITED);
    // Two nodes have one movable task each: the cheaper task is moved.
    assert_eq!(summary(&plan), [(vec![(1, Some(2))], 0, 1)]);
    pool.carry_out(&plan);
}

#[test]
fn tasks_that_name_their_pool_are_moved_within_it() {
    let mut pool = FragmentedPool { name: "gz".to_owned(), ..pool_of(&[(2, 8), (2, 8)]) };
    let named = |demand: Arc<Demand>| {
        let mut demand = (*demand).clone();
        demand.constraints.pools = vec!["gz".to_owned()];
        Arc::new(demand)
    };
    pool.run(&named(whole(1)), 0, &[0], 1);
    pool.run(&whole(1), 1, &[0], 0);
    pool.wait(&named(whole(2)), 1, 0);
    assert_eq!(summary(&pool.plan(UNLIMITED)), [(vec![(0, Some(1))], 0, 0)]);
}

#[test]
fn task_that_may_not_be_moved_stays() {
    let mut pool = pool_of(&[(2, 8), (2, 8)]);
    pool.run(&whole(1), 0, &[0], 0);
    pool.run(&whole(1), 1, &[0], 1);
    pool.run(&part(500), 1, &[1], 0);
    pool.wait(&whole(2), 1, 0);
    assert_eq!(pool.plan(UNLIMITED), Plan::default());
}

#[test]
fn task_that_fits_no_other_node_waits_again_if_the_step_still_gains() {
    let mut pool = pool_of(&[(4, 16)]);
    pool.run(&part(300), 0, &[1], 1);
    pool.wait(&whole(4), 1, 0);
    let plan = pool.plan(UNLIMITED);
    assert_eq!(summary(&plan), [(vec![(0, None)], 0, 0)]);
    pool.carry_out(&plan);
    // A task does not wait again for one of a lower priority.
    pool.running[0].priority = 1;
    assert_eq!(pool.plan(UNLIMITED), Plan::default());
    // To replace a task of one device by another brings no device into use.
    let mut even = pool_of(&[(1, 4)]);
    even.run(&whole(1), 0, &[0], 1);
    even.wait(&whole(1), 1, 5);
    assert_eq!(even.plan(UNLIMITED), Plan::default());
}

#[test]
fn tasks_are_moved_for_their_cpus_too() {
    let mut pool = pool_of(&[(2, 8), (1, 8)]);
    // A task without devices holds the CPUs.
    let idle = Arc::new(Demand { devices: None, ..(*demand(DeviceAmount::Whole(1), 6)).clone() });
    pool.nodes[0].1.free = Resources { cpu_millis: 2_000, ..Resources::default() };
    pool.running.push(Running { demand: idle, node: NodeId(0), devices: Vec::new(), cost: 1, priority: 0 });
    pool.wait(&demand(DeviceAmount::Whole(2), 8), 1, 0);
    let plan = pool.plan(UNLIMITED);
    assert_eq!(summary(&plan), [(vec![(0, Some(1))], 0, 0)]);
    pool.carry_out(&plan);
}

#[test]
fn highest_priority_is_placed_first_then_the_most_gain_for_the_cost() {
    let mut pool = pool_of(&[(4, 16), (4, 16), (4, 16)]);
    pool.run(&whole(1), 0, &[0], 1);
    pool.run(&whole(3), 1, &[0, 1, 2], 0);
    pool.run(&whole(3), 2, &[0, 1, 2], 0);
    pool.wait(&whole(4), 1, 0);
    pool.wait(&demand(DeviceAmount::Whole(4), 16), 1, 7);
    let plan = pool.plan(UNLIMITED);
    assert_eq!(summary(&plan), [(vec![(0, Some(1))], 1, 0)]);
}

#[test]
fn limits_hold() {
    let mut pool = pool_of(&[(2, 8); 40]);
    for node in 0..40 {
        pool.run(&part(500), node, &[0], 1);
    }
    pool.wait(&whole(2), 30, 0);
    let all = pool.plan(UNLIMITED);
    pool.carry_out(&all);
    // Each moved half joins another one on its device, and no task is moved twice.
    assert_eq!((all.steps.len(), all.moves(), all.is_cut), (20, 20, false));
    let few = pool.plan(Limits { moves: 7, ..UNLIMITED });
    assert_eq!((few.steps.len(), &few.steps[..]), (7, &all.steps[..7]));
    let half = pool.plan(Limits { free_millis: 40_000, ..UNLIMITED });
    assert_eq!(half.steps.len(), 10, "20 of 60 free devices come into use");
    assert!(pool.plan(Limits { comparisons: 10, ..UNLIMITED }).is_cut);
}

#[test]
fn plans_of_random_pools_can_be_carried_out() {
    let mut random = Random::new(7);
    for round in 0..60 {
        // Nodes with few devices, of which every set is tried, and larger ones.
        let sizes: Vec<(u16, u64)> =
            (0..12).map(|_| [(1, 6), (4, 16), (8, 40), (12, 40)][random.below(4) as usize]).collect();
        let mut pool = pool_of(&sizes);
        let entries = [
            part(110),
            part(250),
            part(500),
            part(810),
            whole(1),
            whole(2),
            whole(4),
            whole(8),
            demand(DeviceAmount::Whole(1), 9),
        ];
        let mut packer = Packer::new(Scorer::Random { seed: round });
        for (id, node) in &pool.nodes {
            packer.set(at(*id), node.clone());
        }
        for _ in 0..200 {
            let kind = &entries[random.below(entries.len() as u64) as usize];
            match packer.place(kind) {
                Some(place) => {
                    let indexes: Vec<u16> = place.devices.iter().map(|share| share.index).collect();
                    pool.run(kind, place.node.node.0, &indexes, random.below(5));
                }
                None => pool.wait(kind, 1, random.below(2) as i32),
            }
        }
        // Each kind only once.
        let mut entries: BTreeMap<(Arc<Demand>, i32), u32> = BTreeMap::new();
        pool.waiting
            .drain(..)
            .for_each(|one| *entries.entry((one.demand, one.priority)).or_default() += one.count);
        entries.into_iter().for_each(|((demand, priority), count)| pool.wait(&demand, count, priority));
        let plan = pool.plan(UNLIMITED);
        let nodes = pool.carry_out(&plan);
        assert_eq!(plan, pool.plan(UNLIMITED), "the same pool gives another plan");
        assert_eq!(nodes.len(), pool.nodes.len());
    }
}

#[test]
fn inventory_has_the_tasks_that_labels_allow_to_move_and_those_that_wait() {
    let mut world = Fixture::new();
    let pool = world.pool("p", "CN-CQ", vec![node_spec("n1", 64, 4), node_spec("n2", 64, 4)]);
    let mut scheduler = Scheduler::rebuild(&world.state);
    let mut submit = |world: &mut Fixture, devices: u32, label: Option<&str>| {
        let mut spec: JobSpec = with_devices(DeviceAmount::Whole(devices));
        spec.labels = label.map(|label| (label.to_owned(), "true".to_owned())).into_iter().collect();
        world.submit_spec(spec);
        let changes = std::mem::take(&mut world.changes);
        scheduler.fold(&world.state, &changes);
        for start in scheduler.plan(&world.state, Budget::default()).starts {
            world.must(Command::Start { start });
        }
        let changes = std::mem::take(&mut world.changes);
        scheduler.fold(&world.state, &changes);
    };
    submit(&mut world, 3, None);
    submit(&mut world, 1, Some("checkpointed"));
    submit(&mut world, 1, Some("preemptible"));
    submit(&mut world, 1, Some("other"));
    submit(&mut world, 4, None);
    submit(&mut world, 4, None);
    let units: Vec<UnitId> = world.state.pool(pool).unwrap().attempts.iter().copied().collect();
    for unit in units {
        world.report(unit, AttemptStatus::Running { started_at: world.now });
    }
    world.now = world.now.plus_ms(600_000);
    let label = |key: &str| [(key.to_owned(), "true".to_owned())].into();
    let movable = Movable { preemptible: label("preemptible"), checkpointed: label("checkpointed") };
    let pool = world.state.pool(pool).unwrap();
    let mut found = scheduler.inventory(&world.state, pool);
    let page =
        |until: Revision| movable_tasks(&world.state, pool, &movable, Page { after: None, until }, world.now);
    let all = page(world.state.revision());
    assert_eq!(all.next, None);
    found.add(all);
    let running: Vec<_> = found
        .running
        .iter()
        .zip(&found.pool.running)
        .map(|(moving, running)| {
            (moving.job.id, moving.lost_ms, running.cost, found.nodes[&running.node].as_str())
        })
        .collect();
    assert_eq!(running, [(JobId(2), 0, 60_000, "n1"), (JobId(3), 600_000, 660_000, "n2")]);
    // Tasks that were ordered after the nodes were read hold nothing of what was read.
    let mut before = scheduler.inventory(&world.state, pool);
    before.add(page(Revision(1)));
    assert_eq!(before.running, []);
    let waiting: Vec<_> =
        found.pool.waiting.iter().map(|one| (one.count, one.demand.device_millis())).collect();
    assert_eq!(waiting, [(2, 4_000)]);
    let jobs = [0, 1, 2].map(|after| found.job_to_place(0, after).map(|job| job.id));
    assert_eq!(jobs, [Some(JobId(5)), Some(JobId(6)), Some(JobId(6))]);
    assert_eq!(found.job_to_place(1, 0), None);
    assert_eq!(found.pool.plan(UNLIMITED), Plan::default(), "a task with another label can't be moved");
}
