//! Metrics of the process, under the names that all Prometheus libraries give them.

use prometheus::{Gauge, Opts, Registry};

use super::registered;

/// Registers the process's metrics with their present values. What can't be read is left out.
pub(super) fn register(registry: &Registry) {
    let gauge = |name: &str, help: &str, value: Option<u64>| {
        if let Some(value) = value {
            registered(registry, Gauge::with_opts(Opts::new(name, help))).set(value as f64);
        }
    };
    gauge("process_resident_memory_bytes", "Resident memory size in bytes.", resident_bytes());
    gauge("process_open_fds", "Number of open file descriptors.", open_files());
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    gauge("process_max_fds", "Maximum number of open file descriptors.", files);
}

/// Resident memory of the process, from `/proc/self/statm`, see proc(5).
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn open_files() -> Option<u64> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}
