//! Command `compare`: compares placement policies in tables and in an HTML report with charts.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use weir::model::plan::Policy;
use weir::scheduler::packing::Packer;
use weir::scheduler::packing::fgd::Fgd;

use super::bound::{self, Bounds};
use super::cluster::Cluster;
use super::procedure::{self, Rules};
use super::{Files, PolicyName, check_inflate};
use crate::replay::{self, Figures, OPENB_CUT_S, OPENB_PASSES, Workload};
use crate::report::{Chart, Report, Series, Table};
use crate::traces::openb;

/// Compares placement policies: prints tables and writes an HTML report with charts.
///
/// Each policy first fills the cluster once, with the packing engine alone and tasks that never end, as
/// `pack` does. Then the tasks arrive and end in virtual time through the whole kernel, as `replay` plays
/// them; this takes one to two minutes per policy, and policies run in parallel.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  simulator compare --nodes openb_node_list_gpu_node.csv --pods openb_pod_list_default.csv\n  simulator compare --nodes NODES.csv --pods PODS.csv --policies best-fit,fgd,overflow --window 1000 --html packing.html\n  simulator compare --nodes NODES.csv --pods PODS.csv --passes 20"
)]
pub struct Compare {
    #[command(flatten)]
    files: Files,
    /// Comma-separated placement policies.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = [PolicyName::BestFit, PolicyName::Fgd, PolicyName::Overflow]
    )]
    policies: Vec<PolicyName>,
    /// Filling: GPUs requested by all arrivals, divided by the GPUs of the cluster, 0.01 to 100.
    #[arg(long, value_name = "RATIO", default_value_t = 1.3)]
    inflate: f64,
    /// Filling: number of waiting tasks among which the policy chooses the next; 1 places each as it arrives.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    window: usize,
    /// Seed of the arrivals: the sampled tasks and the order.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Filling: seed of the policies' random choices.
    #[arg(long, default_value_t = 0)]
    policy_seed: u64,
    /// Replay: GPU time requested by the tasks, divided by that of the nodes during the arrivals, 0.01 to
    /// 100.
    #[arg(long, value_name = "RATIO", default_value_t = 1.2)]
    offered_load: f64,
    /// Replay: number of passes over the task list, 1 to 1,000. The cluster must fill before the measured
    /// period.
    #[arg(long, value_name = "COUNT", default_value_t = OPENB_PASSES)]
    passes: u32,
    /// Replay: longest run time of a task; longer tasks are cut to it. 0 cuts none.
    #[arg(long, value_name = "SECONDS", default_value_t = OPENB_CUT_S)]
    cut: u64,
    /// File for the HTML report.
    #[arg(long, value_name = "FILE", default_value = "compare.html")]
    html: PathBuf,
}

/// Approximate number of points of a curve.
const POINTS: usize = 300;

/// Result of filling the cluster with one policy.
struct Compared {
    name: String,
    allocated_percent: f64,
    placed: usize,
    decisions_per_s: f64,
    /// (Requested by all arrivals so far, allocated, fragmented), each in percent of all GPUs.
    filling: Vec<(f64, f64, f64)>,
}

