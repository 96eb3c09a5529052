//! Compares what tasks wrote with what the broker reports after all faults have healed, like Jepsen's Chronos
//! test.
//!
//! The order of lines in the file is the order of events, since each line is one write to an append-only
//! file. So the checks don't depend on clocks, except for one that is marked.

use std::collections::{BTreeMap, BTreeSet};

use weir::api::proto::v1;
use weir::api::proto::v1::{AttemptPhase, JobPhase};
use weir::model::id::AttemptId;

use crate::clients::Acknowledged;
use crate::work::Expected;

/// Maximum difference between the boot clock and the clock of the broker, which started as the wall clock, in
/// milliseconds: small steps of the wall clock. A lease ends some 10 s before its unit is requeued.
const CLOCKS_APART_MS: u64 = 1_000;

/// An acknowledged job as the broker reports it after its end.
pub struct JobReport {
    pub acknowledged: Acknowledged,
    pub job: v1::Job,
    pub attempts: Vec<v1::Attempt>,
}

/// The lines that one task of an attempt wrote.
#[derive(Debug, Default)]
struct Task {
    starts: usize,
    /// Exit codes in its END lines.
    ends: Vec<i32>,
}

/// The lines that the tasks of an attempt wrote.
#[derive(Debug, Default)]
struct Trace {
    tasks: BTreeMap<usize, Task>,
    first_line: usize,
    last_line: usize,
    /// Time of the last line.
    last_unix_ms: u64,
}

/// The attempts that wrote lines, and the violations found in the lines.
pub struct History {
    traces: BTreeMap<String, Trace>,
    violations: Vec<String>,
}

impl History {
    /// Parses the history file. `boot_unix_ms` is the wall-clock time at which the boot clock was 0.
    pub fn read(text: &str, boot_unix_ms: u64) -> Self {
        let mut history = Self { traces: BTreeMap::new(), violations: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            if history.add_line(number, line, boot_unix_ms).is_none() {
                history.violations.push(format!("line {number} of the history is invalid: {line:?}"));
            }
        }
        history
    }

    fn add_line(&mut self, number: usize, line: &str, boot_unix_ms: u64) -> Option<()> {
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
            let violation = format!("attempt {attempt}, task {rank} runs twice: line {number}, {line:?}");
            self.violations.push(violation);
        }
        Some(())
    }

    /// Returns all violations. `supervisors_killed` allows unknown outcomes.
    pub fn check(mut self, reports: &[JobReport], supervisors_killed: bool) -> Vec<String> {
        let known: BTreeSet<&str> =
            reports.iter().flat_map(|report| &report.attempts).map(|attempt| attempt.id.as_str()).collect();
        let unknown = self.traces.keys().filter(|attempt| !known.contains(attempt.as_str()));
        let unknown: Vec<String> = unknown
            .map(|attempt| format!("attempt {attempt} ran, but the broker has no such attempt"))
            .collect();
        self.violations.extend(unknown);
        for report in reports {
            let mut found = check_phase(report);
            let units = units_of(report, &mut found);
            for (unit, attempts) in &units {
                self.check_unit(report, *unit, attempts, &mut found);
            }
            for attempt in &report.attempts {
                self.check_attempt(report, attempt, supervisors_killed, &mut found);
            }
            let (id, token) = (report.job.id, &report.acknowledged.plan.token);
            self.violations.extend(found.into_iter().map(|what| format!("job {id} ({token}): {what}")));
        }
        self.violations
    }

    fn check_unit(&self, report: &JobReport, unit: u32, attempts: &[&v1::Attempt], found: &mut Vec<String>) {
        let good = attempts.iter().filter(|attempt| code(attempt) == "Succeeded").count();
        if good > 1 || (report.job.phase() == JobPhase::Succeeded && good != 1) {
            found.push(format!("unit {unit} has {good} successful attempts"));
        }
        if report.acknowledged.plan.spec.may_overlap {
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
                    "{first} and {second} ran at once: the first until line {}, the second from line {}",
                    before.last_line, after.first_line
                ));
            }
        }
    }

    fn check_attempt(
        &self,
        report: &JobReport,
        attempt: &v1::Attempt,
        supervisors_killed: bool,
        found: &mut Vec<String>,
    ) {
        let (id, trace) = (&attempt.id, self.traces.get(&attempt.id));
        if attempt.phase() != AttemptPhase::Ended {
            return found.push(format!("{id} is {:?} although its job has ended", attempt.phase()));
        }
        let plan = &report.acknowledged.plan;
        let tasks = if plan.spec.groups[0].gang { plan.spec.groups[0].count.unwrap_or(1) } else { 1 };
        let ended_with = |code: i32| -> usize {
            trace.map_or(0, |trace| trace.tasks.values().filter(|task| task.ends == [code]).count())
        };
        let outcome = attempt.outcome.clone().unwrap_or_default();
        match outcome.code.as_str() {
            "Succeeded" if ended_with(0) != tasks as usize => {
                found.push(format!("{id} succeeded, but not all of its tasks ended: {trace:?}"));
            }
            "Failed" if outcome.exit_code != Some(plan.code) || ended_with(plan.code) == 0 => {
                found.push(format!("{id} failed with {outcome:?}, but its tasks wrote {trace:?}"));
            }
            "Succeeded" | "Failed" => {}
            "NotStarted" => {
                if trace.is_some() {
                    found.push(format!("{id} was reported as not started, but it ran: {trace:?}"));
                }
            }
            "Cancelled" => {
                if plan.cancel_after_ms.is_none() && report.job.phase() == JobPhase::Succeeded {
                    found.push(format!("{id} was cancelled without a request"));
                }
            }
            "LeaseEnded" if plan.requeues() => {
                // The only check that depends on clocks: after the broker declared the lease ended, the
                // attempt must not run.
                let declared = outcome.message == "its pool fell silent" && !plan.spec.may_overlap;
                let ended_ms = attempt.ended_unix_ms.unwrap_or(0);
                let ran_on = trace.filter(|trace| trace.last_unix_ms > ended_ms + CLOCKS_APART_MS);
                if let Some(trace) = ran_on.filter(|_| declared) {
                    let by_ms = trace.last_unix_ms - ended_ms;
                    found.push(format!("{id} ran {by_ms} ms after the end of its lease"));
                }
            }
            "Vanished" if supervisors_killed => {}
            _ => found.push(format!("{id} ended {outcome:?}")),
        }
    }
}

