//! Command `replay`: runs one seed of the simulation, or plays a real trace through the whole kernel.
//!
//! `fault_free` runs the kernel in virtual time without faults, `figures` computes the results of a played
//! trace.

mod fault_free;
mod figures;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::Serialize;
use weir::model::limit::{DEVICE_MILLIS, DEVICES_PER_NODE_MAX, DURATION_MS_MAX, TASKS_PER_GANG_MAX};
use weir::model::plan::Policy;
use weir::model::pool::{Device, NodeSpec};
use weir::model::resource::Resources;
use weir::scheduler::packing::random::Random;

use crate::pack::PolicyName;
use crate::seeds::{self, SeedOptions};
use crate::traces::{Job, Trace, openb, philly, shuffle, swf};
use fault_free::FaultFreeRun;
use figures::Watcher;
pub(crate) use figures::{Figures, Sample, tables};

/// Runs one seed of the simulation, or plays a real trace through the whole kernel.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  simulator replay 4711 --trace | less
  simulator replay 4711 --faults 3,17,20 --acts 60
  simulator replay --trace openb --nodes openb_node_list_gpu_node.csv --jobs openb_pod_list_default.csv
  simulator replay --trace philly --jobs philly.csv --policy best-fit,overflow --offered-load 0.9
  simulator replay --trace swf --jobs NASA-iPSC-1993-3.1-cln.swf -o json")]
pub struct Replay {
    /// Seed of the simulation to run.
    seed: Option<u64>,
    /// With SEED, a flag without value: print each input and the effects of each state machine. Without SEED:
    /// the format of the trace to play, one of openb, philly and swf.
    #[arg(long, value_name = "KIND", num_args = 0..=1, default_missing_value = "")]
    trace: Option<String>,
    #[command(flatten)]
    of_seed: SeedOptions,
    #[command(flatten)]
    of_trace: TraceOptions,
}

/// Options for a trace.
#[derive(clap::Args)]
struct TraceOptions {
    /// Jobs of the trace: a CSV of openb tasks or Philly jobs, or a log in the Standard Workload Format.
    #[arg(long, alias = "pods", value_name = "FILE", conflicts_with_all = ["seed", "faults", "acts"])]
    jobs: Option<PathBuf>,
    /// CSV of nodes with the columns sn, cpu_milli, memory_mib, gpu and model; required for openb. Default
    /// for philly: 40 nodes of 8 GPUs, for which the recorded arrivals are a load of 1.2. Default for swf:
    /// the machine in the log's header.
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    nodes: Option<PathBuf>,
    /// Comma-separated placement policies, played one after another.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = [PolicyName::BestFit, PolicyName::Fgd, PolicyName::Overflow]
    )]
    policy: Vec<PolicyName>,
    /// GPU time (CPU time without GPUs) requested by the jobs, divided by that of the nodes during the
    /// arrivals, 0.01 to 100. The time between arrivals is scaled to reach it.
    #[arg(long, value_name = "RATIO", default_value_t = 1.2)]
    offered_load: f64,
    /// Number of times that the jobs are played, one pass after another, 1 to 1,000. Default: 60 for openb, 1
    /// for philly and swf.
    #[arg(long, value_name = "COUNT")]
    passes: Option<u32>,
    /// Longest run time of a job; longer jobs are cut to it. 0 cuts none. Default: 14400 for openb, 0 for
    /// philly and swf.
    #[arg(long, value_name = "SECONDS")]
    cut: Option<u64>,
    /// Number of pools that the nodes are distributed over, 1 to 1,000. A job of several tasks runs within
    /// one pool.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pools: usize,
    /// Seed of the arrival order of openb's tasks; philly and swf have their recorded order.
    #[arg(long, default_value_t = 0)]
    order_seed: u64,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Format of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Openb,
    Philly,
    Swf,
}

/// Default nodes for Philly's jobs.
const PHILLY_NODES: u32 = 40;
const PHILLY_GPUS_PER_NODE: u16 = 8;

/// Default passes over openb's tasks: enough to fill the cluster before the measured period.
pub(crate) const OPENB_PASSES: u32 = 60;
/// Default longest run time of openb's tasks, in seconds: the longest would outlast the measured period by
/// far.
pub(crate) const OPENB_CUT_S: u64 = 14_400;

/// Nodes, and jobs with their arrival times.
pub(crate) struct Workload {
    nodes: Vec<NodeSpec>,
    jobs: Vec<Job>,
    /// Thousandths of GPUs, or of CPUs if there are no GPUs: the unit of the load.
    capacity: u64,
    /// There are no GPUs, so the load is counted in CPUs.
    counts_cpus: bool,
    /// Length of the arrival period: from the first arrival to the time at which a further pass would begin.
    span_ms: u64,
    /// Rows of the trace that were skipped.
    left_out: usize,
}

