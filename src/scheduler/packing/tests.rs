//! The rules of the index, compared with a search of all nodes and with a rebuilt index.

use super::fgd::Fgd;
use super::overflow::Overflow;
use super::profile::overflow_of;
use super::*;
use crate::model::demand::{DeviceDemand, ProfileEntry, WorkloadProfile};
use crate::model::id::NodeId;
use crate::model::shape::Needs;
use crate::model::spec::Constraints;

const DEMANDS: usize = 24;

fn demands(random: &mut Random) -> Vec<Arc<Demand>> {
    let model = |random: &mut Random| DeviceModelId(random.below(3) as u16);
    let demand = |random: &mut Random| {
        let amount = match random.below(4) {
            0 => None,
            1 => Some(DeviceAmount::Whole(1 + random.below(4) as u32)),
            _ => Some(DeviceAmount::Fraction(50 + 90 * random.below(10) as u32)),
        };
        let models = (random.below(4) == 0).then(|| vec![model(random)]);
        let pools = if random.below(6) == 0 { vec![format!("p{}", random.below(3))] } else { Vec::new() };
        Arc::new(Demand {
            resources: Resources { cpu_millis: 500 * (1 + random.below(12)), ..Resources::default() },
            devices: amount.map(|amount| DeviceDemand { models, amount }),
            constraints: Constraints { pools, ..Constraints::default() },
            needs: Needs::default(),
        })
    };
    (0..DEMANDS).map(|_| demand(random)).collect()
}

fn node(random: &mut Random) -> Node {
    let mixed = random.below(8) == 0;
    let count = [0, 1, 2, 4, 8][random.below(5) as usize];
    let model = random.below(3) as u16;
    let device =
        |at: u16| Device { model: DeviceModelId(if mixed { at % 3 } else { model }), topology_group: at / 2 };
    let cpu_millis = 8_000 * (1 + random.below(3));
    Node {
        class: ClassRef::new(Default::default()),
        free: Resources { cpu_millis, ..Resources::default() },
        devices: (0..count).map(device).collect(),
        device_free: vec![DEVICE_MILLIS; usize::from(count)],
    }
}

/// A profile in which all demands are equally frequent, also in the overflow.
fn profile(demands: &[Arc<Demand>]) -> WorkloadProfile {
    let kind = |demand: &Arc<Demand>| ProfileEntry { demand: demand.clone(), weight: 3, overflow: 3 };
    WorkloadProfile { arrivals: 0, turnover_percent: 100, entries: demands.iter().map(kind).collect() }
}

type Make = fn(&[Arc<Demand>]) -> Scorer;

fn scorers() -> [Make; 4] {
    [
        |_| Scorer::BestFit,
        |_| Scorer::DotProduct {
            largest: Resources {
                cpu_millis: 24_000,
                memory_bytes: 1,
                device_millis: 8_000,
                ..Resources::default()
            },
        },
        |demands| Scorer::Fgd(Fgd::new(demands.iter().map(|demand| (&**demand, 3)))),
        |demands| Scorer::Overflow(Overflow::of(&profile(demands), 7)),
    ]
}

/// A packer with three pools of random nodes, and the generator that made them.
fn random_packer(seed: u64, scorer: Scorer) -> (Packer, Random) {
    let mut random = Random::new(seed);
    let mut packer = Packer::new(scorer);
    for pool in 0..3 {
        packer.set_pool(PoolId(pool), &format!("p{pool}"));
        for at in 0..8 {
            packer.set(NodeRef { pool: PoolId(pool), node: NodeId(at) }, node(&mut random));
        }
    }
    (packer, random)
}

/// A new packer with the same nodes.
fn rebuilt(packer: &Packer, scorer: Scorer) -> Packer {
    let mut fresh = Packer::new(scorer);
    for (name, id) in &packer.pools {
        fresh.set_pool(*id, name);
    }
    let mut nodes: Vec<_> = packer.nodes().map(|(at, node)| (at, node.clone())).collect();
    nodes.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    nodes.into_iter().for_each(|(at, node)| {
        fresh.set(at, node);
    });
    fresh
}

