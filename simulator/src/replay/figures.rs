//! Results of a played trace: waiting times, slowdown, allocation and fragmentation.

use std::collections::BTreeMap;

use serde::Serialize;
use weir::broker::Broker;
use weir::model::demand::{Demand, DeviceDemand};
use weir::model::limit::DEVICE_MILLIS;
use weir::model::resource::Resources;
use weir::scheduler::packing::fgd::Fgd;

use super::fault_free::{Played, Ran};
use super::{Workload, units};
use crate::report::{Quantiles, Table};
use crate::traces::Job;

/// Share of the arrival period that fills the cluster; jobs that arrive in it are not measured.
const WARM_UP: f64 = 0.3;
/// Number of samples of the cluster over the arrival period.
pub(super) const SAMPLES: u64 = 300;
/// Shortest run time that a slowdown is divided by (bounded slowdown), in milliseconds: Feitelson and
/// Rudolph, Metrics and benchmarking for parallel job scheduling, JSSPP 1998.
const SLOWDOWN_RUN_MS_MIN: u64 = 10_000;

/// Results of one policy.
#[derive(Serialize)]
pub(crate) struct Figures {
    policy: String,
    /// Allocated share of all GPU time, or CPU time without GPUs, from the end of the warm-up to the end of
    /// the arrival period.
    allocated_percent: f64,
    /// Free GPU capacity that a random task of the trace can't use, as a share of all GPUs and a mean over
    /// the same period; 0 without GPUs.
    fragmented_percent: f64,
    /// Jobs that arrived after the warm-up, grouped by their request.
    sizes: Vec<Size>,
    never_started: usize,
    /// Steps of the broker's and the agents' state machines.
    steps: u64,
    /// Real time of the whole run.
    seconds: f64,
    #[serde(skip)]
    samples: Vec<Sample>,
}

/// State of the cluster at one time of the arrival period, which includes the warm-up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Virtual hours after the first arrival.
    pub(crate) hours: f64,
    pub(crate) waiting: usize,
    pub(crate) allocated_percent: f64,
}

impl Figures {
    pub(crate) fn policy(&self) -> &str {
        &self.policy
    }

    pub(crate) fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

/// Results of the jobs of one size class.
#[derive(Clone, Serialize)]
struct Size {
    /// Requested GPUs, or CPUs without GPUs: a range.
    size: String,
    jobs: usize,
    wait_s: Quantiles,
    /// (Waiting time + run time) / run time.
    slowdown: Quantiles,
}

/// Samples the broker during a run and computes its results.
pub(super) struct Watcher<'a> {
    workload: &'a Workload,
    fgd: Option<Fgd>,
    /// Fragmented device thousandths, one value per sample.
    fragmented: Vec<u64>,
}

impl<'a> Watcher<'a> {
    pub(super) fn new(workload: &'a Workload) -> Self {
        Self { workload, fgd: None, fragmented: Vec::new() }
    }

    fn warm_ms(&self) -> u64 {
        (self.workload.span_ms as f64 * WARM_UP) as u64
    }

    pub(super) fn sample(&mut self, at_ms: u64, broker: &Broker) {
        if self.workload.counts_cpus || at_ms < self.warm_ms() {
            return;
        }
        let mix = || fgd_of(&self.workload.jobs, broker);
        let fgd = self.fgd.get_or_insert_with(mix);
        let fragmented = broker.scheduler().nodes().map(|(_, bucket)| fgd.fragmented_millis(&bucket));
        self.fragmented.push(fragmented.sum());
    }

    pub(super) fn figures(self, policy: &str, played: &Played, seconds: f64) -> Figures {
        let (from, until) = (self.warm_ms(), self.workload.span_ms);
        let (capacity, counts_cpus) = (self.workload.capacity as f64, self.workload.counts_cpus);
        let jobs = &self.workload.jobs;
        let within = |ran: &Ran| ran.until_ms.min(until).saturating_sub(ran.from_ms.max(from)) as f64;
        let used: f64 = jobs
            .iter()
            .zip(&played.ran)
            .filter_map(|(job, ran)| Some(units(job, counts_cpus) as f64 * within(ran.as_ref()?)))
            .sum();
        let mut waits = BTreeMap::<(u64, String), Vec<(f64, f64)>>::new();
        for (job, ran) in jobs.iter().zip(&played.ran).filter(|(job, _)| job.arrives_ms >= from) {
            let Some(ran) = ran else { continue };
            let wait = ran.from_ms.saturating_sub(job.arrives_ms) as f64 / 1_000.0;
            let run = (ran.until_ms - ran.from_ms).max(SLOWDOWN_RUN_MS_MIN) as f64 / 1_000.0;
            waits.entry(size(units(job, counts_cpus))).or_default().push((wait, (wait + run) / run));
        }
        let fragmented = self.fragmented.iter().sum::<u64>() as f64 / self.fragmented.len().max(1) as f64;
        Figures {
            policy: policy.to_owned(),
            allocated_percent: used * 100.0 / (capacity * (until - from).max(1) as f64),
            fragmented_percent: fragmented * 100.0 / capacity,
            sizes: waits
                .into_iter()
                .map(|((_, size), pairs)| Size {
                    size,
                    jobs: pairs.len(),
                    wait_s: Quantiles::of(pairs.iter().map(|(wait, _)| *wait)),
                    slowdown: Quantiles::of(pairs.iter().map(|(_, slowdown)| *slowdown)),
                })
                .collect(),
            never_started: played.ran.iter().filter(|ran| ran.is_none()).count(),
            steps: played.steps,
            seconds,
            samples: self.samples(played),
        }
    }

