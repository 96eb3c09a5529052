//! Failures of commands: the message, the hint and the exit code.

use std::process::ExitCode;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::language;
use super::output::report;
use super::reference::reasons;
use crate::model::language::Language;
use crate::model::text;

/// Exit code: the arguments are invalid. clap uses 2, too.
pub const USAGE: u8 = 2;
/// Exit code: the object does not exist.
pub const NOT_FOUND: u8 = 3;
/// Exit code: the request conflicts with existing state.
pub const CONFLICT: u8 = 4;
/// Exit code: the operation is not permitted.
pub const DENIED: u8 = 5;
/// Exit code: the token is missing or invalid.
pub const UNAUTHENTICATED: u8 = 6;
/// Exit code: the broker is unreachable or unavailable.
pub const UNREACHABLE: u8 = 7;
/// Exit code: a value, a file or a request is invalid.
pub const INVALID: u8 = 8;
/// Exit code: a limit is exceeded.
pub const QUOTA: u8 = 9;
/// Exit code: no pool can ever run the job.
pub const NEVER_FITS: u8 = 11;
/// Exit code of `wait`: a job did not succeed.
pub const JOB_FAILED: u8 = 12;
/// Exit code of `wait`: a job that did not ask for simulation succeeded in a simulated pool, so its command did
/// not run.
pub const SIMULATED: u8 = 13;
/// Exit code: a timeout expired. The same as that of GNU `timeout`.
pub const TIMED_OUT: u8 = 124;
/// Exit code of `run` if the job was cancelled. The same as that of a command that Ctrl-C ends in a shell.
pub const CANCELLED: u8 = 130;
/// Exit code of `run` if Weir itself failed, since `run` otherwise returns the job's exit code. Docker uses
/// the same.
pub const RUN_FAILED: u8 = 125;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
    pub hint: Option<String>,
    /// The fields that the broker refused, each with its value and what is allowed. The message names them, too.
    pub fields: Vec<(String, String)>,
    /// The broker's stable code; empty if the failure is not the broker's.
    pub reason: String,
    /// The message is in the user's language.
    pub is_localized: bool,
}

impl Failure {
    /// Makes a failure without a hint.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
            fields: Vec::new(),
            reason: String::new(),
            is_localized: false,
        }
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the refused fields as `name` does, in place of the API's names.
    #[must_use]
    pub fn with_fields(mut self, name: impl Fn(&str) -> String) -> Self {
        if !self.fields.is_empty() {
            let line = |(field, description): &(String, String)| match name(field) {
                // The whole request.
                field if field.is_empty() => description.clone(),
                field => format!("{field}: {description}"),
            };
            self.message = self.fields.iter().map(line).collect::<Vec<_>>().join(SEPARATOR);
        }
        self
    }

    /// Prints the message and the hint to standard error and returns the exit code of the process. In other languages the
    /// meaning of the broker's code comes first, if the message itself exists in English only.
    pub fn print(&self) -> ExitCode {
        let is_translated = || self.message.lines().all(|line| language::translated(line) != line);
        let meaning = match language::current() {
            Language::English => None,
            _ if self.is_localized || is_translated() => None,
            other => reasons::find(&self.reason).map(|(_, entry)| entry.meaning.in_language(other)),
        };
        let meaning = meaning.map_or_else(String::new, |meaning| format!("{meaning}{SEPARATOR}"));
        report(&format!("error: {meaning}{}", escape_lines(&self.message)));
        if let Some(hint) = &self.hint {
            report(&format!("hint: {}", text::escape(hint)));
        }
        ExitCode::from(self.code)
    }
}

/// Between the lines of a message, of which the first is after `error: `.
pub const SEPARATOR: &str = "\n       ";

fn escape_lines(message: &str) -> String {
    message.lines().map(text::escape).collect::<Vec<_>>().join("\n")
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // Errors of the connection have a source, statuses sent by the broker have none. A connection that
        // breaks during a call has other codes than one that can't be opened.
        let broken =
            matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
        let unreachable = broken && std::error::Error::source(&status).is_some();
        let (code, hint) = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => (INVALID, None),
            Code::NotFound => (NOT_FOUND, None),
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => (CONFLICT, None),
            Code::PermissionDenied => (DENIED, None),
            Code::Unauthenticated => {
                (UNAUTHENTICATED, Some("set WEIR_TOKEN to the content of DATA/token of the broker"))
            }
            Code::ResourceExhausted => (QUOTA, None),
            Code::DeadlineExceeded => (TIMED_OUT, None),
            _ if unreachable => (
                UNREACHABLE,
                Some("check that the broker is running (`weir dev` starts one), or set --server"),
            ),
            Code::Unavailable => (UNREACHABLE, None),
            _ => (1, None),
        };
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        let (code, hint) = match reason == "NeverFits" {
            true => (
                NEVER_FITS,
                Some("correct the job, or add --allow-pending to wait for a pool that can run it"),
            ),
            false => (code, hint),
        };
        let fields = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
        let mut fields: Vec<_> = fields.into_iter().map(|field| (field.field, field.description)).collect();
        let mut message = status.message().to_owned();
        let localized = status
            .get_details_localized_message()
            .filter(|text| language::current() == Language::Chinese && text.locale.starts_with("zh"));
        let is_localized = localized.is_some();
        if let Some(text) = localized {
            match &mut fields[..] {
                [(_, description)] => *description = text.message,
                _ => message = text.message,
            }
        }
        if unreachable {
            message = format!("the broker can't be reached: {message}");
        }
        Self { code, message, hint: hint.map(str::to_owned), fields, reason, is_localized }
            .with_fields(str::to_owned)
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
        let failure = Self::new(1, crate::runtime::error::causes(&error));
        match error {
            crate::journal::Error::Damaged { .. } | crate::journal::Error::Record(_) => {
                failure.hint("`weir admin verify` lists all damage; docs/guide/back-up.md has what helps")
            }
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::{Failure, UNREACHABLE};

    #[test]
    fn connection_that_breaks_during_a_call_is_reported_as_unreachable_broker() {
        let broken = Status::from_error(Box::new(std::io::Error::other("the pipe broke")));
        assert_eq!(broken.code(), Code::Unknown);
        let failure = Failure::from(broken);
        assert_eq!(failure.code, UNREACHABLE);
        assert_eq!(failure.message, "the broker can't be reached: the pipe broke");
        assert!(failure.hint.is_some());
        // A status sent by the broker is passed on unchanged.
        let failure = Failure::from(Status::unknown("internal error"));
        assert_eq!((failure.code, failure.message.as_str(), failure.hint), (1, "internal error", None));
    }
}
