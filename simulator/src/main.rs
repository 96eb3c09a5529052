//! Command line of the simulator.

use clap::{Parser, Subcommand};

/// A sweep allocates many small, short-lived objects: the system's allocator took a quarter of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "simulator",
    version,
    about = "Runs Weir's kernel in virtual time with injected faults, and plays real traces"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs many seeds of the deterministic simulation, each first with faults and then without.
    Sweep(simulator::sweep::Sweep),
    /// Runs one seed of the simulation, or plays a real trace through the whole kernel.
    Replay(simulator::replay::Replay),
    /// Runs each seed twice and compares the journals, which must be byte-identical.
    Meta(simulator::seeds::Meta),
    /// Reduces a failing seed to the fewest faults and client actions that still fail.
    Minimise(simulator::seeds::Minimise),
    /// Checks that a sweep detects every mutant, a deliberate bug in the kernel.
    #[cfg(feature = "mutants")]
    Mutants(simulator::mutants::Mutants),
    /// Fills a cluster with a trace's tasks and prints the share of GPUs that was allocated.
    Pack(simulator::pack::Pack),
    /// Compares placement policies: prints tables and writes an HTML report with charts.
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
