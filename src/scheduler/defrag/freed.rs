//! Finds the tasks to move away from one node so that a waiting task fits there.
//!
//! On a node with few devices every set of devices is tried. On larger nodes the set is built greedily, one
//! device after the other.

use std::cmp::Ordering;

use super::Running;
use crate::model::demand::Demand;
use crate::model::device::DeviceModelId;
use crate::model::limit::DEVICE_MILLIS;
use crate::model::resource::Resources;
use crate::scheduler::packing::Node;

/// Devices of a node up to which every set of them is tried: 2^8 sets take some microseconds.
const EXACT_MAX: usize = 8;
/// Tasks on one node that are compared: one bit each in a [`Set`].
pub(super) const TASKS_MAX: usize = Set::BITS as usize;

/// A set of a node's movable tasks, or of its devices, one bit each.
pub(super) type Set = u64;

/// A node with the tasks that may be moved away from it.
pub(super) struct FreeableNode<'a> {
    node: &'a Node,
    /// The movable tasks, as indexes into `running`.
    tasks: Vec<usize>,
    running: &'a [Running],
    /// For each task, the device thousandths that are no longer in use if it is moved.
    lost: Vec<u64>,
    /// For each device, the tasks whose move empties it; `None` if it can't be emptied.
    emptied_by: Vec<Option<Set>>,
    /// Every set of devices that can be emptied; empty on nodes with more than [`EXACT_MAX`] devices.
    subsets: Vec<Subset>,
}

/// A set of devices of one model.
struct Subset {
    model: DeviceModelId,
    len: usize,
    /// The tasks whose move empties all of them.
    moves: MoveSet,
}

/// A set of tasks to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MoveSet {
    pub(super) set: Set,
    /// The cost of the moves.
    pub(super) cost: u64,
    /// Device thousandths that are no longer in use.
    pub(super) lost: u64,
}

impl MoveSet {
    /// Compares for a task that asks for `asked` device thousandths: the least is the best, by gain for the
    /// cost.
    fn compare(&self, other: &Self, asked: u64) -> Ordering {
        let product = |one: &Self, cost: u64| u128::from(asked.saturating_sub(one.lost)) * u128::from(cost);
        product(other, self.cost).cmp(&product(self, other.cost)).then_with(|| {
            (self.cost, self.set.count_ones(), self.set).cmp(&(other.cost, other.set.count_ones(), other.set))
        })
    }
}

impl<'a> FreeableNode<'a> {
    pub(super) fn new(node: &'a Node, lost: Vec<u64>, tasks: Vec<usize>, running: &'a [Running]) -> Self {
        let mut freeable = Self { node, tasks, running, lost, emptied_by: Vec::new(), subsets: Vec::new() };
        freeable.emptied_by = (0..node.devices.len())
            .map(|device| {
                let held: u32 = bits(freeable.tasks_on(device)).map(|bit| freeable.share(bit, device)).sum();
                (node.device_free[device] + held == DEVICE_MILLIS).then(|| freeable.tasks_on(device))
            })
            .collect();
        if node.devices.len() <= EXACT_MAX {
            freeable.subsets = freeable.all_subsets();
        }
        freeable
    }

    /// Returns the tasks of a set as indexes into the running tasks.
    pub(super) fn tasks_of(&self, set: Set) -> Vec<usize> {
        bits(set).map(|bit| self.tasks[bit]).collect()
    }

    fn task(&self, bit: usize) -> &Running {
        &self.running[self.tasks[bit]]
    }

    /// The set with its cost and loss.
    fn move_set(&self, set: Set) -> MoveSet {
        let (cost, lost) =
            bits(set).fold((0, 0), |(cost, lost), bit| (cost + self.task(bit).cost, lost + self.lost[bit]));
        MoveSet { set, cost, lost }
    }

    /// Returns about how many sets of tasks are compared for one demand.
    pub(super) fn sets(&self) -> u64 {
        (self.subsets.len() + self.node.devices.len() + self.tasks.len()) as u64
    }

    /// The thousandths of a device that a task holds.
    fn share(&self, bit: usize, device: usize) -> u32 {
        let shares = self.task(bit).devices.iter();
        shares.filter(|share| usize::from(share.index) == device).map(|share| share.millis).sum()
    }

