//! Bad input against a real broker: each is refused with an error that names the field, nothing panics,
//! and other clients and agents are not affected.

mod agent;
mod attack;
mod change;
mod cli;
mod event;
mod fake;
mod file;
mod filter;
mod fuzz;
mod job;
mod list;
mod output;
mod oversized;
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
mod wire;
