//! Folds what happens to attempts: ordered, starting, running, stopping, ended.

use super::{Applied, ArchiveRow, FinishedAttempt};
use crate::model::attempt::{OutcomeKind, Phase, StopReason};
use crate::model::change::Change;
use crate::model::id::{JobId, NodeRef, UnitId};
use crate::model::mutant::Mutant;
use crate::model::region::RegionCode;
use crate::model::resource::{Resources, task_size};
use crate::model::spec::JobSpec;
use crate::model::time::Timestamp;
use crate::state::State;
use crate::state::event::{EndedAttempt, NextTry, OrderedAttempt};
use crate::state::index::timers::Timer;
use crate::state::job::Tried;
use crate::state::live::Attempt;
use crate::state::pool::sum_of;
use crate::state::snapshot::Key;

impl State {
    pub(super) fn order_attempt(&mut self, order: &OrderedAttempt, out: &mut Applied) {
        let (unit, revision, now) = (order.unit, self.revision, self.now);
        let group = self.unit_group(unit);
        let Some(job) = self.job_mut(unit.job) else {
            panic!("an attempt of job {} that is not live", unit.job)
        };
        let progress = &mut job.groups[group];
        assert!(progress.waiting.remove(unit.unit), "unit {unit:?} is ordered but does not wait");
        let tried = progress.take_tried(unit.unit);
        assert!(order.number == tried.map_or(0, |t| t.attempts) + 1, "unit {unit:?} skips an attempt");
        progress.live += 1;
        job.revision = revision;
        let attempt = Attempt {
            unit,
            number: order.number,
            failures: tried.map_or(0, |t| t.failures),
            losses: tried.map_or(0, |t| t.losses),
            returns: tried.map_or(0, |t| t.returns),
            pool: order.pool,
            phase: Phase::Ordered,
            stop: None,
            ordered_at: now,
            ordered_revision: revision,
            start_by: order.start_by,
            started_at: None,
            ends_by: order.ends_by,
            leased: order.leased,
            after: order.after,
            placements: order.placements.clone(),
            revision,
        };
        self.touch(Key::Attempt(unit));
        let before = self.attempts.insert(unit, attempt);
        assert!(before.is_none(), "unit {unit:?} has two live attempts");
        self.index_attempt(unit);
        self.reconcile_claim_end(unit);
        if let Some(before) = order.after {
            self.reconcile_claim_end(before);
        }
        self.index_classes(unit.job);
        self.note_classes(unit.job, out);
        self.note_claim(unit, &mut out.changes);
        self.note_nodes(unit, out);
        out.changes.push(Change::Job(unit.job));
    }

    /// Enters an attempt into every index and commits what it holds.
    fn index_attempt(&mut self, unit: UnitId) {
        let Some(attempt) = self.attempts.get(&unit) else { return };
        let (pool, after) = (attempt.pool, attempt.after);
        if attempt.phase != Phase::Stopping {
            self.index.timers.insert((attempt.ends_by, Timer::EndRun(unit)));
            if let Some(at) = self.start_limit(attempt) {
                self.index.timers.insert((at, Timer::EndStart(unit)));
            }
            self.index.stops.stoppable.insert(unit);
            self.index.stops.stoppable_in.insert((pool, unit));
        }
        if let Some(lease_ms) = self.requeue_lease_ms(unit) {
            self.index.stops.requeueable.insert((pool, lease_ms, unit));
        }
        self.reconcile_job(unit.job);
        if let Some(pool) = self.pools.get_mut(&pool) {
            pool.attempts.insert(unit);
        }
        match after {
            Some(before) => {
                self.index.claims.successors.insert(before, unit);
            }
            None => self.commit(unit),
        }
    }

    pub(in crate::state) fn start_limit(&self, attempt: &Attempt) -> Option<Timestamp> {
        let spec = self.spec_of(attempt.unit.job)?;
        let limited = spec.start_limit_ms > 0 && matches!(attempt.phase, Phase::Ordered | Phase::Starting);
        limited.then(|| attempt.ordered_at.plus_ms(spec.start_limit_ms))
    }

