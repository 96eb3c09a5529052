//! The capacity of the cluster's nodes, less what other pods hold, updated from watch events.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Node, Pod};

use super::nodes::{self, Facts};
use super::requests::PODS;
use super::requests::{Amounts, of_pod};
use crate::model::pool::NodeSpec;
use crate::model::time::Timestamp;

/// The nodes of a pool, and the load on them: what pods hold that the broker does not count itself.
pub(super) struct Inventory {
    /// Device models by resource, from the pool's file.
    models: BTreeMap<String, String>,
    nodes: BTreeMap<String, Entry>,
    /// Pods that count as load, by uid.
    pods: HashMap<Box<str>, PodLoad>,
    /// Their sum by node. Includes nodes that are not in `nodes`: a pod may be listed before its node.
    loads: HashMap<Box<str>, Amounts>,
    /// Nodes whose kubelet rejected a pod, and until when they are closed for new tasks.
    closed: BTreeMap<String, Timestamp>,
    changed: BTreeSet<String>,
}

struct Entry {
    facts: Facts,
    /// The spec last reported; `None` before the first report.
    reported: Option<NodeSpec>,
}

struct PodLoad {
    node: Box<str>,
    amounts: Amounts,
}

impl Inventory {
    pub(super) fn new(models: BTreeMap<String, String>) -> Self {
        let (nodes, closed, changed) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { models, nodes, pods: HashMap::new(), loads: HashMap::new(), closed, changed }
    }

    pub(super) fn set_node(&mut self, name: &str, node: &Node) {
        let facts = Facts::read(node, &self.models);
        match self.nodes.get_mut(name) {
            Some(entry) if entry.facts == facts => return,
            Some(entry) => entry.facts = facts,
            None => {
                self.nodes.insert(name.to_owned(), Entry { facts, reported: None });
            }
        }
        self.changed.insert(name.to_owned());
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        if self.nodes.remove(name).is_some() {
            self.changed.insert(name.to_owned());
        }
    }

