//! The resources that a pod holds of its node, counted as the Kubernetes scheduler counts them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::quantity;

/// The resource that limits the number of pods on a node.
pub(super) const PODS: &str = "pods";

/// Amounts of a node's resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Amounts {
    pub(super) cpu_millis: u64,
    pub(super) memory_bytes: u64,
    pub(super) storage_bytes: u64,
    /// By the cluster's names, in whole units. A list, because it is almost always empty or has one entry.
    pub(super) other: Vec<(Box<str>, u64)>,
}

impl Amounts {
    /// Reads an object's quantities. One that can't be read counts as 0.
    pub(super) fn read(quantities: &BTreeMap<String, Quantity>) -> Self {
        let mut amounts = Self::default();
        for (name, Quantity(text)) in quantities {
            match name.as_str() {
                "cpu" => amounts.cpu_millis = quantity::millis(text).unwrap_or(0),
                "memory" => amounts.memory_bytes = quantity::whole(text).unwrap_or(0),
                "ephemeral-storage" => amounts.storage_bytes = quantity::whole(text).unwrap_or(0),
                _ => amounts.other.push((name.as_str().into(), quantity::whole(text).unwrap_or(0))),
            }
        }
        amounts
    }

    /// The amount of a resource other than CPU, memory and ephemeral storage.
    pub(super) fn of(&self, name: &str) -> u64 {
        self.other.iter().find(|(other, _)| **other == *name).map_or(0, |(_, amount)| *amount)
    }

    pub(super) fn add(&mut self, more: &Self) {
        self.combine(more, u64::saturating_add);
    }

    pub(super) fn sub(&mut self, less: &Self) {
        self.combine(less, u64::saturating_sub);
        self.other.retain(|(_, amount)| *amount > 0);
    }

    /// Returns the first resource of which this is more than `allocated`, with both amounts. The resource `pods`
    /// is left out.
    pub(super) fn first_beyond(&self, allocated: &Self) -> Option<(&str, u64, u64)> {
        let fixed = [
            ("cpu", self.cpu_millis, allocated.cpu_millis),
            ("memory", self.memory_bytes, allocated.memory_bytes),
            ("ephemeral-storage", self.storage_bytes, allocated.storage_bytes),
        ];
        let other = self.other.iter().filter(|(name, _)| **name != *PODS);
        let other = other.map(|(name, amount)| (&**name, *amount, allocated.of(name)));
        fixed.into_iter().chain(other).find(|(_, own, allocated)| own > allocated)
    }

    fn combine(&mut self, rhs: &Self, op: impl Fn(u64, u64) -> u64) {
        self.cpu_millis = op(self.cpu_millis, rhs.cpu_millis);
        self.memory_bytes = op(self.memory_bytes, rhs.memory_bytes);
        self.storage_bytes = op(self.storage_bytes, rhs.storage_bytes);
        for (name, amount) in &rhs.other {
            match self.other.iter_mut().find(|(other, _)| other == name) {
                Some((_, own)) => *own = op(*own, *amount),
                None => self.other.push((name.clone(), op(0, *amount))),
            }
        }
    }

    fn raise_to(&mut self, rhs: &Self) {
        self.combine(rhs, u64::max);
    }
}

/// Returns what the scheduler counts for a pod: the sum of its containers and sidecars, or the largest need of
/// its init containers if that is more; the pod's own request instead of the sum where it has one; and the
/// runtime's overhead. Source:
/// <https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>.
pub(super) fn of_pod(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let of = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        requests.map(Amounts::read).unwrap_or_default()
    };
    let mut total = Amounts::default();
    for container in &spec.containers {
        total.add(&of(container));
    }
    let (mut sidecars, mut init) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&of(container));
            init.raise_to(&sidecars);
        } else {
            let mut with_sidecars = sidecars.clone();
            with_sidecars.add(&of(container));
            init.raise_to(&with_sidecars);
        }
    }
    total.add(&sidecars);
    total.raise_to(&init);
    if let Some(own) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let own = Amounts::read(own);
        for (sum, own) in [
            (&mut total.cpu_millis, own.cpu_millis),
            (&mut total.memory_bytes, own.memory_bytes),
            (&mut total.storage_bytes, own.storage_bytes),
        ] {
            if own > 0 {
                *sum = own;
            }
        }
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Amounts::read(overhead));
    }
    total.add(&Amounts { other: vec![(PODS.into(), 1)], ..Amounts::default() });
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str) -> Pod {
        serde_json::from_str(text).expect("a pod")
    }

    #[test]
    fn containers_are_summed_and_init_containers_are_not() {
        let pod = pod(r#"{"spec": {
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "2"}}},
                {"name": "b", "resources": {"requests": {"cpu": "1"}}}, {"name": "c"}],
            "initContainers": [
                {"name": "helper", "restartPolicy": "Always", "resources": {"requests": {"cpu": "250m"}}},
                {"name": "first", "resources": {"requests": {"cpu": "1", "memory": "3Gi"}}}],
            "overhead": {"cpu": "10m"}}}"#);
        let amounts = of_pod(&pod);
        assert_eq!((amounts.cpu_millis, amounts.memory_bytes), (1_760, 3 << 30));
        assert_eq!((amounts.of("nvidia.com/gpu"), amounts.of("other")), (2, 0));
    }

    #[test]
    fn subtraction_reverses_addition() {
        let one = of_pod(&pod(
            r#"{"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "x/y": "2"}}}]}}"#,
        ));
        let mut sum = one.clone();
        sum.add(&one);
        sum.sub(&one);
        assert_eq!(sum, one);
        sum.sub(&one);
        assert_eq!(sum, Amounts::default());
    }
}
