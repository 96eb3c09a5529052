//! Decides on jobs: submit, cancel, and how a job ends when an attempt does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Decision, Ending, Reply};
use crate::model::attempt::{Outcome, OutcomeKind, StopReason};
use crate::model::backoff::doubled;
use crate::model::id::{JobId, QueueId, SpecId, UnitId};
use crate::model::limit::{DEPENDENTS_MAX, JOBS_PER_SUBMIT_MAX, NAME_LEN_MAX, SPEC_BYTES_MAX};
use crate::model::mutant::Mutant;
use crate::model::queue::DEFAULT_QUEUE;
use crate::model::queue::QueueSpec;
use crate::model::spec::{Dependency, JobSpec, NodeLosses, OnPoolLost, RetryOn, RetryPolicy};
use crate::model::suggest::{nearest, question};
use crate::model::time::Timestamp;
use crate::model::validate::{self, Violations, quote};
use crate::state::State;
use crate::state::command::Submission;
use crate::state::event::{Event, NextTry};
use crate::state::job::{Closing, Job, JobEnd};
use crate::state::record;
use crate::state::rejection::{Rejection, UnmetDependency};
use crate::state::token::first_bytes;

impl State {
    pub(super) fn decide_submit(&self, jobs: &[Submission]) -> Result<Decision, Rejection> {
        if jobs.is_empty() || jobs.len() > JOBS_PER_SUBMIT_MAX {
            let description = format!("{} jobs, 1 to {JOBS_PER_SUBMIT_MAX} are allowed", jobs.len());
            return Err(Rejection::invalid("jobs", description));
        }
        let mut batch = Batch { events: Vec::with_capacity(jobs.len() + 1), ..Batch::default() };
        let first = JobId(self.next.job);
        for (index, submission) in jobs.iter().enumerate() {
            let id = JobId(self.next.job + index as u64);
            self.submit_one(&format!("jobs[{index}]"), id, submission, &mut batch)?;
        }
        Ok(Decision { events: batch.events, reply: Reply::Submitted { first, count: jobs.len() as u32 } })
    }

