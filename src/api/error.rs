//! The only mapping of errors to gRPC codes and `google.rpc` details.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use super::convert::Invalid;
use crate::model::id::Revision;
use crate::model::language::{Entry, Language, Text};
use crate::model::text;
use crate::model::validate::Violation;
use crate::runtime::error::CallError;
use crate::state::rejection::Rejection;

/// The `domain` of `google.rpc.ErrorInfo`.
const DOMAIN: &str = "weir";
/// Retry delay while the broker is unavailable.
const UNAVAILABLE_RETRY: Duration = Duration::from_millis(500);

/// Bytes of an error's message. Message and details travel as headers, of which clients accept 16 KiB in
/// all. Percent encoding triples non-ASCII text in the message; base64 adds a third to the details.
const MESSAGE_BYTES_MAX: usize = 1_024;
/// Bytes of the field violations in an error's details.
const VIOLATIONS_BYTES_MAX: usize = 6 * 1_024;

/// `INVALID_ARGUMENT` with the fields that are not valid.
pub fn invalid(violations: Invalid) -> Status {
    status(&Rejection::Invalid(violations))
}

/// The status of a failed call to the broker. `UNAVAILABLE` carries a retry delay.
pub fn call(error: CallError) -> Status {
    match &error {
        CallError::Rejected(rejection) => status(rejection),
        CallError::Unavailable | CallError::ReadOnly(_) => {
            let details = ErrorDetails::with_retry_info(Some(UNAVAILABLE_RETRY));
            Status::with_error_details(Code::Unavailable, header_text(&error.to_string()), details)
        }
        CallError::Damaged(_) => Status::new(Code::DataLoss, header_text(&error.to_string())),
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        call(error)
    }
}

/// Codes that only the API reports, each with its meaning and remedy, for `docs/reference/reasons.md`.
pub const MANUAL: [Entry; 6] = [
    Entry::new(
        "Unreadable",
        Text::new("the request body could not be decoded", "无法解码请求体"),
        Text::new(
            "encode requests with the definitions in proto/weir/v1",
            "按照 proto/weir/v1 的定义编码请求",
        ),
    ),
    Entry::new(
        "TooManyRequests",
        Text::new(
            "the client exceeds its request rate or its share of concurrent requests",
            "客户端超出了请求速率或并发请求的份额",
        ),
        Text::new(
            "repeat after the delay in RetryInfo plus a random part of it",
            "等待 RetryInfo 中的时间再加一段随机时间后重试",
        ),
    ),
    Entry::new(
        "NothingToRerun",
        Text::new(
            "the job has not ended, or all of its units succeeded",
            "作业尚未结束，或其所有单元都已成功",
        ),
        Text::new(
            "wait until it has ended; submit it again to run all of it",
            "等它结束；要全部重跑请重新提交",
        ),
    ),
    Entry::new(
        "JobEnded",
        Text::new(
            "the job has ended, or is about to, and can't be changed",
            "作业已结束或即将结束，不能再修改",
        ),
        Text::new("`weir rerun` runs what did not succeed once more", "`weir rerun` 重新运行没有成功的任务"),
    ),
    Entry::new(
        "Internal",
        Text::new("the broker made an error of its own", "调度服务自身出错"),
        Text::new("report it with the broker's log", "请附上调度服务的日志进行报告"),
    ),
    Entry::new(
        "Compacted",
        Text::new("the events after the cursor are no longer retained", "游标之后的事件已不再保留"),
        Text::new(
            "list what is there, and go on after the `floor` of the error; `weir server --event-retention` retains events longer",
            "先列出现有对象，再从错误中的 `floor` 继续；用 `weir server --event-retention` 延长保留时间",
        ),
    ),
];

/// `INVALID_ARGUMENT` for a request body that can't be decoded.
pub(super) fn unreadable(message: &str) -> Status {
    let details = ErrorDetails::with_error_info(MANUAL[0].code, DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, header_text(message), details)
}

/// `FAILED_PRECONDITION` for a job of which nothing can be run once more.
pub(super) fn nothing_to_rerun(message: &str) -> Status {
    let details = ErrorDetails::with_error_info(MANUAL[2].code, DOMAIN, HashMap::new());
    Status::with_error_details(Code::FailedPrecondition, header_text(message), details)
}

