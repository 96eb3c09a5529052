//! What has to go from one node so that a task fits.
//!
//! On a node of few devices every set of them is tried; on larger ones it is put together device by device.

use std::cmp::Ordering;

use super::Running;
use crate::model::demand::Demand;
use crate::model::device::DeviceModelId;
use crate::model::limit::DEVICE_MILLIS;
use crate::model::resource::Resources;
use crate::scheduler::packing::Node;

/// Devices of a node whose every set is tried: 2^8 are some microseconds.
const EXACT_MAX: usize = 8;
/// Tasks on one node that can be told apart.
pub(super) const TASKS_MAX: usize = Set::BITS as usize;

/// A set of a node's movable tasks.
pub(super) type Set = u64;

/// A node with what can be moved away from it.
pub(super) struct Room<'a> {
    node: &'a Node,
    tasks: Vec<usize>,
    running: &'a [Running],
    /// Of each task: device thousandths that would be in use no more.
    lost: Vec<u64>,
    /// Of each device: the tasks to be moved to empty it, if that is possible.
    emptied_by: Vec<Option<Set>>,
    /// Every set of devices that can be emptied, if the node is small enough.
    subsets: Vec<Subset>,
}

/// Devices of one model.
struct Subset {
    model: DeviceModelId,
    len: usize,
    cleared: Cleared,
}

/// Tasks that go, with what they cost and what would be in use no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cleared {
    pub(super) set: Set,
    pub(super) cost: u64,
    pub(super) lost: u64,
}

impl Cleared {
    /// The least is the best for somebody who asks for so much.
    fn compare(&self, other: &Self, asked: u64) -> Ordering {
        let worth = |one: &Self, cost: u64| u128::from(asked.saturating_sub(one.lost)) * u128::from(cost);
        worth(other, self.cost).cmp(&worth(self, other.cost)).then_with(|| {
            (self.cost, self.set.count_ones(), self.set).cmp(&(other.cost, other.set.count_ones(), other.set))
        })
    }
}

impl<'a> Room<'a> {
    pub(super) fn new(node: &'a Node, lost: Vec<u64>, tasks: Vec<usize>, running: &'a [Running]) -> Self {
        let mut room = Self { node, tasks, running, lost, emptied_by: Vec::new(), subsets: Vec::new() };
        room.emptied_by = (0..node.devices.len())
            .map(|device| {
                let held: u32 = bits(room.on(device)).map(|bit| room.share(bit, device)).sum();
                (node.device_free[device] + held == DEVICE_MILLIS).then(|| room.on(device))
            })
            .collect();
        if node.devices.len() <= EXACT_MAX {
            room.subsets = room.all_subsets();
        }
        room
    }

    /// The places of a set's tasks among those that run.
    pub(super) fn tasks_of(&self, set: Set) -> Vec<usize> {
        bits(set).map(|bit| self.tasks[bit]).collect()
    }

    fn task(&self, bit: usize) -> &Running {
        &self.running[self.tasks[bit]]
    }

    fn cleared(&self, set: Set) -> Cleared {
        let (cost, lost) =
            bits(set).fold((0, 0), |(cost, lost), bit| (cost + self.task(bit).cost, lost + self.lost[bit]));
        Cleared { set, cost, lost }
    }

    /// Sets of tasks that are compared for one demand, about.
    pub(super) fn sets(&self) -> u64 {
        (self.subsets.len() + self.node.devices.len() + self.tasks.len()) as u64
    }

    /// What a task holds of a device.
    fn share(&self, bit: usize, device: usize) -> u32 {
        let shares = self.task(bit).devices.iter();
        shares.filter(|share| usize::from(share.index) == device).map(|share| share.millis).sum()
    }

    /// The movable tasks on a device.
    fn on(&self, device: usize) -> Set {
        (0..self.tasks.len()).filter(|bit| self.share(*bit, device) > 0).fold(0, |set, bit| set | 1 << bit)
    }

    fn all_subsets(&self) -> Vec<Subset> {
        let subset = |chosen: Set| {
            let mut devices = bits(chosen);
            let model = self.node.devices[devices.next()?].model;
            let one = devices.all(|device| self.node.devices[device].model == model);
            let set = bits(chosen).try_fold(0, |all, device| Some(all | self.emptied_by[device]?));
            let cleared = self.cleared(set.filter(|_| one)?);
            Some(Subset { model, len: chosen.count_ones() as usize, cleared })
        };
        (1..1 << self.node.devices.len()).filter_map(subset).collect()
    }

