//! One agent speaks for a pool: a Lease object says which.
//!
//! As leader election does it: whoever finds a lease that nobody has renewed for its whole duration,
//! by the finder's own clock, may take it. A holder that can't renew creates nothing once that
//! duration is over. What is left open: a call that was sent in time and is carried out late.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff;
use kube::Api;
use kube::api::PostParams;

use super::cluster::{Cluster, said};
use super::names;
use crate::clock;

/// How long a lease lasts that is not renewed.
const DURATION: Duration = Duration::from_secs(15);
/// Between two renewals.
pub(super) const RENEW: Duration = Duration::from_secs(4);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);
/// Between two looks at a lease that somebody else holds.
const LOOK: Duration = Duration::from_secs(1);

/// The lock of a pool.
#[derive(Clone)]
pub(super) struct Lock {
    leases: Api<Lease>,
    name: String,
    holder: String,
    cluster: Cluster,
}

/// What a try to take or renew the lock came to.
enum Try {
    Held,
    Other(Seen),
    Failed(String),
}

/// Somebody else's lease.
#[derive(Clone, PartialEq, Eq)]
struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
}

/// Who holds a lock.
pub(super) struct Holder {
    pub(super) name: String,
    pub(super) is_this: bool,
    /// It was renewed within the lock's duration, if the clocks agree.
    pub(super) is_fresh: bool,
}

impl Lock {
    /// The lock of a pool, in the agent's namespace. `holder` is the agent's instance: it takes up its
    /// own lock again at once.
    pub(super) fn new(cluster: &Cluster, namespace: &str, pool: &str, holder: &str) -> Self {
        let leases = Api::namespaced(cluster.client.clone(), namespace);
        Self { leases, name: names::lease(pool), holder: holder.to_owned(), cluster: cluster.clone() }
    }

    /// Who holds the lock now; `None` if nobody ever did.
    pub(super) async fn holder(&self) -> Result<Option<Holder>, String> {
        let found = self.leases.get_opt(&self.name).await.map_err(|error| said(&error))?;
        let spec = found.and_then(|lease| lease.spec).unwrap_or_default();
        let age = spec.renew_time.map(|renewed| jiff::Timestamp::now().duration_since(renewed.0));
        let is_fresh = age.is_some_and(|age| age.as_secs().unsigned_abs() < DURATION.as_secs());
        let holder = |name: String| Holder { is_this: name == self.holder, is_fresh, name };
        Ok(spec.holder_identity.map(holder))
    }

    /// Waits until the lock is this agent's.
    pub(super) async fn take(&self) {
        let mut watched: Option<(Seen, Instant)> = None;
        let mut told = None;
        loop {
            // What has not moved for the whole duration may be taken, if it has not moved since either.
            let expired = watched.as_ref().filter(|(_, since)| since.elapsed() > DURATION);
            let why = match self.attempt(expired.map(|(seen, _)| seen)).await {
                Try::Held => return,
                Try::Other(seen) => {
                    let why = format!("agent {} speaks for the pool", seen.holder);
                    if watched.as_ref().is_none_or(|(last, _)| *last != seen) {
                        watched = Some((seen, Instant::now()));
                    }
                    why
                }
                Try::Failed(error) => error,
            };
            if told.as_ref() != Some(&why) {
                tracing::warn!(lease = self.name, why, "the pool's lock is not to be had yet; trying on");
                told = Some(why);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// It was renewed not long ago.
    pub(super) fn is_held(&self) -> bool {
        self.cluster.held_until_boot_ms.load(Ordering::Relaxed) > clock::boot_ms()
    }

    /// Renews the lock once. Tells whether it is still this agent's, as far as is known.
    pub(super) async fn renew(&self) -> bool {
        match self.attempt(None).await {
            Try::Held => true,
            Try::Other(Seen { holder, .. }) => {
                tracing::warn!(lease = self.name, holder, "another agent speaks for the pool now");
                self.cluster.held_until_boot_ms.store(0, Ordering::Relaxed);
                false
            }
            Try::Failed(error) => {
                tracing::debug!(lease = self.name, error, "the pool's lock can't be renewed");
                true
            }
        }
    }

    async fn attempt(&self, expired: Option<&Seen>) -> Try {
        let began_boot_ms = clock::boot_ms();
        let done = tokio::time::timeout(CALL, self.write(expired)).await;
        match done.unwrap_or_else(|_| Ok(Try::Failed("the API server does not answer".to_owned()))) {
            Ok(Try::Held) => {
                // Counted from before the call, as any other agent counts from after it.
                let until = began_boot_ms + DURATION.as_millis() as u64;
                self.cluster.held_until_boot_ms.store(until, Ordering::Relaxed);
                Try::Held
            }
            Ok(other) => other,
            Err(error) => Try::Failed(said(&error)),
        }
    }

    async fn write(&self, expired: Option<&Seen>) -> kube::Result<Try> {
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
            return Ok(Try::Held);
        };
        let old = lease.spec.take().unwrap_or_default();
        let found = Seen { holder: old.holder_identity.unwrap_or_default(), renewed: old.renew_time };
        let transitions = old.lease_transitions.unwrap_or(0);
        if found.holder == self.holder {
            lease.spec = Some(spec(transitions, old.acquire_time));
        } else if found.holder.is_empty() || expired == Some(&found) {
            lease.spec = Some(spec(transitions.saturating_add(1), None));
        } else {
            return Ok(Try::Other(found));
        }
        // Carries the version that was read: of two that try, one is told of a conflict.
        self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
        Ok(Try::Held)
    }
}
