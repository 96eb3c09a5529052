//! Keeps attempts in step with their pods, and the inventory with the cluster's nodes.
//!
//! One task owns all of it. Three watches tell of nodes, of the pool's own pods and of everybody
//! else's; calls run beside it and report back. After a watch had to start over, what it no longer
//! lists is gone.

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
use super::kept::Done;
use super::lock::{Lock, RENEW};
use super::logs::Logs;
use super::{Settings, names, pod};
use crate::agent::StartRequest;
use crate::model::exchange::Stop;
use crate::model::id::{AttemptId, JournalId};
use crate::pools::{Event, InitialSync};

/// How long changes of nodes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(500);
/// How often output past its retention is looked for.
const COLLECT: Duration = Duration::from_secs(60);
/// Between two warnings that a watch fails.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// What the agent wants.
pub(super) enum Command {
    StartRequest(Box<StartRequest>),
    Stop(Stop),
    Forget(AttemptId),
    Serves(JournalId),
}

type Watch<K> = BoxStream<'static, watcher::Result<Watched<K>>>;

/// The worker of one pool.
pub(super) struct Worker {
    lock: Lock,
    events: mpsc::UnboundedSender<Event>,
    done: mpsc::UnboundedReceiver<Done>,
    nodes: Watch<Node>,
    others: Watch<Pod>,
    own: Watch<Pod>,
    attempts: Attempts,
    inventory: Inventory,
    /// Names that a watch has listed since it had to start over.
    listed_nodes: BTreeSet<String>,
    listed_others: BTreeSet<String>,
    listed_own: BTreeSet<(AttemptId, u32)>,
    listed_strangers: BTreeSet<String>,
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
        let (reports, done) = mpsc::unbounded_channel();
        let client = &cluster.watcher;
        let pool = &settings.pool;
        let live = "status.phase!=Succeeded,status.phase!=Failed";
        Self {
            nodes: watch(Api::all(client.clone()), &settings.nodes, ""),
            others: watch(Api::all(client.clone()), &format!("{}!={pool}", names::POOL), live),
            own: watch(Api::all(client.clone()), &format!("{}={pool}", names::POOL), ""),
            inventory: Inventory::new(settings.devices.clone()),
            attempts: Attempts::new(settings, cluster, logs, events.clone(), reports),
            lock,
            events,
            done,
            listed_nodes: BTreeSet::new(),
            listed_others: BTreeSet::new(),
            listed_own: BTreeSet::new(),
            listed_strangers: BTreeSet::new(),
            warned_at: None,
        }
    }

    /// Waits until all three watches have listed what there is. Tells whether the pool is still this
    /// agent's then.
    pub(super) async fn list(&mut self) -> bool {
        let mut renew = tokio::time::interval(RENEW);
        let (mut nodes, mut others, mut own) = (false, false, false);
        while !(nodes && others && own) {
            tokio::select! {
                Some(event) = self.nodes.next() => nodes |= self.take_node(event),
                Some(event) = self.others.next() => others |= self.take_other(event),
                Some(event) = self.own.next() => own |= self.take_own(event),
                _ = renew.tick() => {
                    if !self.lock.renew().await {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// All that there is.
    pub(super) fn opened(&mut self) -> InitialSync {
        let attempts = self.attempts.seen();
        let nodes = self.inventory.all(|node| self.attempts.held_on(node));
        InitialSync { nodes, attempts, notes: Vec::new() }
    }

    /// Works until the agent is gone, or another speaks for the pool. Until it knows whose pods these are,
    /// it does nothing to them.
    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut renew = tokio::time::interval(RENEW);
        let mut gather = tokio::time::interval(GATHER);
        let mut collect = tokio::time::interval(COLLECT);
        for timer in [&mut renew, &mut gather, &mut collect] {
            timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        // Renewals wait for an API server: nothing else may wait for them.
        let (lost, mut is_lost) = mpsc::channel(1);
        let (lock, events) = (self.lock.clone(), self.events.clone());
        let keeper = tokio::spawn(async move {
            let mut answered = true;
            loop {
                renew.tick().await;
                if !lock.renew().await {
                    let _ = lost.send(()).await;
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
                _ = is_lost.recv() => {
                    let _ = self.events.send(Event::Gone);
                    break;
                }
                command = inbox.recv() => match command {
                    Some(Command::StartRequest(start)) => self.attempts.start(*start, &mut self.inventory),
                    Some(Command::Stop(stop)) => self.attempts.stop(stop.attempt),
                    Some(Command::Forget(attempt)) => self.attempts.forget(attempt),
                    Some(Command::Serves(journal)) => self.attempts.serve(journal, &mut self.inventory),
                    None => break,
                },
                Some(done) = self.done.recv() => {
                    // A list that was begun before can't have it.
                    self.listed_own.extend(done.made());
                    self.attempts.done(done);
                }
                Some(event) = self.own.next() => { self.take_own(event); }
                Some(event) = self.nodes.next() => { self.take_node(event); }
                Some(event) = self.others.next() => { self.take_other(event); }
                _ = gather.tick() => {
                    self.attempts.lose_patience();
                    self.inventory.reopen(self.attempts.now());
                    self.attempts.tell_nodes(&mut self.inventory);
                }
                _ = collect.tick() => self.attempts.collect_logs(),
            }
        }
        keeper.abort();
    }

    /// Each of these tells whether the watch has just listed all that there is.
    fn take_node(&mut self, event: watcher::Result<Watched<Node>>) -> bool {
        match event {
            Ok(Watched::Apply(node)) => self.inventory.set_node(pod::node_name(&node), &node),
            Ok(Watched::Delete(node)) => self.inventory.remove_node(pod::node_name(&node)),
            Ok(Watched::Init) => self.listed_nodes.clear(),
            Ok(Watched::InitApply(node)) => {
                self.listed_nodes.insert(pod::node_name(&node).to_owned());
                self.inventory.set_node(pod::node_name(&node), &node);
            }
            Ok(Watched::InitDone) => {
                self.inventory.keep_nodes(&std::mem::take(&mut self.listed_nodes));
                return true;
            }
            Err(error) => self.warn("nodes", &error),
        }
        false
    }

    fn take_other(&mut self, event: watcher::Result<Watched<Pod>>) -> bool {
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
                let own = self.attempts.loads();
                self.inventory.keep_pods(&std::mem::take(&mut self.listed_others), &own);
                return true;
            }
            Err(error) => self.warn("pods", &error),
        }
        false
    }

    fn take_own(&mut self, event: watcher::Result<Watched<Pod>>) -> bool {
        match event {
            Ok(Watched::Apply(pod)) => {
                let _ = self.attempts.see(&pod, &mut self.inventory);
            }
            Ok(Watched::Delete(pod)) => self.attempts.miss(&pod, &mut self.inventory),
            Ok(Watched::Init) => {
                self.listed_own.clear();
                self.listed_strangers.clear();
            }
            Ok(Watched::InitApply(pod)) => {
                match self.attempts.see(&pod, &mut self.inventory) {
                    Ok(task) => self.listed_own.insert(task),
                    Err(uid) => self.listed_strangers.insert(uid),
                };
            }
            Ok(Watched::InitDone) => {
                let strangers = std::mem::take(&mut self.listed_strangers);
                self.attempts.keep(&std::mem::take(&mut self.listed_own), strangers, &mut self.inventory);
                return true;
            }
            Err(error) => self.warn("own pods", &error),
        }
        false
    }

    /// A watch tries on by itself; that it fails is said at once, then now and again.
    fn warn(&mut self, what: &str, error: &watcher::Error) {
        if self.warned_at.is_none_or(|at| at.elapsed() > WARN_AGAIN) {
            self.warned_at = Some(std::time::Instant::now());
            tracing::warn!(what, error = causes(error), "a watch fails; trying on");
        }
    }
}