    /// The tasks whose going makes room best for one that asks for so many whole devices.
    pub(super) fn clear_whole(&self, demand: &Demand, count: usize) -> Option<Cleared> {
        if self.node.devices.len() > EXACT_MAX {
            return self.clear_greedily(demand, count);
        }
        let asked = demand.device_millis();
        let better = |one: &Cleared, best: &Option<Cleared>| {
            best.as_ref().is_none_or(|best| one.compare(best, asked) == Ordering::Less)
        };
        let mut best = None;
        for subset in &self.subsets {
            // With what must go for its CPUs it only gets worse.
            if subset.len == count && demand.allows(subset.model) && better(&subset.cleared, &best) {
                let found = self.with_resources(demand, subset.cleared.set);
                best = found.filter(|found| better(found, &best)).or(best);
            }
        }
        best
    }

    /// The same, a device after the other.
    fn clear_greedily(&self, demand: &Demand, count: usize) -> Option<Cleared> {
        let mut models: Vec<DeviceModelId> = self.node.devices.iter().map(|device| device.model).collect();
        models.sort_unstable();
        models.dedup();
        let clear = |model: DeviceModelId| {
            let mut left: Vec<Set> = (0..self.node.devices.len())
                .filter(|device| self.node.devices[*device].model == model)
                .filter_map(|device| self.emptied_by[device])
                .collect();
            let mut set = 0;
            for _ in 0..count {
                let more = |at: &usize| {
                    let more = self.cleared(left[*at] & !set);
                    (more.cost + more.lost, *at)
                };
                let next = (0..left.len()).min_by_key(more)?;
                set |= left.swap_remove(next);
            }
            self.with_resources(demand, set)
        };
        let allowed = models.into_iter().filter(|model| demand.allows(*model));
        allowed.filter_map(clear).min_by(|one, other| one.compare(other, demand.device_millis()))
    }

    /// The tasks whose going makes room best for one that asks for a part of a device.
    pub(super) fn clear_part(&self, demand: &Demand, millis: u32) -> Option<Cleared> {
        let clear = |device: usize| {
            let mut on: Vec<usize> = bits(self.on(device)).collect();
            on.sort_by_key(|bit| (self.task(*bit).cost + self.lost[*bit], *bit));
            let (mut free, mut gone): (u32, Set) = (self.node.device_free[device], 0);
            for bit in &on {
                if free >= millis {
                    break;
                }
                free += self.share(*bit, device);
                gone |= 1 << bit;
            }
            // Of those that were to go first some may stay after all, the dearest first.
            for bit in on.iter().rev() {
                if gone & (1 << bit) != 0 && free >= millis + self.share(*bit, device) {
                    free -= self.share(*bit, device);
                    gone &= !(1 << bit);
                }
            }
            if free < millis { None } else { self.with_resources(demand, gone) }
        };
        (0..self.node.devices.len())
            .filter(|device| demand.allows(self.node.devices[*device].model))
            .filter_map(clear)
            .min_by(|one, other| one.compare(other, demand.device_millis()))
    }

    /// As many more of the cheapest tasks as must go until there is CPU, memory and the like for the
    /// demand, too.
    fn with_resources(&self, demand: &Demand, mut set: Set) -> Option<Cleared> {
        let add = |free: Resources, bit: usize| {
            free.checked_add(&self.task(bit).demand.resources).unwrap_or_default()
        };
        let mut free = bits(set).fold(self.node.free.clone(), add);
        if !demand.resources.fits(&free) {
            let mut others: Vec<usize> = (0..self.tasks.len()).filter(|bit| set & (1 << bit) == 0).collect();
            others.sort_by_key(|bit| (self.task(*bit).cost + self.lost[*bit], *bit));
            for bit in others {
                free = add(free, bit);
                set |= 1 << bit;
                if demand.resources.fits(&free) {
                    break;
                }
            }
        }
        demand.resources.fits(&free).then(|| self.cleared(set))
    }
}

fn bits(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(lowest)
    })
}
