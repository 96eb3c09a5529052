//! Weir's own policy: place a task where it strands the least for those who would be turned away.
//!
//! Once a cluster is full, a little more room is worth what it lets in of the tasks that don't fit
//! any more: the *overflow*. So a node's value is found by giving it, as it is, a stream of overflow:
//! each task that fits goes to the fullest device that it fits on, until so many in a row don't fit
//! that the rest isn't worth waiting for. What is free after that is stranded; the cost of a placement
//! is by how much it raises that, on average over some streams. Which tasks meet on a node isn't left to
//! chance but chosen, so streams come in pairs, and of each pair the one counts that fills the node better.
//! Small tasks, which always find a place somewhere, hardly occur in the overflow: so nobody counts on them
//! to fill what others leave.
//!
//! Many placements strand nothing, and yet the one breaks up a node that another task would have
//! needed whole. So room for tasks that need half of a node or more is worth a little by itself (`wide_room`):
//! among nodes that are as good, those go first that are broken up already. And where tasks end, devices that
//! are free on one node are worth more than those that are not (`together`): the fullest nodes go first, and
//! others become free as a whole as their tasks end.
//!
//! What overflows is found out by playing the mix that is expected, by best fit, on a sample of
//! nodes when empty: in [`overflow_of`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bucket::{Bucket, DeviceRoom};
use super::draw::Draw;
use super::random::Random;
use super::{Node, Packer, policy::Scorer};
use crate::model::demand::{Demand, DeviceDemand, WorkloadProfile};
use crate::model::device::DeviceAmount;
use crate::model::id::{NodeId, NodeRef, PoolId};
use crate::model::limit::DEVICE_MILLIS;

/// Pairs of streams that a node is filled with. With fewer the whole nodes, all of one value, were sometimes
/// broken up in a row for what was chance; twice as many take twice as long and pack no better (openb).
const PAIRS: usize = 8;
/// Tasks in one stream: more than any node takes with those that it turns away in between.
const STREAM_LEN: usize = 1_024;
/// Tasks in a row that don't fit after which a stream ends. A task that comes once in more than these
/// isn't worth keeping room for.
const MISSES_MAX: usize = 64;
/// Kinds of tasks in the streams, by what they ask for in all; one set of bits holds them. With half as
/// many, a mix with many constraints lost more than a point under an unlucky seed.
const KINDS_MAX: usize = 128;

/// Room for one device's worth of tasks that ask for half of a node's devices or more counts as much as so
/// many thousandths of a device that are not stranded. Without it, nodes were broken up in a row for what was
/// chance, and too few were left for such tasks once the cluster was full; with twice as much, a tenth of a
/// point more was stranded (openb).
const WIDE_MILLIS: u64 = 16;
/// What `n` free devices on one node are worth beyond as many that are stranded, where tasks end as they come:
/// so many thousandths of a device times `n²`. Where a tenth of the cluster is free, jobs of eight devices start
/// at once with it, as by best fit; with half as much some waited for a quarter of an hour (openb).
const TOGETHER_MILLIS: u64 = 16;
/// As many ends while a hundred tasks come make that value whole: the count lags behind where more and more end.
const TURNOVER_PERCENT: u64 = 50;
/// Kinds of tasks of several devices that room is kept for: the most frequent.
const WIDE_MAX: usize = 32;

/// A set of kinds.
type Kinds = u128;

/// Nodes in the sample that the mix is played on: rare kinds of nodes may be missing, kinds that
/// matter are not.
pub const SAMPLE_MAX: usize = 192;
/// Device thousandths asked for, in percent of the sample's: enough to see who is turned away.
const OFFERED_PERCENT: u64 = 130;
/// Tasks played, at the most: a mix may ask for hardly any devices.
const DRAWS_MAX: usize = 65_536;
/// Tasks drawn together.
const ROUND: usize = 64;

/// Streams of overflow.
#[derive(Debug)]
pub struct Overflow {
    kinds: Vec<Demand>,
    /// Which kinds a node with so much free has enough of.
    cpu_millis: Enough,
    memory_bytes: Enough,
    storage_bytes: Enough,
    /// By the most that is free of one device.
    share_millis: Enough,
    /// By untouched devices of one model.
    whole_count: Enough,
    pairs: Vec<[Stream; 2]>,
    wide: Vec<Wide>,
    /// What a free device is worth to another on its node, in thousandths of a thousandth.
    together_micros: u64,
}

