//! The event loop of one pool: feeds watch events, commands and call results to the attempts and the inventory.
//!
//! One tokio task owns all of that state. Three watches deliver nodes, the pool's own pods, and all other pods.
//! Calls run as separate tasks and report back through a channel. When a watch has to start again, it lists
//! everything, and what the list lacks has been deleted meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event as Watched, watcher};
use tokio::sync::mpsc;

use super::attempts::Attempts;
use super::cluster::{Cluster, WATCH_S, causes};
use super::inventory::Inventory;
use super::lock::{Lock, RENEW_INTERVAL};
use super::logs::Logs;
use super::tracked::CallResult;
use super::{Settings, names, pod};
use crate::agent::StartRequest;
use crate::model::exchange::Stop;
use crate::model::id::{AttemptId, JournalId};
use crate::pools::{Event, InitialSync};

/// How long node changes are collected before they are reported.
const NODE_REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// How often output past its retention is removed.
const LOG_CLEANUP_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest time between two warnings about failing watches.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// A call of [`PoolBackend`](crate::pools::PoolBackend), passed to the worker.
pub(super) enum Command {
    Start(Box<StartRequest>),
    Stop(Stop),
    Forget(AttemptId),
    Serves(JournalId),
}

type Watch<K> = BoxStream<'static, watcher::Result<Watched<K>>>;

/// The worker of one pool.
pub(super) struct Worker {
    lock: Lock,
    events: mpsc::UnboundedSender<Event>,
    results: mpsc::UnboundedReceiver<CallResult>,
    nodes: Watch<Node>,
    /// Live pods without the pool's label.
    other_pods: Watch<Pod>,
    /// Pods with the pool's label, ended ones included.
    own_pods: Watch<Pod>,
    attempts: Attempts,
    inventory: Inventory,
    /// What each watch has listed since it last started: names of nodes, uids of other pods, tasks of own pods,
    /// and uids of own pods that no agent created.
    listed_nodes: BTreeSet<String>,
    listed_others: BTreeSet<String>,
    listed_own: BTreeSet<(AttemptId, u32)>,
    listed_foreign: BTreeSet<String>,
    warned_at: Option<std::time::Instant>,
}

fn watch<K>(api: Api<K>, labels: &str, fields: &str) -> Watch<K>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let config = watcher::Config {
        label_selector: some(labels),
        field_selector: some(fields),
        timeout: Some(WATCH_S),
        ..watcher::Config::default()
    };
    watcher(api, config).default_backoff().boxed()
}

impl Worker {
    pub(super) fn new(
        settings: Arc<Settings>,
        cluster: Cluster,
        lock: Lock,
        logs: Logs,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let (sender, results) = mpsc::unbounded_channel();
        let client = &cluster.watcher;
        let pool = &settings.pool;
        let live = "status.phase!=Succeeded,status.phase!=Failed";
        Self {
            nodes: watch(Api::all(client.clone()), &settings.nodes, ""),
            other_pods: watch(Api::all(client.clone()), &format!("{}!={pool}", names::POOL), live),
            own_pods: watch(Api::all(client.clone()), &format!("{}={pool}", names::POOL), ""),
            inventory: Inventory::new(settings.devices.clone()),
            attempts: Attempts::new(settings, cluster, logs, events.clone(), sender),
            lock,
            events,
            results,
            listed_nodes: BTreeSet::new(),
            listed_others: BTreeSet::new(),
            listed_own: BTreeSet::new(),
            listed_foreign: BTreeSet::new(),
            warned_at: None,
        }
    }

