//! The simulator finds deliberate faults in the kernel: every one of them.

use std::path::Path;
use std::process::Command;

/// Seeds within which each must be found: several times what the slowest took when it was added.
const SEEDS: &str = "10000";

#[test]
fn sweep_finds_every_deliberate_fault() {
    // The faults are compiled in with a feature that nothing else is built with, so this is a build
    // of its own: of the pure kernel, in a folder of its own.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(workspace)
        .args(["run", "--quiet", "--profile", "sim", "-p", "simulator"])
        .args(["--no-default-features", "--features", "mutants", "--target-dir", "target/mutants"])
        .args(["--", "mutants", "--seeds", SEEDS]);
    let output = cargo.output().expect("cargo runs");
    let (table, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{table}\n{errors}");
    assert!(table.lines().count() > 12, "{table}");
}
