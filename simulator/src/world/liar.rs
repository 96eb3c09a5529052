//! An agent that lies about its pool. It may harm its own pool's work, nobody else's.

use rand::RngExt;
use weir::model::attempt::{AttemptReport, AttemptStatus, Outcome, OutcomeKind};
use weir::model::exchange::{FromAgent, Inventory, Part};
use weir::model::id::{AttemptId, Epoch, JobId};
use weir::model::time::Timestamp;

use super::World;
use super::schedule::Lie;

impl World {
    /// The agent says what isn't so, on its own connection.
    pub(crate) fn lie(&mut self, agent: usize, lie: Lie) -> Result<(), String> {
        let pool = self.journal.replica.pool_named(&self.agents[agent].hello.pool.name);
        let Some((pool, epoch)) = pool.map(|pool| (pool.id, pool.epoch)) else { return Ok(()) };
        match lie {
            Lie::Capacity => {
                let mut nodes = self.agents[agent].backend.nodes.clone();
                for node in &mut nodes {
                    node.allocatable.cpu_millis = self.liar.random_range(0..64_000);
                    node.devices.truncate(self.liar.random_range(0..5));
                }
                let inventory = Inventory { epoch, part: Part::Delta, nodes, removed: Vec::new() };
                self.send_to_broker(agent, FromAgent::Inventory(inventory));
            }
            Lie::OthersAttempts => {
                let others = self.journal.replica.attempts().filter(|attempt| attempt.pool != pool);
                let others: Vec<AttemptId> =
                    others.map(|attempt| attempt.id(self.journal.replica.journal())).collect();
                self.report_lies(agent, epoch, others);
            }
            Lie::Success => {
                let own = self.journal.replica.attempts().filter(|attempt| attempt.pool == pool);
                let own: Vec<AttemptId> =
                    own.map(|attempt| attempt.id(self.journal.replica.journal())).collect();
                self.report_lies(agent, epoch, own);
            }
            Lie::OldReports => {
                let kept: Vec<FromAgent> = self.agents[agent].sent.iter().cloned().collect();
                for message in kept.into_iter().filter(|message| !matches!(message, FromAgent::Hello(_))) {
                    self.send_to_broker(agent, message);
                }
            }
            Lie::Inventions => {
                let journal = self.journal.replica.journal();
                let job = JobId(self.liar.random_range(0..=self.journal.replica.next_job().0 + 3));
                let (unit, number) = (self.liar.random_range(0..4), self.liar.random_range(1..5));
                self.report_lies(agent, epoch, vec![AttemptId { journal, job, unit, number }]);
            }
        }
        Ok(())
    }

    fn report_lies(&mut self, agent: usize, epoch: Epoch, attempts: Vec<AttemptId>) {
        let now = Timestamp(self.now);
        let end = self.journal.replica.revision().0;
        let mut reports = Vec::new();
        for attempt in attempts.into_iter().take(8) {
            let status = match self.liar.random_range(0..4) {
                0 => AttemptStatus::Starting,
                1 => AttemptStatus::Running { started_at: now },
                _ => {
                    let outcome = Outcome::plain(OutcomeKind::Succeeded, "");
                    AttemptStatus::Ended { started_at: None, ended_at: now, outcome }
                }
            };
            // Anything up to what this journal never had.
            let ordered_revision = weir::model::id::Revision(self.liar.random_range(0..=end * 2));
            reports.push(AttemptReport { attempt, ordered_revision, status });
        }
        if !reports.is_empty() {
            self.send_to_broker(agent, FromAgent::Observed { epoch, part: Part::Delta, reports });
        }
    }
}
