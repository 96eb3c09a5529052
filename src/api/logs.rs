//! Output of tasks, read in chunks from the agent that stores it.

use std::time::{Duration, Instant};

use tonic::Status;

use super::job::Jobs;
use super::proto::v1;
use super::response_stream::ResponseSender;
use super::{convert, error};
use crate::broker::query::{GetPool, ListAttempts};
use crate::model::backoff::Backoff;
use crate::model::limit::{MESSAGE_LEN_MAX, OUTPUT_TIMES_MAX, PAGE_MAX};
use crate::model::text;
use crate::model::time::Timestamp;
use crate::model::validate::quote;
use crate::runtime::logs::{Chunk, ReadRequest, Stream as LogStream};
use crate::state::view::{AttemptPhase, AttemptView, JobView};

/// Bytes of output in one message.
const LOG_BYTES: u32 = 64 * 1024;
/// First and longest wait between two reads of a followed log. It starts short for tasks that end soon, and
/// doubles while there is no new output.
const FOLLOW_BACKOFF: Backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(50));
/// How long a connected agent may take to respond.
const AGENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before the next read while the agent is not connected.
const AGENT_RETRY: Duration = Duration::from_millis(500);
/// How long after an attempt's end its backend may still receive output of it.
const LATE_OUTPUT: Duration = Duration::from_secs(10);

impl Jobs {
    /// The requested attempt; the unit's latest if the request names none. `None` before the first.
    ///
    /// # Errors
    /// `NOT_FOUND` if the request names an attempt that the unit does not have.
    async fn attempt_of(
        &self,
        job: &JobView,
        message: &v1::LogsRequest,
    ) -> Result<Option<AttemptView>, Status> {
        let of_unit = |attempt: &AttemptView| {
            attempt.id.unit == message.unit && (message.attempt == 0 || attempt.id.number == message.attempt)
        };
        let after = message.unit.checked_sub(1);
        let (_, live) = self.broker.query(ListAttempts { job: job.id, after, limit: 1 }).await?;
        if let Some(attempt) = live.into_iter().find(of_unit) {
            return Ok(Some(attempt));
        }
        let journal = self.journal().await?;
        let (id, unit) = (job.id, message.unit);
        let ended = self.broker.archive(move |archive| archive.attempts(id, (unit, 0), PAGE_MAX));
        let ended = ended.await?;
        let found = ended.iter().map(|attempt| attempt.view(journal)).rfind(of_unit);
        if found.is_none() && message.attempt > 0 {
            let name = format!("{} of unit {} of job {}", message.attempt, message.unit, job.name);
            return Err(error::not_found("attempt", &name));
        }
        Ok(found)
    }

