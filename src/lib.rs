//! Weir: a compute broker.
//!
//! The kernel (`model`, `state`, `scheduler`, `broker`, `agent`) is pure: it reads no clock and
//! does no I/O. Everything else is an adapter around it, behind the feature `io`.

pub mod model;
pub mod state;

pub mod agent;
pub mod broker;
#[cfg(feature = "io")]
pub mod journal;
pub mod scheduler;
#[cfg(feature = "io")]
pub mod api;
