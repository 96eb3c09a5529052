//! Jobs that wait for other jobs to end.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::JobId;
use crate::state::State;

/// Who depends on whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dependents {
    /// Live jobs by a live job that they depend on, in submission order; twice if they name it twice.
    pub of: BTreeMap<JobId, Vec<JobId>>,
    /// Jobs that a dependency's end excludes, until they are closed.
    pub failed: BTreeSet<JobId>,
}

/// Computes the index from the records.
pub fn rebuild(state: &State) -> Dependents {
    let mut dependents = Dependents::default();
    for job in state.jobs.values() {
        if job.dependency_failed && job.closing.is_none() {
            dependents.failed.insert(job.id);
        }
        if job.pending_dependencies == 0 {
            continue;
        }
        let Some(entry) = state.specs.get(&job.spec) else { continue };
        let live = entry.spec.depends_on.iter().filter(|dependency| state.jobs.contains_key(&dependency.job));
        for dependency in live {
            dependents.of.entry(dependency.job).or_default().push(job.id);
        }
    }
    dependents
}

/// The index equals a rebuilt one, but for dependents that have ended: they stay until their dependency ends,
/// since removing one from a long list would cost as much as the list is long.
pub fn is_current(state: &State) -> bool {
    let mut index = state.index.dependents.clone();
    index.of.values_mut().for_each(|list| list.retain(|job| state.jobs.contains_key(job)));
    index.of.retain(|_, list| !list.is_empty());
    index == rebuild(state)
}
