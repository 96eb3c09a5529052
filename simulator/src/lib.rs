//! Weir's own machines in virtual time, with faults, and checkers that watch them.
//!
//! `world` is the simulation; `sweep` runs many seeds, `seeds` looks at single ones; `load` plays
//! real traces against a running broker.

#[cfg(feature = "load")]
pub mod load;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod seeds;
pub mod sweep;
pub mod world;
