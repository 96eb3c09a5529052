//! Weir: a compute broker.
//!
//! The kernel (`model`, `state`, `scheduler`, `broker`, `agent`) is pure: it reads no clock and
//! does no I/O. Everything else is an adapter around it, behind the feature `io`.

pub mod model;
pub mod state;

pub mod agent;
#[cfg(feature = "io")]
pub mod api;
pub mod broker;
#[cfg(feature = "io")]
pub mod cli;
#[cfg(feature = "io")]
pub mod clock;
#[cfg(feature = "io")]
pub mod config;
#[cfg(feature = "io")]
pub mod files;
#[cfg(feature = "io")]
pub mod journal;
#[cfg(feature = "io")]
pub mod lock;
#[cfg(feature = "io")]
pub mod pools;
#[cfg(feature = "io")]
pub mod runtime;
pub mod scheduler;
#[cfg(feature = "io")]
pub mod telemetry;
