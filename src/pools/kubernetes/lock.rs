//! The pool's lock: a Lease object names the pool's one active agent.
//!
//! The algorithm is that of client-go's leader election. An agent may take a lease that has not been renewed
//! for its whole duration, measured by the agent's own clock. A holder that can't renew its lease creates
//! nothing once that duration is over. One gap remains: a call that was sent in time and takes effect late.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff;
use kube::Api;
use kube::api::PostParams;

use super::cluster::{Cluster, error_text};
use super::names;
use crate::clock;

/// How long a lease lasts without renewal.
const DURATION: Duration = Duration::from_secs(15);
/// The time between two renewals.
pub(super) const RENEW_INTERVAL: Duration = Duration::from_secs(4);
/// The longest time of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two reads of a lease that another agent holds.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The lock of a pool.
#[derive(Clone)]
pub(super) struct Lock {
    leases: Api<Lease>,
    name: String,
    holder: String,
    cluster: Cluster,
}

/// The result of one attempt to acquire or renew the lock.
enum LockResult {
    Held,
    HeldByOther(ObservedLease),
    Failed(String),
}

/// Another agent's lease, as it was read.
#[derive(Clone, PartialEq, Eq)]
struct ObservedLease {
    holder: String,
    renewed: Option<MicroTime>,
}

/// The holder of a lock.
pub(super) struct Holder {
    pub(super) name: String,
    pub(super) is_this: bool,
    /// It was renewed within the lock's duration, if the clocks agree.
    pub(super) is_fresh: bool,
}

impl Lock {
    /// The lock of a pool, in the agent's namespace. `holder` is the agent's instance id. An agent that restarts
    /// acquires a lock with its own id at once.
    pub(super) fn new(cluster: &Cluster, namespace: &str, pool: &str, holder: &str) -> Self {
        let leases = Api::namespaced(cluster.client.clone(), namespace);
        Self { leases, name: names::lease(pool), holder: holder.to_owned(), cluster: cluster.clone() }
    }

    /// Returns the present holder; `None` if the lock was never held.
    ///
    /// # Errors
    /// The message of the failed call.
    pub(super) async fn holder(&self) -> Result<Option<Holder>, String> {
        let found = self.leases.get_opt(&self.name).await.map_err(|error| error_text(&error))?;
        let spec = found.and_then(|lease| lease.spec).unwrap_or_default();
        let age = spec.renew_time.map(|renewed| jiff::Timestamp::now().duration_since(renewed.0));
        let is_fresh = age.is_some_and(|age| age.as_secs().unsigned_abs() < DURATION.as_secs());
        let holder = |name: String| Holder { is_this: name == self.holder, is_fresh, name };
        Ok(spec.holder_identity.map(holder))
    }

    /// Waits until this agent holds the lock.
    pub(super) async fn acquire(&self) {
        let mut watched: Option<(ObservedLease, Instant)> = None;
        let mut logged = None;
        loop {
            // A lease that did not change for the whole duration may be taken. `write` checks that it still has
            // not changed.
            let expired = watched.as_ref().filter(|(_, since)| since.elapsed() > DURATION);
            let why = match self.try_write(expired.map(|(observed, _)| observed)).await {
                LockResult::Held => return,
                LockResult::HeldByOther(observed) => {
                    let why = format!("agent {} holds the lock", observed.holder);
                    if watched.as_ref().is_none_or(|(last, _)| *last != observed) {
                        watched = Some((observed, Instant::now()));
                    }
                    why
                }
                LockResult::Failed(error) => error,
            };
            if logged.as_ref() != Some(&why) {
                tracing::warn!(lease = self.name, why, "the pool's lock is not acquired yet; retrying");
                logged = Some(why);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// True if this agent is certain to hold the lock: its last renewal has not expired.
    pub(super) fn is_held(&self) -> bool {
        self.cluster.held_until_boot_ms.load(Ordering::Relaxed) > clock::boot_ms()
    }

    /// Renews the lock once. Returns false if another agent holds it; true also if that is unknown because the
    /// call failed.
    pub(super) async fn renew(&self) -> bool {
        match self.try_write(None).await {
            LockResult::Held => true,
            LockResult::HeldByOther(ObservedLease { holder, .. }) => {
                tracing::warn!(lease = self.name, holder, "another agent holds the pool's lock now");
                self.cluster.held_until_boot_ms.store(0, Ordering::Relaxed);
                false
            }
            LockResult::Failed(error) => {
                tracing::debug!(lease = self.name, error, "the pool's lock can't be renewed");
                true
            }
        }
    }

    async fn try_write(&self, expired: Option<&ObservedLease>) -> LockResult {
        let began_boot_ms = clock::boot_ms();
        let done = tokio::time::timeout(CALL_TIMEOUT, self.write(expired)).await;
        match done.unwrap_or_else(|_| Ok(LockResult::Failed("the API server does not answer".to_owned()))) {
            Ok(LockResult::Held) => {
                // Counted from before the call: other agents count from after it, and so expire it later.
                let until = began_boot_ms + DURATION.as_millis() as u64;
                self.cluster.held_until_boot_ms.store(until, Ordering::Relaxed);
                LockResult::Held
            }
            Ok(other) => other,
            Err(error) => LockResult::Failed(error_text(&error)),
        }
    }

    async fn write(&self, expired: Option<&ObservedLease>) -> kube::Result<LockResult> {
        let now = MicroTime(jiff::Timestamp::now());
        let spec = |transitions: i32, acquired: Option<MicroTime>| LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now.clone()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(spec(0, None)) };
            self.leases.create(&PostParams::default(), &lease).await?;
            return Ok(LockResult::Held);
        };
        let old = lease.spec.take().unwrap_or_default();
        let found =
            ObservedLease { holder: old.holder_identity.unwrap_or_default(), renewed: old.renew_time };
        let transitions = old.lease_transitions.unwrap_or(0);
        if found.holder == self.holder {
            lease.spec = Some(spec(transitions, old.acquire_time));
        } else if found.holder.is_empty() || expired == Some(&found) {
            lease.spec = Some(spec(transitions.saturating_add(1), None));
        } else {
            return Ok(LockResult::HeldByOther(found));
        }
        // Carries the version that was read, so of two concurrent writers one gets a conflict.
        self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
        Ok(LockResult::Held)
    }
}