#[test]
fn updated_index_chooses_as_a_rebuilt_one() {
    for seed in 0..10 {
        let demands = demands(&mut Random::new(seed));
        for make in scorers() {
            let (mut packer, mut random) = random_packer(seed, make(&demands));
            for _ in 0..120 {
                let demand = &demands[random.below(DEMANDS as u64) as usize];
                let at =
                    NodeRef { pool: PoolId(random.below(3) as u32), node: NodeId(random.below(10) as u32) };
                match random.below(8) {
                    0 => packer.remove(at),
                    1 => {
                        packer.set(at, node(&mut random));
                    }
                    2 => {
                        let mut undo = Undo::default();
                        let id = packer.demand(demand, None);
                        (0..3).for_each(|_| drop(packer.place_of(id, None, &mut undo)));
                        packer.undo(undo);
                    }
                    _ => drop(packer.place(demand)),
                }
                let mut fresh = rebuilt(&packer, make(&demands));
                // Not all of them each time: a demand that was not queried for a while has to catch up.
                for demand in demands.iter().filter(|_| random.below(5) == 0) {
                    assert_eq!(packer.best(demand), fresh.best(demand), "seed {seed}: {demand:?}");
                }
                let (updated, new) = (packer.demand(demand, None), fresh.demand(demand, None));
                let avoid = packer.best(demand).map(|(_, node)| node);
                assert_eq!(
                    packer.best_of(updated, avoid),
                    fresh.best_of(new, avoid),
                    "seed {seed}: {demand:?}"
                );
            }
        }
    }
}

#[test]
fn rarely_queried_demands_choose_as_in_a_rebuilt_index() {
    for seed in 0..3 {
        let demands = demands(&mut Random::new(seed));
        let (mut packer, mut random) = random_packer(seed, Scorer::BestFit);
        // The first few are placed all the time, the others are queried more and more rarely: the last ones
        // after more changes than the log holds.
        for step in 0..30_000 {
            let at = NodeRef { pool: PoolId(random.below(3) as u32), node: NodeId(random.below(10) as u32) };
            match random.below(3) {
                0 => {
                    packer.set(at, node(&mut random));
                }
                _ => drop(packer.place(&demands[random.below(4) as usize])),
            }
            for (pause, queried) in [(31, 4..14), (900, 14..19), (9_700, 19..DEMANDS)] {
                if step % pause == 0 {
                    let demand = &demands[random.below(queried.len() as u64) as usize + queried.start];
                    let mut fresh = rebuilt(&packer, Scorer::BestFit);
                    let found = packer.best(demand);
                    assert_eq!(found, fresh.best(demand), "seed {seed}, step {step}: {demand:?}");
                }
            }
        }
    }
}

#[test]
fn choice_is_the_lowest_node_with_the_least_score() {
    for seed in 0..60 {
        let demands = demands(&mut Random::new(seed));
        let (mut packer, mut random) = random_packer(seed, Scorer::BestFit);
        for _ in 0..60 {
            let demand = &demands[random.below(DEMANDS as u64) as usize];
            let score = |(at, node): (NodeRef, &Node)| {
                let named = NamedPools::new(demand, &packer.pools).allows(at);
                let (score, _) = Scorer::BestFit
                    .fit(demand, BucketId(0), &node.bucket(), &mut Values::default())
                    .filter(|_| named)?;
                Some((score, at))
            };
            let expected = packer.nodes().filter_map(score).min();
            assert_eq!(packer.best(demand), expected, "seed {seed}: {demand:?}");
            drop(packer.place(demand));
        }
    }
}

fn nodes_of(packer: &Packer) -> BTreeMap<NodeRef, String> {
    packer.nodes().map(|(at, node)| (at, format!("{node:?}"))).collect()
}

#[test]
fn demands_that_are_placed_together_have_valid_ids() {
    let (mut packer, _) = random_packer(1, Scorer::BestFit);
    let demand = |cpu_millis: u64| {
        Arc::new(Demand {
            resources: Resources { cpu_millis, ..Resources::default() },
            devices: None,
            constraints: Constraints::default(),
            needs: Needs::default(),
        })
    };
    // The first is the least recently used one when the last one needs an id.
    let first = packer.demand(&demand(1), None);
    for cpu_millis in 2..=RANKINGS_MAX as u64 {
        packer.demand(&demand(cpu_millis), None);
    }
    let tasks = [
        (packer.demand(&demand(1), Some(first)), 1),
        (packer.demand(&demand(RANKINGS_MAX as u64 + 1), None), 1),
    ];
    let free = |packer: &Packer| packer.nodes().map(|(_, node)| node.free.cpu_millis).sum::<u64>();
    let before = free(&packer);
    assert_eq!(packer.place_in(PoolId(0), &tasks, None).unwrap().len(), 2);
    assert_eq!(before - free(&packer), 1 + RANKINGS_MAX as u64 + 1);
}