    /// The state of the cluster at evenly spaced times.
    fn samples(&self, played: &Played) -> Vec<Sample> {
        let Workload { jobs, capacity, counts_cpus, span_ms, .. } = self.workload;
        // Time, change of the number of waiting jobs, change of the units in use.
        let mut changes: Vec<(u64, i64, i64)> = Vec::new();
        for (job, ran) in jobs.iter().zip(&played.ran) {
            let units = units(job, *counts_cpus) as i64;
            changes.push((job.arrives_ms, 1, 0));
            if let Some(ran) = ran {
                changes.extend([(ran.from_ms, -1, units), (ran.until_ms, 0, -units)]);
            }
        }
        changes.sort_unstable();
        let (mut waiting, mut used) = (0i64, 0i64);
        let mut changes = changes.into_iter().peekable();
        let mut sample = |at_ms: u64| {
            while let Some((_, waits, uses)) = changes.next_if(|(at, _, _)| *at <= at_ms) {
                (waiting, used) = (waiting + waits, used + uses);
            }
            Sample {
                hours: at_ms as f64 / 3_600_000.0,
                waiting: usize::try_from(waiting).unwrap_or(0),
                allocated_percent: used as f64 * 100.0 / *capacity as f64,
            }
        };
        (0..=SAMPLES).map(|at| sample(span_ms * at / SAMPLES)).collect()
    }
}

/// The size class of a request in thousandths: its sort key and its name.
fn size(millis: u64) -> (u64, String) {
    let unit = u64::from(DEVICE_MILLIS);
    if millis == 0 {
        return (0, "none".to_owned());
    }
    if millis < unit {
        return (1, "<1".to_owned());
    }
    let (from, max) = (millis.div_ceil(unit), millis.div_ceil(unit).next_power_of_two());
    let min = max / 2 + 1;
    if from == 1 || min >= max { (max + 1, max.to_string()) } else { (max + 1, format!("{min}-{max}")) }
}

/// Fragmentation measure for the trace's mix of demands, with the broker's numbers of device models.
fn fgd_of(jobs: &[Job], broker: &Broker) -> Fgd {
    let state = broker.state();
    let mut mix = BTreeMap::<Demand, u64>::new();
    for job in jobs {
        let devices = job.devices.map(|amount| {
            let mut models: Vec<_> = job.models.iter().filter_map(|name| state.model_named(name)).collect();
            models.sort_unstable();
            DeviceDemand { models: (!job.models.is_empty()).then_some(models), amount }
        });
        let resources =
            Resources { cpu_millis: job.cpu_millis, memory_bytes: job.memory_bytes, ..Resources::default() };
        let demand =
            Demand { resources, devices, constraints: Default::default(), needs: Default::default() };
        *mix.entry(demand).or_default() += u64::from(job.tasks);
    }
    Fgd::new(mix.iter().map(|(demand, count)| (demand, *count)))
}

/// Tables that compare the results of several policies.
pub(crate) fn tables(all: &[Figures], counts_cpus: bool) -> Vec<Table> {
    let unit = if counts_cpus { "CPUs" } else { "GPUs" };
    let mut whole = Table::new(
        "Arrival period after the warm-up",
        &["policy", &format!("{unit} allocated, %"), "fragmented, %", "never started", "steps", "s"],
    );
    for one in all {
        whole.row([
            one.policy.clone(),
            format!("{:.2}", one.allocated_percent),
            format!("{:.2}", one.fragmented_percent),
            one.never_started.to_string(),
            one.steps.to_string(),
            format!("{:.1}", one.seconds),
        ]);
    }
    let mut tables = vec![whole];
    let parts = [
        ("Waiting by size, median / 95th percentile, s", (|size| size.wait_s) as fn(&Size) -> Quantiles, 0),
        ("Slowdown by size, median / 95th percentile", |size| size.slowdown, 1),
    ];
    // A policy that started no job of a size has no entry for it: collect the sizes of all policies.
    let mut sizes: Vec<&Size> = Vec::new();
    for size in all.iter().flat_map(|one| &one.sizes) {
        if !sizes.iter().any(|listed| listed.size == size.size) {
            sizes.push(size);
        }
    }
    for (title, pick, digits) in parts {
        let mut heading = vec![unit.to_owned(), "jobs".to_owned()];
        heading.extend(all.iter().map(|one| one.policy.clone()));
        let mut table = Table::new(title, &heading);
        for size in &sizes {
            let mut row = vec![size.size.clone(), size.jobs.to_string()];
            row.extend(all.iter().map(|one| {
                let found = one.sizes.iter().find(|found| found.size == size.size);
                found.map_or(String::new(), |found| {
                    let of = pick(found);
                    format!("{:.digits$} / {:.digits$}", of.median, of.p95)
                })
            }));
            table.row(row);
        }
        tables.push(table);
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_end_at_powers_of_two() {
        let found: Vec<String> = [0, 1, 999, 1_000, 2_000, 3_000, 4_000, 5_000, 8_000, 9_000, 128_000]
            .map(|millis| size(millis).1)
            .into();
        assert_eq!(found, ["none", "<1", "<1", "1", "2", "3-4", "3-4", "5-8", "5-8", "9-16", "65-128"]);
        let order: Vec<u64> = [0, 500, 1_000, 2_000, 4_000, 8_000].map(|millis| size(millis).0).into();
        assert!(order.is_sorted());
    }
}
