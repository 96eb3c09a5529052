//! From a cluster's node object to the node that the broker schedules on: allocatable less the load.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;

use super::requests::{Amounts, PODS};
use crate::model::device;
use crate::model::limit::{BYTES_MAX, DEVICE_MILLIS, DEVICES_PER_NODE_MAX, LABELS_MAX, NODE_CPU_MILLIS_MAX};
use crate::model::pool::{Device, NodeSpec};
use crate::model::resource::Resources;
use crate::model::spec::{Labels, Taint};
use crate::model::text;

/// Device models by resource name and node label. A label value matches by prefix, because a product's name
/// continues with its form factor or sharing mode. Sources: the vendors' and HAMi's device plugins; NVIDIA's
/// product names are those of GPU Feature Discovery.
const MODEL_TABLE: &str = include_str!("devices.csv");

/// Prefix of the taints that the cluster itself sets.
const CLUSTER_TAINT_PREFIX: &str = "node.kubernetes.io/";

/// Prefix of Node Feature Discovery's labels. They are many and of little use for choosing a node, so they are
/// dropped first where a node has more than `LABELS_MAX`.
const FEATURE_LABEL_PREFIX: &str = "feature.node.kubernetes.io/";

/// What the scheduler needs of a node object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    labels: Labels,
    taints: Vec<Taint>,
    /// The node is ready, not cordoned, and has no taint of the cluster's own.
    schedulable: bool,
    allocatable: Amounts,
    /// Devices, one entry per resource. Their order defines the device indices.
    devices: Vec<DeviceKind>,
}

/// Devices of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DeviceKind {
    resource: Box<str>,
    model: String,
    /// Number of devices, unhealthy ones included, so that indices in the node's list stay stable.
    count: u64,
}

/// Returns the model of a resource's devices on a node with these labels; `None` if the resource is not a device.
///
/// `configured` holds the models from the pool's file. They take precedence over the table.
fn model_of(
    resource: &str,
    labels: &BTreeMap<String, String>,
    configured: &BTreeMap<String, String>,
) -> Option<String> {
    if let Some(model) = configured.get(resource) {
        return Some(model.clone());
    }
    let mut found_model = None;
    let mut longest = 0;
    for row in MODEL_TABLE.lines().skip(1) {
        let cells: Vec<&str> = row.split(',').collect();
        let [of, label, value, model] = cells[..] else { continue };
        if of != resource {
            continue;
        }
        if label.is_empty() {
            found_model.get_or_insert_with(|| model.to_owned());
            continue;
        }
        match labels.get(label) {
            // The prefix must end at a word boundary: A10 is not A100. A slice of a device (MIG) and a share of
            // one are models of their own.
            Some(found)
                if value.len() >= longest
                    && found.strip_prefix(value).is_some_and(|rest| {
                        !rest.starts_with(|c: char| c.is_ascii_alphanumeric())
                            && !rest.contains("-MIG-")
                            && !rest.ends_with("-SHARED")
                    }) =>
            {
                longest = value.len();
                found_model = Some(model.to_owned());
            }
            // A product that is not in the table is a model named after its label.
            Some(found) if longest == 0 && text::is_label(found) && !found.is_empty() => {
                found_model = Some(found.clone())
            }
            _ => {
                let plain = resource.rsplit('/').next().unwrap_or(resource);
                found_model.get_or_insert_with(|| plain.to_owned());
            }
        }
    }
    found_model
}

/// The resource by which a pod requests the device of this index; `None` if the node has no such device.
pub(super) fn resource_of(facts: &Facts, index: u16) -> Option<&str> {
    let mut first = 0;
    facts.devices.iter().find_map(|kind| {
        first += kind.count;
        (u64::from(index) < first).then_some(&*kind.resource)
    })
}

impl Facts {
    /// Reads a node. `configured` maps resources to models, from the pool's file.
    pub(super) fn read(node: &Node, configured: &BTreeMap<String, String>) -> Self {
        let none = BTreeMap::new();
        let all_labels = node.metadata.labels.as_ref().unwrap_or(&none);
        let status = node.status.as_ref();
        let spec = node.spec.as_ref();
        let mut allocatable =
            status.and_then(|status| status.allocatable.as_ref()).map(Amounts::read).unwrap_or_default();
        let capacity =
            status.and_then(|status| status.capacity.as_ref()).map(Amounts::read).unwrap_or_default();
        let mut devices = Vec::new();
        let mut left = DEVICES_PER_NODE_MAX as u64;
        allocatable.other.sort();
        for (resource, usable) in &allocatable.other {
            let Some(model) = model_of(resource, all_labels, configured) else { continue };
            let count = capacity.of(resource).max(*usable).min(left);
            left -= count;
            devices.push(DeviceKind { resource: resource.clone(), model, count });
        }
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let ready = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let cordoned = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        let all_taints = || spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        // The cluster's own taints mean: not ready; short of memory, disk or process ids; out of service.
        let tainted = all_taints()
            .any(|taint| taint.key.starts_with(CLUSTER_TAINT_PREFIX) && taint.effect != "PreferNoSchedule");
        let mut taints: Vec<Taint> = all_taints()
            // `PreferNoSchedule` excludes nothing. The cluster's own taints close the node instead.
            .filter(|taint| {
                taint.effect != "PreferNoSchedule" && !taint.key.starts_with(CLUSTER_TAINT_PREFIX)
            })
            .map(|taint| Taint { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default() })
            .filter(|taint| text::is_label(&taint.key) && text::is_label(&taint.value))
            .collect();
        taints.sort_by(|a, b| (&a.key, &a.value).cmp(&(&b.key, &b.value)));
        taints.dedup();
        taints.truncate(LABELS_MAX);
        Self {
            labels: labels(all_labels),
            taints,
            schedulable: ready && !cordoned && !tainted,
            allocatable,
            devices,
        }
    }

