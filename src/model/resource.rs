//! Resource vectors: integer amounts over an append-only catalogue of kinds.

use std::collections::BTreeMap;
use std::fmt;

use super::limit::DEVICE_MILLIS;

/// One kind of resource. A kind that is not built in is identified by its name, not dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// Millicores.
    Cpu,
    /// Bytes.
    Memory,
    /// Bytes of scratch space.
    Storage,
    /// Thousandths of a device of any model.
    Device,
    /// A kind that only some backends offer, in the backend's own unit.
    Other(Box<str>),
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Storage => "storage",
            Self::Device => "devices",
            Self::Other(name) => name,
        })
    }
}

/// Number of task size classes, by powers of two of devices.
pub const TASK_SIZES: usize = 8;

/// Returns the size class of a task that demands `device_millis` thousandths of devices: 0 below two devices,
/// 1 for two or three, 2 for four to seven, and so on, up to `TASK_SIZES - 1`.
pub fn task_size(device_millis: u64) -> usize {
    let devices = device_millis / u64::from(DEVICE_MILLIS);
    devices.checked_ilog2().map_or(0, |size| (size as usize).min(TASK_SIZES - 1))
}

/// Amounts per kind; an absent kind is zero. Arithmetic is checked: it never wraps.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    /// Scratch space.
    pub storage_bytes: u64,
    /// Thousandths of devices of any model; a [`Placement`](super::attempt::Placement) names the devices.
    pub device_millis: u64,
    /// Amounts of [`ResourceKind::Other`] by name; no entry is zero, and `None` stands for an empty map.
    /// Boxed, because it is almost always empty.
    pub other: Option<Box<BTreeMap<Box<str>, u64>>>,
}

impl Resources {
    /// Returns the non-zero amounts, in the order of the kinds.
    pub fn iter(&self) -> impl Iterator<Item = (ResourceKind, u64)> {
        let fixed = [
            (ResourceKind::Cpu, self.cpu_millis),
            (ResourceKind::Memory, self.memory_bytes),
            (ResourceKind::Storage, self.storage_bytes),
            (ResourceKind::Device, self.device_millis),
        ];
        let other = self.other.iter().flat_map(|map| map.iter());
        let other = other.map(|(name, amount)| (ResourceKind::Other(name.clone()), *amount));
        fixed.into_iter().chain(other).filter(|(_, amount)| *amount > 0)
    }

    /// Returns the amount of one kind.
    pub fn get(&self, kind: &ResourceKind) -> u64 {
        match kind {
            ResourceKind::Cpu => self.cpu_millis,
            ResourceKind::Memory => self.memory_bytes,
            ResourceKind::Storage => self.storage_bytes,
            ResourceKind::Device => self.device_millis,
            ResourceKind::Other(name) => {
                self.other.as_ref().and_then(|map| map.get(name)).copied().unwrap_or(0)
            }
        }
    }

    /// Returns the sum, or `None` if any kind would overflow.
    pub fn checked_add(&self, rhs: &Self) -> Option<Self> {
        self.combine(rhs, u64::checked_add)
    }

    /// Returns the difference, or `None` if any kind would go below zero.
    pub fn checked_sub(&self, rhs: &Self) -> Option<Self> {
        self.combine(rhs, u64::checked_sub)
    }

    /// Returns this vector multiplied by `count`, or `None` if any kind would overflow.
    pub fn checked_mul(&self, count: u64) -> Option<Self> {
        self.combine(self, |amount, _| amount.checked_mul(count))
    }

    /// Returns the first kind, in order, of which `self` needs more than `available` has; `None` if all fit.
    pub fn first_excess(&self, available: &Self) -> Option<Excess> {
        self.iter().find_map(|(kind, needed)| {
            let have = available.get(&kind);
            (needed > have).then_some(Excess { kind, needed, have })
        })
    }

    /// True if no kind exceeds `available`.
    pub fn fits(&self, available: &Self) -> bool {
        self.cpu_millis <= available.cpu_millis
            && self.memory_bytes <= available.memory_bytes
            && self.storage_bytes <= available.storage_bytes
            && self.device_millis <= available.device_millis
            && (self.other.is_none() || self.first_excess(available).is_none())
    }

    fn combine(&self, rhs: &Self, op: impl Fn(u64, u64) -> Option<u64>) -> Option<Self> {
        let other = match (&self.other, &rhs.other) {
            (None, None) => None,
            (left, right) => {
                let mut sum: BTreeMap<Box<str>, u64> = left.as_deref().cloned().unwrap_or_default();
                for (name, amount) in right.iter().flat_map(|map| map.iter()) {
                    let slot = sum.entry(name.clone()).or_default();
                    *slot = op(*slot, *amount)?;
                }
                sum.retain(|_, amount| *amount > 0);
                (!sum.is_empty()).then(|| Box::new(sum))
            }
        };
        Some(Self {
            cpu_millis: op(self.cpu_millis, rhs.cpu_millis)?,
            memory_bytes: op(self.memory_bytes, rhs.memory_bytes)?,
            storage_bytes: op(self.storage_bytes, rhs.storage_bytes)?,
            device_millis: op(self.device_millis, rhs.device_millis)?,
            other,
        })
    }
}

/// A kind of which more is needed than is available; amounts in the kind's own unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    pub kind: ResourceKind,
    pub needed: u64,
    pub have: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(cpu_millis: u64, nic: u64) -> Resources {
        let other = (nic > 0).then(|| Box::new(BTreeMap::from([("nic".into(), nic)])));
        Resources { cpu_millis, other, ..Resources::default() }
    }

    #[test]
    fn sums_and_differences_are_checked_in_every_kind() {
        assert_eq!(vector(1, 2).checked_add(&vector(3, 4)), Some(vector(4, 6)));
        assert_eq!(vector(3, 4).checked_sub(&vector(1, 4)), Some(vector(2, 0)));
        assert_eq!(vector(3, 4).checked_sub(&vector(1, 5)), None);
        assert_eq!(vector(u64::MAX, 0).checked_add(&vector(1, 0)), None);
        assert_eq!(vector(u64::MAX / 2, 1).checked_mul(3), None);
    }

    #[test]
    fn excess_names_the_first_kind_that_is_short() {
        let excess = vector(1, 5).first_excess(&vector(1, 4));
        let kind = ResourceKind::Other("nic".into());
        assert_eq!(excess, Some(Excess { kind, needed: 5, have: 4 }));
    }
}
