//! What the watch on the pool's own pods reports, applied to the tracked attempts.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

use super::super::inventory::Inventory;
use super::super::status::{self, PodState, PodView};
use super::super::tracked::{CallResult, TrackedAttempt, device_indices, identity};
use super::super::{names, pod};
use super::{Attempts, record, record_mut};
use crate::model::attempt::{Outcome, OutcomeKind};
use crate::model::id::AttemptId;
use crate::model::time::Timestamp;

/// How long a node is closed for new tasks after its kubelet rejected one for lack of capacity. The cause is
/// not visible through the API, so only time can clear it.
const CLOSED_AFTER_REJECTION_MS: u64 = 30_000;

impl Attempts {
    /// Takes a pod of this pool that was created or changed. Returns its task.
    ///
    /// # Errors
    /// The pod's uid, if no agent created it.
    pub(in crate::pools::kubernetes) fn pod_applied(
        &mut self,
        pod: &Pod,
        inventory: &mut Inventory,
    ) -> Result<(AttemptId, u32), String> {
        let Some((attempt, rank, size)) = identity(pod) else {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            inventory.set_pod(&uid, pod);
            self.foreign_pods.insert(uid.clone());
            return Err(uid);
        };
        self.adopt(attempt, rank, size, pod);
        let now = self.cluster.clock.now();
        let view = status::view(pod, now);
        if view.was_rejected_for_capacity() && self.is_live(attempt, rank) {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
            inventory.close_until(node, now.plus_ms(CLOSED_AFTER_REJECTION_MS));
            self.report_nodes(inventory);
        }
        self.set_view(attempt, rank, view, pod);
        if let Some(record) = record(&self.tracked, attempt, rank) {
            self.update_load(attempt, record, inventory);
        }
        Ok((attempt, rank))
    }

    /// True if no end of the task has been observed.
    fn is_live(&self, attempt: AttemptId, rank: u32) -> bool {
        let record = record(&self.tracked, attempt, rank);
        record.is_some_and(|record| !record.view.as_ref().is_some_and(PodView::is_ended))
    }

