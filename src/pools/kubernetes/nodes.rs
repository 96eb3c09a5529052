//! What a cluster's nodes offer, less what others hold of it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;

use super::requests::Amounts;
use crate::model::device;
use crate::model::limit::{BYTES_MAX, DEVICE_MILLIS, DEVICES_PER_NODE_MAX, LABELS_MAX, NODE_CPU_MILLIS_MAX};
use crate::model::pool::{Device, NodeSpec};
use crate::model::resource::Resources;
use crate::model::spec::{Labels, Taint};
use crate::model::text;

/// Which resource, on nodes with which label, is which model of device. Values are beginnings: a
/// product's name goes on with its form or its sharing. From the makers' and HAMi's device plugins;
/// NVIDIA's products as its feature discovery writes them.
const TABLE: &str = include_str!("devices.csv");

/// What the keys of taints begin with that the cluster itself sets.
const CLUSTERS_OWN: &str = "node.kubernetes.io/";
/// How many pods a node takes.
pub(super) const PODS: &str = "pods";

/// Labels that say much and help nobody to choose a node; they go first where there are too many.
const VERBOSE: &str = "feature.node.kubernetes.io/";

/// A node as its object tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    labels: Labels,
    taints: Vec<Taint>,
    /// It is ready and not cordoned.
    open: bool,
    allocatable: Amounts,
    /// Devices by resource, with how many there are and what model they are.
    devices: Vec<DeviceKind>,
}

/// Devices of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DeviceKind {
    resource: Box<str>,
    model: String,
    /// Present, healthy or not: their places in the node's list must not move.
    count: u64,
}

/// The model that a resource stands for on a node with such labels; `None` where it is no device.
///
/// `own` is the pool's file's: it wins.
fn model_of(
    resource: &str,
    labels: &BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
) -> Option<String> {
    if let Some(model) = own.get(resource) {
        return Some(model.clone());
    }
    let mut known = None;
    let mut longest = 0;
    for row in TABLE.lines().skip(1) {
        let cells: Vec<&str> = row.split(',').collect();
        let [of, label, value, model] = cells[..] else { continue };
        if of != resource {
            continue;
        }
        if label.is_empty() {
            known.get_or_insert_with(|| model.to_owned());
            continue;
        }
        match labels.get(label) {
            // A10 is not A100: what follows must not be a part of the same word. A slice of a device and
            // a place on one that is shared are models of their own.
            Some(found)
                if value.len() >= longest
                    && found.strip_prefix(value).is_some_and(|rest| {
                        !rest.starts_with(|c: char| c.is_ascii_alphanumeric())
                            && !rest.contains("-MIG-")
                            && !rest.ends_with("-SHARED")
                    }) =>
            {
                longest = value.len();
                known = Some(model.to_owned());
            }
            // A product that is in no table is a model of its own name.
            Some(found) if longest == 0 && text::is_label(found) && !found.is_empty() => {
                known = Some(found.clone())
            }
            _ => {
                let plain = resource.rsplit('/').next().unwrap_or(resource);
                known.get_or_insert_with(|| plain.to_owned());
            }
        }
    }
    known
}

/// The resource by which a pod asks for devices of a model on this node.
pub(super) fn resource_of(facts: &Facts, index: u16) -> Option<&str> {
    let mut first = 0;
    facts.devices.iter().find_map(|kind| {
        first += kind.count;
        (u64::from(index) < first).then_some(&*kind.resource)
    })
}

impl Facts {
    /// Reads a node. `own` maps resources to models for this pool.
    pub(super) fn read(node: &Node, own: &BTreeMap<String, String>) -> Self {
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
            let Some(model) = model_of(resource, all_labels, own) else { continue };
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
        // The cluster's own: not ready, short of memory, disk or process ids, out of service.
        let shut = all_taints()
            .any(|taint| taint.key.starts_with(CLUSTERS_OWN) && taint.effect != "PreferNoSchedule");
        let mut taints: Vec<Taint> = all_taints()
            // A preference keeps nobody away. The cluster's own are told as a node that is closed.
            .filter(|taint| taint.effect != "PreferNoSchedule" && !taint.key.starts_with(CLUSTERS_OWN))
            .map(|taint| Taint { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default() })
            .filter(|taint| text::is_label(&taint.key) && text::is_label(&taint.value))
            .collect();
        taints.sort_by(|a, b| (&a.key, &a.value).cmp(&(&b.key, &b.value)));
        taints.dedup();
        taints.truncate(LABELS_MAX);
        Self { labels: labels(all_labels), taints, open: ready && !cordoned && !shut, allocatable, devices }
    }

    /// How many pods it takes altogether, if that is limited.
    pub(super) fn pods(&self) -> Option<u64> {
        Some(self.allocatable.of(PODS)).filter(|pods| *pods > 0)
    }

