//! Responses of gRPC become those of Connect.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use prost::bytes::{Buf, BufMut, Bytes, BytesMut};
use prost_reflect::{DynamicMessage, MessageDescriptor};
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::{Code, Status};

use super::envelope::{END, PREFIX_BYTES, envelope};
use super::{Codec, Form, error};
use crate::api::admission::Identity;
use crate::api::response_limit::LimitResponses;

/// The response of a method that does not stream. It counts until the client has read it.
pub(super) async fn unary(
    response: Response<Body>,
    kind: MessageDescriptor,
    codec: Codec,
    responses: &LimitResponses,
    identity: Identity,
) -> Response<Body> {
    let form = Form::Unary(codec);
    let message = unary_message(response, kind, codec).await;
    match message.and_then(|message| responses.hold(message, None, identity)) {
        Ok(body) => with_type(form.content_type(), body),
        Err(status) => error::response(form, &status),
    }
}

async fn unary_message(
    response: Response<Body>,
    kind: MessageDescriptor,
    codec: Codec,
) -> Result<Bytes, Status> {
    failure(response.headers())?;
    let collected = response.into_body().collect().await?;
    failure(collected.trailers().unwrap_or(&HeaderMap::new()))?;
    let mut bytes = collected.to_bytes();
    if bytes.len() < PREFIX_BYTES {
        return Err(crate::api::error::internal("the response has no message"));
    }
    bytes.advance(PREFIX_BYTES);
    encoded(kind, bytes, codec)
}

/// The error of a call that takes longer than its client allows.
pub(super) fn too_late() -> Status {
    Status::deadline_exceeded("the call takes longer than connect-timeout-ms allows")
}

/// The response of a method that streams, which ends at the deadline.
pub(super) fn stream(
    response: Response<Body>,
    kind: MessageDescriptor,
    form: Form,
    deadline: Option<Instant>,
) -> Response<Body> {
    if let Err(status) = failure(response.headers()) {
        return error::response(form, &status);
    }
    let grpc = Some(response.into_body());
    let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
    let stream = MessageStream { grpc, received: BytesMut::new(), kind, form, deadline };
    with_type(form.content_type(), Body::new(stream))
}

fn with_type(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The error in headers or trailers, if there is one.
fn failure(headers: &HeaderMap) -> Result<(), Status> {
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok).map_or(Ok(()), Err)
}

/// A message of gRPC as the client reads it.
fn encoded(kind: MessageDescriptor, bytes: Bytes, codec: Codec) -> Result<Bytes, Status> {
    match codec {
        Codec::Proto => Ok(bytes),
        Codec::Json => json(kind, bytes),
    }
}

/// A message as JSON.
fn json(kind: MessageDescriptor, bytes: Bytes) -> Result<Bytes, Status> {
    let failed =
        |error: String| crate::api::error::internal(&format!("a message has no form in JSON: {error}"));
    let message = DynamicMessage::decode(kind, bytes).map_err(|error| failed(error.to_string()))?;
    serde_json::to_vec(&message).map(Bytes::from).map_err(|error| failed(error.to_string()))
}

/// The messages of a stream.
struct MessageStream {
    /// `None` after its end.
    grpc: Option<Body>,
    received: BytesMut,
    kind: MessageDescriptor,
    form: Form,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl MessageStream {
    /// The next message that has been received whole.
    fn message(&mut self) -> Option<Bytes> {
        let length = self.received.get(1..PREFIX_BYTES)?.try_into().map(u32::from_be_bytes).ok()? as usize;
        if self.received.len() < PREFIX_BYTES + length {
            return None;
        }
        self.received.advance(PREFIX_BYTES);
        Some(self.received.split_to(length).freeze())
    }

    /// What reports to the client how the stream ended.
    fn end(&mut self, outcome: Result<(), Status>) -> Option<Bytes> {
        self.grpc = None;
        match (self.form, outcome) {
            (Form::Envelopes(_), outcome) => {
                Some(envelope(END, &error::end_of_stream(outcome.err().as_ref())))
            }
            (_, Ok(())) => None,
            (_, Err(status)) => Some(line(&error::end_of_stream(Some(&status)))),
        }
    }
}

fn line(json: &[u8]) -> Bytes {
    [json, b"\n"].concat().into()
}

impl http_body::Body for MessageStream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(message) = self.message() {
                let sent = encoded(self.kind.clone(), message, self.form.codec());
                let is_line = self.form == Form::Lines;
                let sent = sent.map(|content| if is_line { line(&content) } else { envelope(0, &content) });
                let sent = sent.map_or_else(|status| self.end(Err(status)), Some);
                return Poll::Ready(sent.map(|bytes| Ok(Frame::data(bytes))));
            }
            if self.grpc.is_none() {
                return Poll::Ready(None);
            }
            let deadline = self.deadline.as_mut().map(|deadline| deadline.as_mut().poll(context));
            if deadline.is_some_and(|deadline| deadline.is_ready()) {
                return Poll::Ready(self.end(Err(too_late())).map(|bytes| Ok(Frame::data(bytes))));
            }
            let Some(grpc) = &mut self.grpc else { return Poll::Ready(None) };
            let outcome = match ready!(Pin::new(grpc).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.received.put(data);
                        continue;
                    }
                    Err(frame) => failure(frame.trailers_ref().unwrap_or(&HeaderMap::new())),
                },
                Some(Err(status)) => Err(status),
                None => Err(Status::unavailable("the stream was cut off")),
            };
            return Poll::Ready(self.end(outcome).map(|bytes| Ok(Frame::data(bytes))));
        }
    }
}
