//! Samples kinds of tasks in proportion to their frequency.

use super::random::Random;

/// A sampler of indexes by weight.
pub(super) struct StratifiedSampler {
    /// For each index the sum of the weights up to and including its own.
    ends: Vec<u64>,
    total: u64,
}

impl StratifiedSampler {
    pub(super) fn new(weights: impl Iterator<Item = u64>) -> Self {
        let mut total = 0u64;
        let sum = |weight: u64| {
            total = total.saturating_add(weight);
            total
        };
        Self { ends: weights.map(sum).collect(), total }
    }

    /// Returns whether all weights are zero.
    pub(super) fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Returns one index from each of `parts` equal parts of the total weight, in random order. The sampler
    /// must not be empty.
    ///
    /// If neighbouring indexes are similar, the sample is much closer to the weights than independent draws
    /// are: stratified sampling, see McKay, Beckman and Conover, A Comparison of Three Methods for Selecting
    /// Values of Input Variables, Technometrics 21 (1979).
    pub(super) fn sample(&self, parts: usize, random: &mut Random) -> Vec<usize> {
        let index = |part: usize| {
            let point = part as u128 * u128::from(self.total) + u128::from(random.below(self.total));
            let point = (point / parts as u128) as u64;
            self.ends.partition_point(|end| *end <= point)
        };
        let mut sample: Vec<usize> = (0..parts).map(index).collect();
        for last in (1..parts).rev() {
            sample.swap(last, random.below(last as u64 + 1) as usize);
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_matches_the_weights() {
        let sampler = StratifiedSampler::new([5, 0, 25, 1, 1].into_iter());
        let mut random = Random::new(1);
        let samples: Vec<Vec<usize>> = (0..100).map(|_| sampler.sample(32, &mut random)).collect();
        for sample in &samples {
            let count = |index: usize| sample.iter().filter(|drawn| **drawn == index).count();
            assert_eq!([0, 1, 2, 3, 4].map(count), [5, 0, 25, 1, 1]);
        }
        assert_ne!(samples[0], samples[1], "the order is random");
        let firsts = samples.iter().filter(|sample| sample[0] == 0).count();
        assert!((4..30).contains(&firsts), "each position is equally likely: {firsts} of 100");
    }

    #[test]
    fn largest_weights_do_not_overflow() {
        let sampler = StratifiedSampler::new([u64::MAX, u64::MAX, 1].into_iter());
        assert_eq!(sampler.sample(1_000, &mut Random::new(1)), [0; 1_000]);
        assert!(StratifiedSampler::new([0, 0].into_iter()).is_empty() && !sampler.is_empty());
    }
}
