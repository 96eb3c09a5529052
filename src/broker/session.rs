//! Sessions with agents: both sides exchange full sets, then deltas; start orders, stops, acknowledgements.

use std::collections::{BTreeMap, BTreeSet};

use super::{Broker, Effect, SessionId};
use crate::model::attempt::{AttemptReport, AttemptStatus, Phase, StopReason};
use crate::model::exchange::{
    Accepted, FromAgent, Hello, Inventory, Part, RefusedCode, SpecWindow, StartOrder, Stop, TaskStart,
    ToAgent,
};
use crate::model::id::{Epoch, NodeId, PoolId, SpecId, UnitId};
use crate::model::limit::{CHUNK_BYTES_MAX, STOPS_PER_MESSAGE_MAX};
use crate::model::mutant::Mutant;
use crate::model::pool::Connectivity;
use crate::model::spec::JobSpec;
use crate::state::command::Command;
use crate::state::decide::Reply;
use crate::state::event::{Event, EventRecord};
use crate::state::job::Principal;
use crate::state::live::Attempt;
use crate::state::record;
use crate::state::rejection::Rejection;

/// Start orders of a full set that one step sends to one session.
const ORDERS_PER_CHUNK: usize = 128;
/// What one start order takes on the wire besides its spec, roughly: per order and per task.
const ORDER_BYTES: usize = 160;
const TASK_BYTES: usize = 64;

/// The sessions of all agents.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
    /// The session of each pool's active agent.
    pub(super) active: BTreeMap<PoolId, SessionId>,
    /// Sessions that have not been sent their full set of start orders.
    syncing: BTreeSet<SessionId>,
}

/// An agent's connection, from its hello on.
#[derive(Debug)]
struct Session {
    pool: PoolId,
    epoch: Epoch,
    principal: Principal,
    specs: SpecWindow,
    /// Live attempts up to this one have been sent; `None` once all have.
    sent_to: Option<UnitId>,
    /// Nodes of the full inventory that is coming in.
    seen_nodes: BTreeSet<NodeId>,
    nodes_known: bool,
    attempts_known: bool,
}

impl Broker {
    /// Processes a message of an agent.
    pub(super) fn receive(&mut self, id: SessionId, message: FromAgent) {
        let session = self
            .sessions
            .by_id
            .get(&id)
            .map(|session| (session.pool, session.epoch, session.principal.clone()));
        match (message, session) {
            (FromAgent::Hello(hello), None) => self.open_session(id, &hello),
            (FromAgent::Hello(_), Some(_)) => self.refuse(id, RefusedCode::ProtocolError, "a second hello"),
            (_, None) => self.refuse(id, RefusedCode::ProtocolError, "the first message must be a hello"),
            (message, Some((pool, epoch, principal))) => {
                self.note_heartbeat(pool);
                self.make_ready(id);
                match message {
                    FromAgent::Inventory(inventory) => self.take_inventory(id, pool, inventory, principal),
                    FromAgent::Observed { epoch, part, reports } => {
                        self.take_reports(id, pool, epoch, part, reports, &principal);
                    }
                    FromAgent::Heartbeat { epoch: theirs, sequence } if theirs == epoch => {
                        // The answer renews the pool's leases: a deposed writer that has not noticed must not
                        // renew what its successor will treat as ended.
                        let (term, high_water) = (self.term, self.high_water(self.durability.durable));
                        let message = ToAgent::HeartbeatAnswer { term, sequence, now: self.now, high_water };
                        self.hold_until_confirmed(Effect::Direct { session: id, message });
                    }
                    FromAgent::Heartbeat { .. } => self.refuse(id, RefusedCode::Superseded, "an older epoch"),
                    FromAgent::Hello(_) => {}
                }
            }
        }
    }

