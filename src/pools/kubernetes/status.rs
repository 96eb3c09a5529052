//! What a pod's status means, and what those of all of an attempt's pods mean together.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::names;
use crate::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use crate::model::limit::MESSAGE_LEN_MAX;
use crate::model::text;
use crate::model::time::Timestamp;

/// Why Weir told a pod to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StopCause {
    /// Another task of its unit ended badly.
    Sibling,
    /// Its main container has ended, and others go on.
    MainEnded,
    /// The attempt ends so, whatever its tasks do.
    Attempt(OutcomeKind, String),
}

const SIBLING: &str = "Sibling";
const MAIN_ENDED: &str = "MainEnded";

impl StopCause {
    /// As the pod's annotation says it.
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
        // A code of a newer agent's, or somebody's own hand: it was stopped, whatever the cause.
        let known = OutcomeKind::ALL.into_iter().find(|kind| kind.code() == code);
        Self::Attempt(known.unwrap_or(OutcomeKind::Cancelled), message.to_owned())
    }
}

/// How one pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Not all of it runs; why, if something is wrong.
    Pending {
        trouble: Option<Trouble>,
    },
    Running {
        started_at: Timestamp,
    },
    /// Nothing is left of it. `outcome` is `None` where it ended because it was told to stop.
    Ended {
        started_at: Option<Timestamp>,
        ended_at: Timestamp,
        outcome: Option<Outcome>,
    },
}

/// What keeps a pod from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Waiting won't help.
    pub(super) final_: bool,
    pub(super) message: String,
}

/// A pod as far as its attempt goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) uid: String,
    pub(super) task: Task,
    pub(super) stop: Option<StopCause>,
    /// It has a node, or a kubelet has taken note of it: only that one can end it.
    pub(super) bound: bool,
    /// Its container began: it may have written something.
    pub(super) began: bool,
    /// The task is over, and others of its containers go on.
    pub(super) lingers: bool,
    /// The container that is the task.
    pub(super) container: String,
}

impl View {
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.task, Task::Ended { .. })
    }

    /// Its node had no room for it, whatever was known here.
    pub(super) fn was_turned_away(&self) -> bool {
        let Task::Ended { outcome: Some(outcome), .. } = &self.task else { return false };
        outcome.kind == OutcomeKind::NotStarted
    }
}

/// Reads a pod. `now` stands in for times that it does not tell.
pub(super) fn view(pod: &Pod, now: Timestamp) -> View {
    let none = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&none);
    let annotations = pod.metadata.annotations.as_ref();
    let stop = annotations.and_then(|all| all.get(names::STOP)).map(|text| StopCause::from_annotation(text));
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) || status.start_time.is_some();
    let name = main_container(pod);
    let statuses = status.container_statuses.as_ref();
    let container = statuses.and_then(|all| all.iter().find(|container| container.name == name));
    let state = container.and_then(|container| container.state.as_ref());
    let terminated = state.and_then(|state| state.terminated.as_ref());
    let running = state.and_then(|state| state.running.as_ref());
    let began = terminated.is_some_and(|ended| ended.started_at.is_some()) || running.is_some();
    let task = match status.phase.as_deref() {
        Some("Succeeded" | "Failed") => {
            let started_at = terminated.and_then(|ended| ended.started_at.as_ref()).map(time);
            let ended_at = terminated.and_then(|ended| ended.finished_at.as_ref()).map_or(now, time);
            let outcome = ended(status, terminated, stop.as_ref(), asked_to_go_at(pod));
            Task::Ended { started_at, ended_at, outcome }
        }
        Some("Running") => {
            let since = running.and_then(|running| running.started_at.as_ref());
            let since = since.or(terminated.and_then(|ended| ended.started_at.as_ref()));
            Task::Running { started_at: since.or(status.start_time.as_ref()).map_or(now, time) }
        }
        _ => Task::Pending { trouble: trouble(status).or_else(|| (!bound).then(unplaced)) },
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let lingers = terminated.is_some() && matches!(task, Task::Running { .. });
    View { uid, task, stop, bound, began, lingers, container: name.to_owned() }
}

