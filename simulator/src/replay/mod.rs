//! Plays things again: a seed of the simulation, or a real trace through the whole kernel.
//!
//! `calm` is the kernel in virtual time without faults, `figures` what is told of a trace that was
//! played through it.

mod calm;
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
use figures::Watcher;
pub(crate) use figures::{Figures, Sample, tables};

/// Plays a seed of the simulation again, or a real trace through the whole kernel.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  simulator replay 4711 --trace | less
  simulator replay 4711 --faults 3,17,20 --acts 60
  simulator replay --trace openb --nodes openb_node_list_gpu_node.csv --jobs openb_pod_list_default.csv
  simulator replay --trace philly --jobs philly.csv --policy best-fit,overflow --offered-load 0.9
  simulator replay --trace swf --jobs NASA-iPSC-1993-3.1-cln.swf -o json")]
pub struct Replay {
    /// A seed of the simulation.
    seed: Option<u64>,
    /// After a seed: print what comes in and what each machine makes of it. Otherwise the trace that is
    /// played: openb, philly or swf.
    #[arg(long, value_name = "KIND", num_args = 0..=1, default_missing_value = "")]
    trace: Option<String>,
    #[command(flatten)]
    of_seed: SeedOptions,
    #[command(flatten)]
    of_trace: TraceOptions,
}

/// How a trace is played.
#[derive(clap::Args)]
struct TraceOptions {
    /// The trace's jobs: CSV of openb tasks or of Philly's jobs, or a log in the Standard Workload Format.
    #[arg(long, alias = "pods", value_name = "FILE", conflicts_with_all = ["seed", "faults", "acts"])]
    jobs: Option<PathBuf>,
    /// CSV of nodes: sn, cpu_milli, memory_mib, gpu, model. Without it Philly's jobs get 40 nodes of 8
    /// GPUs, which makes its own pace a load of 1.2, and a log the machine that it names.
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    nodes: Option<PathBuf>,
    /// Policies, with commas between them.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = [PolicyName::BestFit, PolicyName::Fgd, PolicyName::Overflow]
    )]
    policy: Vec<PolicyName>,
    /// Share of all GPU time, or CPU time where there are no GPUs, that is asked for while jobs come:
    /// time between arrivals is stretched or shrunk to it.
    #[arg(long, default_value_t = 1.2)]
    offered_load: f64,
    /// Plays the jobs so often, one time after the other; 60 times by default for openb, else once.
    #[arg(long)]
    passes: Option<u32>,
    /// Longer jobs are cut to so many seconds; 0 cuts none. 14400 by default for openb, else 0.
    #[arg(long, value_name = "SECONDS")]
    cut: Option<u64>,
    /// Pools that the nodes are dealt out to. A job of several tasks runs within one.
    #[arg(long, default_value_t = 1)]
    pools: usize,
    /// Seed of the order in which openb's tasks come.
    #[arg(long, default_value_t = 0)]
    order_seed: u64,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// A trace's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Openb,
    Philly,
    Swf,
}

/// What Philly's jobs run on unless it is told.
const PHILLY_NODES: u32 = 40;
const PHILLY_GPUS_PER_NODE: u16 = 8;

/// How often openb's tasks are played, so that the cluster fills before anything is measured, and how many
/// seconds they run at most: the longest ones would run on long after that.
pub(crate) const OPENB_PASSES: u32 = 60;
pub(crate) const OPENB_CUT_S: u64 = 14_400;

/// Nodes, and jobs as they come to them.
pub(crate) struct Workload {
    nodes: Vec<NodeSpec>,
    jobs: Vec<Job>,
    /// What the load is counted in: thousandths of GPUs, or of CPUs where there are none.
    capacity: u64,
    counts_cpus: bool,
    /// From the first arrival to when the next pass would begin.
    span_ms: u64,
    left_out: usize,
}

/// What is printed of all policies.
#[derive(Serialize)]
struct Replayed {
    trace: String,
    nodes: usize,
    jobs: usize,
    offered_load: f64,
    policies: Vec<Figures>,
}