    /// Takes a pod of this pool that was deleted, in its last state.
    pub(in crate::pools::kubernetes) fn pod_deleted(&mut self, pod: &Pod, inventory: &mut Inventory) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        inventory.remove_pod(uid);
        self.foreign_pods.remove(uid);
        let Some((attempt, rank, _)) = identity(pod) else { return };
        let now = self.cluster.clock.now();
        let Some(record) = record_mut(&mut self.tracked, attempt, rank) else { return };
        let is_it = record.view.as_ref().is_none_or(|view| view.uid == uid);
        if !is_it {
            return;
        }
        record.gone = true;
        self.set_view(attempt, rank, status::removed(pod, now), pod);
        self.delete_pods(attempt);
    }

    /// Removes what a complete list no longer contains: pods that were deleted between two watches.
    pub(in crate::pools::kubernetes) fn retain_listed(
        &mut self,
        listed: &BTreeSet<(AttemptId, u32)>,
        foreign_pods: BTreeSet<String>,
        inventory: &mut Inventory,
    ) {
        self.foreign_pods.difference(&foreign_pods).for_each(|uid| inventory.remove_pod(uid));
        self.foreign_pods = foreign_pods;
        let now = self.cluster.clock.now();
        let mut missing = Vec::new();
        for (attempt, tracked) in &mut self.tracked {
            for (rank, record) in tracked.tasks.iter_mut().enumerate() {
                let key = (*attempt, rank as u32);
                if let Some(view) = record.view.as_mut().filter(|_| !record.gone && !listed.contains(&key)) {
                    record.gone = true;
                    inventory.remove_pod(&view.uid);
                    missing.push(key);
                    if view.is_ended() {
                        continue;
                    }
                    // It may have been bound to a node and started since its last observed status.
                    let why = "its pod was removed while the agent was not watching";
                    let outcome = Some(Outcome::plain(OutcomeKind::Vanished, why));
                    view.state = PodState::Ended { started_at: None, ended_at: now, outcome };
                }
            }
        }
        for (attempt, rank) in missing {
            self.task_ended(attempt, rank);
            self.reconcile(attempt);
            self.delete_pods(attempt);
        }
    }

    /// Tracks a pod that this process did not create, or whose creation seemed to fail.
    fn adopt(&mut self, attempt: AttemptId, rank: u32, size: usize, pod: &Pod) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if !self.tracked.contains_key(&attempt) {
            self.logs.set_location(attempt, namespace);
        }
        let tracked = self.tracked.entry(attempt).or_insert_with(|| TrackedAttempt::from_pod(pod, size));
        let stopped = tracked.stopped.clone();
        let Some(record) = tracked.tasks.get_mut(rank as usize).filter(|record| record.node.is_empty())
        else {
            return;
        };
        record.devices = device_indices(pod);
        record.node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let node = record.node.clone();
        self.tasks_by_node.insert(&node, (attempt, rank));
        // The agent that created the pods may have ended before it created their service.
        let service = names::service(attempt);
        let of_gang = pod.spec.as_ref().and_then(|spec| spec.subdomain.as_deref()) == Some(service.as_str());
        if rank == 0 && of_gang && !status::view(pod, self.cluster.clock.now()).is_ended() {
            let (cluster, service) = (self.cluster.clone(), pod::service(attempt, pod));
            tokio::spawn(async move {
                if let Err(why) = cluster.create_service(service, Timestamp(u64::MAX), &stopped).await {
                    tracing::warn!(%attempt, why, "a gang has no service: its tasks can't find each other");
                }
            });
        }
    }

    /// Records a task's state.
    pub(super) fn set_view(&mut self, attempt: AttemptId, rank: u32, view: PodView, pod: &Pod) {
        self.logs.set_container(attempt, rank, &view.container);
        let now = self.cluster.clock.now();
        let Some(record) = record_mut(&mut self.tracked, attempt, rank) else { return };
        // An end is final, even if an older status arrives after it.
        if record.view.as_ref().is_some_and(PodView::is_ended) {
            return;
        }
        let is_blocked = match &view.state {
            PodState::Pending { obstacle } => obstacle.is_some(),
            PodState::Running { .. } | PodState::Ended { .. } => false,
        };
        match record.blocked_since {
            Some(since) if !is_blocked => {
                record.blocked_since = None;
                self.blocked.remove(&(since, attempt, rank));
            }
            None if is_blocked => {
                record.blocked_since = Some(now);
                self.blocked.insert((now, attempt, rank));
            }
            _ => {}
        }
        record.view = Some(view);
        record.set_amounts(pod);
        self.task_ended(attempt, rank);
        self.reconcile(attempt);
    }

    /// If a task has ended: frees its devices and fetches its output.
    pub(super) fn task_ended(&mut self, attempt: AttemptId, rank: u32) {
        let is_own = self.is_own(attempt);
        let Some(record) = record_mut(&mut self.tracked, attempt, rank) else { return };
        let Some(view) = record.view.as_ref().filter(|view| view.is_ended()) else { return };
        if let Some(since) = record.blocked_since.take() {
            self.blocked.remove(&(since, attempt, rank));
        }
        if is_own && !(record.fetching || record.fetched) {
            record.fetching = true;
            let (logs, results) = (self.logs.clone(), self.results.clone());
            // Nothing can be fetched from a pod that is gone; readers still need the mark that it is complete.
            let has_output = view.has_started && !record.gone;
            tokio::spawn(async move {
                logs.finish(attempt, rank, has_output).await;
                let _ = results.send(CallResult::OutputFetched { attempt, rank });
            });
        }
        let node = record.node.clone();
        self.tasks_by_node.remove(&node, (attempt, rank));
    }
}
