//! Interprets the status of a pod, and derives an attempt's status from those of its pods. Pure functions.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::names;
use crate::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use crate::model::limit::MESSAGE_LEN_MAX;
use crate::model::text;
use crate::model::time::Timestamp;

/// Why Weir stopped a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StopCause {
    /// Another task of its unit failed.
    Sibling,
    /// Its main container has ended while others run.
    MainEnded,
    /// The attempt as a whole ends with this outcome.
    Attempt(OutcomeKind, String),
}

const SIBLING: &str = "Sibling";
const MAIN_ENDED: &str = "MainEnded";

impl StopCause {
    /// The value of the annotation `names::STOP`.
    pub(super) fn to_annotation(&self) -> String {
        match self {
            Self::Sibling => SIBLING.to_owned(),
            Self::MainEnded => MAIN_ENDED.to_owned(),
            Self::Attempt(kind, message) => format!("{} {message}", kind.code()),
        }
    }

    fn from_annotation(text: &str) -> Self {
        let (code, message) = text.split_once(' ').unwrap_or((text, ""));
        match code {
            SIBLING => return Self::Sibling,
            MAIN_ENDED => return Self::MainEnded,
            _ => {}
        }
        // An unknown code comes from a newer agent or was set by hand. The pod was stopped in any case.
        let found = OutcomeKind::ALL.into_iter().find(|kind| kind.code() == code);
        Self::Attempt(found.unwrap_or(OutcomeKind::Cancelled), message.to_owned())
    }
}

/// The state of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PodState {
    /// Not all of its containers have started. `obstacle` is `None` while the start proceeds normally.
    Pending {
        obstacle: Option<StartObstacle>,
    },
    Running {
        started_at: Timestamp,
    },
    /// No container is left. `outcome` is `None` if the pod ended because Weir stopped it.
    Ended {
        started_at: Option<Timestamp>,
        ended_at: Timestamp,
        outcome: Option<Outcome>,
    },
}

/// What prevents a pod from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StartObstacle {
    /// No amount of waiting removes it.
    pub(super) permanent: bool,
    pub(super) message: String,
}

/// What an attempt needs of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodView {
    pub(super) uid: String,
    pub(super) state: PodState,
    pub(super) stop: Option<StopCause>,
    /// It has a node, or a kubelet has acknowledged it. Only that kubelet can end it.
    pub(super) bound: bool,
    /// Its main container has started, so there may be output.
    pub(super) has_started: bool,
    /// The main container has ended, and other containers still run.
    pub(super) only_helpers_run: bool,
    /// Name of the main container, which is the task.
    pub(super) container: String,
}

impl PodView {
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state, PodState::Ended { .. })
    }

    /// True if its node's kubelet rejected it for lack of capacity.
    pub(super) fn was_rejected_for_capacity(&self) -> bool {
        let PodState::Ended { outcome: Some(outcome), .. } = &self.state else { return false };
        outcome.kind == OutcomeKind::NotStarted
    }
}

/// Reads a pod. `now` replaces times that its status lacks.
pub(super) fn view(pod: &Pod, now: Timestamp) -> PodView {
    let none = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&none);
    let annotations = pod.metadata.annotations.as_ref();
    let stop = annotations.and_then(|all| all.get(names::STOP)).map(|text| StopCause::from_annotation(text));
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) || status.start_time.is_some();
    let name = main_container(pod);
    let statuses = status.container_statuses.as_ref();
    let main = statuses.and_then(|all| all.iter().find(|container| container.name == name));
    let main = main.and_then(|container| container.state.as_ref());
    let terminated = main.and_then(|main| main.terminated.as_ref());
    let running = main.and_then(|main| main.running.as_ref());
    let has_started = terminated.is_some_and(|ended| ended.started_at.is_some()) || running.is_some();
    let state = match status.phase.as_deref() {
        Some("Succeeded" | "Failed") => {
            let started_at = terminated.and_then(|ended| ended.started_at.as_ref()).map(time);
            let ended_at = terminated.and_then(|ended| ended.finished_at.as_ref()).map_or(now, time);
            let outcome = end_outcome(status, terminated, stop.as_ref(), deletion_requested_at(pod));
            PodState::Ended { started_at, ended_at, outcome }
        }
        Some("Running") => {
            let since = running.and_then(|running| running.started_at.as_ref());
            let since = since.or(terminated.and_then(|ended| ended.started_at.as_ref()));
            PodState::Running { started_at: since.or(status.start_time.as_ref()).map_or(now, time) }
        }
        _ => PodState::Pending { obstacle: start_obstacle(status).or_else(|| (!bound).then(unscheduled)) },
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let only_helpers_run = terminated.is_some() && matches!(state, PodState::Running { .. });
    PodView { uid, state, stop, bound, has_started, only_helpers_run, container: name.to_owned() }
}