/// `FAILED_PRECONDITION` for a job that can't be changed any more.
pub(super) fn has_ended(message: &str) -> Status {
    let details = ErrorDetails::with_error_info(MANUAL[3].code, DOMAIN, HashMap::new());
    Status::with_error_details(Code::FailedPrecondition, header_text(message), details)
}

/// `OUT_OF_RANGE` for a cursor whose next events are no longer retained: `floor` is the oldest that can be used.
pub(super) fn compacted(after: Revision, floor: Revision) -> Status {
    let metadata = HashMap::from([("floor".to_owned(), floor.to_string())]);
    let details = ErrorDetails::with_error_info(MANUAL[5].code, DOMAIN, metadata);
    let message = format!("events after revision {after} are no longer retained, only those after {floor}");
    Status::with_error_details(Code::OutOfRange, message, details)
}

/// `INTERNAL` for an error of this program. The details distinguish it from the transport's errors of this code.
pub(super) fn internal(message: &str) -> Status {
    let details = ErrorDetails::with_error_info(MANUAL[4].code, DOMAIN, HashMap::new());
    Status::with_error_details(Code::Internal, header_text(message), details)
}

/// `RESOURCE_EXHAUSTED` for a client above its share, which may repeat the request after `wait`.
pub(super) fn too_many(message: &str, wait: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(MANUAL[1].code, DOMAIN, HashMap::new());
    details.set_retry_info(Some(wait));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// Escapes and cuts a message for its header. It may quote names with control characters.
fn header_text(message: &str) -> String {
    let mut message = text::escape(message);
    text::truncate(&mut message, MESSAGE_BYTES_MAX);
    message
}

/// `NOT_FOUND` for the object of this kind and name.
pub fn not_found(kind: &'static str, name: &str) -> Status {
    status(&Rejection::NotFound { kind, name: name.to_owned() })
}

/// The violations that fit into the headers that clients accept. The first always fits.
fn within_header(violations: Vec<Violation>) -> Vec<FieldViolation> {
    let mut free = VIOLATIONS_BYTES_MAX;
    let fitting = violations.into_iter().take_while(|violation| {
        let bytes = violation.field.len() + violation.description.len() + 16;
        let fits = bytes <= free;
        free = free.saturating_sub(bytes);
        fits
    });
    fitting.map(|violation| FieldViolation::new(violation.field, violation.description)).collect()
}

/// The status of a rejection, with its stable code in `ErrorInfo` and its fields in `BadRequest`.
pub fn status(rejection: &Rejection) -> Status {
    let code = match rejection {
        Rejection::Invalid(_) | Rejection::BadDependency { .. } => Code::InvalidArgument,
        Rejection::NotFound { .. } | Rejection::JobElsewhere { .. } | Rejection::UnknownAttempt { .. } => {
            Code::NotFound
        }
        Rejection::AlreadyExists { .. } | Rejection::PoolClaimed { .. } | Rejection::PoolServed { .. } => {
            Code::AlreadyExists
        }
        Rejection::InUse { .. } => Code::FailedPrecondition,
        Rejection::Conflict { .. } | Rejection::TokenReused | Rejection::TokenExpired { .. } => Code::Aborted,
        Rejection::NeverFits { .. }
        | Rejection::StaleEpoch { .. }
        | Rejection::StaleTerm(_)
        | Rejection::Outdated { .. }
        | Rejection::ReadOnly { .. } => Code::FailedPrecondition,
        Rejection::LimitReached { .. } => Code::ResourceExhausted,
    };
    let mut details = ErrorDetails::with_error_info(rejection.code(), DOMAIN, HashMap::new());
    // The message itself is English. What is wrong with a field's value exists in English only, but for what the broker's
    // state forbids: then the text is that of the one field.
    if !matches!(rejection, Rejection::Invalid(_)) {
        let of_field = rejection.field_text(Language::Chinese);
        let text = if of_field.is_empty() { rejection.text(Language::Chinese) } else { of_field };
        details.set_localized_message("zh-CN", header_text(&text));
    }
    let fields = within_header(rejection.violations());
    if !fields.is_empty() {
        details.set_bad_request(fields);
    }
    Status::with_error_details(code, header_text(&rejection.to_string()), details)
}