    /// Removes the nodes that a complete list does not contain.
    pub(super) fn retain_nodes(&mut self, listed: &BTreeSet<String>) {
        let gone: Vec<String> = self.nodes.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.remove_node(name));
    }

    /// Records the load of a pod that is not Weir's.
    pub(super) fn set_pod(&mut self, uid: &str, pod: &Pod) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let holds = node.filter(|_| !matches!(ended, Some("Succeeded" | "Failed")));
        match holds {
            Some(node) => self.set_load(uid, node, of_pod(pod)),
            None => self.remove_pod(uid),
        }
    }

    /// Records that a pod holds `amounts` on a node.
    pub(super) fn set_load(&mut self, uid: &str, node: &str, amounts: Amounts) {
        if let Some(before) = self.pods.get(uid)
            && *before.node == *node
            && before.amounts == amounts
        {
            return;
        }
        self.remove_pod(uid);
        self.loads.entry(node.into()).or_default().add(&amounts);
        self.mark_changed(node);
        self.pods.insert(uid.into(), PodLoad { node: node.into(), amounts });
    }

    pub(super) fn remove_pod(&mut self, uid: &str) {
        let Some(held) = self.pods.remove(uid) else { return };
        if let Some(load) = self.loads.get_mut(&held.node) {
            load.sub(&held.amounts);
            if *load == Amounts::default() {
                self.loads.remove(&held.node);
            }
        }
        self.mark_changed(&held.node);
    }

    /// Removes the pods that are neither in a complete list nor in `also`.
    pub(super) fn retain_pods(&mut self, listed: &BTreeSet<String>, also: &BTreeSet<String>) {
        let is_there = |uid: &str| listed.contains(uid) || also.contains(uid);
        let gone: Vec<Box<str>> = self.pods.keys().filter(|uid| !is_there(uid)).cloned().collect();
        gone.iter().for_each(|uid| self.remove_pod(uid));
    }

    /// Has `changes` compare this node with its last report.
    pub(super) fn mark_changed(&mut self, node: &str) {
        if self.nodes.contains_key(node) {
            self.changed.insert(node.to_owned());
        }
    }

    /// Closes a node for new tasks: its kubelet rejected a pod, for a reason that the API does not show.
    pub(super) fn close_until(&mut self, node: &str, until: Timestamp) {
        self.closed.insert(node.to_owned(), until);
        self.mark_changed(node);
    }

    /// Reopens the nodes whose closing time has passed.
    pub(super) fn reopen(&mut self, now: Timestamp) {
        let open: Vec<String> =
            self.closed.iter().filter(|(_, until)| **until <= now).map(|(node, _)| node.clone()).collect();
        for node in open {
            self.closed.remove(&node);
            self.mark_changed(&node);
        }
    }

    /// Returns how many more pods the node takes beside the load and `own_pods` of Weir's own; `None` if the
    /// node is unknown or has no limit.
    pub(super) fn pods_left(&self, node: &str, own_pods: u64) -> Option<u64> {
        let facts = &self.nodes.get(node)?.facts;
        let others = self.loads.get(node).map_or(0, |load| load.of(PODS));
        facts.pods().map(|all| all.saturating_sub(others).saturating_sub(own_pods))
    }

    /// The resource by which a pod requests this device of a node.
    pub(super) fn resource_of(&self, node: &str, index: u16) -> Option<&str> {
        nodes::resource_of(&self.nodes.get(node)?.facts, index)
    }

    /// Returns all nodes. `held` gives the device indices that Weir's own tasks hold on a node, and the number of
    /// those tasks' pods.
    pub(super) fn all(&mut self, held: impl Fn(&str) -> (BTreeSet<u16>, u64)) -> Vec<NodeSpec> {
        self.changed = self.nodes.keys().cloned().collect();
        self.nodes.values_mut().for_each(|entry| entry.reported = None);
        self.changes(held).0
    }

    /// Returns the nodes that differ from what was last reported, and the names of removed ones.
    pub(super) fn changes(
        &mut self,
        held: impl Fn(&str) -> (BTreeSet<u16>, u64),
    ) -> (Vec<NodeSpec>, Vec<String>) {
        let (mut changed, mut removed) = (Vec::new(), Vec::new());
        for name in std::mem::take(&mut self.changed) {
            let Some(entry) = self.nodes.get_mut(&name) else {
                removed.push(name);
                continue;
            };
            let nothing = Amounts::default();
            let load = self.loads.get(name.as_str()).unwrap_or(&nothing);
            let (devices, own_pods) = held(&name);
            let mut spec = entry.facts.spec(&name, load, &devices, own_pods);
            spec.cordoned |= self.closed.contains_key(&name);
            if entry.reported.as_ref() != Some(&spec) {
                entry.reported = Some(spec.clone());
                changed.push(spec);
            }
        }
        (changed, removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cpus: u32) -> Node {
        let text =
            format!(r#"{{"metadata": {{"name": "n"}}, "status": {{"allocatable": {{"cpu": "{cpus}"}}}}}}"#);
        serde_json::from_str(&text).expect("a node")
    }

    fn pod(node: &str, phase: &str) -> Pod {
        let text = format!(
            r#"{{"metadata": {{}}, "spec": {{"nodeName": "{node}", "containers": [{{"name": "c", "resources": {{"requests": {{"cpu": "1"}}}}}}]}},
            "status": {{"phase": "{phase}"}}}}"#
        );
        serde_json::from_str(&text).expect("a pod")
    }

    #[test]
    fn only_changed_nodes_are_reported() {
        let none = |_: &str| (BTreeSet::new(), 0);
        let mut inventory = Inventory::new(BTreeMap::new());
        // A pod may be listed before its node.
        inventory.set_pod("a", &pod("n", "Running"));
        inventory.set_node("n", &node(4));
        let cpus = |inventory: &mut Inventory| {
            inventory.changes(none).0.iter().map(|node| node.allocatable.cpu_millis).collect::<Vec<_>>()
        };
        assert_eq!(cpus(&mut inventory), [3_000]);
        inventory.set_node("n", &node(4));
        inventory.set_pod("a", &pod("n", "Running"));
        assert_eq!(cpus(&mut inventory), [0; 0]);
        inventory.set_pod("b", &pod("n", "Running"));
        inventory.set_pod("a", &pod("n", "Succeeded"));
        inventory.set_pod("elsewhere", &pod("m", "Running"));
        assert_eq!(cpus(&mut inventory), [0; 0], "one pod was added and one ended");
        inventory.retain_pods(&BTreeSet::from(["elsewhere".to_owned()]), &BTreeSet::new());
        assert_eq!(cpus(&mut inventory), [4_000]);
        inventory.retain_nodes(&BTreeSet::new());
        assert_eq!(inventory.changes(none).1, ["n"]);
        assert_eq!(inventory.loads.len(), 1);
        inventory.remove_pod("elsewhere");
        assert!(inventory.loads.is_empty() && inventory.pods.is_empty());
    }

    #[test]
    fn a_node_that_rejected_a_pod_is_closed_until_a_deadline() {
        let none = |_: &str| (BTreeSet::new(), 0);
        let text = r#"{"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4", "pods": "3"},
            "conditions": [{"type": "Ready", "status": "True"}]}}"#;
        let mut inventory = Inventory::new(BTreeMap::new());
        inventory.set_node("n", &serde_json::from_str(text).expect("a node"));
        inventory.set_pod("a", &pod("n", "Running"));
        assert_eq!((inventory.pods_left("n", 1), inventory.pods_left("n", 5)), (Some(1), Some(0)));
        let mut cordoned = |now: u64, close: bool| {
            if close {
                inventory.close_until("n", Timestamp(now + 10));
            }
            inventory.reopen(Timestamp(now));
            inventory.changes(none).0.first().map(|node| node.cordoned)
        };
        assert_eq!([cordoned(0, false), cordoned(1, true)], [Some(false), Some(true)]);
        assert_eq!([cordoned(10, false), cordoned(11, false)], [None, Some(false)]);
    }
}