#[test]
fn gang_that_fits_by_best_fit_is_placed_by_every_policy() {
    let free_cpus = |packer: &Packer| packer.nodes().map(|(_, node)| node.free.cpu_millis).sum::<u64>();
    let mut only_by_best_fit = 0;
    for seed in 0..12 {
        let demands = demands(&mut Random::new(seed));
        for make in scorers() {
            let (mut packer, mut random) = random_packer(seed, make(&demands));
            for _ in 0..40 {
                let pair = [0, 0].map(|_: u32| random.below(DEMANDS as u64) as usize);
                let gang = pair.map(|at| (demands[at].clone(), 1 + random.below(3) as u32));
                let pool = PoolId(random.below(3) as u32);
                let fits = |packer: &mut Packer| {
                    let tasks = gang.clone().map(|(demand, count)| (packer.demand(&demand, None), count));
                    packer.place_or_shortage(pool, &tasks, None).is_ok()
                };
                let by_policy = fits(&mut rebuilt(&packer, make(&demands)));
                let by_best_fit = fits(&mut packer.best_fit_copy(pool, &gang, None).unwrap());
                only_by_best_fit += u32::from(by_best_fit && !by_policy);

                let (before, free) = (nodes_of(&packer), free_cpus(&packer));
                let tasks = gang.clone().map(|(demand, count)| (packer.demand(&demand, None), count));
                match packer.place_in(pool, &tasks, None) {
                    None => {
                        assert!(!by_policy && !by_best_fit, "seed {seed}: {gang:?}");
                        assert_eq!(nodes_of(&packer), before);
                    }
                    Some(places) => {
                        let cpus = |(demand, count): &(Arc<Demand>, u32)| {
                            demand.resources.cpu_millis * u64::from(*count)
                        };
                        assert_eq!(free - free_cpus(&packer), gang.iter().map(cpus).sum::<u64>());
                        assert_eq!(places.len() as u32, gang[0].1 + gang[1].1);
                    }
                }
            }
        }
    }
    assert!(only_by_best_fit > 0, "no gang needed best fit");
}

#[test]
fn placement_takes_the_demand_and_undo_restores_it() {
    for seed in 0..60 {
        let demands = demands(&mut Random::new(seed));
        let (mut packer, mut random) = random_packer(seed, Scorer::BestFit);
        for _ in 0..60 {
            let demand = &demands[random.below(DEMANDS as u64) as usize];
            let id = packer.demand(demand, None);
            let before = nodes_of(&packer);
            let free = packer.device_free();
            let mut undo = Undo::default();
            let Some(place) = packer.place_of(id, None, &mut undo) else { continue };
            let shared: u64 = place.devices.iter().map(|share| u64::from(share.millis)).sum();
            assert_eq!(shared, demand.device_millis());
            assert_eq!(packer.device_free(), free - shared);
            let models = place
                .devices
                .iter()
                .map(|share| packer.node(place.node).unwrap().devices[usize::from(share.index)].model);
            let models: std::collections::BTreeSet<_> = models.collect();
            assert!(models.len() <= 1 && models.iter().all(|model| demand.allows(*model)));
            if random.below(2) == 0 {
                packer.undo(undo);
                assert_eq!(nodes_of(&packer), before);
            }
        }
    }
}

#[test]
fn evicted_buckets_change_no_choice() {
    let demands = demands(&mut Random::new(5));
    let make = |demands: &[Arc<Demand>]| Scorer::Overflow(Overflow::of(&profile(demands), 7));
    let (mut retaining, mut random) = random_packer(5, make(&demands));
    let (mut evicting, _) = random_packer(5, make(&demands));
    evicting.buckets.set_empty_max(4);
    for _ in 0..400 {
        let demand = &demands[random.below(DEMANDS as u64) as usize];
        assert_eq!(retaining.place(demand), evicting.place(demand));
        if random.below(3) == 0 {
            let at = NodeRef { pool: PoolId(random.below(3) as u32), node: NodeId(random.below(8) as u32) };
            let fresh = node(&mut random);
            retaining.set(at, fresh.clone());
            evicting.set(at, fresh);
        }
    }
    assert!(evicting.buckets.len() < 200, "{}", evicting.buckets.len());
}

#[test]
fn buckets_of_changing_nodes_are_evicted_without_a_query() {
    let (mut packer, mut random) = random_packer(3, Scorer::BestFit);
    packer.buckets.set_empty_max(4);
    for _ in 0..1_000 {
        packer.set(NodeRef { pool: PoolId(0), node: NodeId(random.below(8) as u32) }, node(&mut random));
    }
    assert!(packer.buckets.len() < 100, "{}", packer.buckets.len());
}