    fn drop_timers(&mut self, unit: UnitId) {
        let Some(attempt) = self.attempts.get(&unit) else { return };
        let (ends_by, start_limit) = (attempt.ends_by, self.start_limit(attempt));
        self.index.timers.remove(&(ends_by, Timer::EndRun(unit)));
        if let Some(at) = start_limit {
            self.index.timers.remove(&(at, Timer::EndStart(unit)));
        }
    }

    /// Releases what an attempt's tasks held. A placement that a successor takes over keeps its node, even one
    /// that is gone from the inventory.
    fn uncommit(&mut self, attempt: &Attempt, taken_over: bool, out: &mut Applied) {
        let Some(job) = self.jobs.get(&attempt.unit.job) else { return };
        let (queue, mut total) = (job.queue, Resources::default());
        let Some(spec) = self.spec_of(attempt.unit.job).cloned() else { return };
        for placement in &attempt.placements {
            let request = &spec.groups[usize::from(placement.group)].request;
            let asked = request.total();
            self.index.devices_in_use[task_size(asked.device_millis)] -= asked.device_millis;
            total = sum_of(&total, &asked);
            let at = NodeRef { pool: attempt.pool, node: placement.node };
            let mut vacated = false;
            if let Some(node) = self.pools.get_mut(&at.pool).and_then(|pool| pool.nodes.get_mut(&at.node)) {
                node.uncommit(request, placement);
                vacated = node.gone && node.tasks == 0 && !taken_over;
            }
            if vacated {
                self.forget_node(at);
            }
            out.changes.push(Change::Node(at));
        }
        if let Some(pool) = self.pools.get_mut(&attempt.pool) {
            let rest = pool.committed.checked_sub(&total);
            let name = &pool.spec.name;
            pool.committed = rest.unwrap_or_else(|| panic!("pool {name} releases what it never held"));
        }
        self.sub_usage(queue, &total, out);
    }

    pub(super) fn note_starting(&mut self, unit: UnitId, out: &mut Applied) {
        let revision = self.revision;
        let Some(attempt) = self.attempt_mut(unit) else { panic!("{unit:?} starts but is not live") };
        assert!(attempt.phase == Phase::Ordered, "{unit:?} starts twice");
        attempt.phase = Phase::Starting;
        attempt.revision = revision;
        self.note_job(unit.job, out);
    }

    pub(super) fn note_running(&mut self, unit: UnitId, started_at: Timestamp, out: &mut Applied) {
        let (revision, group) = (self.revision, self.unit_group(unit));
        self.drop_timers(unit);
        let max_run_ms = self.spec_of(unit.job).map_or(0, |spec| spec.max_run_ms);
        let Some(attempt) = self.attempt_mut(unit) else { panic!("{unit:?} runs but is not live") };
        assert!(
            matches!(attempt.phase, Phase::Ordered | Phase::Starting),
            "{unit:?} runs in {:?}",
            attempt.phase
        );
        attempt.phase = Phase::Running;
        attempt.started_at = Some(started_at);
        attempt.revision = revision;
        attempt.ends_by = started_at.plus_ms(max_run_ms).plus_ms(RUN_SLACK_MS);
        let ends_by = attempt.ends_by;
        self.index.timers.insert((ends_by, Timer::EndRun(unit)));
        if let Some(job) = self.job_mut(unit.job) {
            job.groups[group].running += 1;
            job.started_at.get_or_insert(started_at);
        }
        self.note_job(unit.job, out);
    }

    /// Lets a running attempt end by its job's maximum run time, if that is earlier than before. Later is not possible: its
    /// agent ends it by the time that it was started with.
    pub(super) fn shorten_run(&mut self, unit: UnitId) {
        let (revision, max_run_ms) =
            (self.revision, self.spec_of(unit.job).map_or(0, |spec| spec.max_run_ms));
        let running = self.attempts.get(&unit).filter(|attempt| attempt.phase == Phase::Running);
        let Some((started_at, before)) =
            running.and_then(|attempt| Some((attempt.started_at?, attempt.ends_by)))
        else {
            return;
        };
        let ends_by = started_at.plus_ms(max_run_ms).plus_ms(RUN_SLACK_MS);
        if ends_by < before
            && let Some(attempt) = self.attempt_mut(unit)
        {
            attempt.ends_by = ends_by;
            attempt.revision = revision;
            self.index.timers.remove(&(before, Timer::EndRun(unit)));
            self.index.timers.insert((ends_by, Timer::EndRun(unit)));
        }
    }

