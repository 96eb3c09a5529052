//! Prints the output of a task while it runs.

use std::io::Write;
use std::time::Duration;

use super::Failure;
use super::connect::{RETRY_TIMEOUT, is_transient, with_retries};
use super::job_wait::{current, has_ended};
use super::output::report;
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::attempt::OUTPUT_MAY_BE_LOST;
use crate::model::limit::PAGE_MAX;

/// Prints the output of one task and of its later attempts until the unit has ended. After a broken
/// connection it continues at the offset it had reached. Returns how many bytes were not stored, so not printed: at least
/// so many. `None` if the reader of standard output has closed it.
pub async fn follow(client: &Client, at: v1::JobRef, unit: u32, task: u32) -> Result<Option<u64>, Failure> {
    let (mut offsets, mut attempt, mut number, mut lost) = ([0u64; 2], String::new(), 0, 0);
    // The timeout counts from the last message of the broker.
    let mut deadline = tokio::time::Instant::now() + RETRY_TIMEOUT;
    loop {
        let request = v1::LogsRequest {
            job: Some(at.clone()),
            unit,
            task,
            attempt: number,
            follow: true,
            stdout_offset: offsets[0],
            stderr_offset: offsets[1],
        };
        let status = match client.jobs().logs(request).await {
            Err(status) => Some(status),
            Ok(response) => {
                let mut parts = response.into_inner();
                loop {
                    match parts.message().await {
                        Ok(Some(part)) => match print_part(&part, &mut offsets, &mut attempt)? {
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
            let shown =
                attempt.rsplit('-').next().and_then(|last| last.parse().ok()).unwrap_or(number.max(1));
            match next_attempt(client, &at, unit, shown).await? {
                Next::Attempt(next) => {
                    report(&format!("weir: attempt {shown} ended; continuing with attempt {next}"));
                    (offsets, number) = ([0; 2], next);
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
        // The page that begins with the unit: a job may have more attempts than one page has.
        let page_token = if unit == 0 { String::new() } else { format!("{unit}.0") };
        let job = Some(at.clone());
        let request =
            v1::ListAttemptsRequest { job, page_size: PAGE_MAX as u32, page_token, ..Default::default() };
        let call = || async { client.jobs().list_attempts(request.clone()).await };
        let attempts = with_retries(RETRY_TIMEOUT, call).await?.into_inner().attempts;
        // JOURNAL-JOB-UNIT-NUMBER.
        let of_unit = |attempt: &v1::Attempt| -> Option<u32> {
            let mut parts = attempt.id.rsplit('-');
            let number = parts.next()?.parse().ok()?;
            (parts.next()?.parse() == Ok(unit)).then_some(number)
        };
        let numbers = attempts.iter().filter_map(|attempt| Some((of_unit(attempt)?, attempt)));
        let Some((last, attempt)) = numbers.max_by_key(|(number, _)| *number) else {
            return Ok(Next::None { lost: false });
        };
        if last > shown {
            return Ok(Next::Attempt(last));
        }
        let outcome = attempt.outcome.clone().unwrap_or_default();
        if outcome.code == "Succeeded" || ended {
            return Ok(Next::None { lost: outcome.message == OUTPUT_MAY_BE_LOST });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Prints a part of the output. A gap before it, where the pool did not store the output, is reported on
/// standard error; its length is returned. `None` if the reader of standard output has closed it.
pub fn print_part(
    part: &v1::LogsResponse,
    offsets: &mut [u64; 2],
    attempt: &mut String,
) -> Result<Option<u64>, Failure> {
    if *attempt != part.attempt {
        attempt.clone_from(&part.attempt);
    }
    let index = usize::from(part.stream() == v1::LogStream::Stderr);
    let lost = part.offset.saturating_sub(offsets[index]);
    if lost > 0 {
        report(&format!("… {lost} bytes were not stored …"));
    }
    offsets[index] = part.offset + part.data.len() as u64;
    // The output is not sanitised: a local command could print the same bytes.
    if index == 1 {
        std::io::stderr().write_all(&part.data)?;
        return Ok(Some(lost));
    }
    let mut stdout = std::io::stdout();
    match stdout.write_all(&part.data).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(None),
        outcome => Ok(outcome.map(|()| Some(lost))?),
    }
}
