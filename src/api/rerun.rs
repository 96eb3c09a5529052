//! Rerun: submits the units of an ended job that did not succeed as a new job.

use tonic::Status;

use super::admission::Identity;
use super::error;
use super::job::{Jobs, SUBMIT_ATTEMPTS_MAX};
use super::proto::v1;
use crate::model::attempt::OutcomeKind;
use crate::model::interval::IntervalSet;
use crate::model::limit::NAME_LEN_MAX;
use crate::model::spec::{JobSpec, Selection};
use crate::model::validate::quote;
use crate::runtime::error::CallError;
use crate::state::apply::FinishedJob;
use crate::state::command::{Command, Submission};
use crate::state::decide::Reply;
use crate::state::rejection::Rejection;
use crate::state::view::JobPhase;

/// What is put between the name of the ended job and the number of the new one.
const SUFFIX: &str = "-rerun";
/// Characters for the number after a prefix.
const NUMBER_LEN: usize = 21;

impl Jobs {
    pub(super) async fn rerun_job(
        &self,
        identity: &Identity,
        message: v1::RerunRequest,
    ) -> Result<v1::RerunResponse, Status> {
        let job = self.find("job", message.job.as_ref()).await?;
        let name = quote(&job.name);
        if !matches!(job.phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Cancelled) {
            return Err(error::nothing_to_rerun(&format!("job {name} has not ended")));
        }
        let id = job.id;
        let ended = self.broker.archive(move |archive| archive.job(id)).await?;
        let Some(ended) = ended else { return Err(error::not_found("job", &job.name)) };
        let Some((asked, units)) = selected(&job.spec, &unsuccessful(&ended)) else {
            return Err(error::nothing_to_rerun(&format!("every unit of job {name} succeeded")));
        };
        let mut name_prefix = job.name.clone();
        name_prefix.truncate(NAME_LEN_MAX - SUFFIX.len() - NUMBER_LEN);
        name_prefix.push_str(SUFFIX);
        let mut attempts = 0;
        let (outcome, without) = loop {
            let mut spec = asked.clone();
            let without = self.remove_ended_dependencies(&mut spec).await?;
            let submission = Submission {
                name: message.name.clone(),
                name_prefix: name_prefix.clone(),
                queue: job.queue.clone(),
                spec,
                allow_pending: message.allow_pending,
                held: false,
            };
            attempts += 1;
            let command = Command::Submit { jobs: vec![submission] };
            match self.mutations.decide(identity, &message, 1, command).await? {
                // A dependency has ended since it was looked up.
                Err(CallError::Rejected(Rejection::BadDependency { .. }))
                    if attempts < SUBMIT_ATTEMPTS_MAX => {}
                outcome => break (outcome, without),
            }
        };
        let (reply, revision) = outcome.map_err(|error| error::call(without_path(error)))?;
        let Reply::Submitted { first, .. } = reply else {
            return Err(error::internal("unexpected reply to a rerun"));
        };
        let name = if message.name.is_empty() { format!("{name_prefix}-{first}") } else { message.name };
        Ok(v1::RerunResponse { id: first.0, name, units, revision: revision.0, without })
    }
}

/// The error with its fields named as in a rerun: there is one job.
fn without_path(error: CallError) -> CallError {
    let own = |field: &mut String| {
        if let Some(rest) = field.strip_prefix("jobs[0].") {
            *field = rest.to_owned();
        }
    };
    let CallError::Rejected(mut rejection) = error else { return error };
    match &mut rejection {
        Rejection::Invalid(violations) => {
            violations.iter_mut().for_each(|violation| own(&mut violation.field))
        }
        Rejection::NeverFits { field, .. } | Rejection::BadDependency { field, .. } => own(field),
        _ => {}
    }
    CallError::Rejected(rejection)
}

/// The units of an ended job that did not succeed: that failed, were stopped, or never started.
fn unsuccessful(ended: &FinishedJob) -> IntervalSet {
    let all = ended.job.groups.iter().flat_map(|group| &group.ended);
    let succeeded = all.filter(|(kind, _)| *kind == OutcomeKind::Succeeded);
    let succeeded = IntervalSet::from_intervals(succeeded.flat_map(|(_, units)| units.intervals()).copied());
    let starts = [0].into_iter().chain(succeeded.intervals().iter().map(|[_, end]| *end));
    let ends = succeeded.intervals().iter().map(|[first, _]| *first).chain([ended.spec.unit_count()]);
    IntervalSet::from_intervals(starts.zip(ends).map(|(start, end)| [start, end]))
}

/// The spec of some units of a job, and how many these are; `None` if there are none.
fn selected(spec: &JobSpec, units: &IntervalSet) -> Option<(JobSpec, u32)> {
    if units.is_empty() {
        return None;
    }
    let mut selected = spec.clone();
    if spec.gang_job {
        return Some((selected, 1));
    }
    selected.groups.clear();
    for (index, group) in spec.groups.iter().enumerate() {
        let first = spec.first_unit(index);
        if group.gang {
            selected.groups.extend(units.contains(first).then(|| group.clone()));
            continue;
        }
        let tasks = group.tasks_with_indices().filter(|(task, _)| units.contains(first + task));
        let indices = IntervalSet::from_intervals(tasks.map(|(_, index)| [index, index + 1]));
        if !indices.is_empty() {
            let mut group = group.clone();
            let of = group.index_count();
            group.count = indices.len();
            group.selection = Some(Selection { indices, of });
            selected.groups.push(group);
        }
    }
    Some((selected, units.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::minimal;

    #[test]
    fn units_that_did_not_succeed_run_again_with_the_indices_that_they_had() {
        let mut spec = minimal();
        spec.groups[0].count = 10;
        let mut gang = minimal().groups.remove(0);
        (gang.name, gang.gang, gang.count) = ("gang".to_owned(), true, 4);
        let mut last = minimal().groups.remove(0);
        (last.name, last.count) = ("last".to_owned(), 3);
        spec.groups.extend([gang.clone(), last]);
        // Units 0 to 9, 10 for the gang, 11 to 13.
        let (again, units) = selected(&spec, &IntervalSet::parse("2-3,9-10").unwrap()).unwrap();
        assert_eq!(units, 4);
        let selection = again.groups[0].selection.as_ref().unwrap();
        assert_eq!((selection.indices.to_string().as_str(), selection.of), ("2-3,9", 10));
        assert_eq!((again.groups[0].count, again.groups.len()), (3, 2));
        assert_eq!(again.groups[1], gang);
        let (third, _) = selected(&again, &IntervalSet::parse("1-2").unwrap()).unwrap();
        let selection = third.groups[0].selection.as_ref().unwrap();
        assert_eq!((selection.indices.to_string().as_str(), selection.of), ("3,9", 10));
        assert!(selected(&spec, &IntervalSet::default()).is_none());
    }
}