    /// Waits for the requested attempt if the log is followed. `None` if there is nothing to wait for.
    async fn wait_for_attempt(
        &self,
        job: &JobView,
        message: &v1::LogsRequest,
        sender: &ResponseSender<v1::LogsResponse>,
    ) -> Result<Option<AttemptView>, Status> {
        let mut backoff = FOLLOW_BACKOFF;
        loop {
            if let Some(attempt) = self.attempt_of(job, message).await? {
                return Ok(Some(attempt));
            }
            let now = self.find_id(job.id).await?;
            if !message.follow || now.phase.is_end() || sender.is_closed() {
                return Ok(None);
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Sends a task's output: what exists now, or with `follow` until the attempt has ended and its output
    /// is complete.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the agent is not connected and the log is not followed, `NOT_FOUND` if the output
    /// of an ended attempt can't be read.
    pub(super) async fn stream_logs(
        &self,
        job: &JobView,
        message: &v1::LogsRequest,
        sender: &ResponseSender<v1::LogsResponse>,
    ) -> Result<(), Status> {
        let Some(attempt) = self.wait_for_attempt(job, message, sender).await? else { return Ok(()) };
        let mut backoff = FOLLOW_BACKOFF;
        let mut ended_at = None;
        let mut offsets = [message.stdout_offset, message.stderr_offset];
        for (offset, stream) in offsets.iter_mut().zip([LogStream::Stdout, LogStream::Stderr]) {
            // A followed log waits for an agent that is not connected, as below.
            *offset = loop {
                match self.first_offset(&attempt, message, stream, *offset).await? {
                    Some(offset) => break offset,
                    None if sender.is_closed() => return Ok(()),
                    None => self.wait_for_agent(&attempt, message.follow).await?,
                }
            };
        }
        let mut streams = [
            (LogStream::Stdout, v1::LogStream::Stdout, offsets[0], None, false),
            (LogStream::Stderr, v1::LogStream::Stderr, offsets[1], None, false),
        ];
        loop {
            let ended = attempt.phase == AttemptPhase::Ended || self.has_ended(job, &attempt).await?;
            let since_end = ended.then(|| ended_at.get_or_insert_with(Instant::now).elapsed());
            let mut has_new = false;
            for (stream, shown, offset, until, done) in &mut streams {
                if *done {
                    continue;
                }
                let request = ReadRequest {
                    attempt: attempt.id,
                    task: message.task,
                    stream: *stream,
                    offset: *offset,
                    bytes_max: LOG_BYTES,
                    since: None,
                    with_times: message.with_times,
                };
                let response = tokio::select! {
                    response = self.read_chunk(&attempt.pool, request) => response,
                    () = sender.closed() => return Ok(()),
                };
                let Some(mut chunk) = response else {
                    self.wait_for_agent(&attempt, message.follow).await?;
                    continue;
                };
                if !chunk.error.is_empty() && ended {
                    let mut error = text::escape(&chunk.error);
                    text::truncate(&mut error, MESSAGE_LEN_MAX);
                    return Err(Status::not_found(error));
                }
                check_timed(&attempt.pool, &chunk, message.with_times)?;
                // A chunk before the requested offset answers a read beyond the end. Data written there since
                // was not requested.
                if chunk.offset < *offset {
                    chunk.data.clear();
                }
                let read_to = chunk.offset + chunk.data.len() as u64;
                // Without `follow` the output ends where it ended at the first read: the output of a task
                // that never stops printing would otherwise have no end.
                let until = if message.follow { chunk.end } else { *until.get_or_insert(chunk.end) };
                // A backend may receive a task's last output after the task's end.
                let whole = chunk.complete || since_end.is_some_and(|since| since > LATE_OUTPUT);
                *done = (!message.follow || ended && whole) && chunk.error.is_empty() && read_to >= until;
                if chunk.data.is_empty() {
                    continue;
                }
                has_new = true;
                backoff.reset();
                *offset = read_to;
                let message = v1::LogsResponse {
                    stream: *shown as i32,
                    offset: chunk.offset,
                    data: chunk.data,
                    attempt: attempt.id.to_string(),
                    times: chunk
                        .times
                        .iter()
                        .map(|(end, at)| convert::output_time_message(*end, *at))
                        .collect(),
                };
                // Reserved only now: a slow agent must not take permits from the client's other streams.
                sender.send(sender.reserve().await?, message).await?;
            }
            let all_done = streams.iter().all(|(.., done)| *done);
            if all_done || sender.is_closed() || (!has_new && !message.follow) {
                return Ok(());
            }
            if !has_new {
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }

    /// Waits a moment for an agent that does not answer, if a log is followed.
    ///
    /// # Errors
    /// `UNAVAILABLE` if it is not followed, `NOT_FOUND` if the pool is deleted: then no agent is expected any more.
    async fn wait_for_agent(&self, attempt: &AttemptView, follow: bool) -> Result<(), Status> {
        if self.broker.query(GetPool(attempt.pool.clone())).await?.1.is_none() {
            let message = format!("pool {} is deleted, and the output with it", quote(&attempt.pool));
            return Err(Status::not_found(message));
        }
        if !follow {
            return Err(not_connected(&attempt.pool));
        }
        tokio::time::sleep(AGENT_RETRY).await;
        Ok(())
    }

    /// Reads a chunk of output. `None` if the agent is not connected or does not respond in time. An invalid chunk is
    /// treated alike.
    async fn read_chunk(&self, pool: &str, request: ReadRequest) -> Option<Chunk> {
        let read = self.broker.logs().read(pool, request);
        tokio::time::timeout(AGENT_TIMEOUT, read).await.ok().flatten().filter(is_valid)
    }

    /// The offset at which a stream begins as requested: at `offset`, with the last lines, since a time. `None` if the
    /// agent does not respond.
    async fn first_offset(
        &self,
        attempt: &AttemptView,
        message: &v1::LogsRequest,
        stream: LogStream,
        offset: u64,
    ) -> Result<Option<u64>, Status> {
        let mut first = offset;
        if message.tail_lines > 0 {
            match self.tail_offset(attempt, message, stream).await {
                Some(tail) => first = tail,
                None => return Ok(None),
            }
        }
        if message.since_unix_ms > 0 {
            let request = ReadRequest {
                attempt: attempt.id,
                task: message.task,
                stream,
                offset: 0,
                bytes_max: 0,
                since: Some(Timestamp(message.since_unix_ms)),
                with_times: false,
            };
            let Some(chunk) = self.read_chunk(&attempt.pool, request).await else { return Ok(None) };
            // Output that is not there, or not yet, is reported by the reads that follow.
            if chunk.error.is_empty() {
                check_timed(&attempt.pool, &chunk, true)?;
                first = first.max(chunk.offset);
            }
        }
        Ok(Some(first))
    }

    /// The offset at which the last lines of a stream begin. `None` if the agent does not respond.
    async fn tail_offset(
        &self,
        attempt: &AttemptView,
        message: &v1::LogsRequest,
        stream: LogStream,
    ) -> Option<u64> {
        let read = async |offset: u64, bytes_max: u32| {
            let (attempt_id, task, since, with_times) = (attempt.id, message.task, None, false);
            let request =
                ReadRequest { attempt: attempt_id, task, stream, offset, bytes_max, since, with_times };
            self.read_chunk(&attempt.pool, request).await
        };
        // A read beyond the end shows where that is.
        let end = read(u64::MAX, 0).await?.end;
        let (mut lines, mut from) = (0, end);
        while from > 0 {
            let before = from.saturating_sub(u64::from(LOG_BYTES));
            let chunk = read(before, (from - before) as u32).await?;
            for (index, byte) in chunk.data.iter().enumerate().rev() {
                let next = chunk.offset + index as u64 + 1;
                // The line feed of the last line ends no line before it.
                if *byte == b'\n' && next < end {
                    lines += 1;
                    if lines == message.tail_lines {
                        return Some(next);
                    }
                }
            }
            // What is before was not stored, or is not there any more.
            if chunk.offset > before || chunk.data.is_empty() {
                return Some(chunk.offset);
            }
            from = before;
        }
        Some(0)
    }

    async fn has_ended(&self, job: &JobView, attempt: &AttemptView) -> Result<bool, Status> {
        let query = ListAttempts { job: job.id, after: attempt.id.unit.checked_sub(1), limit: 1 };
        let (_, live) = self.broker.query(query).await?;
        Ok(!live.iter().any(|live| live.id == attempt.id))
    }
}

fn not_connected(pool: &str) -> Status {
    Status::unavailable(format!("the agent of pool {} is not connected", quote(pool)))
}

/// Fails if a request is about times and the pool does not store them.
fn check_timed(pool: &str, chunk: &Chunk, is_about_times: bool) -> Result<(), Status> {
    if !is_about_times || chunk.timed || chunk.end == 0 || !chunk.error.is_empty() {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "pool {} does not store when this output was written",
        quote(pool)
    )))
}

/// True for a chunk that an agent may send: at most as long as requested, with offsets in range, and no more times than
/// an index returns.
fn is_valid(chunk: &Chunk) -> bool {
    let end = chunk.offset.checked_add(chunk.data.len() as u64);
    end.is_some() && chunk.data.len() <= LOG_BYTES as usize && chunk.times.len() <= OUTPUT_TIMES_MAX
}
