//! Buckets: the free capacity by which nodes are equal to every task, what fits it, and what is left after a
//! task.

use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use crate::model::demand::{Demand, DeviceDemand, NodeClass};
use crate::model::device::{DeviceAmount, DeviceModelId};
use crate::model::limit::DEVICE_MILLIS;
use crate::model::resource::Resources;

/// The id of a bucket, reused after the bucket is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BucketId(pub(super) u32);

/// A shared node class with its hash, which makes comparing and hashing cheap.
#[derive(Clone, Debug)]
pub struct ClassRef {
    class: Arc<NodeClass>,
    hash: u64,
}

impl ClassRef {
    /// Wraps a class and computes its hash.
    pub fn new(class: NodeClass) -> Self {
        let hash = FxBuildHasher.hash_one(&class);
        Self { class: Arc::new(class), hash }
    }
}

impl Deref for ClassRef {
    type Target = NodeClass;

    fn deref(&self) -> &NodeClass {
        &self.class
    }
}

impl PartialEq for ClassRef {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.class, &other.class) || (self.hash == other.hash && self.class == other.class)
    }
}

impl Eq for ClassRef {}

impl Hash for ClassRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// A node's free capacity, without the identity of its devices, which no task depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    pub class: ClassRef,
    /// Without devices.
    pub free: Resources,
    /// Free thousandths of each device, sorted by model; of one model, the device with the least free first.
    pub devices: Vec<DeviceFree>,
}

/// The free capacity of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceFree {
    pub model: DeviceModelId,
    /// Free thousandths, 0 to [`DEVICE_MILLIS`].
    pub free: u32,
}

/// Which of a bucket's devices a task takes. Equal devices are one choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    None,
    /// A share of a device with exactly this much free.
    Share(DeviceFree),
    /// Devices of one model that are free as a whole.
    Whole(DeviceModelId),
}

/// Compact bounds: the least that a demand needs, or the most that a bucket has. With them most buckets that
/// a demand does not fit are rejected without reading them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    cpu_millis: u32,
    memory_mib: u32,
    /// Free thousandths of one device.
    share: u16,
    /// Devices that are free as a whole.
    untouched: u16,
}

impl Bounds {
    pub(super) fn of_bucket(bucket: &Bucket) -> Self {
        let free = || bucket.devices.iter().map(|device| device.free);
        let untouched = free().filter(|free| *free == DEVICE_MILLIS).count();
        Self::new(&bucket.free, free().max().unwrap_or(0), untouched as u64)
    }

    pub(super) fn of_demand(demand: &Demand) -> Self {
        let (share, untouched) = match demand.devices.as_ref().map(|devices| devices.amount) {
            None => (0, 0),
            Some(DeviceAmount::Fraction(millis)) => (millis, 0),
            Some(DeviceAmount::Whole(count)) => (0, count),
        };
        Self::new(&demand.resources, share, u64::from(untouched))
    }

    /// Rounds down, on both sides: a demand that fits a bucket never has larger bounds than the bucket.
    fn new(resources: &Resources, share: u32, untouched: u64) -> Self {
        let saturated = |amount: u64| u32::try_from(amount).unwrap_or(u32::MAX);
        Self {
            cpu_millis: saturated(resources.cpu_millis),
            memory_mib: saturated(resources.memory_bytes >> 20),
            share: u16::try_from(share).unwrap_or(u16::MAX),
            untouched: u16::try_from(untouched).unwrap_or(u16::MAX),
        }
    }

    /// Returns `false` only if the demand does not fit the bucket. If it returns `true`, the demand may fit.
    pub(super) fn may_hold(self, demand: Self) -> bool {
        demand.cpu_millis <= self.cpu_millis
            && demand.memory_mib <= self.memory_mib
            && demand.share <= self.share
            && demand.untouched <= self.untouched
    }
}

impl Bucket {
    /// Returns the free device thousandths of all devices together.
    pub fn device_free(&self) -> u64 {
        self.devices.iter().map(|device| u64::from(device.free)).sum()
    }

    /// Returns the devices that a task of this demand could take, the device with the least free first;
    /// nothing if the task does not fit.
    pub fn choices(&self, demand: &Demand) -> impl Iterator<Item = DeviceChoice> {
        let fits = demand.resources.fits(&self.free) && demand.admits(&self.class);
        let devices = if fits { &self.devices[..] } else { &[] };
        let none = (fits && demand.devices.is_none()).then_some(DeviceChoice::None);
        let on_devices = devices.iter().enumerate().filter_map(|(at, device)| {
            let asked = demand.devices.as_ref()?;
            let same = &devices[at..];
            choice_at(asked, *device, at.checked_sub(1).map(|before| devices[before]), same)
        });
        none.into_iter().chain(on_devices)
    }

