//! Placement rate of the packing engine, in memory and on one core: no journal, no network.
//!
//! The two workloads are those with which Armada (armadaproject.io) measures its own in-memory placement:
//! 32,000 jobs of one CPU on 1,000 empty nodes of 32 CPUs and 256 GiB, for which Armada takes 0.60 s
//! (53,000/s), and 10,000 such jobs on 10,000 nodes with capacity for one more job each, which Armada places
//! at 20,000/s. Each workload is placed five times with best fit; the median and the range are printed.
//!
//! A *profile update* of the policy `overflow` runs now and then within one step of the broker: it plays 256
//! kinds of tasks, the maximum, on 192 nodes of eight devices.
//!
//!     cargo bench --bench packing

use std::sync::Arc;
use std::time::{Duration, Instant};

use weir::model::demand::{Demand, DeviceDemand, NodeClass, WorkloadProfile};
use weir::model::device::{DeviceAmount, DeviceModelId};
use weir::model::id::{NodeId, NodeRef, PoolId};
use weir::model::limit::DEVICE_MILLIS;
use weir::model::resource::Resources;
use weir::model::shape::Needs;
use weir::model::spec::Constraints;
use weir::scheduler::packing::bucket::ClassRef;
use weir::scheduler::packing::policy::Scorer;
use weir::scheduler::packing::profile::updated_profile;
use weir::scheduler::packing::random::Random;
use weir::scheduler::packing::{Device, Node, Packer, Undo};
use weir::state::workload;

const GIB: u64 = 1 << 30;
const RUNS: usize = 5;

struct Workload {
    name: &'static str,
    nodes: u32,
    /// Free CPUs of each node, with 8 GiB of free memory per CPU.
    free_cpus: u64,
    jobs: u32,
}

const WORKLOADS: [Workload; 2] = [
    Workload { name: "32,000 jobs on 1,000 empty nodes", nodes: 1_000, free_cpus: 32, jobs: 32_000 },
    Workload { name: "10,000 jobs on 10,000 almost full nodes", nodes: 10_000, free_cpus: 1, jobs: 10_000 },
];

fn resources(cpus: u64, memory_gib: u64) -> Resources {
    Resources { cpu_millis: cpus * 1_000, memory_bytes: memory_gib * GIB, ..Resources::default() }
}

/// Time to place all jobs.
fn run(workload: &Workload) -> Duration {
    let class = ClassRef::new(NodeClass::default());
    let mut packer = Packer::new(Scorer::BestFit);
    for node in 0..workload.nodes {
        let free = resources(workload.free_cpus, 8 * workload.free_cpus);
        let node_at = NodeRef { pool: PoolId(1), node: NodeId(node) };
        packer.set(
            node_at,
            Node { class: class.clone(), free, devices: Arc::from([]), device_free: Vec::new() },
        );
    }
    let demand = Arc::new(Demand {
        resources: resources(1, 4),
        devices: None,
        constraints: Constraints::default(),
        needs: Needs::default(),
    });
    let started = Instant::now();
    for job in 0..workload.jobs {
        let id = packer.demand(&demand, None);
        let place = packer.place_of(id, None, &mut Undo::default());
        assert!(place.is_some(), "job {job} fits no node");
    }
    started.elapsed()
}

/// Time of one update of the workload profile.
fn update_profile() -> Duration {
    let mut random = Random::new(1);
    let mut arrived = workload::Workload::default();
    for kind in 0..256 {
        let amount = match kind % 4 {
            0 => DeviceAmount::Whole(1 << (kind / 4 % 4)),
            _ => DeviceAmount::Fraction(10 + 990 * kind / 256),
        };
        let demand = Demand {
            resources: resources(1 + random.below(16), 1 + u64::from(kind) / 4),
            devices: Some(DeviceDemand { models: None, amount }),
            constraints: Constraints::default(),
            needs: Needs::default(),
        };
        arrived.arrive(&Arc::new(demand), 1 + random.below(64));
    }
    let class = ClassRef::new(NodeClass::default());
    let device = |_| Device { model: DeviceModelId(0), topology_group: 0 };
    let node = Node {
        class,
        free: resources(96, 384),
        devices: (0..8).map(device).collect(),
        device_free: vec![DEVICE_MILLIS; 8],
    };
    let nodes = vec![node; 192];
    let started = Instant::now();
    let profile = updated_profile(&arrived, nodes.iter(), 0, &WorkloadProfile::default())
        .expect("the first update yields a profile");
    let took = started.elapsed();
    assert_eq!(profile.entries.len(), 256);
    took
}

fn main() {
    println!("{:<42} {:>10} {:>12}   range", "workload", "median", "jobs/s");
    for workload in &WORKLOADS {
        row(workload.name, Some(workload.jobs), || run(workload));
    }
    row("profile update", None, update_profile);
}

fn row(name: &str, jobs: Option<u32>, run: impl FnMut() -> Duration) {
    let mut took: Vec<Duration> = std::iter::repeat_with(run).take(RUNS).collect();
    took.sort_unstable();
    let median = took[RUNS / 2].as_secs_f64();
    let rate = jobs.map_or("-".to_owned(), |jobs| format!("{:.0}", f64::from(jobs) / median));
    let (min, max) = (took[0], took[RUNS - 1]);
    println!("{name:<42} {:>8.1}ms {rate:>12}   {min:.1?} to {max:.1?}", median * 1e3);
}