    pub(super) fn note_stopping(&mut self, unit: UnitId, reason: StopReason, out: &mut Applied) {
        let (revision, group) = (self.revision, self.unit_group(unit));
        self.drop_timers(unit);
        let Some(attempt) = self.attempt_mut(unit) else { panic!("{unit:?} stops but is not live") };
        assert!(attempt.phase != Phase::Stopping, "{unit:?} is stopped twice");
        let was_running = attempt.phase == Phase::Running;
        attempt.phase = Phase::Stopping;
        attempt.stop = Some(reason);
        attempt.revision = revision;
        let pool = attempt.pool;
        self.index.stops.stoppable.remove(&unit);
        self.index.stops.stoppable_in.remove(&(pool, unit));
        self.reconcile_claim_end(unit);
        self.reconcile_job(unit.job);
        self.reconcile_pool(pool);
        if was_running && let Some(job) = self.job_mut(unit.job) {
            job.groups[group].running -= 1;
        }
        if Mutant::HideStops.is_on() {
            return;
        }
        self.note_job(unit.job, out);
    }

    pub(super) fn end_attempt(&mut self, unit: UnitId, ended: &EndedAttempt, out: &mut Applied) {
        let (revision, group) = (self.revision, self.unit_group(unit));
        self.drop_timers(unit);
        self.touch(Key::Attempt(unit));
        let lease_ms = self.requeue_lease_ms(unit);
        let Some(attempt) = self.attempts.remove(&unit) else { panic!("{unit:?} ends but is not live") };
        self.workload.depart(attempt.placements.len() as u64);
        let (kind, fault) = (ended.outcome.kind, attempt.is_node_fault(&ended.outcome));
        if let Some(at) = attempt.single_node().filter(|_| fault || kind.proves_node_works()) {
            self.note_node_health(at, unit.job, fault);
        }
        let successor = self.index.claims.successors.get(&unit).copied();
        match attempt.after {
            None => self.uncommit(&attempt, successor.is_some(), out),
            Some(before) => {
                self.index.claims.successors.remove(&before);
            }
        }
        self.hand_over(&attempt, out);
        self.reconcile_claim_end(unit);
        if let Some(neighbour) = attempt.after.or(successor) {
            self.reconcile_claim(neighbour);
            self.note_claim(unit, &mut out.changes);
        }
        if let ([_], Some(started_at), OutcomeKind::Succeeded) =
            (&attempt.placements[..], ended.started_at, ended.outcome.kind)
        {
            self.update_run_time(unit, ended.ended_at.ms_since(started_at));
        }
        self.index.stops.stoppable.remove(&unit);
        self.index.stops.stoppable_in.remove(&(attempt.pool, unit));
        if let Some(lease_ms) = lease_ms {
            self.index.stops.requeueable.remove(&(attempt.pool, lease_ms, unit));
        }
        self.reconcile_job(unit.job);
        self.reconcile_pool(attempt.pool);
        if let Some(pool) = self.pools.get_mut(&attempt.pool) {
            pool.attempts.remove(&unit);
        }
        let Some(job) = self.job_mut(unit.job) else { panic!("{unit:?} ends but its job is not live") };
        job.revision = revision;
        job.simulated |= ended.outcome.simulated;
        if let Some(started_at) = ended.started_at {
            job.started_at.get_or_insert(started_at);
        }
        let progress = &mut job.groups[group];
        progress.live -= 1;
        if attempt.phase == Phase::Running {
            progress.running -= 1;
        }
        // An attempt that was stopped, or never started, proves nothing about its node.
        let blamed = ended.outcome.kind.retry_avoids_node();
        let avoid = attempt.placements.first().map(|p| NodeRef { pool: attempt.pool, node: p.node });
        let avoid = avoid.filter(|_| blamed);
        let tried = Tried {
            unit: unit.unit,
            attempts: attempt.number,
            failures: attempt.failures,
            losses: attempt.losses + u32::from(kind.is_node_loss()),
            returns: if kind == OutcomeKind::NotStarted { attempt.returns.saturating_add(1) } else { 0 },
            not_before: None,
            avoid,
        };
        match ended.next {
            NextTry::Never => {
                progress.end_unit(unit.unit, kind);
                if kind != OutcomeKind::Succeeded {
                    job.first_failure.get_or_insert_with(|| Box::new(ended.outcome.clone()));
                }
            }
            NextTry::Now => {
                progress.waiting.insert(unit.unit);
                progress.set_tried(tried);
            }
            NextTry::At(at) => {
                let failures = tried.failures + 1;
                progress.set_tried(Tried { failures, not_before: Some(at), ..tried });
                self.index.timers.insert((at, Timer::Release(unit)));
            }
            NextTry::Later(at) => {
                progress.set_tried(Tried { not_before: Some(at), ..tried });
                self.index.timers.insert((at, Timer::Release(unit)));
            }
        }
        self.index_classes(unit.job);
        self.note_classes(unit.job, out);
        out.changes.push(Change::Job(unit.job));
        out.archive.push(ArchiveRow::Attempt(self.finished(attempt, ended)));
    }

