//! CPU use of an idle `weir dev`.

use std::time::Duration;

use super::row;
use super::support::{Home, until};

/// User and system time of a process, in hundredths of a second; 0 if the process has ended.
fn cpu_ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name in parentheses, user and system time are the twelfth and thirteenth fields.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum()
}

pub fn run() {
    let mut home = Home::new();
    let dev = home.start_broker("dev");
    until("all pools are ready", Duration::from_secs(30), || {
        home.run(&["get", "pools"]).1.matches("READY").count() == 6
    });
    let seconds = 20;
    let before = cpu_ticks(dev.0.id());
    std::thread::park_timeout(Duration::from_secs(seconds));
    let ticks = cpu_ticks(dev.0.id()) - before;
    row("idle `weir dev`, six pools, CPU", &format!("{:.2} % of a core", ticks as f64 / seconds as f64));
}