/// A kind of task that asks for several devices.
#[derive(Debug)]
struct Wide {
    demand: Demand,
    devices: u64,
    /// How often it comes, in 65,536ths of all such tasks.
    share: u64,
}

/// Kinds by index, and for every few of them which there are.
#[derive(Debug)]
struct Stream {
    kinds: Vec<u8>,
    blocks: Vec<Kinds>,
}

/// Kinds of one block of a stream.
const BLOCK_LEN: usize = 8;

impl Overflow {
    /// What a lesson tells to expect, where so many tasks end while a hundred come.
    pub fn of(profile: &WorkloadProfile, turnover_percent: u64, seed: u64) -> Self {
        let together_micros =
            1_000 * TOGETHER_MILLIS * turnover_percent.min(TURNOVER_PERCENT) / TURNOVER_PERCENT;
        let wide = wide_of(profile.entries.iter().map(|kind| (&*kind.demand, kind.weight)));
        let overflow = profile.entries.iter().map(|kind| (&*kind.demand, kind.overflow));
        Self { wide, together_micros, ..Self::drawn(overflow, seed) }
    }

    /// Draws streams from an overflow, as often as its weights say.
    fn drawn<'a>(overflow: impl IntoIterator<Item = (&'a Demand, u64)>, seed: u64) -> Self {
        let mut kinds: Vec<(&Demand, u64)> = overflow.into_iter().filter(|(_, weight)| *weight > 0).collect();
        kinds.sort_by_key(|(demand, weight)| {
            (std::cmp::Reverse(weight.saturating_mul(demand.device_millis() + 1)), *demand)
        });
        kinds.truncate(KINDS_MAX);
        // Alike ones side by side, so that at each place of the streams there is some of everything.
        kinds.sort_by_key(|(demand, _)| (demand.device_millis(), *demand));
        let draw = Draw::new(kinds.iter().map(|(_, weight)| *weight));
        let mut random = Random::new(seed);
        let pairs = if draw.is_empty() { 0 } else { PAIRS };
        let places = if draw.is_empty() { 0 } else { STREAM_LEN };
        let places: Vec<Vec<usize>> = (0..places).map(|_| draw.round(2 * PAIRS, &mut random)).collect();
        let stream = |stream: usize| {
            let kinds: Vec<u8> = places.iter().map(|kinds| kinds[stream] as u8).collect();
            let block = |block: &[u8]| block.iter().fold(0, |bits: Kinds, kind| bits | 1 << kind);
            Stream { blocks: kinds.chunks(BLOCK_LEN).map(block).collect(), kinds }
        };
        let pairs = (0..pairs).map(|pair| [stream(2 * pair), stream(2 * pair + 1)]).collect();
        let kinds: Vec<Demand> = kinds.into_iter().map(|(demand, _)| demand.clone()).collect();
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
            cpu_millis: Enough::new(&kinds, |demand| demand.resources.cpu_millis),
            memory_bytes: Enough::new(&kinds, |demand| demand.resources.memory_bytes),
            storage_bytes: Enough::new(&kinds, |demand| demand.resources.storage_bytes),
            share_millis: Enough::new(&kinds, share),
            whole_count: Enough::new(&kinds, whole),
            kinds,
            pairs,
            wide: Vec::new(),
            together_micros: 0,
        }
    }

    /// How bad a node is, as it is: what would finally be stranded, less what its room is worth.
    pub(super) fn value(&self, bucket: &Bucket) -> i64 {
        self.stranded(bucket) - self.room(bucket)
    }

    /// What it is worth that a node's room is in one piece, in what `stranded` counts in.
    pub(super) fn room(&self, bucket: &Bucket) -> i64 {
        self.wide_room(bucket).saturating_add(self.together(bucket))
    }

    fn together(&self, bucket: &Bucket) -> i64 {
        if bucket.devices.len() < 2 {
            return 0;
        }
        let free = u128::from(bucket.device_free());
        let worth = free * free * u128::from(self.together_micros) * self.pairs.len() as u128;
        i64::try_from(worth / 1_000_000_000).unwrap_or(i64::MAX)
    }

    /// What a node's room for tasks that need half of it or more is worth.
    fn wide_room(&self, bucket: &Bucket) -> i64 {
        let most = self.wide.iter().filter(|wide| 2 * wide.devices >= bucket.devices.len() as u64);
        let fitting = most.map(|wide| wide.share * wide.devices * wide.fitting(bucket));
        let sum = fitting.sum::<u64>() * WIDE_MILLIS * self.pairs.len() as u64;
        i64::try_from(sum >> 16).unwrap_or(i64::MAX)
    }

    /// Device thousandths of a node that would finally be stranded, or millicores where it has no
    /// devices, summed over the pairs of streams.
    fn stranded(&self, bucket: &Bucket) -> i64 {
        // A node without devices is worth its CPU.
        let counts_devices = !bucket.devices.is_empty();
        let free = if counts_devices { bucket.device_free() } else { bucket.free.cpu_millis };
        let empty = Room::of(bucket);
        let mut fitting = if free == 0 { 0 } else { self.enough(&empty) };
        if fitting != 0 {
            fitting &= self.admitted(bucket);
        }
        if fitting == 0 {
            return i64::try_from(free * self.pairs.len() as u64).unwrap_or(i64::MAX);
        }
        let mut room = empty.clone();
        let mut left = |stream: &Stream| {
            room.clone_from(&empty);
            self.fill(stream, fitting, &mut room);
            if counts_devices { room.device_free() } else { room.cpu_millis }
        };
        let sum: u64 = self.pairs.iter().map(|[one, other]| left(one).min(left(other))).sum();
        i64::try_from(sum).unwrap_or(i64::MAX)
    }

    /// Fills a node with a stream.
    fn fill(&self, stream: &Stream, mut fitting: Kinds, room: &mut Room) {
        let (mut at, mut last) = (0, 0);
        while fitting != 0 && at < stream.kinds.len() && at - last < MISSES_MAX {
            if at.is_multiple_of(BLOCK_LEN) && stream.blocks[at / BLOCK_LEN] & fitting == 0 {
                at += BLOCK_LEN;
                continue;
            }
            let kind = stream.kinds[at];
            at += 1;
            if fitting & (1 << kind) != 0 {
                last = at;
                room.take(&self.kinds[usize::from(kind)]);
                fitting &= self.enough(room);
            }
        }
    }

    /// The kinds that a node has enough of everything for.
    fn enough(&self, room: &Room) -> Kinds {
        let fitting = self.cpu_millis.of(room.cpu_millis)
            & self.memory_bytes.of(room.memory_bytes)
            & self.storage_bytes.of(room.storage_bytes);
        if fitting == 0 {
            return 0;
        }
        if room.alike {
            let most = room.devices.last().map_or(0, |room| room.free);
            let untouched = room.devices.iter().rev().take_while(|room| room.free == DEVICE_MILLIS).count();
            return fitting & self.share_millis.of(u64::from(most)) & self.whole_count.of(untouched as u64);
        }
        let has_devices = |kind: u32| {
            self.kinds[kind as usize].devices.as_ref().is_none_or(|asked| room.device_at(asked).is_some())
        };
        bits(fitting).filter(|kind| has_devices(*kind)).fold(0, |kept, kind| kept | 1 << kind)
    }

    /// The kinds that may use nodes of this class with devices of this model.
    fn admitted(&self, bucket: &Bucket) -> Kinds {
        let model = bucket.devices.first().map(|room| room.model);
        let admits = |demand: &Demand| {
            demand.admits(&bucket.class)
                && demand.devices.as_ref().is_none_or(|asked| {
                    // Where models differ, each device is looked at by itself.
                    bucket.devices.last().map(|room| room.model) != model
                        || model.is_some_and(|model| asked.allows(model))
                })
        };
        let kinds = self.kinds.iter().enumerate().filter(|(_, demand)| admits(demand));
        kinds.fold(0, |bits, (kind, _)| bits | 1 << kind)
    }
}

