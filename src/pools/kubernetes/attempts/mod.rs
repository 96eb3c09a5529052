//! The pool's attempts and their pods: reconciles what the broker ordered with what the cluster reports.
//!
//! Only bookkeeping and decisions live here. Calls to the API server run as tokio tasks beside it (`cluster`)
//! and report back as [`CallResult`]s.

mod observe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::cluster::{Cluster, CreateResult};
use super::inventory::Inventory;
use super::logs::Logs;
use super::status::{self, PodState, PodView, StopCause};
use super::tasks_by_node::TasksByNode;
use super::tracked::{CallResult, PodRecord, TrackedAttempt};
use super::{Settings, names, pod};
use crate::agent::{ObservedAttempt, StartRequest};
use crate::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use crate::model::id::{AttemptId, JournalId};
use crate::model::time::Timestamp;
use crate::pools::Event;

/// The attempts of a pool.
pub(super) struct Attempts {
    settings: Arc<Settings>,
    cluster: Cluster,
    logs: Logs,
    events: mpsc::UnboundedSender<Event>,
    results: mpsc::UnboundedSender<CallResult>,
    tracked: BTreeMap<AttemptId, TrackedAttempt>,
    /// The journal of the pool's broker. Pods of other journals count as load and are never ended here.
    journal: Option<JournalId>,
    tasks_by_node: TasksByNode,
    /// Uids of pods that have the pool's label but that no agent created. They count as load.
    foreign_pods: BTreeSet<String>,
    /// Tasks whose start is obstructed, ordered by when the obstacle appeared.
    blocked: BTreeSet<(Timestamp, AttemptId, u32)>,
}

impl Attempts {
    pub(super) fn new(
        settings: Arc<Settings>,
        cluster: Cluster,
        logs: Logs,
        events: mpsc::UnboundedSender<Event>,
        results: mpsc::UnboundedSender<CallResult>,
    ) -> Self {
        Self {
            settings,
            cluster,
            logs,
            events,
            results,
            tracked: BTreeMap::new(),
            journal: None,
            tasks_by_node: TasksByNode::default(),
            foreign_pods: BTreeSet::new(),
            blocked: BTreeSet::new(),
        }
    }

    /// Returns every attempt found in the cluster, for the agent's initial sync.
    pub(super) fn observed(&mut self) -> Vec<ObservedAttempt> {
        let now = self.cluster.clock.now();
        let mut all = Vec::new();
        for (attempt, tracked) in &mut self.tracked {
            if !tracked.is_whole() {
                tracked.failed = Some(tracked.partial_outcome(now));
            }
            let status = tracked.status(now);
            tracked.reported = Some(status.clone());
            all.push(ObservedAttempt {
                attempt: *attempt,
                ordered_revision: tracked.revision,
                start_by: tracked.start_by,
                high_water: tracked.high_water,
                status,
            });
        }
        all
    }

    pub(super) fn now(&self) -> Timestamp {
        self.cluster.clock.now()
    }

    /// Reports the nodes that changed since the last report.
    pub(super) fn report_nodes(&mut self, inventory: &mut Inventory) {
        for node in self.tasks_by_node.take_changed() {
            inventory.mark_changed(&node);
        }
        let (nodes, removed) = inventory.changes(|node| self.held_on(node));
        if !nodes.is_empty() || !removed.is_empty() {
            let _ = self.events.send(Event::NodesChanged { nodes, removed });
        }
    }

