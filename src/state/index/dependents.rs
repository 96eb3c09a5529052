//! Jobs that wait for other jobs to end.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::JobId;
use crate::model::spec::JobSpec;
use crate::state::State;

/// Who depends on whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dependents {
    /// Live jobs by a live job that they depend on. A set, not a list: a job that ends early is taken out of
    /// what may be hundreds of thousands.
    pub of: BTreeMap<JobId, BTreeSet<JobId>>,
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
            dependents.of.entry(dependency.job).or_default().insert(job.id);
        }
    }
    dependents
}

impl Dependents {
    /// Takes out a job that ends before some of the jobs in its `depends_on`.
    pub fn remove(&mut self, job: JobId, spec: &JobSpec) {
        self.failed.remove(&job);
        for dependency in &spec.depends_on {
            if let Some(jobs) = self.of.get_mut(&dependency.job) {
                jobs.remove(&job);
                if jobs.is_empty() {
                    self.of.remove(&dependency.job);
                }
            }
        }
    }
}
