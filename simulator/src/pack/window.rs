//! Lookahead window: chooses among waiting tasks which to place next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::cluster::Cluster;
use super::player::{Observe, Placed, Player};

/// Bound on passing over: at most this many times the window of later arrivals are placed before a task. With
/// an eighth of it most of the gain of choosing is lost.
const PASSES_PER_WINDOW: usize = 8;

/// Waiting tasks, each by its index in the order of arrival.
#[derive(Default)]
struct Waiting {
    by_demand: BTreeMap<usize, VecDeque<usize>>,
    all: BTreeSet<usize>,
}

impl Waiting {
    fn push(&mut self, demand: usize, arrival: usize) {
        self.by_demand.entry(demand).or_default().push_back(arrival);
        self.all.insert(arrival);
    }

    /// Takes the oldest task of a demand.
    fn pop(&mut self, demand: usize) -> Option<usize> {
        let arrival = self.by_demand.get_mut(&demand)?.pop_front()?;
        self.all.remove(&arrival);
        Some(arrival)
    }

    fn drop_demand(&mut self, demand: usize) {
        for arrival in self.by_demand.remove(&demand).unwrap_or_default() {
            self.all.remove(&arrival);
        }
    }

    /// Chooses the demand whose oldest task is placed next, among the `window` oldest tasks: the one with the
    /// lowest cost that may still pass over the oldest task that fits. Also returns the demands that don't
    /// fit.
    fn choose(&self, player: &mut Player, window: usize) -> (Option<usize>, Vec<usize>) {
        let (mut fitting, mut unfit) = (Vec::new(), Vec::new());
        let last = self.all.iter().nth(window - 1).copied().unwrap_or(usize::MAX);
        for (demand, tasks) in &self.by_demand {
            let Some(first) = tasks.front().copied().filter(|first| *first <= last) else { continue };
            let id = player.id(*demand);
            match player.packer.best_of(id, None) {
                Some((score, node)) => {
                    fitting.push((player.packer.stranding_cost(id, node, score), first, *demand));
                }
                None => unfit.push(*demand),
            }
        }
        let oldest = fitting.iter().map(|(_, first, _)| *first).min().unwrap_or_default();
        let near = |first: usize| first <= oldest.saturating_add(PASSES_PER_WINDOW.saturating_mul(window));
        let next = fitting.into_iter().filter(|(_, first, _)| near(*first)).min();
        (next.map(|(_, _, demand)| demand), unfit)
    }
}

/// Places arrivals while at most `window` tasks wait.
pub(super) fn play(
    player: &mut Player,
    cluster: &Cluster,
    arrivals: &[usize],
    window: usize,
    observe: Observe,
) -> Vec<Placed> {
    let mut placed = Vec::new();
    let mut waiting = Waiting::default();
    let mut unplaceable = vec![false; cluster.demands.len()];
    let mut next = 0;
    while next < arrivals.len() || !waiting.all.is_empty() {
        while waiting.all.len() < window && next < arrivals.len() {
            let demand = cluster.demand_of[arrivals[next]];
            player.arrive(demand);
            if !unplaceable[demand] {
                waiting.push(demand, next);
            }
            next += 1;
        }
        let (demand, unfit) = waiting.choose(player, window);
        // No task ends, so a demand that doesn't fit now never will.
        for demand in unfit {
            unplaceable[demand] = true;
            waiting.drop_demand(demand);
        }
        if let Some(demand) = demand
            && let Some(arrival) = waiting.pop(demand)
        {
            placed.extend(player.place(demand, arrival));
        }
        observe(next, &player.packer);
    }
    placed
}

/// The largest number of later arrivals that were placed before any one placed task.
pub(super) fn passed_over_max(order: impl Iterator<Item = usize>, arrivals: usize) -> usize {
    // A Fenwick tree that counts the placed arrivals.
    let mut tree = vec![0usize; arrivals + 1];
    let (mut max, mut before) = (0, 0);
    for arrival in order {
        let (mut at, mut earlier) = (arrival + 1, 0);
        while at > 0 {
            earlier += tree[at];
            at &= at - 1;
        }
        max = max.max(before - earlier);
        let mut at = arrival + 1;
        while at <= arrivals {
            tree[at] += 1;
            at += at & at.wrapping_neg();
        }
        before += 1;
    }
    max
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pack::PolicyName;
    use crate::pack::procedure::{Rules, play};
    use crate::traces::openb;

    #[test]
    fn task_is_passed_over_by_each_later_one_that_is_placed_before_it() {
        assert_eq!(passed_over_max([0, 1, 2].into_iter(), 3), 0);
        assert_eq!(passed_over_max([2, 1, 0].into_iter(), 3), 2);
        assert_eq!(passed_over_max([3, 1, 4, 0].into_iter(), 5), 3);
        assert_eq!(passed_over_max([1].into_iter(), 5), 0);
    }

    /// 40 tasks of the openb trace, on nodes with capacity for a few hundred.
    fn small_cluster() -> Cluster {
        let slice = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openb_slice.csv"));
        let tasks = openb::read_tasks(slice).unwrap();
        let file = std::env::temp_dir().join(format!("weir-pack-{}.csv", std::process::id()));
        let node = |at: usize| format!("n{at},96000,393216,8,G2");
        let lines: Vec<String> = (0..40).map(node).collect();
        std::fs::write(&file, format!("sn,cpu_milli,memory_mib,gpu,model\n{}\n", lines.join("\n"))).unwrap();
        let nodes = openb::read_nodes(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        Cluster::new(nodes, tasks, 1).unwrap()
    }

    #[test]
    fn no_task_is_passed_over_beyond_the_bound_and_no_node_is_overcommitted() {
        let cluster = small_cluster();
        for (seed, window) in [(1, 2), (2, 2), (3, 4), (4, 30)] {
            let arrivals = cluster.arrivals(seed, 1.3);
            let rules = Rules { policy: PolicyName::Overflow, policy_seed: 0, window, warm: false };
            let outcome = play(&cluster, &arrivals, rules);
            assert!(outcome.passed_over_max <= PASSES_PER_WINDOW * window, "{}", outcome.passed_over_max);
            assert!(outcome.passed_over_max > 0, "no task was passed over");
            let mut allocated = BTreeMap::<(usize, u16), u64>::new();
            for placed in &outcome.placed {
                let demand = &cluster.demands[cluster.demand_of[arrivals[placed.arrival]]];
                let share = demand.device_millis() / placed.devices.len().max(1) as u64;
                for device in &placed.devices {
                    *allocated.entry((placed.node, *device)).or_default() += share;
                }
            }
            assert!(allocated.values().all(|millis| *millis <= 1_000), "{allocated:?}");
            let used = allocated.values().sum::<u64>() as f64 * 100.0 / cluster.capacity_millis as f64;
            assert!((used - outcome.allocated_percent).abs() < 1e-9);
        }
    }
}
