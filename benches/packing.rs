//! How fast the packing engine places, in memory and on one core: no journal, no network.
//!
//! The two workloads are those that Armada (armadaproject.io) measures its own in-memory placement by:
//! 32,000 jobs of one CPU on 1,000 empty nodes of 32 CPUs and 256 GiB, which takes it 0.60 s (53,000/s), and
//! 10,000 such jobs on 10,000 nodes that have room for one more each, which it does at 20,000/s. Each
//! is placed by best fit, the broker's default, five times over; the median is printed with the range.
//!
//!     cargo bench --bench packing

use std::sync::Arc;
use std::time::{Duration, Instant};

use weir::model::demand::{Demand, NodeClass};
use weir::model::id::{NodeId, NodeRef, PoolId};
use weir::model::resource::Resources;
use weir::model::shape::Needs;
use weir::model::spec::Constraints;
use weir::scheduler::packing::bucket::ClassRef;
use weir::scheduler::packing::policy::Scorer;
use weir::scheduler::packing::{Node, Packer, Undo};

const GIB: u64 = 1 << 30;
const RUNS: usize = 5;

struct Workload {
    name: &'static str,
    nodes: u32,
    /// CPUs that are free of each node; of memory, as much as goes with them.
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

/// How long it takes to place all jobs.
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
        assert!(place.is_some(), "job {job} has no place");
    }
    started.elapsed()
}

fn main() {
    println!("{:<42} {:>10} {:>12}   range", "workload", "median", "jobs/s");
    for workload in &WORKLOADS {
        let mut took: Vec<Duration> = (0..RUNS).map(|_| run(workload)).collect();
        took.sort_unstable();
        let median = took[RUNS / 2];
        println!(
            "{:<42} {:>8.1}ms {:>12.0}   {:.1?} to {:.1?}",
            workload.name,
            median.as_secs_f64() * 1e3,
            f64::from(workload.jobs) / median.as_secs_f64(),
            took[0],
            took[RUNS - 1]
        );
    }
}
