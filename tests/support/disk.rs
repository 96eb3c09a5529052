//! Disks that fail on command: small file systems, and failures injected into a process by a preloaded
//! library.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names the file whose presence makes syncs fail.
const FAILING_SYNC: &str = "WEIR_TEST_FAILING_SYNC";
/// Names the file whose presence makes syncs take long.
const SLOW_SYNC: &str = "WEIR_TEST_SLOW_SYNC";
/// Names the file whose presence makes a disk read-only, and a folder on that disk.
const READ_ONLY: &str = "WEIR_TEST_READ_ONLY";
const DISK: &str = "WEIR_TEST_DISK";

/// Reports on standard error that `test` can't run here. With `WEIR_REQUIRE_REAL` set, panics instead.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("WEIR_REQUIRE_REAL").is_none(), "{test}: {why}");
    report_skipped(test, why);
}

/// Reports on standard error that `test` can't run here.
pub fn report_skipped(test: &str, why: &str) {
    let line = format!("SKIPPED: {test}: {why}\n");
    // This bypasses the test runner's capture: a test that did not run must be visible.
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("standard error");
}

/// A library that makes a process's syncs and writes fail, and the files that switch the failures on.
pub struct FaultyDisk {
    library: PathBuf,
    failing_sync: PathBuf,
    slow_sync: PathBuf,
    read_only: PathBuf,
    disk: PathBuf,
}

impl FaultyDisk {
    /// Compiles the library into `folder`; without a C compiler, reports that `test` is skipped.
    pub fn prepare(test: &str, folder: &Path) -> Option<Self> {
        let (source, library) = (folder.join("faulty_disk.c"), folder.join("faulty_disk.so"));
        std::fs::write(&source, include_str!("faulty_disk.c")).expect("a source file");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
        let why = match compiler.output() {
            Ok(output) if output.status.success() => {
                return Some(Self {
                    library,
                    failing_sync: folder.join("sync-fails"),
                    slow_sync: folder.join("sync-is-slow"),
                    read_only: folder.join("disk-is-read-only"),
                    disk: folder.join("data"),
                });
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        skip(test, &format!("no C compiler: {why}"));
        None
    }

    /// The library with which this process was started.
    pub fn of_this_process() -> Self {
        let variable = |name| PathBuf::from(std::env::var_os(name).expect("a variable"));
        Self {
            library: variable("LD_PRELOAD"),
            failing_sync: variable(FAILING_SYNC),
            slow_sync: variable(SLOW_SYNC),
            read_only: variable(READ_ONLY),
            disk: variable(DISK),
        }
    }

    /// The environment variables of a process that uses the library.
    pub fn env(&self) -> [(&'static str, PathBuf); 5] {
        [
            ("LD_PRELOAD", self.library.clone()),
            (FAILING_SYNC, self.failing_sync.clone()),
            (SLOW_SYNC, self.slow_sync.clone()),
            (READ_ONLY, self.read_only.clone()),
            (DISK, self.disk.clone()),
        ]
    }

    /// Makes every sync fail from now on, or succeed again.
    pub fn fail_syncs(&self, fails: bool) {
        flag(&self.failing_sync, fails);
    }

    /// Makes every sync take a fifth of a second from now on, or its normal time again.
    pub fn slow_syncs(&self, slow: bool) {
        flag(&self.slow_sync, slow);
    }

    /// Makes every write to the file system of `folder/data` fail from now on, or succeed again.
    pub fn make_read_only(&self, is: bool) {
        flag(&self.read_only, is);
    }
}

fn flag(path: &Path, is: bool) {
    if is {
        std::fs::write(path, "").expect("a flag");
    } else {
        std::fs::remove_file(path).expect("the flag");
    }
}

/// A small file system, mounted on a folder until the value is dropped.
pub struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// Mounts a file system of `size`; if that is impossible, reports that `test` is skipped.
    pub fn mount(test: &str, path: &Path, size: &str) -> Option<Self> {
        let mounted = Self { path: path.to_owned() };
        match mounted.mount_with(&format!("size={size}")) {
            Ok(()) => Some(mounted),
            Err(why) => {
                skip(test, &format!("can't mount a tmpfs: {why}"));
                None
            }
        }
    }

    /// The folder on which it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts it again with other options.
    ///
    /// # Errors
    /// The error of `mount`: while a file is open for writing, the file system can't become read-only.
    pub fn remount(&self, options: &str) -> Result<(), String> {
        self.mount_with(&format!("remount,{options}"))
    }

    fn mount_with(&self, options: &str) -> Result<(), String> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "weir-test"]).arg(&self.path);
        let output = mount.output().map_err(|error| error.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // If nothing was mounted, this fails, which is harmless.
        drop(Command::new("umount").arg("-l").arg(&self.path).stderr(Stdio::null()).status());
    }
}

/// A file system that never answers, like one on a network whose server is gone: a process that looks at a path below it waits
/// until the value is dropped.
pub struct DeadDisk {
    path: PathBuf,
    /// The kernel sends requests here, which are never read.
    device: Option<std::fs::File>,
}

impl DeadDisk {
    /// Mounts it on a folder; if that is impossible, reports that `test` is skipped. A machine whose kernel offers no FUSE
    /// lacks no program that could be installed: there the test is skipped with `WEIR_REQUIRE_REAL`, too.
    pub fn mount(test: &str, path: &Path) -> Option<Self> {
        let mounted = || -> std::io::Result<Self> {
            let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
            rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty())?;
            let number = std::os::fd::AsRawFd::as_raw_fd(&device);
            let options = format!("fd={number},rootmode=40000,user_id=0,group_id=0");
            let mut mount = Command::new("mount");
            mount.args(["-i", "-t", "fuse", "-o", &options, "weir-test"]).arg(path);
            let output = mount.output()?;
            rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::CLOEXEC)?;
            let disk = Self { path: path.to_owned(), device: Some(device) };
            if output.status.success() {
                return Ok(disk);
            }
            Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
        };
        match mounted() {
            Ok(disk) => Some(disk),
            Err(error) => {
                report_skipped(test, &format!("can't mount a FUSE file system: {error}"));
                None
            }
        }
    }
}

impl Drop for DeadDisk {
    fn drop(&mut self) {
        // Ends what waits for an answer.
        self.device.take();
        drop(Command::new("umount").arg("-l").arg(&self.path).stderr(Stdio::null()).status());
    }
}