impl Compare {
    /// Runs all policies, prints the tables and writes the report.
    ///
    /// # Errors
    /// If a file can't be read or written, or an argument is out of range.
    pub fn run(self) -> anyhow::Result<()> {
        check_inflate(self.inflate)?;
        replay::check_offered(self.offered_load)?;
        replay::check_passes(self.passes)?;
        if self.window == 0 {
            bail!("--window is 0, must be at least 1");
        }
        let cluster = self.files.cluster(1)?;
        let workload = self.workload()?;
        self.check_writable()?;
        let arrivals = cluster.arrivals(self.seed, self.inflate);
        let bounds = bound::of(&cluster, &arrivals)?;
        let mut compared = Vec::new();
        for policy in &self.policies {
            let started = Instant::now();
            compared.push(self.play(*policy, &cluster, &arrivals));
            print_progress!("{policy}: filled in {:.0} s", started.elapsed().as_secs_f64());
        }
        let mut tables = vec![self.table(&compared, bounds)];
        print_line!("{}", tables[0].text());
        let replayed = self.replay(workload.as_ref())?;
        for table in replay::tables(&replayed, false).into_iter().filter(|_| !replayed.is_empty()) {
            print_line!("{}", table.text());
            tables.push(table);
        }
        let report = Report {
            title: format!("{} on {}", names(&self.policies), file_name(&self.files.pods)),
            about: format!(
                "{} nodes with {} GPUs. Filled once: window {}, seed {}, policy seed {}. Replayed through the \
                 whole kernel: {} passes with an offered load of {}.",
                cluster.nodes.len(),
                cluster.capacity_millis / 1_000,
                self.window,
                self.seed,
                self.policy_seed,
                self.passes,
                self.offered_load,
            ),
            tables,
            charts: charts(&compared, &replayed),
        };
        // Only now: a comparison that is stopped leaves no empty report in place of an earlier one.
        std::fs::write(&self.html, report.html()?)
            .with_context(|| format!("can't write {}", self.html.display()))?;
        print_line!("report: {}", self.html.display());
        Ok(())
    }

    /// Fails before the work, and not after it, if the report can't be written.
    fn check_writable(&self) -> anyhow::Result<()> {
        let existed = self.html.exists();
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(&self.html);
        opened.with_context(|| format!("can't write {}", self.html.display()))?;
        if !existed {
            std::fs::remove_file(&self.html)?;
        }
        Ok(())
    }

    /// The workload of the replay; `None` if no task has a run time.
    fn workload(&self) -> anyhow::Result<Option<Workload>> {
        let tasks = self.files.tasks()?;
        if tasks.iter().all(|task| task.duration_s == 0) {
            print_progress!("no task has a run time (deletion_time): the replay is skipped");
            return Ok(None);
        }
        let (nodes, trace) = (openb::read_nodes(&self.files.nodes)?, openb::jobs(tasks, &self.files.pods)?);
        let order = Some(self.seed);
        Ok(Some(Workload::new(nodes, trace, self.passes, self.cut, self.offered_load, order)?))
    }

    /// Replays the workload with each policy that the broker supports, as many at a time as there are cores.
    fn replay(&self, workload: Option<&Workload>) -> anyhow::Result<Vec<Figures>> {
        let Some(workload) = workload else { return Ok(Vec::new()) };
        let mut supported = Vec::new();
        for policy in &self.policies {
            match replay::broker_policy(*policy) {
                Ok(of_broker) => supported.push((*policy, of_broker)),
                Err(_) => print_progress!("{policy}: the broker does not support it: its replay is skipped"),
            }
        }
        if supported.is_empty() {
            return Ok(Vec::new());
        }
        print_progress!(
            "replaying {} jobs with {} policies: one to two minutes each",
            workload.job_count(),
            supported.len()
        );
        let at_a_time = std::thread::available_parallelism().map_or(1, usize::from);
        let mut all = Vec::new();
        for some in supported.chunks(at_a_time) {
            let figures: Vec<anyhow::Result<Figures>> = std::thread::scope(|scope| {
                let play = |(name, policy): &(PolicyName, Policy)| {
                    let (name, policy) = (*name, *policy);
                    scope.spawn(move || {
                        let started = Instant::now();
                        let figures = workload.play(name, policy, 1);
                        print_progress!("{name}: replayed in {:.0} s", started.elapsed().as_secs_f64());
                        figures
                    })
                };
                let threads: Vec<_> = some.iter().map(play).collect();
                let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                threads.into_iter().map(join).collect()
            });
            all.extend(figures.into_iter().collect::<anyhow::Result<Vec<_>>>()?);
        }
        Ok(all)
    }

