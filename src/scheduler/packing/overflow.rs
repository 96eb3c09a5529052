//! Weir's own policy: places a task where it strands the least capacity for tasks that may not fit later.
//!
//! Once a cluster is full, some tasks no longer fit: the *overflow*. Free capacity is worth as much as the
//! overflow that fits it. So a node's value is computed by filling it, as it is, with a stream of overflow
//! tasks. Each task that fits takes the device with the least free that it fits, until so many tasks in a row
//! don't fit that the stream ends. What is free then is stranded. The cost of a placement is the increase of
//! the stranded capacity, averaged over several streams.
//!
//! A scheduler chooses which tasks share a node, and chance does not. So streams come in pairs, and of each
//! pair the stream counts that fills the node better. Small tasks, which nearly always fit somewhere, are rare
//! in the overflow: the policy does not rely on them to fill the gaps.
//!
//! Many placements strand nothing, but some of them break up a node that another task would have needed
//! whole. So free capacity for tasks that need half of a node or more has a small value by itself
//! (`wide_value`): among equal nodes, those that are broken up already are used first. Where tasks end, free
//! devices on one node are worth more than the same number on several (`same_node_value`): the fullest nodes
//! are used first, and the others become free as a whole as their tasks end.
//!
//! [`overflow_of`](super::profile::overflow_of) computes the overflow: it places the expected mix by best fit on a
//! sample of empty nodes.

use std::collections::BTreeMap;

use super::bucket::{Bucket, DeviceFree};
use super::random::Random;
use super::stratified::StratifiedSampler;
use crate::model::demand::{Demand, DeviceDemand, WorkloadProfile};
use crate::model::device::DeviceAmount;
use crate::model::limit::DEVICE_MILLIS;

/// Pairs of streams that a node is filled with. With fewer, chance sometimes made the policy break up empty
/// nodes, which all have the same value, one after the other; twice as many take twice as long and pack no
/// better (openb).
const PAIRS: usize = 8;
/// Tasks in one stream: more than any node takes, those that don't fit in between included.
const STREAM_LEN: usize = 1_024;
/// Tasks in a row that don't fit, after which a stream ends. Free capacity has no value for a task that
/// occurs less often than once in so many.
const MISSES_MAX: usize = 64;
/// Kinds of tasks in the streams: those that ask for the most devices in total, as many as fit one bit set.
/// With half as many, a mix with many constraints lost more than one percentage point under an unlucky seed.
const KINDS_MAX: usize = 128;

/// Value of free capacity for tasks that ask for half of a node's devices or more: each device of such a task
/// that fits counts as this many thousandths of a device that are not stranded. Without it, chance made the
/// policy break up nodes one after the other, and too few were left for such tasks once the cluster was full;
/// with twice as much, 0.1 percentage points more were stranded (openb).
const WIDE_MILLIS: u64 = 16;
/// Additional value of `n` free devices on one node, where as many tasks end as arrive: this many thousandths
/// of a device times `n²`. With it, where a tenth of the cluster is free, jobs of eight devices start at
/// once, as under best fit; with half as much some waited for a quarter of an hour (openb).
const SAME_NODE_MILLIS: u64 = 16;
/// Tasks that end while a hundred arrive, from which on that value counts in full. Less than 100, because the
/// count lags behind while more and more tasks end.
const TURNOVER_PERCENT: u64 = 50;
/// Kinds of tasks of several devices whose free capacity has a value: the most frequent.
const WIDE_MAX: usize = 32;

/// A set of kinds, one bit each.
type KindSet = u128;

/// The policy's data: the streams of overflow, and the values of contiguous free capacity.
#[derive(Debug)]
pub struct Overflow {
    entries: Vec<Demand>,
    /// The kinds by need, for each resource.
    cpu_millis: KindsByNeed,
    memory_bytes: KindsByNeed,
    storage_bytes: KindsByNeed,
    /// By the thousandths of one device.
    share_millis: KindsByNeed,
    /// By the number of whole devices of one model.
    whole_count: KindsByNeed,
    pairs: Vec<[Stream; 2]>,
    wide: Vec<WideKind>,
    /// Value of a free device for each free device on its node, in millionths of a device.
    same_node_micros: u64,
}

/// A kind of task that asks for several devices.
#[derive(Debug)]
struct WideKind {
    demand: Demand,
    devices: u64,
    /// Its frequency, in 65,536ths of all such tasks.
    share: u64,
}

