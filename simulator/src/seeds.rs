//! Single seeds: one played again, some run twice, a failing one made smaller.

use anyhow::bail;

use crate::sweep::failure_line;
use crate::world::{Schedule, Violation, World};

/// What of a seed is left out.
#[derive(clap::Args)]
pub(crate) struct SeedOptions {
    /// Of a seed, only the faults of these numbers; all by default, none if empty.
    #[arg(long, value_name = "LIST", requires = "seed")]
    faults: Option<String>,
    /// Of a seed, so many acts of clients.
    #[arg(long, requires = "seed")]
    acts: Option<u32>,
}

/// Runs each seed twice and compares the journals byte for byte.
#[derive(clap::Args)]
#[command(after_help = "Example:
  simulator meta --seeds 500")]
pub struct Meta {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
}

/// Takes faults and clients' acts away from a failing seed while it still fails.
#[derive(clap::Args)]
#[command(after_help = "Example:
  simulator minimise 4711")]
pub struct Minimise {
    seed: u64,
}

/// Runs a seed and prints what it met; with `trace` also what comes in and what each machine makes of it.
///
/// # Errors
/// The promise that was broken, or faults that the seed doesn't have.
pub(crate) fn replay(seed: u64, trace: bool, options: &SeedOptions) -> anyhow::Result<()> {
    let mut schedule = World::schedule_of(seed);
    let all = schedule.faults.len();
    if let Some(list) = &options.faults {
        schedule = schedule.only(&numbers(list, all)?);
    }
    schedule.acts = options.acts.unwrap_or(schedule.acts);
    for (number, planned) in schedule.faults.iter().enumerate().filter(|_| trace) {
        say!("{:>9} planned {number}: {:?}", planned.at_ms, planned.fault);
    }
    let report = World::run_with(seed, trace, schedule).map_err(|violation| {
        let faults = options.faults.as_ref().map_or_else(String::new, |list| format!(" --faults {list:?}"));
        let acts = options.acts.map_or_else(String::new, |acts| format!(" --acts {acts}"));
        anyhow::anyhow!(failure_line(&violation, &format!("{faults}{acts}")))
    })?;
    say!(
        "seed {} holds: {} inputs, {} jobs, {}+{} crashes, {} virtual s, journal {:016x}",
        report.seed,
        report.inputs,
        report.jobs,
        report.broker_crashes,
        report.agent_crashes,
        report.virtual_ms / 1_000,
        report.digest,
    );
    Ok(())
}

/// Reads numbers of faults, each below `all`.
fn numbers(list: &str, all: usize) -> anyhow::Result<Vec<usize>> {
    let mut numbers = Vec::new();
    for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        match text.parse() {
            Ok(number) if number < all => numbers.push(number),
            _ => bail!("--faults: {text:?} is not a number below {all}, the faults that the seed has"),
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Meta {
    /// Runs the seeds.
    ///
    /// # Errors
    /// The first seed whose two runs differ, or that broke a promise.
    pub fn run(&self) -> anyhow::Result<()> {
        for seed in self.from..self.from + self.seeds {
            let run =
                || World::run(seed, false).map_err(|violation| anyhow::anyhow!(failure_line(&violation, "")));
            let (first, second) = (run()?, run()?);
            let short = |report: &crate::world::Report| (report.digest, report.inputs, report.virtual_ms);
            if short(&first) != short(&second) {
                bail!("seed {seed} is not deterministic: {:?} and {:?}", short(&first), short(&second));
            }
        }
        say!("{} seeds, each twice: journals are equal byte for byte", self.seeds);
        Ok(())
    }
}

impl Minimise {
    /// Makes the seed smaller and prints what is left.
    ///
    /// # Errors
    /// The seed doesn't fail.
    pub fn run(&self) -> anyhow::Result<()> {
        let whole = World::schedule_of(self.seed);
        let Some(first) = failing(self.seed, &whole) else {
            bail!("seed {} breaks no promise: there is nothing to make smaller", self.seed);
        };
        say!("{} faults, {} acts: {}", whole.faults.len(), whole.acts, first.what);
        let (kept, acts) = smallest(self.seed, &whole, &kind(&first));
        let schedule = Schedule { acts, ..whole.only(&kept) };
        let Some(violation) = failing(self.seed, &schedule) else { bail!("the seed fails by chance alone") };
        for (number, planned) in kept.iter().zip(&schedule.faults) {
            say!("{:>9} {number}: {:?}", planned.at_ms, planned.fault);
        }
        let list: Vec<String> = kept.iter().map(ToString::to_string).collect();
        let options = format!(" --faults {:?} --acts {acts}", list.join(","));
        say!("{} faults, {acts} acts: {}", kept.len(), failure_line(&violation, &options));
        Ok(())
    }
}

/// What broke, without its numbers and names: smaller seeds must fail in the same way.
fn kind(violation: &Violation) -> String {
    let letters = |word: &&str| word.chars().all(|letter| letter.is_ascii_lowercase());
    violation.what.split([' ', ',', ':']).filter(letters).take(12).collect::<Vec<_>>().join(" ")
}

fn failing(seed: u64, schedule: &Schedule) -> Option<Violation> {
    let run = std::panic::AssertUnwindSafe(|| World::run_with(seed, false, schedule.clone()).err());
    std::panic::catch_unwind(run)
        .unwrap_or_else(|_| Some(Violation { seed, at_ms: 0, what: "panics".to_owned() }))
}

/// The numbers of the faults that are needed, and how many acts: delta debugging (Zeller and
/// Hildebrandt, TSE 2002), then halving.
fn smallest(seed: u64, whole: &Schedule, like: &str) -> (Vec<usize>, u32) {
    let mut acts = whole.acts;
    let mut kept: Vec<usize> = (0..whole.faults.len()).collect();
    let fails = |kept: &[usize], acts: u32| {
        let failure = failing(seed, &Schedule { acts, ..whole.only(kept) });
        failure.is_some_and(|violation| kind(&violation) == like)
    };
    let mut parts = 2;
    while !kept.is_empty() {
        let size = kept.len().div_ceil(parts);
        let without = |part: usize| -> Vec<usize> {
            let outside = |(at, _): &(usize, &usize)| at / size != part;
            kept.iter().enumerate().filter(outside).map(|(_, number)| *number).collect()
        };
        if let Some(fewer) = (0..kept.len().div_ceil(size)).map(without).find(|fewer| fails(fewer, acts)) {
            kept = fewer;
            parts = parts.saturating_sub(1).max(2);
        } else if size == 1 {
            break;
        } else {
            parts = (parts * 2).min(kept.len());
        }
        // Progress goes to the error stream: the result is what is printed last.
        tell!("{} faults left", kept.len());
    }
    for step in (0..8).map(|power| 128 >> power) {
        while acts >= step && fails(&kept, acts - step) {
            acts -= step;
        }
    }
    (kept, acts)
}