/// When somebody asked for the pod to be gone, if anybody did: deletion is due a grace period later.
fn asked_to_go_at(pod: &Pod) -> Option<Timestamp> {
    let due = time(pod.metadata.deletion_timestamp.as_ref()?);
    let grace_s = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    Some(Timestamp(due.0.saturating_sub(u64::try_from(grace_s).unwrap_or(0).saturating_mul(1_000))))
}

/// How a pod ended that was removed. Where nobody saw it end, and nobody's word says that nothing is
/// left of it, that is not known.
pub(super) fn removed(pod: &Pod, now: Timestamp) -> View {
    let mut view = view(pod, now);
    if view.is_ended() {
        return view;
    }
    let never_placed = !view.bound;
    let outcome = if view.stop.is_some() && never_placed {
        None
    } else if never_placed {
        Some(Outcome::plain(OutcomeKind::Drained, "its pod was deleted before it was placed"))
    } else {
        let why = pod.status.as_ref().and_then(disrupted).map_or_else(
            || "its pod was removed while it ran".to_owned(),
            |(_, message)| format!("its pod was removed while it ran: {message}"),
        );
        Some(outcome(OutcomeKind::Vanished, why))
    };
    let started_at = match view.task {
        Task::Running { started_at } => Some(started_at),
        Task::Pending { .. } | Task::Ended { .. } => None,
    };
    view.task = Task::Ended { started_at, ended_at: now, outcome };
    view
}

/// The name of the container that is the task: that one, or the first.
fn main_container(pod: &Pod) -> &str {
    let all = pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    let main = all.iter().find(|container| container.name == names::CONTAINER).or_else(|| all.first());
    main.map_or(names::CONTAINER, |container| &container.name)
}

/// Nobody has given it a place yet, nor said why.
fn unplaced() -> Trouble {
    Trouble { final_: false, message: "its scheduler has not placed it".to_owned() }
}

fn time(at: &Time) -> Timestamp {
    Timestamp(u64::try_from(at.0.as_millisecond()).unwrap_or(0))
}

/// An outcome without a code, its message as long as may be.
pub(super) fn outcome(kind: OutcomeKind, mut message: String) -> Outcome {
    text::truncate(&mut message, MESSAGE_LEN_MAX);
    Outcome { kind, exit_code: None, signal: None, message }
}

/// Why somebody took the pod away, where the cluster says so.
/// <https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions>
fn disrupted(status: &PodStatus) -> Option<(OutcomeKind, String)> {
    let conditions = status.conditions.as_ref()?;
    let condition = conditions.iter().find(|one| one.type_ == "DisruptionTarget" && one.status == "True")?;
    let reason = condition.reason.as_deref().unwrap_or_default();
    let kind = match reason {
        "PreemptionByScheduler" => OutcomeKind::Preempted,
        "DeletionByTaintManager" | "DeletionByPodGC" => OutcomeKind::NodeLost,
        // Evicted by request, for want of a node's memory or disk, or with its node's shutdown.
        _ => OutcomeKind::Drained,
    };
    let message = condition.message.as_deref().unwrap_or_default();
    Some((kind, format!("{reason}: {message}").trim_end_matches([':', ' ']).to_owned()))
}

