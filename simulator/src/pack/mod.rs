//! How much of a cluster a policy fills: the procedure of the openb trace.
//!
//! The task list, with tasks drawn again from it until they ask for 130 % of all GPUs, arrives in
//! random order on the empty cluster; what fits is placed and never moved; nothing departs. The figure
//! is the share of all GPU thousandths that is allocated in the end. As in Weng et al., Beware of
//! Fragmentation, USENIX ATC 2023. `procedure` plays it, with the engine that the broker schedules by;
//! `bound` says what no scheduler can exceed, `compare` sets policies side by side.

mod bound;
mod compare;
mod defrag;
mod procedure;
mod resample;
mod window;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Parser, ValueEnum};
use serde::Serialize;
use weir::model::plan::Policy;

use crate::traces::openb::{self, Task};
use bound::Bounds;
pub use compare::Compare;
use defrag::Defragmented;
use procedure::{Cluster, Outcome, Rules};
use resample::Weights;

/// Fills a cluster with a trace's tasks and tells how much was allocated.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  simulator pack --nodes openb_node_list_gpu_node.csv --pods openb_pod_list_default.csv --policy fgd\n  simulator pack --nodes NODES.csv --pods PODS.csv --policy overflow --window 1000 --seeds 10 -o json\n  simulator pack --nodes NODES.csv --pods PODS.csv --policy overflow --workload ARRIVED.csv --placements PLACED.csv\n  simulator pack --nodes NODES.csv --pods PODS.csv --resample multi=8,part=0.5 --bound"
)]
pub struct Pack {
    #[command(flatten)]
    files: Files,
    #[arg(long, value_enum, default_value_t = PolicyName::Overflow)]
    policy: PolicyName,
    /// Arrivals ask for so many times the GPUs that there are.
    #[arg(long, default_value_t = 1.3)]
    inflate: f64,
    /// Waiting tasks of which the next is chosen; 1 places each as it arrives.
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// The first seed, of the tasks drawn and of their order.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seeds to run.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Seed of what the policy draws.
    #[arg(long, default_value_t = 0)]
    policy_seed: u64,
    /// Policy seeds to run each seed with.
    #[arg(long, default_value_t = 1)]
    policy_seeds: u64,
    /// So many copies of each node and task.
    #[arg(long, default_value_t = 1)]
    scale: u32,
    /// Measures each run when it has been played before, with all that is known of it by then.
    #[arg(long)]
    warm: bool,
    /// Also computes how much any scheduler could allocate, and how much any could that places one by one.
    #[arg(long)]
    bound: bool,
    /// Then plans which placed tasks to move to let in those that found no room, until so many percent of
    /// the GPUs are allocated. Every task may be moved, once; the fewer moves the better.
    #[arg(long, value_name = "PERCENT")]
    defrag: Option<f64>,
    /// Writes the tasks in the order in which they arrived, of one seed.
    #[arg(long)]
    workload: Option<PathBuf>,
    /// Writes where each task was placed, in that order, of one seed.
    #[arg(long)]
    placements: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// The files of a trace.
#[derive(Args)]
struct Files {
    /// CSV of nodes: sn, cpu_milli, memory_mib, gpu, model.
    #[arg(long)]
    nodes: PathBuf,
    /// CSV of tasks: name, cpu_milli, memory_mib, num_gpu, gpu_milli, gpu_spec if there is one.
    #[arg(long)]
    pods: PathBuf,
    /// Draws the task list anew, with tasks of these classes so many times as often: cpu, part, one, multi.
    #[arg(long, value_name = "CLASS=FACTOR,…")]
    resample: Option<Weights>,
    /// Seed of that draw.
    #[arg(long, default_value_t = 0, requires = "resample")]
    resample_seed: u64,
}

impl Files {
    fn tasks(&self) -> anyhow::Result<Vec<Task>> {
        let tasks = openb::read_tasks(&self.pods)?;
        match self.resample {
            Some(weights) => resample::resample(&tasks, weights, self.resample_seed),
            None => Ok(tasks),
        }
    }

