//! Commands on single seeds: run one seed, run seeds twice and compare, minimise a failing seed.

use anyhow::bail;

use crate::sweep::failure_line;
use crate::world::{Schedule, Violation, World};

/// Restricts a seed to some of its faults and client actions.
#[derive(clap::Args)]
pub(crate) struct SeedOptions {
    /// With SEED: inject only the faults with these comma-separated numbers, as --trace lists them; an empty
    /// list injects none. Default: all faults.
    #[arg(long, value_name = "LIST", requires = "seed")]
    faults: Option<String>,
    /// With SEED: number of client actions during the fault phase. Default: 140.
    #[arg(long, value_name = "COUNT", requires = "seed")]
    acts: Option<u32>,
}

/// Runs each seed twice and compares the journals, which must be byte-identical.
#[derive(clap::Args)]
#[command(after_help = "Example:
  simulator meta --seeds 500")]
pub struct Meta {
    /// Number of seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// First seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
}

/// Removes faults and client actions from a failing seed while it still fails in the same way.
#[derive(clap::Args)]
#[command(after_help = "Example:
  simulator minimise 4711")]
pub struct Minimise {
    /// Seed that violates an invariant.
    seed: u64,
}

/// Runs a seed and prints a summary. `trace` also prints each input and the effects of each state machine.
///
/// # Errors
/// - The invariant that was violated, with the command that repeats the run.
/// - A fault number that the seed doesn't have.
pub(crate) fn replay(seed: u64, trace: bool, options: &SeedOptions) -> anyhow::Result<()> {
    let mut schedule = World::schedule_of(seed);
    let all = schedule.faults.len();
    if let Some(list) = &options.faults {
        schedule = schedule.only(&numbers(list, all)?);
    }
    schedule.acts = options.acts.unwrap_or(schedule.acts);
    for (number, planned) in schedule.faults.iter().enumerate().filter(|_| trace) {
        print_line!("{:>9} planned {number}: {:?}", planned.at_ms, planned.fault);
    }
    let report = World::run_with(seed, trace, schedule).map_err(|violation| {
        let faults = options.faults.as_ref().map_or_else(String::new, |list| format!(" --faults {list:?}"));
        let acts = options.acts.map_or_else(String::new, |acts| format!(" --acts {acts}"));
        anyhow::anyhow!(failure_line(&violation, &format!("{faults}{acts}")))
    })?;
    print_line!(
        "seed {}: no violation, {} inputs, {} jobs, {} broker and {} agent crashes, {} virtual s, journal digest {:016x}",
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

/// Parses comma-separated fault numbers, each below `all`, and sorts them.
fn numbers(list: &str, all: usize) -> anyhow::Result<Vec<usize>> {
    let mut numbers = Vec::new();
    for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        match text.parse() {
            Ok(number) if number < all => numbers.push(number),
            _ => bail!("--faults: {text:?} is not a number below {all}, the number of faults of the seed"),
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Meta {
    /// Runs the seeds, on one core.
    ///
    /// # Errors
    /// The first seed whose two runs differ, or that violated an invariant.
    pub fn run(&self) -> anyhow::Result<()> {
        for seed in self.from..self.from + self.seeds {
            let run =
                || World::run(seed, false).map_err(|violation| anyhow::anyhow!(failure_line(&violation, "")));
            let (first, second) = (run()?, run()?);
            let summary = |report: &crate::world::Report| (report.digest, report.inputs, report.virtual_ms);
            if summary(&first) != summary(&second) {
                bail!("seed {seed} is not deterministic: {:?} and {:?}", summary(&first), summary(&second));
            }
        }
        print_line!("{} seeds, each run twice: the journals are byte-identical", self.seeds);
        Ok(())
    }
}

impl Minimise {
    /// Minimises the seed and prints the remaining faults and the command that runs them.
    ///
    /// # Errors
    /// The seed doesn't fail, or not in each run.
    pub fn run(&self) -> anyhow::Result<()> {
        let whole = World::schedule_of(self.seed);
        let Some(first) = failing(self.seed, &whole) else {
            bail!("seed {} violates no invariant: there is nothing to minimise", self.seed);
        };
        print_line!("{} faults, {} acts: {}", whole.faults.len(), whole.acts, first.what);
        let (needed, acts) = smallest(self.seed, &whole, &kind(&first));
        let schedule = Schedule { acts, ..whole.only(&needed) };
        let Some(violation) = failing(self.seed, &schedule) else {
            bail!("seed {} is not deterministic: it failed once and then passed", self.seed)
        };
        for (number, planned) in needed.iter().zip(&schedule.faults) {
            print_line!("{:>9} {number}: {:?}", planned.at_ms, planned.fault);
        }
        let list: Vec<String> = needed.iter().map(ToString::to_string).collect();
        let options = format!(" --faults {:?} --acts {acts}", list.join(","));
        print_line!("{} faults, {acts} acts: {}", needed.len(), failure_line(&violation, &options));
        Ok(())
    }
}

/// The violation without numbers and names: a minimised seed must fail in the same way.
fn kind(violation: &Violation) -> String {
    let letters = |word: &&str| word.chars().all(|letter| letter.is_ascii_lowercase());
    violation.what.split([' ', ',', ':']).filter(letters).take(12).collect::<Vec<_>>().join(" ")
}

fn failing(seed: u64, schedule: &Schedule) -> Option<Violation> {
    let run = std::panic::AssertUnwindSafe(|| World::run_with(seed, false, schedule.clone()).err());
    std::panic::catch_unwind(run)
        .unwrap_or_else(|_| Some(Violation { seed, at_ms: 0, what: "panics".to_owned() }))
}

/// The numbers of the faults that are needed to fail like `like`, and the number of client actions.
///
/// Delta debugging for the faults (Zeller and Hildebrandt, TSE 2002), then halving steps for the actions.
fn smallest(seed: u64, whole: &Schedule, like: &str) -> (Vec<usize>, u32) {
    let mut acts = whole.acts;
    let mut needed: Vec<usize> = (0..whole.faults.len()).collect();
    let fails = |needed: &[usize], acts: u32| {
        let failure = failing(seed, &Schedule { acts, ..whole.only(needed) });
        failure.is_some_and(|violation| kind(&violation) == like)
    };
    let mut parts = 2;
    while !needed.is_empty() {
        let size = needed.len().div_ceil(parts);
        let without = |part: usize| -> Vec<usize> {
            let outside = |(at, _): &(usize, &usize)| at / size != part;
            needed.iter().enumerate().filter(outside).map(|(_, number)| *number).collect()
        };
        if let Some(fewer) = (0..needed.len().div_ceil(size)).map(without).find(|fewer| fails(fewer, acts)) {
            needed = fewer;
            parts = parts.saturating_sub(1).max(2);
        } else if size == 1 {
            break;
        } else {
            parts = (parts * 2).min(needed.len());
        }
        // Progress goes to standard error: standard output has the result only.
        print_progress!("{} faults left", needed.len());
    }
    for step in (0..8).map(|power| 128 >> power) {
        while acts >= step && fails(&needed, acts - step) {
            acts -= step;
        }
    }
    (needed, acts)
}