/// How a pod ended, as its main container tells, or what else kept it from a good end; `None` where it
/// was told to stop and did.
fn ended(
    status: &PodStatus,
    main: Option<&ContainerStateTerminated>,
    stop: Option<&StopCause>,
    asked_to_go_at: Option<Timestamp>,
) -> Option<Outcome> {
    // Its helpers were ended for it, which is no news.
    if let (Some(StopCause::MainEnded), Some(main)) = (stop, main) {
        return Some(of_container(main, None));
    }
    let stopped = stop.is_some();
    if status.phase.as_deref() == Some("Succeeded") {
        return Some(Outcome { exit_code: Some(0), ..Outcome::plain(OutcomeKind::Succeeded, "") });
    }
    let message = status.message.clone().unwrap_or_default();
    let reason = status.reason.as_deref().unwrap_or_default();
    let said = format!("{reason}: {message}").trim_matches([':', ' ']).to_owned();
    if reason == "DeadlineExceeded" {
        let late = "it ran longer than its max_run".to_owned();
        return (!stopped).then(|| outcome(OutcomeKind::TimedOut, late));
    }
    let killed = main.is_none_or(|main| main.exit_code == 137 || main.exit_code == 143);
    if stopped && killed {
        return None;
    }
    // Once it was asked to go, any other end than a good one is for that.
    let finished_at = main.and_then(|main| main.finished_at.as_ref()).map(time);
    let after = asked_to_go_at.is_some_and(|asked| finished_at.is_some_and(|finished| finished >= asked));
    let driven = killed || after;
    if let Some((kind, message)) = disrupted(status).filter(|_| driven) {
        return Some(outcome(kind, message));
    }
    match reason {
        "Evicted" | "NodeShutdown" | "Shutdown" | "Terminated" => {
            return Some(outcome(OutcomeKind::Drained, said));
        }
        "Preempting" => return Some(outcome(OutcomeKind::Preempted, said)),
        "NodeLost" => return Some(outcome(OutcomeKind::NodeLost, said)),
        _ => {}
    }
    if asked_to_go_at.is_some() && driven {
        return Some(outcome(OutcomeKind::Drained, "its pod was deleted".to_owned()));
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
        Some(_) => outcome(OutcomeKind::Failed, said),
        // Somebody else was quicker to the place.
        None if reason.starts_with(OUT_OF) => outcome(OutcomeKind::NotStarted, said),
        // Refused by its node's kubelet: NodeAffinity, UnexpectedAdmissionError and the like.
        None => outcome(OutcomeKind::StartFailed, said),
    })
}

/// What a kubelet says that has no room left of something: `OutOfcpu`, `OutOfpods`.
const OUT_OF: &str = "OutOf";

/// How a container ended: the main one, or another one that has this name.
fn of_container(ended: &ContainerStateTerminated, other: Option<&str>) -> Outcome {
    let why = ended.reason.as_deref().unwrap_or_default();
    let detail = ended.message.clone().unwrap_or_default();
    let (kind, message) = match why {
        _ if ended.exit_code == 0 => (OutcomeKind::Succeeded, String::new()),
        "OOMKilled" => (OutcomeKind::OutOfMemory, "used more memory than was asked for".to_owned()),
        "StartError" | "ContainerCannotRun" => (OutcomeKind::StartFailed, format!("{why}: {detail}")),
        "ContainerStatusUnknown" => (OutcomeKind::Vanished, "its node lost sight of it".to_owned()),
        _ => (OutcomeKind::Failed, detail.trim().to_owned()),
    };
    // As runtimes tell of signals; beyond them it is a code like any other.
    let by_code = (129..=192).contains(&ended.exit_code).then(|| ended.exit_code - 128);
    let signal = ended.signal.filter(|signal| *signal > 0).or(by_code);
    let real = kind != OutcomeKind::StartFailed && kind != OutcomeKind::Vanished;
    let exit_code = (real && signal.is_none()).then_some(ended.exit_code);
    let message = match other {
        Some(name) => format!("container {name}: {message}").trim_end_matches([':', ' ']).to_owned(),
        None => message,
    };
    Outcome { exit_code, signal: signal.filter(|_| real), ..outcome(kind, message) }
}

/// Reasons of waiting containers that no time mends.
const HOPELESS: [&str; 2] = ["InvalidImageName", "ErrImageNeverPull"];
/// Reasons that are steps of every start.
const NORMAL: [&str; 2] = ["ContainerCreating", "PodInitializing"];

fn trouble(status: &PodStatus) -> Option<Trouble> {
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in all {
        let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) else {
            continue;
        };
        let reason = waiting.reason.as_deref().unwrap_or_default();
        if reason.is_empty() || NORMAL.contains(&reason) {
            continue;
        }
        let message = format!("{reason}: {}", waiting.message.as_deref().unwrap_or_default());
        return Some(Trouble { final_: HOPELESS.contains(&reason), message: trimmed(message) });
    }
    let conditions = status.conditions.as_ref()?;
    let unplaced = conditions.iter().find(|one| {
        one.type_ == "PodScheduled" && one.status == "False" && one.reason.as_deref() == Some("Unschedulable")
    })?;
    let message = format!("Unschedulable: {}", unplaced.message.as_deref().unwrap_or_default());
    Some(Trouble { final_: false, message: trimmed(message) })
}