    fn open_session(&mut self, id: SessionId, hello: &Hello) {
        let bound = self.state.pool_named(&hello.pool.name).is_none_or(|pool| pool.is_bound_to(hello));
        if let Some(high_water) = hello.high_water.filter(|high_water| bound && self.is_missing(high_water)) {
            self.become_read_only(high_water.revision);
        }
        let name: std::sync::Arc<str> = hello.pool.name.as_str().into();
        let principal = Principal::Agent(name);
        let opened = self.command(principal.clone(), Command::OpenSession { hello: hello.clone() });
        let (pool, epoch) = match opened {
            Ok(Reply::Session { pool, epoch }) => (pool, epoch),
            Ok(_) => return,
            Err(rejection) => return self.refuse(id, refused_code(&rejection), &rejection.to_string()),
        };
        if let Some(old) = self.sessions.active.insert(pool, id) {
            self.refuse(old, RefusedCode::Superseded, "a newer session of the pool is active");
        }
        let first = UnitId { job: crate::model::id::JobId(0), unit: 0 };
        let session = Session {
            pool,
            epoch,
            principal,
            specs: SpecWindow::default(),
            sent_to: Some(first),
            seen_nodes: BTreeSet::new(),
            nodes_known: false,
            attempts_known: false,
        };
        self.sessions.by_id.insert(id, session);
        self.sessions.syncing.insert(id);
        self.note_heartbeat(pool);
        let settings = self.state.settings();
        let message = ToAgent::Accepted(Accepted {
            journal: self.state.journal(),
            term: self.term,
            epoch,
            now: self.now,
            heartbeat_ms: settings.heartbeat_ms,
            high_water: self.high_water(self.state.revision()),
        });
        self.hold_until_durable(Effect::Direct { session: id, message });
    }

    pub(super) fn refuse(&mut self, id: SessionId, code: RefusedCode, message: &str) {
        let message = ToAgent::Refused { code, message: message.to_owned() };
        self.out.push(Effect::Direct { session: id, message });
        self.out.push(Effect::CloseSession { session: id });
        self.end_session(id);
    }

    /// Removes a session. Its pool's heartbeats are missing from the last message on.
    pub(super) fn end_session(&mut self, id: SessionId) {
        self.sessions.syncing.remove(&id);
        // While the journal stalls, agents come and go: what can't reach them any more is dropped.
        self.durability.discard(|effect| matches!(effect, Effect::Direct { session, .. } if *session == id));
        if let Some(session) = self.sessions.by_id.remove(&id)
            && self.sessions.active.get(&session.pool) == Some(&id)
        {
            self.sessions.active.remove(&session.pool);
        }
    }

    fn take_inventory(&mut self, id: SessionId, pool: PoolId, inventory: Inventory, principal: Principal) {
        let part = inventory.part;
        let result = self.command(principal.clone(), Command::ReportNodes { pool, inventory });
        let nodes = match result {
            Ok(Reply::Nodes(nodes)) => nodes,
            Ok(_) => return,
            Err(rejection) => return self.refuse(id, refused_code(&rejection), &rejection.to_string()),
        };
        let Some(session) = self.sessions.by_id.get_mut(&id) else { return };
        if part == Part::Delta {
            return;
        }
        session.seen_nodes.extend(nodes);
        if part == Part::FullEnd {
            let seen = std::mem::take(&mut session.seen_nodes);
            session.nodes_known = true;
            let known = self.state.pool(pool).map(|pool| pool.nodes.keys().copied().collect::<Vec<_>>());
            let nodes: Vec<NodeId> =
                known.unwrap_or_default().into_iter().filter(|n| !seen.contains(n)).collect();
            let _ = self.command(principal, Command::RemoveNodes { pool, nodes });
            self.make_ready(id);
        }
    }

    fn take_reports(
        &mut self,
        id: SessionId,
        pool: PoolId,
        epoch: Epoch,
        part: Part,
        reports: Vec<AttemptReport>,
        principal: &Principal,
    ) {
        // First of all: reports of an older session do not count.
        let stale = self.sessions.by_id.get(&id).is_none_or(|session| session.epoch != epoch);
        if stale && !Mutant::TakeOldEpochs.is_on() {
            return self.refuse(id, RefusedCode::Superseded, "an older epoch");
        }
        let (mut stops, mut acknowledged, mut unknown) = (Vec::new(), Vec::new(), None);
        for report in reports {
            let (attempt, ended) = (report.attempt, matches!(report.status, AttemptStatus::Ended { .. }));
            if self.is_unknown_work(&report) {
                // An outcome belongs to the journal that ordered the attempt: until then the agent stores it.
                unknown = unknown.or((!ended).then_some(attempt));
                continue;
            }
            match self.command(principal.clone(), Command::ReportAttempt { pool, epoch, report }) {
                Ok(Reply::StaleId) => {}
                Ok(_) if ended => acknowledged.push(attempt),
                Ok(Reply::Orphaned) => {
                    stops.push(Stop { attempt, reason: StopReason::Orphaned, grace_ms: 0 })
                }
                Ok(_) => {}
                Err(Rejection::ReadOnly { .. }) => return,
                Err(rejection) => return self.refuse(id, refused_code(&rejection), &rejection.to_string()),
            }
        }
        let term = self.term;
        for stops in stops.chunks(STOPS_PER_MESSAGE_MAX) {
            let message = ToAgent::Stops { term, stops: stops.to_vec() };
            self.hold_until_durable(Effect::Direct { session: id, message });
        }
        if !acknowledged.is_empty() {
            let message = ToAgent::Acknowledged { attempts: acknowledged };
            self.hold_until_durable(Effect::Direct { session: id, message });
        }
        if let Some(attempt) = unknown {
            // Until that attempt has ended, the pool gets nothing new, and what it runs is left alone.
            let connectivity = Connectivity::Suspect;
            let _ = self.command(principal.clone(), Command::ChangeConnectivity { pool, connectivity });
            let message = format!("attempt {attempt} was never ordered by this journal");
            return self.refuse(id, RefusedCode::UnknownWork, &message);
        }
        if part == Part::FullEnd {
            if let Some(session) = self.sessions.by_id.get_mut(&id) {
                session.attempts_known = true;
            }
            self.make_ready(id);
        }
    }