    /// Hands the placement of an ended attempt to its successor; if the attempt was itself queued, its successor
    /// is queued in its stead.
    fn hand_over(&mut self, ended: &Attempt, out: &mut Applied) {
        let Some(next) = self.index.claims.successors.remove(&ended.unit) else { return };
        if let Some(successor) = self.attempt_mut(next) {
            successor.after = ended.after;
        }
        match ended.after {
            Some(before) => {
                self.index.claims.successors.insert(before, next);
            }
            None => {
                self.commit(next);
                self.note_nodes(next, out);
            }
        }
    }

    fn finished(&self, attempt: Attempt, ended: &EndedAttempt) -> FinishedAttempt {
        let pool = self.pools.get(&attempt.pool);
        let name = |placement: &crate::model::attempt::Placement| {
            pool.and_then(|pool| pool.nodes.get(&placement.node))
                .map_or_else(String::new, |node| node.spec.name.clone())
        };
        FinishedAttempt {
            nodes: attempt.placements.iter().map(name).collect(),
            pool: pool.map_or_else(String::new, |pool| pool.spec.name.clone()),
            region: pool.map_or_else(RegionCode::default, |pool| pool.spec.region),
            ended: ended.clone(),
            revision: self.revision,
            attempt,
        }
    }

    pub(super) fn release_unit(&mut self, unit: UnitId, out: &mut Applied) {
        let (revision, group) = (self.revision, self.unit_group(unit));
        let Some(job) = self.job_mut(unit.job) else {
            panic!("{unit:?} is released but its job is not live")
        };
        job.revision = revision;
        let progress = &mut job.groups[group];
        let tried = progress.tried(unit.unit).copied();
        let Some((tried, at)) = tried.and_then(|tried| Some((tried, tried.not_before?))) else {
            panic!("{unit:?} is released but does not back off")
        };
        progress.set_tried(Tried { not_before: None, ..tried });
        progress.waiting.insert(unit.unit);
        self.index.timers.remove(&(at, Timer::Release(unit)));
        self.index_classes(unit.job);
        self.note_classes(unit.job, out);
        out.changes.push(Change::Job(unit.job));
    }

    fn note_nodes(&self, unit: UnitId, out: &mut Applied) {
        let Some(attempt) = self.attempts.get(&unit) else { return };
        let pool = attempt.pool;
        out.changes.extend(attempt.placements.iter().map(|p| Change::Node(NodeRef { pool, node: p.node })));
    }

    fn note_job(&mut self, id: JobId, out: &mut Applied) {
        let revision = self.revision;
        if let Some(job) = self.job_mut(id) {
            job.revision = revision;
        }
        out.changes.push(Change::Job(id));
    }

    pub(in crate::state) fn spec_of(&self, job: JobId) -> Option<&std::sync::Arc<JobSpec>> {
        Some(&self.specs.get(&self.jobs.get(&job)?.spec)?.spec)
    }

    /// The unit group that a unit of a live job belongs to; 0 if the job is not live.
    pub(in crate::state) fn unit_group(&self, unit: UnitId) -> usize {
        self.spec_of(unit.job).map_or(0, |spec| spec.group_of_unit(unit.unit))
    }
}

/// The backend ends a run at its limit; the broker steps in when that hasn't worked by then.
pub(in crate::state) const RUN_SLACK_MS: u64 = 30_000;
