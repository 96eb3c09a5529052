//! Orders, stops, observations and acknowledgements, attempt by attempt.

use std::sync::Arc;

use super::{Agent, Connection, Effect, REPORTS_MAX, StartRequest, TrackedAttempt, TrackedState};
use crate::model::attempt::{AttemptReport, AttemptStatus, Outcome, OutcomeKind, StopReason};
use crate::model::exchange::{FromAgent, Part, StartOrder, Stop};
use crate::model::id::{AttemptId, Revision, SpecId};
use crate::model::mutant::Mutant;
use crate::model::spec::JobSpec;
use crate::model::time::Timestamp;

/// How much longer, in milliseconds, an ended attempt is tracked if successors of it may still be ordered.
const PREDECESSOR_RETENTION_MS: u64 = 1_000;

impl Agent {
    pub(super) fn handle_orders(
        &mut self,
        part: Part,
        specs: Vec<(SpecId, Arc<JobSpec>)>,
        orders: Vec<StartOrder>,
    ) {
        let Connection::Up(session) = &mut self.connection else { return };
        for (id, spec) in specs {
            let (_, evicted) = session.spec_window.insert(id);
            session.specs.insert(id, spec);
            // Both ends evict the same spec at the same message. Orders of this message may still refer to
            // it, so it is dropped after them.
            if let Some(old) = evicted {
                session.evicted_specs.push(old);
            }
        }
        for order in orders {
            self.handle_order(order);
        }
        let Connection::Up(session) = &mut self.connection else { return };
        for old in std::mem::take(&mut session.evicted_specs) {
            if !session.spec_window.contains(old) {
                session.specs.remove(&old);
            }
        }
        if part == Part::FullEnd {
            session.orders_complete = true;
            let waiting: Vec<AttemptId> = self.expiring.iter().map(|(_, attempt)| *attempt).collect();
            waiting.into_iter().for_each(|attempt| self.start_if_free(attempt));
        }
    }

    fn handle_order(&mut self, order: StartOrder) {
        let Connection::Up(session) = &self.connection else { return };
        if order.attempt.journal != session.accepted.journal {
            return;
        }
        if let Some(tracked) = self.attempts.get_mut(&order.attempt) {
            let adopted = tracked.ordered_revision == Revision::default();
            if !adopted && tracked.ordered_revision != order.revision {
                return self.reject_stale_id(&order);
            }
            tracked.ordered_revision = order.revision;
            self.unreported.insert(order.attempt);
            return;
        }
        let (attempt, revision) = (order.attempt, order.revision);
        let high_water = order.high_water;
        let start_by = session.to_local(order.start_by);
        let Some(spec) = session.specs.get(&order.spec).cloned() else {
            // The spec windows differ, which a new session repairs.
            return self.disconnect();
        };
        let start = StartRequest { lease_ms: spec.lease_ms(), order, spec, start_by };
        let refused = if start.order.started {
            Some((OutcomeKind::Vanished, "the backend has no record of it any more"))
        } else if self.now > start_by {
            Some((OutcomeKind::NotStarted, "the order came too late"))
        } else if start.lease_ms.is_some_and(|lease_ms| self.now >= self.renewed_at.plus_ms(lease_ms)) {
            Some((OutcomeKind::NotStarted, "the pool's lease had expired"))
        } else {
            None
        };
        let state = match refused {
            Some((kind, message)) => {
                let (status, predecessor) = (self.ended(kind, message), start.order.after);
                TrackedState::Ended { status, at_backend: false, predecessor }
            }
            None => {
                self.expiring.insert((start_by, attempt));
                TrackedState::Waiting(Box::new(start))
            }
        };
        self.update_high_water(high_water);
        self.attempts.insert(attempt, TrackedAttempt { ordered_revision: revision, start_by, state });
        if refused.is_some() {
            self.unreported.insert(attempt);
        } else {
            self.start_if_free(attempt);
        }
    }

