//! The mix of demands that is expected, learned from what arrives.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::demand::Demand;

/// Arrivals after which the weight of all before is halved: the mix of some thousand tasks is known
/// well, and a shift is followed within as many.
const HALVED_EVERY: u64 = 8_192;
/// A task weighs this much when it arrives, so that halves don't get lost at once.
const WEIGHT: u64 = 1 << 16;
/// Kinds of demands that are counted; the lightest give way when the weights are halved.
const KINDS_MAX: usize = 4_096;
/// The first arrivals that are enough to begin with.
const FIRST: u64 = 100;

/// Weights of demands.
#[derive(Clone, Debug, Default)]
pub struct Mix {
    weights: BTreeMap<Arc<Demand>, u64>,
    arrivals: u64,
    /// The arrivals after which the next lesson is due.
    lesson_at: u64,
}

impl Mix {
    /// Counts an arrival; tells whether enough has arrived since the last time to learn from it: after
    /// a hundred, then whenever there are three times as many, in the end as often as weights are halved.
    pub fn arrive(&mut self, demand: &Arc<Demand>) -> bool {
        self.arrivals += 1;
        let known = self.weights.len();
        match self.weights.get_mut(demand) {
            Some(weight) => *weight += WEIGHT,
            None if known < KINDS_MAX => {
                self.weights.insert(demand.clone(), WEIGHT);
            }
            None => {}
        }
        if self.arrivals.is_multiple_of(HALVED_EVERY) {
            self.weights.values_mut().for_each(|weight| *weight /= 2);
            self.weights.retain(|_, weight| *weight > 0);
        }
        let due = self.arrivals >= self.lesson_at.max(FIRST);
        if due {
            self.lesson_at = self.arrivals + (2 * self.arrivals).min(HALVED_EVERY);
        }
        due
    }

    /// What has arrived, with its weight.
    pub fn weights(&self) -> Vec<(Arc<Demand>, u64)> {
        self.weights.iter().map(|(demand, weight)| (demand.clone(), *weight)).collect()
    }
}
