//! What is kept of one attempt and its tasks, and what calls for them come to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::cluster::Created;
use super::names;
use super::nodes::PODS;
use super::requests::{Amounts, of_pod};
use super::status::{self, StopCause, View};
use crate::agent::StartRequest;
use crate::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use crate::model::exchange::TaskStart;
use crate::model::high_water::HighWaterMark;
use crate::model::id::{AttemptId, JournalId, Revision};
use crate::model::time::Timestamp;

/// An attempt.
pub(super) struct Kept {
    pub(super) namespace: String,
    pub(super) revision: Revision,
    pub(super) high_water: Option<HighWaterMark>,
    pub(super) start_by: Timestamp,
    /// By rank.
    pub(super) tasks: Vec<Slot>,
    /// It can't be whole: it ends so once nothing is left of it.
    pub(super) failed: Option<Outcome>,
    /// It is to end, whatever has been created of it by then.
    pub(super) stopped: Arc<AtomicBool>,
    pub(super) told: Option<AttemptStatus>,
    pub(super) forgotten: bool,
}

/// A task's place.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) view: Option<View>,
    pub(super) creating: bool,
    /// It was told to stop.
    pub(super) told_to_stop: bool,
    /// There is no object any more.
    pub(super) gone: bool,
    pub(super) fetching: bool,
    pub(super) fetched: bool,
    pub(super) deleting: bool,
    pub(super) troubled_since: Option<Timestamp>,
    pub(super) node: String,
    pub(super) devices: Vec<u16>,
    /// What it holds of its node: somebody else's load if it is of another journal.
    pub(super) amounts: Amounts,
    /// How much of that is more than it was given: what the cluster has added, as webhooks do.
    pub(super) added: Amounts,
}

impl Slot {
    /// Takes note of what its pod holds.
    pub(super) fn weigh(&mut self, pod: &Pod) {
        self.amounts = of_pod(pod);
        self.added = Amounts::default();
        let given = annotation(pod, names::GIVEN).and_then(|text| serde_json::from_str(text).ok());
        if let Some(given) = given.map(|given: BTreeMap<String, Quantity>| Amounts::read(&given)) {
            self.added = self.amounts.clone();
            self.added.sub(&given);
            self.added.other.retain(|(name, _)| **name != *PODS);
        }
    }

    /// What it holds beside what the pool's broker counts itself, whose journal is `own`, once that is known.
    pub(super) fn load(&self, attempt: AttemptId, own: Option<JournalId>) -> Option<&Amounts> {
        let is_live = self.view.as_ref().is_some_and(|view| !view.is_ended()) && !self.node.is_empty();
        let is_own = own.is_none_or(|own| own == attempt.journal);
        let amounts = if is_own { &self.added } else { &self.amounts };
        Some(amounts).filter(|amounts| is_live && **amounts != Amounts::default())
    }
}

impl Kept {
    /// One that is to be created, or has failed already.
    pub(super) fn ordered(start: &StartRequest, namespace: &str, failed: Option<Outcome>) -> Self {
        let slot = |task: &TaskStart| Slot {
            creating: failed.is_none(),
            node: task.node.clone(),
            devices: task.devices.iter().map(|share| share.index).collect(),
            ..Slot::default()
        };
        Self {
            namespace: namespace.to_owned(),
            revision: start.order.revision,
            high_water: start.order.high_water,
            start_by: start.start_by,
            tasks: start.order.tasks.iter().map(slot).collect(),
            failed,
            stopped: Arc::default(),
            told: None,
            forgotten: false,
        }
    }

    /// One of so many tasks, as one of its pods tells of it that somebody else has created.
    pub(super) fn found(pod: &Pod, size: usize) -> Self {
        let number = |name: &str| annotation(pod, name).and_then(|text| text.parse().ok()).unwrap_or(0);
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            revision: Revision(number(names::REVISION)),
            high_water: annotation(pod, names::STAMP).and_then(|text| text.parse().ok()),
            start_by: Timestamp(number(names::START_BY)),
            tasks: (0..size).map(|_| Slot::default()).collect(),
            failed: None,
            stopped: Arc::default(),
            told: None,
            forgotten: false,
        }
    }

    /// Why only a part of it was found.
    pub(super) fn why_in_part(&self, now: Timestamp) -> Outcome {
        let mut views = self.tasks.iter().filter_map(|task| task.view.as_ref());
        let ordered = self.tasks.iter().find_map(|task| match &task.view.as_ref()?.stop {
            Some(StopCause::Attempt(kind, message)) => Some(Outcome::plain(*kind, message)),
            Some(StopCause::Sibling | StopCause::MainEnded) | None => None,
        });
        if let Some(ordered) = ordered {
            return ordered;
        }
        if now > self.start_by || views.any(View::is_ended) {
            // It was whole once: what is missing was removed, and may still run.
            return Outcome::plain(
                OutcomeKind::Vanished,
                "some of its pods were removed while nobody watched",
            );
        }
        // Whoever created it ended half-way. What there is of it can't be completed, since only the
        // broker still has its spec; it ends, and its unit is tried again.
        Outcome::plain(OutcomeKind::NotStarted, "its agent ended while its pods were being created")
    }

    /// Nothing of it is there yet, as far as is known: should the agent end now, it can be launched again.
    pub(super) fn is_only_wanted(&self) -> bool {
        self.failed.is_none() && self.tasks.iter().all(|task| task.creating && task.view.is_none())
    }

    pub(super) fn is_whole(&self) -> bool {
        self.tasks.iter().all(|task| task.view.is_some())
    }

    /// How it stands as a whole.
    pub(super) fn status(&self, now: Timestamp) -> AttemptStatus {
        let creating = self.tasks.iter().any(|task| task.creating);
        let views: Vec<View> = self.tasks.iter().filter_map(|task| task.view.clone()).collect();
        let waits = creating || views.iter().any(|view| !view.is_ended());
        match &self.failed {
            // Of what was given up as a whole one may still run.
            Some(_) if !waits && status::has_vanished(&views) => status::together(&views),
            Some(outcome) if !waits => {
                AttemptStatus::Ended { started_at: None, ended_at: now, outcome: outcome.clone() }
            }
            _ if self.is_whole() && !creating => status::together(&views),
            _ => AttemptStatus::Starting,
        }
    }
}

/// What a call came to.
pub(super) enum Done {
    Created {
        attempt: AttemptId,
        rank: u32,
        created: Created,
    },
    /// A gang's service was refused.
    NoService {
        attempt: AttemptId,
        why: String,
    },
    /// An ended task's output is kept, or can't be.
    Fetched {
        attempt: AttemptId,
        rank: u32,
    },
    Deleted {
        attempt: AttemptId,
        rank: u32,
    },
}

impl Done {
    /// The task whose pod is there now, if that is what came of it.
    pub(super) fn made(&self) -> Option<(AttemptId, u32)> {
        match self {
            Self::Created { attempt, rank, created: Created::Made(_) } => Some((*attempt, *rank)),
            Self::Created { .. } | Self::NoService { .. } | Self::Fetched { .. } | Self::Deleted { .. } => {
                None
            }
        }
    }
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Places of a task's devices in its node's list.
pub(super) fn held_devices(pod: &Pod) -> Vec<u16> {
    let devices = annotation(pod, names::DEVICES).unwrap_or_default();
    devices.split(',').filter_map(|index| index.parse().ok()).collect()
}

/// Which attempt and task a pod is of, and how many tasks it has.
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
