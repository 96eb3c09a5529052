//! Byzantine agent: sends false reports about its pool (Lamport, Shostak and Pease, The Byzantine Generals
//! Problem, TOPLAS 1982). It may harm the work of its own pool, but of no other.

use rand::RngExt;
use weir::model::attempt::{AttemptReport, AttemptStatus, Outcome, OutcomeKind};
use weir::model::exchange::{FromAgent, Inventory, Part};
use weir::model::id::{AttemptId, Epoch, JobId};
use weir::model::time::Timestamp;

use super::World;
use super::schedule::FalseReport;

impl World {
    /// Sends a false report on the agent's own connection.
    pub(crate) fn send_false_report(&mut self, agent: usize, report: FalseReport) -> Result<(), String> {
        let pool = self.journal.replica.pool_named(&self.agents[agent].hello.pool.name);
        let Some((pool, epoch)) = pool.map(|pool| (pool.id, pool.epoch)) else { return Ok(()) };
        match report {
            FalseReport::Capacity => {
                let mut nodes = self.agents[agent].backend.nodes.clone();
                for node in &mut nodes {
                    node.allocatable.cpu_millis = self.byzantine.random_range(0..64_000);
                    node.devices.truncate(self.byzantine.random_range(0..5));
                }
                let inventory = Inventory { epoch, part: Part::Delta, nodes, removed: Vec::new() };
                self.send_to_broker(agent, FromAgent::Inventory(inventory));
            }
            FalseReport::OthersAttempts => {
                let others = self.journal.replica.attempts().filter(|attempt| attempt.pool != pool);
                let others: Vec<AttemptId> =
                    others.map(|attempt| attempt.id(self.journal.replica.journal())).collect();
                self.report_random_status(agent, epoch, others);
            }
            FalseReport::OwnAttempts => {
                let own = self.journal.replica.attempts().filter(|attempt| attempt.pool == pool);
                let own: Vec<AttemptId> =
                    own.map(|attempt| attempt.id(self.journal.replica.journal())).collect();
                self.report_random_status(agent, epoch, own);
            }
            FalseReport::RepeatedMessages => {
                let sent: Vec<FromAgent> = self.agents[agent].sent.iter().cloned().collect();
                for message in sent.into_iter().filter(|message| !matches!(message, FromAgent::Hello(_))) {
                    self.send_to_broker(agent, message);
                }
            }
            FalseReport::UnknownAttempt => {
                let journal = self.journal.replica.journal();
                let job = JobId(self.byzantine.random_range(0..=self.journal.replica.next_job().0 + 3));
                let (unit, number) = (self.byzantine.random_range(0..4), self.byzantine.random_range(1..5));
                self.report_random_status(agent, epoch, vec![AttemptId { journal, job, unit, number }]);
            }
        }
        Ok(())
    }

    /// Reports a random status and revision for up to eight attempts.
    fn report_random_status(&mut self, agent: usize, epoch: Epoch, attempts: Vec<AttemptId>) {
        let now = Timestamp(self.now);
        let end = self.journal.replica.revision().0;
        let mut reports = Vec::new();
        for attempt in attempts.into_iter().take(8) {
            let status = match self.byzantine.random_range(0..4) {
                0 => AttemptStatus::Starting,
                1 => AttemptStatus::Running { started_at: now },
                _ => {
                    let outcome = Outcome::plain(OutcomeKind::Succeeded, "");
                    AttemptStatus::Ended { started_at: None, ended_at: now, outcome }
                }
            };
            // Up to twice the journal's last revision.
            let ordered_revision = weir::model::id::Revision(self.byzantine.random_range(0..=end * 2));
            reports.push(AttemptReport { attempt, ordered_revision, status });
        }
        if !reports.is_empty() {
            self.send_to_broker(agent, FromAgent::Observed { epoch, part: Part::Delta, reports });
        }
    }
}
