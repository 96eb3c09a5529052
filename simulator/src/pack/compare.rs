//! Policies side by side: a table, and a report with curves.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Parser;
use weir::scheduler::packing::Packer;
use weir::scheduler::packing::fgd::Fgd;

use super::bound::{self, Bounds};
use super::departures::{self, Load, Seen};
use super::procedure::{self, Cluster, Player, Rules};
use super::{Files, PolicyName, check_inflate, check_offered, gpus_asked, of_passes};
use crate::report::{Chart, Quantiles, Report, Series, Table};

/// Compares policies on a task list: prints a table and writes a report for the browser.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  simulator compare --nodes openb_node_list_gpu_node.csv --pods openb_pod_list_default.csv\n  simulator compare --nodes NODES.csv --pods PODS.csv --policies best-fit,fgd,overflow --window 1000 --html packing.html"
)]
pub struct Compare {
    #[command(flatten)]
    files: Files,
    /// Policies, with commas between them.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = [PolicyName::BestFit, PolicyName::Fgd, PolicyName::Overflow]
    )]
    policies: Vec<PolicyName>,
    /// Arrivals ask for so many times the GPUs that there are, where nothing ends.
    #[arg(long, default_value_t = 1.3)]
    inflate: f64,
    /// Waiting tasks of which the next is chosen; 1 places each as it arrives.
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// Seed of the tasks drawn and of their order.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seed of what the policies draw.
    #[arg(long, default_value_t = 0)]
    policy_seed: u64,
    /// Share of all GPU time that is asked for, where tasks come and go.
    #[arg(long, default_value_t = 1.2)]
    offered_load: f64,
    /// Plays the list so often there: the cluster must fill before anything is measured.
    #[arg(long, default_value_t = 60)]
    passes: u32,
    /// Longer tasks are cut to so many seconds there; 0 cuts none.
    #[arg(long, default_value_t = 14_400)]
    cut: u64,
    /// Where the report goes.
    #[arg(long, default_value = "compare.html")]
    html: PathBuf,
}

/// Points of a curve, about.
const POINTS: usize = 300;

/// What came of one policy.
struct Compared {
    name: String,
    allocated_percent: f64,
    placed: usize,
    decisions_per_s: f64,
    /// GPUs asked for by all that have arrived, allocated, and fragmented, in percent of all GPUs.
    filling: Vec<(f64, f64, f64)>,
    /// `None` if the tasks have no times.
    departures: Option<Seen>,
}

impl Compare {
    /// Plays all policies, prints the table and writes the report.
    ///
    /// # Errors
    /// If a file can't be read or written, or an argument is out of range.
    pub fn run(self) -> anyhow::Result<()> {
        check_inflate(self.inflate)?;
        check_offered(self.offered_load)?;
        if let Some((name, _)) =
            [("--window", self.window), ("--passes", self.passes as usize)].iter().find(|(_, n)| *n == 0)
        {
            bail!("{name} is 0, must be at least 1");
        }
        let cluster = self.files.cluster(self.cut, 1)?;
        // Before all the work, not after it.
        let unwritable = || format!("can't write {}", self.html.display());
        let mut file = std::fs::File::create(&self.html).with_context(unwritable)?;
        let arrivals = cluster.arrivals(self.seed, self.inflate);
        let bounds = bound::of(&cluster, &arrivals)?;
        let compared: Vec<Compared> =
            self.policies.iter().map(|policy| self.play(*policy, &cluster, &arrivals)).collect();
        let tables = self.tables(&compared, bounds);
        for table in &tables {
            say!("{}", table.text());
        }
        let report = Report {
            title: format!("{} on {}", names(&self.policies), file_name(&self.files.pods)),
            about: format!(
                "{} nodes with {} GPUs; window {}, seed {}, policy seed {}",
                cluster.nodes.len(),
                cluster.capacity_millis / 1_000,
                self.window,
                self.seed,
                self.policy_seed
            ),
            tables,
            charts: self.charts(&compared),
        };
        file.write_all(report.html()?.as_bytes()).with_context(unwritable)?;
        say!("curves: {}", self.html.display());
        Ok(())
    }

