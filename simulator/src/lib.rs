//! Weir's own machines in virtual time, with faults, and checkers that watch them.
//!
//! `world` is the simulation; `sweep` runs many seeds, `seeds` looks at single ones. Of real traces, which
//! `traces` reads, `load` plays one against a running broker, `replay` through the whole kernel in virtual
//! time, and `pack` fills a cluster with one, by the broker's engine alone.

/// Prints a line. Whoever reads may stop at any time, as `head` does: that ends the command, and is no
/// fault.
macro_rules! say {
    ($($text:tt)*) => {
        if std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*)))
            .is_err()
        {
            std::process::exit(0);
        }
    };
}

/// Tells on standard error what goes on. Nobody has to read it.
macro_rules! tell {
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
