//! Accelerator models: a table of makers, memory sizes and the names that clusters use for them.

use super::limit::DEVICE_MILLIS;

/// The built-in catalogue. A broker's own starts from it and adds the models that agents report.
const TABLE: &str = include_str!("devices.csv");

/// A model's index in a broker's catalogue. The catalogue is append-only, so an index never changes meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceModelId(pub u16);

/// One row of the device catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceModel {
    /// As users write it: `A100-80G`, `Ascend910B3`.
    pub name: String,
    /// Empty for a model that is not in the built-in table.
    pub maker: String,
    /// 0 if unknown.
    pub memory_bytes: u64,
    /// Kubernetes extended resource of the maker's device plugin: `nvidia.com/gpu`. Empty if unknown.
    pub resource: String,
    /// Environment variable that restricts a task to its devices, as indices in the maker's numbering:
    ///
    /// - `CUDA_VISIBLE_DEVICES`: CUDA Programming Guide, section 5.2.1,
    ///   <https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html>
    /// - `ASCEND_RT_VISIBLE_DEVICES`: CANN, environment variables,
    ///   <https://www.hiascend.com/document/detail/en/canncommercial/850/maintenref/envvar/envref_07_0028.html>
    /// - `HIP_VISIBLE_DEVICES`, also for Hygon: HIP, environment variables,
    ///   <https://rocm.docs.amd.com/projects/HIP/en/latest/reference/env_variables.html>
    /// - `MLU_VISIBLE_DEVICES`: Cambricon's CNRT
    /// - `WEIR_VISIBLE_DEVICES`: any model that is not in the built-in table
    pub visible_devices: String,
}

impl DeviceModel {
    /// Returns the row of a model that an agent reported and that is not in the built-in table.
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

/// Returns the models of the built-in table.
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

/// The value of [`DeviceModel::visible_devices`] that hides every device.
///
/// NVIDIA and Huawei document that only the devices listed before an invalid index are visible. An empty
/// value would not do: HIP treats it as unset.
pub const NO_DEVICE: &str = "-1";

/// Returns the variable, and its value, that must be set together with `variable` so that its indices match
/// the maker's tools; `None` if none is needed. CUDA numbers the fastest device first unless
/// `CUDA_DEVICE_ORDER` selects the PCI bus order of `nvidia-smi`.
pub fn order_variable(variable: &str) -> Option<(&'static str, &'static str)> {
    (variable == "CUDA_VISIBLE_DEVICES").then_some(("CUDA_DEVICE_ORDER", "PCI_BUS_ID"))
}

/// The amount of devices that a task requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceAmount {
    /// Whole devices, at least one.
    Whole(u32),
    /// Thousandths of one device, 1 to 999.
    Fraction(u32),
}

impl DeviceAmount {
    /// Returns the amount in thousandths of a device.
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
    /// The device's index in its node's list.
    pub index: u16,
    /// Thousandths, 1 to 1,000.
    pub millis: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_parses() {
        assert_eq!(built_in().count(), TABLE.lines().count() - 1);
        let variable = |name| built_in().find(|model| model.name == name).map(|model| model.visible_devices);
        assert_eq!(variable("Ascend910B3").as_deref(), Some("ASCEND_RT_VISIBLE_DEVICES"));
    }
}
