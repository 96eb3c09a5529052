//! The thin shells around the machines: loops that execute effects, hubs for watchers
//! and logs, and orderly shutdown.

pub mod agent;
pub mod broker;
pub mod logs;
pub mod watch;
