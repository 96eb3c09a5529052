//! AgentService: sessions of agents and their logs. Also the agent's client of it.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::client::Client;
use super::proto::v1;
use super::response_stream::ResponseStream;
use super::{body_limit, convert, error};
use crate::broker::query::GetPool;
use crate::model::exchange::{FrameCheck, FrameCounter, FromAgent, Hello, RefusedCode, ToAgent};
use crate::model::id::AttemptId;
use crate::model::time::Timestamp;
use crate::pools::{ReadLogs, Stream as PoolStream};
use crate::runtime::agent::{Connection, Dial};
use crate::runtime::handle::Handle;
use crate::runtime::logs::{Chunk, PendingRead, Stream as LogStream};
use crate::state::rejection::Rejection;

/// Implements AgentService.
pub struct Agents {
    pub broker: Handle,
}

/// Messages buffered between a state machine and its connection.
const MESSAGES_MAX: usize = 4_096;
/// Bytes that one read returns at most, whatever the broker requests.
const READ_BYTES_MAX: u32 = 1 << 20;
/// Concurrent reads of output from one agent.
const READS_MAX: usize = 1_024;

#[tonic::async_trait]
impl v1::agent_service_server::AgentService for Agents {
    type SyncStream = ResponseStream<v1::SyncResponse>;

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
                            // Too long, or undecodable: report it if the agent still reads.
                            Some(Err(status)) => {
                                let status = body_limit::decode_error(status);
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

    type ServeLogsStream = ResponseStream<v1::ServeLogsResponse>;

    async fn serve_logs(
        &self,
        request: Request<Streaming<v1::ServeLogsRequest>>,
    ) -> Result<Response<Self::ServeLogsStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await;
        let first = first.map_err(body_limit::decode_error)?;
        let first = first.and_then(|message| message.body);
        let Some(v1::serve_logs_request::Body::Hello(hello)) = first else {
            return Err(error::invalid(convert::invalid("hello", "the first message must be a hello")));
        };
        let hello = convert::hello(&hello).map_err(error::invalid)?;
        let Some(pool) = self.broker.query(GetPool(hello.pool.name.clone())).await?.1 else {
            return Err(error::not_found("pool", &hello.pool.name));
        };
        if !pool.pool.is_bound_to(&hello) {
            return Err(error::status(&Rejection::PoolClaimed { pool: hello.pool.name }));
        }
        if let Some(epoch) = hello.last_epoch.filter(|epoch| *epoch != pool.pool.epoch) {
            let (pool, current) = (hello.pool.name, pool.pool.epoch);
            return Err(error::status(&Rejection::StaleEpoch { pool, current, epoch }));
        }
        let mut reads = self.broker.logs().serve(&hello.pool.name);
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let (mut waiting, mut next) = (HashMap::<u64, oneshot::Sender<Chunk>>::new(), 0);
            loop {
                tokio::select! {
                    message = incoming.next() => {
                        let Some(Ok(message)) = message else { break };
                        let Some(v1::serve_logs_request::Body::Part(part)) = message.body else { break };
                        if let Some(response) = waiting.remove(&part.request) {
                            let v1::LogPart { offset, data, end, complete, error, timed, times, .. } = part;
                            let times = times.into_iter().map(|time| (time.end, Timestamp(time.at_unix_ms)));
                            let times = times.collect();
                            let chunk = Chunk { offset, data, end, complete, error, timed, times };
                            let _ = response.send(chunk);
                        }
                    }
                    read = reads.recv() => {
                        let Some((read, response)): Option<PendingRead> = read else { break };
                        // Reads of clients that are gone are dropped. An agent that responds to none
                        // delays only its own readers.
                        if waiting.len() >= READS_MAX {
                            waiting.retain(|_, response| !response.is_closed());
                        }
                        if waiting.len() >= READS_MAX {
                            continue;
                        }
                        next += 1;
                        waiting.insert(next, response);
                        let message = v1::ServeLogsResponse {
                            request: next,
                            attempt: read.attempt.to_string(),
                            task: read.task,
                            stream: match read.stream {
                                LogStream::Stdout => v1::LogStream::Stdout as i32,
                                LogStream::Stderr => v1::LogStream::Stderr as i32,
                            },
                            offset: read.offset,
                            bytes_max: read.bytes_max,
                            since_unix_ms: read.since.map_or(0, |since| since.0),
                            with_times: read.with_times,
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

/// The message of a frame; `None` if the frame is a duplicate.
///
/// # Errors
/// The refusal that ends the session.
fn read_frame(inbox: &mut FrameCounter, frame: v1::SyncRequest) -> Result<Option<FromAgent>, ToAgent> {
    let refused = |message: String| ToAgent::Refused { code: RefusedCode::ProtocolError, message };
    if frame.number == 0 {
        return Err(refused("number: 0, the frames of a session count from 1".to_owned()));
    }
    match inbox.check(frame.number) {
        FrameCheck::Repeated => return Ok(None),
        FrameCheck::Gap => {
            return Err(refused(format!("number: {} leaves a gap after the last frame", frame.number)));
        }
        FrameCheck::InOrder => {}
    }
    let Some(body) = frame.body else {
        return Err(refused("body: set hello, inventory, observed or heartbeat".to_owned()));
    };
    convert::from_agent(body).map(Some).map_err(|violations| {
        let text: Vec<String> = violations.iter().map(ToString::to_string).collect();
        refused(text.join("; "))
    })
}

/// Opens an agent's sessions with a broker, and serves the agent's logs beside each.
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
        // The broker responds to the first message, so sending must begin before the response arrives.
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
        let (client, hello, logs) = (self.client.clone(), self.hello.clone(), self.logs.clone());
        tokio::spawn(async move {
            let mut inbox = FrameCounter::default();
            while let Ok(Some(frame)) = responses.message().await {
                match inbox.check(frame.number) {
                    FrameCheck::Repeated => continue,
                    FrameCheck::Gap => return,
                    FrameCheck::InOrder => {}
                }
                let Some(Ok(message)) = frame.body.map(convert::to_agent) else { return };
                if let ToAgent::Accepted(accepted) = &message {
                    let hello = Hello { last_epoch: Some(accepted.epoch), ..hello.clone() };
                    tokio::spawn(serve_logs(client.clone(), hello, logs.clone()));
                }
                if incoming.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(Connection { to_broker, from_broker })
    }
}

/// Serves the broker's reads of output until the connection ends. `hello` names the session.
async fn serve_logs(client: Client, hello: Hello, logs: Arc<dyn ReadLogs>) {
    let (sender, receiver) = mpsc::channel(64);
    let first = v1::serve_logs_request::Body::Hello(convert::hello_message(&hello));
    let _ = sender.send(v1::ServeLogsRequest { body: Some(first) }).await;
    let served = match client.agents().serve_logs(ReceiverStream::new(receiver)).await {
        Ok(reads) => serve_reads(reads.into_inner(), sender, logs).await,
        Err(status) => Err(status),
    };
    // The session does not depend on the logs.
    if let Err(status) = served {
        tracing::debug!(error = status.message(), "logs are not served");
    }
}

async fn serve_reads(
    mut reads: Streaming<v1::ServeLogsResponse>,
    sender: mpsc::Sender<v1::ServeLogsRequest>,
    logs: Arc<dyn ReadLogs>,
) -> Result<(), Status> {
    while let Some(read) = reads.message().await? {
        let (logs, sender) = (logs.clone(), sender.clone());
        tokio::task::spawn_blocking(move || {
            let request = read.request;
            let part = match read_part(&*logs, read) {
                Ok(part) => v1::LogPart { request, ..part },
                Err(error) => v1::LogPart { request, error, ..v1::LogPart::default() },
            };
            let body = Some(v1::serve_logs_request::Body::Part(part));
            let _ = sender.blocking_send(v1::ServeLogsRequest { body });
        });
    }
    Ok(())
}

/// Bytes before an offset in which the beginning of its line is looked for.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Where the line begins that `offset` is in, if `before`, which ends there, has its beginning; else `offset`. Pieces of
/// output with a time end where a program's buffer was full, often within a line.
fn line_start(before: &crate::pools::LogPart, offset: u64) -> u64 {
    if before.offset + before.data.len() as u64 != offset {
        return offset;
    }
    match before.data.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => before.offset + at as u64 + 1,
        None if before.offset == 0 => 0,
        None => offset,
    }
}

fn read_part(logs: &dyn ReadLogs, read: v1::ServeLogsResponse) -> Result<v1::LogPart, String> {
    let attempt: AttemptId =
        read.attempt.parse().map_err(|error: crate::model::id::ParseIdError| error.to_string())?;
    let stream = match read.stream() {
        v1::LogStream::Stderr => PoolStream::Stderr,
        v1::LogStream::Stdout | v1::LogStream::Unspecified => PoolStream::Stdout,
    };
    let bytes_max = read.bytes_max.min(READ_BYTES_MAX) as usize;
    let text = |error: std::io::Error| error.to_string();
    let read_from =
        |offset, bytes_max| logs.read(attempt, read.task, stream, offset, bytes_max).map_err(text);
    // Read before the times are: what is written meanwhile is newer than the data. An index that can't be read is as good as
    // none.
    let times = || logs.times(attempt, read.task, stream).ok().flatten();
    let since = Timestamp(read.since_unix_ms);
    let (mut part, times) = if since > Timestamp(0) {
        // A read beyond the end shows where that is.
        let end = read_from(u64::MAX, 0)?.end;
        let times = times();
        let from = times.as_ref().map_or(Ok(0), |times| times.since(since, end)).map_err(text)?;
        // Where nothing was written since, nothing is to be read, not even the line that is open.
        let before = from.saturating_sub(LINE_BYTES_MAX);
        let line = read_from(before, (from - before) as usize)?;
        let from = if from < end { line_start(&line, from) } else { from };
        (read_from(from, bytes_max)?, times)
    } else {
        let part = read_from(read.offset, bytes_max)?;
        let times = if read.with_times { times() } else { None };
        (part, times)
    };
    let range = part.offset..part.offset + part.data.len() as u64;
    let within = times.as_ref().filter(|_| read.with_times).map(|times| times.within(range));
    let within = within.transpose().map_err(text)?.unwrap_or_default();
    if let Some(last) = within.last().filter(|last| last.end > part.offset) {
        // What has no time in this part comes with the next one.
        part.data.truncate(usize::try_from(last.end - part.offset).unwrap_or(usize::MAX));
    }
    Ok(v1::LogPart {
        request: read.request,
        offset: part.offset,
        data: part.data,
        end: part.end,
        complete: part.complete,
        error: String::new(),
        timed: times.is_some(),
        times: within.iter().map(|time| convert::output_time_message(time.end, time.at)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::line_start;
    use crate::pools::LogPart;

    #[test]
    fn output_since_a_time_begins_with_a_whole_line() {
        let before = |offset: u64, data: &[u8]| LogPart { offset, data: data.to_vec(), ..LogPart::default() };
        assert_eq!(line_start(&before(10, b"one\ntw"), 16), 14);
        assert_eq!(line_start(&before(10, b"one\n"), 14), 14);
        assert_eq!(line_start(&before(0, b"on"), 2), 0);
        // The line is too long, or a part before it is not stored.
        assert_eq!(line_start(&before(10, b"on"), 12), 12);
        assert_eq!(line_start(&before(10, b"\non"), 20), 20);
    }
}
