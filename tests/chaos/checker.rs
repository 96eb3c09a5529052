//! Tests of the history check: it finds every kind of violation and accepts valid histories.

use std::path::Path;

use weir::api::proto::v1;
use weir::api::proto::v1::{AttemptPhase, JobPhase};

use crate::clients::Acknowledged;
use crate::history::{History, JobReport};
use crate::schedule::{Profile, Seed};
use crate::work::{self, Expected, JobPlan};

/// End of the attempts on the clock of the broker. The boot clock started at 0.
const ENDED_MS: u64 = 5_000;

/// A job of one task that is expected to succeed.
fn plan() -> JobPlan {
    let seed = Seed { profile: Profile::Crash, number: 1, seconds: 100 };
    let mut plans = work::generate(seed, Path::new("/history")).into_iter();
    let plain = |plan: &JobPlan| plan.expected == Expected::Succeeds && plan.spec.groups[0].count == Some(1);
    let mut plan = plans.find(plain).expect("a plain job");
    plan.spec.may_overlap = false;
    plan.code = 3;
    plan
}

fn attempt(number: u32, code: &str, message: &str) -> v1::Attempt {
    let exit_code = match code {
        "Succeeded" => Some(0),
        "Failed" => Some(3),
        _ => None,
    };
    let (code, message) = (code.to_owned(), message.to_owned());
    let outcome = v1::Outcome { code, exit_code, message, ..Default::default() };
    v1::Attempt {
        id: format!("aaaaaaaaab-7-0-{number}"),
        phase: i32::from(AttemptPhase::Ended),
        outcome: Some(outcome),
        ended_unix_ms: Some(ENDED_MS),
        ..Default::default()
    }
}

/// Checks a history of lines `KIND NUMBER UPTIME [CODE]` of the attempts of one unit.
fn check(change: impl FnOnce(&mut JobReport), lines: &[&str]) -> Vec<String> {
    let units = v1::UnitCounts { total: 1, ..Default::default() };
    let job =
        v1::Job { id: 7, phase: i32::from(JobPhase::Succeeded), units: Some(units), ..Default::default() };
    let acknowledged = Acknowledged { plan: plan(), after_cancel: None };
    let mut report = JobReport { acknowledged, job, attempts: vec![attempt(1, "Succeeded", "")] };
    change(&mut report);
    let line = |line: &&str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, number, up] = [0, 1, 2].map(|index| words[index]);
        format!("{kind} aaaaaaaaab-7-0-{number} 0 {up} {}\n", words.get(3).unwrap_or(&""))
    };
    let text: String = lines.iter().map(line).collect();
    History::read(&text, 0).check(&[report], false)
}

fn finds(what: &str, change: impl FnOnce(&mut JobReport), lines: &[&str]) {
    let found = check(change, lines);
    assert!(found.iter().any(|violation| violation.contains(what)), "{what:?} is not in {found:?}");
}

#[test]
fn valid_histories_have_no_violations() {
    let nothing = Vec::<String>::new();
    assert_eq!(check(|_| {}, &["START 1 1.00", "ALIVE 1 1.25", "END 1 1.50 0"]), nothing);
    let retried = |report: &mut JobReport| {
        report.attempts =
            vec![attempt(1, "Failed", ""), attempt(2, "NotStarted", ""), attempt(3, "Succeeded", "")];
    };
    assert_eq!(check(retried, &["START 1 1.00", "END 1 1.50 3", "START 3 1.51", "END 3 1.60 0"]), nothing);
    // An attempt whose lease ended at its last moment may have written its end.
    let lost = |report: &mut JobReport| {
        report.acknowledged.plan.spec.on_pool_lost = i32::from(v1::OnPoolLost::Requeue);
        report.attempts = vec![attempt(1, "LeaseEnded", "its pool fell silent"), attempt(2, "Succeeded", "")];
    };
    assert_eq!(check(lost, &["START 1 1.00", "END 1 1.50 0", "START 2 6.00", "END 2 6.50 0"]), nothing);
}

#[test]
fn violations_are_found() {
    finds("not all of its tasks ended", |_| {}, &["START 1 1.00", "ALIVE 1 1.25"]);
    finds("not all of its tasks ended", |_| {}, &["START 1 1.00", "END 1 1.25 3"]);
    finds("runs twice", |_| {}, &["START 1 1.00", "START 1 1.10", "END 1 1.25 0"]);
    finds("runs twice", |_| {}, &["START 1 1.00", "END 1 1.25 0", "END 1 1.25 0"]);
    finds("runs twice", |_| {}, &["START 1 1.00", "END 1 1.25 0", "ALIVE 1 1.30"]);
    finds("but the broker has no such attempt", |_| {}, &["START 1 1.00", "END 1 1.25 0", "START 2 2.00"]);
    finds("0 successful attempts", |report| report.attempts[0] = attempt(1, "Failed", ""), &["START 1 1.00"]);
    let two = |report: &mut JobReport| report.attempts.push(attempt(2, "Succeeded", ""));
    let both = ["START 1 1.00", "END 1 1.50 0", "START 2 2.00", "END 2 2.50 0"];
    finds("2 successful attempts", two, &both);
    let unstarted = |report: &mut JobReport| report.attempts.push(attempt(2, "NotStarted", ""));
    finds("but it ran", unstarted, &both);
    let retried = |report: &mut JobReport| report.attempts.insert(0, attempt(2, "Failed", ""));
    finds("ran at once", retried, &["START 1 1.00", "START 2 1.10", "END 2 1.20 3", "END 1 1.30 0"]);
    let lost = |report: &mut JobReport| {
        report.acknowledged.plan.spec.on_pool_lost = i32::from(v1::OnPoolLost::Requeue);
        report.attempts.push(attempt(2, "LeaseEnded", "its pool fell silent"));
    };
    finds(
        "after the end of its lease",
        lost,
        &["START 2 1.00", "ALIVE 2 6.50", "START 1 7.00", "END 1 8.00 0"],
    );
    let vanished = |report: &mut JobReport| report.attempts.push(attempt(2, "Vanished", ""));
    finds("Vanished", vanished, &both);
    let running = |report: &mut JobReport| report.attempts[0].phase = i32::from(AttemptPhase::Running);
    finds("although its job has ended", running, &["START 1 1.00"]);
    let untried =
        |report: &mut JobReport| report.job.units = Some(v1::UnitCounts { total: 2, ..Default::default() });
    finds("1 of 2 units", untried, &["START 1 1.00", "END 1 1.50 0"]);
    let failed = |report: &mut JobReport| report.job.phase = i32::from(JobPhase::Failed);
    finds("Failed, not [Succeeded]", failed, &["START 1 1.00", "END 1 1.50 0"]);
}

#[test]
fn job_that_was_cancelled_before_its_end_must_not_succeed() {
    let cancelled = |after: JobPhase| {
        move |report: &mut JobReport| {
            report.acknowledged.plan.expected = Expected::IsCancelled;
            report.acknowledged.after_cancel = Some(after);
        }
    };
    let lines = ["START 1 1.00", "END 1 1.50 0"];
    assert_eq!(check(cancelled(JobPhase::Succeeded), &lines), Vec::<String>::new());
    for after in [JobPhase::Cancelling, JobPhase::Cancelled, JobPhase::Running, JobPhase::Pending] {
        finds("after its cancel", cancelled(after), &lines);
    }
}
