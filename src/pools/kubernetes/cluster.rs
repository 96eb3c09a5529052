//! Calls to a cluster's API server, repeated until it answers.
//!
//! Every call is safe to repeat: object names derive from attempt ids, and stops and deletions name the pod's uid.

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
use crate::clock::{self, Clock, spread};
use crate::model::backoff::Backoff;
use crate::model::time::Timestamp;

/// The longest time of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time without data on a list or a watch. The server ends a watch itself before that, after
/// `WATCH_S`.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a watch lasts before it is renewed, in seconds.
pub(super) const WATCH_S: u32 = 50;
/// The shortest wait after 429 Too Many Requests: the value that API servers send in `Retry-After`.
const THROTTLED_WAIT_MIN: Duration = Duration::from_secs(1);
/// The wait before the first repetition, and the longest to which it grows.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
/// Calls under way at once. API Priority and Fairness counts them against the client's share of an API server.
const CALLS_MAX: usize = 64;
/// How long a call that timed out may still take effect.
const LATE_EFFECT_WAIT: Duration = Duration::from_secs(2);
/// The owner, in `managedFields`, of the fields that Weir patches.
pub(super) const FIELD_MANAGER: &str = "weir-agent";

/// The result of creating a pod.
#[derive(Debug)]
pub(super) enum CreateResult {
    Created(Box<Pod>),
    /// The cluster refused it, and would refuse it again.
    Refused(String),
    /// It did not exist by its start-by time, or was stopped before; with the last error.
    NotInTime(String),
}

/// A connection to a cluster. Cheap to clone.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) client: Client,
    /// For lists and watches. Its connections time out when no data arrives.
    pub(super) watcher: Client,
    pub(super) clock: Clock,
    /// Until when this agent is certain to hold the pool's lock, by the boot clock.
    pub(super) held_until_boot_ms: Arc<AtomicU64>,
    calls: Arc<Semaphore>,
}

/// Reads the cluster's address and the credentials from a kubeconfig, or from a pod's service account.
///
/// # Errors
/// A message for an operator, if the kubeconfig can't be read or there is none.
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
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // The client must not repeat a call by itself: before each repetition, `create` checks the start-by time, the
    // stop flag and the pool's lock.
    config.default_retry = false;
    Ok(config)
}

/// Formats an error and its causes in one line.
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

/// Returns the API server's message, without the names of the client library's types.
pub(super) fn error_text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => causes(other),
    }
}

/// The same for a call's error, where `None` means that the call timed out.
fn failure_text(error: Option<&kube::Error>) -> String {
    error.map_or_else(|| "the API server does not answer".to_owned(), error_text)
}

/// The HTTP status code of the answer; 0 if there was no answer.
pub(super) fn status_code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// An object of this name exists. Other conflicts, such as two writers of a quota, are transient.
fn already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// Parts of the messages of a 403 Forbidden that may end without a change of the object: an API server that has just
/// started answers so until it has read its roles and service accounts, and a missing permission may be granted.
/// No field of a status distinguishes them from a refusal by quota, policy or webhook.
const TEMPORARY_FORBIDDEN: [&str; 3] =
    ["is forbidden: User \"", "not yet ready to handle request", "error looking up service account"];

/// The call would be refused again: neither a server error, nor a credential that will be renewed (401), nor a
/// temporary 403.
pub(super) fn is_refusal(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    match status.code {
        403 => !TEMPORARY_FORBIDDEN.iter().any(|part| status.message.contains(part)),
        code => matches!(code, 400 | 404 | 405 | 406 | 413 | 415 | 422),
    }
}

/// Waits before a call is repeated. `error` is the failed call's, if there was one: after a 429 the wait is at
/// least `THROTTLED_WAIT_MIN`.
async fn wait_after(backoff: &mut Backoff, error: Option<&kube::Error>) {
    let throttled = error.is_some_and(|error| status_code(error) == 429);
    let wait_min = if throttled { THROTTLED_WAIT_MIN } else { Duration::ZERO };
    tokio::time::sleep(spread(backoff.next_wait().max(wait_min))).await;
}

