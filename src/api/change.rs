//! Changes of jobs that have not ended: cancel, update, hold and release.

use tonic::{Code, Status};

use super::admission::Identity;
use super::convert;
use super::error;
use super::job::Jobs;
use super::page::check_count;
use super::proto::v1;
use super::selection::shown;
use crate::model::id::{JobId, Revision};
use crate::model::interval::IntervalSet;
use crate::model::limit::{self, JOBS_PER_SUBMIT_MAX, LABELS_MAX, MESSAGE_LEN_MAX, PAGE_MAX};
use crate::model::validate::{Violations, quote};
use crate::runtime::error::CallError;
use crate::state::command::{Command, JobChange};
use crate::state::rejection::Rejection;
use crate::state::view::JobView;

/// Ranges of units in one cancel: as many as it may stop of units that have an attempt.
const UNIT_RANGES_MAX: usize = limit::UNITS_STOPPED_MAX;

/// How many jobs a request cancels or would cancel, and the first of them.
#[derive(Default)]
struct Cancelled {
    revision: Revision,
    count: u64,
    first: Vec<v1::Job>,
}

impl Cancelled {
    fn add(&mut self, jobs: &[JobView]) {
        self.count += jobs.len() as u64;
        let room = PAGE_MAX - self.first.len();
        let names = jobs.iter().take(room).map(|job| shown(convert::job_message(job), v1::JobView::Name));
        self.first.extend(names);
    }
}

impl Jobs {
    pub(super) async fn cancel_jobs(
        &self,
        identity: &Identity,
        message: v1::CancelRequest,
    ) -> Result<v1::CancelResponse, Status> {
        let mut out = Violations::default();
        out.display_line("reason", &message.reason, MESSAGE_LEN_MAX);
        out.finish().map_err(error::invalid)?;
        let done = match &message.filter {
            Some(filter) => self.cancel_selected(identity, &message, filter).await?,
            None => self.cancel_named(identity, &message).await?,
        };
        let Cancelled { revision, count, first } = done;
        Ok(v1::CancelResponse { revision: revision.0, count, jobs: first })
    }

    async fn cancel_named(
        &self,
        identity: &Identity,
        message: &v1::CancelRequest,
    ) -> Result<Cancelled, Status> {
        check_count("jobs", "jobs", message.jobs.len(), 1, JOBS_PER_SUBMIT_MAX)?;
        let mut jobs = Vec::new();
        for (index, at) in message.jobs.iter().enumerate() {
            match self.find(&format!("jobs[{index}]"), Some(at)).await {
                Err(status) if status.code() == Code::NotFound && message.ignore_missing => {}
                found => jobs.push(found?),
            }
        }
        jobs.retain(|job| !job.phase.is_end());
        let mut done = Cancelled::default();
        done.add(&jobs);
        let command = match unit_set(message)? {
            None => {
                let jobs = jobs.iter().map(|job| job.id).collect();
                Command::Cancel { jobs, reason: message.reason.clone() }
            }
            // A job that has ended has no units left to cancel.
            Some(units) => {
                let job = jobs.first().map_or(JobId(0), |job| job.id);
                Command::CancelUnits { job, units }
            }
        };
        if message.dry_run {
            return Ok(done);
        }
        let decided = self.mutations.decide(identity, message, message.jobs.len(), command).await?;
        (_, done.revision) = decided?;
        Ok(done)
    }

    async fn cancel_selected(
        &self,
        identity: &Identity,
        message: &v1::CancelRequest,
        filter: &v1::JobFilter,
    ) -> Result<Cancelled, Status> {
        for (field, is_set) in [("jobs", !message.jobs.is_empty()), ("units", !message.units.is_empty())] {
            if is_set {
                let description = "can't be set beside `filter`";
                return Err(error::invalid(convert::invalid(field, description)));
            }
        }
        let mut done = Cancelled::default();
        // One request for many commands, each of which cancels what it finds live.
        let part = v1::CancelRequest { token: String::new(), ..message.clone() };
        let mut before = Some(JobId(u64::MAX));
        while let Some(below) = before {
            let (revision, jobs, next) = self.live_page(filter, below, JOBS_PER_SUBMIT_MAX).await?;
            before = next;
            done.revision = done.revision.max(revision);
            done.add(&jobs);
            if message.dry_run || jobs.is_empty() {
                continue;
            }
            let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
            let (count, reason) = (ids.len(), message.reason.clone());
            let command = Command::Cancel { jobs: ids, reason };
            let decided = self.mutations.decide(identity, &part, count, command).await?;
            (_, done.revision) = decided?;
        }
        Ok(done)
    }

    pub(super) async fn change_job(
        &self,
        identity: &Identity,
        message: v1::UpdateJobRequest,
    ) -> Result<v1::UpdateJobResponse, Status> {
        let job = self.find("job", message.job.as_ref()).await?;
        let ended = || error::has_ended(&format!("job {} has ended, or is about to", quote(&job.name)));
        if job.phase.is_end() {
            return Err(ended());
        }
        let change = message.change.clone();
        let change = change.ok_or_else(|| error::invalid(convert::invalid("change", "is missing")))?;
        check_count("change.labels", "labels", change.labels.len(), 0, LABELS_MAX)?;
        check_count("change.labels_removed", "labels", change.labels_removed.len(), 0, LABELS_MAX)?;
        let v1::JobChange { priority, held, max_run_ms, labels, labels_removed } = change;
        let change = JobChange { priority, held, max_run_ms, labels, labels_removed };
        let command = Command::UpdateJob { job: job.id, based_on: Revision(message.revision), change };
        match self.mutations.decide(identity, &message, 1, command).await? {
            // It has ended since it was looked up.
            Err(CallError::Rejected(Rejection::NotFound { .. })) => Err(ended()),
            decided => Ok(v1::UpdateJobResponse { revision: decided?.1.0 }),
        }
    }
}

/// The units that a request names; `None` if it is about whole jobs.
fn unit_set(message: &v1::CancelRequest) -> Result<Option<IntervalSet>, Status> {
    let refuse = |field: &str, description: String| Err(error::invalid(convert::invalid(field, description)));
    if message.units.is_empty() {
        return Ok(None);
    }
    check_count("units", "ranges", message.units.len(), 0, UNIT_RANGES_MAX)?;
    if message.jobs.len() != 1 {
        return refuse("jobs", format!("{} jobs, `units` are those of one job", message.jobs.len()));
    }
    if !message.reason.is_empty() {
        return refuse("reason", "can't be set beside `units`".to_owned());
    }
    for (index, range) in message.units.iter().enumerate() {
        let last_max = limit::TASKS_PER_GROUP_MAX * limit::GROUPS_PER_JOB_MAX as u32 - 1;
        if range.last > last_max {
            let description = format!("{} is not within 0 and {last_max}", range.last);
            return refuse(&format!("units[{index}].last"), description);
        }
        if range.first > range.last {
            let description = format!("{} is not within 0 and {}", range.first, range.last);
            return refuse(&format!("units[{index}].first"), description);
        }
    }
    let ranges = message.units.iter().map(|range| [range.first, range.last + 1]);
    Ok(Some(IntervalSet::from_intervals(ranges)))
}
