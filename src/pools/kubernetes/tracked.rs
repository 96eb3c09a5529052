//! What the agent tracks of one attempt and its pods, and the results of calls about them.
//!
//! Nothing here is stored on disk: after a restart all of it is read from the pods again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::cluster::CreateResult;
use super::names;
use super::requests::{Amounts, PODS, of_pod};
use super::status::{self, PodView, StopCause};
use crate::agent::StartRequest;
use crate::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use crate::model::exchange::TaskStart;
use crate::model::high_water::HighWaterMark;
use crate::model::id::{AttemptId, JournalId, Revision};
use crate::model::time::Timestamp;

/// An attempt.
pub(super) struct TrackedAttempt {
    pub(super) namespace: String,
    pub(super) revision: Revision,
    pub(super) high_water: Option<HighWaterMark>,
    pub(super) start_by: Timestamp,
    /// By rank.
    pub(super) tasks: Vec<PodRecord>,
    /// The outcome of an attempt that can't become complete, reported once nothing of it is left.
    pub(super) failed: Option<Outcome>,
    /// The attempt must end. Shared with the calls that create its pods, which then give up.
    pub(super) stopped: Arc<AtomicBool>,
    /// The status last reported to the agent.
    pub(super) reported: Option<AttemptStatus>,
    /// The broker has stored the outcome, so the pods may be deleted.
    pub(super) forgotten: bool,
}

/// One task's pod.
#[derive(Default)]
pub(super) struct PodRecord {
    /// `None` until the pod has been observed.
    pub(super) view: Option<PodView>,
    pub(super) creating: bool,
    pub(super) stop_requested: bool,
    /// The pod was observed, and no longer exists.
    pub(super) gone: bool,
    pub(super) fetching: bool,
    pub(super) fetched: bool,
    pub(super) deleting: bool,
    pub(super) blocked_since: Option<Timestamp>,
    pub(super) node: String,
    /// Indices in the node's list of devices.
    pub(super) devices: Vec<u16>,
    /// What the pod holds of its node. It counts as load if the attempt belongs to another journal.
    pub(super) amounts: Amounts,
    /// The part of `amounts` beyond what the task was allocated: added by the cluster, for example by webhooks.
    pub(super) added: Amounts,
}

impl PodRecord {
    /// Records what the pod holds.
    pub(super) fn set_amounts(&mut self, pod: &Pod) {
        self.amounts = of_pod(pod);
        self.added = Amounts::default();
        let allocated = annotation(pod, names::ALLOCATED).and_then(|text| serde_json::from_str(text).ok());
        if let Some(allocated) =
            allocated.map(|allocated: BTreeMap<String, Quantity>| Amounts::read(&allocated))
        {
            self.added = self.amounts.clone();
            self.added.sub(&allocated);
            self.added.other.retain(|(name, _)| **name != *PODS);
        }
    }

    /// Returns what the pod holds beyond what the pool's broker counts itself; `None` if nothing. `own` is
    /// that broker's journal. While it is unknown, every attempt is taken for the broker's own.
    pub(super) fn load(&self, attempt: AttemptId, own: Option<JournalId>) -> Option<&Amounts> {
        let is_live = self.view.as_ref().is_some_and(|view| !view.is_ended()) && !self.node.is_empty();
        let is_own = own.is_none_or(|own| own == attempt.journal);
        let amounts = if is_own { &self.added } else { &self.amounts };
        Some(amounts).filter(|amounts| is_live && **amounts != Amounts::default())
    }
}

impl TrackedAttempt {
    /// Tracks an attempt whose pods are about to be created, or that has `failed` before that.
    pub(super) fn ordered(start: &StartRequest, namespace: &str, failed: Option<Outcome>) -> Self {
        let record = |task: &TaskStart| PodRecord {
            creating: failed.is_none(),
            node: task.node.clone(),
            devices: task.devices.iter().map(|share| share.index).collect(),
            ..PodRecord::default()
        };
        Self {
            namespace: namespace.to_owned(),
            revision: start.order.revision,
            high_water: start.order.high_water,
            start_by: start.start_by,
            tasks: start.order.tasks.iter().map(record).collect(),
            failed,
            stopped: Arc::default(),
            reported: None,
            forgotten: false,
        }
    }