    fn submit_one<'a>(
        &self,
        path: &str,
        id: JobId,
        submission: &'a Submission,
        batch: &mut Batch<'a>,
    ) -> Result<(), Rejection> {
        let queue_name = if submission.queue.is_empty() { DEFAULT_QUEUE } else { &submission.queue };
        let Some(queue) = self.queue_named(queue_name) else {
            let names = self.queues().map(|queue| queue.spec.name.as_str());
            let field = format!("{path}.queue");
            return Err(Rejection::invalid(
                &field,
                format!(
                    "queue {} does not exist{}",
                    quote(queue_name),
                    question(&nearest(queue_name, names))
                ),
            ));
        };
        let name = self.name_of(path, id, submission)?;
        if self.job_named(queue.id, &name).is_some() || !batch.names.insert((queue.id, name.clone())) {
            return Err(Rejection::AlreadyExists { kind: "job", name });
        }
        let spec = match batch.last {
            Some((spec, last_queue, spec_id)) if *spec == submission.spec && last_queue == queue.id => {
                spec_id
            }
            _ => {
                let spec_id = self.intern(path, &queue.spec, &submission.spec, batch)?;
                batch.last = Some((&submission.spec, queue.id, spec_id));
                spec_id
            }
        };
        for dependency in &submission.spec.depends_on {
            let new = batch.dependents.entry(dependency.job).or_default();
            *new += 1;
            let live = self.index.dependents.of.get(&dependency.job).map_or(0, BTreeSet::len);
            if live + *new > DEPENDENTS_MAX {
                return Err(Rejection::LimitReached {
                    what: "live jobs that depend on one job",
                    max: DEPENDENTS_MAX,
                });
            }
        }
        batch.events.push(Event::JobSubmitted { job: id, name: name.into(), queue: queue.id, spec });
        if submission.held {
            batch.events.push(Event::JobUpdated { job: id, spec, held: true });
        }
        Ok(())
    }

    fn name_of(&self, path: &str, id: JobId, submission: &Submission) -> Result<String, Rejection> {
        let mut out = Violations::default();
        if !submission.name.is_empty() {
            out.job_name(&format!("{path}.name"), &submission.name);
            out.finish().map_err(Rejection::Invalid)?;
            return Ok(submission.name.clone());
        }
        let prefix = if submission.name_prefix.is_empty() { "job" } else { &submission.name_prefix };
        out.name(&format!("{path}.name_prefix"), prefix);
        let name = format!("{prefix}-{id}");
        if name.len() > NAME_LEN_MAX {
            out.push(
                format!("{path}.name_prefix"),
                format!("{} is too long to put a number after it", quote(prefix)),
            );
        }
        out.finish().map_err(Rejection::Invalid)?;
        Ok(name)
    }

    /// Checks a spec, fills in its defaults, and adds it to the batch unless it is known.
    fn intern(
        &self,
        path: &str,
        queue: &QueueSpec,
        spec: &JobSpec,
        batch: &mut Batch<'_>,
    ) -> Result<SpecId, Rejection> {
        let mut out = Violations::default();
        let path = format!("{path}.spec");
        validate::job_spec(&path, spec, &mut out);
        self.check_names(&path, spec, &mut out);
        out.finish().map_err(Rejection::Invalid)?;
        let known = |edge: &Dependency| self.jobs.contains_key(&edge.job);
        if let Some((index, edge)) = spec.depends_on.iter().enumerate().find(|(_, edge)| !known(edge)) {
            let field = format!("{path}.depends_on[{index}].job_id");
            let why = UnmetDependency::Unknown { job: edge.job };
            return Err(Rejection::BadDependency { field, job: edge.job, why });
        }
        let Interned { id, body } = self.interned(&path, queue, spec)?;
        if !self.specs.contains_key(&id) && batch.specs.insert(id) {
            batch.events.push(Event::SpecAdded { spec: id, body: Arc::new(body) });
        }
        Ok(id)
    }

    /// A spec with its queue's defaults, and the name under which it is stored.
    pub(super) fn interned(
        &self,
        path: &str,
        queue: &QueueSpec,
        spec: &JobSpec,
    ) -> Result<Interned, Rejection> {
        let mut body = spec.clone();
        if body.max_run_ms == 0 {
            body.max_run_ms = queue.max_run_ms_default;
        }
        if body.lease_ms == 0 && body.on_pool_lost == OnPoolLost::Requeue {
            body.lease_ms = queue.lease_ms_default;
        }
        let bytes = record::encode_spec(&body);
        if bytes.len() > SPEC_BYTES_MAX {
            let description = format!("{} bytes, at most {SPEC_BYTES_MAX} are allowed", bytes.len());
            return Err(Rejection::invalid(path, description));
        }
        Ok(Interned { id: SpecId(first_bytes(&Sha256::digest(&bytes))), body })
    }

    /// Checks that regions and device models are ones that the catalogues know.
    fn check_names(&self, path: &str, spec: &JobSpec, out: &mut Violations) {
        for (field, regions) in [
            ("regions_allowed", &spec.constraints.regions_allowed),
            ("regions_denied", &spec.constraints.regions_denied),
        ] {
            for region in regions.iter().filter(|region| !self.catalogue.regions.contains_key(region)) {
                let known = self.catalogue.regions.keys().map(|code| code.as_str());
                let hint = question(&nearest(region.as_str(), known));
                out.push(
                    format!("{path}.constraints.{field}"),
                    format!("region {region} does not exist{hint}"),
                );
            }
        }
        let mut hints = 0..HINTS_MAX;
        for (index, group) in spec.groups.iter().enumerate() {
            let models = group.request.devices.iter().flat_map(|devices| &devices.models);
            for model in models.filter(|model| self.model_named(model).is_none()) {
                let hint = hints.next().map_or_else(String::new, |_| self.hint_for_model(model));
                let field = format!("{path}.groups[{index}].resources.devices.models");
                out.push(field, format!("device model {} is not known{hint}", quote(model)));
            }
        }
    }

    /// What the author of an unknown model's name may have meant: of equally near names those that pools have, or else
    /// what pools have.
    fn hint_for_model(&self, model: &str) -> String {
        let nodes = self.pools.values().flat_map(|pool| pool.nodes.values()).take(HINT_NODES_MAX);
        let in_pools: BTreeSet<&str> =
            nodes.flat_map(|node| &node.spec.devices).map(|device| device.model.as_str()).collect();
        let mut near = nearest(model, self.catalogue.models.iter().map(|known| known.name.as_str()));
        if near.iter().any(|name| in_pools.contains(name)) {
            near.retain(|name| in_pools.contains(name));
        }
        if !near.is_empty() {
            return question(&near);
        }
        let some: Vec<String> = in_pools.iter().take(HINT_MODELS_MAX).map(|name| quote(name)).collect();
        match in_pools.len() {
            0 => "; no pool has devices now".to_owned(),
            count if count > some.len() => format!("; pools have {} and others", some.join(", ")),
            _ => format!("; pools have {}", some.join(", ")),
        }
    }

    pub(super) fn decide_cancel(&self, jobs: &[JobId], reason: &str) -> Result<Decision, Rejection> {
        if jobs.len() > JOBS_PER_SUBMIT_MAX {
            let description = format!("{} jobs, at most {JOBS_PER_SUBMIT_MAX} are allowed", jobs.len());
            return Err(Rejection::invalid("jobs", description));
        }
        let mut events = Vec::new();
        for id in jobs.iter().collect::<BTreeSet<_>>() {
            // One that has ended, or is closing already, needs nothing more.
            let Some(job) = self.jobs.get(id).filter(|job| job.closing.is_none()) else { continue };
            self.close(job, Closing::Cancelled, reason, job.live(), &mut events);
        }
        Ok(Decision::done(events))
    }

    /// Closes a job; without live attempts it ends at once.
    pub(super) fn close(&self, job: &Job, why: Closing, reason: &str, live: u32, events: &mut Vec<Event>) {
        events.push(Event::JobClosing { job: job.id, why, reason: reason.into() });
        if live == 0 {
            events.push(Event::JobEnded { job: job.id, end: end_of(why) });
        }
    }

    /// The events of an attempt's end, and of its job's if that was all.
    pub(super) fn end_attempt_events(&self, now: Timestamp, ending: Ending) -> Vec<Event> {
        let Ending { unit, ended } = ending;
        let (kind, next) = (ended.outcome.kind, ended.next);
        let quarantine = self.quarantine(now, unit, &ended.outcome);
        let mut events = vec![Event::AttemptEnded { unit, ended }];
        events.extend(quarantine);
        let (Some(job), Some(spec)) = (self.jobs.get(&unit.job), self.spec_of_job(unit.job)) else {
            return events;
        };
        let live = job.live() - 1;
        let failed = job.failed_units() + u32::from(next == NextTry::Never && kind != OutcomeKind::Succeeded);
        let failed_max = spec.on_unit_failure.failed_max();
        match job.closing {
            Some(why) if live == 0 => events.push(Event::JobEnded { job: job.id, end: end_of(why) }),
            Some(_) => {}
            None if failed > failed_max => self.close(job, Closing::Failed, "", live, &mut events),
            None => {
                let busy = |group: &crate::state::job::Progress| {
                    !group.waiting.is_empty() || group.backing_off() > 0
                };
                if live == 0 && next == NextTry::Never && !job.groups.iter().any(busy) {
                    events.push(Event::JobEnded { job: job.id, end: end_of_units(failed) });
                }
            }
        }
        events
    }

    /// Closes a node for a while that fails whatever it is given.
    fn quarantine(&self, now: Timestamp, unit: UnitId, outcome: &Outcome) -> Option<Event> {
        let attempt = self.attempt(unit).filter(|attempt| attempt.is_node_fault(outcome))?;
        let at = attempt.single_node()?;
        // One that is gone may be forgotten with this very attempt.
        let node = self.node(at).filter(|node| !node.gone)?;
        let quarantine_ms = node.failure_tracker.after_fault(unit.job).quarantine_ms()?;
        Some(Event::NodeQuarantined { pool: at.pool, node: at.node, until: now.plus_ms(quarantine_ms) })
    }

    /// What a unit does after an attempt with this outcome.
    pub(super) fn next_try(&self, now: Timestamp, unit: UnitId, kind: OutcomeKind) -> NextTry {
        let (Some(job), Some(spec)) = (self.jobs.get(&unit.job), self.spec_of_job(unit.job)) else {
            return NextTry::Never;
        };
        let Some(attempt) = self.attempt(unit) else { return NextTry::Never };
        if job.closing.is_some() || attempt.stop == Some(StopReason::Cancelled) {
            return NextTry::Never;
        }
        let worth = |on: RetryOn| {
            spec.retry.on.contains(&on)
                && (attempt.failures + 1 < spec.retry.max_attempts || Mutant::RetryFailuresFreely.is_on())
        };
        let again = match kind {
            OutcomeKind::Succeeded | OutcomeKind::Cancelled => false,
            OutcomeKind::Preempted | OutcomeKind::Drained => return NextTry::Now,
            OutcomeKind::NotStarted => {
                let returns = attempt.returns.saturating_add(1);
                return now_or_later(
                    now,
                    returns.saturating_sub(RETURNS_AT_ONCE),
                    RETURN_BACKOFF_MS,
                    &spec.retry,
                );
            }
            OutcomeKind::NodeLost | OutcomeKind::LeaseEnded => {
                let NodeLosses(most) = spec.retry.max_node_losses;
                if attempt.losses >= most {
                    return NextTry::Never;
                }
                return now_or_later(now, attempt.losses, LOSS_BACKOFF_MS, &spec.retry);
            }
            OutcomeKind::Failed | OutcomeKind::OutOfMemory => worth(RetryOn::Failed),
            OutcomeKind::TimedOut => worth(RetryOn::TimedOut),
            OutcomeKind::StartFailed => worth(RetryOn::StartFailed),
            OutcomeKind::Vanished | OutcomeKind::Abandoned => worth(RetryOn::Unknown),
        };
        if !again {
            return NextTry::Never;
        }
        let (first, longest) = (spec.retry.backoff_ms, spec.retry.backoff_max_ms);
        let wait = doubled(Duration::from_millis(first), attempt.failures, Duration::from_millis(longest));
        NextTry::At(now.plus_ms(wait.as_millis() as u64))
    }

    pub(super) fn spec_of_job(&self, job: JobId) -> Option<&Arc<JobSpec>> {
        Some(&self.specs.get(&self.jobs.get(&job)?.spec)?.spec)
    }
}

