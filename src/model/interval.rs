//! Sets of `u32` as sorted, disjoint, non-adjacent intervals.

/// A set of `u32` in half-open intervals, compact when its members are neighbours: the indices of 10,000
/// equal tasks are one interval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct IntervalSet(Intervals);

/// The intervals. A single one needs no allocation, because most jobs have a single task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Intervals {
    #[default]
    Empty,
    One([u32; 2]),
    Many(Vec<[u32; 2]>),
}

impl IntervalSet {
    /// Makes the set of the numbers from `start` to `end`, exclusive; empty if `start >= end`.
    pub fn from_range(start: u32, end: u32) -> Self {
        Self(if start < end { Intervals::One([start, end]) } else { Intervals::Empty })
    }

    /// Makes a set from half-open intervals in any order; they may overlap or be empty.
    pub fn from_intervals(intervals: impl IntoIterator<Item = [u32; 2]>) -> Self {
        let mut set = Self::default();
        for [start, end] in intervals {
            set.insert_range(start, end);
        }
        set
    }

    /// Returns the half-open intervals in ascending order.
    pub fn intervals(&self) -> &[[u32; 2]] {
        match &self.0 {
            Intervals::Empty => &[],
            Intervals::One(one) => std::slice::from_ref(one),
            Intervals::Many(many) => many,
        }
    }

    /// Returns the number of members.
    pub fn len(&self) -> u32 {
        self.intervals().iter().map(|[start, end]| end - start).sum()
    }

    /// True if the set has no members.
    pub fn is_empty(&self) -> bool {
        self.0 == Intervals::Empty
    }

    /// Returns the smallest member; `None` if the set is empty.
    pub fn first(&self) -> Option<u32> {
        self.intervals().first().map(|interval| interval[0])
    }

    /// Returns the smallest member that is at least `from`; `None` if there is none.
    pub fn first_from(&self, from: u32) -> Option<u32> {
        let intervals = self.intervals();
        let at = intervals.partition_point(|[_, end]| *end <= from);
        intervals.get(at).map(|[start, _]| (*start).max(from))
    }

    /// True if `value` is a member.
    pub fn contains(&self, value: u32) -> bool {
        let intervals = self.intervals();
        let after = intervals.partition_point(|[start, _]| *start <= value);
        after > 0 && value < intervals[after - 1][1]
    }

    /// Returns the members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.intervals().iter().flat_map(|[start, end]| *start..*end)
    }

    /// Adds one number. Returns true if it was not yet a member.
    pub fn insert(&mut self, value: u32) -> bool {
        let new = !self.contains(value);
        if new {
            self.insert_range(value, value + 1);
        }
        new
    }

    /// Adds the numbers from `start` to `end`, exclusive.
    pub fn insert_range(&mut self, start: u32, end: u32) {
        if start >= end {
            return;
        }
        let mut list = self.take();
        let from = list.partition_point(|interval| interval[1] < start);
        let to = list.partition_point(|interval| interval[0] <= end);
        let merged = match list.get(from..to) {
            Some([first, .., last]) => [first[0].min(start), last[1].max(end)],
            Some([only]) => [only[0].min(start), only[1].max(end)],
            _ => [start, end],
        };
        list.splice(from..to, [merged]);
        self.put(list);
    }

    /// Removes one number. Returns true if it was a member.
    pub fn remove(&mut self, value: u32) -> bool {
        if !self.contains(value) {
            return false;
        }
        let mut list = self.take();
        let at = list.partition_point(|interval| interval[0] <= value) - 1;
        let [start, end] = list[at];
        let parts = [[start, value], [value + 1, end]];
        list.splice(at..=at, parts.into_iter().filter(|[start, end]| start < end));
        self.put(list);
        true
    }

    fn take(&mut self) -> Vec<[u32; 2]> {
        match std::mem::take(&mut self.0) {
            Intervals::Empty => Vec::new(),
            Intervals::One(one) => vec![one],
            Intervals::Many(many) => many,
        }
    }

    fn put(&mut self, list: Vec<[u32; 2]>) {
        self.0 = match list.as_slice() {
            [] => Intervals::Empty,
            [one] => Intervals::One(*one),
            _ => Intervals::Many(list),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn agrees_with_a_btree_set() {
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut set, mut model) = (IntervalSet::default(), BTreeSet::new());
            for _ in 0..300 {
                let value = rng.random_range(0..40);
                match rng.random_range(0..3) {
                    0 => assert_eq!(set.insert(value), model.insert(value)),
                    1 => assert_eq!(set.remove(value), model.remove(&value)),
                    _ => {
                        let end = value + rng.random_range(0..6);
                        set.insert_range(value, end);
                        model.extend(value..end);
                    }
                }
                assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                assert_eq!(set.len() as usize, model.len());
                assert_eq!(set.first(), model.first().copied());
                assert_eq!(set.first_from(value), model.range(value..).next().copied());
                let intervals = set.intervals();
                assert!(intervals.windows(2).all(|pair| pair[0][1] < pair[1][0]), "{intervals:?}");
            }
        }
    }
}
