//! The mix of demands that is expected, learned from what arrives.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Node;
use super::overflow::overflow_of;
use crate::model::demand::{Demand, Expected, Lesson};
use crate::model::limit::LESSON_KINDS_MAX;

/// Arrivals after which the weight of all before is halved: the mix of some thousand tasks is known
/// well, and a shift is followed within as many.
const HALVED_EVERY: u64 = 8_192;
/// A task weighs this much when it arrives, so that halves don't get lost at once.
const WEIGHT: u64 = 1 << 16;
/// Kinds of demands that are counted; the lightest give way when the weights are halved.
const KINDS_MAX: usize = 4_096;
/// The first arrivals that are enough to begin with: even a rough idea beats none.
const FIRST: u64 = 16;

/// Weights of demands.
#[derive(Clone, Debug, Default)]
pub struct Mix {
    weights: BTreeMap<Arc<Demand>, u64>,
    arrivals: u64,
    /// The arrivals after which the next lesson is due.
    lesson_at: u64,
}

impl Mix {
    /// Goes on from what was learned.
    pub fn resume(lesson: &Lesson) -> Self {
        let kinds = lesson.kinds.iter().filter(|kind| kind.weight > 0);
        let weights = kinds.map(|kind| (kind.demand.clone(), kind.weight)).collect();
        Self { weights, arrivals: lesson.arrivals, lesson_at: next_lesson(lesson.arrivals) }
    }

    /// Counts tasks that have come.
    pub fn arrive(&mut self, demand: &Arc<Demand>, count: u64) {
        let halvings = (self.arrivals + count) / HALVED_EVERY - self.arrivals / HALVED_EVERY;
        self.arrivals += count;
        let known = self.weights.len();
        let weight = WEIGHT * count.min(HALVED_EVERY);
        match self.weights.get_mut(demand) {
            Some(sum) => *sum = sum.saturating_add(weight),
            None if known < KINDS_MAX => {
                self.weights.insert(demand.clone(), weight);
            }
            None => {}
        }
        if halvings > 0 {
            self.weights.values_mut().for_each(|weight| *weight >>= halvings.min(63));
            self.weights.retain(|_, weight| *weight > 0);
        }
    }

    /// Enough has come since the last time to learn from it: after a few tasks, then whenever
    /// there are twice as many, in the end as often as weights are halved.
    pub fn is_lesson_due(&self) -> bool {
        self.arrivals >= self.lesson_at.max(FIRST)
    }

    /// Learns what overflows from nodes like these, when empty.
    pub fn learn<'a>(&mut self, nodes: impl ExactSizeIterator<Item = &'a Node>, seed: u64) -> Lesson {
        self.lesson_at = next_lesson(self.arrivals);
        let mut kinds: Vec<_> = self.weights.iter().collect();
        kinds.sort_by_key(|(demand, weight)| {
            (Reverse(weight.saturating_mul(demand.device_millis() + 1)), (*demand).clone())
        });
        kinds.truncate(LESSON_KINDS_MAX);
        let mix: Vec<_> = kinds.into_iter().map(|(demand, weight)| (demand.clone(), *weight)).collect();
        let overflow = overflow_of(nodes, &mix, seed);
        let expected = |(demand, weight): (Arc<Demand>, u64)| {
            let overflow = overflow.get(&demand).copied().unwrap_or_default();
            Expected { demand, weight, overflow }
        };
        Lesson { arrivals: self.arrivals, kinds: mix.into_iter().map(expected).collect() }
    }
}

fn next_lesson(arrivals: u64) -> u64 {
    arrivals + arrivals.min(HALVED_EVERY)
}
