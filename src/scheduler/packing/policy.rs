//! The policies: how well a task fits a node, by name.

use super::bucket::{Bucket, DeviceChoice};
use super::buckets::BucketId;
use super::fgd::Fgd;
use super::overflow::Overflow;
use super::values::Values;
use crate::model::demand::Demand;
use crate::model::device::DeviceAmount;
use crate::model::resource::Resources;

/// How badly a task fits a node: the least is the best. The second part decides between equals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score {
    pub cost: i64,
    pub left: i64,
}

/// A policy with all that it has to know.
#[derive(Debug)]
pub enum Scorer {
    /// Any node that fits, each as likely, by a generator with this seed.
    Random {
        seed: u64,
    },
    /// The started device that is filled best, then the node with the fewest free device thousandths,
    /// then with the least free CPU and memory.
    BestFit,
    /// The node whose free capacity is most like the demand: the scalar product of both, as in Grandl
    /// et al., Multi-resource packing for cluster schedulers, SIGCOMM 2014. Each kind counts in
    /// thousandths of the largest node.
    DotProduct {
        largest: Resources,
    },
    Fgd(Fgd),
    Overflow(Overflow),
}

impl Scorer {
    /// The choice depends on a bucket's value before and after.
    fn is_valuing(&self) -> bool {
        matches!(self, Self::Fgd(_) | Self::Overflow(_))
    }

    /// The best way to put a task on a node of the bucket with this number; `None` if it doesn't fit.
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
            // Who needs no device keeps off nodes that have some, if it is all the same to those.
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
                let sliver = match (choice, demand.devices.as_ref().map(|devices| devices.amount)) {
                    (DeviceChoice::Share(room), Some(DeviceAmount::Fraction(millis))) => room.free - millis,
                    _ => 0,
                };
                let device_left = bucket.device_free() - demand.device_millis();
                let cost = (i64::from(sliver) << 32) + i64::try_from(device_left).unwrap_or(i64::MAX >> 1);
                Score { cost, left: left(demand, bucket) }
            }
        }
    }
}

/// What is left of CPU and memory: millicores, 4 GiB counted as much as a core, roughly.
fn left(demand: &Demand, bucket: &Bucket) -> i64 {
    let cpu = bucket.free.cpu_millis - demand.resources.cpu_millis;
    let left = cpu.saturating_add((bucket.free.memory_bytes - demand.resources.memory_bytes) >> 22);
    i64::try_from(left).unwrap_or(i64::MAX)
}

fn dot_product(demand: &Demand, bucket: &Bucket, largest: &Resources) -> i64 {
    let product = |asked: u64, free: u64, most: u64| {
        let share = |amount: u64| u128::from(amount) * 1_000 / u128::from(most.max(1));
        share(asked) * share(free)
    };
    let (asked, free) = (&demand.resources, &bucket.free);
    let sum = product(asked.cpu_millis, free.cpu_millis, largest.cpu_millis)
        + product(asked.memory_bytes, free.memory_bytes, largest.memory_bytes)
        + product(demand.device_millis(), bucket.device_free(), largest.device_millis);
    i64::try_from(sum).unwrap_or(i64::MAX)
}
