//! Index of live tasks by node.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::AttemptId;

/// Live tasks by node. Each task is an attempt and a rank.
#[derive(Default)]
pub(super) struct TasksByNode {
    tasks: BTreeMap<String, BTreeSet<(AttemptId, u32)>>,
    /// Nodes whose tasks changed since `take_changed` was last called.
    changed: BTreeSet<String>,
}

impl TasksByNode {
    /// Adds a task. An empty node name, of a pod that is not bound yet, is ignored.
    pub(super) fn insert(&mut self, node: &str, task: (AttemptId, u32)) {
        if !node.is_empty() && self.tasks.entry(node.to_owned()).or_default().insert(task) {
            self.changed.insert(node.to_owned());
        }
    }

    pub(super) fn remove(&mut self, node: &str, task: (AttemptId, u32)) {
        let Some(tasks) = self.tasks.get_mut(node) else { return };
        if tasks.remove(&task) {
            self.changed.insert(node.to_owned());
        }
        if tasks.is_empty() {
            self.tasks.remove(node);
        }
    }

    /// The tasks on a node.
    pub(super) fn on(&self, node: &str) -> impl Iterator<Item = &(AttemptId, u32)> {
        self.tasks.get(node).into_iter().flatten()
    }

    /// Marks every node that has tasks: which of them are the broker's own has changed.
    pub(super) fn mark_all_changed(&mut self) {
        self.changed.extend(self.tasks.keys().cloned());
    }

    /// Returns the nodes whose tasks changed since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }
}
