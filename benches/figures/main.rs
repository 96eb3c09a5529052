//! Measures the figures of `docs/internals/performance.md` on real processes and prints them as a Markdown table.
//!
//! `cargo bench --bench figures` runs all parts, `cargo bench --bench figures -- scale` one of them:
//! `service`, `placement`, `large`, `scale`, `idle`. Each part but `idle` first measures the commit latency
//! of the disk: figures of different runs are comparable only if this latency is similar.

#[path = "../../tests/support/mod.rs"]
mod support;

mod idle;
mod placement;
mod scale;
mod service;

use std::process::Command;
use std::time::Instant;

use support::Home;

/// Prints one row of the table.
fn row(what: &str, measured: &str) {
    println!("| {what} | {measured} |");
}

/// Measures the commit latency of the disk with the home directory.
fn disk(home: &Home) {
    let (code, out, error) = home.run(&["bench", "disk", home.path().to_str().unwrap_or("/tmp")]);
    assert!(code == 0, "{error}");
    row("the disk's own commit (4 KiB, fdatasync)", out.trim());
}

/// The quantile of a sorted list, in thousandths: 500 is the median. 0 for an empty list.
fn quantile(sorted: &[u64], thousandths: usize) -> u64 {
    sorted.get(sorted.len().saturating_sub(1) * thousandths / 1_000).copied().unwrap_or(0)
}

/// Prints the median and 90th percentile of a command's duration, process start included.
fn command(what: &str, times: usize, run: impl Fn() -> (i32, String, String)) {
    let mut micros: Vec<u64> = (0..times)
        .map(|_| {
            let started = Instant::now();
            let (code, _, error) = run();
            assert!(code == 0, "{what}: {error}");
            started.elapsed().as_micros() as u64
        })
        .collect();
    micros.sort_unstable();
    let ms = |thousandths| quantile(&micros, thousandths) as f64 / 1_000.0;
    row(what, &format!("p50 {:.1} ms, p90 {:.1} ms", ms(500), ms(900)));
}

/// A field of `/proc/PID/status`, in KiB.
fn status_kib(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let kernel = Command::new("uname").arg("-sr").output().map(|output| output.stdout).unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!("{cpus} cores, {} GiB, {}, load {load}", kib >> 20, String::from_utf8_lossy(&kernel).trim())
}

fn main() {
    // Cargo adds `--bench`; the other arguments name parts.
    let selected: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let parts: [(&str, fn()); 5] = [
        ("service", service::run),
        ("placement", placement::small),
        ("large", placement::large),
        ("scale", scale::run),
        ("idle", idle::run),
    ];
    println!("On {}.\n\n| what | measured |\n|---|---|", machine());
    for (name, run) in parts {
        if selected.is_empty() || selected.iter().any(|part| part == name) {
            run();
        }
    }
}
