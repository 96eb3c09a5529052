//! Turns a command into events or a rejection. Reads the state, changes nothing.

mod capacity;
mod change;
mod due_action;
mod job;
mod place;
mod pool;
mod queue;
mod report;

use super::State;
use super::command::{Command, Request};
use super::event::Event;
use super::rejection::Rejection;
use super::token::{TokenEntry, TokenReply};
use crate::model::id::{Epoch, JobId, NodeId, PoolId, Revision, UnitId};
use crate::model::limit::{PROFILE_ENTRIES_MAX, TOKEN_RETENTION_MS};
use crate::model::mutant::Mutant;
use crate::model::time::Timestamp;

pub use due_action::DUE_ACTIONS_MAX;

/// What a command leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub events: Vec<Event>,
    pub reply: Reply,
}

/// The reply to the caller once the events are durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    /// Jobs with consecutive numbers.
    Submitted {
        first: JobId,
        count: u32,
    },
    Session {
        pool: PoolId,
        epoch: Epoch,
    },
    /// Numbers of the nodes that an inventory named, in its order.
    Nodes(Vec<NodeId>),
    /// The report concerns an attempt that is not live here.
    Orphaned,
    /// The report concerns something else than the live attempt of this name.
    StaleId,
}

impl Decision {
    fn done(events: Vec<Event>) -> Self {
        Self { events, reply: Reply::Done }
    }
}

impl State {
    /// Decides what a request leads to.
    ///
    /// # Errors
    /// The [`Rejection`]; nothing has happened then.
    pub fn decide(&self, now: Timestamp, request: &Request) -> Result<Decision, Rejection> {
        if let Some(token) = &request.token
            && let Some(entry) = self.tokens.get(&token.key)
        {
            if entry.fingerprint != token.fingerprint {
                return Err(Rejection::TokenReused);
            }
            let reply = match entry.reply {
                TokenReply::Jobs { first, count } => Reply::Submitted { first, count },
                TokenReply::Done => Reply::Done,
            };
            return Ok(Decision { events: Vec::new(), reply });
        }
        if let Some(made_at) = request.token.and_then(|token| token.made_at)
            && made_at.plus_ms(TOKEN_RETENTION_MS) <= now
        {
            return Err(Rejection::TokenExpired { made_at });
        }
        let mut decision = self.decide_command(now, &request.command)?;
        if let Some(token) = request.token.as_ref().filter(|_| !Mutant::ForgetTokens.is_on()) {
            let reply = match decision.reply {
                Reply::Submitted { first, count } => TokenReply::Jobs { first, count },
                _ => TokenReply::Done,
            };
            let entry = TokenEntry { at: now, fingerprint: token.fingerprint, reply };
            decision.events.push(Event::TokenUsed { key: token.key, entry });
        }
        Ok(decision)
    }

    fn decide_command(&self, now: Timestamp, command: &Command) -> Result<Decision, Rejection> {
        match command {
            Command::StartTerm { journal, key, writer_session, term } => {
                self.decide_term(*journal, *key, *writer_session, *term)
            }
            Command::UpdateWorkloadProfile { profile: None } => {
                Ok(Decision::done(vec![Event::WorkloadProfileConfirmed]))
            }
            Command::UpdateWorkloadProfile { profile: Some(profile) }
                if profile.entries.len() > PROFILE_ENTRIES_MAX =>
            {
                Err(Rejection::LimitReached {
                    what: "entries of a workload profile",
                    max: PROFILE_ENTRIES_MAX,
                })
            }
            Command::UpdateWorkloadProfile { profile: Some(profile) } => {
                Ok(Decision::done(vec![Event::WorkloadProfileUpdated { profile: profile.clone() }]))
            }
            Command::Submit { jobs } => self.decide_submit(jobs),
            Command::Cancel { jobs, reason } => self.decide_cancel(jobs, reason),
            Command::CancelUnits { job, units } => self.decide_cancel_units(*job, units),
            Command::UpdateJob { job, based_on, change } => self.decide_update_job(*job, *based_on, change),
            Command::CreateQueue { spec } => self.decide_create_queue(spec),
            Command::UpdateQueue { spec, based_on } => self.decide_update_queue(spec, *based_on),
            Command::DeleteQueue { name, based_on } => self.decide_delete_queue(name, *based_on),
            Command::DeletePool { name, based_on } => self.decide_delete_pool(name, *based_on),
            Command::CordonPool { pool, cordoned } => self.decide_cordon_pool(*pool, *cordoned),
            Command::DrainPool { pool, mode, deadline_ms } => {
                self.decide_drain(now, *pool, *mode, *deadline_ms)
            }
            Command::CordonNode { pool, node, cordoned } => self.decide_cordon_node(*pool, *node, *cordoned),
            Command::Abandon { attempt } => self.decide_abandon(now, *attempt),
            Command::SetPrices { pool, valid_from, schedule } => {
                self.decide_set_prices(now, *pool, *valid_from, schedule)
            }
            Command::SetLink { link } => self.decide_set_link(link),
            Command::Reserve { reservation } => self.decide_reserve(now, reservation),
            Command::EndReservation { reservation } => self.decide_end_reservation(*reservation),
            Command::OpenSession { hello } => self.decide_session(hello),
            Command::ReportNodes { pool, inventory } => self.decide_nodes(*pool, inventory),
            Command::RemoveNodes { pool, nodes } => Ok(self.decide_remove_nodes(*pool, nodes)),
            Command::ReportAttempt { pool, epoch, report } => self.decide_report(now, *pool, *epoch, report),
            Command::ChangeConnectivity { pool, connectivity } => {
                self.decide_connectivity(*pool, *connectivity)
            }
            Command::RecordRound { plan } => Ok(Decision::done(vec![Event::RoundPlanned {
                policy: plan.policy.name().into(),
                version: crate::model::plan::Policy::VERSION,
                based_on: plan.based_on,
                budget: plan.budget,
                cursor: plan.cursor,
            }])),
            Command::Start { start } => self.decide_start(now, start),
            Command::DueAction(due_action) => self.decide_due_action(now, *due_action),
        }
    }

    fn pool_or_reject(&self, id: PoolId) -> Result<&super::pool::Pool, Rejection> {
        self.pool(id).ok_or_else(|| Rejection::NotFound { kind: "pool", name: id.to_string() })
    }
}

/// An attempt ends: the events of the attempt and of what follows for its job.
struct Ending {
    unit: UnitId,
    ended: super::event::EndedAttempt,
}

/// Checks that `based_on` is what the caller saw; 0 stands for anything.
fn check_revision(
    kind: &'static str,
    name: &str,
    current: Revision,
    based_on: Revision,
) -> Result<(), Rejection> {
    if based_on == Revision(0) || based_on == current {
        return Ok(());
    }
    Err(Rejection::Conflict { kind, name: name.to_owned(), current, based_on })
}