impl Wide {
    /// How many such tasks fit on a node side by side.
    fn fitting(&self, bucket: &Bucket) -> u64 {
        let Some(asked) = &self.demand.devices else { return 0 };
        let mut by_devices = 0;
        for alike in bucket.devices.chunk_by(|one, next| one == next) {
            if alike[0].free == DEVICE_MILLIS && asked.allows(alike[0].model) {
                by_devices += alike.len() as u64 / self.devices;
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

/// The most frequent kinds of tasks that ask for several devices, with how often they come.
fn wide_of<'a>(mix: impl Iterator<Item = (&'a Demand, u64)>) -> Vec<Wide> {
    let several = |(demand, weight): (&'a Demand, u64)| match demand.devices.as_ref()?.amount {
        DeviceAmount::Whole(count) if count > 1 && weight > 0 => Some((weight, demand, u64::from(count))),
        _ => None,
    };
    let mut kinds: Vec<(u64, &Demand, u64)> = mix.filter_map(several).collect();
    kinds.sort_unstable_by_key(|(weight, demand, _)| (std::cmp::Reverse(*weight), *demand));
    kinds.truncate(WIDE_MAX);
    let total: u128 = kinds.iter().map(|(weight, ..)| u128::from(*weight)).sum();
    let wide = |(weight, demand, devices): (u64, &Demand, u64)| {
        // A part of the whole, so that it is at most 65,536.
        let share = ((u128::from(weight) << 16) / total.max(1)) as u64;
        Wide { demand: demand.clone(), devices, share }
    };
    kinds.into_iter().map(wide).collect()
}

fn bits(mut word: Kinds) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let at = word.trailing_zeros();
        (word != 0).then(|| {
            word &= word - 1;
            at
        })
    })
}