    /// Returns a node whose pod limit this start would exceed, if there is one.
    fn node_over_pod_limit<'a>(&self, start: &'a StartRequest, inventory: &Inventory) -> Option<&'a str> {
        let mut pods_by_node: BTreeMap<&str, u64> = BTreeMap::new();
        for task in &start.order.tasks {
            *pods_by_node.entry(&task.node).or_default() += 1;
        }
        let is_over = |(node, count): &(&str, u64)| {
            inventory.pods_left(node, self.held_on(node).1).is_some_and(|left| left < *count)
        };
        pods_by_node.into_iter().find(is_over).map(|(node, _)| node)
    }

    /// Creates an attempt's pods. For an attempt that is tracked already it only repeats the last report.
    pub(super) fn start(&mut self, start: StartRequest, inventory: &mut Inventory) {
        let (attempt, now) = (start.order.attempt, self.cluster.clock.now());
        if let Some(tracked) = self.tracked.get(&attempt) {
            if let Some(status) = tracked.reported.clone() {
                let _ = self.events.send(Event::StatusChanged { attempt, status });
            }
            return;
        }
        let pods = if now > start.start_by {
            Err(Outcome::plain(OutcomeKind::NotStarted, "the order arrived after its start-by time"))
        } else if let Some(node) = self.node_over_pod_limit(&start, inventory) {
            // Before the failed start is reported, so that the broker chooses another node.
            self.report_nodes(inventory);
            Err(Outcome::plain(OutcomeKind::NotStarted, &format!("node {node} takes no more pods")))
        } else {
            let resource = |node: &str, index: u16| inventory.resource_of(node, index).map(str::to_owned);
            pod::pods(&self.settings, &start, resource)
                .map_err(|why| Outcome::plain(OutcomeKind::StartFailed, &why))
        };
        let namespace = self.settings.namespace_of(&start.order.queue);
        let tracked = TrackedAttempt::ordered(&start, namespace, pods.as_ref().err().cloned());
        let stopped = tracked.stopped.clone();
        if pods.is_ok() {
            for (rank, record) in tracked.tasks.iter().enumerate() {
                self.tasks_by_node.insert(&record.node, (attempt, rank as u32));
            }
            self.logs.set_location(attempt, namespace);
        }
        self.tracked.insert(attempt, tracked);
        let gang = pod::is_gang(&start.order, &start.spec);
        for (rank, pod) in pods.unwrap_or_default().into_iter().enumerate() {
            let (cluster, results) = (self.cluster.clone(), self.results.clone());
            let (start_by, stopped) = (start.start_by, stopped.clone());
            let rank = rank as u32;
            tokio::spawn(async move {
                let result = cluster.create(pod, start_by, &stopped).await;
                let service = match &result {
                    CreateResult::Created(first) if gang && rank == 0 => Some(pod::service(attempt, first)),
                    CreateResult::Created(_) | CreateResult::Refused(_) | CreateResult::NotInTime(_) => None,
                };
                let _ = results.send(CallResult::Created { attempt, rank, result });
                if let Some(service) = service
                    && let Err(why) = cluster.create_service(service, start_by, &stopped).await
                {
                    let _ = results.send(CallResult::ServiceRefused { attempt, why });
                }
            });
        }
        self.reconcile(attempt);
    }

    /// Ends an attempt.
    pub(super) fn stop(&mut self, attempt: AttemptId) {
        let Some(tracked) = self.tracked.get_mut(&attempt) else { return };
        tracked.stopped.store(true, Ordering::Relaxed);
        let ended = matches!(tracked.reported, Some(AttemptStatus::Ended { .. }));
        if ended {
            // A repeated stop means that the report of the end did not arrive.
            if let Some(status) = tracked.reported.clone() {
                let _ = self.events.send(Event::StatusChanged { attempt, status });
            }
            return;
        }
        let cause = StopCause::Attempt(OutcomeKind::Cancelled, String::new());
        self.stop_tasks(attempt, &cause, |_| true);
        self.reconcile(attempt);
    }

    /// Stops the live tasks that `which` selects, unless their stop was requested before.
    fn stop_tasks(&mut self, attempt: AttemptId, cause: &StopCause, which: impl Fn(&PodView) -> bool) {
        let Some(tracked) = self.tracked.get_mut(&attempt) else { return };
        for (rank, record) in tracked.tasks.iter_mut().enumerate() {
            let Some(view) = record.view.as_ref().filter(|view| !view.is_ended() && which(view)) else {
                continue;
            };
            // A pod without a node has no kubelet to act on the annotation, so it is stopped again.
            if record.stop_requested || view.stop.is_some() && view.bound {
                continue;
            }
            record.stop_requested = true;
            let (cluster, namespace) = (self.cluster.clone(), tracked.namespace.clone());
            let (name, uid, cause) = (names::pod(attempt, rank), view.uid.clone(), cause.clone());
            tokio::spawn(async move { cluster.stop(&namespace, &name, &uid, &cause).await });
        }
    }

    /// Deletes an attempt's pods once their output is stored: its outcome is durable at the broker.
    pub(super) fn forget(&mut self, attempt: AttemptId) {
        let Some(tracked) = self.tracked.get_mut(&attempt) else { return };
        tracked.forgotten = true;
        self.delete_pods(attempt);
    }

    /// Deletes what is left of a forgotten attempt, and stops tracking it when nothing is.
    fn delete_pods(&mut self, attempt: AttemptId) {
        let Some(tracked) = self.tracked.get_mut(&attempt).filter(|tracked| tracked.forgotten) else {
            return;
        };
        for (rank, record) in tracked.tasks.iter_mut().enumerate() {
            let may_delete = !record.gone && !record.deleting && !record.fetching;
            let Some(view) = record.view.as_ref().filter(|_| may_delete) else { continue };
            record.deleting = true;
            let (cluster, results, namespace) =
                (self.cluster.clone(), self.results.clone(), tracked.namespace.clone());
            let (name, uid, rank) = (names::pod(attempt, rank), view.uid.clone(), rank as u32);
            tokio::spawn(async move {
                cluster.delete(&namespace, &name, &uid, None).await;
                let _ = results.send(CallResult::Deleted { attempt, rank });
            });
        }
        if tracked.is_deleted() {
            self.logs.remove(attempt);
            let tracked = self.tracked.remove(&attempt);
            for (rank, record) in tracked.into_iter().flat_map(|tracked| tracked.tasks).enumerate() {
                self.tasks_by_node.remove(&record.node, (attempt, rank as u32));
                if let Some(since) = record.blocked_since {
                    self.blocked.remove(&(since, attempt, rank as u32));
                }
            }
        }
    }

    /// Records the result of a call.
    pub(super) fn finish_call(&mut self, result: CallResult) {
        let attempt = match &result {
            CallResult::Created { attempt, .. }
            | CallResult::ServiceRefused { attempt, .. }
            | CallResult::OutputFetched { attempt, .. }
            | CallResult::Deleted { attempt, .. } => *attempt,
        };
        let Some(tracked) = self.tracked.get_mut(&attempt) else { return };
        match result {
            CallResult::ServiceRefused { why, .. } => {
                let why = format!("its service can't be created: {why}");
                tracked.failed.get_or_insert_with(|| Outcome::plain(OutcomeKind::StartFailed, &why));
            }
            CallResult::Created { rank, result, .. } => return self.finish_create(attempt, rank, result),
            CallResult::OutputFetched { rank, .. } => {
                if let Some(record) = tracked.tasks.get_mut(rank as usize) {
                    record.fetching = false;
                    record.fetched = true;
                }
                return self.delete_pods(attempt);
            }
            CallResult::Deleted { rank, .. } => {
                if let Some(record) = tracked.tasks.get_mut(rank as usize) {
                    record.gone = true;
                }
                return self.delete_pods(attempt);
            }
        }
        self.reconcile(attempt);
    }

    fn finish_create(&mut self, attempt: AttemptId, rank: u32, result: CreateResult) {
        let now = self.cluster.clock.now();
        let Some(tracked) = self.tracked.get_mut(&attempt) else { return };
        let Some(record) = tracked.tasks.get_mut(rank as usize) else { return };
        record.creating = false;
        let failed = match result {
            // The watch may have delivered a newer status already.
            CreateResult::Created(_) if record.view.is_some() => None,
            CreateResult::Created(pod) => {
                return self.set_view(attempt, rank, status::view(&pod, now), &pod);
            }
            CreateResult::Refused(why) => Some((OutcomeKind::StartFailed, why)),
            CreateResult::NotInTime(_) if tracked.stopped.load(Ordering::Relaxed) => {
                Some((OutcomeKind::Cancelled, "stopped before it was started".to_owned()))
            }
            CreateResult::NotInTime(why) => {
                Some((OutcomeKind::NotStarted, format!("not created in time: {why}")))
            }
        };
        if let Some((kind, why)) = failed {
            tracked.stopped.store(true, Ordering::Relaxed);
            // A refusal replaces `Cancelled`: the other tasks were cancelled because of it.
            if tracked.failed.as_ref().is_none_or(|earlier| earlier.kind == OutcomeKind::Cancelled) {
                tracked.failed = Some(status::outcome(kind, why));
            }
            let node = record.node.clone();
            self.tasks_by_node.remove(&node, (attempt, rank));
        }
        self.reconcile(attempt);
    }

    /// Stops the tasks that must stop, and reports the attempt's status if it changed.
    fn reconcile(&mut self, attempt: AttemptId) {
        if !self.is_own(attempt) {
            return;
        }
        let now = self.cluster.clock.now();
        let Some(tracked) = self.tracked.get_mut(&attempt).filter(|tracked| !tracked.is_unconfirmed()) else {
            return;
        };
        if let Some(cause) = tracked.stop_cause() {
            tracked.stopped.store(true, Ordering::Relaxed);
            self.stop_tasks(attempt, &cause, |_| true);
        }
        // Helpers have no purpose once the main container has ended.
        self.stop_tasks(attempt, &StopCause::MainEnded, |view| view.only_helpers_run);
        let Some(tracked) = self.tracked.get_mut(&attempt) else { return };
        if let Some(status) = tracked.take_change(now) {
            let _ = self.events.send(Event::StatusChanged { attempt, status });
        }
    }

    /// Fails attempts whose start is obstructed permanently, or for longer than the start timeout.
    pub(super) fn fail_timed_out(&mut self) {
        let now = self.cluster.clock.now();
        let timeout_ms = self.settings.start_timeout_ms;
        let mut failed = Vec::new();
        for (since, attempt, rank) in self.blocked.iter().filter(|(_, attempt, _)| self.is_own(*attempt)) {
            let record = record(&self.tracked, *attempt, *rank);
            let Some(PodState::Pending { obstacle: Some(obstacle) }) =
                record.and_then(|record| record.view.as_ref()).map(|view| &view.state)
            else {
                continue;
            };
            if obstacle.permanent || since.plus_ms(timeout_ms) <= now {
                failed.push((*since, *attempt, *rank, obstacle.message.clone()));
            }
        }
        for (since, attempt, rank, message) in failed {
            self.blocked.remove(&(since, attempt, rank));
            if let Some(tracked) = self.tracked.get_mut(&attempt) {
                tracked.failed.get_or_insert_with(|| Outcome::plain(OutcomeKind::StartFailed, &message));
            }
            self.reconcile(attempt);
        }
    }

    /// Sets the journal of the pool's broker. From then on its attempts are reconciled.
    pub(super) fn set_journal(&mut self, journal: JournalId, inventory: &mut Inventory) {
        if self.journal == Some(journal) {
            return;
        }
        self.journal = Some(journal);
        self.tasks_by_node.mark_all_changed();
        for (attempt, tracked) in &self.tracked {
            tracked.tasks.iter().for_each(|record| self.update_load(*attempt, record, inventory));
        }
        // Makes up for what was postponed while the journal was unknown.
        let own = self.tracked.iter().filter(|(attempt, _)| attempt.journal == journal);
        let own: Vec<_> = own.map(|(attempt, tracked)| (*attempt, tracked.tasks.len() as u32)).collect();
        for (attempt, tasks) in own {
            (0..tasks).for_each(|rank| self.task_ended(attempt, rank));
            self.reconcile(attempt);
        }
    }

    fn update_load(&self, attempt: AttemptId, record: &PodRecord, inventory: &mut Inventory) {
        let Some(view) = &record.view else { return };
        match record.load(attempt, self.journal) {
            Some(load) => inventory.set_load(&view.uid, &record.node, load.clone()),
            None => inventory.remove_pod(&view.uid),
        }
    }

    /// Uids of this pool's pods that count as load: foreign pods, pods that another journal's broker ordered,
    /// and pods that hold more than their task was allocated.
    pub(super) fn load_uids(&self) -> BTreeSet<String> {
        let attempts = self.tracked.iter();
        let records = attempts.flat_map(|(attempt, tracked)| tracked.tasks.iter().map(|one| (*attempt, one)));
        let loads = records.filter(|(attempt, record)| record.load(*attempt, self.journal).is_some());
        let uids = loads.filter_map(|(_, record)| Some(record.view.as_ref()?.uid.clone()));
        uids.chain(self.foreign_pods.iter().cloned()).collect()
    }

    /// True if the pool's broker ordered the attempt. The agent must not end any other pod, and so none at all
    /// until the broker has sent its journal id.
    fn is_own(&self, attempt: AttemptId) -> bool {
        self.journal == Some(attempt.journal)
    }

    fn is_of_other_journal(&self, attempt: AttemptId) -> bool {
        self.journal.is_some_and(|journal| journal != attempt.journal)
    }

    /// Returns the indices of a node's devices that Weir's own live tasks hold, and how many pods those tasks
    /// are. Pods of other journals are left out: they count as load.
    pub(super) fn held_on(&self, node: &str) -> (BTreeSet<u16>, u64) {
        let own = self.tasks_by_node.on(node).filter(|(attempt, _)| !self.is_of_other_journal(*attempt));
        let (mut devices, mut pods) = (BTreeSet::new(), 0);
        for (attempt, rank) in own {
            pods += 1;
            let record = record(&self.tracked, *attempt, *rank);
            devices.extend(record.into_iter().flat_map(|record| &record.devices));
        }
        (devices, pods)
    }

    /// Removes output past its retention.
    pub(super) fn collect_logs(&self) {
        self.logs.collect();
    }
}

fn record(
    tracked: &BTreeMap<AttemptId, TrackedAttempt>,
    attempt: AttemptId,
    rank: u32,
) -> Option<&PodRecord> {
    tracked.get(&attempt)?.tasks.get(rank as usize)
}

fn record_mut(
    tracked: &mut BTreeMap<AttemptId, TrackedAttempt>,
    attempt: AttemptId,
    rank: u32,
) -> Option<&mut PodRecord> {
    tracked.get_mut(&attempt)?.tasks.get_mut(rank as usize)
}