    fn play(&self, policy: PolicyName, cluster: &Cluster, arrivals: &[usize]) -> Compared {
        let mix = cluster.mix();
        let fgd = Fgd::new(mix.iter().map(|(demand, count)| (&**demand, *count)));
        let percent = |millis: u64| millis as f64 * 100.0 / cluster.capacity_millis as f64;
        let mut asked = vec![0];
        for task in arrivals {
            asked.push(asked[asked.len() - 1] + cluster.demands[cluster.demand_of[*task]].device_millis());
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
            filling.push((percent(asked[arrived]), percent(allocated), percent(fragmented)));
        };
        let rules = Rules { policy, policy_seed: self.policy_seed, window: self.window, warm: false };
        let outcome = procedure::observed(cluster, arrivals, rules, &mut observe);
        // Once more without an onlooker, whose work would be counted.
        let timed = procedure::play(cluster, arrivals, rules);
        let departures = cluster.tasks.iter().any(|task| task.duration_s > 0).then(|| {
            let arrivals = of_passes(cluster, self.seed, self.passes);
            let player = Player::new(cluster, policy, self.policy_seed);
            let load = Load { offered: self.offered_load, window: self.window };
            departures::play(player, cluster, &arrivals, load)
        });
        Compared {
            name: policy.to_string(),
            allocated_percent: outcome.allocated_percent,
            placed: outcome.placed.len(),
            decisions_per_s: arrivals.len() as f64 / timed.seconds,
            filling,
            departures,
        }
    }

    fn tables(&self, compared: &[Compared], bounds: Bounds) -> Vec<Table> {
        let mut filled = Table::new(
            &format!("Filled once, by tasks that ask for {} times the GPUs there are", self.inflate),
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
        filled.row(bound("bound, one by one", bounds.one_by_one_percent));
        filled.row(bound("bound, any order", bounds.any_order_percent));
        let mut tables = vec![filled];
        let seen: Vec<(&String, &Seen)> =
            compared.iter().filter_map(|one| Some((&one.name, one.departures.as_ref()?))).collect();
        if let Some((_, first)) = seen.first() {
            let sizes: Vec<u32> = first.waits.keys().copied().collect();
            let mut heading = vec!["policy".to_owned(), "GPUs allocated, %".to_owned()];
            heading.extend(sizes.iter().map(|gpus| format!("{} GPU", gpus_asked(*gpus))));
            let title = format!(
                "Come and go, asking for {} times the GPU time there is: waiting by size, median / 95th percentile, s",
                self.offered_load
            );
            let mut gone = Table::new(&title, &heading);
            for (name, seen) in seen {
                let mut row = vec![name.clone(), format!("{:.2}", seen.allocated_percent)];
                row.extend(sizes.iter().map(|gpus| {
                    seen.waits.get(gpus).map_or(String::new(), |waits| {
                        let waits = Quantiles::of(waits.iter().copied());
                        format!("{:.0} / {:.0}", waits.median, waits.p95)
                    })
                }));
                gone.row(row);
            }
            tables.push(gone);
        }
        tables
    }

    fn charts(&self, compared: &[Compared]) -> Vec<Chart> {
        let asked = "GPUs asked for by all that have arrived, % of all";
        let chart = |title: &str, x: &str, y: &str, points: &dyn Fn(&Compared) -> Vec<(f64, f64)>| Chart {
            title: title.to_owned(),
            x: x.to_owned(),
            y: y.to_owned(),
            series: compared
                .iter()
                .map(|one| Series { name: one.name.clone(), points: points(one) })
                .filter(|series| !series.points.is_empty())
                .collect(),
        };
        let filling = |pick: fn(&(f64, f64, f64)) -> (f64, f64)| {
            move |one: &Compared| one.filling.iter().map(pick).collect::<Vec<_>>()
        };
        let over_time = |pick: fn(&departures::Sample) -> (f64, f64)| {
            move |one: &Compared| {
                one.departures.iter().flat_map(|seen| seen.samples.iter().map(pick)).collect::<Vec<_>>()
            }
        };
        let hours = "hours";
        let mut charts = vec![
            chart("Allocation, filled once", asked, "GPUs allocated, %", &filling(|(x, y, _)| (*x, *y))),
            chart("Fragmentation, filled once", asked, "GPUs fragmented, %", &filling(|(x, _, y)| (*x, *y))),
            chart(
                "Waiting, as tasks come and go",
                hours,
                "tasks that wait",
                &over_time(|s| (s.hours, s.waiting as f64)),
            ),
            chart(
                "Allocation, as tasks come and go",
                hours,
                "GPUs allocated, %",
                &over_time(|s| (s.hours, s.allocated_percent)),
            ),
        ];
        charts.retain(|chart| !chart.series.is_empty());
        charts
    }
}

fn names(policies: &[PolicyName]) -> String {
    policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