    fn play(&self, policy: PolicyName, cluster: &Cluster, arrivals: &[usize]) -> Compared {
        let mix = cluster.mix();
        let fgd = Fgd::new(mix.iter().map(|(demand, count)| (&**demand, *count)));
        let percent = |millis: u64| millis as f64 * 100.0 / cluster.capacity_millis as f64;
        let mut requested = vec![0];
        for task in arrivals {
            requested.push(
                requested[requested.len() - 1] + cluster.demands[cluster.demand_of[*task]].device_millis(),
            );
        }
        let (mut filling, mut due) = (Vec::new(), 0);
        let mut observe = |arrived: usize, packer: &Packer| {
            if arrived < due {
                return;
            }
            due = arrived + (arrivals.len() / POINTS).max(1);
            let fragmented =
                packer.buckets_of_nodes().map(|(_, bucket)| fgd.fragmented_millis(&bucket)).sum();
            let allocated = cluster.capacity_millis - packer.device_free();
            filling.push((percent(requested[arrived]), percent(allocated), percent(fragmented)));
        };
        let rules = Rules { policy, policy_seed: self.policy_seed, window: self.window, warm: false };
        let outcome = procedure::play_observed(cluster, arrivals, rules, &mut observe);
        // A second run without the observer, whose time would be counted.
        let timed = procedure::play(cluster, arrivals, rules);
        Compared {
            name: policy.to_string(),
            allocated_percent: outcome.allocated_percent,
            placed: outcome.placed.len(),
            decisions_per_s: arrivals.len() as f64 / timed.seconds,
            filling,
        }
    }

    fn table(&self, compared: &[Compared], bounds: Bounds) -> Table {
        let mut filled = Table::new(
            &format!("Filled once, by tasks that request {} times the GPUs of the cluster", self.inflate),
            &["policy", "GPUs allocated, %", "fragmented, %", "tasks placed", "decisions/s"],
        );
        for one in compared {
            let fragmented = one.filling.last().map_or(0.0, |(_, _, fragmented)| *fragmented);
            filled.row([
                one.name.clone(),
                format!("{:.2}", one.allocated_percent),
                format!("{fragmented:.2}"),
                one.placed.to_string(),
                format!("{:.0}", one.decisions_per_s),
            ]);
        }
        let bound = |name: &str, percent: f64| {
            [name.to_owned(), format!("{percent:.2}"), String::new(), String::new(), String::new()]
        };
        filled.row(bound("upper bound, one by one", bounds.one_by_one_percent));
        filled.row(bound("upper bound, any scheduler", bounds.any_order_percent));
        filled
    }
}

fn charts(compared: &[Compared], replayed: &[Figures]) -> Vec<Chart> {
    let requested = "GPUs requested by all arrivals so far, % of all GPUs";
    let colour = |policy: &str| compared.iter().position(|one| one.name == policy).unwrap_or_default();
    let filling = |title: &str, y: &str, pick: fn(&(f64, f64, f64)) -> (f64, f64)| {
        let curve = |one: &Compared| Series {
            name: one.name.clone(),
            colour: colour(&one.name),
            points: one.filling.iter().map(pick).collect(),
        };
        Chart {
            title: title.to_owned(),
            x: requested.to_owned(),
            y: y.to_owned(),
            series: compared.iter().map(curve).collect(),
        }
    };
    let over_time = |title: &str, y: &str, pick: fn(&replay::Sample) -> (f64, f64)| {
        let curve = |one: &Figures| Series {
            name: one.policy().to_owned(),
            colour: colour(one.policy()),
            points: one.samples().iter().map(pick).collect(),
        };
        Chart {
            title: title.to_owned(),
            x: "hours".to_owned(),
            y: y.to_owned(),
            series: replayed.iter().map(curve).collect(),
        }
    };
    let mut charts = vec![
        filling("Allocation, filled once", "GPUs allocated, %", |(requested, allocated, _)| {
            (*requested, *allocated)
        }),
        filling("Fragmentation, filled once", "GPUs fragmented, %", |(requested, _, fragmented)| {
            (*requested, *fragmented)
        }),
        over_time("Waiting tasks, replayed", "waiting tasks", |sample| (sample.hours, sample.waiting as f64)),
        over_time("Allocation, replayed", "GPUs allocated, %", |sample| {
            (sample.hours, sample.allocated_percent)
        }),
    ];
    charts.retain(|chart| !chart.series.is_empty());
    charts
}

fn names(policies: &[PolicyName]) -> String {
    policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
