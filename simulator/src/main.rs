//! The simulator's commands.

use clap::{Parser, Subcommand};

/// A sweep is many short lives of small objects; a quarter of its time went to the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "simulator",
    version,
    about = "Weir's kernel in virtual time, and real traces against a running broker"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs seeds of the deterministic simulation, each with faults and then without.
    Sweep(simulator::sweep::Sweep),
    /// Plays a seed of the simulation again, or a real trace through the whole kernel.
    Replay(simulator::replay::Replay),
    /// Runs each seed twice: the journals must be equal byte for byte.
    Meta(simulator::seeds::Meta),
    /// Makes a failing seed's faults as few as they can be.
    Minimise(simulator::seeds::Minimise),
    /// Shows that a sweep finds deliberate faults.
    #[cfg(feature = "mutants")]
    Mutants(simulator::mutants::Mutants),
    /// Fills a cluster with a trace's tasks and tells how much was allocated.
    Pack(simulator::pack::Pack),
    /// Compares policies: a table, and a report with curves.
    Compare(simulator::pack::Compare),
    /// Plays a real trace against a running broker.
    #[cfg(feature = "load")]
    Load(simulator::load::Load),
}

fn main() -> std::process::ExitCode {
    let outcome = match Cli::parse().command {
        Command::Sweep(sweep) => sweep.run(),
        Command::Replay(replay) => replay.run(),
        Command::Meta(meta) => meta.run(),
        Command::Minimise(minimise) => minimise.run(),
        #[cfg(feature = "mutants")]
        Command::Mutants(mutants) => mutants.run(),
        Command::Pack(pack) => pack.run(),
        Command::Compare(compare) => compare.run(),
        #[cfg(feature = "load")]
        Command::Load(load) => load.run(),
    };
    if let Err(error) = outcome {
        eprintln!("{error:#}");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    #[test]
    fn arguments_are_well_formed() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
