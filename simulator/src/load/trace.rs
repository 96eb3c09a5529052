//! Reads the openb trace's files.

use std::path::Path;

use anyhow::Context;
use weir::model::limit::DEVICE_MILLIS;
use weir::model::pool::{Device, NodeSpec};
use weir::model::resource::Resources;

/// One task of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) name: String,
    pub(super) cpu_millis: u64,
    pub(super) memory_bytes: u64,
    pub(super) gpu_count: u32,
    /// Of one GPU, where there is one.
    pub(super) gpu_millis: u32,
    /// Allowed models; empty means any.
    pub(super) models: Vec<String>,
    pub(super) created_s: u64,
    pub(super) duration_s: u64,
}

impl Task {
    /// GPUs asked for.
    pub(super) fn gpus(&self) -> f64 {
        f64::from(self.gpu_count) * f64::from(self.gpu_millis) / f64::from(DEVICE_MILLIS)
    }
}

/// Rows of a CSV file without quotes, each as its named cells.
fn rows<T>(
    path: &Path,
    columns: &[&str],
    read: impl Fn(&[&str]) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let text = std::fs::read_to_string(path)?;
    let mut lines = text.lines();
    let heading: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let place = |name: &&str| {
        heading.iter().position(|column| column == name).with_context(|| format!("no column {name}"))
    };
    let places = columns.iter().map(place).collect::<anyhow::Result<Vec<_>>>()?;
    let mut all = Vec::new();
    for (number, line) in lines.enumerate().filter(|(_, line)| !line.is_empty()) {
        let cells: Vec<&str> = line.split(',').collect();
        let cells: Vec<&str> =
            places.iter().map(|place| cells.get(*place).copied().unwrap_or_default()).collect();
        all.push(read(&cells).with_context(|| format!("line {}", number + 2))?);
    }
    Ok(all)
}

/// Reads nodes.
pub(super) fn read_nodes(path: &Path) -> anyhow::Result<Vec<NodeSpec>> {
    rows(path, &["sn", "cpu_milli", "memory_mib", "gpu", "model"], |cells| {
        let gpus: u16 = cells[3].parse().context("gpu")?;
        let device = |slot: u16| Device {
            model: cells[4].to_owned(),
            memory_bytes: 0,
            healthy: true,
            millis: DEVICE_MILLIS,
            topology_group: slot / 4,
            profiles: Vec::new(),
        };
        Ok(NodeSpec {
            name: cells[0].to_owned(),
            labels: Default::default(),
            taints: Vec::new(),
            cordoned: false,
            allocatable: Resources {
                cpu_millis: cells[1].parse().context("cpu_milli")?,
                memory_bytes: cells[2].parse::<u64>().context("memory_mib")? << 20,
                ..Resources::default()
            },
            devices: (0..gpus).map(device).collect(),
        })
    })
}

/// Reads tasks. One that was never scheduled runs from its creation.
pub(super) fn read_tasks(path: &Path) -> anyhow::Result<Vec<Task>> {
    let columns = [
        "name",
        "cpu_milli",
        "memory_mib",
        "num_gpu",
        "gpu_milli",
        "gpu_spec",
        "creation_time",
        "deletion_time",
        "scheduled_time",
    ];
    rows(path, &columns, |cells| {
        let second = |text: &str| text.parse::<f64>().map(|value| value as u64);
        let created_s = second(cells[6]).context("creation_time")?;
        let from =
            if cells[8].is_empty() { created_s } else { second(cells[8]).context("scheduled_time")? };
        let until = second(cells[7]).context("deletion_time")?;
        Ok(Task {
            name: cells[0].to_owned(),
            cpu_millis: cells[1].parse().context("cpu_milli")?,
            memory_bytes: cells[2].parse::<u64>().context("memory_mib")? << 20,
            gpu_count: cells[3].parse().context("num_gpu")?,
            gpu_millis: cells[4].parse().context("gpu_milli")?,
            models: cells[5].split('|').filter(|model| !model.is_empty()).map(str::to_owned).collect(),
            created_s,
            duration_s: until.saturating_sub(from),
        })
    })
}
