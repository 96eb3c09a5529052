//! Upper bounds on the GPUs that any scheduler can allocate for a workload, by linear programming.
//!
//! The relaxation merges all nodes of a kind into one large node and maximises the allocation. Its unknowns
//! are the number of tasks of each demand on each kind of node, and the number of devices of each kind that
//! are shared by each *pattern* of fractions. A merged node has at least as much usable capacity as its
//! parts, so the optimum bounds every scheduler, even one with all tasks given in advance.
//!
//! The second bound is for schedulers that place tasks one by one, place every task that fits, and never move
//! one. Such a scheduler rejects a demand no earlier than another demand that requests at least as much in
//! every dimension. In random order the smaller demand's expected share of placed tasks is therefore at least
//! as large. The dominance rows state this. The bound holds for the mean over orders; a single order may
//! exceed it a little.
//!
//! The solved program is the dual: the cheapest prices of tasks, processors, memory and devices at which no
//! placement is profitable. There are too many patterns to list, so only patterns that are profitable at the
//! current prices are added (column generation; Gilmore and Gomory, A Linear Programming Approach to the
//! Cutting-Stock Problem, Operations Research 9, 1961). By weak duality *any* prices at which no placement is
//! profitable give a bound, so raising some prices corrects rounding errors of the solver.

use std::collections::BTreeMap;

use anyhow::bail;
use microlp::{ComparisonOp, OptimizationDirection, Problem, SolveOutcome, Variable};
use serde::Serialize;
use weir::model::demand::Demand;
use weir::model::device::{DeviceAmount, DeviceModelId};
use weir::model::limit::DEVICE_MILLIS;

use super::cluster::Cluster;

/// The search ends when further patterns would gain less than this, in devices of one kind.
const GAIN_MIN: f64 = 1e-6;

/// Upper bounds on what can be allocated, in percent of all device thousandths.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Bounds {
    /// For any scheduler, even one with all tasks given in advance.
    pub(super) any_order_percent: f64,
    /// For schedulers that place each task as it arrives if it fits: a bound on the mean over orders.
    pub(super) one_by_one_percent: f64,
}

impl Bounds {
    /// The mean of the bounds of several workloads; `None` without any.
    pub(super) fn mean(of: &[Self]) -> Option<Self> {
        let mean = |bound: fn(&Self) -> f64| of.iter().map(bound).sum::<f64>() / of.len() as f64;
        (!of.is_empty()).then(|| Self {
            any_order_percent: mean(|bounds| bounds.any_order_percent),
            one_by_one_percent: mean(|bounds| bounds.one_by_one_percent),
        })
    }
}

/// Computes the bounds for these arrivals on a cluster.
///
/// # Errors
/// If the solver fails.
pub(super) fn of(cluster: &Cluster, arrivals: &[usize]) -> anyhow::Result<Bounds> {
    let mut program = Program::new(cluster, arrivals);
    let any_order_percent = program.bound()?;
    program.dominances = program.find_dominances();
    Ok(Bounds { any_order_percent, one_by_one_percent: program.bound()? })
}

/// Kind of node: nodes of one kind have equal capacity.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    cpu_millis: u64,
    memory_bytes: u64,
    /// Model of all devices of the node.
    model: Option<DeviceModelId>,
    devices: usize,
}

/// Pattern by which devices are shared: the number of tasks of each fraction on one device.
struct Pattern {
    kind: usize,
    counts: BTreeMap<u32, u32>,
}

struct Program<'a> {
    demands: Vec<&'a Demand>,
    /// Arrivals of each demand.
    supply: Vec<f64>,
    /// Kinds of nodes with the number of nodes of each.
    entries: Vec<(Kind, f64)>,
    /// Devices of all nodes.
    devices: f64,
    /// (Demand, kind) for each demand that fits an empty node of the kind.
    pairs: Vec<(usize, usize)>,
    patterns: Vec<Pattern>,
    /// (Kind, thousandths) for each fraction that may share devices of the kind; sorted.
    fractions: Vec<(usize, u32)>,
    /// (Less, more): the first demand requests no more than the second in any dimension.
    dominances: Vec<(usize, usize)>,
}

/// The rows of the program, in their order.
#[derive(Clone, Copy)]
enum Row {
    Supply(usize),
    Cpu(usize),
    Memory(usize),
    Devices(usize),
    /// By index in `fractions`.
    Shared(usize),
    /// By index in `dominances`.
    Dominance(usize),
}