    /// So many copies of the nodes and tasks.
    fn cluster(&self, scale: u32) -> anyhow::Result<Cluster> {
        Cluster::new(openb::read_nodes(&self.nodes)?, self.tasks()?, scale)
    }
}

/// A policy's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyName {
    /// Any node that fits.
    Random,
    /// The started device that is filled best, then the fullest node.
    BestFit,
    /// The node whose free capacity is most like the demand.
    DotProduct,
    /// Fragmentation gradient descent, for the task list's own mix.
    Fgd,
    /// The least stranded for what overflows, learned from what arrives.
    Overflow,
    /// What a broker uses unless it is told otherwise: overflow.
    Default,
}

impl PolicyName {
    /// The same policy by the name that is its own.
    fn resolved(self) -> Self {
        match self {
            Self::Default => match Policy::default() {
                Policy::BestFit => Self::BestFit,
                Policy::Fgd => Self::Fgd,
                Policy::Overflow => Self::Overflow,
            },
            named => named,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What is printed of one run.
#[derive(Serialize)]
struct Run {
    seed: u64,
    policy_seed: u64,
    allocated_percent: f64,
    arrivals: usize,
    placed: usize,
    decisions_per_s: f64,
    /// The most tasks that came later and were placed earlier than one.
    passed_over_max: usize,
    #[serde(flatten)]
    bounds: Option<Bounds>,
    #[serde(flatten)]
    defragmented: Option<Defragmented>,
}

#[derive(Serialize)]
struct Report {
    policy: String,
    window: usize,
    runs: Vec<Run>,
    /// Of `allocated_percent`.
    mean: f64,
    /// The least mean over all seeds of one policy seed.
    worst_policy_seed: f64,
    /// The means over the seeds.
    #[serde(flatten)]
    bounds: Option<Bounds>,
}

impl Pack {
    /// Runs the seeds and prints what came of them.
    ///
    /// # Errors
    /// If a file can't be read or written, or an argument is out of range.
    pub fn run(self) -> anyhow::Result<()> {
        self.check()?;
        let cluster = self.files.cluster(self.scale)?;
        let bounds_of = |seed| bound::of(&cluster, &cluster.arrivals(seed, self.inflate));
        let seeds = self.seed..self.seed + self.seeds;
        let bounds: Vec<Bounds> =
            if self.bound { seeds.clone().map(bounds_of).collect::<Result<_, _>>()? } else { Vec::new() };
        let mut runs = Vec::new();
        for policy_seed in self.policy_seed..self.policy_seed + self.policy_seeds {
            for (at, seed) in seeds.clone().enumerate() {
                let arrivals = cluster.arrivals(seed, self.inflate);
                let rules = Rules { policy: self.policy, policy_seed, window: self.window, warm: self.warm };
                let outcome = procedure::play(&cluster, &arrivals, rules);
                self.write_files(&cluster, &arrivals, &outcome)?;
                runs.push(Run {
                    seed,
                    policy_seed,
                    allocated_percent: outcome.allocated_percent,
                    arrivals: arrivals.len(),
                    placed: outcome.placed.len(),
                    decisions_per_s: arrivals.len() as f64 / outcome.seconds,
                    passed_over_max: outcome.passed_over_max,
                    bounds: bounds.get(at).copied(),
                    defragmented: self.defrag.map(|until| defrag::plan(&cluster, &arrivals, &outcome, until)),
                });
            }
        }
        let mean_of = |runs: &[&Run]| {
            runs.iter().map(|run| run.allocated_percent).sum::<f64>() / runs.len().max(1) as f64
        };
        let of_policy_seed = |policy_seed: u64| {
            mean_of(&runs.iter().filter(|run| run.policy_seed == policy_seed).collect::<Vec<_>>())
        };
        let mean = mean_of(&runs.iter().collect::<Vec<_>>());
        let policy_seeds = self.policy_seed..self.policy_seed + self.policy_seeds;
        let worst_policy_seed = policy_seeds.map(of_policy_seed).fold(f64::INFINITY, f64::min);
        let report = Report {
            policy: self.policy.to_string(),
            window: self.window,
            runs,
            mean,
            worst_policy_seed,
            bounds: Bounds::mean(&bounds),
        };
        match self.output {
            Output::Json => say!("{}", serde_json::to_string_pretty(&report)?),
            Output::Table => print_table(&report),
        }
        Ok(())
    }

    fn check(&self) -> anyhow::Result<()> {
        check_inflate(self.inflate)?;
        let at_least_1 = [
            ("--window", self.window as u64),
            ("--seeds", self.seeds),
            ("--policy-seeds", self.policy_seeds),
            ("--scale", u64::from(self.scale)),
        ];
        if let Some((name, _)) = at_least_1.iter().find(|(_, value)| *value == 0) {
            bail!("{name} is 0, must be at least 1");
        }
        if let Some(until) = self.defrag.filter(|until| !(0.0..=100.0).contains(until)) {
            bail!("--defrag is {until}, must be 0 to 100");
        }
        let one_run = self.seeds == 1 && self.policy_seeds == 1;
        if !one_run && (self.workload.is_some() || self.placements.is_some()) {
            bail!("--workload and --placements are of one run: leave out --seeds and --policy-seeds");
        }
        Ok(())
    }

    fn write_files(&self, cluster: &Cluster, arrivals: &[usize], outcome: &Outcome) -> anyhow::Result<()> {
        let names = cluster.names(arrivals);
        if let Some(path) = &self.workload {
            let mut lines = vec!["name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec".to_owned()];
            for (name, index) in names.iter().zip(arrivals) {
                let task = &cluster.tasks[*index];
                lines.push(format!(
                    "{name},{},{},{},{},{}",
                    task.cpu_millis,
                    task.memory_bytes >> 20,
                    task.gpu_count,
                    task.gpu_millis,
                    task.models.join("|")
                ));
            }
            write_lines(path, &lines)?;
        }
        if let Some(path) = &self.placements {
            let mut lines = vec!["name,node,gpus".to_owned()];
            for placed in &outcome.placed {
                let gpus: Vec<String> = placed.devices.iter().map(ToString::to_string).collect();
                let (name, node) = (&names[placed.arrival], &cluster.node_names[placed.node]);
                lines.push(format!("{name},{node},{}", gpus.join("|")));
            }
            write_lines(path, &lines)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Every policy has a name: none is hidden.
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

fn check_inflate(inflate: f64) -> anyhow::Result<()> {
    if !(0.01..=100.0).contains(&inflate) {
        bail!("--inflate is {inflate}, must be 0.01 to 100");
    }
    Ok(())
}

fn write_lines(path: &Path, lines: &[String]) -> anyhow::Result<()> {
    let write = || {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        lines.iter().try_for_each(|line| writeln!(file, "{line}"))?;
        file.flush()
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

fn print_table(report: &Report) {
    say!("SEED  POLICY-SEED  ARRIVALS  PLACED  ALLOCATED  PASSED-OVER  DECISIONS/S");
    for run in &report.runs {
        say!(
            "{:<4}  {:<11}  {:<8}  {:<6}  {:>8.2}%  {:<11}  {:.0}",
            run.seed,
            run.policy_seed,
            run.arrivals,
            run.placed,
            run.allocated_percent,
            run.passed_over_max,
            run.decisions_per_s
        );
    }
    say!(
        "{}, window {}: {:.2} % allocated on average, {:.2} % with the worst policy seed",
        report.policy,
        report.window,
        report.mean,
        report.worst_policy_seed
    );
    for run in &report.runs {
        let Some(plan) = run.defragmented else { continue };
        say!(
            "seed {}, policy seed {}: {} moves, {} of them back to the queue, let {} tasks in: {:.2} % allocated then (planned in {:.1} s)",
            run.seed,
            run.policy_seed,
            plan.moves,
            plan.requeued,
            plan.let_in,
            plan.allocated_percent,
            plan.seconds
        );
    }
    if let Some(bounds) = report.bounds {
        say!(
            "no scheduler can allocate more than {:.2} %; none that places one by one, on average, more than {:.2} %",
            bounds.any_order_percent,
            bounds.one_by_one_percent
        );
    }
}
