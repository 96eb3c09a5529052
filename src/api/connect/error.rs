//! Errors in JSON: `{"code": "not_found", "message": "…", "details": […]}`.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use prost::Message;
use prost::bytes::Bytes;
use prost_reflect::DynamicMessage;
use serde::Serialize;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::pb;

use super::envelope::{END, envelope};
use super::{Form, JSON};
use crate::api::descriptor::definitions;

/// The code of a failed call, as an extension of its response: the response itself is not one of gRPC.
#[derive(Clone, Copy, Debug)]
pub(in crate::api) struct ErrorCode(pub(in crate::api) Code);

#[derive(Serialize)]
struct Error<'a> {
    code: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<Detail>,
}

/// A detail, encoded and readable.
#[derive(Serialize)]
struct Detail {
    /// Such as `google.rpc.BadRequest`.
    #[serde(rename = "type")]
    kind: String,
    /// The encoded message in base64, without padding.
    value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    debug: Option<DynamicMessage>,
}

/// What a stream ends with.
#[derive(Serialize)]
struct End<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error<'a>>,
}

fn error(status: &Status) -> Error<'_> {
    let details = pb::Status::decode(status.details()).unwrap_or_default().details;
    let details = details.into_iter().map(|any| {
        let kind = any.type_url.rsplit('/').next().unwrap_or_default().to_owned();
        let message = definitions().get_message_by_name(&kind);
        let debug = message.and_then(|message| DynamicMessage::decode(message, any.value.as_slice()).ok());
        Detail { kind, value: data_encoding::BASE64_NOPAD.encode(&any.value), debug }
    });
    Error { code: name(status.code()), message: status.message(), details: details.collect() }
}

/// A response that reports an error.
pub(super) fn response(form: Form, status: &Status) -> Response<Body> {
    let (content_type, http, body) = match form {
        // A stream's error comes with its end.
        Form::Envelopes(_) => {
            (form.content_type(), StatusCode::OK, envelope(END, &end_of_stream(Some(status))))
        }
        Form::Unary(_) | Form::Lines => (JSON, http_status(status.code()), to_json(&error(status)).into()),
    };
    let mut response = Response::new(Body::new(http_body_util::Full::new(body)));
    *response.status_mut() = http;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.extensions_mut().insert(ErrorCode(status.code()));
    response
}

/// The message at the end of a stream.
pub(super) fn end_of_stream(status: Option<&Status>) -> Bytes {
    to_json(&End { error: status.map(error) }).into()
}

/// These types have a form in JSON: they are texts, and messages that were decoded.
fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// A code's name, from <https://connectrpc.com/docs/protocol#error-codes>.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok | Code::Unknown => "unknown",
        Code::Cancelled => "canceled",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// A code's HTTP status, from the same table.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
