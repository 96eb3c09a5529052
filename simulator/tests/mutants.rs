//! Mutation test: a sweep of the simulator detects every deliberate bug of the kernel.

use std::path::Path;
use std::process::Command;

/// Seeds within which each mutant must be detected: several times what the slowest took when it was added.
const SEEDS: &str = "10000";

#[test]
fn sweep_detects_every_mutant() {
    // Mutants need a feature that no other build has. This test therefore builds the pure kernel once more,
    // in its own target folder.
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