    /// How many pods the node takes in all; `None` if that is not limited.
    pub(super) fn pods(&self) -> Option<u64> {
        Some(self.allocatable.of(PODS)).filter(|pods| *pods > 0)
    }

    /// Returns what Weir may use of the node. `load` is what other pods hold. `held` has the indices of devices
    /// that Weir's own tasks hold, in `own_pods` pods.
    ///
    /// The API does not show which devices other pods hold, only how many. They are taken from the end of the
    /// list, and never from `held`.
    pub(super) fn spec(&self, name: &str, load: &Amounts, held: &BTreeSet<u16>, own_pods: u64) -> NodeSpec {
        let mut free = self.allocatable.clone();
        free.sub(load);
        let mut devices = Vec::new();
        for kind in &self.devices {
            let built_in = device::built_in().find(|built_in| built_in.name == kind.model);
            let memory_bytes = built_in.map_or(0, |built_in| built_in.memory_bytes);
            let first = devices.len() as u64;
            let mut unavailable = kind.count.saturating_sub(free.of(&kind.resource));
            let mut usable = vec![true; kind.count as usize];
            for offset in (0..kind.count).rev() {
                if unavailable == 0 {
                    break;
                }
                if u16::try_from(first + offset).is_ok_and(|index| !held.contains(&index)) {
                    usable[offset as usize] = false;
                    unavailable -= 1;
                }
            }
            devices.extend(usable.into_iter().map(|healthy| Device {
                model: kind.model.clone(),
                memory_bytes,
                healthy,
                millis: DEVICE_MILLIS,
                topology_group: 0,
                profiles: Vec::new(),
            }));
        }
        let other: BTreeMap<Box<str>, u64> = free
            .other
            .iter()
            .filter(|(name, amount)| {
                let device = self.devices.iter().any(|kind| kind.resource == *name);
                !device && *amount > 0 && *amount <= BYTES_MAX && text::is_label(name)
            })
            .take(LABELS_MAX)
            .cloned()
            .collect();
        NodeSpec {
            name: name.to_owned(),
            labels: self.labels.clone(),
            taints: self.taints.clone(),
            // A node at its pod limit takes no task, even if other resources are free.
            cordoned: !self.schedulable || self.allocatable.of(PODS) > 0 && free.of(PODS) <= own_pods,
            allocatable: Resources {
                cpu_millis: free.cpu_millis.min(NODE_CPU_MILLIS_MAX),
                memory_bytes: free.memory_bytes.min(BYTES_MAX),
                storage_bytes: free.storage_bytes.min(BYTES_MAX),
                device_millis: 0,
                other: (!other.is_empty()).then(|| Box::new(other)),
            },
            devices,
        }
    }
}

