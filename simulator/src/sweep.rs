//! Many seeds, on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use crate::world::{Counts, World};

/// Runs seeds of the simulation.
#[derive(clap::Args)]
pub struct Sweep {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Print every event (use with one seed).
    #[arg(long)]
    trace: bool,
}

/// Sums over the seeds of a sweep.
#[derive(Debug, Default)]
pub struct Totals {
    pub seeds: u64,
    pub inputs: u64,
    pub inputs_min: u64,
    pub virtual_ms: u64,
    pub jobs: u64,
    pub crashes: [u64; 2],
    pub crashes_min: [u32; 2],
    pub counts: Counts,
}

impl Sweep {
    /// Runs the sweep and prints what it met.
    ///
    /// # Errors
    /// The first seed that broke a promise, or a kind of event that no seed reached.
    pub fn run(&self) -> anyhow::Result<()> {
        if self.trace {
            for seed in self.from..self.from + self.seeds {
                World::run(seed, true).map_err(|violation| anyhow::anyhow!("{violation}"))?;
            }
            return Ok(());
        }
        let bar = ProgressBar::new(self.seeds);
        bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left")?);
        let started = Instant::now();
        let totals =
            sweep(self.from, self.seeds, || bar.inc(1)).map_err(|violation| anyhow::anyhow!(violation))?;
        bar.finish_and_clear();
        let seconds = started.elapsed().as_secs_f64();
        println!("{} seeds without a violation in {seconds:.1} s", totals.seeds);
        println!(
            "{:.0} seeds/s, {:.0} inputs/s, {:.1} virtual hours/s; {} jobs; at least {} inputs and {}+{} crashes a seed",
            totals.seeds as f64 / seconds,
            totals.inputs as f64 / seconds,
            totals.virtual_ms as f64 / 3_600_000.0 / seconds,
            totals.jobs,
            totals.inputs_min,
            totals.crashes_min[0],
            totals.crashes_min[1],
        );
        print_counts(&totals.counts);
        let unreached = totals.counts.unreached();
        anyhow::ensure!(unreached.is_empty() || self.seeds < 200, "never reached: {}", unreached.join(", "));
        Ok(())
    }
}

fn print_counts(counts: &Counts) {
    println!("attempts in lines: {}", counts.lined_up);
    let events = weir::state::event::Event::KINDS.iter().zip(counts.events);
    let rejections =
        weir::state::rejection::Rejection::MANUAL.iter().map(|entry| &entry.0).zip(counts.rejections);
    for (title, list) in [
        ("events", events.map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>()),
        ("rejections", rejections.map(|(kind, count)| format!("{kind} {count}")).collect()),
        ("outcomes", counts.outcomes.iter().map(|(kind, count)| format!("{kind} {count}")).collect()),
        ("reasons", counts.reasons.iter().map(|(kind, count)| format!("{kind} {count}")).collect()),
    ] {
        println!("{title}: {}", list.join(", "));
    }
}

/// Runs seeds `from..from + count` on all cores.
///
/// # Errors
/// The line that names and replays the first seed that failed.
pub fn sweep(from: u64, count: u64, progress: impl Fn() + Sync) -> Result<Totals, String> {
    let next = AtomicU64::new(from);
    let totals = Mutex::new(Totals { inputs_min: u64::MAX, crashes_min: [u32::MAX; 2], ..Totals::default() });
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= from + count || failed.lock().is_ok_and(|failed| failed.is_some()) {
            return;
        }
        match std::panic::catch_unwind(|| World::run(seed, false)) {
            Ok(Ok(report)) => {
                let Ok(mut totals) = totals.lock() else { return };
                totals.seeds += 1;
                totals.inputs += report.inputs;
                totals.inputs_min = totals.inputs_min.min(report.inputs);
                totals.virtual_ms += report.virtual_ms;
                totals.jobs += report.jobs as u64;
                for (side, crashes) in [report.broker_crashes, report.agent_crashes].into_iter().enumerate() {
                    totals.crashes[side] += u64::from(crashes);
                    totals.crashes_min[side] = totals.crashes_min[side].min(crashes);
                }
                totals.counts.add(&report.counts);
            }
            outcome => {
                let what = match outcome {
                    Ok(Err(violation)) => violation.to_string(),
                    _ => format!(
                        "seed {seed} panics; replay: cargo run --release -p simulator -- sweep --from {seed} --seeds 1 --trace"
                    ),
                };
                if let Ok(mut failed) = failed.lock() {
                    failed.get_or_insert((seed, what));
                }
                return;
            }
        }
        progress();
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if let Ok(Some((_, what))) = failed.into_inner() {
        return Err(what);
    }
    totals.into_inner().map_err(|_| "a thread of the sweep panicked".to_owned())
}
