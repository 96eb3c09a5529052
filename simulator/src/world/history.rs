//! Reference model of the journal: a second and simpler implementation of the rules for the order of events.
//!
//! It shares no code with `State::apply`. It stores each unit of each job separately, and each event must be
//! a legal transition of the job and unit that it names.

use std::collections::BTreeMap;

use weir::model::attempt::{OutcomeKind, Phase, StopReason};
use weir::model::id::{AttemptId, Epoch, JobId, PoolId, QueueId, Revision, SpecId, Term, UnitId};
use weir::model::interval::IntervalSet;
use weir::model::spec::OnUnitFailure;
use weir::model::time::Timestamp;
use weir::state::event::{Event, EventRecord, NextTry, OrderedAttempt};
use weir::state::job::{Closing, JobEnd};

/// State derived from the events alone.
#[derive(Default)]
pub(crate) struct History {
    revision: Revision,
    at: Timestamp,
    term: Term,
    epochs: BTreeMap<PoolId, Epoch>,
    /// Names of all pools, also of deleted ones.
    pub(crate) pools: BTreeMap<PoolId, String>,
    specs: BTreeMap<SpecId, Spec>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
}

#[derive(Clone, Copy)]
struct Spec {
    units: u32,
    failures_max: u32,
    losses_max: u32,
    failed_units_max: u32,
}

/// A job with each of its units.
pub(crate) struct Job {
    queue: QueueId,
    spec: Spec,
    held: bool,
    closing: Option<Closing>,
    pub(crate) end: Option<JobEnd>,
    pub(crate) units: Vec<Unit>,
}

/// A unit with the results of its attempts.
#[derive(Clone, Default)]
pub(crate) struct Unit {
    state: UnitState,
    attempts: u32,
    failures: u32,
    losses: u32,
    /// Its attempt was stopped because a user cancelled it: it gets no other.
    is_cancelled: bool,
    /// Numbers of the attempts that are recorded as succeeded.
    pub(crate) succeeded: Vec<u32>,
    /// Pool of the latest attempt.
    pub(crate) pool: Option<PoolId>,
    /// Numbers of the attempts that are recorded as vanished.
    pub(crate) vanished: Vec<u32>,
    /// The outcome of at least one attempt is unknown.
    pub(crate) has_unknown_outcome: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum UnitState {
    #[default]
    Waiting,
    BackingOff,
    Live(Phase),
    Ended(OutcomeKind),
}

impl History {
    /// Applies the next event.
    ///
    /// # Errors
    /// If the event is not a legal transition.
    pub(crate) fn apply(&mut self, record: &EventRecord) -> Result<(), String> {
        if record.revision.0 != self.revision.0 + 1 {
            return Err(format!("revision {} follows {}", record.revision, self.revision));
        }
        if record.at < self.at {
            return Err(format!("revision {}: time goes back from {}", record.revision, self.at));
        }
        (self.revision, self.at) = (record.revision, record.at);
        self.step(&record.event).map_err(|what| format!("revision {}: {what}", record.revision))
    }

    /// The attempt was ordered, at any time.
    pub(crate) fn was_ordered(&self, attempt: AttemptId) -> bool {
        let unit = self.jobs.get(&attempt.job).and_then(|job| job.units.get(attempt.unit as usize));
        unit.is_some_and(|unit| (1..=unit.attempts).contains(&attempt.number))
    }