/// When the pod's deletion was requested; `None` if it was not. `deletionTimestamp` is one grace period later.
fn deletion_requested_at(pod: &Pod) -> Option<Timestamp> {
    let due = time(pod.metadata.deletion_timestamp.as_ref()?);
    let grace_s = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    Some(Timestamp(due.0.saturating_sub(u64::try_from(grace_s).unwrap_or(0).saturating_mul(1_000))))
}

/// Reads a pod that was removed. If no end was reported and it had a node, the outcome is `Vanished`: its
/// containers may still run.
pub(super) fn removed(pod: &Pod, now: Timestamp) -> PodView {
    let mut view = view(pod, now);
    if view.is_ended() {
        return view;
    }
    let never_bound = !view.bound;
    let outcome = if view.stop.is_some() && never_bound {
        None
    } else if never_bound {
        Some(Outcome::plain(OutcomeKind::Drained, "its pod was deleted before it was bound to a node"))
    } else {
        let why = pod.status.as_ref().and_then(disrupted).map_or_else(
            || "its pod was removed while it ran".to_owned(),
            |(_, message)| format!("its pod was removed while it ran: {message}"),
        );
        Some(outcome(OutcomeKind::Vanished, why))
    };
    let started_at = match view.state {
        PodState::Running { started_at } => Some(started_at),
        PodState::Pending { .. } | PodState::Ended { .. } => None,
    };
    view.state = PodState::Ended { started_at, ended_at: now, outcome };
    view
}

/// Name of the main container: `names::CONTAINER`, or else the first.
fn main_container(pod: &Pod) -> &str {
    let all = pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    let main = all.iter().find(|container| container.name == names::CONTAINER).or_else(|| all.first());
    main.map_or(names::CONTAINER, |container| &container.name)
}

/// The obstacle of a pod that its scheduler has not processed yet.
fn unscheduled() -> StartObstacle {
    StartObstacle { permanent: false, message: "its scheduler has not bound it to a node".to_owned() }
}

fn time(at: &Time) -> Timestamp {
    Timestamp(u64::try_from(at.0.as_millisecond()).unwrap_or(0))
}

/// An outcome without an exit status, its message cut to `MESSAGE_LEN_MAX`.
pub(super) fn outcome(kind: OutcomeKind, mut message: String) -> Outcome {
    text::truncate(&mut message, MESSAGE_LEN_MAX);
    Outcome { message, ..Outcome::plain(kind, "") }
}

/// Why the cluster removed the pod, from its disruption condition.
/// <https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions>
fn disrupted(status: &PodStatus) -> Option<(OutcomeKind, String)> {
    let conditions = status.conditions.as_ref()?;
    let condition = conditions.iter().find(|one| one.type_ == "DisruptionTarget" && one.status == "True")?;
    let reason = condition.reason.as_deref().unwrap_or_default();
    let kind = match reason {
        "PreemptionByScheduler" => OutcomeKind::Preempted,
        "DeletionByTaintManager" | "DeletionByPodGC" => OutcomeKind::NodeLost,
        // Evicted through the API, for lack of a node's memory or disk, or by its node's shutdown.
        _ => OutcomeKind::Drained,
    };
    let message = condition.message.as_deref().unwrap_or_default();
    Some((kind, format!("{reason}: {message}").trim_end_matches([':', ' ']).to_owned()))
}

