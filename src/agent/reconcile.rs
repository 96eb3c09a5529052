//! Orders, stops, observations and acknowledgements, attempt by attempt.

use std::sync::Arc;

use super::{Agent, Effect, Link, REPORTS_MAX, StartRequest, TrackedAttempt, TrackedState, is_leased};
use crate::model::attempt::{AttemptReport, AttemptStatus, Outcome, OutcomeKind, StopReason};
use crate::model::exchange::{FromAgent, Part, StartOrder, Stop};
use crate::model::id::{AttemptId, Revision, SpecId};
use crate::model::mutant::Mutant;
use crate::model::spec::JobSpec;
use crate::model::time::Timestamp;

/// How much longer an attempt is remembered that others may be ordered behind.
const LINE_MEMORY_MS: u64 = 1_000;

impl Agent {
    pub(super) fn take_orders(
        &mut self,
        part: Part,
        specs: Vec<(SpecId, Arc<JobSpec>)>,
        orders: Vec<StartOrder>,
    ) {
        let Link::Up(up) = &mut self.link else { return };
        for (id, spec) in specs {
            let (_, forgotten) = up.window.insert(id);
            up.specs.insert(id, spec);
            // Both ends forget the same spec at the same message; orders of this very message may
            // still need it, so it goes only after them.
            if let Some(old) = forgotten {
                up.stale_specs.push(old);
            }
        }
        for order in orders {
            self.take_order(order);
        }
        let Link::Up(up) = &mut self.link else { return };
        for old in std::mem::take(&mut up.stale_specs) {
            if !up.window.contains(old) {
                up.specs.remove(&old);
            }
        }
        if part == Part::FullEnd {
            up.orders_known = true;
            let waiting: Vec<AttemptId> = self.expiring.iter().map(|(_, attempt)| *attempt).collect();
            waiting.into_iter().for_each(|attempt| self.start_if_free(attempt));
        }
    }

    fn take_order(&mut self, order: StartOrder) {
        let Link::Up(up) = &self.link else { return };
        if order.attempt.journal != up.accepted.journal {
            return;
        }
        if let Some(local) = self.attempts.get_mut(&order.attempt) {
            let unknown = local.ordered_revision == Revision::default();
            if !unknown && local.ordered_revision != order.revision {
                return self.refuse_stale_id(&order);
            }
            local.ordered_revision = order.revision;
            self.reports.insert(order.attempt);
            return;
        }
        let (attempt, revision) = (order.attempt, order.revision);
        let high_water = order.high_water;
        let start_by = up.to_local(order.start_by);
        let Some(spec) = up.specs.get(&order.spec).cloned() else {
            // A message that both ends don't agree on: start over.
            return self.disconnect();
        };
        let start = StartRequest { leased: is_leased(&spec), order, spec, start_by };
        let refused = if start.order.started {
            Some((OutcomeKind::Vanished, "its pool no longer knows it"))
        } else if self.now > start_by {
            Some((OutcomeKind::NotStarted, "the order came too late"))
        } else if start.leased && self.now >= self.lease_until {
            Some((OutcomeKind::NotStarted, "the pool's lease had run out"))
        } else {
            None
        };
        let state = match refused {
            Some((kind, message)) => {
                let (status, ahead) = (self.ended(kind, message), start.order.after);
                TrackedState::Gone { status, at_backend: false, ahead }
            }
            None => {
                self.expiring.insert((start_by, attempt));
                TrackedState::Waiting(Box::new(start))
            }
        };
        self.note_high_water(high_water);
        self.attempts.insert(attempt, TrackedAttempt { ordered_revision: revision, start_by, state });
        if refused.is_some() {
            self.reports.insert(attempt);
        } else {
            self.start_if_free(attempt);
        }
    }

    /// An older copy of the journal was in use for a while, and gave the same name to something
    /// else, which is still here. That one ends; the new one can't be created beside it.
    fn refuse_stale_id(&mut self, order: &StartOrder) {
        let present = self.attempts.get(&order.attempt);
        if present.is_some_and(|local| matches!(local.state, TrackedState::Present(_))) {
            self.stale_ids.insert(order.attempt, order.revision);
            let (attempt, reason) = (order.attempt, StopReason::Orphaned);
            return self.out.push(Effect::Stop(Stop { attempt, reason, grace_ms: 0 }));
        }
        self.report_stale_id(order.attempt, order.revision);
    }

    /// Says that an order can't be carried out, since something else of its name has been here.
    fn report_stale_id(&mut self, attempt: AttemptId, ordered_revision: Revision) {
        let Link::Up(up) = &self.link else { return };
        let status = self.ended(OutcomeKind::NotStarted, "something else of this name is in its place");
        let report = AttemptReport { attempt, ordered_revision, status };
        let (epoch, part) = (up.accepted.epoch, Part::Delta);
        self.out.push(Effect::Send(FromAgent::Observed { epoch, part, reports: vec![report] }));
    }