    /// What Weir may use of the node where others hold `load` and Weir's own tasks the devices at the
    /// places `held`, in `own_pods` pods. Which devices others hold is not known: those that Weir does not, from the last.
    pub(super) fn spec(&self, name: &str, load: &Amounts, held: &BTreeSet<u16>, own_pods: u64) -> NodeSpec {
        let mut free = self.allocatable.clone();
        free.sub(load);
        let mut devices = Vec::new();
        for kind in &self.devices {
            let known = device::built_in().find(|known| known.name == kind.model);
            let memory_bytes = known.map_or(0, |known| known.memory_bytes);
            let first = devices.len() as u64;
            let mut away = kind.count.saturating_sub(free.of(&kind.resource));
            let mut own = vec![true; kind.count as usize];
            for place in (0..kind.count).rev() {
                if away == 0 {
                    break;
                }
                if u16::try_from(first + place).is_ok_and(|index| !held.contains(&index)) {
                    own[place as usize] = false;
                    away -= 1;
                }
            }
            devices.extend(own.into_iter().map(|healthy| Device {
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
            // A node that takes no more pods has no place, whatever else it has.
            cordoned: !self.open || self.allocatable.of(PODS) > 0 && free.of(PODS) <= own_pods,
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

/// The labels that a broker takes: not too many, and none that it would refuse.
fn labels(all: &BTreeMap<String, String>) -> Labels {
    let valid =
        |(key, value): &(&String, &String)| text::is_label(key) && !key.is_empty() && text::is_label(value);
    let (verbose, plain): (Vec<_>, Vec<_>) =
        all.iter().filter(valid).partition(|(key, _)| key.starts_with(VERBOSE));
    let both = plain.into_iter().chain(verbose).take(LABELS_MAX);
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
    fn what_others_hold_is_not_offered() {
        let spec = gpus(4).spec("n", &load(1_850, 1), &BTreeSet::new(), 0);
        assert_eq!((spec.allocatable.cpu_millis, spec.cordoned), (30_000, false));
        let healthy = |spec: &NodeSpec| spec.devices.iter().map(|device| device.healthy).collect::<Vec<_>>();
        assert_eq!(healthy(&spec), [true, true, true, false]);
        assert_eq!(spec.devices[0].model, "A100-80G");
        assert_eq!(spec.devices[0].memory_bytes, 80 << 30);
        assert_eq!(spec.taints, [Taint { key: "dedicated".to_owned(), value: "ml".to_owned() }]);
        let other = spec.allocatable.other.expect("others");
        assert_eq!((other.get("rdma/hca"), other.get("nvidia.com/gpu")), (Some(&2), None));
        // Those that Weir's own tasks hold are theirs, and one that broke is nobody's.
        let spec = gpus(3).spec("n", &load(0, 2), &BTreeSet::from([3]), 0);
        assert_eq!(healthy(&spec), [false, false, false, true]);
        assert_eq!(gpus(4).spec("n", &load(99_999, 9), &BTreeSet::new(), 0).allocatable.cpu_millis, 0);
    }

    #[test]
    fn a_resource_is_found_by_a_devices_place() {
        let facts = gpus(4);
        assert_eq!(resource_of(&facts, 3), Some("nvidia.com/gpu"));
        assert_eq!(resource_of(&facts, 4), None);
    }

    #[test]
    fn models_are_told_by_labels_and_by_names_of_resources() {
        let labels = |label: &str, value: &str| BTreeMap::from([(label.to_owned(), value.to_owned())]);
        let none = BTreeMap::new();
        let check = |resource: &str, labels: &BTreeMap<String, String>, model: Option<&str>| {
            assert_eq!(model_of(resource, labels, &none).as_deref(), model, "{resource} {labels:?}");
        };
        let product = |value: &str| labels("nvidia.com/gpu.product", value);
        // A seventh of a device, and a tenth of its time, are not one.
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
        let own = BTreeMap::from([("hygon.com/dcu".to_owned(), "DCU-K100".to_owned())]);
        assert_eq!(model_of("hygon.com/dcu", &none, &own).as_deref(), Some("DCU-K100"));
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
    fn a_node_whose_places_for_pods_are_taken_is_closed() {
        let load = Amounts { other: vec![(PODS.into(), 100)], ..Amounts::default() };
        let cordoned = |own_pods: u64| gpus(4).spec("n", &load, &BTreeSet::new(), own_pods).cordoned;
        assert_eq!([cordoned(9), cordoned(10), cordoned(11)], [false, true, true]);
    }

    #[test]
    fn too_many_labels_are_cut_the_least_helpful_first() {
        let mut all: BTreeMap<String, String> =
            (0..80).map(|i| (format!("{VERBOSE}cpu-{i:02}"), "true".to_owned())).collect();
        all.insert("zone".to_owned(), "a".to_owned());
        all.insert("broken".to_owned(), "a\u{200b}".to_owned());
        let kept = labels(&all);
        assert_eq!((kept.len(), kept.get("zone").map(String::as_str)), (LABELS_MAX, Some("a")));
        assert!(!kept.contains_key("broken"));
    }
}
