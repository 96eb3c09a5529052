//! Invalid and malicious requests of clients: each must be rejected or have no effect.

use rand::{Rng, RngExt};
use weir::broker::{CallId, Input};
use weir::model::attempt::{AttemptReport, AttemptStatus};
use weir::model::exchange::{FromAgent, Hello, Part};
use weir::model::high_water::JournalKey;
use weir::model::id::{AttemptId, Epoch, InstanceId, JobId, JournalId, PoolId, Revision, Term};
use weir::model::pool::Connectivity;
use weir::model::price::PriceSchedule;
use weir::model::queue::default_settings;
use weir::model::spec::{Dependency, DependencyCondition, JobSpec, Simulate, minimal};
use weir::state::command::{Command, Request, Submission};
use weir::state::job::Principal;
use weir::state::token::RequestToken;

use super::World;
use super::event::{BrokerEvent, Event};

/// One in this many seeds fills the price list of a pool to its limit.
const PRICES_FILLED_EVERY: u64 = 128;
/// Price schedules of one pool, more than the broker stores.
const PRICES: u64 = 4_200;

fn submission(name: &str, spec: JobSpec) -> Submission {
    let name = name.to_owned();
    Submission {
        name,
        name_prefix: String::new(),
        queue: String::new(),
        allow_pending: true,
        held: false,
        spec,
    }
}

/// The pool that another agent claims: that of the first agent.
pub(crate) const CLAIMED_POOL: &str = "pool-0";

impl World {
    /// Sends a random invalid request.
    pub(crate) fn send_invalid_request(&mut self) -> Result<(), String> {
        let mut spec = minimal();
        let principal = Principal::Anonymous;
        if self.seed.is_multiple_of(PRICES_FILLED_EVERY) && self.client.fills_prices(self.now) {
            self.fill_prices();
        }
        match self.client.rng.random_range(0..11) {
            0 => {
                spec.groups[0].count = 0;
                self.command(Command::Submit { jobs: vec![submission("", spec)] });
            }
            1 => {
                spec.groups[0].simulate = Some(Simulate { duration_ms: 30_000, exit_code: 0 });
                let jobs = vec![submission("twin", spec.clone()), submission("twin", spec)];
                self.command(Command::Submit { jobs });
            }
            2 => {
                spec.depends_on =
                    vec![Dependency { job: JobId(999_999), condition: DependencyCondition::Any }];
                self.command(Command::Submit { jobs: vec![submission("", spec)] });
            }
            3 => {
                let spec = default_settings("nowhere");
                self.command(Command::UpdateQueue { spec, based_on: Revision(0) });
            }
            4 => {
                let token = Some(RequestToken::new(&principal, "", "token-1", b"something else"));
                let command = Command::Cancel { jobs: Vec::new(), reason: String::new() };
                self.send_only(Request { principal, token, command });
            }
            5 => self.impersonate()?,
            6 => self.report_of_old_epoch()?,
            7 => self.abandon_on_ready_pool(),
            8 => {
                // A UUIDv7 with a timestamp of the year 2022: the token has expired.
                let text = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
                let token = Some(RequestToken::new(&principal, "", text, b"late"));
                let command = Command::Submit { jobs: vec![submission("", spec)] };
                self.send_only(Request { principal, token, command });
            }
            9 => {
                let command = Command::StartTerm {
                    journal: JournalId::from_random(7),
                    key: JournalKey::from_random(7),
                    writer_session: 7,
                    term: Term(0),
                };
                self.send_only(Request { principal, token: None, command });
            }
            _ => {
                let (pool, report) = (PoolId(1), foreign_report());
                let epoch = self.journal.replica.pool(pool).map(|pool| pool.epoch).unwrap_or_default();
                self.send_only(Request {
                    principal,
                    token: None,
                    command: Command::ReportAttempt { pool, epoch, report },
                });
            }
        }
        Ok(())
    }

    /// An agent with another instance id connects under the name of an existing pool.
    fn impersonate(&mut self) -> Result<(), String> {
        // Only after the first registration, which binds the name to its agent.
        let Some(host) = self.writer().filter(|host| !self.brokers[*host].on_stale_copy) else {
            return Ok(());
        };
        if self.brokers[host].paused || self.journal.replica.pool_named(CLAIMED_POOL).is_none() {
            return Ok(());
        }
        let mut hello: Hello = self.agents[0].hello.clone();
        hello.instance = InstanceId(u128::from(self.client.rng.next_u64()));
        let session = self.network.next_session();
        self.broker_step(host, Input::FromAgent { session, message: FromAgent::Hello(hello) })
    }

    /// The first agent sends a report in an old epoch.
    fn report_of_old_epoch(&mut self) -> Result<(), String> {
        let report = foreign_report();
        let message = FromAgent::Observed { epoch: Epoch(0), part: Part::Delta, reports: vec![report] };
        self.send_to_broker(0, message);
        Ok(())
    }

    /// Abandons an attempt of a reachable pool, which is not allowed.
    fn abandon_on_ready_pool(&mut self) {
        let attempt = self.writers_state().and_then(|state| {
            let is_ready =
                |pool: PoolId| state.pool(pool).is_some_and(|pool| pool.connectivity == Connectivity::Ready);
            let attempt = state.attempts().find(|attempt| is_ready(attempt.pool))?;
            Some(attempt.id(state.journal()))
        });
        if let Some(attempt) = attempt {
            // The pool may become unreachable before the request arrives: then the attempt is abandoned.
            self.client.abandoned.insert(attempt);
            self.command(Command::Abandon { attempt });
        }
    }

    /// Sends more price schedules for one pool than the broker stores.
    fn fill_prices(&mut self) {
        let Some((host, now)) = self.writer().zip(self.writers_state().map(weir::state::State::now)) else {
            return;
        };
        let incarnation = self.brokers[host].incarnation;
        for day in 0..PRICES {
            let valid_from = now.plus_ms(1_000_000 + day);
            let schedule = PriceSchedule { currency: "CNY".to_owned(), rates: Vec::new() };
            let command = Command::SetPrices { pool: PoolId(1), valid_from, schedule };
            let request = Request { principal: Principal::Anonymous, token: None, command };
            // All at the same time and in this order: each schedule must begin after the one before.
            let what = BrokerEvent::Request { call: CallId(u64::MAX), request };
            self.after(5, Event::Broker { host, incarnation, what });
        }
    }
}

/// A report on an attempt of another journal.
fn foreign_report() -> AttemptReport {
    AttemptReport {
        attempt: AttemptId { journal: JournalId::from_random(7), job: JobId(1), unit: 0, number: 1 },
        ordered_revision: Revision(1),
        status: AttemptStatus::Starting,
    }
}