/// A stream of tasks.
#[derive(Debug)]
struct Stream {
    /// The kind of each task, as an index.
    entries: Vec<u8>,
    /// The set of kinds in each block of tasks, so that a block without a fitting kind is skipped as a whole.
    blocks: Vec<KindSet>,
}

/// Tasks in one block of a stream.
const BLOCK_LEN: usize = 8;

impl Overflow {
    /// Builds the policy from a workload profile. `seed` is that of the streams.
    pub fn of(profile: &WorkloadProfile, seed: u64) -> Self {
        let same_node_micros =
            1_000 * SAME_NODE_MILLIS * u64::from(profile.turnover_percent).min(TURNOVER_PERCENT)
                / TURNOVER_PERCENT;
        let wide = wide_of(profile.entries.iter().map(|kind| (&*kind.demand, kind.weight)));
        let overflow = profile.entries.iter().map(|kind| (&*kind.demand, kind.overflow));
        Self { wide, same_node_micros, ..Self::with_streams(overflow, seed) }
    }

    /// Samples the streams from an overflow, in proportion to its weights.
    fn with_streams<'a>(overflow: impl IntoIterator<Item = (&'a Demand, u64)>, seed: u64) -> Self {
        let mut entries: Vec<(&Demand, u64)> =
            overflow.into_iter().filter(|(_, weight)| *weight > 0).collect();
        entries.sort_by_key(|(demand, weight)| {
            (std::cmp::Reverse(weight.saturating_mul(demand.device_millis() + 1)), *demand)
        });
        entries.truncate(KINDS_MAX);
        // Similar kinds become neighbours, so that at each position the streams together have some of
        // everything.
        entries.sort_by_key(|(demand, _)| (demand.device_millis(), *demand));
        let sampler = StratifiedSampler::new(entries.iter().map(|(_, weight)| *weight));
        let mut random = Random::new(seed);
        let pairs = if sampler.is_empty() { 0 } else { PAIRS };
        let len = if sampler.is_empty() { 0 } else { STREAM_LEN };
        let positions: Vec<Vec<usize>> = (0..len).map(|_| sampler.sample(2 * PAIRS, &mut random)).collect();
        let stream = |stream: usize| {
            let entries: Vec<u8> = positions.iter().map(|entries| entries[stream] as u8).collect();
            let block = |block: &[u8]| block.iter().fold(0, |bits: KindSet, kind| bits | 1 << kind);
            Stream { blocks: entries.chunks(BLOCK_LEN).map(block).collect(), entries }
        };
        let pairs = (0..pairs).map(|pair| [stream(2 * pair), stream(2 * pair + 1)]).collect();
        let entries: Vec<Demand> = entries.into_iter().map(|(demand, _)| demand.clone()).collect();
        let amount = |demand: &Demand| demand.devices.as_ref().map(|devices| devices.amount);
        let share = |demand: &Demand| match amount(demand) {
            Some(DeviceAmount::Fraction(millis)) => u64::from(millis),
            _ => 0,
        };
        let whole = |demand: &Demand| match amount(demand) {
            Some(DeviceAmount::Whole(count)) => u64::from(count),
            _ => 0,
        };
        Self {
            cpu_millis: KindsByNeed::new(&entries, |demand| demand.resources.cpu_millis),
            memory_bytes: KindsByNeed::new(&entries, |demand| demand.resources.memory_bytes),
            storage_bytes: KindsByNeed::new(&entries, |demand| demand.resources.storage_bytes),
            share_millis: KindsByNeed::new(&entries, share),
            whole_count: KindsByNeed::new(&entries, whole),
            entries,
            pairs,
            wide: Vec::new(),
            same_node_micros: 0,
        }
    }

    /// Returns how bad a node is as it is: what will be stranded, minus the value of its contiguous free
    /// capacity.
    pub(super) fn value(&self, bucket: &Bucket) -> i64 {
        self.stranded(bucket) - self.contiguity_value(bucket)
    }

    /// Returns the value of a node's free capacity being in one piece, in the unit of `stranded`.
    pub(super) fn contiguity_value(&self, bucket: &Bucket) -> i64 {
        self.wide_value(bucket).saturating_add(self.same_node_value(bucket))
    }

    /// The value of free devices being on the same node.
    fn same_node_value(&self, bucket: &Bucket) -> i64 {
        if bucket.devices.len() < 2 {
            return 0;
        }
        let free = u128::from(bucket.device_free());
        let value = free * free * u128::from(self.same_node_micros) * self.pairs.len() as u128;
        i64::try_from(value / 1_000_000_000).unwrap_or(i64::MAX)
    }

    /// The value of free capacity for tasks that need half of the node or more.
    fn wide_value(&self, bucket: &Bucket) -> i64 {
        let half_or_more = self.wide.iter().filter(|wide| 2 * wide.devices >= bucket.devices.len() as u64);
        let fitting = half_or_more.map(|wide| wide.share * wide.devices * wide.fitting(bucket));
        let sum = fitting.sum::<u64>() * WIDE_MILLIS * self.pairs.len() as u64;
        i64::try_from(sum >> 16).unwrap_or(i64::MAX)
    }

    /// Device thousandths of a node that will be stranded, or millicores if it has no devices, summed over
    /// the pairs of streams.
    fn stranded(&self, bucket: &Bucket) -> i64 {
        // On a node without devices CPU is what may be stranded.
        let counts_devices = !bucket.devices.is_empty();
        let free = if counts_devices { bucket.device_free() } else { bucket.free.cpu_millis };
        let unfilled = FreeCapacity::of(bucket);
        let mut fitting = if free == 0 { 0 } else { self.fitting_kinds(&unfilled) };
        if fitting != 0 {
            fitting &= self.admitted(bucket);
        }
        if fitting == 0 {
            return i64::try_from(free * self.pairs.len() as u64).unwrap_or(i64::MAX);
        }
        let mut free = unfilled.clone();
        let mut left = |stream: &Stream| {
            free.clone_from(&unfilled);
            self.fill(stream, fitting, &mut free);
            if counts_devices { free.device_free() } else { free.cpu_millis }
        };
        let sum: u64 = self.pairs.iter().map(|[one, other]| left(one).min(left(other))).sum();
        i64::try_from(sum).unwrap_or(i64::MAX)
    }

    /// Fills a node with a stream; `fitting` are the kinds that fit at the beginning.
    fn fill(&self, stream: &Stream, mut fitting: KindSet, free: &mut FreeCapacity) {
        let (mut at, mut last) = (0, 0);
        while fitting != 0 && at < stream.entries.len() && at - last < MISSES_MAX {
            if at.is_multiple_of(BLOCK_LEN) && stream.blocks[at / BLOCK_LEN] & fitting == 0 {
                at += BLOCK_LEN;
                continue;
            }
            let kind = stream.entries[at];
            at += 1;
            if fitting & (1 << kind) != 0 {
                last = at;
                free.take(&self.entries[usize::from(kind)]);
                fitting &= self.fitting_kinds(free);
            }
        }
    }

    /// The kinds that fit the free capacity of a node, whatever its class.
    fn fitting_kinds(&self, free: &FreeCapacity) -> KindSet {
        let fitting = self.cpu_millis.of(free.cpu_millis)
            & self.memory_bytes.of(free.memory_bytes)
            & self.storage_bytes.of(free.storage_bytes);
        if fitting == 0 {
            return 0;
        }
        if free.one_model {
            let largest = free.devices.last().map_or(0, |device| device.free);
            let untouched =
                free.devices.iter().rev().take_while(|device| device.free == DEVICE_MILLIS).count();
            return fitting
                & self.share_millis.of(u64::from(largest))
                & self.whole_count.of(untouched as u64);
        }
        let has_devices = |kind: u32| {
            self.entries[kind as usize].devices.as_ref().is_none_or(|asked| free.device_at(asked).is_some())
        };
        bits(fitting).filter(|kind| has_devices(*kind)).fold(0, |set, kind| set | 1 << kind)
    }

    /// The kinds that may use a node of this class and, if all of its devices have one model, this model.
    fn admitted(&self, bucket: &Bucket) -> KindSet {
        let model = bucket.devices.first().map(|device| device.model);
        let admits = |demand: &Demand| {
            demand.admits(&bucket.class)
                && demand.devices.as_ref().is_none_or(|asked| {
                    // Where models differ, `device_at` compares each device.
                    bucket.devices.last().map(|device| device.model) != model
                        || model.is_some_and(|model| asked.allows(model))
                })
        };
        let entries = self.entries.iter().enumerate().filter(|(_, demand)| admits(demand));
        entries.fold(0, |bits, (kind, _)| bits | 1 << kind)
    }
}