impl<'a> Program<'a> {
    fn new(cluster: &'a Cluster, arrivals: &[usize]) -> Self {
        let mut counts = vec![0u32; cluster.demands.len()];
        arrivals.iter().for_each(|task| counts[cluster.demand_of[*task]] += 1);
        let requested = counts.iter().zip(&cluster.demands).filter(|(count, _)| **count > 0);
        let (supply, demands): (Vec<f64>, Vec<&Demand>) =
            requested.map(|(count, demand)| (f64::from(*count), &**demand)).unzip();
        let mut entries = BTreeMap::<Kind, u32>::new();
        for node in &cluster.nodes {
            let kind = Kind {
                cpu_millis: node.free.cpu_millis,
                memory_bytes: node.free.memory_bytes,
                model: node.devices.first().map(|device| device.model),
                devices: node.devices.len(),
            };
            *entries.entry(kind).or_default() += 1;
        }
        let entries: Vec<(Kind, f64)> =
            entries.into_iter().map(|(kind, count)| (kind, f64::from(count))).collect();
        let each = (0..demands.len()).flat_map(|demand| (0..entries.len()).map(move |kind| (demand, kind)));
        let pairs: Vec<(usize, usize)> =
            each.filter(|(demand, kind)| entries[*kind].0.fits(demands[*demand])).collect();
        let mut fractions: Vec<(usize, u32)> =
            pairs.iter().filter_map(|(demand, kind)| Some((*kind, fraction(demands[*demand])?))).collect();
        fractions.sort_unstable();
        fractions.dedup();
        let uniform = |(kind, millis): &(usize, u32)| Pattern {
            kind: *kind,
            counts: BTreeMap::from([(*millis, DEVICE_MILLIS / millis)]),
        };
        let patterns = fractions.iter().map(uniform).collect();
        let devices = cluster.capacity_millis as f64 / f64::from(DEVICE_MILLIS);
        Self { demands, supply, entries, devices, pairs, patterns, fractions, dominances: Vec::new() }
    }

    /// The dominance pairs, without those that follow from others (transitive reduction).
    fn find_dominances(&self) -> Vec<(usize, usize)> {
        let all = 0..self.demands.len();
        let below =
            |less: usize, more: usize| less != more && is_dominated(self.demands[less], self.demands[more]);
        let mut pairs = Vec::new();
        for less in all.clone() {
            for more in all.clone().filter(|more| below(less, *more)) {
                if !all.clone().any(|between| below(less, between) && below(between, more)) {
                    pairs.push((less, more));
                }
            }
        }
        pairs
    }

    /// Solves the program and returns the bound, in percent.
    fn bound(&mut self) -> anyhow::Result<f64> {
        let mut problem = Problem::new(OptimizationDirection::Minimize);
        let prices: Vec<Variable> =
            self.rows().map(|row| problem.add_var(self.limit(row), (0.0, f64::INFINITY))).collect();
        let sum = |column: Vec<(usize, f64)>| -> Vec<(Variable, f64)> {
            column.into_iter().map(|(row, take)| (prices[row], take)).collect()
        };
        for (demand, kind) in &self.pairs {
            let column = sum(self.task_column(*demand, *kind));
            problem.add_constraint(column, ComparisonOp::Ge, devices(self.demands[*demand]));
        }
        for pattern in &self.patterns {
            problem.add_constraint(sum(self.pattern_column(pattern)), ComparisonOp::Ge, 0.0);
        }
        let mut outcome = problem.solve()?;
        loop {
            let SolveOutcome::Solution(solution) = outcome else {
                bail!("the linear program was not solved")
            };
            let mut values: Vec<f64> = prices.iter().map(|price| solution.var_value(*price)).collect();
            let profitable = self.raise_prices(&mut values);
            if profitable.is_empty() {
                let bound: f64 = self.rows().zip(&values).map(|(row, price)| self.limit(row) * price).sum();
                return Ok(bound * 100.0 / self.devices);
            }
            outcome = SolveOutcome::Solution(solution);
            for pattern in profitable {
                let SolveOutcome::Solution(solution) = outcome else {
                    bail!("the linear program was not solved")
                };
                outcome =
                    solution.add_constraint(sum(self.pattern_column(&pattern)), ComparisonOp::Ge, 0.0)?;
                self.patterns.push(pattern);
            }
        }
    }

