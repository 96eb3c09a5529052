//! Claims: short tasks that wait in their pool, each behind an attempt of its own class whose placement it
//! will reuse.
//!
//! Between the end of a task and the start of the next on the same devices lie a report, a commit and a start
//! order. For tasks of milliseconds that takes as long as the task itself. So where attempts of a shape are
//! known to be short, a unit may be ordered *after* a live attempt of its own class: it holds nothing until
//! that attempt is gone, then takes over its node and devices, and the agent starts it without a round trip.
//! (HTCondor reuses claims alike; HyperQueue sends a worker more tasks than it can run at once.)
//!
//! A claim's queue is short in time: a start order that waits longer than its start-by returns to the broker.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::attempt::Phase;
use crate::model::change::Change;
use crate::model::id::UnitId;
use crate::model::shape::ShapeDigest;
use crate::model::shape::{ClassKey, ShapeId};
use crate::state::State;
use crate::state::snapshot::Key;

/// Successors queued behind the attempt that holds a claim.
const SUCCESSORS_MAX: u32 = 4;
/// Work that a claim holds ready, in microseconds: some round trips between agent, broker and disk.
const COVER_MICROS: u32 = 20_000;
/// Attempts that run longer are not queued: they would gain little, and a queued unit can't start elsewhere.
const RUN_MAX_MICROS: u32 = 200_000;
/// From a start order behind a claim until its agent must not start it any more, in milliseconds: if the
/// predecessor turns out to be long, the unit returns and is placed again.
pub(in crate::state) const WAIT_MS: u64 = 2_000;

/// Which attempt takes over from which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// By the attempt whose placement is taken over.
    pub successors: BTreeMap<UnitId, UnitId>,
    /// The last attempts of claims by class and by how many are queued up to them.
    ends: BTreeSet<(ClassKey, u8, UnitId)>,
    /// Where each of them is in `ends`.
    ends_by_unit: BTreeMap<UnitId, (ClassKey, u8)>,
}

/// Computes the index from the records.
pub fn rebuild(state: &State) -> Claims {
    let mut claims = Claims::default();
    let queued = state.attempts.values().filter_map(|attempt| Some((attempt.after?, attempt.unit)));
    claims.successors.extend(queued);
    for unit in state.attempts.keys() {
        if let Some((class, queued)) = state.claim_end_of(*unit, &claims) {
            claims.ends.insert((class, queued, *unit));
            claims.ends_by_unit.insert(*unit, (class, queued));
        }
    }
    claims
}

/// Both states have the same claims; their shapes may be numbered differently.
pub fn same(left: &State, right: &State) -> bool {
    let ends = |state: &State| -> Vec<(UnitId, u8)> {
        state.index.claims.ends_by_unit.iter().map(|(unit, (_, queued))| (*unit, *queued)).collect()
    };
    left.index.claims.successors == right.index.claims.successors && ends(left) == ends(right)
}

impl State {
    /// How many units of this shape may be queued behind one claim; 0 for shapes that run long, or whose run
    /// time is unknown.
    pub fn successors_max(&self, shape: ShapeId) -> u8 {
        let run_time = self.index.shapes.digest(shape).and_then(|digest| self.run_times.get(&digest));
        match run_time {
            Some(micros) if *micros <= RUN_MAX_MICROS => {
                (COVER_MICROS / micros.max(&1)).clamp(1, SUCCESSORS_MAX) as u8
            }
            _ => 0,
        }
    }

    /// The attempt that takes over this unit's placement.
    pub fn successor_of(&self, unit: UnitId) -> Option<UnitId> {
        self.index.claims.successors.get(&unit).copied()
    }

    /// The last attempts of a class's claims, shortest queues first, with how many are queued up to each.
    pub fn claim_ends(&self, class: ClassKey) -> impl Iterator<Item = (u8, UnitId)> {
        let first = (class, 0, UnitId { job: Default::default(), unit: 0 });
        let ends = self.index.claims.ends.range(first..);
        ends.take_while(move |(other, ..)| *other == class).map(|(_, queued, unit)| (*queued, *unit))
    }

    /// The attempt's class and how many are queued up to and with it, if another may be queued behind it.
    pub(in crate::state) fn claim_end(&self, unit: UnitId) -> Option<(ClassKey, u8)> {
        self.index.claims.ends_by_unit.get(&unit).copied()
    }

    /// The same, computed.
    fn claim_end_of(&self, unit: UnitId, claims: &Claims) -> Option<(ClassKey, u8)> {
        let attempt = self.attempts.get(&unit)?;
        let stopping = attempt.phase == Phase::Stopping;
        if stopping || attempt.placements.len() != 1 || claims.successors.contains_key(&unit) {
            return None;
        }
        let (mut queued, mut predecessor) = (0, attempt.after);
        while let Some(before) = predecessor {
            queued += 1;
            predecessor = self.attempts.get(&before).and_then(|attempt| attempt.after);
        }
        let job = self.jobs.get(&unit.job)?;
        Some((self.class_of(job, self.unit_group(unit))?, queued))
    }

    /// Enters an attempt as the last of its claim, or removes it, as it now is.
    pub(in crate::state) fn reconcile_claim_end(&mut self, unit: UnitId) {
        if let Some((class, queued)) = self.index.claims.ends_by_unit.remove(&unit) {
            self.index.claims.ends.remove(&(class, queued, unit));
        }
        if let Some((class, queued)) = self.claim_end_of(unit, &self.index.claims) {
            self.index.claims.ends.insert((class, queued, unit));
            self.index.claims.ends_by_unit.insert(unit, (class, queued));
        }
    }

    /// Does the same for the last attempt of the claim that `unit` is queued behind.
    pub(in crate::state) fn reconcile_claim(&mut self, unit: UnitId) {
        let mut last = unit;
        while let Some(next) = self.index.claims.successors.get(&last) {
            last = *next;
        }
        self.reconcile_claim_end(last);
    }

    /// Reports that a claim of this unit's class may take one more successor, if the class reuses claims.
    pub(in crate::state) fn note_claim(&self, unit: UnitId, out: &mut Vec<Change>) {
        let Some(job) = self.jobs.get(&unit.job) else { return };
        let class = self.class_of(job, self.unit_group(unit));
        if let Some(class) = class.filter(|class| self.successors_max(class.shape) > 0) {
            out.push(Change::ClaimReusable(class));
        }
    }

    /// Updates the moving-average run time of a single task's shape.
    pub(in crate::state) fn update_run_time(&mut self, unit: UnitId, run_ms: u64) {
        let shape = self.jobs.get(&unit.job).and_then(|job| self.class_of(job, self.unit_group(unit)));
        let Some(digest) = shape.and_then(|class| self.index.shapes.digest(class.shape)) else { return };
        let run = u32::try_from(run_ms.saturating_mul(1_000)).unwrap_or(u32::MAX);
        let before = self.run_times.get(&digest).copied();
        // Each new one counts a quarter: a few short runs are believed, one long one is noticed.
        let average = before.map_or(run, |before| before - before / 4 + run / 4);
        if before != Some(average) {
            self.touch(Key::RunTime(digest));
            self.run_times.insert(digest, average);
        }
    }

    /// Removes the run time of a shape that no live job has any more.
    pub(in crate::state) fn forget_run_time(&mut self, shape: ShapeDigest) {
        self.touch(Key::RunTime(shape));
        self.run_times.remove(&shape);
    }
}
