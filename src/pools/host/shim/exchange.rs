//! What a supervisor and a shim exchange: a file in memory that the shim gets as its standard input. It holds the
//! environment of the task's program and, behind it, what the shim reports.
//!
//! The program's environment is not the shim's: `LD_PRELOAD` would run in the shim, outside the control group. And the
//! program can't reach the file, or it could blame the machine for its own exit.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::process::{ExitCode, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::stdio::dup2_stdin;
use serde::{Deserialize, Serialize};

use super::{EXIT_NOT_FOUND, Failure};

/// What a shim reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::pools::host) enum Report {
    /// The program was not started.
    Failed(Failure),
    /// The program runs.
    Started,
    /// The program ended.
    Ended { code: Option<i32>, signal: Option<i32> },
}

impl Report {
    /// The exit code of a shim with this report: as a shell's.
    fn exit_code(&self) -> i32 {
        match self {
            Self::Failed(failure) => failure.exit_code,
            Self::Started => EXIT_NOT_FOUND,
            Self::Ended { code, signal } => code.unwrap_or(128 + signal.unwrap_or_default()),
        }
    }
}

/// Bytes of a report that are read.
const REPORT_BYTES_MAX: usize = 16_384;

/// The file in memory.
pub(in crate::pools::host) struct Exchange {
    file: File,
    environment_len: u64,
}

impl Exchange {
    /// Makes the file for a program with these variables.
    ///
    /// # Errors
    /// If the system is short of files or memory.
    pub(in crate::pools::host) fn new<'a>(
        variables: impl Iterator<Item = (&'a OsStr, &'a OsStr)>,
    ) -> io::Result<Self> {
        let mut file = File::from(memfd_create("weir-task", MemfdFlags::CLOEXEC)?);
        let mut environment = Vec::new();
        for (name, value) in variables {
            for part in [name.as_bytes(), b"=", value.as_bytes(), b"\0"] {
                environment.extend_from_slice(part);
            }
        }
        file.write_all(&environment)?;
        Ok(Self { file, environment_len: environment.len() as u64 })
    }

    /// The shim's side of the file.
    pub(super) fn at(file: OwnedFd, environment_len: usize) -> Self {
        Self { file: file.into(), environment_len: environment_len as u64 }
    }

    /// The file, for the shim's standard input.
    ///
    /// # Errors
    /// If the system is short of files.
    pub(in crate::pools::host) fn stdin(&self) -> io::Result<Stdio> {
        Ok(Stdio::from(self.file.try_clone()?))
    }

    /// Writes the last report for the supervisor, and returns the shim's exit code. If this fails, only that has it.
    pub(super) fn end(&self, report: &Report) -> ExitCode {
        let text = serde_json::to_vec(report).unwrap_or_default();
        let _ = self.file.write_all_at(&text, self.environment_len);
        ExitCode::from(report.exit_code() as u8)
    }

    /// What the shim reported; `None` if it wrote nothing.
    pub(in crate::pools::host) fn read(&self) -> Option<Report> {
        let mut bytes = vec![0; REPORT_BYTES_MAX];
        let len = self.file.read_at(&mut bytes, self.environment_len).ok()?;
        serde_json::from_slice(bytes.get(..len)?).ok()
    }
}

/// Takes the exchange from standard input, which is empty then, and reads the environment. The program doesn't inherit
/// the file.
pub(super) fn take_stdin() -> io::Result<(OwnedFd, Vec<u8>)> {
    let exchange = File::from(fcntl_dupfd_cloexec(io::stdin(), 3)?);
    dup2_stdin(File::open("/dev/null")?)?;
    let mut environment = vec![0; exchange.metadata()?.len() as usize];
    exchange.read_exact_at(&mut environment, 0)?;
    Ok((exchange.into(), environment))
}

/// The variables of an environment.
pub(super) fn variables(environment: &[u8]) -> impl Iterator<Item = (&OsStr, &OsStr)> {
    environment.split(|byte| *byte == 0).filter_map(|variable| {
        // A name may begin with an equals sign, as in the standard library.
        let at = 1 + variable.get(1..)?.iter().position(|byte| *byte == b'=')?;
        Some((OsStr::from_bytes(&variable[..at]), OsStr::from_bytes(&variable[at + 1..])))
    })
}
