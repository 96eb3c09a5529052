//! The attempts of a pool and their pods: what is wanted of them, and what is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

use super::cluster::{Cluster, Created};
use super::inventory::Inventory;
use super::kept::{Done, Kept, Slot, held_devices, identity};
use super::logs::Logs;
use super::places::Places;
use super::status::{self, StopCause, Task, View};
use super::{Settings, names, pod};
use crate::agent::{ObservedAttempt, StartRequest};
use crate::model::attempt::{AttemptStatus, Outcome, OutcomeKind};
use crate::model::id::{AttemptId, JournalId};
use crate::model::time::Timestamp;
use crate::pools::Event;

/// How long a node gets no more tasks that has turned one away.
const SHUT_MS: u64 = 30_000;

/// The attempts of a pool.
pub(super) struct Attempts {
    settings: Arc<Settings>,
    cluster: Cluster,
    logs: Logs,
    events: mpsc::UnboundedSender<Event>,
    reports: mpsc::UnboundedSender<Done>,
    kept: BTreeMap<AttemptId, Kept>,
    /// Whose pods these are; others' are load.
    journal: Option<JournalId>,
    places: Places,
    /// Pods with the pool's label that no agent made, by uid: load.
    strangers: BTreeSet<String>,
    /// Tasks that something keeps from starting, by since when.
    troubled: BTreeSet<(Timestamp, AttemptId, u32)>,
}

impl Attempts {
    pub(super) fn new(
        settings: Arc<Settings>,
        cluster: Cluster,
        logs: Logs,
        events: mpsc::UnboundedSender<Event>,
        reports: mpsc::UnboundedSender<Done>,
    ) -> Self {
        Self {
            settings,
            cluster,
            logs,
            events,
            reports,
            kept: BTreeMap::new(),
            journal: None,
            places: Places::default(),
            strangers: BTreeSet::new(),
            troubled: BTreeSet::new(),
        }
    }

    /// Everything that was found, for an agent that begins.
    pub(super) fn seen(&mut self) -> Vec<ObservedAttempt> {
        let now = self.cluster.clock.now();
        let mut all = Vec::new();
        for (attempt, kept) in &mut self.kept {
            if !kept.is_whole() {
                kept.failed = Some(kept.why_in_part(now));
            }
            let status = kept.status(now);
            kept.told = Some(status.clone());
            all.push(ObservedAttempt {
                attempt: *attempt,
                ordered_revision: kept.revision,
                start_by: kept.start_by,
                high_water: kept.high_water,
                status,
            });
        }
        all
    }

    pub(super) fn now(&self) -> Timestamp {
        self.cluster.clock.now()
    }

    /// Tells of nodes that are not as they were told.
    pub(super) fn tell_nodes(&mut self, inventory: &mut Inventory) {
        for node in self.places.take_touched() {
            inventory.touch(&node);
        }
        let (nodes, removed) = inventory.changes(|node| self.held_on(node));
        if !nodes.is_empty() || !removed.is_empty() {
            let _ = self.events.send(Event::NodesChanged { nodes, removed });
        }
    }