    /// A pool is ready once its agent has reported both its nodes and its attempts.
    fn make_ready(&mut self, id: SessionId) {
        let Some(session) = self.sessions.by_id.get(&id) else { return };
        if session.nodes_known && session.attempts_known {
            self.recovery.unreported.remove(&session.pool);
            let (pool, principal) = (session.pool, session.principal.clone());
            if self.state.pool(pool).is_some_and(|pool| !pool.is_served()) {
                let _ = self.command(
                    principal,
                    Command::ChangeConnectivity { pool, connectivity: Connectivity::Ready },
                );
            }
        }
    }

    /// Sends an agent the start order or the stop that an event stands for.
    pub(super) fn route(&mut self, record: &EventRecord) {
        match &record.event {
            Event::AttemptOrdered { order } => {
                let Some(id) = self.sessions.active.get(&order.pool).copied() else { return };
                let unsent = self.sessions.by_id.get(&id).and_then(|session| session.sent_to);
                // What the full set has not reached yet, it will carry.
                if unsent.is_none_or(|sent_to| order.unit <= sent_to) {
                    self.send_orders(id, Part::Delta, &[order.unit]);
                }
            }
            Event::AttemptStopping { unit, .. } => {
                let pool = self.state.attempt(*unit).map(|attempt| attempt.pool);
                let Some(id) = pool.and_then(|pool| self.sessions.active.get(&pool)).copied() else { return };
                let stops: Vec<Stop> = self.stop_of(*unit).into_iter().collect();
                let term = self.term;
                self.hold_until_durable(Effect::Direct {
                    session: id,
                    message: ToAgent::Stops { term, stops },
                });
            }
            Event::PoolDeleted { pool, .. } => {
                if let Some(id) = self.sessions.active.get(pool).copied() {
                    self.refuse(id, RefusedCode::Superseded, "the pool is deleted");
                }
                self.forget_heartbeats(*pool);
                self.recovery.unreported.remove(pool);
            }
            _ => {}
        }
    }

    fn stop_of(&self, unit: UnitId) -> Option<Stop> {
        let attempt = self.state.attempt(unit)?;
        let spec = self.state.job(unit.job).and_then(|job| self.state.spec(job.spec));
        let grace_ms = spec.map_or(0, |entry| entry.spec.grace_ms);
        Some(Stop { attempt: attempt.id(self.state.journal()), reason: attempt.stop?, grace_ms })
    }

    /// Continues the full sets of start orders; returns whether more must be sent.
    ///
    /// None is sent during the recovery grace period: if the journal is a stale copy that ordered an attempt which
    /// its agent has not started, a newer copy may have started the next attempt elsewhere.
    pub(super) fn sync_sessions(&mut self) -> bool {
        if self.in_recovery_grace() {
            return false;
        }
        let ids: Vec<SessionId> = self.sessions.syncing.iter().copied().collect();
        for id in ids {
            let Some(session) = self.sessions.by_id.get(&id) else { continue };
            let Some(from) = session.sent_to else { continue };
            let Some(pool) = self.state.pool(session.pool) else { continue };
            let after = (std::ops::Bound::Excluded(from), std::ops::Bound::Unbounded);
            let units: Vec<UnitId> = pool.attempts.range(after).take(ORDERS_PER_CHUNK).copied().collect();
            let last = units.len() < ORDERS_PER_CHUNK;
            self.send_orders(id, if last { Part::FullEnd } else { Part::FullMore }, &units);
            let stops: Vec<Stop> = units.iter().filter_map(|unit| self.stop_of(*unit)).collect();
            let term = self.term;
            if !stops.is_empty() {
                self.hold_until_durable(Effect::Direct {
                    session: id,
                    message: ToAgent::Stops { term, stops },
                });
            }
            if let Some(session) = self.sessions.by_id.get_mut(&id) {
                session.sent_to = if last { None } else { units.last().copied() };
            }
            if last {
                self.sessions.syncing.remove(&id);
            }
        }
        !self.sessions.syncing.is_empty()
    }

