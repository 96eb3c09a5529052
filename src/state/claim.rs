//! Lines: short tasks that wait in their pool, each behind one of its own kind.
//!
//! Between the end of a task and the start of the next in its place lie a report, a commit and an
//! order. For tasks of milliseconds that is as long as the task itself. So where attempts of a
//! shape are known to be short, a unit may be ordered *after* a live attempt of its own class: it
//! holds nothing until that one is gone, then takes its node and its devices over, and the agent
//! starts it without asking. (Slurm and Nomad have nothing alike; HyperQueue hands a worker more
//! tasks than it has room for.)
//!
//! A line is short in time, and an order that has waited too long comes back by its start-by.

use super::State;
use super::class::ShapeDigest;
use super::snapshot::Key;
use crate::model::attempt::Phase;
use crate::model::change::Change;
use crate::model::id::UnitId;
use crate::model::shape::{ClassKey, ShapeId};

/// Units in one line behind the attempt that holds its place.
const LINE_LEN_MAX: u32 = 4;
/// Work that a line holds ready, in microseconds: some round trips between agent, broker and disk.
const LINE_COVER_MICROS: u32 = 20_000;
/// Longer tasks don't line up: they would gain little, and what stands in line can't go elsewhere.
const LINE_PACE_MAX_MICROS: u32 = 200_000;
/// From an order in a line until its agent must not start it any more, in milliseconds: if the one
/// ahead turns out to be long, the unit comes back and is placed anew.
pub(super) const LINE_WAIT_MS: u64 = 2_000;

impl State {
    /// How many units of this shape may stand in one line.
    pub fn claim_depth_max(&self, shape: ShapeId) -> u8 {
        let pace = self.derived.shapes.digest(shape).and_then(|digest| self.run_times.get(&digest));
        match pace {
            Some(micros) if *micros <= LINE_PACE_MAX_MICROS => {
                (LINE_COVER_MICROS / micros.max(&1)).clamp(1, LINE_LEN_MAX) as u8
            }
            _ => 0,
        }
    }

    /// The ends of a class's lines, shortest lines first, with how many stand in each.
    pub fn tails(&self, class: ClassKey) -> impl Iterator<Item = (u8, UnitId)> {
        let first = (class, 0, UnitId { job: Default::default(), unit: 0 });
        let ends = self.derived.tails.range(first..);
        ends.take_while(move |(other, ..)| *other == class).map(|(_, len, unit)| (*len, *unit))
    }

    /// How many stand in line up to and with this attempt, and whether another may follow it.
    pub(super) fn tail(&self, unit: UnitId) -> Option<(ClassKey, u8)> {
        self.derived.tail_of.get(&unit).copied()
    }

    /// Enters an attempt as the end of its line, or takes it out, as it now is.
    pub(super) fn reconcile_claim_end(&mut self, unit: UnitId) {
        if let Some((class, len)) = self.derived.tail_of.remove(&unit) {
            self.derived.tails.remove(&(class, len, unit));
        }
        let Some(attempt) = self.attempts.get(&unit) else { return };
        let stopping = attempt.phase == Phase::Stopping;
        if stopping || attempt.placements.len() != 1 || self.derived.successors.contains_key(&unit) {
            return;
        }
        let (mut len, mut ahead) = (0, attempt.after);
        while let Some(before) = ahead {
            len += 1;
            ahead = self.attempts.get(&before).and_then(|attempt| attempt.after);
        }
        let class = self.jobs.get(&unit.job).and_then(|job| self.class_of(job, self.unit_group(unit)));
        if let Some(class) = class {
            self.derived.tails.insert((class, len, unit));
            self.derived.tail_of.insert(unit, (class, len));
        }
    }

    /// Settles the end of the line that `unit` stands in.
    pub(super) fn reconcile_claim(&mut self, unit: UnitId) {
        let mut last = unit;
        while let Some(next) = self.derived.successors.get(&last) {
            last = *next;
        }
        self.reconcile_claim_end(last);
    }

    /// Tells that a line of this unit's class may take one more, if the class lines up at all.
    pub(super) fn note_line(&self, unit: UnitId, out: &mut Vec<Change>) {
        let Some(job) = self.jobs.get(&unit.job) else { return };
        let class = self.class_of(job, self.unit_group(unit));
        if let Some(class) = class.filter(|class| self.claim_depth_max(class.shape) > 0) {
            out.push(Change::ClaimReusable(class));
        }
    }

    /// Learns from a single task that ended well how long its shape runs.
    pub(super) fn update_run_time(&mut self, unit: UnitId, run_ms: u64) {
        let shape = self.jobs.get(&unit.job).and_then(|job| self.class_of(job, self.unit_group(unit)));
        let Some(digest) = shape.and_then(|class| self.derived.shapes.digest(class.shape)) else { return };
        let run = u32::try_from(run_ms.saturating_mul(1_000)).unwrap_or(u32::MAX);
        let before = self.run_times.get(&digest).copied();
        // Each new one counts a quarter: a few short runs are believed, one long one is noticed.
        let pace = before.map_or(run, |before| before - before / 4 + run / 4);
        if before != Some(pace) {
            self.touch(Key::RunTime(digest));
            self.run_times.insert(digest, pace);
        }
    }

    /// Forgets the pace of a shape that nothing live has any more.
    pub(super) fn forget_run_time(&mut self, shape: ShapeDigest) {
        self.touch(Key::RunTime(shape));
        self.run_times.remove(&shape);
    }
}