/// How a pod ended: by its main container's exit, or by what ended the pod before. `None` if it ended because
/// Weir stopped it.
fn end_outcome(
    status: &PodStatus,
    main: Option<&ContainerStateTerminated>,
    stop: Option<&StopCause>,
    deletion_requested_at: Option<Timestamp>,
) -> Option<Outcome> {
    // Weir ended only the helpers, so the main container's exit counts.
    if let (Some(StopCause::MainEnded), Some(main)) = (stop, main) {
        return Some(of_container(main, None));
    }
    let stopped = stop.is_some();
    let finished_at = main.and_then(|main| main.finished_at.as_ref()).map(time);
    // Both times are in seconds. In the second of the deletion, it counts as the cause.
    let after_deletion = deletion_requested_at
        .is_some_and(|requested| finished_at.is_none_or(|finished| finished >= requested));
    if status.phase.as_deref() == Some("Succeeded") {
        // A program that saves its work when it is stopped exits with 0, and has not finished.
        return match (after_deletion, stopped) {
            (false, _) => Some(Outcome { exit_code: Some(0), ..Outcome::plain(OutcomeKind::Succeeded, "") }),
            (true, true) => None,
            (true, false) => {
                Some(disrupted(status).map_or_else(deleted, |(kind, message)| outcome(kind, message)))
            }
        };
    }
    let message = status.message.clone().unwrap_or_default();
    let reason = status.reason.as_deref().unwrap_or_default();
    let status_text = format!("{reason}: {message}").trim_matches([':', ' ']).to_owned();
    if reason == "DeadlineExceeded" {
        let message = "it ran longer than its max_run".to_owned();
        return (!stopped).then(|| outcome(OutcomeKind::TimedOut, message));
    }
    let killed = main.is_none_or(|main| main.exit_code == 137 || main.exit_code == 143);
    if stopped && killed {
        return None;
    }
    // Any end after the deletion was requested is attributed to the deletion.
    let by_deletion = killed || (finished_at.is_some() && after_deletion);
    if let Some((kind, message)) = disrupted(status).filter(|_| by_deletion) {
        return Some(outcome(kind, message));
    }
    match reason {
        "Evicted" | "NodeShutdown" | "Shutdown" | "Terminated" => {
            return Some(outcome(OutcomeKind::Drained, status_text));
        }
        "Preempting" => return Some(outcome(OutcomeKind::Preempted, status_text)),
        "NodeLost" => return Some(outcome(OutcomeKind::NodeLost, status_text)),
        _ => {}
    }
    if deletion_requested_at.is_some() && by_deletion {
        return Some(deleted());
    }
    if let Some(main) = main.filter(|main| main.exit_code != 0) {
        return Some(of_container(main, None));
    }
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let mut failed = all.filter_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then_some((&container.name, ended))
    });
    if let Some((name, ended)) = failed.next() {
        return Some(of_container(ended, Some(name)));
    }
    Some(match main {
        Some(_) => outcome(OutcomeKind::Failed, status_text),
        // Another pod took the capacity first.
        None if reason.starts_with(OUT_OF) => outcome(OutcomeKind::NotStarted, status_text),
        // Its kubelet rejected it for another reason: NodeAffinity, UnexpectedAdmissionError and the like.
        // An error of the kubelet's own is the node's; the others are the pod's.
        None => {
            let node_fault = reason == "UnexpectedAdmissionError";
            Outcome { node_fault, ..outcome(OutcomeKind::StartFailed, status_text) }
        }
    })
}

/// The outcome of a pod that somebody else deleted.
fn deleted() -> Outcome {
    outcome(OutcomeKind::Drained, "its pod was deleted".to_owned())
}

/// Prefix of a kubelet's reasons for rejecting a pod for lack of a resource: `OutOfcpu`, `OutOfpods`.
const OUT_OF: &str = "OutOf";

