//! Plans of moves, from the clutter that a test puts together.

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

const UNLIMITED: Limits = Limits { moves: usize::MAX, free_millis: 0, looks: u64::MAX };

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

/// Nodes of so many devices and CPUs.
fn clutter(nodes: &[(u16, u64)]) -> Clutter {
    let nodes = nodes.iter().enumerate();
    let nodes = nodes.map(|(at, (devices, cpus))| (NodeId(at as u32), empty_node(*devices, *cpus)));
    Clutter { nodes: nodes.collect(), ..Clutter::default() }
}

impl Clutter {
    /// Runs a task on these devices of a node; one that costs nothing can't be moved.
    fn run(&mut self, demand: &Arc<Demand>, node: u32, devices: &[u16], cost: u64) {
        let millis = demand.device_millis() as u32 / devices.len() as u32;
        let devices: Vec<DeviceShare> =
            devices.iter().map(|index| DeviceShare { index: *index, millis }).collect();
        let at = &mut self.nodes[node as usize].1;
        at.free = at.free.checked_sub(&demand.resources).expect("there is room");
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

    /// Carries a plan out, and finds that it can be.
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
                assert!(!std::mem::replace(&mut moved[one.running], true), "it is moved twice");
                let from = nodes.get_mut(&running.node).unwrap();
                from.free = from.free.checked_add(&running.demand.resources).unwrap();
                running.devices.iter().for_each(|s| from.device_free[usize::from(s.index)] += s.millis);
            }
            for one in &step.moves {
                let Some((to, devices)) = &one.to else { continue };
                assert_ne!(*to, self.running[one.running].node, "it goes to where it was");
                take(nodes.get_mut(to).unwrap(), &self.running[one.running].demand, devices);
            }
            take(nodes.get_mut(&step.node).unwrap(), &self.waiting[step.waiting].demand, &step.devices);
            assert!(free(&nodes) < before, "no more is in use than before");
        }
        for (at, waiting) in self.waiting.iter().enumerate() {
            let let_in = plan.steps.iter().filter(|step| step.waiting == at).count();
            let again = plan
                .steps
                .iter()
                .flat_map(|step| &step.moves)
                .filter(|one| one.to.is_none() && self.running[one.running].demand == waiting.demand);
            assert!(let_in <= waiting.count as usize + again.count(), "more are let in than wait");
        }
        nodes.into_iter().collect()
    }
}

/// What a step does: who is moved where, and where the waiting one goes.
type Told = (Vec<(usize, Option<u32>)>, usize, u32);

fn told(plan: &Plan) -> Vec<Told> {
    let moves = |step: &Step| {
        step.moves.iter().map(|one| (one.running, one.to.as_ref().map(|(node, _)| node.0))).collect()
    };
    plan.steps.iter().map(|step| (moves(step), step.waiting, step.node.0)).collect()
}

#[test]
fn the_cheapest_task_goes_to_where_it_fits() {
    let mut clutter = clutter(&[(8, 64), (8, 64), (8, 64)]);
    clutter.run(&whole(1), 0, &[3], 500);
    clutter.run(&whole(1), 1, &[0], 20);
    clutter.run(&whole(7), 2, &[0, 1, 2, 3, 4, 5, 6], 0);
    clutter.wait(&whole(8), 1, 0);
    let plan = clutter.plan(UNLIMITED);
    // Of the two nodes with one task the one is cleared whose task costs less.
    assert_eq!(told(&plan), [(vec![(1, Some(2))], 0, 1)]);
    clutter.carry_out(&plan);
}

#[test]
fn tasks_that_name_their_pool_are_moved_within_it() {
    let mut clutter = Clutter { pool: "gz".to_owned(), ..clutter(&[(2, 8), (2, 8)]) };
    let named = |demand: Arc<Demand>| {
        let mut demand = (*demand).clone();
        demand.constraints.pools = vec!["gz".to_owned()];
        Arc::new(demand)
    };
    clutter.run(&named(whole(1)), 0, &[0], 1);
    clutter.run(&whole(1), 1, &[0], 0);
    clutter.wait(&named(whole(2)), 1, 0);
    assert_eq!(told(&clutter.plan(UNLIMITED)), [(vec![(0, Some(1))], 0, 0)]);
}

#[test]
fn who_can_not_be_moved_stays() {
    let mut clutter = clutter(&[(2, 8), (2, 8)]);
    clutter.run(&whole(1), 0, &[0], 0);
    clutter.run(&whole(1), 1, &[0], 1);
    clutter.run(&part(500), 1, &[1], 0);
    clutter.wait(&whole(2), 1, 0);
    assert_eq!(clutter.plan(UNLIMITED), Plan::default());
}

#[test]
fn what_fits_nowhere_else_waits_again_if_more_is_in_use_then() {
    let mut clutter = clutter(&[(4, 16)]);
    clutter.run(&part(300), 0, &[1], 1);
    clutter.wait(&whole(4), 1, 0);
    let plan = clutter.plan(UNLIMITED);
    assert_eq!(told(&plan), [(vec![(0, None)], 0, 0)]);
    clutter.carry_out(&plan);
    // Nobody waits again for somebody of a lower priority.
    clutter.running[0].priority = 1;
    assert_eq!(clutter.plan(UNLIMITED), Plan::default());
    // One GPU for one GPU is nobody's gain.
    let mut even = super::tests::clutter(&[(1, 4)]);
    even.run(&whole(1), 0, &[0], 1);
    even.wait(&whole(1), 1, 5);
    assert_eq!(even.plan(UNLIMITED), Plan::default());
}

