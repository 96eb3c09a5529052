//! Deterministic simulation of Weir, and commands that play real traces.
//!
//! `world` runs the broker's and the agents' state machines in virtual time, injects faults and checks
//! invariants. `sweep` runs many seeds, `seeds` runs single ones, and `mutants` checks that a sweep detects
//! deliberate bugs. `traces` reads real traces: `load` plays one against a running broker, `replay` plays one
//! through the whole kernel in virtual time, and `pack` fills a cluster with the broker's packing engine
//! alone.

/// Prints a line to standard output. A closed pipe, as after `head`, ends the command with exit code 0.
macro_rules! print_line {
    ($($text:tt)*) => {
        if std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*)))
            .is_err()
        {
            std::process::exit(0);
        }
    };
}

/// Prints a line of progress to standard error. Errors are ignored: progress output is optional.
macro_rules! print_progress {
    ($($text:tt)*) => {
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($text)*))))
    };
}

#[cfg(feature = "load")]
pub mod load;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod pack;
pub mod replay;
mod report;
pub mod seeds;
pub mod sweep;
mod timeline;
mod traces;
pub mod world;
