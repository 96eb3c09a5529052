//! Orders, stops, observations and acknowledgements, attempt by attempt.

use std::sync::Arc;

use super::{Agent, Effect, Launch, Link, Local, LocalState, REPORTS_MAX, is_leased};
use crate::model::attempt::{AttemptReport, AttemptStatus, Outcome, OutcomeKind};
use crate::model::exchange::{FromAgent, Order, Part, Stop};
use crate::model::id::{AttemptId, SpecId};
use crate::model::spec::JobSpec;
use crate::model::time::Timestamp;

impl Agent {
    pub(super) fn take_orders(&mut self, specs: Vec<(SpecId, Arc<JobSpec>)>, orders: Vec<Order>) {
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
    }

    fn take_order(&mut self, order: Order) {
        let Link::Up(up) = &self.link else { return };
        if order.attempt.journal != up.welcome.journal {
            return;
        }
        if let Some(local) = self.attempts.get_mut(&order.attempt) {
            local.ordered_revision = order.revision;
            self.reports.insert(order.attempt);
            return;
        }
        let (attempt, revision) = (order.attempt, order.revision);
        let start_by = up.to_local(order.start_by);
        let Some(spec) = up.specs.get(&order.spec).cloned() else {
            // A message that both ends don't agree on: start over.
            return self.hang_up();
        };
        let launch = Launch { leased: is_leased(&spec), order, spec, start_by };
        let refused = if launch.order.started {
            Some((OutcomeKind::Vanished, "its pool no longer knows it"))
        } else if self.now > start_by {
            Some((OutcomeKind::NotStarted, "the order came too late"))
        } else if launch.leased && self.now >= self.lease_until {
            Some((OutcomeKind::NotStarted, "the pool's lease had run out"))
        } else {
            None
        };
        let state = match refused {
            Some((kind, message)) => {
                LocalState::Gone { status: self.ended(kind, message), at_backend: false }
            }
            None => LocalState::Waiting(Box::new(launch)),
        };
        self.attempts.insert(attempt, Local { ordered_revision: revision, start_by, state });
        if refused.is_some() {
            self.reports.insert(attempt);
        } else {
            self.launch_if_free(attempt);
        }
    }

    /// Launches a waiting attempt unless the one it follows is still there.
    fn launch_if_free(&mut self, attempt: AttemptId) {
        let Some(local) = self.attempts.get(&attempt) else { return };
        let LocalState::Waiting(launch) = &local.state else { return };
        let blocked = launch.order.after.and_then(|before| self.attempts.get(&before));
        if blocked.is_some_and(|before| !matches!(before.state, LocalState::Gone { .. })) {
            return;
        }
        if let Some(local) = self.attempts.get_mut(&attempt) {
            let present = LocalState::Present(AttemptStatus::Starting);
            if let LocalState::Waiting(launch) = std::mem::replace(&mut local.state, present) {
                self.out.push(Effect::Launch(launch));
            }
        }
    }

    pub(super) fn take_stop(&mut self, stop: Stop) {
        let Link::Up(up) = &self.link else { return };
        if stop.attempt.journal != up.welcome.journal {
            return;
        }
        let never = self.ended(OutcomeKind::Cancelled, "stopped before it was started");
        match self.attempts.get_mut(&stop.attempt) {
            Some(local) => match &local.state {
                LocalState::Present(_) => self.out.push(Effect::Stop(stop)),
                LocalState::Gone { .. } => {
                    self.reports.insert(stop.attempt);
                }
                LocalState::Waiting(_) => {
                    let gone = LocalState::Gone { status: never, at_backend: false };
                    if let LocalState::Waiting(launch) = std::mem::replace(&mut local.state, gone) {
                        self.pass_on(stop.attempt, launch.order.after);
                    }
                    self.reports.insert(stop.attempt);
                }
            },
            None => {
                let state = LocalState::Gone { status: never, at_backend: false };
                let local = Local { ordered_revision: Default::default(), start_by: self.now, state };
                self.attempts.insert(stop.attempt, local);
                self.reports.insert(stop.attempt);
            }
        }
    }

    /// An attempt in a line was taken out before it began: its follower takes its place in line.
    fn pass_on(&mut self, out_of_line: AttemptId, before: Option<AttemptId>) {
        let mut followers = Vec::new();
        for (attempt, local) in &mut self.attempts {
            if let LocalState::Waiting(launch) = &mut local.state
                && launch.order.after == Some(out_of_line)
            {
                launch.order.after = before;
                followers.push(*attempt);
            }
        }
        followers.into_iter().for_each(|attempt| self.launch_if_free(attempt));
    }

    pub(super) fn note_moved(&mut self, attempt: AttemptId, status: AttemptStatus) {
        let ended = matches!(status, AttemptStatus::Ended { .. });
        let Some(local) = self.attempts.get_mut(&attempt) else { return };
        if matches!(local.state, LocalState::Gone { .. }) {
            return;
        }
        local.state =
            if ended { LocalState::Gone { status, at_backend: true } } else { LocalState::Present(status) };
        self.reports.insert(attempt);
        if ended {
            let waiting = self.attempts.iter().filter(|(_, local)| match &local.state {
                LocalState::Waiting(launch) => launch.order.after == Some(attempt),
                LocalState::Present(_) | LocalState::Gone { .. } => false,
            });
            let followers: Vec<AttemptId> = waiting.map(|(attempt, _)| *attempt).collect();
            followers.into_iter().for_each(|attempt| self.launch_if_free(attempt));
        }
    }

    /// The outcome is durable. What is left of the attempt stays until no order can start it.
    pub(super) fn acknowledge(&mut self, attempt: AttemptId) {
        let Some(local) = self.attempts.get(&attempt) else { return };
        if matches!(local.state, LocalState::Gone { .. }) {
            self.forgettable.insert((local.start_by.plus_ms(1), attempt));
        }
    }

    pub(super) fn forget_due(&mut self) {
        while let Some((at, attempt)) = self.forgettable.first().copied().filter(|(at, _)| *at <= self.now) {
            self.forgettable.remove(&(at, attempt));
            if let Some(local) = self.attempts.remove(&attempt)
                && matches!(local.state, LocalState::Gone { at_backend: true, .. })
            {
                self.out.push(Effect::Forget(attempt));
            }
        }
    }

    pub(super) fn send_reports(&mut self) {
        let Link::Up(up) = &self.link else { return };
        let epoch = up.welcome.epoch;
        let attempts: Vec<AttemptId> = std::mem::take(&mut self.reports).into_iter().collect();
        let ours = attempts.into_iter().filter(|attempt| attempt.journal == up.welcome.journal);
        let reports: Vec<AttemptReport> = ours.filter_map(|attempt| self.report_of(attempt)).collect();
        for reports in reports.chunks(REPORTS_MAX) {
            let (part, reports) = (Part::Delta, reports.to_vec());
            self.out.push(Effect::Send(FromAgent::Observed { epoch, part, reports }));
        }
    }

    pub(super) fn report_of(&self, attempt: AttemptId) -> Option<AttemptReport> {
        let local = self.attempts.get(&attempt)?;
        let (LocalState::Present(status) | LocalState::Gone { status, .. }) = &local.state else {
            return None;
        };
        let skew_ms = match &self.link {
            Link::Up(up) => up.skew_ms,
            Link::Down { .. } | Link::Connecting | Link::Greeting { .. } => 0,
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