#[test]
fn nodes_that_come_and_go_leave_no_candidates_behind() {
    let demand = demands(&mut Random::new(1)).into_iter().find(|demand| demand.devices.is_none()).unwrap();
    let of_cpus = |cpu_millis: u64| Node {
        class: ClassRef::new(Default::default()),
        free: Resources { cpu_millis, ..Resources::default() },
        devices: [].into(),
        device_free: Vec::new(),
    };
    let at = |node: u32| NodeRef { pool: PoolId(0), node: NodeId(node) };
    let mut packer = Packer::new(Scorer::BestFit);
    packer.set_pool(PoolId(0), "p0");
    packer.set(at(5), of_cpus(8_000));
    let mut random = Random::new(2);
    let mut candidates_max = 0;
    for _ in 0..30_000 {
        // A lower node of the same bucket comes and goes, and the others change their bucket each time.
        packer.set(at(1), of_cpus(8_000));
        packer.best(&demand);
        packer.remove(at(1));
        packer.best(&demand);
        for node in 6..12 {
            packer.set(at(node), of_cpus(9_000 + random.below(100_000)));
        }
        packer.best(&demand);
        candidates_max = candidates_max.max(packer.rankings[0].ranking.candidates());
    }
    assert!(candidates_max < 4_000, "{candidates_max}");
}

#[test]
fn overflow_consists_of_the_tasks_that_do_not_fit() {
    let task = |millis: u32| {
        Arc::new(Demand {
            resources: Resources { cpu_millis: 100, ..Resources::default() },
            devices: Some(DeviceDemand { models: None, amount: DeviceAmount::Fraction(millis) }),
            constraints: Constraints::default(),
            needs: Needs::default(),
        })
    };
    let device = Device { model: DeviceModelId(0), topology_group: 0 };
    let node = Node {
        class: ClassRef::new(Default::default()),
        free: Resources { cpu_millis: 64_000, ..Resources::default() },
        devices: [device; 8].into(),
        device_free: vec![DEVICE_MILLIS; 8],
    };
    let mix = [(task(900), 9), (task(100), 1)];
    let overflow = overflow_of(vec![node; 20].iter(), &mix, 1);
    assert_eq!(overflow.keys().collect::<Vec<_>>(), [&mix[0].0]);
}

/// Nodes of eight devices, some of them partly in use, and a profile of tasks of one and of eight devices.
fn nodes_of_eight(turnover_percent: u32) -> (Packer, Arc<Demand>) {
    let demand = |count: u32| {
        Arc::new(Demand {
            resources: Resources { cpu_millis: 1_000 * u64::from(count), ..Resources::default() },
            devices: Some(DeviceDemand { models: None, amount: DeviceAmount::Whole(count) }),
            constraints: Constraints::default(),
            needs: Needs::default(),
        })
    };
    let one = demand(1);
    let overflow =
        Overflow::of(&WorkloadProfile { turnover_percent, ..profile(&[one.clone(), demand(8)]) }, 7);
    let mut packer = Packer::new(Scorer::Overflow(overflow));
    for (at, free) in [8, 5, 8, 3].into_iter().enumerate() {
        let node = Node {
            class: ClassRef::new(Default::default()),
            free: Resources { cpu_millis: 8_000, ..Resources::default() },
            devices: (0..8).map(|_| Device { model: DeviceModelId(0), topology_group: 0 }).collect(),
            device_free: (0..8).map(|index| if index < free { DEVICE_MILLIS } else { 0 }).collect(),
        };
        packer.set(NodeRef { pool: PoolId(0), node: NodeId(at as u32) }, node);
    }
    (packer, one)
}

#[test]
fn small_tasks_go_to_the_fullest_nodes_that_strand_nothing() {
    let (mut packer, one) = nodes_of_eight(100);
    let places: Vec<NodeId> = (0..9).map(|_| packer.place(&one).unwrap().node.node).collect();
    assert_eq!(places, [3, 3, 3, 1, 1, 1, 1, 1, 0].map(NodeId));
}

#[test]
fn contiguity_decides_between_nodes_but_not_between_tasks() {
    let costs = |turnover_percent: u32| {
        let (mut packer, one) = nodes_of_eight(turnover_percent);
        let id = packer.demand(&one, None);
        let (best, node) = packer.best_of(id, None).unwrap();
        assert!([1, 3].contains(&node.node.0), "a node that is broken up already");
        (1..4).for_each(|at| packer.remove(NodeRef { pool: PoolId(0), node: NodeId(at) }));
        let (score, whole) = packer.best_of(id, None).unwrap();
        assert!(score.cost > best.cost, "free devices on one node have a value");
        assert_eq!(packer.stranding_cost(id, whole, score), 0);
        score.cost
    };
    assert!(costs(100) > 2 * costs(0), "the value is larger where tasks end");
}
