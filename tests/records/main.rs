//! The journal's records: old ones stay readable, newer ones are refused by name, and no bytes do harm.

mod fuzz;
mod generate;
mod golden;
mod memory;

#[path = "../support/fuzz.rs"]
mod seeds;
