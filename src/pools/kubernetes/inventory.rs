//! What the cluster's nodes have free, kept while nodes and other people's pods come and go.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Node, Pod};

use super::nodes::{self, Facts, PODS};
use super::requests::{Amounts, of_pod};
use crate::model::pool::NodeSpec;
use crate::model::time::Timestamp;

/// The nodes of a pool, and what others hold on them.
pub(super) struct Inventory {
    /// Models by resource, from the pool's file.
    models: BTreeMap<String, String>,
    nodes: BTreeMap<String, Entry>,
    /// Other people's pods that hold something, by uid.
    pods: HashMap<Box<str>, Held>,
    /// What they hold together, by node: also of nodes that are not known, or not yet.
    loads: HashMap<Box<str>, Amounts>,
    /// Nodes that have turned a pod away, until when they get no more.
    shut: BTreeMap<String, Timestamp>,
    changed: BTreeSet<String>,
}

struct Entry {
    facts: Facts,
    /// As it was last told.
    told: Option<NodeSpec>,
}

struct Held {
    node: Box<str>,
    amounts: Amounts,
}

impl Inventory {
    pub(super) fn new(models: BTreeMap<String, String>) -> Self {
        let (nodes, shut, changed) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { models, nodes, pods: HashMap::new(), loads: HashMap::new(), shut, changed }
    }

    pub(super) fn set_node(&mut self, name: &str, node: &Node) {
        let facts = Facts::read(node, &self.models);
        match self.nodes.get_mut(name) {
            Some(entry) if entry.facts == facts => return,
            Some(entry) => entry.facts = facts,
            None => {
                self.nodes.insert(name.to_owned(), Entry { facts, told: None });
            }
        }
        self.changed.insert(name.to_owned());
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        if self.nodes.remove(name).is_some() {
            self.changed.insert(name.to_owned());
        }
    }

    /// Only these nodes are there.
    pub(super) fn keep_nodes(&mut self, listed: &BTreeSet<String>) {
        let gone: Vec<String> = self.nodes.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.remove_node(name));
    }

    /// Takes note of a pod that is not Weir's.
    pub(super) fn set_pod(&mut self, uid: &str, pod: &Pod) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let holds = node.filter(|_| !matches!(ended, Some("Succeeded" | "Failed")));
        match holds {
            Some(node) => self.set_held(uid, node, of_pod(pod)),
            None => self.remove_pod(uid),
        }
    }

    /// Takes note of what somebody else's pod holds on a node.
    pub(super) fn set_held(&mut self, uid: &str, node: &str, amounts: Amounts) {
        if let Some(known) = self.pods.get(uid)
            && *known.node == *node
            && known.amounts == amounts
        {
            return;
        }
        self.remove_pod(uid);
        self.loads.entry(node.into()).or_default().add(&amounts);
        self.touch(node);
        self.pods.insert(uid.into(), Held { node: node.into(), amounts });
    }

    pub(super) fn remove_pod(&mut self, uid: &str) {
        let Some(held) = self.pods.remove(uid) else { return };
        if let Some(load) = self.loads.get_mut(&held.node) {
            load.sub(&held.amounts);
            if *load == Amounts::default() {
                self.loads.remove(&held.node);
            }
        }
        self.touch(&held.node);
    }

    /// Only these pods are there, and those.
    pub(super) fn keep_pods(&mut self, listed: &BTreeSet<String>, also: &BTreeSet<String>) {
        let is_there = |uid: &str| listed.contains(uid) || also.contains(uid);
        let gone: Vec<Box<str>> = self.pods.keys().filter(|uid| !is_there(uid)).cloned().collect();
        gone.iter().for_each(|uid| self.remove_pod(uid));
    }

    /// Something of the node is not as it was told.
    pub(super) fn touch(&mut self, node: &str) {
        if self.nodes.contains_key(node) {
            self.changed.insert(node.to_owned());
        }
    }

    /// The node gets no more tasks until then: it has turned one away, for a reason that can't be seen.
    pub(super) fn shut(&mut self, node: &str, until: Timestamp) {
        self.shut.insert(node.to_owned(), until);
        self.touch(node);
    }

    /// Opens nodes whose time is over.
    pub(super) fn reopen(&mut self, now: Timestamp) {
        let open: Vec<String> =
            self.shut.iter().filter(|(_, until)| **until <= now).map(|(node, _)| node.clone()).collect();
        for node in open {
            self.shut.remove(&node);
            self.touch(&node);
        }
    }

    /// How many more pods the node takes beside others' and so many of Weir's own, where that is limited.
    pub(super) fn pods_left(&self, node: &str, own_pods: u64) -> Option<u64> {
        let facts = &self.nodes.get(node)?.facts;
        let others = self.loads.get(node).map_or(0, |load| load.of(PODS));
        facts.pods().map(|all| all.saturating_sub(others).saturating_sub(own_pods))
    }

    /// The resource by which a node's device is asked for.
    pub(super) fn resource_of(&self, node: &str, index: u16) -> Option<&str> {
        nodes::resource_of(&self.nodes.get(node)?.facts, index)
    }

    /// All nodes. `held` tells which devices of a node Weir's own tasks have, and how many they are.
    pub(super) fn all(&mut self, held: impl Fn(&str) -> (BTreeSet<u16>, u64)) -> Vec<NodeSpec> {
        self.changed = self.nodes.keys().cloned().collect();
        self.nodes.values_mut().for_each(|entry| entry.told = None);
        self.changes(held).0
    }

    /// What is not as it was told: nodes, and names of those that are gone.
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
            spec.cordoned |= self.shut.contains_key(&name);
            if entry.told.as_ref() != Some(&spec) {
                entry.told = Some(spec.clone());
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
    fn only_what_changed_is_told() {
        let none = |_: &str| (BTreeSet::new(), 0);
        let mut inventory = Inventory::new(BTreeMap::new());
        // A pod may be heard of before its node.
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
        assert_eq!(cpus(&mut inventory), [0; 0], "one came and one went");
        inventory.keep_pods(&BTreeSet::from(["elsewhere".to_owned()]), &BTreeSet::new());
        assert_eq!(cpus(&mut inventory), [4_000]);
        inventory.keep_nodes(&BTreeSet::new());
        assert_eq!(inventory.changes(none).1, ["n"]);
        assert_eq!(inventory.loads.len(), 1);
        inventory.remove_pod("elsewhere");
        assert!(inventory.loads.is_empty() && inventory.pods.is_empty());
    }

    #[test]
    fn a_node_that_turned_a_pod_away_is_closed_for_a_while() {
        let none = |_: &str| (BTreeSet::new(), 0);
        let text = r#"{"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4", "pods": "3"},
            "conditions": [{"type": "Ready", "status": "True"}]}}"#;
        let mut inventory = Inventory::new(BTreeMap::new());
        inventory.set_node("n", &serde_json::from_str(text).expect("a node"));
        inventory.set_pod("a", &pod("n", "Running"));
        assert_eq!((inventory.pods_left("n", 1), inventory.pods_left("n", 5)), (Some(1), Some(0)));
        let mut cordoned = |now: u64, shut: bool| {
            if shut {
                inventory.shut("n", Timestamp(now + 10));
            }
            inventory.reopen(Timestamp(now));
            inventory.changes(none).0.first().map(|node| node.cordoned)
        };
        assert_eq!([cordoned(0, false), cordoned(1, true)], [Some(false), Some(true)]);
        assert_eq!([cordoned(10, false), cordoned(11, false)], [None, Some(false)]);
    }
}
