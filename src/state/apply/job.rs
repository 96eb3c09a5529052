//! Folds what happens to jobs: submitted, closing, ended.

use super::{Applied, ArchiveRow, FinishedJob};
use crate::model::attempt::{Outcome, OutcomeKind, Phase, StopReason};
use crate::model::change::Change;
use crate::model::id::{JobId, QueueId, SpecId, UnitId};
use crate::model::interval::IntervalSet;
use crate::state::State;
use crate::state::event::EventRecord;
use crate::state::index::names::job_name_hash;
use crate::state::index::timers::Timer;
use crate::state::job::{Closing, Job, JobEnd, Progress};
use crate::state::snapshot::Key;

impl State {
    pub(super) fn submit_job(
        &mut self,
        id: JobId,
        name: &str,
        queue: QueueId,
        spec_id: SpecId,
        record: &EventRecord,
        out: &mut Applied,
    ) {
        assert!(id.0 >= self.next.job, "job {id} is submitted twice");
        let Some(entry) = self.specs.get(&spec_id) else {
            panic!("job {id} has a spec that was never added")
        };
        let spec = entry.spec.clone();
        let groups = (0..spec.unit_group_count()).map(|group| {
            let first = spec.first_unit(group);
            let count = if spec.gang_job { 1 } else { spec.groups[group].unit_count() };
            Progress { waiting: IntervalSet::from_range(first, first + count), ..Progress::default() }
        });
        let pending = spec.depends_on.iter().filter(|dependency| self.jobs.contains_key(&dependency.job));
        let job = Job {
            id,
            name: name.into(),
            queue,
            spec: spec_id,
            submitted_at: record.at,
            submitted_by: record.principal.clone(),
            started_at: None,
            revision: record.revision,
            closing: None,
            pending_dependencies: pending.count() as u16,
            dependency_failed: false,
            held: false,
            simulated: false,
            first_failure: None,
            groups: groups.collect(),
        };
        self.touch(Key::Job(id));
        self.count_arrivals(&job);
        self.index.memory.add_job(job.groups.len());
        self.jobs.insert(id, job);
        self.next.job = id.0 + 1;
        self.index_job(id);
        out.changes.push(Change::Job(id));
        self.note_classes(id, out);
    }

    /// Counts the tasks of a new job towards the workload.
    fn count_arrivals(&mut self, job: &Job) {
        let Some(entry) = self.specs.get(&job.spec) else { return };
        for (shape, progress) in entry.shapes.iter().zip(&job.groups) {
            let units = u64::from(progress.waiting.len());
            for (demand, count) in
                self.index.shapes.demands(*shape).into_iter().flat_map(|demands| &**demands)
            {
                self.workload.arrive(demand, u64::from(*count).saturating_mul(units));
            }
        }
    }

    /// Enters a job into every index.
    fn index_job(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        if let Some(entry) = self.specs.get_mut(&job.spec) {
            entry.jobs += 1;
        }
        if let Some(queue) = self.queues.get_mut(&job.queue) {
            queue.jobs += 1;
        }
        self.index.names.jobs.insert((job_name_hash(job.queue, &job.name), id));
        if job.dependency_failed && job.closing.is_none() {
            self.index.dependents.failed.insert(id);
        }
        if job.pending_dependencies > 0
            && let Some(entry) = self.specs.get(&job.spec)
        {
            for dependency in &entry.spec.depends_on {
                if self.jobs.contains_key(&dependency.job) {
                    self.index.dependents.of.entry(dependency.job).or_default().insert(id);
                }
            }
        }
        for group in &job.groups {
            for tried in &group.tried {
                if let Some(at) = tried.not_before {
                    let unit = UnitId { job: id, unit: tried.unit };
                    self.index.timers.insert((at, Timer::Release(unit)));
                }
            }
        }
        self.index_classes(id);
    }

