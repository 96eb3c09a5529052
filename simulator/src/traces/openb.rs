//! Reader of the openb trace: Alibaba's cluster-trace-gpu-v2023, in the CSV form of the artifact of Weng et
//! al., Beware of Fragmentation, USENIX ATC 2023.

use std::path::Path;

use anyhow::{Context, bail};
use weir::model::device::DeviceAmount;
use weir::model::limit::DEVICE_MILLIS;
use weir::model::pool::{Device, NodeSpec};
use weir::model::resource::Resources;

use super::{Job, Trace, rows};

/// One task of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) gpu_count: u32,
    /// Thousandths of each GPU; 0 without GPUs.
    pub(crate) gpu_millis: u32,
    /// GPU models that the task accepts; empty means any.
    pub(crate) models: Vec<String>,
    pub(crate) created_s: u64,
    pub(crate) duration_s: u64,
}

impl Task {
    /// GPUs requested, as a fraction where the task shares one.
    #[cfg(feature = "load")]
    pub(crate) fn gpus(&self) -> f64 {
        f64::from(self.gpu_count) * f64::from(self.gpu_millis) / f64::from(DEVICE_MILLIS)
    }

    /// The devices requested; `None` without GPUs.
    ///
    /// # Errors
    /// If the task requests a fraction of several GPUs.
    pub(crate) fn devices(&self) -> anyhow::Result<Option<DeviceAmount>> {
        match (self.gpu_count, self.gpu_millis) {
            (0, _) => Ok(None),
            (1, millis) if millis > 0 && millis < DEVICE_MILLIS => Ok(Some(DeviceAmount::Fraction(millis))),
            (count, DEVICE_MILLIS) => Ok(Some(DeviceAmount::Whole(count))),
            (count, millis) => bail!(
                "task {} requests {count} GPUs of {millis} thousandths each: must be one GPU of 1 to 999, or whole GPUs",
                self.name
            ),
        }
    }
}

/// Converts the tasks of a file to jobs of one task each.
pub(crate) fn jobs(tasks: Vec<Task>, path: &Path) -> anyhow::Result<Trace> {
    let job = |task: Task| {
        let job = Job {
            arrives_ms: 0,
            duration_ms: task.duration_s.saturating_mul(1_000),
            tasks: 1,
            cpu_millis: task.cpu_millis,
            memory_bytes: task.memory_bytes,
            devices: task.devices()?,
            models: task.models,
        };
        Ok((task.created_s, job))
    };
    Trace::new(tasks.into_iter().map(job).collect::<anyhow::Result<_>>()?, 0, path)
}

/// Reads nodes from a CSV with the columns sn, cpu_milli, memory_mib, gpu and model.
///
/// # Errors
/// Names the missing column, or the line and cell that can't be parsed.
pub(crate) fn read_nodes(path: &Path) -> anyhow::Result<Vec<NodeSpec>> {
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

/// Reads tasks from a CSV. A task without a scheduled time runs from its creation on.
///
/// # Errors
/// Names the missing column, or the line and cell that can't be parsed.
pub(crate) fn read_tasks(path: &Path) -> anyhow::Result<Vec<Task>> {
    let columns = [
        "name",
        "cpu_milli",
        "memory_mib",
        "num_gpu",
        "gpu_milli",
        "gpu_spec?",
        "creation_time?",
        "deletion_time?",
        "scheduled_time?",
    ];
    rows(path, &columns, |cells| {
        let second = |text: &str| match text {
            "" => Ok(0),
            text => text.parse::<f64>().map(|value| value as u64),
        };
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

/// Repeats the tasks `passes` times, one pass after another. Durations are capped at `cut_s` seconds unless
/// that is 0.
#[cfg(feature = "load")]
pub(crate) fn repeat(tasks: &[Task], passes: u32, cut_s: u64) -> Vec<Task> {
    let span_s = tasks.iter().map(|task| task.created_s).max().unwrap_or(0) + 1;
    let pass = |pass: u32| {
        tasks.iter().map(move |task| Task {
            name: format!("{}-{pass}", task.name),
            created_s: task.created_s + u64::from(pass) * span_s,
            duration_s: if cut_s == 0 { task.duration_s } else { task.duration_s.min(cut_s) },
            ..task.clone()
        })
    };
    (0..passes).flat_map(pass).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slice of the openb trace (Alibaba cluster-trace-gpu-v2023, Apache-2.0).
    const SLICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openb_slice.csv");

    #[test]
    fn unscheduled_task_runs_from_its_creation() {
        let tasks = read_tasks(Path::new(SLICE)).unwrap();
        let unscheduled: Vec<&Task> = tasks.iter().filter(|task| task.name == "openb-pod-0012").collect();
        assert_eq!(tasks.len(), 40);
        assert!(unscheduled.iter().all(|task| task.duration_s > 0));
        assert!(tasks.iter().all(|task| task.devices().is_ok() && task.cpu_millis > 0));
    }

    #[cfg(feature = "load")]
    #[test]
    fn passes_follow_each_other_with_distinct_names() {
        let tasks = read_tasks(Path::new(SLICE)).unwrap();
        let twice = repeat(&tasks, 2, 100);
        assert_eq!(twice.len(), 80);
        assert!(
            twice[..40]
                .iter()
                .all(|first| twice[40..].iter().all(|second| second.created_s > first.created_s))
        );
        assert!(twice.iter().all(|task| task.duration_s <= 100));
        assert_ne!(twice[0].name, twice[40].name);
    }

    #[test]
    fn error_names_the_missing_column_or_the_line_and_cell() {
        let folder = std::env::temp_dir().join(format!("weir-trace-{}", std::process::id()));
        std::fs::write(&folder, "sn,cpu_milli,memory_mib,gpu\nn,1,1,1\n").unwrap();
        let missing = format!("{:#}", read_nodes(&folder).unwrap_err());
        std::fs::write(&folder, "sn,cpu_milli,memory_mib,gpu,model\nn,1,1,two,T4\n").unwrap();
        let bad = format!("{:#}", read_nodes(&folder).unwrap_err());
        std::fs::remove_file(&folder).unwrap();
        let file = folder.display();
        assert_eq!(missing, format!("{file} has no column model"));
        assert!(bad.starts_with(&format!("{file}, line 2: gpu")), "{bad}");
    }
}
