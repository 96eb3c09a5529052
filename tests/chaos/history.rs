//! What tasks wrote, held against what the broker says: Chronos style, after everything has healed.
//!
//! The file's order is that of the events: each line is one write to a file that is only appended
//! to. So nothing here rests on clocks, but for one check that says so.

use std::collections::{BTreeMap, BTreeSet};

use weir::api::proto::v1;
use weir::api::proto::v1::{AttemptPhase, JobPhase};
use weir::model::id::AttemptId;

use crate::clients::Acknowledged;
use crate::work::Expected;

/// How far the boot clock and the broker's, which began as the wall clock, may be apart, in milliseconds: some
/// steps of the wall clock. A lease ends nine seconds before its pool is lost.
const CLOCKS_APART_MS: u64 = 1_000;

/// What the broker says at last of an acknowledged job.
pub struct Told {
    pub acknowledged: Acknowledged,
    pub job: v1::Job,
    pub attempts: Vec<v1::Attempt>,
}

/// One task of an attempt, as it wrote of itself.
#[derive(Debug, Default)]
struct Task {
    starts: usize,
    /// Exit codes that it said it would end with.
    ends: Vec<i32>,
}

/// An attempt as its tasks wrote of it.
#[derive(Debug, Default)]
struct Trace {
    tasks: BTreeMap<usize, Task>,
    first_line: usize,
    last_line: usize,
    /// Time of the last line.
    last_unix_ms: u64,
}

/// All attempts that wrote anything.
pub struct History {
    traces: BTreeMap<String, Trace>,
    complaints: Vec<String>,
}

impl History {
    /// Reads the file. `boot_unix_ms` is when the boot clock began.
    pub fn read(text: &str, boot_unix_ms: u64) -> Self {
        let mut history = Self { traces: BTreeMap::new(), complaints: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            if history.take(number, line, boot_unix_ms).is_none() {
                history.complaints.push(format!("line {number} of the history is none: {line:?}"));
            }
        }
        history
    }

    fn take(&mut self, number: usize, line: &str, boot_unix_ms: u64) -> Option<()> {
        let mut words = line.split_whitespace();
        let (kind, attempt, rank) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
        let (seconds, hundredths) = words.next()?.split_once('.')?;
        let up_ms = seconds.parse::<u64>().ok()? * 1_000 + hundredths.parse::<u64>().ok()? * 10;
        let trace = self
            .traces
            .entry(attempt.to_owned())
            .or_insert_with(|| Trace { first_line: number, ..Trace::default() });
        trace.last_line = number;
        trace.last_unix_ms = boot_unix_ms + up_ms;
        let task = trace.tasks.entry(rank).or_default();
        match kind {
            "START" => task.starts += 1,
            "ALIVE" => {}
            "END" => task.ends.push(words.next()?.parse().ok()?),
            _ => return None,
        }
        if task.starts != 1 || task.ends.len() > 1 || (kind == "ALIVE" && !task.ends.is_empty()) {
            let complaint = format!("attempt {attempt}, task {rank} runs twice: line {number}, {line:?}");
            self.complaints.push(complaint);
        }
        Some(())
    }

    /// Everything that must not be. `supervisors_killed` allows outcomes to be unknown.
    pub fn check(mut self, told: &[Told], supervisors_killed: bool) -> Vec<String> {
        let known: BTreeSet<&str> =
            told.iter().flat_map(|told| &told.attempts).map(|attempt| attempt.id.as_str()).collect();
        let unknown = self.traces.keys().filter(|attempt| !known.contains(attempt.as_str()));
        let unknown: Vec<String> =
            unknown.map(|attempt| format!("attempt {attempt} ran, and the broker knows none")).collect();
        self.complaints.extend(unknown);
        for told in told {
            let mut found = check_phase(told);
            let units = units_of(told, &mut found);
            for (unit, attempts) in &units {
                self.check_unit(told, *unit, attempts, &mut found);
            }
            for attempt in &told.attempts {
                self.check_attempt(told, attempt, supervisors_killed, &mut found);
            }
            let (id, token) = (told.job.id, &told.acknowledged.piece.token);
            self.complaints.extend(found.into_iter().map(|what| format!("job {id} ({token}): {what}")));
        }
        self.complaints
    }

    fn check_unit(&self, told: &Told, unit: u32, attempts: &[&v1::Attempt], found: &mut Vec<String>) {
        let good = attempts.iter().filter(|attempt| code(attempt) == "Succeeded").count();
        if good > 1 || (told.job.phase() == JobPhase::Succeeded && good != 1) {
            found.push(format!("unit {unit} has {good} successful attempts"));
        }
        if told.acknowledged.piece.spec.may_overlap {
            return;
        }
        let mut traces: Vec<(&str, &Trace)> = attempts
            .iter()
            .filter_map(|attempt| Some((attempt.id.as_str(), self.traces.get(&attempt.id)?)))
            .collect();
        traces.sort_by_key(|(_, trace)| trace.first_line);
        for pair in traces.windows(2) {
            let ((first, before), (second, after)) = (pair[0], pair[1]);
            if before.last_line > after.first_line {
                found.push(format!(
                    "{first} and {second} ran at once: the one until line {}, the other from line {}",
                    before.last_line, after.first_line
                ));
            }
        }
    }

