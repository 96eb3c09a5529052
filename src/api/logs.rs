//! Output of tasks, asked for piece by piece from the agent that has it.

use std::time::{Duration, Instant};

use tonic::Status;

use super::error;
use super::job::Jobs;
use super::outlet::Outlet;
use super::proto::v1;
use crate::broker::{Answer, Query};
use crate::model::limit::{MESSAGE_LEN_MAX, PAGE_MAX};
use crate::model::text;
use crate::runtime::logs::{Ask, Part, Stream as LogStream};
use crate::state::view::{AttemptPhase, AttemptView, JobView};

/// Bytes of output in one message.
const LOG_BYTES: u32 = 64 * 1024;
/// How often a followed log is looked at: at first soon, for what ends soon, then less and less.
const FOLLOW_WAIT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// Wait for an agent that is there but doesn't answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// Wait for an agent that is away while its output is read.
const AGENT_WAIT: Duration = Duration::from_millis(500);
/// How long after an attempt's end a backend may still find more of its output.
const LAST_WORDS: Duration = Duration::from_secs(10);

impl Jobs {
    /// The attempt whose output is asked for, once there is one.
    async fn attempt_of(
        &self,
        job: &JobView,
        message: &v1::LogsRequest,
    ) -> Result<Option<AttemptView>, Status> {
        let of_unit = |attempt: &AttemptView| {
            attempt.id.unit == message.unit && (message.attempt == 0 || attempt.id.number == message.attempt)
        };
        let after = message.unit.checked_sub(1);
        let query = Query::Attempts { job: job.id, after, limit: 1 };
        let (_, answer) = self.broker.query(query).await.map_err(error::call)?;
        let Answer::Attempts(live) = answer else { return Err(Status::internal("no attempts")) };
        if let Some(attempt) = live.into_iter().find(of_unit) {
            return Ok(Some(attempt));
        }
        let (_, status) = self.broker.query(Query::Status).await.map_err(error::call)?;
        let Answer::Status { journal, .. } = status else { return Err(Status::internal("no status")) };
        let (id, unit) = (job.id, message.unit);
        let ended = self.broker.archive(move |archive| archive.attempts(id, (unit, 0), PAGE_MAX));
        let ended = ended.await.map_err(error::call)?;
        let found = ended.iter().map(|attempt| attempt.view(journal)).rfind(of_unit);
        if found.is_none() && message.attempt > 0 {
            let name = format!("{} of unit {} of job {}", message.attempt, message.unit, job.name);
            return Err(error::not_found("attempt", &name));
        }
        Ok(found)
    }

    pub(super) async fn stream_logs(
        &self,
        job: &JobView,
        message: &v1::LogsRequest,
        sender: &Outlet<v1::LogsResponse>,
    ) -> Result<(), Status> {
        let mut wait = FOLLOW_WAIT.0;
        let attempt = loop {
            if let Some(attempt) = self.attempt_of(job, message).await? {
                break attempt;
            }
            let now = self.find_id(job.id).await?;
            if !message.follow || now.phase.is_end() || sender.is_closed() {
                return Ok(());
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(FOLLOW_WAIT.1);
        };
        wait = FOLLOW_WAIT.0;
        let mut ended_at = None;
        let mut streams = [
            (LogStream::Stdout, v1::LogStream::Stdout, message.stdout_offset, None, false),
            (LogStream::Stderr, v1::LogStream::Stderr, message.stderr_offset, None, false),
        ];
        loop {
            let ended = attempt.phase == AttemptPhase::Ended || self.has_ended(job, &attempt).await?;
            let since_end = ended.then(|| ended_at.get_or_insert_with(Instant::now).elapsed());
            let mut moved = false;
            for (stream, shown, offset, until, done) in &mut streams {
                if *done {
                    continue;
                }
                let ask = Ask {
                    attempt: attempt.id,
                    task: message.task,
                    stream: *stream,
                    offset: *offset,
                    bytes_max: LOG_BYTES,
                };
                let answer = tokio::select! {
                    answer = self.broker.logs().ask(&attempt.pool, ask) => answer,
                    () = tokio::time::sleep(ANSWER_WAIT) => None,
                    () = sender.closed() => return Ok(()),
                };
                // What no agent of ours says: it is as good as away.
                let sound = |part: &Part| {
                    let end = part.offset.checked_add(part.data.len() as u64);
                    end.is_some() && part.data.len() <= LOG_BYTES as usize
                };
                let Some(mut part) = answer.filter(sound) else {
                    if !message.follow {
                        let text = format!("the agent of pool {} is not connected", attempt.pool);
                        return Err(Status::unavailable(text));
                    }
                    tokio::time::sleep(AGENT_WAIT).await;
                    continue;
                };
                if !part.error.is_empty() && ended {
                    let mut said = text::escape(&part.error);
                    text::truncate(&mut said, MESSAGE_LEN_MAX);
                    return Err(Status::not_found(said));
                }
                // Asked beyond the end, there is nothing, whatever has been written since.
                if part.offset < *offset {
                    part.data.clear();
                }
                let read_to = part.offset + part.data.len() as u64;
                // Without `follow` the output is what there was at first sight: a task that prints
                // without end would never let its reader go.
                let until = if message.follow { part.end } else { *until.get_or_insert(part.end) };
                // A backend may learn of a task's last words after its end.
                let whole = part.complete || since_end.is_some_and(|since| since > LAST_WORDS);
                *done = (!message.follow || ended && whole) && part.error.is_empty() && read_to >= until;
                if part.data.is_empty() {
                    continue;
                }
                (moved, wait) = (true, FOLLOW_WAIT.0);
                *offset = read_to;
                let message = v1::LogsResponse {
                    stream: *shown as i32,
                    offset: part.offset,
                    data: part.data,
                    attempt: attempt.id.to_string(),
                };
                // Only now: an agent may take its time, which is no matter of this client's other streams.
                sender.send(sender.room().await?, message).await?;
            }
            let all_done = streams.iter().all(|(.., done)| *done);
            if all_done || sender.is_closed() || (!moved && !message.follow) {
                return Ok(());
            }
            if !moved {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(FOLLOW_WAIT.1);
            }
        }
    }

    async fn has_ended(&self, job: &JobView, attempt: &AttemptView) -> Result<bool, Status> {
        let query = Query::Attempts { job: job.id, after: attempt.id.unit.checked_sub(1), limit: 1 };
        let (_, answer) = self.broker.query(query).await.map_err(error::call)?;
        let Answer::Attempts(live) = answer else { return Err(Status::internal("no attempts")) };
        Ok(!live.iter().any(|live| live.id == attempt.id))
    }
}
