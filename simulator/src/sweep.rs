//! Runs many seeds, on all cores.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use crate::world::{Counts, Violation, World};

/// Runs many seeds of the deterministic simulation, each first with faults and then without.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  simulator sweep --seeds 20000
  simulator sweep --from 20000 --seeds 100000
  simulator sweep --seeds 1000000 --minutes 60")]
pub struct Sweep {
    /// Number of seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// First seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Stop after this many minutes, even if fewer seeds have run. Default: no time limit.
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<u64>,
}

/// Sums over the seeds of a sweep.
#[derive(Debug, Default)]
pub struct Totals {
    /// Seeds that ran to their end.
    pub seeds: u64,
    /// Inputs of all state machines.
    pub inputs: u64,
    /// The fewest inputs of one seed; `u64::MAX` if no seed ran.
    pub inputs_min: u64,
    pub virtual_ms: u64,
    /// Jobs whose submission was acknowledged.
    pub jobs: u64,
    /// Crashes of brokers, then of agents.
    pub crashes: [u64; 2],
    /// The fewest crashes of one seed, in the same order; `u32::MAX` if no seed ran.
    pub crashes_min: [u32; 2],
    pub counts: Counts,
}

/// A sweep of at least this many seeds must reach every kind of event, rejection, outcome and reason.
const COMPLETE_FROM: u64 = 200;

impl Sweep {
    /// Runs the sweep and prints its totals.
    ///
    /// # Errors
    /// - The first seed found that violated an invariant, with the command that repeats it.
    /// - The kinds that no seed reached, if the sweep had at least 200 seeds.
    pub fn run(&self) -> anyhow::Result<()> {
        let bar = ProgressBar::new(self.seeds);
        bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left")?);
        // Now, since the work tree may change during a long sweep.
        let commit = commit();
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let until = self.minutes.map(|minutes| started + std::time::Duration::from_secs(60 * minutes));
        let should_continue = || {
            bar.inc(1);
            until.is_none_or(|until| Instant::now() < until)
        };
        let totals = sweep(self.from, self.seeds, should_continue)
            .map_err(|failure| anyhow::anyhow!(failure_line(&failure, "")))?;
        bar.finish_and_clear();
        let seconds = started.elapsed().as_secs_f64();
        print_totals(&totals, self.from, &commit, seconds, cpu_seconds() - cpu);
        let unreached = totals.counts.unreached();
        let complete = unreached.is_empty() || totals.seeds < COMPLETE_FROM;
        anyhow::ensure!(complete, "never reached: {}", unreached.join(", "));
        Ok(())
    }
}

fn print_totals(totals: &Totals, from: u64, commit: &str, seconds: f64, cpu: f64) {
    print_line!(
        "{} seeds from {from} on: no violation; {seconds:.0} s, {cpu:.0} s of CPU, commit {commit}",
        totals.seeds
    );
    print_line!(
        "per second: {:.1} seeds; per CPU second: {:.1} seeds, {:.0} inputs, {:.2} virtual hours",
        totals.seeds as f64 / seconds,
        totals.seeds as f64 / cpu,
        totals.inputs as f64 / cpu,
        totals.virtual_ms as f64 / 3_600_000.0 / cpu,
    );
    print_line!(
        "{} inputs, {} virtual hours, {} jobs, {} broker and {} agent crashes; each seed has at least {} inputs, {} broker and {} agent crashes",
        totals.inputs,
        totals.virtual_ms / 3_600_000,
        totals.jobs,
        totals.crashes[0],
        totals.crashes[1],
        totals.inputs_min,
        totals.crashes_min[0],
        totals.crashes_min[1],
    );
    for (title, kinds) in totals.counts.kinds() {
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        print_line!("{title}: {}", kinds.join(", "));
    }
}

/// CPU seconds that this process has used, user and system; 0 where `/proc` is missing.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15 in hundredths of a second, counted from the end of the command's name, which may
    // contain spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The commit of the work tree as `git describe --always --dirty` prints it, or `unknown` without git.
pub fn commit() -> String {
    let folder = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("git").args(["-C", folder, "describe", "--always", "--dirty"]).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    text.map_or_else(|| "unknown".to_owned(), |text| String::from_utf8_lossy(&text).trim().to_owned())
}

/// One line with the commit, the seed, the violation and the command that repeats it.
///
/// `options` is inserted after the seed and begins with a space unless it is empty.
pub fn failure_line(violation: &Violation, options: &str) -> String {
    let Violation { seed, at_ms, what } = violation;
    let command = format!("cargo run --release -p simulator -- replay {seed}{options} --trace");
    format!("commit {}, seed {seed}, at {at_ms} ms: {what}; {command}", commit())
}

/// Runs the seeds `from..from + count` on all cores, until `should_continue` returns false after a seed.
///
/// # Errors
/// The first violation found, which need not be that of the lowest seed. A panic counts as a violation.
pub fn sweep(from: u64, count: u64, should_continue: impl Fn() -> bool + Sync) -> Result<Totals, Violation> {
    let next = AtomicU64::new(from);
    let totals = Mutex::new(Totals { inputs_min: u64::MAX, crashes_min: [u32::MAX; 2], ..Totals::default() });
    let failed: Mutex<Option<Violation>> = Mutex::new(None);
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
                let panics = || Violation { seed, at_ms: 0, what: "panics".to_owned() };
                let violation = outcome.ok().and_then(Result::err).unwrap_or_else(panics);
                if let Ok(mut failed) = failed.lock() {
                    failed.get_or_insert(violation);
                }
                return;
            }
        }
        if !should_continue() {
            next.store(u64::MAX / 2, Ordering::Relaxed);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if let Ok(Some(violation)) = failed.into_inner() {
        return Err(violation);
    }
    totals.into_inner().map_err(|_| Violation { seed: from, at_ms: 0, what: "a thread panicked".to_owned() })
}