    /// Sends start orders with the specs that the session lacks, in messages of bounded size.
    fn send_orders(&mut self, id: SessionId, part: Part, units: &[UnitId]) {
        let (mut specs, mut orders, mut bytes) = (Vec::new(), Vec::new(), 0);
        for unit in units {
            let Some((order, spec)) = self.order_of(*unit) else { continue };
            let Some(session) = self.sessions.by_id.get_mut(&id) else { return };
            let (new, _) = session.specs.insert(order.spec);
            bytes += ORDER_BYTES + TASK_BYTES * order.tasks.len();
            if new {
                bytes += spec_bytes(&spec);
            }
            if bytes > CHUNK_BYTES_MAX && !orders.is_empty() {
                let part = if part == Part::Delta { Part::Delta } else { Part::FullMore };
                let message = self.orders(part, std::mem::take(&mut specs), std::mem::take(&mut orders));
                self.hold_until_durable(Effect::Direct { session: id, message });
                bytes = 0;
            }
            if new {
                specs.push((order.spec, spec));
            }
            orders.push(order);
        }
        if part != Part::Delta || !orders.is_empty() {
            let message = self.orders(part, specs, orders);
            self.hold_until_durable(Effect::Direct { session: id, message });
        }
    }

    fn orders(
        &self,
        part: Part,
        specs: Vec<(SpecId, std::sync::Arc<JobSpec>)>,
        orders: Vec<StartOrder>,
    ) -> ToAgent {
        ToAgent::Orders { term: self.term, part, specs, orders }
    }

    fn order_of(&self, unit: UnitId) -> Option<(StartOrder, std::sync::Arc<JobSpec>)> {
        let attempt: &Attempt = self.state.attempt(unit)?;
        let job = self.state.job(unit.job)?;
        let pool = self.state.pool(attempt.pool)?;
        let task = |placement: &crate::model::attempt::Placement| TaskStart {
            group: placement.group,
            task: placement.task,
            node: pool.nodes.get(&placement.node).map_or_else(String::new, |node| node.spec.name.clone()),
            devices: placement.devices.clone(),
        };
        let journal = self.state.journal();
        let order = StartOrder {
            attempt: attempt.id(journal),
            revision: attempt.ordered_revision,
            high_water: self.high_water(attempt.ordered_revision),
            spec: job.spec,
            job_name: job.name.to_string(),
            queue: self.state.queue(job.queue).map_or_else(String::new, |queue| queue.spec.name.clone()),
            start_by: attempt.start_by,
            started: attempt.phase != Phase::Ordered,
            after: attempt.after.and_then(|unit| self.state.attempt(unit)).map(|before| before.id(journal)),
            tasks: attempt.placements.iter().map(task).collect(),
        };
        Some((order, self.state.spec(job.spec)?.spec.clone()))
    }
}

/// What a spec takes on the wire, roughly: as much as on disk.
fn spec_bytes(spec: &JobSpec) -> usize {
    256 + record::encode_spec(spec).len()
}

fn refused_code(rejection: &Rejection) -> RefusedCode {
    match rejection {
        Rejection::PoolClaimed { .. } | Rejection::PoolServed { .. } => RefusedCode::PoolClaimed,
        Rejection::StaleEpoch { .. } => RefusedCode::Superseded,
        Rejection::ReadOnly { .. } => RefusedCode::Unavailable,
        Rejection::UnknownAttempt { .. } => RefusedCode::ProtocolError,
        Rejection::Invalid(_)
        | Rejection::NotFound { .. }
        | Rejection::JobElsewhere { .. }
        | Rejection::AlreadyExists { .. }
        | Rejection::Conflict { .. }
        | Rejection::InUse { .. }
        | Rejection::TokenReused
        | Rejection::TokenExpired { .. }
        | Rejection::BadDependency { .. }
        | Rejection::NeverFits { .. }
        | Rejection::StaleTerm(_)
        | Rejection::LimitReached { .. }
        | Rejection::Outdated { .. } => RefusedCode::InvalidPool,
    }
}