    /// Puts each unit group of a job into its class, or takes it out, as it has waiting units.
    pub(in crate::state) fn index_classes(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let eligible = job.is_eligible();
        for (index, group) in job.groups.iter().enumerate() {
            let Some(class) = self.class_of(job, index) else { continue };
            let entry = (id, index as u16);
            if eligible && !group.waiting.is_empty() {
                self.index.classes.entry(class).or_default().insert(entry);
            } else if let Some(members) = self.index.classes.get_mut(&class) {
                members.remove(&entry);
                if members.is_empty() {
                    self.index.classes.remove(&class);
                }
            }
        }
    }

    /// Reports that the classes of a job's groups may have gained or lost units.
    pub(super) fn note_classes(&self, id: JobId, out: &mut Applied) {
        let Some(job) = self.jobs.get(&id) else { return };
        let classes = (0..job.groups.len()).filter_map(|group| self.class_of(job, group));
        out.changes.extend(classes.map(Change::Class));
    }

    /// Replaces a job's spec by one that differs in what decides on starts to come, and holds or releases the job.
    pub(super) fn update_job(&mut self, id: JobId, spec: SpecId, held: bool, out: &mut Applied) {
        // Its groups leave their classes, of which the new spec may have others.
        self.note_classes(id, out);
        self.set_held(id, true);
        self.index_classes(id);
        let Some(job) = self.jobs.get(&id) else { panic!("job {id} is updated but is not live") };
        let old = job.spec;
        if old != spec {
            let Some(entry) = self.specs.get_mut(&spec) else {
                panic!("job {id} is given a spec that was never added")
            };
            entry.jobs += 1;
            if let Some(job) = self.job_mut(id) {
                job.spec = spec;
            }
            self.release_spec(old);
            let units = UnitId { job: id, unit: 0 }..=UnitId { job: id, unit: u32::MAX };
            let live: Vec<UnitId> = self.attempts.range(units).map(|(unit, _)| *unit).collect();
            for unit in live {
                self.reconcile_claim_end(unit);
                self.shorten_run(unit);
            }
        }
        self.set_held(id, held);
        self.index_classes(id);
        self.note_classes(id, out);
        out.changes.push(Change::Job(id));
    }

    fn set_held(&mut self, id: JobId, held: bool) {
        let revision = self.revision;
        if let Some(job) = self.job_mut(id) {
            job.held = held;
            job.revision = revision;
        }
    }

    /// Ends units that wait, or wait for the end of a back-off, and lets those whose attempt is being stopped get no other.
    pub(super) fn cancel_units(&mut self, id: JobId, units: &IntervalSet, out: &mut Applied) {
        let revision = self.revision;
        let Some(job) = self.job_mut(id) else {
            panic!("units of job {id} are cancelled but it is not live")
        };
        job.revision = revision;
        let mut released = Vec::new();
        for progress in &mut job.groups {
            let freed = progress.cancel(units).into_iter();
            released.extend(freed.map(|(at, unit)| (at, Timer::Release(UnitId { job: id, unit }))));
        }
        job.first_failure
            .get_or_insert_with(|| Box::new(Outcome::plain(OutcomeKind::Cancelled, "units were cancelled")));
        for timer in released {
            self.index.timers.remove(&timer);
        }
        for [first, end] in units.intervals() {
            let live = UnitId { job: id, unit: *first }..UnitId { job: id, unit: *end };
            let live: Vec<UnitId> = self.attempts.range(live).map(|(unit, _)| *unit).collect();
            for unit in live {
                let Some(attempt) = self.attempt_mut(unit) else { continue };
                assert!(attempt.phase == Phase::Stopping, "{unit:?} is cancelled but not stopped");
                attempt.stop = Some(StopReason::Cancelled);
                attempt.revision = revision;
            }
        }
        self.index_classes(id);
        self.note_classes(id, out);
        out.changes.push(Change::Job(id));
    }

