//! Rates and latencies of a running `weir dev`, measured with commands as a user runs them.

use std::time::{Duration, Instant};

use super::support::{Home, until};
use super::{command, disk, row};

pub fn run() {
    let mut home = Home::new();
    let _dev = home.start_broker("dev");
    until("all pools are ready", Duration::from_secs(30), || {
        home.run(&["get", "pools"]).1.matches("READY").count() == 6
    });
    disk(&home);
    // The short commands first, while the broker has few jobs.
    command("`weir run -- true`, whole command, 101 times", 101, || home.run(&["run", "--", "true"]));
    let file = home.path().join("ten-thousand.yaml");
    let text = "groups:\n- count: 10000\n  cpus: 900\n  memory: 1Mi\n  command: ['true']\n";
    std::fs::write(&file, text).expect("a job file");
    let file = file.display().to_string();
    command("one job of 10,000 tasks, whole command, 21 times", 21, || home.run(&["submit", &file]));
    bench(
        &home,
        "zero-length simulated tasks, 64 in flight",
        &["finish", "--jobs", "50000", "--pool", "qh-cpu"],
    );
    slots(&home);
    bench(&home, "durable submits", &["submits", "--clients", "8"]);
    bench(&home, "durable submits", &["submits", "--clients", "64"]);
    bench(&home, "durable submits", &["submits", "--clients", "4", "--batch", "100"]);
}

fn bench(home: &Home, what: &str, arguments: &[&str]) {
    let (code, out, error) = home.run(&[&["bench"], arguments].concat());
    assert!(code == 0, "{arguments:?}: {error}");
    row(&format!("{what}: `weir bench {}`", arguments.join(" ")), out.trim());
}

/// One job of 10,000 tasks `true`, each with a whole core of the host pool.
fn slots(home: &Home) {
    let file = home.path().join("true.yaml");
    let text = "name: slots\nconstraints: {pools: [local]}\ngroups:\n- count: 10000\n  cpus: 1\n  memory: 1Mi\n  command: ['true']\n";
    std::fs::write(&file, text).expect("a job file");
    let started = Instant::now();
    let (code, _, error) = home.run(&["submit", &file.display().to_string()]);
    assert!(code == 0, "{error}");
    let (code, _, error) = home.run(&["wait", "job/slots"]);
    assert!(code == 0, "{error}");
    let rate = 10_000.0 / started.elapsed().as_secs_f64();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    row(&format!("10,000 `true` on the host pool, {cores} slots"), &format!("{rate:.0}/s"));
}
