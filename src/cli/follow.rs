//! Prints the output of a task while it runs.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use super::Failure;
use super::connect::{RETRY_TIMEOUT, is_transient, with_retries};
use super::job_wait::{current, has_ended};
use super::output::{report, time};
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::attempt::OUTPUT_MAY_BE_LOST;
use crate::model::limit::PAGE_MAX;

/// A task whose output is printed.
#[derive(Clone, Debug, Default)]
pub struct Task {
    pub job: v1::JobRef,
    pub unit: u32,
    /// Its rank in its gang.
    pub task: u32,
    /// Print only the last lines of each stream; 0 prints all.
    pub tail_lines: u32,
    /// Print only what was written from then on, in milliseconds of Unix time; 0 prints all.
    pub since_unix_ms: u64,
    /// Print before each line when it was written.
    pub timestamps: bool,
    /// Printed before each line.
    pub prefix: Option<String>,
}

impl Task {
    /// Prints the output that there is. `attempt` 0 is the latest. False if the reader of standard output has closed it.
    pub async fn print(&self, client: &Client, attempt: u32) -> Result<bool, Failure> {
        let mut output = Output::of(self);
        let mut parts = client.jobs().logs(self.request(attempt, false, &output)).await?.into_inner();
        while let Some(part) = parts.message().await? {
            if output.print(&part)?.is_none() {
                return Ok(false);
            }
        }
        output.end_lines()
    }

    /// The request for what follows `output`.
    fn request(&self, attempt: u32, follow: bool, output: &Output) -> v1::LogsRequest {
        v1::LogsRequest {
            job: Some(self.job.clone()),
            unit: self.unit,
            task: self.task,
            attempt,
            follow,
            stdout_offset: output.offsets[0],
            stderr_offset: output.offsets[1],
            // Only before the first part: an attempt that follows is printed whole.
            tail_lines: if output.is_cut == [true; 2] { self.tail_lines } else { 0 },
            since_unix_ms: output.since_unix_ms,
            with_times: self.timestamps,
        }
    }
}

