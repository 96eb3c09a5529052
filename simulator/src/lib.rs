//! Weir's own machines in virtual time, with faults, and checkers that watch them.
//!
//! `world` is the simulation; `sweep` runs many seeds; `load` plays real traces against a running
//! broker.

pub mod load;
pub mod sweep;
pub mod world;