/// Attempts in a row that may be returned without a start before the unit backs off: one comes late now and then.
const RETURNS_AT_ONCE: u32 = 3;
/// Shortest back-off of a unit whose attempts are returned, in milliseconds.
const RETURN_BACKOFF_MS: u64 = 500;
/// Shortest back-off of a unit that has lost its node or lease more than once, in milliseconds.
const LOSS_BACKOFF_MS: u64 = 1_000;
/// Least bound of these back-offs, in milliseconds.
const EVICTION_BACKOFF_MS_MAX: u64 = 60_000;

/// The next attempt of a unit that was evicted: at once, or after a back-off that doubles with each of `times`.
fn now_or_later(now: Timestamp, times: u32, least_ms: u64, retry: &RetryPolicy) -> NextTry {
    let Some(doublings) = times.checked_sub(1) else { return NextTry::Now };
    let first = Duration::from_millis(retry.backoff_ms.max(least_ms));
    let longest = Duration::from_millis(retry.backoff_max_ms.max(EVICTION_BACKOFF_MS_MAX));
    NextTry::Later(now.plus_ms(doubled(first, doublings, longest).as_millis() as u64))
}

/// What a batch has brought up so far.
#[derive(Default)]
struct Batch<'a> {
    events: Vec<Event>,
    names: BTreeSet<(QueueId, String)>,
    /// How many of its jobs depend on each job.
    dependents: BTreeMap<JobId, usize>,
    specs: BTreeSet<SpecId>,
    /// The spec before: batches are often alike, and comparing is cheaper than hashing.
    last: Option<(&'a JobSpec, QueueId, SpecId)>,
}

