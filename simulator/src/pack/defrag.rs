//! What moving tasks would gain on a cluster that has been filled.

use weir::model::device::DeviceShare;
use weir::model::id::NodeId;
use weir::model::resource::Resources;
use weir::scheduler::defrag::{FragmentedPool, Limits, Running, Waiting};
use weir::scheduler::packing::Node;

use super::procedure::{Cluster, Outcome};

/// What a plan comes to.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Defragmented {
    /// Tasks that go to another node, or wait again.
    pub(super) moves: usize,
    /// How many of those wait again.
    pub(super) requeued: usize,
    /// Tasks that wait and would be let in.
    pub(super) let_in: usize,
    #[serde(rename = "defrag_allocated_percent")]
    pub(super) allocated_percent: f64,
    #[serde(rename = "defrag_seconds")]
    pub(super) seconds: f64,
}

/// Plans until so many percent of the GPUs are allocated, or nothing more can be let in.
pub(super) fn plan(cluster: &Cluster, arrivals: &[usize], outcome: &Outcome, percent: f64) -> Defragmented {
    let demand = |arrival: usize| &cluster.demands[cluster.demand_of[arrivals[arrival]]];
    let mut nodes: Vec<(NodeId, Node)> =
        cluster.nodes.iter().enumerate().map(|(at, node)| (NodeId(at as u32), node.clone())).collect();
    let (mut running, mut waits) = (Vec::new(), vec![true; arrivals.len()]);
    for placed in &outcome.placed {
        waits[placed.arrival] = false;
        let demand = demand(placed.arrival);
        let millis = (demand.device_millis() / placed.devices.len().max(1) as u64) as u32;
        let devices: Vec<DeviceShare> =
            placed.devices.iter().map(|index| DeviceShare { index: *index, millis }).collect();
        let node = &mut nodes[placed.node].1;
        node.free = free_after(node, &demand.resources);
        devices.iter().for_each(|share| node.device_free[usize::from(share.index)] -= share.millis);
        running.push(Running {
            demand: demand.clone(),
            node: NodeId(placed.node as u32),
            devices,
            cost: 1,
            priority: 0,
        });
    }
    let mut counts = vec![0; cluster.demands.len()];
    for (arrival, _) in waits.iter().enumerate().filter(|(_, waits)| **waits) {
        counts[cluster.demand_of[arrivals[arrival]]] += 1;
    }
    let kinds = cluster.demands.iter().zip(counts).filter(|(_, count)| *count > 0);
    let waiting = kinds.map(|(demand, count)| Waiting { demand: demand.clone(), count, priority: 0 });
    let clutter = FragmentedPool { name: String::new(), nodes, running, waiting: waiting.collect() };
    let free_millis = (cluster.capacity_millis as f64 * (1.0 - percent / 100.0)) as u64;
    let limits = Limits { moves: usize::MAX, free_millis, comparisons: u64::MAX };
    let started = std::time::Instant::now();
    let plan = clutter.plan(limits);
    let seconds = started.elapsed().as_secs_f64();
    let let_in = plan.steps.iter().map(|step| clutter.waiting[step.waiting].demand.device_millis());
    let let_in: u64 = let_in.sum();
    let stopped = plan.steps.iter().flat_map(|step| &step.moves).filter(|moved| moved.to.is_none());
    let stopped: Vec<u64> =
        stopped.map(|moved| clutter.running[moved.running].demand.device_millis()).collect();
    let free: u64 =
        clutter.nodes.iter().flat_map(|(_, node)| &node.device_free).map(|free| u64::from(*free)).sum();
    let used = cluster.capacity_millis - free + let_in - stopped.iter().sum::<u64>();
    Defragmented {
        moves: plan.moves(),
        requeued: stopped.len(),
        let_in: plan.steps.len(),
        allocated_percent: used as f64 * 100.0 / cluster.capacity_millis as f64,
        seconds,
    }
}

fn free_after(node: &Node, taken: &Resources) -> Resources {
    // It was placed there: it fits.
    node.free.checked_sub(taken).unwrap_or_default()
}