fn trimmed(message: String) -> String {
    let mut message = message.trim_end_matches([':', ' ']).to_owned();
    text::truncate(&mut message, MESSAGE_LEN_MAX);
    message
}

/// How an attempt stands whose pods stand so, by rank. The first task that ended badly ends it.
///
/// It has ended when all of its pods have.
pub(super) fn together(pods: &[View]) -> AttemptStatus {
    let starts = pods.iter().filter_map(|pod| match &pod.task {
        Task::Running { started_at } => Some(*started_at),
        Task::Ended { started_at, .. } => *started_at,
        Task::Pending { .. } => None,
    });
    let started_at = starts.max();
    if pods.iter().any(|pod| !pod.is_ended()) {
        let starting = pods.iter().any(|pod| matches!(pod.task, Task::Pending { .. }));
        return match started_at {
            Some(started_at) if !starting => AttemptStatus::Running { started_at },
            _ => AttemptStatus::Starting,
        };
    }
    let ends = pods.iter().filter_map(|pod| match pod.task {
        Task::Ended { ended_at, .. } => Some(ended_at),
        Task::Running { .. } | Task::Pending { .. } => None,
    });
    let ended_at = ends.max().unwrap_or_default();
    AttemptStatus::Ended { started_at, ended_at, outcome: outcome_of(pods) }
}

/// The first task that ended badly of itself; one of which nobody knows before all others, since it may
/// still run.
pub(super) fn first_failure(pods: &[View]) -> Option<(usize, &Outcome)> {
    let failed = pods.iter().enumerate().filter_map(|(rank, pod)| match &pod.task {
        Task::Ended { outcome: Some(outcome), ended_at, .. } if outcome.kind != OutcomeKind::Succeeded => {
            Some((*ended_at, rank, outcome))
        }
        Task::Ended { .. } | Task::Running { .. } | Task::Pending { .. } => None,
    });
    let first = failed
        .min_by_key(|(ended_at, rank, outcome)| (outcome.kind != OutcomeKind::Vanished, *ended_at, *rank));
    first.map(|(_, rank, outcome)| (rank, outcome))
}

fn outcome_of(pods: &[View]) -> Outcome {
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
    let cut_short = pods.iter().any(|pod| matches!(pod.task, Task::Ended { outcome: None, .. }));
    match ordered {
        Some((kind, message)) if cut_short => Outcome::plain(kind, message),
        // The one that failed is gone, and with it what it said.
        None if cut_short => {
            Outcome::plain(OutcomeKind::Vanished, "a task of it was stopped, and nobody knows for what")
        }
        _ => Outcome { exit_code: Some(0), ..Outcome::plain(OutcomeKind::Succeeded, "") },
    }
}