    /// A node on which the launch would be more pods than it takes.
    fn crowded<'a>(&self, start: &'a StartRequest, inventory: &Inventory) -> Option<&'a str> {
        let mut wanted: BTreeMap<&str, u64> = BTreeMap::new();
        for task in &start.order.tasks {
            *wanted.entry(&task.node).or_default() += 1;
        }
        let is_crowded = |(node, count): &(&str, u64)| {
            inventory.pods_left(node, self.held_on(node).1).is_some_and(|left| left < *count)
        };
        wanted.into_iter().find(is_crowded).map(|(node, _)| node)
    }

    /// Creates an attempt's pods.
    pub(super) fn start(&mut self, start: StartRequest, inventory: &mut Inventory) {
        let (attempt, now) = (start.order.attempt, self.cluster.clock.now());
        if let Some(kept) = self.kept.get(&attempt) {
            if let Some(status) = kept.told.clone() {
                let _ = self.events.send(Event::StatusChanged { attempt, status });
            }
            return;
        }
        let pods = if now > start.start_by {
            Err(Outcome::plain(OutcomeKind::NotStarted, "the order came too late"))
        } else if let Some(node) = self.crowded(&start, inventory) {
            // Before the launch comes back, so that it goes elsewhere.
            self.tell_nodes(inventory);
            Err(Outcome::plain(OutcomeKind::NotStarted, &format!("node {node} takes no more pods")))
        } else {
            let resource = |node: &str, index: u16| inventory.resource_of(node, index).map(str::to_owned);
            pod::pods(&self.settings, &start, resource)
                .map_err(|why| Outcome::plain(OutcomeKind::StartFailed, &why))
        };
        let namespace = self.settings.namespace_of(&start.order.queue);
        let kept = Kept::ordered(&start, namespace, pods.as_ref().err().cloned());
        let stopped = kept.stopped.clone();
        if pods.is_ok() {
            for (rank, slot) in kept.tasks.iter().enumerate() {
                self.places.enter(&slot.node, (attempt, rank as u32));
            }
            self.logs.place(attempt, namespace);
        }
        self.kept.insert(attempt, kept);
        let gang = pod::is_gang(&start.order, &start.spec);
        for (rank, pod) in pods.unwrap_or_default().into_iter().enumerate() {
            let (cluster, reports) = (self.cluster.clone(), self.reports.clone());
            let (start_by, stopped) = (start.start_by, stopped.clone());
            let rank = rank as u32;
            tokio::spawn(async move {
                let created = cluster.create(pod, start_by, &stopped).await;
                let service = match &created {
                    Created::Made(first) if gang && rank == 0 => Some(pod::service(attempt, first)),
                    Created::Made(_) | Created::Refused(_) | Created::Late(_) => None,
                };
                let _ = reports.send(Done::Created { attempt, rank, created });
                if let Some(service) = service
                    && let Err(why) = cluster.create_service(service, start_by, &stopped).await
                {
                    let _ = reports.send(Done::NoService { attempt, why });
                }
            });
        }
        self.settle(attempt);
    }

    /// Ends an attempt.
    pub(super) fn stop(&mut self, attempt: AttemptId) {
        let Some(kept) = self.kept.get_mut(&attempt) else { return };
        kept.stopped.store(true, Ordering::Relaxed);
        let ended = matches!(kept.told, Some(AttemptStatus::Ended { .. }));
        if ended {
            // Told once more: whoever asks again has not heard.
            if let Some(status) = kept.told.clone() {
                let _ = self.events.send(Event::StatusChanged { attempt, status });
            }
            return;
        }
        let cause = StopCause::Attempt(OutcomeKind::Cancelled, String::new());
        self.stop_tasks(attempt, &cause, |_| true);
        self.settle(attempt);
    }

    /// Tells those tasks to stop that run and have not been told.
    fn stop_tasks(&mut self, attempt: AttemptId, cause: &StopCause, which: impl Fn(&View) -> bool) {
        let Some(kept) = self.kept.get_mut(&attempt) else { return };
        for (rank, slot) in kept.tasks.iter_mut().enumerate() {
            let Some(view) = slot.view.as_ref().filter(|view| !view.is_ended() && which(view)) else {
                continue;
            };
            // One that nobody has placed has no kubelet to end it, whatever it was told.
            if slot.told_to_stop || view.stop.is_some() && view.bound {
                continue;
            }
            slot.told_to_stop = true;
            let (cluster, namespace) = (self.cluster.clone(), kept.namespace.clone());
            let (name, uid, cause) = (names::pod(attempt, rank), view.uid.clone(), cause.clone());
            tokio::spawn(async move { cluster.stop(&namespace, &name, &uid, &cause).await });
        }
    }

    /// The attempt's outcome is durable at the broker: its pods may go once their output is kept.
    pub(super) fn forget(&mut self, attempt: AttemptId) {
        let Some(kept) = self.kept.get_mut(&attempt) else { return };
        kept.forgotten = true;
        self.clear(attempt);
    }

    fn clear(&mut self, attempt: AttemptId) {
        let Some(kept) = self.kept.get_mut(&attempt).filter(|kept| kept.forgotten) else { return };
        for (rank, slot) in kept.tasks.iter_mut().enumerate() {
            let Some(view) = slot.view.as_ref().filter(|_| !slot.gone && !slot.deleting && !slot.fetching)
            else {
                continue;
            };
            slot.deleting = true;
            let (cluster, reports, namespace) =
                (self.cluster.clone(), self.reports.clone(), kept.namespace.clone());
            let (name, uid, rank) = (names::pod(attempt, rank), view.uid.clone(), rank as u32);
            tokio::spawn(async move {
                cluster.delete(&namespace, &name, &uid, None).await;
                let _ = reports.send(Done::Deleted { attempt, rank });
            });
        }
        let done = |slot: &Slot| slot.view.is_none() || slot.gone;
        if kept.tasks.iter().all(|slot| done(slot) && !slot.fetching && !slot.creating) {
            self.logs.leave(attempt);
            let kept = self.kept.remove(&attempt);
            for (rank, slot) in kept.into_iter().flat_map(|kept| kept.tasks).enumerate() {
                self.places.leave(&slot.node, (attempt, rank as u32));
                if let Some(since) = slot.troubled_since {
                    self.troubled.remove(&(since, attempt, rank as u32));
                }
            }
        }
    }

    /// A call has come to its end.
    pub(super) fn done(&mut self, done: Done) {
        let attempt = match &done {
            Done::Created { attempt, .. }
            | Done::NoService { attempt, .. }
            | Done::Fetched { attempt, .. }
            | Done::Deleted { attempt, .. } => *attempt,
        };
        let now = self.cluster.clock.now();
        let Some(kept) = self.kept.get_mut(&attempt) else { return };
        match done {
            Done::NoService { why, .. } => {
                let why = format!("its service can't be created: {why}");
                kept.failed.get_or_insert_with(|| Outcome::plain(OutcomeKind::StartFailed, &why));
            }
            Done::Created { rank, created, .. } => {
                let Some(slot) = kept.tasks.get_mut(rank as usize) else { return };
                slot.creating = false;
                let failed = match created {
                    // The watch may have told more of it already.
                    Created::Made(_) if slot.view.is_some() => None,
                    Created::Made(pod) => return self.set(attempt, rank, status::view(&pod, now), &pod),
                    Created::Refused(why) => Some((OutcomeKind::StartFailed, why)),
                    Created::Late(_) if kept.stopped.load(Ordering::Relaxed) => {
                        Some((OutcomeKind::Cancelled, "stopped before it was started".to_owned()))
                    }
                    Created::Late(why) => {
                        Some((OutcomeKind::NotStarted, format!("not created in time: {why}")))
                    }
                };
                if let Some((kind, why)) = failed {
                    kept.stopped.store(true, Ordering::Relaxed);
                    // What a cluster refuses outweighs that others were given up for it.
                    let graver =
                        kept.failed.as_ref().is_none_or(|known| known.kind == OutcomeKind::Cancelled);
                    if graver {
                        kept.failed = Some(status::outcome(kind, why));
                    }
                    let node = slot.node.clone();
                    self.places.leave(&node, (attempt, rank));
                }
            }
            Done::Fetched { rank, .. } => {
                if let Some(slot) = kept.tasks.get_mut(rank as usize) {
                    slot.fetching = false;
                    slot.fetched = true;
                }
                return self.clear(attempt);
            }
            Done::Deleted { rank, .. } => {
                if let Some(slot) = kept.tasks.get_mut(rank as usize) {
                    slot.gone = true;
                }
                return self.clear(attempt);
            }
        }
        self.settle(attempt);
    }

    /// A pod of this pool is there. Returns whose it is.
    ///
    /// # Errors
    /// Its uid, if no agent made it.
    pub(super) fn see(&mut self, pod: &Pod, inventory: &mut Inventory) -> Result<(AttemptId, u32), String> {
        let Some((attempt, rank, size)) = identity(pod) else {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            inventory.set_pod(&uid, pod);
            self.strangers.insert(uid.clone());
            return Err(uid);
        };
        self.adopt(attempt, rank, size, pod);
        let now = self.cluster.clock.now();
        let view = status::view(pod, now);
        if view.was_turned_away() && self.is_live(attempt, rank) {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
            inventory.shut(node, now.plus_ms(SHUT_MS));
            self.tell_nodes(inventory);
        }
        self.set(attempt, rank, view, pod);
        if let Some(slot) = self.kept.get(&attempt).and_then(|kept| kept.tasks.get(rank as usize)) {
            self.tell_load(attempt, slot, inventory);
        }
        Ok((attempt, rank))
    }

    /// The task is not known to have ended.
    fn is_live(&self, attempt: AttemptId, rank: u32) -> bool {
        let slot = self.kept.get(&attempt).and_then(|kept| kept.tasks.get(rank as usize));
        slot.is_some_and(|slot| !slot.view.as_ref().is_some_and(View::is_ended))
    }

    /// A pod of this pool is gone.
    pub(super) fn miss(&mut self, pod: &Pod, inventory: &mut Inventory) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        inventory.remove_pod(uid);
        self.strangers.remove(uid);
        let Some((attempt, rank, _)) = identity(pod) else { return };
        let now = self.cluster.clock.now();
        let Some(slot) = self.kept.get_mut(&attempt).and_then(|kept| kept.tasks.get_mut(rank as usize))
        else {
            return;
        };
        let is_it = slot.view.as_ref().is_none_or(|view| view.uid == uid);
        if !is_it {
            return;
        }
        slot.gone = true;
        self.set(attempt, rank, status::removed(pod, now), pod);
        self.clear(attempt);
    }

    /// Only these tasks have pods, and only these strangers are there; others were removed unseen.
    pub(super) fn keep(
        &mut self,
        listed: &BTreeSet<(AttemptId, u32)>,
        strangers: BTreeSet<String>,
        inventory: &mut Inventory,
    ) {
        self.strangers.difference(&strangers).for_each(|uid| inventory.remove_pod(uid));
        self.strangers = strangers;
        let now = self.cluster.clock.now();
        let mut missing = Vec::new();
        for (attempt, kept) in &mut self.kept {
            for (rank, slot) in kept.tasks.iter_mut().enumerate() {
                let key = (*attempt, rank as u32);
                if let Some(view) = slot.view.as_mut().filter(|_| !slot.gone && !listed.contains(&key)) {
                    slot.gone = true;
                    inventory.remove_pod(&view.uid);
                    missing.push(key);
                    if view.is_ended() {
                        continue;
                    }
                    // It may have been placed, and begun, since it was last seen.
                    let why = "its pod was removed while nobody watched";
                    let outcome = Some(Outcome::plain(OutcomeKind::Vanished, why));
                    view.task = Task::Ended { started_at: None, ended_at: now, outcome };
                }
            }
        }
        for (attempt, rank) in missing {
            self.note_end(attempt, rank);
            self.settle(attempt);
            self.clear(attempt);
        }
    }

    /// Makes room for an attempt that another life of the agent, or a call thought lost, has created.
    fn adopt(&mut self, attempt: AttemptId, rank: u32, size: usize, pod: &Pod) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if !self.kept.contains_key(&attempt) {
            self.logs.place(attempt, namespace);
        }
        let kept = self.kept.entry(attempt).or_insert_with(|| Kept::found(pod, size));
        let kept_stopped = kept.stopped.clone();
        let Some(slot) = kept.tasks.get_mut(rank as usize).filter(|slot| slot.node.is_empty()) else {
            return;
        };
        slot.devices = held_devices(pod);
        slot.node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let node = slot.node.clone();
        self.places.enter(&node, (attempt, rank));
        // Whoever created the pods may have ended before it came to their service.
        let service = names::service(attempt);
        let of_gang = pod.spec.as_ref().and_then(|spec| spec.subdomain.as_deref()) == Some(service.as_str());
        if rank == 0 && of_gang && !status::view(pod, self.cluster.clock.now()).is_ended() {
            let (cluster, service, stopped) =
                (self.cluster.clone(), pod::service(attempt, pod), kept_stopped);
            tokio::spawn(async move {
                if let Err(why) = cluster.create_service(service, Timestamp(u64::MAX), &stopped).await {
                    tracing::warn!(%attempt, why, "a gang has no service by which its tasks find each other");
                }
            });
        }
    }

    /// Takes note of how a task stands.
    fn set(&mut self, attempt: AttemptId, rank: u32, view: View, pod: &Pod) {
        self.logs.name_container(attempt, rank, &view.container);
        let now = self.cluster.clock.now();
        let Some(slot) = self.kept.get_mut(&attempt).and_then(|kept| kept.tasks.get_mut(rank as usize))
        else {
            return;
        };
        // The end is the end, whatever an older message says.
        if slot.view.as_ref().is_some_and(View::is_ended) {
            return;
        }
        let trouble = match &view.task {
            Task::Pending { trouble } => trouble.is_some(),
            Task::Running { .. } | Task::Ended { .. } => false,
        };
        match slot.troubled_since {
            Some(since) if !trouble => {
                slot.troubled_since = None;
                self.troubled.remove(&(since, attempt, rank));
            }
            None if trouble => {
                slot.troubled_since = Some(now);
                self.troubled.insert((now, attempt, rank));
            }
            _ => {}
        }
        slot.view = Some(view);
        slot.weigh(pod);
        self.note_end(attempt, rank);
        self.settle(attempt);
    }

    /// What follows when a task has just ended: its devices are free, its output is fetched.
    fn note_end(&mut self, attempt: AttemptId, rank: u32) {
        let is_own = self.is_own(attempt);
        let Some(kept) = self.kept.get_mut(&attempt) else { return };
        let Some(slot) = kept.tasks.get_mut(rank as usize) else { return };
        let Some(view) = slot.view.as_ref().filter(|view| view.is_ended()) else { return };
        if let Some(since) = slot.troubled_since.take() {
            self.troubled.remove(&(since, attempt, rank));
        }
        if is_own && !(slot.fetching || slot.fetched) {
            slot.fetching = true;
            // What is gone has nothing more to say; whoever reads must know that.
            let (logs, reports, began) = (self.logs.clone(), self.reports.clone(), view.began && !slot.gone);
            tokio::spawn(async move {
                logs.finish(attempt, rank, began).await;
                let _ = reports.send(Done::Fetched { attempt, rank });
            });
        }
        let node = slot.node.clone();
        self.places.leave(&node, (attempt, rank));
    }

    /// Does what an attempt's tasks call for, and tells how it stands if that is new.
    fn settle(&mut self, attempt: AttemptId) {
        if !self.is_own(attempt) {
            return;
        }
        let now = self.cluster.clock.now();
        let Some(kept) = self.kept.get_mut(&attempt).filter(|kept| !kept.is_only_wanted()) else { return };
        let views: Vec<View> = kept.tasks.iter().filter_map(|task| task.view.clone()).collect();
        let cause = if let Some(failed) = &kept.failed {
            Some(StopCause::Attempt(failed.kind, failed.message.clone()))
        } else if status::first_failure(&views).is_some() {
            Some(StopCause::Sibling)
        } else if kept.stopped.load(Ordering::Relaxed) {
            Some(StopCause::Attempt(OutcomeKind::Cancelled, String::new()))
        } else {
            // Told by an earlier life of this agent, to some of them at least.
            views.iter().filter_map(|view| view.stop.clone()).find(|cause| *cause != StopCause::MainEnded)
        };
        if let Some(cause) = cause {
            kept.stopped.store(true, Ordering::Relaxed);
            self.stop_tasks(attempt, &cause, |_| true);
        }
        // What only helps the task has nothing left to help.
        self.stop_tasks(attempt, &StopCause::MainEnded, |view| view.lingers);
        let Some(kept) = self.kept.get_mut(&attempt) else { return };
        let status = kept.status(now);
        let is_news = match (&kept.told, &status) {
            (None, _) => true,
            (Some(AttemptStatus::Ended { .. }), _)
            | (Some(AttemptStatus::Running { .. }), AttemptStatus::Starting) => false,
            (Some(told), status) => told != status,
        };
        if is_news {
            kept.told = Some(status.clone());
            let _ = self.events.send(Event::StatusChanged { attempt, status });
        }
    }

    /// Gives up tasks that have failed to start for too long, or never will.
    pub(super) fn lose_patience(&mut self) {
        let now = self.cluster.clock.now();
        let patience_ms = self.settings.start_timeout_ms;
        let mut hopeless = Vec::new();
        for (since, attempt, rank) in self.troubled.iter().filter(|(_, attempt, _)| self.is_own(*attempt)) {
            let slot = self.kept.get(attempt).and_then(|kept| kept.tasks.get(*rank as usize));
            let Some(Task::Pending { trouble: Some(trouble) }) =
                slot.and_then(|slot| slot.view.as_ref()).map(|view| &view.task)
            else {
                continue;
            };
            if trouble.final_ || since.plus_ms(patience_ms) <= now {
                hopeless.push((*since, *attempt, *rank, trouble.message.clone()));
            }
        }
        for (since, attempt, rank, message) in hopeless {
            self.troubled.remove(&(since, attempt, rank));
            if let Some(kept) = self.kept.get_mut(&attempt) {
                kept.failed.get_or_insert_with(|| Outcome::plain(OutcomeKind::StartFailed, &message));
            }
            self.settle(attempt);
        }
    }

    /// Learns whose pods these are.
    pub(super) fn serve(&mut self, journal: JournalId, inventory: &mut Inventory) {
        if self.journal == Some(journal) {
            return;
        }
        self.journal = Some(journal);
        self.places.touch_all();
        for (attempt, kept) in &self.kept {
            kept.tasks.iter().for_each(|slot| self.tell_load(*attempt, slot, inventory));
        }
        // What is due for all that was found.
        let own = self.kept.iter().filter(|(attempt, _)| attempt.journal == journal);
        let own: Vec<_> = own.map(|(attempt, kept)| (*attempt, kept.tasks.len() as u32)).collect();
        for (attempt, tasks) in own {
            (0..tasks).for_each(|rank| self.note_end(attempt, rank));
            self.settle(attempt);
        }
    }

    fn tell_load(&self, attempt: AttemptId, slot: &Slot, inventory: &mut Inventory) {
        let Some(view) = &slot.view else { return };
        match slot.load(attempt, self.journal) {
            Some(load) => inventory.set_held(&view.uid, &slot.node, load.clone()),
            None => inventory.remove_pod(&view.uid),
        }
    }

    /// Pods of this pool that are load, by uid: strangers, those that another journal's broker ordered, and
    /// those that hold more than they were given.
    pub(super) fn loads(&self) -> BTreeSet<String> {
        let slots =
            self.kept.iter().flat_map(|(attempt, kept)| kept.tasks.iter().map(|slot| (*attempt, slot)));
        let loads = slots.filter(|(attempt, slot)| slot.load(*attempt, self.journal).is_some());
        let loads = loads.filter_map(|(_, slot)| Some(slot.view.as_ref()?.uid.clone()));
        loads.chain(self.strangers.iter().cloned()).collect()
    }

    /// It is known to be this pool's broker's: another's pods, and all of them until the broker has said
    /// which journal is its own, are not for this agent to end.
    fn is_own(&self, attempt: AttemptId) -> bool {
        self.journal == Some(attempt.journal)
    }

    fn is_of_other_journal(&self, attempt: AttemptId) -> bool {
        self.journal.is_some_and(|journal| journal != attempt.journal)
    }

    /// The devices of a node that Weir's own live tasks have, and in how many pods they are. What runs
    /// for other journals is somebody else's.
    pub(super) fn held_on(&self, node: &str) -> (BTreeSet<u16>, u64) {
        let own = self.places.on(node).filter(|(attempt, _)| !self.is_of_other_journal(*attempt));
        let (mut devices, mut pods) = (BTreeSet::new(), 0);
        for (attempt, rank) in own {
            pods += 1;
            let slot = self.kept.get(attempt).and_then(|kept| kept.tasks.get(*rank as usize));
            devices.extend(slot.into_iter().flat_map(|slot| &slot.devices));
        }
        (devices, pods)
    }

    pub(super) fn collect_logs(&self) {
        self.logs.collect();
    }
}
