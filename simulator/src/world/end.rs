//! Convergence, and the invariants that are checked after it.

use weir::broker::Broker;
use weir::model::attempt::AttemptStatus;
use weir::model::id::{AttemptId, JobId};
use weir::state::job::JobEnd;

use super::World;

impl World {
    /// The system has converged: every acknowledged job has ended or fits no pool, all agents are connected,
    /// and all state is durable.
    pub(crate) fn converged(&self) -> bool {
        let Some(broker) = self.writer().and_then(|host| self.brokers[host].machine.as_ref()) else {
            return false;
        };
        let state = broker.state();
        let up = self.agents.iter().all(|host| host.machine.as_ref().is_some_and(|machine| machine.is_up()));
        // One seed in sixteen continues until every request token has expired.
        let tokens_expired = !self.seed.is_multiple_of(16) || state.tokens().is_empty();
        up && tokens_expired
            && self.client.is_idle()
            && state.attempts().next().is_none()
            && self.agents.iter().all(|host| host.backend.live().next().is_none())
            && broker.durable() == state.revision()
            && broker.durable() == self.journal.replica.revision()
            && state.jobs_from(JobId(0)).all(|job| self.never_fits(broker, job.id))
    }

    /// The job waits only because it fits no pool, or because it depends on a live job.
    fn never_fits(&self, broker: &Broker, id: JobId) -> bool {
        let state = broker.state();
        let Some(view) = state.job_view(id) else { return true };
        let depends_on_live = view.spec.depends_on.iter().any(|edge| state.job(edge.job).is_some());
        let waits = |group: &usize| state.job(id).is_some_and(|job| !job.groups[*group].waiting.is_empty());
        depends_on_live
            || (0..view.spec.unit_group_count()).filter(waits).all(|group| {
                let shape = weir::model::shape::Shape::of(&view.spec, group);
                !broker.scheduler().could_ever_fit(state, &shape)
            })
    }

    /// Checks the invariants that hold after convergence.
    pub(crate) fn check_end(&mut self) -> Result<(), String> {
        let Some(host) = self.writer() else { return Err("no broker".to_owned()) };
        let Some(broker) = &self.brokers[host].machine else { return Err("no broker".to_owned()) };
        broker.state().check()?;
        for job in &self.client.acknowledged {
            let live = broker.state().job(*job).is_some();
            let ended = self.journal.history.jobs.get(job).is_some_and(|job| job.end.is_some());
            if live == ended {
                let how = if live { "both live and ended" } else { "lost" };
                return Err(format!("acknowledged job {job} is {how}"));
            }
        }
        self.check_runs()?;
        self.check_vanished()?;
        self.journal.recover().map(drop)
    }

    /// An attempt that succeeded at its backend must not be recorded as lost.
    fn check_vanished(&self) -> Result<(), String> {
        let journal = self.journal.replica.journal();
        for (job, record) in &self.journal.history.jobs {
            for (unit, record) in record.units.iter().enumerate() {
                for number in &record.vanished {
                    let attempt = AttemptId { journal, job: *job, unit: unit as u32, number: *number };
                    let succeeded = self.agents.iter().any(|host| host.backend.succeeded.contains(&attempt));
                    let byzantine = self.schedule.byzantine.is_some();
                    if succeeded && !byzantine && !self.stale_copy_outcomes.contains(&attempt.unit_id()) {
                        return Err(format!("{attempt} succeeded and is recorded as lost"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Every unit of a job that succeeded must have succeeded at a backend, exactly once.
    fn check_runs(&self) -> Result<(), String> {
        let journal = self.journal.replica.journal();
        for (job, record) in
            self.journal.history.jobs.iter().filter(|(_, job)| job.end == Some(JobEnd::Succeeded))
        {
            for (number, unit) in record.units.iter().enumerate() {
                let [attempt] = unit.succeeded[..] else {
                    // A job may allow some of its units to fail.
                    if unit.succeeded.is_empty() {
                        continue;
                    }
                    return Err(format!(
                        "unit {number} of job {job} succeeds {} times",
                        unit.succeeded.len()
                    ));
                };
                let unit_id = AttemptId { journal, job: *job, unit: number as u32, number: attempt };
                let of_unit = |id: &AttemptId| id.unit_id() == unit_id.unit_id();
                let correct = self.agents.iter().enumerate().filter(|(index, _)| !self.is_byzantine(*index));
                let runs =
                    correct.map(|(_, host)| host.backend.succeeded.iter().filter(|id| of_unit(id)).count());
                let runs: usize = runs.sum();
                let lost = self.stale_copy_outcomes.contains(&unit_id.unit_id());
                if runs > 1 && !unit.has_unknown_outcome && !lost {
                    return Err(format!("unit {number} of job {job} succeeded {runs} times at backends"));
                }
                let succeeded = self.agents.iter().any(|host| host.backend.succeeded.contains(&unit_id));
                let byzantine = self.schedule.byzantine.is_some_and(|agent| {
                    let pool = unit.pool.and_then(|pool| self.journal.history.pools.get(&pool));
                    pool == Some(&self.agents[agent].hello.pool.name)
                });
                if !succeeded && !byzantine {
                    return Err(format!(
                        "{unit_id} is recorded as succeeded and did not succeed at its backend"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What has not converged, for the message of a violation.
    pub(crate) fn leftovers(&self) -> String {
        let Some(broker) = self.writer().and_then(|host| self.brokers[host].machine.as_ref()) else {
            return "the broker is down".to_owned();
        };
        let state = broker.state();
        let attempts: Vec<String> = state
            .attempts()
            .take(3)
            .map(|attempt| format!("{} {:?} in {}", attempt.id(state.journal()), attempt.phase, attempt.pool))
            .collect();
        let jobs: Vec<String> = state
            .jobs_from(JobId(0))
            .filter(|job| !self.never_fits(broker, job.id))
            .take(3)
            .map(|job| {
                let shape = state.class_of(job, 0).and_then(|class| state.shape(class.shape));
                let why = shape.map(|shape| broker.scheduler().why(state, shape));
                let reasons: Vec<String> =
                    why.iter().flat_map(|why| &why.pools).map(|p| format!("{:?}", p.reason)).collect();
                format!("job {} closing {:?} {:?}: {reasons:?}", job.id, job.closing, job.groups)
            })
            .collect();
        let up = |host: &&super::AgentHost| host.machine.as_ref().is_some_and(|machine| machine.is_up());
        let running: Vec<String> = self
            .agents
            .iter()
            .flat_map(|host| host.backend.live())
            .map(|(attempt, object)| {
                format!("{attempt} {}", matches!(object.status, AttemptStatus::Starting))
            })
            .take(3)
            .collect();
        format!(
            "{} of {} agents up, idle clients {}, durable {} of {}, read-only {:?}, attempts {attempts:?}, at backends {running:?}, jobs {jobs:?}",
            self.agents.iter().filter(up).count(),
            self.agents.len(),
            self.client.is_idle(),
            broker.durable(),
            state.revision(),
            broker.outdated(),
        )
    }
}
