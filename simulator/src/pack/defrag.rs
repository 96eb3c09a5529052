//! Plans moves on a filled cluster, to measure what defragmentation would gain.

use weir::model::device::DeviceShare;
use weir::model::id::NodeId;
use weir::model::resource::Resources;
use weir::scheduler::defrag::{FragmentedPool, Limits, Running, Waiting};
use weir::scheduler::packing::Node;

use super::cluster::Cluster;
use super::procedure::Outcome;

/// Result of a plan.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Defragmented {
    /// Running tasks that move to another node or back to the queue.
    pub(super) moves: usize,
    /// Moves back to the queue.
    pub(super) requeued: usize,
    /// Waiting tasks that fit after the moves.
    pub(super) newly_placed: usize,
    #[serde(rename = "defrag_allocated_percent")]
    pub(super) allocated_percent: f64,
    #[serde(rename = "defrag_seconds")]
    pub(super) seconds: f64,
}

/// Plans moves until `percent` of the GPUs are allocated, or no further waiting task can be made to fit.
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
    let entries = cluster.demands.iter().zip(counts).filter(|(_, count)| *count > 0);
    let waiting = entries.map(|(demand, count)| Waiting { demand: demand.clone(), count, priority: 0 });
    let pool = FragmentedPool { name: String::new(), nodes, running, waiting: waiting.collect() };
    let free_millis = (cluster.capacity_millis as f64 * (1.0 - percent / 100.0)) as u64;
    let limits = Limits { moves: usize::MAX, free_millis, comparisons: u64::MAX };
    let started = std::time::Instant::now();
    let plan = pool.plan(limits);
    let seconds = started.elapsed().as_secs_f64();
    let gained = plan.steps.iter().map(|step| pool.waiting[step.waiting].demand.device_millis());
    let gained: u64 = gained.sum();
    let stopped = plan.steps.iter().flat_map(|step| &step.moves).filter(|moved| moved.to.is_none());
    let stopped: Vec<u64> = stopped.map(|moved| pool.running[moved.running].demand.device_millis()).collect();
    let free: u64 =
        pool.nodes.iter().flat_map(|(_, node)| &node.device_free).map(|free| u64::from(*free)).sum();
    let used = cluster.capacity_millis - free + gained - stopped.iter().sum::<u64>();
    Defragmented {
        moves: plan.moves(),
        requeued: stopped.len(),
        newly_placed: plan.steps.len(),
        allocated_percent: used as f64 * 100.0 / cluster.capacity_millis as f64,
        seconds,
    }
}

fn free_after(node: &Node, taken: &Resources) -> Resources {
    // The task was placed there, so it fits.
    node.free.checked_sub(taken).unwrap_or_default()
}
