//! Packing trial: the share of a cluster's GPUs that a placement policy allocates, by the procedure of Weng
//! et al., Beware of Fragmentation, USENIX ATC 2023.
//!
//! The arrivals are the task list plus tasks sampled from it, until the requests reach 130 % of all GPUs. The
//! tasks arrive in random order on the empty cluster. A task that fits is placed and never moved; no task
//! ends. The result is the share of all GPU thousandths that is allocated at the end.
//!
//! `cluster` has the nodes and tasks, `player` the broker's packing engine with a policy, `procedure` runs a
//! trial, `window` lets it choose among waiting tasks,
//! `resample` changes the mix of the task list, `defrag` plans moves on the filled cluster, `bound` computes
//! upper bounds for any scheduler, and `compare` compares policies.

mod bound;
mod cluster;
mod compare;
mod defrag;
mod player;
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
use cluster::Cluster;
pub use compare::Compare;
use defrag::Defragmented;
use procedure::{Outcome, Rules};
use resample::Weights;

/// Fills a cluster with a trace's tasks and prints the share of GPUs that was allocated.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  simulator pack --nodes openb_node_list_gpu_node.csv --pods openb_pod_list_default.csv --policy fgd\n  simulator pack --nodes NODES.csv --pods PODS.csv --policy overflow --window 1000 --seeds 10 -o json\n  simulator pack --nodes NODES.csv --pods PODS.csv --policy overflow --workload ARRIVALS.csv --placements PLACEMENTS.csv\n  simulator pack --nodes NODES.csv --pods PODS.csv --resample multi=8,part=0.5 --bound"
)]
pub struct Pack {
    #[command(flatten)]
    files: Files,
    /// Placement policy.
    #[arg(long, value_enum, default_value_t = PolicyName::Overflow)]
    policy: PolicyName,
    /// GPUs requested by all arrivals, divided by the GPUs of the cluster, 0.01 to 100.
    #[arg(long, value_name = "RATIO", default_value_t = 1.3)]
    inflate: f64,
    /// Number of waiting tasks among which the policy chooses the next; 1 places each task as it arrives.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    window: usize,
    /// First seed of the arrivals: the sampled tasks and the order.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of arrival seeds to run.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    seeds: u64,
    /// First seed of the policy's random choices.
    #[arg(long, default_value_t = 0)]
    policy_seed: u64,
    /// Number of policy seeds to run with each arrival seed.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    policy_seeds: u64,
    /// Number of copies of each node and task.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    scale: u32,
    /// Plays each run twice before measuring it, so that the policy starts with the profile of the whole run.
    #[arg(long)]
    warm: bool,
    /// Also computes two upper bounds: for any scheduler, and for any that places the tasks one by one.
    #[arg(long)]
    bound: bool,
    /// After filling, plans moves of placed tasks that make waiting tasks fit, until this percentage of the
    /// GPUs is allocated, 0 to 100. Each task moves at most once. Default: no plan.
    #[arg(long, value_name = "PERCENT")]
    defrag: Option<f64>,
    /// Writes the tasks in order of arrival to this CSV; for a single run only.
    #[arg(long, value_name = "FILE")]
    workload: Option<PathBuf>,
    /// Writes the node and GPUs of each placed task to this CSV; for a single run only.
    #[arg(long, value_name = "FILE")]
    placements: Option<PathBuf>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Input files of a trace.
#[derive(Args)]
struct Files {
    /// CSV of nodes with the columns sn, cpu_milli, memory_mib, gpu and model.
    #[arg(long, value_name = "FILE")]
    nodes: PathBuf,
    /// CSV of tasks with the columns name, cpu_milli, memory_mib, num_gpu, gpu_milli and optionally gpu_spec.
    #[arg(long, value_name = "FILE")]
    pods: PathBuf,
    /// Resamples the task list with these relative weights of its classes: cpu (no GPU), part (a fraction of
    /// a GPU), one, multi (several GPUs). Example: multi=8,part=0.5. Default: the list as it is.
    #[arg(long, value_name = "CLASS=FACTOR,…")]
    resample: Option<Weights>,
    /// Seed of the resampling.
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

    /// Reads the nodes and tasks, each copied `scale` times.
    fn cluster(&self, scale: u32) -> anyhow::Result<Cluster> {
        Cluster::new(openb::read_nodes(&self.nodes)?, self.tasks()?, scale)
    }
}

/// Placement policy of the packing engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyName {
    /// A random node that fits.
    Random,
    /// The partly used device with the tightest fit, then the fullest node.
    BestFit,
    /// The node whose free capacity is most similar to the demand, by dot product.
    DotProduct,
    /// Fragmentation gradient descent (Weng et al., USENIX ATC 2023) for the task list's own mix.
    Fgd,
    /// Least capacity stranded for the demands that overflow; adapts to the arrivals.
    Overflow,
    /// The broker's default: overflow.
    Default,
}

impl PolicyName {
    /// Replaces `Default` by the policy that it stands for.
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

/// Result of one run.
#[derive(Serialize)]
struct Run {
    seed: u64,
    policy_seed: u64,
    allocated_percent: f64,
    arrivals: usize,
    placed: usize,
    decisions_per_s: f64,
    /// For the task passed over most often: the number of later arrivals that were placed before it.
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
    /// Mean of `allocated_percent` over all runs.
    mean: f64,
    /// For the policy seed with the lowest mean: that mean over the arrival seeds.
    worst_policy_seed: f64,
    /// Means over the arrival seeds.
    #[serde(flatten)]
    bounds: Option<Bounds>,
}

impl Pack {
    /// Runs all seeds and prints the results.
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
            Output::Json => print_line!("{}", serde_json::to_string_pretty(&report)?),
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
            bail!("--workload and --placements need a single run: omit --seeds and --policy-seeds");
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
        // `None` only for a value hidden with `clap(skip)`; there is none.
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
    print_line!("SEED  POLICY-SEED  ARRIVALS  PLACED  ALLOCATED  PASSED-OVER  DECISIONS/S");
    for run in &report.runs {
        print_line!(
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
    print_line!(
        "{}, window {}: {:.2} % allocated on average, {:.2} % with the worst policy seed",
        report.policy,
        report.window,
        report.mean,
        report.worst_policy_seed
    );
    for run in &report.runs {
        let Some(plan) = run.defragmented else { continue };
        print_line!(
            "seed {}, policy seed {}: {} moves, {} of them back to the queue, make {} more tasks fit: {:.2} % allocated (planned in {:.1} s)",
            run.seed,
            run.policy_seed,
            plan.moves,
            plan.requeued,
            plan.newly_placed,
            plan.allocated_percent,
            plan.seconds
        );
    }
    if let Some(bounds) = report.bounds {
        print_line!(
            "upper bounds: {:.2} % for any scheduler; {:.2} % on average for any that places tasks one by one",
            bounds.any_order_percent,
            bounds.one_by_one_percent
        );
    }
}
