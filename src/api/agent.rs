//! AgentService, and the agent's side of it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::client::Client;
use super::proto::v1;
use super::{convert, error, intake};
use crate::broker::{Answer, Query};
use crate::model::exchange::{FrameCheck, FrameCounter, FromAgent, Hello, RefusedCode, ToAgent};
use crate::model::id::AttemptId;
use crate::pools::{ReadLogs, Stream as PoolStream};
use crate::runtime::agent::{Connection, Dial};
use crate::runtime::broker::Handle;
use crate::runtime::logs::{Asked, Part, Stream as LogStream};
use crate::state::rejection::Rejection;

/// The service.
pub struct Agents {
    pub broker: Handle,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
/// Messages between a machine and its connection.
const MESSAGES_MAX: usize = 4_096;
/// Pieces of output that one agent is asked for at once.
const ASKS_MAX: usize = 1_024;

#[tonic::async_trait]
impl v1::agent_service_server::AgentService for Agents {
    type SyncStream = Streamed<v1::SyncResponse>;

    async fn sync(
        &self,
        request: Request<Streaming<v1::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let mut incoming = request.into_inner();
        let (session, mut outgoing) = self.broker.open_session().await;
        let (sender, receiver) = mpsc::channel(64);
        let broker = self.broker.clone();
        tokio::spawn(async move {
            let (mut inbox, mut number) = (FrameCounter::default(), 0);
            loop {
                tokio::select! {
                    frame = incoming.next() => {
                        let frame = match frame {
                            Some(Ok(frame)) => frame,
                            // A message that is too long, or is none: say so, if anyone listens.
                            Some(Err(status)) => {
                                let status = intake::readable(&status).unwrap_or(status);
                                let _ = sender.send(Err(status)).await;
                                break;
                            }
                            None => break,
                        };
                        match read_frame(&mut inbox, frame) {
                            Ok(Some(message)) => broker.from_agent(session, message).await,
                            Ok(None) => {}
                            Err(refused) => {
                                let _ = sender.send(Ok(convert::sync_response(number + 1, &refused))).await;
                                break;
                            }
                        }
                    }
                    message = outgoing.recv() => {
                        let Some(message) = message else { break };
                        number += 1;
                        if sender.send(Ok(convert::sync_response(number, &message))).await.is_err() {
                            break;
                        }
                    }
                }
            }
            broker.agent_gone(session).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type ServeLogsStream = Streamed<v1::ServeLogsResponse>;

    async fn serve_logs(
        &self,
        request: Request<Streaming<v1::ServeLogsRequest>>,
    ) -> Result<Response<Self::ServeLogsStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await;
        let first = first.map_err(|status| intake::readable(&status).unwrap_or(status))?;
        let first = first.and_then(|message| message.body);
        let Some(v1::serve_logs_request::Body::Hello(hello)) = first else {
            return Err(error::invalid(convert::invalid("hello", "the first message must be a hello")));
        };
        let hello = convert::hello(&hello).map_err(error::invalid)?;
        let query = Query::Pool(hello.pool.name.clone());
        let (_, answer) = self.broker.query(query).await.map_err(error::call)?;
        let Answer::Pool(Some(pool)) = answer else {
            return Err(error::not_found("pool", &hello.pool.name));
        };
        if !pool.pool.is_bound_to(&hello) {
            return Err(error::status(&Rejection::PoolClaimed { pool: hello.pool.name }));
        }
        let mut asks = self.broker.logs().serve(&hello.pool.name);
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let (mut waiting, mut next) = (HashMap::<u64, oneshot::Sender<Part>>::new(), 0);
            loop {
                tokio::select! {
                    message = incoming.next() => {
                        let Some(Ok(message)) = message else { break };
                        let Some(v1::serve_logs_request::Body::Part(part)) = message.body else { break };
                        if let Some(answer) = waiting.remove(&part.request) {
                            let (offset, end) = (part.offset, part.end);
                            let _ = answer.send(Part { offset, data: part.data, end, complete: part.complete, error: part.error });
                        }
                    }
                    ask = asks.recv() => {
                        let Some((ask, answer)): Option<Asked> = ask else { break };
                        // Readers that have gone away left their asks; an agent that answers none
                        // keeps only its own readers waiting.
                        if waiting.len() >= ASKS_MAX {
                            waiting.retain(|_, answer| !answer.is_closed());
                        }
                        if waiting.len() >= ASKS_MAX {
                            continue;
                        }
                        next += 1;
                        waiting.insert(next, answer);
                        let message = v1::ServeLogsResponse {
                            request: next,
                            attempt: ask.attempt.to_string(),
                            task: ask.task,
                            stream: match ask.stream {
                                LogStream::Stdout => v1::LogStream::Stdout as i32,
                                LogStream::Stderr => v1::LogStream::Stderr as i32,
                            },
                            offset: ask.offset,
                            bytes_max: ask.bytes_max,
                        };
                        if sender.send(Ok(message)).await.is_err() {
                            break;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A frame's message, unless it is a repetition; or why the session must end.
fn read_frame(inbox: &mut FrameCounter, frame: v1::SyncRequest) -> Result<Option<FromAgent>, ToAgent> {
    let refused = |message: String| ToAgent::Refused { code: RefusedCode::ProtocolError, message };
    if frame.number == 0 {
        return Err(refused("number: 0, but a session's frames count from 1".to_owned()));
    }
    match inbox.check(frame.number) {
        FrameCheck::Repeated => return Ok(None),
        FrameCheck::Gap => return Err(refused(format!("number: {} skips a frame", frame.number))),
        FrameCheck::InOrder => {}
    }
    let Some(body) = frame.body else {
        return Err(refused("body: name hello, inventory, observed or heartbeat".to_owned()));
    };
    convert::from_agent(body).map(Some).map_err(|violations| {
        let text: Vec<String> = violations.iter().map(ToString::to_string).collect();
        refused(text.join("; "))
    })
}

/// Dials a broker for an agent.
pub struct Dialer {
    pub client: Client,
    pub hello: Hello,
    pub logs: Arc<dyn ReadLogs>,
}

impl Dial for Dialer {
    async fn dial(&self) -> Result<Connection, String> {
        let (to_broker, mut outgoing) = mpsc::channel::<FromAgent>(MESSAGES_MAX);
        let (incoming, from_broker) = mpsc::channel(MESSAGES_MAX);
        let (frames, to_send) = mpsc::channel(64);
        let mut client = self.client.agents();
        let response = client.sync(ReceiverStream::new(to_send));
        // The response comes with the first message, so sending must begin before it does.
        tokio::spawn(async move {
            let mut number = 0;
            while let Some(message) = outgoing.recv().await {
                number += 1;
                if frames.send(convert::sync_request(number, &message)).await.is_err() {
                    return;
                }
            }
        });
        let mut responses = response.await.map_err(|status| status.message().to_owned())?.into_inner();
        tokio::spawn(async move {
            let mut inbox = FrameCounter::default();
            while let Ok(Some(frame)) = responses.message().await {
                match inbox.check(frame.number) {
                    FrameCheck::Repeated => continue,
                    FrameCheck::Gap => return,
                    FrameCheck::InOrder => {}
                }
                let Some(Ok(message)) = frame.body.map(convert::to_agent) else { return };
                if incoming.send(message).await.is_err() {
                    return;
                }
            }
        });
        let (client, hello, logs) = (self.client.clone(), self.hello.clone(), self.logs.clone());
        tokio::spawn(async move {
            // Logs are a service beside the session: without them it goes on.
            if let Err(status) = serve_logs(client, hello, logs).await {
                tracing::debug!(error = status.message(), "logs are not served");
            }
        });
        Ok(Connection { to_broker, from_broker })
    }
}

/// Answers the broker's asks for output until the connection ends.
async fn serve_logs(client: Client, hello: Hello, logs: Arc<dyn ReadLogs>) -> Result<(), Status> {
    // The pool must be known before its logs can be asked for: the hello may still be under way.
    let mut tries = 0;
    loop {
        let (sender, receiver) = mpsc::channel(64);
        let first = v1::serve_logs_request::Body::Hello(convert::hello_message(&hello));
        let _ = sender.send(v1::ServeLogsRequest { body: Some(first) }).await;
        match client.agents().serve_logs(ReceiverStream::new(receiver)).await {
            Ok(asks) => return answer_asks(asks.into_inner(), sender, logs).await,
            Err(status) if tries >= 20 => return Err(status),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

async fn answer_asks(
    mut asks: Streaming<v1::ServeLogsResponse>,
    sender: mpsc::Sender<v1::ServeLogsRequest>,
    logs: Arc<dyn ReadLogs>,
) -> Result<(), Status> {
    while let Some(ask) = asks.message().await? {
        let (logs, sender) = (logs.clone(), sender.clone());
        tokio::task::spawn_blocking(move || {
            let request = ask.request;
            let part = match read_part(&*logs, ask) {
                Ok(part) => v1::LogPart {
                    request,
                    offset: part.offset,
                    data: part.data,
                    end: part.end,
                    complete: part.complete,
                    error: String::new(),
                },
                Err(error) => v1::LogPart { request, error, ..v1::LogPart::default() },
            };
            let body = Some(v1::serve_logs_request::Body::Part(part));
            let _ = sender.blocking_send(v1::ServeLogsRequest { body });
        });
    }
    Ok(())
}

fn read_part(logs: &dyn ReadLogs, ask: v1::ServeLogsResponse) -> Result<crate::pools::LogPart, String> {
    let attempt: AttemptId =
        ask.attempt.parse().map_err(|error: crate::model::id::ParseIdError| error.to_string())?;
    let stream = match ask.stream() {
        v1::LogStream::Stderr => PoolStream::Stderr,
        v1::LogStream::Stdout | v1::LogStream::Unspecified => PoolStream::Stdout,
    };
    let bytes_max = ask.bytes_max.min(1 << 20) as usize;
    logs.read(attempt, ask.task, stream, ask.offset, bytes_max).map_err(|error| error.to_string())
}