impl WideKind {
    /// How many such tasks fit a node side by side.
    fn fitting(&self, bucket: &Bucket) -> u64 {
        let Some(asked) = &self.demand.devices else { return 0 };
        let mut by_devices = 0;
        for equal in bucket.devices.chunk_by(|one, next| one == next) {
            if equal[0].free == DEVICE_MILLIS && asked.allows(equal[0].model) {
                by_devices += equal.len() as u64 / self.devices;
            }
        }
        let (asked, free) = (&self.demand.resources, &bucket.free);
        let side_by_side = |asked: u64, free: u64| free.checked_div(asked).unwrap_or(u64::MAX);
        let fitting = by_devices
            .min(side_by_side(asked.cpu_millis, free.cpu_millis))
            .min(side_by_side(asked.memory_bytes, free.memory_bytes))
            .min(side_by_side(asked.storage_bytes, free.storage_bytes));
        if fitting > 0 && self.demand.admits(&bucket.class) { fitting } else { 0 }
    }
}

/// The most frequent kinds of tasks that ask for several devices, with their frequencies.
fn wide_of<'a>(mix: impl Iterator<Item = (&'a Demand, u64)>) -> Vec<WideKind> {
    let several = |(demand, weight): (&'a Demand, u64)| match demand.devices.as_ref()?.amount {
        DeviceAmount::Whole(count) if count > 1 && weight > 0 => Some((weight, demand, u64::from(count))),
        _ => None,
    };
    let mut entries: Vec<(u64, &Demand, u64)> = mix.filter_map(several).collect();
    entries.sort_unstable_by_key(|(weight, demand, _)| (std::cmp::Reverse(*weight), *demand));
    entries.truncate(WIDE_MAX);
    let total: u128 = entries.iter().map(|(weight, ..)| u128::from(*weight)).sum();
    let wide = |(weight, demand, devices): (u64, &Demand, u64)| {
        // At most 65,536, because `weight` is at most `total`.
        let share = ((u128::from(weight) << 16) / total.max(1)) as u64;
        WideKind { demand: demand.clone(), devices, share }
    };
    entries.into_iter().map(wide).collect()
}

