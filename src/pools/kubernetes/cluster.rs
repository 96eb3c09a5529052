//! Calls to a cluster's API server, repeated until it has answered.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use tokio::sync::Semaphore;

use super::Settings;
use super::names;
use super::status::StopCause;
use crate::clock::{self, Clock};
use crate::model::time::Timestamp;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(15);
/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a list or a watch may be silent; the server ends a watch a little earlier by itself.
const SILENT: Duration = Duration::from_secs(60);
/// How long a watch lasts before it is begun anew, in seconds.
pub(super) const WATCH_S: u32 = 50;
/// The least wait for a server that sends everybody away: what it asks for in `Retry-After`.
const SENT_AWAY: Duration = Duration::from_secs(1);
/// Before the first repetition, and the longest that it grows to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Calls under way at once: an API server counts them against its clients' shares.
const CALLS_MAX: usize = 64;
/// How long a call that was given up may still take effect.
const LATE: Duration = Duration::from_secs(2);
/// Who owns the fields that Weir patches.
pub(super) const MANAGER: &str = "weir-agent";

/// What became of a pod that was to be created.
#[derive(Debug)]
pub(super) enum Created {
    Made(Box<Pod>),
    /// The cluster says no, and would say it again.
    Refused(String),
    /// It was not there by its time; the last that was heard.
    Late(String),
}

/// A connection to a cluster. Cheap to clone.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) client: Client,
    /// For lists and watches: connections on which nothing comes are given up.
    pub(super) watcher: Client,
    pub(super) clock: Clock,
    /// Until when this agent is surely the only one for its pool, by the boot clock.
    pub(super) held_until_boot_ms: Arc<AtomicU64>,
    calls: Arc<Semaphore>,
}

/// Reads where the cluster is and who asks: a kubeconfig, or what a pod is given.
///
/// # Errors
/// In words for an operator.
pub(super) async fn config(settings: &Settings) -> Result<Config, String> {
    let options = KubeConfigOptions { context: settings.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &settings.kubeconfig {
        Some(path) => {
            let failed = |error: kube::config::KubeconfigError| {
                format!("kubeconfig {}: {}", path.display(), causes(&error))
            };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?
        }
        None if settings.context.is_some() => Config::from_kubeconfig(&options)
            .await
            .map_err(|error| format!("kubeconfig: {}", causes(&error)))?,
        None => Config::infer()
            .await
            .map_err(|error| format!("no kubeconfig, and not in a cluster: {}", causes(&error)))?,
    };
    config.connect_timeout = Some(CONNECT);
    // Each repetition here asks first whether its time is over, it was stopped, or another agent has
    // the pool: nobody else may repeat a call.
    config.default_retry = false;
    Ok(config)
}

/// An error with what caused it, in one line.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// What an API server says, without the names of this program's types.
pub(super) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => causes(other),
    }
}

pub(super) fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// There is an object of this name. Another conflict, such as two writers of a quota, passes.
fn is_there(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// It would be refused again: not a server's trouble, nor a credential's that will be renewed.
pub(super) fn is_refusal(error: &kube::Error) -> bool {
    matches!(code(error), 400 | 403 | 404 | 405 | 406 | 413 | 415 | 422)
}

/// Waits longer each time, by a random part of it.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Self(BACKOFF.0)
    }

    /// After a call that failed so, if one did: at least for what that asks for.
    async fn wait_after(&mut self, error: Option<&kube::Error>) {
        if error.is_some_and(|error| code(error) == 429) {
            self.0 = self.0.max(SENT_AWAY * 2);
        }
        let part = f64::from(rand::random::<u16>()) / f64::from(u16::MAX);
        tokio::time::sleep(self.0.mul_f64(0.5 + part / 2.0)).await;
        self.0 = (self.0 * 2).min(BACKOFF.1);
    }
}

