//! Bad input against a real broker: each gets a clear error that names the field, nothing panics,
//! and whoever is honest notices nothing of it.

mod agent;
mod attack;
mod cli;
mod fake;
mod file;
mod fuzz;
mod job;
mod list;
mod output;
mod pool;
mod queue;
#[path = "../support/fuzz.rs"]
mod random;
mod raw;
mod reconnect;
mod share;
mod shortage;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod text;
mod transport;
mod vast;
mod wire;
