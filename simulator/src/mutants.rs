//! Mutation testing: enables one deliberate bug of the kernel at a time. A sweep must detect each.

use std::io::Write;

use anyhow::ensure;
use weir::model::mutant::Mutant;

use crate::sweep::sweep;

/// Enables one mutant after another and sweeps seeds until an invariant is violated.
#[derive(clap::Args)]
#[command(after_help = "Example:
  simulator mutants --seeds 5000
  simulator mutants --only ForgetTokens")]
pub struct Mutants {
    /// Number of seeds after which a mutant counts as not detected.
    #[arg(long, default_value_t = 5_000)]
    seeds: u64,
    /// Run only the mutant of this name, for example ForgetTokens. Default: all mutants.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

impl Mutants {
    /// Prints a table: each mutant, the number of seeds until detection, and the violation.
    ///
    /// # Errors
    /// Names the mutants that no seed detected.
    pub fn run(&self) -> anyhow::Result<()> {
        // A panic counts as a detection here: suppress the message of each.
        std::panic::set_hook(Box::new(|_| {}));
        if let Some(only) = &self.only {
            let known = Mutant::ALL.map(|(mutant, _)| format!("{mutant:?}"));
            ensure!(known.contains(only), "--only {only:?}: the mutants are {}", known.join(", "));
        }
        let mut undetected = Vec::new();
        print_line!("| mutant | seeds | violation |\n|---|---|---|");
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
                    let text: String = violation.what.chars().take(90).collect();
                    print_line!("| `{name}`: {meaning} | {} | {text} |", violation.seed + 1);
                }
                None => {
                    print_line!("| `{name}`: {meaning} | not within {} | |", self.seeds);
                    undetected.push(name);
                }
            }
            std::io::stdout().flush()?;
        }
        ensure!(undetected.is_empty(), "not detected: {}", undetected.join(", "));
        Ok(())
    }
}
