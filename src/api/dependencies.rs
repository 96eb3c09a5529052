//! Dependencies of jobs: which are fulfilled already, and what the jobs are called that others wait for.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Status;

use super::convert;
use super::job::Jobs;
use super::proto::v1;
use crate::model::id::JobId;
use crate::model::limit::PAGE_MAX;
use crate::model::spec::{DependencyCondition, JobSpec};
use crate::state::rejection::{Rejection, UnmetDependency};

impl Jobs {
    /// Removes dependencies on archived jobs whose condition is met. Those that can never be met remain:
    /// the kernel refuses them, unless the request repeats one that it accepted.
    pub(super) async fn resolve_dependencies(&self, spec: &mut JobSpec) -> Result<(), Status> {
        let mut pending = Vec::new();
        for edge in std::mem::take(&mut spec.depends_on) {
            let id = edge.job;
            let ended = self.broker.archive(move |archive| archive.job(id)).await?;
            if !ended.is_some_and(|job| job.end.meets(edge.condition)) {
                pending.push(edge);
            }
        }
        spec.depends_on = pending;
        Ok(())
    }

    /// Removes from the spec of a job that is submitted again all dependencies on jobs that have ended, and returns those
    /// that were not met: nothing can meet them any more.
    pub(super) async fn remove_ended_dependencies(
        &self,
        spec: &mut JobSpec,
    ) -> Result<Vec<v1::Dependency>, Status> {
        let ids: BTreeSet<JobId> = spec.depends_on.iter().map(|edge| edge.job).collect();
        let jobs = self.find_all(&ids.into_iter().collect::<Vec<_>>()).await?;
        let (mut live, mut unmet) = (Vec::new(), Vec::new());
        for edge in std::mem::take(&mut spec.depends_on) {
            let job = jobs.iter().find(|job| job.id == edge.job);
            let end = job.map(|job| job.phase.end());
            match end {
                Some(None) => live.push(edge),
                Some(Some(end)) if end.meets(edge.condition) => {}
                // However it ended.
                None if edge.condition == DependencyCondition::Any => {}
                Some(Some(_)) | None => {
                    let mut message = convert::dependency_message(&edge);
                    if let Some(job) = job {
                        (message.queue, message.name) = (job.queue.clone(), job.name.clone());
                    }
                    unmet.push(message);
                }
            }
        }
        spec.depends_on = live;
        Ok(unmet)
    }

    /// Adds to the refusal of a dependency which job it is and how that has ended, if it has.
    pub(super) async fn explain_dependency(&self, rejection: Rejection) -> Rejection {
        let Rejection::BadDependency { job, .. } = rejection else { return rejection };
        let Ok(found) = self.find_all(&[job]).await else { return rejection };
        let Rejection::BadDependency { field, .. } = rejection else { return rejection };
        let why = match found.into_iter().next() {
            None => UnmetDependency::Missing { job },
            Some(found) => match found.phase.end() {
                Some(end) => UnmetDependency::Ended { queue: found.queue, name: found.name, end },
                None => UnmetDependency::Unknown { job },
            },
        };
        Rejection::BadDependency { field, job, why }
    }

    /// Adds the names of the jobs that these depend on, of [`PAGE_MAX`] different ones at most. One that can't be read, or is
    /// not stored any more, has none: jobs are shown all the same.
    pub(super) async fn name_dependencies(&self, jobs: &mut [v1::Job]) {
        let mut edges: Vec<&mut v1::Dependency> =
            jobs.iter_mut().flat_map(|job| &mut job.spec).flat_map(|spec| &mut spec.depends_on).collect();
        let ids: BTreeSet<JobId> = edges.iter().map(|edge| JobId(edge.job_id)).collect();
        if ids.is_empty() {
            return;
        }
        let ids: Vec<JobId> = ids.into_iter().take(PAGE_MAX).collect();
        let found = self.find_all(&ids).await.unwrap_or_default();
        let names: BTreeMap<u64, (String, String)> =
            found.into_iter().map(|job| (job.id.0, (job.queue, job.name))).collect();
        for edge in &mut edges {
            if let Some((queue, name)) = names.get(&edge.job_id) {
                (edge.queue, edge.name) = (queue.clone(), name.clone());
            }
        }
    }
}
