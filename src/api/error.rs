//! The one map from what goes wrong to gRPC codes and `google.rpc` details.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use super::convert::Invalid;
use crate::model::text;
use crate::model::validate::Violation;
use crate::runtime::broker::CallError;
use crate::state::rejection::Rejection;

/// What the details' `domain` says.
const DOMAIN: &str = "weir";
/// When a client may try again.
const RETRY: Duration = Duration::from_millis(500);

/// Bytes of an error's message. It and the details travel as headers, of which clients take 16 KiB
/// in all: what is not ASCII grows threefold in the one, and everything by a third in the other.
const MESSAGE_BYTES_MAX: usize = 1_024;
/// Bytes of the field violations that an error details.
const VIOLATIONS_BYTES_MAX: usize = 6 * 1_024;

/// A message that can't be read.
pub fn invalid(violations: Invalid) -> Status {
    status(&Rejection::Invalid(violations))
}

/// A call that did not get through.
pub fn call(error: CallError) -> Status {
    match error {
        CallError::Rejected(rejection) => status(&rejection),
        CallError::Unavailable => {
            let details = ErrorDetails::with_retry_info(Some(RETRY));
            Status::with_error_details(Code::Unavailable, CallError::Unavailable.to_string(), details)
        }
    }
}

/// Codes that only the API says, with what each means and what helps, for the manual.
pub const MANUAL: [(&str, &str, &str); 2] = [
    ("Unreadable", "what was sent is no message of the method", "use the definitions in proto/weir/v1"),
    (
        "TooManyRequests",
        "the client sends faster, or has more under way, than its share",
        "wait as long as RetryInfo says, and some more by chance",
    ),
];

/// What was sent is no message.
pub(super) fn unreadable(message: &str) -> Status {
    let details = ErrorDetails::with_error_info(MANUAL[0].0, DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, header_text(message), details)
}

/// The client is above its share and may come again after `wait`.
pub(super) fn too_many(message: &str, wait: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(MANUAL[1].0, DOMAIN, HashMap::new());
    details.set_retry_info(Some(wait));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// The message also goes out as a header: what a name smuggled in must not.
fn header_text(message: &str) -> String {
    let mut message = text::escape(message);
    text::truncate(&mut message, MESSAGE_BYTES_MAX);
    message
}

/// Something that does not exist.
pub fn not_found(kind: &'static str, name: &str) -> Status {
    status(&Rejection::NotFound { kind, name: name.to_owned() })
}

/// As many violations as clients can receive; the first always fits.
fn within_header(violations: Vec<Violation>) -> Vec<FieldViolation> {
    let mut room = VIOLATIONS_BYTES_MAX;
    let fitting = violations.into_iter().take_while(|violation| {
        let bytes = violation.field.len() + violation.description.len() + 16;
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    });
    fitting.map(|violation| FieldViolation::new(violation.field, violation.description)).collect()
}

/// A rejection, with its stable code in `ErrorInfo` and fields in `BadRequest`.
pub fn status(rejection: &Rejection) -> Status {
    let code = match rejection {
        Rejection::Invalid(_) | Rejection::BadDependency { .. } => Code::InvalidArgument,
        Rejection::NotFound { .. } | Rejection::UnknownAttempt { .. } => Code::NotFound,
        Rejection::AlreadyExists { .. } | Rejection::PoolClaimed { .. } => Code::AlreadyExists,
        Rejection::Conflict { .. } | Rejection::TokenReused | Rejection::TokenExpired { .. } => Code::Aborted,
        Rejection::StaleEpoch { .. }
        | Rejection::StaleTerm(_)
        | Rejection::Outdated { .. }
        | Rejection::ReadOnly { .. } => Code::FailedPrecondition,
        Rejection::LimitReached { .. } => Code::ResourceExhausted,
    };
    let mut details = ErrorDetails::with_error_info(rejection.code(), DOMAIN, HashMap::new());
    let fields = within_header(rejection.violations());
    if !fields.is_empty() {
        details.set_bad_request(fields);
    }
    Status::with_error_details(code, header_text(&rejection.to_string()), details)
}
