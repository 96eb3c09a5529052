//! Buckets: nodes that are alike to every task, and what they would be after one more.

use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use crate::model::demand::{Demand, DeviceDemand, NodeClass};
use crate::model::device::{DeviceAmount, DeviceModelId};
use crate::model::limit::DEVICE_MILLIS;
use crate::model::resource::Resources;

/// A node class that is quick to tell from others.
#[derive(Clone, Debug)]
pub struct ClassRef {
    class: Arc<NodeClass>,
    /// Of the class.
    hash: u64,
}

impl ClassRef {
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

/// A node's free capacity, as far as it matters to tasks: which device is which doesn't.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    pub class: ClassRef,
    /// Without devices.
    pub free: Resources,
    /// Free thousandths of each device, by model; of one model, the fullest device first.
    pub devices: Vec<DeviceRoom>,
}

/// What is free of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceRoom {
    pub model: DeviceModelId,
    /// Thousandths.
    pub free: u32,
}

/// Which of a bucket's devices a task takes. Alike devices are one choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    None,
    /// A share of a device with exactly so much free.
    Share(DeviceRoom),
    /// Untouched devices of one model.
    Whole(DeviceModelId),
}

/// What a demand asks for at the least, or a bucket has at the most, in few bytes: most buckets that don't
/// fit are told by it without a look at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outline {
    cpu_millis: u32,
    memory_mib: u32,
    /// Of one device, thousandths.
    share: u16,
    untouched: u16,
}

impl Outline {
    pub(super) fn of_bucket(bucket: &Bucket) -> Self {
        let free = || bucket.devices.iter().map(|room| room.free);
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

    /// Rounded down: whoever asks for no more has no larger outline.
    fn new(resources: &Resources, share: u32, untouched: u64) -> Self {
        let up_to_most = |amount: u64| u32::try_from(amount).unwrap_or(u32::MAX);
        Self {
            cpu_millis: up_to_most(resources.cpu_millis),
            memory_mib: up_to_most(resources.memory_bytes >> 20),
            share: u16::try_from(share).unwrap_or(u16::MAX),
            untouched: u16::try_from(untouched).unwrap_or(u16::MAX),
        }
    }

    /// Where this is false nothing fits; where it is true something may.
    pub(super) fn may_hold(self, demand: Self) -> bool {
        demand.cpu_millis <= self.cpu_millis
            && demand.memory_mib <= self.memory_mib
            && demand.share <= self.share
            && demand.untouched <= self.untouched
    }
}

impl Bucket {
    /// Free device thousandths in all.
    pub fn device_free(&self) -> u64 {
        self.devices.iter().map(|room| u64::from(room.free)).sum()
    }

    /// The devices that a task of this demand could take, fullest device first; none if it doesn't fit.
    pub fn choices(&self, demand: &Demand) -> impl Iterator<Item = DeviceChoice> {
        let fits = demand.resources.fits(&self.free) && demand.admits(&self.class);
        let devices = if fits { &self.devices[..] } else { &[] };
        let none = (fits && demand.devices.is_none()).then_some(DeviceChoice::None);
        let rooms = devices.iter().enumerate().filter_map(|(at, room)| {
            let asked = demand.devices.as_ref()?;
            let same = &devices[at..];
            choice_at(asked, *room, at.checked_sub(1).map(|before| devices[before]), same)
        });
        none.into_iter().chain(rooms)
    }

    /// Tells whether a task of this demand fits.
    pub fn fits(&self, demand: &Demand) -> bool {
        // As `choices` would tell, but this is asked far more often.
        demand.resources.fits(&self.free)
            && demand.devices.as_ref().is_none_or(|asked| match asked.amount {
                DeviceAmount::Fraction(millis) => {
                    self.devices.iter().any(|room| room.free >= millis && asked.allows(room.model))
                }
                DeviceAmount::Whole(count) => self.devices.chunk_by(|one, other| one == other).any(|alike| {
                    alike.len() >= count as usize
                        && alike[0].free == DEVICE_MILLIS
                        && asked.allows(alike[0].model)
                }),
            })
            && demand.admits(&self.class)
    }

    /// What the node would be after such a task, which must fit, on the devices of this choice.
    pub fn after(&self, demand: &Demand, choice: DeviceChoice) -> Self {
        let mut after = self.clone();
        after.take(demand, choice);
        after
    }

    /// Becomes what another bucket's node would be after such a task.
    pub(super) fn become_after(&mut self, other: &Self, demand: &Demand, choice: DeviceChoice) {
        self.class = other.class.clone();
        self.free = other.free.clone();
        self.devices.clone_from(&other.devices);
        self.take(demand, choice);
    }

    fn take(&mut self, demand: &Demand, choice: DeviceChoice) {
        let amount = demand.devices.as_ref().map(|devices| devices.amount);
        match (choice, amount) {
            (DeviceChoice::Share(room), Some(DeviceAmount::Fraction(millis))) => {
                // The first of its kind stays the first when it has less.
                if let Some(mut at) = self.devices.iter().position(|other| *other == room) {
                    self.devices[at].free -= millis;
                    while at > 0 && self.devices[at - 1] > self.devices[at] {
                        self.devices.swap(at - 1, at);
                        at -= 1;
                    }
                }
            }
            (DeviceChoice::Whole(model), Some(DeviceAmount::Whole(count))) => {
                let untouched =
                    self.devices.iter_mut().filter(|room| room.model == model && room.free == DEVICE_MILLIS);
                untouched.take(count as usize).for_each(|room| room.free = 0);
                self.devices.sort_unstable();
            }
            _ => {}
        }
        self.free = self.free.checked_sub(&demand.resources).unwrap_or_default();
    }

    /// Tells it from any other, as far as 128 bits can.
    pub(super) fn fingerprint(&self) -> u128 {
        let mut print = Fingerprint(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);
        self.hash(&mut print);
        print.whole()
    }
}

/// Two independent mixes of 64 bits.
struct Fingerprint(u64, u64);

impl Fingerprint {
    fn whole(&self) -> u128 {
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

/// What a device offers to a task, if it is the first of its kind: `same` begins with it.
fn choice_at(
    asked: &DeviceDemand,
    room: DeviceRoom,
    before: Option<DeviceRoom>,
    same: &[DeviceRoom],
) -> Option<DeviceChoice> {
    if before == Some(room) || !asked.allows(room.model) {
        return None;
    }
    match asked.amount {
        DeviceAmount::Fraction(millis) => (room.free >= millis).then_some(DeviceChoice::Share(room)),
        DeviceAmount::Whole(count) => {
            let untouched = same.iter().take_while(|other| **other == room).count();
            (room.free == DEVICE_MILLIS && untouched >= count as usize)
                .then_some(DeviceChoice::Whole(room.model))
        }
    }
}