/// How a container ended. `other` is its name, unless it is the main one.
fn of_container(ended: &ContainerStateTerminated, other: Option<&str>) -> Outcome {
    let reason = ended.reason.as_deref().unwrap_or_default();
    let detail = ended.message.clone().unwrap_or_default();
    let (kind, message) = match reason {
        _ if ended.exit_code == 0 => (OutcomeKind::Succeeded, String::new()),
        "OOMKilled" => (OutcomeKind::OutOfMemory, "used more memory than it requested".to_owned()),
        "StartError" | "ContainerCannotRun" => (OutcomeKind::StartFailed, format!("{reason}: {detail}")),
        "ContainerStatusUnknown" => {
            (OutcomeKind::Vanished, "its node lost track of the container".to_owned())
        }
        _ => (OutcomeKind::Failed, detail.trim().to_owned()),
    };
    // Container runtimes report signal N as code 128 + N. Linux has 64 signals; larger codes are exit codes.
    let by_code = (129..=192).contains(&ended.exit_code).then(|| ended.exit_code - 128);
    let signal = ended.signal.filter(|signal| *signal > 0).or(by_code);
    let has_exited = kind != OutcomeKind::StartFailed && kind != OutcomeKind::Vanished;
    let exit_code = (has_exited && signal.is_none()).then_some(ended.exit_code);
    let message = match other {
        Some(name) => format!("container {name}: {message}").trim_end_matches([':', ' ']).to_owned(),
        None => message,
    };
    Outcome { exit_code, signal: signal.filter(|_| has_exited), ..outcome(kind, message) }
}

/// Reasons of waiting containers that are permanent.
const PERMANENT: [&str; 2] = ["InvalidImageName", "ErrImageNeverPull"];
/// Reasons of waiting containers that are part of every start.
const NORMAL_WAITS: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// What prevents a pod from starting: a waiting container, or the scheduler's verdict; `None` if nothing does.
fn start_obstacle(status: &PodStatus) -> Option<StartObstacle> {
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in all {
        let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) else {
            continue;
        };
        let reason = waiting.reason.as_deref().unwrap_or_default();
        if reason.is_empty() || NORMAL_WAITS.contains(&reason) {
            continue;
        }
        let message = format!("{reason}: {}", waiting.message.as_deref().unwrap_or_default());
        return Some(StartObstacle { permanent: PERMANENT.contains(&reason), message: trimmed(message) });
    }
    let conditions = status.conditions.as_ref()?;
    let unschedulable = conditions.iter().find(|one| {
        one.type_ == "PodScheduled" && one.status == "False" && one.reason.as_deref() == Some("Unschedulable")
    })?;
    let message = format!("Unschedulable: {}", unschedulable.message.as_deref().unwrap_or_default());
    Some(StartObstacle { permanent: false, message: trimmed(message) })
}

fn trimmed(message: String) -> String {
    let mut message = message.trim_end_matches([':', ' ']).to_owned();
    text::truncate(&mut message, MESSAGE_LEN_MAX);
    message
}

/// Derives an attempt's status from all of its pods, by rank.
///
/// It is running once every task has started, and ended once every pod has ended. The first failure decides the
/// outcome.
pub(super) fn attempt_status(pods: &[PodView]) -> AttemptStatus {
    let starts = pods.iter().filter_map(|pod| match &pod.state {
        PodState::Running { started_at } => Some(*started_at),
        PodState::Ended { started_at, .. } => *started_at,
        PodState::Pending { .. } => None,
    });
    let started_at = starts.max();
    if pods.iter().any(|pod| !pod.is_ended()) {
        let starting = pods.iter().any(|pod| matches!(pod.state, PodState::Pending { .. }));
        return match started_at {
            Some(started_at) if !starting => AttemptStatus::Running { started_at },
            _ => AttemptStatus::Starting,
        };
    }
    let ends = pods.iter().filter_map(|pod| match pod.state {
        PodState::Ended { ended_at, .. } => Some(ended_at),
        PodState::Running { .. } | PodState::Pending { .. } => None,
    });
    let ended_at = ends.max().unwrap_or_default();
    AttemptStatus::Ended { started_at, ended_at, outcome: outcome_of(pods) }
}

/// Returns the rank and outcome of the first task that failed by itself. A vanished task precedes all others,
/// since it may still run.
pub(super) fn first_failure(pods: &[PodView]) -> Option<(usize, &Outcome)> {
    let failed = pods.iter().enumerate().filter_map(|(rank, pod)| match &pod.state {
        PodState::Ended { outcome: Some(outcome), ended_at, .. }
            if outcome.kind != OutcomeKind::Succeeded =>
        {
            Some((*ended_at, rank, outcome))
        }
        PodState::Ended { .. } | PodState::Running { .. } | PodState::Pending { .. } => None,
    });
    let first = failed
        .min_by_key(|(ended_at, rank, outcome)| (outcome.kind != OutcomeKind::Vanished, *ended_at, *rank));
    first.map(|(_, rank, outcome)| (rank, outcome))
}

