//! The event loops around the pure state machines of broker and agent: they execute effects, route logs,
//! notify watchers, and shut down in order.

pub mod agent;
mod archive;
pub mod broker;
pub mod error;
pub mod handle;
pub mod logs;
mod pool_log;
mod read_only;
pub mod watch;