    /// Tracks an attempt of `size` tasks that an earlier agent process created, from one of its pods.
    pub(super) fn from_pod(pod: &Pod, size: usize) -> Self {
        let number = |name: &str| annotation(pod, name).and_then(|text| text.parse().ok()).unwrap_or(0);
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            revision: Revision(number(names::REVISION)),
            high_water: annotation(pod, names::HIGH_WATER).and_then(|text| text.parse().ok()),
            start_by: Timestamp(number(names::START_BY)),
            tasks: (0..size).map(|_| PodRecord::default()).collect(),
            failed: None,
            stopped: Arc::default(),
            reported: None,
            forgotten: false,
        }
    }

    /// The outcome of an attempt of which only some pods were found.
    pub(super) fn partial_outcome(&self, now: Timestamp) -> Outcome {
        let mut views = self.tasks.iter().filter_map(|task| task.view.as_ref());
        let ordered = self.tasks.iter().find_map(|task| match &task.view.as_ref()?.stop {
            Some(StopCause::Attempt(kind, message)) => Some(Outcome::plain(*kind, message)),
            Some(StopCause::Sibling | StopCause::MainEnded) | None => None,
        });
        if let Some(ordered) = ordered {
            return ordered;
        }
        if now > self.start_by || views.any(PodView::is_ended) {
            // All pods existed once: the missing ones were removed, and may still run.
            let why = "some of its pods were removed while the agent was not watching";
            return Outcome::plain(OutcomeKind::Vanished, why);
        }
        // The agent ended while it created the pods. Only the broker has the job's spec, so the attempt can't
        // be completed here: it ends, and its unit is retried.
        Outcome::plain(OutcomeKind::NotStarted, "its agent ended while its pods were being created")
    }

    /// True if none of its pods has been observed. If the agent ended now, the broker could start it again.
    pub(super) fn is_unconfirmed(&self) -> bool {
        self.failed.is_none() && self.tasks.iter().all(|task| task.creating && task.view.is_none())
    }

    /// True if every task's pod has been observed.
    pub(super) fn is_whole(&self) -> bool {
        self.tasks.iter().all(|task| task.view.is_some())
    }

    /// True if no pod is left and no call about one is under way.
    pub(super) fn is_deleted(&self) -> bool {
        let gone = |record: &PodRecord| record.view.is_none() || record.gone;
        self.tasks.iter().all(|record| gone(record) && !record.fetching && !record.creating)
    }

    fn views(&self) -> Vec<PodView> {
        self.tasks.iter().filter_map(|task| task.view.clone()).collect()
    }

    /// Why all of its tasks must stop; `None` if they may run on.
    pub(super) fn stop_cause(&self) -> Option<StopCause> {
        if let Some(failed) = &self.failed {
            return Some(StopCause::Attempt(failed.kind, failed.message.clone()));
        }
        let views = self.views();
        if status::first_failure(&views).is_some() {
            return Some(StopCause::Sibling);
        }
        if self.stopped.load(Ordering::Relaxed) {
            return Some(StopCause::Attempt(OutcomeKind::Cancelled, String::new()));
        }
        // An earlier agent process may have stopped only some of the tasks.
        views.into_iter().filter_map(|view| view.stop).find(|cause| *cause != StopCause::MainEnded)
    }

    /// The status of the attempt as a whole.
    pub(super) fn status(&self, now: Timestamp) -> AttemptStatus {
        let creating = self.tasks.iter().any(|task| task.creating);
        let views = self.views();
        let is_live = creating || views.iter().any(|view| !view.is_ended());
        match &self.failed {
            // A vanished task of a failed attempt may still run, and the outcome must show that.
            Some(_) if !is_live && status::has_vanished(&views) => status::attempt_status(&views),
            Some(outcome) if !is_live => {
                AttemptStatus::Ended { started_at: None, ended_at: now, outcome: outcome.clone() }
            }
            _ if self.is_whole() && !creating => status::attempt_status(&views),
            _ => AttemptStatus::Starting,
        }
    }

    /// Returns the status if it differs from the one last reported, and takes it as reported. An ended attempt
    /// doesn't change, and a running one doesn't return to starting.
    pub(super) fn take_change(&mut self, now: Timestamp) -> Option<AttemptStatus> {
        let status = self.status(now);
        let changed = match (&self.reported, &status) {
            (None, _) => true,
            (Some(AttemptStatus::Ended { .. }), _)
            | (Some(AttemptStatus::Running { .. }), AttemptStatus::Starting) => false,
            (Some(reported), status) => reported != status,
        };
        changed.then(|| self.reported.insert(status).clone())
    }
}

/// The result of a call.
pub(super) enum CallResult {
    Created {
        attempt: AttemptId,
        rank: u32,
        result: CreateResult,
    },
    /// A gang's service was refused.
    ServiceRefused {
        attempt: AttemptId,
        why: String,
    },
    /// An ended task's output is stored, or could not be fetched.
    OutputFetched {
        attempt: AttemptId,
        rank: u32,
    },
    Deleted {
        attempt: AttemptId,
        rank: u32,
    },
}

impl CallResult {
    /// The task whose pod exists now, if the call created one.
    pub(super) fn created_task(&self) -> Option<(AttemptId, u32)> {
        match self {
            Self::Created { attempt, rank, result: CreateResult::Created(_) } => Some((*attempt, *rank)),
            Self::Created { .. }
            | Self::ServiceRefused { .. }
            | Self::OutputFetched { .. }
            | Self::Deleted { .. } => None,
        }
    }
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Indices of a task's devices in its node's list.
pub(super) fn device_indices(pod: &Pod) -> Vec<u16> {
    let devices = annotation(pod, names::DEVICES).unwrap_or_default();
    devices.split(',').filter_map(|index| index.parse().ok()).collect()
}

/// Returns a pod's attempt, its rank and the attempt's number of tasks; `None` if the pod's name, labels and
/// annotations don't agree, as in a copy of a pod.
pub(super) fn identity(pod: &Pod) -> Option<(AttemptId, u32, usize)> {
    let labels = pod.metadata.labels.as_ref()?;
    let annotations = pod.metadata.annotations.as_ref()?;
    let attempt: AttemptId = labels.get(names::ATTEMPT)?.parse().ok()?;
    let rank: u32 = labels.get(names::RANK)?.parse().ok()?;
    let size: usize = annotations.get(names::TASKS)?.parse().ok()?;
    let named = pod.metadata.name.as_deref() == Some(names::pod(attempt, rank as usize).as_str());
    (named && (rank as usize) < size && size <= crate::model::limit::TASKS_PER_GROUP_MAX as usize)
        .then_some((attempt, rank, size))
}
