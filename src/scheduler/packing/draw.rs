//! Draws kinds of tasks as often as they come.

use super::random::Random;

/// Indexes by weight.
pub(super) struct Draw {
    /// Sums of weights up to and with each.
    ends: Vec<u64>,
    total: u64,
}

impl Draw {
    pub(super) fn new(weights: impl Iterator<Item = u64>) -> Self {
        let mut total = 0u64;
        let sum = |weight: u64| {
            total = total.saturating_add(weight);
            total
        };
        Self { ends: weights.map(sum).collect(), total }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// An index from each of `parts` equal parts of the weights, in random order; the draw must not be empty.
    ///
    /// Where neighbours are alike, what is drawn is much nearer to what the weights say than if each index were
    /// drawn by itself: stratified sampling, see McKay, Beckman and Conover, A Comparison of Three Methods for
    /// Selecting Values of Input Variables, Technometrics 21 (1979).
    pub(super) fn round(&self, parts: usize, random: &mut Random) -> Vec<usize> {
        let draw = |part: usize| {
            let point = part as u128 * u128::from(self.total) + u128::from(random.below(self.total));
            let point = (point / parts as u128) as u64;
            self.ends.partition_point(|end| *end <= point)
        };
        let mut drawn: Vec<usize> = (0..parts).map(draw).collect();
        for last in (1..parts).rev() {
            drawn.swap(last, random.below(last as u64 + 1) as usize);
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_what_the_weights_say() {
        let draw = Draw::new([5, 0, 25, 1, 1].into_iter());
        let mut random = Random::new(1);
        let rounds: Vec<Vec<usize>> = (0..100).map(|_| draw.round(32, &mut random)).collect();
        for round in &rounds {
            let count = |index: usize| round.iter().filter(|drawn| **drawn == index).count();
            assert_eq!([0, 1, 2, 3, 4].map(count), [5, 0, 25, 1, 1]);
        }
        assert_ne!(rounds[0], rounds[1], "the order is random");
        let firsts = rounds.iter().filter(|round| round[0] == 0).count();
        assert!((4..30).contains(&firsts), "each place in the order is as likely: {firsts} of 100");
    }

    #[test]
    fn largest_weights_do_not_overflow() {
        let draw = Draw::new([u64::MAX, u64::MAX, 1].into_iter());
        assert_eq!(draw.round(1_000, &mut Random::new(1)), [0; 1_000]);
        assert!(Draw::new([0, 0].into_iter()).is_empty() && !draw.is_empty());
    }
}