    /// Returns whether a task of this demand fits.
    pub fn fits(&self, demand: &Demand) -> bool {
        // Equivalent to `choices(demand).next().is_some()`, but cheaper, as it is called far more often.
        demand.resources.fits(&self.free)
            && demand.devices.as_ref().is_none_or(|asked| match asked.amount {
                DeviceAmount::Fraction(millis) => {
                    self.devices.iter().any(|device| device.free >= millis && asked.allows(device.model))
                }
                DeviceAmount::Whole(count) => self.devices.chunk_by(|one, other| one == other).any(|equal| {
                    equal.len() >= count as usize
                        && equal[0].free == DEVICE_MILLIS
                        && asked.allows(equal[0].model)
                }),
            })
            && demand.admits(&self.class)
    }

    /// Returns the bucket after a task of this demand, which must fit, on the devices of this choice.
    pub fn after(&self, demand: &Demand, choice: DeviceChoice) -> Self {
        let mut after = self.clone();
        after.take(demand, choice);
        after
    }

    /// Sets this bucket to `other` after a task, as [`Self::after`] does, but reuses its memory.
    pub(super) fn become_after(&mut self, other: &Self, demand: &Demand, choice: DeviceChoice) {
        self.class = other.class.clone();
        self.free = other.free.clone();
        self.devices.clone_from(&other.devices);
        self.take(demand, choice);
    }

    fn take(&mut self, demand: &Demand, choice: DeviceChoice) {
        let amount = demand.devices.as_ref().map(|devices| devices.amount);
        match (choice, amount) {
            (DeviceChoice::Share(device), Some(DeviceAmount::Fraction(millis))) => {
                // Of equal devices the first: with less free it only has to move towards the front.
                if let Some(mut at) = self.devices.iter().position(|other| *other == device) {
                    self.devices[at].free -= millis;
                    while at > 0 && self.devices[at - 1] > self.devices[at] {
                        self.devices.swap(at - 1, at);
                        at -= 1;
                    }
                }
            }
            (DeviceChoice::Whole(model), Some(DeviceAmount::Whole(count))) => {
                let untouched = self
                    .devices
                    .iter_mut()
                    .filter(|device| device.model == model && device.free == DEVICE_MILLIS);
                untouched.take(count as usize).for_each(|device| device.free = 0);
                self.devices.sort_unstable();
            }
            _ => {}
        }
        self.free = self.free.checked_sub(&demand.resources).unwrap_or_default();
    }

    /// Returns a 128-bit hash that identifies the bucket in caches: collisions are as unlikely as for random
    /// numbers.
    pub(super) fn fingerprint(&self) -> u128 {
        let mut hasher = Fingerprint(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);
        self.hash(&mut hasher);
        hasher.both()
    }
}

/// Two independent mixes of 64 bits.
struct Fingerprint(u64, u64);

impl Fingerprint {
    fn both(&self) -> u128 {
        u128::from(self.0) << 64 | u128::from(self.1)
    }
}

impl Hasher for Fingerprint {
    fn write_u64(&mut self, word: u64) {
        // The rounds of MurmurHash3's and SplitMix64's finalizers.
        self.0 = (self.0 ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 ^= self.0 >> 33;
        self.1 = (self.1.rotate_left(23) ^ word).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.1 ^= self.1 >> 31;
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u16(&mut self, word: u16) {
        self.write_u64(u64::from(word));
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The choice that begins at a device, if it is the first of equal ones. `before` is the device before it,
/// `same` begins with it.
fn choice_at(
    asked: &DeviceDemand,
    device: DeviceFree,
    before: Option<DeviceFree>,
    same: &[DeviceFree],
) -> Option<DeviceChoice> {
    if before == Some(device) || !asked.allows(device.model) {
        return None;
    }
    match asked.amount {
        DeviceAmount::Fraction(millis) => (device.free >= millis).then_some(DeviceChoice::Share(device)),
        DeviceAmount::Whole(count) => {
            let untouched = same.iter().take_while(|other| **other == device).count();
            (device.free == DEVICE_MILLIS && untouched >= count as usize)
                .then_some(DeviceChoice::Whole(device.model))
        }
    }
}