/// The positions of the bits that are set.
fn bits(mut word: KindSet) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let at = word.trailing_zeros();
        (word != 0).then(|| {
            word &= word - 1;
            at
        })
    })
}

/// An index of the kinds by their need of one resource: which kinds an amount suffices for.
#[derive(Debug)]
struct KindsByNeed {
    /// The distinct needs, ascending.
    needs: Vec<u64>,
    /// At `n`, the kinds with one of the first `n` needs.
    bits: Vec<KindSet>,
    /// By the upper bits of an amount: how many needs are below all such amounts.
    below: Vec<u8>,
    /// Number of the lower bits of an amount that `below` ignores.
    shift: u32,
}

/// Approximate length of `below`.
const STEPS: u64 = 1_024;

impl KindsByNeed {
    fn new(entries: &[Demand], need: impl Fn(&Demand) -> u64) -> Self {
        let mut by_need = BTreeMap::<u64, KindSet>::new();
        for (kind, demand) in entries.iter().enumerate() {
            *by_need.entry(need(demand)).or_default() |= 1 << kind;
        }
        let mut bits = vec![0];
        bits.extend(by_need.values().scan(0, |sum, entries| {
            *sum |= entries;
            Some(*sum)
        }));
        let needs: Vec<u64> = by_need.into_keys().collect();
        let largest = needs.last().copied().unwrap_or_default();
        let shift = (largest / STEPS).checked_ilog2().map_or(0, |log| log + 1);
        let below = |step: u64| needs.partition_point(|need| *need < step << shift) as u8;
        let below = (0..=(largest >> shift) + 1).map(below).collect();
        Self { needs, bits, below, shift }
    }

    /// The kinds that need no more than `amount`.
    fn of(&self, amount: u64) -> KindSet {
        let step = (amount >> self.shift).min(self.below.len() as u64 - 1);
        let mut count = usize::from(self.below[step as usize]);
        while self.needs.get(count).is_some_and(|need| *need <= amount) {
            count += 1;
        }
        self.bits[count]
    }
}