    /// The movable tasks on a device.
    fn tasks_on(&self, device: usize) -> Set {
        (0..self.tasks.len()).filter(|bit| self.share(*bit, device) > 0).fold(0, |set, bit| set | 1 << bit)
    }

    fn all_subsets(&self) -> Vec<Subset> {
        let subset = |chosen: Set| {
            let mut devices = bits(chosen);
            let model = self.node.devices[devices.next()?].model;
            let one_model = devices.all(|device| self.node.devices[device].model == model);
            let set = bits(chosen).try_fold(0, |all, device| Some(all | self.emptied_by[device]?));
            let moves = self.move_set(set.filter(|_| one_model)?);
            Some(Subset { model, len: chosen.count_ones() as usize, moves })
        };
        (1..1 << self.node.devices.len()).filter_map(subset).collect()
    }

    /// Returns the best tasks to move for a demand of `count` whole devices; `None` if no moves suffice.
    pub(super) fn free_whole(&self, demand: &Demand, count: usize) -> Option<MoveSet> {
        if self.node.devices.len() > EXACT_MAX {
            return self.free_whole_greedily(demand, count);
        }
        let asked = demand.device_millis();
        let better = |one: &MoveSet, best: &Option<MoveSet>| {
            best.as_ref().is_none_or(|best| one.compare(best, asked) == Ordering::Less)
        };
        let mut best = None;
        for subset in &self.subsets {
            // Further tasks that must move for the CPU only make a set worse.
            if subset.len == count && demand.allows(subset.model) && better(&subset.moves, &best) {
                let found = self.with_resources(demand, subset.moves.set);
                best = found.filter(|found| better(found, &best)).or(best);
            }
        }
        best
    }

    /// The same for larger nodes: empties the cheapest device, one after the other.
    fn free_whole_greedily(&self, demand: &Demand, count: usize) -> Option<MoveSet> {
        let mut models: Vec<DeviceModelId> = self.node.devices.iter().map(|device| device.model).collect();
        models.sort_unstable();
        models.dedup();
        let free_model = |model: DeviceModelId| {
            let mut left: Vec<Set> = (0..self.node.devices.len())
                .filter(|device| self.node.devices[*device].model == model)
                .filter_map(|device| self.emptied_by[device])
                .collect();
            let mut set = 0;
            for _ in 0..count {
                let more = |at: &usize| {
                    let more = self.move_set(left[*at] & !set);
                    (more.cost + more.lost, *at)
                };
                let next = (0..left.len()).min_by_key(more)?;
                set |= left.swap_remove(next);
            }
            self.with_resources(demand, set)
        };
        let allowed = models.into_iter().filter(|model| demand.allows(*model));
        allowed.filter_map(free_model).min_by(|one, other| one.compare(other, demand.device_millis()))
    }

    /// Returns the best tasks to move for a demand of `millis` thousandths of one device; `None` if no moves
    /// suffice.
    pub(super) fn free_share(&self, demand: &Demand, millis: u32) -> Option<MoveSet> {
        let free_on = |device: usize| {
            let mut tasks: Vec<usize> = bits(self.tasks_on(device)).collect();
            tasks.sort_by_key(|bit| (self.task(*bit).cost + self.lost[*bit], *bit));
            let (mut free, mut moved): (u32, Set) = (self.node.device_free[device], 0);
            for bit in &tasks {
                if free >= millis {
                    break;
                }
                free += self.share(*bit, device);
                moved |= 1 << bit;
            }
            // Some of the chosen tasks may be unnecessary: the most expensive ones are dropped first.
            for bit in tasks.iter().rev() {
                if moved & (1 << bit) != 0 && free >= millis + self.share(*bit, device) {
                    free -= self.share(*bit, device);
                    moved &= !(1 << bit);
                }
            }
            if free < millis { None } else { self.with_resources(demand, moved) }
        };
        (0..self.node.devices.len())
            .filter(|device| demand.allows(self.node.devices[*device].model))
            .filter_map(free_on)
            .min_by(|one, other| one.compare(other, demand.device_millis()))
    }

    /// Adds the cheapest further tasks until CPU, memory and the other kinds suffice, too; `None` if they
    /// never do.
    fn with_resources(&self, demand: &Demand, mut set: Set) -> Option<MoveSet> {
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
        demand.resources.fits(&free).then(|| self.move_set(set))
    }
}

/// The positions of the bits that are set.
fn bits(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(lowest)
    })
}
