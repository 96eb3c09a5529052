//! The simulator's commands.

use clap::{Parser, Subcommand};

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
    /// Plays a real trace against a running broker.
    Load(simulator::load::Load),
}

fn main() -> std::process::ExitCode {
    let outcome = match Cli::parse().command {
        Command::Sweep(sweep) => sweep.run(),
        Command::Load(load) => load.run(),
    };
    if let Err(error) = outcome {
        eprintln!("{error:#}");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}
