//! Where a job's units stand, as ranges: the units themselves may be a million.

use super::job::Progress;
use crate::model::attempt::OutcomeKind;

/// Where a unit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitState {
    Waiting,
    /// For the time after a failure.
    BackingOff,
    /// It has an attempt.
    Live,
    /// It ended for good.
    Ended(OutcomeKind),
    /// It had not ended when its job did.
    Skipped,
}

/// Consecutive units in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    pub state: UnitState,
    pub first: u32,
    /// Included.
    pub last: u32,
}

/// At most `limit` ranges of the units from `from` on, of a job of `total` units that is live or has ended. The work is
/// proportional to `limit` and the number of unit groups.
pub fn unit_ranges(groups: &[Progress], total: u32, is_live: bool, from: u32, limit: usize) -> Vec<Units> {
    let mut noted: Vec<(u32, u32, UnitState)> = Vec::new();
    for group in groups {
        let ended = group.ended.iter().map(|(kind, units)| (units, UnitState::Ended(*kind)));
        for (units, state) in ended.chain([(&group.waiting, UnitState::Waiting)]) {
            let intervals = units.intervals();
            let at = intervals.partition_point(|[_, end]| *end <= from);
            let next = intervals[at..].iter().take(limit);
            noted.extend(next.map(|[start, end]| (*start, *end, state)));
        }
        let at = group.tried.partition_point(|tried| tried.unit < from);
        let backing_off = group.tried[at..].iter().filter(|tried| tried.not_before.is_some());
        // Consecutive ones are joined below, so as many ranges need as many units at least.
        noted.extend(joined(backing_off.map(|tried| tried.unit)).take(limit));
    }
    noted.sort_unstable_by_key(|(start, ..)| *start);
    let is_complete = noted.len() < limit;
    // Units that are noted nowhere have an attempt, as long as the job is live.
    let other = if is_live { UnitState::Live } else { UnitState::Skipped };
    let mut ranges: Vec<Units> = Vec::new();
    let mut push = |start: u32, end: u32, state: UnitState| match ranges.last_mut() {
        _ if start >= end => {}
        Some(last) if last.state == state && last.last + 1 == start => last.last = end - 1,
        _ => ranges.push(Units { state, first: start, last: end - 1 }),
    };
    let mut next = from;
    for (start, end, state) in noted.into_iter().take(limit) {
        push(next, start, other);
        // A job that has ended leaves what waited.
        let state = if is_live || matches!(state, UnitState::Ended(_)) { state } else { UnitState::Skipped };
        push(start.max(next), end, state);
        next = end;
    }
    if is_complete {
        push(next, total, other);
    }
    ranges.truncate(limit);
    ranges
}

/// Units in order, as ranges without their end.
fn joined(units: impl Iterator<Item = u32>) -> impl Iterator<Item = (u32, u32, UnitState)> {
    let mut units = units.peekable();
    std::iter::from_fn(move || {
        let start = units.next()?;
        let mut end = start + 1;
        while units.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some((start, end, UnitState::BackingOff))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::interval::IntervalSet;
    use crate::model::time::Timestamp;
    use crate::state::job::Tried;

    fn tried(unit: u32, not_before: Option<Timestamp>) -> Tried {
        Tried { unit, attempts: 1, failures: 1, losses: 0, returns: 0, not_before, avoid: None }
    }

    /// Two groups of 50 units in all states.
    fn groups() -> Vec<Progress> {
        let at = Some(Timestamp(1_000));
        let first = Progress {
            waiting: IntervalSet::from_intervals([[10, 20], [22, 24]]),
            ended: vec![
                (OutcomeKind::Succeeded, IntervalSet::from_range(0, 8)),
                (OutcomeKind::Failed, IntervalSet::from_range(8, 9)),
            ],
            tried: vec![tried(22, None), tried(30, at), tried(31, at), tried(33, at)],
            live: 17,
            running: 1,
        };
        let second = Progress { waiting: IntervalSet::from_range(50, 100), ..Progress::default() };
        vec![first, second]
    }

    /// The state of each unit, found without intervals.
    fn one_by_one(groups: &[Progress], total: u32, is_live: bool) -> Vec<UnitState> {
        let state = |unit: u32| {
            for group in groups {
                if let Some((kind, _)) = group.ended.iter().find(|(_, units)| units.contains(unit)) {
                    return UnitState::Ended(*kind);
                }
                if !is_live {
                    continue;
                }
                if group.waiting.contains(unit) {
                    return UnitState::Waiting;
                }
                if group.tried(unit).is_some_and(|tried| tried.not_before.is_some()) {
                    return UnitState::BackingOff;
                }
            }
            if is_live { UnitState::Live } else { UnitState::Skipped }
        };
        (0..total).map(state).collect()
    }

    #[test]
    fn pages_of_any_size_name_each_unit_once_in_its_state() {
        let groups = groups();
        for (is_live, limit) in [true, false].into_iter().flat_map(|live| [1, 2, 3, 100].map(|n| (live, n))) {
            let expected = one_by_one(&groups, 100, is_live);
            let (mut found, mut from) = (Vec::new(), 0);
            while from < 100 {
                let page = unit_ranges(&groups, 100, is_live, from, limit);
                assert!((1..=limit).contains(&page.len()), "limit {limit}: {page:?}");
                for units in page {
                    assert_eq!(units.first, from, "limit {limit}: {units:?}");
                    found.extend((units.first..=units.last).map(|_| units.state));
                    from = units.last + 1;
                }
            }
            assert_eq!(found, expected, "live {is_live}, limit {limit}");
        }
        assert_eq!(unit_ranges(&groups, 100, true, 100, 10), []);
        // Units of neighbouring groups in one state are one range.
        let waiting =
            |from, to| Progress { waiting: IntervalSet::from_range(from, to), ..Progress::default() };
        let all = Units { state: UnitState::Waiting, first: 0, last: 9 };
        assert_eq!(unit_ranges(&[waiting(0, 5), waiting(5, 10)], 10, true, 0, 10), [all]);
    }
}