/// JSON output: the results of all policies.
#[derive(Serialize)]
struct Replayed {
    trace: String,
    nodes: usize,
    jobs: usize,
    offered_load: f64,
    policies: Vec<Figures>,
}

impl Replay {
    /// Runs the seed or plays the trace, and prints the result.
    ///
    /// # Errors
    /// - The invariant that the seed violated.
    /// - A file can't be read, or an argument is out of range.
    pub fn run(&self) -> anyhow::Result<()> {
        match (self.seed, self.trace.as_deref()) {
            (Some(seed), None) => seeds::replay(seed, false, &self.of_seed),
            (Some(seed), Some("")) => seeds::replay(seed, true, &self.of_seed),
            (Some(_), Some(kind)) => bail!(
                "--trace {kind}: not allowed with a seed; use either SEED --trace, or --trace {kind} without a seed"
            ),
            (None, None | Some("")) => {
                bail!("nothing to replay: give a seed, or a trace with --trace openb, philly or swf")
            }
            (None, Some(kind)) => self.of_trace.run(Kind::parse(kind)?),
        }
    }
}

impl Kind {
    fn parse(name: &str) -> anyhow::Result<Self> {
        match name {
            "openb" => Ok(Self::Openb),
            "philly" => Ok(Self::Philly),
            "swf" => Ok(Self::Swf),
            _ if name.parse::<u64>().is_ok() => {
                bail!("--trace {name}: the seed comes first, as in: replay {name} --trace")
            }
            _ => bail!("--trace {name}: must be openb, philly or swf"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Openb => "openb",
            Self::Philly => "philly",
            Self::Swf => "swf",
        }
    }
}

impl TraceOptions {
    fn run(&self, kind: Kind) -> anyhow::Result<()> {
        let policies = self.policy.iter().map(|name| Ok((*name, broker_policy(*name)?)));
        let policies = policies.collect::<anyhow::Result<Vec<_>>>()?;
        self.check()?;
        let workload = self.workload(kind)?;
        let mut all = Vec::new();
        for (name, policy) in policies {
            all.push(workload.play(name, policy, self.pools)?);
        }
        let replayed = Replayed {
            trace: kind.name().to_owned(),
            nodes: workload.nodes.len(),
            jobs: workload.jobs.len(),
            offered_load: self.offered_load,
            policies: all,
        };
        match self.output {
            Output::Json => print_line!("{}", serde_json::to_string_pretty(&replayed)?),
            Output::Table => {
                let pools =
                    if self.pools == 1 { "1 pool".to_owned() } else { format!("{} pools", self.pools) };
                print_line!(
                    "{}: {} jobs over {:.1} days of virtual time on {} nodes in {pools}, offered load {}",
                    replayed.trace,
                    replayed.jobs,
                    workload.span_ms as f64 / 86_400_000.0,
                    replayed.nodes,
                    replayed.offered_load,
                );
                if workload.left_out > 0 {
                    print_line!(
                        "{} rows skipped: they lack the resources or the run time",
                        workload.left_out
                    );
                }
                for table in figures::tables(&replayed.policies, workload.counts_cpus) {
                    print_line!("\n{}", table.text().trim_end());
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> anyhow::Result<()> {
        check_offered(self.offered_load)?;
        self.passes.map_or(Ok(()), check_passes)?;
        if !(1..=1_000).contains(&self.pools) {
            bail!("--pools is {}, must be 1 to 1,000", self.pools);
        }
        Ok(())
    }

    /// Reads the nodes and the jobs, and scales the arrival times to the offered load.
    fn workload(&self, kind: Kind) -> anyhow::Result<Workload> {
        let Some(path) = &self.jobs else { bail!("--jobs is missing: the file with the trace's jobs") };
        let named = self.nodes.as_ref().map(|path| openb::read_nodes(path)).transpose()?;
        let (nodes, trace) = match kind {
            Kind::Openb => (
                named.context("--nodes is missing: the file with the trace's nodes")?,
                openb::jobs(openb::read_tasks(path)?, path)?,
            ),
            Kind::Philly => {
                let nodes =
                    named.unwrap_or_else(|| equal_nodes(PHILLY_NODES, PHILLY_GPUS_PER_NODE, philly_node()));
                let largest = nodes.iter().map(|node| node.devices.len()).max().unwrap_or(0);
                (nodes, philly::read_jobs(path, largest.min(DEVICES_PER_NODE_MAX) as u32)?)
            }
            Kind::Swf => {
                let (machine, trace) = swf::read_jobs(path)?;
                (named.unwrap_or_else(|| equal_nodes(machine.nodes, 0, swf_node(machine))), trace)
            }
        };
        let (passes, cut) = match kind {
            Kind::Openb => (self.passes.unwrap_or(OPENB_PASSES), self.cut.unwrap_or(OPENB_CUT_S)),
            Kind::Philly | Kind::Swf => (self.passes.unwrap_or(1), self.cut.unwrap_or(0)),
        };
        // Nearly all of openb's tasks arrived in the last quarter of the recorded months: spread them evenly.
        let order = (kind == Kind::Openb).then_some(self.order_seed);
        Workload::new(nodes, trace, passes, cut, self.offered_load, order)
    }
}

impl Workload {
    /// Repeats the trace `passes` times and scales the arrival times to `offered_load`. With `order_seed` the
    /// jobs of each pass arrive at equal intervals in random order, otherwise at their scaled recorded times.
    ///
    /// `cut_s` is the longest run time of a job, in seconds; 0 cuts none.
    ///
    /// # Errors
    /// If the jobs or the nodes give no load, or a job has too many tasks or runs too long.
    pub(crate) fn new(
        nodes: Vec<NodeSpec>,
        trace: Trace,
        passes: u32,
        cut_s: u64,
        offered_load: f64,
        order_seed: Option<u64>,
    ) -> anyhow::Result<Self> {
        let Trace { jobs: mut once, left_out } = trace;
        if cut_s > 0 {
            once.iter_mut()
                .for_each(|job| job.duration_ms = job.duration_ms.min(cut_s.saturating_mul(1_000)));
        }
        if let Some(job) = once.iter().find(|job| job.tasks > TASKS_PER_GANG_MAX) {
            bail!("a job is a gang of {} tasks: must be at most {TASKS_PER_GANG_MAX}", job.tasks);
        }
        if let Some(job) = once.iter().find(|job| job.duration_ms > DURATION_MS_MAX) {
            let days = |ms: u64| ms / 86_400_000;
            let max = days(DURATION_MS_MAX);
            bail!("a job runs for {} days: must be at most {max}; use --cut", days(job.duration_ms));
        }
        if once.iter().all(|job| job.duration_ms == 0) {
            bail!("no job has a run time (in openb: deletion_time): there is no load to offer");
        }
        let gpus: u64 = nodes.iter().map(|node| node.devices.len() as u64 * u64::from(DEVICE_MILLIS)).sum();
        let counts_cpus = gpus == 0;
        let cpus: u64 = nodes.iter().map(|node| node.allocatable.cpu_millis).sum();
        let capacity = if counts_cpus { cpus } else { gpus };
        let work: f64 =
            once.iter().map(|job| units(job, counts_cpus) as f64 * job.duration_ms.max(1) as f64).sum();
        if capacity == 0 || work == 0.0 {
            bail!("the nodes have no GPUs and no CPUs, or the jobs request none: there is no load to offer");
        }
        let span_ms = work / (offered_load * capacity as f64);
        let last_ms = once.last().map_or(0, |job| job.arrives_ms).max(1) as f64;
        let count = once.len();
        let mut jobs = Vec::with_capacity(count * passes as usize);
        let mut random = Random::new(order_seed.unwrap_or(0));
        for pass in 0..passes {
            if order_seed.is_some() {
                shuffle(&mut once, &mut random);
            }
            jobs.extend(once.iter().enumerate().map(|(at, job)| {
                let share = match order_seed {
                    Some(_) => at as f64 / count as f64,
                    // The last job arrives one mean interval before the next pass.
                    None => job.arrives_ms as f64 / last_ms * (count as f64 - 1.0) / count as f64,
                };
                Job { arrives_ms: (span_ms * (f64::from(pass) + share)) as u64, ..job.clone() }
            }));
        }
        let span_ms = (span_ms * f64::from(passes)) as u64;
        Ok(Self { nodes, jobs, capacity, counts_cpus, span_ms, left_out })
    }

    /// Plays the workload through the whole kernel with `policy`, on nodes distributed over `pools` pools.
    ///
    /// # Errors
    /// If the broker rejects a job.
    pub(crate) fn play(&self, name: PolicyName, policy: Policy, pools: usize) -> anyhow::Result<Figures> {
        let mut watcher = Watcher::new(self);
        let started = Instant::now();
        let run = FaultFreeRun::new(&self.nodes, pools, &self.jobs, policy);
        let every_ms = (self.span_ms / figures::SAMPLES).max(1);
        let played = run.play(every_ms, &mut |at, broker| watcher.sample(at, broker))?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(watcher.figures(&name.to_string(), &played, seconds))
    }

    pub(crate) fn job_count(&self) -> usize {
        self.jobs.len()
    }
}

pub(crate) fn check_offered(load: f64) -> anyhow::Result<()> {
    if !(0.01..=100.0).contains(&load) {
        bail!("--offered-load is {load}, must be 0.01 to 100");
    }
    Ok(())
}

/// Checks the number of passes over a trace.
pub(crate) fn check_passes(passes: u32) -> anyhow::Result<()> {
    if !(1..=1_000).contains(&passes) {
        bail!("--passes is {passes}, must be 1 to 1,000");
    }
    Ok(())
}

/// Request of all tasks of a job, in thousandths of GPUs or CPUs.
fn units(job: &Job, counts_cpus: bool) -> u64 {
    let each = if counts_cpus { job.cpu_millis } else { job.devices.map_or(0, |amount| amount.millis()) };
    each * u64::from(job.tasks)
}

/// The broker's policy of this name.
///
/// # Errors
/// If only the packing engine has the policy, for comparison, but not the broker.
pub(crate) fn broker_policy(name: PolicyName) -> anyhow::Result<Policy> {
    match name {
        PolicyName::Default => Ok(Policy::default()),
        PolicyName::BestFit => Ok(Policy::BestFit),
        PolicyName::Fgd => Ok(Policy::Fgd),
        PolicyName::Overflow => Ok(Policy::Overflow),
        PolicyName::Random | PolicyName::DotProduct => {
            bail!("--policy {name}: the broker does not support it; must be best-fit, fgd or overflow")
        }
    }
}

/// `count` equal nodes with `gpus` GPUs each.
fn equal_nodes(count: u32, gpus: u16, allocatable: Resources) -> Vec<NodeSpec> {
    let device = |slot: u16| Device {
        model: "GPU".to_owned(),
        memory_bytes: 0,
        healthy: true,
        millis: DEVICE_MILLIS,
        topology_group: slot / 4,
        profiles: Vec::new(),
    };
    let node = |number: u32| NodeSpec {
        name: format!("node-{number:04}"),
        labels: Default::default(),
        taints: Vec::new(),
        cordoned: false,
        allocatable: allocatable.clone(),
        devices: (0..gpus).map(device).collect(),
    };
    (0..count).map(node).collect()
}

fn philly_node() -> Resources {
    let gpus = u64::from(PHILLY_GPUS_PER_NODE);
    Resources {
        cpu_millis: gpus * philly::CPU_MILLIS_PER_GPU,
        memory_bytes: gpus * philly::MEMORY_BYTES_PER_GPU,
        ..Resources::default()
    }
}

fn swf_node(machine: swf::Machine) -> Resources {
    let cpus = u64::from(machine.cpus_per_node);
    Resources {
        cpu_millis: cpus * 1_000,
        memory_bytes: cpus * swf::MEMORY_BYTES_PER_CPU,
        ..Resources::default()
    }
}

#[cfg(test)]
mod tests {
    use weir::model::device::DeviceAmount;

    use super::fault_free::Ran;
    use super::*;
    use crate::report::Table;

    fn job(arrives_ms: u64, duration_ms: u64, tasks: u32, gpus: u32) -> Job {
        Job {
            arrives_ms,
            duration_ms,
            tasks,
            cpu_millis: 1_000,
            memory_bytes: 1 << 30,
            devices: Some(DeviceAmount::Whole(gpus)),
            models: Vec::new(),
        }
    }

    fn play(jobs: &[Job], pools: usize, policy: Policy) -> Vec<Option<Ran>> {
        let nodes = equal_nodes(2, 8, philly_node());
        let run = FaultFreeRun::new(&nodes, pools, jobs, policy);
        run.play(1_000, &mut |_, _| {}).unwrap().ran
    }

    #[test]
    fn jobs_that_need_the_whole_cluster_run_one_after_the_other() {
        let jobs: Vec<Job> = (0..3).map(|at| job(at, 100_000, 2, 8)).collect();
        for policy in [Policy::BestFit, Policy::Fgd, Policy::Overflow] {
            let ran: Vec<Ran> = play(&jobs, 1, policy).into_iter().flatten().collect();
            assert_eq!(ran.len(), 3);
            for (at, ran) in ran.iter().enumerate() {
                let late = ran.from_ms - at as u64 * 100_000;
                assert!(late < 1_000, "job {at} starts {late} ms late");
                assert_eq!(ran.until_ms - ran.from_ms, 100_000);
            }
        }
    }

    #[test]
    fn job_that_fits_no_pool_is_never_started() {
        let jobs = [job(0, 5_000, 2, 8), job(10, 5_000, 1, 8)];
        let ran = play(&jobs, 2, Policy::BestFit);
        assert_eq!(ran[0], None);
        assert!(ran[1].is_some_and(|ran| ran.from_ms < 1_000));
    }

    #[test]
    fn time_between_arrivals_is_scaled_to_the_load() {
        let trace = || Trace { jobs: vec![job(0, 1_000, 1, 8), job(500, 3_000, 1, 8)], left_out: 0 };
        let workload = Workload::new(equal_nodes(2, 8, philly_node()), trace(), 2, 0, 0.5, None).unwrap();
        // A load of a half on 16 GPUs: 32 GPU seconds take 4 s, in each of the two passes.
        let arrivals: Vec<u64> = workload.jobs.iter().map(|job| job.arrives_ms).collect();
        assert_eq!((workload.span_ms, arrivals), (8_000, vec![0, 2_000, 4_000, 6_000]));
        let cut = Workload::new(equal_nodes(2, 8, philly_node()), trace(), 1, 1, 0.5, Some(7)).unwrap();
        assert!(cut.jobs.iter().all(|job| job.duration_ms == 1_000));
        let long = || Trace { jobs: vec![job(0, 2 * DURATION_MS_MAX, 1, 8)], left_out: 0 };
        let error = Workload::new(equal_nodes(2, 8, philly_node()), long(), 1, 0, 0.5, None).err().unwrap();
        assert!(error.to_string().contains("runs for 732 days: must be at most 366"), "{error}");
        assert!(Workload::new(equal_nodes(2, 8, philly_node()), long(), 1, 60, 0.5, None).is_ok());
        let error =
            Workload::new(equal_nodes(2, 0, Resources::default()), trace(), 1, 0, 1.0, None).err().unwrap();
        assert!(error.to_string().contains("no load to offer"));
        let instant = Trace { jobs: vec![job(0, 0, 1, 8)], left_out: 0 };
        let error = Workload::new(equal_nodes(2, 8, philly_node()), instant, 1, 0, 1.0, None).err().unwrap();
        assert!(error.to_string().contains("no job has a run time"), "{error}");
    }

    #[test]
    fn figures_have_waiting_times_and_allocation() {
        // Each job takes the whole cluster, and the load is 2.
        let jobs = (0..10).map(|at| job(at * 1_000, 60_000, 2, 8)).collect();
        let workload =
            Workload::new(equal_nodes(2, 8, philly_node()), Trace { jobs, left_out: 0 }, 1, 0, 2.0, None)
                .unwrap();
        let mut watcher = Watcher::new(&workload);
        let run = FaultFreeRun::new(&workload.nodes, 1, &workload.jobs, Policy::BestFit);
        let played = run.play(10_000, &mut |at, broker| watcher.sample(at, broker)).unwrap();
        let figures = watcher.figures("best-fit", &played, 1.0);
        let json = serde_json::to_value(&figures).unwrap();
        assert!(json["allocated_percent"].as_f64().unwrap() > 99.0, "{json}");
        let size = &json["sizes"][0];
        // Jobs arrive every 30 s and run for 60 s, so each waits 30 s longer than the one before. The first
        // three arrive during the warm-up.
        assert_eq!((size["size"].as_str(), size["jobs"].as_u64()), (Some("9-16"), Some(7)));
        let median = size["wait_s"]["median"].as_f64().unwrap();
        assert!((median - 180.0).abs() < 1.0, "{json}");
        // At the end of the arrival period all ten jobs have arrived and five have started.
        let last = figures.samples().last().unwrap();
        assert_eq!((last.waiting, last.allocated_percent), (5, 100.0), "{last:?}");
        let text: String = figures::tables(&[figures], false).iter().map(Table::text).collect();
        assert!(text.contains("9-16     7  180 / "), "{text}");
    }

    #[test]
    fn error_names_a_trace_or_policy_that_cannot_be_replayed() {
        for (name, expected) in [("4711", "the seed comes first"), ("slurm", "must be openb, philly or swf")]
        {
            assert!(Kind::parse(name).unwrap_err().to_string().contains(expected));
        }
        assert!(
            broker_policy(PolicyName::Random)
                .unwrap_err()
                .to_string()
                .contains("the broker does not support it")
        );
    }
}