    /// Rejects an order whose id another attempt has: an older copy of the journal was in use and ordered
    /// something else under the same id. If that attempt still runs, it is stopped, and the order is reported
    /// as not started once it has ended.
    fn reject_stale_id(&mut self, order: &StartOrder) {
        let present = self.attempts.get(&order.attempt);
        if present.is_some_and(|tracked| matches!(tracked.state, TrackedState::Present(_))) {
            self.stale_ids.insert(order.attempt, order.revision);
            let (attempt, reason) = (order.attempt, StopReason::Orphaned);
            return self.effects.push(Effect::Stop(Stop { attempt, reason, grace_ms: 0 }));
        }
        self.report_stale_id(order.attempt, order.revision);
    }

    /// Reports that an order was not started, because another attempt has used its id.
    fn report_stale_id(&mut self, attempt: AttemptId, ordered_revision: Revision) {
        let Connection::Up(session) = &self.connection else { return };
        let status = self.ended(OutcomeKind::NotStarted, "another attempt has used this id");
        let report = AttemptReport { attempt, ordered_revision, status };
        let (epoch, part) = (session.accepted.epoch, Part::Delta);
        self.effects.push(Effect::Send(FromAgent::Observed { epoch, part, reports: vec![report] }));
    }

    /// Starts a waiting attempt unless an attempt ahead of it has not ended; then queues it behind that one.
    fn start_if_free(&mut self, attempt: AttemptId) {
        let Some(TrackedAttempt { state: TrackedState::Waiting(start), .. }) = self.attempts.get(&attempt)
        else {
            return;
        };
        let blocker = self.blocker(start.order.after).filter(|_| !Mutant::OvertakePredecessor.is_on());
        let Some(blocker) = blocker else {
            let start = self.dequeue(attempt, TrackedState::Present(None));
            return self.effects.extend(start.map(Effect::Start));
        };
        self.unlink_from_predecessor(start.order.after, attempt);
        if let Some(TrackedAttempt { state: TrackedState::Waiting(start), .. }) =
            self.attempts.get_mut(&attempt)
        {
            start.order.after = Some(blocker);
            self.successors.entry(blocker).or_default().insert(attempt);
        }
    }

    /// Returns the first attempt, from `after` on along the predecessors, that still holds or waits for the
    /// claim.
    fn blocker(&self, mut after: Option<AttemptId>) -> Option<AttemptId> {
        while let Some(before) = after {
            match self.attempts.get(&before).map(|tracked| &tracked.state) {
                Some(TrackedState::Ended { predecessor, .. }) => after = *predecessor,
                Some(TrackedState::Present(_) | TrackedState::Waiting(_)) => return after,
                // It has ended; or, while the full set is incomplete, a later chunk may contain it.
                None if matches!(&self.connection, Connection::Up(session) if session.orders_complete) => {
                    return None;
                }
                None => return after,
            }
        }
        None
    }

    /// Removes `attempt` from the successors of `before`.
    fn unlink_from_predecessor(&mut self, before: Option<AttemptId>, attempt: AttemptId) {
        let Some(before) = before else { return };
        if let Some(others) = self.successors.get_mut(&before) {
            others.remove(&attempt);
            if others.is_empty() {
                self.successors.remove(&before);
            }
        }
    }

    /// Moves a waiting attempt into `state` and returns its start request; `None` if it was not waiting.
    fn dequeue(&mut self, attempt: AttemptId, state: TrackedState) -> Option<Box<StartRequest>> {
        let tracked = self.attempts.get_mut(&attempt)?;
        if !matches!(tracked.state, TrackedState::Waiting(_)) {
            return None;
        }
        self.expiring.remove(&(tracked.start_by, attempt));
        let TrackedState::Waiting(start) = std::mem::replace(&mut tracked.state, state) else { return None };
        self.unlink_from_predecessor(start.order.after, attempt);
        Some(start)
    }

