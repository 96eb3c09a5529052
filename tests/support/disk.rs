//! A disk that fails to sync on command, for processes that are started with it.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the file whose presence makes syncs fail.
const FLAG: &str = "WEIR_TEST_FAILING_SYNC";

/// What makes a process's syncs fail, and the file whose presence does.
pub struct FailingSync {
    library: PathBuf,
    flag: PathBuf,
}

impl FailingSync {
    /// Compiles the library into `folder`, or says loudly that `test` can't be run here.
    pub fn prepare(test: &str, folder: &Path) -> Option<Self> {
        let (source, library) = (folder.join("failing_sync.c"), folder.join("failing_sync.so"));
        std::fs::write(&source, include_str!("failing_sync.c")).expect("a source file");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
        let why = match compiler.output() {
            Ok(output) if output.status.success() => {
                return Some(Self { library, flag: folder.join("sync-fails") });
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var_os("WEIR_REQUIRE_REAL").is_none(), "{test}: no C compiler: {why}");
        let line = format!("SKIPPED: {test}: no C compiler: {why}\n");
        // Past the test runner's capture: what was not tested must be seen.
        std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("standard error");
        None
    }

    /// What this process was started with.
    pub fn of_this_process() -> Self {
        let variable = |name| PathBuf::from(std::env::var_os(name).expect("a variable"));
        Self { library: variable("LD_PRELOAD"), flag: variable(FLAG) }
    }

    /// What a process must have in its environment.
    pub fn env(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", self.library.clone()), (FLAG, self.flag.clone())]
    }

    /// From now on no sync succeeds, or all do again.
    pub fn set(&self, fails: bool) {
        if fails {
            std::fs::write(&self.flag, "").expect("a flag");
        } else {
            std::fs::remove_file(&self.flag).expect("the flag");
        }
    }
}