    /// Raises prices until no placement is profitable. Returns the patterns that were profitable at the
    /// original prices.
    fn raise_prices(&self, prices: &mut [f64]) -> Vec<Pattern> {
        prices.iter_mut().for_each(|price| *price = price.max(0.0));
        let mut profitable = Vec::new();
        for kind in 0..self.entries.len() {
            let (worth, counts) = self.best_pattern(kind, prices);
            let price = &mut prices[self.index(Row::Devices(kind))];
            if worth > *price + GAIN_MIN {
                profitable.push(Pattern { kind, counts });
            }
            *price = price.max(worth);
        }
        for (demand, kind) in &self.pairs {
            let column = self.task_column(*demand, *kind);
            let price: f64 = column.iter().map(|(row, take)| prices[*row] * take).sum();
            prices[self.index(Row::Supply(*demand))] += (devices(self.demands[*demand]) - price).max(0.0);
        }
        profitable
    }

    /// The most valuable fractions on one device, with their value: an unbounded knapsack.
    fn best_pattern(&self, kind: usize, prices: &[f64]) -> (f64, BTreeMap<u32, u32>) {
        let items: Vec<(usize, f64)> = self
            .fractions
            .iter()
            .enumerate()
            .filter(|(_, (of, _))| *of == kind)
            .map(|(at, (_, millis))| (*millis as usize, prices[self.index(Row::Shared(at))]))
            .collect();
        let mut worth = vec![(0.0, None); DEVICE_MILLIS as usize + 1];
        for size in 1..worth.len() {
            worth[size] = (worth[size - 1].0, None);
            for (millis, price) in items.iter().filter(|(millis, _)| *millis <= size) {
                let with = worth[size - millis].0 + price;
                if with > worth[size].0 {
                    worth[size] = (with, Some(*millis));
                }
            }
        }
        let (mut counts, mut free) = (BTreeMap::new(), DEVICE_MILLIS as usize);
        while free > 0 {
            match worth[free].1 {
                Some(millis) => {
                    *counts.entry(millis as u32).or_default() += 1;
                    free -= millis;
                }
                None => free -= 1,
            }
        }
        (worth[DEVICE_MILLIS as usize].0, counts)
    }

    fn rows(&self) -> impl Iterator<Item = Row> {
        let entries = self.entries.len();
        (0..self.demands.len())
            .map(Row::Supply)
            .chain((0..entries).map(Row::Cpu))
            .chain((0..entries).map(Row::Memory))
            .chain((0..entries).map(Row::Devices))
            .chain((0..self.fractions.len()).map(Row::Shared))
            .chain((0..self.dominances.len()).map(Row::Dominance))
    }

    /// Index of a row, in the order of `rows`.
    fn index(&self, row: Row) -> usize {
        let (demands, entries) = (self.demands.len(), self.entries.len());
        match row {
            Row::Supply(at) => at,
            Row::Cpu(at) => demands + at,
            Row::Memory(at) => demands + entries + at,
            Row::Devices(at) => demands + 2 * entries + at,
            Row::Shared(at) => demands + 3 * entries + at,
            Row::Dominance(at) => demands + 3 * entries + self.fractions.len() + at,
        }
    }

    /// Upper limit of a row. Processors and memory are counted in nodes.
    fn limit(&self, row: Row) -> f64 {
        match row {
            Row::Supply(at) => self.supply[at],
            Row::Cpu(at) | Row::Memory(at) => self.entries[at].1,
            Row::Devices(at) => self.entries[at].1 * self.entries[at].0.devices as f64,
            Row::Shared(_) | Row::Dominance(_) => 0.0,
        }
    }

    /// Coefficients by row of a task of a demand on a kind of node.
    fn task_column(&self, demand: usize, kind: usize) -> Vec<(usize, f64)> {
        let (requested, node) = (self.demands[demand], &self.entries[kind].0);
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let mut column = vec![
            (self.index(Row::Supply(demand)), 1.0),
            (self.index(Row::Cpu(kind)), share(requested.resources.cpu_millis, node.cpu_millis)),
            (self.index(Row::Memory(kind)), share(requested.resources.memory_bytes, node.memory_bytes)),
        ];
        match (fraction(requested), &requested.devices) {
            (Some(millis), _) => {
                let at = self.fractions.binary_search(&(kind, millis));
                column.extend(at.map(|at| (self.index(Row::Shared(at)), 1.0)));
            }
            (None, Some(_)) => column.push((self.index(Row::Devices(kind)), devices(requested))),
            (None, None) => {}
        }
        for (at, (less, more)) in self.dominances.iter().enumerate() {
            // The placed share of the larger demand is at most that of the smaller. Both are scaled by the
            // smaller supply, so the coefficients stay near 1.
            let share = self.supply[*less].min(self.supply[*more]) / self.supply[demand];
            if demand == *more {
                column.push((self.index(Row::Dominance(at)), share));
            } else if demand == *less {
                column.push((self.index(Row::Dominance(at)), -share));
            }
        }
        column
    }

