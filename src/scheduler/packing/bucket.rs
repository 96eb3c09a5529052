//! Buckets: nodes that are alike to every task, and what they would be after one more.

use std::sync::Arc;

use crate::model::demand::{Demand, DeviceDemand, NodeClass};
use crate::model::device::{DeviceAmount, DeviceModelId};
use crate::model::limit::DEVICE_MILLIS;
use crate::model::resource::Resources;

/// A node's free capacity, as far as it matters to tasks: which device is which doesn't.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    pub class: Arc<NodeClass>,
    /// Without devices.
    pub free: Resources,
    /// Free thousandths of each device, by model; of one model, the fullest device first.
    pub devices: Box<[DeviceRoom]>,
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
        self.choices(demand).next().is_some()
    }

    /// What the node would be after such a task, which must fit, on the devices of this choice.
    pub fn after(&self, demand: &Demand, choice: DeviceChoice) -> Self {
        let mut devices = self.devices.clone();
        let amount = demand.devices.as_ref().map(|devices| devices.amount);
        match (choice, amount) {
            (DeviceChoice::Share(room), Some(DeviceAmount::Fraction(millis))) => {
                // The first of its kind stays the first when it has less.
                if let Some(mut at) = devices.iter().position(|other| *other == room) {
                    devices[at].free -= millis;
                    while at > 0 && devices[at - 1] > devices[at] {
                        devices.swap(at - 1, at);
                        at -= 1;
                    }
                }
            }
            (DeviceChoice::Whole(model), Some(DeviceAmount::Whole(count))) => {
                let untouched =
                    devices.iter_mut().filter(|room| room.model == model && room.free == DEVICE_MILLIS);
                untouched.take(count as usize).for_each(|room| room.free = 0);
                devices.sort_unstable();
            }
            _ => {}
        }
        let free = self.free.checked_sub(&demand.resources).unwrap_or_default();
        Self { class: self.class.clone(), free, devices }
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