    fn step(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::TermStarted { term } => {
                if *term <= self.term {
                    return Err(format!("term {term} follows {}", self.term));
                }
                self.term = *term;
            }
            Event::SessionOpened { pool, epoch } => {
                let before = self.epochs.insert(*pool, *epoch).unwrap_or_default();
                if *epoch <= before {
                    return Err(format!("epoch {epoch} of pool {pool} follows {before}"));
                }
            }
            Event::SpecAdded { spec, body } => {
                let failed_units_max = match body.on_unit_failure {
                    OnUnitFailure::FailJob => 0,
                    OnUnitFailure::Continue { max_failed } => max_failed,
                };
                let (units, failures_max) = (body.unit_count(), body.retry.max_attempts);
                let losses_max = body.retry.max_node_losses.0;
                self.specs.insert(*spec, Spec { units, failures_max, losses_max, failed_units_max });
            }
            Event::JobSubmitted { job, queue, spec, .. } => self.submit(*job, *queue, *spec)?,
            Event::PoolRegistered { pool, spec, .. } => self.register_pool(*pool, &spec.name)?,
            Event::PoolDeleted { pool, .. } => self.delete_pool(*pool)?,
            Event::QueueDeleted { queue, .. } => self.delete_queue(*queue)?,
            Event::JobUpdated { job, held, .. } => self.open_job(*job)?.held = *held,
            Event::UnitsCancelled { job, units } => self.cancel_units(*job, units)?,
            Event::JobClosing { job, why, .. } => {
                let job = self.open_job(*job)?;
                if job.closing.replace(*why).is_some() {
                    return Err("a closing job closes again".to_owned());
                }
            }
            Event::JobEnded { job, end } => self.end_job(*job, *end)?,
            Event::AttemptOrdered { order } => self.order(order)?,
            Event::AttemptStarting { unit } => {
                self.unit(*unit)?
                    .transition(UnitState::Live(Phase::Ordered), UnitState::Live(Phase::Starting))?;
            }
            Event::AttemptRunning { unit, .. } => {
                let unit = self.unit(*unit)?;
                let from = match unit.state {
                    UnitState::Live(Phase::Ordered) => UnitState::Live(Phase::Ordered),
                    _ => UnitState::Live(Phase::Starting),
                };
                unit.transition(from, UnitState::Live(Phase::Running))?;
            }
            Event::AttemptStopping { unit, reason } => {
                let unit = self.unit(*unit)?;
                unit.is_cancelled |= *reason == StopReason::Cancelled;
                match unit.state {
                    UnitState::Live(Phase::Ordered | Phase::Starting | Phase::Running) => {
                        unit.state = UnitState::Live(Phase::Stopping);
                    }
                    state => return Err(format!("a unit that is {state:?} is stopped")),
                }
            }
            Event::AttemptEnded { unit, ended } => {
                let job = self.open_job(unit.job)?;
                let (spec, closing) = (job.spec, job.closing.is_some());
                let unit = job.unit(*unit)?;
                let is_final = closing || unit.is_cancelled;
                unit.end_attempt(ended.outcome.kind, ended.next, spec, is_final)?;
            }
            Event::UnitReleased { unit } => {
                self.unit(*unit)?.transition(UnitState::BackingOff, UnitState::Waiting)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn register_pool(&mut self, id: PoolId, name: &str) -> Result<(), String> {
        match self.pools.insert(id, name.to_owned()) {
            Some(_) => Err(format!("pool {id} is registered again")),
            None => Ok(()),
        }
    }

    fn delete_pool(&self, id: PoolId) -> Result<(), String> {
        let mut units = self.jobs.values().flat_map(|job| &job.units);
        if units.any(|unit| unit.pool == Some(id) && matches!(unit.state, UnitState::Live(_))) {
            return Err(format!("pool {id} is deleted with a live attempt"));
        }
        Ok(())
    }

    fn delete_queue(&self, id: QueueId) -> Result<(), String> {
        if self.jobs.values().any(|job| job.queue == id && job.end.is_none()) {
            return Err(format!("queue {id} is deleted with a job that has not ended"));
        }
        Ok(())
    }

    fn submit(&mut self, id: JobId, queue: QueueId, spec: SpecId) -> Result<(), String> {
        if let Some((last, _)) = self.jobs.last_key_value()
            && id <= *last
        {
            return Err(format!("job {id} follows {last}"));
        }
        let spec = *self.specs.get(&spec).ok_or(format!("job {id} has a spec that was not added"))?;
        let units = vec![Unit::default(); spec.units as usize];
        self.jobs.insert(id, Job { queue, spec, held: false, closing: None, end: None, units });
        Ok(())
    }

    fn cancel_units(&mut self, id: JobId, units: &IntervalSet) -> Result<(), String> {
        let job = self.open_job(id)?;
        for unit in units.iter() {
            let unit = job.unit(UnitId { job: id, unit })?;
            match unit.state {
                UnitState::Waiting | UnitState::BackingOff => {
                    unit.state = UnitState::Ended(OutcomeKind::Cancelled);
                }
                UnitState::Live(Phase::Stopping) => unit.is_cancelled = true,
                state => return Err(format!("a unit that is {state:?} is cancelled")),
            }
        }
        Ok(())
    }

    fn order(&mut self, order: &OrderedAttempt) -> Result<(), String> {
        let job = self.open_job(order.unit.job)?;
        if job.closing.is_some() {
            return Err(format!("{:?} of a closing job is ordered", order.unit));
        }
        if job.held {
            return Err(format!("{:?} of a held job is ordered", order.unit));
        }
        let unit = job.unit(order.unit)?;
        unit.transition(UnitState::Waiting, UnitState::Live(Phase::Ordered))?;
        unit.attempts += 1;
        unit.pool = Some(order.pool);
        if order.number != unit.attempts {
            return Err(format!("attempt {} is ordered as {}", unit.attempts, order.number));
        }
        Ok(())
    }

    fn open_job(&mut self, id: JobId) -> Result<&mut Job, String> {
        let job = self.jobs.get_mut(&id).ok_or(format!("job {id} is unknown"))?;
        if job.end.is_some() { Err(format!("job {id} has ended")) } else { Ok(job) }
    }

    fn unit(&mut self, id: UnitId) -> Result<&mut Unit, String> {
        self.open_job(id.job)?.unit(id)
    }

    fn end_job(&mut self, id: JobId, end: JobEnd) -> Result<(), String> {
        let job = self.open_job(id)?;
        let count = |test: fn(&UnitState) -> bool| job.units.iter().filter(|unit| test(&unit.state)).count();
        if count(|state| matches!(state, UnitState::Live(_))) > 0 {
            return Err(format!("job {id} ends with live attempts"));
        }
        let legal = match (end, job.closing) {
            (JobEnd::Cancelled, Some(Closing::Cancelled)) | (JobEnd::Failed, Some(Closing::Failed)) => true,
            (JobEnd::Succeeded | JobEnd::Failed, None) => {
                let ended = count(|state| matches!(state, UnitState::Ended(_)));
                let succeeded = count(|state| matches!(state, UnitState::Ended(OutcomeKind::Succeeded)));
                let failed = ended - succeeded;
                let all_ended = ended == job.units.len() && failed <= job.spec.failed_units_max as usize;
                all_ended && (end == JobEnd::Succeeded) == (failed == 0)
            }
            _ => false,
        };
        if !legal {
            return Err(format!("job {id}, closing {:?}, ends {end:?}", job.closing));
        }
        job.end = Some(end);
        Ok(())
    }
}

impl Job {
    /// The job is neither closing nor ended.
    pub(crate) fn is_open(&self) -> bool {
        self.closing.is_none() && self.end.is_none()
    }

    fn unit(&mut self, id: UnitId) -> Result<&mut Unit, String> {
        self.units.get_mut(id.unit as usize).ok_or(format!("{id:?} is not a unit of its job"))
    }
}

impl Unit {
    fn transition(&mut self, from: UnitState, to: UnitState) -> Result<(), String> {
        if self.state != from {
            return Err(format!("a unit that is {:?} becomes {to:?}", self.state));
        }
        self.state = to;
        Ok(())
    }

    fn end_attempt(
        &mut self,
        kind: OutcomeKind,
        next: NextTry,
        spec: Spec,
        is_final: bool,
    ) -> Result<(), String> {
        if !matches!(self.state, UnitState::Live(_)) {
            return Err(format!("an attempt of a unit that is {:?} ends", self.state));
        }
        if kind == OutcomeKind::Succeeded {
            self.succeeded.push(self.attempts);
        }
        if kind == OutcomeKind::Vanished {
            self.vanished.push(self.attempts);
        }
        self.has_unknown_outcome |= kind.is_unknown();
        if is_final && next != NextTry::Never {
            return Err("a unit of a closing job, or a cancelled one, is retried".to_owned());
        }
        self.state = match next {
            NextTry::Never => UnitState::Ended(kind),
            NextTry::Now if kind.is_eviction() || kind == OutcomeKind::LeaseEnded => UnitState::Waiting,
            NextTry::Later(_) if kind.is_node_loss() || kind == OutcomeKind::NotStarted => {
                UnitState::BackingOff
            }
            NextTry::Now | NextTry::Later(_) => {
                return Err(format!("{kind:?} is retried at once and does not count as a failure"));
            }
            NextTry::At(_) if kind == OutcomeKind::Succeeded => {
                return Err("a succeeded unit is retried".to_owned());
            }
            NextTry::At(_) => {
                self.failures += 1;
                UnitState::BackingOff
            }
        };
        let failures_max = spec.failures_max.max(1);
        if self.failures >= failures_max {
            return Err(format!("{} failures of at most {failures_max} attempts", self.failures));
        }
        self.losses += u32::from(kind.is_node_loss());
        let failed = self.state == UnitState::Ended(kind);
        if kind.is_node_loss() && !is_final && failed != (self.losses > spec.losses_max) {
            return Err(format!(
                "{} node losses, {} are allowed: {:?}",
                self.losses, spec.losses_max, self.state
            ));
        }
        Ok(())
    }
}