impl Cluster {
    /// Creates the clients for a cluster. The first connection is made by the first call.
    ///
    /// # Errors
    /// A message for an operator, if the settings are not sufficient.
    pub(super) async fn connect(settings: &Settings, clock: Clock) -> Result<Self, String> {
        let config = config(settings).await?;
        let mut watching = config.clone();
        (watching.read_timeout, watching.reset_reader_on_write) = (Some(READ_TIMEOUT), true);
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
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Some(error)),
            Err(_) => Err(None),
        }
    }

    /// Creates a pod unless it exists. Never begins a call after `start_by`, after `stopped` was set, or without
    /// the pool's lock.
    pub(super) async fn create(&self, pod: Pod, start_by: Timestamp, stopped: &AtomicBool) -> CreateResult {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let (pods, mut backoff) = (self.pods(&namespace), BACKOFF);
        let (mut attempted, mut last) = (false, "the agent does not hold the pool's lock".to_owned());
        loop {
            // Before the checks: the wait for a permit may be long.
            let permit = self.calls.acquire().await;
            if self.clock.now() > start_by || stopped.load(Ordering::Relaxed) {
                break;
            }
            if !self.is_held() {
                drop(permit);
                wait_after(&mut backoff, None).await;
                continue;
            }
            attempted = true;
            let answer = Self::answer(pods.create(&PostParams::default(), &pod)).await;
            drop(permit);
            match answer {
                Ok(made) => return CreateResult::Created(Box::new(made)),
                Err(Some(error)) if already_exists(&error) => {
                    return match self.get(&pods, &name).await {
                        Some(found) if is_same(&pod, &found) => CreateResult::Created(Box::new(found)),
                        Some(_) => CreateResult::Refused(format!("another pod has the name {name}")),
                        // It has just been removed. This start must not create it a second time.
                        None => CreateResult::NotInTime(
                            "its pod was removed while it was being created".to_owned(),
                        ),
                    };
                }
                Err(Some(error)) if is_refusal(&error) => return CreateResult::Refused(error_text(&error)),
                Err(error) => {
                    last = failure_text(error.as_ref());
                    tracing::debug!(pod = name, error = last, "a pod is not created yet");
                    wait_after(&mut backoff, error.as_ref()).await;
                }
            }
        }
        if attempted {
            // A call that seemed to fail may have taken effect, or may still do so.
            tokio::time::sleep(LATE_EFFECT_WAIT).await;
            if let Some(found) = self.get(&pods, &name).await.filter(|found| is_same(&pod, found)) {
                return CreateResult::Created(Box::new(found));
            }
        }
        CreateResult::NotInTime(last)
    }

    /// Returns the pod of this name, if it exists. Repeats the call until there is an answer.
    async fn get(&self, pods: &Api<Pod>, name: &str) -> Option<Pod> {
        let mut backoff = BACKOFF;
        loop {
            match self.call(pods.get_opt(name)).await {
                Ok(found) => return found,
                Err(error) => {
                    let why = failure_text(error.as_ref());
                    tracing::debug!(pod = name, error = why, "a pod can't be read");
                    wait_after(&mut backoff, error.as_ref()).await;
                }
            }
        }
    }

    /// Creates a gang's service unless it exists. Gives up without an error once `stopped` is set.
    ///
    /// # Errors
    /// The cluster's message, if it refuses or does not create the service by `start_by`.
    pub(super) async fn create_service(
        &self,
        service: Service,
        start_by: Timestamp,
        stopped: &AtomicBool,
    ) -> Result<(), String> {
        let namespace = service.metadata.namespace.clone().unwrap_or_default();
        let services: Api<Service> = Api::namespaced(self.client.clone(), &namespace);
        let mut backoff = BACKOFF;
        loop {
            match self.call(services.create(&PostParams::default(), &service)).await {
                Ok(_) => return Ok(()),
                Err(Some(error)) if already_exists(&error) => return Ok(()),
                Err(Some(error)) if is_refusal(&error) => return Err(error_text(&error)),
                Err(_) if stopped.load(Ordering::Relaxed) => return Ok(()),
                Err(error) if self.clock.now() > start_by => {
                    return Err(failure_text(error.as_ref()));
                }
                Err(error) => wait_after(&mut backoff, error.as_ref()).await,
            }
        }
    }

    /// Stops a pod, and records the cause in an annotation.
    ///
    /// The pod is not deleted: it gets a deadline that has passed. Its kubelet ends it with its grace period, and
    /// the object stays, with the exit status. A pod without a node has no kubelet, and is deleted.
    pub(super) async fn stop(&self, namespace: &str, name: &str, uid: &str, cause: &StopCause) {
        let patch = json!({
            "metadata": { "uid": uid, "annotations": { names::STOP: cause.to_annotation() } },
            "spec": { "activeDeadlineSeconds": 1 },
        });
        let (pods, mut backoff) = (self.pods(namespace), BACKOFF);
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        loop {
            match self.call(pods.patch(name, &parameters, &Patch::Merge(&patch))).await {
                Ok(patched) if patched.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) => return,
                Ok(patched) => {
                    // Names the version that has no node. The server reads the pod's node before its deletion
                    // transaction, so without the version a pod bound meanwhile would be removed at once, and
                    // its end never reported.
                    if self.delete(namespace, name, uid, patched.metadata.resource_version).await {
                        return;
                    }
                }
                Err(Some(error)) if status_code(&error) == 404 => return,
                // Also if another pod has this name now. The uid protects that one from the deletion.
                Err(Some(error)) if is_refusal(&error) => {
                    tracing::warn!(
                        pod = name,
                        error = error_text(&error),
                        "a pod can't be stopped by its deadline: it is deleted"
                    );
                    break;
                }
                Err(error) => wait_after(&mut backoff, error.as_ref()).await,
            }
        }
        self.delete(namespace, name, uid, None).await;
    }

    /// Deletes the pod that has this uid and, if one is given, this resource version. Returns true if no such pod
    /// is left, false if the pod of this name has another uid or version.
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
        let (pods, mut backoff) = (self.pods(namespace), BACKOFF);
        loop {
            match self.call(pods.delete(name, &parameters)).await {
                Ok(_) => return true,
                Err(Some(error)) if status_code(&error) == 404 => return true,
                Err(Some(error)) if status_code(&error) == 409 => return false,
                Err(error) => {
                    let why = failure_text(error.as_ref());
                    tracing::debug!(pod = name, error = why, "a pod can't be deleted");
                    wait_after(&mut backoff, error.as_ref()).await;
                }
            }
        }
    }
}

/// True if an earlier call for the same order created the pod that was found.
fn is_same(ordered: &Pod, found: &Pod) -> bool {
    let text = |pod: &Pod, annotation: &str| pod.metadata.annotations.as_ref()?.get(annotation).cloned();
    let label = |pod: &Pod, label: &str| pod.metadata.labels.as_ref()?.get(label).cloned();
    text(ordered, names::REVISION) == text(found, names::REVISION)
        && [names::ATTEMPT, names::POOL, names::RANK]
            .iter()
            .all(|name| label(ordered, name) == label(found, name))
}