    pub(super) fn close_job(&mut self, id: JobId, why: Closing, reason: &str, out: &mut Applied) {
        let revision = self.revision;
        let Some(job) = self.job_mut(id) else { panic!("job {id} closes but is not live") };
        assert!(job.closing.is_none(), "job {id} closes twice");
        job.closing = Some(why);
        if !reason.is_empty() {
            job.first_failure.get_or_insert_with(|| Box::new(Outcome::plain(OutcomeKind::Cancelled, reason)));
        }
        job.revision = revision;
        let mut released = Vec::new();
        for tried in job.groups.iter_mut().flat_map(|group| &mut group.tried) {
            if let Some(at) = tried.not_before.take() {
                released.push((at, Timer::Release(UnitId { job: id, unit: tried.unit })));
            }
        }
        for timer in released {
            self.index.timers.remove(&timer);
        }
        self.note_classes(id, out);
        self.index_classes(id);
        self.index.dependents.failed.remove(&id);
        self.reconcile_job(id);
        out.changes.push(Change::Job(id));
    }

    pub(super) fn end_job(&mut self, id: JobId, end: JobEnd, out: &mut Applied) {
        self.touch(Key::Job(id));
        self.note_classes(id, out);
        let Some(job) = self.jobs.remove(&id) else { panic!("job {id} ends but is not live") };
        assert!(job.live() == 0, "job {id} ends with live attempts");
        assert!(
            job.closing.is_some() || job.groups.iter().all(Progress::is_done),
            "job {id} ends with units that have not"
        );
        self.index.names.jobs.remove(&(job_name_hash(job.queue, &job.name), id));
        self.index.stops.closing.remove(&id);
        self.index.memory.remove_job(job.groups.len());
        if let Some(entry) = self.specs.get(&job.spec) {
            self.index.dependents.remove(id, &entry.spec);
        }
        let queue = self.queues.get_mut(&job.queue);
        let queue_name = queue.map_or_else(String::new, |queue| {
            queue.jobs -= 1;
            queue.spec.name.clone()
        });
        let spec = self.release_spec(job.spec);
        self.reconcile_dependents(id, &format!("job/{queue_name}/{}", job.name), end, out);
        out.changes.push(Change::Job(id));
        if let Some(spec) = spec {
            let (ended_at, revision) = (self.now, self.revision);
            out.archive.push(ArchiveRow::Job(FinishedJob {
                job,
                queue: queue_name,
                spec,
                end,
                ended_at,
                revision,
            }));
        }
    }

    fn release_spec(&mut self, id: SpecId) -> Option<std::sync::Arc<crate::model::spec::JobSpec>> {
        let entry = self.specs.get_mut(&id)?;
        entry.jobs -= 1;
        let spec = entry.spec.clone();
        if entry.jobs == 0 {
            self.touch(Key::Spec(id));
            if let Some(entry) = self.specs.remove(&id) {
                self.index.memory.remove_spec(&entry.spec);
                for shape in entry.shapes {
                    if let Some(digest) = self.index.shapes.release(shape) {
                        self.forget_run_time(digest);
                    }
                }
            }
        }
        Some(spec)
    }

    /// Notes at the jobs that wait for `ended`, which is called `name`, how it has ended.
    fn reconcile_dependents(&mut self, ended: JobId, name: &str, end: JobEnd, out: &mut Applied) {
        let (revision, dependents) = (self.revision, self.index.dependents.of.remove(&ended));
        for id in dependents.unwrap_or_default() {
            let Some(job) = self.jobs.get(&id) else { continue };
            let Some(entry) = self.specs.get(&job.spec) else { continue };
            let edges = entry.spec.depends_on.iter().filter(|dependency| dependency.job == ended);
            let (mut count, mut met) = (0, true);
            for edge in edges {
                count += 1;
                met &= end.meets(edge.condition);
            }
            let Some(job) = self.job_mut(id) else { continue };
            assert!(job.pending_dependencies >= count, "job {id} waits for fewer jobs than have ended");
            job.pending_dependencies -= count;
            job.dependency_failed |= !met;
            if !met {
                let message = format!("it depends on {name}, which has {}", end.text());
                job.first_failure
                    .get_or_insert_with(|| Box::new(Outcome::plain(OutcomeKind::Cancelled, &message)));
            }
            job.revision = revision;
            if !met && job.closing.is_none() {
                self.index.dependents.failed.insert(id);
            }
            self.index_classes(id);
            self.note_classes(id, out);
            out.changes.push(Change::Job(id));
        }
    }
}
