//! Which live tasks are on which node.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::AttemptId;

/// Live tasks by node.
#[derive(Default)]
pub(super) struct Places {
    tasks: BTreeMap<String, BTreeSet<(AttemptId, u32)>>,
    /// Nodes whose tasks came or went since this was last asked for.
    touched: BTreeSet<String>,
}

impl Places {
    pub(super) fn enter(&mut self, node: &str, task: (AttemptId, u32)) {
        if !node.is_empty() && self.tasks.entry(node.to_owned()).or_default().insert(task) {
            self.touched.insert(node.to_owned());
        }
    }

    pub(super) fn leave(&mut self, node: &str, task: (AttemptId, u32)) {
        let Some(tasks) = self.tasks.get_mut(node) else { return };
        if tasks.remove(&task) {
            self.touched.insert(node.to_owned());
        }
        if tasks.is_empty() {
            self.tasks.remove(node);
        }
    }

    /// The tasks on a node.
    pub(super) fn on(&self, node: &str) -> impl Iterator<Item = &(AttemptId, u32)> {
        self.tasks.get(node).into_iter().flatten()
    }

    /// Whose tasks they are has changed.
    pub(super) fn touch_all(&mut self) {
        self.touched.extend(self.tasks.keys().cloned());
    }

    /// Nodes whose tasks came or went since this was last asked.
    pub(super) fn take_touched(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched)
    }
}