/// A spec with the defaults of its queue.
pub(super) struct Interned {
    pub(super) id: SpecId,
    pub(super) body: JobSpec,
}

/// The end of a job of which so many units did not succeed.
pub(super) fn end_of_units(failed: u32) -> JobEnd {
    if failed > 0 { JobEnd::Failed } else { JobEnd::Succeeded }
}

fn end_of(why: Closing) -> JobEnd {
    match why {
        Closing::Cancelled => JobEnd::Cancelled,
        Closing::Failed => JobEnd::Failed,
    }
}

/// Nodes whose devices are looked at for a hint, and models that one names.
const HINT_NODES_MAX: usize = 2_048;
const HINT_MODELS_MAX: usize = 8;
/// Misspelt device models of one job that get a hint.
const HINTS_MAX: usize = 2;

/// The outcome that a stopped attempt ends with, if it ended because of the stop.
pub(super) fn outcome_of_stop(reason: StopReason) -> OutcomeKind {
    match reason {
        StopReason::Cancelled | StopReason::JobFailed | StopReason::Orphaned => OutcomeKind::Cancelled,
        StopReason::TimedOut => OutcomeKind::TimedOut,
        StopReason::Drained => OutcomeKind::Drained,
        StopReason::StartLimit => OutcomeKind::StartFailed,
        StopReason::Abandoned => OutcomeKind::Abandoned,
    }
}