/// Tells which kinds an amount is enough for.
#[derive(Debug)]
struct Enough {
    /// What kinds need, ascending, each amount once.
    needs: Vec<u64>,
    /// Which kinds need no more than the first so many of those.
    bits: Vec<Kinds>,
    /// By the upper bits of an amount: how many needs lie below all such amounts.
    below: Vec<u8>,
    /// Lower bits of an amount that `below` leaves out.
    shift: u32,
}

/// Steps of `below`, about.
const STEPS: u64 = 1_024;

impl Enough {
    fn new(kinds: &[Demand], need: impl Fn(&Demand) -> u64) -> Self {
        let mut by_need = BTreeMap::<u64, Kinds>::new();
        for (kind, demand) in kinds.iter().enumerate() {
            *by_need.entry(need(demand)).or_default() |= 1 << kind;
        }
        let mut bits = vec![0];
        bits.extend(by_need.values().scan(0, |sum, kinds| {
            *sum |= kinds;
            Some(*sum)
        }));
        let needs: Vec<u64> = by_need.into_keys().collect();
        let most = needs.last().copied().unwrap_or_default();
        let shift = (most / STEPS).checked_ilog2().map_or(0, |log| log + 1);
        let below = |step: u64| needs.partition_point(|need| *need < step << shift) as u8;
        let below = (0..=(most >> shift) + 1).map(below).collect();
        Self { needs, bits, below, shift }
    }

    fn of(&self, amount: u64) -> Kinds {
        let step = (amount >> self.shift).min(self.below.len() as u64 - 1);
        let mut count = usize::from(self.below[step as usize]);
        while self.needs.get(count).is_some_and(|need| *need <= amount) {
            count += 1;
        }
        self.bits[count]
    }
}

/// A node's free capacity while it is being filled. Kinds beyond CPU, memory and scratch space are
/// left out: who lacks those only seems to fit, and that is seen when it is placed.
struct Room {
    cpu_millis: u64,
    memory_bytes: u64,
    storage_bytes: u64,
    /// By model; of one model, the fullest first.
    devices: Vec<DeviceRoom>,
    /// All are of one model, so that every kind let in may have any.
    alike: bool,
}

impl Clone for Room {
    fn clone(&self) -> Self {
        Self { devices: self.devices.clone(), ..*self }
    }

    fn clone_from(&mut self, other: &Self) {
        let mut devices = std::mem::take(&mut self.devices);
        devices.clone_from(&other.devices);
        *self = Self { devices, ..*other };
    }
}

impl Room {
    fn of(bucket: &Bucket) -> Self {
        let models = (bucket.devices.first(), bucket.devices.last());
        Self {
            cpu_millis: bucket.free.cpu_millis,
            memory_bytes: bucket.free.memory_bytes,
            storage_bytes: bucket.free.storage_bytes,
            devices: bucket.devices.iter().filter(|room| room.free > 0).copied().collect(),
            alike: models.0.map(|room| room.model) == models.1.map(|room| room.model),
        }
    }