impl Replay {
    /// Plays the seed or the trace and prints what came of it.
    ///
    /// # Errors
    /// The promise that a seed broke; a file that can't be read, an argument out of range.
    pub fn run(&self) -> anyhow::Result<()> {
        match (self.seed, self.trace.as_deref()) {
            (Some(seed), None) => seeds::replay(seed, false, &self.of_seed),
            (Some(seed), Some("")) => seeds::replay(seed, true, &self.of_seed),
            (Some(_), Some(kind)) => bail!(
                "--trace {kind}: a seed has no kind; write either SEED --trace, or --trace {kind} alone"
            ),
            (None, None | Some("")) => {
                bail!("replay what? Name a seed, or a trace with --trace openb, philly or swf")
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
                bail!("--trace {name}: a seed goes first, as in: replay {name} --trace")
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
            Output::Json => say!("{}", serde_json::to_string_pretty(&replayed)?),
            Output::Table => {
                let pools =
                    if self.pools == 1 { "1 pool".to_owned() } else { format!("{} pools", self.pools) };
                say!(
                    "{}: {} jobs over {:.1} days of virtual time on {} nodes in {pools}, asking for {} times what there is",
                    replayed.trace,
                    replayed.jobs,
                    workload.span_ms as f64 / 86_400_000.0,
                    replayed.nodes,
                    replayed.offered_load,
                );
                if workload.left_out > 0 {
                    say!("{} rows left out: they don't say what ran, or how long", workload.left_out);
                }
                for table in figures::tables(&replayed.policies, workload.counts_cpus) {
                    say!("\n{}", table.text().trim_end());
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

    /// The nodes, and the jobs with the times at which they come.
    fn workload(&self, kind: Kind) -> anyhow::Result<Workload> {
        let Some(path) = &self.jobs else { bail!("--jobs is missing: the file with the trace's jobs") };
        let named = self.nodes.as_ref().map(|path| openb::read_nodes(path)).transpose()?;
        let (nodes, trace) = match kind {
            Kind::Openb => (
                named.context("--nodes is missing: the file with the trace's nodes")?,
                openb::jobs(openb::read_tasks(path)?, path)?,
            ),
            Kind::Philly => {
                let nodes = named.unwrap_or_else(|| alike(PHILLY_NODES, PHILLY_GPUS_PER_NODE, philly_node()));
                let largest = nodes.iter().map(|node| node.devices.len()).max().unwrap_or(0);
                (nodes, philly::read_jobs(path, largest.min(DEVICES_PER_NODE_MAX) as u32)?)
            }
            Kind::Swf => {
                let (machine, trace) = swf::read_jobs(path)?;
                (named.unwrap_or_else(|| alike(machine.nodes, 0, swf_node(machine))), trace)
            }
        };
        let (passes, cut) = match kind {
            Kind::Openb => (self.passes.unwrap_or(OPENB_PASSES), self.cut.unwrap_or(OPENB_CUT_S)),
            Kind::Philly | Kind::Swf => (self.passes.unwrap_or(1), self.cut.unwrap_or(0)),
        };
        // Nearly all of openb's tasks came in the last quarter of its months: they come evenly here.
        let order = (kind == Kind::Openb).then_some(self.order_seed);
        Workload::new(nodes, trace, passes, cut, self.offered_load, order)
    }
}

impl Workload {
    /// Jobs come at their own pace, stretched to the load; or evenly, in an order drawn for each pass.
    ///
    /// # Errors
    /// If there is no load to offer, or a job is too large or too long.
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
            bail!("a job has {} tasks that run together: must be {TASKS_PER_GANG_MAX} at most", job.tasks);
        }
        if let Some(job) = once.iter().find(|job| job.duration_ms > DURATION_MS_MAX) {
            let days = |ms: u64| ms / 86_400_000;
            let most = days(DURATION_MS_MAX);
            bail!(
                "a job runs for {} days: must be {most} at most, to which --cut cuts it",
                days(job.duration_ms)
            );
        }
        if once.iter().all(|job| job.duration_ms == 0) {
            bail!("no job has a run time (openb's is in its deletion_time): there is no load to offer");
        }
        let gpus: u64 = nodes.iter().map(|node| node.devices.len() as u64 * u64::from(DEVICE_MILLIS)).sum();
        let counts_cpus = gpus == 0;
        let cpus: u64 = nodes.iter().map(|node| node.allocatable.cpu_millis).sum();
        let capacity = if counts_cpus { cpus } else { gpus };
        let work: f64 =
            once.iter().map(|job| units(job, counts_cpus) as f64 * job.duration_ms.max(1) as f64).sum();
        if capacity == 0 || work == 0.0 {
            bail!("the nodes have no GPUs and no CPUs, or the jobs ask for none: there is no load to offer");
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
                    // The last one comes somewhat before the next pass.
                    None => job.arrives_ms as f64 / last_ms * (count as f64 - 1.0) / count as f64,
                };
                Job { arrives_ms: (span_ms * (f64::from(pass) + share)) as u64, ..job.clone() }
            }));
        }
        let span_ms = (span_ms * f64::from(passes)) as u64;
        Ok(Self { nodes, jobs, capacity, counts_cpus, span_ms, left_out })
    }

    /// Plays it through the whole kernel by a policy, on nodes dealt out to so many pools.
    ///
    /// # Errors
    /// If the broker refuses a job.
    pub(crate) fn play(&self, name: PolicyName, policy: Policy, pools: usize) -> anyhow::Result<Figures> {
        let mut watcher = Watcher::new(self);
        let started = Instant::now();
        let world = calm::Calm::new(&self.nodes, pools, &self.jobs, policy);
        let every_ms = (self.span_ms / figures::SAMPLES).max(1);
        let played = world.play(every_ms, &mut |at, broker| watcher.look(at, broker))?;
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

/// How often a trace is played, one time after the other.
pub(crate) fn check_passes(passes: u32) -> anyhow::Result<()> {
    if !(1..=1_000).contains(&passes) {
        bail!("--passes is {passes}, must be 1 to 1,000");
    }
    Ok(())
}

/// What a job asks for, in what the load is counted in.
fn units(job: &Job, counts_cpus: bool) -> u64 {
    let each = if counts_cpus { job.cpu_millis } else { job.devices.map_or(0, |amount| amount.millis()) };
    each * u64::from(job.tasks)
}

/// The policy by which a broker plans.
///
/// # Errors
/// If none does.
pub(crate) fn broker_policy(name: PolicyName) -> anyhow::Result<Policy> {
    match name {
        PolicyName::Default => Ok(Policy::default()),
        PolicyName::BestFit => Ok(Policy::BestFit),
        PolicyName::Fgd => Ok(Policy::Fgd),
        PolicyName::Overflow => Ok(Policy::Overflow),
        PolicyName::Random | PolicyName::DotProduct => {
            bail!("--policy {name}: no broker plans by it; must be best-fit, fgd or overflow")
        }
    }
}

/// So many nodes with so many GPUs.
fn alike(count: u32, gpus: u16, allocatable: Resources) -> Vec<NodeSpec> {
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

    fn play(jobs: &[Job], pools: usize, policy: Policy) -> Vec<Option<calm::Ran>> {
        let nodes = alike(2, 8, philly_node());
        let world = calm::Calm::new(&nodes, pools, jobs, policy);
        world.play(1_000, &mut |_, _| {}).unwrap().ran
    }

    #[test]
    fn jobs_that_need_the_whole_cluster_run_one_after_the_other() {
        let jobs: Vec<Job> = (0..3).map(|at| job(at, 100_000, 2, 8)).collect();
        for policy in [Policy::BestFit, Policy::Fgd, Policy::Overflow] {
            let ran: Vec<calm::Ran> = play(&jobs, 1, policy).into_iter().flatten().collect();
            assert_eq!(ran.len(), 3);
            for (at, ran) in ran.iter().enumerate() {
                let late = ran.from_ms - at as u64 * 100_000;
                assert!(late < 1_000, "job {at} comes {late} ms late");
                assert_eq!(ran.until_ms - ran.from_ms, 100_000);
            }
        }
    }

    #[test]
    fn a_job_for_which_no_pool_is_large_enough_is_never_started() {
        let jobs = [job(0, 5_000, 2, 8), job(10, 5_000, 1, 8)];
        let ran = play(&jobs, 2, Policy::BestFit);
        assert_eq!(ran[0], None);
        assert!(ran[1].is_some_and(|ran| ran.from_ms < 1_000));
    }

    #[test]
    fn time_between_arrivals_is_stretched_to_the_load() {
        let trace = || Trace { jobs: vec![job(0, 1_000, 1, 8), job(500, 3_000, 1, 8)], left_out: 0 };
        let workload = Workload::new(alike(2, 8, philly_node()), trace(), 2, 0, 0.5, None).unwrap();
        // Of 16 GPUs half are asked for: 32 GPU seconds take four, and so does the next pass.
        let arrivals: Vec<u64> = workload.jobs.iter().map(|job| job.arrives_ms).collect();
        assert_eq!((workload.span_ms, arrivals), (8_000, vec![0, 2_000, 4_000, 6_000]));
        let cut = Workload::new(alike(2, 8, philly_node()), trace(), 1, 1, 0.5, Some(7)).unwrap();
        assert!(cut.jobs.iter().all(|job| job.duration_ms == 1_000));
        let long = || Trace { jobs: vec![job(0, 2 * DURATION_MS_MAX, 1, 8)], left_out: 0 };
        let error = Workload::new(alike(2, 8, philly_node()), long(), 1, 0, 0.5, None).err().unwrap();
        assert!(error.to_string().contains("runs for 732 days: must be 366 at most"), "{error}");
        assert!(Workload::new(alike(2, 8, philly_node()), long(), 1, 60, 0.5, None).is_ok());
        let error = Workload::new(alike(2, 0, Resources::default()), trace(), 1, 0, 1.0, None).err().unwrap();
        assert!(error.to_string().contains("no load to offer"));
        let instant = Trace { jobs: vec![job(0, 0, 1, 8)], left_out: 0 };
        let error = Workload::new(alike(2, 8, philly_node()), instant, 1, 0, 1.0, None).err().unwrap();
        assert!(error.to_string().contains("no job has a run time"), "{error}");
    }

    #[test]
    fn figures_tell_who_waited_and_what_was_in_use() {
        // Each takes the whole cluster, and they ask for twice what there is.
        let jobs = (0..10).map(|at| job(at * 1_000, 60_000, 2, 8)).collect();
        let workload =
            Workload::new(alike(2, 8, philly_node()), Trace { jobs, left_out: 0 }, 1, 0, 2.0, None).unwrap();
        let mut watcher = Watcher::new(&workload);
        let world = calm::Calm::new(&workload.nodes, 1, &workload.jobs, Policy::BestFit);
        let played = world.play(10_000, &mut |at, broker| watcher.look(at, broker)).unwrap();
        let figures = watcher.figures("best-fit", &played, 1.0);
        let json = serde_json::to_value(&figures).unwrap();
        assert!(json["allocated_percent"].as_f64().unwrap() > 99.0, "{json}");
        let size = &json["sizes"][0];
        // They come every half minute and take a minute: those after the first three wait half a minute
        // more than the one before.
        assert_eq!((size["size"].as_str(), size["jobs"].as_u64()), (Some("9-16"), Some(7)));
        let median = size["wait_s"]["median"].as_f64().unwrap();
        assert!((median - 180.0).abs() < 1.0, "{json}");
        // At its end all ten have come, and five have started, one after the other.
        let last = figures.samples().last().unwrap();
        assert_eq!((last.waiting, last.allocated_percent), (5, 100.0), "{last:?}");
        let text: String = figures::tables(&[figures], false).iter().map(Table::text).collect();
        assert!(text.contains("9-16     7  180 / "), "{text}");
    }

    #[test]
    fn what_can_not_be_replayed_is_told() {
        for (name, said) in [("4711", "a seed goes first"), ("slurm", "must be openb, philly or swf")] {
            assert!(Kind::parse(name).unwrap_err().to_string().contains(said));
        }
        assert!(broker_policy(PolicyName::Random).unwrap_err().to_string().contains("no broker plans by it"));
    }
}