    fn pattern_column(&self, pattern: &Pattern) -> Vec<(usize, f64)> {
        let shared = |(millis, count): (&u32, &u32)| {
            let at = self.fractions.binary_search(&(pattern.kind, *millis)).ok()?;
            Some((self.index(Row::Shared(at)), -f64::from(*count)))
        };
        let devices = (self.index(Row::Devices(pattern.kind)), 1.0);
        std::iter::once(devices).chain(pattern.counts.iter().filter_map(shared)).collect()
    }
}

impl Kind {
    /// A task of the demand fits an empty node of this kind.
    fn fits(&self, demand: &Demand) -> bool {
        let devices = demand.device_millis().div_ceil(u64::from(DEVICE_MILLIS)) as usize;
        demand.resources.cpu_millis <= self.cpu_millis
            && demand.resources.memory_bytes <= self.memory_bytes
            && devices <= self.devices
            && (devices == 0 || self.model.is_some_and(|model| demand.allows(model)))
    }
}

/// Devices requested.
fn devices(demand: &Demand) -> f64 {
    demand.device_millis() as f64 / f64::from(DEVICE_MILLIS)
}

/// Thousandths of a shared device; `None` if the demand has no devices or whole ones.
fn fraction(demand: &Demand) -> Option<u32> {
    match demand.devices.as_ref()?.amount {
        DeviceAmount::Fraction(millis) => Some(millis),
        _ => None,
    }
}

/// `less` requests no more than `more` in any dimension: it fits wherever `more` does.
fn is_dominated(less: &Demand, more: &Demand) -> bool {
    let models = match (&less.devices, &more.devices) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(less), Some(more)) => match (&less.models, &more.models) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(names)) => names.iter().all(|model| less.allows(*model)),
        },
    };
    models
        && less.resources.cpu_millis <= more.resources.cpu_millis
        && less.resources.memory_bytes <= more.resources.memory_bytes
        && less.device_millis() <= more.device_millis()
}

#[cfg(test)]
mod tests {
    use weir::model::pool::{Device, NodeSpec};
    use weir::model::resource::Resources;
    use weir::scheduler::packing::random::Random;

    use super::*;
    use crate::pack::PolicyName;
    use crate::pack::defrag;
    use crate::pack::procedure::{Rules, play};
    use crate::traces::openb::Task;
    use crate::traces::shuffle;

    const GIB: u64 = 1 << 30;

    fn node(name: usize, model: &str, devices: u16) -> NodeSpec {
        let device = |_| Device {
            model: model.to_owned(),
            memory_bytes: 0,
            healthy: true,
            millis: DEVICE_MILLIS,
            topology_group: 0,
            profiles: Vec::new(),
        };
        NodeSpec {
            name: format!("n{name}"),
            labels: Default::default(),
            taints: Vec::new(),
            cordoned: false,
            allocatable: Resources { cpu_millis: 64_000, memory_bytes: 256 * GIB, ..Resources::default() },
            devices: (0..devices).map(device).collect(),
        }
    }

    fn task(cpu_millis: u64, gpu_count: u32, gpu_millis: u32, models: &[&str]) -> Task {
        Task {
            name: "t".to_owned(),
            cpu_millis,
            memory_bytes: GIB,
            gpu_count,
            gpu_millis,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            created_s: 0,
            duration_s: 1,
        }
    }

    fn bounds(nodes: Vec<NodeSpec>, tasks: Vec<Task>) -> (f64, f64) {
        let arrivals: Vec<usize> = (0..tasks.len()).collect();
        let bounds = of(&Cluster::new(nodes, tasks, 1).unwrap(), &arrivals).unwrap();
        (bounds.any_order_percent, bounds.one_by_one_percent)
    }

