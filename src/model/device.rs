//! Accelerator models: the table of makers, memory, and the names clusters use for them.

use super::limit::DEVICE_MILLIS;

/// The built-in catalogue; a broker's own starts from it and uses_profile what agents report.
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
    /// Environment variable that tells a task its devices, as indices of the maker's own count:
    ///
    /// - `CUDA_VISIBLE_DEVICES`: CUDA Programming Guide, section 5.2.1,
    ///   <https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html>
    /// - `ASCEND_RT_VISIBLE_DEVICES`: CANN, environment variables,
    ///   <https://www.hiascend.com/document/detail/en/canncommercial/850/maintenref/envvar/envref_07_0028.html>
    /// - `HIP_VISIBLE_DEVICES`, also Hygon's: HIP, environment variables,
    ///   <https://rocm.docs.amd.com/projects/HIP/en/latest/reference/env_variables.html>
    /// - `MLU_VISIBLE_DEVICES`: Cambricon's CNRT
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

/// The value of such a variable that hides every device.
///
/// NVIDIA and Huawei document that only what stands before an invalid index is visible. An empty
/// value would not do: HIP takes it for one that is not set.
pub const NO_DEVICE: &str = "-1";

/// A variable, and its value, that must go with `variable` for its indices to mean what the maker's
/// tools show: CUDA counts the fastest first unless it is told to count as `nvidia-smi` does.
pub fn order_variable(variable: &str) -> Option<(&'static str, &'static str)> {
    (variable == "CUDA_VISIBLE_DEVICES").then_some(("CUDA_DEVICE_ORDER", "PCI_BUS_ID"))
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
