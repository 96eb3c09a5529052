//! The workload: how often tasks of each demand arrive, and how many end meanwhile. Older ones weigh less.
//!
//! It is part of the state, not of the scheduler, so that it survives a restart.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::demand::Demand;
use crate::model::limit::PROFILE_ENTRIES_MAX;

/// Arrivals after which all earlier weights are halved: some thousand tasks determine a mix well, and a shift
/// is followed within as many.
const HALVE_EVERY: u64 = 8_192;
/// Weight of a task when it arrives, large enough that it can be halved many times.
const WEIGHT: u64 = 1 << 16;
/// Demands that are counted; while there are so many, new ones are ignored. Those whose weight falls to zero
/// are dropped when the weights are halved.
const DEMANDS_MAX: usize = 4_096;
/// Arrivals before the first profile: even a rough profile is better than none.
const ARRIVALS_MIN: u64 = 16;

/// What has arrived and ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// By the order of demands; at most [`DEMANDS_MAX`].
    pub(super) weights: BTreeMap<Arc<Demand>, u64>,
    /// All tasks that have ever arrived.
    pub(super) arrivals: u64,
    /// Arrived tasks, old ones weighing less.
    pub(super) recent_arrivals: u64,
    /// Ended tasks, old ones weighing less.
    pub(super) recent_ends: u64,
    /// The number of arrivals at which the profile is next checked.
    pub(super) next_check_at: u64,
}

impl Workload {
    /// Counts tasks that have arrived.
    pub fn arrive(&mut self, demand: &Arc<Demand>, count: u64) {
        let halvings = (self.arrivals + count) / HALVE_EVERY - self.arrivals / HALVE_EVERY;
        self.arrivals += count;
        self.recent_arrivals += count;
        let demands = self.weights.len();
        let weight = WEIGHT * count.min(HALVE_EVERY);
        match self.weights.get_mut(demand) {
            Some(sum) => *sum = sum.saturating_add(weight),
            None if demands < DEMANDS_MAX => {
                self.weights.insert(demand.clone(), weight);
            }
            None => {}
        }
        if halvings > 0 {
            (self.recent_arrivals, self.recent_ends) =
                (self.recent_arrivals >> halvings.min(63), self.recent_ends >> halvings.min(63));
            self.weights.values_mut().for_each(|weight| *weight >>= halvings.min(63));
            self.weights.retain(|_, weight| *weight > 0);
        }
    }

    /// Counts tasks that have ended.
    pub fn depart(&mut self, count: u64) {
        self.recent_ends += count;
    }

    /// All tasks that have ever arrived.
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// Whether the profile should be checked: after the first few arrivals, then at each doubling, and from some
    /// thousand arrivals on as often as the weights are halved.
    pub fn is_check_due(&self) -> bool {
        self.arrivals >= self.next_check_at.max(ARRIVALS_MIN)
    }

    /// The demands that ask for most, at most [`PROFILE_ENTRIES_MAX`], each with its weight; the largest first.
    pub fn mix(&self) -> Vec<(Arc<Demand>, u64)> {
        let mut entries: Vec<_> = self.weights.iter().collect();
        entries.sort_by_key(|(demand, weight)| {
            (Reverse(weight.saturating_mul(demand.device_millis() + 1)), (*demand).clone())
        });
        entries.truncate(PROFILE_ENTRIES_MAX);
        entries.into_iter().map(|(demand, weight)| (demand.clone(), *weight)).collect()
    }

    /// How many tasks ended while a hundred arrived; at most 100.
    pub fn turnover_percent(&self) -> u32 {
        let percent = self.recent_ends.saturating_mul(100).checked_div(self.recent_arrivals);
        percent.unwrap_or(100).min(100) as u32
    }

    /// Notes that the profile was checked, and replaced if need be.
    pub fn note_check(&mut self) {
        self.next_check_at = self.arrivals + self.arrivals.min(HALVE_EVERY);
    }
}