    /// Launches a waiting attempt unless one that is to go first is still there.
    fn start_if_free(&mut self, attempt: AttemptId) {
        let Some(TrackedAttempt { state: TrackedState::Waiting(start), .. }) = self.attempts.get(&attempt)
        else {
            return;
        };
        let blocker = self.blocker(start.order.after).filter(|_| !Mutant::OvertakePredecessor.is_on());
        let Some(blocker) = blocker else {
            let start = self.leave_line(attempt, TrackedState::Present(None));
            return self.out.extend(start.map(Effect::StartRequest));
        };
        self.leave_predecessor(start.order.after, attempt);
        if let Some(TrackedAttempt { state: TrackedState::Waiting(start), .. }) =
            self.attempts.get_mut(&attempt)
        {
            start.order.after = Some(blocker);
            self.successors.entry(blocker).or_default().insert(attempt);
        }
    }

    /// Who still holds the place, or stands in line for it, of those from `after` on.
    fn blocker(&self, mut after: Option<AttemptId>) -> Option<AttemptId> {
        while let Some(before) = after {
            match self.attempts.get(&before).map(|local| &local.state) {
                Some(TrackedState::Gone { ahead, .. }) => after = *ahead,
                Some(TrackedState::Present(_) | TrackedState::Waiting(_)) => return after,
                // It is gone, or it comes with a later chunk of the full set.
                None if matches!(&self.link, Link::Up(up) if up.orders_known) => return None,
                None => return after,
            }
        }
        None
    }

    fn leave_predecessor(&mut self, before: Option<AttemptId>, attempt: AttemptId) {
        let Some(before) = before else { return };
        if let Some(others) = self.successors.get_mut(&before) {
            others.remove(&attempt);
            if others.is_empty() {
                self.successors.remove(&before);
            }
        }
    }

    /// Takes a waiting attempt out of its line, into the state given.
    fn leave_line(&mut self, attempt: AttemptId, state: TrackedState) -> Option<Box<StartRequest>> {
        let local = self.attempts.get_mut(&attempt)?;
        if !matches!(local.state, TrackedState::Waiting(_)) {
            return None;
        }
        self.expiring.remove(&(local.start_by, attempt));
        let TrackedState::Waiting(start) = std::mem::replace(&mut local.state, state) else { return None };
        self.leave_predecessor(start.order.after, attempt);
        Some(start)
    }

    /// Ends an attempt that waits and will not be started; those behind it move up.
    fn drop_waiting(&mut self, attempt: AttemptId, kind: OutcomeKind, message: &str) {
        let Some(TrackedAttempt { state: TrackedState::Waiting(start), .. }) = self.attempts.get(&attempt)
        else {
            return;
        };
        let (status, ahead) = (self.ended(kind, message), start.order.after);
        self.leave_line(attempt, TrackedState::Gone { status, at_backend: false, ahead });
        self.reports.insert(attempt);
        self.move_up(attempt);
    }

    /// Those that follow an attempt which is gone are launched, or follow the one before it.
    fn move_up(&mut self, gone: AttemptId) {
        let behind = self.successors.get(&gone).cloned().unwrap_or_default();
        behind.into_iter().for_each(|successor| self.start_if_free(successor));
    }

    /// Gives back what has waited in line until its start-by.
    pub(super) fn expire_due(&mut self) {
        while let Some((at, attempt)) = self.expiring.first().copied().filter(|(at, _)| *at < self.now) {
            self.expiring.remove(&(at, attempt));
            self.drop_waiting(attempt, OutcomeKind::NotStarted, "the one ahead in line ran too long");
        }
    }

    pub(super) fn take_stop(&mut self, stop: Stop) {
        let Link::Up(up) = &self.link else { return };
        if stop.attempt.journal != up.accepted.journal {
            return;
        }
        let unstarted = "stopped before it was started";
        match self.attempts.get(&stop.attempt).map(|local| &local.state) {
            Some(TrackedState::Present(_)) => {
                self.out.push(Effect::Stop(stop));
                if Mutant::EndStopsEarly.is_on() {
                    self.note_status(stop.attempt, self.ended(OutcomeKind::Cancelled, ""));
                }
            }
            Some(TrackedState::Gone { .. }) => {
                self.reports.insert(stop.attempt);
            }
            Some(TrackedState::Waiting(_)) => {
                self.drop_waiting(stop.attempt, OutcomeKind::Cancelled, unstarted);
            }
            // Its order has not come yet, and with it this stop comes again.
            None if !up.orders_known => {}
            None => {
                let status = self.ended(OutcomeKind::Cancelled, unstarted);
                let state = TrackedState::Gone { status, at_backend: false, ahead: None };
                let local =
                    TrackedAttempt { ordered_revision: Default::default(), start_by: self.now, state };
                self.attempts.insert(stop.attempt, local);
                self.reports.insert(stop.attempt);
            }
        }
    }