    fn near((any, one): (f64, f64), (any_expected, one_expected): (f64, f64)) {
        assert!((any - any_expected).abs() < 1e-3 && (one - one_expected).abs() < 1e-3, "{any} {one}");
    }

    #[test]
    fn bounds_equal_those_computed_by_hand() {
        // Each device takes one fraction of 600 only.
        near(bounds(vec![node(0, "A", 2)], vec![task(1, 1, 600, &[]); 5]), (60.0, 60.0));
        // A pattern of two fractions: 700 and 300 fill a device.
        let pair = [task(1, 1, 700, &[]), task(1, 1, 300, &[])];
        near(bounds(vec![node(0, "A", 2)], [pair.clone(), pair].concat()), (100.0, 100.0));
        // Devices of the other model stay idle.
        let nodes = vec![node(0, "A", 1), node(1, "B", 3)];
        near(bounds(nodes, vec![task(1, 1, 1_000, &["A"]); 9]), (25.0, 25.0));
        // The 64 processors of the node suffice for one task, so one of two devices is used.
        near(bounds(vec![node(0, "A", 2)], vec![task(64_000, 1, 1_000, &[]); 2]), (50.0, 50.0));
        // Eight tasks request a whole device, eight request 900 thousandths. A scheduler that may choose
        // places the whole ones. In random order at least as many of the smaller are placed: on average four
        // of each.
        let both = [vec![task(1, 1, 1_000, &[]); 8], vec![task(1, 1, 900, &[]); 8]].concat();
        near(bounds(vec![node(0, "A", 8)], both), (100.0, 95.0));
        // A demand that fits no node contributes nothing.
        near(bounds(vec![node(0, "A", 2)], vec![task(1, 8, 1_000, &[]); 2]), (0.0, 0.0));
    }

    #[test]
    fn no_policy_exceeds_the_bounds() {
        let mut random = Random::new(7);
        for _ in 0..20 {
            let models = ["A", "B"];
            let nodes: Vec<NodeSpec> = (0..12)
                .map(|at| node(at, models[random.below(2) as usize], [1, 2, 4, 8][random.below(4) as usize]))
                .collect();
            let mut random_task = || {
                let allowed = if random.below(4) == 0 { &models[..1] } else { &[] };
                let cpu = 1_000 * (1 + random.below(12));
                match random.below(4) {
                    0 => task(cpu, 0, 0, &[]),
                    1 => task(cpu, 1 << random.below(4), 1_000, allowed),
                    _ => task(cpu, 1, 50 * (1 + random.below(19)) as u32, allowed),
                }
            };
            let entries: Vec<Task> = (0..12).map(|_| random_task()).collect();
            let tasks: Vec<Task> = (0..120).map(|at| entries[at % entries.len()].clone()).collect();
            let cluster = Cluster::new(nodes, tasks, 1).unwrap();
            let shuffled = |seed: u64| {
                let mut all: Vec<usize> = (0..cluster.tasks.len()).collect();
                shuffle(&mut all, &mut Random::new(seed));
                all
            };
            let order = shuffled(0);
            let bounds = of(&cluster, &order).unwrap();
            assert!(bounds.one_by_one_percent <= bounds.any_order_percent + 1e-6, "{bounds:?}");
            for policy in [PolicyName::BestFit, PolicyName::Overflow] {
                let allocated = |seed, window| {
                    let rules = Rules { policy, policy_seed: 0, window, warm: false };
                    play(&cluster, &shuffled(seed), rules).allocated_percent
                };
                // A plan of moves doesn't exceed the bound either.
                let rules = Rules { policy, policy_seed: 0, window: 1, warm: false };
                let filled = play(&cluster, &order, rules);
                let moved = defrag::plan(&cluster, &order, &filled, 100.0);
                assert!(moved.allocated_percent >= filled.allocated_percent, "{moved:?}");
                assert!(moved.allocated_percent <= bounds.any_order_percent + 1e-6, "{moved:?} {bounds:?}");
                let choosing = allocated(0, 100);
                assert!(choosing <= bounds.any_order_percent + 1e-6, "{choosing} {bounds:?}");
                let mean = (0..200).map(|seed| allocated(seed, 1)).sum::<f64>() / 200.0;
                // Tolerance: the mean of 200 orders, whose allocations differ by some percent.
                assert!(mean <= bounds.one_by_one_percent + 0.5, "{mean} {bounds:?}");
            }
        }
    }
}
