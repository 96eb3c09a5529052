//! The placement policies: how well a task fits a node.

use super::bucket::{Bucket, BucketId, DeviceChoice};
use super::fgd::Fgd;
use super::overflow::Overflow;
use super::values::Values;
use crate::model::demand::Demand;
use crate::model::device::DeviceAmount;
use crate::model::resource::Resources;

/// How badly a task fits a node: the least is the best. `left` decides between equal costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score {
    /// In a unit that depends on the policy.
    pub cost: i64,
    /// What would be left free on the node.
    pub left: i64,
}

/// A policy with the data that it scores by.
#[derive(Debug)]
pub enum Scorer {
    /// A node chosen at random, with equal chances, from those that fit; `seed` starts the generator.
    Random { seed: u64 },
    /// The device on which a share leaves the least free, then the node with the fewest free device
    /// thousandths, then with the least free CPU and memory.
    BestFit,
    /// The node whose free capacity is most similar to the demand: the scalar product of both, as in Grandl
    /// et al., Multi-resource packing for cluster schedulers, SIGCOMM 2014. Each kind counts in thousandths
    /// of what the largest node has.
    DotProduct { largest: Resources },
    /// See [`super::fgd`].
    Fgd(Fgd),
    /// See [`super::overflow`].
    Overflow(Overflow),
}

impl Scorer {
    /// Whether the score is a difference of a bucket's values before and after the task.
    fn is_valuing(&self) -> bool {
        matches!(self, Self::Fgd(_) | Self::Overflow(_))
    }

    /// Returns the best choice of devices on a node of this bucket, with its score; `None` if the task does
    /// not fit. `id` is the bucket's id.
    pub(super) fn fit(
        &self,
        demand: &Demand,
        id: BucketId,
        bucket: &Bucket,
        values: &mut Values,
    ) -> Option<(Score, DeviceChoice)> {
        let choices = bucket.choices(demand);
        if !self.is_valuing() {
            return choices
                .map(|choice| (self.score(demand, bucket, choice), choice))
                .min_by_key(|one| one.0);
        }
        let mut best: Option<(Score, DeviceChoice)> = None;
        let mut before = None;
        for choice in choices {
            let before = *before.get_or_insert_with(|| values.of(id, bucket, |bucket| self.value(bucket)));
            let mut after = values.after.take().unwrap_or_else(|| bucket.clone());
            after.become_after(bucket, demand, choice);
            let score = self.compare(before, values.get(&after, |bucket| self.value(bucket)), bucket);
            values.after = Some(after);
            if best.is_none_or(|(least, _)| score < least) {
                best = Some((score, choice));
            }
        }
        best
    }

    fn value(&self, bucket: &Bucket) -> i64 {
        match self {
            Self::Fgd(fgd) => fgd.fragmentation(bucket),
            Self::Overflow(overflow) => overflow.value(bucket),
            Self::Random { .. } | Self::BestFit | Self::DotProduct { .. } => 0,
        }
    }

    fn compare(&self, before: i64, after: i64, bucket: &Bucket) -> Score {
        match self {
            Self::Fgd(fgd) => Score { cost: fgd.cost(before, after), left: 0 },
            // A task without devices goes to a node with devices only if its cost there is negative. Between
            // nodes without devices the stranded CPU decides.
            _ if bucket.devices.is_empty() => Score { cost: 0, left: after - before },
            _ => Score { cost: after - before, left: i64::MAX },
        }
    }

    fn score(&self, demand: &Demand, bucket: &Bucket, choice: DeviceChoice) -> Score {
        match self {
            Self::DotProduct { largest } => {
                Score { cost: -dot_product(demand, bucket, largest), left: left(demand, bucket) }
            }
            _ => {
                let share_left = match (choice, demand.devices.as_ref().map(|devices| devices.amount)) {
                    (DeviceChoice::Share(device), Some(DeviceAmount::Fraction(millis))) => {
                        device.free - millis
                    }
                    _ => 0,
                };
                let device_left = bucket.device_free() - demand.device_millis();
                let cost =
                    (i64::from(share_left) << 32) + i64::try_from(device_left).unwrap_or(i64::MAX >> 1);
                Score { cost, left: left(demand, bucket) }
            }
        }
    }
}

/// What is left of CPU and memory, in millicores: 4 GiB count roughly as one core.
fn left(demand: &Demand, bucket: &Bucket) -> i64 {
    let cpu = bucket.free.cpu_millis - demand.resources.cpu_millis;
    let left = cpu.saturating_add((bucket.free.memory_bytes - demand.resources.memory_bytes) >> 22);
    i64::try_from(left).unwrap_or(i64::MAX)
}

fn dot_product(demand: &Demand, bucket: &Bucket, largest: &Resources) -> i64 {
    let product = |asked: u64, free: u64, largest: u64| {
        let share = |amount: u64| u128::from(amount) * 1_000 / u128::from(largest.max(1));
        share(asked) * share(free)
    };
    let (asked, free) = (&demand.resources, &bucket.free);
    let sum = product(asked.cpu_millis, free.cpu_millis, largest.cpu_millis)
        + product(asked.memory_bytes, free.memory_bytes, largest.memory_bytes)
        + product(demand.device_millis(), bucket.device_free(), largest.device_millis);
    i64::try_from(sum).unwrap_or(i64::MAX)
}
