//! The Connect protocol's form of every method that takes one request: in JSON for `curl` and for web pages, and in
//! Protobuf's binary form, which is what most clients of Connect send unless they are configured otherwise.
//!
//! Requests become those of gRPC on their way in, and responses those of Connect on their way out, so that the services
//! and all limits exist once. The JSON is that of Protobuf: <https://protobuf.dev/programming-guides/json/>. Protocol:
//! <https://connectrpc.com/docs/protocol>. Beyond it, `application/json` is allowed for methods that stream, too: then the
//! response is a line of JSON per message, which `curl` users can read.

mod envelope;
mod error;
mod request;
mod response;

use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use prost_reflect::MethodDescriptor;
use tokio::time::{Duration, Instant};
use tonic::Status;
use tonic::body::Body;

pub(super) use error::ErrorCode;

use super::body_limit::LimitBodies;
use super::connection::ConnectionInfo;
use super::descriptor::methods;
use super::middleware::{Inner, Middleware, ResponseFuture};
use super::response_limit::LimitResponses;
use crate::model::text::escape;

/// The content types of a unary request and its response.
const JSON: &str = "application/json";
const PROTO: &str = "application/proto";
/// The content types of a stream in Connect's envelopes.
const JSON_STREAM: &str = "application/connect+json";
const PROTO_STREAM: &str = "application/connect+proto";
/// The content type of a response that is a line per message.
const LINES: &str = "application/x-ndjson";

/// How a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    Json,
    /// As in gRPC.
    Proto,
}

/// How the request and the response of a call are written. Errors are JSON in each form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// One message each.
    Unary(Codec),
    /// One message, then a line of JSON for each message.
    Lines,
    /// Each message in an envelope.
    Envelopes(Codec),
}

impl Form {
    fn codec(self) -> Codec {
        match self {
            Self::Unary(codec) | Self::Envelopes(codec) => codec,
            Self::Lines => Codec::Json,
        }
    }

    /// The content type of a response that is no error.
    fn content_type(self) -> &'static str {
        match self {
            Self::Unary(Codec::Json) => JSON,
            Self::Unary(Codec::Proto) => PROTO,
            Self::Lines => LINES,
            Self::Envelopes(Codec::Json) => JSON_STREAM,
            Self::Envelopes(Codec::Proto) => PROTO_STREAM,
        }
    }
}

/// Serves requests of Connect; all others go on.
#[derive(Clone, Debug)]
pub(super) struct Connect {
    /// The limits on what clients make the broker hold, shared with those of gRPC.
    pub(super) bodies: LimitBodies,
    pub(super) responses: LimitResponses,
}

/// Returns whether a request is one of gRPC, or of gRPC-Web. All others get their answers in JSON.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    content_type(request).is_some_and(|kind| kind.starts_with("application/grpc"))
}

/// Without its parameters.
fn content_type<B>(request: &Request<B>) -> Option<&str> {
    let value = request.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim())
}

/// The response that reports an error to a client that does not speak gRPC.
pub(super) fn refusal<B>(request: &Request<B>, status: &Status) -> Response<Body> {
    let form = match content_type(request) {
        Some(JSON_STREAM) => Form::Envelopes(Codec::Json),
        Some(PROTO_STREAM) => Form::Envelopes(Codec::Proto),
        _ => Form::Unary(Codec::Json),
    };
    error::response(form, status)
}

impl Middleware for Connect {
    fn handle<S: Inner>(&self, inner: &mut S, request: Request<Body>) -> ResponseFuture<S::Error> {
        if is_grpc(&request) {
            return Box::pin(inner.call(request));
        }
        let recognised =
            recognise(&request).and_then(|(form, method)| Ok((form, method, deadline(&request)?)));
        let (form, method, deadline) = match recognised {
            Ok(recognised) => recognised,
            Err(response) => return Box::pin(async move { Ok(*response) }),
        };
        let identity = request.extensions().get::<ConnectionInfo>().map(ConnectionInfo::identity);
        let identity = identity.unwrap_or_default();
        let charge = self.bodies.charge(identity.clone());
        let request = to_grpc(request, |body| request::body(body, method.input(), form, charge));
        let (response, responses) = (inner.call(request), self.responses.clone());
        let answer = async move {
            let response = response.await?;
            Ok(match form {
                Form::Unary(codec) => {
                    response::unary(response, method.output(), codec, &responses, identity).await
                }
                Form::Lines | Form::Envelopes(_) => {
                    response::stream(response, method.output(), form, deadline)
                }
            })
        };
        Box::pin(async move {
            let Some(deadline) = deadline else { return answer.await };
            let in_time = tokio::time::timeout_at(deadline, answer).await;
            in_time.unwrap_or_else(|_| Ok(error::response(form, &response::too_late())))
        })
    }
}

