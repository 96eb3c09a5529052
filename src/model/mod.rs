//! Vocabulary: identities, quantities, specs, reports and limits, with checked arithmetic.
//!
//! Layer 0: imports nothing of Weir. No I/O, no clocks, no floats, no wire or disk formats.

pub mod amount;
pub mod attempt;
pub mod backoff;
pub mod change;
pub mod demand;
pub mod device;
pub mod exchange;
pub mod high_water;
pub mod id;
pub mod interval;
pub mod language;
pub mod limit;
pub mod link;
pub mod memory;
pub mod mutant;
pub mod plan;
pub mod pool;
pub mod price;
pub mod queue;
pub mod reason;
pub mod region;
pub mod reservation;
pub mod resource;
pub mod shape;
pub mod spec;
pub mod suggest;
pub mod text;
pub mod time;
pub mod validate;