    /// Waits until all three watches have listed everything. Returns false if another agent took the pool's lock
    /// meanwhile.
    pub(super) async fn list(&mut self) -> bool {
        let mut renew = tokio::time::interval(RENEW_INTERVAL);
        let (mut nodes, mut others, mut own) = (false, false, false);
        while !(nodes && others && own) {
            tokio::select! {
                Some(event) = self.nodes.next() => nodes |= self.node_event(event),
                Some(event) = self.other_pods.next() => others |= self.other_pod_event(event),
                Some(event) = self.own_pods.next() => own |= self.own_pod_event(event),
                _ = renew.tick() => {
                    if !self.lock.renew().await {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Returns all nodes and attempts. Call it once, after `list`.
    pub(super) fn initial_sync(&mut self) -> InitialSync {
        let attempts = self.attempts.observed();
        let nodes = self.inventory.all(|node| self.attempts.held_on(node));
        InitialSync { nodes, attempts, notes: Vec::new() }
    }

    /// Runs until the backend is dropped or another agent takes the pool's lock. Changes no pod before
    /// [`Command::Serves`] has named the broker's journal.
    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut renew = tokio::time::interval(RENEW_INTERVAL);
        let mut report_nodes = tokio::time::interval(NODE_REPORT_INTERVAL);
        let mut clean_logs = tokio::time::interval(LOG_CLEANUP_INTERVAL);
        for timer in [&mut renew, &mut report_nodes, &mut clean_logs] {
            timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        // A renewal may wait long for the API server. As a task of its own it delays nothing else.
        let (lock_lost, mut lock_was_lost) = mpsc::channel(1);
        let (lock, events) = (self.lock.clone(), self.events.clone());
        let renewal = tokio::spawn(async move {
            let mut answered = true;
            loop {
                renew.tick().await;
                if !lock.renew().await {
                    let _ = lock_lost.send(()).await;
                    return;
                }
                let answers = lock.is_held();
                if answers != answered {
                    answered = answers;
                    let _ = events.send(Event::Answers(answers));
                }
            }
        });
        loop {
            tokio::select! {
                biased;
                _ = lock_was_lost.recv() => {
                    let _ = self.events.send(Event::Gone);
                    break;
                }
                command = inbox.recv() => match command {
                    Some(Command::Start(start)) => self.attempts.start(*start, &mut self.inventory),
                    Some(Command::Stop(stop)) => self.attempts.stop(stop.attempt),
                    Some(Command::Forget(attempt)) => self.attempts.forget(attempt),
                    Some(Command::Serves(journal)) => self.attempts.set_journal(journal, &mut self.inventory),
                    None => break,
                },
                Some(result) = self.results.recv() => {
                    // A list that began before the pod was created does not contain it.
                    self.listed_own.extend(result.created_task());
                    self.attempts.finish_call(result);
                }
                Some(event) = self.own_pods.next() => { self.own_pod_event(event); }
                Some(event) = self.nodes.next() => { self.node_event(event); }
                Some(event) = self.other_pods.next() => { self.other_pod_event(event); }
                _ = report_nodes.tick() => {
                    self.attempts.fail_timed_out();
                    self.inventory.reopen(self.attempts.now());
                    self.attempts.report_nodes(&mut self.inventory);
                }
                _ = clean_logs.tick() => self.attempts.collect_logs(),
            }
        }
        renewal.abort();
    }

    /// Takes an event of the watch on nodes. Like the two functions below, returns true when the watch has just
    /// completed a list.
    fn node_event(&mut self, event: watcher::Result<Watched<Node>>) -> bool {
        match event {
            Ok(Watched::Apply(node)) => self.inventory.set_node(pod::node_name(&node), &node),
            Ok(Watched::Delete(node)) => self.inventory.remove_node(pod::node_name(&node)),
            Ok(Watched::Init) => self.listed_nodes.clear(),
            Ok(Watched::InitApply(node)) => {
                self.listed_nodes.insert(pod::node_name(&node).to_owned());
                self.inventory.set_node(pod::node_name(&node), &node);
            }
            Ok(Watched::InitDone) => {
                self.inventory.retain_nodes(&std::mem::take(&mut self.listed_nodes));
                return true;
            }
            Err(error) => self.warn("nodes", &error),
        }
        false
    }

    fn other_pod_event(&mut self, event: watcher::Result<Watched<Pod>>) -> bool {
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        match event {
            Ok(Watched::Apply(pod)) => self.inventory.set_pod(&uid(&pod), &pod),
            Ok(Watched::Delete(pod)) => self.inventory.remove_pod(&uid(&pod)),
            Ok(Watched::Init) => self.listed_others.clear(),
            Ok(Watched::InitApply(pod)) => {
                self.listed_others.insert(uid(&pod));
                self.inventory.set_pod(&uid(&pod), &pod);
            }
            Ok(Watched::InitDone) => {
                let own = self.attempts.load_uids();
                self.inventory.retain_pods(&std::mem::take(&mut self.listed_others), &own);
                return true;
            }
            Err(error) => self.warn("pods", &error),
        }
        false
    }

    fn own_pod_event(&mut self, event: watcher::Result<Watched<Pod>>) -> bool {
        match event {
            Ok(Watched::Apply(pod)) => {
                let _ = self.attempts.pod_applied(&pod, &mut self.inventory);
            }
            Ok(Watched::Delete(pod)) => self.attempts.pod_deleted(&pod, &mut self.inventory),
            Ok(Watched::Init) => {
                self.listed_own.clear();
                self.listed_foreign.clear();
            }
            Ok(Watched::InitApply(pod)) => {
                match self.attempts.pod_applied(&pod, &mut self.inventory) {
                    Ok(task) => self.listed_own.insert(task),
                    Err(uid) => self.listed_foreign.insert(uid),
                };
            }
            Ok(Watched::InitDone) => {
                let foreign_pods = std::mem::take(&mut self.listed_foreign);
                self.attempts.retain_listed(
                    &std::mem::take(&mut self.listed_own),
                    foreign_pods,
                    &mut self.inventory,
                );
                return true;
            }
            Err(error) => self.warn("own pods", &error),
        }
        false
    }

    /// Logs that a watch fails, at most once per `WARN_INTERVAL`. The watch retries by itself.
    fn warn(&mut self, what: &str, error: &watcher::Error) {
        if self.warned_at.is_none_or(|at| at.elapsed() > WARN_INTERVAL) {
            self.warned_at = Some(std::time::Instant::now());
            tracing::warn!(what, error = causes(error), "a watch fails; retrying");
        }
    }
}