fn outcome_of(pods: &[PodView]) -> Outcome {
    let ordered = pods.iter().find_map(|pod| match &pod.stop {
        Some(StopCause::Attempt(kind, message)) => Some((*kind, message)),
        Some(StopCause::Sibling | StopCause::MainEnded) | None => None,
    });
    if let Some((rank, failure)) = first_failure(pods) {
        let mut failure = failure.clone();
        if pods.len() > 1 {
            failure.message = trimmed(format!("task {rank} of {}: {}", pods.len(), failure.message));
        }
        return failure;
    }
    let cut_short = pods.iter().any(|pod| matches!(pod.state, PodState::Ended { outcome: None, .. }));
    match ordered {
        Some((kind, message)) if cut_short => Outcome::plain(kind, message),
        // The task whose failure stopped the others was removed, and its outcome with it.
        None if cut_short => {
            Outcome::plain(OutcomeKind::Vanished, "one of its tasks was stopped, and the cause is unknown")
        }
        _ => Outcome { exit_code: Some(0), ..Outcome::plain(OutcomeKind::Succeeded, "") },
    }
}

/// True if the end of one of them was not observed.
pub(super) fn has_vanished(pods: &[PodView]) -> bool {
    first_failure(pods).is_some_and(|(_, outcome)| outcome.kind == OutcomeKind::Vanished)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotation: &str, status: &str) -> Pod {
        let annotations =
            if annotation.is_empty() { String::new() } else { format!(r#""weir.dev/stop": "{annotation}""#) };
        let text = format!(
            r#"{{"metadata": {{"uid": "u", "annotations": {{{annotations}}}}}, "spec": {{"containers": [{{"name": "task"}}], "nodeName": "n"}}, "status": {status}}}"#
        );
        serde_json::from_str(&text).expect("a pod")
    }

    fn failed(reason: &str, terminated: &str) -> String {
        let container = format!(
            r#"[{{"name": "task", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {{"terminated": {terminated}}}}}]"#
        );
        let containers = if terminated.is_empty() { "[]".to_owned() } else { container };
        format!(
            r#"{{"phase": "Failed", "reason": "{reason}", "message": "text", "containerStatuses": {containers}}}"#
        )
    }

    fn of(annotation: &str, status: &str) -> Option<Outcome> {
        match view(&pod(annotation, status), Timestamp(7)).state {
            PodState::Ended { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_end_has_its_outcome() {
        let check = |status: String, kind: OutcomeKind, code: Option<i32>, signal: Option<i32>| {
            let outcome = of("", &status).expect("an outcome");
            assert_eq!((outcome.kind, outcome.exit_code, outcome.signal), (kind, code, signal), "{status}");
        };
        let exit =
            |code: i32, reason: &str| failed("", &format!(r#"{{"exitCode": {code}, "reason": "{reason}"}}"#));
        check(exit(3, "Error"), OutcomeKind::Failed, Some(3), None);
        check(exit(137, "OOMKilled"), OutcomeKind::OutOfMemory, None, Some(9));
        check(exit(139, "Error"), OutcomeKind::Failed, None, Some(11));
        check(exit(128, "StartError"), OutcomeKind::StartFailed, None, None);
        check(exit(137, "ContainerStatusUnknown"), OutcomeKind::Vanished, None, None);
        check(failed("DeadlineExceeded", ""), OutcomeKind::TimedOut, None, None);
        check(failed("Evicted", ""), OutcomeKind::Drained, None, None);
        check(failed("OutOfpods", ""), OutcomeKind::NotStarted, None, None);
        check(failed("UnexpectedAdmissionError", ""), OutcomeKind::StartFailed, None, None);
        check(failed("NodeLost", ""), OutcomeKind::NodeLost, None, None);
        check(r#"{"phase": "Succeeded"}"#.to_owned(), OutcomeKind::Succeeded, Some(0), None);
        let disrupted = |reason: &str| {
            format!(
                r#"{{"phase": "Failed", "conditions": [{{"type": "DisruptionTarget", "status": "True", "reason": "{reason}", "message": "m"}}]}}"#
            )
        };
        check(disrupted("EvictionByEvictionAPI"), OutcomeKind::Drained, None, None);
        check(disrupted("DeletionByTaintManager"), OutcomeKind::NodeLost, None, None);
        check(disrupted("PreemptionByScheduler"), OutcomeKind::Preempted, None, None);
    }

    #[test]
    fn a_deleted_pod_was_drained_unless_it_ended_first() {
        let kind_of = |annotation: &str, code: u32, second: u32| {
            let ended = format!(r#"{{"exitCode": {code}, "finishedAt": "2026-01-01T00:00:{second:02}Z"}}"#);
            let status = failed("", &ended);
            let status = if code == 0 { status.replace("Failed", "Succeeded") } else { status };
            let mut pod = pod(annotation, &status);
            let due = "2026-01-01T00:00:40Z".parse().expect("a time");
            pod.metadata.deletion_timestamp = Some(Time(due));
            pod.metadata.deletion_grace_period_seconds = Some(30);
            match view(&pod, Timestamp(7)).state {
                PodState::Ended { outcome, .. } => outcome.map(|outcome| outcome.kind),
                other => panic!("{other:?}"),
            }
        };
        let kind = |code: u32, second: u32| kind_of("", code, second);
        assert_eq!(kind(143, 12), Some(OutcomeKind::Drained));
        assert_eq!(kind(0, 12), Some(OutcomeKind::Drained), "it saved its work and exited with 0");
        assert_eq!(kind(0, 9), Some(OutcomeKind::Succeeded), "it ended before the deletion was requested");
        assert_eq!(kind_of("Cancelled bye", 0, 12), None, "it ended because Weir stopped it");
        assert_eq!(kind_of("Cancelled bye", 0, 9), Some(OutcomeKind::Succeeded));
        assert_eq!(kind(3, 12), Some(OutcomeKind::Drained), "it handled the signal and exited");
        assert_eq!(kind(3, 9), Some(OutcomeKind::Failed), "it ended before the deletion was requested");
    }

    #[test]
    fn a_pod_fails_if_any_container_does() {
        let container = |name: &str, state: &str| {
            format!(
                r#"{{"name": "{name}", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {state}}}"#
            )
        };
        let ended = |code: u32| format!(r#"{{"terminated": {{"exitCode": {code}}}}}"#);
        let of = |status: String| of("", &status).expect("an outcome");
        let (main, helper) = (container("task", &ended(0)), container("helper", &ended(9)));
        let outcome = of(format!(r#"{{"phase": "Failed", "containerStatuses": [{main}, {helper}]}}"#));
        assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Failed, Some(9)));
        assert_eq!(outcome.message, "container helper");
        let (waits, first) = (container("task", r#"{"waiting": {}}"#), container("first", &ended(2)));
        let outcome = of(format!(
            r#"{{"phase": "Failed", "initContainerStatuses": [{first}], "containerStatuses": [{waits}]}}"#
        ));
        assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Failed, Some(2)));
    }

    #[test]
    fn a_task_ends_when_its_main_container_does() {
        let status = |phase: &str, code: u32| {
            format!(
                r#"{{"phase": "{phase}", "reason": "DeadlineExceeded", "containerStatuses": [
                {{"name": "helper", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {{"running": {{}}}}}},
                {{"name": "task", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {{"terminated": {{"exitCode": {code}}}}}}}]}}"#
            )
        };
        let view = view(&pod("", &status("Running", 0)), Timestamp(7));
        assert!(view.only_helpers_run && matches!(view.state, PodState::Running { .. }));
        let cause = StopCause::MainEnded.to_annotation();
        let kind = |code: u32| of(&cause, &status("Failed", code)).map(|outcome| outcome.kind);
        assert_eq!((kind(0), kind(4)), (Some(OutcomeKind::Succeeded), Some(OutcomeKind::Failed)));
    }

    #[test]
    fn a_stopped_pod_ends_with_the_cause_of_the_stop() {
        let killed = failed("", r#"{"exitCode": 143}"#);
        assert_eq!(of("Cancelled bye", &killed), None);
        assert_eq!(of("Sibling", &failed("DeadlineExceeded", "")), None);
        // It ended by itself before the stop took effect.
        let own = of("Cancelled ", &failed("", r#"{"exitCode": 4}"#)).expect("its own");
        assert_eq!(own.exit_code, Some(4));
        let cancelled = view(&pod("Cancelled bye", &killed), Timestamp(7));
        let AttemptStatus::Ended { outcome, .. } = attempt_status(&[cancelled]) else { panic!("it ended") };
        assert_eq!((outcome.kind, outcome.message.as_str()), (OutcomeKind::Cancelled, "bye"));
    }

    #[test]
    fn the_first_task_that_fails_ends_a_gang() {
        let at = |second: u32, code: u32| {
            let ended = format!(
                r#"{{"exitCode": {code}, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:0{second}Z"}}"#
            );
            view(&pod("", &failed("", &ended)), Timestamp(7))
        };
        let stopped = view(&pod("Sibling", &failed("", r#"{"exitCode": 137}"#)), Timestamp(7));
        let running =
            view(&pod("", r#"{"phase": "Running", "startTime": "2026-01-01T00:00:00Z"}"#), Timestamp(7));
        assert!(matches!(attempt_status(&[at(5, 1), running.clone()]), AttemptStatus::Running { .. }));
        let pending = view(&pod("", r#"{"phase": "Pending"}"#), Timestamp(7));
        assert_eq!(attempt_status(&[running, pending]), AttemptStatus::Starting);
        let AttemptStatus::Ended { outcome, .. } = attempt_status(&[at(5, 1), at(3, 2), stopped.clone()])
        else {
            panic!()
        };
        assert_eq!((outcome.exit_code, outcome.message.as_str()), (Some(2), "task 1 of 3"));
        let AttemptStatus::Ended { outcome, .. } = attempt_status(&[stopped]) else { panic!() };
        assert_eq!(outcome.kind, OutcomeKind::Vanished);
        let gone = removed(&pod("", r#"{"phase": "Running"}"#), Timestamp(u64::MAX));
        let AttemptStatus::Ended { outcome, .. } = attempt_status(&[at(1, 2), gone]) else { panic!() };
        assert_eq!(outcome.kind, OutcomeKind::Vanished, "it may still run");
    }

    #[test]
    fn a_pod_removed_while_it_ran_has_vanished() {
        let gone =
            |annotation: &str, status: &str| match removed(&pod(annotation, status), Timestamp(7)).state {
                PodState::Ended { outcome, .. } => outcome.map(|outcome| outcome.kind),
                other => panic!("{other:?}"),
            };
        assert_eq!(gone("", r#"{"phase": "Running"}"#), Some(OutcomeKind::Vanished));
        assert_eq!(gone("Cancelled", r#"{"phase": "Running"}"#), Some(OutcomeKind::Vanished));
        assert_eq!(gone("", r#"{"phase": "Succeeded"}"#), Some(OutcomeKind::Succeeded));
        let mut unplaced = pod("Cancelled", r#"{"phase": "Pending"}"#);
        unplaced.spec.as_mut().expect("a spec").node_name = None;
        assert!(matches!(removed(&unplaced, Timestamp(7)).state, PodState::Ended { outcome: None, .. }));
    }

    #[test]
    fn an_obstacle_to_the_start_is_reported() {
        let waiting = |reason: &str| {
            let status = format!(
                r#"{{"phase": "Pending", "containerStatuses": [{{"name": "task", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                "state": {{"waiting": {{"reason": "{reason}", "message": "no such image"}}}}}}]}}"#
            );
            match view(&pod("", &status), Timestamp(7)).state {
                PodState::Pending { obstacle } => {
                    obstacle.map(|obstacle| (obstacle.permanent, obstacle.message))
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(waiting("ContainerCreating"), None);
        assert_eq!(waiting("ImagePullBackOff"), Some((false, "ImagePullBackOff: no such image".to_owned())));
        assert_eq!(waiting("InvalidImageName"), Some((true, "InvalidImageName: no such image".to_owned())));
    }
}