/// Nobody knows how one of them ended.
pub(super) fn has_vanished(pods: &[View]) -> bool {
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
            r#"{{"phase": "Failed", "reason": "{reason}", "message": "said", "containerStatuses": {containers}}}"#
        )
    }

    fn of(annotation: &str, status: &str) -> Option<Outcome> {
        match view(&pod(annotation, status), Timestamp(7)).task {
            Task::Ended { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ends_are_told_apart() {
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
    fn a_pod_that_somebody_deleted_was_evicted_unless_it_ended_first() {
        let kind = |code: u32, second: u32| {
            let ended = format!(r#"{{"exitCode": {code}, "finishedAt": "2026-01-01T00:00:{second:02}Z"}}"#);
            let mut pod = pod("", &failed("", &ended));
            let due = "2026-01-01T00:00:40Z".parse().expect("a time");
            pod.metadata.deletion_timestamp = Some(Time(due));
            pod.metadata.deletion_grace_period_seconds = Some(30);
            match view(&pod, Timestamp(7)).task {
                Task::Ended { outcome, .. } => outcome.map(|outcome| outcome.kind),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(kind(143, 12), Some(OutcomeKind::Drained));
        assert_eq!(kind(3, 12), Some(OutcomeKind::Drained), "it cleaned up, and went");
        assert_eq!(kind(3, 9), Some(OutcomeKind::Failed), "before it was asked");
    }

    #[test]
    fn a_pod_fails_for_whichever_container_did() {
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
    fn a_task_is_over_when_its_main_container_is() {
        let status = |phase: &str, code: u32| {
            format!(
                r#"{{"phase": "{phase}", "reason": "DeadlineExceeded", "containerStatuses": [
                {{"name": "helper", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {{"running": {{}}}}}},
                {{"name": "task", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {{"terminated": {{"exitCode": {code}}}}}}}]}}"#
            )
        };
        let lingering = view(&pod("", &status("Running", 0)), Timestamp(7));
        assert!(lingering.lingers && matches!(lingering.task, Task::Running { .. }));
        let cause = StopCause::MainEnded.to_annotation();
        let kind = |code: u32| of(&cause, &status("Failed", code)).map(|outcome| outcome.kind);
        assert_eq!((kind(0), kind(4)), (Some(OutcomeKind::Succeeded), Some(OutcomeKind::Failed)));
    }

    #[test]
    fn a_pod_that_was_told_to_stop_ends_for_that() {
        let killed = failed("", r#"{"exitCode": 143}"#);
        assert_eq!(of("Cancelled bye", &killed), None);
        assert_eq!(of("Sibling", &failed("DeadlineExceeded", "")), None);
        // It was quicker than the stop.
        let own = of("Cancelled ", &failed("", r#"{"exitCode": 4}"#)).expect("its own");
        assert_eq!(own.exit_code, Some(4));
        let cancelled = view(&pod("Cancelled bye", &killed), Timestamp(7));
        let AttemptStatus::Ended { outcome, .. } = together(&[cancelled]) else { panic!("it ended") };
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
        assert!(matches!(together(&[at(5, 1), running.clone()]), AttemptStatus::Running { .. }));
        let pending = view(&pod("", r#"{"phase": "Pending"}"#), Timestamp(7));
        assert_eq!(together(&[running, pending]), AttemptStatus::Starting);
        let AttemptStatus::Ended { outcome, .. } = together(&[at(5, 1), at(3, 2), stopped.clone()]) else {
            panic!()
        };
        assert_eq!((outcome.exit_code, outcome.message.as_str()), (Some(2), "task 1 of 3"));
        let AttemptStatus::Ended { outcome, .. } = together(&[stopped]) else { panic!() };
        assert_eq!(outcome.kind, OutcomeKind::Vanished);
        let gone = removed(&pod("", r#"{"phase": "Running"}"#), Timestamp(u64::MAX));
        let AttemptStatus::Ended { outcome, .. } = together(&[at(1, 2), gone]) else { panic!() };
        assert_eq!(outcome.kind, OutcomeKind::Vanished, "it may still run");
    }

    #[test]
    fn what_was_removed_while_it_ran_is_unknown() {
        let gone = |annotation: &str, status: &str| match removed(&pod(annotation, status), Timestamp(7)).task
        {
            Task::Ended { outcome, .. } => outcome.map(|outcome| outcome.kind),
            other => panic!("{other:?}"),
        };
        assert_eq!(gone("", r#"{"phase": "Running"}"#), Some(OutcomeKind::Vanished));
        assert_eq!(gone("Cancelled", r#"{"phase": "Running"}"#), Some(OutcomeKind::Vanished));
        assert_eq!(gone("", r#"{"phase": "Succeeded"}"#), Some(OutcomeKind::Succeeded));
        let mut unplaced = pod("Cancelled", r#"{"phase": "Pending"}"#);
        unplaced.spec.as_mut().expect("a spec").node_name = None;
        assert!(matches!(removed(&unplaced, Timestamp(7)).task, Task::Ended { outcome: None, .. }));
    }

    #[test]
    fn what_keeps_a_pod_from_starting_is_told() {
        let waiting = |reason: &str| {
            let status = format!(
                r#"{{"phase": "Pending", "containerStatuses": [{{"name": "task", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                "state": {{"waiting": {{"reason": "{reason}", "message": "no such image"}}}}}}]}}"#
            );
            match view(&pod("", &status), Timestamp(7)).task {
                Task::Pending { trouble } => trouble.map(|trouble| (trouble.final_, trouble.message)),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(waiting("ContainerCreating"), None);
        assert_eq!(waiting("ImagePullBackOff"), Some((false, "ImagePullBackOff: no such image".to_owned())));
        assert_eq!(waiting("InvalidImageName"), Some((true, "InvalidImageName: no such image".to_owned())));
    }
}
