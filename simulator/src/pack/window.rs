//! Chooses among waiting tasks which to place next.

use std::collections::{BTreeMap, VecDeque};

use super::procedure::{Cluster, Placed, Player};

/// A task is passed over by no more of those that came later than so many times the window: with a
/// tenth of that, most of what choosing gains is lost.
const PASSES_PER_WINDOW: usize = 8;

/// Plays arrivals with so many waiting at a time.
pub(super) fn play(player: &mut Player, cluster: &Cluster, arrivals: &[usize], window: usize) -> Vec<Placed> {
    let mut placed = Vec::new();
    let mut waiting: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    let mut refused = vec![false; cluster.demands.len()];
    let (mut next, mut count) = (0, 0);
    loop {
        while count < window && next < arrivals.len() {
            let demand = cluster.demand_of[arrivals[next]];
            player.arrive(demand);
            // Nothing departs: what didn't fit once never will.
            if !refused[demand] {
                waiting.entry(demand).or_default().push_back(next);
                count += 1;
            }
            next += 1;
        }
        let Some(demand) = choose(player, &mut waiting, &mut refused, window) else {
            count = 0;
            if next >= arrivals.len() {
                return placed;
            }
            continue;
        };
        count = waiting.values().map(VecDeque::len).sum();
        let Some(arrival) = waiting.get_mut(&demand).and_then(VecDeque::pop_front) else { continue };
        placed.extend(player.place(demand, arrival));
        count -= 1;
    }
}

/// The demand whose oldest task is to be placed next: where it costs least, of those that the oldest
/// of all may be passed over by. Those that don't fit are dropped.
fn choose(
    player: &mut Player,
    waiting: &mut BTreeMap<usize, VecDeque<usize>>,
    refused: &mut [bool],
    window: usize,
) -> Option<usize> {
    let mut fitting = Vec::new();
    waiting.retain(|demand, tasks| {
        let Some(first) = tasks.front() else { return false };
        let id = player.id(*demand);
        match player.packer.best_of(id, None) {
            Some((score, _)) => fitting.push((score.cost, *first, *demand)),
            None => refused[*demand] = true,
        }
        !refused[*demand]
    });
    let oldest = fitting.iter().map(|(_, first, _)| *first).min()?;
    let last = oldest + PASSES_PER_WINDOW * window;
    fitting.into_iter().filter(|(_, first, _)| *first <= last).min().map(|(_, _, demand)| demand)
}

/// Counts who was passed over.
pub(super) struct Passed;

impl Passed {
    /// The most later arrivals that were placed before one that was placed, too.
    pub(super) fn most(order: impl Iterator<Item = usize>, arrivals: usize) -> usize {
        // A Fenwick tree over the arrivals that are placed.
        let mut tree = vec![0usize; arrivals + 1];
        let (mut most, mut before) = (0, 0);
        for arrival in order {
            let (mut at, mut earlier) = (arrival + 1, 0);
            while at > 0 {
                earlier += tree[at];
                at &= at - 1;
            }
            most = most.max(before - earlier);
            let mut at = arrival + 1;
            while at <= arrivals {
                tree[at] += 1;
                at += at & at.wrapping_neg();
            }
            before += 1;
        }
        most
    }
}

#[cfg(test)]
mod tests {
    use super::Passed;

    #[test]
    fn a_task_is_passed_over_by_each_later_one_that_is_placed_before_it() {
        assert_eq!(Passed::most([0, 1, 2].into_iter(), 3), 0);
        assert_eq!(Passed::most([2, 1, 0].into_iter(), 3), 2);
        assert_eq!(Passed::most([3, 1, 4, 0].into_iter(), 5), 3);
        assert_eq!(Passed::most([1].into_iter(), 5), 0);
    }
}