/// The labels that the broker accepts: valid ones, at most `LABELS_MAX`.
fn labels(all: &BTreeMap<String, String>) -> Labels {
    let valid =
        |(key, value): &(&String, &String)| text::is_label(key) && !key.is_empty() && text::is_label(value);
    let (features, plain): (Vec<_>, Vec<_>) =
        all.iter().filter(valid).partition(|(key, _)| key.starts_with(FEATURE_LABEL_PREFIX));
    let both = plain.into_iter().chain(features).take(LABELS_MAX);
    both.map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Facts {
        Facts::read(&serde_json::from_str(text).expect("a node"), &BTreeMap::new())
    }

    fn gpus(usable: u32) -> Facts {
        node(&format!(
            r#"{{"metadata": {{"name": "n", "labels": {{"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}}}},
            "spec": {{"taints": [{{"key": "dedicated", "value": "ml", "effect": "NoSchedule"}},
                {{"key": "soft", "effect": "PreferNoSchedule"}},
                {{"key": "node.kubernetes.io/soft", "effect": "PreferNoSchedule"}}]}},
            "status": {{"capacity": {{"nvidia.com/gpu": "4"}},
                "allocatable": {{"cpu": "31850m", "memory": "64Gi", "nvidia.com/gpu": "{usable}", "rdma/hca": "2", "pods": "110"}},
                "conditions": [{{"type": "Ready", "status": "True"}}]}}}}"#
        ))
    }

    fn load(cpu_millis: u64, devices: u64) -> Amounts {
        Amounts { cpu_millis, other: vec![("nvidia.com/gpu".into(), devices)], ..Amounts::default() }
    }

    #[test]
    fn resources_held_by_other_pods_are_not_offered() {
        let spec = gpus(4).spec("n", &load(1_850, 1), &BTreeSet::new(), 0);
        assert_eq!((spec.allocatable.cpu_millis, spec.cordoned), (30_000, false));
        let healthy = |spec: &NodeSpec| spec.devices.iter().map(|device| device.healthy).collect::<Vec<_>>();
        assert_eq!(healthy(&spec), [true, true, true, false]);
        assert_eq!(spec.devices[0].model, "A100-80G");
        assert_eq!(spec.devices[0].memory_bytes, 80 << 30);
        assert_eq!(spec.taints, [Taint { key: "dedicated".to_owned(), value: "ml".to_owned() }]);
        let other = spec.allocatable.other.expect("others");
        assert_eq!((other.get("rdma/hca"), other.get("nvidia.com/gpu")), (Some(&2), None));
        // A device that Weir's own task holds stays usable; the unhealthy one and those of others don't.
        let spec = gpus(3).spec("n", &load(0, 2), &BTreeSet::from([3]), 0);
        assert_eq!(healthy(&spec), [false, false, false, true]);
        assert_eq!(gpus(4).spec("n", &load(99_999, 9), &BTreeSet::new(), 0).allocatable.cpu_millis, 0);
    }

    #[test]
    fn a_resource_is_found_by_a_devices_index() {
        let facts = gpus(4);
        assert_eq!(resource_of(&facts, 3), Some("nvidia.com/gpu"));
        assert_eq!(resource_of(&facts, 4), None);
    }

    #[test]
    fn a_model_follows_from_labels_and_resource_names() {
        let labels = |label: &str, value: &str| BTreeMap::from([(label.to_owned(), value.to_owned())]);
        let none = BTreeMap::new();
        let check = |resource: &str, labels: &BTreeMap<String, String>, model: Option<&str>| {
            assert_eq!(model_of(resource, labels, &none).as_deref(), model, "{resource} {labels:?}");
        };
        let product = |value: &str| labels("nvidia.com/gpu.product", value);
        // A seventh of a device, or a tenth of its time, is not a whole device.
        for part in ["NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "NVIDIA-A100-SXM4-80GB-SHARED"] {
            check("nvidia.com/gpu", &product(part), Some(part));
        }
        check("nvidia.com/gpu", &product("NVIDIA-A10"), Some("A10"));
        check("nvidia.com/gpu", &product("NVIDIA-A100-SXM4-40GB"), Some("A100-40G"));
        check("nvidia.com/gpu", &product("NVIDIA-B300"), Some("NVIDIA-B300"));
        check("nvidia.com/gpu", &none, Some("gpu"));
        let chip = "node.kubernetes.io/npu.chip.name";
        check("huawei.com/Ascend910", &labels(chip, "910B3"), Some("Ascend910B3"));
        check("huawei.com/Ascend910B4", &none, Some("Ascend910B4"));
        check("hygon.com/dcunum", &none, Some("DCU"));
        check("cambricon.com/vmlu", &none, Some("MLU"));
        check("rdma/hca", &none, None);
        let configured = BTreeMap::from([("hygon.com/dcu".to_owned(), "DCU-K100".to_owned())]);
        assert_eq!(model_of("hygon.com/dcu", &none, &configured).as_deref(), Some("DCU-K100"));
    }

    #[test]
    fn a_node_that_is_not_ready_takes_nothing_new() {
        let text = |ready: &str, cordoned: bool| {
            format!(
                r#"{{"metadata": {{}}, "spec": {{"unschedulable": {cordoned}}},
                "status": {{"conditions": [{{"type": "Ready", "status": "{ready}"}}]}}}}"#
            )
        };
        let cordoned = |text: &str| node(text).spec("n", &Amounts::default(), &BTreeSet::new(), 0).cordoned;
        let taint = r#"{"metadata": {}, "spec": {"taints": [{"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}"#;
        assert!(cordoned(taint));
        assert!(!cordoned(&text("True", false)));
        assert!(
            cordoned(&text("Unknown", false))
                && cordoned(&text("True", true))
                && cordoned(r#"{"metadata": {}}"#)
        );
    }

    #[test]
    fn a_node_at_its_pod_limit_is_closed() {
        let load = Amounts { other: vec![(PODS.into(), 100)], ..Amounts::default() };
        let cordoned = |own_pods: u64| gpus(4).spec("n", &load, &BTreeSet::new(), own_pods).cordoned;
        assert_eq!([cordoned(9), cordoned(10), cordoned(11)], [false, true, true]);
    }

    #[test]
    fn the_least_useful_labels_are_dropped_first() {
        let mut all: BTreeMap<String, String> =
            (0..80).map(|i| (format!("{FEATURE_LABEL_PREFIX}cpu-{i:02}"), "true".to_owned())).collect();
        all.insert("zone".to_owned(), "a".to_owned());
        all.insert("broken".to_owned(), "a\u{200b}".to_owned());
        let labels = labels(&all);
        assert_eq!((labels.len(), labels.get("zone").map(String::as_str)), (LABELS_MAX, Some("a")));
        assert!(!labels.contains_key("broken"));
    }
}
