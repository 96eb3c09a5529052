//! Fragmentation Gradient Descent: Weng et al., Beware of Fragmentation, USENIX ATC 2023.
//!
//! A node's fragmentation is the device capacity that a task drawn from the expected mix couldn't use:
//! all that is free if the task doesn't fit, otherwise what is free on devices too full for it; a task
//! without devices is no reason to call any of it fragmented. A task goes where it adds the least. As in the
//! paper's own artifact the mix is the most frequent tasks that make up 95 % of all, told apart by CPU and
//! devices, not by memory (here also by where they may run); the difference is squashed to whole points
//! from 0 to 100; and of the nodes with equal points the first is taken.

use super::bucket::{Bucket, Outline};
use crate::model::demand::Demand;
use crate::model::device::DeviceAmount;
use crate::model::limit::DEVICE_MILLIS;

/// Share of all tasks that the typical ones make up, in percent.
const TYPICAL_PERCENT: u64 = 95;

/// The difference in millionths of a device that is worth k points at the least, for k from 51 on:
/// a logistic curve, 1,000,000 × ln(k / (100 − k)). Below 50 it is the mirror image.
const POINTS: [i64; 49] = [
    40_006, 80_043, 120_145, 160_343, 200_671, 241_163, 281_852, 322_774, 363_966, 405_466, 447_313, 489_549,
    532_217, 575_365, 619_040, 663_295, 708_186, 753_772, 800_120, 847_298, 895_385, 944_462, 994_623,
    1_045_969, 1_098_613, 1_152_680, 1_208_312, 1_265_667, 1_324_926, 1_386_295, 1_450_011, 1_516_348,
    1_585_628, 1_658_229, 1_734_602, 1_815_290, 1_900_959, 1_992_431, 2_090_742, 2_197_225, 2_313_635,
    2_442_348, 2_586_690, 2_751_536, 2_944_439, 3_178_054, 3_476_099, 3_891_821, 4_595_120,
];

/// The expected mix.
#[derive(Debug)]
pub struct Fgd {
    typical: Vec<(Demand, Outline, u64)>,
    total: u64,
}

impl Fgd {
    /// Takes the typical tasks out of a mix of demands with how often each comes.
    pub fn new<'a>(mix: impl IntoIterator<Item = (&'a Demand, u64)>) -> Self {
        let mut kinds = std::collections::BTreeMap::<Demand, u64>::new();
        for (demand, count) in mix {
            let mut kind = demand.clone();
            kind.resources = crate::model::resource::Resources {
                cpu_millis: demand.resources.cpu_millis,
                ..Default::default()
            };
            *kinds.entry(kind).or_default() += count;
        }
        let all: u64 = kinds.values().sum();
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let (mut typical, mut total) = (Vec::new(), 0);
        for (demand, count) in kinds {
            if total * 100 >= all * TYPICAL_PERCENT {
                break;
            }
            total += count;
            let outline = Outline::of_demand(&demand);
            typical.push((demand, outline, count));
        }
        Self { typical, total: total.max(1) }
    }

    /// A node's fragmentation, in device thousandths.
    pub fn fragmented_millis(&self, bucket: &Bucket) -> u64 {
        self.fragmentation(bucket).unsigned_abs() / self.total
    }

    /// A node's fragmentation, in device thousandths times the total of the mix.
    pub(super) fn fragmentation(&self, bucket: &Bucket) -> i64 {
        let free = bucket.device_free();
        let outline = Outline::of_bucket(bucket);
        let unusable = |demand: &Demand, asked: Outline| {
            let Some(devices) = demand.devices.as_ref() else { return 0 };
            if !outline.may_hold(asked) || !bucket.fits(demand) {
                return free;
            }
            let least = match devices.amount {
                DeviceAmount::Fraction(millis) => millis,
                DeviceAmount::Whole(_) => DEVICE_MILLIS,
            };
            let full = bucket.devices.iter().filter(|room| room.free < least || !devices.allows(room.model));
            full.map(|room| u64::from(room.free)).sum()
        };
        let sum: u64 =
            self.typical.iter().map(|(demand, asked, count)| count * unusable(demand, *asked)).sum();
        i64::try_from(sum).unwrap_or(i64::MAX)
    }

    /// Minus the points for going from one fragmentation to another.
    pub(super) fn cost(&self, before: i64, after: i64) -> i64 {
        let gain = i128::from(before - after) * 1_000 / i128::from(self.total);
        let points = POINTS.partition_point(|least| i128::from(*least) <= gain.abs()) as i64;
        // 100 points are never reached, and halves are cut off: that is upwards below 50.
        if gain >= 0 { -(50 + points) } else { -(49 - points).max(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_those_of_a_logistic_curve_cut_to_whole_ones() {
        let fgd = Fgd { typical: Vec::new(), total: 1 };
        for gain in (-8_000i64..=8_000).step_by(7) {
            let exact = 100.0 / (1.0 + (-gain as f64 / 1_000.0).exp());
            assert_eq!(fgd.cost(gain, 0), -(exact as i64), "{gain}");
        }
    }
}