    /// Ends a waiting attempt without a start. Its successors are started, or queued behind its predecessor.
    fn end_waiting(&mut self, attempt: AttemptId, kind: OutcomeKind, message: &str) {
        let Some(TrackedAttempt { state: TrackedState::Waiting(start), .. }) = self.attempts.get(&attempt)
        else {
            return;
        };
        let (status, predecessor) = (self.ended(kind, message), start.order.after);
        self.dequeue(attempt, TrackedState::Ended { status, at_backend: false, predecessor });
        self.unreported.insert(attempt);
        self.start_successors(attempt);
    }

    /// Starts the successors of an ended attempt, or queues them behind its predecessor.
    fn start_successors(&mut self, ended: AttemptId) {
        let successors = self.successors.get(&ended).cloned().unwrap_or_default();
        successors.into_iter().for_each(|successor| self.start_if_free(successor));
    }

    /// Ends waiting attempts whose `start_by` has passed.
    pub(super) fn expire_due(&mut self) {
        while let Some((at, attempt)) = self.expiring.first().copied().filter(|(at, _)| *at < self.now) {
            self.expiring.remove(&(at, attempt));
            self.end_waiting(
                attempt,
                OutcomeKind::NotStarted,
                "the attempt that it was queued behind ran too long",
            );
        }
    }

    pub(super) fn handle_stop(&mut self, stop: Stop) {
        let Connection::Up(session) = &self.connection else { return };
        if stop.attempt.journal != session.accepted.journal {
            return;
        }
        let unstarted = "stopped before it was started";
        match self.attempts.get(&stop.attempt).map(|tracked| &tracked.state) {
            Some(TrackedState::Present(_)) => {
                self.effects.push(Effect::Stop(stop));
                if Mutant::EndStopsEarly.is_on() {
                    self.update_status(stop.attempt, self.ended(OutcomeKind::Cancelled, ""));
                }
            }
            Some(TrackedState::Ended { .. }) => {
                self.unreported.insert(stop.attempt);
            }
            Some(TrackedState::Waiting(_)) => {
                self.end_waiting(stop.attempt, OutcomeKind::Cancelled, unstarted);
            }
            // Its order may still arrive, and the broker repeats the stop with it.
            None if !session.orders_complete => {}
            None => {
                let status = self.ended(OutcomeKind::Cancelled, unstarted);
                let state = TrackedState::Ended { status, at_backend: false, predecessor: None };
                let tracked =
                    TrackedAttempt { ordered_revision: Default::default(), start_by: self.now, state };
                self.attempts.insert(stop.attempt, tracked);
                self.unreported.insert(stop.attempt);
            }
        }
    }

    pub(super) fn update_status(&mut self, attempt: AttemptId, status: AttemptStatus) {
        let ended = matches!(status, AttemptStatus::Ended { .. });
        // A start requested by an earlier process of this agent may reach the backend late: it is adopted as
        // well.
        let tracked = self.attempts.entry(attempt).or_insert_with(|| TrackedAttempt {
            ordered_revision: Default::default(),
            start_by: self.now,
            state: TrackedState::Present(None),
        });
        if let TrackedState::Ended { at_backend, .. } = &mut tracked.state {
            // The broker counts it as ended, and may have assigned its capacity to another attempt.
            if !std::mem::replace(at_backend, true) && !ended {
                self.effects.push(Effect::Stop(Stop { attempt, reason: StopReason::Orphaned, grace_ms: 0 }));
            }
            return;
        }
        tracked.state = if ended {
            TrackedState::Ended { status, at_backend: true, predecessor: None }
        } else {
            TrackedState::Present(Some(status))
        };
        self.unreported.insert(attempt);
        if ended {
            if let Some(revision) = self.stale_ids.remove(&attempt) {
                self.report_stale_id(attempt, revision);
            }
            self.start_successors(attempt);
        }
    }