/// Prints the output of one task and of its later attempts until the unit has ended. After a broken
/// connection it continues at the offset it had reached. Returns how many bytes were not stored, so not printed: at least
/// so many. `None` if the reader of standard output has closed it.
pub async fn follow(client: &Client, task: &Task) -> Result<Option<u64>, Failure> {
    let (mut output, mut number, mut lost) = (Output::of(task), 0, 0);
    // The timeout counts from the last message of the broker.
    let mut deadline = tokio::time::Instant::now() + RETRY_TIMEOUT;
    loop {
        // Offsets count in one attempt: a later one may be the latest when a broken connection is replaced.
        number = output.number().unwrap_or(number);
        let status = match client.jobs().logs(task.request(number, true, &output)).await {
            Err(status) => Some(status),
            Ok(response) => {
                let mut parts = response.into_inner();
                loop {
                    match parts.message().await {
                        Ok(Some(part)) => match output.print(&part)? {
                            Some(more) => lost += more,
                            None => return Ok(None),
                        },
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                    deadline = tokio::time::Instant::now() + RETRY_TIMEOUT;
                }
            }
        };
        let Some(status) = status else {
            if !output.end_lines()? {
                return Ok(None);
            }
            let shown = output.number().unwrap_or(number.max(1));
            match next_attempt(client, &task.job, task.unit, shown).await? {
                Next::Attempt(next) => {
                    report(&format!("weir: attempt {shown} ended; continuing with attempt {next}"));
                    // All of it is new, so it is not cut.
                    (output, number) =
                        (Output { is_cut: [false; 2], since_unix_ms: 0, ..Output::of(task) }, next);
                    continue;
                }
                Next::None { lost: false } => return Ok(Some(lost)),
                Next::None { lost: true } => {
                    report(&format!("weir: {OUTPUT_MAY_BE_LOST}"));
                    return Ok(Some(lost.max(1)));
                }
            }
        };
        if !is_transient(&status) || tokio::time::Instant::now() > deadline {
            return Err(status.into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What follows an attempt.
enum Next {
    Attempt(u32),
    /// The unit has ended; perhaps some of its output is lost.
    None {
        lost: bool,
    },
}

/// Waits for the attempt of a unit after attempt `shown`.
async fn next_attempt(client: &Client, at: &v1::JobRef, unit: u32, shown: u32) -> Result<Next, Failure> {
    loop {
        // Read first: an ended job gets no further attempt.
        let ended = has_ended(&current(client, at.clone()).await?);
        let Some((last, attempt)) = last_attempt(client, at, unit).await? else {
            return Ok(Next::None { lost: false });
        };
        if last > shown {
            return Ok(Next::Attempt(last));
        }
        let outcome = attempt.outcome.unwrap_or_default();
        if outcome.code == "Succeeded" || ended {
            return Ok(Next::None { lost: outcome.message == OUTPUT_MAY_BE_LOST });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The last attempt of a unit, with its number.
pub async fn last_attempt(
    client: &Client,
    at: &v1::JobRef,
    unit: u32,
) -> Result<Option<(u32, v1::Attempt)>, Failure> {
    // The page that begins with the unit: a job may have more attempts than one page has.
    let page_token = if unit == 0 { String::new() } else { format!("{unit}.0") };
    let job = Some(at.clone());
    let request =
        v1::ListAttemptsRequest { job, page_size: PAGE_MAX as u32, page_token, ..Default::default() };
    let call = || async { client.jobs().list_attempts(request.clone()).await };
    let attempts = with_retries(RETRY_TIMEOUT, call).await?.into_inner().attempts;
    let of_unit = attempts.into_iter().filter(|attempt| attempt.unit == unit);
    Ok(of_unit.max_by_key(|attempt| attempt.number).map(|attempt| (attempt.number, attempt)))
}

/// What was printed of the output of an attempt's task.
struct Output {
    /// The attempt; empty before the first part.
    attempt: String,
    /// Where each stream goes on.
    offsets: [u64; 2],
    /// The beginning of the stream was not asked for.
    is_cut: [bool; 2],
    since_unix_ms: u64,
    /// Printed before each line, after its time.
    prefix: String,
    timestamps: bool,
    /// The beginning of a line of each stream whose end has not been received, if something is printed before lines.
    open_lines: [Vec<u8>; 2],
    /// When it was written, and what comes after it.
    times: [VecDeque<v1::OutputTime>; 2],
}

/// Longer lines are printed in pieces, each with a prefix.
const LINE_BYTES_MAX: usize = 64 * 1024;

impl Output {
    fn of(task: &Task) -> Self {
        Self {
            attempt: String::new(),
            offsets: [0; 2],
            is_cut: [task.tail_lines > 0 || task.since_unix_ms > 0; 2],
            since_unix_ms: task.since_unix_ms,
            prefix: task.prefix.clone().unwrap_or_default(),
            timestamps: task.timestamps,
            open_lines: [Vec::new(), Vec::new()],
            times: [VecDeque::new(), VecDeque::new()],
        }
    }

    /// The number of the attempt; `None` before the first part.
    fn number(&self) -> Option<u32> {
        self.attempt.rsplit('-').next()?.parse().ok()
    }

    /// Prints a part. A gap before it, where the pool did not store the output, is reported on standard error; its
    /// length is returned. `None` if the reader of standard output has closed it.
    fn print(&mut self, part: &v1::LogsResponse) -> Result<Option<u64>, Failure> {
        self.attempt.clone_from(&part.attempt);
        let stream = usize::from(part.stream() == v1::LogStream::Stderr);
        let gap = part.offset.saturating_sub(self.offsets[stream]);
        let lost = if std::mem::take(&mut self.is_cut[stream]) { 0 } else { gap };
        if gap > 0 && !self.print_lines(stream, true)? {
            return Ok(None);
        }
        if lost > 0 {
            report(&format!("… {lost} bytes were not stored …"));
        }
        self.offsets[stream] = part.offset + part.data.len() as u64;
        self.times[stream].extend(part.times.iter().copied());
        let is_open = if self.timestamps || !self.prefix.is_empty() {
            self.open_lines[stream].extend_from_slice(&part.data);
            self.print_lines(stream, false)?
        } else {
            write(stream, &part.data)?
        };
        Ok(is_open.then_some(lost))
    }

    /// Prints the lines that are complete, or all, each with its time and prefix. False if the reader has gone.
    fn print_lines(&mut self, stream: usize, all: bool) -> Result<bool, Failure> {
        let (buffer, times) = (&mut self.open_lines[stream], &mut self.times[stream]);
        // Where the buffer begins in the stream. What was printed needs no time any more.
        let begin = self.offsets[stream] - buffer.len() as u64;
        let (mut out, mut printed) = (Vec::new(), 0);
        for line in buffer.split_inclusive(|byte| *byte == b'\n') {
            let is_whole = line.ends_with(b"\n");
            if !is_whole && !all && line.len() < LINE_BYTES_MAX {
                break;
            }
            if self.timestamps {
                let at = begin + printed as u64;
                while times.front().is_some_and(|time| time.end <= at) {
                    times.pop_front();
                }
                let written = times.front().map_or_else(|| "-".to_owned(), |piece| time(piece.at_unix_ms));
                out.extend_from_slice(written.as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(self.prefix.as_bytes());
            out.extend_from_slice(line);
            if !is_whole {
                out.push(b'\n');
            }
            printed += line.len();
        }
        buffer.drain(..printed);
        write(stream, &out)
    }

    /// Prints lines that lack their end. False if the reader has gone.
    fn end_lines(&mut self) -> Result<bool, Failure> {
        Ok(self.print_lines(0, true)? && self.print_lines(1, true)?)
    }
}

/// Writes to standard output, or standard error for stream 1. The output is not sanitised: a local command could print
/// the same bytes. False if the reader of standard output has closed it.
fn write(stream: usize, data: &[u8]) -> Result<bool, Failure> {
    if stream == 1 {
        std::io::stderr().write_all(data)?;
        return Ok(true);
    }
    let mut stdout = std::io::stdout();
    match stdout.write_all(data).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        outcome => Ok(outcome.map(|()| true)?),
    }
}
