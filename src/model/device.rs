//! Accelerator models: the table of makers, memory, and the names clusters use for them.

use super::limit::DEVICE_MILLIS;

/// The built-in catalogue; a broker's own starts from it and learns what agents report.
const TABLE: &str = include_str!("devices.csv");

/// A model's number in a broker's catalogue, which only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceModelId(pub u16);

/// One row of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceModel {
    /// As users write it: `A100-80G`, `Ascend910B3`.
    pub name: String,
    pub maker: String,
    /// 0 where the maker's figure is unknown.
    pub memory_bytes: u64,
    /// Extended resource that clusters use: `nvidia.com/gpu`.
    pub resource: String,
    /// Environment variable that tells a task its devices.
    pub visible_devices: String,
}

impl DeviceModel {
    /// A model that an agent reported and no table knows.
    pub fn unlisted(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            maker: String::new(),
            memory_bytes: 0,
            resource: String::new(),
            visible_devices: "WEIR_VISIBLE_DEVICES".to_owned(),
        }
    }
}

/// The built-in models.
pub fn built_in() -> impl Iterator<Item = DeviceModel> {
    TABLE.lines().skip(1).filter_map(|line| {
        let mut cells = line.split(',').map(str::to_owned);
        Some(DeviceModel {
            name: cells.next()?,
            maker: cells.next()?,
            memory_bytes: cells.next()?.parse::<u64>().ok()? << 30,
            resource: cells.next()?,
            visible_devices: cells.next()?,
        })
    })
}

/// The environment variable that tells a task its devices of this model.
pub fn visible_devices_variable(model: &str) -> String {
    built_in()
        .find(|known| known.name == model)
        .unwrap_or_else(|| DeviceModel::unlisted(model))
        .visible_devices
}

/// How much of which devices a task asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceAmount {
    /// So many whole devices, at least one.
    Whole(u32),
    /// Thousandths of one device, 1 to 999.
    Fraction(u32),
}

impl DeviceAmount {
    /// Thousandths in all.
    pub fn millis(self) -> u64 {
        match self {
            Self::Whole(count) => u64::from(count) * u64::from(DEVICE_MILLIS),
            Self::Fraction(millis) => u64::from(millis),
        }
    }
}

/// A share of one device of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceShare {
    /// The device's place in its node's list.
    pub index: u16,
    /// Thousandths, 1 to 1,000.
    pub millis: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_reads_whole() {
        assert_eq!(built_in().count(), TABLE.lines().count() - 1);
        assert_eq!(visible_devices_variable("Ascend910B3"), "ASCEND_RT_VISIBLE_DEVICES");
    }
}
