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

    /// Returns the member that has `rank` smaller ones; `None` if there are not so many.
    pub fn nth(&self, rank: u32) -> Option<u32> {
        let mut before = 0;
        for [start, end] in self.intervals() {
            if rank - before < end - start {
                return Some(start + (rank - before));
            }
            before += end - start;
        }
        None
    }

    /// Parses numbers and inclusive ranges: `0,3,7-9`.
    ///
    /// # Errors
    /// The part that is neither, with what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let number = |text: &str| {
                text.parse::<u32>().ok().filter(|number| *number < u32::MAX).ok_or_else(|| {
                    format!("{} is neither a number nor a range: write 0,3,7-9", super::text::quote(part))
                })
            };
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{first}-{last} ends before it begins"));
            }
            ranges.push([first, last + 1]);
        }
        // In any other order each range would move those behind it.
        ranges.sort_unstable();
        Ok(Self::from_intervals(ranges))
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

    /// Returns the members that `other` lacks. Takes time by the number of intervals of both.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut theirs = other.intervals();
        let mut rest = Vec::new();
        for [start, end] in self.intervals().iter().copied() {
            let mut from = start;
            while let [[other_start, other_end], later @ ..] = theirs {
                if *other_start >= end {
                    break;
                }
                rest.extend((from < *other_start).then_some([from, *other_start]));
                from = from.max(*other_end);
                if *other_end > end {
                    break;
                }
                theirs = later;
            }
            rest.extend((from < end).then_some([from, end]));
        }
        let mut set = Self::default();
        set.put(rest);
        set
    }

    /// Returns the members of both. Takes time by the number of intervals of both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all = [self.intervals(), other.intervals()].concat();
        all.sort_unstable();
        let mut merged: Vec<[u32; 2]> = Vec::with_capacity(all.len());
        for [start, end] in all {
            match merged.last_mut() {
                Some(last) if start <= last[1] => last[1] = last[1].max(end),
                _ => merged.push([start, end]),
            }
        }
        let mut set = Self::default();
        set.put(merged);
        set
    }

    /// Returns the members that `other` has, too.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut mine, mut theirs) = (self.intervals(), other.intervals());
        let mut both = Vec::new();
        while let ([[start, end], rest @ ..], [[other_start, other_end], other_rest @ ..]) = (mine, theirs) {
            let common = [*start.max(other_start), *end.min(other_end)];
            both.extend((common[0] < common[1]).then_some(common));
            if end <= other_end {
                mine = rest;
            } else {
                theirs = other_rest;
            }
        }
        let mut set = Self::default();
        set.put(both);
        set
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

/// Numbers and inclusive ranges, as [`IntervalSet::parse`] reads them.
impl std::fmt::Display for IntervalSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, [start, end]) in self.intervals().iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match end - start {
                1 => write!(f, "{comma}{start}")?,
                _ => write!(f, "{comma}{start}-{}", end - 1)?,
            }
        }
        Ok(())
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
                let other: BTreeSet<u32> = (0..5).map(|_| rng.random_range(0..40)).collect();
                let others = IntervalSet::from_intervals(other.iter().map(|member| [*member, member + 2]));
                let both = set.intersection(&others);
                let common: Vec<u32> = set.iter().filter(|member| others.contains(*member)).collect();
                assert_eq!(both.iter().collect::<Vec<_>>(), common);
                assert_eq!(both, IntervalSet::from_intervals(both.intervals().iter().copied()));
                let rest: Vec<u32> = set.iter().filter(|member| !others.contains(*member)).collect();
                assert_eq!(set.difference(&others).iter().collect::<Vec<_>>(), rest);
                let all: BTreeSet<u32> = set.iter().chain(others.iter()).collect();
                assert_eq!(
                    set.union(&others),
                    IntervalSet::from_intervals(all.iter().map(|one| [*one, one + 1]))
                );
                let intervals = set.intervals();
                assert!(intervals.windows(2).all(|pair| pair[0][1] < pair[1][0]), "{intervals:?}");
            }
        }
    }

    #[test]
    fn ranges_are_read_and_printed_alike() {
        let set = IntervalSet::parse("9,0,3,7-8").unwrap();
        assert_eq!(set.to_string(), "0,3,7-9");
        let members: Vec<Option<u32>> = (0..6).map(|rank| set.nth(rank)).collect();
        assert_eq!(members, [Some(0), Some(3), Some(7), Some(8), Some(9), None]);
        for bad in ["", "1,", "a", "3-1", "1-2-3", "-1", "4294967295"] {
            assert!(IntervalSet::parse(bad).is_err(), "{bad}");
        }
    }
}