#[test]
fn cpus_are_made_room_for_too() {
    let mut clutter = clutter(&[(2, 8), (1, 8)]);
    // A task without a device has the CPUs.
    let idle = Arc::new(Demand { devices: None, ..(*demand(DeviceAmount::Whole(1), 6)).clone() });
    clutter.nodes[0].1.free = Resources { cpu_millis: 2_000, ..Resources::default() };
    clutter.running.push(Running {
        demand: idle,
        node: NodeId(0),
        devices: Vec::new(),
        cost: 1,
        priority: 0,
    });
    clutter.wait(&demand(DeviceAmount::Whole(2), 8), 1, 0);
    let plan = clutter.plan(UNLIMITED);
    assert_eq!(told(&plan), [(vec![(0, Some(1))], 0, 0)]);
    clutter.carry_out(&plan);
}

#[test]
fn priority_goes_first_then_what_brings_most_for_its_cost() {
    let mut clutter = clutter(&[(4, 16), (4, 16), (4, 16)]);
    clutter.run(&whole(1), 0, &[0], 1);
    clutter.run(&whole(3), 1, &[0, 1, 2], 0);
    clutter.run(&whole(3), 2, &[0, 1, 2], 0);
    clutter.wait(&whole(4), 1, 0);
    clutter.wait(&demand(DeviceAmount::Whole(4), 16), 1, 7);
    let plan = clutter.plan(UNLIMITED);
    assert_eq!(told(&plan), [(vec![(0, Some(1))], 1, 0)]);
}

#[test]
fn limits_hold() {
    let mut clutter = clutter(&[(2, 8); 40]);
    for node in 0..40 {
        clutter.run(&part(500), node, &[0], 1);
    }
    clutter.wait(&whole(2), 30, 0);
    let all = clutter.plan(UNLIMITED);
    clutter.carry_out(&all);
    // Two halves share a device; none is moved twice.
    assert_eq!((all.steps.len(), all.moves(), all.is_cut), (20, 20, false));
    let few = clutter.plan(Limits { moves: 7, ..UNLIMITED });
    assert_eq!((few.steps.len(), &few.steps[..]), (7, &all.steps[..7]));
    let half = clutter.plan(Limits { free_millis: 40_000, ..UNLIMITED });
    assert_eq!(half.steps.len(), 10, "of 60 free devices 20 come into use");
    assert!(clutter.plan(Limits { looks: 10, ..UNLIMITED }).is_cut);
}

#[test]
fn plans_of_any_clutter_can_be_carried_out() {
    let mut random = Random::new(7);
    for round in 0..60 {
        // Small nodes, of which every set of devices is tried, and larger ones.
        let sizes: Vec<(u16, u64)> =
            (0..12).map(|_| [(1, 6), (4, 16), (8, 40), (12, 40)][random.below(4) as usize]).collect();
        let mut clutter = clutter(&sizes);
        let kinds = [
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
        for (id, node) in &clutter.nodes {
            packer.set(at(*id), node.clone());
        }
        for _ in 0..200 {
            let kind = &kinds[random.below(kinds.len() as u64) as usize];
            match packer.place(kind) {
                Some(place) => {
                    let indexes: Vec<u16> = place.devices.iter().map(|share| share.index).collect();
                    clutter.run(kind, place.node.node.0, &indexes, random.below(5));
                }
                None => clutter.wait(kind, 1, random.below(2) as i32),
            }
        }
        // Each kind once.
        let mut kinds: BTreeMap<(Arc<Demand>, i32), u32> = BTreeMap::new();
        clutter
            .waiting
            .drain(..)
            .for_each(|one| *kinds.entry((one.demand, one.priority)).or_default() += one.count);
        kinds.into_iter().for_each(|((demand, priority), count)| clutter.wait(&demand, count, priority));
        let plan = clutter.plan(UNLIMITED);
        let nodes = clutter.carry_out(&plan);
        assert_eq!(plan, clutter.plan(UNLIMITED), "the same clutter, another plan");
        assert_eq!(nodes.len(), clutter.nodes.len());
    }
}

#[test]
fn clutter_is_what_the_labels_allow_to_be_moved_and_who_waits_for_room() {
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
    let mut found = scheduler.clutter(&world.state, pool);
    let page =
        |until: Revision| movable_tasks(&world.state, pool, &movable, Page { after: None, until }, world.now);
    let all = page(world.state.revision());
    assert_eq!(all.next, None);
    found.add(all);
    let running: Vec<_> = found
        .running
        .iter()
        .zip(&found.clutter.running)
        .map(|(moving, running)| {
            (moving.job.id, moving.lost_ms, running.cost, found.nodes[&running.node].as_str())
        })
        .collect();
    assert_eq!(running, [(JobId(2), 0, 60_000, "n1"), (JobId(3), 600_000, 660_000, "n2")]);
    // What was ordered after the nodes were found holds nothing of them as they were.
    let mut before = scheduler.clutter(&world.state, pool);
    before.add(page(Revision(1)));
    assert_eq!(before.running, []);
    let waiting: Vec<_> =
        found.clutter.waiting.iter().map(|one| (one.count, one.demand.device_millis())).collect();
    assert_eq!(waiting, [(2, 4_000)]);
    let let_in = [0, 1, 2].map(|after| found.job_let_in(0, after).map(|job| job.id));
    assert_eq!(let_in, [Some(JobId(5)), Some(JobId(6)), Some(JobId(6))]);
    assert_eq!(found.job_let_in(1, 0), None);
    assert_eq!(found.clutter.plan(UNLIMITED), Plan::default(), "one of another label is in the way");
}
