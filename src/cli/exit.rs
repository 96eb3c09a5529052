//! Failures: what is printed, and the exit code.

use std::process::ExitCode;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::output::tell;
use crate::model::text;

/// Exit codes, as the manual lists them.
pub const USAGE: u8 = 2;
pub const NOT_FOUND: u8 = 3;
pub const CONFLICT: u8 = 4;
pub const DENIED: u8 = 5;
pub const UNAUTHENTICATED: u8 = 6;
pub const UNREACHABLE: u8 = 7;
pub const INVALID: u8 = 8;
pub const QUOTA: u8 = 9;
pub const NEVER_FITS: u8 = 11;
pub const JOB_FAILED: u8 = 12;
pub const TIMED_OUT: u8 = 124;
/// Any failure of Weir's own in `run`, which passes the job's codes through.
pub const RUN_FAILED: u8 = 125;

/// What ends a command.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds what could be done.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the file that the broker's complaint is about.
    #[must_use]
    pub fn of_file(mut self, path: &str) -> Self {
        if self.code == INVALID {
            let path = if path == "-" { "standard input" } else { path };
            self.message = format!("{path}: {}", self.message);
        }
        self
    }

    /// Prints it and gives the process's exit code.
    pub fn print(&self) -> ExitCode {
        tell(&format!("error: {}", escape_lines(&self.message)));
        if let Some(hint) = &self.hint {
            tell(&format!("hint: {}", text::escape(hint)));
        }
        ExitCode::from(self.code)
    }
}

fn escape_lines(message: &str) -> String {
    message.lines().map(text::escape).collect::<Vec<_>>().join("\n")
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // The connection's own errors have a cause; what the broker itself says has none. One that
        // breaks under a call has other codes than one that can't be made.
        let broken =
            matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
        let away = broken && std::error::Error::source(&status).is_some();
        let (code, hint) = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => (INVALID, None),
            Code::NotFound => (NOT_FOUND, None),
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => (CONFLICT, None),
            Code::PermissionDenied => (DENIED, None),
            Code::Unauthenticated => {
                (UNAUTHENTICATED, Some("set WEIR_TOKEN to what the broker's DATA/token holds"))
            }
            Code::ResourceExhausted => (QUOTA, None),
            Code::DeadlineExceeded => (TIMED_OUT, None),
            _ if away => {
                (UNREACHABLE, Some("is the broker up? `weir dev` starts one; name another with --server"))
            }
            Code::Unavailable => (UNREACHABLE, None),
            _ => (1, None),
        };
        let fields = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
        let mut message = if fields.is_empty() { status.message().to_owned() } else { String::new() };
        for (index, field) in fields.iter().enumerate() {
            let separator = if index > 0 { "\n       " } else { "" };
            message.push_str(&format!("{separator}{}: {}", field.field, field.description));
        }
        if away {
            message = format!("the broker can't be reached: {message}");
        }
        Self { code, message, hint: hint.map(str::to_owned) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(1, format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(1, error.to_string())
    }
}

impl From<crate::config::FileError> for Failure {
    fn from(error: crate::config::FileError) -> Self {
        Self::new(INVALID, error.to_string())
    }
}

impl From<crate::journal::Error> for Failure {
    fn from(error: crate::journal::Error) -> Self {
        Self::new(1, crate::runtime::broker::causes(&error))
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::{Failure, UNREACHABLE};

    #[test]
    fn connection_that_breaks_under_a_call_is_told_as_one_that_can_t_be_made() {
        let broken = Status::from_error(Box::new(std::io::Error::other("the pipe broke")));
        assert_eq!(broken.code(), Code::Unknown);
        let failure = Failure::from(broken);
        assert_eq!(failure.code, UNREACHABLE);
        assert_eq!(failure.message, "the broker can't be reached: the pipe broke");
        assert!(failure.hint.is_some());
        // What the broker itself answers is its answer.
        let failure = Failure::from(Status::unknown("who knows"));
        assert_eq!((failure.code, failure.message.as_str(), failure.hint), (1, "who knows", None));
    }
}