/// The outcome code of an attempt; empty if it has not ended.
pub fn code(attempt: &v1::Attempt) -> &str {
    attempt.outcome.as_ref().map_or("", |outcome| outcome.code.as_str())
}

/// Groups attempts by unit. A job that succeeded must have at least one attempt of each unit.
fn units_of<'a>(report: &'a JobReport, found: &mut Vec<String>) -> BTreeMap<u32, Vec<&'a v1::Attempt>> {
    let mut units = BTreeMap::<u32, Vec<&v1::Attempt>>::new();
    for attempt in &report.attempts {
        match attempt.id.parse::<AttemptId>() {
            Ok(id) if id.job.0 == report.job.id => units.entry(id.unit).or_default().push(attempt),
            _ => found.push(format!("{} is not an attempt of this job", attempt.id)),
        }
    }
    let total = report.job.units.map_or(0, |units| units.total) as usize;
    if report.job.phase() == JobPhase::Succeeded && units.len() != total {
        found.push(format!("{} of {total} units were tried", units.len()));
    }
    units
}

fn check_phase(report: &JobReport) -> Vec<String> {
    let (phase, acknowledged) = (report.job.phase(), &report.acknowledged);
    let allowed: &[JobPhase] = match (acknowledged.plan.expected, acknowledged.after_cancel) {
        (Expected::Succeeds, _) => &[JobPhase::Succeeded],
        (Expected::Fails, _) => &[JobPhase::Failed],
        // The job had ended before the cancel arrived.
        (Expected::IsCancelled, Some(JobPhase::Succeeded)) => &[JobPhase::Succeeded],
        (Expected::IsCancelled, Some(JobPhase::Cancelling | JobPhase::Cancelled)) => &[JobPhase::Cancelled],
        (Expected::IsCancelled, _) => &[],
    };
    if allowed.contains(&phase) {
        return Vec::new();
    }
    let why =
        acknowledged.after_cancel.map_or_else(String::new, |phase| format!(", after its cancel {phase:?}"));
    vec![format!("{phase:?}, not {allowed:?}{why}: {:?} {:?}", report.job.failure, report.attempts)]
}