    fn check_attempt(
        &self,
        told: &Told,
        attempt: &v1::Attempt,
        supervisors_killed: bool,
        found: &mut Vec<String>,
    ) {
        let (id, trace) = (&attempt.id, self.traces.get(&attempt.id));
        if attempt.phase() != AttemptPhase::Ended {
            return found.push(format!("{id} is {:?} although its job has ended", attempt.phase()));
        }
        let piece = &told.acknowledged.piece;
        let tasks = if piece.spec.groups[0].gang { piece.spec.groups[0].count.unwrap_or(1) } else { 1 };
        let ended_with = |code: i32| -> usize {
            trace.map_or(0, |trace| trace.tasks.values().filter(|task| task.ends == [code]).count())
        };
        let outcome = attempt.outcome.clone().unwrap_or_default();
        match outcome.code.as_str() {
            "Succeeded" if ended_with(0) != tasks as usize => {
                found.push(format!("{id} succeeded, but not all of its tasks ended: {trace:?}"));
            }
            "Failed" if outcome.exit_code != Some(piece.code) || ended_with(piece.code) == 0 => {
                found.push(format!("{id} failed with {outcome:?}, but its tasks say {trace:?}"));
            }
            "Succeeded" | "Failed" => {}
            "NotStarted" => {
                if trace.is_some() {
                    found.push(format!("{id} was not started, the broker says, but it ran: {trace:?}"));
                }
            }
            "Cancelled" => {
                if piece.cancel_after_ms.is_none() && told.job.phase() == JobPhase::Succeeded {
                    found.push(format!("{id} was cancelled, and nobody had asked for it"));
                }
            }
            "LeaseEnded" if piece.requeues() => {
                // The one check by the clock: the broker declared it ended, and it may not go on.
                let declared = outcome.message == "its pool fell silent" && !piece.spec.may_overlap;
                let ended_ms = attempt.ended_unix_ms.unwrap_or(0);
                let ran_on = trace.filter(|trace| trace.last_unix_ms > ended_ms + CLOCKS_APART_MS);
                if let Some(trace) = ran_on.filter(|_| declared) {
                    let by_ms = trace.last_unix_ms - ended_ms;
                    found.push(format!("{id} ran on {by_ms} ms after the end of its lease"));
                }
            }
            "Vanished" if supervisors_killed => {}
            _ => found.push(format!("{id} ended {outcome:?}")),
        }
    }
}

/// How it ended.
pub fn code(attempt: &v1::Attempt) -> &str {
    attempt.outcome.as_ref().map_or("", |outcome| outcome.code.as_str())
}

/// Attempts by unit. A job that succeeded has one of each unit, at least.
fn units_of<'a>(told: &'a Told, found: &mut Vec<String>) -> BTreeMap<u32, Vec<&'a v1::Attempt>> {
    let mut units = BTreeMap::<u32, Vec<&v1::Attempt>>::new();
    for attempt in &told.attempts {
        match attempt.id.parse::<AttemptId>() {
            Ok(id) if id.job.0 == told.job.id => units.entry(id.unit).or_default().push(attempt),
            _ => found.push(format!("{} is no attempt of it", attempt.id)),
        }
    }
    let total = told.job.units.map_or(0, |units| units.total) as usize;
    if told.job.phase() == JobPhase::Succeeded && units.len() != total {
        found.push(format!("{} of {total} units were tried", units.len()));
    }
    units
}

fn check_phase(told: &Told) -> Vec<String> {
    let (phase, acknowledged) = (told.job.phase(), &told.acknowledged);
    let allowed: &[JobPhase] = match (acknowledged.piece.expected, acknowledged.after_cancel) {
        (Expected::Succeeds, _) => &[JobPhase::Succeeded],
        (Expected::Fails, _) => &[JobPhase::Failed],
        // It had ended before the cancel came.
        (Expected::IsCancelled, Some(JobPhase::Succeeded)) => &[JobPhase::Succeeded],
        (Expected::IsCancelled, Some(JobPhase::Cancelling | JobPhase::Cancelled)) => &[JobPhase::Cancelled],
        (Expected::IsCancelled, _) => &[],
    };
    if allowed.contains(&phase) {
        return Vec::new();
    }
    let why =
        acknowledged.after_cancel.map_or_else(String::new, |seen| format!(", after its cancel {seen:?}"));
    vec![format!("{phase:?}, not {allowed:?}{why}: {:?} {:?}", told.job.failure, told.attempts)]
}