/// A node's free capacity while it is being filled. Resources beyond CPU, memory, storage and devices are
/// left out: a task that lacks those counts as fitting here, which only makes the value less exact.
struct FreeCapacity {
    cpu_millis: u64,
    memory_bytes: u64,
    storage_bytes: u64,
    /// Sorted by model; of one model, the device with the least free first.
    devices: Vec<DeviceFree>,
    /// Whether all have one model, so that every admitted kind may use any of them.
    one_model: bool,
}

impl Clone for FreeCapacity {
    fn clone(&self) -> Self {
        Self { devices: self.devices.clone(), ..*self }
    }

    fn clone_from(&mut self, other: &Self) {
        let mut devices = std::mem::take(&mut self.devices);
        devices.clone_from(&other.devices);
        *self = Self { devices, ..*other };
    }
}

impl FreeCapacity {
    fn of(bucket: &Bucket) -> Self {
        let models = (bucket.devices.first(), bucket.devices.last());
        Self {
            cpu_millis: bucket.free.cpu_millis,
            memory_bytes: bucket.free.memory_bytes,
            storage_bytes: bucket.free.storage_bytes,
            devices: bucket.devices.iter().filter(|device| device.free > 0).copied().collect(),
            one_model: models.0.map(|device| device.model) == models.1.map(|device| device.model),
        }
    }

    /// The index of the device that a task would take, or of the first of several: of those that fit, the one
    /// with the least free.
    fn device_at(&self, asked: &DeviceDemand) -> Option<usize> {
        let fits = |device: &DeviceFree, least: u32| {
            device.free >= least && (self.one_model || asked.allows(device.model))
        };
        match asked.amount {
            DeviceAmount::Fraction(millis) if self.one_model => {
                self.devices.iter().position(|device| device.free >= millis)
            }
            DeviceAmount::Fraction(millis) => {
                let fitting = self.devices.iter().enumerate().filter(|(_, device)| fits(device, millis));
                fitting.min_by_key(|(_, device)| device.free).map(|(at, _)| at)
            }
            DeviceAmount::Whole(count) => {
                // Untouched devices of a model are neighbours, after those that are in use.
                let last = count as usize - 1;
                (0..self.devices.len().saturating_sub(last)).find(|at| {
                    fits(&self.devices[*at], DEVICE_MILLIS) && self.devices[at + last] == self.devices[*at]
                })
            }
        }
    }

    fn device_free(&self) -> u64 {
        self.devices.iter().map(|device| u64::from(device.free)).sum()
    }

    /// Takes what a task asks for, which must fit.
    fn take(&mut self, demand: &Demand) {
        self.cpu_millis -= demand.resources.cpu_millis;
        self.memory_bytes -= demand.resources.memory_bytes;
        self.storage_bytes -= demand.resources.storage_bytes;
        let Some(asked) = &demand.devices else { return };
        let Some(mut at) = self.device_at(asked) else { return };
        match asked.amount {
            DeviceAmount::Fraction(millis) => {
                self.devices[at].free -= millis;
                while at > 0 && self.devices[at - 1] > self.devices[at] {
                    self.devices.swap(at - 1, at);
                    at -= 1;
                }
            }
            DeviceAmount::Whole(count) => {
                self.devices.drain(at..at + count as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::resource::Resources;
    use crate::model::shape::Needs;
    use crate::model::spec::Constraints;

    #[test]
    fn amount_suffices_for_kinds_that_need_no_more() {
        for largest in [1u64, 7, 1_000, 96_000, 1 << 40] {
            let mut random = Random::new(largest);
            let needs: Vec<u64> = (0..KINDS_MAX).map(|_| random.below(largest + 1)).collect();
            let entries: Vec<Demand> = needs.iter().map(|need| asking(*need)).collect();
            let by_need = KindsByNeed::new(&entries, |demand| demand.resources.cpu_millis);
            for amount in (0..2_000).map(|_| random.below(largest * 2)).chain([0, largest, u64::MAX]) {
                let expected = needs.iter().enumerate().filter(|(_, need)| **need <= amount);
                let expected = expected.fold(0, |bits, (kind, _)| bits | 1 << kind);
                assert_eq!(by_need.of(amount), expected, "{amount} of {largest}");
            }
        }
        assert_eq!(KindsByNeed::new(&[], |_| 0).of(7), 0);
    }

    fn asking(cpu_millis: u64) -> Demand {
        Demand {
            resources: Resources { cpu_millis, ..Resources::default() },
            devices: None,
            constraints: Constraints::default(),
            needs: Needs::default(),
        }
    }
}