    /// The device that a task would take, or the first of several: the fullest that will do.
    fn device_at(&self, asked: &DeviceDemand) -> Option<usize> {
        let fits =
            |room: &DeviceRoom, least: u32| room.free >= least && (self.alike || asked.allows(room.model));
        match asked.amount {
            DeviceAmount::Fraction(millis) if self.alike => {
                self.devices.iter().position(|room| room.free >= millis)
            }
            DeviceAmount::Fraction(millis) => {
                let fitting = self.devices.iter().enumerate().filter(|(_, room)| fits(room, millis));
                fitting.min_by_key(|(_, room)| room.free).map(|(at, _)| at)
            }
            DeviceAmount::Whole(count) => {
                // Untouched ones of a model stand together, behind those that are in use.
                let last = count as usize - 1;
                (0..self.devices.len().saturating_sub(last)).find(|at| {
                    fits(&self.devices[*at], DEVICE_MILLIS) && self.devices[at + last] == self.devices[*at]
                })
            }
        }
    }

    fn device_free(&self) -> u64 {
        self.devices.iter().map(|room| u64::from(room.free)).sum()
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

/// Plays a mix of demands on a sample of nodes, when empty, by best fit; returns how many tasks of
/// each demand were turned away.
pub fn overflow_of<'a>(
    nodes: impl ExactSizeIterator<Item = &'a Node>,
    mix: &[(Arc<Demand>, u64)],
    seed: u64,
) -> BTreeMap<Arc<Demand>, u64> {
    let step = nodes.len().div_ceil(SAMPLE_MAX).max(1);
    let mut packer = Packer::new(Scorer::BestFit);
    for (index, node) in nodes.step_by(step).enumerate() {
        packer.set(NodeRef { pool: PoolId(0), node: NodeId(index as u32) }, node.clone());
    }
    // Where there are no devices, CPU is what overflows.
    let capacity = packer.device_free();
    let of_cpu = capacity == 0;
    let cpu = || packer.nodes().map(|(_, node)| node.free.cpu_millis).sum();
    let offered = if of_cpu { cpu() } else { capacity } / 100 * OFFERED_PERCENT;
    let mut mix: Vec<&(Arc<Demand>, u64)> = mix.iter().collect();
    mix.sort_by_key(|(demand, _)| (demand.device_millis(), demand));
    let draw = Draw::new(mix.iter().map(|(_, weight)| *weight));
    let mut overflow = BTreeMap::new();
    if draw.is_empty() {
        return overflow;
    }
    let mut random = Random::new(seed);
    let (mut asked, mut draws) = (0, 0);
    while asked < offered && draws < DRAWS_MAX {
        draws += ROUND;
        for index in draw.round(ROUND, &mut random) {
            let demand = &mix[index].0;
            asked += if of_cpu { demand.resources.cpu_millis } else { demand.device_millis() };
            // Nothing departs: who found no room once never will.
            if overflow.contains_key(demand) || packer.place(demand).is_none() {
                *overflow.entry(demand.clone()).or_default() += 1;
            }
        }
    }
    overflow
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::resource::Resources;
    use crate::model::shape::Needs;
    use crate::model::spec::Constraints;

    #[test]
    fn amount_is_enough_for_those_that_need_no_more() {
        for most in [1u64, 7, 1_000, 96_000, 1 << 40] {
            let mut random = Random::new(most);
            let needs: Vec<u64> = (0..KINDS_MAX).map(|_| random.below(most + 1)).collect();
            let kinds: Vec<Demand> = needs.iter().map(|need| asking(*need)).collect();
            let enough = Enough::new(&kinds, |demand| demand.resources.cpu_millis);
            for amount in (0..2_000).map(|_| random.below(most * 2)).chain([0, most, u64::MAX]) {
                let expected = needs.iter().enumerate().filter(|(_, need)| **need <= amount);
                let expected = expected.fold(0, |bits, (kind, _)| bits | 1 << kind);
                assert_eq!(enough.of(amount), expected, "{amount} of {most}");
            }
        }
        assert_eq!(Enough::new(&[], |_| 0).of(7), 0);
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