    pub(super) fn note_status(&mut self, attempt: AttemptId, status: AttemptStatus) {
        let ended = matches!(status, AttemptStatus::Ended { .. });
        // A launch of an earlier agent may reach the backend late: what it made is adopted, too.
        let local = self.attempts.entry(attempt).or_insert_with(|| TrackedAttempt {
            ordered_revision: Default::default(),
            start_by: self.now,
            state: TrackedState::Present(None),
        });
        if let TrackedState::Gone { at_backend, .. } = &mut local.state {
            // The broker knows it as ended, and may have given its place away.
            if !std::mem::replace(at_backend, true) && !ended {
                self.out.push(Effect::Stop(Stop { attempt, reason: StopReason::Orphaned, grace_ms: 0 }));
            }
            return;
        }
        local.state = if ended {
            TrackedState::Gone { status, at_backend: true, ahead: None }
        } else {
            TrackedState::Present(Some(status))
        };
        self.reports.insert(attempt);
        if ended {
            if let Some(revision) = self.stale_ids.remove(&attempt) {
                self.report_stale_id(attempt, revision);
            }
            self.move_up(attempt);
        }
    }

    /// The outcome is durable. What is left of the attempt stays until no order can start it.
    pub(super) fn acknowledge(&mut self, attempt: AttemptId) {
        let Some(local) = self.attempts.get(&attempt) else { return };
        if matches!(local.state, TrackedState::Gone { .. }) {
            self.forgettable.insert((local.start_by.plus_ms(1), attempt));
        }
    }

    pub(super) fn forget_due(&mut self) {
        while let Some((at, attempt)) = self.forgettable.first().copied().filter(|(at, _)| *at <= self.now) {
            self.forgettable.remove(&(at, attempt));
            let ahead = match self.attempts.get(&attempt).map(|local| &local.state) {
                Some(TrackedState::Gone { ahead, .. }) => *ahead,
                Some(TrackedState::Present(_) | TrackedState::Waiting(_)) | None => None,
            };
            if self.blocker(ahead).is_some() {
                // Orders behind it may still come: they find through it whom they wait for.
                self.forgettable.insert((self.now.plus_ms(LINE_MEMORY_MS), attempt));
                continue;
            }
            if let Some(local) = self.attempts.remove(&attempt)
                && matches!(local.state, TrackedState::Gone { at_backend: true, .. })
            {
                self.out.push(Effect::Forget(attempt));
            }
        }
    }

    pub(super) fn send_reports(&mut self) {
        let Link::Up(up) = &self.link else { return };
        let epoch = up.accepted.epoch;
        let attempts: Vec<AttemptId> = std::mem::take(&mut self.reports).into_iter().collect();
        let ours = attempts.into_iter().filter(|attempt| attempt.journal == up.accepted.journal);
        let reports: Vec<AttemptReport> = ours.filter_map(|attempt| self.report_of(attempt)).collect();
        if Mutant::ForgetUnacknowledged.is_on() {
            reports.iter().for_each(|report| self.acknowledge(report.attempt));
        }
        for reports in reports.chunks(REPORTS_MAX) {
            let (part, reports) = (Part::Delta, reports.to_vec());
            self.out.push(Effect::Send(FromAgent::Observed { epoch, part, reports }));
        }
    }

    pub(super) fn report_of(&self, attempt: AttemptId) -> Option<AttemptReport> {
        let local = self.attempts.get(&attempt)?;
        let (TrackedState::Present(Some(status)) | TrackedState::Gone { status, .. }) = &local.state else {
            return None;
        };
        let skew_ms = match &self.link {
            Link::Up(up) => up.skew_ms,
            Link::Down { .. } | Link::Connecting | Link::Handshaking { .. } => 0,
        };
        let theirs = |at: Timestamp| Timestamp(at.0.saturating_add_signed(-skew_ms));
        let status = match status.clone() {
            AttemptStatus::Starting => AttemptStatus::Starting,
            AttemptStatus::Running { started_at } => {
                AttemptStatus::Running { started_at: theirs(started_at) }
            }
            AttemptStatus::Ended { started_at, ended_at, outcome } => AttemptStatus::Ended {
                started_at: started_at.map(theirs),
                ended_at: theirs(ended_at),
                outcome,
            },
        };
        Some(AttemptReport { attempt, ordered_revision: local.ordered_revision, status })
    }

    fn ended(&self, kind: OutcomeKind, message: &str) -> AttemptStatus {
        let outcome = Outcome::plain(kind, message);
        AttemptStatus::Ended { started_at: None, ended_at: self.now, outcome }
    }
}

impl super::Up {
    /// A time of the broker's clock by this agent's.
    fn to_local(&self, theirs: Timestamp) -> Timestamp {
        Timestamp(theirs.0.saturating_add_signed(self.skew_ms))
    }
}
