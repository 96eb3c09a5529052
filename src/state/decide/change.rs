//! Decides on changes of live jobs: other priorities, labels and limits, hold and release, and the end of single units.

use std::sync::Arc;

use super::Decision;
use super::job::{Interned, end_of_units};
use crate::model::attempt::{Phase, StopReason};
use crate::model::id::{JobId, Revision, UnitId};
use crate::model::interval::IntervalSet;
use crate::model::limit::UNITS_STOPPED_MAX;
use crate::model::validate::{self, Violations};
use crate::state::State;
use crate::state::command::JobChange;
use crate::state::event::Event;
use crate::state::job::{Closing, Job, Progress};
use crate::state::rejection::Rejection;

impl State {
    pub(super) fn decide_update_job(
        &self,
        id: JobId,
        based_on: Revision,
        change: &JobChange,
    ) -> Result<Decision, Rejection> {
        let job = self.open_job(id)?;
        super::check_revision("job", &job.name, job.revision, based_on)?;
        let (Some(entry), Some(queue)) = (self.specs.get(&job.spec), self.queue(job.queue)) else {
            return Err(Rejection::NotFound { kind: "job", name: job.name.to_string() });
        };
        let mut spec = (*entry.spec).clone();
        spec.priority = change.priority.unwrap_or(spec.priority);
        spec.max_run_ms = change.max_run_ms.unwrap_or(spec.max_run_ms);
        spec.labels.extend(change.labels.clone());
        spec.labels.retain(|key, _| !change.labels_removed.contains(key));
        let held = change.held.unwrap_or(job.held);
        let mut out = Violations::default();
        change.labels_removed.iter().for_each(|key| out.label("change.labels_removed", key));
        validate::job_spec("change", &spec, &mut out);
        out.finish().map_err(Rejection::Invalid)?;
        if spec == *entry.spec && held == job.held {
            return Ok(Decision::done(Vec::new()));
        }
        let Interned { id: spec_id, body } = self.interned("change", &queue.spec, &spec)?;
        let mut events = Vec::new();
        if !self.specs.contains_key(&spec_id) {
            events.push(Event::SpecAdded { spec: spec_id, body: Arc::new(body) });
        }
        events.push(Event::JobUpdated { job: id, spec: spec_id, held });
        Ok(Decision::done(events))
    }

    pub(super) fn decide_cancel_units(&self, id: JobId, units: &IntervalSet) -> Result<Decision, Rejection> {
        let Some(job) = self.job(id).filter(|job| job.closing.is_none()) else {
            return Ok(Decision::done(Vec::new()));
        };
        let total = self.spec_of_job(id).map_or(0, |spec| spec.unit_count());
        if let Some([_, end]) = units.intervals().last().filter(|[_, end]| *end > total) {
            let description = format!("{} is not within 0 and {}", end - 1, total.saturating_sub(1));
            return Err(Rejection::invalid("units", description));
        }
        let mut events = Vec::new();
        let idle = job.groups.iter().map(|group| group.idle_within(units));
        let idle = idle.fold(IntervalSet::default(), |all, idle| all.union(&idle));
        // Those whose attempt is being stopped for another reason: it must not be followed by one more.
        let mut stopping = Vec::new();
        for [first, end] in units.intervals() {
            let live = UnitId { job: id, unit: *first }..UnitId { job: id, unit: *end };
            for (unit, attempt) in self.attempts.range(live) {
                match (attempt.phase, attempt.stop) {
                    (Phase::Stopping, Some(StopReason::Cancelled)) => {}
                    (Phase::Stopping, _) => stopping.push([unit.unit, unit.unit + 1]),
                    _ => events.push(Event::AttemptStopping { unit: *unit, reason: StopReason::Cancelled }),
                }
                if events.len() + stopping.len() > UNITS_STOPPED_MAX {
                    return Err(Rejection::LimitReached {
                        what: "units with an attempt in one cancel",
                        max: UNITS_STOPPED_MAX,
                    });
                }
            }
        }
        let ended = idle.union(&IntervalSet::from_intervals(stopping));
        if !ended.is_empty() {
            events.push(Event::UnitsCancelled { job: id, units: ended });
        }
        if !idle.is_empty() {
            self.end_of_cancelled(job, &idle, &mut events);
        }
        Ok(Decision::done(events))
    }

    /// What follows for the job: it closes if more units than it allows did not succeed, and ends if nothing is left.
    fn end_of_cancelled(&self, job: &Job, cancelled: &IntervalSet, events: &mut Vec<Event>) {
        let failed = job.failed_units() + cancelled.len();
        let failed_max = self.spec_of_job(job.id).map_or(0, |spec| spec.on_unit_failure.failed_max());
        let is_idle = |group: &Progress| group.waiting.len() + group.backing_off();
        let left = job.groups.iter().map(is_idle).sum::<u32>() - cancelled.len();
        if failed > failed_max {
            self.close(job, Closing::Failed, "", job.live(), events);
        } else if left == 0 && job.live() == 0 {
            events.push(Event::JobEnded { job: job.id, end: end_of_units(failed) });
        }
    }

    /// A job that has not ended and is not about to.
    fn open_job(&self, id: JobId) -> Result<&Job, Rejection> {
        self.job(id)
            .filter(|job| job.closing.is_none())
            .ok_or_else(|| Rejection::NotFound { kind: "live job", name: id.to_string() })
    }
}
