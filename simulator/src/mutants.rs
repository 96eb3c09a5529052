//! Deliberate faults in the kernel, one at a time: a sweep must find each.

use std::io::Write;

use anyhow::ensure;
use weir::model::mutant::Mutant;

use crate::sweep::sweep;

/// Switches on one deliberate fault after the other and sweeps until it is found.
#[derive(clap::Args)]
#[command(after_help = "Example:
  simulator mutants --seeds 5000")]
pub struct Mutants {
    /// Give up on a fault after so many seeds.
    #[arg(long, default_value_t = 5_000)]
    seeds: u64,
    /// Only this one.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

impl Mutants {
    /// Prints a table of what was found, and in how many seeds.
    ///
    /// # Errors
    /// The faults that were not found; or that something is found without any.
    pub fn run(&self) -> anyhow::Result<()> {
        // Panics are findings here, and not to be told about one by one.
        std::panic::set_hook(Box::new(|_| {}));
        let mut missed = Vec::new();
        say!("| fault | seeds | found as |\n|---|---|---|");
        for (mutant, meaning) in Mutant::ALL {
            let name = format!("{mutant:?}");
            if self.only.as_ref().is_some_and(|only| *only != name) {
                continue;
            }
            Mutant::switch(Some(mutant));
            let found = sweep(0, self.seeds, || true).err();
            Mutant::switch(None);
            match found {
                Some(violation) => {
                    let what: String = violation.what.chars().take(90).collect();
                    say!("| `{name}`: {meaning} | {} | {what} |", violation.seed + 1);
                }
                None => {
                    say!("| `{name}`: {meaning} | not in {} | |", self.seeds);
                    missed.push(name);
                }
            }
            std::io::stdout().flush()?;
        }
        ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
        Ok(())
    }
}