/// Finds out what a request calls, and in which form; or refuses it.
fn recognise(request: &Request<Body>) -> Result<(Form, MethodDescriptor), Box<Response<Body>>> {
    let refused = |http: Option<StatusCode>, message: &str| {
        let mut response = refusal(request, &Status::unimplemented(message));
        *response.status_mut() = http.unwrap_or(response.status());
        Box::new(response)
    };
    let path = request.uri().path();
    let Some(method) = methods().get(path).cloned() else {
        let message = format!("{} is not a method: use /weir.v1.SERVICE/METHOD", escape(path));
        return Err(refused(Some(StatusCode::NOT_FOUND), &message));
    };
    if request.method() != Method::POST {
        return Err(refused(Some(StatusCode::METHOD_NOT_ALLOWED), "use POST"));
    }
    if method.is_client_streaming() {
        return Err(refused(None, "agents use gRPC: this method has no other form"));
    }
    let encoding = request.headers().get("connect-content-encoding");
    let encoding = encoding.or(request.headers().get(CONTENT_ENCODING));
    if encoding.is_some_and(|encoding| encoding.as_bytes() != b"identity") {
        return Err(refused(None, "compressed requests are not supported: send `identity`"));
    }
    match (content_type(request), method.is_server_streaming()) {
        (Some(JSON), true) => Ok((Form::Lines, method)),
        (Some(JSON), false) => Ok((Form::Unary(Codec::Json), method)),
        (Some(PROTO), false) => Ok((Form::Unary(Codec::Proto), method)),
        (Some(JSON_STREAM), true) => Ok((Form::Envelopes(Codec::Json), method)),
        (Some(PROTO_STREAM), true) => Ok((Form::Envelopes(Codec::Proto), method)),
        (Some(JSON_STREAM), false) => Err(refused(None, &format!("the method does not stream: use {JSON}"))),
        (Some(PROTO_STREAM), false) => {
            Err(refused(None, &format!("the method does not stream: use {PROTO}")))
        }
        (Some(PROTO), true) => Err(refused(None, &format!("the method streams: use {PROTO_STREAM}"))),
        (kind, _) => {
            let kind = escape(kind.unwrap_or_default());
            let message = format!("content-type {kind:?} is not supported: use {JSON}");
            Err(refused(Some(StatusCode::UNSUPPORTED_MEDIA_TYPE), &message))
        }
    }
}

/// The longest time that a client may give a call: ten digits of milliseconds, by the protocol.
const TIMEOUT_DIGITS_MAX: usize = 10;

/// By when the client wants its answer.
fn deadline(request: &Request<Body>) -> Result<Option<Instant>, Box<Response<Body>>> {
    let Some(header) = request.headers().get("connect-timeout-ms") else { return Ok(None) };
    let text = header.to_str().ok().filter(|text| text.len() <= TIMEOUT_DIGITS_MAX);
    let milliseconds = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match milliseconds.and_then(|text| text.parse().ok()) {
        Some(milliseconds) => Ok(Some(Instant::now() + Duration::from_millis(milliseconds))),
        None => {
            let given = escape(&String::from_utf8_lossy(header.as_bytes()));
            let message = format!("connect-timeout-ms: {given:?} is not a number of at most 10 digits");
            Err(Box::new(refusal(request, &super::error::unreadable(&message))))
        }
    }
}

/// The request as one of gRPC.
fn to_grpc(request: Request<Body>, body: impl FnOnce(Body) -> Body) -> Request<Body> {
    let mut request = request.map(body);
    // What is behind takes gRPC in HTTP/2 only, whatever the connection's version.
    *request.version_mut() = http::Version::HTTP_2;
    let headers = request.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_ENCODING);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    request
}
