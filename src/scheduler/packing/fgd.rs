//! Fragmentation Gradient Descent: Weng et al., Beware of Fragmentation, USENIX ATC 2023.
//!
//! A node's fragmentation is the free device capacity that a random task of the expected mix can't use. If
//! the task does not fit, that is all of the free capacity; otherwise it is what is free on devices with too
//! little for the task. A task without devices counts as 0. A task is placed where it adds the least
//! fragmentation.
//!
//! As in the paper's artifact, the mix consists of the most frequent tasks that make up 95 % of all. They are
//! distinguished by CPU and devices, not by memory (here also by where they may run). The difference is
//! mapped to whole points from 0 to 100 by a logistic curve, and of the nodes with equal points the first is
//! taken.

use super::bucket::{Bounds, Bucket};
use crate::model::demand::Demand;
use crate::model::device::DeviceAmount;
use crate::model::limit::DEVICE_MILLIS;

/// Percentage of all tasks that the typical ones make up.
const TYPICAL_PERCENT: u64 = 95;

/// The least difference, in millionths of a device, that gives k points, for k from 51 on: the logistic curve
/// 1,000,000 × ln(k / (100 − k)). Below 50 it is the mirror image.
const POINTS: [i64; 49] = [
    40_006, 80_043, 120_145, 160_343, 200_671, 241_163, 281_852, 322_774, 363_966, 405_466, 447_313, 489_549,
    532_217, 575_365, 619_040, 663_295, 708_186, 753_772, 800_120, 847_298, 895_385, 944_462, 994_623,
    1_045_969, 1_098_613, 1_152_680, 1_208_312, 1_265_667, 1_324_926, 1_386_295, 1_450_011, 1_516_348,
    1_585_628, 1_658_229, 1_734_602, 1_815_290, 1_900_959, 1_992_431, 2_090_742, 2_197_225, 2_313_635,
    2_442_348, 2_586_690, 2_751_536, 2_944_439, 3_178_054, 3_476_099, 3_891_821, 4_595_120,
];

/// The typical tasks of the expected mix.
#[derive(Debug)]
pub struct Fgd {
    /// Demands with their bounds and counts.
    typical: Vec<(Demand, Bounds, u64)>,
    /// The sum of the counts, at least 1.
    total: u64,
}

impl Fgd {
    /// Selects the typical tasks from a mix: demands, each with its frequency.
    pub fn new<'a>(mix: impl IntoIterator<Item = (&'a Demand, u64)>) -> Self {
        let mut entries = std::collections::BTreeMap::<Demand, u64>::new();
        for (demand, count) in mix {
            let mut kind = demand.clone();
            kind.resources = crate::model::resource::Resources {
                cpu_millis: demand.resources.cpu_millis,
                ..Default::default()
            };
            *entries.entry(kind).or_default() += count;
        }
        let all: u64 = entries.values().sum();
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let (mut typical, mut total) = (Vec::new(), 0);
        for (demand, count) in entries {
            if total * 100 >= all * TYPICAL_PERCENT {
                break;
            }
            total += count;
            let bounds = Bounds::of_demand(&demand);
            typical.push((demand, bounds, count));
        }
        Self { typical, total: total.max(1) }
    }

    /// Returns a node's fragmentation in device thousandths, rounded down.
    pub fn fragmented_millis(&self, bucket: &Bucket) -> u64 {
        self.fragmentation(bucket).unsigned_abs() / self.total
    }

    /// Returns a node's fragmentation in device thousandths times `total`, so that nothing is rounded.
    pub(super) fn fragmentation(&self, bucket: &Bucket) -> i64 {
        let free = bucket.device_free();
        let bounds = Bounds::of_bucket(bucket);
        let unusable = |demand: &Demand, asked: Bounds| {
            let Some(devices) = demand.devices.as_ref() else { return 0 };
            if !bounds.may_hold(asked) || !bucket.fits(demand) {
                return free;
            }
            let least = match devices.amount {
                DeviceAmount::Fraction(millis) => millis,
                DeviceAmount::Whole(_) => DEVICE_MILLIS,
            };
            let too_little =
                bucket.devices.iter().filter(|device| device.free < least || !devices.allows(device.model));
            too_little.map(|device| u64::from(device.free)).sum()
        };
        let sum: u64 =
            self.typical.iter().map(|(demand, asked, count)| count * unusable(demand, *asked)).sum();
        i64::try_from(sum).unwrap_or(i64::MAX)
    }

    /// Returns minus the points for a change from one fragmentation to another.
    pub(super) fn cost(&self, before: i64, after: i64) -> i64 {
        let decrease = i128::from(before - after) * 1_000 / i128::from(self.total);
        let points = POINTS.partition_point(|least| i128::from(*least) <= decrease.abs()) as i64;
        // 100 points are never reached. Points are rounded down, which on the mirrored half is away from 50.
        if decrease >= 0 { -(50 + points) } else { -(49 - points).max(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_those_of_a_logistic_curve_cut_to_whole_ones() {
        let fgd = Fgd { typical: Vec::new(), total: 1 };
        for decrease in (-8_000i64..=8_000).step_by(7) {
            let exact = 100.0 / (1.0 + (-decrease as f64 / 1_000.0).exp());
            assert_eq!(fgd.cost(decrease, 0), -(exact as i64), "{decrease}");
        }
    }
}