    /// The attempt's outcome is durable. Its record stays until no delayed order can start it again.
    pub(super) fn acknowledge(&mut self, attempt: AttemptId) {
        let Some(tracked) = self.attempts.get(&attempt) else { return };
        if matches!(tracked.state, TrackedState::Ended { .. }) {
            self.forgettable.insert((tracked.start_by.plus_ms(1), attempt));
        }
    }

    pub(super) fn forget_due(&mut self) {
        while let Some((at, attempt)) = self.forgettable.first().copied().filter(|(at, _)| *at <= self.now) {
            self.forgettable.remove(&(at, attempt));
            let predecessor = match self.attempts.get(&attempt).map(|tracked| &tracked.state) {
                Some(TrackedState::Ended { predecessor, .. }) => *predecessor,
                Some(TrackedState::Present(_) | TrackedState::Waiting(_)) | None => None,
            };
            if self.blocker(predecessor).is_some() {
                // Successors may still be ordered behind it: its record leads them to the attempt ahead.
                self.forgettable.insert((self.now.plus_ms(PREDECESSOR_RETENTION_MS), attempt));
                continue;
            }
            if let Some(tracked) = self.attempts.remove(&attempt)
                && matches!(tracked.state, TrackedState::Ended { at_backend: true, .. })
            {
                self.effects.push(Effect::Forget(attempt));
            }
        }
    }

    pub(super) fn send_reports(&mut self) {
        let Connection::Up(session) = &self.connection else { return };
        let epoch = session.accepted.epoch;
        let attempts: Vec<AttemptId> = std::mem::take(&mut self.unreported).into_iter().collect();
        let ours = attempts.into_iter().filter(|attempt| attempt.journal == session.accepted.journal);
        let reports: Vec<AttemptReport> = ours.filter_map(|attempt| self.report_of(attempt)).collect();
        if Mutant::ForgetUnacknowledged.is_on() {
            reports.iter().for_each(|report| self.acknowledge(report.attempt));
        }
        for reports in reports.chunks(REPORTS_MAX) {
            let (part, reports) = (Part::Delta, reports.to_vec());
            self.effects.push(Effect::Send(FromAgent::Observed { epoch, part, reports }));
        }
    }

    /// Returns the report on an attempt, with times on the broker's clock; `None` if there is nothing to
    /// report yet.
    pub(super) fn report_of(&self, attempt: AttemptId) -> Option<AttemptReport> {
        let tracked = self.attempts.get(&attempt)?;
        let (TrackedState::Present(Some(status)) | TrackedState::Ended { status, .. }) = &tracked.state
        else {
            return None;
        };
        let skew_ms = match &self.connection {
            Connection::Up(session) => session.skew_ms,
            Connection::Down { .. } | Connection::Connecting | Connection::Handshaking { .. } => 0,
        };
        let broker_time = |at: Timestamp| Timestamp(at.0.saturating_add_signed(-skew_ms));
        let status = match status.clone() {
            AttemptStatus::Starting => AttemptStatus::Starting,
            AttemptStatus::Running { started_at } => {
                AttemptStatus::Running { started_at: broker_time(started_at) }
            }
            AttemptStatus::Ended { started_at, ended_at, outcome } => AttemptStatus::Ended {
                started_at: started_at.map(broker_time),
                ended_at: broker_time(ended_at),
                outcome,
            },
        };
        Some(AttemptReport { attempt, ordered_revision: tracked.ordered_revision, status })
    }

    fn ended(&self, kind: OutcomeKind, message: &str) -> AttemptStatus {
        let outcome = Outcome::plain(kind, message);
        AttemptStatus::Ended { started_at: None, ended_at: self.now, outcome }
    }
}

impl super::Session {
    /// Converts a time of the broker's clock to this agent's.
    fn to_local(&self, broker_time: Timestamp) -> Timestamp {
        Timestamp(broker_time.0.saturating_add_signed(self.skew_ms))
    }
}