impl Cluster {
    /// Connects to a cluster.
    ///
    /// # Errors
    /// In words for an operator, if that can't be done with such settings.
    pub(super) async fn connect(settings: &Settings, clock: Clock) -> Result<Self, String> {
        let config = config(settings).await?;
        let mut watching = config.clone();
        (watching.read_timeout, watching.reset_reader_on_write) = (Some(SILENT), true);
        let client = |config: Config| Client::try_from(config).map_err(|error| causes(&error));
        Ok(Self {
            client: client(config)?,
            watcher: client(watching)?,
            clock,
            held_until_boot_ms: Arc::new(AtomicU64::new(0)),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
        })
    }

    /// The pods of a namespace.
    pub(super) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn is_held(&self) -> bool {
        clock::boot_ms() < self.held_until_boot_ms.load(Ordering::Relaxed)
    }

    async fn call<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, Option<kube::Error>> {
        // The semaphore is never closed; without a permit the call is only less bounded.
        let _permit = self.calls.acquire().await;
        Self::answer(call).await
    }

    async fn answer<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Option<kube::Error>> {
        match tokio::time::timeout(CALL, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Some(error)),
            Err(_) => Err(None),
        }
    }

    /// Creates a pod unless it is there, and never after `start_by` nor when `stopped` is set.
    pub(super) async fn create(&self, pod: Pod, start_by: Timestamp, stopped: &AtomicBool) -> Created {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let (pods, mut backoff) = (self.pods(&namespace), Backoff::new());
        let (mut tried, mut last) = (false, "another agent holds the pool".to_owned());
        loop {
            // Before the questions: it may be long in coming.
            let permit = self.calls.acquire().await;
            if self.clock.now() > start_by || stopped.load(Ordering::Relaxed) {
                break;
            }
            if !self.is_held() {
                drop(permit);
                backoff.wait_after(None).await;
                continue;
            }
            tried = true;
            let answer = Self::answer(pods.create(&PostParams::default(), &pod)).await;
            drop(permit);
            match answer {
                Ok(made) => return Created::Made(Box::new(made)),
                Err(Some(error)) if is_there(&error) => {
                    return match self.look(&pods, &name).await {
                        Some(found) if is_same(&pod, &found) => Created::Made(Box::new(found)),
                        Some(_) => Created::Refused(format!("there is a pod {name} of other work")),
                        // It has just been removed: that is not for this launch to repeat.
                        None => Created::Late("its pod was removed while it was created".to_owned()),
                    };
                }
                Err(Some(error)) if is_refusal(&error) => return Created::Refused(said(&error)),
                Err(error) => {
                    let silent = || "the API server does not answer".to_owned();
                    last = error.as_ref().map_or_else(silent, said);
                    tracing::debug!(pod = name, error = last, "a pod is not created yet");
                    backoff.wait_after(error.as_ref()).await;
                }
            }
        }
        if tried {
            // A call that seemed to fail may have been carried out, or be carried out now.
            tokio::time::sleep(LATE).await;
            if let Some(found) = self.look(&pods, &name).await.filter(|found| is_same(&pod, found)) {
                return Created::Made(Box::new(found));
            }
        }
        Created::Late(last)
    }

    /// The pod of this name, if there is one; asks until there is an answer.
    async fn look(&self, pods: &Api<Pod>, name: &str) -> Option<Pod> {
        let mut backoff = Backoff::new();
        loop {
            match self.call(pods.get_opt(name)).await {
                Ok(found) => return found,
                Err(error) => {
                    let why = error.as_ref().map_or_else(|| "it does not answer".to_owned(), said);
                    tracing::debug!(pod = name, error = why, "a pod can't be looked at");
                    backoff.wait_after(error.as_ref()).await;
                }
            }
        }
    }

    /// Makes a gang's service unless it is there.
    ///
    /// # Errors
    /// What the cluster says, if it refuses, or does not do it in time.
    pub(super) async fn create_service(
        &self,
        service: Service,
        start_by: Timestamp,
        stopped: &AtomicBool,
    ) -> Result<(), String> {
        let namespace = service.metadata.namespace.clone().unwrap_or_default();
        let services: Api<Service> = Api::namespaced(self.client.clone(), &namespace);
        let mut backoff = Backoff::new();
        loop {
            match self.call(services.create(&PostParams::default(), &service)).await {
                Ok(_) => return Ok(()),
                Err(Some(error)) if is_there(&error) => return Ok(()),
                Err(Some(error)) if is_refusal(&error) => return Err(said(&error)),
                Err(_) if stopped.load(Ordering::Relaxed) => return Ok(()),
                Err(error) if self.clock.now() > start_by => {
                    return Err(error.as_ref().map_or_else(|| "it does not answer".to_owned(), said));
                }
                Err(error) => backoff.wait_after(error.as_ref()).await,
            }
        }
    }

    /// Tells a pod to stop, and why. Its kubelet ends it as it does one whose time is over, so the
    /// object stays and tells how it ended; one that no kubelet has is deleted.
    pub(super) async fn stop(&self, namespace: &str, name: &str, uid: &str, cause: &StopCause) {
        let patch = json!({
            "metadata": { "uid": uid, "annotations": { names::STOP: cause.to_annotation() } },
            "spec": { "activeDeadlineSeconds": 1 },
        });
        let (pods, mut backoff) = (self.pods(namespace), Backoff::new());
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        loop {
            match self.call(pods.patch(name, &parameters, &Patch::Merge(&patch))).await {
                Ok(patched) if patched.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) => return,
                Ok(patched) => {
                    // As it was seen: one that gets its node meanwhile would be gone without a last word,
                    // for the server looks at the node before it deletes, and not as it does.
                    if self.delete(namespace, name, uid, patched.metadata.resource_version).await {
                        return;
                    }
                }
                Err(Some(error)) if code(&error) == 404 => return,
                // Also where another pod is in its place: that one is not deleted.
                Err(Some(error)) if is_refusal(&error) => {
                    tracing::warn!(
                        pod = name,
                        error = said(&error),
                        "a pod can't be told to stop: it is deleted"
                    );
                    break;
                }
                Err(error) => backoff.wait_after(error.as_ref()).await,
            }
        }
        self.delete(namespace, name, uid, None).await;
    }

    /// Deletes a pod, if it is the one meant, and of this version if one is named. Returns whether it did,
    /// or there was nothing to delete.
    pub(super) async fn delete(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        resource_version: Option<String>,
    ) -> bool {
        let uid = Some(uid.to_owned()).filter(|uid| !uid.is_empty());
        let preconditions = Some(Preconditions { uid, resource_version });
        let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
        let (pods, mut backoff) = (self.pods(namespace), Backoff::new());
        loop {
            match self.call(pods.delete(name, &parameters)).await {
                Ok(_) => return true,
                Err(Some(error)) if code(&error) == 404 => return true,
                Err(Some(error)) if code(&error) == 409 => return false,
                Err(error) => {
                    let why = error.as_ref().map_or_else(|| "it does not answer".to_owned(), said);
                    tracing::debug!(pod = name, error = why, "a pod can't be deleted");
                    backoff.wait_after(error.as_ref()).await;
                }
            }
        }
    }
}

/// The pod that was found is what this order would have made: an earlier try of it did.
fn is_same(wanted: &Pod, found: &Pod) -> bool {
    let text = |pod: &Pod, annotation: &str| pod.metadata.annotations.as_ref()?.get(annotation).cloned();
    let label = |pod: &Pod, label: &str| pod.metadata.labels.as_ref()?.get(label).cloned();
    text(wanted, names::REVISION) == text(found, names::REVISION)
        && [names::ATTEMPT, names::POOL, names::RANK]
            .iter()
            .all(|name| label(wanted, name) == label(found, name))
}
